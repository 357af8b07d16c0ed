package manager

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// bed makes instances of the fake engine able to sleep, on GPU 0 of a fake machine.
type bed struct {
	*fake.Loader
	hw           *hwtest.Fake
	awake        int64 // bytes that it holds
	asleep       int64
	sleeps       atomic.Int32
	wakes        atomic.Int32
	refuse       atomic.Bool
	begun        chan struct{} // told when a sleep begins, if not nil
	hold         chan struct{} // a sleep waits for it, if not nil
	failsToWake  atomic.Bool
	wasCancelled atomic.Bool
}

func (b *bed) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	in, err := b.Loader.Load(ctx, spec, report)
	if err != nil {
		return nil, err
	}
	b.hw.Take(0, in.Handle().PID, b.awake)
	return &drowsy{in, b}, nil
}

func (b *bed) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	in, err := b.Loader.Recover(ctx, h)
	if err != nil {
		return nil, err
	}
	return &drowsy{in, b}, nil
}

type drowsy struct {
	loaders.Instance
	bed *bed
}

func (d *drowsy) Authorization() string { return d.Instance.(loaders.Authenticator).Authorization() }

func (d *drowsy) Stop(ctx context.Context) error {
	d.bed.hw.Release(d.Handle().PID)
	return d.Instance.Stop(ctx)
}

func (d *drowsy) Sleep(ctx context.Context) error {
	d.bed.sleeps.Add(1)
	if d.bed.refuse.Load() {
		return registry.Errorf(registry.CodeUnavailable, "the engine cannot sleep now")
	}
	if d.bed.begun != nil {
		d.bed.begun <- struct{}{}
	}
	if d.bed.hold != nil {
		select {
		case <-d.bed.hold:
		case <-ctx.Done():
			d.bed.wasCancelled.Store(true)
			return ctx.Err()
		}
	}
	d.bed.hw.Take(0, d.Handle().PID, d.bed.asleep)
	return nil
}

func (d *drowsy) Wake(context.Context) error {
	d.bed.wakes.Add(1)
	if d.bed.failsToWake.Load() {
		return errors.New("no room")
	}
	d.bed.hw.Take(0, d.Handle().PID, d.bed.awake)
	return nil
}

// sleepyRig is a machine with one GPU of 8 GiB and an engine that holds 6 GiB awake and 1 GiB asleep.
func sleepyRig(t *testing.T, change func(*bed)) (*rig, *bed) {
	t.Helper()
	b := &bed{awake: 6 << 30, asleep: 1 << 30}
	if change != nil {
		change(b)
	}
	r := rigIn(t, t.TempDir(), func(o *Options) {
		b.Loader = fake.New(fake.Options{Path: engineBinary, TagPrefix: o.Store.InstallationID()})
		o.Loaders = []loaders.Loader{b}
	})
	b.hw = r.hw
	r.hw.SetGPUs(hwtest.GPU(0, 8<<30))
	r.start()
	t.Cleanup(func() { r.close(false) })
	r.model("sleepy", nil, func(m *registry.Model) { m.RequiredGPUMemoryMB = 6 << 10; m.DevicePreference = registry.DeviceCUDA })
	r.ready("sleepy")
	return r, b
}

func (r *rig) sleep(id string) registry.Operation {
	r.t.Helper()
	op, err := r.Sleep(r.ctx(), id, UnloadOptions{Actor: "ada"})
	if err != nil {
		r.t.Fatal(err)
	}
	return op
}

func TestSleepGivesMemoryBackAndARequestWakes(t *testing.T) {
	r, b := sleepyRig(t, nil)
	op := r.end(r.sleep("sleepy"), registry.OperationSucceeded)
	if op.Released == nil || op.Released.Measured != 5<<30 || op.Unloaded == nil || *op.Unloaded || !strings.Contains(op.Outcome, "Asleep") {
		t.Errorf("the sleep says %q, released %+v", op.Outcome, op.Released)
	}
	r.state("sleepy", registry.RuntimeSleeping)
	var onGPU int64
	for _, row := range r.ledger.all() {
		if row.Device == "cuda:0" {
			onGPU += row.Bytes
		}
	}
	if onGPU != 1<<30 {
		t.Errorf("%d bytes of the GPU are promised to a model that sleeps", onGPU)
	}
	if again := r.end(r.sleep("sleepy"), registry.OperationSucceeded); !strings.Contains(again.Outcome, "already") {
		t.Errorf("a second sleep: %s", again.Outcome)
	}

	// What came back can be used by another model, and then there is too little to wake.
	r.model("other", nil, func(m *registry.Model) { m.RequiredGPUMemoryMB = 5 << 10; m.DevicePreference = registry.DeviceCUDA })
	b.awake = 5 << 30
	r.ready("other")
	wake, err := r.Wake(r.ctx(), "sleepy", LoadOptions{Actor: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.end(wake, registry.OperationFailed); got.Error.Code != registry.CodeInsufficientResources || got.Error.Shortage == nil {
		t.Errorf("a wake without room: %+v", got.Error)
	}
	r.state("sleepy", registry.RuntimeSleeping)
	r.end(r.unload("other"), registry.OperationSucceeded)

	b.awake = 6 << 30
	if code, err := r.ask("sleepy"); code != 200 || err != nil {
		t.Errorf("a request for a model that sleeps: %d, %v", code, err)
	}
	rt := r.state("sleepy", registry.RuntimeReady)
	if b.sleeps.Load() != 1 || b.wakes.Load() != 1 || rt.Memory.MeasuredGPU != 6<<30 {
		t.Errorf("%d sleeps and %d wakes, %d bytes measured", b.sleeps.Load(), b.wakes.Load(), rt.Memory.MeasuredGPU)
	}
	rows := r.ledger.all()
	if len(rows) != 1 || rows[0].Bytes != 6<<30 || rows[0].State != registry.RuntimeReady {
		t.Errorf("after it woke, promised are %+v", rows)
	}
	r.end(r.unload("sleepy"), registry.OperationSucceeded)
}

func TestSleepIsRefused(t *testing.T) {
	r, b := sleepyRig(t, nil)
	l, err := r.Acquire(r.ctx(), "sleepy", "ada")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Sleep(r.ctx(), "sleepy", UnloadOptions{}); registry.CodeOf(err) != registry.CodeBusy {
		t.Errorf("while it answers: %v", err)
	}
	l.Release()
	b.refuse.Store(true)
	if op := r.end(r.sleep("sleepy"), registry.OperationFailed); op.Error.Code != registry.CodeUnavailable {
		t.Errorf("an engine that refuses: %+v", op.Error)
	}
	r.state("sleepy", registry.RuntimeReady)
	if code, err := r.ask("sleepy"); code != 200 || err != nil {
		t.Errorf("a request after a sleep that failed: %d, %v", code, err)
	}
	r.model("stopped", nil)
	if _, err := r.Sleep(r.ctx(), "stopped", UnloadOptions{}); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("one that is not loaded: %v", err)
	}
	if _, err := r.Wake(r.ctx(), "stopped", LoadOptions{}); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("waking one that is not loaded: %v", err)
	}
	plain := newRig(t, nil)
	plain.model("m", nil)
	plain.ready("m")
	if _, err := plain.Sleep(plain.ctx(), "m", UnloadOptions{}); registry.CodeOf(err) != registry.CodeUnsupported {
		t.Errorf("an engine that cannot sleep: %v", err)
	}
}

func TestUnloadEndsAFallingAsleep(t *testing.T) {
	r, b := sleepyRig(t, func(b *bed) { b.begun, b.hold = make(chan struct{}, 1), make(chan struct{}) })
	op := r.sleep("sleepy")
	<-b.begun
	r.end(r.unload("sleepy"), registry.OperationSucceeded)
	r.end(op, registry.OperationCancelled)
	r.state("sleepy", registry.RuntimeStopped)
	if rows := r.ledger.all(); len(rows) > 0 {
		t.Errorf("promises are left: %+v", rows)
	}
}

// A load that comes while the model falls asleep wakes it as soon as it has.
func TestLoadWhileItFallsAsleep(t *testing.T) {
	r, b := sleepyRig(t, func(b *bed) { b.begun, b.hold = make(chan struct{}, 1), make(chan struct{}) })
	op := r.sleep("sleepy")
	<-b.begun
	load := r.mustLoad("sleepy", LoadOptions{Actor: "ada"})
	if same := r.mustLoad("sleepy", LoadOptions{Actor: "bob"}); same.ID != load.ID {
		t.Error("two loads wake it twice")
	}
	close(b.hold)
	r.end(op, registry.OperationSucceeded)
	r.end(load, registry.OperationSucceeded)
	r.state("sleepy", registry.RuntimeReady)
	if b.wakes.Load() != 1 {
		t.Errorf("%d wakes", b.wakes.Load())
	}
}

func TestWakeThatFails(t *testing.T) {
	r, b := sleepyRig(t, nil)
	r.end(r.sleep("sleepy"), registry.OperationSucceeded)
	b.failsToWake.Store(true)
	op, err := r.Wake(r.ctx(), "sleepy", LoadOptions{Actor: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	r.end(op, registry.OperationFailed)
	r.state("sleepy", registry.RuntimeSleeping)
	b.failsToWake.Store(false)
	r.end(r.mustLoad("sleepy", LoadOptions{Actor: "ada", ForceReload: true}), registry.OperationSucceeded)
	r.state("sleepy", registry.RuntimeReady)
}

// An engine that dies in its sleep is started again as any other.
func TestCrashAsleep(t *testing.T) {
	r, _ := sleepyRig(t, nil)
	r.end(r.sleep("sleepy"), registry.OperationSucceeded)
	c, rt := r.control("sleepy")
	r.hw.Release(rt.Handle.PID)
	_ = c.Crash(r.ctx()) // the connection breaks
	r.until("sleepy", "ready again", func(now registry.Runtime) bool {
		return now.State == registry.RuntimeReady && now.Generation > rt.Generation
	})
}

func TestSleepsThroughARestart(t *testing.T) {
	r, _ := sleepyRig(t, nil)
	r.end(r.sleep("sleepy"), registry.OperationSucceeded)
	r.close(true)
	r.start()
	r.state("sleepy", registry.RuntimeSleeping)
	if code, err := r.ask("sleepy"); code != 200 || err != nil {
		t.Errorf("a request after the restart: %d, %v", code, err)
	}
	r.state("sleepy", registry.RuntimeReady)
}
