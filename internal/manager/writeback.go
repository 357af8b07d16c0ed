package manager

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// writeback writes registered changes back into the models file. The changes wait in the registry's outbox, put there in
// the transaction that acknowledged them, so a crash between the two loses nothing: they are written at the next start.
// Nobody waits for the file who does not ask for it: ManifestStatus says whether it is behind.
type writeback struct {
	m     *Manager
	nudge chan struct{}      // something is to be written
	asked chan chan struct{} // somebody waits for it; closed when the file has what there was

	mu    sync.Mutex // one writer of the file
	seen  fileState  // of the file when the edits that are aside were refused; guarded by mu
	state sync.Mutex
	err   string
	aside map[string]setAside // by model id: what the file does not take
}

// setAside is a change that the file does not take as it is. It stays in the outbox and is tried again when the model or
// the file has changed.
type setAside struct {
	seq int64
	msg string
}

// The file is written a moment after a change, so that the changes of a script come along, and then seldom enough to
// leave the disk to those who wait for it: writing a file safely takes the disk longer than a registration does.
const (
	gather     = 30 * time.Millisecond
	writeEvery = 500 * time.Millisecond
	retryEvery = 10 * time.Second
)

func newWriteback(m *Manager) *writeback {
	return &writeback{m: m, nudge: make(chan struct{}, 1), asked: make(chan chan struct{}), aside: map[string]setAside{}}
}

// kick says that there is something to write.
func (w *writeback) kick() {
	select {
	case w.nudge <- struct{}{}:
	default: // it knows
	}
}

// await returns when all that was acknowledged before is in the file, or refused, or has met a problem, or ctx ends.
func (w *writeback) await(ctx context.Context) {
	done := make(chan struct{})
	select {
	case w.asked <- done:
	case <-ctx.Done():
		return
	case <-w.m.ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	case <-w.m.ctx.Done():
	}
}

func (w *writeback) run() {
	w.flush(w.m.ctx, true) // what an earlier run left
	wrote := time.Now()
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	due := false // the pause is on, and at its end the file is written
	for {
		var waiting []chan struct{}
		select {
		case <-w.m.ctx.Done():
			return
		case <-w.nudge:
			if !due {
				due = true
				pause.Reset(max(gather, writeEvery-time.Since(wrote)))
			}
			continue
		case <-pause.C:
			if !due {
				continue
			}
		case c := <-w.asked:
			waiting = append(waiting, c)
		case <-retry.C:
			if w.problem() == "" && !w.fileChanged() {
				continue
			}
		}
		due = false
		w.flush(w.m.ctx, false)
		wrote = time.Now()
		for _, c := range waiting {
			close(c)
		}
	}
}

// flush writes everything that is pending. What the file has refused is tried again only if it has changed since, or
// with again.
func (w *writeback) flush(ctx context.Context, again bool) {
	if w.m.Manifest == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	pending, err := w.m.store.ManifestPending(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.note(err, w.refused())
		}
		return
	}
	aside := w.refused()
	if again || stateOf(w.m.Manifest.Path()) != w.seen {
		clear(aside)
	}
	pending = slices.DeleteFunc(pending, func(c store.ManifestChange) bool { return aside[c.ModelID].seq == c.Seq })
	if len(pending) == 0 {
		if w.problem() != "" && ctx.Err() == nil {
			w.note(nil, aside)
		}
		return
	}
	err = w.write(ctx, pending, aside)
	if ctx.Err() == nil {
		w.note(err, aside)
	}
}

// write writes these changes and puts into aside what the file does not take.
func (w *writeback) write(ctx context.Context, pending []store.ManifestChange, aside map[string]setAside) error {
	edits, last, err := w.edits(ctx, pending)
	if err != nil {
		return err
	}
	refused, err := w.m.Manifest.Apply(edits)
	if err != nil {
		return err
	}
	seqs := make(map[string]int64, len(pending))
	for _, c := range pending {
		seqs[c.ModelID] = c.Seq
		delete(aside, c.ModelID)
	}
	for _, r := range refused {
		aside[r.ID] = setAside{seq: seqs[r.ID], msg: registry.AsError(r.Err).Error()}
		w.m.log.Warn("The models file does not take a change; it stays in the registry alone", "path", w.m.Manifest.Path(), "model", r.ID, "err", r.Err)
	}
	w.seen = stateOf(w.m.Manifest.Path())
	w.m.recheckManifest()
	return w.m.store.ManifestDone(ctx, last, slices.Collect(maps.Keys(aside))...)
}

// edits turns the outbox into edits: the newest state of each model that changed, in the order of their first change.
func (w *writeback) edits(ctx context.Context, pending []store.ManifestChange) ([]manifest.Edit, int64, error) {
	out := make([]manifest.Edit, 0, len(pending))
	var last int64
	for _, c := range pending {
		last = max(last, c.Seq)
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

// note takes down how it went, and tells everybody if that is news.
func (w *writeback) note(err error, aside map[string]setAside) {
	msg := ""
	if err != nil {
		msg = "The models file could not be written, and will be tried again: " + registry.AsError(err).Error()
		w.m.log.Error("The models file could not be written", "path", w.m.Manifest.Path(), "err", err)
	}
	w.state.Lock()
	changed := w.err != msg || !maps.Equal(w.aside, aside)
	w.err, w.aside = msg, aside
	w.state.Unlock()
	if changed {
		// Without what was refused: that names models, and the event goes to everybody.
		w.m.bus.Publish(registry.EventManifest, "", registry.ManifestStatus{Path: w.m.Manifest.Path(), Err: msg})
	}
}

func (w *writeback) problem() string {
	w.state.Lock()
	defer w.state.Unlock()
	return w.err
}

// refused returns what the file does not take.
func (w *writeback) refused() map[string]setAside {
	w.state.Lock()
	defer w.state.Unlock()
	return maps.Clone(w.aside)
}

// fileChanged reports whether somebody has changed the file since it refused something.
func (w *writeback) fileChanged() bool {
	if len(w.refused()) == 0 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return stateOf(w.m.Manifest.Path()) != w.seen
}

// fileState tells whether a file was changed.
type fileState struct {
	size    int64
	changed time.Time
}

// stateOf returns the zero value for a file that is not there.
func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{info.Size(), info.ModTime()}
}

// setManifest notes what was found in the models file when it was last read as a whole.
func (m *Manager) setManifest(err error, issues []registry.FieldError) {
	st := &registry.ManifestStatus{Path: m.Manifest.Path(), Issues: issues}
	if err != nil {
		st.Err = registry.AsError(err).Error()
	}
	m.imported.Store(st)
}

// ManifestStatus says how the models file and the registry stand to each other; nil without a models file.
func (m *Manager) ManifestStatus(ctx context.Context) *registry.ManifestStatus {
	st := m.ManifestProblems()
	if st == nil {
		return nil
	}
	pending, err := m.store.ManifestPending(ctx)
	if err != nil {
		return st
	}
	aside := m.writeback.refused()
	for _, c := range pending {
		if aside[c.ModelID].seq != c.Seq {
			st.Pending++
		}
	}
	return st
}

// ManifestProblems is ManifestStatus without what is pending, which has to be looked up.
func (m *Manager) ManifestProblems() *registry.ManifestStatus {
	if m.Manifest == nil {
		return nil
	}
	st := registry.ManifestStatus{Path: m.Manifest.Path()}
	if p := m.imported.Load(); p != nil {
		st = *p
	}
	if msg := m.writeback.problem(); msg != "" {
		st.Err = msg
	}
	for id, r := range m.writeback.refused() {
		st.Refused = append(st.Refused, registry.FieldError{Field: id, Msg: r.msg})
	}
	slices.SortFunc(st.Refused, func(a, b registry.FieldError) int { return strings.Compare(a.Field, b.Field) })
	return &st
}

// AwaitManifest has the models file written now and returns when it has all that was acknowledged before, or refuses it,
// or cannot be written, or ctx ends: ManifestStatus says which.
func (m *Manager) AwaitManifest(ctx context.Context) {
	if m.Manifest != nil {
		m.writeback.await(ctx)
	}
}
