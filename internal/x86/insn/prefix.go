package insn

import "ring3/internal/x86"

const noSeg = 0xff

// Prefix classes.
const (
	pfxNone = iota
	pfxSeg
	pfxOpsize
	pfxAddr
	pfxLock
	pfxRep
	pfxRex
	pfxVex // C4 C5 62 8F: perhaps an escape
	pfx0F
)

var byteClass = [256]uint8{
	0x26: pfxSeg, 0x2e: pfxSeg, 0x36: pfxSeg, 0x3e: pfxSeg, 0x64: pfxSeg, 0x65: pfxSeg,
	0x66: pfxOpsize, 0x67: pfxAddr, 0xf0: pfxLock, 0xf2: pfxRep, 0xf3: pfxRep,
	0x40: pfxRex, 0x41: pfxRex, 0x42: pfxRex, 0x43: pfxRex, 0x44: pfxRex, 0x45: pfxRex, 0x46: pfxRex, 0x47: pfxRex,
	0x48: pfxRex, 0x49: pfxRex, 0x4a: pfxRex, 0x4b: pfxRex, 0x4c: pfxRex, 0x4d: pfxRex, 0x4e: pfxRex, 0x4f: pfxRex,
	0xc4: pfxVex, 0xc5: pfxVex, 0x62: pfxVex, 0x8f: pfxVex, 0x0f: pfx0F,
}

// prefixes reads legacy and REX prefixes and returns the byte behind them. A
// REX prefix counts only directly before the opcode (SDM vol. 2A, 2.2.1).
func (d *decoder) prefixes() (uint8, bool) {
	in := d.inst
	rexAt := -1
	for d.pos < len(d.code) {
		b := d.code[d.pos]
		switch c := byteClass[b]; c {
		case pfxRex:
			if in.Mode != Mode64 {
				goto done
			}
			in.Rex = b
			rexAt = d.pos
			d.pos++
			continue
		case pfxSeg:
			d.segment(b)
		case pfxOpsize:
			d.opsize66 = true
		case pfxAddr:
			d.addr67 = true
		case pfxLock:
			in.Lock = true
		case pfxRep:
			d.lastRep = b
		default:
			goto done
		}
		in.Rex = 0
		rexAt = -1
		d.pos++
	}
	d.short = true
	return 0, false
done:
	in.OpcodeOff = uint8(d.pos)
	if rexAt >= 0 {
		in.OpcodeOff = uint8(rexAt)
	}
	in.NumPrefix = in.OpcodeOff
	d.w = in.Rex&8 != 0
	switch {
	case d.lastRep == 0xf3:
		d.pp = 2
	case d.lastRep == 0xf2:
		d.pp = 3
	case d.opsize66:
		d.pp = 1
	}
	in.AddrSize = uint8(in.Mode)
	if d.addr67 {
		in.AddrSize = 32
		if in.Mode == Mode32 {
			in.AddrSize = 16
		}
	}
	b := d.code[d.pos]
	d.pos++
	return b, true
}

// segment notes an override. In 64-bit mode those of ES, CS, SS and DS are
// ignored, and do not cancel an earlier FS or GS (APM vol. 3, 1.2.4).
func (d *decoder) segment(b uint8) {
	switch b {
	case 0x64:
		d.seg = x86.FS
	case 0x65:
		d.seg = x86.GS
	default:
		if d.inst.Mode == Mode64 {
			return
		}
		d.seg = b >> 3 & 3 // 26 2E 36 3E are in the order ES CS SS DS
	}
}

// isVex tells VEX, EVEX and XOP from LES, LDS, BOUND and POP: outside 64-bit
// mode the former three would have a register operand, which is #UD, and POP
// has ModRM.reg 0 (SDM vol. 2A, 2.3.5; APM vol. 3, 1.2.7).
func (d *decoder) isVex(b uint8) bool {
	if d.pos >= len(d.code) {
		d.short = true
		return false
	}
	n := d.code[d.pos]
	if b == 0x8f {
		return n&0x1f >= 8
	}
	return d.inst.Mode == Mode64 || n >= 0xc0
}

// vexPrefix reads what follows the first byte of a VEX, EVEX or XOP prefix.
func (d *decoder) vexPrefix(b uint8) bool {
	in := d.inst
	if d.opsize66 || d.lastRep != 0 || in.Lock || in.Rex != 0 {
		return false
	}
	d.vex = b
	p0 := d.next()
	var p1 uint8
	switch b {
	case 0xc5:
		p1 = p0 & 0x7f
		p0 = p0&0x80 | 0x61
	default:
		p1 = d.next()
	}
	in.Rex = ^p0 >> 5 & 7
	d.w = p1&0x80 != 0
	d.vvvv = ^p1 >> 3 & 15
	in.Vvvv = d.vvvv
	d.pp = p1 & 3
	d.ll = p1 >> 2 & 1
	switch b {
	case 0x62:
		p2 := d.next()
		if d.short || p0&8 != 0 || p1&4 == 0 {
			return d.short
		}
		d.opmap = mapEVEX + int(p0&7)
		d.rx = ^p0 & 0x10
		d.vx = ^p2 << 1 & 0x10
		d.ll = p2 >> 5 & 3
		d.evexB = p2&0x10 != 0
		in.Zero = p2&0x80 != 0
		in.Mask = p2 & 7
	case 0x8f:
		if p0&0x1f > 10 {
			return false
		}
		d.opmap = mapXOP + int(p0&0x1f) - 8
	default:
		if p0&0x1f > 7 {
			return false
		}
		d.opmap = mapVEX + int(p0&0x1f)
	}
	if in.Mode != Mode64 {
		// R and X are 0 here, or it would be another instruction; B and the
		// top bits of the register numbers are ignored.
		in.Rex &= 6
		in.Vvvv &= 7
		d.rx = 0
	}
	if d.w {
		in.Rex |= 8
	}
	return true
}
