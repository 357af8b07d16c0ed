package manager

import (
	"context"
	"fmt"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// UnloadOptions say who unloads and why.
type UnloadOptions struct {
	Actor string
	Cause string
}

// Unload unloads a model: the guide's unload_model. unloaded is false when it was not loaded; then the operation is
// over at once. A load under way is cancelled. Await waits for the end, when the memory is back.
func (m *Manager) Unload(ctx context.Context, id string, o UnloadOptions) (op registry.Operation, unloaded bool, err error) {
	if _, err := m.store.Model(ctx, id); err != nil {
		return op, false, err
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return op, false, err
	}
	err = a.do(ctx, func() error {
		op, unloaded, err = a.requestUnload(o)
		return err
	})
	return op, unloaded, err
}

func (a *actor) requestUnload(o UnloadOptions) (registry.Operation, bool, error) {
	if a.next != nil { // a load that waits for the present unload is not wanted any more
		a.next.track.finish(context.Canceled, "Cancelled: "+o.Actor+" unloaded the model.")
		a.next = nil
	}
	switch a.rt.State {
	case registry.RuntimeReady, registry.RuntimeSleeping:
		t, err := a.beginUnload(o.Actor, o.Cause)
		if err != nil {
			return registry.Operation{}, false, err
		}
		return t.snapshot(), true, nil
	case registry.RuntimeDraining, registry.RuntimeStopping:
		if a.unload != nil {
			return a.unload.track.snapshot(), true, nil
		}
		// A cancelled start that is still cleaning up: its own operation ends when nothing is left.
		return a.load.track.snapshot(), true, nil
	case registry.RuntimeStarting:
		t := a.load.track
		return t.snapshot(), true, a.dropLoad("Cancelled: " + o.Actor + " unloaded the model.")
	case registry.RuntimeQueued:
		if err := a.dropLoad("Cancelled: " + o.Actor + " unloaded the model."); err != nil {
			return registry.Operation{}, false, err
		}
	case registry.RuntimeBackoff:
		a.stopRetry()
		if err := a.move(registry.TriggerCancel, func(rt *registry.Runtime) { a.unwanted(rt); rt.Attempts = 0 }); err != nil {
			return registry.Operation{}, false, err
		}
	case registry.RuntimeFailed:
		if err := a.move(registry.TriggerUnload, func(rt *registry.Runtime) { rt.Desired, rt.Failure = registry.RuntimeStopped, nil }); err != nil {
			return registry.Operation{}, false, err
		}
	case registry.RuntimeStopped:
	}
	no := false
	t := a.m.newOperation(registry.OperationUnload, a.id, o.Actor, o.Cause, nil)
	t.op.Unloaded = &no
	if err := t.save(); err != nil {
		a.m.live.Delete(t.op.ID)
		return registry.Operation{}, false, err
	}
	a.show()
	t.finish(nil, "It was not loaded.")
	return t.snapshot(), false, nil
}

// beginUnload starts to drain a ready instance.
func (a *actor) beginUnload(actor, cause string) (*tracker, error) {
	yes := true
	t := a.m.newOperation(registry.OperationUnload, a.id, actor, cause, registry.UnloadStages)
	t.op.Unloaded = &yes
	if err := t.save(); err != nil {
		a.m.live.Delete(t.op.ID)
		return nil, err
	}
	asleep := a.rt.State == registry.RuntimeSleeping
	if err := a.move(registry.TriggerUnload, func(rt *registry.Runtime) { a.unwanted(rt); rt.OperationID = t.op.ID }); err != nil {
		t.finish(err, "")
		return nil, err
	}
	a.disarmIdle()
	a.dropNap("Cancelled: " + actor + " unloaded the model.")
	gen := a.rt.Generation
	a.unload = &job{track: t, gen: gen}
	t.stage(registry.StageDrain, drainMsg(a.active))
	if asleep {
		a.beginStop()
		return t, nil
	}
	drained := func() {
		if a.rt.Generation != gen || a.rt.State != registry.RuntimeDraining {
			return
		}
		a.drained = nil
		a.happened(registry.TriggerDrained, nil)
		a.beginStop()
	}
	if a.active == 0 {
		drained()
		return t, nil
	}
	a.drained = drained
	time.AfterFunc(a.m.DrainTimeout, func() { a.post(drained) })
	return t, nil
}

func drainMsg(active int) string {
	switch active {
	case 0:
		return ""
	case 1:
		return "1 request is being finished"
	}
	return fmt.Sprintf("%d requests are being finished", active)
}

// beginStop ends the engine outside the actor, checks that its memory is back, and settles.
func (a *actor) beginStop() {
	inst, j := a.inst, a.unload
	a.inst, a.active = nil, 0
	rt := a.rt
	if j == nil { // a cancelled or shut down instance without an operation of its own
		j = &job{gen: rt.Generation}
	}
	a.m.goWork(func() {
		released, err := a.m.stop(inst, rt, j.track)
		a.m.forgetDir(rt.InstanceID)
		a.post(func() {
			if a.rt.State != registry.RuntimeStopping {
				return
			}
			a.unload = nil
			a.settle()
			if j.track == nil {
				return
			}
			j.track.mu.Lock()
			j.track.op.Released = &released
			j.track.mu.Unlock()
			if err != nil {
				j.track.finish(err, "")
				return
			}
			j.track.finish(nil, releasedSentence(released))
		})
	})
}

func releasedSentence(r registry.Released) string {
	if r.Verified && r.Measured > 0 {
		return fmt.Sprintf("Unloaded; %s came back %s.", registry.Bytes(r.Measured), where(r.Device))
	}
	if r.Verified {
		return "Unloaded."
	}
	return "Unloaded, but the memory did not come back: " + r.Note
}

// stop ends an instance and verifies that what it held is free again.
func (m *Manager) stop(inst loaders.Instance, rt registry.Runtime, t *tracker) (registry.Released, error) {
	released := registry.Released{Device: rt.Device, Expected: rt.Memory.PredictedGPU + rt.Memory.PredictedRAM}
	stage := func(s registry.StageName) {
		if t != nil {
			t.stage(s, "")
		}
	}
	var pids []int
	held := m.heldNow(rt, &pids)
	stage(registry.StageStop)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), m.StopTimeout)
	defer cancel()
	if inst != nil {
		if err := inst.Stop(ctx); err != nil {
			return released, registry.Errorf(registry.CodeInternal, "The engine of %s could not be ended: %w", rt.ModelID, err)
		}
	}
	stage(registry.StageRelease)
	left := m.leftNow(ctx, rt, pids)
	released.Measured = max(0, held-left)
	released.Verified = left == 0
	if left > 0 {
		released.Note = fmt.Sprintf("%s are still held by a process of the engine", registry.Bytes(left))
	}
	return released, nil
}

// heldNow is what the instance's processes hold: on its GPUs, or resident in main memory.
func (m *Manager) heldNow(rt registry.Runtime, pids *[]int) int64 {
	if rt.Handle == nil || rt.Handle.PID == 0 {
		return 0
	}
	tree, err := hw.ProcessTree(rt.Handle.PID)
	if err != nil {
		tree = []int{rt.Handle.PID}
	}
	*pids = tree
	if rt.Device == "cpu" {
		rss, err := hw.ProcessRSS(rt.Handle.PID)
		if err != nil {
			return 0
		}
		return rss
	}
	return onGPUs(m.Hardware.Latest(), rt.Device, tree)
}

// leftNow is what is still held after the engine has ended. A driver takes a moment to account for it: the newest of a
// few readings counts.
func (m *Manager) leftNow(ctx context.Context, rt registry.Runtime, pids []int) int64 {
	if len(gpusOf(rt.Device)) == 0 {
		return 0 // Stop has seen every process of the group end; main memory goes with them
	}
	var left int64
	for range 20 {
		sample, err := m.Hardware.Refresh(ctx)
		if err != nil {
			return 0
		}
		if left = onGPUs(sample, rt.Device, pids); left == 0 {
			return 0
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return left
		}
	}
	return left
}

func onGPUs(s registry.Sample, device string, pids []int) int64 {
	var sum int64
	got := hw.ProcessTreeGPU(s, pids)
	for _, i := range gpusOf(device) {
		sum += max(0, got[i]) // -1: the driver does not say
	}
	return sum
}

// shutdown stops the model's instance when the server ends. What it should be is kept for pinned models, so that the
// next start loads them again.
func (a *actor) shutdown(ctx context.Context) {
	var t *tracker
	// Asked for also when the time is over: it is quick, and an engine that is not told stays behind.
	err := a.do(context.WithoutCancel(ctx), func() error {
		a.closing = true
		a.stopRetry()
		if a.next != nil {
			a.next.track.finish(context.Canceled, "Cancelled: the server stopped.")
			a.next = nil
		}
		op, _, err := a.requestUnloadIfActive(UnloadOptions{Actor: "manager", Cause: "the server stops"})
		if v, ok := a.m.live.Load(op); ok {
			t = v.(*tracker)
		}
		return err
	})
	if err != nil || t == nil {
		return
	}
	select {
	case <-t.done:
		return
	case <-ctx.Done():
	}
	// The time is over: the requests that are still being answered are cut off, or the engine would stay behind.
	a.must(a.do(context.WithoutCancel(ctx), func() error {
		if a.drained != nil {
			a.drained()
		}
		return nil
	}))
}

// requestUnloadIfActive is requestUnload without an operation for models that hold nothing.
func (a *actor) requestUnloadIfActive(o UnloadOptions) (opID string, unloaded bool, err error) {
	switch a.rt.State {
	case registry.RuntimeStopped, registry.RuntimeFailed:
		return "", false, nil
	default:
	}
	op, unloaded, err := a.requestUnload(o)
	return op.ID, unloaded, err
}
