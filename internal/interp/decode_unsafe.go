package interp

import (
	"errors"
	"unsafe"

	"ring3/internal/mmu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// maxOps bounds the ops of a block.
const maxOps = 32

// builder is where blocks are put together.
type builder struct {
	ops  [maxOps]op
	inst [maxOps]decoded
	one  block // built by buildOne
	buf  [insn.MaxLen]byte
}

// fetchPage translates the page of lin for execution.
func (c *CPU) fetchPage(lin uint64) (*codeEntry, bool) {
	e := &c.tlb.x[codeIndex(lin)]
	if e.tag == lin&^pageMask {
		return e, true
	}
	tr, ok := c.translate(lin, c.mode.acc|mmu.Fetch)
	if !ok {
		return nil, false
	}
	e.tag, e.gpa = lin&^pageMask, tr.GPA&^pageMask
	e.page, e.global = c.Mem.Page(tr.GPA), tr.Global
	c.tlb.note(&e.tag, lin, &tr)
	return e, true
}

// lookup returns the block at RIP. It returns nil when it has executed an
// instruction or delivered a fault instead.
func (c *CPU) lookup() *block {
	lin := c.RIP + c.mode.csBase
	k := &c.code
	// The successors of the block that ran last come first: unlike the jump
	// cache they are on cache lines that the host CPU has just used.
	prev := c.cur
	if prev != nil && prev.chain && c.mode.is64 {
		for i := range prev.link {
			l := &prev.link[i]
			if l.lin == lin && (l.key == k.keyGlobal || l.key == k.keyLocal) && l.b.ok {
				return l.b
			}
		}
	}
	e := &k.jump[(lin^lin>>jumpBits)%(1<<jumpBits)]
	if e.lin != lin || e.key != k.keyGlobal && e.key != k.keyLocal || !e.b.ok ||
		!c.mode.is64 && c.RIP+e.b.len-1 > uint64(c.Seg[x86.CS].Limit) {
		b := c.lookupSlow(e, lin)
		if b == nil {
			return nil
		}
	}
	if prev != nil && prev.chain {
		prev.link[1] = prev.link[0]
		prev.link[0] = *e
	}
	return e.b
}

func (c *CPU) lookupSlow(e *jumpEntry, lin uint64) *block {
	c.stat.Lookups++
	if c.mode.is64 && !x86.Canonical(lin) {
		c.raise(x86.VecGP, 0)
		c.deliverFault()
		return nil
	}
	lin &= c.mode.linMask
	ce, ok := c.fetchPage(lin)
	if !ok {
		c.deliverFault()
		return nil
	}
	if ce.page == nil { // code in a device is not cached
		c.step()
		return nil
	}
	b := c.code.find(ce.gpa+lin&pageMask, c.mode.bits)
	if b != nil && b.gpa2 != noCode {
		second, ok := c.fetchPage((lin + b.len - 1) & c.mode.linMask)
		if !ok {
			c.deliverFault()
			return nil
		}
		if second.gpa != b.gpa2 {
			c.code.remove(b)
			b = nil
		}
		// The entry of the first page may have made room for the second.
		if ce, ok = c.fetchPage(lin); !ok {
			c.deliverFault()
			return nil
		}
	}
	if b == nil {
		if b = c.buildBlock(lin, ce); b == nil {
			return nil
		}
	}
	if !c.mode.is64 && c.RIP+b.len-1 > uint64(c.Seg[x86.CS].Limit) {
		c.step() // finds out which instruction is beyond the limit
		return nil
	}
	key := c.code.keyLocal
	if ce.global && b.gpa2 == noCode {
		key = c.code.keyGlobal
	}
	*e = jumpEntry{lin: lin, key: key, b: b}
	return b
}

// buildBlock decodes the block at lin, which is on the page of ce.
func (c *CPU) buildBlock(lin uint64, ce *codeEntry) *block {
	c.stat.Decoded++
	page := *ce
	off := lin & pageMask
	code := bytesAt(unsafe.Add(page.page, off), x86.PageSize-off)
	w := &c.build
	n, total, insts, gpa2, pre := 0, 0, 0, uint64(noCode), 0
	for n < maxOps && total < len(code) {
		d, o := &w.inst[n], &w.ops[n]
		// The bytes are read once: a stub that only says it has stopped may
		// change them, and those in d.code may run on the host CPU.
		length := copy(d.code[:], code[total:])
		err := insn.Decode(d.code[:length], c.mode.bits, &d.Inst)
		if err == insn.ErrTruncated {
			if insts > 0 {
				break
			}
			var ok bool
			if err, ok = c.decodeCrossing(lin, code, d, &gpa2); !ok {
				c.deliverFault()
				return nil
			}
		}
		c.lower(d, o, err, len(code)-total)
		insts++
		at := total
		total += int(o.len)
		if o.fn == nil && pre+int(o.len) < 200 && total < len(code) {
			pre += int(o.len)
			if n == maxOps-1 {
				n++ // keep it as an op: the block is full
				o.fn = opNop
			}
			continue
		}
		if o.fn == nil {
			o.fn = opNop
		}
		o.back, o.pre = uint16(at), uint8(pre)
		pre = 0
		if n > 0 && err == nil && isJcc(&d.Inst) && fuse(&w.ops[n-1], o, &w.inst[n-1].Inst) {
			break
		}
		n++
		if o.flag&flagEnd != 0 || gpa2 != noCode {
			break
		}
	}
	if pre > 0 && n < maxOps { // trailing NOPs
		o := &w.ops[n]
		*o = op{fn: opNop, back: uint16(total), base: noReg, index: noReg}
		n++
	}
	finish(w.ops[:n], total)
	if c.code.room(n) {
		c.stat.CacheFlushes++
	}
	b := c.code.newBlock(w.ops[:n])
	b.gpa, b.gpa2 = page.gpa+off, gpa2
	b.len, b.n, b.bits = uint64(total), int32(insts), c.mode.bits
	b.chain = c.mode.is64 && (n == 0 || chains(&w.inst[n-1].Inst))
	c.Mem.MarkCode(b.gpa)
	if gpa2 != noCode {
		c.Mem.MarkCode(gpa2)
	}
	c.code.insert(b)
	return b
}

// decodeCrossing decodes an instruction that starts with the bytes of code, at
// the end of the page of lin, and goes on in the next page.
func (c *CPU) decodeCrossing(lin uint64, code []byte, d *decoded, gpa2 *uint64) (err error, ok bool) {
	n := copy(d.code[:], code)
	second, ok := c.fetchPage((lin + uint64(n)) & c.mode.linMask)
	if !ok {
		return nil, false
	}
	*gpa2 = second.gpa
	if second.page != nil {
		copy(d.code[n:], bytesAt(second.page, uint64(insn.MaxLen)))
	} else {
		c.deviceBytes(second.gpa, d.code[n:], false)
	}
	return insn.Decode(d.code[:], c.mode.bits, &d.Inst), true
}

// finish turns the offsets of the ops into distances from the end.
func finish(ops []op, total int) {
	for i := range ops {
		o := &ops[i]
		end := int(o.back) + int(o.len)
		o.back = uint16(total - int(o.back))
		if o.amode&amRIP != 0 {
			o.disp += uint64(end - total)
		}
	}
}

// buildOne decodes the one instruction at RIP into a block outside the cache.
// It returns nil when it has delivered a fault.
func (c *CPU) buildOne() *block {
	if c.mode.is64 && !x86.Canonical(c.RIP) {
		c.raise(x86.VecGP, 0)
		c.deliverFault()
		return nil
	}
	lin := (c.RIP + c.mode.csBase) & c.mode.linMask
	w := &c.build
	d, o, b := &w.inst[0], &w.ops[0], &w.one
	ce, ok := c.fetchPage(lin)
	if !ok {
		c.deliverFault()
		return nil
	}
	off := lin & pageMask
	left := min(x86.PageSize-off, insn.MaxLen)
	code := d.code[:left]
	gpa2 := uint64(noCode)
	if ce.page != nil {
		copy(code, bytesAt(unsafe.Add(ce.page, off), left))
	} else {
		c.deviceBytes(ce.gpa+off, code, false)
	}
	err := insn.Decode(code, c.mode.bits, &d.Inst)
	if err == insn.ErrTruncated {
		if err, ok = c.decodeCrossing(lin, code, d, &gpa2); !ok {
			c.deliverFault()
			return nil
		}
	}
	c.lower(d, o, err, int(left))
	if !c.mode.is64 && c.RIP+uint64(o.len)-1 > uint64(c.Seg[x86.CS].Limit) {
		c.raise(x86.VecGP, 0)
		c.deliverFault()
		return nil
	}
	if o.fn == nil {
		o.fn = opNop
	}
	o.inst, o.back, o.pre = d, 0, 0
	*b = block{ops: w.ops[:1], gpa: noCode, gpa2: noCode, len: uint64(o.len), n: 1, bits: c.mode.bits}
	finish(b.ops, int(o.len))
	return b
}

// chains reports whether a block that ends with in has at most two successors.
// A call has one, but a return many.
func chains(in *insn.Inst) bool {
	switch in.Op {
	case insn.OpRET:
		return false
	case insn.OpJMP, insn.OpCALL:
		return in.Args[0].Kind == insn.ArgRel
	}
	return in.Enc == nil || in.Enc.Class != insn.Sensitive
}

func isJcc(in *insn.Inst) bool {
	return in.Mode == insn.Mode64 && in.Op >= insn.OpJO && in.Op <= insn.OpJG
}

func opNop(*CPU, *op) bool { return true }

func opUndefined(c *CPU, o *op) bool { return c.raise(x86.VecUD, 0) }
func opTooLong(c *CPU, o *op) bool   { return c.raise(x86.VecGP, 0) }

// lower turns the decoded instruction d, or the error that decoding gave, into
// an op. rest is the number of bytes that were looked at.
func (c *CPU) lower(d *decoded, o *op, err error, rest int) {
	c.lowerPlain(d, o, err, rest)
	if c.Timed && err == nil && o.inst != nil && d.Enc.Class >= insn.Sensitive && d.Enc.Class <= insn.Privileged {
		d.timed, o.fn = o.fn, opTimed
	}
}

func (c *CPU) lowerPlain(d *decoded, o *op, err error, rest int) {
	*o = op{base: noReg, index: noReg, seg: x86.DS}
	if err != nil {
		// The bytes that were looked at belong to the block, so that a change
		// of them is noticed.
		o.len, o.flag, o.fn = uint8(min(insn.MaxLen, rest)), flagEnd, opUndefined
		if errors.Is(err, insn.ErrTooLong) {
			o.fn = opTooLong
		}
		return
	}
	in := &d.Inst
	o.len = in.Len
	if in.Lock {
		o.flag |= flagLock
	}
	if in.Rep {
		o.flag |= flagRep
	}
	if in.Repne {
		o.flag |= flagRepne
	}
	switch in.AddrSize {
	case 32:
		o.flag |= flagAddr32
	case 16:
		o.flag |= flagAddr16
	}
	lowerArgs(in, o)
	if !c.hasFeature(in.Enc.Feature) && in.Op != insn.OpTZCNT && in.Op != insn.OpPREFETCH {
		o.flag |= flagEnd
		o.fn = opUndefined
		return
	}
	if f := lowerTable[in.Op]; f != nil {
		f(d, o)
		return
	}
	if in.Enc.Group == insn.GroupXSave {
		lowerXSave(d, o)
		return
	}
	lowerNative(d, o)
}

// lowerArgs sets the operand fields that most instructions use alike: the
// memory operand, the first two registers, the immediate and the size of the
// first operand.
func lowerArgs(in *insn.Inst, o *op) {
	o.imm = uint64(in.Imm)
	for i := range in.Args[:in.NArg] {
		a := &in.Args[i]
		switch a.Kind {
		case insn.ArgMem, insn.ArgMoffs:
			lowerMem(in, o)
			o.flag |= flagMem
		case insn.ArgGPR, insn.ArgSeg, insn.ArgCR, insn.ArgDR:
			if i == 0 {
				o.dst = regNum(a)
			} else if i == 1 {
				o.src = regNum(a)
			}
		}
	}
	if in.NArg > 0 {
		setSize(o, in.Args[0].Size)
	}
}

func setSize(o *op, bits uint16) {
	if bits >= 8 && bits <= 64 {
		o.size, o.sh = uint8(bits/8), uint8(64-bits)
	}
}

func regNum(a *insn.Arg) uint8 {
	if a.High {
		return a.Reg&3 | 16
	}
	return a.Reg & 15
}

func lowerMem(in *insn.Inst, o *op) {
	m := &in.Mem
	o.base, o.index, o.seg = m.Base, m.Index, m.Seg
	o.disp = uint64(m.Disp)
	switch m.Scale {
	case 2:
		o.scale = 1
	case 4:
		o.scale = 2
	case 8:
		o.scale = 3
	}
	if m.Base == insn.RIPReg {
		o.base = noReg
		o.amode |= amRIP
	}
	if in.Mode == insn.Mode64 && m.Seg >= x86.FS {
		o.amode |= amSeg
	}
	switch in.AddrSize {
	case 32:
		o.amode |= amAddr32
	case 16:
		o.amode |= amAddr16
	}
}
