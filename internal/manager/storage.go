package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// Storage returns what occupies the disks: everything that sources keep, which models are registered with it and whether
// it is in use. A source that cannot be asked is a line of Problems, not an error.
func (m *Manager) Storage(ctx context.Context) (registry.Storage, error) {
	st := registry.Storage{Artifacts: []registry.StoredArtifact{}, Disks: m.Hardware.Latest().Host.Disks, Problems: []string{}}
	for _, src := range m.Sources {
		k, ok := src.(sources.Keeper)
		if !ok {
			continue
		}
		list, err := m.stored(ctx, src.Type(), k)
		if err != nil {
			if ctx.Err() != nil {
				return st, err
			}
			st.Problems = append(st.Problems, fmt.Sprintf("What %s keeps could not be listed: %s", src.Type(), registry.AsError(err).Error()))
			continue
		}
		st.Artifacts = append(st.Artifacts, list...)
		st.Bytes += together(list)
		for _, a := range list {
			st.Partial += a.Partial
			if len(a.Models) == 0 && !a.InUse {
				st.Unused += a.Own
			}
		}
	}
	return st, nil
}

// together returns how many bytes revisions take on disk. What several revisions of one path share counts once, as far as
// their sizes tell: the most that any one of them has beside its own.
func together(list []registry.StoredArtifact) int64 {
	var sum int64
	shared := map[string]int64{}
	for _, a := range list {
		sum += a.Own
		shared[a.Path] = max(shared[a.Path], a.Bytes-a.Own)
	}
	for _, n := range shared {
		sum += n
	}
	return sum
}

// stored returns what one source keeps, with the models that use it.
func (m *Manager) stored(ctx context.Context, t registry.SourceType, k sources.Keeper) ([]registry.StoredArtifact, error) {
	list, err := k.Stored(ctx)
	if err != nil || len(list) == 0 {
		return list, err
	}
	users, err := m.users(ctx, t)
	if err != nil {
		return nil, err
	}
	list = slices.Clone(list)
	borrowers, err := m.borrowers(ctx, list)
	if err != nil {
		return nil, err
	}
	for i := range list {
		a := &list[i]
		a.Source, a.Models, a.InUse = t, nil, false
		own := slices.DeleteFunc(slices.Clone(users[m.shelfOf(t, a.Path)]), func(u user) bool { return !u.uses(a.Revision) })
		for _, u := range slices.Concat(own, borrowers[i]) {
			a.Models = append(a.Models, u.id)
			a.InUse = a.InUse || u.busy
			if u.used.After(a.UsedAt) {
				a.UsedAt = u.used
			}
		}
		slices.Sort(a.Models)
	}
	return list, nil
}

// user is a model that may use what a source keeps.
type user struct {
	id        string
	revisions []string // empty: we do not know which, so it may be any
	busy      bool     // loaded, being loaded or being fetched
	used      time.Time
}

func (u user) uses(revision string) bool {
	return revision == "" || len(u.revisions) == 0 || slices.Contains(u.revisions, revision)
}

// users returns the models of a source by the place of their files.
func (m *Manager) users(ctx context.Context, t registry.SourceType) (map[shelf][]user, error) {
	models, err := m.store.ModelsAt(ctx, t)
	if err != nil {
		return nil, err
	}
	known, err := m.store.ListArtifacts(ctx, store.ArtifactQuery{Source: t, Lean: true})
	if err != nil {
		return nil, err
	}
	byID := make(map[string]registry.ModelArtifact, len(known))
	for _, a := range known {
		byID[a.ModelID] = a
	}
	out := map[shelf][]user{}
	for id, path := range models {
		u, words := user{id: id}, map[shelf][]string{} // the tokenizers that it uses
		if a, ok := byID[id]; ok && a.Path == path {
			for _, r := range []string{a.Revision, a.Fetched} {
				if r != "" && !slices.Contains(u.revisions, r) {
					u.revisions = append(u.revisions, r)
				}
			}
			u.used = a.UsedAt
		}
		if v := m.peek(id); v != nil {
			u.busy = v.busy()
			if u.busy && v.rt.State.HoldsMemory() {
				a := byID[id]
				if a.Loaded != "" && len(u.revisions) > 0 {
					u.revisions = append(u.revisions, a.Loaded)
				}
				if c := a.LoadedTokenizer; c != nil { // whatever tokenizer_path names by now
					words[m.shelfOf(t, c.Path)] = []string{c.Revision}
				}
				u.used = m.now()
			}
			for _, at := range []time.Time{v.rt.LastUsedAt, v.rt.ReadyAt} {
				if at.After(u.used) {
					u.used = at
				}
			}
		}
		p := m.shelfOf(t, path)
		out[p] = append(out[p], u)
		if a := byID[id]; a.Tokenizer != nil && a.Path == path {
			p := m.shelfOf(t, a.Tokenizer.Path)
			words[p] = append(words[p], a.Tokenizer.Revision)
		}
		for p, revisions := range words {
			u.revisions = revisions
			out[p] = append(out[p], u)
		}
	}
	return out, nil
}

// busy reports whether the model's files are needed now.
func (v *view) busy() bool {
	switch v.rt.State {
	case registry.RuntimeStopped, registry.RuntimeFailed, "":
		return v.fetching
	default:
		return true
	}
}

// keeper returns a source that keeps artifacts. CodeNotFound.
func (m *Manager) keeper(t registry.SourceType) (sources.Keeper, error) {
	src, err := m.source(t)
	if err == nil {
		if k, ok := src.(sources.Keeper); ok {
			return k, nil
		}
	}
	return nil, registry.Errorf(registry.CodeNotFound, "Nothing of %q is kept by this server, so there is nothing to delete", string(t))
}

// StoredArtifact returns one revision that a source keeps, with its models. CodeNotFound.
func (m *Manager) StoredArtifact(ctx context.Context, t registry.SourceType, path, revision string) (registry.StoredArtifact, error) {
	k, err := m.keeper(t)
	if err != nil {
		return registry.StoredArtifact{}, err
	}
	list, err := m.stored(ctx, t, k)
	if err != nil {
		return registry.StoredArtifact{}, err
	}
	at := m.shelfOf(t, path)
	for _, a := range list {
		if a.Revision == revision && revision != "" && m.shelfOf(t, a.Path) == at {
			return a, nil
		}
	}
	return registry.StoredArtifact{}, registry.Errorf(registry.CodeNotFound, "There is no revision %q of %s on this machine. List what is stored to see which there are", revision, path)
}

// DeleteStored deletes one revision from disk and returns the bytes that became free. CodeNotFound; CodeConflict when a
// model that is loaded, being loaded or being fetched uses it, or when another process is writing it.
func (m *Manager) DeleteStored(ctx context.Context, t registry.SourceType, path, revision, actor, cause string) (freed int64, err error) {
	k, err := m.keeper(t)
	if err != nil {
		return 0, err
	}
	let, ok := m.fetches.shelves.take(m.shelfOf(t, path))
	if !ok {
		return 0, registry.Errorf(registry.CodeConflict, "%s is being fetched or deleted right now. Cancel that or wait for its end", path)
	}
	defer let()
	// Looked at while nobody can begin a fetch there: a load that comes now finds the files gone and fetches them again.
	a, err := m.StoredArtifact(ctx, t, path, revision)
	if err != nil {
		return 0, err
	}
	if a.InUse {
		return 0, &registry.Error{Code: registry.CodeConflict, Op: "manager.DeleteStored",
			Msg: fmt.Sprintf("%s at %s is in use by %s. Unload it, or cancel what is under way, and delete again", path, revision, strings.Join(m.busyOnes(a.Models), ", "))}
	}
	if freed, err = k.Delete(ctx, a.Path, revision); err != nil {
		return freed, err
	}
	m.log.Info("Deleted from disk", "source", t, "path", a.Path, "revision", revision, "freed", freed, "actor", actor, "cause", cause)
	m.gone(ctx, a.Models, revision)
	m.bus.Publish(registry.EventStorage, "", registry.StorageChange{Action: "deleted", Source: t, Path: a.Path, Revision: revision, Freed: freed, Actor: actor, Cause: cause})
	return freed, nil
}

func (m *Manager) busyOnes(ids []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { v := m.peek(id); return v == nil || !v.busy() })
}

// gone notes that a revision is not on disk any more.
func (m *Manager) gone(ctx context.Context, ids []string, revision string) {
	var lost []string
	m.keepArtifacts(ctx, ids, func(rec registry.Record, a registry.ModelArtifact) (registry.ModelArtifact, bool) {
		if a.Fetched != revision {
			return a, false
		}
		a.Fetched, a.FetchedAt = "", time.Time{}
		lost = append(lost, rec.ModelID)
		return a, true
	})
	for _, id := range lost {
		a, err := m.actor(ctx, id)
		if err == nil {
			err = a.do(ctx, func() error { a.filesGone(); return nil })
		}
		if err != nil {
			m.log.Warn("That a model's files are gone could not be noted", "model", id, "err", err)
		}
	}
}

// CleanStored removes unfinished downloads that nobody has written to for as long as olderThan, and returns the bytes that
// became free. Those of a paused fetch are among them; it begins anew then.
func (m *Manager) CleanStored(ctx context.Context, olderThan time.Duration, actor, cause string) (freed int64, err error) {
	for _, src := range m.Sources {
		k, ok := src.(sources.Keeper)
		if !ok {
			continue
		}
		n, err := k.Clean(ctx, m.now().Add(-olderThan))
		freed += n
		if n > 0 {
			m.log.Info("Unfinished downloads removed", "source", src.Type(), "freed", n, "actor", actor)
			m.bus.Publish(registry.EventStorage, "", registry.StorageChange{Action: "cleaned", Source: src.Type(), Freed: n, Actor: actor, Cause: cause})
		}
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}
