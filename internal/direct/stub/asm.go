package stub

import "fmt"

// Register numbers as encoded (SDM vol. 2A, table 2-2).
const (
	rax = iota
	rcx
	rdx
	rbx
	rsp
	rbp
	rsi
	rdi
	r8
	r9
	r10
	r11
	r12
	r13
	r14
	r15
)

// Condition codes of Jcc (SDM vol. 2D, appendix B, table B-10).
const (
	ccB  = 0x2
	ccAE = 0x3
	ccE  = 0x4
	ccNE = 0x5
)

// asm assembles the stub program. It knows just the forms that the program
// needs; offsets given to it are offsets in the stub area.
type asm struct {
	b      []byte
	labels map[string]int
	fixes  []fix
}

// fix is a 32-bit displacement at pos, relative to pos+4, to be filled in.
type fix struct {
	pos   int
	label string
}

func (a *asm) bytes(b ...byte) { a.b = append(a.b, b...) }

func (a *asm) imm32(v uint32) { a.bytes(byte(v), byte(v>>8), byte(v>>16), byte(v>>24)) }

func (a *asm) label(name string) {
	if _, dup := a.labels[name]; dup {
		panic("BUG: stub label twice: " + name)
	}
	a.labels[name] = len(a.b)
}

// rex emits a REX prefix when one is needed (SDM vol. 2A, section 2.2.1).
func (a *asm) rex(w bool, reg, base int) {
	b := byte(0x40)
	if w {
		b |= 8
	}
	b |= byte(reg>>3)<<2 | byte(base>>3)
	if b != 0x40 {
		a.bytes(b)
	}
}

// ctl emits op with ModRM reg, [rip+disp32] for the control word at off in
// Control. imm is the number of immediate bytes that will follow.
func (a *asm) ctl(w bool, reg int, off, imm int, op ...byte) {
	a.area(w, reg, ControlOff+off, imm, op...)
}

// area is ctl for any offset in the stub area.
func (a *asm) area(w bool, reg int, off, imm int, op ...byte) {
	a.rex(w, reg, 0)
	a.bytes(op...)
	a.bytes(byte(reg&7)<<3 | 5)
	a.imm32(uint32(int32(off - (len(a.b) + 4 + imm))))
}

// mem emits op with ModRM reg, [base+disp32].
func (a *asm) mem(w bool, reg, base int, disp int32, op ...byte) {
	a.rex(w, reg, base)
	a.bytes(op...)
	a.bytes(0x80 | byte(reg&7)<<3 | byte(base&7))
	if base&7 == rsp { // rsp and r12 as a base need a SIB byte
		a.bytes(0x24)
	}
	a.imm32(uint32(disp))
}

// rel emits op and a 32-bit displacement to label.
func (a *asm) rel(label string, op ...byte) {
	a.bytes(op...)
	a.fixes = append(a.fixes, fix{len(a.b), label})
	a.imm32(0)
}

func (a *asm) jmp(label string)          { a.rel(label, 0xe9) }
func (a *asm) jcc(cc byte, label string) { a.rel(label, 0x0f, 0x80|cc) }

// lea loads the address of a label.
func (a *asm) lea(reg int, label string) {
	a.rex(true, reg, 0)
	a.rel(label, 0x8d, byte(reg&7)<<3|5)
}

// The moves.
func (a *asm) load64(reg, off int)     { a.ctl(true, reg, off, 0, 0x8b) }
func (a *asm) load32(reg, off int)     { a.ctl(false, reg, off, 0, 0x8b) }
func (a *asm) store64(off, reg int)    { a.ctl(true, reg, off, 0, 0x89) }
func (a *asm) store32(off, reg int)    { a.ctl(false, reg, off, 0, 0x89) }
func (a *asm) xchg32(off, reg int)     { a.ctl(false, reg, off, 0, 0x87) }
func (a *asm) set32(off int, v uint32) { a.ctl(false, 0, off, 4, 0xc7); a.imm32(v) }
func (a *asm) cmp32(off int, v byte)   { a.ctl(false, 7, off, 1, 0x83); a.bytes(v) }
func (a *asm) movImm(reg int, v uint32) {
	a.rex(false, 0, reg)
	a.bytes(0xb8 | byte(reg&7))
	a.imm32(v)
}
func (a *asm) cmpImm(reg int, v uint32) {
	a.rex(false, 0, reg)
	a.bytes(0x81, 0xf8|byte(reg&7))
	a.imm32(v)
}
func (a *asm) cmpImm64(reg int, v int32) {
	a.rex(true, 0, reg)
	a.bytes(0x81, 0xf8|byte(reg&7))
	a.imm32(uint32(v))
}
func (a *asm) test32(reg int) { a.rex(false, reg, reg); a.bytes(0x85, 0xc0|byte(reg&7)<<3|byte(reg&7)) }
func (a *asm) zero(reg int)   { a.rex(false, reg, reg); a.bytes(0x31, 0xc0|byte(reg&7)<<3|byte(reg&7)) }

// finish resolves the labels.
func (a *asm) finish() ([]byte, error) {
	for _, f := range a.fixes {
		t, ok := a.labels[f.label]
		if !ok {
			return nil, fmt.Errorf("stub program: no label %q", f.label)
		}
		v := uint32(int32(t - (f.pos + 4)))
		copy(a.b[f.pos:], []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
	}
	if len(a.b) > CodeSize {
		return nil, fmt.Errorf("stub program of %d bytes is longer than %d", len(a.b), CodeSize)
	}
	return a.b, nil
}
