package stub

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// InitOff is where the start-up list lies, relative to the area's base. It is
// outside the area: the monitor's first command unmaps it.
const (
	InitOff  = 0x100000
	initSize = 4 * PageSize
)

// Image makes the ELF executable of a zygote: the code and the start-up
// list. parent is the process that the stub must be a child of.
// handoff is the offset of the hand-over page in the file that RAM is in, and
// answers that of the answers in the file of code pages. ram is the size of
// guest memory in bytes.
func Image(p *Program, s *Secrets, parent, slots int, cpuidFaults bool, ram, handoff, answers uint64) ([]byte, error) {
	data, err := initData(p, s, parent, slots, cpuidFaults, ram, handoff, answers)
	if err != nil {
		return nil, err
	}
	img := new(bytes.Buffer)
	le := binary.LittleEndian
	// ELF header (System V gABI, chapter 4).
	img.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, v := range []any{uint16(2) /* ET_EXEC */, uint16(62) /* EM_X86_64 */, uint32(1),
		p.Base, uint64(64), uint64(0), uint32(0),
		uint16(64), uint16(56), uint16(3), uint16(0), uint16(0), uint16(0)} {
		binary.Write(img, le, v)
	}
	segment := func(typ, flags uint32, off, addr, size uint64) {
		for _, v := range []any{typ, flags, off, addr, addr, size, size, uint64(PageSize)} {
			binary.Write(img, le, v)
		}
	}
	const dataAt = PageSize + CodeSize
	segment(1, 5, PageSize, p.Base, CodeSize)
	segment(1, 4, dataAt, p.Base+InitOff, initSize)
	segment(0x6474e551 /* PT_GNU_STACK */, 6, 0, 0, 0)
	out := make([]byte, dataAt+initSize)
	copy(out, img.Bytes())
	for i := PageSize; i < dataAt; i++ {
		out[i] = 0xf4 // hlt: what is behind the code traps
	}
	copy(out[PageSize:], p.Code)
	copy(out[dataAt:], data)
	return out, nil
}

// initData lays out the start-up list: a header entry with the count, the
// entries, and behind them what they point to.
func initData(p *Program, s *Secrets, parent, slots int, cpuidFaults bool, ram, handoff, answers uint64) ([]byte, error) {
	filter, err := Filter(p, s, ram)
	if err != nil {
		return nil, err
	}
	if len(filter) > 4096 {
		return nil, fmt.Errorf("seccomp filter of %d instructions is too long", len(filter))
	}
	init := p.Base + InitOff
	buf := make([]byte, initSize)
	end := 32 * 64 // the list has room for 31 entries
	put := func(b []byte) uint64 {
		at := end
		end += (len(b) + 15) &^ 15
		copy(buf[at:end], b)
		return init + uint64(at)
	}
	words := func(v ...uint64) []byte {
		var b []byte
		for _, w := range v {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	stack := put(words(p.Base+StackOff, 0, StackSize)) // stack_t
	// Handlers must not touch the signal mask: SA_NODEFER and an empty mask.
	const flags = 0x4 /* SA_SIGINFO */ | 0x08000000 /* SA_ONSTACK */ | 0x40000000 /* SA_NODEFER */ | 0x04000000 /* SA_RESTORER */
	action := put(words(p.Handler, flags, p.Handler, 0))
	rlim := put(words(0, 0))
	mask := put(words(0))
	prog := put(encodeFilter(filter))
	fprog := put(words(uint64(len(filter)), prog))

	var list []Call
	add := func(result int64, nr uint64, args ...uint64) {
		c := Call{Nr: nr, Result: uint64(result)}
		copy(c.Args[:], args)
		list = append(list, c)
	}
	add(0, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(unix.SIGKILL))
	add(int64(parent), unix.SYS_GETPPID) // the parent may have died before the line above
	add(0, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	add(0, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, rlim, 0)
	// Other descriptors (the executable, inherited ones without
	// close-on-exec) are not for guests.
	add(0, unix.SYS_CLOSE_RANGE, uint64(FDProof+slots), 0xffffffff, 0)
	control := p.Base + ControlOff
	add(int64(control), unix.SYS_MMAP, control, SlotSize,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED, FDControl, 0)
	add(int64(p.Base+HandoffOff), unix.SYS_MMAP, p.Base+HandoffOff, PageSize,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED, FDRAM, handoff)
	add(int64(p.Base+AnswersOff), unix.SYS_MMAP, p.Base+AnswersOff, AnswersSize,
		unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED, FDCode, answers)
	add(0, unix.SYS_SIGALTSTACK, stack, 0)
	for _, sig := range []uint64{4 /* ILL */, 5 /* TRAP */, 7 /* BUS */, 8 /* FPE */, 11 /* SEGV */, 31 /* SYS */, KickSignal} {
		add(0, unix.SYS_RT_SIGACTION, sig, action, 0, 8)
	}
	add(0, unix.SYS_RT_SIGPROCMASK, 2 /* SIG_SETMASK */, mask, 0, 8)
	if cpuidFaults {
		add(AnyResult, unix.SYS_ARCH_PRCTL, 0x1012 /* ARCH_SET_CPUID */, 0)
	}
	add(0, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	add(0, unix.SYS_SECCOMP, 1 /* SET_MODE_FILTER */, 0, fprog)

	binary.LittleEndian.PutUint64(buf, uint64(len(list)))
	for i, c := range list {
		copy(buf[64*(i+1):], words(c.Nr, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], c.Args[5], c.Result))
	}
	return buf, nil
}

func encodeFilter(f []bpf.RawInstruction) []byte {
	var b []byte
	for _, i := range f {
		b = binary.LittleEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return b
}
