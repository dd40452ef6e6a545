package guestmem

import "ring3/internal/x86"

// AddCodeUser registers an engine; before the machine runs.
func (m *Memory) AddCodeUser(u CodeUser) { m.users = append(m.users, u) }

// Flags are the page flags of the page of RAM that holds gpa; 0 outside RAM.
func (m *Memory) Flags(gpa uint64) uint8 {
	off, ok := m.Offset(gpa)
	if !ok {
		return 0
	}
	return m.flags[off/x86.PageSize]
}

// MarkCode records that an engine derives something from the bytes of the
// page that holds gpa. Stub mappings lose the right to write to it.
func (m *Memory) MarkCode(gpa uint64) {
	off, ok := m.Offset(gpa)
	if !ok {
		return
	}
	f := &m.flags[off/x86.PageSize]
	if *f&PageStubWrite != 0 {
		for _, u := range m.users {
			u.RevokeStubWrite(gpa)
		}
		*f &^= PageStubWrite
	}
	if *f&PageCode == 0 {
		*f |= PageCode
		for _, u := range m.users {
			u.PageBecameCode(gpa)
		}
	}
}

// AllowStubWrite is called before a stub maps the page that holds gpa
// writable: all that was derived from its bytes is dropped.
func (m *Memory) AllowStubWrite(gpa uint64) {
	off, ok := m.Offset(gpa)
	if !ok {
		return
	}
	f := &m.flags[off/x86.PageSize]
	if *f&PageCode != 0 {
		page := gpa &^ (x86.PageSize - 1)
		for _, u := range m.users {
			u.DropCode(page, x86.PageSize)
		}
		*f &^= PageCode
	}
	*f |= PageStubWrite
}

// Changed tells code users that n bytes at gpa were written.
func (m *Memory) Changed(gpa uint64, n int) {
	for n > 0 {
		part := min(n, int(x86.PageSize-gpa%x86.PageSize))
		if off, ok := m.Offset(gpa); ok && m.flags[off/x86.PageSize]&PageCode != 0 {
			left := false
			for _, u := range m.users {
				if u.DropCode(gpa, part) {
					left = true
				}
			}
			if !left {
				m.flags[off/x86.PageSize] &^= PageCode
			}
		}
		gpa += uint64(part)
		n -= part
	}
}
