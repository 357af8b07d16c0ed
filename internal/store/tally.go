package store

import "slices"

// tally counts one team's models by source and status, so that how many a filter matches is known without looking at a
// hundred thousand of them. The numbers are those of the blocks; TestTallyHasRoom holds that there are no more.
type tally [8][16]int32

// tallies are those of all teams, by the team's number. Versions of the index share the tallies that did not change;
// mine marks those that this version has made and may still change.
type tallies struct {
	of   []*tally
	mine []bool
}

// next returns the tallies that the version after this one begins with.
func (t tallies) next() tallies {
	return tallies{of: slices.Clone(t.of), mine: make([]bool, len(t.of))}
}

// add counts n models more.
func (t *tallies) add(team uint32, source, status uint8, n int32) {
	for int(team) >= len(t.of) {
		t.of, t.mine = append(t.of, nil), append(t.mine, false)
	}
	if !t.mine[team] {
		own := tally{}
		if t.of[team] != nil {
			own = *t.of[team]
		}
		t.of[team], t.mine[team] = &own, true
	}
	t.of[team][source][status] += n
}

// count returns how many models the filter lets through. It looks at no words.
func (t tallies) count(f *filter) (n int) {
	for team, of := range t.of {
		if of == nil || (f.teams != nil && !f.teams[team]) {
			continue
		}
		for source := range of {
			if f.source != 0 && int(f.source) != source {
				continue
			}
			for status, count := range of[source] {
				if f.status == 0 || int(f.status) == status {
					n += int(count)
				}
			}
		}
	}
	return n
}
