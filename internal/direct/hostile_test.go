package direct

import (
	"bufio"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// ticker kicks like a timer interrupt until the test ends.
func ticker(t testing.TB, e *Engine, d time.Duration) {
	stop := make(chan bool)
	done := make(chan bool)
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(d):
				e.Kick()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}

// alive checks that the engine still runs honest guests, and that there are
// no more processes than it knows of.
func (g *guest) alive() {
	g.t.Helper()
	g.st.RFLAGS = x86.FlagFixed | x86.FlagIF
	g.mode64()
	died := false
	for {
		g.st.RIP, g.st.GPR[x86.RBX], g.st.GPR[x86.RSP] = codeVA, dataVA, stackVA-256
		x := g.e.Run()
		if x.Kind == ExitKick {
			continue
		}
		if x.Kind == ExitDied && !died {
			died = true // late, of what the attack did to its address space
			continue
		}
		if x.Kind != ExitSyscall || g.st.GPR[x86.RAX] != g.word(dataVA) {
			g.t.Fatalf("after an attack: %v %+v", x.Kind, x)
		}
		break
	}
	if n := children(g.t); n > 2 {
		g.t.Fatalf("%d processes", n)
	}
}

// TestHostileFast: what a program writes to the hand-over page of a machine
// without a kernel stub does not keep the next one's system calls.
func TestHostileFast(t *testing.T) {
	defer func(d time.Duration) { nap = d }(nap)
	nap = 2 * time.Millisecond
	g := newGuest(t, touch, Config{})
	ticker(t, g.e, time.Millisecond) // a stub that waits for nobody is found by kicks
	for range 10 {
		g.e.handoff().Fast = 1
		g.alive()
	}
	if n := g.e.stats.Deaths; n != 0 {
		t.Errorf("%d stubs died", n)
	}
}

// attack runs the guest until something other than a kick happens, at most
// for a few kicks.
func (g *guest) attack(kicks int) Exit {
	var x Exit
	for range kicks {
		if x = g.e.Run(); x.Kind != ExitKick {
			break
		}
	}
	return x
}

func (g *guest) randomRegs(r *rand.Rand) {
	for i := range g.st.GPR {
		switch r.IntN(3) {
		case 0:
			g.st.GPR[i] = r.Uint64()
		case 1:
			g.st.GPR[i] = uint64(r.IntN(512))
		case 2: // somewhere in the stub area
			if z := g.e.zygote; z != nil {
				g.st.GPR[i] = z.prog.Base + uint64(r.IntN(stub.AreaSize))
			}
		}
	}
}

// The guest jumps to every byte of the stub's code.
func TestHostileJumps(t *testing.T) {
	defer func(d time.Duration) { nap = d }(nap)
	nap = 500 * time.Microsecond // do not take half a second for each that hangs
	g := newGuest(t, touch, Config{})
	showCPUID(g.e)
	g.alive()
	r := rand.New(rand.NewPCG(1, 2))
	ticker(t, g.e, 2*time.Millisecond)
	step := 1
	if testing.Short() {
		step = 7
	}
	for off := 0; off < len(g.e.zygote.prog.Code)+16; off += step {
		g.randomRegs(r)
		g.st.RIP = g.e.zygote.prog.Base + uint64(off)
		g.attack(3)
		g.alive()
	}
	t.Logf("%+v", g.e.Stats())
}

// The guest sets segment bases in the control page that no processor would have,
// and jumps to every byte of the stub's code, some of which report them. The
// guest's kernel must not get to see them.
func TestHostileBases(t *testing.T) {
	defer func(d time.Duration) { nap = d }(nap)
	nap = 2 * time.Millisecond
	g := newGuest(t, touch, Config{})
	g.alive()
	ticker(t, g.e, 2*time.Millisecond)
	// mov %rax, FSBase(%rbx); mov %rax, GSBase(%rbx); jmp *%rcx
	g.poke(codeVA+0x100, []byte{0x48, 0x89, 0x43, 0x30, 0x48, 0x89, 0x43, 0x38, 0xff, 0xe1})
	step := 5
	if testing.Short() {
		step = 17
	}
	for off := 0; off < len(g.e.zygote.prog.Code); off += step {
		base := g.e.zygote.prog.Base
		g.st.RIP = codeVA + 0x100
		g.st.GPR[x86.RAX], g.st.GPR[x86.RBX], g.st.GPR[x86.RCX] = 0x7fff<<48, base+stub.ControlOff, base+uint64(off)
		x := g.attack(3)
		if fs, gs := g.st.Seg[x86.FS].Base, g.st.Seg[x86.GS].Base; !x86.Canonical(fs) || !x86.Canonical(gs) {
			t.Errorf("jump to %#x: bases %#x, %#x (%v)", off, fs, gs, x.Kind)
			g.st.Seg[x86.FS].Base, g.st.Seg[x86.GS].Base = 0, 0
		}
		g.alive()
	}
	t.Logf("%+v", g.e.Stats())
}

// The guest overwrites all that it can reach of the stub's shared memory and
// goes on.
func TestHostileScribbles(t *testing.T) {
	g := newGuest(t, touch, Config{})
	showCPUID(g.e)
	g.alive()
	// rep movsb; syscall
	g.poke(codeVA+0x100, []byte{0xf3, 0xa4, 0x0f, 0x05})
	const src = 0x2000_0000
	for i := range uint64(stub.AreaSize / 4096) {
		g.mapPage(src+i*4096, g.page(nil), pteRW)
	}
	r := rand.New(rand.NewPCG(3, 4))
	ticker(t, g.e, 2*time.Millisecond)
	n := 400
	if testing.Short() {
		n = 60
	}
	for round := range n {
		b := make([]byte, stub.SlotSize)
		for i := 0; i < len(b); i += 8 {
			v := r.Uint64()
			if round%2 == 0 { // more plausible numbers
				v = r.Uint64() % 8
				if r.IntN(4) == 0 {
					v = g.e.zygote.prog.Base + r.Uint64()%stub.AreaSize
				}
			}
			binary.LittleEndian.PutUint64(b[i:], v)
		}
		for i := 0; i < len(b); i += 4096 {
			g.poke(src+uint64(i), b[i:i+4096])
		}
		off := uint64(r.IntN(stub.SlotSize))
		if round%3 == 0 {
			off = uint64(r.IntN(0x80)) // the words of the protocol
		}
		size := 1 + uint64(r.IntN(int(stub.SlotSize-off)))
		g.st.RIP = codeVA + 0x100
		g.st.GPR[x86.RSI], g.st.GPR[x86.RCX] = src+off, size
		g.st.GPR[x86.RDI] = g.e.zygote.prog.Base + stub.ControlOff + off
		g.attack(3)
		g.alive()
	}
	t.Logf("%+v", g.e.Stats())
}

// The guest makes every system call through the stub's own system-call
// instructions.
func TestHostileSyscalls(t *testing.T) {
	g := newGuest(t, touch, Config{})
	g.alive()
	ticker(t, g.e, 2*time.Millisecond)
	z := g.e.zygote
	sites := []uint64{z.prog.SiteCalls, z.prog.SiteClone, z.prog.SiteExit, z.prog.SiteWake, z.prog.SiteWait, z.prog.SiteCompat}
	secret := z.secrets
	for _, site := range sites {
		step := 1
		if testing.Short() {
			step = 17
		}
		for nr := 0; nr < 470; nr += step {
			p := g.e.cur.p
			for i := range g.st.GPR {
				g.st.GPR[i] = 0
			}
			g.st.GPR[x86.RAX] = uint64(nr)
			// Plausible arguments: an mmap of guest RAM at dataVA, a signal to
			// the monitor, a buffer.
			g.st.GPR[x86.RDI], g.st.GPR[x86.RSI], g.st.GPR[x86.RDX] = dataVA, 4096, 7
			g.st.GPR[x86.R10], g.st.GPR[x86.R8], g.st.GPR[x86.R9] = unix.MAP_SHARED|unix.MAP_FIXED, 0, 0
			if nr == unix.SYS_KILL || nr == unix.SYS_TGKILL {
				g.st.GPR[x86.RDI], g.st.GPR[x86.RSI] = uint64(os.Getpid()), uint64(unix.SIGTERM)
			}
			g.st.GPR[x86.RSP] = stackVA - 256
			g.st.GPR[x86.RBX], g.st.GPR[x86.R12] = codeVA, dataVA
			g.st.RIP = site - 2
			// On a busy host many kicks come before the stub does.
			kicks := 1000
			allowed := nr == unix.SYS_FUTEX || nr == unix.SYS_EXIT_GROUP
			if allowed {
				kicks = 3 // it may wait for ever
			}
			x := g.attack(kicks)
			if !allowed && x.Kind != ExitDied {
				t.Errorf("system call %d at %#x: %v %+v", nr, site, x.Kind, x)
			}
			if g.e.cur != nil && g.e.cur.p == p && x.Kind == ExitDied {
				t.Errorf("the stub is still used")
			}
			g.alive()
		}
	}
	if secret != g.e.zygote.secrets {
		t.Error("the zygote was restarted")
	}
	t.Logf("%+v", g.e.Stats())
}

// No secret is in the memory of a stub when guest code runs.
func TestSecretsErased(t *testing.T) {
	g := newGuest(t, touch, Config{})
	for i := range uint64(100) {
		g.mapPage(0x1000_0000+i*0x10000, g.page(imm64(i)), pteRW)
		g.load(0x1000_0000 + i*0x10000)
		if i%10 == 0 {
			g.e.Flush(Flush{Kind: FlushAll})
			*g.pte(0x1000_0000 + i*0x10000) = 0
		}
		g.e.Kick()
		g.want(ExitKick)
		z := g.e.zygote
		var keys []uint32
		keys = append(keys, z.secrets.Mmap[:]...)
		for _, v := range append(z.secrets.Args[:], z.secrets.Clone[:]...) {
			keys = append(keys, uint32(v), uint32(v>>32))
		}
		slot := g.e.cur.p.slot
		for off := 0; off < len(slot); off += 4 {
			for _, k := range keys {
				if v := binary.LittleEndian.Uint32(slot[off:]); v == k {
					t.Fatalf("round %d: secret %#x at offset %#x of the slot", i, k, off)
				}
			}
		}
	}
}

// Nor when kicks interrupt the calls, or what comes between them and guest
// code, and a guest has lied about where its signal frame is.
func TestSecretsErasedWhenKicked(t *testing.T) {
	g := newGuest(t, []byte{0xeb, 0xfe}, Config{})
	kickAfter(g.e, time.Millisecond)
	g.want(ExitKick)
	rounds := 12000
	if testing.Short() {
		rounds = 3000
	}
	for i := range rounds {
		p := g.e.cur.p
		for j := range uint64(1 + i%8) {
			if err := p.munmap(0x1000_0000+j*0x10000, x86.PageSize); err != nil {
				t.Fatal(err)
			}
		}
		if i%2 != 0 {
			p.ctl.Frame = p.base + stub.StackOff + 16 // nothing below it is cleared
		}
		go func() {
			for s := time.Now(); time.Since(s) < time.Duration(i/8%500)*100*time.Nanosecond; {
			}
			g.e.Kick()
		}()
		g.want(ExitKick)
		args := p.z.secrets.Args
		for off := 0; off < len(p.slot); off += 8 {
			if v := binary.LittleEndian.Uint64(p.slot[off:]); v == args[0] || v == args[1] {
				t.Fatalf("round %d: a secret at offset %#x of the slot", i, off)
			}
		}
	}
}

// A monitor that is killed leaves no process.
func TestMonitorKilled(t *testing.T) {
	if os.Getenv("RING3_TEST_VICTIM") != "" {
		g := newGuest(t, []byte{0xeb, 0xfe}, Config{})
		code := g.gpa(codeVA)
		for range 3 {
			g.newTables()
			g.mapPage(codeVA, code, pteUser)
			kickAfter(g.e, 10*time.Millisecond)
			g.want(ExitKick)
		}
		pids := strconv.Itoa(g.e.zygote.p.pid)
		for _, s := range g.e.spaces {
			pids += " " + strconv.Itoa(s.p.pid)
		}
		os.Stdout.WriteString("pids " + pids + "\n")
		g.e.Run() // spins in guest code until killed
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=TestMonitorKilled$")
	cmd.Env = append(os.Environ(), "RING3_TEST_VICTIM=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), "pids "); ok {
			for _, f := range strings.Fields(rest) {
				pid, _ := strconv.Atoi(f)
				pids = append(pids, pid)
			}
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if len(pids) != 4 {
		t.Fatalf("victim reported pids %v", pids)
	}
	for range 100 {
		left := 0
		for _, pid := range pids {
			// A process that nobody has reaped yet (the new parent may be
			// slow) is dead too.
			b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err == nil && !strings.Contains(string(b), ") Z ") {
				left++
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("stubs %v outlive the monitor", pids)
}

// Stubs that are killed from outside are noticed, also while guest code runs.
func TestStubKilled(t *testing.T) {
	g := newGuest(t, []byte{0xeb, 0xfe}, Config{})
	kickAfter(g.e, 5*time.Millisecond)
	g.want(ExitKick)
	pid := g.e.cur.p.pid
	time.AfterFunc(10*time.Millisecond, func() { unix.Kill(pid, unix.SIGKILL) })
	x := g.want(ExitDied)
	if x.Err == nil || !strings.Contains(x.Err.Error(), "killed") {
		t.Errorf("error %v", x.Err)
	}
	// The zygote too: a new one is made.
	unix.Kill(g.e.zygote.p.pid, unix.SIGKILL)
	for range 20 {
		kickAfter(g.e, 50*time.Millisecond)
		g.e.Run()
		if g.e.Stats().Zygotes == 2 {
			break
		}
	}
	if n := g.e.Stats().Zygotes; n != 2 {
		t.Errorf("%d zygotes", n)
	}
}

// A guest says Stopped and goes on running. It must not get away with it when
// it matters: at a flush, when another address space runs, and when secrets
// would be shown.
func TestHostileLies(t *testing.T) {
	for _, moment := range []string{"flush", "switch", "calls"} {
		t.Run(moment, func(t *testing.T) {
			g := newGuest(t, touch, Config{})
			g.alive()
			// mov [Ready], 1; mov [Reason], 0; mov [State], 1; jmp self
			c := g.e.zygote.prog.Base + stub.ControlOff
			g.poke(codeVA+0x100, cat(
				[]byte{0xc7, 0x83}, imm32(0x68), imm32(1),
				[]byte{0xc7, 0x83}, imm32(0x18), imm32(stub.ReasonSignal),
				[]byte{0xc7, 0x03}, imm32(stub.Stopped),
				[]byte{0xeb, 0xfe}))
			g.alive() // so that the last true stop was a system call
			g.st.RIP, g.st.GPR[x86.RBX] = codeVA+0x100, c
			p := g.e.cur.p
			var x Exit
			kickAfter(g.e, 100*time.Millisecond) // in case that the lie is not believed
			if x = g.e.Run(); x.Kind == ExitKick {
				t.Fatal("the lie was not believed: the test tests nothing")
			}
			switch old := g.st.CR3; moment {
			case "flush":
				g.e.Flush(Flush{Kind: FlushPage, Addr: dataVA})
			case "switch":
				code := g.gpa(codeVA)
				g.newTables()
				g.mapPage(codeVA, code, pteUser)
				g.st.RIP, g.st.GPR[x86.RBX] = codeVA, dataVA
				g.want(ExitException)
				g.st.CR3 = old
			case "calls":
				if err := p.munmap(dataVA, 4096); err != nil {
					t.Fatal(err)
				}
			}
			if moment != "calls" && unix.Kill(p.pid, 0) == nil {
				t.Error("the liar lives")
			}
			x = g.want(ExitDied)
			if !strings.Contains(x.Err.Error(), "stops were true") {
				t.Errorf("error %v", x.Err)
			}
			if moment != "switch" { // there, one more stub is right
				g.alive()
			}
		})
	}
}
