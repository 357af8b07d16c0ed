package huggingface_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// outside lists everything next to the cache, to see that nothing came there.
func (r *rig) outside() []string {
	r.t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Dir(r.cache), func(p string, d fs.DirEntry, err error) error {
		if p == r.cache {
			return fs.SkipDir
		}
		out = append(out, p)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func TestTraversal(t *testing.T) {
	for _, name := range []string{
		"../x.json", "../../../../x.json", "/etc/x.json", "a/../../x.json", `..\x.json`, `a\..\..\x.json`, "a//b.json", "./a.json", "C:/x.json", "a\x00b.json",
		"a/./b.json", "..", "new\nline.json", strings.Repeat("n", 300) + ".json",
	} {
		r := newRig(t, hubtest.Options{})
		files := sourcetest.SafetensorsFolder(1)
		files[name] = []byte("{}")
		r.hub.Put(t, "org/evil", files)
		before := r.outside()
		e := r.wrong(r.source, safetensors("org/evil"))
		says(t, e, registry.CodeInvalid, "leads out of the model's folder")
		// Fetch does not believe a snapshot either.
		good := r.hub.Put(t, "org/good", sourcetest.SafetensorsFolder(1))
		snap := r.resolve(r.source, safetensors("org/good"))
		snap.Files[0].Path = name
		if a, err := r.source.Fetch(within(t), snap, func(registry.Progress) {}); err == nil {
			t.Errorf("%q was fetched to %s of %s", name, a.Path, good)
		}
		if after := r.outside(); !slices.Equal(before, after) {
			t.Errorf("%q: outside of the cache there is now %v", name, after)
		}
	}
}

// TestLinks plants symbolic links in the cache, as somebody could who shares it, and looks whether anything is written or
// read through them.
func TestLinks(t *testing.T) {
	content := sourcetest.TinyGGUF(1)
	for name, plant := range map[string]struct {
		link  func(folder, commit, etag string) string // where the link is planted
		heals bool                                     // it is replaced; else refused
	}{
		"repository": {func(folder, _, _ string) string { return folder }, false},
		"blobs":      {func(folder, _, _ string) string { return filepath.Join(folder, "blobs") }, false},
		"snapshots":  {func(folder, _, _ string) string { return filepath.Join(folder, "snapshots") }, false},
		"commit":     {func(folder, commit, _ string) string { return filepath.Join(folder, "snapshots", commit) }, false},
		"locks":      {func(folder, _, _ string) string { return filepath.Join(filepath.Dir(folder), ".locks") }, false},
		"file":       {func(folder, commit, _ string) string { return filepath.Join(folder, "snapshots", commit, "tiny.gguf") }, true},
		"content":    {func(folder, _, etag string) string { return filepath.Join(folder, "blobs", etag) }, true},
		"partial":    {func(folder, _, etag string) string { return filepath.Join(folder, "blobs", etag+".llmm-partial") }, true},
		"partial's own": {func(folder, _, etag string) string {
			return filepath.Join(folder, "blobs", etag+".llmm-partial.journal")
		}, true},
		"lock of a file": {func(folder, _, etag string) string {
			return filepath.Join(filepath.Dir(folder), ".locks", filepath.Base(folder), etag+".lock")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hubtest.Options{})
			commit := r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": content})
			snap := r.resolve(r.source, gguf("org/tiny"))
			target := filepath.Join(filepath.Dir(r.cache), "target")
			link := plant.link(filepath.Join(r.cache, "models--org--tiny"), commit, snap.Files[0].ETag)
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
				t.Fatal(err)
			}
			aim := target
			if filepath.Ext(link) == "" && filepath.Base(link) != snap.Files[0].ETag {
				if err := os.Mkdir(target, 0o755); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(target, content, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(aim, link); err != nil {
				t.Fatal(err)
			}
			before := r.outside()
			a, err := r.source.Fetch(within(t), snap, func(registry.Progress) {})
			if plant.heals {
				if err != nil {
					t.Fatalf("it is not healed: %v", err)
				}
				real, err := filepath.EvalSymlinks(a.Path)
				if err != nil || !strings.HasPrefix(real, r.cache) {
					t.Errorf("the artifact is really %s: %v", real, err)
				}
			} else if err == nil {
				t.Errorf("it was followed: %+v", a)
			}
			if got, err := os.ReadFile(target); err == nil && !bytes.Equal(got, content) {
				t.Error("the target was written to")
			}
			if after := r.outside(); !slices.Equal(before, after) {
				t.Errorf("outside of the cache there is now %v", after)
			}
		})
	}
}

// TestTwoOfUs lets two sources, as two servers would, fetch the same and overlapping models into one cache.
func TestTwoOfUs(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := sourcetest.SafetensorsFolder(1)
	files["tiny.gguf"] = bigGGUF(1<<20, 1)
	files["copy.json"] = files["config.json"] // two names, one content
	r.hub.Put(t, "org/two", files)
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultSlow, Host: hubtest.OnCDN, Rate: 4 << 20})
	var wg sync.WaitGroup
	for i := range 6 {
		ref := safetensors("org/two")
		if i%2 == 1 {
			ref = gguf("org/two")
		}
		s := r.open()
		wg.Go(func() {
			snap, err := s.Resolve(within(t), ref)
			if err != nil {
				t.Error(err)
				return
			}
			a, err := s.Fetch(within(t), snap, func(registry.Progress) {})
			if err != nil {
				t.Error(err)
				return
			}
			folder := strings.TrimSuffix(a.Path, "/"+snap.Main)
			for _, f := range a.Files {
				if got, err := os.ReadFile(filepath.Join(folder, f.Path)); err != nil || !bytes.Equal(got, files[f.Path]) {
					t.Errorf("%s is not what was put: %v", f.Path, err)
				}
			}
		})
	}
	wg.Wait()
	left, err := filepath.Glob(filepath.Join(r.cache, "models--org--two", "blobs", "*.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

// TestReadOnly checks that a whole model is used from a cache that may not be written to.
func TestReadOnly(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	a := r.fetch(r.source, safetensors("org/tiny"))
	before := map[string]fs.FileInfo{}
	walk := func(seen func(p string, i fs.FileInfo)) {
		t.Helper()
		if err := filepath.WalkDir(r.cache, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			i, err := d.Info()
			seen(p, i)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	walk(func(p string, i fs.FileInfo) { before[p] = i })
	r.hub.Forget()
	if b := r.fetch(r.open(), safetensors("org/tiny")); b.Path != a.Path {
		t.Errorf("the second is at %s", b.Path)
	}
	if s := r.hub.Served(); s.Bytes != 0 || s.Requests != 1 {
		t.Errorf("the second took %d requests and %d bytes of files", s.Requests, s.Bytes)
	}
	walk(func(p string, i fs.FileInfo) {
		if was := before[p]; was == nil || !was.ModTime().Equal(i.ModTime()) || was.Size() != i.Size() {
			t.Errorf("%s was written to", p)
		}
	})
}

// TestNewCommit fetches a changed model: what did not change is not fetched again, and the old revision stays until it
// is deleted.
func TestNewCommit(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := sourcetest.SafetensorsFolder(1)
	first := r.hub.Put(t, "org/tiny", files)
	old := r.fetch(r.source, safetensors("org/tiny"))
	files["tokenizer.json"] = []byte(`{"version": "2.0"}`)
	second := r.hub.Put(t, "org/tiny", files)
	snap := r.resolve(r.source, safetensors("org/tiny"))
	if snap.Bytes-snap.OnDisk != int64(len(files["tokenizer.json"])) {
		t.Errorf("%d of %d bytes are known to be there", snap.OnDisk, snap.Bytes)
	}
	r.hub.Forget()
	if _, err := r.source.Fetch(within(t), snap, func(registry.Progress) {}); err != nil {
		t.Fatal(err)
	}
	for name, n := range r.hub.Served().Files {
		if n > 0 && !strings.HasSuffix(name, "/tokenizer.json") {
			t.Errorf("%d bytes of %s were fetched again", n, name)
		}
	}
	pinned := safetensors("org/tiny")
	pinned.Revision = first
	if a := r.fetch(r.source, pinned); a.Path != old.Path || a.Revision != first || first == second {
		t.Errorf("the first commit is at %s", a.Path)
	}
	ref, err := os.ReadFile(filepath.Join(r.cache, "models--org--tiny", "refs", "main"))
	if err != nil || string(ref) != second {
		t.Errorf("refs/main is %q: %v", ref, err)
	}
}

// TestWrongContentInTheCache puts a file of another size where a content should be: it is fetched again.
func TestWrongContentInTheCache(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := sourcetest.TinyGGUF(1)
	r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": content})
	a := r.fetch(r.source, gguf("org/tiny"))
	real, err := filepath.EvalSymlinks(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(real, content[:100], 0o644); err != nil {
		t.Fatal(err)
	}
	a = r.fetch(r.source, gguf("org/tiny"))
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("it is %d bytes: %v", len(got), err)
	}
}

// TestLyingHash serves one bit of a file wrong, always: nothing of it ends in the cache.
func TestLyingHash(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := bigGGUF(300_000, 1)
	r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": content})
	snap := r.resolve(r.source, gguf("org/tiny"))
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultFlip, Bit: 8 * 250_000, Match: "tiny.gguf"})
	_, err := r.source.Fetch(within(t), snap, func(registry.Progress) {})
	e := registry.AsError(err)
	if e == nil || e.Failure == nil || e.Failure.Kind != registry.FailureCorruptFile || !strings.Contains(e.Error(), "org/tiny") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.cache, "models--org--tiny", "blobs", snap.Files[0].ETag)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the wrong content is in the cache: %v", err)
	}
	r.hub.Heal()
	if got, err := os.ReadFile(r.fetch(r.source, gguf("org/tiny")).Path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("afterwards it is not fetched right: %v", err)
	}
}

// FuzzListing reads listings as anybody may write them: whatever is accepted stays in its folder.
func FuzzListing(f *testing.F) {
	f.Add("config.json", "d7edf6bd2a681fb0175f7735299831ee1b22b812", int64(5))
	f.Add("../x", "d7edf6bd2a681fb0175f7735299831ee1b22b812", int64(5))
	f.Add("a/b\x00", "", int64(-1))
	f.Add("a/../../b", strings.Repeat("0", 64), int64(1)<<62)
	f.Fuzz(func(t *testing.T, name, hash string, size int64) {
		if !huggingface.Accepts(name, hash, size) {
			return
		}
		if !filepath.IsLocal(name) || strings.ContainsAny(name, "\\\x00") {
			t.Errorf("the name %q is accepted", name)
		}
		if _, err := hex.DecodeString(hash); err != nil || size < 0 {
			t.Errorf("the hash %q or the size %d is accepted", hash, size)
		}
	})
}

// FuzzTree reads trees/<commit>.json: what is accepted comes back the same when it is written again.
func FuzzTree(f *testing.F) {
	f.Add([]byte(`{"format_version": 1, "files": {"a": {"size": 1, "blob_id": "d7edf6bd2a681fb0175f7735299831ee1b22b812"}}}`))
	f.Add([]byte(`{"format_version": 2, "files": {}}`))
	f.Add([]byte(`{"format_version": 1, "files": {"../a": {"size": 1, "blob_id": "d7edf6bd2a681fb0175f7735299831ee1b22b812"}}}`))
	f.Add([]byte(`{"format_version": 1, "files": {"a": {"size": -1, "blob_id": 5}}}`))
	f.Add([]byte(`{"format_version": 1, "files": {"a": {"size": 1, "blob_id": "x", "lfs_sha256": "` + strings.Repeat("a", 64) + `", "lfs_size": 1}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		again, ok := huggingface.DecodeTree(raw)
		if !ok {
			return
		}
		third, ok := huggingface.DecodeTree(again)
		if !ok || !bytes.Equal(again, third) {
			t.Errorf("written again it is %q, then %q (%v)", again, third, ok)
		}
	})
}

// FuzzAddress takes apart what anybody may type as a source_path: what is accepted is a plain id.
func FuzzAddress(f *testing.F) {
	s, err := huggingface.New(huggingface.Options{Cache: f.TempDir(), Endpoint: "https://hub.example/mirror", Getenv: func(string) string { return "" }})
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{"org/name", "hf://models/org/name@main", "https://hub.example/mirror/org/name/blob/main/a.gguf", "https://huggingface.co/gpt2/tree/main", "../..", "a/b/c"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		ref := gguf(p)
		ref.Revision = "main"
		if len(s.Check(ref)) > 0 {
			return
		}
		id := s.Canonical(p)
		if strings.Count(id, "/") > 1 || strings.ContainsAny(id, "\\\x00 @:?#%") || strings.Contains(id, "..") || strings.Contains(id, "--") || id == "" {
			t.Errorf("%q is accepted as %q", p, id)
		}
		if s.Canonical(id) != id {
			t.Errorf("%q is %q, which is %q", p, id, s.Canonical(id))
		}
	})
}
