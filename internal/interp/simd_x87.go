package interp

import (
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/x86/insn"
)

// Places in the legacy region of an XSAVE image (SDM vol. 1, table 10-2).
const (
	offFCW   = 0
	offFSW   = 2
	offFOP   = 6
	offFIP   = 8
	offFDP   = 16
	offMXCSR = 24
	offST    = 32
	offXMM   = 160
	offBV    = 512

	fswES = 1 << 7 // FSW: an unmasked exception is pending
)

var le = binary.LittleEndian

// x87Pointers are the pointers to the last instruction and its operand
// (SDM vol. 1, section 8.1.8). The host CPU fills in its own, which are
// addresses of the monitor: they are replaced after every instruction.
type x87Pointers struct {
	fop      uint16
	fip, fdp uint64
}

func loadPointers(fpu *cpu.FPU) x87Pointers {
	if fpu.Area[offBV]&stateX87 == 0 {
		return x87Pointers{}
	}
	return x87Pointers{
		fop: le.Uint16(fpu.Area[offFOP:]) & 0x7ff,
		fip: le.Uint64(fpu.Area[offFIP:]),
		fdp: le.Uint64(fpu.Area[offFDP:]),
	}
}

func (p *x87Pointers) store(fpu *cpu.FPU) {
	le.PutUint16(fpu.Area[offFOP:], p.fop)
	le.PutUint64(fpu.Area[offFIP:], p.fip)
	le.PutUint64(fpu.Area[offFDP:], p.fdp)
	if *p != (x87Pointers{}) {
		fpu.Area[offBV] |= stateX87 // or the next load would forget them
	}
}

// afterX87 sets the pointers after inst has succeeded. buf is its memory
// operand, p are the pointers from before it.
func (c *CPU) afterX87(inst *insn.Inst, op *nativeOp, fpu *cpu.FPU, p x87Pointers, buf []byte) {
	switch inst.Op {
	case insn.OpFNINIT:
		p = x87Pointers{}
	case insn.OpFLDENV, insn.OpFRSTOR:
		p = c.pointersFrom(buf, inst.OpSize)
	case insn.OpFNSTENV:
		c.pointersTo(buf, inst.OpSize, p)
	case insn.OpFNSAVE:
		c.pointersTo(buf, inst.OpSize, p)
		p = x87Pointers{}
	case insn.OpFLDCW, insn.OpFNSTCW, insn.OpFNSTSW, insn.OpFNCLEX, insn.OpFWAIT,
		insn.OpFNENI, insn.OpFNDISI, insn.OpFNSETPM:
		// control instructions leave them alone
	default:
		p.fop = uint16(op.code[op.modrm-1]&7)<<8 | uint16(inst.ModRM)
		p.fip = c.RIP - uint64(inst.Len)
		if !c.mode.is64 {
			p.fip &= 0xffffffff
			if c.mode.real {
				p.fip += c.mode.csBase
			}
		}
		if op.access != accessNone {
			p.fdp = c.operandOffset(inst)
		}
	}
	p.store(fpu)
}

// operandOffset is the pointer to the memory operand that the FPU keeps: its
// offset in the segment, or its linear address in real mode.
func (c *CPU) operandOffset(inst *insn.Inst) uint64 {
	lin, ok := c.memLin(inst, 1, false)
	if !ok {
		c.fault = fault{}
		return 0
	}
	if c.mode.is64 || c.mode.real {
		return lin
	}
	return (lin - c.Seg[inst.Mem.Seg].Base) & 0xffffffff
}

// The formats of the environment in memory (SDM vol. 1, figures 8-9 to 8-12).
// Selectors are stored as 0, as by processors that have deprecated them
// (CPUID.7:EBX[13]).

// pointersTo puts the pointers into an environment that the host CPU stored in
// its format of protected mode.
func (c *CPU) pointersTo(b []byte, opSize uint8, p x87Pointers) {
	ip, dp, fop := uint32(p.fip), uint32(p.fdp), uint32(p.fop)
	switch {
	case opSize == 16 && c.mode.real:
		le.PutUint16(b[6:], uint16(ip))
		le.PutUint16(b[8:], uint16(ip>>16&0xf<<12|fop))
		le.PutUint16(b[10:], uint16(dp))
		le.PutUint16(b[12:], uint16(dp>>16&0xf<<12))
	case opSize == 16:
		le.PutUint16(b[6:], uint16(ip))
		le.PutUint16(b[8:], 0)
		le.PutUint16(b[10:], uint16(dp))
		le.PutUint16(b[12:], 0)
	case c.mode.real:
		le.PutUint32(b[12:], 0xffff0000|ip&0xffff)
		le.PutUint32(b[16:], ip>>16<<12|fop)
		le.PutUint32(b[20:], 0xffff0000|dp&0xffff)
		le.PutUint32(b[24:], dp>>16<<12)
	default:
		le.PutUint32(b[12:], ip)
		le.PutUint32(b[16:], fop<<16)
		le.PutUint32(b[20:], dp)
		le.PutUint32(b[24:], 0xffff0000)
	}
}

// pointersFrom takes the pointers out of an environment in memory.
func (c *CPU) pointersFrom(b []byte, opSize uint8) (p x87Pointers) {
	switch {
	case opSize == 16:
		p.fip = uint64(le.Uint16(b[6:]))
		p.fdp = uint64(le.Uint16(b[10:]))
		if c.mode.real {
			w := le.Uint16(b[8:])
			p.fop = w & 0x7ff
			p.fip |= uint64(w>>12) << 16
			p.fdp |= uint64(le.Uint16(b[12:])>>12) << 16
		}
	case c.mode.real:
		w := le.Uint32(b[16:])
		p.fop = uint16(w) & 0x7ff
		p.fip = uint64(le.Uint16(b[12:])) | uint64(w>>12&0xffff)<<16
		p.fdp = uint64(le.Uint16(b[20:])) | uint64(le.Uint32(b[24:])>>12&0xffff)<<16
	default:
		p.fip = uint64(le.Uint32(b[12:]))
		p.fop = le.Uint16(b[18:]) & 0x7ff
		p.fdp = uint64(le.Uint32(b[20:]))
	}
	return p
}

// A store that an unmasked exception suppresses leaves memory alone. To tell,
// the buffer is filled with bytes that no result consists of by chance.
var sentinel = [...]byte{0x5a, 0xc3, 0x17, 0x9e, 0x81, 0x66, 0xd2, 0x3b, 0xf4, 0x0d}

func fillSentinel(b []byte) {
	for i := range b {
		b[i] = sentinel[i%len(sentinel)]
	}
}

func isSentinel(b []byte) bool {
	for i := range b {
		if b[i] != sentinel[i%len(sentinel)] {
			return false
		}
	}
	return true
}
