package hubtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Settings are what is to be known of a repository beside its files: ORG/NAME.hub.json below the root, or Hub.Set.
type Settings struct {
	Gated      string            `json:"gated,omitempty"`      // "auto" or "manual": files only for those who were granted access
	Private    bool              `json:"private,omitempty"`    // not even there for others
	Disabled   bool              `json:"disabled,omitempty"`   // by the Hub's staff: nobody may
	Authorized []string          `json:"authorized,omitempty"` // names of the users who were granted access
	RenamedTo  string            `json:"renamed_to,omitempty"` // every address redirects to this repository
	Tags       map[string]string `json:"tags,omitempty"`       // tag → branch or commit
	LFS        []string          `json:"lfs,omitempty"`        // patterns of file names, beside the Hub's own
	Names      map[string]string `json:"names,omitempty"`      // files of main that no folder can hold: name → content
	CardData   map[string]any    `json:"card_data,omitempty"`  // in place of the front matter of README.md
	Pipeline   string            `json:"pipeline_tag,omitempty"`
	Library    string            `json:"library_name,omitempty"`
}

// repository is one repository with every commit that was seen of it.
type repository struct {
	id     string
	folder string // of main; "" when nothing is served from a root

	mu       sync.Mutex
	settings Settings
	fixed    bool // settings come from Set: the file is not read
	branches map[string]*commit
	put      map[string]bool // branches that were put: no folder replaces them
	tags     map[string]string
	commits  map[string]*commit
	objects  map[string]*file // large files by their SHA-256, and by their name in Xet
}

var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$`)

// repository returns the repository of an id and makes it known if make is true.
func (h *Hub) repository(id string, create bool) (*repository, bool) {
	if !idForm.MatchString(id) || strings.Contains(id, "..") {
		return nil, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if r, ok := h.repos[id]; ok {
		return r, true
	}
	r := &repository{id: id, branches: map[string]*commit{}, put: map[string]bool{},
		tags: map[string]string{}, commits: map[string]*commit{}, objects: map[string]*file{}}
	if h.o.Root != "" {
		r.folder = filepath.Join(h.o.Root, filepath.FromSlash(id))
	}
	if !create && !r.onDisk() {
		return nil, false
	}
	h.repos[id] = r
	return r, true
}

// onDisk tells whether there is anything of the repository below the root.
func (r *repository) onDisk() bool {
	if r.folder == "" {
		return false
	}
	if fi, err := os.Stat(r.folder); err == nil && fi.IsDir() {
		// ORG is a folder, too, and no repository.
		return strings.Contains(r.id, "/")
	}
	_, err := os.Stat(r.folder + ".hub.json")
	return err == nil
}

// Repositories returns the ids of all repositories, in order.
func (h *Hub) Repositories() ([]string, error) {
	found := map[string]bool{}
	h.mu.Lock()
	for id := range h.repos {
		found[id] = true
	}
	h.mu.Unlock()
	if h.o.Root != "" {
		folders, err := filepath.Glob(filepath.Join(h.o.Root, "*", "*"))
		if err != nil {
			return nil, err
		}
		for _, f := range folders {
			id := filepath.ToSlash(strings.TrimPrefix(strings.TrimPrefix(f, filepath.Clean(h.o.Root)), string(filepath.Separator)))
			if _, ok := h.repository(id, false); ok {
				found[id] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// Warm reads every repository, so that nobody waits for digests later. It returns the bytes that are served.
func (h *Hub) Warm() (int64, error) {
	ids, err := h.Repositories()
	if err != nil {
		return 0, err
	}
	var bytes int64
	for _, id := range ids {
		r, ok := h.repository(id, false)
		if !ok {
			continue
		}
		if err := h.refresh(r); err != nil {
			return 0, fmt.Errorf("%s: %w", id, err)
		}
		if h.o.Xet {
			if err := h.packAll(r); err != nil {
				return 0, fmt.Errorf("%s: %w", id, err)
			}
		}
		r.mu.Lock()
		for _, c := range r.branches {
			for _, f := range c.files {
				bytes += f.size
			}
		}
		r.mu.Unlock()
	}
	return bytes, nil
}

// refresh looks at the folders again, so that what changed there is a new commit.
func (h *Hub) refresh(r *repository) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.folder == "" {
		return nil
	}
	if !r.fixed {
		if err := r.readSettings(); err != nil {
			return err
		}
	}
	if err := h.scan(r, "main", r.folder); err != nil {
		return err
	}
	others, err := filepath.Glob(r.folder + "@*")
	if err != nil {
		return err
	}
	for _, dir := range others {
		name, err := url.PathUnescape(strings.TrimPrefix(dir, r.folder+"@"))
		if err != nil {
			return fmt.Errorf("%s names no branch: %w", dir, err)
		}
		if err := h.scan(r, name, dir); err != nil {
			return err
		}
	}
	return nil
}

func (r *repository) readSettings() error {
	b, err := os.ReadFile(r.folder + ".hub.json")
	if errors.Is(err, fs.ErrNotExist) {
		r.settings = Settings{}
		return nil
	}
	if err != nil {
		return err
	}
	var s Settings
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("%s.hub.json: %w", r.folder, err)
	}
	for _, p := range s.LFS {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%s.hub.json: %q is no pattern", r.folder, p)
		}
	}
	r.settings = s
	return nil
}

// scan makes a folder's content the commit of a branch. r is locked.
func (h *Hub) scan(r *repository, branch, dir string) error {
	if r.put[branch] {
		return nil
	}
	var files []*file
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != dir && (name == ".git" || name == ".cache") {
				return filepath.SkipDir
			}
			return nil
		}
		// A link is served as what it points to: a snapshot of the Hub's own cache can be served as it is.
		fi, err := os.Stat(p)
		if err != nil || !fi.Mode().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		files = append(files, &file{path: filepath.ToSlash(rel), size: fi.Size(), mod: fi.ModTime(), disk: p})
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		if branch != "main" || len(r.settings.Names) == 0 {
			delete(r.branches, branch)
			return nil
		}
	} else if err != nil {
		return err
	}
	if branch == "main" {
		for _, name := range slices.Sorted(maps.Keys(r.settings.Names)) {
			f, err := h.store(name, []byte(r.settings.Names[name]))
			if err != nil {
				return err
			}
			files = append(files, f)
		}
	}
	if err := h.name(files, r.settings.LFS); err != nil {
		return err
	}
	r.point(branch, newCommit(r.id, files))
	return nil
}

// point makes a commit the newest of a branch, unless it is already.
func (r *repository) point(branch string, c *commit) {
	if old, ok := r.commits[c.sha]; ok {
		// The same content, perhaps at other places on disk.
		if !slices.EqualFunc(old.files, c.files, func(a, b *file) bool { return a.disk == b.disk && a.mod.Equal(b.mod) }) {
			r.commits[c.sha] = c
		}
	} else {
		r.commits[c.sha] = c
	}
	r.branches[branch] = r.commits[c.sha]
	for _, f := range r.branches[branch].files {
		if f.lfs() {
			r.objects[f.sha], r.objects[xetHash(f.sha)] = f, f
		}
	}
}

// name computes what names the files, several at once.
func (h *Hub) name(files []*file, patterns []string) error {
	patterns = slices.Concat(large, patterns)
	errs := make([]error, len(files))
	places := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i, f := range files {
		lfs := isLarge(f.path, f.size, h.o.LFSSize, patterns)
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			sum, err := h.digests.of(f.disk, f.size, f.mod, lfs)
			if err != nil {
				errs[i] = err
				return
			}
			f.oid = sum
			if lfs {
				p := pointer(sum, f.size)
				f.sha, f.oid, f.ptr = sum, objectID("blob", p), len(p)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// store keeps content under its SHA-256, so that a commit stays what it is when the next is put.
func (h *Hub) store(name string, content []byte) (*file, error) {
	sum := sha256.Sum256(content)
	disk := filepath.Join(h.objects, hex.EncodeToString(sum[:]))
	if _, err := os.Stat(disk); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(disk, content, 0o600); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	fi, err := os.Stat(disk)
	if err != nil {
		return nil, err
	}
	return &file{path: name, size: fi.Size(), mod: fi.ModTime(), disk: disk}, nil
}

// Put makes exactly these files the content of a repository at main, in place of what was there, and returns the
// commit. Earlier commits stay. A name may be anything, also what no folder can hold: "../x".
func (h *Hub) Put(t testing.TB, id string, files map[string][]byte) string {
	t.Helper()
	return h.PutAt(t, id, "main", files)
}

// PutAt is Put at another branch.
func (h *Hub) PutAt(t testing.TB, id, branch string, files map[string][]byte) string {
	t.Helper()
	r, ok := h.repository(id, true)
	if !ok {
		t.Fatalf("%q can be no repository's id", id)
	}
	var list []*file
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f, err := h.store(name, files[name])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := h.name(list, r.settings.LFS); err != nil {
		t.Fatal(err)
	}
	c := newCommit(id, list)
	r.put[branch] = true
	r.point(branch, c)
	return c.sha
}

// Set changes what is known of a repository beside its files.
func (h *Hub) Set(t testing.TB, id string, s Settings) {
	t.Helper()
	r, ok := h.repository(id, true)
	if !ok {
		t.Fatalf("%q can be no repository's id", id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settings, r.fixed = s, true
}

// Tag gives a commit of a repository a name that does not move.
func (h *Hub) Tag(t testing.TB, id, tag, commit string) {
	t.Helper()
	r, ok := h.repository(id, false)
	if !ok {
		t.Fatalf("there is no repository %q", id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[tag] = commit
}

var hexForm = regexp.MustCompile(`^[0-9a-f]{7,40}$`)

// at returns the commit that a revision names: a branch, a tag, or a commit by at least seven of its digits.
func (h *Hub) at(r *repository, revision string) (*commit, bool, error) {
	r.mu.Lock()
	c, ok := r.commits[revision]
	r.mu.Unlock()
	if ok {
		return c, true, nil
	}
	if err := h.refresh(r); err != nil {
		return nil, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok = r.lookUp(revision, 0)
	return c, ok, nil
}

func (r *repository) lookUp(revision string, hops int) (*commit, bool) {
	revision = strings.TrimPrefix(strings.TrimPrefix(revision, "refs/heads/"), "refs/tags/")
	if c, ok := r.branches[revision]; ok {
		return c, true
	}
	for _, tags := range []map[string]string{r.tags, r.settings.Tags} {
		if target, ok := tags[revision]; ok && hops == 0 {
			return r.lookUp(target, 1)
		}
	}
	if !hexForm.MatchString(revision) {
		return nil, false
	}
	var found *commit
	for sha, c := range r.commits {
		if strings.HasPrefix(sha, revision) {
			if found != nil {
				return nil, false // ambiguous
			}
			found = c
		}
	}
	return found, found != nil
}

// settingsOf returns the settings of a repository as they are now.
func (h *Hub) settingsOf(r *repository) Settings {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.settings
	if s.Gated == "" && slices.Contains(h.o.Gated, r.id) {
		s.Gated = "auto"
		s.Authorized = slices.AppendSeq(slices.Clone(s.Authorized), maps.Values(h.o.Tokens))
	}
	return s
}

// exists tells whether there is anything to see: a branch, or a place that it moved to.
func (r *repository) exists() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.branches) > 0 || r.settings.RenamedTo != ""
}

// open opens a file as it was when its commit was made.
func (f *file) open() (*os.File, error) {
	in, err := os.Open(f.disk)
	if err != nil {
		return nil, err
	}
	fi, err := in.Stat()
	if err == nil && (fi.Size() != f.size || !fi.ModTime().Equal(f.mod)) {
		err = fmt.Errorf("%s is not what it was when its commit was made", f.disk)
	}
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return in, nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
