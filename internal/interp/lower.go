package interp

import "ring3/internal/x86/insn"

// lowerFunc sets the handler of an op and what lowerArgs has not set. An op
// that is left without a handler does nothing and is dropped.
type lowerFunc func(*decoded, *op)

// simple makes a lowerFunc for instructions without variants.
func simple(fn func(*CPU, *op) bool) lowerFunc {
	return func(_ *decoded, o *op) { o.fn = fn }
}

// lowerTable says how each mnemonic is executed. Mnemonics that are missing go
// to lowerNative.
var lowerTable = makeLowerTable()

func makeLowerTable() (t [insn.NumOps]lowerFunc) {
	set := func(f lowerFunc, ops ...insn.Op) {
		for _, o := range ops {
			t[o] = f
		}
	}
	for cc := range insn.Op(16) {
		t[insn.OpJO+cc], t[insn.OpSETO+cc], t[insn.OpCMOVO+cc] = lowerJcc, lowerSET, lowerCMOV
	}
	set(lowerALU, insn.OpADD, insn.OpOR, insn.OpADC, insn.OpSBB, insn.OpAND, insn.OpSUB,
		insn.OpXOR, insn.OpCMP, insn.OpTEST, insn.OpINC, insn.OpDEC, insn.OpNEG)
	set(lowerNot, insn.OpNOT)
	set(lowerADX, insn.OpADCX, insn.OpADOX)
	set(lowerMul, insn.OpMUL, insn.OpIMUL)
	set(lowerDiv, insn.OpDIV, insn.OpIDIV)
	set(lowerMulx, insn.OpMULX)
	set(lowerCBW, insn.OpCBW)
	set(lowerCWD, insn.OpCWD)
	set(lowerShift, insn.OpROL, insn.OpROR, insn.OpRCL, insn.OpRCR, insn.OpSHL, insn.OpSHR, insn.OpSAR)
	set(lowerDoubleShift, insn.OpSHLD, insn.OpSHRD)
	set(lowerShiftX, insn.OpSHLX, insn.OpSHRX, insn.OpSARX, insn.OpRORX)
	set(lowerBT, insn.OpBT, insn.OpBTS, insn.OpBTR, insn.OpBTC)
	set(lowerScan, insn.OpBSF, insn.OpBSR, insn.OpTZCNT, insn.OpLZCNT, insn.OpPOPCNT)
	set(lowerBMI, insn.OpANDN, insn.OpBLSR, insn.OpBLSMSK, insn.OpBLSI, insn.OpBEXTR,
		insn.OpBZHI, insn.OpPEXT, insn.OpPDEP)
	set(lowerBSWAP, insn.OpBSWAP)
	set(lowerMOVBE, insn.OpMOVBE)
	set(lowerCRC32, insn.OpCRC32)
	set(lowerRandom, insn.OpRDRAND, insn.OpRDSEED)
	set(simple(opDAA), insn.OpDAA)
	set(simple(opDAS), insn.OpDAS)
	set(simple(opAAA), insn.OpAAA)
	set(simple(opAAS), insn.OpAAS)
	set(simple(opAAM), insn.OpAAM)
	set(simple(opAAD), insn.OpAAD)
	set(simple(opCLC), insn.OpCLC)
	set(simple(opSTC), insn.OpSTC)
	set(simple(opCMC), insn.OpCMC)
	set(simple(opCLD), insn.OpCLD)
	set(simple(opSTD), insn.OpSTD)
	set(simple(opLAHF), insn.OpLAHF)
	set(simple(opSAHF), insn.OpSAHF)
	set(simple(opSALC), insn.OpSALC)

	set(lowerMOV, insn.OpMOV)
	set(lowerExtend, insn.OpMOVZX, insn.OpMOVSX, insn.OpMOVSXD)
	set(lowerLEA, insn.OpLEA)
	set(lowerXCHG, insn.OpXCHG)
	set(lowerXADD, insn.OpXADD)
	set(lowerCMPXCHG, insn.OpCMPXCHG)
	set(lowerCMPXCHG8B, insn.OpCMPXCHG8B)
	set(lowerCMPXCHG16B, insn.OpCMPXCHG16B)
	set(lowerXLAT, insn.OpXLAT)
	set(lowerStore, insn.OpMOVNTI, insn.OpMOVDIRI)
	set(lowerMOVDIR64B, insn.OpMOVDIR64B)

	set(lowerPUSH, insn.OpPUSH)
	set(lowerPOP, insn.OpPOP)
	set(lowerPUSHA, insn.OpPUSHA)
	set(lowerPOPA, insn.OpPOPA)
	set(lowerPUSHF, insn.OpPUSHF)
	set(lowerPOPF, insn.OpPOPF)
	set(lowerENTER, insn.OpENTER)
	set(lowerLEAVE, insn.OpLEAVE)

	set(lowerJMP, insn.OpJMP)
	set(lowerCALL, insn.OpCALL)
	set(lowerRET, insn.OpRET)
	set(lowerLOOP, insn.OpLOOP, insn.OpLOOPE, insn.OpLOOPNE, insn.OpJCXZ)
	set(lowerBOUND, insn.OpBOUND)
	set(lowerUD, insn.OpUD0, insn.OpUD1, insn.OpUD2)

	set(lowerString, insn.OpMOVS, insn.OpCMPS, insn.OpSTOS, insn.OpLODS, insn.OpSCAS,
		insn.OpINS, insn.OpOUTS)
	set(lowerIO, insn.OpIN, insn.OpOUT)

	set(lowerSystem, insn.OpCALLF, insn.OpJMPF, insn.OpRETF, insn.OpIRET, insn.OpINT,
		insn.OpINT3, insn.OpINT1, insn.OpINTO, insn.OpSYSCALL, insn.OpSYSRET, insn.OpSYSENTER,
		insn.OpSYSEXIT, insn.OpSTI, insn.OpHLT, insn.OpCLTS, insn.OpWBINVD,
		insn.OpWBNOINVD, insn.OpINVD, insn.OpRDMSR, insn.OpWRMSR, insn.OpSWAPGS,
		insn.OpXSETBV, insn.OpMONITOR, insn.OpMWAIT, insn.OpMONITORX, insn.OpMWAITX,
		insn.OpVMCALL, insn.OpVMMCALL)
	set(lowerCLI, insn.OpCLI)
	set(lowerAC, insn.OpCLAC, insn.OpSTAC)
	set(lowerLoadFar, insn.OpLDS, insn.OpLES, insn.OpLSS, insn.OpLFS, insn.OpLGS)
	set(lowerPlain, insn.OpCPUID, insn.OpRDTSC, insn.OpRDTSCP, insn.OpRDPMC, insn.OpRDPID,
		insn.OpXGETBV, insn.OpRDFSBASE, insn.OpRDGSBASE, insn.OpWRFSBASE, insn.OpWRGSBASE)
	set(lowerTableOps, insn.OpLGDT, insn.OpLIDT, insn.OpSGDT, insn.OpSIDT, insn.OpLLDT,
		insn.OpLTR, insn.OpSLDT, insn.OpSTR, insn.OpLMSW, insn.OpSMSW, insn.OpVERR, insn.OpVERW,
		insn.OpINVLPG, insn.OpINVPCID)
	set(lowerSelector, insn.OpLAR, insn.OpLSL)
	set(lowerARPL, insn.OpARPL)

	// PREFETCH, hint NOPs and what is a NOP on a processor without the feature
	// behind it; the decoded blocks need no SERIALIZE.
	set(lowerHint, insn.OpNOP, insn.OpPAUSE, insn.OpENDBR32, insn.OpENDBR64, insn.OpRDSSP,
		insn.OpPREFETCHNTA, insn.OpPREFETCHT0, insn.OpPREFETCHT1, insn.OpPREFETCHT2,
		insn.OpPREFETCHIT0, insn.OpPREFETCHIT1, insn.OpPREFETCH, insn.OpPREFETCHW,
		insn.OpPREFETCHWT1, insn.OpCLDEMOTE, insn.OpLFENCE, insn.OpSFENCE, insn.OpSERIALIZE,
		insn.OpBNDMK, insn.OpBNDCL, insn.OpBNDCU, insn.OpBNDCN, insn.OpBNDMOV,
		insn.OpBNDLDX, insn.OpBNDSTX)
	set(lowerFence, insn.OpMFENCE)
	set(lowerTouch, insn.OpCLFLUSH, insn.OpCLFLUSHOPT, insn.OpCLWB)
	set(lowerCLZERO, insn.OpCLZERO)
	return t
}
