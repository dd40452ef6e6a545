package virtio

import "fmt"

// Device status bits (section 2.1).
const (
	featuresOK = 1 << 3
	driverOK   = 1 << 2
	needsReset = 1 << 6
)

// Registers of the common configuration (section 4.1.4.3).
const (
	regDeviceSelect  = 0x00 // u32
	regDeviceFeature = 0x04 // u32
	regDriverSelect  = 0x08 // u32
	regDriverFeature = 0x0c // u32
	regConfigVector  = 0x10 // u16
	regNumQueues     = 0x12 // u16
	regStatus        = 0x14 // u8
	regGeneration    = 0x15 // u8, of the device configuration, which never changes
	regQueueSelect   = 0x16 // u16
	regQueueSize     = 0x18 // u16
	regQueueVector   = 0x1a // u16
	regQueueEnable   = 0x1c // u16
	regQueueNotify   = 0x1e // u16
	regQueueDesc     = 0x20 // u64
	regQueueDriver   = 0x28 // u64, the available ring
	regQueueDevice   = 0x30 // u64, the used ring
	commonSize       = 0x38

	noVector = 0xffff
)

// offered is what the driver may accept.
func (t *PCI) offered() uint64 { return t.info.Features | transportFeatures }

// half is the 32 bits of v that sel selects, as a shift.
func half(v uint64, sel uint32) uint64 {
	if sel > 1 {
		return 0
	}
	return v >> (32 * sel) & 0xffffffff
}

// queue is the queue that is selected, nil if there is none.
func (t *PCI) queue() *queue {
	if int(t.queueSelect) < len(t.queues) {
		return t.queues[t.queueSelect]
	}
	return nil
}

// readCommon reads the register at off. p is zero. t.mu is held.
func (t *PCI) readCommon(off uint64, p []byte) {
	var v uint64
	switch off {
	case regDeviceSelect:
		v = uint64(t.deviceSelect)
	case regDeviceFeature:
		v = half(t.offered(), t.deviceSelect)
	case regDriverSelect:
		v = uint64(t.driverSelect)
	case regDriverFeature:
		v = half(t.features, t.driverSelect)
	case regConfigVector:
		v = uint64(t.configVector)
	case regNumQueues:
		v = uint64(len(t.queues))
	case regStatus:
		v = uint64(t.status)
	case regQueueSelect:
		v = uint64(t.queueSelect)
	default:
		if q := t.queue(); q != nil {
			v = q.register(off, t.queueSelect)
		}
	}
	var b [8]byte
	le.PutUint64(b[:], v)
	copy(p, b[:])
}

// register reads a register of the queue with number n.
func (q *queue) register(off uint64, n uint16) uint64 {
	switch off {
	case regQueueSize:
		return uint64(q.size)
	case regQueueVector:
		return uint64(q.vector)
	case regQueueEnable:
		if q.enabled {
			return 1
		}
	case regQueueNotify:
		return uint64(n)
	}
	if a := q.address(off); a != nil {
		return *a >> (off & 4 * 8)
	}
	return 0
}

// address is the ring whose address has a half in the register at off.
func (q *queue) address(off uint64) *uint64 {
	switch off &^ 4 {
	case regQueueDesc:
		return &q.desc
	case regQueueDriver:
		return &q.driver
	case regQueueDevice:
		return &q.device
	}
	return nil
}

// writeCommon writes the register at off. t.mu is held.
func (t *PCI) writeCommon(off uint64, p []byte) {
	var b [8]byte
	copy(b[:], p)
	v := le.Uint64(b[:])
	switch off {
	case regDeviceSelect:
		t.deviceSelect = uint32(v)
	case regDriverSelect:
		t.driverSelect = uint32(v)
	case regDriverFeature:
		if t.status&featuresOK == 0 && t.driverSelect <= 1 {
			shift := 32 * t.driverSelect
			t.features = t.features&^(0xffffffff<<shift) | v&0xffffffff<<shift
		}
	case regConfigVector:
		t.configVector = t.vector(v)
	case regStatus:
		t.setStatus(uint8(v))
	case regQueueSelect:
		t.queueSelect = uint16(v)
	default:
		if q := t.queue(); q != nil && !t.resetting {
			t.setQueue(q, off, v, len(p))
		}
	}
}

// vector is what a vector register takes: one that the table has, or none.
func (t *PCI) vector(v uint64) uint16 {
	if int(uint16(v)) < t.msix.Vectors() {
		return uint16(v)
	}
	return noVector
}

// setStatus is a write of the device status. Features that were not offered, or
// a driver for the legacy interface, keep FEATURES_OK from being set (section
// 3.1.1).
func (t *PCI) setStatus(v uint8) {
	if t.resetting {
		return
	}
	if v == 0 {
		t.reset()
		return
	}
	if v&featuresOK != 0 && (t.features&^t.offered() != 0 || t.features&featureVersion1 == 0) {
		v &^= featuresOK
	}
	started := v&driverOK != 0 && t.status&driverOK == 0
	t.status |= v &^ needsReset // bits are not cleared but by a reset
	if !started {
		return
	}
	if t.status&featuresOK == 0 {
		t.broken("DRIVER_OK without FEATURES_OK")
		return
	}
	if t.puller != nil {
		t.puller.Start(t, t.features)
	}
	for i := range t.queues {
		t.serve(i)
	}
}

// setQueue writes a register of a queue, size bytes. What describes it cannot
// change once it is enabled.
func (t *PCI) setQueue(q *queue, off, v uint64, size int) {
	switch {
	case off == regQueueVector:
		q.vector = t.vector(v)
	case q.enabled:
	case off == regQueueSize:
		q.size = uint16(v)
	case off == regQueueEnable:
		if v&0xffff == 1 {
			t.enable(q)
		}
	case q.address(off) != nil:
		a := q.address(off)
		switch {
		case off&4 != 0:
			*a = *a&0xffffffff | v<<32
		case size == 8:
			*a = v
		default:
			*a = *a&^0xffffffff | v&0xffffffff
		}
	}
}

func (t *PCI) enable(q *queue) {
	q.eventIdx = t.features&featureEventIdx != 0
	q.indirect = t.features&featureIndirectDesc != 0
	err := fmt.Errorf("size %d is no power of 2 up to %d", q.size, QueueSize)
	if q.size != 0 && q.size&(q.size-1) == 0 && q.size <= QueueSize {
		err = q.start()
	}
	if err != nil {
		t.broken(fmt.Sprintf("queue %d: %v", t.queueSelect, err))
		return
	}
	q.enabled = true
}
