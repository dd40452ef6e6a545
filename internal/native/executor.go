package native

import (
	"encoding/binary"
	"errors"
	"runtime"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// Executor runs code on the host CPU. It is used by one goroutine at a time;
// several executors are independent of each other.
type Executor struct {
	slice
	arena arena
	host  Host
	fpu   *cpu.FPU // image of the current run: makes sure that it is on the heap

	cleanup runtime.Cleanup // gives the slice back if Close is forgotten
}

// New makes an executor. The first one takes over the signals that faults
// raise, for good.
func New() (*Executor, error) {
	s, err := openSlice()
	for try := 0; errors.Is(err, errFull) && try < 50; try++ {
		runtime.GC() // finds forgotten executors
		time.Sleep(time.Millisecond)
		s, err = openSlice()
	}
	if err != nil {
		return nil, err
	}
	x := &Executor{slice: s, host: region.host}
	x.cleanup = runtime.AddCleanup(x, func(s slice) { s.close() }, s)
	for i := range x.code {
		x.code[i] = int3
	}
	copy(x.code[exitOffset:], appendExit(nil, exitOffset))
	copy(x.code[rawEntry:], appendJump(appendEntry(nil, rawEntry), rawEntry+entryLen, rawCode))
	copy(x.code[rawEntry32:], appendFarEntry(nil, rawEntry32, uint32(x.base)+rawCode))
	x.arena.reset()

	f := x.frame
	f.leave, _ = codeAddresses()
	f.reset = x.base + resetOffset
	le.PutUint32(at[pageBytes](f.reset)[offMXCSR:], defaultMXCSR)

	// XSAVE tells which MXCSR bits exist (SDM vol. 1, 11.6.6).
	img := at[cpu.FPU](x.base + fpuOffset)
	le.PutUint32(img.Area[offMXCSR:], defaultMXCSR)
	x.host.MXCSRMask = 0xffbf
	if x.Run([]byte{0x90}, &Context{FPU: img}).Raised {
		return nil, errors.Join(errors.New("native code does not run"), x.Close())
	}
	if m := le.Uint32(img.Area[offMXCSRMask:]); m != 0 {
		x.host.MXCSRMask = m
	}
	return x, nil
}

// Close gives the memory back.
func (x *Executor) Close() error {
	x.cleanup.Stop()
	return x.close()
}

// Host tells what the host CPU offers.
func (x *Executor) Host() *Host { return &x.host }

// Scratch is memory for operands, with its address. It starts on a page
// boundary.
func (x *Executor) Scratch() ([]byte, uint64) { return x.scratch, uint64(x.base + scratchOff) }

// Run compiles and executes code.
func (x *Executor) Run(code []byte, ctx *Context) Fault {
	return x.Exec(x.Compile(code), ctx)
}

// Exec executes a snippet. Fault.RIP counts from the start of the code that
// was compiled.
//
// RSP is loaded like the other registers. It must not point into the alternate
// signal stack of this thread, since signals would go to where it points: when
// a guest chooses its value, name another register in the code.
func (x *Executor) Exec(s Snippet, ctx *Context) Fault {
	f := x.run(x.base+uintptr(s.entry), ctx)
	f.RIP -= uint64(x.base) + uint64(s.code)
	return f
}

func (x *Executor) run(entry uintptr, ctx *Context) Fault {
	f := x.frame
	f.gpr = ctx.GPR
	f.rflags = ctx.RFLAGS&loadedFlags | x86.FlagFixed
	f.entry = entry
	f.signo = 0
	f.fpu = 0
	if ctx.FPU != nil {
		x.checkImage(ctx.FPU)
		x.fpu = ctx.FPU
		f.fpu = imageAddress(x.fpu)
		f.mask = x.host.XCR0
		if ctx.Mask != 0 {
			f.mask &= ctx.Mask
		}
		f.light = 0
		if f.mask&(1<<CompX87) == 0 && x.host.XCR0>>CompAVX&1 != 0 {
			f.light = 1
		}
	}

	enter(f)

	runtime.KeepAlive(x)
	ctx.GPR = f.gpr
	ctx.RFLAGS = ctx.RFLAGS&^loadedFlags | f.rflags&loadedFlags
	if f.signo == 0 {
		return Fault{}
	}
	return f.fault()
}

// fault is what the signal handler noted. The vector is the one that the CPU
// raised, whatever signal Linux made of it.
func (f *frame) fault() Fault {
	r := Fault{Raised: true, Vector: uint8(f.trapno), Code: f.errcode, RIP: f.rip}
	if r.Vector == x86.VecPF {
		r.Address = f.cr2
	}
	return r
}

// enter is in switch_amd64.s.
//
//go:noescape
func enter(f *frame)

// Places in the legacy region and the header of an XSAVE image
// (SDM vol. 1, tables 13-1 and 13.4.2).
const (
	offMXCSR     = 24
	offMXCSRMask = 28
	offXstateBV  = 512
	offXcompBV   = 520
	offReserved  = 528
	endHeader    = 576

	defaultMXCSR = 0x1f80
)

var le = binary.LittleEndian

// checkImage makes sure that XRSTOR accepts the image (SDM vol. 1, 13.8.1):
// it runs where a fault would end the monitor.
func (x *Executor) checkImage(fpu *cpu.FPU) {
	a := &fpu.Area
	le.PutUint64(a[offXstateBV:], le.Uint64(a[offXstateBV:])&x.host.fullXCR0)
	clear(a[offXcompBV:endHeader])
	le.PutUint32(a[offMXCSR:], le.Uint32(a[offMXCSR:])&x.host.MXCSRMask)
}
