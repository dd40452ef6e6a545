package hostcheck

import (
	"os/exec"

	"ring3/internal/kernelstore"
)

var guestChecks = []check{
	{"guest kernel", guestKernel},
}

// guestKernel: there is one, or there is the means to fetch one.
func guestKernel() Result {
	s, err := kernelstore.Open("")
	if err != nil {
		return fail("set HOME or XDG_CACHE_HOME", "%v", err)
	}
	if k, err := s.Default(); err == nil {
		return ok("%s", k.Name)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fail("ring3 kernel add FILE", "none in %s, and no apt to fetch one with", s.Dir())
	}
	return ok("none yet, ring3 run fetches one with apt")
}
