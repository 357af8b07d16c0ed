// Package manager is the product's core: it keeps one goroutine for each model that is in use, plans and reserves
// memory, loads, watches and unloads instances, and offers the operations of the guide. Whatever changes a model's
// runtime state goes through that model's own goroutine (actor.go); slow work runs outside it (load.go) and posts its
// result back tagged with a generation, so that a stale one is dropped.
package manager

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// Options are what a Manager is made of. All but Manifest, Now and the times are required.
type Options struct {
	Store    *store.Store
	Bus      *events.Bus
	Hardware *hw.Sampler
	Loaders  []loaders.Loader // in the order in which auto prefers them
	Sources  []sources.Source
	Manifest *manifest.File // nil: the server was started without a models file
	DataDir  string         // logs and instance folders are kept below it
	// EngineDir is where engines are installed; "" means that none can be.
	EngineDir string
	Logger    *slog.Logger
	Now       func() time.Time

	Bandwidth Bandwidth // takes the bandwidth limits; nil: there is nothing to limit

	MaxStarts    int           // engines starting at once; default 4
	MaxFetches   int           // downloads at once; default 4
	DrainTimeout time.Duration // how long requests may finish before an unload; default 30 s
	StopTimeout  time.Duration // how long an engine may take to end before it is killed; default 20 s
	MaxRestarts  int           // after crashes, before a model is failed; default 3
	RestartPause time.Duration // before the first restart, doubled for each further one; default 2 s
	SteadyAfter  time.Duration // ready this long, a crash counts as the first again; default 5 min
	VitalsEvery  time.Duration // how often an instance that is ready is asked whether it answers; default 15 s
	HangAfter    time.Duration // how long one may not answer before it is ended and started again; default 2 min
	WatchEvery   time.Duration // how often models whose files may change under them are looked at; default 30 s
}

// Bandwidth limits downloads. Rates are in bytes per second; 0 is unlimited.
type Bandwidth interface {
	SetRate(bytesPerSecond int64)
	SetSourceRate(source registry.SourceType, bytesPerSecond int64)
}

// Manager owns every instance. It is safe for concurrent use.
type Manager struct {
	Options
	store  *store.Store
	bus    *events.Bus
	log    *slog.Logger
	ctx    context.Context // ends when the manager closes
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	actors map[string]*actor
	closed bool

	live      sync.Map // operation id → *tracker
	ledger    *ledger
	starts    chan struct{} // one token for each engine that may be starting
	fetches   *fetchBook
	noticer   *noticer
	baseRoots []string // folders that local models may be read from, unless an admin has set others
	changed   sync.Map // model id → what changed on disk under it, in words
	writeback *writeback
	ready     chan struct{} // closed when the reconciler is through
	jobs      sync.Map      // engine name → *engineJob, what is under way with it
	checks    checkBook
	sizes     sizeBook
	rates     rateBook
	imported  atomic.Pointer[registry.ManifestStatus]
}

// New makes a manager. Start must be called before anything else.
func New(o Options) *Manager {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.DrainTimeout, 30*time.Second)
	def(&o.StopTimeout, 20*time.Second)
	def(&o.RestartPause, 2*time.Second)
	def(&o.SteadyAfter, 5*time.Minute)
	def(&o.WatchEvery, 30*time.Second)
	def(&o.VitalsEvery, 15*time.Second)
	def(&o.HangAfter, 2*time.Minute)
	if o.MaxStarts == 0 {
		o.MaxStarts = 4
	}
	if o.MaxFetches == 0 {
		o.MaxFetches = 4
	}
	if o.MaxRestarts == 0 {
		o.MaxRestarts = 3
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Manager{
		Options: o, store: o.Store, bus: o.Bus, log: o.Logger, ctx: ctx, cancel: cancel,
		actors: map[string]*actor{}, ledger: newLedger(), starts: make(chan struct{}, o.MaxStarts), ready: make(chan struct{}),
		fetches: newFetchBook(o.MaxFetches),
	}
	m.noticer = newNoticer(m)
	m.writeback = newWriteback(m)
	return m
}

// Start reconciles what the registry says with what runs, imports the models file at the very first start, and begins
// the background work. It returns when the manager may be used; a bad models file never blocks it.
func (m *Manager) Start(ctx context.Context) error {
	for _, dir := range []string{m.logDir(), m.runDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return registry.Errorf(registry.CodeUnavailable, "The data folder cannot be used: %w", err)
		}
	}
	if err := os.RemoveAll(m.selfTestDir()); err != nil {
		m.log.Warn("What is left of a self-test cannot be removed", "err", err)
	}
	if err := m.applySettings(ctx); err != nil {
		return err
	}
	if err := m.reconcile(ctx); err != nil {
		return err
	}
	m.noticer.start()
	close(m.ready)
	if err := m.firstImport(ctx); err != nil {
		return err
	}
	m.goWork(m.writeback.run)
	m.goWork(m.housekeeping)
	m.goWork(m.loadPinned)
	m.goWork(m.resumeFetches)
	m.recallChanges()
	m.goWork(m.watch)
	m.goWork(m.keepVitals)
	m.goWork(m.retainHourly)
	m.goWork(m.clearRemoved)
	return nil
}

// Ready is closed when the reconciler is through.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Close ends the manager. With keep, engines run on and are found again at the next start; otherwise every instance
// is stopped and its memory given back. It returns when all work has ended, or when ctx does.
func (m *Manager) Close(ctx context.Context, keep bool) error {
	m.mu.Lock()
	m.closed = true
	all := make([]*actor, 0, len(m.actors))
	for _, a := range m.actors {
		all = append(all, a)
	}
	m.mu.Unlock()
	for _, a := range all {
		// An error says that the actor has ended before, and no fetch of it is left.
		_ = a.do(context.WithoutCancel(ctx), func() error { a.suspendFetch(); return nil })
	}
	if !keep {
		var stop sync.WaitGroup
		for _, a := range all {
			stop.Go(func() { a.shutdown(ctx) })
		}
		stop.Wait()
	}
	m.writeback.flush(ctx, false)
	m.cancel()
	done := make(chan struct{})
	go func() { m.work.Wait(); close(done) }()
	defer m.live.Range(func(_, v any) bool {
		v.(*tracker).finish(registry.Errorf(registry.CodeUnavailable, "The server stopped while this was under way."), "")
		return true
	})
	select {
	case <-done:
		for _, a := range all {
			// A session with a service is not left running: nothing of it would outlive us but its watch.
			if in := a.view.Load().inst; in != nil && in.Handle().PID == 0 {
				_ = in.Stop(ctx) // forgets, which cannot fail
			}
		}
		return nil
	case <-ctx.Done():
		return registry.Errorf(registry.CodeTimeout, "Not everything had ended when the time to shut down was over: %w", ctx.Err())
	}
}

// goWork runs f in the background; Close waits for it.
func (m *Manager) goWork(f func()) { m.work.Go(f) }

func (m *Manager) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

func (m *Manager) now() time.Time { return m.Now() }

func (m *Manager) logDir() string { return filepath.Join(m.DataDir, "logs") }
func (m *Manager) runDir() string { return filepath.Join(m.DataDir, "run") }

// housekeeping tells stalled stages and keeps the history of operations bounded.
func (m *Manager) housekeeping() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	prune := time.NewTicker(10 * time.Minute)
	defer prune.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
			now := m.now()
			m.live.Range(func(_, v any) bool { v.(*tracker).checkStalled(now); return true })
		case <-prune.C:
			if err := m.store.PruneOperations(m.ctx, 10_000); err != nil && m.ctx.Err() == nil {
				m.log.Warn("Old operations could not be removed", "err", err)
			}
		}
	}
}

// Operation returns one operation, live if it is under way. CodeNotFound.
func (m *Manager) Operation(ctx context.Context, id string) (registry.Operation, error) {
	if t, ok := m.live.Load(id); ok {
		return t.(*tracker).snapshot(), nil
	}
	return m.store.Operation(ctx, id)
}

// Operations lists operations, newest first; those under way with their live progress.
func (m *Manager) Operations(ctx context.Context, q store.OperationQuery) ([]registry.Operation, string, error) {
	ops, next, err := m.store.ListOperations(ctx, q)
	for i := range ops {
		if t, ok := m.live.Load(ops[i].ID); ok {
			ops[i] = t.(*tracker).snapshot()
		}
	}
	return ops, next, err
}

// Await waits until the operation has ended or ctx does, and returns it as it is then. The error is the context's only
// if the operation could not be read either.
func (m *Manager) Await(ctx context.Context, id string) (registry.Operation, error) {
	if t, ok := m.live.Load(id); ok {
		select {
		case <-t.(*tracker).done:
		case <-ctx.Done():
		}
	}
	return m.Operation(context.WithoutCancel(ctx), id)
}

// CancelOperation cancels a load, or an engine's installation or self-test that is under way, or a fetch that is under way or rests. What has
// arrived of a cancelled fetch stays on the disk, and the next one goes on from there. CodeBadState for operations that have ended or cannot be cancelled.
func (m *Manager) CancelOperation(ctx context.Context, id, by string) (registry.Operation, error) {
	op, err := m.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	if op.State.Final() {
		return op, registry.Errorf(registry.CodeBadState, "Operation %s has already ended: %s", id, op.State)
	}
	switch op.Kind {
	case registry.OperationLoad:
		a, err := m.actor(ctx, op.Subject)
		if err != nil {
			return op, err
		}
		if err := a.cancelLoad(ctx, id, by); err != nil {
			return op, err
		}
	case registry.OperationInstall, registry.OperationSelfTest:
		if v, ok := m.jobs.Load(op.Subject); ok && v.(*engineJob).track.op.ID == id {
			v.(*engineJob).cancel()
		}
	case registry.OperationFetch:
		_, err := m.onFetch(ctx, id, "cancelled", func(a *actor, op registry.Operation) error {
			return a.cancelFetch(op, "Cancelled by "+by+". What has arrived is kept for the next fetch.")
		})
		if err != nil {
			return op, err
		}
	case registry.OperationUnload, registry.OperationImport, registry.OperationRemove:
		return op, registry.Errorf(registry.CodeBadState, "The operation %s cannot be cancelled: it gives back what it can as it is", op.Kind)
	}
	return m.Await(ctx, id)
}

// Resources returns the newest sample and who holds what.
func (m *Manager) Resources() registry.Resources {
	return registry.Resources{Sample: m.Hardware.Latest(), Reservations: m.ledger.all()}
}

// LogPath returns the file of the engine log of the model's newest instance. CodeNotFound when it was never loaded.
func (m *Manager) LogPath(ctx context.Context, id string) (string, error) {
	rt, err := m.store.Runtime(ctx, id)
	if err != nil {
		return "", err
	}
	if rt.InstanceID == "" {
		return "", registry.Errorf(registry.CodeNotFound, "%s was never loaded, so there is no log yet", id)
	}
	return m.logPath(rt.InstanceID), nil
}

func (m *Manager) logPath(instance string) string {
	return filepath.Join(m.logDir(), instance+".log")
}

// newID returns an id that sorts by time: 12 hex digits of milliseconds, 10 of chance.
func newID(now time.Time) string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return fmt.Sprintf("%012x%s", now.UnixMilli(), hex.EncodeToString(b[:]))
}

func isCancelled(err error) bool {
	if errors.Is(err, context.Canceled) {
		return true
	}
	var e *registry.Error
	return errors.As(err, &e) && e.Failure != nil && e.Failure.Kind == registry.FailureCancelled
}

func gpuName(i int) string { return fmt.Sprintf("cuda:%d", i) }

// gpusOf returns the NVML indices in a device name such as cuda:0,1.
func gpusOf(device string) []int {
	ids, ok := strings.CutPrefix(device, "cuda:")
	if !ok {
		return nil
	}
	var out []int
	for part := range strings.SplitSeq(ids, ",") {
		var n int
		if _, err := fmt.Sscanf(part, "%d", &n); err == nil {
			out = append(out, n)
		}
	}
	return out
}
