package manager

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// depot is a source whose downloads go as a test lets them. What it keeps is on disk, unfinished downloads included, so
// that it outlives a killed server.
type depot struct {
	dir string

	mu       sync.Mutex
	revision map[string]string         // of each path, "r1" if there is none
	fails    map[string]error          // of Resolve, by path
	held     map[string]chan struct{}  // Fetch of these paths waits before every part for a token
	fetches  map[string]int            // begun, by path
	parts    map[string]int            // downloaded, by path
	resolves map[string]int            // by path
	params   map[string]map[string]any // that came last, by path
	slow     time.Duration             // for each part
}

const depotParts = 8

func newDepot(dir string) *depot {
	return &depot{dir: dir, revision: map[string]string{}, fails: map[string]error{}, held: map[string]chan struct{}{},
		fetches: map[string]int{}, parts: map[string]int{}, resolves: map[string]int{}, params: map[string]map[string]any{}}
}

var (
	_ sources.Source  = (*depot)(nil)
	_ sources.Keeper  = (*depot)(nil)
	_ sources.Offerer = (*depot)(nil)
	_ sources.Checker = (*depot)(nil)
	_ sources.Watcher = (*depot)(nil)
)

func (d *depot) Type() registry.SourceType { return registry.SourceHuggingFace }

// hold lets every fetch of path wait for tokens of the channel that it returns; closing it lets everything go.
func (d *depot) hold(path string) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := make(chan struct{})
	d.held[path] = c
	return c
}

func (d *depot) fail(path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails[path] = err
}

func (d *depot) push(path, revision string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revision[path] = revision
}

func (d *depot) count(of map[string]int, path string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return of[path]
}

func (d *depot) folder(path, revision string) string {
	return filepath.Join(d.dir, url.PathEscape(path), revision)
}

func (d *depot) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resolves[ref.Path]++
	d.params[ref.Path] = ref.Params
	if err := ctx.Err(); err != nil {
		return sources.Snapshot{}, err
	}
	if err := d.fails[ref.Path]; err != nil {
		return sources.Snapshot{}, err
	}
	rev := d.revision[ref.Path]
	if rev == "" {
		rev = "r1"
	}
	size := int64(len(sourcetest.TinyGGUF(1)))
	s := sources.Snapshot{Ref: ref, Revision: rev, Root: "https://depot.example/" + ref.Path, Main: "weights.gguf", Bytes: size,
		Files: []registry.File{{Path: "weights.gguf", Size: size}}, Facts: registry.Facts{Format: registry.FormatGGUF, Parameters: 42, Architecture: "llama"}, Cost: sources.Cost{Requests: 2, Bytes: 300}}
	if fi, err := os.Stat(filepath.Join(d.folder(ref.Path, rev), "weights.gguf")); err == nil {
		s.OnDisk = fi.Size()
	}
	return s, nil
}

func (d *depot) Fetch(ctx context.Context, s sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	d.mu.Lock()
	d.fetches[s.Ref.Path]++
	held := d.held[s.Ref.Path]
	d.mu.Unlock()
	dir, weights := d.folder(s.Ref.Path, s.Revision), sourcetest.TinyGGUF(1)
	art := registry.Artifact{Path: filepath.Join(dir, "weights.gguf"), Revision: s.Revision, Files: s.Files, Bytes: s.Bytes, Facts: s.Facts}
	if s.OnDisk == s.Bytes {
		report(registry.Progress{Stage: registry.StageVerify, Done: s.Bytes, Total: s.Bytes, Unit: registry.UnitBytes})
		return art, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return art, err
	}
	partial := filepath.Join(dir, "weights.partial")
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return art, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return art, err
	}
	part := int64(len(weights)+depotParts-1) / depotParts
	for at := fi.Size(); at < int64(len(weights)); {
		report(registry.Progress{Stage: registry.StageFetch, Done: at, Total: s.Bytes, Unit: registry.UnitBytes})
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return art, ctx.Err()
			}
		}
		if d.slow > 0 {
			time.Sleep(d.slow) // a download takes time; nobody waits for it to be over by this
		}
		if ctx.Err() != nil {
			return art, ctx.Err()
		}
		n, err := f.Write(weights[at:min(at+part, int64(len(weights)))])
		if err != nil {
			return art, err
		}
		at += int64(n)
		d.mu.Lock()
		d.parts[s.Ref.Path]++
		d.mu.Unlock()
	}
	report(registry.Progress{Stage: registry.StageVerify, Done: s.Bytes, Total: s.Bytes, Unit: registry.UnitBytes})
	return art, os.Rename(partial, art.Path)
}

func (d *depot) Offers(_ context.Context, ref sources.Ref) ([]registry.Offer, error) {
	if strings.HasPrefix(ref.Path, "many/") {
		return []registry.Offer{{Format: registry.FormatGGUF, Label: "Q4_K_M", Params: map[string]any{"quantization": "Q4_K_M"}, Files: 1, Bytes: 4},
			{Format: registry.FormatGGUF, Label: "Q8_0", Params: map[string]any{"quantization": "Q8_0"}, Files: 1, Bytes: 8}}, nil
	}
	return []registry.Offer{{Format: registry.FormatGGUF, Label: "gguf", Files: 1, Bytes: 4}}, nil
}

func (d *depot) Check(ref sources.Ref) []registry.FieldError {
	if ref.Path == "bad/name" {
		return []registry.FieldError{{Field: "source_path", Msg: "can be no name at the depot"}}
	}
	return nil
}

func (d *depot) Changed(_ context.Context, a registry.Artifact, ref sources.Ref) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.revision[ref.Path]; now != "" && now != a.Revision {
		return "weights.gguf was replaced", nil
	}
	return "", nil
}

func (d *depot) Stored(context.Context) ([]registry.StoredArtifact, error) {
	var out []registry.StoredArtifact
	paths, err := os.ReadDir(d.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, p := range paths {
		path, _ := url.PathUnescape(p.Name())
		revs, err := os.ReadDir(filepath.Join(d.dir, p.Name()))
		if err != nil {
			return nil, err
		}
		for _, r := range revs {
			a := registry.StoredArtifact{Source: d.Type(), Path: path, Revision: r.Name(), Folder: d.folder(path, r.Name())}
			if fi, err := os.Stat(filepath.Join(a.Folder, "weights.gguf")); err == nil {
				a.Files, a.Bytes, a.Own, a.ModifiedAt = 1, fi.Size(), fi.Size(), fi.ModTime()
			} else if fi, err := os.Stat(filepath.Join(a.Folder, "weights.partial")); err == nil {
				a.Revision, a.Partial, a.ModifiedAt = "", fi.Size(), fi.ModTime()
			} else {
				continue
			}
			out = append(out, a)
		}
	}
	return out, err
}

func (d *depot) Delete(_ context.Context, path, revision string) (int64, error) {
	fi, err := os.Stat(filepath.Join(d.folder(path, revision), "weights.gguf"))
	if err != nil {
		return 0, registry.Errorf(registry.CodeNotFound, "There is no %s of %s", revision, path)
	}
	return fi.Size(), os.RemoveAll(d.folder(path, revision))
}

func (d *depot) Clean(_ context.Context, before time.Time) (freed int64, err error) {
	partials, err := filepath.Glob(filepath.Join(d.dir, "*", "*", "weights.partial"))
	if err != nil {
		return 0, err
	}
	for _, p := range partials {
		if fi, err := os.Stat(p); err == nil && !fi.ModTime().After(before) {
			freed += fi.Size()
			if err := os.Remove(p); err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

// withDepot adds a depot to a rig's sources.
func withDepot(d **depot) func(*Options) {
	return func(o *Options) {
		if *d == nil {
			*d = newDepot(filepath.Join(filepath.Dir(o.DataDir), "depot"))
		}
		o.Sources = append(slices.Clone(o.Sources), *d)
	}
}

// fetchable registers a model of the depot.
func (r *rig) fetchable(id, path string, change ...func(*registry.Model)) registry.Record {
	r.t.Helper()
	m := registry.Model{ModelID: id, SourceType: registry.SourceHuggingFace, SourcePath: path, ModelFormat: registry.FormatGGUF, Engine: fake.Name, RequiredRAMMB: 32}
	for _, f := range change {
		f(&m)
	}
	rec, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "ada", Persist: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return rec
}

func (r *rig) mustFetch(id string) registry.Operation {
	r.t.Helper()
	op, err := r.Fetch(r.ctx(), id, FetchOptions{Actor: "ada", Cause: "a test"})
	if err != nil {
		r.t.Fatalf("fetch %s: %v", id, err)
	}
	return op
}

// stageOf returns a stage of an operation as it is now.
func (r *rig) stageOf(op registry.Operation, name registry.StageName) registry.Stage {
	r.t.Helper()
	now, err := r.Operation(r.ctx(), op.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range now.Stages {
		if s.Name == name {
			return s
		}
	}
	r.t.Fatal(fmt.Errorf("no stage %s: %+v", name, now))
	return registry.Stage{}
}
