package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

func testRuntimes(t *testing.T, f *fixture) {
	ctx := t.Context()
	rt, err := f.Runtime(ctx, "never heard of")
	ok(t, err)
	if diff := cmp.Diff(registry.Runtime{ModelID: "never heard of", State: registry.RuntimeStopped}, rt); diff != "" {
		t.Fatal(diff)
	}
	wantCode(t, f.PutRuntime(ctx, registry.Runtime{ModelID: "never heard of"}), registry.CodeNotFound)
	f.put(t, model("m"), lasting)
	full := registry.Runtime{
		ModelID: "m", Desired: registry.RuntimeReady, State: registry.RuntimeReady, Artifact: registry.ArtifactPresent, Generation: 7,
		InstanceID: "i7", Engine: "llamacpp", EngineVersion: "11434", Device: "cuda:0,1",
		Handle:   &registry.Handle{Loader: "llamacpp", Version: 2, InstanceID: "i7", PID: 4711, StartTicks: 1 << 63, BootID: "b", Data: json.RawMessage(`{"port":1}`)},
		Endpoint: &registry.Endpoint{BaseURL: "http://127.0.0.1:1", APIs: []registry.API{registry.APIChat}, ContextLength: 8192, ModelClass: "LlamaForCausalLM"},
		Memory:   registry.Memory{PredictedGPU: 1, PredictedRAM: 2, MeasuredGPU: 3, MeasuredRAM: 4}, Attempts: 2,
		ReadyAt: f.now, LastUsedAt: f.now.Add(time.Nanosecond), ChangedAt: f.now.Add(time.Second),
		Failure: &registry.Failure{Kind: registry.FailureCrash, Msg: "it fell", LogTail: []string{"a", "b"}, ExitCode: 3}, OperationID: "op", ConfigVersion: 9,
	}
	ok(t, f.PutRuntime(ctx, full))
	f.reopen(t)
	got, err := f.Runtime(ctx, "m")
	ok(t, err)
	if diff := cmp.Diff(full, got); diff != "" {
		t.Fatalf("after a restart (-want +got):\n%s", diff)
	}
	listed, err := f.Listed(ctx, "m")
	ok(t, err)
	if diff := cmp.Diff(full, listed.Runtime); diff != "" || listed.Status != registry.StatusReady {
		t.Fatalf("listed as %s (-want +got):\n%s", listed.Status, diff)
	}
	less := registry.Runtime{ModelID: "m", State: registry.RuntimeStopped}
	ok(t, f.PutRuntime(ctx, less))
	got, err = f.Runtime(ctx, "m")
	ok(t, err)
	if diff := cmp.Diff(less, got); diff != "" {
		t.Fatalf("what is no longer so was kept (-want +got):\n%s", diff)
	}

	var want []string
	for i, c := range []struct {
		state, desired registry.RuntimeState
		active         bool
	}{
		{registry.RuntimeStopped, registry.RuntimeStopped, false},
		{registry.RuntimeFailed, "", false},
		{"", "", false},
		{registry.RuntimeStopped, registry.RuntimeReady, true},
		{registry.RuntimeFailed, registry.RuntimeReady, true},
		{registry.RuntimeStarting, registry.RuntimeStopped, true},
		{registry.RuntimeBackoff, "", true},
	} {
		id := fmt.Sprintf("x-%d", i)
		f.put(t, model(id), lasting)
		ok(t, f.PutRuntime(ctx, registry.Runtime{ModelID: id, State: c.state, Desired: c.desired}))
		if c.active {
			want = append(want, id)
		}
	}
	active, err := f.ActiveRuntimes(ctx)
	ok(t, err)
	var gotIDs []string
	for _, a := range active {
		gotIDs = append(gotIDs, a.ModelID)
	}
	if diff := cmp.Diff(want, gotIDs); diff != "" {
		t.Errorf("active (-want +got):\n%s", diff)
	}
	ok(t, f.DeleteModel(ctx, "x-3", 0, false))
	f.put(t, model("x-3"), lasting)
	again, err := f.Runtime(ctx, "x-3")
	ok(t, err)
	if again.Desired != "" {
		t.Errorf("a new model inherited the runtime of a deleted one: %+v", again)
	}
}

func testOperations(t *testing.T, f *fixture) {
	ctx := t.Context()
	_, err := f.Operation(ctx, "none")
	wantCode(t, err, registry.CodeNotFound)
	yes := true
	full := registry.Operation{
		ID: "op-000", Kind: registry.OperationUnload, Subject: "m", State: registry.OperationSucceeded, Actor: "ada", Cause: "asked",
		CreatedAt: f.now, StartedAt: f.now, EndedAt: f.now.Add(time.Second), Outcome: "done",
		Stages: []registry.Stage{{Name: registry.StageDrain, State: registry.StageDone, Done: 3, Total: 4, Unit: registry.UnitBytes, Rate: 1.5,
			ETA: registry.Duration(time.Minute), Msg: "x", Stalled: true, StartedAt: f.now, EndedAt: f.now}},
		Error:    &registry.Problem{Code: registry.CodeLoadingFailed, Msg: "no", Failure: &registry.Failure{Kind: registry.FailurePort}},
		Released: &registry.Released{Device: "cpu", Expected: 1, Measured: 2, Verified: true}, Unloaded: &yes,
	}
	ok(t, f.PutOperation(ctx, full))
	f.reopen(t)
	got, err := f.Operation(ctx, "op-000")
	ok(t, err)
	if diff := cmp.Diff(full, got); diff != "" {
		t.Fatalf("after a restart (-want +got):\n%s", diff)
	}
	states := []registry.OperationState{registry.OperationQueued, registry.OperationRunning, registry.OperationSucceeded, registry.OperationFailed, registry.OperationCancelled}
	for i := 1; i < 40; i++ {
		op := registry.Operation{ID: fmt.Sprintf("op-%03d", i), Kind: registry.OperationLoad, Subject: fmt.Sprint("m", i%2), State: states[i%5]}
		if i%3 == 0 {
			op.Kind = registry.OperationFetch
		}
		ok(t, f.PutOperation(ctx, op))
	}
	list := func(q store.OperationQuery) (out []string) {
		for {
			ops, next, err := f.ListOperations(ctx, q)
			ok(t, err)
			for _, op := range ops {
				out = append(out, strings.TrimPrefix(op.ID, "op-0"))
			}
			if next == "" {
				return out
			}
			q.After = next
		}
	}
	if diff := cmp.Diff([]string{"30", "20", "10"}, list(store.OperationQuery{Subject: "m0", State: registry.OperationQueued, Limit: 2})); diff != "" {
		t.Errorf("queued for m0 (-want +got):\n%s", diff)
	}
	if got := list(store.OperationQuery{Kind: "none"}); len(got) != 0 {
		t.Errorf("of a kind that does not exist: %v", got)
	}
	if got := list(store.OperationQuery{Limit: 7}); len(got) != 40 || !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(b, a) }) {
		t.Errorf("all, newest first: %v", got)
	}
	if got := list(store.OperationQuery{Kind: registry.OperationFetch}); len(got) != 13 {
		t.Errorf("%d fetches, want 13", len(got))
	}
	unfinished, err := f.UnfinishedOperations(ctx)
	ok(t, err)
	if len(unfinished) != 15 || unfinished[0].ID != "op-001" {
		t.Errorf("%d unfinished, the first is %v", len(unfinished), unfinished[0].ID)
	}
	ok(t, f.PruneOperations(ctx, 100))
	ok(t, f.PruneOperations(ctx, 4))
	if got := list(store.OperationQuery{State: registry.OperationSucceeded}); !slices.Equal(got, []string{"37"}) {
		t.Errorf("succeeded after pruning: %v", got) // 39, 38, 37 and 34 are the newest that have ended
	}
	if got := list(store.OperationQuery{}); len(got) != 15+4 {
		t.Errorf("after pruning: %v", got)
	}
	ok(t, f.PruneOperations(ctx, 0))
	if got := list(store.OperationQuery{}); len(got) != 15 {
		t.Errorf("pruning removed what has not ended: %v", got)
	}
}

func testAudit(t *testing.T, f *fixture) {
	ctx := t.Context()
	for i := range 5 {
		ok(t, f.Audit(ctx, registry.AuditEntry{Actor: "ada", Action: "load", Subject: fmt.Sprint("m", i), Outcome: "ok", Detail: "d", Remote: "127.0.0.1"}))
	}
	f.reopen(t)
	newest, err := f.ListAudit(ctx, 2, 0)
	ok(t, err)
	if len(newest) != 2 || newest[0].Subject != "m4" || !newest[0].At.Equal(f.now) || newest[0].Remote != "127.0.0.1" {
		t.Fatalf("newest: %+v", newest)
	}
	older, err := f.ListAudit(ctx, 0, newest[1].ID)
	ok(t, err)
	if len(older) != 3 || older[0].Subject != "m2" {
		t.Fatalf("older: %+v", older)
	}
}

// testConcurrent has many write the same models at once. Each change is either refused or counted in the version.
func testConcurrent(t *testing.T, f *fixture) {
	ctx := t.Context()
	const writers, rounds, models = 8, 15, 5
	var wg sync.WaitGroup
	errs := make(chan error, writers*rounds*4)
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				id := fmt.Sprintf("m-%d", (w+r)%models)
				m := model(id)
				m.Description = fmt.Sprintf("w%d r%d", w, r)
				rec, _, err := f.PutModel(ctx, m, lasting)
				if err != nil {
					errs <- err
					continue
				}
				// What was acknowledged is there for everybody, by id and in every list, in this version or a later.
				got, err := f.Model(ctx, id)
				if err != nil || got.Version < rec.Version {
					errs <- fmt.Errorf("wrote version %d of %s, read %d: %w", rec.Version, id, got.Version, err)
				}
				own := model(fmt.Sprintf("own-%d-%d", w, r))
				if _, _, err := f.PutModel(ctx, own, lasting); err != nil {
					errs <- err
				}
				page, err := f.ListModels(ctx, store.ListQuery{Q: own.ModelID})
				if err != nil || !slices.Contains(ids(page), own.ModelID) {
					errs <- fmt.Errorf("wrote %s, which is not listed: %w", own.ModelID, err)
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	total := int64(0)
	for i := range models {
		rec, err := f.Model(ctx, fmt.Sprintf("m-%d", i))
		ok(t, err)
		total += rec.Version
	}
	if total != writers*rounds {
		t.Errorf("%d changes were acknowledged and %d counted", writers*rounds, total)
	}
	// Of many who saw the same version, one wins.
	base, err := f.Model(ctx, "m-0")
	ok(t, err)
	var won sync.Map
	for w := range writers {
		wg.Go(func() {
			m := model("m-0")
			m.Description = fmt.Sprint("winner ", w)
			if _, _, err := f.PutModel(ctx, m, store.PutOptions{Persist: true, IfVersion: base.Version}); err == nil {
				won.Store(w, true)
			}
		})
	}
	wg.Wait()
	winners := 0
	won.Range(func(any, any) bool { winners++; return true })
	if winners != 1 {
		t.Errorf("%d writers won", winners)
	}
}

func testEnded(t *testing.T, f *fixture) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := f.PutModel(ended, model("late"), lasting)
	wantCode(t, err, registry.CodeTimeout)
	_, err = f.Model(ended, "late")
	wantCode(t, err, registry.CodeTimeout)
	_, err = f.Model(t.Context(), "late")
	wantCode(t, err, registry.CodeNotFound)
	ok(t, f.Close())
	ok(t, f.Close())
	_, _, err = f.PutModel(t.Context(), model("late"), lasting)
	wantCode(t, err, registry.CodeUnavailable)
	_, err = f.ListModels(t.Context(), store.ListQuery{Q: "x"})
	wantCode(t, err, registry.CodeUnavailable)
	_, err = f.Model(t.Context(), "late")
	wantCode(t, err, registry.CodeUnavailable)
}
