package ext4

// Extent trees: nodes have a header of 12 bytes, and entries of as many.
const (
	extentMagic    = 0xf30a
	extentEntry    = 12
	extentMaxDepth = 5
	// maxInit is the longest extent. Longer ones are that much shorter, and were
	// never written.
	maxInit = 32768
)

// extent finds block n of a file in the tree whose root is node.
func (f *FS) extent(node []byte, n int64) (run, error) {
	limit := int64(1) << 32 // the first block that is known to belong to another entry
	for depth := extentMaxDepth; ; depth-- {
		entries, levels := int64(le16(node[2:])), int(le16(node[6:]))
		if le16(node) != extentMagic || entries > int64(len(node))/extentEntry-1 || levels > depth {
			return run{}, corrupt("node of an extent tree")
		}
		entry := func(i int64) []byte { return node[extentEntry*(1+i):][:extentEntry] }
		// The last entry that begins at n or before.
		at := int64(-1)
		for i := range entries {
			first := int64(le32(entry(i)))
			if first > n {
				limit = min(limit, first)
				break
			}
			at = i
		}
		if at < 0 {
			return run{0, max(1, limit-n)}, nil
		}
		e := entry(at)
		if levels == 0 {
			return leaf(e, n, limit), nil
		}
		var err error
		if node, err = f.block(int64(le32(e[4:])) | int64(le16(e[8:]))<<32); err != nil {
			return run{}, err
		}
		depth = levels // the depth falls, so this ends
	}
}

// leaf is block n by the extent e, which begins before; limit is where the next begins.
func leaf(e []byte, n, limit int64) run {
	first, length := int64(le32(e)), int64(le16(e[4:]))
	start := int64(le32(e[8:])) | int64(le16(e[6:]))<<32
	written := length <= maxInit
	if !written {
		length -= maxInit
	}
	switch skip := n - first; {
	case skip >= length:
		return run{0, max(1, limit-n)}
	case !written:
		return run{0, length - skip}
	default:
		return run{start + skip, length - skip}
	}
}

// mapped finds block n of a file in the block map of ext2 and ext3: 12 blocks, and
// then one block each with the numbers of further blocks, of blocks with such
// numbers, and once more.
func (f *FS) mapped(blocks []byte, n int64) (run, error) {
	const direct = 12
	if n < direct {
		return run{int64(le32(blocks[4*n:])), 1}, nil
	}
	n -= direct
	per := f.blockSize / 4
	reach := per // of the tree at hand, in blocks
	for slot := int64(direct); slot < direct+3; slot++ {
		if n >= reach {
			n -= reach
			reach *= per
			continue
		}
		at := int64(le32(blocks[4*slot:]))
		for reach > 1 && at != 0 {
			b, err := f.block(at)
			if err != nil {
				return run{}, err
			}
			reach /= per
			at = int64(le32(b[4*(n/reach):]))
			n %= reach
		}
		return run{at, 1}, nil
	}
	return run{}, corrupt("a file is larger than its block map")
}
