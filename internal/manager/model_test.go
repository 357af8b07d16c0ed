package manager

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// step is one thing that somebody does to one of the models, or waits for.
type step struct {
	What  string
	Model int
	Which int // chooses among what there is: faults, operations
}

var steps = rapid.Custom(func(t *rapid.T) step {
	return step{
		What: rapid.SampledFrom([]string{"load", "load", "load", "evict", "override", "reload", "unload", "cancel", "crash", "crash",
			"use", "use", "release", "delete", "register", "plan", "list", "fetch", "fetch", "pause", "resume", "delete files", "settle", "settle", "settle", "settle"}).Draw(t, "what"),
		Model: rapid.IntRange(0, 3).Draw(t, "model"), Which: rapid.IntRange(0, 7).Draw(t, "which"),
	}
})

// TestAnythingInAnyOrder lets three people do things at random to four models of which three fit, and checks after each step
// and at the end what must always hold.
func TestAnythingInAnyOrder(t *testing.T) {
	t.Parallel()
	scripts := rapid.SliceOfN(rapid.SliceOfN(steps, 60, 60), 3, 3)
	const seeds = 6
	ran, seen := 0, map[registry.Trigger]int{}
	var mu sync.Mutex
	t.Cleanup(func() { // after the parallel ones
		if ran < seeds {
			return // with -run or -failfast not all of them ran
		}
		for _, on := range []registry.Trigger{registry.TriggerLoad, registry.TriggerAdmit, registry.TriggerAnswer, registry.TriggerRefuse, registry.TriggerFail, registry.TriggerCancel,
			registry.TriggerUnload, registry.TriggerDrained, registry.TriggerGone, registry.TriggerCrash, registry.TriggerRetry} {
			if seen[on] == 0 && !t.Failed() {
				t.Errorf("nothing of it ever happened: %s; seen were %v", on, seen)
			}
		}
	})
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			script := scripts.Example(seed)
			t.Logf("%+v", script)
			var d *sourcetest.Depot
			r := newRig(t, func(o *Options) {
				withDepot(&d)(o)
				o.MaxStarts, o.MaxRestarts, o.DrainTimeout, o.MaxFetches = 2, 1, 20*time.Millisecond, 1
			})
			d.Slow(time.Millisecond)
			r.hw.SetHost(registry.Host{RAMTotal: 100 << 20, RAMAvailable: 100 << 20, CPUs: 2})
			w := &modelWorld{rig: r}
			for i := range 4 {
				w.register(i, i)
			}
			watched := make(chan struct{})
			over := make(chan struct{})
			go func() { defer close(watched); w.watch(over) }()
			var people sync.WaitGroup
			for _, own := range script {
				people.Go(func() {
					for _, s := range own {
						w.do(s)
					}
				})
			}
			people.Wait()
			w.finish()
			close(over)
			<-watched
			mu.Lock()
			defer mu.Unlock()
			ran++
			for _, m := range r.seen.all() {
				seen[m.on]++
			}
			t.Log(seen)
		})
	}
}

type modelWorld struct {
	*rig
	mu     sync.Mutex
	ops    []string
	leases []Lease
}

func modelName(i int) string { return fmt.Sprintf("model/%d", i) }

// register puts a model in one of eight shapes.
func (w *modelWorld) register(i, shape int) {
	m := registry.Model{ModelID: modelName(i), SourceType: registry.SourceLocal, SourcePath: w.weights(), ModelFormat: registry.FormatGGUF, Engine: fake.Name,
		RequiredRAMMB: 32, Pinned: shape == 6, Priority: shape % 3, CustomLoaderParams: map[string]any{}}
	switch shape {
	case 3:
		m.CustomLoaderParams["fault"] = "hang_loading" // ended by a cancel only
	case 4:
		m.CustomLoaderParams["fault"] = "crash_loading"
	case 5:
		m.CustomLoaderParams["step_ms"] = 5
	case 7:
		m.IdleTimeout = registry.Duration(20 * time.Millisecond)
	}
	if shape%2 == 1 { // two models at a time share what they fetch
		m.SourceType, m.SourcePath = registry.SourceHuggingFace, fmt.Sprintf("org/%d", i/2)
	}
	_, _, err := w.Register(w.ctx(), m, PutOptions{Actor: "ada", Persist: true})
	w.expect(err)
}

// expect takes the errors that such people get to see and no others.
func (w *modelWorld) expect(err error) {
	switch registry.CodeOf(err) {
	case "", registry.CodeNotFound, registry.CodeBadState, registry.CodeBusy, registry.CodeInsufficientResources, registry.CodeLoadingFailed, registry.CodeUnavailable, registry.CodeInvalid:
	default:
		w.t.Errorf("an error that nobody should see: %v", err)
	}
}

func (w *modelWorld) note(op registry.Operation, err error) {
	w.expect(err)
	if err == nil {
		w.mu.Lock()
		w.ops = append(w.ops, op.ID)
		w.mu.Unlock()
	}
}

func (w *modelWorld) do(s step) {
	id, ctx := modelName(s.Model), w.ctx()
	switch s.What {
	case "load":
		w.note(w.Load(ctx, id, LoadOptions{Actor: "ada"}))
	case "evict":
		w.note(w.Load(ctx, id, LoadOptions{Actor: "ada", Evict: true}))
	case "override":
		w.note(w.Load(ctx, id, LoadOptions{Actor: "ada", Override: true}))
	case "reload":
		w.note(w.Load(ctx, id, LoadOptions{Actor: "ada", ForceReload: true}))
	case "unload":
		op, _, err := w.Unload(ctx, id, UnloadOptions{Actor: "ada"})
		w.note(op, err)
	case "cancel":
		w.mu.Lock()
		op := ""
		if n := len(w.ops); n > 0 {
			op = w.ops[max(0, n-1-s.Which)]
		}
		w.mu.Unlock()
		_, err := w.CancelOperation(ctx, op, "ada")
		w.expect(err)
	case "crash":
		if v := w.peek(id); v != nil && v.rt.Handle != nil {
			if c, err := fake.NewControl(*v.rt.Handle); err == nil {
				_ = c.Crash(ctx) // or it is gone already
			}
		}
	case "use":
		if l, ok, err := w.lease(ctx, id); err != nil {
			w.expect(err)
		} else if ok {
			w.mu.Lock()
			w.leases = append(w.leases, l)
			w.mu.Unlock()
		}
	case "fetch":
		w.note(w.Fetch(ctx, id, FetchOptions{Actor: "ada"}))
	case "pause", "resume":
		steer := w.PauseOperation
		if s.What == "resume" {
			steer = w.ResumeOperation
		}
		if ops, _, err := w.Operations(ctx, store.OperationQuery{Subject: id, Kind: registry.OperationFetch, Limit: 1}); err != nil || len(ops) == 1 {
			w.expect(err)
			_, err := steer(ctx, ops[0].ID, "ada")
			w.expect(err)
		}
	case "delete files":
		_, err := w.DeleteStored(ctx, registry.SourceHuggingFace, fmt.Sprintf("org/%d", s.Model/2), "r1", "ada", "")
		if registry.CodeOf(err) != registry.CodeConflict { // in use
			w.expect(err)
		}
	case "release":
		w.mu.Lock()
		if n := len(w.leases); n > 0 {
			w.leases[s.Which%n].Release()
		}
		w.mu.Unlock()
	case "delete":
		w.expect(w.Delete(ctx, id, 0, "ada"))
	case "register":
		w.register(s.Model, s.Which)
	case "plan":
		p, err := w.Plan(ctx, id, "")
		w.expect(err)
		if err == nil && p.Sentence == "" {
			w.t.Errorf("a plan without a sentence: %+v", p)
		}
	case "list":
		_, err := w.Get(ctx, id)
		w.expect(err)
	case "settle":
		// Some loads hang until they are cancelled, so nobody waits for ever: this sets the pace and is no proof of anything.
		soon, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		w.mu.Lock()
		op := ""
		if n := len(w.ops); n > 0 {
			op = w.ops[n-1]
		}
		w.mu.Unlock()
		_, err := w.Await(soon, op)
		w.expect(err)
	}
}

// watch checks at every change that no model has two engines and no engine is without a promise.
func (w *modelWorld) watch(over <-chan struct{}) {
	sub := w.Bus.Subscribe(events.Filter{Kinds: []registry.EventKind{registry.EventModelStatus}})
	go func() { <-over; sub.Close() }()
	for {
		if _, err := sub.Next(w.ctx()); err != nil {
			return
		}
		before := w.ledger.all()
		found, err := process.FindTagged(w.store.InstallationID())
		if err != nil {
			w.t.Error(err)
			return
		}
		owner := map[string]string{}
		for _, r := range append(before, w.ledger.all()...) {
			owner[r.InstanceID] = r.ModelID
		}
		engines := map[string]process.Tagged{}
		for _, p := range found {
			id, promised := owner[p.InstanceID]
			if !promised {
				if p.Identity().Alive() && !w.promised(p.InstanceID) && p.Identity().Alive() {
					w.t.Errorf("engine %+v runs and nothing is promised to it", p)
				}
				continue
			}
			if other, two := engines[id]; two && other.InstanceID != p.InstanceID && other.Identity().Alive() && p.Identity().Alive() {
				w.t.Errorf("%s has two engines: %+v and %+v", id, other, p)
			}
			engines[id] = p
		}
	}
}

func (w *modelWorld) promised(instance string) bool {
	for _, r := range w.ledger.all() {
		if r.InstanceID == instance {
			return true
		}
	}
	return false
}

// endFetches cancels the model's fetches, paused ones included.
func (w *modelWorld) endFetches(id string) {
	ops, _, err := w.Operations(w.ctx(), store.OperationQuery{Subject: id, Kind: registry.OperationFetch, Limit: store.MaxLimit})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, op := range ops {
		if !op.State.Final() {
			_, err := w.CancelOperation(w.ctx(), op.ID, "ada")
			w.expect(err)
		}
	}
	v := w.peek(id)
	if v == nil {
		return
	}
	switch {
	case v.fetching:
		w.t.Errorf("%s is being fetched after all of that was cancelled", id)
	case v.rt.State == registry.RuntimeStopped && (v.rt.Artifact == registry.ArtifactFetching || v.rt.Artifact == registry.ArtifactVerifying || v.rt.Artifact == registry.ArtifactResolving):
		w.t.Errorf("nobody has the files of %s brought here, and they are %s", id, v.rt.Artifact)
	}
}

// finish unloads everything and checks that all has ended.
func (w *modelWorld) finish() {
	for _, l := range w.leases {
		l.Release()
	}
	for i := range 4 {
		id := modelName(i)
		if _, err := w.store.Model(w.ctx(), id); registry.CodeOf(err) == registry.CodeNotFound {
			continue
		}
		w.endFetches(id)
		for {
			op, _, err := w.Unload(w.ctx(), id, UnloadOptions{Actor: "ada"})
			if err != nil {
				w.t.Fatal(err)
			}
			if _, err := w.Await(w.ctx(), op.ID); err != nil {
				w.t.Fatal(err)
			}
			rt, err := w.store.Runtime(w.ctx(), id)
			if err != nil {
				w.t.Fatal(err)
			}
			if rt.State == registry.RuntimeStopped {
				break
			}
			if w.ctx().Err() != nil {
				w.t.Fatalf("%s stays %s", id, rt.State)
			}
		}
	}
	for _, id := range w.ops {
		op, err := w.Await(w.ctx(), id)
		if err != nil || !op.State.Final() || op.EndedAt.IsZero() {
			w.t.Errorf("operation %+v has not ended: %v", op, err)
		}
		for _, s := range op.Stages {
			if s.State == registry.StageRunning || s.State == registry.StageWaiting {
				w.t.Errorf("a stage of the ended operation %s is %s", op.ID, s.State)
			}
		}
	}
	if rows := w.ledger.all(); len(rows) > 0 {
		w.t.Errorf("promises are left: %+v", rows)
	}
	w.fetchesEnd()
}

// fetchesEnd waits until what nobody wants any more has let go.
func (w *modelWorld) fetchesEnd() {
	for {
		w.fetches.mu.Lock()
		var f *sharedFetch
		for _, f = range w.fetches.byKey {
			break
		}
		w.fetches.mu.Unlock()
		if f == nil {
			break
		}
		select {
		case <-f.done:
		case <-w.ctx().Done():
			w.t.Fatal("a fetch that nobody waits for does not end")
		}
	}
	if n := len(w.fetches.slots); n != 0 {
		w.t.Errorf("%d places for downloads are held by nobody", n)
	}
}
