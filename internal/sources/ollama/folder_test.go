package ollama_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
)

func license(text string) ollamatest.Layer {
	return ollamatest.Layer{Type: ollamatest.License, Content: []byte(text)}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		t.Fatal(err)
	}
	return err == nil
}

func blob(dir string, content []byte) string {
	return filepath.Join(dir, "blobs", strings.Replace(ollamatest.Digest(content), ":", "-", 1))
}

// TestOffline: what is here is used when its registry is not to be had, by its tag and by its digest, and the facts say so.
func TestOffline(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	gate := newFront(t, reg.Host)
	s := newSource(t, t.TempDir(), insecure(gate.host))
	path := gate.host + "/team/m:1"
	was, a, err := bring(t, s, ref(path))
	if err != nil {
		t.Fatal(err)
	}
	// Resolved again it costs a look at the manifest, and no more.
	again, err := s.Resolve(t.Context(), ref(path))
	if err != nil || again.OnDisk != again.Bytes || again.Cost.Requests != 1 {
		t.Errorf("%d of %d on disk for %+v, %v", again.OnDisk, again.Bytes, again.Cost, err)
	}
	for word, status := range map[string]int{"could not be asked": http.StatusServiceUnavailable, "on this machine only": http.StatusNotFound} {
		gate.answer(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true })
		for _, name := range []string{path, gate.host + "/team/m@" + was.Revision} {
			snap, got, err := bring(t, s, ref(name))
			if err != nil || snap.Revision != was.Revision || snap.OnDisk != snap.Bytes || got.Path != a.Path || !strings.Contains(strings.Join(snap.Facts.Notes, " "), word) {
				t.Errorf("%s, %d: %+v, %v", name, status, snap, err)
			}
		}
	}
	// Half a model is none.
	if err := os.Remove(a.Path); err != nil {
		t.Fatal(err)
	}
	gate.answer(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true })
	if _, err = s.Resolve(t.Context(), ref(path)); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("half a model: %v", err)
	}
}

// TestMovingTag: when a tag stands for another model, the one before keeps its blobs until somebody deletes it.
func TestMovingTag(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	s := newSource(t, t.TempDir(), insecure(reg.Host))
	one, two := tiny(1), tiny(2)
	path := reg.Host + "/team/m:1"
	reg.Push(t, "team/m", "1", []byte(config), one, license("of both"))
	before, _, err := bring(t, s, ref(path))
	if err != nil {
		t.Fatal(err)
	}
	reg.Push(t, "team/m", "1", []byte(config), two, license("of both"))
	after, _, err := bring(t, s, ref(path))
	if err != nil || after.Revision == before.Revision {
		t.Fatalf("%s after %s: %v", after.Revision, before.Revision, err)
	}
	stored, err := s.Stored(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range stored {
		if stored[i].ModifiedAt.IsZero() || stored[i].UsedAt.IsZero() {
			t.Errorf("%s has no times", stored[i].Path)
		}
		stored[i].ModifiedAt, stored[i].UsedAt = time.Time{}, time.Time{}
	}
	weights := int64(len(one.Content))
	shared := int64(len(config) + len("of both"))
	want := []registry.StoredArtifact{
		{Source: registry.SourceOllama, Path: path, Revision: after.Revision, Names: []string{"1"}, Folder: s.Folder(), Files: 3, Bytes: weights + shared, Own: weights},
		{Source: registry.SourceOllama, Path: reg.Host + "/team/m@" + before.Revision, Revision: before.Revision, Folder: s.Folder(), Files: 3, Bytes: weights + shared, Own: weights},
	}
	if d := cmp.Diff(want, stored); d != "" {
		t.Error(d)
	}
	for _, a := range stored {
		if s.Canonical(a.Path) != a.Path {
			t.Errorf("%s is known as %s", a.Path, s.Canonical(a.Path))
		}
	}
	// The old one is still to be had by its digest, from here.
	if snap, _, err := bring(t, s, ref(stored[1].Path)); err != nil || snap.Revision != before.Revision || snap.OnDisk != snap.Bytes {
		t.Errorf("by digest: %+v, %v", snap, err)
	}
	if n, err := s.Delete(t.Context(), stored[1].Path, before.Revision); err != nil || n == 0 {
		t.Errorf("%d bytes freed, %v", n, err)
	}
	if exists(t, blob(s.Folder(), one.Content)) || !exists(t, blob(s.Folder(), two.Content)) || !exists(t, blob(s.Folder(), []byte("of both"))) {
		t.Error("the wrong blobs are left")
	}
	if _, err := s.Delete(t.Context(), stored[1].Path, before.Revision); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := s.Delete(t.Context(), path, before.Revision); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("deleted by another revision: %v", err)
	}
	if _, err := s.Delete(t.Context(), "../..", before.Revision); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("deleted by no name: %v", err)
	}
	if _, err := s.Delete(t.Context(), path, after.Revision); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(s.Folder(), "*", "*")); err != nil || len(left) != 1 || filepath.Base(left[0]) != ".llmm" {
		t.Errorf("there is left %v, %v", left, err)
	}
}

// TestDeleteWhileFetching: what is being fetched is not deleted, nor what it shares with others.
func TestDeleteWhileFetching(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	gate := newFront(t, reg.Host)
	s := newSource(t, t.TempDir(), insecure(gate.host))
	shared := license("of both")
	reg.Push(t, "team/a", "1", []byte(config), tiny(1), shared)
	reg.Push(t, "team/b", "1", []byte(config), tiny(2), shared)
	a, _, err := bring(t, s, ref(gate.host+"/team/a:1"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Resolve(t.Context(), ref(gate.host+"/team/b:1"))
	if err != nil {
		t.Fatal(err)
	}
	began, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	gate.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/team/b/blobs/") {
			once.Do(func() { close(began) })
			<-goOn
		}
		return false
	})
	fetched := make(chan error, 1)
	go func() {
		_, err := s.Fetch(t.Context(), b, func(registry.Progress) {})
		fetched <- err
	}()
	<-began
	other := newSource(t, s.Folder(), insecure(gate.host)) // as another server on the same folder would
	if _, err := other.Delete(t.Context(), b.Ref.Path, b.Revision); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("deleted what is being fetched: %v", err)
	}
	if _, err := other.Delete(t.Context(), a.Ref.Path, a.Revision); err != nil {
		t.Error(err)
	}
	if _, err := other.Clean(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if !exists(t, blob(s.Folder(), shared.Content)) || exists(t, blob(s.Folder(), tiny(1).Content)) {
		t.Error("the blob that both share is gone, or the one that only the deleted one had is not")
	}
	close(goOn)
	if err := <-fetched; err != nil {
		t.Error(err)
	}
	if snap, err := s.Resolve(t.Context(), b.Ref); err != nil || snap.OnDisk != snap.Bytes {
		t.Errorf("%d of %d on disk, %v", snap.OnDisk, snap.Bytes, err)
	}
}

// TestClean: unfinished downloads go when nobody has written to them for long, ours and Ollama's, and nothing else does.
func TestClean(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	s := newSource(t, t.TempDir(), insecure(reg.Host))
	reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	snap, _, err := bring(t, s, ref(reg.Host+"/team/m:1"))
	if err != nil {
		t.Fatal(err)
	}
	old, now := time.Now().Add(-48*time.Hour), time.Now()
	hex := func(c string) string { return "sha256-" + strings.Repeat(c, 64) }
	put := func(name string, at time.Time) string {
		t.Helper()
		path := filepath.Join(s.Folder(), "blobs", name)
		if err := errors.Join(os.WriteFile(path, make([]byte, 5000), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	goes := []string{
		put(hex("a")+"-partial", old), put(hex("a")+"-partial-0", old), put("sha256-12345", old), // Ollama's
		put(".llmm/"+hex("c")+".partial", old), put(".llmm/"+hex("c")+".partial.journal", old), put(".llmm/"+hex("d"), old), put("../.llmm-new-1", old), // ours
	}
	stays := []string{
		put(hex("e")+"-partial", old), put(hex("e")+"-partial-0", now), put(hex("e")+"-partial-1", old),
		put(".llmm/"+hex("f")+".partial", old), put(".llmm/"+hex("f")+".partial.journal", now), put("../notes.txt", old),
	}
	nameless := put(hex("b"), old)
	stored, err := s.Stored(t.Context())
	if err != nil || len(stored) != 2 || stored[0].Path != "" || stored[0].Partial < int64(12*4096) || stored[1].Partial != 0 {
		t.Errorf("stored %+v, %v", stored, err)
	}
	clean := func(want ...string) {
		t.Helper()
		n, err := s.Clean(t.Context(), now.Add(-24*time.Hour))
		if err != nil || (n > 0) != (len(want) > 0) {
			t.Errorf("%d bytes, %v", n, err)
		}
		for _, path := range want {
			if exists(t, path) {
				t.Errorf("%s is left", path)
			}
		}
		for _, path := range stays {
			if !exists(t, path) {
				t.Errorf("%s is gone", path)
			}
		}
	}
	clean(goes...)
	if !exists(t, nameless) {
		t.Error("a blob without a name was removed while Ollama downloads something")
	}
	// A manifest that cannot be read: nobody knows what it names.
	broken := filepath.Join(s.Folder(), "manifests", "h", "n", "m", "t")
	if err := errors.Join(os.MkdirAll(filepath.Dir(broken), 0o755), os.WriteFile(broken, []byte("{"), 0o600), os.Remove(stays[1]), os.Remove(stays[0])); err != nil {
		t.Fatal(err)
	}
	stays = stays[2:]
	stays = append(stays[1:], nameless)
	clean(filepath.Join(s.Folder(), "blobs", hex("e")+"-partial-1"))
	if _, err := s.Delete(t.Context(), snap.Ref.Path, snap.Revision); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), broken) {
		t.Errorf("deleted although a manifest cannot be read: %v", err)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	stays = stays[:len(stays)-1]
	clean(nameless)
	if again, err := s.Resolve(t.Context(), snap.Ref); err != nil || again.OnDisk != again.Bytes {
		t.Errorf("the model: %+v, %v", again, err)
	}
}

// TestAbandonedFetch: what a killed fetch left belongs to its model, is resumed, deleted or cleaned.
func TestAbandonedFetch(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	gate := newFront(t, reg.Host)
	s := newSource(t, t.TempDir(), insecure(gate.host))
	reg.Push(t, "team/m", "1", []byte(config), tiny(1), license("x"))
	snap, err := s.Resolve(t.Context(), ref(gate.host+"/team/m:1"))
	if err != nil {
		t.Fatal(err)
	}
	abandon := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		gate.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, ollamatest.Digest(tiny(1).Content)) {
				cancel()
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
			return false
		})
		if _, err := s.Fetch(ctx, snap, func(registry.Progress) {}); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		cancel()
		gate.answer(nil)
	}
	abandon()
	if _, err := s.Delete(t.Context(), snap.Ref.Path, snap.Revision); err != nil {
		t.Error(err)
	}
	abandon()
	if _, err := s.Clean(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Error(err)
	}
	notes, err := filepath.Glob(filepath.Join(s.Folder(), "blobs", ".llmm", "*.pending"))
	if err != nil || len(notes) != 1 {
		t.Errorf("a fetch of a moment ago was cleaned: %v, %v", notes, err)
	}
	if _, err := s.Clean(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(s.Folder(), "blobs", ".llmm", "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("there is left %v, %v", left, err)
	}
	abandon()
	if _, _, err := bring(t, s, snap.Ref); err != nil {
		t.Error(err)
	}
	if stored, err := s.Stored(t.Context()); err != nil || len(stored) != 1 || stored[0].Partial != 0 || stored[0].Own != snap.Bytes {
		t.Errorf("stored %+v, %v", stored, err)
	}
}

// TestTwoServers: two servers on one folder fetch the same model at once, and a third one that shares a blob with it.
func TestTwoServers(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{Storage: true})
	content := tiny(1)
	reg.Push(t, "team/a", "1", []byte(config), content, license("a"))
	reg.Push(t, "team/b", "1", []byte(config), content, license("b"))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for _, path := range []string{"team/a:1", "team/a:1", "team/b:1", "team/b:1"} {
		s := newSource(t, dir, insecure(reg.Host))
		wg.Go(func() {
			snap, a, err := bring(t, s, ref(reg.Host+"/"+path))
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(a.Path); err != nil || ollamatest.Digest(got) != ollamatest.Digest(content.Content) || a.Bytes != snap.Bytes {
				t.Errorf("%s is not what was pushed: %v", a.Path, err)
			}
		})
	}
	wg.Wait()
	stored, err := newSource(t, dir, nil).Stored(t.Context())
	if err != nil || len(stored) != 2 || stored[0].Own != 1 || stored[1].Own != 1 {
		t.Errorf("stored %+v, %v", stored, err)
	}
}

// TestFolderOfOthers: a folder that this server may not write is said to be that.
func TestFolderOfOthers(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	dir := filepath.Join(t.TempDir(), "models")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file: root, who runs tests in a container, may write anywhere else
		t.Fatal(err)
	}
	s := newSource(t, dir, insecure(reg.Host))
	_, _, err := bring(t, s, ref(reg.Host+"/team/m:1"))
	wantError(t, err, registry.CodeUnavailable, dir)
	if stored, err := s.Stored(t.Context()); err == nil && len(stored) > 0 {
		t.Errorf("stored %v", stored)
	}
}

// TestNames: Ollama takes names that differ only in case for one, and so a model is not kept twice.
func TestNames(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	gate := newFront(t, reg.Host)
	gate.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		r.URL.Path = strings.Replace(r.URL.Path, "/TEAM/M/", "/team/m/", 1) // a registry that does not look at case
		return false
	})
	reg.Push(t, "team/m", "Q4", []byte(config), tiny(1))
	reg.Push(t, "team/m", "q4", []byte(config), tiny(1))
	s := newSource(t, t.TempDir(), insecure(gate.host))
	for _, path := range []string{"/team/m:Q4", "/TEAM/M:q4"} {
		if _, _, err := bring(t, s, ref(gate.host+path)); err != nil {
			t.Fatal(err)
		}
	}
	if stored, err := s.Stored(t.Context()); err != nil || len(stored) != 1 {
		t.Errorf("stored %+v, %v", stored, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]ollama.Options{
		"no folder":          {},
		"a path in a mirror": {Dir: t.TempDir(), Registry: "https://mirror.example/v2"},
		"a login in it":      {Dir: t.TempDir(), Registry: "https://u:p@mirror.example"},
		"another scheme":     {Dir: t.TempDir(), Registry: "ftp://mirror.example"},
		"an address":         {Dir: t.TempDir(), Insecure: []string{"http://mirror.example"}},
		"nothing":            {Dir: t.TempDir(), Private: []string{""}},
	} {
		if _, err := ollama.New(o); registry.CodeOf(err) != registry.CodeInvalid || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFolder(t *testing.T) {
	env := map[string]string{}
	get := func(k string) string { return env[k] }
	if got := ollama.Folder("/data", get); got != "/data/ollama" {
		t.Error(got)
	}
	env["OLLAMA_MODELS"] = ` "/models" `
	if got := ollama.Folder("/data", get); got != "/models" {
		t.Error(got)
	}
}

func TestCheck(t *testing.T) {
	s := newSource(t, t.TempDir(), insecure("plain.example:5000"))
	for path, fields := range map[string]string{
		"llama3.2:3b": "", "http://plain.example:5000/a/b": "", "gpt-oss:20b-cloud": "source_path", "a/b/c/d": "source_path", "http://other.example/a/b": "source_path",
	} {
		got := ""
		for _, e := range s.Check(ref(path)) {
			got += e.Field
		}
		if got != fields {
			t.Errorf("%s: faults in %q, want %q", path, got, fields)
		}
	}
	r := ref("..")
	r.Revision, r.Format, r.Params = "v1", registry.FormatONNX, map[string]any{"password": 3}
	if got := s.Check(r); len(got) != 4 {
		t.Errorf("%v, want every fault", got)
	}
}
