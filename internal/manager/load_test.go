package manager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestLoadAndUnload(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("team/small", map[string]any{"memory_mb": 30})
	plan, err := r.Plan(r.ctx(), "team/small", "")
	if err != nil || plan.Verdict != registry.VerdictFits || plan.Needs.Bytes() != 46<<20 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	op := r.end(r.mustLoad("team/small", LoadOptions{Actor: "ada", Cause: "a test"}), registry.OperationSucceeded)
	if op.Actor != "ada" || op.Cause != "a test" || op.Stages[len(op.Stages)-1].State != registry.StageDone || !strings.HasPrefix(op.Outcome, "Ready in main memory in ") {
		t.Errorf("the load's operation: %+v", op)
	}
	rt := r.state("team/small", registry.RuntimeReady)
	if rt.Memory.PredictedRAM != 46<<20 || rt.Memory.MeasuredRAM < 30<<20 || rt.Artifact != registry.ArtifactPresent || rt.Device != "cpu" {
		t.Errorf("runtime: %+v", rt)
	}
	rows := r.Resources().Reservations
	if len(rows) != 1 || rows[0].ModelID != "team/small" || rows[0].PID != rt.Handle.PID || rows[0].Bytes != 46<<20 || rows[0].State != registry.RuntimeReady {
		t.Errorf("reservations: %+v", rows)
	}
	if rows[0].Taken < 30<<20 {
		t.Errorf("what the engine holds is not free any more, yet %d of it count as promised on top", rows[0].Bytes-rows[0].Taken)
	}
	if code, err := r.ask("team/small"); code != 200 {
		t.Errorf("it answers %d, %v", code, err)
	}
	again := r.end(r.mustLoad("team/small", LoadOptions{}), registry.OperationSucceeded)
	if again.Outcome != "It was already loaded." {
		t.Errorf("loaded again: %q", again.Outcome)
	}
	info, err := r.Instance(r.ctx(), "team/small")
	if err != nil || info.ModelClass != "FakeModel" || info.TokenizerClass != "FakeTokenizer" || info.Device != "cpu" {
		t.Errorf("instance: %+v, %v", info, err)
	}
	if p, err := r.Plan(r.ctx(), "team/small", ""); err != nil || p.Verdict != registry.VerdictLoaded {
		t.Errorf("plan of a loaded model: %+v, %v", p, err)
	}
	if err := r.Delete(r.ctx(), "team/small", 0, "ada"); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("a loaded model was deleted: %v", err)
	}
	un := r.end(r.unload("team/small"), registry.OperationSucceeded)
	if un.Unloaded == nil || !*un.Unloaded || un.Released == nil || !un.Released.Verified || un.Released.Measured < 30<<20 || un.Released.Expected != 46<<20 {
		t.Errorf("unload: %+v %+v", un, un.Released)
	}
	r.nothingLeft()
	op, yes, err := r.Unload(r.ctx(), "team/small", UnloadOptions{Actor: "ada"})
	if err != nil || yes || op.State != registry.OperationSucceeded || *op.Unloaded {
		t.Errorf("unloaded again: %v, %v, %+v", yes, err, op)
	}
	if _, _, err := r.Unload(r.ctx(), "team/none", UnloadOptions{}); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("unload of what there is none: %v", err)
	}
	if _, err := r.Load(r.ctx(), "team/none", LoadOptions{}); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("load of what there is none: %v", err)
	}
	if _, err := r.Load(r.ctx(), "team/small", LoadOptions{Device: "tpu"}); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("load on a device that there is none: %v", err)
	}
	if err := r.Delete(r.ctx(), "team/small", 0, "ada"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestLoadsAreJoined(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", map[string]any{"manual": true, "steps": 2})
	first := r.mustLoad("m", LoadOptions{Actor: "ada"})
	for _, force := range []bool{false, true} {
		if second := r.mustLoad("m", LoadOptions{Actor: "bob", ForceReload: force}); second.ID != first.ID {
			t.Errorf("force %v: a second operation %s beside %s", force, second.ID, first.ID)
		}
	}
	c, _ := r.control("m")
	advance(t, r, c.Advance, 2)
	r.end(first, registry.OperationSucceeded)
}

// advance tells an engine that loads by hand to go on. It listens a moment after its process is there.
func advance(t *testing.T, r *rig, f func(context.Context, int) error, n int) {
	t.Helper()
	for {
		err := f(r.ctx(), n)
		if err == nil {
			return
		}
		if r.ctx().Err() != nil {
			t.Fatal(err)
		}
		select {
		case <-time.After(5 * time.Millisecond): // another process, of which we hear nothing
		case <-r.ctx().Done():
		}
	}
}

func TestForceReload(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", nil)
	before := r.ready("m")
	op := r.mustLoad("m", LoadOptions{Actor: "ada", ForceReload: true})
	r.end(op, registry.OperationSucceeded)
	after := r.state("m", registry.RuntimeReady)
	if after.Handle.PID == before.Handle.PID || after.Generation != before.Generation+1 || after.InstanceID == before.InstanceID {
		t.Errorf("not a fresh instance: %+v after %+v", after, before)
	}
}

// TestForceReloadWithNewerConfiguration: an edit while the model is being loaded is not in that load, which the runtime
// tells; force_reload then loads with it, and nothing is left of the load before.
func TestForceReloadWithNewerConfiguration(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", map[string]any{"manual": true, "steps": 2})
	first := r.mustLoad("m", LoadOptions{Actor: "ada"})
	starting := r.state("m", registry.RuntimeStarting)
	edited := r.model("m", nil)
	if starting.ConfigVersion == 0 || starting.ConfigVersion >= edited.Version {
		t.Fatalf("loaded with version %d, and now it is %d", starting.ConfigVersion, edited.Version)
	}
	if joined := r.mustLoad("m", LoadOptions{Actor: "bob"}); joined.ID != first.ID {
		t.Error("a load without force_reload did not join")
	}
	second := r.mustLoad("m", LoadOptions{Actor: "bob", ForceReload: true})
	if second.ID == first.ID {
		t.Fatal("force_reload joined a load with the older configuration")
	}
	third := r.mustLoad("m", LoadOptions{Actor: "eve", ForceReload: true})
	if got := r.end(first, registry.OperationCancelled); !strings.Contains(got.Outcome, "bob loads it again") {
		t.Errorf("the first: %s", got.Outcome)
	}
	r.end(second, registry.OperationSucceeded) // it is not loaded by hand any more
	after := r.state("m", registry.RuntimeReady)
	if third.ID != second.ID || after.ConfigVersion != edited.Version || after.Generation != starting.Generation+1 {
		t.Errorf("%s after %s: %+v", third.ID, second.ID, after)
	}
}

// TestForceReloadOfAQueuedLoad is the same for one that waits for its files.
func TestForceReloadOfAQueuedLoad(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	gate := d.Hold("org/m")
	r.fetchable("m", "org/m")
	first := r.mustLoad("m", LoadOptions{Actor: "ada"})
	r.until("m", "fetching", func(rt registry.Runtime) bool { return rt.Artifact == registry.ArtifactFetching })
	edited := r.fetchable("m", "org/m", func(m *registry.Model) { m.ContextLength = 512 })
	second := r.mustLoad("m", LoadOptions{Actor: "bob", ForceReload: true})
	r.end(first, registry.OperationCancelled)
	newest := r.fetchable("m", "org/m", func(m *registry.Model) { m.ContextLength = 256 })
	third := r.mustLoad("m", LoadOptions{Actor: "bob", ForceReload: true})
	r.end(second, registry.OperationCancelled)
	close(gate)
	r.end(third, registry.OperationSucceeded)
	if rt := r.state("m", registry.RuntimeReady); rt.ConfigVersion != newest.Version || newest.Version <= edited.Version {
		t.Errorf("loaded with version %d of %d", rt.ConfigVersion, newest.Version)
	}
}

func TestLoadWhileDrainingQueues(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", nil)
	r.ready("m")
	lease, err := r.Acquire(r.ctx(), "m", "ada")
	if err != nil {
		t.Fatal(err)
	}
	un := r.unload("m")
	r.state("m", registry.RuntimeDraining)
	if again := r.unload("m"); again.ID != un.ID {
		t.Error("a second unload is not the one under way")
	}
	next := r.mustLoad("m", LoadOptions{Actor: "bob"})
	if also := r.mustLoad("m", LoadOptions{Actor: "eve"}); also.ID != next.ID {
		t.Error("a second load is not the one that waits")
	}
	if op, err := r.Operation(r.ctx(), un.ID); err != nil || op.State != registry.OperationRunning || op.Stages[0].Msg != "1 request is being finished" {
		t.Errorf("the drain: %+v, %v", op, err)
	}
	lease.Release()
	lease.Release()
	r.end(un, registry.OperationSucceeded)
	r.end(next, registry.OperationSucceeded)

	// A waiting load can be cancelled, and an unload drops it.
	for name, drop := range map[string]func(registry.Operation) error{
		"cancelled": func(op registry.Operation) error { _, err := r.CancelOperation(r.ctx(), op.ID, "ada"); return err },
		"unloaded": func(registry.Operation) error {
			_, _, err := r.Unload(r.ctx(), "m", UnloadOptions{Actor: "ada"})
			return err
		},
	} {
		r.ready("m")
		if lease, err = r.Acquire(r.ctx(), "m", "ada"); err != nil {
			t.Fatal(err)
		}
		un = r.unload("m")
		next = r.mustLoad("m", LoadOptions{Actor: "bob"})
		if err := drop(next); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.end(next, registry.OperationCancelled)
		lease.Release()
		r.end(un, registry.OperationSucceeded)
		r.state("m", registry.RuntimeStopped)
	}
}

func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.DrainTimeout = 20 * time.Millisecond })
	r.model("m", nil)
	r.ready("m")
	lease, err := r.Acquire(r.ctx(), "m", "ada")
	if err != nil {
		t.Fatal(err)
	}
	r.end(r.unload("m"), registry.OperationSucceeded)
	lease.Release() // of an instance that is no more
	if rt := r.ready("m"); rt.Generation != 2 {
		t.Errorf("generation %d", rt.Generation)
	}
	if v := r.peek("m"); v == nil || v.rt.State != registry.RuntimeReady {
		t.Errorf("a release of an older instance changed this one: %+v", v)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.MaxStarts = 1 })
	r.model("hangs", map[string]any{"fault": "hang_loading"})
	r.model("waits", nil)
	starting := r.mustLoad("hangs", LoadOptions{Actor: "ada"})
	r.control("hangs")
	queued := r.mustLoad("waits", LoadOptions{Actor: "ada"})
	r.state("waits", registry.RuntimeQueued)
	op, err := r.CancelOperation(r.ctx(), queued.ID, "bob")
	if err != nil || op.State != registry.OperationCancelled || op.Outcome != "Cancelled by bob." {
		t.Errorf("cancel of a queued load: %+v, %v", op, err)
	}
	if rt := r.state("waits", registry.RuntimeStopped); rt.Desired != registry.RuntimeStopped {
		t.Errorf("wanted is %s", rt.Desired)
	}
	if op, err = r.CancelOperation(r.ctx(), starting.ID, "bob"); err != nil || op.State != registry.OperationCancelled {
		t.Errorf("cancel of a starting load: %+v, %v", op, err)
	}
	r.state("hangs", registry.RuntimeStopped)
	r.nothingLeft()
	if _, err := r.CancelOperation(r.ctx(), starting.ID, "bob"); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("cancel of what has ended: %v", err)
	}
	if _, err := r.CancelOperation(r.ctx(), "none", "bob"); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("cancel of what there is none: %v", err)
	}
	// An unload of a model that is starting cancels the load; a load asked for meanwhile follows it.
	starting = r.mustLoad("hangs", LoadOptions{Actor: "ada"})
	r.control("hangs")
	un := r.unload("hangs")
	next := r.mustLoad("hangs", LoadOptions{Actor: "ada"})
	r.end(un, registry.OperationCancelled)
	r.end(starting, registry.OperationCancelled)
	r.control("hangs")
	if _, err := r.CancelOperation(r.ctx(), next.ID, "bob"); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

func TestFailures(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for fault, want := range map[string]registry.FailureKind{
		"oom_loading": registry.FailureOutOfMemory, "corrupt": registry.FailureCorruptFile, "unsupported": registry.FailureUnsupportedArch, "crash_loading": registry.FailureCrash,
	} {
		id := "m-" + fault
		r.model(id, map[string]any{"fault": fault})
		op := r.end(r.mustLoad(id, LoadOptions{Actor: "ada"}), registry.OperationFailed)
		if op.Error == nil || op.Error.Code != registry.CodeLoadingFailed || op.Error.Failure == nil || op.Error.Failure.Kind != want || len(op.Error.Failure.LogTail) == 0 {
			t.Errorf("%s: %+v", fault, op.Error)
		}
		rt := r.state(id, registry.RuntimeFailed)
		if rt.Failure == nil || rt.Failure.Kind != want || rt.Handle != nil {
			t.Errorf("%s: %+v", fault, rt)
		}
		if l, err := r.Get(r.ctx(), id); err != nil || l.Status != registry.StatusFailed {
			t.Errorf("%s: status %s, %v", fault, l.Status, err)
		}
		if _, err := r.Acquire(r.ctx(), id, "ada"); registry.CodeOf(err) != registry.CodeLoadingFailed {
			t.Errorf("%s: a request is told %v", fault, err)
		}
	}
	r.model("m-missing", nil, func(m *registry.Model) { m.SourcePath = filepath.Join(r.dir, "none.gguf") })
	op := r.end(r.mustLoad("m-missing", LoadOptions{}), registry.OperationFailed)
	if op.Error.Code != registry.CodeLoadingFailed || op.Error.Failure.Kind != registry.FailureMissingFile {
		t.Errorf("missing file: %+v", op.Error)
	}
	if rt := r.state("m-missing", registry.RuntimeFailed); rt.Artifact != registry.ArtifactFailed {
		t.Errorf("missing file: artifact %s", rt.Artifact)
	}
	r.model("m-parameter", map[string]any{"zork": 1})
	if op = r.end(r.mustLoad("m-parameter", LoadOptions{}), registry.OperationFailed); op.Error.Code != registry.CodeInvalid {
		t.Errorf("unknown parameter: %+v", op.Error)
	}
	r.model("m-engine", nil, func(m *registry.Model) { m.Engine = "vllm" })
	if op = r.end(r.mustLoad("m-engine", LoadOptions{}), registry.OperationFailed); op.Error.Failure.Kind != registry.FailureEngineMissing {
		t.Errorf("engine that is not here: %+v", op.Error)
	}
	r.nothingLeft()
	if _, yes, err := r.Unload(r.ctx(), "m-corrupt", UnloadOptions{Actor: "ada"}); yes || err != nil {
		t.Errorf("unload of a failed model: %v, %v", yes, err)
	}
	if rt := r.state("m-corrupt", registry.RuntimeStopped); rt.Failure != nil {
		t.Errorf("the failure stays: %+v", rt.Failure)
	}
}

func TestCrashAndRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.MaxRestarts = 2 })
	r.hw.SetGPUs(hwtest.GPU(0, 8<<30))
	r.model("m", nil)
	r.end(r.mustLoad("m", LoadOptions{Device: registry.DeviceCPU}), registry.OperationSucceeded)
	for attempt := 1; attempt <= 3; attempt++ {
		gen := int64(attempt)
		rt := r.until("m", "ready again", func(rt registry.Runtime) bool { return rt.State == registry.RuntimeReady && rt.Generation == gen })
		if rt.Attempts != attempt-1 || rt.Device != "cpu" {
			t.Fatalf("attempts %d on %s, want %d in main memory, where it was loaded", rt.Attempts, rt.Device, attempt-1)
		}
		c, _ := r.control("m")
		_ = c.Crash(r.ctx()) // the connection breaks
	}
	rt := r.state("m", registry.RuntimeFailed)
	if rt.Failure == nil || rt.Failure.Kind != registry.FailureCrash || !strings.HasPrefix(rt.Failure.Hint, "It crashed 3 times") || rt.Desired != registry.RuntimeStopped {
		t.Errorf("%+v %+v", rt, rt.Failure)
	}
	// Asked for again it begins afresh.
	r.ready("m")
	c, _ := r.control("m")
	_ = c.Crash(r.ctx())
	if rt := r.until("m", "restarted", func(rt registry.Runtime) bool { return rt.State == registry.RuntimeReady && rt.Generation == 5 }); rt.Attempts != 1 {
		t.Errorf("attempts %d", rt.Attempts)
	}
	r.end(r.unload("m"), registry.OperationSucceeded)
	if rt := r.ready("m"); rt.Attempts != 0 {
		t.Errorf("a crash before the unload still counts: attempts %d", rt.Attempts)
	}
}

func TestUnloadDuringBackoff(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.RestartPause = time.Hour })
	r.model("m", nil)
	for range 2 {
		r.ready("m")
		c, _ := r.control("m")
		_ = c.Crash(r.ctx())
		r.state("m", registry.RuntimeBackoff)
		r.nothingLeft()
	}
	if _, _, err := r.Unload(r.ctx(), "m", UnloadOptions{Actor: "ada"}); err != nil {
		t.Fatal(err)
	}
	r.state("m", registry.RuntimeStopped)
}

func TestInsufficientResources(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	check := func(id, device string) {
		t.Helper()
		op := r.end(r.mustLoad(id, LoadOptions{Actor: "ada"}), registry.OperationFailed)
		e := op.Error
		if e == nil || e.Code != registry.CodeInsufficientResources || e.Shortage == nil || e.Shortage.Device != device || e.Shortage.Needed <= e.Shortage.Free || e.Failure != nil {
			t.Fatalf("%s: %+v", id, e)
		}
		if rt := r.state(id, registry.RuntimeStopped); rt.Artifact != registry.ArtifactAbsent {
			t.Errorf("%s: artifact %s", id, rt.Artifact)
		}
		if l, err := r.Get(r.ctx(), id); err != nil || l.Status != registry.StatusNotLoaded {
			t.Errorf("%s: status %s, %v", id, l.Status, err)
		}
		plan, err := r.Plan(r.ctx(), id, "")
		if err != nil || plan.Sentence != e.Msg {
			t.Errorf("%s: the dry run says %q, the load %q", id, plan.Sentence, e.Msg)
		}
		for _, s := range op.Stages {
			if s.Name == registry.StageEngine && s.State != registry.StageSkipped {
				t.Errorf("%s: the engine's stage is %s", id, s.State)
			}
		}
	}
	r.model("ram", nil, func(m *registry.Model) { m.RequiredRAMMB = 1 << 20 })
	check("ram", "cpu")
	r.model("no-gpu", nil, func(m *registry.Model) { m.DevicePreference = registry.DeviceCUDA })
	check("no-gpu", "cuda")
	r.hw.SetGPUs(hwtest.GPU(0, 8<<30), hwtest.GPU(1, 8<<30))
	r.model("gpu", nil, func(m *registry.Model) { m.RequiredGPUMemoryMB = 20 << 10 })
	check("gpu", "cuda:0")
	r.nothingLeft()

	// An override loads it all the same.
	r.end(r.mustLoad("ram", LoadOptions{Device: registry.DeviceCPU, Override: true}), registry.OperationSucceeded)
	if rows := r.ledger.all(); len(rows) != 1 || rows[0].Bytes != 1<<40 {
		t.Errorf("%+v", rows)
	}
	r.end(r.unload("ram"), registry.OperationSucceeded)
	// Not a GPU where there is none.
	r.hw.SetGPUs()
	op := r.end(r.mustLoad("no-gpu", LoadOptions{Override: true}), registry.OperationFailed)
	if op.Error.Code != registry.CodeInsufficientResources {
		t.Errorf("%+v", op.Error)
	}
}

func TestGPUMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.hw.SetGPUs(hwtest.GPU(0, 8<<30), hwtest.GPU(1, 8<<30))
	r.model("split", map[string]any{"manual": true, "steps": 1}, func(m *registry.Model) { m.RequiredGPUMemoryMB = 10 << 10 })
	op := r.mustLoad("split", LoadOptions{})
	c, rt := r.control("split")
	r.hw.Take(0, rt.Handle.PID, 4<<30)
	r.hw.Take(1, rt.Handle.PID, -1) // a driver that does not say
	advance(t, r, c.Advance, 1)
	r.end(op, registry.OperationSucceeded)
	rt = r.state("split", registry.RuntimeReady)
	if rt.Device != "cuda:0,1" || rt.Memory.PredictedGPU != 10<<30 || rt.Memory.MeasuredGPU != 4<<30 || rt.Memory.MeasuredRAM != 0 {
		t.Errorf("%+v", rt)
	}
	rows := r.ledger.all()
	if len(rows) != 2 || rows[0].Bytes != 5<<30 || rows[0].Taken != 4<<30 || rows[1].Taken < 0 {
		t.Errorf("%+v", rows)
	}
	r.model("second", nil, func(m *registry.Model) { m.RequiredGPUMemoryMB = 4 << 10; m.GPUIDs = []int{0} })
	refused := r.end(r.mustLoad("second", LoadOptions{}), registry.OperationFailed)
	s := refused.Error.Shortage
	if s == nil || s.Device != "cuda:0" || s.Free != 3<<30 || len(s.Holders) != 1 || s.Holders[0].ModelID != "split" || !s.Holders[0].Evictable {
		t.Errorf("%+v", s)
	}
	// The driver takes a moment to give it back: the unload waits for that.
	un := r.unload("split")
	r.hw.Release(rt.Handle.PID)
	got := r.end(un, registry.OperationSucceeded)
	if !got.Released.Verified || got.Released.Device != "cuda:0,1" {
		t.Errorf("%+v", got.Released)
	}
	r.nothingLeft()
}

// What a driver still lists after the engine has ended is told, not hidden.
func TestMemoryThatDoesNotComeBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.hw.SetGPUs(hwtest.GPU(0, 8<<30))
	r.model("m", nil)
	rt := r.ready("m")
	r.hw.Take(0, rt.Handle.PID, 1<<30)
	if _, err := r.Hardware.Refresh(r.ctx()); err != nil {
		t.Fatal(err)
	}
	op := r.end(r.unload("m"), registry.OperationSucceeded)
	if op.Released.Verified || op.Released.Measured != 0 || !strings.HasPrefix(op.Outcome, "Unloaded, but the memory did not come back: 1 GiB") {
		t.Errorf("%+v %s", op.Released, op.Outcome)
	}
}

func TestEviction(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.hw.SetHost(registry.Host{RAMTotal: 100 << 20, RAMAvailable: 100 << 20, CPUs: 2})
	ram := func(mb int64, more ...func(*registry.Model)) func(*registry.Model) {
		return func(m *registry.Model) {
			m.RequiredRAMMB = mb
			for _, f := range more {
				f(m)
			}
		}
	}
	r.model("idle", nil, ram(40))
	r.model("pinned", nil, ram(40, func(m *registry.Model) { m.Pinned = true }))
	r.model("big", nil, ram(60))
	r.model("huge", nil, ram(90))
	r.ready("idle")
	r.ready("pinned")
	op := r.end(r.mustLoad("big", LoadOptions{Actor: "ada"}), registry.OperationFailed)
	if op.Error.Code != registry.CodeInsufficientResources || !strings.Contains(op.Error.Msg, "idle leaves") {
		t.Errorf("%+v", op.Error)
	}
	r.end(r.mustLoad("big", LoadOptions{Actor: "ada", Evict: true}), registry.OperationSucceeded)
	r.state("idle", registry.RuntimeStopped)
	r.state("pinned", registry.RuntimeReady)
	op = r.end(r.mustLoad("huge", LoadOptions{Actor: "ada", Evict: true}), registry.OperationFailed)
	if op.Error.Code != registry.CodeInsufficientResources {
		t.Errorf("%+v", op.Error)
	}
	r.state("big", registry.RuntimeReady)
	// One that is being used is not evicted either.
	lease, err := r.Acquire(r.ctx(), "big", "ada")
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	op = r.end(r.mustLoad("idle", LoadOptions{Actor: "ada", Evict: true}), registry.OperationFailed)
	if op.Error.Code != registry.CodeInsufficientResources {
		t.Errorf("%+v", op.Error)
	}
}

func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", nil, func(m *registry.Model) { m.IdleTimeout = registry.Duration(50 * time.Millisecond) })
	r.end(r.mustLoad("m", LoadOptions{}), registry.OperationSucceeded)
	lease, err := r.Acquire(r.ctx(), "m", "ada")
	if err != nil {
		t.Fatal(err)
	}
	lease.Release()
	r.state("m", registry.RuntimeStopped)
	r.nothingLeft()
}

// A result of an older generation changes nothing.
func TestStaleResultsAreDropped(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", nil)
	r.ready("m")
	r.end(r.mustLoad("m", LoadOptions{ForceReload: true}), registry.OperationSucceeded)
	now := r.state("m", registry.RuntimeReady)
	a, err := r.actor(r.ctx(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.do(r.ctx(), func() error {
		old := now.Generation - 1
		a.crashed(old, errors.New("long ago"))
		a.failed(old, errors.New("long ago"))
		a.refused(old, errors.New("long ago"))
		a.gone(old)
		a.restart(old)
		a.released(old)
		if a.answered(old, a.inst, registry.Memory{}, "") {
			t.Error("an instance of an older generation was taken")
		}
		if err := a.admitted(old, registry.Plan{}, ""); err == nil {
			t.Error("an older generation was admitted")
		}
		return a.started(old, registry.Handle{})
	}); err != nil {
		t.Fatal(err)
	}
	if rt := r.state("m", registry.RuntimeReady); rt.InstanceID != now.InstanceID || rt.Handle.PID != now.Handle.PID || rt.Failure != nil {
		t.Errorf("%+v", rt)
	}
}

// The engine's end and the wish to cancel may cross each other on their way to the actor.
func TestFailureCrossesCancel(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", map[string]any{"fault": "hang_loading"})
	op := r.mustLoad("m", LoadOptions{})
	r.control("m")
	a, err := r.actor(r.ctx(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.do(r.ctx(), func() error {
		gen := a.rt.Generation
		if err := a.dropLoad("Cancelled by ada."); err != nil {
			return err
		}
		a.failed(gen, errors.New("it had failed before"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.end(op, registry.OperationCancelled)
	r.state("m", registry.RuntimeStopped)
}

func TestManyLoadsAtOnce(t *testing.T) {
	t.Parallel()
	const loads, starts = 200, 3
	r := newRig(t, func(o *Options) { o.MaxStarts = starts })
	for i := range loads {
		r.model(fmt.Sprintf("m%03d", i), map[string]any{"fault": "hang_loading"})
	}
	var wg sync.WaitGroup
	ops := make([]registry.Operation, loads)
	for i := range loads {
		wg.Go(func() {
			op, err := r.Load(r.ctx(), fmt.Sprintf("m%03d", i), LoadOptions{Actor: "ada"})
			if err != nil {
				t.Error(err)
			}
			ops[i] = op
		})
	}
	wg.Wait() // although every engine hangs: nobody waits for one
	r.seenStarting(starts)
	if rows := r.ledger.all(); len(rows) > starts {
		t.Errorf("%d engines are starting, %d may", len(rows), starts)
	}
	for i := range ops {
		wg.Go(func() {
			if _, err := r.CancelOperation(r.ctx(), ops[i].ID, "ada"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, op := range ops {
		r.end(op, registry.OperationCancelled)
	}
}

// seenStarting waits until so many models are starting.
func (r *rig) seenStarting(n int) {
	r.t.Helper()
	sub := r.Bus.Subscribe(events.Filter{Kinds: []registry.EventKind{registry.EventModelStatus}})
	defer sub.Close()
	for {
		count := 0
		rts, err := r.store.ActiveRuntimes(r.ctx())
		if err != nil {
			r.t.Fatal(err)
		}
		for _, rt := range rts {
			if rt.State == registry.RuntimeStarting {
				count++
			}
		}
		if count > n {
			r.t.Errorf("%d models are starting, %d may", count, n)
		}
		if count >= n {
			return
		}
		if _, err := sub.Next(r.ctx()); err != nil {
			r.t.Fatalf("%d models are starting, want %d: %v", count, n, err)
		}
	}
}
