package manager

import (
	"context"
	"os"
	"path/filepath"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// reconcile makes what the registry says true again after a restart: instances whose engine still runs are re-attached,
// others are marked stopped, engines of ours that belong to no instance are ended, and operations that nobody works on
// any more are closed.
func (m *Manager) reconcile(ctx context.Context) error {
	active, err := m.store.ActiveRuntimes(ctx)
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, rt := range active {
		if m.reattach(ctx, rt) {
			kept[rt.InstanceID] = true
		}
	}
	if err := m.forgetFetching(ctx); err != nil {
		return err
	}
	m.endOrphans(ctx, kept)
	if err := m.forgetOrphans(ctx); err != nil {
		return err
	}
	m.forgetDirs(kept)
	ops, err := m.store.UnfinishedOperations(ctx)
	if err != nil {
		return err
	}
	for _, op := range ops {
		if op.Kind == registry.OperationFetch {
			continue // goes on, see resumeFetches; a paused one rests
		}
		op.EndedAt = m.now()
		if v := m.peek(op.Subject); op.Kind == registry.OperationLoad && v != nil && v.rt.State == registry.RuntimeReady && v.rt.OperationID == op.ID {
			op.State, op.Outcome = registry.OperationSucceeded, "The server was restarted while it loaded; its engine was found running."
		} else {
			op.State, op.Outcome = registry.OperationFailed, "The server stopped while this was under way."
			op.Error = &registry.Problem{Code: registry.CodeUnavailable, Msg: op.Outcome}
		}
		for i := range op.Stages {
			switch s := &op.Stages[i]; s.State {
			case registry.StageRunning:
				s.State, s.EndedAt, s.Stalled, s.ETA, s.Rate = registry.StageFailed, op.EndedAt, false, 0, 0
				if op.State == registry.OperationSucceeded {
					s.State = registry.StageDone
				}
			case registry.StageWaiting:
				s.State = registry.StageSkipped
			case registry.StageDone, registry.StageSkipped, registry.StageFailed:
			}
		}
		if err := m.store.PutOperation(ctx, op); err != nil {
			return err
		}
	}
	return nil
}

// forgetFetching puts back the artifact state of models whose files were being fetched when the server ended. What has
// arrived is on the disk, and a fetch goes on from there.
func (m *Manager) forgetFetching(ctx context.Context) error {
	under, err := m.store.FetchingRuntimes(ctx)
	if err != nil {
		return err
	}
	for _, rt := range under {
		rt.Artifact, rt.ChangedAt = registry.ArtifactAbsent, m.now()
		if err := m.store.PutRuntime(ctx, rt); err != nil {
			return err
		}
	}
	return nil
}

// reattach takes an instance over again. It reports whether it did; if not, the runtime is stored as stopped.
func (m *Manager) reattach(ctx context.Context, rt registry.Runtime) bool {
	rec, err := m.store.Model(ctx, rt.ModelID)
	// An instance that was told to end is not taken back: that it should be stopped is what was last asked for.
	if err == nil && rt.Handle != nil && rt.Desired == registry.RuntimeReady {
		if inst := m.recover(ctx, rt, rec.Model); inst != nil {
			if to, err := registry.Next(rt.State, registry.TriggerReattach); err == nil {
				h, ep := inst.Handle(), inst.Endpoint()
				rt.State, rt.Desired, rt.Handle, rt.Endpoint, rt.ChangedAt = to, registry.RuntimeReady, &h, &ep, m.now()
				rt.Artifact = registry.ArtifactPresent
				if rt.ReadyAt.IsZero() {
					rt.ReadyAt = m.now()
				}
				plan := registry.Plan{Device: rt.Device, GPUs: gpusOf(rt.Device), Needs: registry.Footprint{Estimated: rt.Memory.PredictedGPU + rt.Memory.PredictedRAM}}
				m.ledger.restore(rec.Model, rt.InstanceID, plan, to)
				said := m.reported(ctx, inst, m.measure(ctx, h, plan)) // what it holds is not free any more, and so not promised on top
				rt.Memory.ReportedRAM, rt.Memory.ReportedGPU = said.ReportedRAM, said.ReportedGPU
				if to == registry.RuntimeSleeping {
					m.ledger.shrink(rt.InstanceID, m.residue(rt))
				}
				a, err := m.startActor(rt.ModelID, rt)
				if err != nil {
					return false
				}
				err = a.do(ctx, func() error {
					a.inst = inst
					a.watch(rt.Generation, inst)
					a.armIdle()
					m.ledger.update(rt.InstanceID, func(r *registry.Reservation) { r.PID, r.LastUsedAt = h.PID, rt.LastUsedAt })
					return a.save(rt)
				})
				if err == nil {
					m.log.Info("Found a running engine and took it over", "model", rt.ModelID, "engine", rt.Engine, "pid", h.PID)
					return true
				}
				m.log.Error("A running engine could not be taken over", "model", rt.ModelID, "err", err)
			}
		}
	}
	was := rt.State
	if to, err := registry.Next(rt.State, registry.TriggerLost); err == nil {
		rt.State = to
	}
	if rt.Artifact == registry.ArtifactResolving || rt.Artifact == registry.ArtifactFetching || rt.Artifact == registry.ArtifactVerifying {
		rt.Artifact = registry.ArtifactAbsent
	}
	if !rec.Pinned {
		rt.Desired = registry.RuntimeStopped
	}
	rt.Handle, rt.Endpoint, rt.Device, rt.ChangedAt = nil, nil, "", m.now()
	if err := m.store.PutRuntime(ctx, rt); err != nil {
		m.log.Error("A model's state could not be stored", "model", rt.ModelID, "err", err)
	}
	switch {
	case was == registry.RuntimeStopped || was == registry.RuntimeFailed:
		m.log.Info("The model was unloaded when the server stopped", "model", rt.ModelID)
	case !was.HoldsMemory():
		m.log.Info("The model was waiting for its engine when the server stopped; it is marked as not loaded", "model", rt.ModelID)
	default:
		m.log.Info("The engine no longer runs; the model is marked as not loaded", "model", rt.ModelID)
	}
	return false
}

func (m *Manager) recover(ctx context.Context, rt registry.Runtime, model registry.Model) loaders.Instance {
	for _, l := range m.Loaders {
		if l.Info().Name != rt.Handle.Loader {
			continue
		}
		inst, err := m.takeUp(ctx, l, *rt.Handle, model)
		if err != nil {
			m.log.Info("An engine could not be found again", "model", rt.ModelID, "err", err)
			return nil
		}
		if err := inst.Health(ctx); err != nil {
			// It was starting when we went, or is broken. Either way nobody watched it: it is ended as an orphan.
			m.log.Info("An engine runs but does not answer; it is ended", "model", rt.ModelID, "err", err)
			stop, cancel := context.WithTimeout(ctx, m.StopTimeout)
			err := inst.Stop(stop)
			cancel()
			if err != nil {
				m.log.Error("An engine could not be ended", "model", rt.ModelID, "err", err)
			}
			return nil
		}
		return inst
	}
	return nil
}

// takeUp finds the instance of a handle again: by its process, or by its address and the model's key.
func (m *Manager) takeUp(ctx context.Context, l loaders.Loader, h registry.Handle, model registry.Model) (loaders.Instance, error) {
	switch r := l.(type) {
	case loaders.Recoverer:
		return r.Recover(ctx, h)
	case loaders.Reconnector:
		given, err := m.withSecrets(ctx, model)
		if err != nil {
			return nil, err
		}
		return r.Reconnect(ctx, h, given)
	}
	return nil, registry.Errorf(registry.CodeNotFound, "Instances of %s end with the server", l.Info().Title)
}

// endOrphans ends every engine process that this installation started and that belongs to no instance.
func (m *Manager) endOrphans(ctx context.Context, kept map[string]bool) {
	prefix := m.store.InstallationID()
	tagged, err := process.FindTagged(prefix)
	if err != nil {
		m.log.Error("Engines left behind could not be looked for", "err", err)
		return
	}
	seen := map[string]bool{}
	for _, t := range tagged {
		if kept[t.InstanceID] || seen[t.InstanceID] {
			continue
		}
		seen[t.InstanceID] = true
		m.log.Warn("Ending an engine that belongs to no instance", "pid", t.PID, "instance", t.InstanceID, "log", filepath.Base(m.logPath(t.InstanceID)))
		kill, cancel := context.WithTimeout(ctx, m.StopTimeout)
		if err := process.KillGroup(kill, prefix, t); err != nil {
			m.log.Error("An engine left behind could not be ended", "pid", t.PID, "err", err)
		}
		cancel()
	}
}

// forgetOrphans forgets the instances of models that were gone with the run that they were registered for. Otherwise a new
// model of the same id would seem to be loaded.
func (m *Manager) forgetOrphans(ctx context.Context) error {
	gone, err := m.store.OrphanedRuntimes(ctx)
	if err != nil {
		return err
	}
	for _, rt := range gone {
		if err := m.store.DeleteRuntime(ctx, rt.ModelID); err != nil {
			return err
		}
	}
	return nil
}

// forgetDirs removes the folders of instances that are no more.
func (m *Manager) forgetDirs(kept map[string]bool) {
	dirs, err := os.ReadDir(m.runDir())
	if err != nil {
		m.log.Warn("The folders of instances could not be listed", "err", err)
		return
	}
	for _, d := range dirs {
		if !kept[d.Name()] {
			m.forgetDir(d.Name())
		}
	}
}

// loadPinned loads the pinned models that should be ready and are not.
func (m *Manager) loadPinned() {
	active, err := m.store.ActiveRuntimes(m.ctx)
	if err != nil {
		m.log.Error("The pinned models could not be read", "err", err)
		return
	}
	for _, rt := range active {
		rec, err := m.store.Model(m.ctx, rt.ModelID)
		if err != nil || !rec.Pinned || rt.Desired != registry.RuntimeReady || rt.State == registry.RuntimeReady {
			continue
		}
		if _, err := m.Load(m.ctx, rt.ModelID, LoadOptions{Actor: "manager", Cause: "pinned, and loaded when the server stopped"}); err != nil {
			m.log.Error("A pinned model could not be loaded again", "model", rt.ModelID, "err", err)
		}
	}
}
