package huggingface

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Stored returns every model of the cache, whoever fetched it, as scan_cache_dir of the Python client sees it; datasets
// and spaces are left out. A revision whose fetch has not ended yet is Incomplete, with what has arrived. Other unfinished
// downloads, and contents that no revision leads to, are one more entry of a repository, without a revision.
func (s *Source) Stored(ctx context.Context) ([]registry.StoredArtifact, error) {
	c, err := s.openCache(false)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	repos, err := c.repos()
	if err != nil {
		return nil, err
	}
	var out []registry.StoredArtifact
	for _, r := range repos {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		k, err := r.inventory()
		if err != nil {
			return nil, err
		}
		out = append(out, k.artifacts()...)
	}
	slices.SortFunc(out, func(a, b registry.StoredArtifact) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Revision, b.Revision))
	})
	return out, nil
}

// repos lists the folders of models.
func (c *store) repos() ([]repo, error) {
	entries, err := fs.ReadDir(c.root.FS(), ".")
	if err != nil {
		return nil, diskError(c.dir, err)
	}
	var out []repo
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "models--") && len(e.Name()) > len("models--") {
			out = append(out, c.repo(e.Name()))
		}
	}
	return out, nil
}

// id is the repository's name on the Hub.
func (r repo) id() string {
	return strings.ReplaceAll(strings.TrimPrefix(r.folder, "models--"), "--", "/")
}

// inventory is what lies in the folder of one repository.
type inventory struct {
	repo
	refs      map[string][]string            // names of revisions, by commit
	revisions map[string]map[string]fileStat // by commit: what each file's name leads to, by the path of that
	modified  map[string]time.Time           // of the folders of revisions
	loose     []fileStat                     // in blobs/: what no revision leads to, unfinished ones included
	notes     []unfinished
}

// fileStat is one content on disk.
type fileStat struct {
	name           string // relative to the cache
	size           int64
	disk           int64 // bytes that it really takes: unfinished files have holes
	modified, used time.Time
	shared         bool // between repositories; its bytes do not become free with this one
}

func (r repo) stat(name string) (fileStat, error) {
	info, err := r.root.Stat(name)
	if err != nil {
		return fileStat{}, err
	}
	f := fileStat{name: name, size: info.Size(), disk: info.Size(), modified: info.ModTime(), used: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.disk = st.Blocks * 512
		f.used = time.Unix(st.Atim.Unix())
	}
	if link, err := r.root.Lstat(name); err == nil {
		f.shared = link.Mode()&fs.ModeSymlink != 0
	}
	return f, nil
}

func (r repo) inventory() (*inventory, error) {
	k := &inventory{repo: r, refs: map[string][]string{}, revisions: map[string]map[string]fileStat{}, modified: map[string]time.Time{}, notes: r.notes()}
	err := r.walk("refs", func(p string, _ fs.DirEntry) error {
		raw, err := r.root.ReadFile(p)
		if commit := strings.TrimSpace(string(raw)); err == nil && commitHash.MatchString(commit) && !strings.HasSuffix(p, ".tmp") {
			k.refs[commit] = append(k.refs[commit], strings.TrimPrefix(p, r.at("refs")+"/"))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	commits, err := fs.ReadDir(r.root.FS(), r.at("snapshots"))
	if err != nil && !absent(err) {
		return nil, r.wrap(err, "snapshots")
	}
	for _, e := range commits {
		if !e.IsDir() {
			continue
		}
		if info, err := e.Info(); err == nil {
			k.modified[e.Name()] = info.ModTime()
		}
		contents := map[string]fileStat{}
		err := r.walk(path.Join("snapshots", e.Name()), func(p string, _ fs.DirEntry) error {
			at := p
			if target, err := r.root.Readlink(p); err == nil {
				at = path.Join(path.Dir(p), target)
			}
			// What leads out of the cache or nowhere takes no place in it.
			if st, err := r.stat(at); err == nil {
				contents[at], used[at] = st, true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		k.revisions[e.Name()] = contents
	}
	err = r.walk("blobs", func(p string, _ fs.DirEntry) error {
		if st, err := r.stat(p); err == nil && !used[p] {
			k.loose = append(k.loose, st)
		}
		return nil
	})
	return k, err
}

// walk calls fn for everything below a folder of the repository that is no folder. A folder that is not there is empty.
func (r repo) walk(folder string, fn func(p string, d fs.DirEntry) error) error {
	err := fs.WalkDir(r.root.FS(), r.at(folder), func(p string, d fs.DirEntry, err error) error {
		switch {
		case absent(err):
			return nil // it went away while we looked
		case err != nil:
			return err
		case d.IsDir():
			return nil
		}
		return fn(p, d)
	})
	return r.wrap(err, folder)
}

// sharedBy counts for each content the revisions that lead to it.
func (k *inventory) sharedBy() map[string]int {
	n := map[string]int{}
	for _, contents := range k.revisions {
		for at := range contents {
			n[at]++
		}
	}
	return n
}

func (k *inventory) artifacts() []registry.StoredArtifact {
	users, lacks := k.sharedBy(), k.lacks()
	loose := slices.Clone(k.loose)
	var out []registry.StoredArtifact
	for commit, contents := range k.revisions {
		a := registry.StoredArtifact{
			Source: registry.SourceHuggingFace, Path: k.id(), Revision: commit, Names: k.refs[commit],
			Folder: k.on("snapshots", commit), Files: len(contents), ModifiedAt: k.modified[commit].UTC(),
		}
		slices.Sort(a.Names)
		for at, st := range contents {
			a.Bytes += st.size
			if users[at] == 1 && !st.shared {
				a.Own += st.size
			}
			a.ModifiedAt = later(a.ModifiedAt, st.modified)
			a.UsedAt = later(a.UsedAt, st.used)
		}
		if l := lacks[commit]; l != nil {
			a.Incomplete, a.Missing = true, l.missing
			for _, st := range l.partial {
				a.Partial += st.disk
				a.ModifiedAt = later(a.ModifiedAt, st.modified)
			}
			loose = slices.DeleteFunc(loose, func(st fileStat) bool { return slices.Contains(l.partial, st) })
		}
		out = append(out, a)
	}
	if len(loose) > 0 {
		a := registry.StoredArtifact{Source: registry.SourceHuggingFace, Path: k.id(), Folder: k.on("blobs"), Files: len(loose)}
		for _, st := range loose {
			a.Partial += st.disk
			a.ModifiedAt = later(a.ModifiedAt, st.modified)
		}
		out = append(out, a)
	}
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b.UTC()
	}
	return a
}

// Delete removes a commit from the cache: its folder, the names that lead to it, its listing, and the contents that no
// other revision uses. When nothing of the repository is left, its folder goes, too.
func (s *Source) Delete(ctx context.Context, source, revision string) (int64, error) {
	id, _, _, err := s.address(source)
	if err != nil || !safeName(revision) || strings.Contains(revision, "/") {
		return 0, problem(registry.CodeNotFound, "the cache holds no revision %q of %q", clip(revision), clip(source))
	}
	gone := problem(registry.CodeNotFound, "the cache at %s holds no revision %s of %s; it may be deleted already", s.cache, clip(revision), id)
	c, err := s.openCache(false)
	if absent(err) {
		return 0, gone
	}
	if err != nil {
		return 0, err
	}
	defer c.Close()
	r := c.repo(asked{id: id}.folder())
	k, err := r.inventory()
	if err != nil {
		return 0, err
	}
	if _, ok := k.revisions[revision]; !ok {
		return 0, gone
	}
	locks, err := k.lockAll(revision)
	defer func() {
		for _, l := range locks {
			l.release()
		}
	}()
	if err != nil {
		return 0, err
	}
	// Once more, now that nobody can add a use of what goes.
	if k, err = r.inventory(); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return k.remove(revision)
}

// lockAll takes the locks of all contents of a revision. CodeConflict when another process holds one.
func (k *inventory) lockAll(revision string) ([]*lock, error) {
	if err := k.root.MkdirAll(path.Join(".locks", k.folder), 0o755); err != nil {
		return nil, diskError(k.dir, err)
	}
	var locks []*lock
	var etags []string
	for at := range k.revisions[revision] {
		etags = append(etags, path.Base(at))
	}
	for _, n := range k.notes {
		for _, f := range n.Files {
			if n.Commit == revision {
				etags = append(etags, f.ETag)
			}
		}
	}
	slices.Sort(etags)
	for _, etag := range slices.Compact(etags) {
		if !hash40.MatchString(etag) && !hash64.MatchString(etag) {
			continue
		}
		l, err := k.tryLock(etag)
		if err != nil {
			return locks, err
		}
		if l == nil {
			return locks, registry.Errorf(registry.CodeConflict, "another process is fetching files of %s at %s; wait until it has finished, or end it, and delete then", k.id(), revision)
		}
		locks = append(locks, l)
	}
	return locks, nil
}

// remove deletes in the order in which a kill in between leaves nothing that looks whole: names first, contents last.
func (k *inventory) remove(revision string) (int64, error) {
	users, lacks := k.sharedBy(), k.lacks()
	for _, name := range k.refs[revision] {
		if err := k.root.Remove(k.at("refs", name)); err != nil && !absent(err) {
			return 0, k.wrap(err, "refs", name)
		}
	}
	if err := k.root.RemoveAll(k.at("snapshots", revision)); err != nil {
		return 0, k.wrap(err, "snapshots", revision)
	}
	for _, name := range []string{k.at("trees", revision+".json"), k.at(".no_exist", revision)} {
		if err := k.root.RemoveAll(name); err != nil {
			return 0, k.wrap(err)
		}
	}
	var freed int64
	for at, st := range k.revisions[revision] {
		if users[at] > 1 {
			continue
		}
		inBlobs := path.Dir(at) == k.at("blobs")
		if inBlobs {
			if err := k.root.Remove(at); err != nil && !absent(err) {
				return freed, k.wrap(err, "blobs")
			}
		}
		if !st.shared && (inBlobs || strings.HasPrefix(at, k.at("snapshots", revision)+"/")) {
			freed += st.size
		}
	}
	left := len(k.loose)
	if l := lacks[revision]; l != nil {
		for _, st := range l.partial {
			if err := k.root.Remove(st.name); err != nil && !absent(err) {
				return freed, k.wrap(err, "blobs")
			}
			freed += st.disk
		}
		left -= len(l.partial)
	}
	for _, n := range k.notes {
		if n.Commit != revision {
			continue
		}
		if err := k.dropNote(n); err != nil {
			return freed, err
		}
	}
	if len(k.revisions) == 1 && left == 0 {
		// Only empty folders are left, and refs to commits that are not there.
		if err := k.root.RemoveAll(k.folder); err != nil {
			return freed, k.wrap(err)
		}
	}
	return freed, nil
}

// Clean removes unfinished downloads, ours and those the Python client left behind, and contents that no revision leads
// to, as far as nobody has written to them since before and nobody holds their lock.
func (s *Source) Clean(ctx context.Context, before time.Time) (int64, error) {
	c, err := s.openCache(false)
	if absent(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer c.Close()
	repos, err := c.repos()
	if err != nil {
		return 0, err
	}
	var freed int64
	var failed []error
	for _, r := range repos {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		n, err := r.clean(before)
		freed += n
		failed = append(failed, err) // one folder that cannot be cleaned must not keep the others from it
	}
	return freed, errors.Join(failed...)
}

func (r repo) clean(before time.Time) (int64, error) {
	k, err := r.inventory()
	if err != nil || len(k.loose) == 0 && len(k.notes) == 0 {
		return 0, err
	}
	if err := r.root.MkdirAll(path.Join(".locks", r.folder), 0o755); err != nil {
		return 0, diskError(r.dir, err)
	}
	// The parts of one download go together, by the time of the newest: a journal is written less often than its file.
	newest := map[string]time.Time{}
	etag := func(st fileStat) string {
		name, _, _ := strings.Cut(path.Base(st.name), ".")
		return name
	}
	for _, st := range k.loose {
		newest[etag(st)] = later(newest[etag(st)], st.modified)
	}
	var freed int64
	for _, st := range k.loose {
		if !newest[etag(st)].Before(before) {
			continue
		}
		n, err := r.drop(st, etag(st))
		freed += n
		if err != nil {
			return freed, err
		}
	}
	for _, n := range k.notes {
		if !n.written.Before(before) {
			continue
		}
		if err := r.settle(n, false); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// drop removes one content that nothing leads to, under its lock.
func (r repo) drop(st fileStat, etag string) (int64, error) {
	if etag == "" { // a leftover of a replaced file, which begins with a dot
		etag = path.Base(st.name)
	}
	l, err := r.tryLock(etag)
	if err != nil || l == nil {
		return 0, err
	}
	defer l.release()
	// It may have become part of a revision before the lock was ours.
	k, err := r.inventory()
	if err != nil || !slices.ContainsFunc(k.loose, func(now fileStat) bool { return now.name == st.name }) {
		return 0, err
	}
	if err := r.root.Remove(st.name); err != nil && !absent(err) {
		return 0, r.wrap(err, "blobs")
	}
	if st.shared {
		return 0, nil
	}
	return st.disk, nil
}
