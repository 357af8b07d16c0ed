package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"gorm.io/gorm"
)

// A commit waits for the disk, and that is most of what a change costs. So changes that arrive while one is being
// written are written together with one commit: whoever gets the writer's turn takes all that wait. Nobody waits in
// order to let others come along, and each caller is told only when the commit with its change is on disk.

// txn is a transaction together with what it changes in the index, which is applied after the commit.
type txn struct {
	*gorm.DB
	changes []change
}

// job is a change that somebody waits for.
type job struct {
	ctx  context.Context
	op   string
	fn   func(tx *txn) error
	lazy bool

	done chan struct{} // closed when err is known
	err  error
}

func (j *job) end(err error) {
	j.err = err
	close(j.done)
}

// panicked is how a panic of a job gets from who has the turn to whose job it is.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// queue holds the jobs that nobody has taken yet, in the order in which they came.
type queue struct {
	mu   sync.Mutex
	jobs []*job
}

func (q *queue) add(j *job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.jobs = append(q.jobs, j)
}

func (q *queue) takeAll() []*job {
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs := q.jobs
	q.jobs = nil
	return jobs
}

// withdraw reports whether j was still waiting; if so, nobody will take it any more.
func (q *queue) withdraw(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.jobs, j)
	if i < 0 {
		return false
	}
	q.jobs = slices.Delete(q.jobs, i, i+1)
	return true
}

// write runs fn in a transaction on the writer connection. When it returns nil the changes are on disk and visible to
// every reader and in the index.
//
// The transaction may hold the changes of others, too. If one of them fails, all are taken back and each is made alone:
// fn may run twice, so what it does outside of tx must bear that. It runs to its end even if ctx ends meanwhile; what
// takes long looks at ctx itself.
func (s *Store) write(ctx context.Context, op string, fn func(tx *txn) error) error {
	return s.submit(&job{ctx: ctx, op: op, fn: fn, done: make(chan struct{})})
}

// writeLazily is write for what does no harm if it is lost when the power goes: it is committed without waiting for the
// disk, and is on disk when the next change is.
func (s *Store) writeLazily(ctx context.Context, op string, fn func(tx *txn) error) error {
	return s.submit(&job{ctx: ctx, op: op, fn: fn, lazy: true, done: make(chan struct{})})
}

func (s *Store) submit(j *job) error {
	select {
	case <-s.closing:
		return s.fail(j.ctx, j.op, errClosed)
	default:
	}
	s.waiting.add(j)
	select {
	case <-j.done:
	case s.turn <- struct{}{}:
		select {
		case <-j.done: // by who had the turn before; the others who wait get their turn themselves
		default:
			s.commit(s.waiting.takeAll())
		}
		<-s.turn
	case <-s.closing:
		if s.waiting.withdraw(j) {
			return s.fail(j.ctx, j.op, errClosed)
		}
	case <-j.ctx.Done():
		if s.waiting.withdraw(j) {
			return s.fail(j.ctx, j.op, j.ctx.Err())
		}
	}
	<-j.done
	var p panicked
	if errors.As(j.err, &p) {
		panic(p.value)
	}
	return s.fail(j.ctx, j.op, j.err)
}

// commit makes the changes of all jobs, together if that goes well. The caller holds the writer's turn.
func (s *Store) commit(jobs []*job) {
	jobs = slices.DeleteFunc(jobs, func(j *job) bool {
		err := j.ctx.Err()
		if err != nil {
			j.end(err)
		}
		return err != nil
	})
	if len(jobs) == 0 {
		return
	}
	if err := s.transaction(jobs...); err == nil || len(jobs) == 1 {
		for _, j := range jobs {
			j.end(err)
		}
		return
	}
	for _, j := range jobs {
		j.end(s.transaction(j))
	}
}

// transaction makes the changes of all jobs, or none of them. The caller holds the writer's turn.
func (s *Store) transaction(jobs ...*job) (err error) {
	lazy := true
	for _, j := range jobs {
		lazy = lazy && j.lazy
	}
	if s.lazy != lazy {
		// The setting is the connection's. A new connection begins with the strict one, which is never wrong.
		level := "FULL"
		if lazy {
			level = "NORMAL"
		}
		if err := s.w.Exec("PRAGMA synchronous = " + level).Error; err != nil {
			return err
		}
		s.lazy = lazy
	}
	defer func() {
		if p := recover(); p != nil { // the transaction is taken back by now
			err = panicked{p}
		}
	}()
	var t txn
	// Bound to nobody's context: SQLite takes a whole transaction back when one statement of it is interrupted.
	err = s.w.WithContext(context.WithoutCancel(jobs[0].ctx)).Transaction(func(db *gorm.DB) error {
		t.DB = db
		for _, j := range jobs {
			if err := j.fn(&t); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.applied(t.changes)
	}
	return err
}

// applied is told of each commit. The caller holds the writer's turn.
func (s *Store) applied(changes []change) {
	s.index.apply(changes)
	s.checkpoints.committed(1 + len(changes))
}

var errClosed = errors.New("the store is closed")
