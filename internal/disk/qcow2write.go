package disk

import (
	"fmt"
	"maps"
	"slices"
)

// qcow2Writer is what writing to a qcow2 image needs. New clusters come at the
// end of the file. What the host's failure leaves on its disk is right because
// of the order of three steps:
//
//  1. A cluster is allocated: its reference count is written, and its data,
//     with what was there before if it is written in part.
//  2. Flush: all of that goes to stable storage.
//  3. Only then the tables say where the cluster is, and they go to stable
//     storage too.
//
// Until step 3 the entry is in pending. An end in the middle leaves a cluster
// that is counted and not used (a leak, as qemu-img check calls it), never one
// that is used and not counted, or whose other half is lost.
type qcow2Writer struct {
	q         *qcow2
	l1Offset  int64
	refOffset int64            // of the first table of reference counts
	refs      []uint64         // that table: offsets of clusters with counts of 16 bits
	next      int64            // free from here on
	pending   map[int64]uint64 // entries by number of the guest's cluster
	freed     []uint64         // descriptors of compressed clusters that pending replaces
}

// Bounds.
const (
	maxRefTable = 8 << 20 // bytes
	maxPending  = 4096    // entries, before they are flushed unasked
	growth      = 1 << 20 // bytes that the file grows by
	refOrder16  = 4       // the only width of reference counts
)

// newQcow2Writer reads what h, the header, says.
func newQcow2Writer(q *qcow2, h []byte) (*qcow2Writer, error) {
	name := q.file.f.Name()
	no := func(what, mend string) error {
		return &Error{name, "is a qcow2 image " + what + ", which ring3 does not write to", mend}
	}
	w := &qcow2Writer{q: q, l1Offset: int64(be.Uint64(h[qcowL1Offset:])), refOffset: int64(be.Uint64(h[qcowRefOffset:])),
		pending: map[int64]uint64{}}
	size := int64(be.Uint32(h[qcowRefClusters:])) << q.bits
	switch {
	case be.Uint32(h[qcowSnapshots:]) != 0:
		return nil, no("with snapshots", "open it with ,ro or ,snapshot")
	case q.version == 3 && be.Uint32(h[qcowRefOrder:]) != refOrder16:
		return nil, no("with unusual reference counts", "open it with ,ro or ,snapshot")
	case q.version == 3 && be.Uint64(h[qcowIncompatible:])&qcowDirty != 0:
		return nil, no("that was not closed", "qemu-img check -r all "+name)
	case size == 0 || size > maxRefTable:
		return nil, no(fmt.Sprintf("with %d bytes for reference counts", size), "qemu-img check "+name)
	}
	b := make([]byte, size)
	if err := q.readHost(Image.ReadAt, b, w.refOffset); err != nil {
		return nil, err
	}
	w.refs = make([]uint64, size/8)
	for i := range w.refs {
		w.refs[i] = be.Uint64(b[8*i:])
	}
	w.next = (q.file.size + w.cluster() - 1) &^ (w.cluster() - 1)
	if q.version == 3 && be.Uint64(h[qcowAutoclear:]) != 0 {
		// What these bits stand for, such as bitmaps, is not kept up to date.
		if err := w.put64(qcowAutoclear, 0); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// cluster is the size of one, in bytes.
func (w *qcow2Writer) cluster() int64 { return 1 << w.q.bits }

// put64 writes a number to the file.
func (w *qcow2Writer) put64(off int64, v uint64) error {
	return w.q.file.WriteAt([][]byte{be.AppendUint64(nil, v)}, off)
}

// take allocates n clusters in a row, which read as zeros, without counting
// them.
func (w *qcow2Writer) take(n int64) (off int64, err error) {
	off = w.next
	end := off + n<<w.q.bits
	if end > w.q.file.size {
		size := end + growth
		if err := w.q.file.f.Truncate(size); err != nil {
			return 0, err
		}
		w.q.file.size = size
	}
	w.next = end
	return off, nil
}

// allocate takes one cluster and counts it.
func (w *qcow2Writer) allocate() (off int64, err error) {
	if off, err = w.take(1); err == nil {
		err = w.count(off, 1)
	}
	return off, err
}

// count adds to the reference count of the cluster at off.
func (w *qcow2Writer) count(off, add int64) error {
	perBlock := w.q.bits - 1 // log2 of the counts in a cluster
	n := off >> w.q.bits
	block := n >> perBlock
	if block >= int64(len(w.refs)) {
		if err := w.growRefs(block); err != nil {
			return err
		}
	}
	if w.refs[block]&tableOffset == 0 {
		at, err := w.take(1)
		if err != nil {
			return err
		}
		w.refs[block] = uint64(at)
		if err := w.put64(w.refOffset+8*block, uint64(at)); err != nil {
			return err
		}
		if err := w.count(at, 1); err != nil { // perhaps in itself
			return err
		}
	}
	at := int64(w.refs[block]&tableOffset) + 2*(n&(1<<perBlock-1))
	var b [2]byte
	if err := w.q.readHost(Image.ReadAt, b[:], at); err != nil {
		return err
	}
	v := int64(be.Uint16(b[:])) + add
	if v < 0 || v > 0xffff {
		return fmt.Errorf("%s: the reference count of the cluster at %#x becomes %d", w.q.file.f.Name(), off, v)
	}
	return w.q.file.WriteAt([][]byte{be.AppendUint16(nil, uint16(v))}, at)
}

// growRefs makes a larger first table of reference counts, for at least the
// entry block. The header tells of it once it is on stable storage.
func (w *qcow2Writer) growRefs(block int64) error {
	clusters := ((block+1)*2*8-1)>>w.q.bits + 1
	if clusters<<w.q.bits > maxRefTable {
		return fmt.Errorf("%s: the table of reference counts is full", w.q.file.f.Name())
	}
	at, err := w.take(clusters)
	if err != nil {
		return err
	}
	old, oldClusters := w.refOffset, int64(len(w.refs))*8>>w.q.bits
	var b []byte
	for _, v := range w.refs {
		b = be.AppendUint64(b, v)
	}
	if err := w.q.file.WriteAt([][]byte{b}, at); err != nil {
		return err
	}
	w.refs = append(w.refs, make([]uint64, clusters<<w.q.bits/8-int64(len(w.refs)))...)
	w.refOffset = at
	for i := range clusters {
		if err := w.count(at+i<<w.q.bits, 1); err != nil {
			return err
		}
	}
	if err := w.q.file.Flush(); err != nil {
		return err
	}
	header := be.AppendUint32(be.AppendUint64(nil, uint64(at)), uint32(clusters))
	if err := w.q.file.WriteAt([][]byte{header}, qcowRefOffset); err != nil {
		return err
	}
	if err := w.q.file.Flush(); err != nil {
		return err
	}
	for i := range oldClusters {
		if err := w.count(old+i<<w.q.bits, -1); err != nil {
			return err
		}
	}
	return nil
}

// WriteAt implements Image.
func (q *qcow2) WriteAt(bufs [][]byte, off int64) error {
	q.mu.Lock()
	for len(bufs) > 0 {
		n := q.rest(off, length(bufs))
		if err := q.w.write(cut(bufs, n), off, n); err != nil {
			q.mu.Unlock()
			return err
		}
		bufs, off = advance(bufs, int(n)), off+n
	}
	full := len(q.w.pending) >= maxPending
	q.mu.Unlock()
	if full {
		return q.Flush()
	}
	return nil
}

// rest is how many of n bytes at off are in the same cluster.
func (q *qcow2) rest(off, n int64) int64 { return min(n, 1<<q.bits-off&(1<<q.bits-1)) }

// write writes n bytes within a cluster. q.mu is held, as in all that follows.
func (w *qcow2Writer) write(bufs [][]byte, off, n int64) error {
	host, err := w.place(off, n)
	if err != nil {
		return err
	}
	return w.q.file.WriteAt(bufs, host+off&(w.cluster()-1))
}

// plain is the place of a cluster that may be written to where it is, 0 if an
// entry is not of such.
func plain(entry uint64) int64 {
	if entry&(entryCompressed|entryZeros) != 0 || entry&entryCopied == 0 {
		return 0
	}
	return int64(entry & tableOffset)
}

// place is where the cluster is in the file that n bytes at off are to be written
// to. One that is new there has all its other bytes.
func (w *qcow2Writer) place(off, n int64) (host int64, err error) {
	entry, err := w.q.entry(Image.ReadAt, off)
	if err != nil {
		return 0, err
	}
	if host = plain(entry); host != 0 {
		return host, nil
	}
	if entry&(entryCompressed|entryCopied) == entryCopied {
		host = int64(entry & tableOffset) // a cluster kept in store behind zeros
	}
	if host == 0 {
		if host, err = w.allocate(); err != nil {
			return 0, err
		}
	}
	start := off &^ (w.cluster() - 1)
	whole := min(w.cluster(), w.q.size-start)
	if n < whole {
		old := [][]byte{make([]byte, whole)}
		if err := w.q.read(Image.ReadAt, old, start); err != nil {
			return 0, err
		}
		if err := w.q.file.WriteAt(old, host); err != nil {
			return 0, err
		}
	}
	w.replace(start>>w.q.bits, entry, uint64(host)|entryCopied)
	return host, nil
}

// replace notes a new entry for a cluster.
func (w *qcow2Writer) replace(cluster int64, old, entry uint64) {
	if old&entryCompressed != 0 {
		w.freed = append(w.freed, old&entryDescriptor)
	}
	w.pending[cluster] = entry
}

// Flush implements Image.
func (q *qcow2) Flush() error {
	if q.w == nil {
		return nil
	}
	q.mu.Lock()
	pending, freed := maps.Clone(q.w.pending), q.w.freed
	q.w.freed = nil
	q.mu.Unlock()
	if err := q.file.Flush(); err != nil || len(pending) == 0 {
		return err
	}
	q.mu.Lock()
	err := q.w.publish(pending)
	q.mu.Unlock()
	if err == nil {
		err = q.file.Flush()
	}
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.w.release(freed)
}

// publish writes entries, of clusters that are on stable storage, to the tables.
func (w *qcow2Writer) publish(entries map[int64]uint64) error {
	for _, cluster := range slices.Sorted(maps.Keys(entries)) {
		if w.pending[cluster] != entries[cluster] {
			continue // another since, or another flush was faster
		}
		i := cluster >> (w.q.bits - 3)
		table := int64(w.q.l1[i] & tableOffset)
		if table == 0 {
			var err error
			if table, err = w.allocate(); err != nil {
				return err
			}
			w.q.l1[i] = uint64(table) | entryCopied
			if err := w.put64(w.l1Offset+8*i, w.q.l1[i]); err != nil {
				return err
			}
		}
		if err := w.put64(table+8*w.q.l2Index(cluster), entries[cluster]); err != nil {
			return err
		}
		delete(w.pending, cluster)
	}
	return nil
}

// release gives up compressed clusters that no table tells of any more. Several
// can be in the same cluster of the file.
func (w *qcow2Writer) release(freed []uint64) error {
	for _, descriptor := range freed {
		off, n := w.q.packed(descriptor)
		for at := off &^ (w.cluster() - 1); at < off+n; at += w.cluster() {
			if err := w.count(at, -1); err != nil {
				return err
			}
		}
	}
	return nil
}

// Zero implements Image.
func (q *qcow2) Zero(off, n int64, unmap bool) error {
	return q.clusters(off, n, func(off, n int64, entry uint64) error {
		host := plain(entry)
		switch {
		case host != 0:
			return q.file.Zero(host+off&(q.w.cluster()-1), n, unmap)
		case entry&(entryCompressed|entryZeros) == entryZeros, entry == 0 && q.backing == nil:
			return nil
		case n == min(q.w.cluster(), q.size-off) && q.version == 3:
			q.w.replace(off>>q.bits, entry, entryZeros)
			return nil
		}
		return q.w.write([][]byte{make([]byte, n)}, off, n)
	})
}

// Discard implements Image.
func (q *qcow2) Discard(off, n int64) error {
	return q.clusters(off, n, func(off, n int64, entry uint64) error {
		if host := plain(entry); host != 0 {
			return q.file.Discard(host+off&(q.w.cluster()-1), n)
		}
		return nil
	})
}

// clusters calls fn for the part of each cluster that a range has, with the
// cluster's entry.
func (q *qcow2) clusters(off, n int64, fn func(off, n int64, entry uint64) error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n > 0 {
		part := q.rest(off, n)
		entry, err := q.entry(Image.ReadAt, off)
		if err == nil {
			err = fn(off, part, entry)
		}
		if err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// length is the number of bytes in bufs.
func length(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// cut is the first n bytes of bufs.
func cut(bufs [][]byte, n int64) (head [][]byte) {
	for _, b := range bufs {
		if n <= 0 {
			break
		}
		b = b[:min(n, int64(len(b)))]
		head, n = append(head, b), n-int64(len(b))
	}
	return head
}
