package manager

import (
	"context"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// writeback writes registered changes back into the models file. The changes wait in the registry's outbox, put there in
// the transaction that acknowledged them, so a crash between the two loses nothing: they are written at the next start.
type writeback struct {
	m     *Manager
	wake  chan chan struct{}
	mu    sync.Mutex // one writer of the file
	state sync.Mutex
	err   string
}

// patience is how long a registration waits for the file: as a rule the file is written when it is acknowledged, but a
// slow disk or a huge file never holds a registration up.
const patience = 250 * time.Millisecond

func newWriteback(m *Manager) *writeback {
	return &writeback{m: m, wake: make(chan chan struct{}, 1024)}
}

// kick asks for a write and waits for it, at most for patience.
func (w *writeback) kick(ctx context.Context) {
	done := make(chan struct{})
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case w.wake <- done:
	case <-timer.C:
		return
	case <-w.m.ctx.Done():
		return
	}
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	case <-w.m.ctx.Done():
	}
}

func (w *writeback) run() {
	w.flush(w.m.ctx) // what an earlier run left
	retry := time.NewTicker(10 * time.Second)
	defer retry.Stop()
	for {
		var waiting []chan struct{}
		select {
		case <-w.m.ctx.Done():
			return
		case c := <-w.wake:
			waiting = append(waiting, c)
		case <-retry.C:
			if w.problem() == "" {
				continue
			}
		}
		for more := true; more; { // everybody who asked meanwhile is served by the same write
			select {
			case c := <-w.wake:
				waiting = append(waiting, c)
			default:
				more = false
			}
		}
		w.flush(w.m.ctx, waiting...)
	}
}

// flush writes everything that is pending. Those who wait go on as soon as the file is written: that it is off the list
// of what is pending matters to the next start only.
func (w *writeback) flush(ctx context.Context, waiting ...chan struct{}) {
	written := sync.OnceFunc(func() {
		for _, c := range waiting {
			close(c)
		}
	})
	defer written()
	if w.m.Manifest == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	pending, err := w.m.store.ManifestPending(ctx)
	if err != nil || len(pending) == 0 {
		if err != nil && ctx.Err() == nil {
			w.note(err)
		}
		return
	}
	edits, last, err := w.edits(ctx, pending)
	if err == nil {
		err = w.m.Manifest.Apply(edits)
		written()
	}
	if err == nil {
		w.m.recheckManifest()
		err = w.m.store.ManifestDone(ctx, last)
	}
	if ctx.Err() == nil {
		w.note(err)
	}
}

// edits turns the outbox into edits: the newest state of each model that changed, in the order of their first change.
func (w *writeback) edits(ctx context.Context, pending []store.ManifestChange) ([]manifest.Edit, int64, error) {
	var out []manifest.Edit
	var last int64
	seen := map[string]bool{}
	for _, c := range pending {
		last = max(last, c.Seq)
		if seen[c.ModelID] {
			continue
		}
		seen[c.ModelID] = true
		rec, err := w.m.store.Model(ctx, c.ModelID)
		switch {
		case registry.CodeOf(err) == registry.CodeNotFound:
			out = append(out, manifest.Edit{Delete: c.ModelID})
		case err != nil:
			return nil, 0, err
		default:
			out = append(out, manifest.Edit{Model: rec.Model})
		}
	}
	return out, last, nil
}

func (w *writeback) note(err error) {
	msg := ""
	if err != nil {
		msg = "The models file could not be written, and will be tried again: " + registry.AsError(err).Error()
		w.m.log.Error("The models file could not be written", "path", w.m.Manifest.Path(), "err", err)
	}
	w.state.Lock()
	changed := w.err != msg
	w.err = msg
	w.state.Unlock()
	if changed {
		w.m.bus.Publish(registry.EventManifest, "", registry.ManifestStatus{Path: w.m.Manifest.Path(), Err: msg})
	}
}

func (w *writeback) problem() string {
	w.state.Lock()
	defer w.state.Unlock()
	return w.err
}
