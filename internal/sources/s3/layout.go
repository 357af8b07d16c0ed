package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// The names within Options.Dir; see the package's comment.
const (
	blobsDir     = "blobs"
	partialDir   = "partial"
	modelsDir    = "models"
	filesDir     = "files"
	artifactFile = "artifact.json"
	bucketFile   = "bucket.json"
	stagingName  = ".staging-"
	lockName     = ".lock-"
)

// record is artifact.json: what a revision is. It carries no credentials.
type record struct {
	Version   int             `json:"version"`
	Path      string          `json:"source_path"`
	Endpoint  string          `json:"endpoint"`
	Bucket    string          `json:"bucket"`
	Prefix    string          `json:"prefix"`
	Revision  string          `json:"revision"`
	Format    registry.Format `json:"model_format"`
	Choice    string          `json:"choice"` // which of several models; see choiceOf
	Main      string          `json:"main"`
	Files     []registry.File `json:"files"`
	Bytes     int64           `json:"bytes"`
	Facts     registry.Facts  `json:"facts"`
	FetchedAt time.Time       `json:"fetched_at"`
}

const recordVersion = 1

// home is where one model's revisions are.
type home struct {
	bucket string // folder of the bucket
	models string // folder of the model
}

func (s *Source) home(c *connection) home {
	bucket := filepath.Join(s.dir, slug(c.at.Hostname()+"-"+c.bucket, c.at.String(), c.bucket))
	return home{bucket: bucket, models: filepath.Join(bucket, modelsDir, slug(c.key, c.key))}
}

func (h home) revision(rev string) string { return filepath.Join(h.models, rev) }
func (h home) blob(name string) string    { return filepath.Join(h.bucket, blobsDir, name) }
func (h home) partial(name string) string { return filepath.Join(h.bucket, partialDir, name) }

// bucketRecord is bucket.json: whose folder this is, while there is no revision that says it.
type bucketRecord struct {
	Endpoint string `json:"endpoint"`
	Bucket   string `json:"bucket"`
}

// make makes the folders.
func (h home) make(c *connection) error {
	for _, dir := range []string{h.models, h.blob(""), h.partial("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	name := filepath.Join(h.bucket, bucketFile)
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	b, err := json.Marshal(bucketRecord{Endpoint: c.at.String(), Bucket: c.bucket})
	if err != nil {
		return err
	}
	if err := writeSynced(name, b); !errors.Is(err, fs.ErrExist) { // another fetch may have been faster
		return err
	}
	return nil
}

// bucketOf returns the name of the bucket that a folder is of.
func bucketOf(folder string) string {
	var r bucketRecord
	b, err := os.ReadFile(filepath.Join(folder, bucketFile))
	if err != nil || json.Unmarshal(b, &r) != nil || !bucketName.MatchString(r.Bucket) {
		return filepath.Base(folder)
	}
	return r.Bucket
}

// slug is a name of a folder for people, made unique by a hash of what it stands for.
func slug(words string, identity ...string) string {
	sum := sha256.New()
	for _, s := range identity {
		fmt.Fprintf(sum, "%q", s)
	}
	short := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, words)
	const limit = 60
	if len(short) > limit {
		short = short[len(short)-limit:]
	}
	short = strings.Trim(short, ".-_")
	if short != "" {
		short += "-"
	}
	return short + hex.EncodeToString(sum.Sum(nil)[:6])
}

// blobName names the content of an object. The key is part of it because an ETag alone is not everywhere a hash of the
// content, and the size because it is cheap.
func blobName(key string, f registry.File) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d", key, f.ETag, f.Size))
	return hex.EncodeToString(sum[:16])
}

// choiceOf tells which of several models at one prefix a reference means.
func choiceOf(set settings) string {
	c := set.choice
	return fmt.Sprintf("%q %q %q %q %t", strings.ToUpper(c.Quantization), c.Filename, c.Allow, c.Ignore, set.code)
}

// readRecord reads artifact.json of a revision's folder and checks that its files are there with their sizes.
func readRecord(folder string) (record, error) {
	b, err := os.ReadFile(filepath.Join(folder, artifactFile))
	if err != nil {
		return record{}, err
	}
	r, err := decodeRecord(b, filepath.Base(folder))
	if err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(folder, artifactFile), err)
	}
	for _, f := range r.Files {
		if !isWhole(filepath.Join(folder, filesDir, filepath.FromSlash(f.Path)), f.Size) {
			return r, fmt.Errorf("%s is not the file of %d bytes that was fetched", f.Path, f.Size)
		}
	}
	return r, nil
}

// decodeRecord reads a record and refuses one that names files outside of its folder.
func decodeRecord(b []byte, revision string) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	if r.Version != recordVersion || r.Revision != revision {
		return record{}, errors.New("it is of another version or another folder")
	}
	var sum int64
	for _, f := range r.Files {
		if !safe(f.Path) || f.Size < 0 || f.Size > math.MaxInt64-sum {
			return record{}, fmt.Errorf("it names the file %q of %d bytes", clip(f.Path), f.Size)
		}
		sum += f.Size
	}
	if sum != r.Bytes || r.Main != "" && !safe(r.Main) {
		return record{}, errors.New("its sums do not fit")
	}
	return r, nil
}

// onDisk returns how many of the snapshot's bytes need not be downloaded any more.
func (s *Source) onDisk(c *connection, prefix string, snap sources.Snapshot) int64 {
	h := s.home(c)
	if _, err := readRecord(h.revision(snap.Revision)); err == nil {
		return snap.Bytes
	}
	var n int64
	for _, f := range snap.Files {
		if isWhole(h.blob(blobName(prefix+f.Path, f)), f.Size) {
			n += f.Size
		}
	}
	return n
}

func isWhole(path string, size int64) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// pinned returns a revision that was asked for by its fingerprint, from the disk.
func (s *Source) pinned(c *connection, ref sources.Ref) (sources.Snapshot, error) {
	r, err := readRecord(s.home(c).revision(c.revision))
	if err != nil {
		return sources.Snapshot{}, err
	}
	if r.Format != ref.Format {
		return sources.Snapshot{}, fs.ErrNotExist
	}
	return r.snapshot(ref), nil
}

// offline returns the newest revision on disk that the reference means, for when the service cannot be asked.
func (s *Source) offline(c *connection, ref sources.Ref, cause error) (sources.Snapshot, bool) {
	h := s.home(c)
	entries, err := os.ReadDir(h.models)
	if err != nil {
		return sources.Snapshot{}, false
	}
	var newest *record
	for _, e := range entries {
		if !fingerprint.MatchString(e.Name()) {
			continue
		}
		r, err := readRecord(h.revision(e.Name()))
		if err != nil || r.Format != ref.Format || r.Choice != choiceOf(c.settings) {
			continue
		}
		if newest == nil || r.FetchedAt.After(newest.FetchedAt) {
			newest = &r
		}
	}
	if newest == nil {
		return sources.Snapshot{}, false
	}
	s.log.Warn("The object store cannot be asked; the revision on disk is used", "source_path", ref.Path, "revision", newest.Revision, "err", cause)
	snap := newest.snapshot(ref)
	snap.Facts.Notes = append(snap.Facts.Notes, fmt.Sprintf("The object store could not be asked (%s); this is the revision that was fetched on %s.", cause, newest.FetchedAt.Format(time.DateOnly)))
	snap.Cost = sources.Cost{Requests: int(c.count.requests.Load()), Bytes: c.count.bytes.Load()}
	return snap, true
}

func (r record) snapshot(ref sources.Ref) sources.Snapshot {
	return sources.Snapshot{
		Ref: ref, Revision: r.Revision, Root: strings.TrimSuffix(r.Endpoint+"/"+r.Bucket+"/"+r.Prefix, "/"), Main: r.Main,
		Files: r.Files, Bytes: r.Bytes, OnDisk: r.Bytes, Facts: r.Facts,
	}
}

// lock takes the lock of one revision, so that one fetch or one deletion at a time works on it, here and in other
// processes. The kernel lets it go with the process. wait says whether to wait; otherwise errBusy comes back.
func (h home) lock(ctx context.Context, rev string, wait bool) (unlock func(), err error) {
	path := filepath.Join(h.models, lockName+rev)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return func() { _ = f.Close() }, nil // closing is what unlocks, and cannot fail in a way that matters
		}
		_ = f.Close()
		switch {
		case err == nil: // its file was deleted meanwhile: the lock is of nothing
			continue
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, err
		case !wait:
			return nil, errBusy
		}
		timer := time.NewTimer(lockPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

var errBusy = errors.New("somebody else is working on it")

// lockPause is how often a lock is asked for: flock cannot be waited for and cancelled.
const lockPause = 50 * time.Millisecond

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// disk explains an error of the file system.
func (s *Source) disk(err error) error {
	var own *registry.Error
	switch {
	case err == nil, errors.As(err, &own), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return registry.Errorf(registry.CodeUnavailable, "what is fetched from object stores cannot be kept in %s: %w; let the server's user write there", s.dir, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return registry.Errorf(registry.CodeInsufficientResources, "the disk of %s is full: %w; delete models that are not used any more", s.dir, err)
	}
	return registry.Errorf(registry.CodeUnavailable, "what is fetched from object stores cannot be kept in %s: %w; check the disk", s.dir, err)
}
