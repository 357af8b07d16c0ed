package manager

import (
	"context"
	"fmt"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Sleep puts a ready model to sleep: its engine gives the device's memory back and stays, so that it wakes sooner than it
// loads. The operation says how many bytes came back. A request for the model, a load or Wake wakes it. CodeNotFound,
// CodeBadState when it is not loaded, CodeBusy while it answers requests, CodeUnsupported when its engine cannot sleep.
func (m *Manager) Sleep(ctx context.Context, id string, o UnloadOptions) (op registry.Operation, err error) {
	if _, err := m.store.Model(ctx, id); err != nil {
		return op, err
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return op, err
	}
	err = a.do(ctx, func() error {
		op, err = a.requestSleep(o)
		return err
	})
	return op, err
}

// Wake wakes a model that sleeps, and leaves one that is ready as it is. CodeNotFound, CodeBadState for any other.
func (m *Manager) Wake(ctx context.Context, id string, o LoadOptions) (op registry.Operation, err error) {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return op, err
	}
	if err := mayLoad(rec); err != nil {
		return op, err
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return op, err
	}
	err = a.do(ctx, func() error {
		if a.rt.State != registry.RuntimeSleeping && a.rt.State != registry.RuntimeReady {
			return registry.Errorf(registry.CodeBadState, "%s does not sleep (%s); load it instead", id, a.rt.State)
		}
		op, err = a.requestLoad(rec, o)
		return err
	})
	return op, err
}

// nap is falling asleep or waking up, which take a while. The state is sleeping during both, so that no request is let
// through.
type nap struct {
	job
	waking bool
	then   *job // a wake that was asked for while it fell asleep
}

// sleeps reports whether a loaded model can be put to sleep; if not, why says so as one sentence.
func (m *Manager) sleeps(rt registry.Runtime, inst loaders.Instance) (can bool, why string) {
	if inst == nil {
		return false, ""
	}
	title := rt.Engine
	if l, err := m.engine(rt.Engine); err == nil {
		title = l.Info().Title
	}
	if _, ok := inst.(loaders.Sleeper); !ok {
		if rt.Device == remote {
			return false, "It runs elsewhere and holds no memory of this machine"
		}
		return false, title + " has no sleep mode. Unloading gives the memory back"
	}
	if a, ok := inst.(loaders.Awake); ok {
		if why := a.WhyAwake(); why != "" {
			return false, why
		}
	}
	return true, ""
}

// lowerFirst makes a sentence the end of another.
func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

func (a *actor) requestSleep(o UnloadOptions) (registry.Operation, error) {
	sleeper, _ := a.inst.(loaders.Sleeper)
	can, why := a.m.sleeps(a.rt, a.inst)
	switch {
	case a.rt.State == registry.RuntimeSleeping && a.nap != nil && !a.nap.waking:
		return a.nap.track.snapshot(), nil
	case a.rt.State == registry.RuntimeSleeping && a.nap != nil:
		return registry.Operation{}, registry.Errorf(registry.CodeBusy, "%s is just waking up; try again", a.id)
	case a.rt.State != registry.RuntimeReady && a.rt.State != registry.RuntimeSleeping:
		return registry.Operation{}, registry.Errorf(registry.CodeBadState, "%s is not loaded (%s), so that it cannot be put to sleep", a.id, a.rt.State)
	case a.rt.State == registry.RuntimeReady && !can:
		return registry.Operation{}, registry.Errorf(registry.CodeUnsupported, "%s cannot sleep: %s", a.id, lowerFirst(why))
	case a.active > 0:
		return registry.Operation{}, &registry.Error{Code: registry.CodeBusy, Msg: fmt.Sprintf("%s answers %d requests now; try again when they are done", a.id, a.active), RetryAfter: a.m.DrainTimeout / 10}
	}
	no := false
	t := a.m.newOperation(registry.OperationUnload, a.id, o.Actor, o.Cause, registry.UnloadStages)
	t.op.Unloaded = &no // it stays loaded
	if err := t.save(); err != nil {
		a.m.live.Delete(t.op.ID)
		return registry.Operation{}, err
	}
	if a.rt.State == registry.RuntimeSleeping {
		t.finish(nil, "It was already asleep.")
		return t.snapshot(), nil
	}
	if err := a.move(registry.TriggerSleep, func(rt *registry.Runtime) { rt.OperationID = t.op.ID }); err != nil {
		t.finish(err, "")
		return registry.Operation{}, err
	}
	a.disarmIdle()
	ctx, n := a.beginNap(t, false)
	rt := a.rt
	a.m.goWork(func() {
		released, err := a.m.fallAsleep(ctx, sleeper, rt, t)
		a.post(func() { a.asleep(n, released, err) })
	})
	return t.snapshot(), nil
}

func (a *actor) beginNap(t *tracker, waking bool) (context.Context, *nap) {
	ctx, cancel := context.WithCancel(a.m.ctx)
	n := &nap{job: job{track: t, gen: a.rt.Generation, cancel: cancel}, waking: waking}
	a.nap = n
	return ctx, n
}

// dropNap ends a nap that makes no sense any more: the model is unloaded, or its engine has ended.
func (a *actor) dropNap(why string) {
	n := a.nap
	if n == nil {
		return
	}
	a.nap = nil
	n.cancel()
	n.track.finish(context.Canceled, why)
	if n.then != nil {
		n.then.track.finish(context.Canceled, why)
	}
}

// fallAsleep is the slow part of Sleep.
func (m *Manager) fallAsleep(ctx context.Context, s loaders.Sleeper, rt registry.Runtime, t *tracker) (registry.Released, error) {
	t.stage(registry.StageStop, "Giving the device's memory back")
	var pids []int
	held := m.heldNow(rt, &pids)
	r := registry.Released{Device: rt.Device, Expected: rt.Memory.PredictedGPU + rt.Memory.PredictedRAM}
	if err := s.Sleep(ctx); err != nil {
		return r, err
	}
	t.stage(registry.StageRelease, "")
	if _, err := m.Hardware.Refresh(ctx); err != nil {
		return r, nil //nolint:nilerr // it sleeps; what came back is told as unknown
	}
	r.Measured, r.Verified = max(0, held-m.heldNow(rt, &pids)), true
	return r, nil
}

// asleep takes the outcome of falling asleep.
func (a *actor) asleep(n *nap, released registry.Released, err error) {
	if a.nap != n || a.rt.State != registry.RuntimeSleeping {
		return
	}
	a.nap = nil
	n.cancel()
	if err != nil { // it never slept
		a.happened(registry.TriggerWake, nil)
		a.armIdle()
		a.show()
		n.track.finish(err, "")
		if n.then != nil {
			n.then.track.finish(nil, "It was already loaded.")
		}
		return
	}
	a.m.ledger.shrink(a.rt.InstanceID, a.m.residue(a.rt))
	n.track.mu.Lock()
	n.track.op.Released = &released
	n.track.mu.Unlock()
	a.show()
	n.track.finish(nil, fmt.Sprintf("Asleep; %s came back %s.", registry.Bytes(released.Measured), where(released.Device)))
	if n.then != nil {
		a.beginWake(*n.then)
	}
}

// residue is what an instance holds in its sleep, by device: measured, since only the engine knows what it keeps.
func (m *Manager) residue(rt registry.Runtime) map[string]int64 {
	out := map[string]int64{}
	if rt.Handle == nil || rt.Handle.PID == 0 {
		return out
	}
	if rss, err := hw.ProcessRSS(rt.Handle.PID); err == nil {
		out[string(registry.DeviceCPU)] = rss
	}
	tree, err := hw.ProcessTree(rt.Handle.PID)
	if err != nil {
		tree = []int{rt.Handle.PID}
	}
	held := hw.ProcessTreeGPU(m.Hardware.Latest(), tree)
	for _, gpu := range gpusOf(rt.Device) {
		out[gpuName(gpu)] = max(0, held[gpu])
	}
	return out
}

// requestWake begins to wake, or joins who does.
func (a *actor) requestWake(rec registry.Record, o LoadOptions) (registry.Operation, error) {
	switch {
	case a.nap != nil && a.nap.waking:
		return a.nap.track.snapshot(), nil
	case a.nap != nil && a.nap.then != nil:
		return a.nap.then.track.snapshot(), nil
	}
	t := a.m.newOperation(registry.OperationLoad, a.id, o.Actor, o.Cause, []registry.StageName{registry.StageReserve, registry.StageWarmup, registry.StageReady})
	if err := t.save(); err != nil {
		a.m.live.Delete(t.op.ID)
		return registry.Operation{}, err
	}
	j := job{track: t, rec: rec, opts: o}
	if a.nap != nil {
		a.nap.then = &j // when it has fallen asleep
		return t.snapshot(), nil
	}
	a.beginWake(j)
	return t.snapshot(), nil
}

func (a *actor) beginWake(j job) {
	sleeper, ok := a.inst.(loaders.Sleeper)
	if !ok {
		j.track.finish(registry.Errorf(registry.CodeUnsupported, "%s is asleep and its engine cannot be woken; unload it first", a.id), "")
		return
	}
	ctx, n := a.beginNap(j.track, true)
	n.rec, n.opts = j.rec, j.opts
	rt, inst := a.rt, a.inst
	a.m.goWork(func() {
		err := a.wakeUp(ctx, n, sleeper, inst)
		var mem registry.Memory
		if err == nil {
			plan := registry.Plan{Device: rt.Device, GPUs: gpusOf(rt.Device), Needs: registry.Footprint{Estimated: rt.Memory.PredictedGPU + rt.Memory.PredictedRAM}}
			mem = a.m.measure(ctx, inst.Handle(), plan)
		}
		a.post(func() { a.awake(n, mem, err) })
	})
}

// wakeUp reserves what the model took before, on the same device, and wakes it.
func (a *actor) wakeUp(ctx context.Context, n *nap, s loaders.Sleeper, inst loaders.Instance) error {
	n.track.stage(registry.StageReserve, "")
	sample, err := a.m.Hardware.Refresh(ctx)
	if err != nil {
		return registry.Errorf(registry.CodeUnavailable, "The memory of this machine could not be read: %w", err)
	}
	err = a.do(ctx, func() error {
		if a.nap != n {
			return context.Canceled
		}
		return a.reserveAgain(n, sample)
	})
	if err != nil {
		return err
	}
	n.track.stage(registry.StageWarmup, "Waking up")
	if err := s.Wake(ctx); err != nil {
		return err
	}
	return inst.Health(ctx)
}

// reserveAgain promises the whole of a sleeping instance's memory once more. What it holds in its sleep is its own
// already, and not needed on top.
func (a *actor) reserveAgain(n *nap, sample registry.Sample) error {
	kept := a.m.ledger.of(a.rt.InstanceID)
	model := n.rec.Model
	model.GPUIDs = gpusOf(a.rt.Device)
	device := registry.DeviceCPU
	if len(model.GPUIDs) > 0 {
		device = registry.DeviceCUDA
	}
	var residue int64
	for _, r := range kept {
		if (r.Device == string(registry.DeviceCPU)) == (device == registry.DeviceCPU) {
			residue += r.Taken
		}
	}
	need := registry.Footprint{Estimated: max(1, a.rt.Memory.PredictedGPU+a.rt.Memory.PredictedRAM-residue), Basis: "loaded before"}
	in := PlanInput{Model: model, Device: device, Engine: a.rt.Engine, Why: "it sleeps there", Builds: []registry.Device{device},
		NeedGPU: need, NeedCPU: need, Sample: sample, Now: a.m.now()}
	plan, ok := a.m.ledger.admit(model, a.rt.InstanceID, n.opts.Override, func(others []registry.Reservation) registry.Plan {
		in.Reservations = others
		p := MakePlan(in)
		p.Needs.Estimated += residue
		return p
	})
	if !ok {
		return shortage(plan)
	}
	pid := 0
	if a.rt.Handle != nil {
		pid = a.rt.Handle.PID
	}
	a.m.ledger.update(a.rt.InstanceID, func(r *registry.Reservation) {
		r.PID = pid
		for _, k := range kept {
			if k.Device == r.Device {
				r.Taken = k.Taken
			}
		}
	})
	return nil
}

// awake takes the outcome of waking up.
func (a *actor) awake(n *nap, mem registry.Memory, err error) {
	if a.nap != n || a.rt.State != registry.RuntimeSleeping {
		return
	}
	a.nap = nil
	n.cancel()
	if err != nil {
		a.m.ledger.shrink(a.rt.InstanceID, a.m.residue(a.rt))
		a.show()
		n.track.finish(err, "")
		return
	}
	now := a.m.now()
	a.happened(registry.TriggerWake, func(rt *registry.Runtime) { rt.Memory, rt.LastUsedAt = mem, now })
	a.armIdle()
	a.show()
	n.track.finish(nil, "Awake "+where(a.rt.Device)+".")
}
