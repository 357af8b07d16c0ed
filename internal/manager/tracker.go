package manager

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// stallAfter is how long a running stage may stand still before it is called stalled. Nothing is ended because of it.
const stallAfter = 15 * time.Second

// alreadyThere is how long after its beginning a fetch still reports what an earlier one left: that was not fetched now,
// so it counts neither for the rate nor for the ETA.
const alreadyThere = 200 * time.Millisecond

// tracker keeps one operation while it is under way: it turns what sources and loaders report into stages with rate
// and ETA, tells subscribers, and stores what must survive. It is safe for concurrent use.
type tracker struct {
	m    *Manager
	mu   sync.Mutex
	op   registry.Operation
	cur  int       // index of the running stage, -1 before the first
	move time.Time // when something last moved
	from int64     // Done when the running stage's rate began to be measured
	at   time.Time // and when
	wait bool      // the running stage waits for its turn: that nothing moves is no stall
	over bool      // it has ended or rests; later reports are dropped
	done chan struct{}

	saving sync.Mutex // one save at a time, so that an older state never lands on a newer one
}

func (m *Manager) newOperation(kind registry.OperationKind, subject, actor, cause string, stages []registry.StageName) *tracker {
	now := m.now()
	op := registry.Operation{ID: newID(now), Kind: kind, Subject: subject, State: registry.OperationQueued, Actor: actor, Cause: cause, CreatedAt: now}
	for _, s := range stages {
		op.Stages = append(op.Stages, registry.Stage{Name: s, State: registry.StageWaiting})
	}
	t := &tracker{m: m, op: op, cur: -1, move: now, done: make(chan struct{})}
	m.live.Store(op.ID, t)
	return t
}

// revive tracks an operation again that rested. Its stages begin anew.
func (m *Manager) revive(op registry.Operation) *tracker {
	op.State, op.Outcome = registry.OperationQueued, ""
	op.Stages = append([]registry.Stage(nil), op.Stages...)
	for i := range op.Stages {
		op.Stages[i] = registry.Stage{Name: op.Stages[i].Name, State: registry.StageWaiting}
	}
	t := &tracker{m: m, op: op, cur: -1, move: m.now(), done: make(chan struct{})}
	m.live.Store(op.ID, t)
	return t
}

// snapshot returns the operation as it is now.
func (t *tracker) snapshot() registry.Operation {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.copyLocked()
}

func (t *tracker) copyLocked() registry.Operation {
	op := t.op
	op.Stages = append([]registry.Stage(nil), t.op.Stages...)
	return op
}

// save stores the operation and tells everybody. Called at the start, at the end and when it leaves the queue.
func (t *tracker) save() error {
	t.saving.Lock()
	defer t.saving.Unlock()
	op := t.snapshot()
	if err := t.m.store.PutOperation(context.WithoutCancel(t.m.ctx), op); err != nil {
		return err
	}
	t.m.bus.Publish(registry.EventOperation, op.Subject, op)
	return nil
}

// stage moves on to a stage: the running one is done, those between are skipped.
func (t *tracker) stage(name registry.StageName, msg string) {
	t.report(registry.Progress{Stage: name, Msg: msg})
}

// waits is stage for one that cannot begin yet.
func (t *tracker) waits(name registry.StageName, msg string) {
	t.stage(name, msg)
	t.mu.Lock()
	t.wait = true
	t.mu.Unlock()
}

// report takes a progress of a source or loader. A report about a stage that is already over is ignored, and Done
// never shrinks.
func (t *tracker) report(p registry.Progress) {
	t.mu.Lock()
	now := t.m.now()
	i := t.index(p.Stage)
	if i < 0 || i < t.cur || t.over {
		t.mu.Unlock()
		return
	}
	first := t.op.State == registry.OperationQueued
	if first {
		t.op.State = registry.OperationRunning
		if t.op.StartedAt.IsZero() { // not one that was paused
			t.op.StartedAt = now
		}
	}
	if i > t.cur {
		t.enter(i, now)
	}
	s := &t.op.Stages[i]
	if p.Done > s.Done || p.Total != s.Total || p.Msg != s.Msg {
		t.move, s.Stalled = now, false
	}
	t.wait = p.Stage == registry.StageQueue
	begins := s.Done == 0 && p.Done > 0
	s.Done, s.Total, s.Unit = max(s.Done, p.Done), p.Total, p.Unit
	if p.Msg != "" {
		s.Msg = p.Msg
	}
	// What came before the first of it, an import or a connection, is no measure of the rest.
	if begins || p.Stage == registry.StageFetch && now.Sub(s.StartedAt) < alreadyThere {
		t.from, t.at = s.Done, now
	}
	if el := now.Sub(t.at).Seconds(); el >= 0.2 && s.Done > t.from {
		s.Rate = float64(s.Done-t.from) / el
		s.ETA = 0
		if s.Total > s.Done {
			s.ETA = registry.Duration(float64(s.Total-s.Done) / s.Rate * float64(time.Second))
		}
		if el > 5 { // a window, so that the rate follows what happens now
			t.from, t.at = s.Done, now
		}
	}
	if !first {
		t.sampleLocked()
	}
	t.mu.Unlock()
	if first {
		// Leaving the queue is stored; a failure to do so shows at the next save, which must succeed.
		if err := t.save(); err != nil {
			t.m.log.Error("An operation could not be stored", "operation", t.op.ID, "err", err)
		}
	}
}

// sampleLocked tells everybody how far the operation is. It happens under the lock: a sample that came after the
// operation's end would make it run again for those who watch.
func (t *tracker) sampleLocked() {
	t.m.bus.Sample(registry.EventOperation, t.op.Subject, t.copyLocked())
}

func (t *tracker) index(name registry.StageName) int {
	for i := range t.op.Stages {
		if t.op.Stages[i].Name == name {
			return i
		}
	}
	return -1
}

func (t *tracker) enter(i int, now time.Time) {
	for j := max(t.cur, 0); j < i; j++ {
		s := &t.op.Stages[j]
		switch s.State {
		case registry.StageRunning:
			s.State, s.EndedAt, s.Rate, s.ETA, s.Stalled = registry.StageDone, now, 0, 0, false
			if s.Total > 0 {
				s.Done = s.Total
			}
		case registry.StageWaiting:
			s.State = registry.StageSkipped
		case registry.StageDone, registry.StageSkipped, registry.StageFailed:
		}
	}
	t.cur, t.from, t.at, t.move = i, 0, now, now
	t.op.Stages[i].State, t.op.Stages[i].StartedAt = registry.StageRunning, now
}

// checkStalled marks the running stage as stalled when nothing has moved for a while.
func (t *tracker) checkStalled(now time.Time) {
	t.mu.Lock()
	if t.op.State != registry.OperationRunning || t.cur < 0 || t.op.Stages[t.cur].Stalled || now.Sub(t.move) < stallAfter || t.wait || t.over {
		t.mu.Unlock()
		return
	}
	s := &t.op.Stages[t.cur]
	s.Stalled, s.Rate, s.ETA = true, 0, 0
	t.sampleLocked()
	t.mu.Unlock()
}

// finish ends the operation: succeeded without an error, cancelled if err is a context's, failed otherwise.
func (t *tracker) finish(err error, outcome string) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	t.over = true
	now := t.m.now()
	t.op.EndedAt, t.op.Outcome = now, outcome
	end := registry.StageDone
	switch {
	case err == nil:
		t.op.State = registry.OperationSucceeded
	case isCancelled(err):
		t.op.State, end = registry.OperationCancelled, registry.StageSkipped
	default:
		t.op.State, end = registry.OperationFailed, registry.StageFailed
		t.op.Error = registry.ProblemOf(err)
		if outcome == "" {
			t.op.Outcome = t.op.Error.Msg
		}
	}
	for i := range t.op.Stages {
		s := &t.op.Stages[i]
		switch {
		case s.State == registry.StageRunning:
			s.State, s.EndedAt, s.Rate, s.ETA, s.Stalled = end, now, 0, 0, false
		case s.State == registry.StageWaiting && err == nil && i == len(t.op.Stages)-1:
			s.State, s.StartedAt, s.EndedAt = registry.StageDone, now, now
		case s.State == registry.StageWaiting:
			s.State = registry.StageSkipped
		}
	}
	t.mu.Unlock()
	if err := t.save(); err != nil {
		t.m.log.Error("The end of an operation could not be stored", "operation", t.op.ID, "err", err)
	}
	t.m.live.Delete(t.op.ID)
	close(t.done)
}

// rest lets the operation rest: it is paused, or waits for the next start of the server. Who waits for its end is told.
func (t *tracker) rest(state registry.OperationState, outcome string) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	t.over = true
	t.op.State, t.op.Outcome = state, outcome
	for i := range t.op.Stages {
		if s := &t.op.Stages[i]; s.State == registry.StageRunning {
			s.State, s.Rate, s.ETA, s.Stalled = registry.StageWaiting, 0, 0, false
		}
	}
	t.mu.Unlock()
	if err := t.save(); err != nil {
		t.m.log.Error("An operation that rests could not be stored", "operation", t.op.ID, "err", err)
	}
	t.m.live.Delete(t.op.ID)
	close(t.done)
}

// arrived says how much of a fetch is there, " after 1.2 GB of 4.0 GB"; "" when nothing is known.
func (t *tracker) arrived() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.index(registry.StageFetch); i >= 0 && t.op.Stages[i].Total > 0 {
		s := t.op.Stages[i]
		return fmt.Sprintf(" after %s of %s", registry.Bytes(s.Done), registry.Bytes(s.Total))
	}
	return ""
}

// percent returns how far the operation is, 0 … 99 while it runs, or 0 when that is not known.
func (t *tracker) percent() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.op.Stages {
		s := &t.op.Stages[i]
		if s.State == registry.StageRunning && s.Total > 0 && (s.Name == registry.StageWeights || s.Name == registry.StageFetch) {
			return int(min(99, s.Done*100/s.Total))
		}
	}
	return 0
}
