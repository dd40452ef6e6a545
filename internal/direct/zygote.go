package direct

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/host"
)

// zygote is the stub process that all others are forked from. It never runs
// guest code: it is the only one whose memory sees the secret of clone.
type zygote struct {
	p       *proc
	prog    *stub.Program
	secrets stub.Secrets
}

// spawner runs functions on one OS thread that lives until close: the parent
// thread of all stubs, whose end would kill them (PR_SET_PDEATHSIG).
type spawner struct{ work chan func() }

func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for f := range s.work {
			f()
		}
	}()
	return s
}

func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { f(); close(done) }
	<-done
}

func (s *spawner) close() { close(s.work) }

// random fills v, the kernel's generator cannot fail.
func random(v any) {
	if err := binary.Read(rand.Reader, binary.LittleEndian, v); err != nil {
		panic("BUG: " + err.Error())
	}
}

// pickBase chooses where the stub area lies: anywhere in a part of the
// address space that neither Linux's layout of programs nor the sanitizers'
// fixed shadow maps use.
//
// The stub of kernel code has its area below 2 GiB, where no folded address
// lies and where translations reach it with absolute addresses.
func (e *Engine) pickBase() uint64 {
	var r uint64
	random(&r)
	if e.cfg.kernel {
		return 0x1000_0000 + r%0x2000_0000&^0x1fffff
	}
	const low, high = 0x2000_0000_0000, 0x3800_0000_0000
	return low + r%(high-low)&^0x1fffff
}

// startZygote makes the first stub process.
func (e *Engine) startZygote() error {
	z := &zygote{}
	random(&z.secrets)
	var err error
	if z.prog, err = stub.Build(e.pickBase(), e.xmask, uint32(e.xsize), bt.Delta, bt.Lowest); err != nil {
		return err
	}
	image, err := stub.Image(z.prog, &z.secrets, os.Getpid(), len(e.slots.proofs), e.cpuidTrap, e.mem.Size(), e.mem.AnnexAt(e.cfg.CPU), e.code.answers)
	if err != nil {
		return err
	}
	clear(e.slots.slot(zygoteSlot))
	e.slots.proof(zygoteSlot)
	z.p = e.newProc(z, zygoteSlot)
	e.spawner.do(func() {
		z.p.pid, err = host.Spawn(image, append([]int{e.mem.FD(), e.slots.fd, e.code.fd, e.listens}, e.slots.proofs...))
	})
	if err != nil {
		return err
	}
	e.stats.Zygotes++
	e.zygote = z
	if err := z.p.wait(false); err != nil {
		z.p.kill()
		e.zygote = nil
		return fmt.Errorf("starting the first stub: %w", err)
	}
	// Start-up list, stack, vdso and whatever else the kernel mapped go.
	z.p.munmap(0, z.prog.Base)
	top := z.prog.Base + stub.Extent
	z.p.munmap(top, userTop-top)
	if err := z.p.execute(); err != nil {
		z.p.kill()
		e.zygote = nil
		return fmt.Errorf("clearing the first stub: %w", err)
	}
	return nil
}

func (e *Engine) newProc(z *zygote, slot int) *proc {
	base := z.prog.Base
	p := &proc{e: e, z: z, base: base, index: slot, slot: e.slots.slot(slot)}
	p.ctl = control(p.slot)
	p.fpuAddr, p.sp = base+stub.XSaveOff, base+stub.AreaSize-64
	return p
}

// fork makes a new stub process. The child is the monitor's (CLONE_PARENT),
// so that the monitor can collect it.
func (e *Engine) fork() (*proc, error) {
	if e.zygote == nil {
		if err := e.startZygote(); err != nil {
			return nil, err
		}
	}
	z := e.zygote
	i, ok := e.slots.take()
	if !ok {
		return nil, errors.New("BUG: no stub slot is free")
	}
	p := e.newProc(z, i)
	s := &z.secrets
	ctl := p.base + stub.ControlOff
	list := callList(z.p.slot)
	list[0] = stub.Call{Nr: unix.SYS_CLONE, Args: [6]uint64{unix.CLONE_PARENT, 0, 0, 0, s.Clone[0], s.Clone[1]}}
	list[1] = stub.Call{Nr: unix.SYS_PRCTL, Args: [6]uint64{unix.PR_SET_PDEATHSIG, uint64(unix.SIGKILL), 0, 0, s.Args[0], s.Args[1]}}
	list[2] = stub.Call{Nr: unix.SYS_GETPPID, Args: [6]uint64{0, 0, 0, 0, s.Args[0], s.Args[1]}, Result: uint64(os.Getpid())}
	// Of the eventfds it keeps its own.
	list[3] = stub.Call{Nr: unix.SYS_DUP2, Args: [6]uint64{uint64(stub.FDProof + i), stub.FDProof, 0, 0, s.Args[0], s.Args[1]}, Result: stub.FDProof}
	list[4] = stub.Call{Nr: unix.SYS_CLOSE_RANGE, Args: [6]uint64{stub.FDProof + 1, 0xffffffff, 0, 0, s.Args[0], s.Args[1]}}
	list[5] = stub.Call{Nr: unix.SYS_MMAP, Args: [6]uint64{ctl, stub.SlotSize,
		unix.PROT_READ | unix.PROT_WRITE | uint64(s.Mmap[0])<<32,
		unix.MAP_SHARED | unix.MAP_FIXED | uint64(s.Mmap[1])<<32,
		stub.FDControl | uint64(s.Mmap[2])<<32, uint64(i * stub.SlotSize)}, Result: ctl}
	err := z.p.command(stub.CmdFork)
	if err == nil {
		err = z.p.wait(false)
	}
	if err != nil {
		e.slots.give(i)
		z.p.kill()
		e.zygote = nil
		return nil, fmt.Errorf("forking a stub: %w", err)
	}
	p.pid = int(int64(list[0].Result))
	if p.pid <= 0 {
		clear(list[:stub.ForkCalls])
		e.slots.give(i)
		return nil, fmt.Errorf("forking a stub: %w", unix.Errno(-p.pid))
	}
	err = p.wait(false)
	clear(list[:stub.ForkCalls])
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("forking a stub: %w", err)
	}
	e.stats.Forks++
	return p, p.mapSites()
}
