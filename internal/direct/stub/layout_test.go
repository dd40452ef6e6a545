package stub

import (
	"testing"
	"unsafe"
)

// The program addresses Control by constants: they must be those of the Go
// type.
func TestControlOffsets(t *testing.T) {
	var c Control
	var h Handoff
	var l CPUIDs
	var r Answer
	for _, o := range []struct {
		name      string
		got, want uintptr
	}{
		{"State", unsafe.Offsetof(c.State), oState},
		{"Cmd", unsafe.Offsetof(c.Cmd), oCmd},
		{"Kicked", unsafe.Offsetof(c.Kicked), oKicked},
		{"Spin", unsafe.Offsetof(c.Spin), oSpin},
		{"StubSleeps", unsafe.Offsetof(c.StubSleeps), oStubSleeps},
		{"MonSleeps", unsafe.Offsetof(c.MonSleeps), oMonSleeps},
		{"Reason", unsafe.Offsetof(c.Reason), oReason},
		{"Signo", unsafe.Offsetof(c.Signo), oSigno},
		{"Frame", unsafe.Offsetof(c.Frame), oFrame},
		{"FPU", unsafe.Offsetof(c.FPU), oFPU},
		{"FSBase", unsafe.Offsetof(c.FSBase), oFSBase},
		{"GSBase", unsafe.Offsetof(c.GSBase), oGSBase},
		{"Sel", unsafe.Offsetof(c.Sel), oSel},
		{"LoadSel", unsafe.Offsetof(c.LoadSel), oLoadSel},
		{"NCalls", unsafe.Offsetof(c.NCalls), oNCalls},
		{"Desc", unsafe.Offsetof(c.Desc), oDesc},
		{"SP", unsafe.Offsetof(c.SP), oSP},
		{"Ready", unsafe.Offsetof(c.Ready), oReady},
		{"GPR", unsafe.Offsetof(c.GPR), oGPR},
		{"IRET", unsafe.Offsetof(c.IRET), oIRET},
		{"ExitID", unsafe.Offsetof(c.ExitID), oExitID},
		{"Scratch", unsafe.Offsetof(c.Scratch), oScratch},
		{"IF", unsafe.Offsetof(c.IF), oIF},
		{"Want", unsafe.Offsetof(c.Want), oWant},
		{"Mask", unsafe.Offsetof(c.Mask), oMask},
		{"TSCAux", unsafe.Offsetof(c.TSCAux), oTSCAux},
		{"CR", unsafe.Offsetof(c.CR), oCR},
		{"GSel", unsafe.Offsetof(c.GSel), oGSel},
		{"GFS", unsafe.Offsetof(c.GFS), oGFS},
		{"GGS", unsafe.Offsetof(c.GGS), oGGS},
		{"GKernel", unsafe.Offsetof(c.GKernel), oGKernel},
		{"PopMask", unsafe.Offsetof(c.PopMask), oPopMask},
		{"IFMask", unsafe.Offsetof(c.IFMask), oIFMask},
		{"Upper", unsafe.Offsetof(c.Upper), oUpper},
		{"UserIndex", unsafe.Offsetof(c.UserIndex), oUserIndex},
		{"UserPage", unsafe.Offsetof(c.UserPage), oUserPage},
		{"DFMask", unsafe.Offsetof(c.DFMask), oDFMask},
		{"Room", unsafe.Offsetof(c.Room), oRoom},
		{"Paired", unsafe.Offsetof(c.Paired), oPaired},
		{"Owner", unsafe.Offsetof(c.Owner), oOwner},
		{"Syscalls", unsafe.Offsetof(c.Syscalls), oSyscalls},
		{"Sysrets", unsafe.Offsetof(c.Sysrets), oSysrets},
		{"FMask", unsafe.Offsetof(c.FMask), oFMask},
		{"Target", unsafe.Offsetof(c.Target), oTarget},
		{"BellSpin", unsafe.Offsetof(c.BellSpin), oBellSpin},
		{"Door", unsafe.Offsetof(c.Door), oDoor},
		{"FaultGive", unsafe.Offsetof(c.FaultGive), oFaultGive},
		{"FaultTake", unsafe.Offsetof(c.FaultTake), oFaultTake},
		{"SysSel", unsafe.Offsetof(c.SysSel), oSysSel},
		{"FaultSel", unsafe.Offsetof(c.FaultSel), oFaultSel},
		{"FaultMapped", unsafe.Offsetof(c.FaultMapped), oMapped},
		{"Faults", unsafe.Offsetof(c.Faults), oFaults},
		{"FaultTarget", unsafe.Offsetof(c.FaultTarget), oFaultAt},
		{"FaultRSP", unsafe.Offsetof(c.FaultRSP), oFaultRSP},
		{"StackAt", unsafe.Offsetof(c.StackAt), oStackAt},
		{"IDTAt", unsafe.Offsetof(c.IDTAt), oIDTAt},
		{"IDT", unsafe.Offsetof(c.IDT), oIDT},
		{"TSSAt", unsafe.Offsetof(c.TSSAt), oTSSAt},
		{"RSP0", unsafe.Offsetof(c.RSP0), oRSP0},
		{"RAMLow", unsafe.Offsetof(c.RAMLow), oRAMLow},
		{"RAMHigh", unsafe.Offsetof(c.RAMHigh), oRAMHigh},
		{"Window", unsafe.Offsetof(c.Window), oWindow},
		{"IretFrame", unsafe.Offsetof(c.IretFrame), oFrameWords},
		{"Spaces", unsafe.Offsetof(c.Spaces), oSpaces},
		{"UserSalt", unsafe.Offsetof(c.UserSalt), oUserSalt},
		{"UserCR3", unsafe.Offsetof(c.UserCR3), oUserCR3},
		{"XMask", unsafe.Offsetof(c.XMask), oXMask},
		{"MXCSR", unsafe.Offsetof(c.MXCSR), oMXCSR},
		{"Traps", unsafe.Offsetof(c.Traps), oTraps},
		{"UserFill", unsafe.Offsetof(c.UserFill), oUserFill},
		{"FlagsAt", unsafe.Offsetof(c.FlagsAt), oFlagsAt},
		{"MissAt", unsafe.Offsetof(c.MissAt), oMissAt},
		{"MissEA", unsafe.Offsetof(c.MissEA), oMissEA},
		{"UserFills", unsafe.Offsetof(c.UserFills), oUserFills},
		{"Park", unsafe.Offsetof(c.Park), oPark},
		{"KernelBell", unsafe.Offsetof(h.KernelBell), hKernelBell},
		{"UserBell", unsafe.Offsetof(h.UserBell), hUserBell},
		{"Event", unsafe.Offsetof(h.Event), hEvent},
		{"MonSleeps of Handoff", unsafe.Offsetof(h.MonSleeps), hMonSleeps},
		{"KernelSleeps", unsafe.Offsetof(h.KernelSleeps), hKernelSleeps},
		{"UserSleeps", unsafe.Offsetof(h.UserSleeps), hUserSleeps},
		{"Fast", unsafe.Offsetof(h.Fast), hFast},
		{"GPR of Handoff", unsafe.Offsetof(h.GPR), hGPR},
		{"FSBase of Handoff", unsafe.Offsetof(h.FSBase), hFSBase},
		{"GSBase of Handoff", unsafe.Offsetof(h.GSBase), hGSBase},
		{"Done", unsafe.Offsetof(h.Done), hDone},
		{"XState", unsafe.Offsetof(h.XState), hXState},
		{"end of Handoff", unsafe.Sizeof(h), PageSize},
		{"Served", unsafe.Offsetof(l.Served) + SlotCPUIDs, oServed},
		{"Addr", unsafe.Offsetof(l.Addr) + SlotCPUIDs, oCPUIDAddr},
		{"end of CPUIDs", unsafe.Sizeof(l) + SlotCPUIDs, PageSize},
		{"Sub", unsafe.Offsetof(r.Sub), answerSub},
		{"Mask", unsafe.Offsetof(r.Mask), answerMask},
		{"A", unsafe.Offsetof(r.A), answerEAX},
		{"B", unsafe.Offsetof(r.B), answerEBX},
		{"C", unsafe.Offsetof(r.C), answerECX},
		{"D", unsafe.Offsetof(r.D), answerEDX},
		{"List", unsafe.Offsetof(Answers{}.List), answerSize},
		{"size of Answer", unsafe.Sizeof(r), answerSize},
		{"size of Answers", unsafe.Sizeof(Answers{}), AnswersSize},
		{"size of Call", unsafe.Sizeof(Call{}), 64},
	} {
		if o.got != o.want {
			t.Errorf("%s: %#x in the type, %#x in the program", o.name, o.got, o.want)
		}
	}
	if unsafe.Sizeof(c) > SlotCPUIDs || MaxCalls*unsafe.Sizeof(Call{}) > PageSize {
		t.Error("Control or the call list larger than its place")
	}
}
