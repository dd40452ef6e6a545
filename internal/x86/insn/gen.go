package insn

//go:generate go run ring3/tool/insngen
