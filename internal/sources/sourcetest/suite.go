// Package sourcetest is the conformance suite that every source passes, and a writer of small model files for tests.
package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// Harness lets the suite put models where a source will look for them.
type Harness struct {
	// Source is the one under test.
	Source sources.Source

	// Put makes exactly these files the content of the model called name, in place of what was there, and returns a
	// reference to it. Names of files may contain slashes. It is called again with other files to change the model.
	Put func(t *testing.T, name string, format registry.Format, files map[string][]byte) sources.Ref

	// Nowhere returns a reference under which there is nothing.
	Nowhere func(t *testing.T) sources.Ref

	// Kinds are the kinds of models that the source can have, of gguf, split (a GGUF in several files) and safetensors. Nil
	// is all of them.
	Kinds []string
	// Path returns what the source calls a file that was put, for one that names files by their content. Nil is the name.
	Path func(name string, content []byte) string
	// Added is how many files of its own Put adds to every model.
	Added int
	// Served returns how many bytes of file contents the source was given so far, for a source that downloads. Nil
	// for one that does not.
	Served func() int64
}

// patience bounds a test that hangs; no test waits for it otherwise.
const patience = time.Minute

// Run runs the suite. Each case uses models of its own.
func Run(t *testing.T, h Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"type":                 testType,
		"resolve":              testResolve,
		"facts":                testFacts,
		"revision":             testRevision,
		"fetch":                testFetch,
		"fetch again":          testFetchAgain,
		"cancel":               testCancel,
		"nothing there":        testNothing,
		"missing shard":        testMissingShard,
		"corrupt":              testCorrupt,
		"other format":         testOtherFormat,
		"gone after resolving": testGone,
		"concurrent":           testConcurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, h) })
	}
}

// models are whole models of each kind that the source can have, by a name for the test.
func (h Harness) models(fill byte) map[string]model {
	all := map[string]model{
		"gguf":        {registry.FormatGGUF, map[string][]byte{"tiny.gguf": TinyGGUF(fill)}},
		"split":       {registry.FormatGGUF, SplitGGUF("tiny", fill)},
		"safetensors": {registry.FormatSafetensors, SafetensorsFolder(fill)},
	}
	maps.DeleteFunc(all, func(kind string, _ model) bool { return h.Kinds != nil && !slices.Contains(h.Kinds, kind) })
	return all
}

type model struct {
	format registry.Format
	files  map[string][]byte
}

// first returns the model of the first kind that the source can have.
func (h Harness) first(kinds ...string) model {
	all := h.models(1)
	for _, kind := range append(kinds, slices.Sorted(maps.Keys(all))...) {
		if m, ok := all[kind]; ok {
			return m
		}
	}
	panic("sourcetest: a harness without kinds of models")
}

// path returns what the source calls a file.
func (h Harness) path(name string, content []byte) string {
	if h.Path == nil {
		return name
	}
	return h.Path(name, content)
}

// contents are the files that were put, by what the source calls them.
func (h Harness) contents(files map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for name, content := range files {
		out[h.path(name, content)] = content
	}
	return out
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func resolve(t *testing.T, h Harness, ref sources.Ref) sources.Snapshot {
	t.Helper()
	s, err := h.Source.Resolve(within(t), ref)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	return s
}

func testType(t *testing.T, h Harness) {
	if got := h.Source.Type(); !slices.Contains(registry.SourceTypes, got) {
		t.Errorf("Type is %q, which is none of %v", got, registry.SourceTypes)
	}
}

func testResolve(t *testing.T, h Harness) {
	for name, m := range h.models(1) {
		t.Run(name, func(t *testing.T) {
			ref := h.Put(t, "resolve-"+name, m.format, m.files)
			one, two := resolve(t, h, ref), resolve(t, h, ref)
			if d := cmp.Diff(one, two); d != "" {
				t.Errorf("two looks at the same model differ:\n%s", d)
			}
			if one.Revision == "" {
				t.Error("no revision")
			}
			if d := cmp.Diff(ref, one.Ref); d != "" {
				t.Errorf("the snapshot is of another reference:\n%s", d)
			}
			var sum int64
			files, added := h.contents(m.files), 0
			for _, f := range one.Files {
				sum += f.Size
				want, ok := files[f.Path]
				if !ok && added < h.Added {
					added++
				} else if !ok || int64(len(want)) != f.Size {
					t.Errorf("%s has %d bytes, want %d (there: %v)", f.Path, f.Size, len(want), ok)
				}
			}
			if len(one.Files) != len(m.files)+h.Added || sum != one.Bytes {
				t.Errorf("%d files of %d bytes, want %d of %d", len(one.Files), sum, len(m.files)+h.Added, one.Bytes)
			}
			main := ""
			if m.format == registry.FormatGGUF {
				first := slices.Min(slices.Collect(maps.Keys(m.files)))
				main = h.path(first, m.files[first])
			}
			if one.Main != main {
				t.Errorf("Main = %q, want %q", one.Main, main)
			}
		})
	}
	if h.Served == nil {
		return
	}
	t.Run("downloads no weights", func(t *testing.T) {
		const size = 64 << 20
		big := GGUF(LlamaKeys(), []GGUFTensor{{Name: "w", Type: 0, Shape: []uint64{size / 4}, Data: make([]byte, size)}})
		ref := h.Put(t, "resolve-big", registry.FormatGGUF, map[string][]byte{"big.gguf": big})
		before := h.Served()
		resolve(t, h, ref)
		if n := h.Served() - before; n > size/4 {
			t.Errorf("Resolve read %d bytes of a file of %d", n, len(big))
		}
	})
}

func testFacts(t *testing.T, h Harness) {
	for name, m := range h.models(1) {
		f := resolve(t, h, h.Put(t, "facts-"+name, m.format, m.files)).Facts
		if f.Format != m.format || f.Parameters != 4160 || f.WeightBytes == 0 || f.Layers != 2 || f.KVHeads != 2 ||
			f.KeyLength != 16 || f.ContextLength != 2048 || !f.Tokenizer || !f.ChatTemplate || f.Architecture == "" {
			t.Errorf("%s: facts are missing: %+v", name, f)
		}
	}
}

func testRevision(t *testing.T, h Harness) {
	for name, m := range h.models(1) {
		first := resolve(t, h, h.Put(t, "revision-"+name, m.format, m.files))
		// The same names and sizes, other bytes.
		second := resolve(t, h, h.Put(t, "revision-"+name, m.format, h.models(2)[name].files))
		if first.Revision == second.Revision {
			t.Errorf("%s: the revision %s stayed the same when the content changed", name, first.Revision)
		}
	}
}

// recorder checks progress as it comes.
type recorder struct {
	t    *testing.T
	mu   sync.Mutex
	last registry.Progress
	n    int
}

func (r *recorder) report(p registry.Progress) {
	if !r.mu.TryLock() {
		r.t.Error("report is called by two goroutines at once")
		return
	}
	defer r.mu.Unlock()
	stages := []registry.StageName{registry.StageFetch, registry.StageVerify}
	at, was := slices.Index(stages, p.Stage), slices.Index(stages, r.last.Stage)
	switch {
	case at < 0:
		r.t.Errorf("a source reported the stage %q", p.Stage)
	case r.n == 0 && at != 0:
		r.t.Errorf("the first stage is %q", p.Stage)
	case at < was:
		r.t.Errorf("the stage %q came after %q", p.Stage, r.last.Stage)
	case at == was && p.Done < r.last.Done:
		r.t.Errorf("%s went back from %d to %d", p.Stage, r.last.Done, p.Done)
	case p.Total > 0 && p.Done > p.Total:
		r.t.Errorf("%s has done %d of %d", p.Stage, p.Done, p.Total)
	case p.Unit == "":
		r.t.Errorf("%s counts in no unit", p.Stage)
	}
	if at > was && was >= 0 && r.last.Done != r.last.Total {
		r.t.Errorf("%s ended with %d of %d", r.last.Stage, r.last.Done, r.last.Total)
	}
	r.last = p
	r.n++
}

// finished checks that the last stage was passed to its end.
func (r *recorder) finished() {
	r.t.Helper()
	if r.last.Stage != registry.StageVerify || r.last.Done != r.last.Total {
		r.t.Errorf("the last progress is %+v", r.last)
	}
}

// whole checks that an artifact is what was put.
func whole(t *testing.T, h Harness, a registry.Artifact, s sources.Snapshot, put map[string][]byte) {
	t.Helper()
	files, added := h.contents(put), 0
	if a.Revision != s.Revision || a.Bytes != s.Bytes || a.At.IsZero() {
		t.Errorf("the artifact %s of %d bytes at %v is not of the snapshot %s of %d", a.Revision, a.Bytes, a.At, s.Revision, s.Bytes)
	}
	if d := cmp.Diff(s.Facts, a.Facts); d != "" {
		t.Errorf("the facts changed:\n%s", d)
	}
	dir := a.Path
	if s.Main != "" {
		dir = strings.TrimSuffix(a.Path, "/"+s.Main)
		if dir == a.Path {
			t.Fatalf("the artifact's path %s does not end in %s", a.Path, s.Main)
		}
	}
	if len(a.Files) != len(s.Files) {
		t.Errorf("the artifact has %d files, the snapshot %d", len(a.Files), len(s.Files))
	}
	for _, f := range a.Files {
		got, err := os.ReadFile(filepath.Join(dir, f.Path))
		if _, ok := files[f.Path]; !ok && err == nil && added < h.Added {
			added++
		} else if err != nil || !bytes.Equal(got, files[f.Path]) {
			t.Errorf("%s is not on disk as it was put: %v", f.Path, err)
		}
	}
}

func testFetch(t *testing.T, h Harness) {
	for name, m := range h.models(1) {
		t.Run(name, func(t *testing.T) {
			s := resolve(t, h, h.Put(t, "fetch-"+name, m.format, m.files))
			r := &recorder{t: t}
			a, err := h.Source.Fetch(within(t), s, r.report)
			if err != nil {
				t.Fatal(err)
			}
			r.finished()
			whole(t, h, a, s, m.files)
		})
	}
}

func testFetchAgain(t *testing.T, h Harness) {
	m := h.first("split")
	s := resolve(t, h, h.Put(t, "again", m.format, m.files))
	var got []registry.Artifact
	for range 2 {
		r := &recorder{t: t}
		a, err := h.Source.Fetch(within(t), s, r.report)
		if err != nil {
			t.Fatal(err)
		}
		r.finished()
		got = append(got, a)
	}
	if d := cmp.Diff(got[0], got[1], cmpopts.IgnoreFields(registry.Artifact{}, "At")); d != "" {
		t.Errorf("the second fetch gave something else:\n%s", d)
	}
}

// testCancel cancels before, and at each report; afterwards a fetch works as if nothing had been.
func testCancel(t *testing.T, h Harness) {
	m := h.first("safetensors")
	ref := h.Put(t, "cancel", m.format, m.files)
	s := resolve(t, h, ref)
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Source.Resolve(dead, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve with a cancelled context: %v", err)
	}
	if a, err := h.Source.Fetch(dead, s, func(registry.Progress) {}); !errors.Is(err, context.Canceled) || a.Path != "" {
		t.Errorf("Fetch with a cancelled context: %+v, %v", a, err)
	}
	for at := 1; ; at++ {
		ctx, cancel := context.WithCancel(within(t))
		r := &recorder{t: t}
		ended := false
		a, err := h.Source.Fetch(ctx, s, func(p registry.Progress) {
			r.report(p)
			if r.n == at {
				cancel()
				ended = p.Stage == registry.StageVerify && p.Done == p.Total
			}
		})
		cancel()
		if err == nil {
			// There is nothing left to stop only once everything was verified.
			if r.n >= at && !ended {
				t.Errorf("a fetch cancelled at report %d of %d succeeded", at, r.n)
			}
			whole(t, h, a, s, m.files)
			break
		}
		if !errors.Is(err, context.Canceled) || a.Path != "" {
			t.Fatalf("cancelled at report %d: %+v, %v", at, a, err)
		}
	}
	a, err := h.Source.Fetch(within(t), s, func(registry.Progress) {})
	if err != nil {
		t.Fatalf("after a cancelled fetch: %v", err)
	}
	whole(t, h, a, s, m.files)
}

// fails resolves and fetches and returns the error of whichever fails first.
func fails(t *testing.T, h Harness, ref sources.Ref) *registry.Error {
	t.Helper()
	s, err := h.Source.Resolve(within(t), ref)
	if err == nil {
		var a registry.Artifact
		a, err = h.Source.Fetch(within(t), s, func(registry.Progress) {})
		if err == nil {
			t.Fatalf("there is an artifact: %+v", a)
		}
		if a.Path != "" {
			t.Errorf("there is an artifact and an error: %+v, %v", a, err)
		}
	}
	var e *registry.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T %v is no registry.Error", err, err)
	}
	if strings.TrimSpace(e.Error()) == "" {
		t.Error("the error says nothing")
	}
	return e
}

func wantFailure(t *testing.T, e *registry.Error, kind registry.FailureKind, file string) {
	t.Helper()
	if e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != kind {
		t.Fatalf("got %s %+v, want %s: %v", e.Code, e.Failure, kind, e)
	}
	if !strings.Contains(e.Error(), file) || !strings.Contains(e.Failure.Msg, file) {
		t.Errorf("the error does not name %s: %v", file, e)
	}
	if e.Failure.Hint == "" {
		t.Errorf("the failure does not say what to do next: %v", e)
	}
}

func testNothing(t *testing.T, h Harness) {
	if e := fails(t, h, h.Nowhere(t)); e.Code != registry.CodeNotFound {
		t.Errorf("got %s, want not_found: %v", e.Code, e)
	}
}

func testMissingShard(t *testing.T, h Harness) {
	for name, shard := range map[string]string{"split": "tiny-00002-of-00002.gguf", "safetensors": "model-00002-of-00002.safetensors"} {
		m, ok := h.models(1)[name]
		if !ok {
			continue
		}
		delete(m.files, shard)
		wantFailure(t, fails(t, h, h.Put(t, "missing-"+name, m.format, m.files)), registry.FailureMissingFile, shard)
	}
}

func testCorrupt(t *testing.T, h Harness) {
	for name, file := range map[string]string{
		"gguf": "tiny.gguf", "split": "tiny-00002-of-00002.gguf", "safetensors": "model-00001-of-00002.safetensors",
	} {
		m, ok := h.models(1)[name]
		if !ok {
			continue
		}
		m.files[file] = m.files[file][:len(m.files[file])-10]
		wantFailure(t, fails(t, h, h.Put(t, "truncated-"+name, m.format, m.files)), registry.FailureCorruptFile, h.path(file, m.files[file]))
		m.files[file] = nil
		wantFailure(t, fails(t, h, h.Put(t, "empty-"+name, m.format, m.files)), registry.FailureCorruptFile, h.path(file, nil))
	}
}

func testOtherFormat(t *testing.T, h Harness) {
	for _, format := range []registry.Format{registry.FormatSafetensors, registry.FormatTransformersPT, registry.FormatONNX} {
		e := fails(t, h, h.Put(t, "other-"+string(format), format, map[string][]byte{"tiny.gguf": TinyGGUF(1)}))
		if e.Code != registry.CodeInvalid || !strings.Contains(e.Error(), "gguf") || !strings.Contains(e.Error(), string(format)) {
			t.Errorf("got %s: %v; want invalid, naming gguf and %s", e.Code, e, format)
		}
	}
}

// testGone takes a shard away between Resolve and Fetch.
func testGone(t *testing.T, h Harness) {
	m := h.first("split")
	s := resolve(t, h, h.Put(t, "gone", m.format, m.files))
	delete(m.files, slices.Max(slices.Collect(maps.Keys(m.files)))) // the second shard, or the only file
	h.Put(t, "gone", m.format, m.files)
	a, err := h.Source.Fetch(within(t), s, func(registry.Progress) {})
	if code := registry.CodeOf(err); a.Path != "" || code != registry.CodeLoadingFailed && code != registry.CodeNotFound {
		t.Errorf("got %+v, %v", a, err)
	}
}

func testConcurrent(t *testing.T, h Harness) {
	m := h.first("safetensors")
	s := resolve(t, h, h.Put(t, "concurrent", m.format, m.files))
	const n = 8
	got := make([]registry.Artifact, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := &recorder{t: t}
			a, err := h.Source.Fetch(within(t), s, r.report)
			if err != nil {
				t.Error(err)
				return
			}
			r.finished()
			got[i] = a
		})
	}
	wg.Wait()
	for _, a := range got {
		if d := cmp.Diff(got[0], a, cmpopts.IgnoreFields(registry.Artifact{}, "At")); d != "" {
			t.Errorf("two fetches at once gave different artifacts:\n%s", d)
		}
	}
	whole(t, h, got[0], s, m.files)
}
