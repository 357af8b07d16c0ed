package manager

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// actor is the goroutine that owns one model's runtime state. Everything but view is touched by that goroutine only;
// others send it functions. It never does slow work itself: at most a write to the registry.
type actor struct {
	m     *Manager
	id    string
	inbox chan func()
	ended chan struct{} // closed when the goroutine is gone: nothing that was sent runs any more
	view  atomic.Pointer[view]

	rt       registry.Runtime
	inst     loaders.Instance
	load     *job          // the load under way, queued or starting
	unload   *job          // the unload under way, draining or stopping
	next     *job          // a load that begins when the unload is through
	nap      *nap          // falling asleep or waking up is under way
	fetch    *job          // the fetch without a load that is under way
	getting  map[*job]bool // of load and fetch, those that are having the files brought here; see fetchStep
	active   int           // requests being answered
	drained  func()        // called when active becomes 0 while draining
	idle     *time.Timer
	retry    *time.Timer
	lastSave time.Time   // of LastUsedAt
	as       LoadOptions // how the instance was loaded, so that a restart does the same
	vitals   vitals
	looking  atomic.Bool            // somebody is finding out how the instance does
	closing  bool                   // the server ends: what the model should be is kept for the next start
	untold   []registry.ModelStatus // states that show tells when others can see them
}

// view is what others may read of an actor at any time.
type view struct {
	rt       registry.Runtime
	inst     loaders.Instance
	track    *tracker
	loadTask bool // track is of a load or a fetch
	fetching bool // a fetch without a load is under way
}

// job is one load or unload under way.
type job struct {
	track  *tracker
	gen    int64
	rec    registry.Record
	opts   LoadOptions
	cancel context.CancelFunc
	verify bool   // of a fetch: all files are read again at the end
	why    string // it was cancelled; only the actor's goroutine touches it
}

// actor returns the model's actor, starting it if need be.
func (m *Manager) actor(ctx context.Context, id string) (*actor, error) {
	m.mu.Lock()
	a := m.actors[id]
	closed := m.closed
	m.mu.Unlock()
	if a != nil {
		return a, nil
	}
	if closed {
		return nil, errClosing()
	}
	rt, err := m.store.Runtime(ctx, id)
	if err != nil {
		return nil, err
	}
	return m.startActor(id, rt)
}

func (m *Manager) startActor(id string, rt registry.Runtime) (*actor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.actors[id]; a != nil {
		return a, nil
	}
	if m.closed { // looked at under the lock: Close waits for every goroutine that began before
		return nil, errClosing()
	}
	rt.ModelID = id
	if rt.State == "" {
		rt.State = registry.RuntimeStopped
	}
	a := &actor{m: m, id: id, rt: rt, inbox: make(chan func(), 64), ended: make(chan struct{}), getting: map[*job]bool{}}
	a.show()
	m.actors[id] = a
	m.goWork(a.run)
	return a, nil
}

func errClosing() error {
	return registry.Errorf(registry.CodeUnavailable, "The server is shutting down")
}

// peek returns what is known of a model without starting anything, or nil if it has no actor.
func (m *Manager) peek(id string) *view {
	m.mu.Lock()
	a := m.actors[id]
	m.mu.Unlock()
	if a == nil {
		return nil
	}
	return a.view.Load()
}

func (a *actor) run() {
	defer close(a.ended)
	for {
		select {
		case f := <-a.inbox:
			f()
			a.show()
		case <-a.m.ctx.Done():
			return
		}
	}
}

// do runs f in the actor's goroutine and waits for it. The error is f's, or says that ctx or the manager ended.
func (a *actor) do(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	select {
	case a.inbox <- func() { err := f(); a.show(); done <- err }:
	case <-ctx.Done():
		return ctx.Err()
	case <-a.m.ctx.Done():
		return errClosing()
	}
	select {
	case err := <-done:
		return err
	case <-a.ended: // not before: f may still be running, and it writes what our caller reads
		select {
		case err := <-done:
			return err
		default:
			return errClosing()
		}
	}
}

// post is do for those who need no answer.
func (a *actor) post(f func()) {
	select {
	case a.inbox <- f:
	case <-a.m.ctx.Done():
	}
}

// show lets others see the state as it is now, and then tells them of the changes since the last time: who looks because
// of an event must not find the state from before it.
func (a *actor) show() {
	v := &view{rt: a.rt, inst: a.inst, fetching: a.fetch != nil}
	switch {
	case a.load != nil:
		v.track, v.loadTask = a.load.track, true
	case a.unload != nil:
		v.track = a.unload.track
	case a.nap != nil:
		v.track = a.nap.track
	case a.fetch != nil:
		v.track, v.loadTask = a.fetch.track, true
	}
	a.view.Store(v)
	for _, st := range a.untold {
		a.m.bus.Publish(registry.EventModelStatus, a.id, st)
	}
	a.untold = nil
}

// move changes the runtime state by the transition table, stores it and tells everybody. A move that the table does
// not have is an error and changes nothing.
func (a *actor) move(on registry.Trigger, change func(*registry.Runtime)) error {
	return a.shift(on, change, false)
}

// happened is move for what has happened already, such as the end of a process. It becomes so also when it cannot be
// stored: what we know must follow what is.
func (a *actor) happened(on registry.Trigger, change func(*registry.Runtime)) {
	a.must(a.shift(on, change, true))
}

func (a *actor) shift(on registry.Trigger, change func(*registry.Runtime), fact bool) error {
	to, err := registry.Next(a.rt.State, on)
	if err != nil {
		return err
	}
	next := a.rt
	next.State, next.ChangedAt = to, a.m.now()
	if change != nil {
		change(&next)
	}
	if err := a.save(next); err != nil {
		if !fact {
			return err
		}
		a.rt = next
		a.m.log.Error("A model's state could not be stored", "model", a.id, "state", to, "err", err)
	}
	a.m.ledger.update(next.InstanceID, func(r *registry.Reservation) { r.State = next.State; r.LastUsedAt = next.LastUsedAt })
	a.m.log.Info("Model changed state", "model", a.id, "state", to, "trigger", on, "generation", next.Generation)
	a.tell()
	return nil
}

// setArtifact moves the artifact axis.
func (a *actor) setArtifact(on registry.Trigger) {
	to, err := registry.Next(a.rt.Artifact, on)
	if err != nil {
		a.m.log.Error("An artifact's move is not in the table", "model", a.id, "err", err)
		return
	}
	next := a.rt
	next.Artifact = to
	if err := a.save(next); err != nil {
		a.m.log.Error("A model's state could not be stored", "model", a.id, "err", err)
		return
	}
	a.tell()
}

func (a *actor) save(next registry.Runtime) error {
	if err := a.m.store.PutRuntime(context.WithoutCancel(a.m.ctx), next); err != nil {
		return fmt.Errorf("store the state of %s: %w", a.id, err)
	}
	a.rt = next
	return nil
}

// tell notes a change for show.
func (a *actor) tell() {
	st := registry.ModelStatus{ModelID: a.id, Status: registry.DeriveStatus("", a.rt.Artifact, a.rt.State), Device: a.rt.Device, Engine: a.rt.Engine, Operation: a.rt.OperationID, Failure: a.rt.Failure}
	switch {
	case a.load != nil:
		st.Percent = a.load.track.percent()
	case a.fetch != nil:
		st.Percent, st.Operation = a.fetch.track.percent(), a.fetch.track.op.ID
	}
	a.untold = append(a.untold, st)
}

// must logs a move that should have been possible: the table and this file disagree, which is a bug of ours.
func (a *actor) must(err error) {
	if err != nil {
		a.m.log.Error("A model's state could not be changed", "model", a.id, "state", a.rt.State, "err", err)
	}
}

// requestLoad begins a load, joins the one under way, or finds the model loaded already.
func (a *actor) requestLoad(rec registry.Record, o LoadOptions) (op registry.Operation, err error) {
	m := a.m
	if m.isClosed() {
		return op, errClosing()
	}
	track := m.newOperation(registry.OperationLoad, a.id, o.Actor, o.Cause, registry.LoadStages)
	begin := func(j *job) error {
		if err := j.track.save(); err != nil {
			m.live.Delete(j.track.op.ID)
			return err
		}
		return nil
	}
	j := &job{track: track, rec: rec, opts: o}
	switch a.rt.State {
	case registry.RuntimeReady:
		if !o.ForceReload {
			m.live.Delete(track.op.ID)
			track = m.newOperation(registry.OperationLoad, a.id, o.Actor, o.Cause, []registry.StageName{registry.StageReady})
			if err := track.save(); err != nil {
				return op, err
			}
			track.finish(nil, "It was already loaded.")
			return track.snapshot(), nil
		}
		if err := begin(j); err != nil {
			return op, err
		}
		a.next = j
		if _, err := a.beginUnload(o.Actor, "reload: "+o.Cause); err != nil {
			a.next = nil
			track.finish(err, "")
			return op, err
		}
	case registry.RuntimeQueued, registry.RuntimeStarting:
		if a.load == nil {
			m.live.Delete(track.op.ID)
			return op, registry.Errorf(registry.CodeBusy, "%s is changing state; try again", a.id)
		}
		if !o.ForceReload || rec.Version <= a.load.rec.Version {
			m.live.Delete(track.op.ID)
			return a.load.track.snapshot(), nil // with force_reload, too: it is being loaded afresh anyway
		}
		if err := begin(j); err != nil {
			return op, err
		}
		if err := a.loadInstead(j); err != nil {
			track.finish(err, "")
			return op, err
		}
	case registry.RuntimeDraining, registry.RuntimeStopping:
		if a.next != nil {
			m.live.Delete(track.op.ID)
			if rec.Version > a.next.rec.Version { // it has not begun yet
				a.next.rec = rec
			}
			return a.next.track.snapshot(), nil
		}
		if err := begin(j); err != nil {
			return op, err
		}
		a.next = j
	case registry.RuntimeBackoff:
		if err := begin(j); err != nil {
			return op, err
		}
		a.stopRetry()
		if err := a.enqueue(j, registry.TriggerRetry); err != nil {
			return op, err
		}
	case registry.RuntimeStopped, registry.RuntimeFailed:
		if err := begin(j); err != nil {
			return op, err
		}
		if err := a.enqueue(j, registry.TriggerLoad); err != nil {
			return op, err
		}
		a.wakeFetch(rec)
	case registry.RuntimeSleeping:
		if !o.ForceReload {
			m.live.Delete(track.op.ID)
			return a.requestWake(rec, o)
		}
		if err := begin(j); err != nil {
			return op, err
		}
		a.next = j
		if _, err := a.beginUnload(o.Actor, "reload: "+o.Cause); err != nil {
			a.next = nil
			track.finish(err, "")
			return op, err
		}
	}
	return track.snapshot(), nil
}

// loadInstead gives the load under way up for one with a newer configuration, which begins when nothing of it is left.
func (a *actor) loadInstead(j *job) error {
	starting := a.rt.State == registry.RuntimeStarting
	if starting {
		a.next = j
	}
	if err := a.dropLoad("Cancelled: " + j.opts.Actor + " loads it again, with the configuration as it was changed meanwhile."); err != nil {
		a.next = nil
		return err
	}
	if starting {
		return nil
	}
	return a.enqueue(j, registry.TriggerLoad)
}

// enqueue moves to queued and starts the work.
func (a *actor) enqueue(j *job, on registry.Trigger) error {
	before := a.rt.InstanceID
	err := a.move(on, func(rt *registry.Runtime) {
		rt.Generation++
		if on == registry.TriggerLoad {
			rt.Attempts = 0 // asked for: it is not one of the restarts after a crash
		}
		rt.Desired, rt.Failure, rt.OperationID, rt.ConfigVersion = registry.RuntimeReady, nil, j.track.op.ID, j.rec.Version
		rt.InstanceID, rt.Handle, rt.Endpoint, rt.Device, rt.Engine, rt.EngineVersion = newID(a.m.now()), nil, nil, "", "", ""
		rt.Memory = registry.Memory{}
	})
	if err != nil {
		j.track.finish(err, "")
		return err
	}
	if before != "" { // the old log goes when a new one begins, so that logs do not pile up
		_ = os.Remove(a.m.logPath(before))
		_ = os.Remove(a.m.logPath(before) + ".1")
	}
	ctx, cancel := context.WithCancel(a.m.ctx)
	j.gen, j.cancel = a.rt.Generation, cancel
	a.load = j
	w := &loadWork{m: a.m, a: a, job: j, instance: a.rt.InstanceID}
	a.m.goWork(func() { defer cancel(); w.run(ctx) })
	return nil
}

// admitted is called by the load's work when memory is reserved and the engine is about to start.
func (a *actor) admitted(gen int64, plan registry.Plan, version string) error {
	if a.load == nil || a.load.gen != gen {
		return context.Canceled
	}
	return a.move(registry.TriggerAdmit, func(rt *registry.Runtime) {
		rt.Device, rt.Engine, rt.EngineVersion = plan.Device, plan.Engine, version
		if plan.Device == "cpu" {
			rt.Memory.PredictedRAM = plan.Needs.Bytes()
		} else {
			rt.Memory.PredictedGPU = plan.Needs.Bytes()
		}
	})
}

// started stores the handle of an engine process that now exists, so that it can be found after a crash of ours.
func (a *actor) started(gen int64, h registry.Handle) error {
	if a.load == nil || a.load.gen != gen {
		return nil // cancelled; the loader cleans up
	}
	next := a.rt
	next.Handle = &h
	a.m.ledger.update(a.rt.InstanceID, func(r *registry.Reservation) { r.PID = h.PID })
	return a.save(next)
}

// answered makes the model ready. It returns false if nobody wants it any more; the caller then stops the instance.
func (a *actor) answered(gen int64, inst loaders.Instance, mem registry.Memory, outcome string) bool {
	j := a.load
	if j == nil || j.gen != gen || a.rt.State != registry.RuntimeStarting {
		return false
	}
	h, ep := inst.Handle(), inst.Endpoint()
	now := a.m.now()
	a.inst, a.load, a.as, a.vitals = inst, nil, j.opts, vitals{first: mem}
	a.happened(registry.TriggerAnswer, func(rt *registry.Runtime) {
		rt.Handle, rt.Endpoint, rt.Memory, rt.Unwell, rt.Activity, rt.ReadyAt, rt.LastUsedAt = &h, &ep, mem, "", nil, now, now
	})
	a.show()
	j.track.finish(nil, outcome)
	a.watch(gen, inst)
	a.armIdle()
	return true
}

// watch tells the actor when the instance ends by itself.
func (a *actor) watch(gen int64, inst loaders.Instance) {
	a.m.goWork(func() {
		select {
		case <-inst.Done():
			a.m.forgetDir(inst.Handle().InstanceID)
			a.post(func() { a.crashed(gen, inst.Err()) })
		case <-a.m.ctx.Done():
		}
	})
}

// cancelLoad cancels the load with this operation, or any if op is "".
func (a *actor) cancelLoad(ctx context.Context, op, actor string) error {
	return a.do(ctx, func() error {
		if a.next != nil && (op == "" || a.next.track.op.ID == op) {
			a.next.track.finish(context.Canceled, "Cancelled by "+actor+".")
			a.next = nil
			return nil
		}
		if a.load == nil || (op != "" && a.load.track.op.ID != op) {
			return registry.Errorf(registry.CodeBadState, "%s is not being loaded", a.id)
		}
		return a.dropLoad("Cancelled by " + actor + ".")
	})
}

// dropLoad cancels the load under way. A queued one is over at once; one whose engine is starting ends when the
// loader says that nothing is left.
func (a *actor) dropLoad(why string) error {
	j := a.load
	starting := a.rt.State == registry.RuntimeStarting
	if err := a.move(registry.TriggerCancel, a.unwanted); err != nil {
		return err
	}
	a.leaveFetch(j, registry.TriggerAbandon)
	j.why = why
	j.cancel()
	if !starting {
		a.load = nil
		a.show()
		j.track.finish(context.Canceled, why)
	}
	return nil
}

// gone is called by the load's work when a cancelled start has left nothing behind.
func (a *actor) gone(gen int64) {
	j := a.load
	if j == nil || j.gen != gen {
		return
	}
	a.load = nil
	a.leaveFetch(j, registry.TriggerAbandon)
	a.settle()
	j.track.finish(context.Canceled, j.why)
}

// settle ends in stopped, gives the reservation back, and begins the load that waited for it, if there is one.
func (a *actor) settle() {
	instance := a.rt.InstanceID
	a.happened(registry.TriggerGone, func(rt *registry.Runtime) {
		rt.Handle, rt.Endpoint, rt.Device, rt.Unwell, rt.Activity = nil, nil, "", "", nil
	})
	a.m.ledger.release(instance)
	if j := a.next; j != nil {
		a.next = nil
		a.must(a.enqueue(j, registry.TriggerLoad))
	}
	a.show()
}
