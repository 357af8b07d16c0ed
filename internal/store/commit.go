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
// The transaction may hold the changes of others, too, so fn sees what was changed before it in the same transaction; what
// it does itself is taken back if it fails, and nothing else. It runs to its end even if ctx ends meanwhile; what takes
// long looks at ctx itself.
func (s *Store) write(ctx context.Context, op string, fn func(tx *txn) error) error {
	return s.submit(ctx, &job{ctx: ctx, op: op, fn: fn, done: make(chan struct{})})
}

// writeLazily is write for what does no harm if it is lost when the power goes: it is committed without waiting for the
// disk, and is on disk when the next change is.
func (s *Store) writeLazily(ctx context.Context, op string, fn func(tx *txn) error) error {
	return s.submit(ctx, &job{ctx: ctx, op: op, fn: fn, lazy: true, done: make(chan struct{})})
}

func (s *Store) submit(ctx context.Context, j *job) error {
	select {
	case <-s.closing:
		return s.fail(ctx, j.op, errClosed)
	default:
	}
	s.waiting.add(j)
	select {
	case <-j.done:
	case s.turn <- struct{}{}:
		select {
		case <-j.done: // by who had the turn before; the others who wait get their turn themselves
		default:
			// Bound to nobody's context: SQLite takes a whole transaction back when one statement of it is interrupted.
			s.commit(context.WithoutCancel(ctx), s.waiting.takeAll())
		}
		<-s.turn
	case <-s.closing:
		if s.waiting.withdraw(j) {
			return s.fail(ctx, j.op, errClosed)
		}
	case <-ctx.Done():
		if s.waiting.withdraw(j) {
			return s.fail(ctx, j.op, ctx.Err())
		}
	}
	<-j.done
	var p panicked
	if errors.As(j.err, &p) {
		panic(p.value)
	}
	return s.fail(ctx, j.op, j.err)
}

// commit makes the changes of all jobs with one commit. The caller holds the writer's turn.
func (s *Store) commit(ctx context.Context, jobs []*job) {
	lazy := true
	jobs = slices.DeleteFunc(jobs, func(j *job) bool {
		lazy = lazy && j.lazy
		if j.err = j.ctx.Err(); j.err != nil {
			close(j.done)
		}
		return j.err != nil
	})
	if len(jobs) == 0 {
		return
	}
	changes, err := s.transaction(ctx, jobs, lazy)
	if err == nil {
		s.index.apply(changes)
		s.checkpoints.committed(1 + len(changes))
	}
	for _, j := range jobs {
		if j.err == nil {
			j.err = err
		}
		close(j.done)
	}
}

// errNothing takes a transaction back of which nothing is left.
var errNothing = errors.New("no change was made")

// transaction makes the changes of all jobs, but of those that fail, and notes at each job how it failed. With an error
// nothing at all was changed.
func (s *Store) transaction(ctx context.Context, jobs []*job, lazy bool) (changes []change, err error) {
	if s.lazy != lazy {
		// The setting is the connection's. A new connection begins with the strict one, which is never wrong.
		level := "FULL"
		if lazy {
			level = "NORMAL"
		}
		if err := s.w.WithContext(ctx).Exec("PRAGMA synchronous = " + level).Error; err != nil {
			return nil, err
		}
		s.lazy = lazy
	}
	err = s.w.WithContext(ctx).Transaction(func(db *gorm.DB) error {
		left := 0
		for _, j := range jobs {
			t := &txn{DB: db}
			if len(jobs) == 1 {
				j.err = j.run(t)
			} else if err := j.runWithin(t); err != nil {
				return err
			}
			if j.err == nil {
				left++
				changes = append(changes, t.changes...)
			}
		}
		if left == 0 {
			return errNothing
		}
		return nil
	})
	return changes, err
}

// run makes j's changes.
func (j *job) run(t *txn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked{p}
		}
	}()
	return j.fn(t)
}

// runWithin makes j's changes, or takes them back and notes why in j.err. It returns an error when the whole transaction
// cannot go on, because the disk is full for example.
func (j *job) runWithin(t *txn) error {
	if err := t.Exec("SAVEPOINT job").Error; err != nil {
		return err
	}
	if j.err = j.run(t); j.err != nil {
		if err := t.Exec("ROLLBACK TO job").Error; err != nil {
			return j.err // SQLite has taken all back by itself
		}
	}
	return t.Exec("RELEASE job").Error
}

var errClosed = errors.New("the store is closed")
