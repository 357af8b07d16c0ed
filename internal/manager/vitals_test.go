package manager

import (
	"context"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// unwell waits until a model's instance says of itself what ok accepts, looking again at each of its events.
func (r *rig) unwell(id, what string, ok func(string) bool) registry.Runtime {
	r.t.Helper()
	sub := r.Bus.Subscribe(events.Filter{Models: []string{id}})
	defer sub.Close()
	for {
		l, err := r.Get(r.ctx(), id)
		if err == nil && ok(l.Runtime.Unwell) {
			return l.Runtime
		}
		if _, err := sub.Next(r.ctx()); err != nil {
			r.t.Fatalf("%s is %q and never %s: %v", id, l.Runtime.Unwell, what, err)
		}
	}
}

// TestEngineThatHangs stops an engine as a debugger would: it runs, and answers nothing. It is told, ended, and started again.
func TestEngineThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) {
		o.VitalsEvery, o.HangAfter, o.StopTimeout = 10*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	})
	r.model("m", nil)
	rt := r.ready("m")
	stopped := rt.Handle.PID
	if err := syscall.Kill(stopped, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	told := r.unwell("m", "silent", func(s string) bool { return strings.HasPrefix(s, "It has not answered since ") })
	if told.State != registry.RuntimeReady || told.Handle.PID != stopped {
		t.Errorf("told of %+v", told)
	}
	back := r.until("m", "ended for not answering", func(rt registry.Runtime) bool {
		return rt.State == registry.RuntimeBackoff || rt.Generation > told.Generation
	})
	if back.Failure == nil || back.Failure.Kind != registry.FailureHang || len(back.Failure.LogTail) == 0 || back.Failure.Hint == "" {
		if back.Generation == told.Generation {
			t.Errorf("the failure is %+v", back.Failure)
		}
	}
	again := r.until("m", "ready again", func(rt registry.Runtime) bool {
		return rt.State == registry.RuntimeReady && rt.Generation > told.Generation
	})
	if again.Handle.PID == stopped || again.Attempts != 1 || again.Unwell != "" {
		t.Errorf("started again as %+v", again)
	}
	if err := syscall.Kill(stopped, 0); err == nil {
		t.Errorf("process %d is left", stopped)
	}
	if _, err := r.ask("m"); err != nil {
		t.Error(err)
	}
}

// clings has engines whose processes cannot be ended at the first try.
type clings struct {
	loaders.Loader
	tries *atomic.Int32
}

func (c clings) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	in, err := c.Loader.Load(ctx, spec, report)
	if err != nil {
		return nil, err
	}
	return clinging{in, c.tries}, nil
}

type clinging struct {
	loaders.Instance
	tries *atomic.Int32
}

func (c clinging) Stop(ctx context.Context) error {
	if c.tries.Add(1) == 1 {
		return registry.Errorf(registry.CodeInternal, "it hangs in the kernel")
	}
	return c.Instance.Stop(ctx)
}

// TestEngineThatCannotBeEnded: what does not answer and cannot be ended is tried again, and then started again.
func TestEngineThatCannotBeEnded(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	r := newRig(t, func(o *Options) {
		o.VitalsEvery, o.HangAfter, o.StopTimeout = 10*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond
		o.Loaders = []loaders.Loader{clings{o.Loaders[0], &tries}}
	})
	r.model("m", nil)
	rt := r.ready("m")
	if err := syscall.Kill(rt.Handle.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.until("m", "ready again", func(now registry.Runtime) bool {
		return now.State == registry.RuntimeReady && now.Generation > rt.Generation
	})
	if n := tries.Load(); n < 2 {
		t.Errorf("it was tried %d times", n)
	}
}

// TestEngineThatTakesMore has an engine that takes 400 MiB, really, where one was promised.
func TestEngineThatTakesMore(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.VitalsEvery = 10 * time.Millisecond })
	r.model("m", map[string]any{"memory_mb": int64(400)}, func(m *registry.Model) { m.RequiredRAMMB = 1 })
	r.ready("m")
	rt := r.unwell("m", "too large", func(s string) bool { return strings.Contains(s, "more than it was promised") })
	if rt.State != registry.RuntimeReady || rt.Memory.MeasuredRAM < 400<<20 || !strings.Contains(rt.Unwell, "required_ram_mb") {
		t.Errorf("%q, %+v", rt.Unwell, rt.Memory)
	}
}

func TestOverdrawn(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for name, tt := range map[string]struct {
		mem, first registry.Memory
		want       string
	}{
		"within":             {registry.Memory{PredictedGPU: 8 * gib, MeasuredGPU: 8 * gib}, registry.Memory{MeasuredGPU: 8 * gib}, ""},
		"a little over":      {registry.Memory{PredictedGPU: 8 * gib, MeasuredGPU: 8*gib + gib/2}, registry.Memory{MeasuredGPU: 8 * gib}, ""},
		"over at once":       {registry.Memory{PredictedGPU: 8 * gib, MeasuredGPU: 10 * gib}, registry.Memory{MeasuredGPU: 10 * gib}, "It holds 10 GiB, 2 GiB more than it was promised. Give it"},
		"over by and by":     {registry.Memory{PredictedRAM: gib, MeasuredRAM: 3 * gib}, registry.Memory{MeasuredRAM: gib}, "Once it was ready it held 1 GiB: it may leak."},
		"nothing promised":   {registry.Memory{MeasuredRAM: 3 * gib}, registry.Memory{}, ""},
		"nothing measured":   {registry.Memory{PredictedGPU: gib}, registry.Memory{}, ""},
		"RAM beside a GPU's": {registry.Memory{PredictedGPU: 8 * gib, MeasuredGPU: 8 * gib, MeasuredRAM: 64 * gib}, registry.Memory{}, ""},
	} {
		if got := overdrawn(tt.mem, tt.first); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
