package fs

import (
	"encoding/binary"
	"reflect"

	"github.com/hanwen/go-fuse/v2/fuse"

	"golang.org/x/sys/unix"

	"ring3/internal/virtio"
)

// Operations (enum fuse_opcode of linux/fuse.h).
const (
	opLookup        = 1
	opForget        = 2
	opGetAttr       = 3
	opSetAttr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatFS        = 17
	opRelease       = 18
	opFsync         = 20
	opFlush         = 25
	opInit          = 26
	opOpenDir       = 27
	opReadDir       = 28
	opReleaseDir    = 29
	opFsyncDir      = 30
	opAccess        = 34
	opCreate        = 35
	opInterrupt     = 36
	opDestroy       = 38
	opBatchForget   = 42
	opFallocate     = 43
	opReadDirPlus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
)

// Sizes of parts of requests (linux/fuse.h).
const (
	inHeader    = 40
	outHeader   = 16
	renameIn    = inHeader + 8 // without the flags of rename2
	batchForget = inHeader + 8
	initMinimum = inHeader + 16
)

// headers are the operations that are answered, and how many bytes of each come
// before names or data. All others do not exist.
var headers = map[uint32]int{
	opLookup: inHeader, opForget: sizeOf[fuse.ForgetIn](), opGetAttr: sizeOf[fuse.GetAttrIn](),
	opSetAttr: sizeOf[fuse.SetAttrIn](), opReadlink: inHeader, opSymlink: inHeader,
	opMknod: sizeOf[fuse.MknodIn](), opMkdir: sizeOf[fuse.MkdirIn](), opUnlink: inHeader, opRmdir: inHeader,
	opRename: renameIn, opLink: sizeOf[fuse.LinkIn](), opOpen: sizeOf[fuse.OpenIn](), opRead: sizeOf[fuse.ReadIn](),
	opWrite: sizeOf[fuse.WriteIn](), opStatFS: inHeader, opRelease: sizeOf[fuse.ReleaseIn](),
	opFsync: sizeOf[fuse.FsyncIn](), opFlush: sizeOf[fuse.FlushIn](), opInit: initMinimum,
	opOpenDir: sizeOf[fuse.OpenIn](), opReadDir: sizeOf[fuse.ReadIn](), opReleaseDir: sizeOf[fuse.ReleaseIn](),
	opFsyncDir: sizeOf[fuse.FsyncIn](), opAccess: sizeOf[fuse.AccessIn](), opCreate: sizeOf[fuse.CreateIn](),
	opInterrupt: sizeOf[fuse.InterruptIn](), opDestroy: inHeader, opBatchForget: batchForget,
	opFallocate: sizeOf[fuse.FallocateIn](), opReadDirPlus: sizeOf[fuse.ReadIn](), opRename2: sizeOf[fuse.RenameIn](),
	opLseek: sizeOf[fuse.LseekIn](), opCopyFileRange: sizeOf[fuse.CopyFileRangeIn](),
}

func sizeOf[T any]() int { return int(reflect.TypeFor[T]().Size()) }

// Versions of the protocol that can be spoken: major 7, and at least the minor
// version that Linux has had since maximal numbers of pages are negotiated.
const (
	major        = 7
	minimalMinor = 28
)

// request is one request of the driver. All of it but the data to be written is
// copied, once: nothing that was checked changes.
type request struct {
	chain  *virtio.Chain
	op     uint32
	unique uint64
	in     [][]byte
	size   int64 // bytes in in
	out    [][]byte
	status fuse.Status // not OK: what is wrong with it
}

// parse copies a request. Its status says what is wrong with it, if something
// is.
func parse(c *virtio.Chain) *request {
	r := &request{chain: c, size: c.Readable.Len()}
	if r.size < inHeader {
		r.status = fuse.EIO
		return r
	}
	le := binary.LittleEndian
	var h [inHeader]byte
	c.Readable.Read(h[:])
	r.op, r.unique = le.Uint32(h[4:]), le.Uint64(h[8:])
	header, known := headers[r.op]
	switch {
	case !known:
		r.status = fuse.ENOSYS
	case r.size < int64(header), r.op != opWrite && r.size > maxHeaders, r.size > int64(header+maxData):
		r.status = fuse.EIO
	}
	if !r.status.Ok() {
		return r
	}
	n, data := int(r.size), virtio.Buffers(nil)
	if r.op == opWrite {
		n = header
		_, data = c.Readable.Split(int64(n))
	}
	own := make([]byte, n)
	c.Readable.Read(own)
	copy(own, h[:]) // as it was decided on
	r.in = append([][]byte{own}, data.Slices()...)
	out := c.Writable
	if out.Len() > outHeader+maxHeaders+maxData {
		out, _ = out.Split(outHeader + maxHeaders + maxData)
	}
	r.out = out.Slices()
	if r.op == opInit && (le.Uint32(own[inHeader:]) != major || le.Uint32(own[inHeader+4:]) < minimalMinor) {
		r.status = fuse.Status(unix.EPROTO)
	}
	return r
}

// mayWait reports whether the request may take long: it may wait for a disk, or
// for others that do.
func (r *request) mayWait(others bool) bool {
	switch r.op {
	case opFsync, opFsyncDir, opFallocate, opCopyFileRange:
		return true
	case opWrite:
		return r.size > maxWritten || others
	}
	return false
}

// execute answers the request and returns how many bytes of the answer are to
// be told.
func (r *request) execute(d *Device, s *fuse.ProtocolServer) uint32 {
	if r.op == opInit || r.op == opDestroy {
		d.tree.Reset() // a driver begins, or one ends
	}
	n, status := s.HandleRequest(r.in, r.out)
	switch {
	case !status.Ok():
		r.status = status
		return r.fail()
	case r.op == opRead:
		// One that failed may have written more than it says.
		return size(r.chain.Writable)
	}
	return uint32(n)
}

// fail answers with the status, if there is room for an answer.
func (r *request) fail() uint32 {
	if r.chain.Writable.Len() < outHeader || r.op == opForget || r.op == opBatchForget {
		return 0
	}
	le := binary.LittleEndian
	h := le.AppendUint32(nil, outHeader)
	h = le.AppendUint32(h, uint32(-r.status))
	r.chain.Writable.Write(le.AppendUint64(h, r.unique))
	return outHeader
}
