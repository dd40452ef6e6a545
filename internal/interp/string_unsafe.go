package interp

import (
	"encoding/binary"
	"unsafe"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// String instructions, in op.kind.
const (
	strMOVS = iota
	strCMPS
	strSTOS
	strLODS
	strSCAS
	strINS
	strOUTS
)

var stringKind = map[insn.Op]uint8{
	insn.OpMOVS: strMOVS, insn.OpCMPS: strCMPS, insn.OpSTOS: strSTOS, insn.OpLODS: strLODS,
	insn.OpSCAS: strSCAS, insn.OpINS: strINS, insn.OpOUTS: strOUTS,
}

func lowerString(d *decoded, o *op) {
	in := &d.Inst
	o.kind = stringKind[in.Op]
	o.inst = d
	o.seg = in.Mem.Seg
	if !in.SegOverride {
		o.seg = x86.DS
	}
	for i := range in.Args[:in.NArg] {
		if k := in.Args[i].Kind; k == insn.ArgStrSrc || k == insn.ArgStrDst {
			setSize(o, in.Args[i].Size)
		}
	}
	o.fn = opString
	if in.Rep || in.Repne {
		o.flag |= flagEnd
		o.fn = opRepString
	}
}

func opString(c *CPU, o *op) bool {
	if o.kind >= strINS {
		c.count(o)
	}
	return c.stringRound(o)
}

// maxRounds bounds the rounds of a repeated string instruction between two
// looks at Kick.
const maxRounds = 4096

// opRepString executes rounds until the instruction is done or an interrupt
// may be waiting; then RIP goes back to the instruction, which goes on where
// the registers say (SDM vol. 2B, REP).
func opRepString(c *CPU, o *op) bool {
	if o.kind >= strINS {
		c.count(o)
	}
	mask, size := addrMask(o), addrSize(o)
	compares := o.kind == strCMPS || o.kind == strSCAS
	for rounds := 0; ; rounds++ {
		n := c.GPR[x86.RCX] & mask
		if n == 0 {
			return true
		}
		if c.oneRound && rounds == 1 || rounds >= maxRounds || rounds&63 == 1 && c.kick.Load() {
			c.RIP = (c.RIP - uint64(o.len)) & c.mode.ipMask
			return true
		}
		if !c.oneRound && n > 1 {
			if done := c.bulk(o, n); done > 0 {
				c.setReg(x86.RCX, size, n-done)
				rounds += int(done * uint64(o.size) / 256)
				continue
			}
		}
		if !c.stringRound(o) {
			return false
		}
		c.setReg(x86.RCX, size, n-1)
		if compares && c.lazy.zf() == (o.flag&flagRepne != 0) {
			return true
		}
	}
}

// strSrc and strDst are the linear addresses of the current elements.
func (c *CPU) strSrc(o *op, size int) (uint64, bool) {
	return c.segLin(o.seg, c.GPR[x86.RSI]&addrMask(o), size, false)
}

func (c *CPU) strDst(o *op, size int, write bool) (uint64, bool) {
	return c.segLin(x86.ES, c.GPR[x86.RDI]&addrMask(o), size, write)
}

// advance moves RSI or RDI by n elements in the direction of DF.
func (c *CPU) advance(o *op, r uint8, n uint64) {
	step := n * uint64(o.size)
	if c.RFLAGS&x86.FlagDF != 0 {
		step = -step
	}
	c.setReg(r, addrSize(o), c.GPR[r]+step)
}

// stringRound moves one element.
func (c *CPU) stringRound(o *op) bool {
	size := o.size
	var v uint64
	var src, dst uint64
	var ok bool
	switch o.kind {
	case strMOVS, strCMPS, strLODS, strOUTS:
		if src, ok = c.strSrc(o, int(size)); !ok {
			return false
		}
	}
	switch o.kind {
	case strMOVS, strSTOS, strINS:
		if dst, ok = c.strDst(o, int(size), true); !ok {
			return false
		}
	case strCMPS, strSCAS:
		if dst, ok = c.strDst(o, int(size), false); !ok {
			return false
		}
	}
	switch o.kind {
	case strMOVS:
		if v, ok = c.load(src, size); !ok || !c.store(dst, size, v) {
			return false
		}
		c.advance(o, x86.RSI, 1)
		c.advance(o, x86.RDI, 1)
	case strSTOS:
		if !c.store(dst, size, c.GPR[x86.RAX]) {
			return false
		}
		c.advance(o, x86.RDI, 1)
	case strLODS:
		if v, ok = c.load(src, size); !ok {
			return false
		}
		c.setReg(x86.RAX, size, v)
		c.advance(o, x86.RSI, 1)
	case strCMPS:
		if v, ok = c.load(src, size); !ok {
			return false
		}
		w, ok := c.load(dst, size)
		if !ok {
			return false
		}
		c.alu(aluCmp, v<<o.sh, w<<o.sh, o.sh)
		c.advance(o, x86.RSI, 1)
		c.advance(o, x86.RDI, 1)
	case strSCAS:
		if v, ok = c.load(dst, size); !ok {
			return false
		}
		c.alu(aluCmp, c.GPR[x86.RAX]<<o.sh, v<<o.sh, o.sh)
		c.advance(o, x86.RDI, 1)
	case strINS:
		port := uint16(c.GPR[x86.RDX])
		// The port is read only when the destination is sure to take it.
		if !c.ioAllowed(port, int(size)) || !c.checkWrite(dst, uint64(size)) {
			return false
		}
		c.store(dst, size, c.portIn(port, size))
		c.advance(o, x86.RDI, 1)
	case strOUTS:
		port := uint16(c.GPR[x86.RDX])
		if !c.ioAllowed(port, int(size)) {
			return false
		}
		if v, ok = c.load(src, size); !ok {
			return false
		}
		c.portOut(port, size, v)
		c.advance(o, x86.RSI, 1)
	}
	return true
}

// bulk moves as many of n elements as lie in the current pages at once; 0 when
// that is not possible.
func (c *CPU) bulk(o *op, n uint64) (done uint64) {
	if o.kind != strMOVS && o.kind != strSTOS || c.RFLAGS&x86.FlagDF != 0 {
		return 0
	}
	mask := addrMask(o)
	di, si := c.GPR[x86.RDI]&mask, c.GPR[x86.RSI]&mask
	size := uint64(o.size)
	bytes := min(n, x86.PageSize) * size
	bytes = min(bytes, x86.PageSize, mask-di)
	if o.kind == strMOVS {
		bytes = min(bytes, mask-si)
	}
	if bytes < size {
		return 0
	}
	dst, ok := c.segLin(x86.ES, di, int(bytes), true)
	if !ok {
		c.fault = fault{} // some of it may be in the segment
		return 0
	}
	q, room := c.writable(dst)
	if q == nil {
		return 0
	}
	bytes = min(bytes, room)
	if o.kind == strSTOS {
		if bytes -= bytes % size; bytes == 0 {
			return 0
		}
		fillPattern(bytesAt(q, bytes), c.GPR[x86.RAX], int(size))
	} else {
		src, ok := c.segLin(o.seg, si, int(bytes), false)
		if !ok {
			c.fault = fault{}
			return 0
		}
		p, room := c.readable(src)
		if p == nil {
			return 0
		}
		bytes = min(bytes, room)
		if bytes -= bytes % size; bytes == 0 {
			return 0
		}
		// Elements move one after the other: when the destination starts
		// within the source, what was moved is moved again. Compared by the
		// monitor's addresses, which are the same for the same memory.
		if d := uintptr(q) - uintptr(p); d < uintptr(bytes) && d != 0 {
			for i := uint64(0); i < bytes; i += size {
				hostPut(unsafe.Add(q, i), o.size, hostGet(unsafe.Add(p, i), o.size))
			}
		} else {
			copy(bytesAt(q, bytes), bytesAt(p, bytes))
		}
		c.advance(o, x86.RSI, bytes/size)
	}
	c.advance(o, x86.RDI, bytes/size)
	return bytes / size
}

// fillPattern repeats the low size bytes of v over b.
func fillPattern(b []byte, v uint64, size int) {
	var pat [8]byte
	binary.LittleEndian.PutUint64(pat[:], v)
	if v == 0 {
		clear(b)
		return
	}
	for n := copy(b, pat[:size]); n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}
