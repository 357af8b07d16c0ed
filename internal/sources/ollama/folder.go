package ollama

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The layout of a folder of Ollama's models. Ollama itself reads and writes blobs/sha256-<hex> and
// manifests/<registry>/<namespace>/<model>/<tag>, and at its start deletes every file right below blobs that no manifest
// names. What is ours lies in a folder of its own below blobs: Ollama passes over folders, and it is on the same
// file system even where blobs is a link to another disk, so that a finished file can be renamed into its place.
//
//	blobs/.llmm/lock                 held while files are moved or deleted
//	blobs/.llmm/sha256-<hex>.partial a blob that is being fetched, with its journal beside it
//	blobs/.llmm/sha256-<hex>         a blob that is whole, until all the others of its model are, too
//	blobs/.llmm/<hex>.pending        the manifest of a model that is being fetched, and its name
//	.llmm-new-<number>               a file that is being written, for a moment: Ollama takes any file beside its manifests
//	                                 for one, and cleans nothing up once it cannot read it
type folder struct{ dir string }

const (
	ownFolder     = ".llmm"
	partialSuffix = ".partial"
	pendingSuffix = ".pending"
	newPrefix     = ".llmm-new-"
)

func (f folder) blobs() string            { return filepath.Join(f.dir, "blobs") }
func (f folder) manifests() string        { return filepath.Join(f.dir, "manifests") }
func (f folder) own() string              { return filepath.Join(f.dir, "blobs", ownFolder) }
func (f folder) blob(file string) string  { return filepath.Join(f.dir, "blobs", file) }
func (f folder) whole(file string) string { return filepath.Join(f.own(), file) }
func (f folder) partial(file string) string {
	return filepath.Join(f.own(), file+partialSuffix)
}
func (f folder) pendingFile(digest string) string {
	return filepath.Join(f.own(), strings.TrimPrefix(digest, "sha256:")+pendingSuffix)
}

// has reports whether a blob is in its place, or whole and waiting for the others. Its size is compared and its digest is
// not: a file of this name was written by who had checked it, Ollama or us.
func (f folder) has(file string, size int64) bool {
	return isFile(f.blob(file), size) || isFile(f.whole(file), size)
}

func isFile(path string, size int64) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// path returns where a blob is read from.
func (f folder) path(file string, size int64) string {
	if p := f.whole(file); isFile(p, size) && !isFile(f.blob(file), size) {
		return p
	}
	return f.blob(file)
}

// place returns the file of a name's manifest. Ollama takes names that differ only in case for one, and so does this: a
// folder that is there already is used as it is written.
func (f folder) place(n Name) string {
	at := f.manifests()
	for part := range strings.SplitSeq(filepath.ToSlash(n.file()), "/") {
		next := filepath.Join(at, part)
		if _, err := os.Lstat(next); errors.Is(err, fs.ErrNotExist) {
			list, err := os.ReadDir(at)
			if err == nil {
				if i := slices.IndexFunc(list, func(e fs.DirEntry) bool { return strings.EqualFold(e.Name(), part) }); i >= 0 {
					next = filepath.Join(at, list[i].Name())
				}
			}
		}
		at = next
	}
	return at
}

// stored returns the manifest that is kept under a name, nil when there is none.
func (f folder) stored(n Name) (*manifest, error) { return readManifestFile(f.place(n)) }

func readManifestFile(path string) (*manifest, error) {
	raw, err := readSmall(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, explainDisk(path, err)
	}
	m, err := readManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// readSmall reads a file that should be a few lines. A pipe in its place is not waited for.
func readSmall(path string, limit int64) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read from
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is no file")}
	case info.Size() > limit:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it has %s", registry.Bytes(info.Size()))}
	}
	return io.ReadAll(io.LimitReader(file, limit))
}

// complete reports whether every blob of a manifest is on this disk.
func (f folder) complete(m *manifest) bool {
	for _, l := range m.blobs() {
		if !f.has(l.file(), l.Size) {
			return false
		}
	}
	return true
}

// pending is a model that is being fetched, or was when the server ended.
type pending struct {
	Name     string `json:"name"`
	Manifest []byte `json:"manifest"`
}

// begin makes the folders and notes what is being fetched, so that nobody deletes a blob that it relies on. The note is
// held with a shared lock until done is called; whoever wants to remove it takes it alone.
func (f folder) begin(ctx context.Context, n Name, m *manifest) (done func(), err error) {
	unlock, err := f.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := os.MkdirAll(f.manifests(), 0o755); err != nil {
		return nil, explainDisk(f.manifests(), err)
	}
	path := f.pendingFile(m.digest)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		text, err := json.Marshal(pending{Name: n.String(), Manifest: m.raw})
		if err != nil {
			return nil, err
		}
		if err := f.replace(path, text); err != nil {
			return nil, err
		}
	}
	file, err := os.Open(path)
	if err == nil {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	}
	if err != nil {
		return nil, explainDisk(path, err)
	}
	return func() { _ = file.Close() }, nil // which lets go of it
}

// alone reports whether nobody fetches what a note is about. It is asked while the folder is locked.
func alone(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer func() { _ = file.Close() }() // only locked
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// pendings returns what is being fetched, and the files that say so.
func (f folder) pendings() (map[string]pending, error) {
	out := map[string]pending{}
	list, err := os.ReadDir(f.own())
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, explainDisk(f.own(), err)
	}
	for _, e := range list {
		if !strings.HasSuffix(e.Name(), pendingSuffix) {
			continue
		}
		path := filepath.Join(f.own(), e.Name())
		raw, err := readSmall(path, 2*maxManifest)
		if errors.Is(err, fs.ErrNotExist) {
			continue // finished meanwhile
		}
		if err != nil {
			return nil, explainDisk(path, err)
		}
		var p pending
		if json.Unmarshal(raw, &p) == nil { // one that was torn by a crash names nothing
			out[path] = p
		}
	}
	return out, nil
}

// replace writes a file whole or not at all, and does not return before it is on the disk.
func (f folder) replace(path string, content []byte) error {
	dir := f.dir
	if filepath.Dir(path) == f.own() { // which may be on another disk than the rest
		dir = f.own()
	}
	file, err := os.CreateTemp(dir, newPrefix+"*")
	if err != nil {
		return explainDisk(dir, err)
	}
	defer func() { _ = os.Remove(file.Name()) }() // gone already once it was renamed
	_, err = io.Copy(file, bytes.NewReader(content))
	err = errors.Join(err, file.Chmod(0o644), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return explainDisk(path, err)
	}
	return nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock keeps other fetches and deletions of the same folder out, those of other processes, too. It is held for moments.
func (f folder) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(f.own(), 0o755); err != nil {
		return nil, explainDisk(f.own(), err)
	}
	path := filepath.Join(f.own(), "lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, explainDisk(path, err)
	}
	for {
		if err = ctx.Err(); err != nil {
			break
		}
		if err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return func() { _ = file.Close() }, nil // which unlocks it
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			err = explainDisk(path, err)
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	_ = file.Close() // nothing was written
	return nil, err
}

// explainDisk turns an error of the operating system into one that helps.
func explainDisk(path string, err error) error {
	var own *registry.Error
	if errors.As(err, &own) {
		return err
	}
	cause := err
	var at *fs.PathError
	if errors.As(err, &at) {
		cause = at.Err
	}
	what, next := "cannot be used", "check the disk"
	switch {
	case errors.Is(err, fs.ErrPermission):
		what, next = "may not be used by this server", fmt.Sprintf("let user %d read and write the folder of Ollama's models (chown or chmod), or set another one", os.Geteuid())
	case errors.Is(err, syscall.EROFS):
		what, next = "is on a disk that is mounted read-only", "mount it for writing, or set another folder for Ollama's models"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		what, next = "cannot be written: the disk is full", "delete models that nobody needs any more"
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama", Msg: fmt.Sprintf("%s %s (%v); %s", path, what, cause, next), Err: err}
}
