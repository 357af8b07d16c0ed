package sourcetest

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// Depot is a source whose downloads go as a test lets them. What it keeps is on disk, unfinished downloads included, so
// that it outlives a killed server.
type Depot struct {
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

// DepotParts is how many parts a download of a Depot has.
const DepotParts = 8

// NewDepot returns a depot that keeps what it fetches in dir. Every path that it is asked for exists, at revision r1; paths
// that begin with many/ offer two quantisations, and bad/name is refused by its rules.
func NewDepot(dir string) *Depot {
	return &Depot{dir: dir, revision: map[string]string{}, fails: map[string]error{}, held: map[string]chan struct{}{},
		fetches: map[string]int{}, parts: map[string]int{}, resolves: map[string]int{}, params: map[string]map[string]any{}}
}

var (
	_ sources.Source     = (*Depot)(nil)
	_ sources.Keeper     = (*Depot)(nil)
	_ sources.Offerer    = (*Depot)(nil)
	_ sources.Checker    = (*Depot)(nil)
	_ sources.Normalizer = (*Depot)(nil)
	_ sources.Watcher    = (*Depot)(nil)
)

// Type returns SourceHuggingFace: a depot stands for a Hub.
func (d *Depot) Type() registry.SourceType { return registry.SourceHuggingFace }

// Hold lets every fetch of path wait for tokens of the channel that it returns; closing it lets everything go.
func (d *Depot) Hold(path string) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := make(chan struct{})
	d.held[path] = c
	return c
}

// Fail lets every look at path end with err; nil lets them succeed again.
func (d *Depot) Fail(path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails[path] = err
}

// Push makes revision the newest of path.
func (d *Depot) Push(path, revision string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revision[path] = revision
}

// Fetches is how often a fetch of path was begun.
func (d *Depot) Fetches(path string) int { return d.count(d.fetches, path) }

// Parts is how many parts of path were downloaded; the whole has DepotParts.
func (d *Depot) Parts(path string) int { return d.count(d.parts, path) }

func (d *Depot) count(of map[string]int, path string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return of[path]
}

// Params are the parameters that the last look at path came with.
func (d *Depot) Params(path string) map[string]any {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.params[path]
}

// Slow makes every part of a download take so long.
func (d *Depot) Slow(each time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = each
}

// Folder is where a revision lies.
func (d *Depot) Folder(path, revision string) string {
	return filepath.Join(d.dir, url.PathEscape(path), revision)
}

// Resolve implements sources.Source.
func (d *Depot) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resolves[ref.Path]++
	d.params[ref.Path] = ref.Params
	if err := ctx.Err(); err != nil {
		return sources.Snapshot{}, err
	}
	if err := d.fails[ref.Path]; err != nil {
		s := sources.Snapshot{}
		if f := registry.AsError(err).Failure; f != nil && f.Kind == registry.FailureGated {
			// What the Hub tells everybody.
			s.Ref, s.Revision, s.Files, s.Bytes = ref, "r1", []registry.File{{Path: "weights.gguf", Size: 1 << 20}}, 1<<20
			s.Facts = registry.Facts{Parameters: 42, Gated: true, Licence: "llama3.1"}
		}
		return s, err
	}
	rev := d.revision[ref.Path]
	if rev == "" {
		rev = "r1"
	}
	size := int64(len(TinyGGUF(1)))
	s := sources.Snapshot{Ref: ref, Revision: rev, Root: "https://depot.example/" + ref.Path, Main: "weights.gguf", Bytes: size,
		Files: []registry.File{{Path: "weights.gguf", Size: size}}, Facts: registry.Facts{Format: registry.FormatGGUF, Parameters: 42, Architecture: "llama"}, Cost: sources.Cost{Requests: 2, Bytes: 300}}
	if fi, err := os.Stat(filepath.Join(d.Folder(ref.Path, rev), "weights.gguf")); err == nil {
		s.OnDisk = fi.Size()
	}
	if strings.Contains(ref.Tokenizer, "/") && !filepath.IsAbs(ref.Tokenizer) {
		s.Tokenizer = &registry.Companion{Path: ref.Tokenizer, Revision: "t1", Bytes: int64(len(depotTokenizer)), Files: []registry.File{{Path: "weights.gguf", Size: int64(len(depotTokenizer)), SHA256: depotTokenizerSum}}}
	}
	return s, nil
}

// A depot's tokenizer is a file of this content, and is called as its weights are so that Stored finds it.
const (
	depotTokenizer    = "{}"
	depotTokenizerSum = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
)

// tokenizer brings the tokenizer of a snapshot.
func (d *Depot) tokenizer(s sources.Snapshot) (*registry.Companion, error) {
	if s.Tokenizer == nil {
		return nil, nil //nolint:nilnil // none is wanted
	}
	c := *s.Tokenizer
	c.Folder = d.Folder(c.Path, c.Revision)
	if err := os.MkdirAll(c.Folder, 0o700); err != nil {
		return nil, err
	}
	return &c, os.WriteFile(filepath.Join(c.Folder, "weights.gguf"), []byte(depotTokenizer), 0o600)
}

// Fetch implements sources.Source. What has arrived is kept when it ends early.
func (d *Depot) Fetch(ctx context.Context, s sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	d.mu.Lock()
	d.fetches[s.Ref.Path]++
	held, slow := d.held[s.Ref.Path], d.slow
	d.mu.Unlock()
	dir, weights := d.Folder(s.Ref.Path, s.Revision), TinyGGUF(1)
	art := registry.Artifact{Path: filepath.Join(dir, "weights.gguf"), Revision: s.Revision, Files: s.Files, Bytes: s.Bytes, Facts: s.Facts}
	tokenizer, err := d.tokenizer(s)
	if err != nil {
		return art, err
	}
	art.Tokenizer = tokenizer
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
	part := int64(len(weights)+DepotParts-1) / DepotParts
	for at := fi.Size(); at < int64(len(weights)); {
		report(registry.Progress{Stage: registry.StageFetch, Done: at, Total: s.Bytes, Unit: registry.UnitBytes})
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return art, ctx.Err()
			}
		}
		if slow > 0 {
			time.Sleep(slow) // a download takes time; nobody waits for it to be over by this
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

// Offers implements sources.Offerer.
func (d *Depot) Offers(_ context.Context, ref sources.Ref) ([]registry.Offer, error) {
	if strings.HasPrefix(ref.Path, "many/") {
		return []registry.Offer{{Format: registry.FormatGGUF, Label: "Q4_K_M", Params: map[string]any{"quantization": "Q4_K_M"}, Files: 1, Bytes: 4},
			{Format: registry.FormatGGUF, Label: "Q8_0", Params: map[string]any{"quantization": "Q8_0"}, Files: 1, Bytes: 8}}, nil
	}
	return []registry.Offer{{Format: registry.FormatGGUF, Label: "gguf", Files: 1, Bytes: 4}}, nil
}

// Check implements sources.Checker.
func (d *Depot) Check(ref sources.Ref) []registry.FieldError {
	if ref.Path == "bad/name" {
		return []registry.FieldError{{Field: "source_path", Msg: "can be no name at the depot"}}
	}
	return nil
}

// Normalize implements sources.Normalizer: https://depot.example/PATH@REVISION is PATH at REVISION.
func (d *Depot) Normalize(ref sources.Ref) sources.Ref {
	if rest, ok := strings.CutPrefix(ref.Path, "https://depot.example/"); ok {
		path, revision, pinned := strings.Cut(rest, "@")
		if ref.Path = path; pinned {
			ref.Revision = revision
		}
	}
	return ref
}

// Changed implements sources.Watcher: what was pushed since has changed.
func (d *Depot) Changed(_ context.Context, a registry.Artifact, ref sources.Ref) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.revision[ref.Path]; now != "" && now != a.Revision {
		return "weights.gguf was replaced", nil
	}
	return "", nil
}

// Stored implements sources.Keeper.
func (d *Depot) Stored(context.Context) ([]registry.StoredArtifact, error) {
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
			a := registry.StoredArtifact{Source: d.Type(), Path: path, Revision: r.Name(), Folder: d.Folder(path, r.Name())}
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

// Delete implements sources.Keeper.
func (d *Depot) Delete(_ context.Context, path, revision string) (int64, error) {
	fi, err := os.Stat(filepath.Join(d.Folder(path, revision), "weights.gguf"))
	if err != nil {
		return 0, registry.Errorf(registry.CodeNotFound, "There is no %s of %s", revision, path)
	}
	return fi.Size(), os.RemoveAll(d.Folder(path, revision))
}

// Clean implements sources.Keeper.
func (d *Depot) Clean(_ context.Context, before time.Time) (freed int64, err error) {
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
