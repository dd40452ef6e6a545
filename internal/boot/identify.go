package boot

import (
	"bytes"
	"errors"
	"io"
)

// Info is what a kernel file tells about itself.
type Info struct {
	Kind    string // "bzImage" or "vmlinux"
	Version string // as uname -r and -v print it, with the builder; "" if unknown
}

// Release returns the first word of the version, uname -r.
func (i Info) Release() string {
	s, _, _ := bytes.Cut([]byte(i.Version), []byte{' '})
	return string(s)
}

const banner = "Linux version "

// Identify tells whether f is a kernel that Load could take, from its headers
// alone, and which. If it is none, the error is an *InputError.
func Identify(f File) (Info, error) {
	b, err := parseBzImage(f)
	if err == nil {
		return Info{"bzImage", b.kernel}, nil
	}
	if !errors.Is(err, errNotBzImage) {
		return Info{}, err
	}
	head := make([]byte, elfPrefix)
	n, err := readAtMost(f, head, 0)
	if err != nil {
		return Info{}, inputErr(f.Name, err, "cannot read")
	}
	// More memory than any machine has: size is Load's business.
	if _, err := parseELF(head[:n], LowMax); err != nil {
		return Info{}, kernelErr(f, err)
	}
	return Info{"vmlinux", findBanner(f)}, nil
}

// findBanner searches an unpacked kernel for its banner and returns what
// follows "Linux version ", or "".
func findBanner(f File) string {
	const keep = 512
	buf := make([]byte, 0, 1<<20)
	r := io.NewSectionReader(f.Data, 0, min(f.Size, MaxUnpacked))
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for b := buf; ; {
			i := bytes.Index(b, []byte(banner))
			if i < 0 || err == nil && len(b)-i < keep {
				break
			}
			b = b[i+len(banner):]
			// The format string of /proc/version comes along as well.
			if line, _, ok := bytes.Cut(b, []byte{'\n'}); ok && len(line) < keep && !bytes.HasPrefix(line, []byte("%")) {
				return printable(line)
			}
		}
		if err != nil {
			return ""
		}
		if k := len(buf) - keep; k > 0 {
			buf = buf[:copy(buf[:cap(buf)], buf[k:])]
		}
	}
}
