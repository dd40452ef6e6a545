package direct

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/host"
)

// kicker makes guest code stop: it is one per virtual CPU, shared by the
// engines that hand over to each other.
//
// kick stores pending and then looks for targets; who lets guest code run sets
// the targets and then looks at pending: one of the two sees the other. No
// signal is sent to a stub that executes calls (its registers hold secrets) or
// is gone.
type kicker struct {
	mu      sync.Mutex
	targets [2]int  // pids of the stubs that may be in guest code, 0 none
	kernel  *uint32 // Control.Owner of the second, which is the kernel stub
	pending atomic.Bool
}

func (k *kicker) kick() {
	if k.pending.Swap(true) {
		return // somebody else's kick is under way and covers this one
	}
	k.send(false)
}

// send signals what may be in guest code. A kernel stub that listens is left
// alone: it would only stop when it is next rung, for nothing. If it is rung at
// this moment, the kick waits for the end of the system call, or for the monitor
// to send to all, after a nap.
func (k *kicker) send(all bool) {
	k.mu.Lock()
	for i, pid := range k.targets {
		if pid != 0 && (all || i == 0 || atomic.LoadUint32(k.kernel) != 0) {
			host.Signal(pid, stub.KickSignal)
		}
	}
	k.mu.Unlock()
}

// take reports, and forgets, that somebody has kicked.
func (k *kicker) take() bool { return k.pending.Swap(false) }

// aim says which stub kicks go to, 0 for none.
func (k *kicker) aim(pid int) {
	k.mu.Lock()
	k.targets = [2]int{pid, 0}
	k.mu.Unlock()
}

// aimBoth has them go to a user stub and the kernel stub.
func (k *kicker) aimBoth(user, kernel *proc) {
	k.mu.Lock()
	k.targets, k.kernel = [2]int{user.pid, kernel.pid}, &kernel.ctl.Owner
	k.mu.Unlock()
}

// reap collects a process if it has ended; its number may then be reused.
func (k *kicker) reap(pid int) (ended bool, st unix.WaitStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ended, st = host.Reap(pid); ended {
		for i := range k.targets {
			if k.targets[i] == pid {
				k.targets[i] = 0
			}
		}
	}
	return ended, st
}
