package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// How long looks live.
const (
	lookFor   = time.Minute      // one that never ends is ended
	lookIdle  = 3 * time.Second  // one that nobody waits for is ended
	lookFresh = 20 * time.Second // what was found is told again for so long: a form asks at every change
	lookFails = 2 * time.Second  // and what could not be found
	maxLooked = 128              // looks that are kept
)

// lookups are looks at sources on behalf of forms that are being filled in. One that takes long goes on while the form
// asks again, and equal questions are asked once.
type lookups struct {
	closing <-chan struct{}
	now     func() time.Time

	mu   sync.Mutex
	jobs map[[32]byte]*lookJob
}

type lookJob struct {
	began  time.Time
	done   chan struct{}
	cancel context.CancelFunc
	found  registry.Lookup // set before done is closed, as err and ended
	err    error
	ended  time.Time

	waiting int // guarded by lookups.mu
}

func newLookups(closing <-chan struct{}, now func() time.Time) *lookups {
	return &lookups{closing: closing, now: now, jobs: map[[32]byte]*lookJob{}}
}

// lookKey tells questions apart. The model may hold secrets, so it is kept as a hash only.
func lookKey(m registry.Model) [32]byte {
	b, _ := json.Marshal([]any{m, m.CustomLoaderParams}) // plain values: it cannot fail
	return sha256.Sum256(b)
}

// look returns what there is of a model, or errStillLooking with the time at which the look began when ctx ends before
// it does. CodeBusy when too many looks are under way.
func (b *lookups) look(ctx context.Context, m registry.Model, ask lookFunc) (registry.Lookup, time.Time, error) {
	j, err := b.join(m, ask) //nolint:contextcheck // a look outlives who asked first: the form asks again
	if err != nil {
		return registry.Lookup{}, time.Time{}, err
	}
	defer b.leave(j)
	select {
	case <-j.done:
		return j.found, j.began, j.err
	case <-ctx.Done():
		return registry.Lookup{}, j.began, errStillLooking
	}
}

// join returns the look under way or the one that is still fresh, or begins one.
func (b *lookups) join(m registry.Model, ask lookFunc) (*lookJob, error) {
	key := lookKey(m)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget()
	if j := b.jobs[key]; j != nil {
		j.waiting++
		return j, nil
	}
	if len(b.jobs) >= maxLooked {
		return nil, &registry.Error{Code: registry.CodeBusy, Msg: "Too many sources are being looked at right now. Try again in a moment", RetryAfter: lookIdle}
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookFor)
	j := &lookJob{began: b.now(), done: make(chan struct{}), cancel: cancel, waiting: 1}
	b.jobs[key] = j
	go func() { // ends the look with the server
		select {
		case <-b.closing:
			cancel()
		case <-j.done:
		}
	}()
	go func() {
		defer cancel()
		j.found, j.err = ask(ctx, m)
		j.ended = b.now()
		close(j.done)
	}()
	return j, nil
}

// leave ends a look that nobody comes back to.
func (b *lookups) leave(j *lookJob) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j.waiting--
	select {
	case <-j.done:
		return
	default:
	}
	if j.waiting > 0 {
		return
	}
	time.AfterFunc(lookIdle, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if j.waiting == 0 {
			j.cancel()
		}
	})
}

// forget drops looks that have ended and are not fresh any more. It is called with b.mu held.
func (b *lookups) forget() {
	for key, j := range b.jobs {
		select {
		case <-j.done:
		default:
			continue
		}
		keep := lookFresh
		if j.err != nil {
			keep = lookFails
		}
		if b.now().Sub(j.ended) > keep {
			delete(b.jobs, key)
		}
	}
	if len(b.jobs) < maxLooked {
		return
	}
	for key, j := range b.jobs { // full: what has ended goes before anybody is turned away
		select {
		case <-j.done:
			delete(b.jobs, key)
		default:
		}
	}
}
