package manager

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// clocked is a rig with a clock that the test sets, as the time since its beginning, and an operation of that rig.
func clocked(t *testing.T, stages []registry.StageName) (set func(time.Duration), track *tracker, r *rig) {
	t.Helper()
	began := time.Now()
	var now atomic.Int64
	r = newRig(t, func(o *Options) { o.Now = func() time.Time { return began.Add(time.Duration(now.Load())) } })
	track = r.newOperation(registry.OperationLoad, "m", "ada", "asked for", stages)
	t.Cleanup(func() { track.finish(nil, "") })
	return func(after time.Duration) { now.Store(int64(after)) }, track, r
}

// The weights' stage of Transformers begins with the import of the model's code, which takes seconds. They are not counted as
// if each tensor took as long.
func TestRateBeginsWithTheFirstOfIt(t *testing.T) {
	t.Parallel()
	set, track, r := clocked(t, registry.LoadStages)
	report := func(after time.Duration, done int64) registry.Stage {
		set(after)
		track.report(registry.Progress{Stage: registry.StageWeights, Done: done, Total: 290, Unit: registry.UnitTensors})
		return r.stageOf(track.snapshot(), registry.StageWeights)
	}
	report(0, 0)
	if s := report(8*time.Second, 10); s.Rate != 0 || s.ETA != 0 {
		t.Errorf("nothing can be said yet: %g tensors per second, %s left", s.Rate, s.ETA)
	}
	// 40 more in half a second: 80 a second, and 240 are left.
	if s := report(8500*time.Millisecond, 50); s.Rate != 80 || s.ETA != registry.Duration(3*time.Second) {
		t.Errorf("%g tensors per second, %s left", s.Rate, s.ETA)
	}
	if s := report(9*time.Second, 90); s.Rate != 80 || s.ETA != registry.Duration(2500*time.Millisecond) {
		t.Errorf("%g tensors per second, %s left", s.Rate, s.ETA)
	}
	// Another stage begins anew.
	set(20 * time.Second)
	track.report(registry.Progress{Stage: registry.StageWarmup, Msg: "Asking"})
	if s := r.stageOf(track.snapshot(), registry.StageWeights); s.Rate != 0 || s.ETA != 0 || s.Done != 290 {
		t.Errorf("%+v", s)
	}
}
