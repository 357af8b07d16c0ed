package manager

import (
	"context"
	"fmt"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// FetchOptions say who fetches and why.
type FetchOptions struct {
	Actor string
	Cause string
	// Verify reads every file once more when all are here, and compares it with the hash that its source told or that the
	// last such reading found. It holds until the end of the fetch or of the server. CodeConflict when a fetch without it
	// is under way.
	Verify bool
}

// Fetch brings a model's files to disk without loading it. It returns as soon as the operation is stored; Await waits for
// its end. A fetch that is under way is joined, one that is paused goes on. CodeNotFound, CodeBadState for a model that is
// archived or waits for approval, CodeUnsupported when its source keeps no files.
func (m *Manager) Fetch(ctx context.Context, id string, o FetchOptions) (op registry.Operation, err error) {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return op, err
	}
	if err := mayLoad(rec); err != nil {
		return op, err
	}
	if _, err := m.source(rec.SourceType); err != nil {
		return op, err
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return op, err
	}
	err = a.do(ctx, func() error {
		op, err = a.requestFetch(rec, o)
		return err
	})
	return op, err
}

// PauseOperation pauses a fetch. What has arrived stays on the disk, and the operation rests until ResumeOperation or the
// next load or fetch of the model, also when the server is restarted. CodeNotFound; CodeBadState for what is no fetch or is
// not under way.
func (m *Manager) PauseOperation(ctx context.Context, id, by string) (registry.Operation, error) {
	return m.onFetch(ctx, id, "paused", func(a *actor, op registry.Operation) error {
		if op.State == registry.OperationPaused {
			return nil
		}
		rest := func(t *tracker) { t.rest(registry.OperationPaused, "Paused by "+by+t.arrived()+".") }
		if _, live := m.live.Load(op.ID); !live { // interrupted, and not gone on with yet
			rest(m.revive(op))
			return nil
		}
		return a.dropFetch(op.ID, rest)
	})
}

// ResumeOperation lets a paused fetch go on. CodeNotFound; CodeBadState for what is no fetch or has ended.
func (m *Manager) ResumeOperation(ctx context.Context, id, by string) (registry.Operation, error) {
	return m.onFetch(ctx, id, "resumed", func(a *actor, op registry.Operation) error {
		if a.fetch != nil {
			return nil // it goes on already
		}
		rec, err := m.store.Model(ctx, op.Subject)
		if err != nil {
			return err
		}
		if err := mayLoad(rec); err != nil {
			return err
		}
		m.log.Info("A fetch goes on", "model", a.id, "operation", op.ID, "actor", by)
		return a.beginFetch(rec, m.revive(op), false)
	})
}

// onFetch runs f in the actor's goroutine with the operation as it is then.
func (m *Manager) onFetch(ctx context.Context, id, verb string, f func(*actor, registry.Operation) error) (registry.Operation, error) {
	op, err := m.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	if op.Kind != registry.OperationFetch {
		return op, registry.Errorf(registry.CodeBadState, "Operation %s is of the kind %s, and only a fetch can be %s. Cancel it and fetch the model's files by themselves", id, op.Kind, verb)
	}
	a, err := m.actor(ctx, op.Subject)
	if err != nil {
		return op, err
	}
	err = a.do(ctx, func() error {
		op, err := m.Operation(ctx, id)
		if err != nil {
			return err
		}
		if op.State.Final() {
			return registry.Errorf(registry.CodeBadState, "Operation %s has already ended: %s", id, op.State)
		}
		return f(a, op)
	})
	if err != nil {
		return op, err
	}
	return m.Operation(ctx, id)
}

// requestFetch begins a fetch, joins the one under way, or goes on with one that rests.
func (a *actor) requestFetch(rec registry.Record, o FetchOptions) (registry.Operation, error) {
	if a.m.isClosed() {
		return registry.Operation{}, errClosing()
	}
	if a.fetch != nil {
		if o.Verify && !a.fetch.verify {
			return registry.Operation{}, registry.Errorf(registry.CodeConflict, "%s is being fetched right now, and what arrives is verified. Wait for its end to have all of it read again", a.id)
		}
		return a.fetch.track.snapshot(), nil
	}
	t, err := a.restingFetch()
	if err != nil {
		return registry.Operation{}, err
	}
	if t == nil {
		t = a.m.newOperation(registry.OperationFetch, a.id, o.Actor, o.Cause, registry.FetchStages)
	}
	return t.snapshot(), a.beginFetch(rec, t, o.Verify)
}

// restingFetch returns the model's fetch that is paused, or was interrupted and not resumed yet; nil when there is none.
func (a *actor) restingFetch() (*tracker, error) {
	ops, _, err := a.m.store.ListOperations(a.m.ctx, store.OperationQuery{Subject: a.id, Kind: registry.OperationFetch, Limit: 5})
	if err != nil {
		return nil, err
	}
	for _, op := range ops {
		if _, live := a.m.live.Load(op.ID); !live && !op.State.Final() {
			return a.m.revive(op), nil
		}
	}
	return nil, nil
}

// beginFetch stores the operation and starts its work.
func (a *actor) beginFetch(rec registry.Record, t *tracker, verify bool) error {
	if err := t.save(); err != nil {
		a.m.live.Delete(t.op.ID)
		return err
	}
	ctx, cancel := context.WithCancel(a.m.ctx)
	j := &job{track: t, rec: rec, cancel: cancel, verify: verify}
	a.fetch = j
	a.m.goWork(func() {
		defer cancel()
		art, err := a.m.obtain(ctx, a, j, nil, false)
		a.post(func() { a.fetchEnded(j, art, err) })
	})
	return nil
}

func (a *actor) fetchEnded(j *job, art registry.Artifact, err error) {
	if a.fetch != j {
		return // it was paused or cancelled
	}
	a.fetch = nil
	a.show()
	if err != nil {
		j.track.finish(asLoadingError(err), "")
		return
	}
	files := "1 file"
	if n := len(art.Files); n != 1 {
		files = fmt.Sprintf("%d files", n)
	}
	how := "verified"
	switch n := registry.Unsummed(art.Files); {
	case j.verify:
		how = "every byte of them was read and is as it should be"
	case n == 1:
		how = "verified; of 1 only size and ETag, since its source keeps no checksum of it"
	case n > 1:
		how = fmt.Sprintf("verified; of %d only size and ETag, since their source keeps no checksums of them", n)
	}
	j.track.finish(nil, fmt.Sprintf("%s in %s are on this machine and %s.", registry.Bytes(art.Bytes), files, how))
}

// dropFetch ends the work of a fetch and calls end with its operation. CodeBadState when it is not under way.
func (a *actor) dropFetch(op string, end func(*tracker)) error {
	j := a.fetch
	if j == nil || j.track.op.ID != op {
		return registry.Errorf(registry.CodeBadState, "The fetch %s of %s is not under way", op, a.id)
	}
	j.cancel()
	a.leaveFetch(j, registry.TriggerAbandon)
	a.fetch = nil
	a.show()
	end(j.track)
	return nil
}

// cancelFetch ends a fetch for good, one that rests included.
func (a *actor) cancelFetch(op registry.Operation, why string) error {
	end := func(t *tracker) { t.finish(context.Canceled, why) }
	if a.fetch != nil && a.fetch.track.op.ID == op.ID {
		return a.dropFetch(op.ID, end)
	}
	if _, live := a.m.live.Load(op.ID); !live {
		end(a.m.revive(op))
	}
	return nil
}

// forgetFetches ends the fetches of a model that is being deleted. What has arrived stays on the disk.
func (a *actor) forgetFetches() {
	const why = "Cancelled: the model was deleted. What has arrived is still on the disk."
	clear(a.getting) // its state is gone already
	if a.fetch != nil {
		a.must(a.dropFetch(a.fetch.track.op.ID, func(t *tracker) { t.finish(context.Canceled, why) }))
	}
	t, err := a.restingFetch()
	if err != nil {
		a.m.log.Error("The fetches of a deleted model could not be read", "model", a.id, "err", err)
		return
	}
	if t != nil {
		t.finish(context.Canceled, why)
	}
}

// wakeFetch lets a paused fetch go on because the model is being loaded, which brings the same files here.
func (a *actor) wakeFetch(rec registry.Record) {
	if a.fetch != nil {
		return
	}
	t, err := a.restingFetch()
	if err == nil && t != nil {
		err = a.beginFetch(rec, t, false)
	}
	if err != nil {
		a.m.log.Error("The paused fetch of a model that is being loaded does not go on", "model", a.id, "err", err)
	}
}

// suspendFetch lets a fetch rest while the server is away; the next start goes on with it.
func (a *actor) suspendFetch() {
	if a.fetch != nil {
		a.must(a.dropFetch(a.fetch.track.op.ID, func(t *tracker) {
			t.rest(registry.OperationQueued, "The server stopped"+t.arrived()+"; it goes on when the server is back.")
		}))
	}
}

// resumeFetches goes on with the fetches that were under way when the server was stopped or killed. Paused ones rest.
func (m *Manager) resumeFetches() {
	ops, err := m.store.UnfinishedOperations(m.ctx)
	if err != nil {
		if m.ctx.Err() == nil {
			m.log.Error("The fetches that were interrupted could not be read", "err", err)
		}
		return
	}
	for _, op := range ops {
		if _, live := m.live.Load(op.ID); live || op.Kind != registry.OperationFetch || op.State == registry.OperationPaused {
			continue
		}
		if err := m.resumeFetch(op); err != nil && m.ctx.Err() == nil && !m.isClosed() {
			m.log.Warn("An interrupted fetch does not go on", "model", op.Subject, "operation", op.ID, "err", err)
			m.revive(op).finish(err, "")
		}
	}
}

func (m *Manager) resumeFetch(op registry.Operation) error {
	rec, err := m.store.Model(m.ctx, op.Subject)
	if err != nil {
		return err
	}
	if err := mayLoad(rec); err != nil {
		return err
	}
	a, err := m.actor(m.ctx, op.Subject)
	if err != nil {
		return err
	}
	return a.do(m.ctx, func() error {
		if _, live := m.live.Load(op.ID); live || m.isClosed() {
			return nil // somebody asked for it meanwhile
		}
		now, err := m.store.Operation(m.ctx, op.ID)
		if err != nil || now.State.Resting() {
			return err
		}
		m.log.Info("An interrupted fetch goes on", "model", op.Subject, "operation", op.ID)
		return a.beginFetch(rec, m.revive(op), false)
	})
}
