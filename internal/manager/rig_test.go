package manager

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// patient is how long a test waits for what must happen. It is long because the machine may be busy; nothing is ever
// expected to take it.
const patient = 2 * time.Minute

// rig is a manager with everything real but the hardware and the engine.
type rig struct {
	*Manager
	t    testing.TB
	dir  string
	hw   *hwtest.Fake
	set  func(*Options)
	seen *watcher
	// pausedAreFine: fetches may rest when it closes, for the next start.
	pausedAreFine bool
}

// newRig starts a manager in a fresh folder. When the test ends it is closed, and nothing of it may be left.
func newRig(t testing.TB, set func(*Options)) *rig {
	t.Helper()
	r := rigIn(t, t.TempDir(), set)
	r.start()
	t.Cleanup(func() { r.close(false) })
	return r
}

func rigIn(t testing.TB, dir string, set func(*Options)) *rig {
	return &rig{t: t, dir: dir, hw: hwtest.New(), set: set}
}

func (r *rig) start() {
	r.t.Helper()
	if err := os.WriteFile(r.weights(), sourcetest.TinyGGUF(1), 0o600); err != nil {
		r.t.Fatal(err)
	}
	st, err := store.Open(context.Background(), store.Options{Path: filepath.Join(r.dir, "registry.db")})
	if err != nil {
		r.t.Fatal(err)
	}
	r.seen = &watcher{}
	o := Options{
		Store: st, Bus: events.New(events.Options{}), Hardware: hw.New(hw.Options{GPU: r.hw.GPUs(), Host: r.hw.Host()}),
		Loaders: []loaders.Loader{fake.New(fake.Options{Path: engineBinary, TagPrefix: st.InstallationID()})},
		Sources: []sources.Source{local.New(local.Options{})}, DataDir: filepath.Join(r.dir, "data"),
		Logger: slog.New(r.seen), StopTimeout: 10 * time.Second, RestartPause: time.Millisecond,
	}
	if path := filepath.Join(r.dir, "models.yaml"); fileExists(path) {
		if o.Manifest, err = manifest.OpenFile(path); err != nil {
			r.t.Fatal(err)
		}
	}
	if r.set != nil {
		r.set(&o)
	}
	r.Manager = New(o)
	if err := r.Start(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}

func fileExists(path string) bool { _, err := os.Stat(path); return err == nil }

func (r *rig) weights() string { return filepath.Join(r.dir, "weights.gguf") }

// close ends the manager and checks what must hold then.
func (r *rig) close(keep bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	if err := r.Close(ctx, keep); err != nil {
		r.t.Errorf("Close: %v", err)
	}
	r.live.Range(func(_, v any) bool { r.t.Errorf("an operation lives on: %+v", v.(*tracker).snapshot()); return true })
	if !keep {
		r.nothingLeft()
	}
	ops, err := r.store.UnfinishedOperations(ctx)
	if r.pausedAreFine {
		ops = slices.DeleteFunc(ops, func(op registry.Operation) bool { return op.Kind == registry.OperationFetch })
	}
	if err != nil || len(ops) > 0 {
		r.t.Errorf("operations that never end: %+v, %v", ops, err)
	}
	r.Bus.Close()
	if err := r.store.Close(); err != nil {
		r.t.Error(err)
	}
	for _, p := range r.seen.problems() {
		r.t.Errorf("logged: %s", p)
	}
}

// nothingLeft checks that no engine, no promise and no folder of an instance is left.
func (r *rig) nothingLeft() {
	r.t.Helper()
	if left, err := process.FindTagged(r.store.InstallationID()); err != nil || len(left) > 0 {
		r.t.Errorf("engines are left: %+v, %v", left, err)
	}
	if rows := r.ledger.all(); len(rows) > 0 {
		r.t.Errorf("promises are left: %+v", rows)
	}
	if dirs, err := os.ReadDir(r.runDir()); err != nil || len(dirs) > 0 {
		r.t.Errorf("folders of instances are left: %v, %v", dirs, err)
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	r.t.Cleanup(cancel)
	return ctx
}

// model registers a model that the fake engine loads in the way that params say.
func (r *rig) model(id string, params map[string]any, change ...func(*registry.Model)) registry.Record {
	r.t.Helper()
	m := registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: r.weights(), ModelFormat: registry.FormatGGUF, Engine: fake.Name, CustomLoaderParams: params}
	for _, f := range change {
		f(&m)
	}
	rec, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "ada", Persist: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return rec
}

func (r *rig) mustLoad(id string, o LoadOptions) registry.Operation {
	r.t.Helper()
	op, err := r.Load(r.ctx(), id, o)
	if err != nil {
		r.t.Fatalf("load %s: %v", id, err)
	}
	return op
}

// end waits for an operation and checks how it ended.
func (r *rig) end(op registry.Operation, want registry.OperationState) registry.Operation {
	r.t.Helper()
	got, err := r.Await(r.ctx(), op.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	if got.State != want {
		r.t.Fatalf("%s of %s is %s, want %s: %s %+v", got.Kind, got.Subject, got.State, want, got.Outcome, got.Error)
	}
	return got
}

func (r *rig) ready(id string) registry.Runtime {
	r.t.Helper()
	r.end(r.mustLoad(id, LoadOptions{Actor: "ada"}), registry.OperationSucceeded)
	return r.state(id, registry.RuntimeReady)
}

func (r *rig) unload(id string) registry.Operation {
	r.t.Helper()
	op, yes, err := r.Unload(r.ctx(), id, UnloadOptions{Actor: "ada"})
	if err != nil || !yes {
		r.t.Fatalf("unload %s: %v, %v", id, yes, err)
	}
	return op
}

// state waits until a model is in a state.
func (r *rig) state(id string, want registry.RuntimeState) registry.Runtime {
	r.t.Helper()
	return r.until(id, string(want), func(rt registry.Runtime) bool { return rt.State == want })
}

// until waits until a model's stored runtime is as it should be, looking again at each of its events.
func (r *rig) until(id, what string, ok func(registry.Runtime) bool) registry.Runtime {
	r.t.Helper()
	sub := r.Bus.Subscribe(events.Filter{Models: []string{id}})
	defer sub.Close()
	for {
		rt, err := r.store.Runtime(r.ctx(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if ok(rt) {
			return rt
		}
		if _, err := sub.Next(r.ctx()); err != nil {
			r.t.Fatalf("%s is %s and never %s: %v", id, rt.State, what, err)
		}
	}
}

// control returns the fake engine's control once its process is there.
func (r *rig) control(id string) (*fake.Control, registry.Runtime) {
	r.t.Helper()
	// The handle is stored without an event of its own; the engine's first progress follows it.
	rt := r.until(id, "given a process", func(rt registry.Runtime) bool { return rt.State.HoldsMemory() && rt.Handle != nil })
	c, err := fake.NewControl(*rt.Handle)
	if err != nil {
		r.t.Fatal(err)
	}
	return c, rt
}

// ask sends a request to a ready engine through a lease.
func (r *rig) ask(id string) (int, error) {
	l, err := r.Acquire(r.ctx(), id, "ada")
	if err != nil {
		return 0, err
	}
	defer l.Release()
	req, err := http.NewRequestWithContext(r.ctx(), http.MethodPost, l.Endpoint.BaseURL+"/v1/completions", strings.NewReader(`{"prompt":"hello"}`))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", l.Authorization)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Body.Close()
}

// watcher is a log handler that keeps what must never be logged, and every change of a runtime state.
type watcher struct {
	mu    sync.Mutex
	bad   []string
	said  []string // messages and what is said with them
	moves []stateMove
}

type stateMove struct {
	model string
	on    registry.Trigger
	to    registry.RuntimeState
}

// never are the messages of bugs: the code asked for a move that the table does not have, or could not store.
var never = []string{"could not be changed", "is not in the table", "could not be stored", "nobody wants any more could not"}

func (w *watcher) Enabled(context.Context, slog.Level) bool { return true }
func (w *watcher) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w *watcher) WithGroup(string) slog.Handler            { return w }

func (w *watcher) Handle(_ context.Context, rec slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	attrs := map[string]any{}
	rec.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.Any(); return true })
	w.said = append(w.said, fmt.Sprint(rec.Message, attrs))
	if rec.Message == "Model changed state" {
		w.moves = append(w.moves, stateMove{fmt.Sprint(attrs["model"]), attrs["trigger"].(registry.Trigger), attrs["state"].(registry.RuntimeState)})
	}
	for _, n := range never {
		if strings.Contains(rec.Message, n) {
			w.bad = append(w.bad, fmt.Sprint(rec.Message, attrs))
		}
	}
	return nil
}

// messages returns what was logged and has text in it.
func (w *watcher) messages(text string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, m := range w.said {
		if strings.Contains(m, text) {
			out = append(out, m)
		}
	}
	return out
}

func (w *watcher) all() []stateMove {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]stateMove(nil), w.moves...)
}

// problems returns what must not have happened, moves that the transition table does not have included.
func (w *watcher) problems() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.bad
	at := map[string]registry.RuntimeState{}
	for _, m := range w.moves {
		from, known := at[m.model]
		if to, err := registry.Next(from, m.on); known && (err != nil || to != m.to) {
			if again, err := registry.Next(registry.RuntimeStopped, m.on); from != registry.RuntimeFailed || err != nil || again != m.to { // deleted and registered again
				out = append(out, fmt.Sprintf("%s went from %s to %s on %s", m.model, from, m.to, m.on))
			}
		}
		at[m.model] = m.to
	}
	return out
}
