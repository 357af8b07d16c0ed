package manager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// fetchBook holds the fetches under way: one for each artifact, however many models and operations ask for it.
type fetchBook struct {
	mu      sync.Mutex
	byKey   map[string]*sharedFetch
	slots   chan struct{} // one token for each fetch that downloads
	shelves shelfLocks
}

func newFetchBook(most int) *fetchBook {
	return &fetchBook{byKey: map[string]*sharedFetch{}, slots: make(chan struct{}, most), shelves: shelfLocks{at: map[shelf]*shelfUse{}}}
}

// sharedFetch is one artifact on its way to the disk, and those who wait for it.
type sharedFetch struct {
	cancel context.CancelFunc
	done   chan struct{}
	art    registry.Artifact // set before done is closed, as err
	err    error

	mu       sync.Mutex
	waiting  map[int]func(registry.Progress)
	next     int
	last     *registry.Progress // for those who come later
	deserted bool               // nobody waits any more; it is being ended
}

// fetchKey names an artifact: the same source, revision and files.
func fetchKey(t registry.SourceType, s sources.Snapshot) string {
	h := sha256.New()
	b, _ := json.Marshal([]any{t, s.Ref.Path, s.Ref.Format, s.Ref.Tokenizer, s.Revision, s.Main, s.Files, s.Tokenizer}) // plain values: it cannot fail
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// fetch brings a snapshot to disk, together with everybody else who wants it. It ends early only for a caller whose ctx
// ends; the fetch itself is cancelled when nobody waits for it any more.
func (m *Manager) fetch(ctx context.Context, src sources.Source, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	key := fetchKey(src.Type(), snap)
	for {
		f, id := m.joinFetch(key, src, snap, report)
		if id < 0 { // it is being ended; a new one begins when it has let go of its files
			select {
			case <-f.done:
				continue
			case <-ctx.Done():
				return registry.Artifact{}, ctx.Err()
			}
		}
		select {
		case <-f.done:
			return f.art, f.err
		case <-ctx.Done():
			f.leave(id)
			return registry.Artifact{}, ctx.Err()
		}
	}
}

// joinFetch joins the fetch under way or begins one. The id is -1 when that fetch is being ended.
func (m *Manager) joinFetch(key string, src sources.Source, snap sources.Snapshot, report func(registry.Progress)) (*sharedFetch, int) {
	b := m.fetches
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.byKey[key]; f != nil {
		id := f.join(report)
		return f, id
	}
	ctx, cancel := context.WithCancel(m.ctx)
	f := &sharedFetch{cancel: cancel, done: make(chan struct{}), waiting: map[int]func(registry.Progress){}}
	b.byKey[key] = f
	id := f.join(report)
	m.goWork(func() {
		defer cancel()
		f.art, f.err = m.runFetch(ctx, src, snap, f.tell)
		b.mu.Lock()
		delete(b.byKey, key)
		b.mu.Unlock()
		close(f.done)
	})
	return f, id
}

func (f *sharedFetch) join(report func(registry.Progress)) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deserted {
		return -1
	}
	id := f.next
	f.next++
	f.waiting[id] = report
	if f.last != nil {
		report(*f.last)
	}
	return id
}

func (f *sharedFetch) leave(id int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waiting, id)
	if len(f.waiting) == 0 {
		f.deserted = true
		f.cancel()
	}
}

func (f *sharedFetch) tell(p registry.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = &p
	for _, report := range f.waiting {
		report(p)
	}
}

// runFetch waits for its turn and fetches.
func (m *Manager) runFetch(ctx context.Context, src sources.Source, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	let, err := m.fetches.shelves.use(ctx, m.shelfOf(src.Type(), snap.Ref.Path))
	if err != nil {
		return registry.Artifact{}, err
	}
	defer let()
	if c := snap.Tokenizer; c != nil && m.shelfOf(src.Type(), c.Path) != m.shelfOf(src.Type(), snap.Ref.Path) {
		let, err := m.fetches.shelves.use(ctx, m.shelfOf(src.Type(), c.Path))
		if err != nil {
			return registry.Artifact{}, err
		}
		defer let()
	}
	if _, keeps := src.(sources.Keeper); keeps && snap.OnDisk < snap.Bytes {
		slots := m.fetches.slots
		select {
		case slots <- struct{}{}:
		default:
			report(registry.Progress{Stage: registry.StageQueue, Msg: fmt.Sprintf("Waits for its turn: %d of %d places for downloads are taken", cap(slots), cap(slots))})
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return registry.Artifact{}, ctx.Err()
			}
		}
		defer func() { <-slots }()
	}
	return src.Fetch(ctx, snap, report)
}

// obtain resolves a model's files and brings them to disk, moving the artifact axis as it goes. check is asked between
// the two; loading says that an engine is given them next.
func (m *Manager) obtain(ctx context.Context, a *actor, j *job, check func(registry.Artifact) error, loading bool) (registry.Artifact, error) {
	t, model := j.track, j.rec.Model
	step := func(on registry.Trigger) { a.post(func() { a.fetchStep(j, on) }) }
	src, err := m.source(model.SourceType)
	if err != nil {
		return registry.Artifact{}, refusal{err}
	}
	t.stage(registry.StageResolve, "")
	step(registry.TriggerResolve)
	snap, err := m.resolve(ctx, model)
	if err != nil {
		step(failOrAbandon(ctx))
		return registry.Artifact{}, err
	}
	if check != nil {
		if err := check(artifactOf(snap)); err != nil {
			step(registry.TriggerAbandon)
			return registry.Artifact{}, err
		}
	}
	fetching, verifying := false, false
	art, err := m.fetch(ctx, src, snap, func(p registry.Progress) {
		if p.Stage == registry.StageFetch && !fetching {
			fetching = true
			step(registry.TriggerFetch)
		}
		if p.Stage == registry.StageVerify && !verifying {
			verifying = true
			step(registry.TriggerVerify)
		}
		if j.verify && p.Stage == registry.StageVerify {
			p.Done = 0 // it is only about to begin
		}
		t.report(p)
	})
	if err == nil && j.verify {
		art, err = m.verifyContent(ctx, src, model, snap, art, t.report)
	}
	if err != nil {
		step(failOrAbandon(ctx))
		return art, err
	}
	step(registry.TriggerVerified)
	m.fetched(ctx, model, snap, art, loading)
	return art, nil
}

func failOrAbandon(ctx context.Context) registry.Trigger {
	if ctx.Err() != nil {
		return registry.TriggerAbandon
	}
	return registry.TriggerFail
}

// fetchStep moves the artifact axis for a load or a fetch. Both may be at it at once, since they share what they fetch:
// the axis shows the one that is further, and it ends when the last one has ended.
func (a *actor) fetchStep(j *job, on registry.Trigger) {
	if a.load != j && a.fetch != j {
		return // it was dropped, and has left the axis then
	}
	switch on {
	case registry.TriggerResolve:
		a.getting[j] = true
		if len(a.getting) == 1 {
			a.setArtifact(on)
		}
	case registry.TriggerVerified:
		delete(a.getting, j)
		if a.rt.Artifact == registry.ArtifactResolving || a.rt.Artifact == registry.ArtifactFetching {
			a.setArtifact(registry.TriggerVerify)
		}
		if a.rt.Artifact == registry.ArtifactVerifying {
			a.setArtifact(on)
		}
	case registry.TriggerFail, registry.TriggerAbandon:
		a.leaveFetch(j, on)
	default:
		if _, err := registry.Next(a.rt.Artifact, on); err == nil {
			a.setArtifact(on)
		}
	}
}

// leaveFetch ends the part that a job has in the artifact axis, if it has one.
func (a *actor) leaveFetch(j *job, on registry.Trigger) {
	if !a.getting[j] {
		return
	}
	delete(a.getting, j)
	if _, err := registry.Next(a.rt.Artifact, on); err == nil && len(a.getting) == 0 {
		a.setArtifact(on)
	}
}

// shelf is where a source keeps all revisions of one model.
type shelf struct {
	source registry.SourceType
	path   string
}

func (m *Manager) shelfOf(t registry.SourceType, path string) shelf {
	if src, err := m.source(t); err == nil {
		if n, ok := src.(sources.Namer); ok {
			return shelf{t, n.Canonical(path)}
		}
	}
	return shelf{t, strings.TrimSuffix(path, "/")}
}

// shelfLocks keep a deletion and the fetches of the same place apart.
type shelfLocks struct {
	mu sync.Mutex
	at map[shelf]*shelfUse
}

type shelfUse struct {
	fetches int
	free    chan struct{} // not nil while something is deleted there; closed when that is through
}

// use waits until nothing is deleted at p, and keeps it so until the function that it returns is called.
func (l *shelfLocks) use(ctx context.Context, p shelf) (func(), error) {
	for {
		l.mu.Lock()
		u := l.at[p]
		if u == nil {
			u = &shelfUse{}
			l.at[p] = u
		}
		if u.free == nil {
			u.fetches++
			l.mu.Unlock()
			return sync.OnceFunc(func() { l.let(p, u) }), nil
		}
		free := u.free
		l.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *shelfLocks) let(p shelf, u *shelfUse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.fetches--; u.fetches == 0 {
		delete(l.at, p)
	}
}

// take keeps fetches out of p while something is deleted there. ok is false when something is fetched or deleted there
// already.
func (l *shelfLocks) take(p shelf) (let func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at[p] != nil {
		return nil, false
	}
	u := &shelfUse{free: make(chan struct{})}
	l.at[p] = u
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.at, p)
		close(u.free)
	}), true
}

// rootOf splits an artifact's path into its folder and the main file of the snapshot.
func rootOf(s sources.Snapshot, art registry.Artifact) (root, main string) {
	if s.Main == "" {
		return art.Path, ""
	}
	main = filepath.Base(art.Path)
	if rest, ok := strings.CutSuffix(art.Path, string(filepath.Separator)+filepath.FromSlash(s.Main)); ok {
		return rest, s.Main
	}
	return filepath.Dir(art.Path), main
}
