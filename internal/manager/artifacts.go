package manager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// refKey names what decides which files a model has: where they come from, and what chooses among what is there. What is
// known of the files of one key says nothing of another.
func refKey(m registry.Model) string {
	b, _ := json.Marshal([]any{m.SourceType, m.SourcePath, m.Revision, m.ModelFormat, m.TokenizerPath, m.Redacted().CustomLoaderParams, m.TrustRemoteCode}) // plain values: it cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// resolvedArtifact is what a look at a source says of a model's files, laid over what was known of them before.
func resolvedArtifact(model registry.Model, before registry.ModelArtifact, snap sources.Snapshot, now time.Time) registry.ModelArtifact {
	a := registry.ModelArtifact{
		ModelID: model.ModelID, Ref: refKey(model), Source: model.SourceType, Path: model.SourcePath, Format: model.ModelFormat, Requested: model.Revision,
		Revision: snap.Revision, Root: snap.Root, Main: snap.Main, Bytes: snap.Bytes, Files: snap.Files, Facts: snap.Facts, Tokenizer: snap.Tokenizer, ResolvedAt: now,
	}
	if before.Ref == a.Ref {
		a.Fetched, a.FetchedAt = before.Fetched, before.FetchedAt
		if a.Revision == before.Revision {
			a.Files = keepSums(a.Files, before.Files)
		}
		if a.Revision == before.Revision && before.Fetched == a.Revision {
			a.Root, a.Main = before.Root, before.Main // where they lie, not where they came from
		}
	}
	a.Loaded, a.LoadedTokenizer, a.UsedAt = before.Loaded, before.LoadedTokenizer, before.UsedAt
	return a
}

// fetched stores that a model's files are on disk.
func (m *Manager) fetched(ctx context.Context, model registry.Model, snap sources.Snapshot, art registry.Artifact, loading bool) {
	key, now := refKey(model), m.now()
	m.keepArtifacts(ctx, []string{model.ModelID}, func(rec registry.Record, before registry.ModelArtifact) (registry.ModelArtifact, bool) {
		if refKey(rec.Model) != key {
			if loading { // it was changed meanwhile, but the engine is given the files of before
				before.Loaded, before.LoadedTokenizer = art.Revision, withoutFiles(art.Tokenizer)
			}
			return before, loading
		}
		a := resolvedArtifact(model, before, snap, now)
		a.Revision, a.Files, a.Bytes, a.Facts, a.Tokenizer = art.Revision, art.Files, art.Bytes, art.Facts, art.Tokenizer
		if before.Ref == key && before.Revision == art.Revision {
			a.Files = keepSums(a.Files, before.Files)
		}
		a.Root, a.Main = rootOf(snap, art)
		a.Fetched, a.FetchedAt = art.Revision, now
		if before.Ref == key && before.Fetched == art.Revision && !before.FetchedAt.IsZero() {
			a.FetchedAt = before.FetchedAt
		}
		if loading {
			a.Loaded, a.LoadedTokenizer, a.UsedAt = art.Revision, withoutFiles(art.Tokenizer), now
		}
		return a, true
	})
}

func withoutFiles(c *registry.Companion) *registry.Companion {
	if c == nil {
		return nil
	}
	return &registry.Companion{Path: c.Path, Revision: c.Revision, Folder: c.Folder, Bytes: c.Bytes}
}

// keepArtifacts stores what is known of models' files and tells everybody. What cannot be stored is logged: it is
// knowledge that the next look finds again.
func (m *Manager) keepArtifacts(ctx context.Context, ids []string, change func(registry.Record, registry.ModelArtifact) (registry.ModelArtifact, bool)) {
	var told []registry.ModelArtifact
	err := m.store.UpdateArtifacts(context.WithoutCancel(ctx), ids, func(rec registry.Record, before registry.ModelArtifact) (registry.ModelArtifact, bool) {
		after, ok := change(rec, before)
		if ok {
			told = append(told, after)
		}
		return after, ok
	})
	if err != nil {
		if m.ctx.Err() == nil {
			m.log.Error("What is known of a model's files could not be kept", "models", len(ids), "err", err)
		}
		return
	}
	for _, a := range told {
		if a.Changed == "" {
			m.changed.Delete(a.ModelID)
		} else {
			m.changed.Store(a.ModelID, a.Changed)
		}
		a.Files = nil // an event says that there is something new; thousands of files are asked for
		m.bus.Publish(registry.EventArtifact, a.ModelID, a)
	}
}

// noteResolved keeps what a look at a source has shown, if it is new. It does not wait for it.
func (m *Manager) noteResolved(rec registry.Record, snap sources.Snapshot) {
	m.noticer.note(&noticed{rec: rec, snap: snap})
}

// knownArtifact returns what is on disk of a model whose source cannot be asked now.
func (m *Manager) knownArtifact(ctx context.Context, rec registry.Record, why error) (registry.Artifact, bool) {
	switch registry.CodeOf(why) {
	case registry.CodeUnavailable, registry.CodeTimeout, registry.CodeBusy:
	default:
		return registry.Artifact{}, false
	}
	a, ok, err := m.store.Artifact(ctx, rec.ModelID)
	if err != nil || !ok || a.Ref != refKey(rec.Model) || a.Revision == "" {
		return registry.Artifact{}, false
	}
	return a.Artifact(), true
}

// normal returns a model as it is stored: an address that its source understands becomes the model's own name there and
// what else it names.
func (m *Manager) normal(model registry.Model) registry.Model {
	src, err := m.source(model.SourceType)
	if err != nil {
		return model
	}
	if n, ok := src.(sources.Normalizer); ok {
		ref := n.Normalize(sources.RefOf(model))
		model.SourcePath, model.Revision, model.ModelFormat, model.CustomLoaderParams = ref.Path, ref.Revision, ref.Format, ref.Params
	}
	return model
}

// checkSource asks the source for the faults of a model's fields, and looks where its tokenizer is.
func (m *Manager) checkSource(ctx context.Context, model registry.Model) []registry.FieldError {
	// What is not there yet may be registered; what is outside of the folders may not.
	if e := registry.AsError(m.confineTokenizer(ctx, model)); e != nil && e.Code == registry.CodeInvalid && len(e.Fields) > 0 {
		return e.Fields
	}
	src, err := m.source(model.SourceType)
	if err != nil {
		return nil // it may be registered; a load says that it cannot be fetched by this version
	}
	if c, ok := src.(sources.Checker); ok {
		return c.Check(sources.RefOf(model))
	}
	return nil
}

// adminOnly asks the source what only an admin may name. A model that is registered with the same path already was let in
// by one, and may be edited by others.
func (m *Manager) adminOnly(ctx context.Context, model registry.Model) []registry.FieldError {
	src, err := m.source(model.SourceType)
	if err != nil {
		return nil // it cannot be loaded either
	}
	g, ok := src.(sources.Gatekeeper)
	if !ok {
		return nil
	}
	if old, err := m.store.Model(ctx, model.ModelID); err == nil && old.SourceType == model.SourceType && old.SourcePath == model.SourcePath {
		return nil
	}
	return g.AdminOnly(sources.RefOf(model))
}

// noticer looks at the files of models that were registered or changed, so that their facts are known at once. It never
// holds a registration up: when too many wait, the rest are looked at when somebody asks for them.
type noticer struct {
	m       *Manager
	wake    chan string   // ids of models
	results chan *noticed // looks to be kept
	mu      sync.Mutex
	pending map[string]bool
}

// noticed is a look at a model's files.
type noticed struct {
	rec  registry.Record
	snap sources.Snapshot
	err  error
}

const (
	noticers    = 2    // looks at once
	noticeQueue = 2048 // looks that may wait
	// Of an import of more models nobody is told each by itself, and they are looked at when somebody asks for them: a
	// source would take thousands of looks at once for an attack.
	noticeImports = 100
	noticeLimit   = time.Minute            // for one look
	noticePause   = 200 * time.Millisecond // results of so long are stored in one write
)

func newNoticer(m *Manager) *noticer {
	return &noticer{m: m, wake: make(chan string, noticeQueue), results: make(chan *noticed, noticeQueue), pending: map[string]bool{}}
}

func (n *noticer) start() {
	for range noticers {
		n.m.goWork(n.look)
	}
	n.m.goWork(n.keep)
}

// notice asks for a look at a model.
func (n *noticer) notice(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending[id] {
		return
	}
	select {
	case n.wake <- id:
		n.pending[id] = true
	default:
		n.m.log.Debug("A model is not looked at now, because many are waiting for that", "model", id)
	}
}

func (n *noticer) note(r *noticed) {
	select {
	case n.results <- r:
	default:
	}
}

func (n *noticer) look() {
	for {
		select {
		case <-n.m.ctx.Done():
			return
		case id := <-n.wake:
			n.mu.Lock()
			delete(n.pending, id)
			n.mu.Unlock()
			n.lookAt(id)
		}
	}
}

func (n *noticer) lookAt(id string) {
	ctx, cancel := context.WithTimeout(n.m.ctx, noticeLimit)
	defer cancel()
	rec, err := n.m.store.Model(ctx, id)
	if err != nil {
		return // deleted meanwhile
	}
	if _, err := n.m.source(rec.SourceType); err != nil {
		return // its files are not ours to look at
	}
	a, known, err := n.m.store.Artifact(ctx, id)
	if err != nil || (known && a.Ref == refKey(rec.Model) && a.Problem == nil) {
		return
	}
	n.m.forgetOldFiles(ctx, rec, a)
	snap, err := n.m.resolve(ctx, rec.Model)
	switch registry.CodeOf(err) {
	case registry.CodeUnavailable, registry.CodeTimeout, registry.CodeBusy:
		return // may pass, and says nothing of the model
	default:
	}
	if ctx.Err() == nil {
		n.note(&noticed{rec, snap, err})
	}
}

// forgetOldFiles moves the artifact axis to absent when a model was changed so that it has other files now.
func (m *Manager) forgetOldFiles(ctx context.Context, rec registry.Record, before registry.ModelArtifact) {
	rt, err := m.store.Runtime(ctx, rec.ModelID)
	if err != nil || before.Ref == "" || before.Ref == refKey(rec.Model) || (rt.Artifact != registry.ArtifactPresent && rt.Artifact != registry.ArtifactFailed) {
		return
	}
	a, err := m.actor(ctx, rec.ModelID)
	if err != nil {
		return
	}
	a.post(a.filesGone)
}

// filesGone moves the artifact axis to absent, unless an engine has the files.
func (a *actor) filesGone() {
	if a.rt.State.HoldsMemory() || len(a.getting) > 0 {
		return
	}
	if _, err := registry.Next(a.rt.Artifact, registry.TriggerDelete); err == nil {
		a.setArtifact(registry.TriggerDelete)
	}
}

// keep stores looks, those of a moment in one write.
func (n *noticer) keep() {
	for {
		var batch []*noticed
		select {
		case <-n.m.ctx.Done():
			return
		case r := <-n.results:
			batch = append(batch, r)
		}
		soon := time.NewTimer(noticePause)
		for more := true; more; {
			select {
			case r := <-n.results:
				batch = append(batch, r)
				more = len(batch) < 500
			case <-soon.C:
				more = false
			case <-n.m.ctx.Done():
				more = false
			}
		}
		soon.Stop()
		n.store(batch)
	}
}

func (n *noticer) store(batch []*noticed) {
	newest := map[string]*noticed{}
	var ids []string
	for _, r := range batch {
		id := r.rec.ModelID
		if _, twice := newest[id]; !twice {
			ids = append(ids, id)
		}
		newest[id] = r
	}
	now := n.m.now()
	n.m.keepArtifacts(n.m.ctx, ids, func(rec registry.Record, before registry.ModelArtifact) (registry.ModelArtifact, bool) {
		r := newest[rec.ModelID]
		if refKey(rec.Model) != refKey(r.rec.Model) {
			return before, false // changed since; another look is on its way
		}
		if r.err != nil {
			after := before
			if after.Ref != refKey(rec.Model) {
				after = resolvedArtifact(rec.Model, before, sources.Snapshot{}, time.Time{})
			}
			if after.Fetched == "" { // of a gated repository everybody may know some things, but not have the files
				after.Facts, after.Files, after.Bytes = r.snap.Facts, r.snap.Files, r.snap.Bytes
			}
			after.Problem = registry.ProblemOf(r.err)
			return after, true
		}
		after := resolvedArtifact(rec.Model, before, r.snap, now)
		same := before.Ref == after.Ref && before.Revision == after.Revision
		if same {
			after.Changed = before.Changed // the look may be older than what the watch has seen; that takes it back itself
		}
		if c, was := after.Tokenizer, before.Tokenizer; c != nil && was != nil && c.Path == was.Path && c.Revision == was.Revision {
			after.Tokenizer = was // it knows where it lies
		} else if c != nil || was != nil {
			same = false
		}
		return after, !same || before.Problem != nil || len(before.Files) != len(after.Files)
	})
}

// watched is how many models are looked at in one round of the watch, so that a round is short however many there are.
const watched = 500

// watch looks at models whose files may change under them, those of local folders: what is different is shown, and the
// next load uses what is there then.
func (m *Manager) watch() {
	tick := time.NewTicker(m.WatchEvery)
	defer tick.Stop()
	after := map[registry.SourceType]string{}
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		for _, src := range m.Sources {
			if w, ok := src.(sources.Watcher); ok {
				after[src.Type()] = m.watchRound(w, src.Type(), after[src.Type()])
			}
		}
	}
}

// recallChanges reads which models had changed when the server was last stopped.
func (m *Manager) recallChanges() {
	list, err := m.store.ListArtifacts(m.ctx, store.ArtifactQuery{Changed: true})
	if err != nil {
		if m.ctx.Err() == nil {
			m.log.Error("The models that changed on disk could not be read", "err", err)
		}
		return
	}
	for _, a := range list {
		m.changed.LoadOrStore(a.ModelID, a.Changed)
	}
}

// watchRound looks at the models that come next after one, and returns after which the next round begins.
func (m *Manager) watchRound(w sources.Watcher, t registry.SourceType, after string) string {
	list, err := m.store.ListArtifacts(m.ctx, store.ArtifactQuery{Source: t, After: after, Limit: watched})
	if err != nil {
		if m.ctx.Err() == nil {
			m.log.Warn("The models whose files are watched could not be read", "err", err)
		}
		return after
	}
	what := map[string]string{}
	var ids []string
	for _, a := range list {
		if m.ctx.Err() != nil {
			return after
		}
		rec, err := m.store.Model(m.ctx, a.ModelID)
		if err != nil || a.Ref != refKey(rec.Model) || a.Revision == "" {
			continue
		}
		now, err := w.Changed(m.ctx, a.Artifact(), sources.RefOf(rec.Model))
		if err == nil && now != a.Changed {
			what[a.ModelID] = now
			ids = append(ids, a.ModelID)
		}
	}
	slices.Sort(ids)
	if len(ids) > 0 {
		m.keepArtifacts(m.ctx, ids, func(rec registry.Record, a registry.ModelArtifact) (registry.ModelArtifact, bool) {
			a.Changed = what[rec.ModelID]
			return a, a.Ref == refKey(rec.Model)
		})
	}
	if len(list) < watched {
		return ""
	}
	return list[len(list)-1].ModelID
}
