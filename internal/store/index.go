package store

import (
	"bytes"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The index answers which models a list shows, without touching the file: a LIKE over 100,000 rows is too slow, and
// SQLite's full-text search finds words, not parts of them. It holds, in the order of the keys, the folded text that a
// search looks at and a few bytes for the filters, about 10 MB for 100,000 models.
//
// It is a list of blocks of up to blockSize models. A reader takes the present version and scans it; a writer copies
// the blocks it changes and publishes a new version, after the commit and before the next write begins. So it needs
// no locks, and whoever was told that a change is done finds it.

const (
	blockSize = 64
	fieldSep  = 0x1f // ends a field of a model's text; occurs in none
	entrySep  = 0x1e // ends a model's text; occurs in none
)

// index is the holder of the present version.
type index struct {
	version atomic.Pointer[version] // nil until built
	done    chan struct{}           // closed when building has ended, well or not
	err     error                   // why it could not be built; read after done
	pending []change                // made while it is being built; guarded by the writer's turn
}

func (x *index) current() *version { return x.version.Load() }

// apply publishes a version with the changes. The caller holds the writer's turn.
func (x *index) apply(changes []change) {
	if len(changes) == 0 {
		return
	}
	if v := x.version.Load(); v != nil {
		x.version.Store(v.with(changes))
		return
	}
	x.pending = append(x.pending, changes...)
}

// version is the index at one moment. It never changes.
type version struct {
	blocks  []*block
	count   int
	teams   map[string]uint32 // numbers for the blocks
	tallies tallies
}

// block holds models in the order of their keys. Model i's text is text[start[i]:start[i+1]]: the key, the
// description, tags and source_path, each ended by fieldSep, then entrySep.
type block struct {
	text   []byte
	start  []uint32 // one more than there are models
	team   []uint32
	source []uint8 // 1 + position in registry.SourceTypes
	status []uint8 // 1 + position in registry.Statuses

	statuses uint32 // has the bit 1<<n for each status n that occurs
	grams    grams
}

// grams says which sequences of three bytes may occur in a block's text: it has a bit for each, shared with others that
// hash to the same. A search passes over the blocks that lack one of its own, and so seldom reads more than a few.
type grams [64]uint64

func gramBit(a, b, c byte) (word, bit uint32) {
	h := (uint32(a)<<16 | uint32(b)<<8 | uint32(c)) * 2654435761 >> 20 // Knuth's multiplicative hash, 12 bits of it
	return h >> 6, h & 63
}

func (g *grams) add(text []byte) {
	for i := 2; i < len(text); i++ {
		word, bit := gramBit(text[i-2], text[i-1], text[i])
		g[word] |= 1 << bit
	}
}

// mayHold reports whether g has every bit of needle.
func (g *grams) mayHold(needle *grams) bool {
	for i, w := range needle {
		if g[i]&w != w {
			return false
		}
	}
	return true
}

func (b *block) noteStatuses() {
	b.statuses = 0
	for _, n := range b.status {
		b.statuses |= 1 << n
	}
}

func (b *block) len() int           { return len(b.team) }
func (b *block) entry(i int) []byte { return b.text[b.start[i]:b.start[i+1]] }
func (b *block) key(i int) []byte {
	e := b.entry(i)
	return e[:bytes.IndexByte(e, fieldSep)]
}

// find returns the position of the first model whose key is not below key, and whether it is that key.
func (b *block) find(key string) (int, bool) {
	lo, hi := 0, b.len()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if string(b.key(mid)) < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < b.len() && string(b.key(lo)) == key
}

// add appends a model.
func (b *block) add(text []byte, team uint32, source, status uint8) {
	if len(b.start) == 0 {
		b.start = append(b.start, 0)
	}
	b.text = append(b.text, text...)
	b.start = append(b.start, uint32(len(b.text)))
	b.team = append(b.team, team)
	b.source = append(b.source, source)
	b.status = append(b.status, status)
}

// appendSplit appends b's models to blocks, in as many blocks of about the same size as it takes for none to be larger
// than blockSize. Their memory comes from m; without one, each owns exactly what it needs.
func (b *block) appendSplit(blocks []*block, m *slabs) []*block {
	pieces := (b.len() + blockSize - 1) / blockSize
	for p := range pieces {
		lo, hi := p*b.len()/pieces, (p+1)*b.len()/pieces
		piece := m.block()
		*piece = block{
			text:  m.copyOf(b.text[b.start[lo]:b.start[hi]]),
			start: m.numbersOf(b.start[lo : hi+1]), team: m.numbersOf(b.team[lo:hi]),
			source: m.copyOf(b.source[lo:hi]), status: m.copyOf(b.status[lo:hi]),
		}
		for i := range piece.start {
			piece.start[i] -= b.start[lo]
		}
		piece.grams.add(piece.text)
		piece.noteStatuses()
		blocks = append(blocks, piece)
	}
	return blocks
}

type changeKind uint8

const (
	changePut changeKind = iota
	changeDelete
	changeStatus
)

// change is what a write does to one model of the index.
type change struct {
	key    string
	kind   changeKind
	text   []byte
	team   string
	source uint8
	status uint8
}

func putChange(row modelRow, tags []string) change {
	return change{key: row.FoldID, text: searchText(row.FoldID, row.Config.Description, tags, row.Config.SourcePath),
		team: row.Config.Team, source: sourceNumber(registry.SourceType(row.Config.SourceType)), status: statusNumber(registry.Status(row.Status))}
}

func statusChange(key, status string) change {
	return change{key: key, kind: changeStatus, status: statusNumber(registry.Status(status))}
}

func sourceNumber(t registry.SourceType) uint8 {
	return uint8(slices.Index(registry.SourceTypes, t) + 1)
}
func statusNumber(s registry.Status) uint8 { return uint8(slices.Index(registry.Statuses, s) + 1) }

// searchText is what a search looks at. A source_path that only repeats the id, as with most models of the Hub, is
// left out.
func searchText(key, description string, tags []string, path string) []byte {
	t := make([]byte, 0, len(key)+len(description)+len(path)+4)
	t = append(append(t, key...), fieldSep)
	t = append(append(t, fold(description)...), fieldSep)
	for _, tag := range tags {
		t = append(append(t, fold(tag)...), fieldSep)
	}
	if p := fold(path); p != key {
		t = append(append(t, p...), fieldSep)
	}
	return append(t, entrySep)
}

// with returns the version that follows from the changes; the last one of a key counts.
func (v *version) with(changes []change) *version {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b change) int { return strings.Compare(a.key, b.key) })
	next := &version{teams: v.teams, count: v.count, tallies: v.tallies.next(), blocks: make([]*block, 0, len(v.blocks)+1)}
	var m *slabs
	if len(changes) >= manyChanges {
		m = &slabs{}
	}
	rest := v.blocks
	for len(changes) > 0 {
		// The changes up to the block after the one that the first of them belongs to are made at once.
		at := max(0, sort.Search(len(rest), func(i int) bool { return string(rest[i].key(0)) > changes[0].key })-1)
		b, mine := &block{}, changes
		if len(rest) > 0 {
			next.blocks = append(next.blocks, rest[:at]...)
			b, rest = rest[at], rest[at+1:]
		}
		if len(rest) > 0 {
			limit := string(rest[0].key(0))
			mine = changes[:sort.Search(len(changes), func(i int) bool { return changes[i].key >= limit })]
		}
		changes = changes[len(mine):]
		if b.len() > 0 && len(mine) == 1 && mine[0].kind == changeStatus {
			next.blocks = append(next.blocks, next.withStatus(b, mine[0]))
		} else {
			next.rebuild(b, mine, m)
		}
	}
	next.blocks = append(next.blocks, rest...)
	return next
}

// withStatus returns b with one status changed. It shares everything but the statuses: the most frequent change costs
// the least.
func (v *version) withStatus(b *block, c change) *block {
	i, found := b.find(c.key)
	if !found {
		return b
	}
	v.tallies.add(b.team[i], b.source[i], b.status[i], -1)
	v.tallies.add(b.team[i], b.source[i], c.status, 1)
	out := *b
	out.status = slices.Clone(b.status)
	out.status[i] = c.status
	out.noteStatuses()
	return &out
}

// rebuild appends the models of b, with the sorted changes made, to v.blocks, in memory from m.
func (v *version) rebuild(b *block, changes []change, m *slabs) {
	var out block
	i := 0
	keepBelow := func(key string) {
		for ; i < b.len() && string(b.key(i)) < key; i++ {
			out.add(b.entry(i), b.team[i], b.source[i], b.status[i])
		}
	}
	for len(changes) > 0 {
		key := changes[0].key
		keepBelow(key)
		var text []byte // nil: there is no such model
		var team uint32
		var source, status uint8
		if i < b.len() && string(b.key(i)) == key {
			text, team, source, status = b.entry(i), b.team[i], b.source[i], b.status[i]
			v.tallies.add(team, source, status, -1)
			i++
		}
		for ; len(changes) > 0 && changes[0].key == key; changes = changes[1:] {
			switch c := changes[0]; c.kind {
			case changePut:
				text, team, source, status = c.text, v.teamNumber(c.team), c.source, c.status
			case changeDelete:
				text = nil
			case changeStatus:
				status = c.status
			}
		}
		if text != nil {
			out.add(text, team, source, status)
			v.tallies.add(team, source, status, 1)
		}
	}
	for ; i < b.len(); i++ {
		out.add(b.entry(i), b.team[i], b.source[i], b.status[i])
	}
	v.blocks = out.appendSplit(v.blocks, m)
	v.count += out.len() - b.len()
}

// teamNumber returns the team's number, giving it one if it is new. The map is copied then: older versions share it.
func (v *version) teamNumber(name string) uint32 {
	n, ok := v.teams[name]
	if !ok {
		n = uint32(len(v.teams) + 1)
		teams := make(map[string]uint32, len(v.teams)+1)
		maps.Copy(teams, v.teams)
		teams[name] = n
		v.teams = teams
	}
	return n
}
