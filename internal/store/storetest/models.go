package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// full is a model with every field set.
func full() registry.Model {
	return registry.Model{
		ModelID: "meta-llama/Llama-2-7b-chat-hf", SourceType: registry.SourceHuggingFace, SourcePath: "meta-llama/Llama-2-7b-chat-hf",
		ModelFormat: registry.FormatSafetensors, Revision: "abc123", QuantizationBits: 4, DevicePreference: registry.DeviceCUDA,
		RequiredGPUMemoryMB: 4000, RequiredRAMMB: 200,
		CustomLoaderParams: map[string]any{
			"auth_token": "hf_secret", "whole": int64(1), "decimal": 1.0, "large": int64(1) << 60, "huge": 1e18, "half": 0.5, "yes": true, "none": nil,
			"list": []any{int64(1), 2.0, "x", map[string]any{"deep": int64(3)}},
		},
		TokenizerPath: "/opt/tok", TrustRemoteCode: true, Engine: "llamacpp", Team: "blue", Description: "two\nlines", Tags: []string{"chat", "Ünï"},
		ContextLength: 4096, GPUIDs: []int{0, 3}, IdleTimeout: registry.Duration(15 * time.Minute), Pinned: true, Priority: -7,
	}
}

func testModels(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.Model(ctx, "a")
	wantCode(t, err, registry.CodeNotFound)
	for _, m := range []registry.Model{full(), model("plain")} {
		rec, created, err := f.PutModel(ctx, m, lasting)
		ok(t, err)
		want := registry.Record{Model: m, Registration: registry.RegistrationActive, Persist: true, Version: 1,
			CreatedAt: f.now, CreatedBy: "ada", UpdatedAt: f.now, UpdatedBy: "ada"}
		if diff := cmp.Diff(want, rec); diff != "" || !created {
			t.Fatalf("created %v, difference (-want +got):\n%s", created, diff)
		}
		f.reopen(t)
		got, err := f.Model(ctx, m.ModelID)
		ok(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("after a restart (-want +got):\n%s", diff)
		}
	}
	if n, err := f.CountModels(ctx); n != 2 || err != nil {
		t.Fatalf("counted %d models, %v", n, err)
	}
	ok(t, f.DeleteModel(ctx, "plain", 0, false))
	wantCode(t, f.DeleteModel(ctx, "plain", 0, false), registry.CodeNotFound)
	if n, err := f.CountModels(ctx); n != 1 || err != nil {
		t.Fatalf("counted %d models, %v", n, err)
	}
	rec := f.put(t, registry.Model{ModelID: "bare", SourceType: registry.SourceLocal, SourcePath: "/x", ModelFormat: registry.FormatGGUF}, lasting)
	if rec.Revision != registry.DefaultRevision || rec.Team != registry.DefaultTeam {
		t.Errorf("a model without defaults was stored as %+v", rec.Model)
	}
}

func testConflicts(t *testing.T, f *fixture) {
	ctx := t.Context()
	m := model("m")
	first := f.put(t, m, lasting)
	f.now = f.now.Add(time.Hour)
	same, created, err := f.PutModel(ctx, m, store.PutOptions{Actor: "bob", Persist: true})
	ok(t, err)
	if diff := cmp.Diff(first, same); diff != "" || created {
		t.Fatalf("putting the same again changed it:\n%s", diff)
	}
	m.Description = "better"
	second := f.put(t, m, store.PutOptions{Actor: "bob", Persist: true, IfVersion: 1})
	if second.Version != 2 || second.UpdatedBy != "bob" || !second.UpdatedAt.Equal(f.now) || second.CreatedBy != "ada" || second.CreatedAt.Equal(f.now) {
		t.Fatalf("after a change: %+v", second)
	}
	m.Description = "worse"
	_, _, err = f.PutModel(ctx, m, store.PutOptions{Actor: "eve", Persist: true, IfVersion: 1})
	wantCode(t, err, registry.CodeConflict)
	for _, part := range []string{"bob", "1 March 2026 at 13:00:00 UTC"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the conflict does not say %q: %v", part, err)
		}
	}
	_, _, err = f.PutModel(ctx, m, store.PutOptions{Persist: true, IfAbsent: true})
	wantCode(t, err, registry.CodeConflict)
	_, _, err = f.PutModel(ctx, model("other"), store.PutOptions{Persist: true, IfVersion: 3})
	wantCode(t, err, registry.CodeConflict)
	wantCode(t, f.DeleteModel(ctx, "m", 1, false), registry.CodeConflict)
	got, err := f.Model(ctx, "m")
	ok(t, err)
	if diff := cmp.Diff(second, got); diff != "" {
		t.Fatalf("a refused change changed it:\n%s", diff)
	}

	pending := f.put(t, m, store.PutOptions{Persist: true, Registration: registry.RegistrationPending})
	m.Priority = 3
	kept := f.put(t, m, lasting)
	if pending.Registration != registry.RegistrationPending || kept.Registration != registry.RegistrationPending {
		t.Errorf("the registration became %q, then %q", pending.Registration, kept.Registration)
	}
	active, err := f.SetRegistration(ctx, "m", registry.RegistrationActive, "eve")
	ok(t, err)
	if active.Registration != registry.RegistrationActive || active.Version != kept.Version+1 || active.UpdatedBy != "eve" {
		t.Errorf("after approval: %+v", active)
	}
	again, err := f.SetRegistration(ctx, "m", registry.RegistrationActive, "bob")
	ok(t, err)
	if diff := cmp.Diff(active, again); diff != "" {
		t.Errorf("setting the same registration again changed it:\n%s", diff)
	}
	_, err = f.SetRegistration(ctx, "none", registry.RegistrationActive, "bob")
	wantCode(t, err, registry.CodeNotFound)
	ok(t, f.DeleteModel(ctx, "m", active.Version, false))
}

func testCase(t *testing.T, f *fixture) {
	ctx := t.Context()
	for _, pair := range [][2]string{{"Org/Model", "org/model"}, {"straße", "STRAßE"}, {"Ärger", "ärger"}, {"σ", "ς"}, {"k1", "\u212a1"}} {
		f.put(t, model(pair[0]), lasting)
		_, _, err := f.PutModel(ctx, model(pair[1]), lasting)
		wantCode(t, err, registry.CodeConflict)
		_, getErr := f.Model(ctx, pair[1])
		wantCode(t, getErr, registry.CodeNotFound)
		deleteErr := f.DeleteModel(ctx, pair[1], 0, false)
		wantCode(t, deleteErr, registry.CodeNotFound)
		putErr := f.PutRuntime(ctx, registry.Runtime{ModelID: pair[1]})
		wantCode(t, putErr, registry.CodeNotFound)
		for _, err := range []error{err, getErr, deleteErr, putErr} {
			if !strings.Contains(err.Error(), pair[0]) {
				t.Errorf("%v does not name %q", err, pair[0])
			}
		}
		_, _, _, err = f.PutModels(ctx, []registry.Model{model("new/" + pair[0]), model("new/" + pair[1])}, lasting)
		wantCode(t, err, registry.CodeConflict)
	}
	// Letters that only look alike, or whose lower case is shared without being a case of each other, are different.
	f.put(t, model("İx"), lasting)
	f.put(t, model("ix"), lasting)
	if n, err := f.CountModels(ctx); n != 7 || err != nil {
		t.Errorf("there are %d models, %v", n, err)
	}
}

func testBulk(t *testing.T, f *fixture) {
	ctx := t.Context()
	var ms []registry.Model
	for i := range 1200 {
		ms = append(ms, model(fmt.Sprintf("m-%04d", i)))
	}
	created, changed, unchanged, err := f.PutModels(ctx, ms[:700], lasting)
	ok(t, err)
	if len(created) != 700 || len(changed)+len(unchanged) != 0 {
		t.Fatalf("created %d, changed %d, unchanged %d", len(created), len(changed), len(unchanged))
	}
	for i := 600; i < 700; i++ {
		ms[i].Team = "green"
	}
	created, changed, unchanged, err = f.PutModels(ctx, ms, lasting)
	ok(t, err)
	if len(created) != 500 || len(changed) != 100 || len(unchanged) != 600 || created[0] != "m-0700" || changed[0] != "m-0600" || unchanged[0] != "m-0000" {
		t.Fatalf("created %d, changed %d, unchanged %d", len(created), len(changed), len(unchanged))
	}
	page, err := f.ListModels(ctx, store.ListQuery{Team: "green"})
	ok(t, err)
	if page.Total != 100 {
		t.Errorf("%d models belong to the team, want 100", page.Total)
	}
	bad := []registry.Model{model("x-1"), model("m-0001"), model("M-0002")}
	bad[1].Description = "changed"
	_, _, _, err = f.PutModels(ctx, bad, lasting)
	wantCode(t, err, registry.CodeConflict)
	_, err = f.Model(ctx, "x-1")
	wantCode(t, err, registry.CodeNotFound)
	rec, err := f.Model(ctx, "m-0001")
	ok(t, err)
	page, err = f.ListModels(ctx, store.ListQuery{Q: "changed"})
	ok(t, err)
	if rec.Description != "" || page.Total != 0 {
		t.Errorf("a refused import left %q and %d matches", rec.Description, page.Total)
	}
	_, _, _, err = f.PutModels(ctx, []registry.Model{model("y"), model("y")}, lasting)
	wantCode(t, err, registry.CodeConflict)
	_, _, _, err = f.PutModels(ctx, []registry.Model{model("y"), model("m-0003")}, store.PutOptions{Persist: true, IfAbsent: true})
	wantCode(t, err, registry.CodeConflict)
	bad[0].CustomLoaderParams = map[string]any{"f": func() {}}
	_, _, err = f.PutModel(ctx, bad[0], lasting)
	wantCode(t, err, registry.CodeInvalid)
	_, _, _, err = f.PutModels(ctx, nil, lasting)
	ok(t, err)
}

// testPassing: what is registered with persist=false is gone after a restart, and never costs what was there before.
func testPassing(t *testing.T, f *fixture) {
	ctx := t.Context()
	passing := store.PutOptions{Actor: "bob"}
	f.put(t, model("new"), passing)
	before := f.put(t, model("kept"), lasting)
	over := model("kept")
	over.Description = "for a moment"
	rec := f.put(t, over, passing)
	if rec.Persist || rec.Version != 2 {
		t.Fatalf("a passing change gave %+v", rec)
	}
	over.Description = "for another moment"
	f.put(t, over, passing)
	f.put(t, model("made lasting"), passing)
	f.put(t, model("made lasting"), lasting)
	ok(t, f.PutRuntime(ctx, registry.Runtime{ModelID: "kept", State: registry.RuntimeFailed}))
	f.reopen(t)

	_, err := f.Model(ctx, "new")
	wantCode(t, err, registry.CodeNotFound)
	got, err := f.Listed(ctx, "kept")
	ok(t, err)
	if got.Description != "" || !got.Persist || got.UpdatedBy != before.UpdatedBy || got.Version <= 3 || got.Status != registry.StatusFailed {
		t.Errorf("after the restart: %+v", got)
	}
	page, err := f.ListModels(ctx, store.ListQuery{Status: registry.StatusFailed})
	ok(t, err)
	if diff := cmp.Diff([]string{"kept"}, ids(page)); diff != "" {
		t.Errorf("failed models (-want +got):\n%s", diff)
	}
	f.reopen(t)
	all, err := f.ListModels(ctx, store.ListQuery{})
	ok(t, err)
	if diff := cmp.Diff([]string{"kept", "made lasting"}, ids(all)); diff != "" {
		t.Errorf("models (-want +got):\n%s", diff)
	}
}

func testOrphans(t *testing.T, f *fixture) {
	ctx := t.Context()
	handle := &registry.Handle{Loader: "fake", PID: 42}
	for id, rt := range map[string]registry.Runtime{
		"running": {State: registry.RuntimeReady, Handle: handle},
		"failed":  {State: registry.RuntimeFailed},
	} {
		f.put(t, model(id), store.PutOptions{})
		rt.ModelID = id
		ok(t, f.PutRuntime(ctx, rt))
	}
	if orphans, err := f.OrphanedRuntimes(ctx); len(orphans) != 0 || err != nil {
		t.Fatalf("orphans while the models are there: %v, %v", orphans, err)
	}
	f.reopen(t)
	orphans, err := f.OrphanedRuntimes(ctx)
	ok(t, err)
	if len(orphans) != 1 || orphans[0].ModelID != "running" || orphans[0].Handle == nil || orphans[0].Handle.PID != 42 {
		t.Fatalf("orphans after the restart: %+v", orphans)
	}
	if active, err := f.ActiveRuntimes(ctx); len(active) != 0 || err != nil {
		t.Errorf("the runtimes of models that are gone count as active: %v, %v", active, err)
	}
	ok(t, f.DeleteRuntime(ctx, "running"))
	ok(t, f.DeleteRuntime(ctx, "running"))
	if orphans, err := f.OrphanedRuntimes(ctx); len(orphans) != 0 || err != nil {
		t.Errorf("orphans after deletion: %v, %v", orphans, err)
	}
}

func testOutbox(t *testing.T, f *fixture) {
	ctx := t.Context()
	noted := store.PutOptions{Persist: true, ToManifest: true}
	f.put(t, model("a"), noted)
	f.put(t, model("b"), noted)
	f.put(t, model("quiet"), lasting)
	f.put(t, model("a"), noted) // the same again: the file may have lost it
	ok(t, f.DeleteModel(ctx, "b", 0, true))
	_, _, err := f.PutModel(ctx, model("a"), store.PutOptions{Persist: true, ToManifest: true, IfAbsent: true})
	wantCode(t, err, registry.CodeConflict)
	f.reopen(t)
	pending, err := f.ManifestPending(ctx)
	ok(t, err)
	if len(pending) != 2 || pending[0].ModelID != "a" || pending[0].Deleted || pending[1].ModelID != "b" || !pending[1].Deleted || pending[0].Seq >= pending[1].Seq {
		t.Fatalf("pending: %+v", pending)
	}
	ok(t, f.ManifestDone(ctx, pending[0].Seq))
	f.put(t, model("b"), noted)
	after, err := f.ManifestPending(ctx)
	ok(t, err)
	if len(after) != 1 || after[0].ModelID != "b" || after[0].Deleted || after[0].Seq <= pending[1].Seq {
		t.Fatalf("pending: %+v", after)
	}
	f.put(t, model("refused"), noted)
	f.put(t, model("refused too"), noted)
	waiting, err := f.ManifestPending(ctx)
	ok(t, err)
	ok(t, f.ManifestDone(ctx, waiting[len(waiting)-1].Seq, "refused", "refused too", "never seen"))
	kept, err := f.ManifestPending(ctx)
	ok(t, err)
	if diff := cmp.Diff(waiting[1:], kept); diff != "" || len(waiting) != 3 {
		t.Fatalf("pending (-want +got):\n%s", diff)
	}
	ok(t, f.ManifestDone(ctx, kept[1].Seq))
	f.reopen(t)
	f.put(t, model("c"), noted)
	last, err := f.ManifestPending(ctx)
	ok(t, err)
	if len(last) != 1 || last[0].Seq <= after[0].Seq {
		t.Fatalf("a number was given twice: %+v after %+v", last, after)
	}
}

func testEach(t *testing.T, f *fixture) {
	var ms []registry.Model
	for i := range 1300 {
		m := model(fmt.Sprintf("m-%04d", i))
		if i%2 == 1 {
			m.Team = "odd"
		}
		ms = append(ms, m)
	}
	_, _, _, err := f.PutModels(t.Context(), ms, lasting)
	ok(t, err)
	for _, c := range []struct {
		teams []string
		want  int
	}{{nil, 1300}, {[]string{}, 0}, {[]string{"odd"}, 650}, {[]string{"odd", "default", "none"}, 1300}} {
		var got []string
		// A write from within must not wait for the reading to end.
		ok(t, f.EachModel(t.Context(), c.teams, func(r registry.Record) error {
			if len(got) == 0 {
				f.put(t, model("m-0000"), lasting)
			}
			got = append(got, r.ModelID)
			return nil
		}))
		if len(got) != c.want || !slices.IsSorted(got) {
			t.Errorf("teams %v: %d models, sorted %v", c.teams, len(got), slices.IsSorted(got))
		}
	}
	stop, calls := errors.New("stop"), 0
	err = f.EachModel(t.Context(), nil, func(registry.Record) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%d calls, then %v", calls, err)
	}
}
