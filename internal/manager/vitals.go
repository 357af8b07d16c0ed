package manager

import (
	"context"
	"fmt"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const (
	vitalsTimeout = 10 * time.Second // an engine that takes longer to say that it is well counts as one that does not say it
	growthLeast   = 256 << 20        // bytes beyond a promise that nobody needs to hear of; also a tenth of the promise
	hangTail      = 40               // lines of the log that go into the failure
)

// vitals are what is known of how an instance does since it is ready. They belong to the actor's goroutine.
type vitals struct {
	silent time.Time       // since when it has not answered; zero when it does
	first  registry.Memory // what it held when it was looked at first
	ended  error           // why it is ended from here, although it ran
	ending bool            // a try to end it is under way
}

// keepVitals looks again and again how instances that are ready do. Services elsewhere watch themselves.
func (m *Manager) keepVitals() {
	tick := time.NewTicker(m.VitalsEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		all := make([]*actor, 0, len(m.actors))
		for _, a := range m.actors {
			all = append(all, a)
		}
		m.mu.Unlock()
		for _, a := range all {
			v := a.view.Load()
			if _, elsewhere := v.inst.(loaders.Observer); elsewhere || v.inst == nil || v.rt.State != registry.RuntimeReady {
				continue
			}
			if a.looking.CompareAndSwap(false, true) { // one look at a time, however long it takes
				m.goWork(func() {
					defer a.looking.Store(false)
					a.look(v)
				})
			}
		}
	}
}

// look asks the instance whether it answers, and the system what it holds.
func (a *actor) look(v *view) {
	m := a.m
	ctx, cancel := context.WithTimeout(m.ctx, min(vitalsTimeout, max(m.HangAfter, time.Second)))
	err := v.inst.Health(ctx)
	busy := activityOf(ctx, v.inst, err)
	said := registry.Memory{}
	if err == nil {
		said = m.reported(ctx, v.inst, said)
	}
	cancel()
	select {
	case <-v.inst.Done(): // it has ended, which is told elsewhere
		return
	case <-m.ctx.Done():
		return
	default:
	}
	plan := registry.Plan{Device: v.rt.Device, GPUs: gpusOf(v.rt.Device), Needs: registry.Footprint{Estimated: v.rt.Memory.PredictedGPU + v.rt.Memory.PredictedRAM}}
	mem := m.measure(m.ctx, v.inst.Handle(), plan)
	mem.ReportedRAM, mem.ReportedGPU = said.ReportedRAM, said.ReportedGPU
	a.post(func() { a.seen(v.rt.Generation, err, mem, busy) })
}

// activityOf asks an engine that is well what it is doing. Nil if it does not tell.
func activityOf(ctx context.Context, inst loaders.Instance, health error) *registry.Activity {
	meter, ok := inst.(loaders.Meter)
	if !ok || health != nil {
		return nil
	}
	busy, err := meter.Activity(ctx)
	if err != nil {
		return nil // it answers requests, which is what matters
	}
	return &busy
}

// reported adds to mem what the engine itself says that it holds, where it does. Of one in a server of others, which has no
// process of its own, nothing else is known: what it says is no longer free, so it must not be counted as promised on top.
func (m *Manager) reported(ctx context.Context, inst loaders.Instance, mem registry.Memory) registry.Memory {
	if h, ok := inst.(loaders.Holder); ok {
		ctx, cancel := context.WithTimeout(ctx, vitalsTimeout)
		defer cancel()
		if ram, gpu, err := h.Held(ctx); err == nil {
			mem.ReportedRAM, mem.ReportedGPU = ram, gpu
			if handle := inst.Handle(); handle.PID == 0 {
				m.ledger.holds(handle.InstanceID, ram, gpu)
			}
		}
	}
	return mem
}

// seen notes what a look has found: in words what is wrong with an instance that runs. One that has not answered for
// HangAfter is ended as a crash is, and started again.
func (a *actor) seen(gen int64, err error, mem registry.Memory, busy *registry.Activity) {
	if a.rt.Generation != gen || a.rt.State != registry.RuntimeReady || a.inst == nil {
		return
	}
	if a.vitals.ended != nil { // and it is there all the same
		a.end()
		return
	}
	v := &a.vitals
	if v.first == (registry.Memory{}) {
		v.first = mem
	}
	a.rt.Memory = mem // stored with the next change of state
	if busy != nil {
		since := busy.Since(a.rt.Activity)
		busy = &since
	}
	a.rt.Activity = busy
	now := a.m.now()
	if err == nil {
		v.silent = time.Time{}
	} else if v.silent.IsZero() {
		v.silent = now
	}
	unwell := overdrawn(mem, v.first)
	if !v.silent.IsZero() {
		unwell = "It has not answered since " + v.silent.Format("15:04:05") + "."
	}
	if (unwell == "") != (a.rt.Unwell == "") {
		a.m.log.Warn("An instance does not do well, or does again", "model", a.id, "what", unwell)
	}
	if unwell != a.rt.Unwell {
		a.rt.Unwell = unwell
		a.tell()
	}
	if v.silent.IsZero() || now.Sub(v.silent) < a.m.HangAfter {
		return
	}
	msg := fmt.Sprintf("The engine ran and did not answer for %s, so it was ended", now.Sub(v.silent).Round(time.Second))
	failure := &registry.Failure{Kind: registry.FailureHang, Msg: msg, LogTail: process.Tail(a.m.logPath(a.rt.InstanceID), 0, hangTail),
		Hint: "The end of its log may say what it was doing. If it comes back, give it fewer requests at once, a shorter context or another version of the engine."}
	v.ended = &registry.Error{Code: registry.CodeLoadingFailed, Op: "manager.vitals", Msg: msg, Failure: failure, Err: err}
	a.end()
}

// end ends an instance that does not answer. What could not be ended is tried again at the next look.
func (a *actor) end() {
	if a.vitals.ending {
		return
	}
	a.vitals.ending = true
	inst, gen := a.inst, a.rt.Generation
	a.m.goWork(func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(a.m.ctx), a.m.StopTimeout)
		defer cancel()
		err := inst.Stop(stop)
		if err == nil {
			return // told by its Done
		}
		a.m.log.Error("An engine that does not answer could not be ended; it is tried again", "model", a.id, "err", err)
		a.post(func() {
			if a.rt.Generation == gen {
				a.vitals.ending = false
			}
		})
	})
}

// overdrawn says in words that an instance holds clearly more than it was promised, and whether it has grown; "" if it
// keeps to it. What it holds beyond its promise others may have been promised, too.
func overdrawn(mem, first registry.Memory) string {
	promised, held, before := mem.PredictedGPU, mem.MeasuredGPU, first.MeasuredGPU
	if promised == 0 {
		promised, held, before = mem.PredictedRAM, mem.MeasuredRAM, first.MeasuredRAM
	}
	slack := max(growthLeast, promised/10)
	if promised == 0 || held <= promised+slack {
		return ""
	}
	text := fmt.Sprintf("It holds %s, %s more than it was promised.", registry.Bytes(held), registry.Bytes(held-promised))
	if held-before > slack {
		return text + fmt.Sprintf(" Once it was ready it held %s: it may leak. Load it again to get the memory back.", registry.Bytes(before))
	}
	return text + " Give it required_gpu_memory_mb or required_ram_mb, so that the next plan knows."
}
