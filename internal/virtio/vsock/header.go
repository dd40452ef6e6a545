package vsock

import (
	"encoding/binary"

	"ring3/internal/virtio"
)

// headerSize is the size of struct virtio_vsock_hdr (section 5.10.6), bytes:
// source and destination CID u64, source and destination port u32, length u32,
// type u16, operation u16, flags u32, buf_alloc u32, fwd_cnt u32.
const headerSize = 44

// typeStream is the one type of socket that is offered.
const typeStream = 1

// Operations (section 5.10.6).
const (
	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5 // VIRTIO_VSOCK_OP_RW
	opCreditUpdate  = 6
	opCreditRequest = 7
)

// Flags of opShutdown: the sender will not receive, or not send, any more.
const (
	shutdownReceive = 1 << 0
	shutdownSend    = 1 << 1
)

// header begins each packet.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	size             uint32 // of the data behind it, bytes
	kind, op         uint16
	flags            uint32
	bufAlloc         uint32 // the sender's room for data, bytes
	fwdCnt           uint32 // bytes that it has taken out of there, free-running
}

// readHeader reads the header of a packet, once.
func readHeader(b virtio.Buffers) (h header) {
	var p [headerSize]byte
	b.Read(p[:])
	le := binary.LittleEndian
	return header{
		srcCID: le.Uint64(p[0:]), dstCID: le.Uint64(p[8:]),
		srcPort: le.Uint32(p[16:]), dstPort: le.Uint32(p[20:]),
		size: le.Uint32(p[24:]), kind: le.Uint16(p[28:]), op: le.Uint16(p[30:]),
		flags: le.Uint32(p[32:]), bufAlloc: le.Uint32(p[36:]), fwdCnt: le.Uint32(p[40:]),
	}
}

// bytes is the header as it goes to the driver.
func (h *header) bytes() []byte {
	le := binary.LittleEndian
	p := make([]byte, 0, headerSize)
	p = le.AppendUint64(p, h.srcCID)
	p = le.AppendUint64(p, h.dstCID)
	for _, v := range []uint32{h.srcPort, h.dstPort, h.size} {
		p = le.AppendUint32(p, v)
	}
	p = le.AppendUint16(p, h.kind)
	p = le.AppendUint16(p, h.op)
	for _, v := range []uint32{h.flags, h.bufAlloc, h.fwdCnt} {
		p = le.AppendUint32(p, v)
	}
	return p
}
