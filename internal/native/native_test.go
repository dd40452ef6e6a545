package native

import (
	"encoding/binary"
	"math"
	"runtime"
	"sync"
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func newExecutor(t testing.TB) *Executor {
	t.Helper()
	x, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func newFPU() *cpu.FPU {
	f := new(cpu.FPU)
	le.PutUint32(f.Area[offMXCSR:], defaultMXCSR)
	return f
}

// setXMM puts a value in an XMM register of an image.
func setXMM(f *cpu.FPU, n int, lo, hi uint64) {
	le.PutUint64(f.Area[160+16*n:], lo)
	le.PutUint64(f.Area[168+16*n:], hi)
	f.Area[offXstateBV] |= 1 << CompSSE
}

func xmm(f *cpu.FPU, n int) (lo, hi uint64) {
	return le.Uint64(f.Area[160+16*n:]), le.Uint64(f.Area[168+16*n:])
}

func TestRegistersPassThrough(t *testing.T) {
	x := newExecutor(t)
	var ctx Context
	for i := range ctx.GPR {
		ctx.GPR[i] = 0x1111111111111111 * uint64(i+1)
	}
	ctx.RFLAGS = x86.FlagCF | x86.FlagOF | x86.FlagDF | x86.FlagIF
	want := ctx
	if f := x.Run([]byte{0x90}, &ctx); f.Raised {
		t.Fatalf("nop: %+v", f)
	}
	if ctx != want {
		t.Errorf("nop changed the state\n got %+v\nwant %+v", ctx, want)
	}
	// not of every register
	for i := range 16 {
		code := []byte{0x48 | byte(i>>3), 0xf7, 0xd0 | byte(i&7)}
		if f := x.Run(code, &ctx); f.Raised {
			t.Fatalf("not r%d: %+v", i, f)
		}
		want.GPR[i] = ^want.GPR[i]
		if ctx != want {
			t.Errorf("not r%d\n got %+v\nwant %+v", i, ctx, want)
		}
	}
	// add al, bl; setting all status flags but DF
	ctx.GPR[x86.RAX], ctx.GPR[x86.RBX] = 0x80, 0x80
	x.Run([]byte{0x00, 0xd8}, &ctx)
	if got, want := ctx.RFLAGS, uint64(x86.FlagCF|x86.FlagZF|x86.FlagPF|x86.FlagOF|x86.FlagDF|x86.FlagIF); got != want {
		t.Errorf("flags of add: %#x, want %#x", got, want)
	}
}

func TestVectorState(t *testing.T) {
	x := newExecutor(t)
	fpu := newFPU()
	ctx := Context{FPU: fpu}
	setXMM(fpu, 1, 1, 2)
	setXMM(fpu, 15, 10, 20)
	// paddq xmm1, xmm15
	if f := x.Run([]byte{0x66, 0x41, 0x0f, 0xd4, 0xcf}, &ctx); f.Raised {
		t.Fatalf("%+v", f)
	}
	if lo, hi := xmm(fpu, 1); lo != 11 || hi != 22 {
		t.Errorf("paddq: %d %d", lo, hi)
	}
	// fld1; fldpi: the register stack survives from one run to the next
	x.Run([]byte{0xd9, 0xe8}, &ctx)
	x.Run([]byte{0xd9, 0xeb}, &ctx)
	if got := le.Uint16(fpu.Area[32+16+8:]); got != 0x3fff {
		t.Errorf("st1 exponent %#x after fld1, fldpi", got)
	}
	// With a mask the x87 stack stays as it is, and vector registers change.
	ctx.Mask = 1<<CompSSE | 1<<CompAVX
	x.Run([]byte{0xd9, 0xe8}, &ctx)
	x.Run([]byte{0x66, 0x41, 0x0f, 0xd4, 0xcf}, &ctx)
	ctx.Mask = 0
	if lo, _ := xmm(fpu, 1); lo != 21 || fpu.Area[4] != 0xc0 {
		t.Errorf("masked run: xmm1 %d, x87 tags %#x", lo, fpu.Area[4])
	}
	// ldmxcsr [scratch]: guest rounding mode stays the guest's
	s, addr := x.Scratch()
	le.PutUint32(s, 0x7f80)
	ctx.GPR[x86.RSP] = addr
	x.Run([]byte{0x0f, 0xae, 0x14, 0x24}, &ctx)
	if got := le.Uint32(fpu.Area[offMXCSR:]); got != 0x7f80 {
		t.Errorf("MXCSR %#x", got)
	}
	one, three := 1.0, 3.0
	if got := one / three; math.Float64bits(got) != 0x3fd5555555555555 {
		t.Errorf("the monitor's rounding changed: 1/3 = %x", math.Float64bits(got))
	}
	if x.host.XCR0>>CompAVX&1 != 0 {
		// vpcmpeqd ymm3, ymm3, ymm3
		x.Run([]byte{0xc5, 0xe5, 0x76, 0xdb}, &ctx)
		if got := le.Uint64(fpu.Area[x.host.Offset[CompAVX]+3*16:]); got != math.MaxUint64 {
			t.Errorf("upper half of ymm3: %x", got)
		}
	}
}

func TestFaults(t *testing.T) {
	x := newExecutor(t)
	_, addr := x.Scratch()
	tests := []struct {
		name string
		code []byte
		mem  uint64 // RSP
		init func(*cpu.FPU)
		want Fault
	}{
		{name: "ud2", code: []byte{0x0f, 0x0b}, want: Fault{Vector: x86.VecUD}},
		{name: "div by zero", code: []byte{0xf7, 0xf1}, want: Fault{Vector: x86.VecDE}},
		{name: "int3", code: []byte{0xcc}, want: Fault{Vector: x86.VecBP, RIP: 1}},
		{name: "hlt", code: []byte{0xf4}, want: Fault{Vector: x86.VecGP}},
		{name: "movaps misaligned", code: []byte{0x0f, 0x28, 0x04, 0x24}, mem: addr + 8, want: Fault{Vector: x86.VecGP}},
		{name: "load from nowhere", code: []byte{0x8b, 0x00}, want: Fault{Vector: x86.VecPF, Code: x86.PFUser}},
		{name: "second of two", code: []byte{0x90, 0x8b, 0x00}, want: Fault{Vector: x86.VecPF, Code: x86.PFUser, RIP: 1}},
		{name: "unmasked simd division", code: []byte{0xf3, 0x0f, 0x5e, 0xc0},
			init: func(f *cpu.FPU) { le.PutUint32(f.Area[offMXCSR:], 0) }, want: Fault{Vector: x86.VecXM}},
		{name: "pending x87", code: []byte{0x9b}, init: func(f *cpu.FPU) {
			f.Area[offXstateBV] = 1
			le.PutUint16(f.Area[0:], 0x37e) // invalid operation unmasked
			le.PutUint16(f.Area[2:], 0x8081)
		}, want: Fault{Vector: x86.VecMF}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := Context{FPU: newFPU()}
			for i := range ctx.GPR {
				ctx.GPR[i] = uint64(i) << 32
			}
			ctx.GPR[x86.RCX], ctx.GPR[x86.RAX] = 0, 0x10
			ctx.GPR[x86.RSP] = tt.mem
			if tt.init != nil {
				tt.init(ctx.FPU)
			}
			want := ctx.GPR
			tt.want.Raised = true
			if tt.want.Vector == x86.VecPF {
				tt.want.Address = 0x10
			}
			if got := x.Run(tt.code, &ctx); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if ctx.GPR != want {
				t.Errorf("registers changed: %x", ctx.GPR)
			}
		})
	}
}

// Go's own faults must still become Go panics.
func TestGoFaults(t *testing.T) {
	newExecutor(t)
	defer func() {
		if _, ok := recover().(runtime.Error); !ok {
			t.Error("nil dereference gave no runtime error")
		}
	}()
	var p *Context
	p.RFLAGS++
}

func TestRaw(t *testing.T) {
	x := newExecutor(t)
	var ctx Context
	addr := x.RawAddress()
	for _, tt := range []struct {
		code []byte
		off  int64
	}{
		{[]byte{0x90}, 1},
		{[]byte{0xeb, 0x10}, 0x12},
		{[]byte{0xe9, 0xf0, 0xff, 0xff, 0xff}, -11},
	} {
		f := x.RunRaw(tt.code, &ctx)
		if f.Vector != x86.VecBP || f.RIP != addr+uint64(tt.off) {
			t.Errorf("% x: %+v, want RIP %#x", tt.code, f, addr+uint64(tt.off))
		}
	}
}

func TestRaw32(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	x := newExecutor(t)
	if !x.CanRun32() {
		t.Skip("no address space below 4 GiB")
	}
	_, addr := x.Scratch()
	ctx := Context{GPR: [16]uint64{0: 0x12345678, 4: addr + 0x100}}
	// inc eax (REX in 64-bit mode); push eax; into
	f := x.RunRaw32([]byte{0x40, 0x50, 0xce}, &ctx)
	if f.Vector != x86.VecBP || f.RIP != x.RawAddress()+3 {
		t.Errorf("%+v", f)
	}
	if ctx.GPR[x86.RAX] != 0x12345679 || ctx.GPR[x86.RSP] != addr+0xfc {
		t.Errorf("registers %x", ctx.GPR)
	}
	ctx.RFLAGS = x86.FlagOF
	if f = x.RunRaw32([]byte{0xce}, &ctx); f.Vector != x86.VecOF || f.RIP != x.RawAddress()+1 {
		t.Errorf("into: %+v", f)
	}
}

// Registers must survive Go's signals and the collector, with several
// executors at work.
func TestPreemption(t *testing.T) {
	stop := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	for n := range 3 {
		x := newExecutor(t)
		wg.Go(func() {
			fpu := newFPU()
			setXMM(fpu, 7, uint64(n), 1)
			var ctx Context
			// mov ecx, 100000; l: dec rcx; jnz l; paddq xmm7, xmm7
			code := []byte{0xb9, 0xa0, 0x86, 1, 0, 0x48, 0xff, 0xc9, 0x75, 0xfb, 0x66, 0x0f, 0xd4, 0xff}
			for i := range ctx.GPR {
				ctx.GPR[i] = uint64(n+1) * 0x0101010101010101
			}
			want := ctx.GPR
			want[x86.RCX] = 0
			ctx.FPU = fpu
			for i := 0; time.Now().Before(stop); i++ {
				setXMM(fpu, 7, uint64(n), 1)
				if f := x.Run(code, &ctx); f.Raised {
					t.Errorf("%+v", f)
					return
				}
				if lo, _ := xmm(fpu, 7); ctx.GPR != want || lo != 2*uint64(n) {
					t.Errorf("after %d runs: xmm7 %d, registers %x", i, lo, ctx.GPR)
					return
				}
				if f := x.Run([]byte{0x0f, 0x0b}, &ctx); f.Vector != x86.VecUD {
					t.Errorf("%+v", f)
					return
				}
			}
		})
	}
	for time.Now().Before(stop) {
		runtime.GC()
	}
	wg.Wait()
}

// Executors that nobody closes give their memory back all the same.
func TestForgotten(t *testing.T) {
	for range 3 * maxSlices {
		x, err := New()
		if err != nil {
			t.Fatal(err)
		}
		x.Run([]byte{0x90}, new(Context))
	}
}

func TestArenaOverflow(t *testing.T) {
	x := newExecutor(t)
	for i := range 20000 {
		var ctx Context
		code := binary.LittleEndian.AppendUint32([]byte{0xb8}, uint32(i)) // mov eax, i
		if f := x.Run(code, &ctx); f.Raised || ctx.GPR[x86.RAX] != uint64(i) {
			t.Fatalf("%d: %+v, rax %d", i, f, ctx.GPR[x86.RAX])
		}
	}
}

// The assembly gets offsets from the compiler; the signal handler finds the
// frame by these two facts.
func TestLayout(t *testing.T) {
	x := newExecutor(t)
	if x.base%sliceSize != 0 && regionBase == x.base {
		t.Logf("region at %#x is not aligned", regionBase)
	}
	if scratchOff+scratchSize > frameOffset+dataSize || resetOffset+endHeader > fpuOffset {
		t.Error("data parts overlap")
	}
	if f := x.frame; uintptr(f.leave) == 0 || f.reset%64 != 0 {
		t.Errorf("frame: %+v", f)
	}
}

func BenchmarkIntegerNop(b *testing.B) {
	x := newExecutor(b)
	var ctx Context
	for b.Loop() {
		x.Run([]byte{0x90}, &ctx)
	}
}

func BenchmarkSSE(b *testing.B) {
	x := newExecutor(b)
	ctx := Context{FPU: newFPU(), Mask: 1<<CompSSE | 1<<CompAVX}
	for b.Loop() {
		x.Run([]byte{0x66, 0x0f, 0xd4, 0xff}, &ctx)
	}
}

func BenchmarkAVX(b *testing.B) {
	x := newExecutor(b)
	ctx := Context{FPU: newFPU(), Mask: 1<<CompSSE | 1<<CompAVX}
	x.Run([]byte{0xc5, 0xe5, 0x76, 0xdb}, &ctx)
	for b.Loop() {
		x.Run([]byte{0xc5, 0xe5, 0xfe, 0xdb}, &ctx)
	}
}

func BenchmarkAllComponents(b *testing.B) {
	x := newExecutor(b)
	ctx := Context{FPU: newFPU()}
	for b.Loop() {
		x.Run([]byte{0x66, 0x0f, 0xd4, 0xff}, &ctx)
	}
}

func BenchmarkFault(b *testing.B) {
	x := newExecutor(b)
	ctx := Context{FPU: newFPU()}
	for b.Loop() {
		x.Run([]byte{0x0f, 0x0b}, &ctx)
	}
}
