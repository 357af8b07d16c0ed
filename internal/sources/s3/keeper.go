package s3

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Stored returns the revisions on disk, and for each bucket with unfinished downloads one entry without a revision whose
// Path is the bucket. Own counts what no other revision shares.
func (s *Source) Stored(ctx context.Context) ([]registry.StoredArtifact, error) {
	var out []registry.StoredArtifact
	for _, bucket := range subfolders(s.dir) {
		for _, models := range subfolders(filepath.Join(bucket, modelsDir)) {
			for _, folder := range subfolders(models) {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				if !fingerprint.MatchString(filepath.Base(folder)) {
					continue
				}
				a, err := stored(folder)
				if err != nil {
					s.log.Warn("A folder of the object store's artifacts cannot be read", "folder", folder, "err", err)
					continue
				}
				out = append(out, a)
			}
		}
		left, err := leftovers(bucket)
		if err != nil {
			return nil, s.disk(err)
		}
		if len(left) > 0 {
			p := registry.StoredArtifact{Source: registry.SourceS3, Path: "s3://" + bucketOf(bucket), Folder: bucket}
			for _, l := range left {
				p.Partial += l.taken
				if l.written.After(p.ModifiedAt) {
					p.ModifiedAt = l.written
				}
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b registry.StoredArtifact) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Revision, b.Revision), strings.Compare(a.Folder, b.Folder))
	})
	return out, nil
}

// stored describes one revision. Files that were removed from it by hand count as nothing.
func stored(folder string) (registry.StoredArtifact, error) {
	r, err := readRecord(folder)
	if err != nil && r.Revision == "" {
		return registry.StoredArtifact{}, err
	}
	a := registry.StoredArtifact{Source: registry.SourceS3, Path: r.Path, Revision: r.Revision, Folder: folder, ModifiedAt: r.FetchedAt}
	for _, f := range r.Files {
		if !safe(f.Path) {
			continue
		}
		info, err := os.Lstat(filepath.Join(folder, filesDir, filepath.FromSlash(f.Path)))
		if err != nil {
			continue
		}
		a.Files++
		a.Bytes += info.Size()
		if links(info) <= 2 { // here and in blobs
			a.Own += info.Size()
		}
		if at := lastRead(info); at.After(a.UsedAt) {
			a.UsedAt = at
		}
	}
	return a, nil
}

func links(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink) //nolint:unconvert // its width differs between architectures
	}
	return 1
}

// lastRead returns when a file was last read, as far as the file system keeps it.
func lastRead(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atim.Unix()).UTC()
	}
	return time.Time{}
}

// taken returns the bytes on disk, which are fewer than the size of a file with holes.
func taken(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// leftover is something that belongs to no revision: a partial file, its journal, a blob of a fetch that was not
// finished, a folder that was being assembled.
type leftover struct {
	path    string
	taken   int64 // bytes on disk
	written time.Time
	blob    bool
}

func leftovers(bucket string) ([]leftover, error) {
	var out []leftover
	for _, dir := range []string{partialDir, blobsDir} {
		entries, err := os.ReadDir(filepath.Join(bucket, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() || dir == blobsDir && links(info) > 1 {
				continue // gone meanwhile, or in use
			}
			out = append(out, leftover{path: filepath.Join(bucket, dir, e.Name()), taken: taken(info), written: info.ModTime(), blob: dir == blobsDir})
		}
	}
	return out, nil
}

// Delete removes a revision and the files that only it uses. Errors: CodeNotFound when there is none such; CodeConflict
// while somebody fetches it.
func (s *Source) Delete(ctx context.Context, path, revision string) (int64, error) {
	if !fingerprint.MatchString(revision) {
		return 0, registry.Errorf(registry.CodeNotFound, "there is no revision %q of %s on this machine; storage lists those there are", clip(revision), path)
	}
	for _, bucket := range subfolders(s.dir) {
		for _, models := range subfolders(filepath.Join(bucket, modelsDir)) {
			folder := filepath.Join(models, revision)
			if _, err := os.Lstat(folder); err != nil {
				continue
			}
			// A record that cannot be read belongs to whoever names its revision.
			if r, _ := readRecord(folder); r.Path != "" && s.Canonical(r.Path) != s.Canonical(path) {
				continue
			}
			return s.remove(ctx, home{bucket: bucket, models: models}, revision)
		}
	}
	return 0, registry.Errorf(registry.CodeNotFound, "the revision %s of %s is not on this machine; storage lists those that are", revision, path)
}

func (s *Source) remove(ctx context.Context, h home, revision string) (int64, error) {
	unlock, err := h.lock(ctx, revision, false)
	if errors.Is(err, errBusy) {
		return 0, registry.Errorf(registry.CodeConflict, "the revision %s is being fetched or deleted by somebody else; wait, or cancel that first", revision)
	}
	if err != nil {
		return 0, s.disk(err)
	}
	defer unlock()
	folder := h.revision(revision)
	r, _ := readRecord(folder) // what it names, as far as it can be read
	// Out of sight first, so that a crash in between leaves no half of a revision.
	staging := filepath.Join(h.models, stagingName+revision)
	if err := os.RemoveAll(staging); err != nil {
		return 0, s.disk(err)
	}
	if err := os.Rename(folder, staging); err != nil {
		return 0, s.disk(err)
	}
	freed := privateBytes(staging)
	if err := os.RemoveAll(staging); err != nil {
		return 0, s.disk(err)
	}
	prefix := r.Prefix
	if prefix != "" {
		prefix += "/"
	}
	for _, f := range r.Files {
		blob := h.blob(blobName(prefix+f.Path, f))
		info, err := os.Lstat(blob)
		if err != nil || links(info) > 1 {
			continue
		}
		if err := os.Remove(blob); err == nil {
			freed += taken(info)
		}
	}
	_ = os.Remove(filepath.Join(h.models, lockName+revision)) // nobody needs it; whoever waits makes a new one
	return freed, nil
}

// privateBytes are those on disk of files that have no other name.
func privateBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what cannot be seen is not counted
		}
		if info, err := d.Info(); err == nil && links(info) <= 1 {
			n += taken(info)
		}
		return nil
	})
	return n
}

// Clean removes partial files, blobs of no revision and folders of interrupted work that nobody has written to since
// before.
func (s *Source) Clean(ctx context.Context, before time.Time) (int64, error) {
	var freed int64
	for _, bucket := range subfolders(s.dir) {
		left, err := leftovers(bucket)
		if err != nil {
			return freed, s.disk(err)
		}
		// A partial file and what lies beside it under the same name go together.
		newest := map[string]time.Time{}
		for _, l := range left {
			if stem := stemOf(l.path); l.written.After(newest[stem]) {
				newest[stem] = l.written
			}
		}
		for _, l := range left {
			if err := ctx.Err(); err != nil {
				return freed, err
			}
			if newest[stemOf(l.path)].Before(before) && removeIdle(l.path) {
				freed += l.taken
			}
		}
		for _, models := range subfolders(filepath.Join(bucket, modelsDir)) {
			freed += cleanStaging(ctx, home{bucket: bucket, models: models}, before)
		}
	}
	return freed, nil
}

// removeIdle removes a file that nobody has locked: package fetch locks a partial file while it writes it.
func removeIdle(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && os.Remove(path) == nil
}

// stemOf is the name of a blob without the endings of its partial file's companions.
func stemOf(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return filepath.Join(filepath.Dir(path), name)
}

// cleanStaging removes folders of interrupted work that nobody holds the lock of.
func cleanStaging(ctx context.Context, h home, before time.Time) (freed int64) {
	for _, dir := range subfolders(h.models) {
		rev, ok := strings.CutPrefix(filepath.Base(dir), stagingName)
		info, err := os.Lstat(dir)
		if !ok || err != nil || !info.ModTime().Before(before) {
			continue
		}
		unlock, err := h.lock(ctx, rev, false)
		if err != nil {
			continue
		}
		n := privateBytes(dir)
		if os.RemoveAll(dir) == nil {
			freed += n
		}
		unlock()
	}
	return freed
}

// subfolders lists the folders in a folder by their paths, in order; none when it cannot be read.
func subfolders(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}
