package huggingface_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func (r *rig) stored(s *huggingface.Source) []registry.StoredArtifact {
	r.t.Helper()
	list, err := s.Stored(within(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// scanned is what the Python client sees.
type scanned struct {
	Warnings  []string
	Revisions map[string]struct {
		Repo  string
		Size  int64
		Files int
		Refs  []string
	}
	Incomplete int64
}

func (r *rig) scan() scanned {
	r.t.Helper()
	var s scanned
	r.run(&s, `c = scan_cache_dir()
print(json.dumps({"Warnings": [str(w) for w in c.warnings], "Incomplete": c.incomplete_size_on_disk, "Revisions": {
  v.commit_hash: {"Repo": x.repo_id, "Size": v.size_on_disk, "Files": len({f.blob_path for f in v.files}), "Refs": sorted(v.refs)}
  for x in c.repos if x.repo_type == "model" for v in x.revisions}}))`, noNetwork)
	return s
}

// same holds what is stored against what Python sees.
func (r *rig) same() {
	r.t.Helper()
	want := r.scan()
	if len(want.Warnings) > 0 {
		r.t.Errorf("Python warns: %q", want.Warnings)
	}
	got := map[string]registry.StoredArtifact{}
	for _, a := range r.stored(r.source) {
		if a.Revision != "" {
			got[a.Revision] = a
		}
	}
	if len(got) != len(want.Revisions) {
		r.t.Errorf("we see %v, Python %v", slices.Sorted(maps.Keys(got)), want.Revisions)
	}
	for commit, w := range want.Revisions {
		if a := got[commit]; a.Path != w.Repo || a.Bytes != w.Size || a.Files != w.Files || !slices.Equal(a.Names, w.Refs) {
			r.t.Errorf("%s: we see %+v, Python %+v", commit, a, w)
		}
	}
}

func TestStoredAndDeleted(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	if got := r.stored(r.source); len(got) != 0 {
		t.Errorf("without a cache there is %+v", got)
	}
	if n, err := r.source.Clean(within(t), time.Now()); n != 0 || err != nil {
		t.Errorf("without a cache %d bytes were cleaned: %v", n, err)
	}
	files := sourcetest.SafetensorsFolder(1)
	first := r.hub.Put(t, "org/tiny", files)
	r.fetch(r.source, safetensors("org/tiny"))
	files["config.json"] = append(files["config.json"], '\n')
	second := r.hub.Put(t, "org/tiny", files)
	r.hub.Tag(t, "org/tiny", "v2", second)
	r.fetch(r.source, safetensors("org/tiny"))
	tagged := safetensors("org/tiny")
	tagged.Revision = "v2"
	r.fetch(r.source, tagged)
	r.hub.Put(t, "org/other", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(9)})
	r.run(nil, `snapshot_download("org/other")`)
	r.same()

	list := r.stored(r.source)
	byCommit := map[string]registry.StoredArtifact{}
	for _, a := range list {
		byCommit[a.Revision] = a
	}
	if a := byCommit[second]; !slices.Equal(a.Names, []string{"main", "v2"}) || a.Own != int64(len(files["config.json"])) || a.UsedAt.IsZero() || a.ModifiedAt.IsZero() {
		t.Errorf("the second commit is %+v", a)
	}
	if a := byCommit[first]; len(a.Names) != 0 || a.Own != int64(len(files["config.json"])-1) {
		t.Errorf("the first commit is %+v", a)
	}
	for _, bad := range [][2]string{{"org/tiny", "0000"}, {"org/nothing", first}, {"../..", "x"}, {"org/tiny", "../../x"}, {"org/tiny", ""}, {"org/tiny", "."}} {
		if n, err := r.source.Delete(within(t), bad[0], bad[1]); n != 0 || registry.CodeOf(err) != registry.CodeNotFound {
			t.Errorf("deleting %q: %d, %v", bad, n, err)
		}
	}
	n, err := r.source.Delete(within(t), "org/tiny", first)
	if err != nil || n != byCommit[first].Own {
		t.Errorf("deleting the first freed %d, want %d: %v", n, byCommit[first].Own, err)
	}
	r.hub.Forget()
	if a := r.fetch(r.source, safetensors("org/tiny")); a.Revision != second || r.hub.Served().Bytes != 0 {
		t.Errorf("after deleting the first the second is not whole: %+v", r.hub.Served())
	}
	n, err = r.source.Delete(within(t), "org/tiny", second)
	if err != nil || n != byCommit[second].Bytes {
		t.Errorf("deleting the last freed %d, want %d: %v", n, byCommit[second].Bytes, err)
	}
	if _, err := os.Stat(filepath.Join(r.cache, "models--org--tiny")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the repository's folder stays: %v", err)
	}
	r.same()
}

// TestDeleteWhatIsBeingWritten holds a lock as another process does that fetches.
func TestDeleteWhatIsBeingWritten(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	commit := r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	a := r.fetch(r.source, gguf("org/tiny"))
	f, err := os.OpenFile(filepath.Join(r.cache, ".locks", "models--org--tiny", a.Files[0].ETag+".lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatalf("our fetch did not give the lock back: %v", err)
	}
	if n, err := r.source.Delete(within(t), "org/tiny", commit); n != 0 || registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("it was deleted: %d, %v", n, err)
	}
	f.Close()
	if n, err := r.source.Delete(within(t), "org/tiny", commit); n != a.Bytes || err != nil {
		t.Errorf("afterwards it is not deleted: %d, %v", n, err)
	}
}

func TestClean(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := bigGGUF(3<<20, 1)
	r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": content})
	r.cancelled(gguf("org/tiny"), 1<<20)
	blobs := filepath.Join(r.cache, "models--org--tiny", "blobs")
	theirs := filepath.Join(blobs, "0123456789012345678901234567890123456789.0a1b2c3d.incomplete")
	if err := os.WriteFile(theirs, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	list := r.stored(r.source)
	i := slices.IndexFunc(list, func(a registry.StoredArtifact) bool { return a.Revision == "" })
	if i < 0 || list[i].Partial != 8192 || list[i].Path != "org/tiny" || len(list) != 2 || list[1-i].Partial < 1<<19 {
		t.Fatalf("the unfinished downloads are not shown: %+v", list)
	}
	if n, err := r.source.Clean(within(t), time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("what is new was removed: %d, %v", n, err)
	}
	past := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(theirs, past, past); err != nil {
		t.Fatal(err)
	}
	if n, err := r.source.Clean(within(t), time.Now().Add(-time.Hour)); n != 8192 || err != nil {
		t.Errorf("what Python left behind two hours ago: %d bytes, %v", n, err)
	}
	if n, err := r.source.Clean(within(t), time.Now().Add(time.Hour)); n < 1<<19 || err != nil {
		t.Errorf("everything unfinished: %d bytes, %v", n, err)
	}
	if left, err := os.ReadDir(filepath.Dir(blobs)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left over: %v, %v", left, err)
	}
	if list := r.stored(r.source); len(list) != 0 {
		t.Errorf("stored: %+v", list)
	}
	if a := r.fetch(r.source, gguf("org/tiny")); a.Bytes != int64(len(content)) {
		t.Errorf("afterwards %d bytes are fetched", a.Bytes)
	}
	if n, err := r.source.Clean(within(t), time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("of what is whole %d bytes were removed: %v", n, err)
	}
}

// TestIncomplete: a fetch that was cancelled leaves a revision that says so, can be deleted, and is taken up by the next.
func TestIncomplete(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := bigGGUF(4<<20, 1)
	commit := r.hub.Put(t, "org/tiny", map[string][]byte{"tiny-Q4_0.gguf": content, "tiny-Q8_0.gguf": sourcetest.TinyGGUF(2)})
	ref := gguf("org/tiny")
	ref.Params = map[string]any{"quantization": "Q4_0"}
	r.cancelled(ref, 1<<20)
	check := func() registry.StoredArtifact {
		t.Helper()
		list := r.stored(r.source)
		if len(list) != 1 {
			t.Fatalf("stored: %+v", list)
		}
		return list[0]
	}
	a := check()
	if a.Revision != commit || !a.Incomplete || a.Partial < 1<<19 || a.Missing+a.Partial < int64(len(content)) || a.Missing >= int64(len(content)) || a.Files != 0 {
		t.Errorf("it is shown as %+v", a)
	}
	r.same()
	n, err := r.source.Delete(within(t), "org/tiny", commit)
	if err != nil || n < a.Partial || len(r.stored(r.source)) != 0 {
		t.Errorf("deleting it freed %d of %d: %v, %+v", n, a.Partial, err, r.stored(r.source))
	}
	if left, err := filepath.Glob(filepath.Join(r.cache, "models--org--tiny")); len(left) > 0 || err != nil {
		t.Errorf("left over: %v %v", left, err)
	}

	// Beside what is whole.
	whole := gguf("org/tiny")
	whole.Params = map[string]any{"quantization": "Q8_0"}
	r.fetch(r.source, whole)
	if a := check(); a.Incomplete || a.Files != 1 {
		t.Errorf("what is whole is %+v", a)
	}
	r.cancelled(ref, 1<<20)
	if a := check(); !a.Incomplete || a.Files != 1 || a.Partial == 0 {
		t.Errorf("it is shown as %+v", a)
	}
	r.fetch(r.source, ref)
	if a := check(); a.Incomplete || a.Missing != 0 || a.Partial != 0 || a.Files != 2 {
		t.Errorf("after the next fetch it is %+v", a)
	}
	if left, err := filepath.Glob(filepath.Join(r.cache, ".locks", "*", "*.json*")); len(left) > 0 || err != nil {
		t.Errorf("notes are left: %v %v", left, err)
	}
}

// TestNothingToResume: a fetch that failed before anything came leaves nothing.
func TestNothingToResume(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": bigGGUF(2<<20, 1)})
	snap := r.resolve(r.source, gguf("org/tiny"))
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 404, Match: "tiny.gguf"})
	if _, err := r.source.Fetch(within(t), snap, func(registry.Progress) {}); err == nil {
		t.Fatal("it was fetched")
	}
	if list := r.stored(r.source); len(list) != 0 {
		t.Errorf("stored: %+v", list)
	}
	r.same()
	if left, err := filepath.Glob(filepath.Join(r.cache, "models--*")); len(left) > 0 || err != nil {
		t.Errorf("left over: %v %v", left, err)
	}
	// What is whole of another fetch stays.
	r.hub.Heal()
	r.hub.Put(t, "org/two", map[string][]byte{"a-Q4_0.gguf": sourcetest.TinyGGUF(1), "a-Q8_0.gguf": sourcetest.TinyGGUF(2)})
	small, large := gguf("org/two"), gguf("org/two")
	small.Params, large.Params = map[string]any{"quantization": "Q4_0"}, map[string]any{"quantization": "Q8_0"}
	r.fetch(r.source, small)
	snap = r.resolve(r.source, large)
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 404, Match: "a-Q8_0.gguf"})
	if _, err := r.source.Fetch(within(t), snap, func(registry.Progress) {}); err == nil {
		t.Fatal("it was fetched")
	}
	if list := r.stored(r.source); len(list) != 1 || list[0].Incomplete || list[0].Files != 1 {
		t.Errorf("stored: %+v", list)
	}
}

// FuzzNote reads notes that anybody may have written.
func FuzzNote(f *testing.F) {
	hash := "0123456789012345678901234567890123456789"
	f.Add([]byte(`{"commit":"` + hash + `","files":[{"path":"a/b.gguf","size":3,"etag":"` + hash + `"}]}`))
	f.Add([]byte(`{"commit":"` + hash + `","files":[{"path":"../b","size":3,"etag":"` + hash + `"}]}`))
	f.Add([]byte(`{"commit":"x"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, name := range huggingface.NotedFiles(raw) {
			if !filepath.IsLocal(name) {
				t.Errorf("a note leads to %q", name)
			}
		}
	})
}
