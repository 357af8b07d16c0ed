package store

import "slices"

// slabs give many new blocks their memory in large portions. A block of its own is half a dozen small allocations, which
// the allocator puts beside what reading the rows leaves behind; when that is collected, each of them keeps a page or two
// that is otherwise empty, about a third of what the index itself takes.
//
// A portion is kept as long as one block in it is in use. Blocks that replace these later own their memory, so what is
// kept in vain is never more than the index was when it was built.
type slabs struct {
	bytes   []byte
	numbers []uint32
	blocks  []block
}

const (
	// slabBytes is the size of a portion, in bytes: so large that what is left over at its end does not matter.
	slabBytes = 256 << 10
	// manyChanges is from how many changes on an update of the index takes its memory in portions.
	manyChanges = 4096
)

// copyOf returns a copy of b that cannot grow.
func (m *slabs) copyOf(b []byte) []byte {
	if m == nil {
		return slices.Clone(b)
	}
	return carve(&m.bytes, b, slabBytes)
}

// numbersOf returns a copy of n that cannot grow.
func (m *slabs) numbersOf(n []uint32) []uint32 {
	if m == nil {
		return slices.Clone(n)
	}
	return carve(&m.numbers, n, slabBytes/4)
}

// block returns an empty block.
func (m *slabs) block() *block {
	if m == nil {
		return &block{}
	}
	return &carve(&m.blocks, []block{{}}, 64)[0]
}

// carve copies what into the rest of portion, or into a new portion of room elements if the rest is too small.
func carve[T any](portion *[]T, what []T, room int) []T {
	if cap(*portion)-len(*portion) < len(what) {
		*portion = make([]T, 0, max(room, len(what)))
	}
	from := len(*portion)
	*portion = append(*portion, what...)
	return slices.Clip((*portion)[from:])
}
