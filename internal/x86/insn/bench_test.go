package insn

import (
	"debug/elf"
	"testing"
)

// BenchmarkDecode decodes the text of the test binary; one operation is one
// instruction.
func BenchmarkDecode(b *testing.B) {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		b.Skip(err)
	}
	defer f.Close()
	text, err := f.Section(".text").Data()
	if err != nil {
		b.Fatal(err)
	}
	var in Inst
	pos := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := Decode(text[pos:], Mode64, &in); err != nil {
			pos++
		} else {
			pos += int(in.Len)
		}
		if pos >= len(text)-MaxLen {
			pos = 0
		}
	}
}
