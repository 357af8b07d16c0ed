package manager

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// during waits until a stage of an operation is as it should be, looking again at each of the operation's events.
func (r *rig) during(op registry.Operation, name registry.StageName, what string, ok func(registry.Stage) bool) registry.Stage {
	r.t.Helper()
	sub := r.Bus.Subscribe(events.Filter{Models: []string{op.Subject}})
	defer sub.Close()
	for {
		s := r.stageOf(op, name)
		if ok(s) {
			return s
		}
		if _, err := sub.Next(r.ctx()); err != nil {
			r.t.Fatalf("stage %s of %s never %s: %+v", name, op.Subject, what, s)
		}
	}
}

func fetching(s registry.Stage) bool { return s.State == registry.StageRunning && s.Total > 0 }

// give lets so many parts of a held download through.
func give(t *testing.T, gate chan struct{}, n int) {
	t.Helper()
	for range n {
		select {
		case gate <- struct{}{}:
		case <-time.After(patient):
			t.Fatal("nobody downloads")
		}
	}
}

// artifactIs waits for the state of the files, and for the actor to be done with what brought it about: it stores a state
// before it shows it.
func (r *rig) artifactIs(id string, want registry.ArtifactState) registry.Runtime {
	r.t.Helper()
	rt := r.until(id, "with its files "+string(want), func(rt registry.Runtime) bool { return rt.Artifact == want })
	a, err := r.actor(r.ctx(), id)
	if err == nil {
		err = a.do(r.ctx(), func() error { return nil })
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return rt
}

func TestFetchWithoutLoad(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	gate := d.Hold("org/m")
	r.fetchable("m", "org/m")
	op := r.mustFetch("m")
	if op.Kind != registry.OperationFetch || op.Subject != "m" || op.Actor != "ada" {
		t.Fatalf("%+v", op)
	}
	r.during(op, registry.StageFetch, "has begun", fetching)
	give(t, gate, 2)
	s := r.during(op, registry.StageFetch, "moves", func(s registry.Stage) bool { return s.Done > 0 })
	if s.Unit != registry.UnitBytes || s.Total == 0 {
		t.Errorf("%+v", s)
	}
	rt := r.artifactIs("m", registry.ArtifactFetching)
	if rt.State != registry.RuntimeStopped {
		t.Errorf("a fetch moved the runtime to %s", rt.State)
	}
	l, err := r.Get(r.ctx(), "m")
	if err != nil || l.Status != registry.StatusFetching || l.Operation == nil || l.Operation.ID != op.ID || l.Percent == 0 {
		t.Errorf("%s %d%% %+v %v", l.Status, l.Percent, l.Operation, err)
	}
	if again := r.mustFetch("m"); again.ID != op.ID {
		t.Errorf("a second fetch is an operation of its own: %+v", again)
	}
	close(gate)
	done := r.end(op, registry.OperationSucceeded)
	if !strings.Contains(done.Outcome, "on this machine") {
		t.Errorf("%q", done.Outcome)
	}
	r.artifactIs("m", registry.ArtifactPresent)
	l, err = r.Get(r.ctx(), "m")
	if err != nil || l.Status != registry.StatusNotLoaded || l.Artifact == nil {
		t.Fatalf("%+v %v", l, err)
	}
	if a := l.Artifact; a.Revision != "r1" || a.Fetched != "r1" || a.Requested != "main" || a.Facts.Parameters != 42 || a.Root != d.Folder("org/m", "r1") || a.Main != "weights.gguf" || a.FetchedAt.IsZero() {
		t.Errorf("%+v", l.Artifact)
	}
	// The load that follows downloads nothing.
	before := d.Parts("org/m")
	r.ready("m")
	if now := d.Parts("org/m"); now != before || before != depotParts {
		t.Errorf("%d parts were downloaded, %d after the load", before, now)
	}
	if _, err := r.Fetch(r.ctx(), "none", FetchOptions{}); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("%v", err)
	}
}

func TestFetchIsShared(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	gate := d.Hold("org/m")
	for _, id := range []string{"a", "b", "c"} {
		r.fetchable(id, "org/m")
	}
	fetchA, fetchB := r.mustFetch("a"), r.mustFetch("b")
	load := r.mustLoad("c", LoadOptions{Actor: "ada"})
	both := r.mustLoad("b", LoadOptions{Actor: "ada"}) // a load and a fetch of the same model
	for _, op := range []registry.Operation{fetchA, fetchB, load, both} {
		r.during(op, registry.StageFetch, "has begun", fetching)
	}
	give(t, gate, 3)
	for _, op := range []registry.Operation{fetchA, fetchB, load, both} {
		r.during(op, registry.StageFetch, "moves with the others", func(s registry.Stage) bool { return s.Done > 0 })
	}
	// It goes on while somebody waits for it.
	if _, err := r.CancelOperation(r.ctx(), fetchA.ID, "ada"); err != nil {
		t.Fatal(err)
	}
	r.end(fetchA, registry.OperationCancelled)
	r.artifactIs("a", registry.ArtifactAbsent)
	if _, err := r.CancelOperation(r.ctx(), fetchB.ID, "ada"); err != nil {
		t.Fatal(err)
	}
	r.artifactIs("b", registry.ArtifactFetching) // for its load
	close(gate)
	r.end(load, registry.OperationSucceeded)
	r.end(both, registry.OperationSucceeded)
	if n, parts := d.Fetches("org/m"), d.Parts("org/m"); n != 1 || parts != depotParts {
		t.Errorf("%d fetches of %d parts, want one of %d", n, parts, depotParts)
	}
	if len(r.fetches.byKey) != 0 || len(r.fetches.shelves.at) != 0 {
		t.Errorf("left behind: %v %v", r.fetches.byKey, r.fetches.shelves.at)
	}
}

func TestFetchEndsWhenNobodyWaits(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	gate := d.Hold("org/m")
	r.fetchable("a", "org/m")
	r.fetchable("b", "org/m")
	a, b := r.mustFetch("a"), r.mustLoad("b", LoadOptions{Actor: "ada"})
	r.during(a, registry.StageFetch, "has begun", fetching)
	r.during(b, registry.StageFetch, "has begun", fetching)
	give(t, gate, 2)
	for _, op := range []registry.Operation{a, b} {
		if _, err := r.CancelOperation(r.ctx(), op.ID, "ada"); err != nil {
			t.Fatal(err)
		}
		r.end(op, registry.OperationCancelled)
	}
	// The next one waits until that one has let go of its files, and goes on where it was.
	again := r.mustFetch("a")
	close(gate)
	r.end(again, registry.OperationSucceeded)
	if parts := d.Parts("org/m"); parts != depotParts {
		t.Errorf("%d parts were downloaded, want %d", parts, depotParts)
	}
	if _, err := r.CancelOperation(r.ctx(), again.ID, "ada"); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("an ended fetch was cancelled: %v", err)
	}
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := rigIn(t, t.TempDir(), withDepot(&d))
	r.start()
	gate := d.Hold("org/m")
	r.fetchable("m", "org/m")
	op := r.mustFetch("m")
	r.during(op, registry.StageFetch, "has begun", fetching)
	give(t, gate, 3)
	r.during(op, registry.StageFetch, "moves", func(s registry.Stage) bool { return s.Done > 0 })
	paused, err := r.PauseOperation(r.ctx(), op.ID, "bob")
	if err != nil || paused.State != registry.OperationPaused || !strings.Contains(paused.Outcome, "Paused by bob after") {
		t.Fatalf("%+v %v", paused, err)
	}
	r.artifactIs("m", registry.ArtifactAbsent)
	if got, err := r.Await(r.ctx(), op.ID); err != nil || got.State != registry.OperationPaused || !got.EndedAt.IsZero() {
		t.Errorf("%+v %v", got, err)
	}
	if again, err := r.PauseOperation(r.ctx(), op.ID, "bob"); err != nil || again.State != registry.OperationPaused {
		t.Errorf("paused twice: %+v %v", again, err)
	}
	if err := r.store.PruneOperations(r.ctx(), 0); err != nil {
		t.Fatal(err)
	}
	r.pausedAreFine = true
	r.close(false)

	// It rests across a restart.
	r = rigIn(t, r.dir, withDepot(&d))
	r.start()
	defer r.close(false)
	if got, err := r.Operation(r.ctx(), op.ID); err != nil || got.State != registry.OperationPaused {
		t.Fatalf("%+v %v", got, err)
	}
	resumed, err := r.ResumeOperation(r.ctx(), op.ID, "bob")
	if err != nil || resumed.State.Resting() || resumed.ID != op.ID {
		t.Fatalf("%+v %v", resumed, err)
	}
	if _, err := r.ResumeOperation(r.ctx(), op.ID, "bob"); err != nil {
		t.Errorf("resumed twice: %v", err)
	}
	close(gate)
	r.end(op, registry.OperationSucceeded)
	if parts := d.Parts("org/m"); parts != depotParts {
		t.Errorf("%d parts were downloaded, want %d", parts, depotParts)
	}
	for _, f := range []func(context.Context, string, string) (registry.Operation, error){r.PauseOperation, r.ResumeOperation} {
		if _, err := f(r.ctx(), op.ID, "ada"); registry.CodeOf(err) != registry.CodeBadState {
			t.Errorf("%v", err)
		}
		load := r.mustLoad("m", LoadOptions{Actor: "ada"})
		if _, err := f(r.ctx(), load.ID, "ada"); registry.CodeOf(err) != registry.CodeBadState {
			t.Errorf("%v", err)
		}
		if _, err := f(r.ctx(), "none", "ada"); registry.CodeOf(err) != registry.CodeNotFound {
			t.Errorf("%v", err)
		}
		r.end(load, registry.OperationSucceeded)
	}
}

// A paused fetch goes on with the next load or fetch, ends when it is cancelled, and when its model is deleted.
func TestWhatEndsAPause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(r *rig, op registry.Operation)
		want registry.OperationState
	}{
		"load": {func(r *rig, _ registry.Operation) {
			r.end(r.mustLoad("m", LoadOptions{Actor: "ada"}), registry.OperationSucceeded)
		}, registry.OperationSucceeded},
		"fetch": {func(r *rig, op registry.Operation) {
			if again := r.mustFetch("m"); again.ID != op.ID {
				r.t.Errorf("%s beside %s", again.ID, op.ID)
			}
		}, registry.OperationSucceeded},
		"cancel": {func(r *rig, op registry.Operation) {
			if got, err := r.CancelOperation(r.ctx(), op.ID, "ada"); err != nil || got.State != registry.OperationCancelled {
				r.t.Errorf("%+v %v", got, err)
			}
		}, registry.OperationCancelled},
		"delete": {func(r *rig, _ registry.Operation) {
			if err := r.Delete(r.ctx(), "m", 0, "ada"); err != nil {
				r.t.Error(err)
			}
		}, registry.OperationCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var d *sourcetest.Depot
			r := newRig(t, withDepot(&d))
			gate := d.Hold("org/m")
			r.fetchable("m", "org/m")
			op := r.mustFetch("m")
			r.during(op, registry.StageFetch, "has begun", fetching)
			give(t, gate, 1)
			if _, err := r.PauseOperation(r.ctx(), op.ID, "bob"); err != nil {
				t.Fatal(err)
			}
			close(gate)
			c.do(r, op)
			got := r.end(op, c.want)
			for _, s := range got.Stages {
				if s.State == registry.StageRunning || s.State == registry.StageWaiting {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

func TestDeleteWhileFetching(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	d.Hold("org/m")
	r.fetchable("m", "org/m")
	op := r.mustFetch("m")
	r.during(op, registry.StageFetch, "has begun", fetching)
	if err := r.Delete(r.ctx(), "m", 0, "ada"); err != nil {
		t.Fatal(err)
	}
	r.end(op, registry.OperationCancelled)
	r.fetchable("m", "org/m")
	if l, err := r.Get(r.ctx(), "m"); err != nil || l.Status != registry.StatusNotLoaded || l.Runtime.Artifact == registry.ArtifactFetching {
		t.Errorf("a new model of the same name is %s with its files %s: %v", l.Status, l.Runtime.Artifact, err)
	}
}

// Downloads wait for each other, what is on disk already does not, and an engine's place to start is not held by them.
func TestFetchesWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, func(o *Options) { withDepot(&d)(o); o.MaxFetches, o.MaxStarts = 1, 1 })
	first, second := d.Hold("org/first"), d.Hold("org/second")
	r.fetchable("first", "org/first")
	r.fetchable("second", "org/second")
	a := r.mustLoad("first", LoadOptions{Actor: "ada"})
	r.during(a, registry.StageFetch, "has begun", fetching)
	b := r.mustFetch("second")
	s := r.during(b, registry.StageQueue, "says that it waits", func(s registry.Stage) bool { return s.State == registry.StageRunning })
	if !strings.Contains(s.Msg, "1 of 1 places for downloads") {
		t.Errorf("%+v", s)
	}
	r.model("here", nil) // local, and neither waits for a download nor for a place that one holds
	r.ready("here")
	close(first)
	r.end(a, registry.OperationSucceeded)
	r.during(b, registry.StageFetch, "has begun", fetching)
	close(second)
	r.end(b, registry.OperationSucceeded)
}

func TestStalledFetch(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	gate := d.Hold("org/m")
	r.fetchable("m", "org/m")
	op := r.mustFetch("m")
	r.during(op, registry.StageFetch, "has begun", fetching)
	v, _ := r.live.Load(op.ID)
	v.(*tracker).checkStalled(time.Now().Add(stallAfter + time.Second))
	if s := r.stageOf(op, registry.StageFetch); !s.Stalled || s.Rate != 0 {
		t.Errorf("not stalled: %+v", s)
	}
	give(t, gate, 2)
	r.during(op, registry.StageFetch, "moves again", func(s registry.Stage) bool { return !s.Stalled && s.Done > 0 })
	close(gate)
	r.end(op, registry.OperationSucceeded)
}

func TestFetchFails(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	d.Fail("org/m", &registry.Error{Code: registry.CodeLoadingFailed, Msg: "org/m is gated", Failure: &registry.Failure{Kind: registry.FailureGated, Msg: "org/m is gated"}})
	r.fetchable("m", "org/m")
	got := r.end(r.mustFetch("m"), registry.OperationFailed)
	if got.Error == nil || got.Error.Failure == nil || got.Error.Failure.Kind != registry.FailureGated {
		t.Errorf("%+v", got.Error)
	}
	rt := r.artifactIs("m", registry.ArtifactFailed)
	if rt.State != registry.RuntimeStopped || rt.Failure != nil {
		t.Errorf("the runtime axis was moved: %+v", rt)
	}
	d.Fail("org/m", nil)
	r.end(r.mustFetch("m"), registry.OperationSucceeded)
	r.artifactIs("m", registry.ArtifactPresent)
}

// A server that is closed or killed in the middle of a fetch goes on with it by itself.
func TestFetchGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := rigIn(t, t.TempDir(), withDepot(&d))
	r.start()
	gate := d.Hold("org/m")
	r.fetchable("m", "org/m")
	op := r.mustFetch("m")
	r.during(op, registry.StageFetch, "has begun", fetching)
	give(t, gate, 4)
	r.during(op, registry.StageFetch, "moves", func(s registry.Stage) bool { return s.Done > 0 })
	waiting := make(chan registry.Operation, 1)
	go func() {
		got, _ := r.Await(context.Background(), op.ID)
		waiting <- got
	}()
	r.pausedAreFine = true
	r.close(false)
	if got := <-waiting; got.State.Final() {
		t.Errorf("who waited was told that it has ended: %+v", got)
	}

	r = rigIn(t, r.dir, withDepot(&d))
	r.start()
	defer r.close(false)
	close(gate)
	sub := r.Bus.Subscribe(events.Filter{Models: []string{"m"}})
	defer sub.Close()
	for {
		got, err := r.Operation(r.ctx(), op.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.State == registry.OperationSucceeded {
			break
		}
		if _, err := sub.Next(r.ctx()); err != nil || got.State.Final() {
			t.Fatalf("%+v %v", got, err)
		}
	}
	r.artifactIs("m", registry.ArtifactPresent)
	if parts := d.Parts("org/m"); parts != depotParts {
		t.Errorf("%d parts were downloaded, want %d", parts, depotParts)
	}
	ops, _, err := r.Operations(r.ctx(), store.OperationQuery{Subject: "m"})
	if err != nil || len(ops) != 1 {
		t.Errorf("%+v %v", ops, err)
	}
}

// What an earlier fetch left on disk was not fetched now: it makes neither the rate higher nor the rest sooner.
func TestRateOfAResumedFetch(t *testing.T) {
	t.Parallel()
	began := time.Now()
	var now atomic.Int64 // nanoseconds since
	r := newRig(t, func(o *Options) { o.Now = func() time.Time { return began.Add(time.Duration(now.Load())) } })
	track := r.newOperation(registry.OperationFetch, "m", "ada", "asked for", registry.FetchStages)
	report := func(after time.Duration, done int64) registry.Stage {
		now.Store(int64(after))
		track.report(registry.Progress{Stage: registry.StageFetch, Done: done, Total: 100_000_000, Unit: registry.UnitBytes})
		return r.stageOf(track.snapshot(), registry.StageFetch)
	}
	report(0, 0)
	report(50*time.Millisecond, 60_000_000)
	if s := report(1050*time.Millisecond, 64_000_000); s.Rate != 4_000_000 || s.ETA != registry.Duration(9*time.Second) {
		t.Errorf("%g bytes per second, %s left", s.Rate, s.ETA)
	}
	track.finish(nil, "")
}
