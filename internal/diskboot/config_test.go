package diskboot

import (
	"slices"
	"testing"
)

// grubCfg has the form of what grub-mkconfig writes on Debian.
const grubCfg = `# generated
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
else
   set default="DEFAULT"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
  fi
}
menuentry 'Debian' --class debian $menuentry_id_option 'simple' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; fi
	search --no-floppy --fs-uuid --set=root 0000
	linux	/boot/vmlinuz-6.1.0-50 root=UUID=0000 ro  console=ttyS0,115200 quiet
	initrd	/boot/initrd.img-6.1.0-50
}
submenu 'Advanced options' $menuentry_id_option 'advanced' {
	menuentry 'Debian, old' {
		linux	/boot/vmlinuz-6.1.0-1 root=UUID=0000 ro
		initrd	/boot/initrd.img-6.1.0-1
	}
}
menuentry 'Other' {
	linux /boot/other
}
menuentry 'Variable' {
	linux /boot/other root=$root
}
menuentry 'Two' {
	linux /boot/other
	initrd /boot/microcode /boot/initrd
}
`

func TestGrub(t *testing.T) {
	first := entry{"/boot/vmlinuz-6.1.0-50", "/boot/initrd.img-6.1.0-50", "root=UUID=0000 ro console=ttyS0,115200 quiet"}
	for def, want := range map[string]entry{
		"0": first, "${saved_entry}": first, "2": {kernel: "/boot/other"},
		"1": {}, "1>0": {}, "3": {}, "4": {}, "5": {}, "-1": {}, "Debian": {},
	} {
		got, ok := parseGrub(replace(grubCfg, "DEFAULT", def))
		if ok != (want != entry{}) || ok && got != want {
			t.Errorf("default %q: %+v, %v", def, got, ok)
		}
	}
	for _, cfg := range []string{"", "}", "}\n}\nmenuentry {", "menuentry 'x' {\nlinux /a", "blscfg"} {
		if e, ok := parseGrub(cfg); ok {
			t.Errorf("%q is %+v", cfg, e)
		}
	}
}

func TestLoader(t *testing.T) {
	got, ok := parseLoader("title Fedora\nversion 6.9\nlinux /vmlinuz-6.9\ninitrd /initramfs-6.9.img\noptions root=UUID=1 ro\noptions quiet\n")
	if want := (entry{"/vmlinuz-6.9", "/initramfs-6.9.img", "root=UUID=1 ro quiet"}); !ok || got != want {
		t.Errorf("%+v, %v", got, ok)
	}
	for _, conf := range []string{"", "linux", "efi /a.efi", "linux /a\noptions $kernelopts", "linux /a\ninitrd /b\ninitrd /c"} {
		if e, ok := parseLoader(conf); ok {
			t.Errorf("%q is %+v", conf, e)
		}
	}
}

func TestNewestFirst(t *testing.T) {
	want := []string{"vmlinuz-6.10.0", "vmlinuz-6.9.1", "vmlinuz-6.9.0-12-amd64", "vmlinuz-6.9.0-2-amd64", "vmlinuz-6.9", "vmlinuz-6.9-rc7", "vmlinuz-6.9-rc2"}
	got := slices.Clone(want)
	slices.Sort(got)
	newestFirst(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// FuzzConfig reads any configuration, and sorts any names.
func FuzzConfig(f *testing.F) {
	f.Add(grubCfg)
	f.Add("linux /vmlinuz\noptions root=/dev/vda")
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (entry, bool){parseGrub, parseLoader} {
			if e, ok := parse(s); ok && e.kernel == "" {
				t.Errorf("an entry without a kernel: %+v", e)
			}
		}
		h := len(s) / 2
		if a, b := compareVersions(s[:h], s[h:]), compareVersions(s[h:], s[:h]); a < 0 && b <= 0 || a > 0 && b >= 0 || a == 0 && b != 0 {
			t.Errorf("%q and %q compare as %d and %d", s[:h], s[h:], a, b)
		}
	})
}
