package storetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// testAgainstMap makes random changes to the store and to a plain map, and compares the two after each.
func testAgainstMap(t *testing.T, f *fixture) {
	ctx := t.Context()
	type entry struct {
		model   registry.Model
		before  *registry.Model // what it goes back to at a restart
		persist bool
		version int64
		state   registry.RuntimeState
	}
	rapid.Check(t, func(rt *rapid.T) {
		ok(rt, f.EachModel(ctx, nil, func(r registry.Record) error { return f.DeleteModel(ctx, r.ModelID, 0, false) }))
		want := map[string]*entry{}
		id := rapid.Custom(func(t *rapid.T) string { return rapid.StringMatching(`[abAB][0-9]?`).Draw(t, "id") })
		twin := func(id string) (string, bool) { // the registered id that differs only in case
			for other := range want {
				if other != id && strings.EqualFold(other, id) {
					return other, true
				}
			}
			return "", false
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				m := model(id.Draw(t, "id"))
				m.Description = rapid.SampledFrom([]string{"", "Red", "green blue"}).Draw(t, "description")
				m.Team = rapid.SampledFrom([]string{"default", "x"}).Draw(t, "team")
				persist := rapid.Bool().Draw(t, "persist")
				rec, created, err := f.PutModel(ctx, m, store.PutOptions{Persist: persist})
				if _, is := twin(m.ModelID); is {
					wantCode(t, err, registry.CodeConflict)
					return
				}
				ok(t, err)
				e, existed := want[m.ModelID]
				switch {
				case !existed:
					e = &entry{version: 1, model: m}
					want[m.ModelID] = e
				case !cmp.Equal(e.model, m) || e.persist != persist:
					e.version++
					if persist {
						e.before = nil
					} else if e.persist {
						e.before = new(e.model)
					}
				}
				e.model, e.persist = m, persist
				if created == existed || rec.Version != e.version {
					t.Fatalf("created %v at version %d, want %v at %d", created, rec.Version, !existed, e.version)
				}
			},
			"delete": func(t *rapid.T) {
				id := id.Draw(t, "id")
				err := f.DeleteModel(ctx, id, 0, false)
				if _, is := want[id]; !is {
					wantCode(t, err, registry.CodeNotFound)
					return
				}
				ok(t, err)
				delete(want, id)
			},
			"runtime": func(t *rapid.T) {
				id := id.Draw(t, "id")
				state := rapid.SampledFrom([]registry.RuntimeState{registry.RuntimeReady, registry.RuntimeStopped, registry.RuntimeQueued}).Draw(t, "state")
				err := f.PutRuntime(ctx, registry.Runtime{ModelID: id, State: state})
				if _, is := want[id]; !is {
					wantCode(t, err, registry.CodeNotFound)
					return
				}
				ok(t, err)
				want[id].state = state
			},
			"restart": func(t *rapid.T) {
				f.reopen(t)
				for id, e := range want {
					switch {
					case e.persist:
					case e.before != nil:
						e.model, e.before, e.persist = *e.before, nil, true
						e.version++
					default:
						delete(want, id)
					}
				}
			},
			"": func(t *rapid.T) {
				q := store.ListQuery{
					Q:      rapid.SampledFrom([]string{"", "a", "B1", "red", "blue GREEN", "opt"}).Draw(t, "q"),
					Team:   rapid.SampledFrom([]string{"", "x"}).Draw(t, "team"),
					Status: rapid.SampledFrom([]registry.Status{"", registry.StatusReady, registry.StatusNotLoaded}).Draw(t, "status"),
					Limit:  rapid.IntRange(1, 4).Draw(t, "limit"),
				}
				var expect []string
				for id, e := range want {
					text := strings.ToLower(id + "\n" + e.model.Description + "\n" + e.model.SourcePath)
					match := (q.Team == "" || q.Team == e.model.Team) && (q.Status == "" || q.Status == registry.DeriveStatus(registry.RegistrationActive, "", e.state))
					for w := range strings.FieldsSeq(strings.ToLower(q.Q)) {
						match = match && strings.Contains(text, w)
					}
					if match {
						expect = append(expect, id)
					}
				}
				slices.SortFunc(expect, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
				if diff := cmp.Diff(expect, f.pages(t, q)); diff != "" {
					t.Fatalf("%+v (-want +got):\n%s", q, diff)
				}
				got := map[string]string{}
				ok(t, f.EachModel(ctx, nil, func(r registry.Record) error {
					got[r.ModelID] = fmt.Sprintf("%d %s %s %v", r.Version, r.Description, r.Team, r.Persist)
					return nil
				}))
				all := map[string]string{}
				for id := range maps.Keys(want) {
					e := want[id]
					all[id] = fmt.Sprintf("%d %s %s %v", e.version, e.model.Description, e.model.Team, e.persist)
				}
				if diff := cmp.Diff(all, got); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
				if n, err := f.CountModels(ctx); n != len(want) || err != nil {
					t.Fatalf("counted %d models, %v, want %d", n, err, len(want))
				}
			},
		})
	})
}
