package huggingface

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"
)

// lock is a lock that this process holds on one blob. It is the one that the Python client takes (filelock's
// UnixFileLock), so that the two never fetch the same file twice.
type lock struct{ f *os.File }

// tryLock takes the lock of a blob; nil when somebody else holds it.
func (r repo) tryLock(etag string) (*lock, error) {
	name := path.Join(".locks", r.folder, etag+".lock")
	for {
		f, err := r.root.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0o664)
		if err != nil {
			return nil, diskError(filepath.Join(r.dir, name), err)
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EWOULDBLOCK):
			f.Close()
			return nil, nil
		case errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EOPNOTSUPP):
			// A disk without locks. Every blob is still renamed into its place whole.
			return &lock{f}, nil
		case err != nil:
			f.Close()
			return nil, diskError(filepath.Join(r.dir, name), err)
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err == nil && st.Nlink > 0 {
			return &lock{f}, nil
		}
		f.Close() // somebody removed the file meanwhile: this lock guards nothing
	}
}

func (l *lock) release() {
	if l != nil {
		l.f.Close() // which unlocks; the file stays, as others may be waiting for it
	}
}

// lockPoll is how often a lock that somebody else holds is tried, as often as filelock does.
const lockPoll = 50 * time.Millisecond

// waitLock waits until the lock of a blob is free or done reports true, which is asked each time. The lock is nil then.
func (r repo) waitLock(ctx context.Context, etag string, done func() bool) (*lock, error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		if done() {
			return nil, nil
		}
		if l, err := r.tryLock(etag); l != nil || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
