package boot

import (
	"encoding/binary"
)

// Offsets in boot_params outside the setup header.
const (
	zpRSDP        = 0x070 // u64
	zpExtInitrd   = 0x0c0 // u32, bits 32 and up of the initrd's address
	zpExtInitrdSz = 0x0c4 // u32, the same of its size
	zpE820Count   = 0x1e8 // u8
	zpE820        = 0x2d0 // 20 bytes each
	e820Size      = 20

	loaderUndefined = 0xff   // type_of_loader without an assigned number
	vidModeNormal   = 0xffff // vid_mode "normal"
)

// defaultHeader is the setup header of a kernel that brings none, a vmlinux:
// protocol 2.12 with the values of a stock 64-bit kernel.
func defaultHeader() []byte {
	h := make([]byte, 0x268)
	le := binary.LittleEndian
	le.PutUint16(h[hdrBootFlag:], bootFlag)
	h[hdrJump] = byte(len(h) - hdrMagic)
	copy(h[hdrMagic:], "HdrS")
	le.PutUint16(h[hdrVersion:], 0x20c)
	h[hdrLoadFlags] = loadedHigh
	le.PutUint32(h[hdrInitrdMax:], 0x7fffffff)
	le.PutUint32(h[hdrAlign:], 2<<20)
	le.PutUint16(h[hdrXLoadFlags:], 1|xlfAbove4G)
	le.PutUint32(h[hdrCmdlineSize:], 2047)
	return h
}

// params is what goes into boot_params besides the kernel's own header.
type params struct {
	header  []byte // image bytes [0, end of setup header)
	ram     uint64 // bytes
	initrd  Range
	rsdp    uint64 // 0: the kernel searches
	seedLen int    // of the setup_data entry at SetupDataAddr, 0 for none
}

// zeroPage builds boot_params.
func (p *params) zeroPage() []byte {
	z := make([]byte, pageSize)
	le := binary.LittleEndian
	copy(z[hdrStart:hdrMaxEnd], p.header[hdrStart:])

	// screen_info stays zero: no columns and no lines mean no VGA.
	le.PutUint64(z[zpRSDP:], p.rsdp)
	le.PutUint16(z[hdrVidMode:], vidModeNormal)
	z[hdrLoader] = loaderUndefined
	// Keep nothing but LOADED_HIGH: no heap, no KASLR decided by a
	// decompressor, no obsolete segment reloading.
	z[hdrLoadFlags] = loadedHigh
	le.PutUint32(z[hdrCmdlinePtr:], CmdlineAddr)
	if n := p.initrd.End - p.initrd.Start; n > 0 {
		le.PutUint32(z[hdrInitrdAddr:], uint32(p.initrd.Start))
		le.PutUint32(z[zpExtInitrd:], uint32(p.initrd.Start>>32))
		le.PutUint32(z[hdrInitrdSize:], uint32(n))
		le.PutUint32(z[zpExtInitrdSz:], uint32(n>>32))
	} else {
		le.PutUint64(z[hdrInitrdAddr:], 0)
	}
	le.PutUint64(z[hdrSetupData:], 0)
	if p.seedLen > 0 {
		le.PutUint64(z[hdrSetupData:], SetupDataAddr)
	}

	m := E820(p.ram)
	z[zpE820Count] = byte(len(m))
	for i, e := range m {
		b := z[zpE820+i*e820Size:]
		le.PutUint64(b, e.Addr)
		le.PutUint64(b[8:], e.Size)
		le.PutUint32(b[16:], e.Type)
	}
	return z
}

// setupSeed builds a setup_data entry of type SETUP_RNG_SEED (9) around seed.
func setupSeed(seed []byte) []byte {
	b := make([]byte, 16, 16+len(seed)) // next u64, type u32, len u32
	binary.LittleEndian.PutUint32(b[8:], 9)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(seed)))
	return append(b, seed...)
}
