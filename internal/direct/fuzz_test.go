package direct

import (
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"ring3/internal/x86"
)

// Random bytes as guest code, in both modes, with random registers that often
// point to mapped memory or into the stub. RING3_FUZZ_TIME makes it longer,
// RING3_FUZZ_SEED repeats a run.
func TestRandomCode(t *testing.T) {
	d := 2 * time.Second
	if v, err := time.ParseDuration(os.Getenv("RING3_FUZZ_TIME")); err == nil {
		d = v
	}
	defer func(d time.Duration) { nap = d }(nap)
	nap = 2 * time.Millisecond
	g := newGuest(t, touch, Config{})
	const code = 0x500000
	for i := range uint64(4) {
		g.mapPage(code+i*4096, g.page(nil), pteRW)
	}
	g.alive()
	ticker(t, g.e, time.Millisecond)
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("RING3_FUZZ_SEED"), 10, 64); err == nil {
		seed = v
	}
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	var exits [6]int
	died := map[string]int{}
	rounds := 0
	for start := time.Now(); time.Since(start) < d; rounds++ {
		g.randomRegs(r)
		for range 4 {
			g.st.GPR[r.IntN(16)] = dataVA + uint64(r.IntN(4096))
		}
		b := make([]byte, 256)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(2) == 0 { // opcode maps that random bytes seldom reach
			b[0] = []byte{0x0f, 0xc5, 0xc4, 0xf3, 0x66, 0xdb, 0x8f, 0x62}[r.IntN(8)]
		}
		off := uint64(r.IntN(4*4096 - len(b)))
		for i, v := range b {
			g.poke(code+off+uint64(i), []byte{v})
		}
		if r.IntN(3) == 0 {
			g.mode32()
			g.st.GPR[x86.RSP] &= 0xffffffff
		} else {
			g.mode64()
		}
		g.st.RIP = code + off
		g.st.RFLAGS = x86.FlagFixed | x86.FlagIF | r.Uint64()&(x86.FlagsArith|x86.FlagTF|x86.FlagDF|x86.FlagNT|x86.FlagAC|x86.FlagID)
		x := g.attack(3)
		exits[x.Kind]++
		if x.Kind == ExitDied {
			why := regexp.MustCompile("0x[0-9a-f]+").ReplaceAllString(x.Err.Error(), "#")
			died[why]++
		}
		if rounds%16 == 0 {
			g.alive()
		}
	}
	g.alive()
	for why, n := range died {
		t.Logf("%4d died: %s", n, why)
	}
	t.Logf("%d rounds, exits by kind %v; %d deaths, %d unscanned pages", rounds, exits, g.e.stats.Deaths, g.e.stats.WXUnscanned)
}
