package acpi

import (
	"encoding/binary"
	"fmt"
)

// AML opcodes (ACPI 6.5, section 20.3).
const (
	opZero    = 0x00
	opOne     = 0x01
	opName    = 0x08
	opByte    = 0x0a
	opWord    = 0x0b
	opDWord   = 0x0c
	opScope   = 0x10
	opBuffer  = 0x11
	opPackage = 0x12
	opExt     = 0x5b
	opDevice  = 0x82 // after opExt
	opRoot    = 0x5c // '\'
)

// cat joins terms.
func cat(terms ...[]byte) []byte {
	var out []byte
	for _, t := range terms {
		out = append(out, t...)
	}
	return out
}

// sized puts the package length before body: of itself and body (section
// 20.2.4). Bits 6-7 of its first byte tell how many more follow; with any, its
// bits 0-3 are the lowest of the length, without, bits 0-5.
func sized(body []byte) []byte {
	if n := len(body) + 1; n < 1<<6 {
		return cat([]byte{byte(n)}, body)
	}
	for extra := 1; extra <= 3; extra++ {
		n := len(body) + 1 + extra
		if n >= 1<<(4+8*extra) {
			continue
		}
		out := []byte{byte(extra<<6 | n&0xf)}
		for i := range extra {
			out = append(out, byte(n>>(4+8*i)))
		}
		return cat(out, body)
	}
	panic("acpi: AML object of 256 MiB")
}

// seg is a name of up to four characters, padded (section 20.2.2).
func seg(name string) []byte {
	if len(name) == 0 || len(name) > 4 {
		panic("acpi: bad AML name " + name)
	}
	return []byte((name + "___")[:4])
}

// integer is a constant (section 20.2.3).
func integer(v uint32) []byte {
	switch {
	case v == 0:
		return []byte{opZero}
	case v == 1:
		return []byte{opOne}
	case v < 1<<8:
		return []byte{opByte, byte(v)}
	case v < 1<<16:
		return binary.LittleEndian.AppendUint16([]byte{opWord}, uint16(v))
	}
	return binary.LittleEndian.AppendUint32([]byte{opDWord}, v)
}

// named is Name(name, value).
func named(name string, value []byte) []byte { return cat([]byte{opName}, seg(name), value) }

// scope is Scope(\name) { ... }.
func scope(name string, terms ...[]byte) []byte {
	return cat([]byte{opScope}, sized(cat([]byte{opRoot}, seg(name), cat(terms...))))
}

// device is Device(name) { ... }.
func device(name string, terms ...[]byte) []byte {
	return cat([]byte{opExt, opDevice}, sized(cat(seg(name), cat(terms...))))
}

// pkg is Package() { ... }.
func pkg(elements ...[]byte) []byte {
	return cat([]byte{opPackage}, sized(cat([]byte{byte(len(elements))}, cat(elements...))))
}

// buffer is Buffer() { ... }.
func buffer(data []byte) []byte {
	return cat([]byte{opBuffer}, sized(cat(integer(uint32(len(data))), data)))
}

// eisaID is EISAID(id), of three letters and four hexadecimal digits: 5 bits
// for each letter, then the digits, big-endian (section 19.3.4).
func eisaID(id string) []byte {
	var digits uint32
	if _, err := fmt.Sscanf(id[3:], "%04X", &digits); err != nil || len(id) != 7 {
		panic("acpi: bad EISA ID " + id)
	}
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16 | digits
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return integer(binary.LittleEndian.Uint32(b[:]))
}

// resources is ResourceTemplate() { ... } (section 6.4): descriptors and an
// end tag without checksum.
func resources(descriptors ...[]byte) []byte {
	return buffer(cat(cat(descriptors...), []byte{0x79, 0}))
}

// io is IO(Decode16, base, base, 1, size) (section 6.4.2.5).
func io(base uint16, size uint8) []byte {
	b := []byte{0x47, 1}
	b = binary.LittleEndian.AppendUint16(b, base)
	b = binary.LittleEndian.AppendUint16(b, base)
	return append(b, 1, size)
}

// irq is IRQNoFlags() { n }: edge-triggered, active high, exclusive
// (section 6.4.2.1).
func irq(n int) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0x22}, 1<<n)
}

// memory is Memory32Fixed(ReadWrite, base, size) (section 6.4.3.4).
func memory(base, size uint32) []byte {
	b := []byte{0x86, 9, 0, 1}
	b = binary.LittleEndian.AppendUint32(b, base)
	return binary.LittleEndian.AppendUint32(b, size)
}

// busNumbers is WordBusNumber of what a bridge produces, first to last, fixed
// (section 6.4.3.5.3).
func busNumbers(first, last uint16) []byte {
	b := []byte{0x88, 13, 0, 2, 0x0c, 0}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// memoryWindow is DWordMemory of what a bridge passes on, fixed, read and
// write, not cacheable (section 6.4.3.5.2).
func memoryWindow(base, size uint32) []byte {
	b := []byte{0x87, 23, 0, 0, 0x0c, 1}
	for _, v := range []uint32{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}
