package insn

import (
	"encoding/hex"
	"strings"
	"testing"

	"ring3/internal/x86"
)

func unhexString(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		mode Mode
		code string
		want string // "#UD" for ErrInvalid
	}{
		// Sizes.
		{Mode64, "89 e5", "mov ebp, esp"},
		{Mode64, "48 89 e5", "mov rbp, rsp"},
		{Mode64, "66 89 e5", "mov bp, sp"},
		{Mode64, "66 48 89 e5", "mov rbp, rsp"},
		{Mode16, "89 e5", "mov bp, sp"},
		{Mode16, "66 89 e5", "mov ebp, esp"},
		{Mode64, "88 e5", "mov ch, ah"},
		{Mode64, "40 88 e5", "mov bpl, spl"},
		{Mode64, "41 54", "push r12"},
		{Mode64, "66 54", "push sp"},
		{Mode64, "c8 20 00 01", "enter 0x20, 0x1"},
		{Mode64, "48 98", "cbw"},
		{Mode64, "48 63 c7", "movsxd rax, edi"},
		{Mode32, "63 c7", "arpl di, ax"},
		{Mode32, "48", "dec eax"},
		{Mode64, "48 b8 88 77 66 55 44 33 22 11", "mov rax, 0x1122334455667788"},
		{Mode64, "48 c7 c0 fe ff ff ff", "mov rax, 0xfffffffffffffffe"},
		{Mode64, "66 b8 34 12", "mov ax, 0x1234"},
		{Mode64, "48 83 c0 80", "add rax, 0xffffffffffffff80"},
		// Addresses.
		{Mode64, "64 48 8b 04 25 28 00 00 00", "mov rax, qword ptr fs:[0x28]"},
		{Mode64, "2e 8b 00", "mov eax, dword ptr [rax]"},
		{Mode32, "2e 8b 00", "mov eax, dword ptr cs:[eax]"},
		{Mode64, "8b 05 10 00 00 00", "mov eax, dword ptr [rip+0x10]"},
		{Mode64, "67 8b 05 10 00 00 00", "mov eax, dword ptr [eip+0x10]"},
		{Mode32, "8b 05 10 00 00 00", "mov eax, dword ptr [0x10]"},
		{Mode64, "43 8b 44 a5 f8", "mov eax, dword ptr [r13+r12*4-0x8]"},
		{Mode16, "8b 46 fe", "mov ax, word ptr [bp-0x2]"},
		{Mode16, "8b 0e 34 12", "mov cx, word ptr [0x1234]"},
		{Mode16, "67 8b 04 24", "mov ax, word ptr [esp]"},
		{Mode64, "a1 11 22 33 44 55 66 77 88", "mov eax, dword ptr [0x8877665544332211]"},
		{Mode64, "67 a1 11 22 33 84", "mov eax, dword ptr [0x84332211]"},
		{Mode32, "65 a0 11 22 33 84", "mov al, byte ptr gs:[0x84332211]"},
		// Strings.
		{Mode64, "f3 48 a5", "rep movs qword ptr es:[rdi], qword ptr ds:[rsi]"},
		{Mode64, "67 f2 ae", "repne scas al, byte ptr es:[edi]"},
		{Mode16, "26 ac", "lods al, byte ptr es:[si]"},
		{Mode32, "f3 6f", "rep outs dx, dword ptr ds:[esi]"},
		// Branches.
		{Mode64, "e8 fb ff ff ff", "call 0x1000"},
		{Mode64, "66 e8 fb ff ff ff", "call 0x1001"}, // 66 is ignored
		{Mode32, "66 e8 fb ff", "call 0xfff"},
		{Mode16, "eb fe", "jmp 0x1000"},
		{Mode64, "0f 8f 00 01 00 00", "jg 0x1106"},
		{Mode64, "67 e3 00", "jcxz 0x1003"},
		{Mode32, "9a 78 56 34 12 bc 9a", "callf 0x9abc, 0x12345678"},
		{Mode16, "ea 34 12 00 f0", "jmpf 0xf000, 0x1234"},
		{Mode64, "9a 78 56 34 12 bc 9a", "#UD"},
		{Mode64, "48 ff 2b", "jmpf tbyte ptr [rbx]"},
		{Mode64, "ff e0", "jmp rax"},
		{Mode64, "f2 ff e0", "repne jmp rax"},
		// Prefixes.
		{Mode64, "90", "nop"},
		{Mode64, "66 90", "nop"},
		{Mode64, "f3 90", "pause"},
		{Mode64, "41 90", "xchg r8d, eax"},
		{Mode64, "48 66 90", "nop"}, // the REX is ignored
		{Mode64, "48 41 90", "xchg r8d, eax"},
		{Mode64, "f0 01 03", "lock add dword ptr [rbx], eax"},
		{Mode64, "f0 01 c3", "#UD"},
		{Mode64, "f0 03 03", "#UD"},
		{Mode64, "f0 39 03", "#UD"},
		{Mode64, "f0 87 03", "lock xchg dword ptr [rbx], eax"},
		{Mode64, "f0 0f ba 23 01", "#UD"},
		{Mode64, "f0 0f ba 2b 01", "lock bts dword ptr [rbx], 0x1"},
		{Mode64, "f0 48 0f c7 0e", "lock cmpxchg16b xmmword ptr [rsi]"},
		// Mandatory prefixes: F2 and F3 before 66, the last of F2 and F3.
		{Mode64, "66 f2 0f 58 c1", "addsd xmm0, xmm1"},
		{Mode64, "f2 66 0f 58 c1", "addsd xmm0, xmm1"},
		{Mode64, "f2 f3 0f 58 c1", "addss xmm0, xmm1"},
		{Mode64, "66 f3 0f b8 c1", "popcnt ax, cx"},
		{Mode64, "66 f2 0f 38 f1 c1", "crc32 eax, cx"},
		{Mode64, "f3 0f bc c1", "tzcnt eax, ecx"},
		{Mode64, "f3 0f 1e fa", "endbr64"},
		{Mode64, "f3 0f 1e fc", "rep nop esp, edi"},
		{Mode64, "f3 48 0f 1e c8", "rdssp rax"},
		{Mode64, "0f 1f 44 00 00", "nop dword ptr [rax+rax*1], eax"},
		// System.
		{Mode64, "0f 20 c0", "mov rax, cr0"},
		{Mode64, "44 0f 22 c0", "mov cr8, rax"},
		{Mode64, "0f 20 08", "#UD"}, // CR1
		{Mode64, "0f 20 18", "mov rax, cr3"},
		{Mode32, "0f 20 d8", "mov eax, cr3"},
		{Mode64, "44 0f 23 c0", "#UD"},
		{Mode64, "8e d8", "mov ds, ax"},
		{Mode64, "8e c8", "#UD"},
		{Mode64, "48 8c d8", "mov rax, ds"},
		{Mode64, "8c 18", "mov word ptr [rax], ds"},
		{Mode64, "0f 01 f8", "swapgs"},
		{Mode32, "0f 01 f8", "#UD"},
		{Mode64, "0f 01 c1", "vmcall"},
		{Mode64, "0f 01 d9", "vmmcall"},
		{Mode64, "f3 0f 01 d9", "vmgexit"},
		{Mode64, "0f 01 38", "invlpg [rax]"},
		{Mode64, "48 0f 07", "sysret"},
		{Mode64, "e4 80", "in al, 0x80"},
		{Mode64, "66 ef", "out dx, ax"},
		{Mode64, "06", "#UD"},
		{Mode64, "27", "#UD"},
		{Mode64, "82 c0 00", "#UD"},
		{Mode32, "82 c0 00", "add al, 0x0"},
		{Mode64, "0f 0b", "ud2"},
		{Mode64, "0f 04", "#UD"},
		{Mode64, "f3 0f c7 f8", "rdpid rax"},
		{Mode64, "0f c7 f8", "rdseed eax"},
		// LES, LDS, BOUND, POP or VEX, EVEX, XOP.
		{Mode32, "c4 00", "les eax, fword ptr [eax]"},
		{Mode64, "c4 00 00 00 00", "#UD"},
		{Mode32, "c5 f8 77", "vzeroupper"},
		{Mode32, "62 00", "bound eax, qword ptr [eax]"},
		{Mode64, "8f 00", "pop qword ptr [rax]"},
		{Mode64, "8f e9 78 e1 c1", "vphsubbw xmm0, xmm1"},
		// Vectors.
		{Mode64, "c5 fc 58 01", "vaddps ymm0, ymm0, ymmword ptr [rcx]"},
		{Mode64, "66 c5 fc 58 01", "#UD"},
		{Mode64, "f0 c5 fc 58 01", "#UD"},
		{Mode64, "48 c5 fc 58 01", "#UD"},
		{Mode64, "c4 e2 f9 92 04 88", "#UD"}, // mask and destination are the same
		{Mode64, "c4 e2 e9 92 04 88", "vgatherdpd xmm0, qword ptr [rax+xmm1*4], xmm2"},
		{Mode64, "c4 e3 79 4a c1 20", "vblendvps xmm0, xmm0, xmm1, xmm2"},
		{Mode64, "c4 e2 78 f2 c1", "andn eax, eax, ecx"},
		{Mode32, "c4 e2 f8 f2 c1", "andn eax, eax, ecx"}, // W without meaning
		{Mode32, "c4 e1 f9 6e c1", "vmovd xmm0, ecx"},
		{Mode64, "c4 e1 f9 6e c1", "vmovq xmm0, rcx"},
		{Mode64, "62 f1 7c 48 58 40 01", "vaddps zmm0, zmm0, zmmword ptr [rax+0x40]"},
		{Mode64, "62 f1 7c 58 58 40 01", "vaddps zmm0, zmm0, dword ptr [rax+0x4]{bcst}"},
		{Mode64, "62 f1 7c 78 58 c1", "vaddps zmm0, zmm0, zmm1"}, // {rz-sae}
		{Mode64, "62 f1 7c ca 58 c1", "vaddps zmm0{k2}{z}, zmm0, zmm1"},
		{Mode64, "62 f1 7c c8 58 c1", "#UD"}, // {z} without mask
		{Mode64, "62 f1 7c 68 58 c1", "#UD"}, // L'L = 3
		{Mode64, "c5 fb 93 c1", "kmovd eax, k1"},
		{Mode64, "c4 e2 7b 4b 04 08", "tileloadd tmm0, [rax+rcx*1]"},
		{Mode64, "c4 e2 7b 4b 00", "#UD"},
		{Mode64, "0f 0f c1 9e", "pfadd mm0, mm1"},
		{Mode64, "c4 e2 73 5e d0", "tdpbssd tmm2, tmm0, tmm1"},
		{Mode64, "c4 e2 73 5e d1", "#UD"}, // twice the same tile
		{Mode64, "66 0f 78 c1 02 03", "extrq xmm1, 0x2, 0x3"},
		{Mode64, "c4 e3 79 48 c1 21", "vpermil2ps xmm0, xmm0, xmm1, xmm2"},
		{Mode64, "62 f6 7e 48 d6 ca", "vfmulcph zmm1, zmm0, zmm2"},
		{Mode64, "62 f6 7e 48 d6 c2", "#UD"}, // destination is a source
		{Mode64, "d8 c1", "fadd st(0), st(1)"},
		{Mode64, "9b", "fwait"},
	} {
		var in Inst
		code := unhexString(t, c.code)
		err := Decode(code, c.mode, &in)
		got := "#UD"
		switch {
		case err == nil:
			got = Format(&in, 0x1000)
			if int(in.Len) != len(code) {
				t.Errorf("mode %d, %s: length %d", c.mode, c.code, in.Len)
			}
		case err != ErrInvalid:
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("mode %d, %s: %s, want %s", c.mode, c.code, got, c.want)
		}
	}
}

// TestFields checks what Format does not show.
func TestFields(t *testing.T) {
	var in Inst
	if err := Decode(unhexString(t, "66 65 48 81 84 51 78 56 34 12 04 03 02 01"), Mode64, &in); err != nil {
		t.Fatal(err)
	}
	if in.NumPrefix != 2 || in.OpcodeOff != 2 || in.Rex != 0x48 || in.ModRMOff != 4 || in.ModRM != 0x84 || in.SIB != 0x51 ||
		in.DispOff != 6 || in.DispLen != 4 || in.ImmOff != 10 || in.ImmLen != 4 {
		t.Errorf("layout: %+v", in)
	}
	if in.Mem != (Mem{Base: 1, Index: 2, Scale: 2, Seg: x86.GS, Disp: 0x12345678}) || in.Imm != 0x01020304 || !in.SegOverride {
		t.Errorf("operands: %+v", in)
	}
	for _, c := range []struct {
		code string
		seg  uint8
	}{{"8b 45 00", x86.SS}, {"41 8b 45 00", x86.DS}, {"8b 04 24", x86.SS}, {"36 8b 00", x86.DS}, {"a4", x86.DS}, {"64 26 a4", x86.FS}} {
		if err := Decode(unhexString(t, c.code), Mode64, &in); err != nil || in.Mem.Seg != c.seg {
			t.Errorf("%s: segment %d, %v", c.code, in.Mem.Seg, err)
		}
	}
	for _, c := range []struct {
		code   string
		opsize uint8
	}{{"50", 64}, {"66 50", 16}, {"c3", 64}, {"66 c3", 64}, {"cf", 32}, {"48 cf", 64}, {"cb", 32}, {"66 0f 6e c0", 32}, {"c9", 64}, {"9d", 64}} {
		if err := Decode(unhexString(t, c.code), Mode64, &in); err != nil || in.OpSize != c.opsize {
			t.Errorf("%s: operand size %d, %v", c.code, in.OpSize, err)
		}
	}
}

// TestConditionOrder relies on the order that others compute with.
func TestConditionOrder(t *testing.T) {
	for cc := range uint8(16) {
		for _, c := range []struct {
			code []byte
			base Op
		}{
			{[]byte{0x70 + cc, 0}, OpJO}, {[]byte{0x0f, 0x80 + cc, 0, 0, 0, 0}, OpJO},
			{[]byte{0x0f, 0x90 + cc, 0xc0}, OpSETO}, {[]byte{0x0f, 0x40 + cc, 0xc0}, OpCMOVO},
		} {
			var in Inst
			if err := Decode(c.code, Mode64, &in); err != nil || in.Op != c.base+Op(cc) {
				t.Errorf("% x: %s, %v", c.code, in.Op, err)
			}
		}
	}
}

func TestEncodingRecords(t *testing.T) {
	for _, c := range []struct {
		code  string
		class Class
		group Group
		read  uint32
		write uint32
		undef uint32
	}{
		{"01 c0", Innocuous, GroupInt, 0, x86.FlagOF | x86.FlagSF | x86.FlagZF | x86.FlagAF | x86.FlagPF | x86.FlagCF, 0},
		{"11 c0", Innocuous, GroupInt, x86.FlagCF, x86.FlagOF | x86.FlagSF | x86.FlagZF | x86.FlagAF | x86.FlagPF | x86.FlagCF, 0},
		{"31 c0", Innocuous, GroupInt, 0, x86.FlagOF | x86.FlagSF | x86.FlagZF | x86.FlagPF | x86.FlagCF, x86.FlagAF},
		{"ff c0", Innocuous, GroupInt, 0, x86.FlagOF | x86.FlagSF | x86.FlagZF | x86.FlagAF | x86.FlagPF, 0},
		{"7e 00", Branch, GroupInt, x86.FlagZF | x86.FlagSF | x86.FlagOF, 0, 0},
		{"0f a2", Sensitive, GroupSystem, 0, 0, 0},
		{"f4", Privileged, GroupSystem, 0, 0, 0},
		{"0f 0b", Undefined, GroupInt, 0, 0, 0},
		{"a4", Innocuous, GroupString, x86.FlagDF, 0, 0},
		{"0f ae 20", Innocuous, GroupXSave, 0, 0, 0},
		{"d9 c0", Innocuous, GroupX87, 0, 0, 0},
	} {
		var in Inst
		if err := Decode(unhexString(t, c.code), Mode64, &in); err != nil {
			t.Errorf("%s: %v", c.code, err)
			continue
		}
		e := in.Enc
		if e.Class != c.class || e.Group != c.group || e.FlagsRead != c.read || e.FlagsWritten != c.write || e.FlagsUndef != c.undef {
			t.Errorf("%s: %s: %d %d %#x %#x %#x", c.code, e.Form, e.Class, e.Group, e.FlagsRead, e.FlagsWritten, e.FlagsUndef)
		}
	}
}
