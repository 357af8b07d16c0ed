package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestCancel ends a fetch in the middle: it returns at once with the context's error, and the next goes on where it was,
// hashing nothing twice.
func TestCancel(t *testing.T) {
	data := content(12<<20, 1)
	h := newHub(t, map[string][]byte{"f": data}, smallBuffers)
	ctx, cancel := context.WithCancel(within(t))
	hang := make(chan struct{})
	var cancelled atomic.Int64
	h.set(nil, func(_ request, _ int64, chunk []byte) ([]byte, error) {
		if h.served.Load() > 6<<20 {
			if cancelled.CompareAndSwap(0, time.Now().UnixNano()) {
				cancel()
			}
			<-hang
		}
		return chunk, nil
	})
	dir := inMemory(t)
	job := h.job(dir)
	var reported int64
	job.Report = func(p registry.Progress) { reported = p.Done }
	err := hasty(Options{}).Run(ctx, job)
	late := time.Since(time.Unix(0, cancelled.Load()))
	close(hang)
	if !errors.Is(err, context.Canceled) || late > 3*time.Second {
		t.Errorf("%v, %s after it was cancelled", err, late)
	}
	raw, err := os.ReadFile(job.Files[0].Partial + ".journal")
	must(t, err)
	before, err := decodeJournal(raw, bootID())
	must(t, err)
	if n := before.done.bytes(); n < 4<<20 || before.pos == 0 {
		t.Errorf("%d bytes are kept, %d are hashed", n, before.pos)
	}
	partial, err := os.ReadFile(job.Files[0].Partial)
	must(t, err)
	for _, s := range before.done {
		if !bytes.Equal(partial[s.off:s.end], data[s.off:s.end]) {
			t.Errorf("bytes %d to %d are not what the journal says", s.off, s.end)
		}
	}

	h.set(nil, nil)
	h.served.Store(0)
	first := int64(-1)
	job.Report = func(p registry.Progress) {
		if first < 0 && p.Done > 0 {
			first = p.Done
		}
	}
	must(t, hasty(Options{}).Run(within(t), job))
	h.sameFiles(t, dir)
	if n, want := h.served.Load(), int64(len(data))-before.done.bytes(); n != want {
		t.Errorf("%d bytes were served after %d were kept of %d", n, before.done.bytes(), len(data))
	}
	if first < before.done.bytes() || reported > before.done.bytes()+16*minBlock {
		t.Errorf("progress was %d at the end, %d were kept, and it went on at %d", reported, before.done.bytes(), first)
	}
}

// TestProgressOfTheWhole: what an earlier fetch has left counts from the first report on, also of files that are not
// opened yet, and so do the files that are in their places.
func TestProgressOfTheWhole(t *testing.T) {
	const files, size, kept = 30, 1 << 20, 512 << 10
	dir, served := t.TempDir(), map[string][]byte{}
	for i := range files {
		served[fmt.Sprintf("f%02d", i)] = content(size, uint64(i))
	}
	h := newHub(t, served)
	job := h.job(dir)
	for _, one := range job.Files {
		f := &file{File: one}
		must(t, os.MkdirAll(filepath.Dir(f.Partial), 0o700))
		must(t, os.WriteFile(f.Partial, served[one.Name][:kept], 0o600))
		j, err := writeJournal(f.journalPath(), history{identity: f.identity(), done: spans{{0, kept}}}, true)
		must(t, err)
		j.close()
	}
	job.Here, job.Of = 2, files+3
	var told []registry.Progress
	job.Report = func(p registry.Progress) { told = append(told, p) }
	must(t, hasty(Options{}).Run(within(t), job))
	first, last := told[0], told[len(told)-1]
	if first.Done != files*kept || first.Total != files*size || first.Msg != "2 of 33 files" {
		t.Errorf("it began with %+v", first)
	}
	if last.Done != files*size || last.Msg != "32 of 33 files" {
		t.Errorf("it ended with %+v", last)
	}
	if n := h.served.Load(); n != files*(size-kept) {
		t.Errorf("%d bytes were served, want %d", n, files*(size-kept))
	}
}

// TestRehashNothing spoils bytes that were hashed before the fetch was paused. That they are not noticed shows that they
// are not read again; the next test shows what protects them.
func TestRehashNothing(t *testing.T) {
	data := content(2<<20, 1)
	f := &file{File: File{Partial: filepath.Join(t.TempDir(), "p"), Size: int64(len(data)), Digest: digest(SHA256, data)}}
	half := len(data) / 2
	must(t, os.WriteFile(f.Partial, make([]byte, half), 0o600)) // zeros
	sum, err := newRunning(f.Digest, f.Size)
	must(t, err)
	sum.write(data[:half])
	state, err := sum.state()
	must(t, err)
	j, err := writeJournal(f.journalPath(), history{f.identity(), spans{{0, int64(half)}}, int64(half), state}, true)
	must(t, err)
	j.close()
	h := newHub(t, map[string][]byte{"f": data})
	dir := filepath.Dir(f.Partial)
	one := h.file(dir, "f", SHA256)
	one.Partial, one.Tag = f.Partial, ""
	must(t, hasty(Options{}).Run(within(t), Job{Files: []File{one}}))
	if n := h.served.Load(); n != int64(half) {
		t.Errorf("%d bytes were served, want %d", n, half)
	}
}

// TestPowerLoss looks at a journal as a machine would that was started again: what was synced counts, and nothing else.
func TestPowerLoss(t *testing.T) {
	data := content(8<<20, 1)
	h := newHub(t, map[string][]byte{"f": data}, smallBuffers)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(within(t))
	job := h.job(dir)
	journal := job.Files[0].Partial + ".journal"
	safe := make(chan struct{})
	var once sync.Once
	h.set(nil, func(_ request, _ int64, chunk []byte) ([]byte, error) {
		if h.served.Load() > 5<<20 {
			<-safe
		}
		return chunk, nil
	})
	job.Report = func(registry.Progress) {
		raw, err := os.ReadFile(journal)
		if err != nil {
			return
		}
		if h, err := decodeJournal(raw, "another boot"); err == nil && h.done.bytes() > 3<<20 {
			once.Do(func() { cancel(); close(safe) })
		}
	}
	f := hasty(Options{})
	f.tune.idle, f.tune.stall = patience, patience
	if err := f.Run(ctx, job); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(journal)
	must(t, err)
	kept, err := decodeJournal(raw, "another boot")
	must(t, err)
	// As it would be after the power came back: what was not synced is gone.
	lost := append(spans{}, kept.done...)
	partial, err := os.OpenFile(job.Files[0].Partial, os.O_RDWR, 0)
	must(t, err)
	for from := int64(0); ; {
		g, ok := lost.gap(from, int64(len(data)))
		if !ok {
			break
		}
		_, err := partial.WriteAt(make([]byte, g.end-g.off), g.off)
		must(t, err)
		from = g.end
	}
	must(t, partial.Close())
	id := kept.identity
	id.BootID = "the boot before"
	kept.identity = id
	j, err := writeJournal(journal, kept, true)
	must(t, err)
	must(t, j.wrote(span{int64(len(data)) - 1000, int64(len(data))})) // never synced
	j.close()
	h.set(nil, nil)
	h.served.Store(0)
	job.Report = nil
	must(t, hasty(Options{}).Run(within(t), job))
	h.sameFiles(t, dir)
	if n, want := h.served.Load(), int64(len(data))-kept.done.bytes(); n != want {
		t.Errorf("%d bytes were served, want the %d that were not synced", n, want)
	}
}

// TestPresent takes what another process has put in its place while the lock was waited for.
func TestPresent(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(1<<20, 1)})
	dir := t.TempDir()
	f := h.file(dir, "f", SHA256)
	must(t, os.MkdirAll(filepath.Dir(f.Partial), 0o755))
	other, err := os.OpenFile(f.Partial, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer other.Close()
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))
	var there atomic.Bool
	f.Present = there.Load
	f.Commit = func(string) error { t.Error("committed twice"); return nil }
	waits := make(chan struct{})
	var once sync.Once
	var last registry.Progress
	job := Job{Files: []File{f}, Report: func(p registry.Progress) {
		last = p
		if strings.Contains(p.Msg, "another process") {
			once.Do(func() { close(waits) })
		}
	}}
	var wg sync.WaitGroup
	wg.Go(func() {
		<-waits
		there.Store(true)
		_ = os.Rename(f.Partial, filepath.Join(dir, "f"))
		_ = unix.Flock(int(other.Fd()), unix.LOCK_UN)
	})
	must(t, hasty(Options{}).Run(within(t), job))
	wg.Wait()
	if h.requests.Load() > 0 || last.Done != 1<<20 {
		t.Errorf("%d requests; the last report is %+v", h.requests.Load(), last)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "partial", "*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// TestNoRoom says what is needed and free before the first byte is asked for.
func TestNoRoom(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": {1}})
	f := h.file(t.TempDir(), "f", "")
	f.Size = 1 << 60
	err := hasty(Options{}).Run(within(t), Job{Files: []File{f}})
	e := registry.AsError(err)
	if e.Code != registry.CodeInsufficientResources || e.Shortage == nil || e.Shortage.Needed != 1<<60 || e.Shortage.Free <= 0 || e.Shortage.Short <= 0 || !strings.Contains(e.Msg, filepath.Dir(f.Partial)) {
		t.Errorf("%v: %+v", err, e.Shortage)
	}
	f.Size = 1
	if err := hasty(Options{MinFree: 1 << 60}).Run(within(t), Job{Files: []File{f}}); registry.CodeOf(err) != registry.CodeInsufficientResources {
		t.Errorf("what is to be left free is not: %v", err)
	}
	if h.requests.Load() > 0 {
		t.Error("it was asked for all the same")
	}
}

// TestFullDisk fills a disk while it is written to, a real one where this test may mount it. What was fetched by then is
// kept, and fetched on when there is room.
func TestFullDisk(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT} {
		t.Run(errno.Error(), func(t *testing.T) {
			h := newHub(t, map[string][]byte{"f": content(6<<20, 1)})
			dir := t.TempDir()
			f := hasty(Options{})
			var room atomic.Int64
			room.Store(3 << 20)
			f.tune.write = func(file *os.File, p []byte, off int64) (int, error) {
				if room.Add(-int64(len(p))) < 0 {
					return 0, &os.PathError{Op: "write", Path: file.Name(), Err: errno}
				}
				return file.WriteAt(p, off)
			}
			checkFull(t, f, h, dir, func() { room.Store(1 << 40) })
		})
	}
	t.Run("tmpfs", func(t *testing.T) {
		h := newHub(t, map[string][]byte{"f": content(6<<20, 1)})
		dir := t.TempDir()
		f := hasty(Options{})
		hog := filepath.Join(dir, "hog")
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
			t.Logf("a disk of its own cannot be mounted (%v): the ones above stand for it", err)
			return
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		// The room goes after it was looked at.
		var once sync.Once
		h.set(nil, func(_ request, _ int64, chunk []byte) ([]byte, error) {
			once.Do(func() { _ = os.WriteFile(hog, make([]byte, 5<<20), 0o600) })
			return chunk, nil
		})
		checkFull(t, f, h, dir, func() { must(t, os.Remove(hog)) })
	})
}

func checkFull(t *testing.T, f *Fetcher, h *hub, dir string, makeRoom func()) {
	t.Helper()
	err := f.Run(within(t), h.job(dir))
	e := registry.AsError(err)
	if e.Code != registry.CodeInsufficientResources || e.Shortage == nil || e.Shortage.Needed <= 0 || e.Shortage.Needed > 6<<20 || !strings.Contains(e.Msg, filepath.Join(dir, "partial")) {
		t.Errorf("%v: %+v", err, e.Shortage)
	}
	makeRoom()
	h.served.Store(0)
	must(t, f.Run(within(t), h.job(dir)))
	h.sameFiles(t, dir)
	if n := h.served.Load(); n >= 6<<20 {
		t.Errorf("%d bytes were served again: nothing was kept", n)
	}
}

// TestNoPermission names the folder. Root may write everywhere, so the folder is one where nobody may.
func TestNoPermission(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": {1}})
	dir := t.TempDir()
	f := h.file(dir, "f", "")
	f.Partial = "/proc/sys/llmm/f"
	for _, partial := range []string{"/proc/sys/llmm/f", filepath.Join(dir, "file", "f")} {
		must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
		f.Partial = partial
		err := hasty(Options{}).Run(within(t), Job{Files: []File{f}})
		if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), filepath.Dir(partial)) {
			t.Errorf("%v", err)
		}
	}
	if err := folderError("/x", &os.PathError{Err: unix.EACCES}); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "/x may not be written to") {
		t.Errorf("%v", err)
	}
}

// TestSymlink does not write through a link that somebody put where the file should grow.
func TestSymlink(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(1000, 1)})
	dir := t.TempDir()
	f := h.file(dir, "f", "")
	victim := filepath.Join(dir, "victim")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	must(t, os.MkdirAll(filepath.Dir(f.Partial), 0o755))
	must(t, os.Symlink(victim, f.Partial))
	err := hasty(Options{}).Run(within(t), Job{Files: []File{f}})
	if got, _ := os.ReadFile(victim); err == nil || string(got) != "precious" {
		t.Errorf("%v; the file behind the link holds %q", err, got)
	}
}

// TestCommitFails gives the error of Commit back and keeps what was fetched.
func TestCommitFails(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(1000, 1)})
	dir := t.TempDir()
	f := h.file(dir, "f", SHA256)
	commit := f.Commit
	mine := errors.New("mine")
	f.Commit = func(string) error { return mine }
	if err := hasty(Options{}).Run(within(t), Job{Files: []File{f}}); !errors.Is(err, mine) {
		t.Fatal(err)
	}
	f.Commit = commit
	h.served.Store(0)
	must(t, hasty(Options{}).Run(within(t), Job{Files: []File{f}}))
	h.sameFiles(t, dir)
	if h.served.Load() > 0 {
		t.Error("it was fetched again")
	}
}

// TestRate holds the limits, and feels a change while it runs.
func TestRate(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(2<<20, 1)}, smallBuffers)
	for name, limit := range map[string]func(f *Fetcher, rate int64){
		"all":    func(f *Fetcher, rate int64) { f.SetRate(rate) },
		"source": func(f *Fetcher, rate int64) { f.SetSourceRate(registry.SourceHuggingFace, rate) },
	} {
		t.Run(name, func(t *testing.T) {
			f := hasty(Options{})
			limit(f, 1<<20)
			f.SetSourceRate(registry.SourceS3, 1) // does not concern us
			began := time.Now()
			must(t, f.Run(within(t), h.job(inMemory(t))))
			if d := time.Since(began); d < 1500*time.Millisecond {
				t.Errorf("2 MiB at 1 MiB/s took %s", d)
			}
			limit(f, 64<<10)
			job := h.job(inMemory(t))
			var once sync.Once
			job.Report = func(p registry.Progress) {
				if p.Done > 0 {
					once.Do(func() { limit(f, 0) })
				}
			}
			began = time.Now()
			must(t, f.Run(within(t), job))
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("without a limit any more it took %s", d)
			}
		})
	}
}

// TestShare gives a second fetch its part of the connections while the first could use all of them.
func TestShare(t *testing.T) {
	h := newHub(t, map[string][]byte{"large": content(4<<20, 1), "small": content(1000, 2)})
	hold := make(chan struct{})
	started := make(chan struct{}, 100)
	h.set(nil, func(q request, _ int64, chunk []byte) ([]byte, error) {
		if q.name == "large" {
			select {
			case started <- struct{}{}:
			default: // nobody counts any more
			}
			<-hold
		}
		return chunk, nil
	})
	f := hasty(Options{Connections: 4, Memory: 4 * minBlock})
	f.tune.idle, f.tune.stall = patience, patience
	dir := inMemory(t)
	large, small := h.file(dir, "large", SHA256), h.file(dir, "small", SHA256)
	ctx := within(t)
	result := make(chan error, 1)
	go func() { result <- f.Run(ctx, Job{Files: []File{large}}) }()
	for range 4 {
		<-started
	}
	second := make(chan error, 1)
	go func() { second <- f.Run(ctx, Job{Files: []File{small}}) }()
	// All connections are taken; the second has its turn when the first gives one back.
	close(hold)
	must(t, <-second)
	must(t, <-result)
	h.sameFiles(t, dir)
	if f.used != 0 || len(f.runs) != 0 {
		t.Errorf("%d connections and %d runs are left", f.used, len(f.runs))
	}
}

// TestBadJobs refuses what makes no sense before anything happens.
func TestBadJobs(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": {1}})
	good := h.file(t.TempDir(), "f", SHA256)
	for name, spoil := range map[string]func(*File){
		"size":    func(f *File) { f.Size = -1 },
		"partial": func(f *File) { f.Partial = "" },
		"commit":  func(f *File) { f.Commit = nil },
		"remote":  func(f *File) { f.Remote = nil },
		"digest":  func(f *File) { f.Digest.Sum = "abc" },
		"kind":    func(f *File) { f.Digest.Kind = "crc32" },
	} {
		f := good
		spoil(&f)
		if err := hasty(Options{}).Run(within(t), Job{Files: []File{f}}); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := hasty(Options{}).Run(within(t), Job{Files: []File{good, good}}); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("the same twice: %v", err)
	}
	must(t, hasty(Options{}).Run(within(t), Job{}))
}
