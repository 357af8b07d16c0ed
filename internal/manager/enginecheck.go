package manager

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// How engines are looked for.
const (
	checkedFor  = 2 * time.Second        // what was found is believed so long: a plan for a hundred models asks once
	checkedElse = 500 * time.Millisecond // so long is waited for the rest once an engine is found that would do
	checkedWait = 20 * time.Second       // so long a choice waits for any; what one says later is for the next choice
	checkAtMost = 2 * time.Minute        // a program that does not say its version by then counts as one that cannot be used
)

// pageWait is how long a page waits for engines. What answers later is filled in.
const pageWait = time.Second

// errNotYet is that of an engine that has not answered when the time to wait for it is over.
var errNotYet = errors.New("it has not answered yet")

// checkBook keeps what engines said when they were last looked for.
type checkBook struct {
	mu   sync.Mutex
	last map[string]*engineCheck
	// changes counts what may have changed what is usable: installations, removals, and people who ask to look again.
	changes int64
}

// engineCheck is one look for one engine.
type engineCheck struct {
	done    chan struct{}
	at      time.Time // when it was done
	version loaders.Version
	err     error
}

// check begins to look for an engine, or returns a look that is under way or fresh.
func (m *Manager) check(l loaders.Loader) *engineCheck {
	b, name := &m.checks, l.Info().Name
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.last[name]; c != nil {
		select {
		case <-c.done:
			if time.Since(c.at) < checkedFor {
				return c
			}
		default:
			return c
		}
	}
	c := &engineCheck{done: make(chan struct{})}
	if b.last == nil {
		b.last = map[string]*engineCheck{}
	}
	b.last[name] = c
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed { // looked at under the lock: Close waits for all work that began before
		c.err = errClosing()
		close(c.done)
		return c
	}
	m.goWork(func() {
		ctx, cancel := context.WithTimeout(m.ctx, checkAtMost)
		defer cancel()
		c.version, c.err = l.Check(ctx)
		c.at = time.Now()
		close(c.done)
	})
	return c
}

// ForgetEngines makes the next look for the engines a fresh one.
func (m *Manager) ForgetEngines() {
	m.checks.mu.Lock()
	defer m.checks.mu.Unlock()
	m.checks.changes++
	clear(m.checks.last) // who waits for one that is under way has it
}

// EngineChanges grows whenever what is usable may have changed.
func (m *Manager) EngineChanges() int64 {
	m.checks.mu.Lock()
	defer m.checks.mu.Unlock()
	return m.checks.changes
}

// wait returns what a look found; when the context ends before, its error with errNotYet.
func (c *engineCheck) wait(ctx context.Context) (loaders.Version, error) {
	select {
	case <-c.done:
		return c.version, c.err
	default:
	}
	select {
	case <-c.done:
		return c.version, c.err
	case <-ctx.Done():
		return loaders.Version{}, errors.Join(ctx.Err(), errNotYet)
	}
}

// checkEngines looks for those of the engines that load such models at all, and fills in what was found, in the order in
// which they answer. Once one is found that would do, or the one that the model names has answered, it does not wait long for
// the rest; and it never waits longer than checkedWait. The error is the context's.
func (m *Manager) checkEngines(ctx context.Context, in choiceInput, set []loaders.Loader) error {
	checks := map[int]*engineCheck{}
	for i := range in.engines {
		e := &in.engines[i]
		if slices.Contains(e.info.Sources, in.model.SourceType) && slices.Contains(e.info.Formats, in.model.ModelFormat) {
			checks[i] = m.check(set[i])
			e.unseen = true
		}
	}
	gone := make(chan struct{})
	defer close(gone)
	answers := make(chan int)
	for i, c := range checks {
		go func() {
			select {
			case <-c.done:
			case <-gone:
				return
			}
			select {
			case answers <- i:
			case <-gone:
			}
		}()
	}
	enough := time.NewTimer(checkedWait)
	defer enough.Stop()
	hurried := false
	auto := in.model.Engine == "" || in.model.Engine == registry.EngineAuto
	for range checks {
		select {
		case i := <-answers:
			e := &in.engines[i]
			in.answered(e, set[i], checks[i])
			rank, _ := in.judge(*e)
			if done := auto && rank == fine && !e.info.OnlyNamed || in.model.Engine == e.info.Name; done && !hurried {
				hurried = true
				enough.Reset(checkedElse)
			}
		case <-enough.C:
			for i, c := range checks { // what is known is told, however late it is
				select {
				case <-c.done:
					in.answered(&in.engines[i], set[i], c)
				default:
				}
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// answered notes what a look at an engine has found.
func (in choiceInput) answered(e *engineOption, l loaders.Loader, c *engineCheck) {
	e.unseen = false
	if c.err != nil {
		e.problem = registry.AsError(c.err).Error()
		return
	}
	v := c.version
	if n, ok := l.(loaders.Narrower); ok {
		v = n.Narrow(in.model, v)
	}
	e.version = v
	if j, ok := l.(loaders.Judge); ok {
		e.judge = func(d registry.Device) loaders.Objection { return j.Judge(in.model, in.facts, d, v) }
	}
}
