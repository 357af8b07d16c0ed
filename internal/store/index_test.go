package store

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestIndexAgainstMap makes random changes, few and many at a time, to the index and to a map. Blocks stay sorted,
// neither empty nor too large, and older versions stay as they were.
func TestIndexAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, want := &version{}, map[string]change{}
		for range rapid.IntRange(1, 12).Draw(t, "batches") {
			old, oldKeys := v, slices.Sorted(maps.Keys(want))
			var batch []change
			for range rapid.SampledFrom([]int{1, 2, 30, 300}).Draw(t, "changes") {
				c := change{key: fmt.Sprintf("k%03d", rapid.IntRange(0, 400).Draw(t, "key")), kind: rapid.SampledFrom([]changeKind{changePut, changePut, changeDelete, changeStatus}).Draw(t, "kind"),
					team: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "team"), source: rapid.Uint8Range(1, 2).Draw(t, "source"), status: rapid.Uint8Range(1, 3).Draw(t, "status")}
				c.text = searchText(c.key, rapid.SampledFrom([]string{"", "red", "blue"}).Draw(t, "description"), nil, c.key)
				batch = append(batch, c)
				was, there := want[c.key]
				switch {
				case c.kind == changePut:
					want[c.key] = c
				case c.kind == changeDelete:
					delete(want, c.key)
				case there:
					was.status = c.status
					want[c.key] = was
				}
			}
			v = v.with(batch)
			checkVersion(t, v)
			if keys, _, total, _ := old.search(ListQuery{Limit: MaxLimit}); total != len(oldKeys) || !slices.Equal(keys, oldKeys) {
				t.Fatalf("an older version changed")
			}
			for _, q := range []ListQuery{{}, {Q: "red"}, {Q: "k1 blue", Team: "b"}, {Status: registry.Statuses[1]}, {Status: registry.Statuses[1], SourceType: registry.SourceTypes[0], Team: "a", After: "k100"}, {SourceType: registry.SourceTypes[1], NoTotal: true}, {Status: registry.Statuses[5]}, {After: "k200", Teams: []string{"a", "c"}}, {After: "k2005", Q: "e"}} {
				q.Limit = rapid.IntRange(1, 50).Draw(t, "limit")
				var match, expect []string
				for _, k := range slices.Sorted(maps.Keys(want)) {
					c := want[k]
					ok := (q.Team == "" || q.Team == c.team) && (q.Teams == nil || slices.Contains(q.Teams, c.team)) && (q.Status == "" || statusNumber(q.Status) == c.status) &&
						(q.SourceType == "" || sourceNumber(q.SourceType) == c.source)
					for w := range strings.FieldsSeq(q.Q) {
						ok = ok && strings.Contains(string(c.text), w)
					}
					if ok {
						match = append(match, k)
						if k > q.After {
							expect = append(expect, k)
						}
					}
				}
				keys, more, total, capped := v.search(q)
				if diff := cmp.Diff(expect[:min(len(expect), q.Limit)], append(expect[:0:0], keys...)); diff != "" || more != (len(expect) > q.Limit) || (total != len(match) && !q.NoTotal) || capped {
					t.Fatalf("%+v: more %v, total %d of %d (-want +got):\n%s", q, more, total, len(match), diff)
				}
			}
		}
	})
}

// TestSearchStopsCounting asks for words that more models have than are counted, on pages before and after the count ends.
func TestSearchStopsCounting(t *testing.T) {
	var changes []change
	for i := range 3 * countedHits {
		key, says := fmt.Sprintf("k%05d", i), "even"
		if i%2 == 1 {
			says = "odd"
		}
		changes = append(changes, change{key: key, kind: changePut, team: "a", source: 1, status: 1, text: searchText(key, says, nil, key)})
	}
	v := (&version{}).with(changes)
	for _, c := range []struct {
		q      ListQuery
		first  string
		n      int
		more   bool
		total  int
		capped bool
	}{
		{ListQuery{Q: "k"}, "k00000", 50, true, countedHits, true},
		{ListQuery{Q: "odd"}, "k00001", 50, true, countedHits, true},
		{ListQuery{Q: "odd", After: "k02800"}, "k02801", 50, true, countedHits, true},
		{ListQuery{Q: "odd", After: "k02980"}, "k02981", 10, false, countedHits, true},
		{ListQuery{Q: "odd k00"}, "k00001", 50, true, countedHits / 2, false},
		{ListQuery{Q: "odd k00", After: "k00990"}, "k00991", 5, false, countedHits / 2, false},
		{ListQuery{Q: "k00"}, "k00000", 50, true, countedHits, false},
		{ListQuery{Q: "k00", After: "k02000"}, "", 0, false, countedHits, false},
		{ListQuery{}, "k00000", 50, true, 3 * countedHits, false},
		{ListQuery{Team: "a", After: "k00070"}, "k00071", 50, true, 3 * countedHits, false},
		{ListQuery{Q: "odd", NoTotal: true}, "k00001", 50, true, 0, false},
		{ListQuery{Q: "odd", NoTotal: true, After: "k02980"}, "k02981", 10, false, 0, false},
	} {
		c.q.Limit = 50
		keys, more, total, capped := v.search(c.q)
		first := ""
		if len(keys) > 0 {
			first = keys[0]
		}
		if first != c.first || len(keys) != c.n || more != c.more || total != c.total || capped != c.capped {
			t.Errorf("%+v: %d from %q, more %v, total %d, capped %v", c.q, len(keys), first, more, total, capped)
		}
	}
}

func checkVersion(t rapid.TB, v *version) {
	count, last := 0, ""
	for _, b := range v.blocks {
		if b.len() == 0 || b.len() > blockSize || len(b.start) != b.len()+1 || int(b.start[b.len()]) != len(b.text) {
			t.Fatalf("a block of %d models", b.len())
		}
		for i := range b.len() {
			if k := string(b.key(i)); k <= last {
				t.Fatalf("%q after %q", k, last)
			} else {
				last = k
			}
		}
		count += b.len()
	}
	if count != v.count {
		t.Fatalf("%d models, counted %d", count, v.count)
	}
	var counted, kept []tally
	for _, b := range v.blocks {
		for i := range b.len() {
			for len(counted) <= int(b.team[i]) {
				counted = append(counted, tally{})
			}
			counted[b.team[i]][b.source[i]][b.status[i]]++
		}
	}
	for _, of := range v.tallies.of {
		if of == nil {
			of = &tally{}
		}
		kept = append(kept, *of)
	}
	for len(kept) < len(counted) {
		kept = append(kept, tally{})
	}
	for len(counted) < len(kept) {
		counted = append(counted, tally{}) // of teams whose models are all gone
	}
	if diff := cmp.Diff(counted, kept); diff != "" {
		t.Fatalf("the tallies are not what the blocks have (-blocks +tallies):\n%s", diff)
	}
}

// TestTallyHasRoom holds the size of a tally to the sources and statuses that there are; 0 is for none of them.
func TestTallyHasRoom(t *testing.T) {
	var of tally
	if len(of) <= len(registry.SourceTypes) || len(of[0]) <= len(registry.Statuses) {
		t.Errorf("a tally has room for %d × %d; there are %d sources and %d statuses", len(of), len(of[0]), len(registry.SourceTypes), len(registry.Statuses))
	}
}

// TestIndexWhileBuilding changes models from the moment the store is open, while the index is still being built, and
// finds every change in it.
func TestIndexWhileBuilding(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "registry.db")
	var ms []registry.Model
	for i := range 5000 {
		ms = append(ms, registry.Model{ModelID: fmt.Sprintf("m-%04d", i), SourceType: registry.SourceLocal, Description: "before"})
	}
	s, err := Open(ctx, Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := s.PutModels(ctx, ms, PutOptions{Persist: true}); err != nil {
		t.Fatal(err)
	}
	met := false // at least once a change was made before the index was there
	for round := range 20 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(ctx, Options{Path: path}); err != nil {
			t.Fatal(err)
		}
		id, gone := fmt.Sprintf("m-%04d", round*100), fmt.Sprintf("m-%04d", round*100+1)
		if err := s.DeleteModel(ctx, gone, 0, false); err != nil {
			t.Fatal(err)
		}
		if err := s.PutRuntime(ctx, registry.Runtime{ModelID: id, State: registry.RuntimeReady}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.PutModel(ctx, registry.Model{ModelID: id, SourceType: registry.SourceLocal, Description: "after"}, PutOptions{Persist: true}); err != nil {
			t.Fatal(err)
		}
		met = met || s.index.current() == nil
		for _, c := range []struct {
			q    ListQuery
			want int
		}{{ListQuery{Status: registry.StatusReady}, round + 1}, {ListQuery{Q: "after"}, round + 1}, {ListQuery{Q: gone}, 0}, {ListQuery{Q: "before"}, 5000 - 2*(round+1)}} {
			if page, err := s.ListModels(ctx, c.q); err != nil || page.Total != min(c.want, countedHits) || page.Capped != (c.want > countedHits) {
				t.Fatalf("round %d, %+v: %d models, want %d, %v", round, c.q, page.Total, c.want, err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !met {
		t.Error("the index was always built before the first change: the test says nothing")
	}
}

// TestIndexInPortions builds an index whose blocks share memory and changes some of it: what stands beside a changed
// model stays as it was, in the old version and in the new one.
func TestIndexInPortions(t *testing.T) {
	const n = manyChanges + 10*blockSize
	var changes []change
	for i := range n {
		key := fmt.Sprintf("k%05d", i)
		// Some texts are longer than a whole portion, and must still be whole.
		description := strings.Repeat("x", 1+i%7)
		if i%3000 == 5 {
			description = strings.Repeat("y", slabBytes+1)
		}
		changes = append(changes, change{key: key, kind: changePut, team: "a", source: 1, status: 1, text: searchText(key, description, nil, key)})
	}
	built := (&version{}).with(changes)
	checkVersion(t, built)
	before := contents(built)
	changed := built
	for i := 0; i < n; i += 97 {
		c := changes[i]
		c.kind, c.text = changePut, searchText(c.key, strings.Repeat("z", 20), nil, c.key)
		changed = changed.with([]change{c})
	}
	checkVersion(t, changed)
	if diff := cmp.Diff(before, contents(built)); diff != "" {
		t.Fatalf("the version that was built changed:\n%s", diff)
	}
	for i, text := range contents(changed) {
		want := before[i]
		if i%97 == 0 {
			want = string(searchText(changes[i].key, strings.Repeat("z", 20), nil, changes[i].key))
		}
		if text != want {
			t.Fatalf("model %d is %.60q, not %.60q", i, text, want)
		}
	}
}

// contents are the texts of all models.
func contents(v *version) []string {
	var out []string
	for _, b := range v.blocks {
		for i := range b.len() {
			out = append(out, string(b.entry(i)))
		}
	}
	return out
}
