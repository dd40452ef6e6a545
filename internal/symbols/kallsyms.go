package symbols

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// errNoTable is for kernels without CONFIG_KALLSYMS, or with another layout.
var errNoTable = errors.New("the kernel carries no table of symbols that can be read")

// FromKernel finds the table behind /proc/kallsyms in an unpacked kernel. Its
// parts have no symbols themselves, but a fixed order, each aligned to 8 bytes
// (scripts/kallsyms.c of Linux 4.20 to 6.3, relative addresses):
//
//	offsets        one int32 per symbol
//	relative_base  uint64
//	num_syms       uint32
//	names          per symbol a length and as many indices of tokens
//	markers        uint32 offsets in names of every 256th symbol
//	seqs_of_names  3 bytes per symbol; not in older kernels
//	token_table    256 strings that end in NUL
//	token_index    uint16 offsets in it
func FromKernel(image []byte) (*Table, error) {
	// The digits occur in names, so that they are their own tokens.
	digits := []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
	for at := 0; ; at++ {
		i := bytes.Index(image[at:], digits)
		if i < 0 {
			return nil, errNoTable
		}
		at += i
		if k, ok := findTokens(image, at); ok && k.findNames() {
			return k.symbols()
		}
	}
}

// kallsyms is a kernel's table. Places are offsets in the image.
type kallsyms struct {
	image  []byte
	tokens [256][]byte
	start  int // of token_table
	names  int
	first  int // of the markers
	n      int // symbols
}

func (k *kallsyms) u32(at int) uint32 { return binary.LittleEndian.Uint32(k.image[at:]) }

// findTokens reads the tokens, the one of '0' being at digits.
func findTokens(image []byte, digits int) (k *kallsyms, ok bool) {
	end := digits
	for range 256 - '0' {
		i := bytes.IndexByte(image[end:min(end+512, len(image))], 0)
		if i < 0 {
			return nil, false
		}
		end += i + 1
	}
	end = (end + 7) &^ 7
	if end+512 > len(image) {
		return nil, false
	}
	k = &kallsyms{image: image}
	offset := func(i int) int { return int(binary.LittleEndian.Uint16(image[end+2*i:])) }
	if k.start = digits - offset('0'); k.start < 8 {
		return nil, false
	}
	for i := range k.tokens {
		at := k.start + offset(i)
		n := 0
		if at < end {
			n = bytes.IndexByte(image[at:end], 0)
		}
		if at >= end || n < 0 || i > 0 && at != k.start+offset(i-1)+len(k.tokens[i-1])+1 {
			return nil, false
		}
		k.tokens[i] = image[at : at+n]
	}
	return k, true
}

const (
	perMarker  = 256
	maxName    = 1 << 11 // bytes in names
	maxSymbols = 1 << 20
)

// findNames looks for markers and names in front of the tokens, for each number
// of symbols that there may be.
func (k *kallsyms) findNames() bool {
	for k.n = 1; k.n <= maxSymbols; k.n++ {
		for _, seqs := range []int{0, (3*k.n + 7) &^ 7} {
			if k.first = k.start - seqs - (4*k.markers()+7)&^7; k.first >= 16 && k.rising() && k.namesBelow() {
				return true
			}
		}
	}
	return false
}

// markers is how many there are.
func (k *kallsyms) markers() int { return (k.n + perMarker - 1) / perMarker }

// rising reports whether the markers do, from 0 on.
func (k *kallsyms) rising() bool {
	for i := range k.markers() {
		if m := k.u32(k.first + 4*i); i == 0 && m != 0 || i > 0 && m <= k.u32(k.first+4*i-4) {
			return false
		}
	}
	return true
}

// namesBelow looks for names that fit the markers. Their length is known but
// for those behind the last marker, and their number is in front of them.
func (k *kallsyms) namesBelow() bool {
	high := k.first - int(k.u32(k.first+4*k.markers()-4))
	for k.names = high &^ 7; k.names >= 16 && high-k.names < perMarker*maxName; k.names -= 8 {
		if int(k.u32(k.names-8)) == k.n && k.u32(k.names-4) == 0 && k.walk(nil) {
			return true
		}
	}
	return false
}

// walk calls fn, unless nil, with the expanded name of each symbol, and reports
// whether the names are as the markers say.
func (k *kallsyms) walk(fn func(i int, name []byte)) bool {
	var name []byte
	at := k.names
	for i := range k.n {
		if i%perMarker == 0 && at-k.names != int(k.u32(k.first+i/perMarker*4)) || at+2 > k.first {
			return false
		}
		n := int(k.image[at])
		if at++; n&0x80 != 0 {
			n = n&0x7f | int(k.image[at])<<7
			at++
		}
		if n == 0 || n > maxName || at+n > k.first {
			return false
		}
		if fn != nil {
			name = name[:0]
			for _, t := range k.image[at : at+n] {
				name = append(name, k.tokens[t]...)
			}
			fn(i, name)
		}
		at += n
	}
	return true
}

// symbols reads all of them.
func (k *kallsyms) symbols() (*Table, error) {
	offsets := k.names - 16 - (4*k.n+7)&^7
	if offsets < 0 {
		return nil, errNoTable
	}
	base := binary.LittleEndian.Uint64(k.image[k.names-16:])
	if base>>63 == 0 {
		return nil, errNoTable
	}
	syms := make([]Symbol, 0, k.n)
	k.walk(func(i int, name []byte) {
		// Per-CPU variables have offsets that are not negative, which are
		// their values (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
		addr := uint64(int64(int32(k.u32(offsets + 4*i))))
		if int64(addr) < 0 {
			addr = base - 1 - addr
		}
		if len(name) > 1 {
			syms = append(syms, Symbol{addr, name[0], string(name[1:])})
		}
	})
	if len(syms) == 0 {
		return nil, errNoTable
	}
	return New(syms), nil
}
