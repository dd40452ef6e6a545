package pit

// Access modes, bits 4-5 of the control word (data sheet, figure 7); 0 is the
// latch command.
const (
	accessLow  = 1
	accessHigh = 2
	accessBoth = 3 // low byte first
)

// counter is one of the three. Times are in ticks of Hz.
type counter struct {
	mode   uint8 // 0 to 5
	access uint8
	bcd    bool
	gate   bool

	loaded  bool   // a count has been written since the control word
	reload  uint64 // 1 to 0x10000, or 10000 in BCD
	running bool
	start   uint64 // when it was loaded, if running
	elapsed uint64 // since then, if not

	low       uint8 // first byte of a count
	writeHigh bool  // the next byte written is the high one
	readHigh  bool

	latch       uint16
	latched     int // bytes of latch still to be read
	status      uint8
	statusReady bool
}

func (c *counter) periodic() bool { return c.mode == 2 || c.mode == 3 }

// triggered reports the modes that start at a rising gate, not at a count.
func (c *counter) triggered() bool { return c.mode == 1 || c.mode == 5 }

// control takes a control word for this counter.
func (c *counter) control(v uint8, now uint64) {
	access := v >> 4 & 3
	if access == 0 {
		c.latchCount(now)
		return
	}
	mode := v >> 1 & 7
	if mode > 5 {
		mode &= 3 // 6 and 7 are 2 and 3
	}
	*c = counter{mode: mode, access: access, bcd: v&1 != 0, gate: c.gate}
}

// write takes a byte of a count.
func (c *counter) write(v uint8, now uint64) {
	switch c.access {
	case accessLow:
		c.load(uint16(v), now)
	case accessHigh:
		c.load(uint16(v)<<8, now)
	default:
		if !c.writeHigh {
			c.low, c.writeHigh = v, true
			if c.mode == 0 { // the first byte stops it
				c.stop(now)
				c.loaded = false
			}
			return
		}
		c.writeHigh = false
		c.load(uint16(c.low)|uint16(v)<<8, now)
	}
}

func (c *counter) load(v uint16, now uint64) {
	n := uint64(v)
	if c.bcd {
		n = n>>12*1000 + n>>8&0xf*100 + n>>4&0xf*10 + n&0xf
	}
	if n == 0 {
		n = c.modulus()
	}
	c.reload, c.loaded = n, true
	if c.triggered() {
		return
	}
	c.elapsed, c.start, c.running = 0, now, c.gate
}

// modulus is what a count of 0 stands for.
func (c *counter) modulus() uint64 {
	if c.bcd {
		return 10000
	}
	return 0x10000
}

// time is how long the counter has counted.
func (c *counter) time(now uint64) uint64 {
	if c.running {
		return now - min(now, c.start)
	}
	return c.elapsed
}

func (c *counter) stop(now uint64) {
	c.elapsed = c.time(now)
	c.running = false
}

// setGate changes the gate input (data sheet, figure 22).
func (c *counter) setGate(gate bool, now uint64) {
	rising := gate && !c.gate
	falling := !gate && c.gate
	c.gate = gate
	if !c.loaded {
		return
	}
	switch {
	case falling && !c.triggered():
		c.stop(now)
	case rising && (c.triggered() || c.periodic()):
		c.elapsed, c.start, c.running = 0, now, true
	case rising: // modes 0 and 4 go on
		c.start, c.running = now-min(now, c.elapsed), true
	}
}

// value is what the counting element shows.
func (c *counter) value(now uint64) uint16 {
	if c.reload == 0 {
		return 0
	}
	t, m := c.time(now), c.modulus()
	var n uint64
	switch c.mode {
	case 2:
		n = c.reload - t%c.reload
	case 3: // by two, twice per period
		n = c.reload - t*2%c.reload
		n &^= 1
	default: // goes on from 0 at the top
		n = (c.reload + m - t%m) % m
	}
	if c.bcd {
		n %= m
		return uint16(n/1000<<12 | n/100%10<<8 | n/10%10<<4 | n%10)
	}
	return uint16(n)
}

// out is the output pin.
func (c *counter) out(now uint64) bool {
	t := c.time(now)
	switch c.mode {
	case 0:
		return c.loaded && t >= c.reload
	case 1:
		return !c.running || t >= c.reload
	case 2:
		return !c.running || t%c.reload != c.reload-1
	case 3:
		return !c.running || t%c.reload < (c.reload+1)/2
	default:
		return !c.running || t != c.reload
	}
}

// nextEdge returns when the output rises next, if it ever does by itself.
func (c *counter) nextEdge(now uint64) (at uint64, ok bool) {
	if !c.running {
		return 0, false
	}
	t := c.time(now)
	switch c.mode {
	case 2, 3:
		return c.start + (t/c.reload+1)*c.reload, true
	case 0, 1:
		return c.start + c.reload, t < c.reload
	default: // low for one tick
		return c.start + c.reload + 1, t <= c.reload
	}
}

func (c *counter) latchCount(now uint64) {
	if c.latched > 0 {
		return // until it has been read
	}
	c.latch, c.latched = c.value(now), 1
	if c.access == accessBoth {
		c.latched, c.readHigh = 2, false
	}
}

// latchStatus: bit 7 output, 6 no count loaded yet, 4-5 access, 1-3 mode, 0
// BCD (data sheet, figure 12).
func (c *counter) latchStatus(now uint64) {
	if c.statusReady {
		return
	}
	v := c.access<<4 | c.mode<<1
	if c.out(now) {
		v |= 1 << 7
	}
	if !c.loaded {
		v |= 1 << 6
	}
	if c.bcd {
		v |= 1
	}
	c.status, c.statusReady = v, true
}

func (c *counter) read(now uint64) uint8 {
	if c.statusReady {
		c.statusReady = false
		return c.status
	}
	v := c.latch
	if c.latched > 0 {
		c.latched--
	} else {
		v = c.value(now)
	}
	high := c.access == accessHigh
	if c.access == accessBoth {
		high = c.readHigh
		c.readHigh = !c.readHigh
	}
	if high {
		return uint8(v >> 8)
	}
	return uint8(v)
}
