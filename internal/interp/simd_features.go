package interp

import "ring3/internal/x86/insn"

// hasFeature reports whether the virtual CPU announces a feature by CPUID. The
// host CPU raises #UD for what it lacks itself, but it does not know what the
// virtual CPU hides.
func (c *CPU) hasFeature(f insn.Feature) bool {
	switch c.simd.features[f] {
	case 1:
		return true
	case -1:
		return false
	}
	has := true
	if f, ok := featureBits[f.String()]; ok {
		eax, ebx, ecx, edx := c.Env.CPUID(f.Leaf, f.Sub)
		has = [4]uint32{eax, ebx, ecx, edx}[f.Reg]>>f.Bit&1 != 0
	}
	c.simd.features[f] = -1
	if has {
		c.simd.features[f] = 1
	}
	return has
}

// featureBit is a bit that CPUID reports in register Reg.
type featureBit struct {
	Leaf, Sub uint32
	Reg, Bit  uint8
}

const (
	regEAX = iota
	regEBX
	regECX
	regEDX
)

// featureBits are the CPUID bits of the features that #UD depends on
// (SDM vol. 2A, CPUID; APM vol. 3, appendix E). Not among them are features
// without which the encoding means something else, such as LZCNT.
var featureBits = map[string]featureBit{
	"CX8":        {Leaf: 1, Reg: regEDX, Bit: 8},
	"CLFSH":      {Leaf: 1, Reg: regEDX, Bit: 19},
	"FXSR":       {Leaf: 1, Reg: regEDX, Bit: 24},
	"MONITOR":    {Leaf: 1, Reg: regECX, Bit: 3},
	"CX16":       {Leaf: 1, Reg: regECX, Bit: 13},
	"MOVBE":      {Leaf: 1, Reg: regECX, Bit: 22},
	"POPCNT":     {Leaf: 1, Reg: regECX, Bit: 23},
	"XSAVE":      {Leaf: 1, Reg: regECX, Bit: 26},
	"RDRAND":     {Leaf: 1, Reg: regECX, Bit: 30},
	"FSGSBASE":   {Leaf: 7, Reg: regEBX, Bit: 0},
	"BMI1":       {Leaf: 7, Reg: regEBX, Bit: 3},
	"BMI2":       {Leaf: 7, Reg: regEBX, Bit: 8},
	"INVPCID":    {Leaf: 7, Reg: regEBX, Bit: 10},
	"RDSEED":     {Leaf: 7, Reg: regEBX, Bit: 18},
	"ADX":        {Leaf: 7, Reg: regEBX, Bit: 19},
	"SMAP":       {Leaf: 7, Reg: regEBX, Bit: 20},
	"CLFLUSHOPT": {Leaf: 7, Reg: regEBX, Bit: 23},
	"CLWB":       {Leaf: 7, Reg: regEBX, Bit: 24},
	"PKU":        {Leaf: 7, Reg: regECX, Bit: 3},
	"RDPID":      {Leaf: 7, Reg: regECX, Bit: 22},
	"MOVDIRI":    {Leaf: 7, Reg: regECX, Bit: 27},
	"MOVDIR64B":  {Leaf: 7, Reg: regECX, Bit: 28},
	"SERIALIZE":  {Leaf: 7, Reg: regEDX, Bit: 14},
	"RAO_INT":    {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 3},
	"XSAVEOPT":   {Leaf: 0xd, Sub: 1, Reg: regEAX, Bit: 0},
	"XSAVEC":     {Leaf: 0xd, Sub: 1, Reg: regEAX, Bit: 1},
	"XSAVES":     {Leaf: 0xd, Sub: 1, Reg: regEAX, Bit: 3},
	"RDTSCP":     {Leaf: 0x80000001, Reg: regEDX, Bit: 27},
	"TBM":        {Leaf: 0x80000001, Reg: regECX, Bit: 21},
	"CLZERO":     {Leaf: 0x80000008, Reg: regEBX, Bit: 0},
	"CMPCCXADD":  {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 7},

	"X87":          {Leaf: 1, Reg: regEDX, Bit: 0},
	"CMOV":         {Leaf: 1, Reg: regEDX, Bit: 15},
	"MMX":          {Leaf: 1, Reg: regEDX, Bit: 23},
	"SSE":          {Leaf: 1, Reg: regEDX, Bit: 25},
	"SSE2":         {Leaf: 1, Reg: regEDX, Bit: 26},
	"SSE3":         {Leaf: 1, Reg: regECX, Bit: 0},
	"PCLMULQDQ":    {Leaf: 1, Reg: regECX, Bit: 1},
	"SSSE3":        {Leaf: 1, Reg: regECX, Bit: 9},
	"FMA":          {Leaf: 1, Reg: regECX, Bit: 12},
	"SSE41":        {Leaf: 1, Reg: regECX, Bit: 19},
	"SSE42":        {Leaf: 1, Reg: regECX, Bit: 20},
	"AES":          {Leaf: 1, Reg: regECX, Bit: 25},
	"AVX":          {Leaf: 1, Reg: regECX, Bit: 28},
	"F16C":         {Leaf: 1, Reg: regECX, Bit: 29},
	"AVX2":         {Leaf: 7, Reg: regEBX, Bit: 5},
	"AVX512F":      {Leaf: 7, Reg: regEBX, Bit: 16},
	"AVX512DQ":     {Leaf: 7, Reg: regEBX, Bit: 17},
	"AVX512_IFMA":  {Leaf: 7, Reg: regEBX, Bit: 21},
	"AVX512IFMA":   {Leaf: 7, Reg: regEBX, Bit: 21},
	"AVX512PF":     {Leaf: 7, Reg: regEBX, Bit: 26},
	"AVX512ER":     {Leaf: 7, Reg: regEBX, Bit: 27},
	"AVX512CD":     {Leaf: 7, Reg: regEBX, Bit: 28},
	"SHA":          {Leaf: 7, Reg: regEBX, Bit: 29},
	"AVX512BW":     {Leaf: 7, Reg: regEBX, Bit: 30},
	"AVX512_VBMI":  {Leaf: 7, Reg: regECX, Bit: 1},
	"AVX512_VBMI2": {Leaf: 7, Reg: regECX, Bit: 6},
	"GFNI":         {Leaf: 7, Reg: regECX, Bit: 8},
	"VAES":         {Leaf: 7, Reg: regECX, Bit: 9},
	"VPCLMULQDQ":   {Leaf: 7, Reg: regECX, Bit: 10},
	"AVX512_VNNI":  {Leaf: 7, Reg: regECX, Bit: 11},

	"AVX512_BITALG":    {Leaf: 7, Reg: regECX, Bit: 12},
	"AVX512_VPOPCNTDQ": {Leaf: 7, Reg: regECX, Bit: 14},
	"AVX512_4VNNIW":    {Leaf: 7, Reg: regEDX, Bit: 2},
	"AVX512_4FMAPS":    {Leaf: 7, Reg: regEDX, Bit: 3},

	"AVX512_VP2INTERSECT": {Leaf: 7, Reg: regEDX, Bit: 8},

	"AVX512_FP16":    {Leaf: 7, Reg: regEDX, Bit: 23},
	"SHA512":         {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 0},
	"SM3":            {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 1},
	"SM4":            {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 2},
	"AVX_VNNI":       {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 4},
	"AVX512_BF16":    {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 5},
	"AVX_IFMA":       {Leaf: 7, Sub: 1, Reg: regEAX, Bit: 23},
	"AVX_VNNI_INT8":  {Leaf: 7, Sub: 1, Reg: regEDX, Bit: 4},
	"AVX_NE_CONVERT": {Leaf: 7, Sub: 1, Reg: regEDX, Bit: 5},
	"AVX_VNNI_INT16": {Leaf: 7, Sub: 1, Reg: regEDX, Bit: 10},

	"SSE4A":    {Leaf: 0x80000001, Reg: regECX, Bit: 6},
	"XOP":      {Leaf: 0x80000001, Reg: regECX, Bit: 11},
	"FMA4":     {Leaf: 0x80000001, Reg: regECX, Bit: 16},
	"MMXEXT":   {Leaf: 0x80000001, Reg: regEDX, Bit: 22},
	"3DNOWEXT": {Leaf: 0x80000001, Reg: regEDX, Bit: 30},
	"3DNOW":    {Leaf: 0x80000001, Reg: regEDX, Bit: 31},
}
