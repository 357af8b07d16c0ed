package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// LoadOptions say how a model is to be loaded.
type LoadOptions struct {
	ForceReload bool            // unload a loaded instance first, then load afresh
	Device      registry.Device // instead of the model's device_preference, for this load; "" keeps it
	Override    bool            // load although the memory check says no; for maintainers, and audited by the caller
	Evict       bool            // unload idle instances if that makes room
	Actor       string          // who asks
	Cause       string          // why, in words
}

// Load loads a model: the guide's load_model. It returns as soon as the operation is stored; Await waits for its end.
// A model that is loaded already succeeds at once, one that is being loaded gives the operation under way.
// CodeNotFound, CodeBadState for a model that is archived or waits for approval.
func (m *Manager) Load(ctx context.Context, id string, o LoadOptions) (registry.Operation, error) {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return registry.Operation{}, err
	}
	if err := mayLoad(rec); err != nil {
		return registry.Operation{}, err
	}
	switch o.Device {
	case "", registry.DeviceAuto, registry.DeviceCPU, registry.DeviceCUDA:
	default:
		return registry.Operation{}, &registry.Error{Code: registry.CodeInvalid, Msg: "The load request is not valid",
			Fields: []registry.FieldError{{Field: "device", Msg: fmt.Sprintf("must be auto, cuda or cpu, not %q", o.Device)}}}
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return registry.Operation{}, err
	}
	var op registry.Operation
	err = a.do(ctx, func() error {
		var err error
		op, err = a.requestLoad(rec, o)
		return err
	})
	return op, err
}

func mayLoad(rec registry.Record) error {
	switch rec.Registration {
	case registry.RegistrationPending:
		return registry.Errorf(registry.CodeBadState, "%s waits for the approval of a maintainer and cannot be loaded yet", rec.ModelID)
	case registry.RegistrationArchived:
		return registry.Errorf(registry.CodeBadState, "%s is archived; restore it first", rec.ModelID)
	case registry.RegistrationActive, registry.RegistrationDeprecated:
	}
	return nil
}

// Plan is the dry run of a load. It uses the code of the real one.
func (m *Manager) Plan(ctx context.Context, id string, device registry.Device) (registry.Plan, error) {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return registry.Plan{}, err
	}
	return m.planFor(ctx, rec, device)
}

// PlanModel is Plan for a configuration that need not be registered yet.
func (m *Manager) PlanModel(ctx context.Context, model registry.Model) (registry.Plan, sources.Snapshot, error) {
	snap, err := m.resolve(ctx, model)
	if err != nil {
		return registry.Plan{ModelID: model.ModelID, Problem: registry.ProblemOf(err), Sentence: registry.AsError(err).Error()}, snap, nil
	}
	p, err := m.decide(ctx, registry.Record{Model: model}, "", artifactOf(snap))
	return p, snap, err
}

func (m *Manager) planFor(ctx context.Context, rec registry.Record, device registry.Device) (registry.Plan, error) {
	if v := m.peek(rec.ModelID); v != nil && v.rt.State == registry.RuntimeReady {
		verdicts, err := m.WhyEngine(ctx, rec.Model)
		if err != nil {
			return registry.Plan{}, err
		}
		return registry.Plan{ModelID: rec.ModelID, Verdict: registry.VerdictLoaded, Device: v.rt.Device, Engine: v.rt.Engine, EngineWhy: whyOf(verdicts), Engines: verdicts,
			Needs:    registry.Footprint{Estimated: v.rt.Memory.PredictedGPU + v.rt.Memory.PredictedRAM, Basis: "loaded"},
			Sentence: "Is loaded " + where(v.rt.Device) + "."}, nil
	}
	snap, err := m.resolve(ctx, rec.Model)
	if err == nil {
		m.noteResolved(rec, snap)
		return m.decide(ctx, rec, device, artifactOf(snap))
	}
	if ctx.Err() != nil {
		return registry.Plan{}, err
	}
	if art, ok := m.knownArtifact(ctx, rec, err); ok {
		return m.decide(ctx, rec, device, art)
	}
	return registry.Plan{ModelID: rec.ModelID, Problem: registry.ProblemOf(err), Sentence: registry.AsError(err).Error()}, nil
}

// decide is the dry run of reserve.
func (m *Manager) decide(ctx context.Context, rec registry.Record, device registry.Device, art registry.Artifact) (registry.Plan, error) {
	in, eng, err := m.planInput(ctx, rec, device, art)
	if err != nil {
		if ctx.Err() != nil {
			return registry.Plan{}, err
		}
		return registry.Plan{ModelID: rec.ModelID, Problem: registry.ProblemOf(err), Sentence: registry.AsError(err).Error(), Engines: eng.verdicts}, nil
	}
	in.Reservations = m.ledger.othersOf(rec.ModelID)
	p := MakePlan(in)
	p.Engines = eng.verdicts
	return p, nil
}

// planInput gathers what the planner needs but for the reservations: the engine, its build, the footprints and a fresh
// sample.
func (m *Manager) planInput(ctx context.Context, rec registry.Record, device registry.Device, art registry.Artifact) (PlanInput, chosenEngine, error) {
	sample, err := m.Hardware.Refresh(ctx)
	if err != nil {
		return PlanInput{}, chosenEngine{}, registry.Errorf(registry.CodeUnavailable, "The memory of this machine could not be read: %w", err)
	}
	eng, err := m.chooseEngine(ctx, rec.Model, device, art.Facts, sample)
	if err != nil {
		return PlanInput{}, eng, err
	}
	in := PlanInput{
		Model: rec.Model, Device: cmp.Or(device, rec.DevicePreference), Engine: eng.info.Name, Why: eng.why, Builds: eng.version.Devices, NoCUDA: eng.version.NoCUDA,
		NeedGPU: footprint(eng.loader, rec.Model, art, registry.DeviceCUDA), NeedCPU: footprint(eng.loader, rec.Model, art, registry.DeviceCPU),
		Sample: sample, Now: m.now(), Elsewhere: eng.version.Elsewhere,
	}
	return in, eng, nil
}

const mib = 1 << 20

// footprint is what the model needs on a device: the engine's estimate, and beside it what the user gave, which counts.
func footprint(l loaders.Loader, model registry.Model, art registry.Artifact, device registry.Device) registry.Footprint {
	f := registry.Footprint{Weights: art.Bytes, Estimated: art.Bytes, Basis: "file size"}
	if e, ok := l.(loaders.Estimator); ok {
		if got := e.Estimate(model, art, device); got.Basis != "" {
			f = got
		}
	}
	if f.Estimated == 0 && f.Basis == "file size" {
		f.Basis = "unknown"
	}
	f.Given = model.RequiredRAMMB * mib
	if device == registry.DeviceCUDA {
		f.Given = model.RequiredGPUMemoryMB * mib
	}
	return f
}

func (m *Manager) resolve(ctx context.Context, model registry.Model) (sources.Snapshot, error) {
	src, err := m.source(model.SourceType)
	if err != nil {
		return sources.Snapshot{}, err
	}
	if err := m.confineTokenizer(ctx, model); err != nil {
		return sources.Snapshot{}, err
	}
	model, err = m.withSecrets(ctx, model)
	if err != nil {
		return sources.Snapshot{}, err
	}
	return src.Resolve(ctx, sources.RefOf(model))
}

func (m *Manager) source(t registry.SourceType) (sources.Source, error) {
	for _, s := range m.Sources {
		if s.Type() == t {
			return s, nil
		}
	}
	return nil, registry.Errorf(registry.CodeUnsupported, "Models from %s cannot be fetched by this version yet; put the files in a folder of this machine and register it with source_type local", t)
}

func artifactOf(s sources.Snapshot) registry.Artifact {
	path := s.Root
	if s.Main != "" {
		path = filepath.Join(s.Root, s.Main)
	}
	return registry.Artifact{Path: path, Revision: s.Revision, Files: s.Files, Bytes: s.Bytes, Facts: s.Facts}
}

// loadWork is the slow part of a load. It runs outside the actor and tells it only what happened.
type loadWork struct {
	m        *Manager
	a        *actor
	job      *job
	instance string
	reserved bool
}

// refusal marks errors that leave the model as it was: nothing of it was tried.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func (w *loadWork) run(ctx context.Context) {
	inst, mem, outcome, err := w.load(ctx)
	gen := w.job.gen
	var no refusal
	if err != nil {
		w.m.forgetDir(w.instance)
	}
	switch {
	case err == nil:
		kept := false
		if doErr := w.a.do(context.WithoutCancel(ctx), func() error { kept = w.a.answered(gen, inst, mem, outcome); return nil }); doErr != nil || !kept {
			// Cancelled in the last moment, or the manager closes: nobody owns the instance, so it ends here.
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.m.StopTimeout)
			defer cancel()
			if err := inst.Stop(stop); err != nil {
				w.m.log.Error("An instance that nobody wants any more could not be ended", "model", w.a.id, "err", err)
			}
			w.m.forgetDir(w.instance)
			w.a.post(func() { w.a.gone(gen) })
		}
		return
	case ctx.Err() != nil:
		w.release()
		w.a.post(func() { w.a.gone(gen) })
	case errors.As(err, &no):
		w.release()
		w.a.post(func() { w.a.refused(gen, no.error) })
	default:
		w.release()
		err := asLoadingError(err)
		w.a.post(func() { w.a.failed(gen, err) })
	}
}

// forgetDir removes the folder of an instance that has ended: an empty one, or what its engine left in it.
func (m *Manager) forgetDir(instance string) {
	if instance == "" {
		return
	}
	if err := os.RemoveAll(filepath.Join(m.runDir(), instance)); err != nil {
		m.log.Warn("The folder of an instance could not be removed", "instance", instance, "err", err)
	}
}

// asLoadingError keeps "the files are not there" from reading as "there is no such model": to who asked for a load,
// both would be not_found.
func asLoadingError(err error) error {
	if registry.CodeOf(err) != registry.CodeNotFound {
		return err
	}
	e := *registry.AsError(err)
	e.Code, e.Failure = registry.CodeLoadingFailed, failureOf(err)
	return &e
}

// release gives the reservation back. After an admitted start that was cancelled the actor does it, once it knows that
// nothing is left; doing it twice is harmless, since ids are never used again.
func (w *loadWork) release() {
	if w.reserved {
		w.m.ledger.release(w.instance)
	}
}

func (w *loadWork) load(ctx context.Context) (loaders.Instance, registry.Memory, string, error) {
	none := registry.Memory{}
	began := w.m.now()
	t := w.job.track
	model := w.job.rec.Model

	// What surely will not fit is not worth a download: the guide's check comes before anything starts.
	check := func(art registry.Artifact) error { _, err := w.check(ctx, art); return err }
	art, err := w.m.obtain(ctx, w.a, w.job, check, true)
	if err != nil {
		return nil, none, "", err
	}
	// Not before: a download must not hold one of the places in which engines start.
	if err := w.takeStart(ctx); err != nil {
		return nil, none, "", err
	}
	defer func() { <-w.m.starts }()
	t.stage(registry.StageReserve, "")
	plan, eng, sample, err := w.reserve(ctx, art)
	if err != nil {
		return nil, none, "", err
	}
	if err := w.a.do(ctx, func() error { return w.a.admitted(w.job.gen, plan, eng.version.Version) }); err != nil {
		return nil, none, "", err
	}
	given, err := w.m.withSecrets(ctx, model)
	if err != nil {
		return nil, none, "", err
	}
	// Once more: the files may have taken hours to come, and the folders may be others by now.
	if err := w.m.confineTokenizer(ctx, model); err != nil {
		return nil, none, "", err
	}
	if c := art.Tokenizer; c != nil {
		given.TokenizerPath = c.Folder // where it was fetched to: engines reach no network
	}
	spec := loaders.LoadSpec{
		Model: given, Artifact: art, InstanceID: w.instance, Device: registry.DeviceCPU, GPUs: plan.GPUs, Context: plan.Needs.Context, Reserved: plan.Needs.Bytes(),
		LogPath: w.m.logPath(w.instance), Dir: filepath.Join(w.m.runDir(), w.instance),
		Started: func(h registry.Handle) {
			if err := w.a.do(context.WithoutCancel(ctx), func() error { return w.a.started(w.job.gen, h) }); err != nil {
				w.m.log.Error("An engine's handle could not be stored; it would not be found after a crash", "model", w.a.id, "err", err)
			}
		},
	}
	if plan.Device == remote {
		spec.Device = cmp.Or(w.job.opts.Device, model.DevicePreference) // whose devices nobody here knows
	}
	if len(plan.GPUs) > 0 {
		spec.Device = registry.DeviceCUDA
		for _, i := range plan.GPUs {
			for _, g := range sample.GPUs {
				if g.Index == i {
					spec.GPUUUIDs = append(spec.GPUUUIDs, g.UUID)
					if spec.DeviceSize == 0 || g.MemoryTotal < spec.DeviceSize {
						spec.DeviceSize = g.MemoryTotal
					}
				}
			}
		}
	}
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, none, "", registry.Errorf(registry.CodeUnavailable, "The instance's folder could not be made: %w", err)
	}
	t.stage(registry.StageEngine, eng.info.Title+" "+eng.version.Version)
	inst, err := eng.loader.Load(ctx, spec, t.report)
	if err != nil {
		return nil, none, "", err
	}
	mem := w.m.reported(ctx, inst, w.m.measure(ctx, inst.Handle(), plan))
	w.m.ledger.update(w.instance, func(r *registry.Reservation) { r.PID = inst.Handle().PID })
	took := w.m.now().Sub(began).Round(10 * time.Millisecond)
	return inst, mem, readySentence(took, plan, mem), nil
}

func readySentence(took time.Duration, plan registry.Plan, mem registry.Memory) string {
	s := fmt.Sprintf("Ready %s in %s", where(plan.Device), took)
	if got := mem.MeasuredGPU + mem.MeasuredRAM; got > 0 && plan.Needs.Bytes() > 0 {
		s += fmt.Sprintf(" (predicted %s, measured %s)", registry.Bytes(plan.Needs.Bytes()), registry.Bytes(got))
	}
	return s + "."
}

// takeStart waits for one of the places in which engines may be starting.
func (w *loadWork) takeStart(ctx context.Context) error {
	select {
	case w.m.starts <- struct{}{}:
		return nil
	default:
	}
	w.job.track.waits(registry.StageReserve, fmt.Sprintf("Waits for its turn: %d of %d places for starting engines are taken", cap(w.m.starts), cap(w.m.starts)))
	select {
	case w.m.starts <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check plans without reserving and refuses what cannot be loaded now.
func (w *loadWork) check(ctx context.Context, art registry.Artifact) (registry.Plan, error) {
	in, _, err := w.m.planInput(ctx, w.job.rec, w.job.opts.Device, art)
	if err != nil {
		return registry.Plan{}, err
	}
	in.Reservations = w.m.ledger.othersOf(w.a.id)
	p := MakePlan(in)
	if err := shortage(p); err != nil && !w.job.opts.Override && (!w.job.opts.Evict || p.Verdict != registry.VerdictEvict) {
		return p, refusal{err}
	}
	return p, nil
}

// reserve promises the memory, after evicting idle instances if that was asked for.
func (w *loadWork) reserve(ctx context.Context, art registry.Artifact) (registry.Plan, chosenEngine, registry.Sample, error) {
	o := w.job.opts
	for round := 0; ; round++ {
		in, eng, err := w.m.planInput(ctx, w.job.rec, o.Device, art)
		if err != nil {
			return registry.Plan{}, eng, in.Sample, err
		}
		plan, ok := w.m.ledger.admit(w.job.rec.Model, w.instance, o.Override, func(others []registry.Reservation) registry.Plan {
			in.Reservations = others
			return MakePlan(in)
		})
		if ok {
			w.reserved = true
			return plan, eng, in.Sample, nil
		}
		if plan.Verdict != registry.VerdictEvict || !o.Evict || round == 3 {
			return plan, eng, in.Sample, refusal{shortage(plan)}
		}
		for _, victim := range plan.Evict {
			w.job.track.stage(registry.StageReserve, "Unloading "+victim.ModelID+" to make room")
			op, _, err := w.m.Unload(ctx, victim.ModelID, UnloadOptions{Actor: o.Actor, Cause: "evicted for " + w.a.id})
			if err == nil {
				_, err = w.m.Await(ctx, op.ID)
			}
			if err != nil {
				return plan, eng, in.Sample, err
			}
		}
	}
}

// shortage turns a plan that does not fit into the guide's ResourceNotAvailableError.
func shortage(p registry.Plan) error {
	if p.Verdict == registry.VerdictFits || p.Verdict == registry.VerdictLoaded {
		return nil
	}
	msg := p.Sentence
	if p.Verdict == registry.VerdictEvict {
		msg = fmt.Sprintf("Too little memory %s: needs %s, %s are free, %s short. %s", where(p.Shortage.Device), registry.Bytes(p.Shortage.Needed), registry.Bytes(p.Shortage.Free), registry.Bytes(p.Shortage.Short), p.Sentence)
	}
	return &registry.Error{Code: registry.CodeInsufficientResources, Op: "manager.Load", Msg: msg, Shortage: p.Shortage}
}

// measure reads what an instance holds: on GPUs as the driver accounts it to the process and its children, in main
// memory as resident bytes.
func (m *Manager) measure(ctx context.Context, h registry.Handle, plan registry.Plan) registry.Memory {
	var mem registry.Memory
	if plan.Device == "cpu" {
		mem.PredictedRAM = plan.Needs.Bytes()
	} else {
		mem.PredictedGPU = plan.Needs.Bytes()
	}
	if h.PID == 0 {
		return mem
	}
	if rss, err := hw.ProcessRSS(h.PID); err == nil {
		mem.MeasuredRAM = rss
		// What it holds is no longer free, so it must not be counted as promised on top.
		m.ledger.update(h.InstanceID, func(r *registry.Reservation) {
			if r.Device == string(registry.DeviceCPU) {
				r.Taken = rss
			}
		})
	}
	if len(plan.GPUs) > 0 {
		mem.MeasuredRAM = 0 // of a model on a GPU, main memory is a detail that would only confuse the comparison
		sample, err := m.Hardware.Refresh(ctx)
		if err != nil {
			return mem
		}
		pids, err := hw.ProcessTree(h.PID)
		if err != nil {
			pids = []int{h.PID}
		}
		for gpu, n := range hw.ProcessTreeGPU(sample, pids) {
			if n < 0 {
				continue // the driver does not say
			}
			mem.MeasuredGPU += n
			m.ledger.update(h.InstanceID, func(r *registry.Reservation) {
				if r.Device == gpuName(gpu) {
					r.Taken = n
				}
			})
		}
	}
	return mem
}
