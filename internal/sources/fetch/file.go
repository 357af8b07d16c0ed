package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// file is one File of a run. What changes is under run.mu, except where it says otherwise.
type file struct {
	File
	data    *os.File // set while it is open
	journal *journal

	kept      int64 // bytes that its journal told of before it was opened
	done      spans
	dirty     int64 // bytes written since the last sync
	leases    []*lease
	later     []later
	waiting   bool // for another process
	ignored   int  // ranges that were answered with the whole file, in a row
	wholeOnly bool // ask for it in one stream
	restarted bool

	hashing bool     // somebody works on sum outside of the lock
	sum     *running // of the first sum.pos bytes; touched only by who has set hashing
}

// later is a piece that is asked for again at a time.
type later struct {
	piece
	at time.Time
}

func (f *file) postpone(p piece, at time.Time) {
	if p.off < p.span.end {
		f.later = append(f.later, later{p, at})
	}
}

// taken is what need not be asked for: what is there, what others are fetching, and what waits for its time.
func (f *file) taken(except *lease) spans {
	t := append(spans(nil), f.done...)
	for _, l := range f.leases {
		if l != except {
			t.add(span{l.pos, l.end})
		}
	}
	for _, l := range f.later {
		t.add(l.span)
	}
	return t
}

func (f *file) journalPath() string { return f.Partial + ".journal" }

func (f *file) identity() identity {
	return identity{Size: f.Size, Tag: f.Tag, Kind: f.Digest.Kind, Sum: f.Digest.Sum, BootID: bootID()}
}

// bootID tells one boot of the machine from the next; "" where the kernel does not say, which trusts no journal that
// was not synced.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (f *file) close() {
	if f.journal != nil {
		f.journal.close()
	}
	if f.data != nil {
		f.data.Close() // gives the lock back, too
	}
}

// open locks a file, takes up what is there of it, and makes it active. It has a goroutine of its own, as the lock may be
// with another process for hours.
func (r *run) open(f *file) {
	there, err := r.prepare(f)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.nudge()
	if !f.waiting {
		r.opening--
	}
	f.waiting = false
	r.kept -= f.kept // from here on it is counted as it is
	switch {
	case err != nil:
		f.close()
		if r.ctx.Err() == nil {
			r.fail(f, err)
		}
	case there:
		r.done += f.Size
		r.finished++
	default:
		r.done += f.done.bytes()
		r.active = append(r.active, f)
		r.catchUp(f)
		r.advance(f)
	}
}

// prepare returns true when the file is in its place already.
func (r *run) prepare(f *file) (bool, error) {
	if err := r.lock(f); err != nil {
		return false, err
	}
	if f.Present != nil && f.Present() {
		err := removeAll(f.Partial, f.journalPath())
		f.close()
		return err == nil, err
	}
	h, synced, err := f.recall()
	if err != nil {
		return false, r.diskError(f, err)
	}
	f.done = h.done
	if h.state != nil && f.sum.sum != nil {
		if err := f.sum.resume(h.state, h.pos); err != nil {
			return false, fmt.Errorf("taking up the digest of %s: %w", f.Partial, err)
		}
	}
	if f.journal, err = writeJournal(f.journalPath(), h, synced); err != nil {
		return false, r.diskError(f, err)
	}
	return false, nil
}

// lock opens the partial file and takes its lock, waiting for who has it. It is a lock on the file itself, which goes
// away with the process and stays with the file when that is renamed: whoever gets it looks whether the name still
// leads to the file.
func (r *run) lock(f *file) error {
	for wait := 20 * time.Millisecond; ; wait = min(wait*3/2, 250*time.Millisecond) {
		// Models are for every user of the machine, as the Hub's own cache is.
		data, err := os.OpenFile(f.Partial, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
		if err != nil {
			return r.diskError(f, err)
		}
		err = unix.Flock(int(data.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(data, f.Partial) {
			f.data = data
			return nil
		}
		data.Close()
		switch {
		case err == nil:
			continue // it was renamed or removed under us: the next one is another
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return r.diskError(f, err)
		}
		r.mu.Lock()
		if !f.waiting {
			f.waiting = true
			r.opening-- // the others need not wait, too
			r.nudge()
		}
		r.mu.Unlock()
		if err := sleep(r.ctx, wait); err != nil {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// recall returns what is there according to the journal. When the journal is not of this content, does not fit the file
// or cannot be believed, that is nothing, and the file is emptied. synced is true when all of it is safe from a power loss.
func (f *file) recall() (h history, synced bool, err error) {
	id := f.identity()
	info, err := f.data.Stat()
	if err != nil {
		return h, false, err
	}
	raw, err := readLimited(f.journalPath(), journalMax)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return h, false, err
	}
	h, err = decodeJournal(raw, id.BootID)
	far := int64(0)
	if n := len(h.done); n > 0 {
		far = h.done[n-1].end
	}
	if err != nil || h.identity.content() != id.content() || info.Size() < far || info.Size() > f.Size {
		return history{identity: id}, true, f.data.Truncate(0)
	}
	synced = h.identity.BootID != id.BootID
	h.identity = id
	return h, synced, nil
}

// peek returns how many bytes are there as far as the journal tells, without opening the file: it may be another process's
// now, and recall says what really counts.
func (f *file) peek() int64 {
	h, ok := peek(f.journalPath())
	if !ok || h.identity.content() != f.identity().content() {
		return 0
	}
	return h.done.bytes()
}

// Kept returns how many bytes of a file an earlier fetch has left at partial, as far as can be told before its digest is
// known. tag is the File's. It is for progress that is told before a Run, and for lists of what is unfinished.
func Kept(partial string, size int64, tag string) int64 {
	h, ok := peek((&file{File: File{Partial: partial}}).journalPath())
	if !ok || h.identity.Size != size || h.identity.Tag != tag {
		return 0
	}
	return h.done.bytes()
}

func peek(journal string) (history, bool) {
	raw, err := readLimited(journal, journalMax)
	if err != nil || raw == nil {
		return history{}, false
	}
	h, err := decodeJournal(raw, bootID())
	return h, err == nil
}

// readLimited reads a file of at most limit bytes; a longer one is no journal.
func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, nil
	}
	return os.ReadFile(path)
}

// catchUp has the contiguous beginning of a file hashed as far as it is there, if nobody does that already. What has just
// been written is read from the page cache. r.mu is held.
func (r *run) catchUp(f *file) {
	if f.sum.sum == nil || f.hashing || f.sum.pos >= f.done.prefix() || r.ctx.Err() != nil {
		return
	}
	f.hashing = true
	r.wg.Go(func() {
		err := r.hashOn(f)
		r.mu.Lock()
		defer r.mu.Unlock()
		f.hashing = false
		if err != nil {
			r.fail(f, err)
			return
		}
		r.advance(f)
	})
}

func (r *run) hashOn(f *file) error {
	select {
	case r.f.hashers <- struct{}{}:
	case <-r.ctx.Done():
		return nil
	}
	defer func() { <-r.f.hashers }()
	buf := make([]byte, 256<<10)
	for {
		r.mu.Lock()
		end := f.done.prefix()
		r.mu.Unlock()
		if f.sum.pos >= end || r.ctx.Err() != nil {
			return nil
		}
		p := buf[:min(int64(len(buf)), end-f.sum.pos)]
		if _, err := f.data.ReadAt(p, f.sum.pos); err != nil {
			return r.diskError(f, err)
		}
		if err := r.hash(f, p); err != nil {
			return err
		}
	}
}

// hash takes the next bytes of a file into its digest, and notes the digest's state. f.hashing is set by the caller.
func (r *run) hash(f *file, p []byte) error {
	f.sum.write(p)
	state, err := f.sum.state()
	if err != nil {
		return err
	}
	if err := f.journal.hashed(f.sum.pos, state); err != nil {
		return r.diskError(f, err)
	}
	return nil
}

// advance begins to finish a file when all of it is there and hashed. r.mu is held.
func (r *run) advance(f *file) {
	if r.ctx.Err() != nil || len(f.leases) > 0 || f.hashing || f.done.prefix() < f.Size {
		return
	}
	if f.sum.sum != nil && f.sum.pos < f.Size {
		r.catchUp(f)
		return
	}
	for i, other := range r.active {
		if other == f {
			r.active = append(r.active[:i:i], r.active[i+1:]...)
			r.finishing++
			r.wg.Go(func() { r.finish(f) })
			return
		}
	}
}

// finish verifies a file, makes it safe from a power loss and commits it; or begins it again.
func (r *run) finish(f *file) {
	again, err := r.commit(f)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.nudge()
	r.finishing--
	switch {
	case err != nil:
		f.close()
		r.fail(f, err)
	case again:
		r.done -= f.Size
		r.active = append(r.active, f)
		r.advance(f)
	default:
		f.close()
		r.finished++
	}
}

func (r *run) commit(f *file) (again bool, err error) {
	if f.sum.sum != nil && f.sum.hex() != f.Digest.Sum {
		return r.startAgain(f)
	}
	if err := f.data.Sync(); err != nil {
		return false, r.diskError(f, err)
	}
	// The partial file's own name need not be safe: Commit gives it another.
	if err := f.Commit(f.Partial); err != nil {
		return false, err
	}
	return false, removeAll(f.journalPath())
}

// startAgain empties a file whose content is not what its digest says, once: bytes may be changed on their way. Twice the
// same is no accident any more.
func (r *run) startAgain(f *file) (bool, error) {
	got := f.sum.hex()
	r.f.o.Logger.Warn("a fetched file is not what it should be", "file", f.Name, "kind", f.Digest.Kind, "want", f.Digest.Sum, "got", got, "second", f.restarted)
	if f.restarted {
		msg := fmt.Sprintf("%s was fetched twice and is not what it should be: its %s is %s instead of %s", f.Name, f.Digest.Kind, got, f.Digest.Sum)
		hint := "Something between here and there changes the bytes (a proxy, a bad disk or memory), or the file there is damaged: fetch again later or from another place"
		if err := removeAll(f.Partial, f.journalPath()); err != nil {
			r.f.o.Logger.Warn("a corrupt partial file cannot be removed", "path", f.Partial, "err", err)
		}
		return false, &registry.Error{Code: registry.CodeLoadingFailed, Op: opNamed, Msg: msg + ". " + hint + ".",
			Failure: &registry.Failure{Kind: registry.FailureCorruptFile, Msg: msg, Hint: hint}}
	}
	f.restarted = true
	sum, err := newRunning(f.Digest, f.Size)
	if err != nil {
		return false, err
	}
	f.journal.close()
	// The journal goes first: killed in between, the file is one that nothing is known of.
	j, err := writeJournal(f.journalPath(), history{identity: f.identity()}, false)
	if err != nil {
		return false, r.diskError(f, err)
	}
	r.mu.Lock()
	f.journal, f.done, f.sum, f.dirty = j, nil, sum, 0
	r.mu.Unlock()
	if err := f.data.Truncate(0); err != nil {
		return false, r.diskError(f, err)
	}
	return true, nil
}

// keepSynced brings what was written to the disk, and notes now and then how far that is: so much survives a power loss.
// In between it lets the kernel begin to write early, so that the sync of a whole file at its end is short.
func (r *run) keepSynced() {
	every := min(r.f.tune.flush, r.f.tune.sync)
	for since := time.Duration(0); sleep(r.ctx, every) == nil; {
		if since += every; since < r.f.tune.sync {
			for _, f := range r.dirtyFiles(false) {
				r.flush(f)
			}
			continue
		}
		since = 0
		for _, f := range r.dirtyFiles(true) {
			if r.ctx.Err() != nil {
				return
			}
			if err := r.mark(f); err != nil {
				r.mu.Lock()
				r.fail(f, err)
				r.mu.Unlock()
			}
		}
	}
}

// dirtyFiles returns the open files that were written to, and with clean takes them for clean.
func (r *run) dirtyFiles(clean bool) []*file {
	r.mu.Lock()
	defer r.mu.Unlock()
	var files []*file
	for _, f := range r.active {
		if f.dirty > 0 {
			files = append(files, f)
		}
		if clean {
			f.dirty = 0
		}
	}
	return files
}

// flush lets the kernel begin to write, and does not wait for it. That some file systems cannot do it does not matter.
func (r *run) flush(f *file) {
	if c, err := f.data.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _ = unix.SyncFileRange(int(fd), 0, 0, unix.SYNC_FILE_RANGE_WRITE) })
	}
}

// mark syncs a file and notes in its journal what that made safe.
func (r *run) mark(f *file) error {
	r.mu.Lock()
	j := f.journal // another one when the file begins again, of which nothing is synced then
	r.mu.Unlock()
	length := j.length()
	err := f.data.Sync()
	if err == nil {
		err = j.synced(length)
	}
	if err != nil && !errors.Is(err, os.ErrClosed) { // a file that was committed meanwhile is closed
		return r.diskError(f, err)
	}
	return nil
}

func (r *run) diskError(f *file, err error) error {
	r.mu.Lock()
	needed := r.total - r.done
	r.mu.Unlock()
	return diskError(f.Partial, needed, r.f.o.MinFree, err)
}

// removeAll removes files that may be gone already.
func removeAll(paths ...string) error {
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return folderError(filepath.Dir(p), err)
		}
	}
	return nil
}
