package diskboot

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// entry is one choice of a boot menu. Files are named from the root of the volume.
type entry struct {
	kernel string
	initrd string // "" for none
	args   string
}

// root is the value of the last root= among the arguments, "" for none.
func (e *entry) root() (v string) {
	for _, a := range strings.Fields(e.args) {
		if r, ok := strings.CutPrefix(a, "root="); ok {
			v = r
		}
	}
	return v
}

// dirs are where the files of /boot are: in a directory of the root file system, or
// in a file system of their own.
var dirs = []string{"/boot", "/"}

// entry chooses what the volume boots, or returns errNoKernel.
func (v *volume) entry() (entry, error) {
	for _, choose := range []func(dir string) (entry, error){v.grub, v.loader, v.newest} {
		for _, dir := range dirs {
			e, err := choose(dir)
			if err == nil && v.fs.Exists(e.kernel) && (e.initrd == "" || v.fs.Exists(e.initrd)) {
				return e, nil
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoKernel) {
				return entry{}, err
			}
		}
	}
	return entry{}, errNoKernel
}

// grub reads GRUB's menu.
func (v *volume) grub(dir string) (entry, error) {
	b, err := v.fs.ReadFile(path.Join(dir, "grub/grub.cfg"), maxConfig)
	if err != nil {
		return entry{}, err
	}
	e, ok := parseGrub(string(b))
	if !ok {
		return entry{}, errNoKernel
	}
	return e, nil
}

// loader reads the entries of the Boot Loader Specification.
func (v *volume) loader(dir string) (entry, error) {
	dir = path.Join(dir, "loader/entries")
	names, err := v.fs.ReadDir(dir)
	if err != nil {
		return entry{}, err
	}
	newestFirst(names)
	for _, name := range names {
		if !strings.HasSuffix(name, ".conf") {
			continue
		}
		b, err := v.fs.ReadFile(path.Join(dir, name), maxConfig)
		if err != nil {
			return entry{}, err
		}
		if e, ok := parseLoader(string(b)); ok {
			return e, nil
		}
	}
	return entry{}, errNoKernel
}

// initrds are the names that distributions give the initial RAM disk of the kernel
// vmlinuz-VERSION.
var initrds = []func(version string) string{
	func(v string) string { return "initrd.img-" + v },
	func(v string) string { return "initramfs-" + v + ".img" },
	func(v string) string { return "initrd-" + v },
}

// newest takes the kernel with the highest version.
func (v *volume) newest(dir string) (entry, error) {
	names, err := v.fs.ReadDir(dir)
	if err != nil {
		return entry{}, err
	}
	newestFirst(names)
	for _, name := range names {
		version, ok := strings.CutPrefix(name, "vmlinuz-")
		if !ok {
			continue
		}
		e := entry{kernel: path.Join(dir, name)}
		for _, initrd := range initrds {
			if n := initrd(version); slices.Contains(names, n) {
				e.initrd = path.Join(dir, n)
				break
			}
		}
		return e, nil
	}
	return entry{}, errNoKernel
}

// newestFirst sorts names with versions in them.
func newestFirst(names []string) {
	slices.SortFunc(names, func(a, b string) int { return compareVersions(b, a) })
}

// compareVersions orders names so that numbers in them count as such: 6.9 is before
// 6.10. A release is after its candidates (6.1~rc1, 6.1-rc1).
func compareVersions(a, b string) int {
	for a != "" || b != "" {
		ta, tb := token(&a), token(&b)
		if ta == tb {
			continue
		}
		na, nb := isNumber(ta), isNumber(tb)
		switch {
		case na && nb:
			ta, tb = strings.TrimLeft(ta, "0"), strings.TrimLeft(tb, "0")
			if c := len(ta) - len(tb); c != 0 {
				return c
			}
			if c := strings.Compare(ta, tb); c != 0 {
				return c
			}
		case isCandidate(ta) != isCandidate(tb):
			if isCandidate(ta) {
				return -1
			}
			return 1
		case na != nb:
			if na {
				return 1
			}
			return -1
		default:
			return strings.Compare(ta, tb)
		}
	}
	return 0
}

// token cuts a number, or what is between numbers, off the front of s.
func token(s *string) string {
	n := 0
	for n < len(*s) && isNumber((*s)[n:n+1]) == isNumber((*s)[:1]) {
		n++
	}
	t := (*s)[:n]
	*s = (*s)[n:]
	return t
}

func isNumber(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }

func isCandidate(s string) bool { return strings.HasPrefix(s, "~") || strings.HasPrefix(s, "-rc") }
