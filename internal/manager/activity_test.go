package manager

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// tells has engines that tell what they are doing: one more request running, and ten more tokens a second, whenever they are
// asked.
type tells struct {
	loaders.Loader
	asked *atomic.Int64
}

func (l tells) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	in, err := l.Loader.Load(ctx, spec, report)
	if err != nil {
		return nil, err
	}
	return telling{in, l.asked}, nil
}

type telling struct {
	loaders.Instance
	asked *atomic.Int64
}

func (i telling) Activity(context.Context) (registry.Activity, error) {
	n := i.asked.Add(1)
	if n == 3 {
		return registry.Activity{}, registry.Errorf(registry.CodeUnavailable, "not now")
	}
	tokens := 10 * n
	return registry.Activity{At: time.Unix(n, 0), Running: &n, GeneratedTokens: &tokens}, nil
}

// does waits until what a model's engine does is as ok says.
func (r *rig) does(id, what string, ok func(*registry.Activity) bool) {
	r.t.Helper()
	for {
		l, err := r.Get(r.ctx(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if ok(l.Runtime.Activity) {
			return
		}
		select { // there is no event for it: who watches it looks again and again
		case <-time.After(time.Millisecond):
		case <-r.ctx().Done():
			r.t.Fatalf("%s never %s: %+v", id, what, l.Runtime.Activity)
		}
	}
}

// TestActivity: an engine is asked what it does as often as whether it is well, what it said is told, and forgotten with it.
func TestActivity(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	r := newRig(t, func(o *Options) {
		o.VitalsEvery = 10 * time.Millisecond
		o.Loaders = []loaders.Loader{tells{o.Loaders[0], &asked}}
	})
	r.model("m", nil)
	r.ready("m")
	r.does("m", "tells its rate", func(a *registry.Activity) bool {
		return a != nil && a.TokensPerSecond != nil && *a.TokensPerSecond == 10
	})
	info, err := r.Instance(r.ctx(), "m")
	if err != nil || info.Activity == nil || info.Activity.Running == nil {
		t.Errorf("the instance does %+v, %v", info.Activity, err)
	}
	r.does("m", "goes on after a look without an answer", func(a *registry.Activity) bool { return a != nil && *a.Running > 3 })
	if _, _, err := r.Unload(r.ctx(), "m", UnloadOptions{}); err != nil {
		t.Fatal(err)
	}
	gone := r.until("m", "unloaded", func(now registry.Runtime) bool { return now.State == registry.RuntimeStopped })
	if gone.Activity != nil {
		t.Errorf("what is not loaded does %+v", gone.Activity)
	}
}
