package diskboot

import (
	"strconv"
	"strings"
)

// parseGrub reads the default entry of a grub.cfg, whose language is a shell's. What
// can be read without executing it is what grub-mkconfig writes: the number of the
// entry in a line "set default=", entries in "menuentry" and "submenu" blocks, whose
// lines "linux" and "initrd" name files. It returns false for everything else.
func parseGrub(cfg string) (e entry, ok bool) {
	want, at, depth := 0, -1, 0
	for line := range strings.Lines(cfg) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch words[0] {
		case "set":
			if v, found := strings.CutPrefix(words[len(words)-1], "default="); found && depth == 0 {
				if want, ok = grubDefault(v); !ok {
					return entry{}, false
				}
			}
		case "menuentry", "submenu":
			if depth == 0 {
				at++
			}
			if at == want && words[0] == "submenu" {
				return entry{}, false
			}
		case "linux", "linux16", "linuxefi":
			if at == want && e.kernel == "" && len(words) > 1 {
				e.kernel, e.args = words[1], strings.Join(words[2:], " ")
			}
		case "initrd", "initrd16", "initrdefi":
			if at == want && len(words) != 2 {
				return entry{}, false // several, which are loaded one after the other
			} else if at == want {
				e.initrd = words[1]
			}
		case "}":
			if depth--; depth == 0 && at == want {
				return e, e.plain()
			}
		}
		if words[len(words)-1] == "{" {
			depth++
		}
	}
	return entry{}, false
}

// grubDefault is the number of the entry that "set default=v" chooses. A variable is
// what was chosen at an earlier boot: without one it is the first. Other entries are
// named.
func grubDefault(v string) (n int, ok bool) {
	v = strings.Trim(v, `"'`)
	if strings.HasPrefix(v, "$") {
		return 0, true
	}
	n, err := strconv.Atoi(v)
	return n, err == nil && n >= 0
}

// plain reports whether the entry means what it says, without quotes and variables.
func (e *entry) plain() bool {
	return e.kernel != "" && !strings.ContainsAny(e.kernel+e.initrd+e.args, "$\"'\\")
}

// parseLoader reads an entry of the Boot Loader Specification (type 1): lines of a
// key and a value.
func parseLoader(conf string) (e entry, ok bool) {
	var args []string
	for line := range strings.Lines(conf) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch value = strings.TrimSpace(value); key {
		case "linux":
			e.kernel = value
		case "initrd":
			if e.initrd != "" {
				return entry{}, false // several are one after the other
			}
			e.initrd = value
		case "options":
			args = append(args, value)
		}
	}
	e.args = strings.Join(args, " ")
	return e, e.plain()
}
