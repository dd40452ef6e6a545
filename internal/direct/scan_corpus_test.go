package direct

import (
	"debug/elf"
	"os"
	"testing"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// TestScanCorpus judges every candidate in the text of real programs twice:
// with the scanner as if the page had been entered at its very end (all by
// vote), and by decoding the section from its start, which is right nearly
// everywhere. RING3_SCAN_CORPUS names the files.
func TestScanCorpus(t *testing.T) {
	files := os.Getenv("RING3_SCAN_CORPUS")
	if files == "" {
		files = "/proc/self/exe"
	}
	for _, name := range splitList(files) {
		f, err := elf.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, sec := range f.Sections {
			if sec.Flags&elf.SHF_EXECINSTR == 0 || sec.Type != elf.SHT_PROGBITS || sec.Size < 4096 {
				continue
			}
			data, err := sec.Data()
			if err != nil {
				t.Fatal(err)
			}
			// Truth: the starts of sensitive instructions, resynchronizing
			// byte by byte where nothing decodes.
			truth := map[int]bool{}
			whole := codeBytes{b: data, mode: insn.Mode64}
			var in insn.Inst
			for i := 0; i < len(data); {
				if insn.Decode(data[i:min(len(data), i+15)], insn.Mode64, &in) != nil {
					i++
					continue
				}
				if whole.sensitive(&in) {
					truth[i] = true
				}
				i += int(in.Len)
			}
			pages, withCand, cands, right, wrongYes, wrongNo := 0, 0, 0, 0, 0, 0
			for off := 0; off+4096 <= len(data); off += 4096 {
				pages++
				c := codeBytes{b: data[off:min(len(data), off+4096+14)], mode: insn.Mode64}
				list := c.candidates(nil)
				if len(list) > 0 {
					withCand++
				}
				for _, i := range list {
					cands++
					s, ok := c.vote(int(i), data[max(0, off-voteSpan):off])
					trueStart := -1
					for k := int(i); k > int(i)-4; k-- {
						if truth[off+k] && insn.Decode(data[off+k:min(len(data), off+k+15)], insn.Mode64, &in) == nil && k+int(in.Len) > int(i) {
							trueStart = k
						}
					}
					switch {
					case ok && s == trueStart, !ok && trueStart < 0:
						right++
					case ok:
						wrongYes++
						t.Logf("%s %s+%#x: patched, but no instruction: % x", name, sec.Name, off+s, data[off+s:min(len(data), off+s+8)])
					default:
						wrongNo++
						t.Logf("%s %s+%#x: missed: % x", name, sec.Name, off+trueStart, data[off+trueStart:off+trueStart+4])
					}
				}
			}
			t.Logf("%s %s: %d pages, %d with candidates, %d candidates, %d sensitive; right %d, wrong yes %d, wrong no %d",
				name, sec.Name, pages, withCand, cands, len(truth), right, wrongYes, wrongNo)
			if wrongYes*1000 > cands {
				t.Errorf("%s %s: %d of %d candidates wrongly patched", name, sec.Name, wrongYes, cands)
			}
		}
	}
	_ = x86.PageSize
}

func splitList(s string) []string {
	var out []string
	for len(s) > 0 {
		i := 0
		for i < len(s) && s[i] != ':' {
			i++
		}
		out = append(out, s[:i])
		s = s[min(i+1, len(s)):]
	}
	return out
}
