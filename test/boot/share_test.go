package boot

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ring3/internal/cli"
	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
	"ring3/internal/kmod"
	"ring3/internal/machine"
	"ring3/internal/share"
)

// share has the machine share g's directories, and the userland mount them.
func (g guest) share(t *testing.T, opt *initramfs.Options, k kernelstore.Kernel) (list []machine.Share) {
	t.Helper()
	if len(g.shares) == 0 && g.root == nil {
		return nil
	}
	modules, err := initramfs.ShareModules(k.Modules)
	if err != nil {
		t.Fatal(err)
	}
	opt.Modules = kmod.Join(opt.Modules, modules)
	for i, s := range g.shares {
		tag := fmt.Sprintf("share%d", i)
		list = append(list, machine.Share{Tag: tag, Options: s})
		opt.Mounts = append(opt.Mounts, initramfs.Mount{Tag: tag, Path: "/" + tag, ReadOnly: s.ReadOnly})
	}
	if g.root != nil {
		list = append(list, machine.Share{Tag: "root", Options: share.Options{Path: g.root.Path, ReadOnly: !g.root.Writable}})
		opt.Root = &initramfs.Root{Tag: "root", Writable: g.root.Writable, Dir: t.TempDir(), Modules: k.Modules}
	}
	return list
}

// useShare works in /share0, a share that can be written, and looks at /share1,
// the same directory read-only.
const useShare = `
fail() { echo "FAIL $*"; }
cd /share0 || exit 1
[ "$(cat in/text)" = "from the host" ] || fail read
[ "$(md5sum <in/big)" = "$1  -" ] || fail a big file
[ "$(ls in/many | wc -l)" = 5000 ] || fail $(ls in/many | wc -l) of 5000 entries
ls in/many | sort | md5sum
echo written >out/new && echo more >>out/new || fail write
[ "$(cat out/new)" = "written
more" ] || fail append
mv out/new out/renamed && [ ! -e out/new ] && [ "$(head -n1 out/renamed)" = written ] || fail rename
echo x >out/gone && exec 7<out/gone && rm out/gone && [ ! -e out/gone ] || fail unlink
[ "$(cat <&7)" = x ] || fail a file that is open and has no name
exec 7<&-
ln -s renamed out/symlink && [ "$(readlink out/symlink)" = renamed ] && [ "$(head -n1 out/symlink)" = written ] || fail symlink
ln out/renamed out/hard && [ "$(stat -c %h out/hard)" = 2 ] && [ "$(stat -c %i out/hard)" = "$(stat -c %i out/renamed)" ] || fail link
mkdir -p out/a/b/c && touch out/a/b/c/f && mv out/a out/z && [ -e out/z/b/c/f ] || fail directories
rmdir out/z 2>/dev/null && fail rmdir of what is not empty
rm -r out/z || fail rm -r
(umask 0; touch out/mode; mkdir out/dir) && [ "$(stat -c %a out/mode out/dir)" = "666
777" ] || fail $(stat -c %a out/mode out/dir) umask
chmod 640 out/mode && [ "$(stat -c %a out/mode)" = 640 ] || fail chmod
touch -d @1000000000 out/mode && [ "$(stat -c %Y out/mode)" = 1000000000 ] || fail utimes
dd if=in/big of=out/big bs=300k 2>/dev/null && echo 3 >/proc/sys/vm/drop_caches && cmp in/big out/big || fail copy
truncate -s 1000 out/big && [ "$(stat -c %s out/big)" = 1000 ] || fail truncate
[ "$(stat -c %u:%g in/text out/renamed)" = "0:0
0:0" ] || fail owner
mknod out/null c 1 3 2>/dev/null && fail mknod
in/program || fail exec
mapper out/map || fail mmap
true >/share1/in/text 2>/dev/null && fail wrote to a read-only share
rm /share1/in/text 2>/dev/null && fail removed from a read-only share
[ "$(cat /share1/in/text)" = "from the host" ] || fail read of a read-only share
cat in/escape 2>/dev/null && fail followed a link to the host
[ "$(cat in/hostname)" = ring3 ] || fail a link leads to $(cat in/hostname)
dmesg | grep -iE 'virtio.*fail|needs reset|fuse.*(error|bad)'
echo end
`

// tree makes a directory to be shared.
func tree(t *testing.T) (dir string, big []byte) {
	t.Helper()
	dir = t.TempDir()
	big = make([]byte, 3*mib+12345)
	rand.New(rand.NewSource(1)).Read(big)
	program := compile(t, "sharemap", false)
	errs := []error{
		os.MkdirAll(filepath.Join(dir, "in/many"), 0o755), os.Mkdir(filepath.Join(dir, "out"), 0o755),
		os.WriteFile(filepath.Join(dir, "in/text"), []byte("from the host\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "in/big"), big, 0o644),
		os.WriteFile(filepath.Join(dir, "in/program"), program.Data, 0o755),
		os.WriteFile(filepath.Join(dir, "../secret"), []byte("outside\n"), 0o644),
		os.Symlink(filepath.Join(filepath.Dir(dir), "secret"), filepath.Join(dir, "in/escape")),
		os.Symlink("/proc/sys/kernel/hostname", filepath.Join(dir, "in/hostname")),
	}
	for i := range 5000 {
		errs = append(errs, os.WriteFile(filepath.Join(dir, "in/many", fmt.Sprintf("entry-%d", i)), nil, 0o644))
	}
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, big
}

// TestShares works in shares, with different kernels, and looks at
// what is on the host then.
func TestShares(t *testing.T) {
	for name, g := range map[string]guest{
		"cloud":   {},
		"generic": {flavour: kernelstore.Generic},
	} {
		t.Run(name, func(t *testing.T) {
			dir, big := tree(t)
			g.shares = []share.Options{{Path: dir}, {Path: dir, ReadOnly: true}}
			mapper := compile(t, "sharemap", false)
			mapper.Path = "bin/mapper"
			g.files = []initramfs.File{mapper}
			g.args = []string{"sh", "-c", useShare, "sh", sum(big)}
			o := g.run(t).must(t)
			check(t, o.stdout)
			if !strings.HasSuffix(o.stdout, "end\n") {
				t.Fatalf("the guest says %q %s", o.stdout, o.stderr)
			}
			out := filepath.Join(dir, "out")
			for name, want := range map[string]string{"renamed": "written\nmore\n", "hard": "written\nmore\n",
				"symlink": "written\nmore\n", "big": string(big[:1000]), "map": "mapped by the guest"} {
				if got := content(t, filepath.Join(out, name)); string(bytes.TrimRight(got, "\x00")) != strings.TrimRight(want, "\x00") {
					t.Errorf("%s is %.40q", name, got)
				}
			}
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(out, "mode"), &st); err != nil || st.Mode&0o777 != 0o640 || int(st.Uid) != os.Geteuid() ||
				int(st.Gid) != os.Getegid() || st.Mtim.Sec != 1000000000 {
				t.Errorf("mode is %+v, %v", st, err)
			}
			if to, err := os.Readlink(filepath.Join(out, "symlink")); to != "renamed" {
				t.Errorf("symlink is %q, %v", to, err)
			}
			if _, err := os.Lstat(filepath.Join(out, "gone")); err == nil {
				t.Error("gone is there")
			}
			if s := content(t, filepath.Join(dir, "../secret")); string(s) != "outside\n" {
				t.Errorf("outside is %q", s)
			}
			if s := content(t, filepath.Join(dir, "in/text")); string(s) != "from the host\n" {
				t.Errorf("in/text is %q", s)
			}
		})
	}
}

// TestShareErrors: what the host refuses to the caller, it refuses to root in
// the guest.
func TestShareErrors(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may do anything on the host; make test-user runs this")
	}
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	for _, err := range []error{os.WriteFile(filepath.Join(dir, "unreadable"), []byte("x"), 0), os.Mkdir(closed, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(closed, 0o700)
	o := guest{shares: []share.Options{{Path: dir}, {Path: "/etc"}, {Path: dir, ReadOnly: true}}, args: []string{"sh", "-c", `
		fail() { echo "FAIL $*"; }
		cat /share0/unreadable && fail read
		cat /share2/unreadable && fail read of a read-only share
		ls /share0/closed && fail list
		touch /share0/closed/x && fail create
		touch /share1/x && fail create in /etc
		chown 5 /share0/unreadable && fail chown
		chmod 600 /share0/unreadable && cat /share0/unreadable`}}.run(t)
	check(t, o.stdout)
	if o.stdout != "x" || strings.Count(o.stderr, "ermi") != 6 {
		t.Errorf("stdout %q, stderr %q", o.stdout, o.stderr)
	}
}

// TestRootHost compiles and runs a program in the host's own tree, which stays
// as it is.
func TestRootHost(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no gcc on this host")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "hello.c")
	if err := os.WriteFile(source, []byte("#include <stdio.h>\nint main(void) { puts(\"hello\"); return 7; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	o := guest{root: &cli.Root{Path: "/"}, args: []string{"/bin/sh", "-c",
		`cd "$1" && gcc -o hello hello.c && rm hello.c && echo lost >other && ls && ./hello`, "sh", dir}}.run(t)
	if o.stdout != "hello\nother\nhello\n" || o.status != 7 {
		t.Errorf("status %d, stdout %q, stderr %q", o.status, o.stdout, o.stderr)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		fmt.Fprintln(&b, p, i.Mode(), i.Size(), i.ModTime())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestRootDirectory runs a command in a tree that has nothing but it, below a
// throw-away layer and without.
func TestRootDirectory(t *testing.T) {
	openStore(t)
	bb, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, writable := range []bool{false, true} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), bb, 0o755); err != nil {
			t.Fatal(err)
		}
		o := guest{root: &cli.Root{Path: dir, Writable: writable}, args: []string{"/bin/busybox", "sh", "-c",
			`busybox pwd; busybox echo kept >/file; busybox cat /proc/1/comm; [ -c /dev/null ] && busybox unshare -U busybox true; exit 5`}}.run(t)
		if o.stdout != "/\ninit\n" || o.status != 5 {
			t.Errorf("status %d, stdout %q, stderr %q", o.status, o.stdout, o.stderr)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "file")); (err == nil) != writable || writable && string(b) != "kept\n" {
			t.Errorf("writable %v: %q, %v", writable, b, err)
		}
	}
}
