package manager

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// known waits until what is known of a model's files is as it should be.
func (r *rig) known(id, what string, ok func(registry.ModelArtifact) bool) registry.ModelArtifact {
	r.t.Helper()
	sub := r.Bus.Subscribe(events.Filter{Models: []string{id}})
	defer sub.Close()
	for {
		a, found, err := r.store.Artifact(r.ctx(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if found && ok(a) {
			return a
		}
		if _, err := sub.Next(r.ctx()); err != nil {
			r.t.Fatalf("what is known of %s is never %s: %+v", id, what, a)
		}
	}
}

func (r *rig) onDisk(path, revision string) (registry.StoredArtifact, bool) {
	r.t.Helper()
	st, err := r.Storage(r.ctx())
	if err != nil || len(st.Problems) > 0 {
		r.t.Fatal(err, st.Problems)
	}
	for _, a := range st.Artifacts {
		if a.Path == path && a.Revision == revision {
			return a, true
		}
	}
	return registry.StoredArtifact{}, false
}

// The facts of a model are there without anybody asking, and stay when its source is away.
func TestFactsAreKnownAtOnce(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	r.fetchable("m", "org/m")
	a := r.known("m", "resolved", func(a registry.ModelArtifact) bool { return a.Revision == "r1" })
	if a.Fetched != "" || a.Facts.Parameters != 42 || a.Requested != "main" || len(a.Files) != 1 || a.Root != "https://depot.example/org/m" {
		t.Errorf("%+v", a)
	}
	if n := d.Fetches("org/m"); n != 0 {
		t.Errorf("%d fetches", n)
	}
	// Away: a plan is made from what is known, and a registration neither fails nor waits.
	d.Fail("org/m", registry.Errorf(registry.CodeUnavailable, "the depot is away"))
	if p, err := r.Plan(r.ctx(), "m", ""); err != nil || p.Verdict != registry.VerdictFits {
		t.Errorf("%+v %v", p, err)
	}
	d.Fail("org/new", registry.Errorf(registry.CodeUnavailable, "the depot is away"))
	r.fetchable("new", "org/new")
	if p, err := r.Plan(r.ctx(), "new", ""); err != nil || p.Problem == nil || p.Problem.Code != registry.CodeUnavailable {
		t.Errorf("%+v %v", p, err)
	}
	// What is wrong with a model is kept, too.
	// So is what everybody may know of one that is gated.
	d.Fail("org/gated", &registry.Error{Code: registry.CodeLoadingFailed, Msg: "gated", Failure: &registry.Failure{Kind: registry.FailureGated, Msg: "gated"}})
	r.fetchable("gated", "org/gated")
	if a := r.known("gated", "refused", func(a registry.ModelArtifact) bool { return a.Problem != nil }); a.Problem.Msg != "gated" || !a.Facts.Gated || a.Facts.Parameters != 42 || a.Revision != "" {
		t.Errorf("%+v %+v", a, a.Problem)
	}
	// A change of where the files come from makes what was known void.
	r.end(r.mustFetchAgain(d, "m", "org/m"), registry.OperationSucceeded)
	r.fetchable("m", "org/other")
	a = r.known("m", "resolved anew", func(a registry.ModelArtifact) bool { return a.Path == "org/other" })
	if a.Fetched != "" {
		t.Errorf("the files of another model count as its own: %+v", a)
	}
	r.artifactIs("m", registry.ArtifactAbsent)
}

func (r *rig) mustFetchAgain(d *sourcetest.Depot, id, path string) registry.Operation {
	r.t.Helper()
	d.Fail(path, nil)
	return r.mustFetch(id)
}

func TestSourceChecksTheFields(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	_, _, err := r.Register(r.ctx(), registry.Model{ModelID: "m", SourceType: registry.SourceHuggingFace, SourcePath: "bad/name", ModelFormat: registry.FormatGGUF}, PutOptions{Actor: "ada"})
	if e := registry.AsError(err); registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "source_path" {
		t.Errorf("%v", err)
	}
}

func TestStorage(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	r.fetchable("a", "org/m")
	r.fetchable("b", "org/m")
	r.fetchable("other", "org/other")
	r.known("b", "resolved", func(a registry.ModelArtifact) bool { return a.Revision == "r1" })
	r.end(r.mustFetch("a"), registry.OperationSucceeded)
	got, ok := r.onDisk("org/m", "r1")
	if !ok || !slices.Equal(got.Models, []string{"a", "b"}) || got.InUse {
		t.Fatalf("%+v", got)
	}
	// Loaded, also with a revision that is not the newest any more: refused, and the models are named.
	r.ready("a")
	d.Push("org/m", "r2")
	r.end(r.mustFetch("b"), registry.OperationSucceeded)
	r.end(r.mustFetch("a"), registry.OperationSucceeded) // a is loaded with r1
	if got, ok := r.onDisk("org/m", "r1"); !ok || !got.InUse || !slices.Equal(got.Models, []string{"a"}) {
		t.Errorf("%+v %v", got, ok)
	}
	_, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/m", "r1", "ada", "a test")
	if registry.CodeOf(err) != registry.CodeConflict || !strings.Contains(err.Error(), "in use by a.") {
		t.Errorf("%v", err)
	}
	r.end(r.unload("a"), registry.OperationSucceeded)
	sub := r.Bus.Subscribe(events.Filter{Kinds: []registry.EventKind{registry.EventStorage}})
	defer sub.Close()
	freed, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/m", "r1", "ada", "a test")
	if err != nil || freed == 0 {
		t.Errorf("%d %v", freed, err)
	}
	if _, err := sub.Next(r.ctx()); err != nil {
		t.Errorf("no event: %v", err)
	}
	r.artifactIs("a", registry.ArtifactPresent) // it has r2
	if freed, err = r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/m", "r2", "ada", "a test"); err != nil || freed == 0 {
		t.Errorf("%d %v", freed, err)
	}
	for _, id := range []string{"a", "b"} {
		r.artifactIs(id, registry.ArtifactAbsent)
		if a, _, err := r.store.Artifact(r.ctx(), id); err != nil || a.Fetched != "" || a.Revision == "" {
			t.Errorf("%+v %v", a, err)
		}
	}
	if _, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/m", "r2", "ada", ""); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("%v", err)
	}
	if _, err := r.DeleteStored(r.ctx(), registry.SourceLocal, r.weights(), "r2", "ada", ""); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("files that are not ours were deleted: %v", err)
	}
	r.ready("b") // it is fetched again
	if n := d.Fetches("org/m"); n < 3 {
		t.Errorf("%d fetches", n)
	}
}

// What is being fetched is not deleted, and what is being deleted is not fetched before that is through.
func TestDeleteAndFetchKeepApart(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	r.fetchable("a", "org/m")
	r.end(r.mustFetch("a"), registry.OperationSucceeded)
	d.Push("org/m", "r2")
	gate := d.Hold("org/m")
	op := r.mustFetch("a")
	r.during(op, registry.StageFetch, "has begun", fetching)
	if _, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/m", "r1", "ada", ""); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("%v", err)
	}
	close(gate)
	r.end(op, registry.OperationSucceeded)
	let, ok := r.fetches.shelves.take(r.shelfOf(registry.SourceHuggingFace, "org/m"))
	if !ok {
		t.Fatal("the shelf is taken")
	}
	again := r.mustFetch("a")
	r.artifactIs("a", registry.ArtifactResolving)
	let()
	r.end(again, registry.OperationSucceeded)
}

func TestCleanRemovesUnfinishedDownloads(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	gate := d.Hold("org/m")
	r.fetchable("m", "org/m")
	op := r.mustFetch("m")
	give(t, gate, 3)
	r.during(op, registry.StageFetch, "moves", func(s registry.Stage) bool { return s.Done > 0 })
	if _, err := r.CancelOperation(r.ctx(), op.ID, "ada"); err != nil {
		t.Fatal(err)
	}
	st, err := r.Storage(r.ctx())
	if err != nil || st.Partial == 0 {
		t.Fatalf("%+v %v", st, err)
	}
	if n, err := r.CleanStored(r.ctx(), time.Hour, "ada", ""); err != nil || n != 0 {
		t.Errorf("a young download was removed: %d %v", n, err)
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(d.Folder("org/m", "r1"), "weights.partial"), old, old); err != nil {
		t.Fatal(err)
	}
	if n, err := r.CleanStored(r.ctx(), time.Hour, "ada", ""); err != nil || n != st.Partial {
		t.Errorf("%d %v", n, err)
	}
}

func TestRetentionDecides(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	at := func(path string, days int, own int64, models ...string) registry.StoredArtifact {
		return registry.StoredArtifact{Path: path, Revision: "r", Own: own, Bytes: own, UsedAt: now.AddDate(0, 0, -days), ModifiedAt: now.AddDate(0, 0, -400), Models: models}
	}
	busy := at("busy", 300, 50, "x")
	busy.InUse = true
	part := registry.StoredArtifact{Path: "part", Partial: 7, ModifiedAt: now.AddDate(0, 0, -9)}
	st := registry.Storage{Bytes: 410, Artifacts: []registry.StoredArtifact{at("old", 90, 100), at("young", 2, 100), at("used", 200, 160, "m"), busy, part}}
	day := registry.Duration(24 * time.Hour)
	for name, c := range map[string]struct {
		r    registry.Retention
		want []string
	}{
		"nothing":             {registry.Retention{}, nil},
		"unused":              {registry.Retention{UnusedFor: 30 * day}, []string{"old"}},
		"unused, with models": {registry.Retention{UnusedFor: 30 * day, IncludeUsed: true}, []string{"old", "used"}},
		"bytes":               {registry.Retention{MaxBytes: 320}, []string{"old"}},
		"fewer bytes":         {registry.Retention{MaxBytes: 1}, []string{"old", "young"}}, // the rest has models
		"all that may go":     {registry.Retention{MaxBytes: 1, IncludeUsed: true}, []string{"old", "young", "used"}},
		"enough":              {registry.Retention{MaxBytes: 410}, nil},
	} {
		var got []string
		for _, it := range retained(c.r, st, now) {
			got = append(got, it.Path)
			if it.Why == "" || it.Freed == 0 {
				t.Errorf("%s: %+v", name, it)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := retainedPartials(registry.Retention{PartialFor: 7 * day}, st, now); len(got) != 1 || got[0].Freed != 7 {
		t.Errorf("%+v", got)
	}
	if got := retainedPartials(registry.Retention{PartialFor: 10 * day}, st, now); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestRetentionIsApplied(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	r.fetchable("keep", "org/keep")
	r.fetchable("gone", "org/gone")
	for _, id := range []string{"keep", "gone"} {
		r.end(r.mustFetch(id), registry.OperationSucceeded)
	}
	if err := r.Delete(r.ctx(), "gone", 0, "ada"); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.onDisk("org/gone", "r1"); !ok {
		t.Fatal("deleting a model deleted its files")
	}
	for _, bad := range []registry.Retention{{UnusedFor: -1}, {PartialFor: registry.Duration(time.Second)}, {MaxBytes: -1}} {
		if err := r.SetRetention(r.ctx(), bad); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	policy := registry.Retention{MaxBytes: 1}
	if err := r.SetRetention(r.ctx(), policy); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Retention(r.ctx()); err != nil || got != policy {
		t.Errorf("%+v %v", got, err)
	}
	dry, err := r.Retain(r.ctx(), policy, true, "ada")
	if err != nil || len(dry) != 1 || dry[0].Path != "org/gone" {
		t.Fatalf("%+v %v", dry, err)
	}
	if _, ok := r.onDisk("org/gone", "r1"); !ok {
		t.Fatal("a dry run deleted something")
	}
	done, err := r.Retain(r.ctx(), policy, false, "manager")
	if err != nil || len(done) != 1 || done[0].Error != nil || done[0].Freed != dry[0].Freed {
		t.Fatalf("%+v %v", done, err)
	}
	if _, ok := r.onDisk("org/gone", "r1"); ok {
		t.Error("it is still there")
	}
	if _, ok := r.onDisk("org/keep", "r1"); !ok {
		t.Error("what a model uses is gone")
	}
	audit, err := r.store.ListAudit(r.ctx(), 10, 0)
	if err != nil || len(audit) != 1 || audit[0].Action != "storage.delete" || audit[0].Actor != "manager" || !strings.Contains(audit[0].Subject, "org/gone@r1") {
		t.Errorf("%+v %v", audit, err)
	}
}

// bandwidth remembers what it was told.
type bandwidth struct {
	total   int64
	sources map[registry.SourceType]int64
}

func (b *bandwidth) SetRate(n int64) { b.total = n }
func (b *bandwidth) SetSourceRate(t registry.SourceType, n int64) {
	if b.sources == nil {
		b.sources = map[registry.SourceType]int64{}
	}
	b.sources[t] = n
}

func TestLimitsAndRoots(t *testing.T) {
	t.Parallel()
	b := &bandwidth{}
	r := rigIn(t, t.TempDir(), func(o *Options) { o.Bandwidth = b })
	r.start()
	if err := r.SetBandwidthLimits(r.ctx(), registry.BandwidthLimits{Total: 5, Sources: map[registry.SourceType]int64{registry.SourceLocal: 3}}); err != nil {
		t.Fatal(err)
	}
	if b.total != 5 || b.sources[registry.SourceLocal] != 3 {
		t.Errorf("not in effect: %+v", b)
	}
	for _, bad := range []registry.BandwidthLimits{{Total: -1}, {Sources: map[registry.SourceType]int64{"ftp": 1}}, {Sources: map[registry.SourceType]int64{registry.SourceS3: -1}}} {
		if err := r.SetBandwidthLimits(r.ctx(), bad); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	r.model("m", nil)
	if got, err := r.RootFolders(r.ctx()); err != nil || got.From != "command line" || len(got.Folders) != 0 {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := r.SetRootFolders(r.ctx(), []string{"relative"}); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("%v", err)
	}
	if got, err := r.SetRootFolders(r.ctx(), []string{"/srv/nothing/", "/srv/nothing"}); err != nil || got.From != "settings" || !slices.Equal(got.Folders, []string{"/srv/nothing"}) {
		t.Errorf("%+v %v", got, err)
	}
	outside := func() {
		t.Helper()
		if p, err := r.Plan(r.ctx(), "m", ""); err != nil || p.Problem == nil || p.Problem.Code != registry.CodeInvalid {
			t.Errorf("a model outside of the roots is planned: %+v %v", p, err)
		}
	}
	outside()
	r.close(false)

	b.total = 0
	r = rigIn(t, r.dir, func(o *Options) { o.Bandwidth = b })
	r.start()
	defer r.close(false)
	if b.total != 5 {
		t.Errorf("the limits are not in effect after a restart: %+v", b)
	}
	outside()
	if got, err := r.SetRootFolders(r.ctx(), nil); err != nil || got.From != "command line" {
		t.Errorf("%+v %v", got, err)
	}
	if p, err := r.Plan(r.ctx(), "m", ""); err != nil || p.Problem != nil {
		t.Errorf("%+v %v", p, err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := rigIn(t, t.TempDir(), func(o *Options) { withDepot(&d)(o); o.WatchEvery = 5 * time.Millisecond })
	r.start()
	r.fetchable("m", "org/m")
	r.end(r.mustFetch("m"), registry.OperationSucceeded)
	d.Push("org/m", "r2")
	r.known("m", "changed", func(a registry.ModelArtifact) bool { return a.Changed != "" })
	l, err := r.Get(r.ctx(), "m")
	if err != nil || l.Changed != "weights.gguf was replaced" || l.Artifact == nil || l.Artifact.Changed != l.Changed {
		t.Errorf("%+v %v", l, err)
	}
	r.close(false)
	r = rigIn(t, r.dir, withDepot(&d)) // looks again after 30 s only
	r.start()
	defer r.close(false)
	r.recallChanges()
	if l, err := r.Get(r.ctx(), "m"); err != nil || l.Changed == "" {
		t.Errorf("forgotten at a restart: %+v %v", l, err)
	}
	// A load uses what is there now.
	r.ready("m")
	a := r.known("m", "fetched", func(a registry.ModelArtifact) bool { return a.Fetched == "r2" })
	if l, err := r.Get(r.ctx(), "m"); err != nil || l.Changed != "" || a.Changed != "" {
		t.Errorf("%+v %v", l, err)
	}
}
