package hw

import (
	"context"
	"sync"
	"time"
)

// probe calls a function that may hang. At most one call is under way; all who ask while it is share the one call
// that comes after it, so that everyone gets a value that was not read before they asked.
type probe[T any] struct {
	read func() T

	mu      sync.Mutex
	running *flight[T]
	next    *flight[T]
	last    *flight[T] // the newest that has ended
}

// flight is one call. value may be read once done is closed.
type flight[T any] struct {
	done  chan struct{}
	began time.Time
	value T
}

// ask returns a call that starts now, or when the one under way has ended.
func (p *probe[T]) ask() *flight[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		p.running = &flight[T]{done: make(chan struct{}), began: time.Now()}
		go p.work(p.running)
		return p.running
	}
	if p.next == nil {
		p.next = &flight[T]{done: make(chan struct{})}
	}
	return p.next
}

// work makes calls until nobody asks for another.
func (p *probe[T]) work(f *flight[T]) {
	for f != nil {
		f.value = p.read()
		p.mu.Lock()
		p.last = f
		p.running, p.next = p.next, nil
		if p.running != nil {
			p.running.began = time.Now()
		}
		close(f.done)
		f = p.running
		p.mu.Unlock()
	}
}

// wait waits for f until ctx ends or the call that stands in its way has taken limit.
func (p *probe[T]) wait(ctx context.Context, f *flight[T], limit time.Duration) {
	for {
		busy := p.busy()
		if busy >= limit {
			return
		}
		timer := time.NewTimer(limit - busy)
		select {
		case <-f.done:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C: // the call that f waited for may have ended meanwhile: look again
		}
	}
}

// busy returns how long the call under way has taken; 0 if there is none.
func (p *probe[T]) busy() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return 0
	}
	return time.Since(p.running.began)
}

// newest returns the value of the newest call that has ended; ok is false before the first.
func (p *probe[T]) newest() (value T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		return value, false
	}
	return p.last.value, true
}
