package manager

import (
	"fmt"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// refused ends a load that could not even start its engine, for lack of memory or a bad setting: the model is as it
// was, and the operation says why.
func (a *actor) refused(gen int64, err error) {
	j := a.load
	if j == nil || j.gen != gen {
		return
	}
	a.load = nil
	a.leaveFetch(j, registry.TriggerAbandon)
	a.happened(registry.TriggerRefuse, func(rt *registry.Runtime) { rt.Desired = registry.RuntimeStopped })
	a.show()
	j.track.finish(err, "")
}

// failed ends a load that went wrong.
func (a *actor) failed(gen int64, err error) {
	j := a.load
	if j == nil || j.gen != gen {
		return
	}
	if a.rt.State == registry.RuntimeStopping { // it was cancelled while this was on its way; nothing is left either way
		a.gone(gen)
		return
	}
	a.load = nil
	a.leaveFetch(j, registry.TriggerFail)
	a.happened(registry.TriggerFail, func(rt *registry.Runtime) {
		rt.Desired, rt.Failure, rt.Handle, rt.Endpoint = registry.RuntimeStopped, failureOf(err), nil, nil
	})
	a.m.ledger.release(a.rt.InstanceID)
	a.show()
	j.track.finish(err, "")
}

func failureOf(err error) *registry.Failure {
	e := registry.AsError(err)
	if e.Failure != nil {
		return e.Failure
	}
	f := &registry.Failure{Kind: registry.FailureCrash, Msg: e.Error()}
	switch e.Code {
	case registry.CodeNotFound:
		f.Kind = registry.FailureMissingFile
	case registry.CodeUnavailable, registry.CodeUnsupported:
		f.Kind = registry.FailureEngineMissing
	case registry.CodeInvalid:
		f.Kind = registry.FailureParameter
	case registry.CodeInsufficientResources: // of a source: memory is planned before anything is started
		f.Kind = registry.FailureDiskFull
	default:
	}
	return f
}

// crashed deals with an instance that ended by itself.
func (a *actor) crashed(gen int64, cause error) {
	if a.rt.Generation != gen || a.inst == nil {
		return
	}
	if a.vitals.ended != nil {
		cause = a.vitals.ended
	}
	if cause == nil {
		cause = registry.Errorf(registry.CodeLoadingFailed, "The engine of %s ended by itself", a.id)
	}
	a.disarmIdle()
	switch a.rt.State {
	case registry.RuntimeDraining:
		a.drained = nil
		a.happened(registry.TriggerCrash, nil)
		a.beginStop()
		return
	case registry.RuntimeReady, registry.RuntimeSleeping:
	default:
		return // stopping: the stop's own result follows
	}
	a.dropNap("Its engine ended.")
	a.inst, a.active = nil, 0
	attempts := a.rt.Attempts + 1
	if a.m.now().Sub(a.rt.ReadyAt) > a.m.SteadyAfter {
		attempts = 1
	}
	failure := failureOf(cause)
	instance := a.rt.InstanceID
	a.happened(registry.TriggerCrash, func(rt *registry.Runtime) {
		rt.Attempts, rt.Failure, rt.Handle, rt.Endpoint, rt.Unwell, rt.Activity = attempts, failure, nil, nil, "", nil
	})
	a.m.ledger.release(instance)
	if attempts > a.m.MaxRestarts {
		failure.Hint = fmt.Sprintf("It crashed %d times and is not started again by itself. Read the log, then load it again.", attempts)
		a.happened(registry.TriggerGiveUp, func(rt *registry.Runtime) { rt.Desired, rt.Failure, rt.Attempts = registry.RuntimeStopped, failure, 0 })
		return
	}
	pause := a.m.RestartPause << (attempts - 1)
	a.retry = time.AfterFunc(pause, func() { a.post(func() { a.restart(gen) }) })
}

// restart loads the model again after a crash.
func (a *actor) restart(gen int64) {
	if a.rt.Generation != gen || a.rt.State != registry.RuntimeBackoff || a.m.isClosed() {
		return
	}
	rec, err := a.m.store.Model(a.m.ctx, a.id)
	if err != nil {
		a.happened(registry.TriggerGiveUp, func(rt *registry.Runtime) { rt.Desired = registry.RuntimeStopped })
		return
	}
	cause := fmt.Sprintf("restart %d of %d after a crash", a.rt.Attempts, a.m.MaxRestarts)
	if f := a.rt.Failure; f != nil && f.Kind == registry.FailureUnreachable {
		cause = "the service was away: looking whether it is back"
	}
	j := &job{track: a.m.newOperation(registry.OperationLoad, a.id, "manager", cause, registry.LoadStages), rec: rec, opts: LoadOptions{Actor: "manager", Cause: cause, Device: a.as.Device, Override: a.as.Override}}
	err = j.track.save()
	if err == nil {
		err = a.enqueue(j, registry.TriggerRetry)
	}
	if err != nil {
		a.must(err)
		j.track.finish(err, "")
		a.happened(registry.TriggerGiveUp, func(rt *registry.Runtime) { rt.Desired = registry.RuntimeStopped })
	}
}

// unwanted notes that the model should be stopped; not when the server ends, so that the next start knows what was loaded.
func (a *actor) unwanted(rt *registry.Runtime) {
	if !a.closing {
		rt.Desired = registry.RuntimeStopped
	}
}

func (a *actor) stopRetry() {
	if a.retry != nil {
		a.retry.Stop()
		a.retry = nil
	}
}
