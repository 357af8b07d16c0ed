package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func openForTest(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "registry.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.awaitIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// waitFor waits until so many changes wait for the writer's turn.
func (s *Store) waitFor(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) {
		s.waiting.mu.Lock()
		have := len(s.waiting.jobs)
		s.waiting.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d changes wait, not %d", have, n)
		}
	}
}

func local(id string) registry.Model {
	return registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: "/x", ModelFormat: registry.FormatGGUF}
}

// Changes that wait are written with one commit. Those that fail are told so, and take nothing else with them.
func TestChangesThatWaitAreCommittedTogether(t *testing.T) {
	ctx, s := t.Context(), openForTest(t)
	if _, _, err := s.PutModel(ctx, local("there"), PutOptions{Persist: true}); err != nil {
		t.Fatal(err)
	}
	s.turn <- struct{}{} // somebody writes
	before := s.checkpoints.unseen
	const n = 20
	var writers sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		writers.Go(func() { _, _, errs[i] = s.PutModel(ctx, local(fmt.Sprintf("new-%02d", i)), PutOptions{Persist: true}) })
	}
	var conflict, panicking, withdrawn error
	var runs int
	writers.Go(func() { _, _, conflict = s.PutModel(ctx, local("there"), PutOptions{Persist: true, IfAbsent: true}) })
	writers.Go(func() {
		defer func() { panicking, _ = recover().(error) }()
		_ = s.write(ctx, "test", func(tx *txn) error {
			runs++
			if err := tx.Create(&settingRow{Key: "half", Value: "done"}).Error; err != nil {
				return err
			}
			panic(errors.New("a fault of its own"))
		})
	})
	s.waitFor(t, n+2)
	gone, cancel := context.WithCancel(ctx)
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _, withdrawn = s.PutModel(gone, local("withdrawn"), PutOptions{Persist: true})
	}()
	s.waitFor(t, n+3)
	cancel()
	<-left // who does not wait any more is let go at once
	<-s.turn
	writers.Wait()
	s.turn <- struct{}{}
	// Each commit counts one, and each changed model.
	if got := s.checkpoints.unseen - before; got != n+1 {
		t.Errorf("%d commits for %d changes", got-n, n)
	}
	<-s.turn
	for i, err := range errs {
		if err != nil {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if registry.CodeOf(conflict) != registry.CodeConflict || registry.CodeOf(withdrawn) != registry.CodeTimeout {
		t.Errorf("%v, %v", conflict, withdrawn)
	}
	if panicking == nil || panicking.Error() != "a fault of its own" || runs != 1 {
		t.Errorf("the panic: %v, after %d runs", panicking, runs)
	}
	if _, had, err := s.Setting(ctx, "half"); had || err != nil {
		t.Errorf("what panicked is stored: %v", err)
	}
	if page, err := s.ListModels(ctx, ListQuery{}); err != nil || page.Total != n+1 || len(page.Items) != n+1 {
		t.Errorf("%d models in the index, %d in the file, %v", page.Total, len(page.Items), err)
	}
}

// When the transaction as a whole cannot go on, everybody in it is told, and nothing is changed.
func TestATransactionThatCannotGoOn(t *testing.T) {
	ctx, s := t.Context(), openForTest(t)
	if err := LimitPages(s); err != nil {
		t.Fatal(err)
	}
	s.turn <- struct{}{}
	var writers sync.WaitGroup
	var small, large error
	writers.Go(func() { small = s.SetSetting(ctx, "small", "x") })
	s.waitFor(t, 1)
	writers.Go(func() { large = s.SetSetting(ctx, "large", string(make([]byte, 1<<20))) })
	s.waitFor(t, 2)
	<-s.turn
	writers.Wait()
	if registry.CodeOf(large) != registry.CodeUnavailable {
		t.Errorf("the large one: %v", large)
	}
	_, had, err := s.Setting(ctx, "small")
	if err != nil || had != (small == nil) {
		t.Errorf("the small one was told %v and is stored: %v, %v", small, had, err)
	}
	if err := s.SetSetting(ctx, "after", "x"); err != nil {
		t.Errorf("and after that: %v", err)
	}
}

// A lazy change relaxes no other one: not those it is committed with, nor those after it.
func TestLazyChanges(t *testing.T) {
	ctx, s := t.Context(), openForTest(t)
	level := func() string {
		t.Helper()
		v, err := WriterPragma(s, "synchronous")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	nothing := func(*txn) error { return nil }
	for _, step := range []struct {
		write func(context.Context, string, func(*txn) error) error
		want  string
	}{{s.writeLazily, "1"}, {s.write, "2"}, {s.writeLazily, "1"}} {
		if err := step.write(ctx, "test", nothing); err != nil {
			t.Fatal(err)
		}
		if got := level(); got != step.want {
			t.Errorf("PRAGMA synchronous = %s, want %s", got, step.want)
		}
	}
	s.turn <- struct{}{}
	var writers sync.WaitGroup
	var lazy, strict error
	writers.Go(func() { lazy = s.writeLazily(ctx, "test", nothing) })
	writers.Go(func() { strict = s.write(ctx, "test", nothing) })
	s.waitFor(t, 2)
	<-s.turn
	writers.Wait()
	if lazy != nil || strict != nil || level() != "2" {
		t.Errorf("%v, %v; PRAGMA synchronous = %s for both together, want 2", lazy, strict, level())
	}
}

// The log's file is given its size once, commits do not change it, and what was committed before and after is found by
// who opens the files as a crash would leave them.
func TestRoomInTheLog(t *testing.T) {
	ctx, s := t.Context(), openForTest(t)
	size := func() int64 {
		t.Helper()
		info, err := os.Stat(s.path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if err := s.SetSetting(ctx, "before", "x"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := s.checkpoints.makeRoom(ctx); err != nil {
			t.Fatal(err)
		}
		if size() != walRoom {
			t.Fatalf("the log's file has %d bytes, want %d", size(), walRoom)
		}
	}
	for i := range 100 {
		if err := s.SetSetting(ctx, fmt.Sprint("after-", i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if size() != walRoom {
		t.Errorf("commits made the log's file %d bytes long", size())
	}
	crashed := filepath.Join(t.TempDir(), "registry.db")
	for _, end := range []string{"", "-wal"} {
		b, err := os.ReadFile(s.path + end)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(crashed+end, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(ctx, Options{Path: crashed})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"before", "after-0", "after-99"} {
		if v, _, err := again.Setting(ctx, key); v != "x" || err != nil {
			t.Errorf("%s: %q, %v", key, v, err)
		}
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// The log is moved into the file beside the writer, which never has to.
func TestCheckpointsKeepTheLogShort(t *testing.T) {
	ctx, s := t.Context(), openForTest(t)
	long := string(make([]byte, 20_000))
	for i := range 6 * checkpointPages / 5 { // about five pages each
		if err := s.SetSetting(ctx, fmt.Sprint("k", i%50), long); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(10 * time.Millisecond) {
		length, pending, err := s.checkpoints.pragma(ctx, "NOOP")
		if err != nil {
			t.Fatal(err)
		}
		if pending < checkpointPages && length < 4*checkpointPages {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log has %d pages, of which %d are not in the file", length, pending)
		}
	}
}
