package local_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// fetched resolves and fetches a model as the manager does.
func fetched(t *testing.T, s *local.Source, ref sources.Ref) registry.Artifact {
	t.Helper()
	snap, err := s.Resolve(t.Context(), ref)
	check(t, err)
	a, err := s.Fetch(t.Context(), snap, func(registry.Progress) {})
	check(t, err)
	return a
}

func TestChanged(t *testing.T) {
	const first = "model-00001-of-00002.safetensors"
	year := time.Now().UTC().Format("2006-")
	for name, tt := range map[string]struct {
		format registry.Format
		files  map[string][]byte // nil: a folder of safetensors
		file   string            // of the folder, that source_path names; "" the folder
		change func(t *testing.T, dir string)
		words  []string // none: nothing has changed
	}{
		"nothing": {safetensors, nil, "", func(*testing.T, string) {}, nil},
		"replaced": {safetensors, nil, "", func(t *testing.T, dir string) {
			write(t, dir, map[string][]byte{first: sourcetest.SafetensorsFolder(2)[first]})
		}, []string{first + " was replaced at " + year, " UTC"}},
		"resized": {safetensors, nil, "", func(t *testing.T, dir string) { check(t, os.Truncate(filepath.Join(dir, first), 100)) },
			[]string{first + " changed from 8.", " KiB to 100 B at " + year}},
		"several": {safetensors, nil, "", func(t *testing.T, dir string) {
			write(t, dir, sourcetest.SafetensorsFolder(2))
			write(t, dir, map[string][]byte{"generation_config.json": []byte("{}"), "notes.txt": nil})
			check(t, os.Remove(filepath.Join(dir, "tokenizer.json")))
		}, []string{"5 files were replaced (", "the last at", "tokenizer.json is gone", "2 files were added (generation_config.json, notes.txt)"}},
		"weights of another format are added": {safetensors, nil, "", func(t *testing.T, dir string) {
			write(t, dir, map[string][]byte{"pytorch_model.bin": {1}, "x.gguf": {1}})
		}, nil},
		"weights are added":  {safetensors, nil, "", func(t *testing.T, dir string) { write(t, dir, map[string][]byte{"model.safetensors": {1}}) }, []string{"model.safetensors was added"}},
		"the folder is gone": {safetensors, nil, "", func(t *testing.T, dir string) { check(t, os.RemoveAll(dir)) }, []string{"is gone"}},
		"only read": {safetensors, nil, "", func(t *testing.T, dir string) {
			_, err := os.ReadFile(filepath.Join(dir, first))
			check(t, err)
		}, nil},
		"a second GGUF": {gguf, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(1)}, "", func(t *testing.T, dir string) {
			write(t, dir, map[string][]byte{"b.gguf": sourcetest.TinyGGUF(1), "README.md": nil, "mmproj.gguf": {1}})
		}, []string{"b.gguf was added"}},
		"a GGUF of another quantisation": {gguf, map[string][]byte{"a-Q4_K_M.gguf": sourcetest.TinyGGUF(1), "a-Q8_0.gguf": sourcetest.TinyGGUF(1)}, "", func(t *testing.T, dir string) {
			write(t, dir, map[string][]byte{"a-Q8_0.gguf": sourcetest.TinyGGUF(2), "a-Q6_K.gguf": sourcetest.TinyGGUF(1)})
		}, nil},
		"beside the named file": {gguf, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(1)}, "a.gguf", func(t *testing.T, dir string) { write(t, dir, map[string][]byte{"b.gguf": sourcetest.TinyGGUF(1)}) }, nil},
		"the named file":        {gguf, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(1)}, "a.gguf", func(t *testing.T, dir string) { write(t, dir, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(2)}) }, []string{"a.gguf was replaced"}},
		"a shard is gone": {gguf, sourcetest.SplitGGUF("m", 1), "m-00001-of-00002.gguf", func(t *testing.T, dir string) { check(t, os.Remove(filepath.Join(dir, "m-00002-of-00002.gguf"))) },
			[]string{"m-00002-of-00002.gguf is gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "m")
			files := tt.files
			if files == nil {
				files = sourcetest.SafetensorsFolder(1)
				files["onnx/model.onnx"] = []byte("there from the beginning, and not chosen")
			}
			check(t, os.Mkdir(dir, 0o755))
			write(t, dir, files)
			s := local.New(local.Options{Roots: []string{filepath.Dir(dir)}})
			ref := sources.Ref{Path: filepath.Join(dir, tt.file), Format: tt.format, Params: map[string]any{}}
			if files["a-Q4_K_M.gguf"] != nil {
				ref.Params["quantization"] = "q4_k_m"
			}
			a := fetched(t, s, ref)
			tt.change(t, dir)
			what, err := s.Changed(t.Context(), a, ref)
			if err != nil || (what == "") != (len(tt.words) == 0) {
				t.Errorf("%q, %v", what, err)
			}
			for _, w := range tt.words {
				if !strings.Contains(what, w) {
					t.Errorf("%q does not say %q", what, w)
				}
			}
			// It says the same as the revision, except of a folder or file that cannot be resolved any more, or that would be
			// ambiguous.
			if snap, err := s.Resolve(t.Context(), ref); err == nil && (snap.Revision == a.Revision) != (what == "") && !strings.Contains(what, "was added") {
				t.Errorf("%q, and the revision was %s and is %s", what, a.Revision, snap.Revision)
			}
		})
	}
}

func TestChangedTokenizer(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"m/a.gguf": sourcetest.TinyGGUF(1), "t/tokenizer.json": []byte("{}")})
	s := local.New(local.Options{})
	ref := sources.Ref{Path: filepath.Join(dir, "m"), Format: gguf, Tokenizer: filepath.Join(dir, "t")}
	a := fetched(t, s, ref)
	said := func(want string) {
		t.Helper()
		if what, err := s.Changed(t.Context(), a, ref); err != nil || !strings.Contains(what, want) || want == "" && what != "" {
			t.Errorf("%q, %v; want %q", what, err, want)
		}
	}
	said("")
	write(t, dir, map[string][]byte{"t/tokenizer.json": []byte("{}")})
	said("tokenizer at " + ref.Tokenizer + " was changed")
	check(t, os.RemoveAll(ref.Tokenizer))
	said("tokenizer at " + ref.Tokenizer + " is gone")

	// An artifact of a version that kept no ETags.
	ref.Tokenizer = ""
	a = fetched(t, s, ref)
	a.Files[0].ETag = ""
	said("")
	write(t, dir, map[string][]byte{"m/a.gguf": sourcetest.TinyGGUF(2)})
	said("files were replaced")
}

func TestChangedErrors(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"m/a.gguf": sourcetest.TinyGGUF(1)})
	s := local.New(local.Options{Roots: []string{dir}})
	ref := sources.Ref{Path: filepath.Join(dir, "m"), Format: gguf}
	a := fetched(t, s, ref)
	check(t, s.SetRoots([]string{t.TempDir()}))
	_, err := s.Changed(t.Context(), a, ref)
	refused(t, err, registry.CodeInvalid, none, "outside")
	check(t, s.SetRoots(nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Changed(ctx, a, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled look became %v", err)
	}
}

func TestSetRoots(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	write(t, one, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(1)})
	s := local.New(local.Options{Roots: []string{one}})
	ref := sources.Ref{Path: one, Format: gguf}
	resolves := func(want bool) {
		t.Helper()
		if _, err := s.Resolve(t.Context(), ref); (err == nil) != want {
			t.Errorf("with %q: %v", s.Roots(), err)
		}
	}
	resolves(true)
	err := s.SetRoots([]string{two, "relative"})
	refused(t, err, registry.CodeInvalid, none, `"relative"`, "not an absolute path")
	resolves(true)
	check(t, s.SetRoots([]string{two + "/."}))
	resolves(false)
	if d := cmp.Diff([]string{two}, s.Roots()); d != "" {
		t.Error(d)
	}
	// tokenizer_path is confined as source_path is.
	write(t, two, map[string][]byte{"b.gguf": sourcetest.TinyGGUF(1)})
	_, err = s.Resolve(t.Context(), sources.Ref{Path: two, Format: gguf, Tokenizer: one})
	refused(t, err, registry.CodeInvalid, none, "tokenizer_path", "outside")
	check(t, os.Symlink(one, filepath.Join(two, "tok")))
	_, err = s.Resolve(t.Context(), sources.Ref{Path: two, Format: gguf, Tokenizer: filepath.Join(two, "tok")})
	refused(t, err, registry.CodeInvalid, none, "outside")
	// They may be changed at any time.
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 200 {
			_ = s.SetRoots([]string{[]string{one, two}[i%2]}) // both are absolute
		}
	}()
	for range 200 {
		if _, err := s.Resolve(t.Context(), ref); err != nil && registry.CodeOf(err) != registry.CodeInvalid {
			t.Fatal(err)
		}
	}
	<-done
	check(t, s.SetRoots(nil))
	resolves(true)
}

func TestFingerprint(t *testing.T) {
	dir := t.TempDir()
	files := sourcetest.SafetensorsFolder(1)
	files["sub/notes.txt"] = make([]byte, 3<<20)
	write(t, dir, files)
	s := local.New(local.Options{Roots: []string{dir}})
	ref := sources.Ref{Path: dir, Format: safetensors}
	a := fetched(t, s, ref)
	var last registry.Progress
	got, err := s.Fingerprint(t.Context(), a, ref, func(p registry.Progress) {
		if p.Done < last.Done || p.Done > p.Total {
			t.Errorf("%d of %d after %d", p.Done, p.Total, last.Done)
		}
		last = p
	})
	check(t, err)
	if last.Done != a.Bytes || last.Total != a.Bytes || len(got.Files) != len(files) || got.Revision != a.Revision {
		t.Errorf("ended with %+v", last)
	}
	for _, f := range got.Files {
		if sum := sha256.Sum256(files[f.Path]); f.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: %s", f.Path, f.SHA256)
		}
	}
	if a.Files[0].SHA256 != "" {
		t.Error("what was given was changed")
	}
	// One file that is named itself; then it is replaced.
	one := sources.Ref{Path: filepath.Join(dir, "one.gguf"), Format: gguf}
	write(t, dir, map[string][]byte{"one.gguf": sourcetest.TinyGGUF(1)})
	b := fetched(t, s, one)
	if got, err = s.Fingerprint(t.Context(), b, one, nil); err != nil || len(got.Files[0].SHA256) != 64 {
		t.Errorf("%+v, %v", got.Files, err)
	}
	write(t, dir, map[string][]byte{"one.gguf": sourcetest.TinyGGUF(2)})
	_, err = s.Fingerprint(t.Context(), b, one, nil)
	refused(t, err, registry.CodeUnavailable, none, "one.gguf", "look again")
	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Fingerprint(ctx, a, ref, func(p registry.Progress) {
		if p.Done > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled one: %v", err)
	}
}

// BenchmarkChanged asks of a folder of 30 shards, as the manager does every few seconds of every model.
func BenchmarkChanged(b *testing.B) {
	dir := b.TempDir()
	for i := range 30 {
		name := filepath.Join(dir, fmt.Sprintf("model-%05d-of-00030.safetensors", i+1))
		if err := os.WriteFile(name, sourcetest.Safetensors(sourcetest.STTensor{Name: fmt.Sprint(i), DType: "U8", Shape: []int64{1}, Data: []byte{1}}), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(sourcetest.LlamaConfig), 0o600); err != nil {
		b.Fatal(err)
	}
	s := local.New(local.Options{Roots: []string{dir}})
	ref := sources.Ref{Path: dir, Format: safetensors}
	snap, err := s.Resolve(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	a := registry.Artifact{Path: dir, Revision: snap.Revision, Files: snap.Files, At: time.Now()}
	for b.Loop() {
		if what, err := s.Changed(b.Context(), a, ref); err != nil || what != "" {
			b.Fatal(what, err)
		}
	}
}
