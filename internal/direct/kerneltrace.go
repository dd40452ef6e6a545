package direct

import "ring3/internal/bt"

// Translation is a new block as Kernel.Translated sees it, during the call.
type Translation struct {
	*bt.Block
	Guest []byte // from RIP to the end of the page, or into the next one
	Host  []byte // the emitted code
	At    uint64 // where that lies
	Names *bt.Host
}

// translated tells Translated of a block made from code.
func (k *Kernel) translated(b *cached, code []byte) {
	off := b.host - k.c.base
	k.Translated(&Translation{Block: b.Block, Guest: code, Host: k.c.mem[off : off+uint64(b.size)], At: b.host, Names: &k.c.h})
}
