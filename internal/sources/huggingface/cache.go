package huggingface

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// store is the Hub's cache on disk, opened so that no name and no symbolic link in it leads anywhere else: os.Root
// refuses what would. Paths in it are relative to the cache, with slashes.
type store struct {
	dir  string
	root *os.Root
}

// openCache opens the cache. fs.ErrNotExist when there is none yet and create is false.
func (s *Source) openCache(create bool) (*store, error) {
	if create {
		if err := os.MkdirAll(s.cache, 0o755); err != nil {
			return nil, diskError(s.cache, err)
		}
	}
	root, err := os.OpenRoot(s.cache)
	if err != nil {
		return nil, diskError(s.cache, err)
	}
	return &store{dir: s.cache, root: root}, nil
}

// Close ends the use of the cache.
func (c *store) Close() {
	_ = c.root.Close() // nothing is written through it that closing could lose
}

// diskError says what is wrong with the cache and what to do about it. Errors that are registry errors or ends of a
// context already come back as they are, and so does fs.ErrNotExist.
func diskError(at string, err error) error {
	var e *registry.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), absent(err):
		return err
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		e = registry.Errorf(registry.CodeUnavailable, "this server may not use the Hub's cache at %s: %w; give its user the permission, or set HF_HUB_CACHE to a folder of its own", at, plain(err))
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e = registry.Errorf(registry.CodeInsufficientResources, "the disk that holds the Hub's cache at %s is full: %w; delete models that nobody uses", at, plain(err))
	case strings.Contains(err.Error(), "path escapes from parent"):
		e = registry.Errorf(registry.CodeInvalid, "a symbolic link in the Hub's cache at %s leads out of it, so nothing was read or written there; remove the link, or set HF_HUB_CACHE to where the files really are", at)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), strings.Contains(err.Error(), "not a directory"): // os.OpenRoot has no value for it
		e = registry.Errorf(registry.CodeInvalid, "the Hub's cache at %s is not laid out as one: %w; move it away, or set HF_HUB_CACHE to another folder", at, plain(err))
	default:
		e = registry.Errorf(registry.CodeUnavailable, "the Hub's cache at %s cannot be used: %w; check the disk", at, plain(err))
	}
	e.Op = "use the cache"
	return e
}

// plain is the reason of an error about a path, without the path.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

// repo is the folder of one repository in the cache.
type repo struct {
	*store
	folder string // models--org--name
}

func (c *store) repo(folder string) repo { return repo{c, folder} }

func (r repo) at(parts ...string) string {
	return path.Join(append([]string{r.folder}, parts...)...)
}

// on is the absolute path of a name in the repository's folder, for messages and for those who open files themselves.
func (r repo) on(parts ...string) string {
	return filepath.Join(r.dir, filepath.FromSlash(r.at(parts...)))
}

func (r repo) wrap(err error, parts ...string) error { return diskError(r.on(parts...), err) }

// commit returns the commit that the cache knows for a revision.
func (r repo) commit(revision string) (string, bool) {
	if commitHash.MatchString(revision) {
		return revision, true
	}
	raw, err := r.root.ReadFile(r.at("refs", revision))
	commit := strings.TrimSpace(string(raw))
	return commit, err == nil && commitHash.MatchString(commit)
}

// tree returns the listing of a commit, if the cache has one.
func (r repo) tree(commit string) (tree, bool) {
	raw, err := r.root.ReadFile(r.at("trees", commit+".json"))
	if err != nil {
		return nil, false
	}
	return decodeTree(raw)
}

// forget removes the listing of a commit, when something has shown that it may be wrong: it is asked for again then.
func (r repo) forget(commit string) {
	_ = r.root.Remove(r.at("trees", commit+".json")) // if it stays, the next look fails in the same way and tries again
}

// snapshot lists what lies in the folder of a commit, links followed; nil when there is no such folder.
func (r repo) snapshot(commit string) ([]registry.File, error) {
	var out []registry.File
	base := r.at("snapshots", commit)
	err := fs.WalkDir(r.root.FS(), base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		info, err := r.root.Stat(p)
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // a dangling link is a file that is missing, which whoever needs it says
		}
		f := registry.File{Path: strings.TrimPrefix(p, base+"/"), Size: info.Size()}
		if target, err := r.root.Readlink(p); err == nil {
			f.ETag = path.Base(target)
		}
		if hash64.MatchString(f.ETag) {
			f.SHA256 = f.ETag
		}
		out = append(out, f)
		return nil
	})
	if absent(err) {
		return nil, nil
	}
	return out, r.wrap(err, "snapshots", commit)
}

// place says what is known of one file in the cache.
type place int

const (
	nowhere place = iota
	stored        // its content is there, under its hash
	linked        // its content is there, and its name in the snapshot leads to it
)

// where looks for a file of a commit. Content of another size than the Hub tells is not it.
func (r repo) where(commit string, f registry.File) place {
	pointer := r.at("snapshots", commit, f.Path)
	info, err := r.root.Lstat(pointer)
	switch {
	case err != nil:
	case info.Mode().IsRegular():
		// On a disk without symbolic links the Python client puts the file itself there.
		if info.Size() == f.Size {
			return linked
		}
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := r.root.Readlink(pointer)
		if err == nil && path.Join(path.Dir(pointer), target) == r.at("blobs", f.ETag) && r.hasBlob(f) {
			return linked
		}
	}
	if r.hasBlob(f) {
		return stored
	}
	return nowhere
}

func (r repo) hasBlob(f registry.File) bool {
	info, err := r.root.Stat(r.at("blobs", f.ETag))
	return err == nil && info.Mode().IsRegular() && info.Size() == f.Size
}

// link makes the name of a file in a snapshot lead to its content, by a relative link as the Python client makes it.
func (r repo) link(commit string, f registry.File) error {
	if r.where(commit, f) == linked {
		return nil
	}
	pointer := r.at("snapshots", commit, f.Path)
	if err := r.root.MkdirAll(path.Dir(pointer), 0o755); err != nil {
		return r.wrap(err, "snapshots", commit)
	}
	target := strings.Repeat("../", 2+strings.Count(f.Path, "/")) + "blobs/" + f.ETag
	// Another process may be doing the same; whoever comes last finds it done.
	for range 3 {
		err := r.root.Symlink(target, pointer)
		if err == nil || r.where(commit, f) == linked {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return r.wrap(err, "snapshots", commit)
		}
		if err := r.root.Remove(pointer); err != nil && !absent(err) {
			return r.wrap(err, "snapshots", commit)
		}
	}
	return registry.Errorf(registry.CodeConflict, "%s is being changed by another process again and again; try once more when it has finished", r.on("snapshots", commit, f.Path))
}

// writeAtomic writes a small file so that nobody ever sees half of it.
func (r repo) writeAtomic(content []byte, parts ...string) error {
	name := r.at(parts...)
	if old, err := r.root.ReadFile(name); err == nil && slices.Equal(old, content) {
		return nil
	}
	if err := r.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return r.wrap(err, parts...)
	}
	temporary := name + "." + random() + ".tmp"
	err := r.root.WriteFile(temporary, content, 0o644)
	if err == nil {
		err = r.root.Rename(temporary, name)
	}
	if err != nil {
		_ = r.root.Remove(temporary) // the first error is the one that matters
	}
	return r.wrap(err, parts...)
}

func random() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// prepare makes the folders of a repository and the marks that the Python client makes.
func (r repo) prepare() error {
	for _, dir := range []string{r.at("blobs"), r.at("snapshots"), path.Join(".locks", r.folder)} {
		if err := r.root.MkdirAll(dir, 0o755); err != nil {
			return diskError(filepath.Join(r.dir, dir), err)
		}
	}
	if _, err := r.root.Lstat("CACHEDIR.TAG"); absent(err) {
		// Backup programs pass over the folder; without the mark nothing else changes.
		_ = r.root.WriteFile("CACHEDIR.TAG", []byte(cacheTag), 0o644)
	}
	return nil
}

// cacheTag is the Cache Directory Tagging Standard's, which begins with a fixed signature.
const cacheTag = "Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache directory tag. See https://bford.info/cachedir/\n"

// mode is what a new file of this process may be read by: the Python client gives it to the blobs, too.
func (r repo) mode() fs.FileMode {
	name := r.at("blobs", "tmp_"+random())
	defer func() { _ = r.root.Remove(name) }()
	f, err := r.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return 0o644
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0o644
	}
	return info.Mode().Perm()
}

// open opens a file of a commit, if its content is there.
func (r repo) open(commit string, f registry.File) (*os.File, error) {
	switch r.where(commit, f) {
	case linked:
		return r.root.Open(r.at("snapshots", commit, f.Path))
	case stored:
		return r.root.Open(r.at("blobs", f.ETag))
	case nowhere:
	}
	return nil, fs.ErrNotExist
}
