package vcpu

import (
	"errors"
	"fmt"

	"ring3/internal/direct"
	"ring3/internal/interp"
)

// vectorRun is how many instructions are interpreted at one that uses extended
// state: kernel code that does comes in long stretches.
const vectorRun = 200

// runTranslated runs kernel code translated where that is possible, and
// interprets a block where it is not, until the guest returns to user mode or
// something must be looked at.
func (v *VCPU) runTranslated() error {
	defer v.kernel.Rest()
	if v.verify != nil {
		defer v.verify.k.Rest()
	}
	for {
		n := 1 // a budget of one instruction is one block
		compared := false
		if v.kernel.Fits() {
			v.kernel.Waits = v.cpu.WantWindow
			run := v.kernel.Run
			if compared = v.verify != nil && v.verify.due(); compared {
				run = v.verify.run
			}
			x, err := run()
			switch x {
			case direct.KernelVector:
				n = vectorRun
			case direct.KernelKick:
				return nil
			case direct.KernelUser:
				v.resumed()
				if e, left := v.kernel.UserExit(); left {
					v.left(e)
					return v.userLeft(e)
				}
				return nil
			case direct.KernelDied:
				// What it had in its registers is lost, and with it the guest.
				if d, ok := errors.AsType[*Difference](err); ok {
					return d
				}
				return fmt.Errorf("the stub that runs the guest kernel: %w", err)
			}
		}
		if v.timed {
			v.c.kernelSteps[v.cpu.OpAt()]++
		}
		if compared && n == 1 {
			// What follows that instruction is to be compared.
			if e := v.cpu.Step(); e != interp.ExitBudget {
				return interpreted(e)
			}
			n = 0
		}
		if e := v.cpu.Run(n); e != interp.ExitBudget {
			return interpreted(e)
		}
	}
}
