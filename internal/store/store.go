// Package store keeps the registry in one SQLite file: models, what is known of their instances, operations, audit,
// accounts and sessions. What it has acknowledged is committed and survives a kill at any moment.
//
// There is one writer connection and a pool of readers (WAL), so a reader never waits for a writer. Lists are
// answered from a small index in memory (see index.go). GORM's row types do not leave this package.
//
// Errors are *registry.Error. Beside the codes named at each method any of them may return CodeTimeout (the context
// ended), CodeBusy (another program holds the database), CodeUnavailable (closed, disk full, file damaged) and
// CodeInternal.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/mattn/go-sqlite3"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Store is the registry in one SQLite file. It is safe for concurrent use.
type Store struct {
	path           string
	log            *slog.Logger
	now            func() time.Time
	installationID string

	w, r        *gorm.DB
	turn        chan struct{} // holds one element while somebody writes, so that index and file change in the same order
	waiting     queue         // what is to be written by who gets the turn
	lazy        bool          // how the writer connection commits; guarded by the turn
	index       index
	checkpoints *checkpointer

	closing   chan struct{}
	stop      context.CancelFunc // ends the building of the index
	closeOnce sync.Once
	closeErr  error
}

// Open opens the registry, makes the file and its folder if they are missing, and brings the schema up to date. Models
// that an earlier run registered with persist=false are removed, or are what they were before that. CodeUnavailable with a message that says what to do when the file cannot be used.
func Open(ctx context.Context, o Options) (*Store, error) {
	path, err := filepath.Abs(o.Path)
	if err != nil || o.Path == "" {
		return nil, registry.Errorf(registry.CodeInvalid, "The registry needs the path of a file")
	}
	s := &Store{path: path, log: o.Logger, now: o.Now, turn: make(chan struct{}, 1), closing: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if o.Readers <= 0 {
		o.Readers = 4
	}
	if err := prepareFile(path); err != nil {
		return nil, err
	}
	if err := s.open(ctx, o.Readers); err != nil {
		return nil, openError(path, errors.Join(err, s.closePools()))
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, readers int) (err error) {
	if s.w, err = openWriter(s.path); err != nil {
		return err
	}
	if err := migrate(ctx, s.w, s.path); err != nil {
		return err
	}
	if s.installationID, err = s.ensureInstallationID(ctx); err != nil {
		return err
	}
	if err := s.endEarlierRun(ctx); err != nil {
		return err
	}
	if s.r, err = openReaders(s.path, readers); err != nil {
		return err
	}
	if err := s.startCheckpoints(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	var background context.Context
	background, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	return s.startIndex(background)
}

// Close waits for the write that is under way, moves the log into the file and closes it. Later calls of any method
// return CodeUnavailable.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		s.stop()
		<-s.index.done
		s.turn <- struct{}{} // never given back
		s.closeErr = s.closePools()
	})
	return s.closeErr
}

// closePools closes the readers first: the last connection to close moves the log into the file.
func (s *Store) closePools() error {
	errs := []error{s.checkpoints.close()}
	for _, db := range []*gorm.DB{s.r, s.w} {
		if db == nil {
			continue
		}
		pool, err := db.DB()
		if err == nil {
			err = pool.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// read returns a reader bound to ctx.
func (s *Store) read(ctx context.Context) *gorm.DB { return s.r.WithContext(ctx) }

// readAll returns a reader for one short query that is read to its end even if ctx ends meanwhile: to watch for that
// costs more than such a query does.
func (s *Store) readAll(ctx context.Context) *gorm.DB {
	return s.r.WithContext(context.WithoutCancel(ctx))
}

// fail turns err into a *registry.Error for the operation op. It returns nil for nil.
func (s *Store) fail(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	var known *registry.Error
	if errors.As(err, &known) {
		if known.Op == "" {
			known.Op = op
		}
		return err
	}
	out := &registry.Error{Code: registry.CodeInternal, Op: op, Err: err}
	select {
	case <-s.closing:
		out.Code, out.Msg = registry.CodeUnavailable, "The registry is closed because the server is stopping. Try again when it is back"
		return out
	default:
	}
	var se sqlite3.Error
	switch {
	case ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		out.Code, out.Msg = registry.CodeTimeout, "The request ended before the registry had answered. Nothing was changed"
	case errors.As(err, &se):
		why, next := explain(se)
		out.Msg = fmt.Sprintf("The registry could not be used: %s. %s", why, next)
		switch se.Code {
		case sqlite3.ErrBusy, sqlite3.ErrLocked:
			out.Code = registry.CodeBusy
		case sqlite3.ErrFull, sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrIoErr, sqlite3.ErrCorrupt, sqlite3.ErrNotADB, sqlite3.ErrCantOpen:
			out.Code = registry.CodeUnavailable
		}
	default:
		out.Msg = "The registry could not be used: " + err.Error()
	}
	return out
}

// InstallationID returns the random name that this registry got when it was made. It tells our engines from those
// of another installation on the same machine.
func (s *Store) InstallationID() string { return s.installationID }

const installationKey = "installation_id"

func (s *Store) ensureInstallationID(ctx context.Context) (string, error) {
	id, ok, err := setting(s.w.WithContext(ctx), installationKey)
	if err != nil || ok {
		return id, err
	}
	id = rand.Text()
	return id, s.w.WithContext(ctx).Create(&settingRow{Key: installationKey, Value: id}).Error
}

// Setting returns what was stored under key, and whether anything was.
func (s *Store) Setting(ctx context.Context, key string) (value string, ok bool, err error) {
	value, ok, err = setting(s.read(ctx), key)
	return value, ok, s.fail(ctx, "store.Setting", err)
}

// SetSetting stores value under key.
func (s *Store) SetSetting(ctx context.Context, key, value string) error {
	return s.write(ctx, "store.SetSetting", func(tx *txn) error {
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&settingRow{Key: key, Value: value}).Error
	})
}

func setting(db *gorm.DB, key string) (string, bool, error) {
	var row settingRow
	found, err := take(db.Where("key = ?", key), &row)
	return row.Value, found, err
}

// take reads the one row of a query into row and reports whether there was one.
func take[R any](query *gorm.DB, row *R) (bool, error) {
	err := query.Take(row).Error
	if errors.Is(err, gorm.ErrRecordNotFound) || errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
