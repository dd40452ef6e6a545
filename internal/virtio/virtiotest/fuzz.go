package virtiotest

// Play is a driver that does what a fuzzer wants: memory goes over the
// descriptors and the rings of queue 0, and each four bytes of ops are an
// access of the device.
func Play(d *Driver, ops, memory []byte) {
	half := len(memory) / 2
	d.write(rings, memory[:min(half, 0x1000)])
	d.write(rings+0x1000, memory[half:min(len(memory), half+0x1000)])
	for ; len(ops) >= 4; ops = ops[4:] {
		size := 1 << (ops[0] & 3)
		v := uint64(ops[2]) | uint64(ops[3])<<8
		switch at := uint64(ops[1]); ops[0] >> 4 & 7 {
		case 0:
			d.Set(at, size, v)
		case 1:
			d.Get(at, size)
		case 2:
			d.WriteAt(at<<8|v&0xff, size, v)
		case 3:
			d.ReadAt(at<<8|v&0xff, size)
		case 4:
			d.SetAvail(0, d.queue[0].avail+uint16(ops[1]))
			d.Notify(int(v & 1))
		case 5:
			d.SetConfig(at&^3, min(size, 4), v|v<<16)
		case 6:
			d.Desc(0, uint16(ops[1]&15), buffers+v, uint32(ops[2]), uint16(ops[3]), uint16(ops[0]&15))
			d.Offer(0, uint16(ops[1]&15))
			d.Notify(0)
		case 7:
			d.ISR()
		}
	}
	d.restore()
}
