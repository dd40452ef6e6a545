package direct

import (
	"runtime"
	"testing"

	"ring3/internal/x86"
)

// BenchmarkSyscall is one SYSCALL exit and the way back into guest code.
func BenchmarkSyscall(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{{"spin", Config{}}, {"futex", Config{NoSpin: true}}} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			g := newGuest(b, []byte{0x0f, 0x05, 0xeb, 0xfc}, c.cfg) // syscall; jmp back
			for b.Loop() {
				g.want(ExitSyscall)
				g.st.RIP += 2
			}
		})
	}
}

// BenchmarkPageFault is a read fault on a page that the guest's tables map,
// until guest code goes on, and the exit by which it says so.
func BenchmarkPageFault(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{{"one", Config{NoEager: true}}, {"eager", Config{}}} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			// mov al,[rbx]; add rbx,4096; jmp back
			g := newGuest(b, []byte{0x8a, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0xeb, 0xf5}, c.cfg)
			const pages = 1024
			const base = 0x1000_0000
			first := g.page(nil)
			for range pages {
				g.page(nil)
			}
			for i := range uint64(pages) {
				g.mapPage(base+i*4096, first+i*4096, pteUser|x86.PTEAccessed|x86.PTENX)
			}
			faults := 0
			for b.Loop() {
				g.st.RIP, g.st.GPR[x86.RBX] = codeVA, base
				g.wantException(x86.VecPF) // past the last page
				b.StopTimer()
				for i := range uint64(pages) {
					*g.pte(base + i*4096) &^= x86.PTEAccessed
				}
				g.e.Flush(Flush{Kind: FlushAll})
				s, _ := g.e.space()
				if err := g.e.prepare(s); err != nil {
					b.Fatal(err)
				}
				for i := range uint64(pages) {
					*g.pte(base + i*4096) |= x86.PTEAccessed
				}
				faults += pages
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(faults), "ns/page")
		})
	}
}
