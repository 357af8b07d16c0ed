package manager

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Lease is the right to use a ready instance. While it is held the instance is neither idle nor evictable, and an
// unload waits for it. Release is idempotent.
type Lease struct {
	Endpoint      registry.Endpoint
	Authorization string            // for the engine; a secret
	Transport     http.RoundTripper // to reach it; nil for the gateway's own
	Release       func()
}

// Acquire returns a lease of the model's instance, loading the model if it is not loaded. Errors are those of Load and
// of the load itself; CodeNotFound, CodeBadState, CodeInsufficientResources, CodeLoadingFailed, CodeUnavailable.
func (m *Manager) Acquire(ctx context.Context, id, actor string) (Lease, error) {
	for range 3 { // it may be unloaded by somebody else between ready and our lease
		l, ok, err := m.lease(ctx, id)
		if err != nil || ok {
			return l, err
		}
		op, err := m.Load(ctx, id, LoadOptions{Actor: actor, Cause: "asked for by a request"})
		if err != nil {
			return Lease{}, err
		}
		op, err = m.Await(ctx, op.ID)
		if err != nil {
			return Lease{}, err
		}
		switch op.State {
		case registry.OperationSucceeded:
		case registry.OperationFailed:
			return Lease{}, op.Error.AsError()
		case registry.OperationCancelled:
			return Lease{}, registry.Errorf(registry.CodeUnavailable, "The load of %s was cancelled. %s", id, op.Outcome)
		case registry.OperationQueued, registry.OperationRunning, registry.OperationPaused:
			return Lease{}, ctx.Err()
		}
	}
	return Lease{}, registry.Errorf(registry.CodeBusy, "%s was unloaded while the request waited for it; try again", id)
}

// lease takes a lease if the model is ready.
func (m *Manager) lease(ctx context.Context, id string) (l Lease, ok bool, err error) {
	v := m.peek(id)
	if v == nil || v.rt.State != registry.RuntimeReady {
		return l, false, nil
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return l, false, err
	}
	err = a.do(ctx, func() error {
		if a.rt.State != registry.RuntimeReady || a.inst == nil {
			return nil
		}
		ok = true
		l.Endpoint = a.inst.Endpoint()
		if auth, is := a.inst.(loaders.Authenticator); is {
			l.Authorization = auth.Authorization()
		}
		if t, is := a.inst.(loaders.Transporter); is {
			l.Transport = t.Transport()
		}
		gen := a.rt.Generation
		a.active++
		a.touch()
		m.rates.hit(id, m.now())
		var once sync.Once
		l.Release = func() { once.Do(func() { a.post(func() { a.released(gen) }) }) }
		return nil
	})
	if err != nil && ok { // the actor ended in between
		l.Release()
	}
	return l, ok, err
}

// released is called when a request has been answered.
func (a *actor) released(gen int64) {
	if a.rt.Generation != gen || a.active == 0 {
		return
	}
	a.active--
	a.touch()
	if a.active == 0 {
		if a.drained != nil {
			a.drained()
			return
		}
		a.armIdle()
	}
}

// touch notes that the instance is used. It is stored at most once a minute: it is a hint for people and for the
// choice of whom to evict, no promise.
func (a *actor) touch() {
	now := a.m.now()
	a.rt.LastUsedAt = now
	active := a.active
	a.m.ledger.update(a.rt.InstanceID, func(r *registry.Reservation) { r.LastUsedAt, r.Active = now, active })
	if now.Sub(a.lastSave) > time.Minute {
		a.lastSave = now
		a.must(a.save(a.rt))
	}
}

// armIdle starts the clock of idle_timeout.
func (a *actor) armIdle() {
	a.disarmIdle()
	rec, err := a.m.store.Model(a.m.ctx, a.id)
	if err != nil || rec.IdleTimeout <= 0 {
		return
	}
	gen, limit := a.rt.Generation, time.Duration(rec.IdleTimeout)
	a.idle = time.AfterFunc(limit, func() {
		a.post(func() {
			if a.rt.Generation != gen || a.rt.State != registry.RuntimeReady || a.active > 0 || a.m.now().Sub(a.rt.LastUsedAt) < limit {
				return
			}
			_, err := a.beginUnload("manager", "idle for "+rec.IdleTimeout.String())
			a.must(err)
		})
	})
}

func (a *actor) disarmIdle() {
	if a.idle != nil {
		a.idle.Stop()
		a.idle = nil
	}
}

// rateBook counts the requests of the last minute for each model.
type rateBook struct {
	mu   sync.Mutex
	hits map[string]*[60]slot
}

type slot struct {
	second int64
	n      int
}

func (b *rateBook) hit(id string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hits == nil {
		b.hits = map[string]*[60]slot{}
	}
	ring := b.hits[id]
	if ring == nil {
		ring = &[60]slot{}
		b.hits[id] = ring
	}
	s := &ring[now.Unix()%60]
	if s.second != now.Unix() {
		*s = slot{second: now.Unix()}
	}
	s.n++
}

func (b *rateBook) perMinute(id string, now time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	ring := b.hits[id]
	if ring == nil {
		return 0
	}
	sum := 0
	for _, s := range ring {
		if now.Unix()-s.second < 60 {
			sum += s.n
		}
	}
	return sum
}

func (b *rateBook) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.hits, id)
}
