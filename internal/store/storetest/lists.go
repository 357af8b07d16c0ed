package storetest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// pages walks through all pages of q and returns every id.
func (f *fixture) pages(t tb, q store.ListQuery) []string {
	t.Helper()
	var all []string
	for {
		page, err := f.ListModels(t.Context(), q)
		ok(t, err)
		all = append(all, ids(page)...)
		if page.Next == "" {
			if page.Total != len(all) {
				t.Errorf("%+v: total %d, but %d models on all pages", q, page.Total, len(all))
			}
			return all
		}
		if len(page.Items) != q.Limit {
			t.Fatalf("%+v: %d models on a page that is not the last", q, len(page.Items))
		}
		q.After = page.Next
	}
}

func testLists(t *testing.T, f *fixture) {
	ctx := t.Context()
	page, err := f.ListModels(ctx, store.ListQuery{})
	ok(t, err)
	if len(page.Items) != 0 || page.Next != "" || page.Total != 0 {
		t.Fatalf("an empty store lists %+v", page)
	}
	var ms []registry.Model
	var all []string
	for i := range 700 {
		m := model(fmt.Sprintf("Org/m-%04d", i))
		m.SourceType = registry.SourceTypes[i%len(registry.SourceTypes)]
		m.Team = fmt.Sprintf("team-%d", i%3)
		ms = append(ms, m)
		all = append(all, m.ModelID)
	}
	_, _, _, err = f.PutModels(ctx, ms, lasting)
	ok(t, err)
	keep := func(want func(registry.Model) bool) []string {
		var out []string
		for _, m := range ms {
			if want(m) {
				out = append(out, m.ModelID)
			}
		}
		return out
	}
	check := func(t *testing.T) {
		for _, c := range []struct {
			name string
			q    store.ListQuery
			want []string
		}{
			{"all", store.ListQuery{Limit: 77}, all},
			{"one a page", store.ListQuery{Limit: 1, Team: "team-0", SourceType: registry.SourceS3}, keep(func(m registry.Model) bool { return m.Team == "team-0" && m.SourceType == registry.SourceS3 })},
			{"team", store.ListQuery{Team: "team-1", Limit: 50}, keep(func(m registry.Model) bool { return m.Team == "team-1" })},
			{"visible teams", store.ListQuery{Teams: []string{"team-1", "team-2", "none"}, Limit: 50}, keep(func(m registry.Model) bool { return m.Team != "team-0" })},
			{"no visible team", store.ListQuery{Teams: []string{}}, nil},
			{"a team that is not visible", store.ListQuery{Team: "team-0", Teams: []string{"team-1"}}, nil},
			{"a team that does not exist", store.ListQuery{Team: "none"}, nil},
			{"source", store.ListQuery{SourceType: registry.SourceOllama, Limit: 50}, keep(func(m registry.Model) bool { return m.SourceType == registry.SourceOllama })},
			{"a source that does not exist", store.ListQuery{SourceType: "tape"}, nil},
			{"a status that does not exist", store.ListQuery{Status: "tired"}, nil},
			{"not loaded", store.ListQuery{Status: registry.StatusNotLoaded, Limit: 500}, all},
			{"ready", store.ListQuery{Status: registry.StatusReady}, nil},
			{"after the last", store.ListQuery{After: "zzz", Limit: 3}, nil},
		} {
			if c.name == "after the last" {
				page, err := f.ListModels(ctx, c.q)
				ok(t, err)
				if len(page.Items) != 0 || page.Next != "" || page.Total != len(all) {
					t.Errorf("%s: %+v", c.name, page)
				}
				continue
			}
			if diff := cmp.Diff(c.want, f.pages(t, c.q)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
		for limit, want := range map[int]int{0: store.DefaultLimit, -1: store.DefaultLimit, 10_000: store.MaxLimit} {
			page, err := f.ListModels(ctx, store.ListQuery{Limit: limit})
			ok(t, err)
			if len(page.Items) != want {
				t.Errorf("limit %d gives %d models, want %d", limit, len(page.Items), want)
			}
		}
		// The id to go on from may have been deleted meanwhile.
		page, err := f.ListModels(ctx, store.ListQuery{After: "Org/m-0009x", Limit: 1})
		ok(t, err)
		if diff := cmp.Diff([]string{"Org/m-0010"}, ids(page)); diff != "" {
			t.Error(diff)
		}
	}
	check(t)
	// Again at once after a restart, when a store may not have everything at hand.
	f.reopen(t)
	check(t)
	f.put(t, model("Zoe"), lasting)
	f.put(t, model("anna"), lasting)
	page, err = f.ListModels(ctx, store.ListQuery{Limit: 1})
	ok(t, err)
	if diff := cmp.Diff([]string{"anna"}, ids(page)); diff != "" {
		t.Errorf("the order regards case: %s", diff)
	}
}

func testSearch(t *testing.T, f *fixture) {
	a := model("Org/Alpha-7B")
	a.Description, a.Tags, a.SourcePath = "Für den Kundendienst\nzweite Zeile", []string{"Chat", "eval run"}, "/srv/Weights/alpha.gguf"
	b := model("org/beta")
	b.Description, b.SourcePath = "100% of_it", "org/beta"
	c := model("gamma")
	_, _, _, err := f.PutModels(t.Context(), []registry.Model{a, b, c}, lasting)
	ok(t, err)
	check := func(t *testing.T) {
		for q, want := range map[string][]string{
			"":                 {"gamma", "Org/Alpha-7B", "org/beta"},
			"  ":               {"gamma", "Org/Alpha-7B", "org/beta"},
			"ORG":              {"Org/Alpha-7B", "org/beta"},
			"alpha":            {"Org/Alpha-7B"},
			"7b org":           {"Org/Alpha-7B"},
			"org nothing":      nil,
			"FÜR":              {"Org/Alpha-7B"},
			"chat":             {"Org/Alpha-7B"},
			"eval run":         {"Org/Alpha-7B"},
			"weights/ALPHA":    {"Org/Alpha-7B"},
			"zweite":           {"Org/Alpha-7B"},
			"%":                {"org/beta"},
			"f_i":              {"org/beta"},
			"beta100":          nil, // across two fields
			"gammaorg":         nil, // across two models
			"\x1f":             nil,
			"\x1e":             nil,
			"a\x1f":            nil,
			"'; DROP TABLE --": nil,
			"m":                {"gamma"},
		} {
			got := f.pages(t, store.ListQuery{Q: q, Limit: 500})
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("search for %q (-want +got):\n%s", q, diff)
			}
		}
	}
	check(t)
	f.reopen(t)
	check(t)
	b.Description = "renewed"
	f.put(t, b, lasting)
	ok(t, f.DeleteModel(t.Context(), "Org/Alpha-7B", 0, false))
	for q, want := range map[string][]string{"100%": nil, "renewed": {"org/beta"}, "alpha": nil} {
		if diff := cmp.Diff(want, f.pages(t, store.ListQuery{Q: q, Limit: 500})); diff != "" {
			t.Errorf("search for %q after a change (-want +got):\n%s", q, diff)
		}
	}
}

// testStatus walks through every combination of the three axes and asks for every status.
func testStatus(t *testing.T, f *fixture) {
	ctx := t.Context()
	want := map[registry.Status][]string{}
	registrations := []registry.RegistrationState{registry.RegistrationPending, registry.RegistrationActive, registry.RegistrationDeprecated, registry.RegistrationArchived}
	artifacts := []registry.ArtifactState{"", registry.ArtifactAbsent, registry.ArtifactResolving, registry.ArtifactFetching, registry.ArtifactVerifying, registry.ArtifactPresent, registry.ArtifactFailed}
	runtimes := []registry.RuntimeState{"", registry.RuntimeStopped, registry.RuntimeQueued, registry.RuntimeStarting, registry.RuntimeReady, registry.RuntimeSleeping,
		registry.RuntimeDraining, registry.RuntimeStopping, registry.RuntimeBackoff, registry.RuntimeFailed}
	n := 0
	for _, g := range registrations {
		for _, a := range artifacts {
			for _, r := range runtimes {
				n++
				id := fmt.Sprintf("m-%03d", n)
				f.put(t, model(id), store.PutOptions{Persist: true, Registration: g})
				// Half of them get their registration last: both orders must lead to the same status.
				if n%2 == 0 {
					ok(t, f.PutRuntime(ctx, registry.Runtime{ModelID: id, State: r, Artifact: a}))
				} else {
					_, err := f.SetRegistration(ctx, id, registry.RegistrationArchived, "ada")
					ok(t, err)
					ok(t, f.PutRuntime(ctx, registry.Runtime{ModelID: id, State: r, Artifact: a}))
					_, err = f.SetRegistration(ctx, id, g, "ada")
					ok(t, err)
				}
				s := registry.DeriveStatus(g, a, r)
				want[s] = append(want[s], id)
			}
		}
	}
	check := func(t *testing.T) {
		seen := 0
		for _, s := range registry.Statuses {
			got := f.pages(t, store.ListQuery{Status: s, Limit: 50})
			if diff := cmp.Diff(want[s], got); diff != "" {
				t.Errorf("status %s (-want +got):\n%s", s, diff)
			}
			seen += len(got)
			if len(got) > 0 {
				one, err := f.Listed(ctx, got[0])
				ok(t, err)
				if one.Status != s {
					t.Errorf("%s has the status %s, and is listed with %s", got[0], one.Status, s)
				}
			}
		}
		if seen != n {
			t.Errorf("%d of %d models have a status", seen, n)
		}
	}
	check(t)
	f.reopen(t)
	check(t)
	moved := want[registry.StatusReady][0]
	ok(t, f.DeleteRuntime(ctx, moved))
	if got := f.pages(t, store.ListQuery{Status: registry.StatusReady, Limit: 500}); slices.Contains(got, moved) {
		t.Errorf("%s is ready without a runtime", moved)
	}
}
