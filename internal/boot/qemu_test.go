//go:build qemu

// Memory as Load leaves it, run by an emulator from the entry state of
// Entry.Apply, to try package boot apart from ring3:
//
//	go test -tags qemu -run QEMU ./internal/boot

package boot_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"ring3/internal/boot"
	"ring3/internal/initramfs"
	"ring3/internal/initramfs/guestjob"
	"ring3/internal/kernelstore"
)

// fileRAM is guest memory in two sparse files: what is below the video memory
// and what is above the firmware, which the emulator would overwrite too.
type fileRAM struct {
	low, high *os.File
	size      uint64
}

func newFileRAM(t *testing.T, dir string, size uint64) fileRAM {
	m := fileRAM{size: size}
	for name, f := range map[string]**os.File{"low": &m.low, "high": &m.high} {
		var err error
		if *f, err = os.Create(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*f).Close() })
	}
	return m
}

func (m fileRAM) Size() uint64 { return m.size }

func (m fileRAM) WriteAt(p []byte, gpa uint64) error {
	f := m.low
	if gpa >= boot.HighMemAddr {
		f, gpa = m.high, gpa-boot.HighMemAddr
	}
	_, err := f.WriteAt(p, int64(gpa))
	return err
}

// bios is firmware that does nothing but enter 64-bit mode with the tables of
// package boot and jump to the kernel at rip.
func bios(rip uint64) []byte {
	const org = 0xff00 // in the image, which ends at 4 GiB
	b := make([]byte, 0x10000)
	c := b[:org]
	put := func(p ...byte) { c = append(c, p...) }
	imm := func(v uint32) { c = binary.LittleEndian.AppendUint32(c, v) }
	put(0xfa)                                  // cli
	put(0x2e, 0x66, 0x0f, 0x01, 0x16)          // lgdtl %cs:gdtr
	put(0x58, 0xff)                            //
	put(0x0f, 0x20, 0xe0)                      // mov %cr4, %eax
	put(0x66, 0x83, 0xc8, 0x20)                // or $PAE, %eax
	put(0x0f, 0x22, 0xe0)                      // mov %eax, %cr4
	put(0x66, 0xb8)                            // mov $PageTableAddr, %eax
	imm(boot.PageTableAddr)                    //
	put(0x0f, 0x22, 0xd8)                      // mov %eax, %cr3
	put(0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0)    // mov $EFER, %ecx
	put(0x0f, 0x32)                            // rdmsr
	put(0x66, 0x0d, 0x00, 0x01, 0x00, 0x00)    // or $LME, %eax
	put(0x0f, 0x30)                            // wrmsr
	put(0x66, 0xb8, 0x33, 0x00, 0x00, 0x80)    // mov $PG|NE|ET|MP|PE, %eax
	put(0x0f, 0x22, 0xc0)                      // mov %eax, %cr0
	put(0x66, 0xea)                            // ljmp $0x10, $long
	imm(0xffff0000 + org + 0x3c)               //
	put(0x10, 0x00)                            //
	put(0xb8, 0x18, 0x00, 0x00, 0x00)          // long: mov $0x18, %eax
	put(0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0)    // mov %eax, %ds; %es; %ss
	put(0xbc)                                  // mov $StackTop, %esp
	imm(boot.StackTop)                         //
	put(0xbe)                                  // mov $ZeroPageAddr, %esi
	imm(boot.ZeroPageAddr)                     //
	put(0xb8)                                  // mov $rip, %eax
	imm(uint32(rip))                           //
	put(0xff, 0xe0)                            // jmp *%rax
	put(boot.GDTSize-1, 0)                     // gdtr:
	imm(boot.GDTAddr)                          //
	copy(b[0xfff0:], []byte{0xe9, 0x0d, 0xff}) // reset vector: jmp start
	return b
}

func TestQEMUBoot(t *testing.T) {
	for _, flavour := range kernelstore.Flavours() {
		t.Run(flavour, func(t *testing.T) { bootStock(t, flavour) })
	}
}

func bootStock(t *testing.T, flavour string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := kernelstore.Open("")
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.Ensure(ctx, flavour, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	bb, err := s.FetchBusyBox(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := initramfs.Build(ctx, initramfs.Options{BusyBox: bb,
		Job: &initramfs.Job{Args: []string{"sh", "-c", "uname -r; exit 3"}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mem := newFileRAM(t, dir, 256<<20)
	kf, c, err := boot.OpenFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e, err := boot.Load(mem, boot.Config{Kernel: kf, Cache: s.Cache(), Seed: bytes.Repeat([]byte{7}, 32),
		Initrd:  boot.File{Name: "initramfs", Data: bytes.NewReader(initrd), Size: int64(len(initrd))},
		Cmdline: "console=ttyS0 earlyprintk=ttyS0 mitigations=off cryptomgr.notests no_timer_check panic=-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bios"), bios(e.RIP), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-display", "none", "-no-reboot", "-m", "256", "-nodefaults", "-bios", filepath.Join(dir, "bios"),
		"-device", "loader,addr=0,force-raw=on,file=" + mem.low.Name(),
		"-device", fmt.Sprintf("loader,addr=%#x,force-raw=on,file=%s", boot.HighMemAddr, mem.high.Name())}
	host := guestjob.New(guestjob.Config{})
	var out [3]bytes.Buffer
	var ls [4]net.Listener
	for i := range ls {
		path := filepath.Join(dir, fmt.Sprint("port", i))
		if ls[i], err = net.Listen("unix", path); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-chardev", fmt.Sprintf("socket,id=p%d,path=%s", i, path),
			"-device", fmt.Sprintf("isa-serial,chardev=p%d,index=%d", i, i))
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	for i, w := range []io.Writer{&out[0], &out[1], &out[2], host} {
		conn, err := ls[i].Accept()
		if err != nil {
			t.Fatal(err)
		}
		ls[i].Close()
		go func() { io.Copy(w, conn); done <- struct{}{} }()
	}
	// There are no ACPI tables and so no way to switch off.
	select {
	case <-host.Exited():
	case <-ctx.Done():
	}
	cmd.Process.Kill()
	cmd.Wait()
	for range ls {
		<-done
	}
	if st, ok := host.Status(); !ok || st != 3 || out[1].String() != k.Release+"\n" {
		t.Errorf("status %d (%v), stdout %q\n%s", st, ok, out[1].String(), out[0].String())
	}
	t.Logf("%+v\n%s", e, out[0].String())
}
