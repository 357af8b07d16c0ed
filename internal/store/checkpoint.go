package store

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"gorm.io/gorm"
)

// SQLite's own checkpoint is made by the commit that finds the log long enough, and its caller waits for three more
// syncs. Here a goroutine with a connection of its own does it, beside the writer.

const (
	// checkpointPages is how long the log may grow before it is moved into the file: 8 MiB, about two hundred changes.
	// The first commit after each checkpoint begins the log anew and syncs twice, so it should be seldom; and what is in
	// the log is read again at a start after a crash, so it should be short.
	checkpointPages = 2000
	// checkpointUrgent is how long the log may grow before writers wait for it to be moved: somebody writes without a
	// pause, and beside them a checkpoint never comes to an end.
	checkpointUrgent = 8 * checkpointPages
	// checkpointEvery is after how many commits and changed models the log's length is looked at.
	checkpointEvery = 64
	// walRoom is the size that the log's file is given, in bytes: what it grows to between two checkpoints, and half as
	// much again. A commit that makes the file longer waits for the file system's own journal, too, which on a busy disk
	// takes several times as long as the commit itself.
	walRoom = 3 * checkpointPages / 2 * (4096 + 24)
	// roomAfter is when it is given that size: not by who opens the registry for a moment.
	roomAfter = time.Second
	// walLimit is what is kept of the log's file, in bytes, when a large import has made it longer.
	walLimit = 32 << 20
)

// checkpointer moves the log into the file from time to time.
type checkpointer struct {
	path   string // of the registry
	db     *gorm.DB
	log    *slog.Logger
	turn   chan struct{} // the writer's
	unseen int           // commits and changes since the length was looked at; guarded by the writer's turn
	wake   chan struct{}
	stop   context.CancelFunc
	done   chan struct{}
}

// startCheckpoints opens the connection and begins.
func (s *Store) startCheckpoints(ctx context.Context) error {
	db, err := openCheckpointer(s.path)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	c := &checkpointer{path: s.path, db: db, log: s.log, turn: s.turn, wake: make(chan struct{}, 1), stop: stop, done: make(chan struct{})}
	c.wake <- struct{}{} // a run that was killed may have left a long log
	s.checkpoints = c
	go func() {
		defer close(c.done)
		room := time.NewTimer(roomAfter)
		defer room.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-room.C:
				if err := c.makeRoom(ctx); err != nil {
					c.log.Warn("the registry's log could not be given its size; changes take longer than they could", "error", err)
				}
				continue
			case <-c.wake:
			}
			if err := c.run(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn("the registry's log could not be moved into its file; it grows until that works", "error", err)
			}
		}
	}()
	return nil
}

// committed counts commits and changes. The caller holds the writer's turn.
func (c *checkpointer) committed(n int) {
	if c == nil { // the store is being opened
		return
	}
	if c.unseen += n; c.unseen < checkpointEvery {
		return
	}
	c.unseen = 0
	select {
	case c.wake <- struct{}{}:
	default: // it is at it
	}
}

// run moves the log into the file if it is long enough.
func (c *checkpointer) run(ctx context.Context) error {
	length, pending, err := c.pragma(ctx, "NOOP")
	urgent := length >= checkpointUrgent && pending > 0
	if err != nil || (pending < checkpointPages && !urgent) {
		return err
	}
	if urgent {
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		defer func() { <-c.turn }()
	}
	_, _, err = c.pragma(ctx, "PASSIVE")
	return err
}

// makeRoom makes the log's file walRoom long. SQLite ignores what follows the last commit.
func (c *checkpointer) makeRoom(ctx context.Context) (err error) {
	f, err := os.OpenFile(c.path+"-wal", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zeros := make([]byte, 128<<10)
	for enough := false; !enough; {
		select {
		case c.turn <- struct{}{}: // nobody else makes it longer now
		case <-ctx.Done():
			return nil
		}
		enough, err = lengthen(f, zeros)
		<-c.turn
		if err != nil {
			return err
		}
	}
	return f.Sync()
}

// lengthen appends up to all of zeros and reports whether f is walRoom long.
func lengthen(f *os.File, zeros []byte) (enough bool, err error) {
	info, err := f.Stat()
	if err != nil || info.Size() >= walRoom {
		return true, err
	}
	_, err = f.WriteAt(zeros[:min(int64(len(zeros)), walRoom-info.Size())], info.Size())
	return false, err
}

// pragma returns how many pages the log has when it is done, and how many of them are not in the file.
func (c *checkpointer) pragma(ctx context.Context, mode string) (length, pending int, err error) {
	var busy, moved int
	err = c.db.WithContext(ctx).Raw("PRAGMA wal_checkpoint("+mode+")").Row().Scan(&busy, &length, &moved)
	return length, length - moved, err
}

// close ends it. The caller does not hold the writer's turn.
func (c *checkpointer) close() error {
	if c == nil {
		return nil
	}
	c.stop()
	<-c.done
	pool, err := c.db.DB()
	return errors.Join(err, pool.Close())
}
