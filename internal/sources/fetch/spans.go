package fetch

import "slices"

// span is the bytes of a file from off up to end, end not included.
type span struct{ off, end int64 }

// spans is a set of bytes as ranges that are sorted and neither overlap nor touch.
type spans []span

// add puts a range into the set and returns how many of its bytes were not in it before.
func (s *spans) add(n span) int64 {
	if n.off >= n.end {
		return 0
	}
	i, _ := slices.BinarySearchFunc(*s, n.off, func(e span, off int64) int {
		if e.end < off {
			return -1
		}
		return 1
	})
	added, j := n.end-n.off, i
	for j < len(*s) && (*s)[j].off <= n.end {
		e := (*s)[j]
		added -= max(0, min(e.end, n.end)-max(e.off, n.off))
		j++
	}
	if j > i {
		// Only the neighbours at both ends can reach beyond the new range.
		n.off, n.end = min(n.off, (*s)[i].off), max(n.end, (*s)[j-1].end)
	}
	*s = slices.Replace(*s, i, j, n)
	return added
}

// bytes returns how many bytes are in the set.
func (s spans) bytes() int64 {
	var n int64
	for _, e := range s {
		n += e.end - e.off
	}
	return n
}

// prefix returns how many bytes from the first on are in the set.
func (s spans) prefix() int64 {
	if len(s) > 0 && s[0].off == 0 {
		return s[0].end
	}
	return 0
}

// gap returns the first range at or after from, and below limit, that is not in the set.
func (s spans) gap(from, limit int64) (span, bool) {
	for _, e := range s {
		if from < e.off {
			break
		}
		from = max(from, e.end)
	}
	if from >= limit {
		return span{}, false
	}
	for _, e := range s {
		if e.off > from {
			return span{from, min(e.off, limit)}, true
		}
	}
	return span{from, limit}, true
}
