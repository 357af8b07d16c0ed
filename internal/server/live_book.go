package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

const (
	sparkEvery  = 3 * time.Second
	sparkPoints = 120 // six minutes

	enginesFor = time.Minute      // how long what was found of the engines is believed
	pendingFor = time.Second      // and when one of them has not answered yet
	usesFor    = 3 * time.Second  // and which models use one
	planFor    = 5 * time.Second  // how long a plan is shown before it is made again
	silentFor  = 30 * time.Second // how long a source that did not answer in time is left alone
	maxLooks   = 256              // models whose facts are remembered
)

// liveBook is what live pages share: the devices' last minutes, the engines, and what the sources said about models,
// so that a hundred open pages ask once.
type liveBook struct {
	s *Server

	mu     sync.Mutex
	points map[string][]float64 // used share of each device by view.Device.ID, oldest first
	looks  map[string]*look

	engineMu sync.Mutex // held while the engines are looked at
	foundMu  sync.Mutex // guards what follows
	found    []registry.EngineStatus
	foundAt  time.Time
	foundOf  int64 // Manager.EngineChanges when they were looked at
	looking  bool  // somebody looks again, and nobody waits for it

	oneMu sync.Mutex             // held while one engine is looked at
	one   map[string]foundEngine // by name, in full
	used  map[string]usedEngine  // by name and teams
}

// usedEngine is who used an engine.
type usedEngine struct {
	uses []registry.EngineUse
	at   time.Time
}

// foundEngine is an engine as it was found.
type foundEngine struct {
	st registry.EngineStatus
	at time.Time
	of int64 // Manager.EngineChanges
}

// look is what is known about a registered model that is not in the registry.
type look struct {
	mu      sync.Mutex // held while the source is asked
	version int64
	known   bool      // the facts could be read
	again   time.Time // not asked before
	facts   registry.Facts
	onDisk  int64 // of the model's files, in bytes
	plan    *registry.Plan
}

// seen is a copy of a look.
type seen struct {
	facts  registry.Facts
	onDisk int64
	plan   *registry.Plan
}

// newLiveBook begins to record the devices; the recording ends when s.closing is closed.
func newLiveBook(s *Server) *liveBook {
	b := &liveBook{s: s, points: map[string][]float64{}, looks: map[string]*look{}}
	if s.Manager != nil && s.Manager.Hardware != nil {
		go b.record(s.closing)
	}
	return b
}

func (b *liveBook) record(done <-chan struct{}) {
	tick := time.NewTicker(sparkEvery)
	defer tick.Stop()
	for {
		b.add(b.s.Manager.Hardware.Latest())
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// add appends one point for each device of the sample.
func (b *liveBook) add(sample registry.Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range view.DevicesOf(registry.Resources{Sample: sample}, nil) {
		if d.Total <= 0 {
			continue
		}
		p := b.points[d.ID]
		p = append(p, float64(d.Used)/float64(d.Total))
		if len(p) > sparkPoints {
			p = append([]float64(nil), p[len(p)-sparkPoints:]...)
		}
		b.points[d.ID] = p
	}
}

// sparks returns the last minutes of every device.
func (b *liveBook) sparks() map[string][]float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[string][]float64, len(b.points))
	for id, p := range b.points {
		out[id] = append([]float64(nil), p...)
	}
	return out
}

// engines returns the engines as they were found at most a minute ago. Looking starts their programs, so it is not
// done for every page.
func (b *liveBook) engines(ctx context.Context) []registry.EngineStatus {
	b.engineMu.Lock()
	defer b.engineMu.Unlock()
	if known, fresh := b.recall(); fresh {
		return known
	}
	of := b.s.Manager.EngineChanges()
	found := b.s.Manager.EnginesSoon(ctx)
	if ctx.Err() != nil {
		return found // cut short: not to be believed by others
	}
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	b.found, b.foundAt, b.foundOf = found, b.believedFrom(slices.ContainsFunc(found, func(e registry.EngineStatus) bool { return e.Pending })), of
	return slices.Clone(found)
}

// believedFrom is from when what was found is believed for enginesFor: what is pending, only for a moment longer.
func (b *liveBook) believedFrom(pending bool) time.Time {
	if pending {
		return b.s.Now().Add(pendingFor - enginesFor)
	}
	return b.s.Now()
}

// recall returns the engines as they were last found, nil if they never were, and whether that may still be believed.
func (b *liveBook) recall() (known []registry.EngineStatus, fresh bool) {
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	return slices.Clone(b.found), b.found != nil && b.s.Now().Sub(b.foundAt) <= enginesFor && b.foundOf == b.s.Manager.EngineChanges()
}

// knownEngines is engines for who would rather have an old answer than wait: once the engines were found that is told,
// and when it is old they are looked at again behind the caller's back.
func (b *liveBook) knownEngines(ctx context.Context) []registry.EngineStatus {
	known, fresh := b.recall()
	if known == nil {
		return b.engines(ctx)
	}
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	if !fresh && !b.looking {
		b.looking = true
		go b.lookAgain(context.WithoutCancel(ctx))
	}
	return known
}

func (b *liveBook) lookAgain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, enginesFor)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-b.s.closing:
			cancel()
		case <-done:
		}
	}()
	b.engines(ctx)
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	b.looking = false
}

// look returns the facts of a model and, with plan, what a load would do now. Those who ask at the same time share one
// answer. What cannot be learned before ctx ends is left out; with a ctx that has ended already, only what is known is told.
func (b *liveBook) look(ctx context.Context, rec registry.Record, plan bool) seen {
	b.mu.Lock()
	l := b.looks[rec.ModelID]
	if l == nil {
		if len(b.looks) >= maxLooks {
			clear(b.looks)
		}
		l = &look{}
		b.looks[rec.ModelID] = l
	}
	b.mu.Unlock()
	if !lockWithin(ctx, &l.mu) { // somebody else asks the source
		return seen{}
	}
	defer l.mu.Unlock()
	if l.version != rec.Version {
		l.version, l.known, l.facts, l.onDisk, l.plan, l.again = rec.Version, false, registry.Facts{}, 0, nil, time.Time{}
	}
	if (plan || !l.known) && ctx.Err() == nil && b.s.Now().After(l.again) {
		p, snap, err := b.s.Manager.PlanModel(ctx, rec.Model)
		l.again = b.s.Now().Add(silentFor)
		if err == nil && ctx.Err() == nil {
			l.plan, l.again = &p, b.s.Now().Add(planFor)
			if p.Problem == nil || snap.Facts.Format != "" {
				l.facts, l.known, l.onDisk = snap.Facts, true, snap.OnDisk
			}
		}
	}
	out := seen{facts: l.facts, onDisk: l.onDisk}
	if l.plan != nil && plan {
		p := *l.plan
		out.plan = &p
	}
	return out
}

// lockWithin locks mu unless ctx ends before.
func lockWithin(ctx context.Context, mu *sync.Mutex) bool {
	wait := time.NewTicker(10 * time.Millisecond)
	defer wait.Stop()
	for !mu.TryLock() {
		select {
		case <-ctx.Done():
			return false
		case <-wait.C:
		}
	}
	return true
}
