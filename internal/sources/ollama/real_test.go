package ollama_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
)

const (
	chatTemplate = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
	realConfig   = `{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"134.52M","file_type":"Q4_1","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`
)

// pushReal puts SmolLM2-135M-Instruct into a registry, as ollama push would.
func pushReal(t *testing.T, reg *ollamatest.Registry, repository, tag string) {
	t.Helper()
	weights, err := os.ReadFile(ollamatest.RealModel(t))
	if err != nil {
		t.Fatal(err)
	}
	reg.Push(t, repository, tag, []byte(realConfig), ollamatest.Layer{Type: ollamatest.Model, Content: weights},
		ollamatest.Layer{Type: ollamatest.Template, Content: []byte(chatTemplate)}, license("Apache License\nVersion 2.0"),
		ollamatest.Layer{Type: ollamatest.Params, Content: []byte(`{"stop":["<|im_start|>","<|im_end|>"],"temperature":0}`)})
}

// TestUsesWhatOllamaPulled: the blobs that the real Ollama pulled are used as they are, without a byte from the network.
func TestUsesWhatOllamaPulled(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{Storage: true}) // Ollama's client needs one that points elsewhere
	pushReal(t, reg, "team/smol", "135m")
	gate := newFront(t, reg.Host)
	dir := t.TempDir()
	name := gate.host + "/team/smol:135m"
	o := ollamatest.StartOllama(t, dir)
	if got := o.Call(t, http.MethodPost, "/api/pull", map[string]any{"model": name, "insecure": true, "stream": false}); got["status"] != "success" {
		t.Fatalf("ollama pull: %v\n%s", got, o.Log())
	}
	o.Stop(t)

	s := newSource(t, dir, insecure(gate.host))
	stored, err := s.Stored(t.Context())
	if err != nil || len(stored) != 1 || stored[0].Path != name || stored[0].Own != stored[0].Bytes || stored[0].Partial != 0 {
		t.Fatalf("stored %+v, %v", stored, err)
	}
	weights := filepath.Join(dir, "blobs")
	before, err := os.ReadDir(weights)
	if err != nil {
		t.Fatal(err)
	}
	served := reg.Served()
	snap, a, err := bring(t, s, ref(name))
	if err != nil {
		t.Fatal(err)
	}
	if snap.OnDisk != snap.Bytes || reg.Served() != served || snap.Revision != stored[0].Revision || snap.Facts.Parameters != 134515008 {
		t.Errorf("%d of %d bytes were on disk, %d served, parameters %d", snap.OnDisk, snap.Bytes, reg.Served()-served, snap.Facts.Parameters)
	}
	for _, e := range before {
		was, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if now, err := os.Stat(filepath.Join(weights, e.Name())); err != nil || !os.SameFile(was, now) || !now.ModTime().Equal(was.ModTime()) {
			t.Errorf("%s was touched: %v", e.Name(), err)
		}
	}
	if info, err := os.Stat(a.Path); err != nil || info.Size() != 98362432 {
		t.Errorf("the weights: %v", err)
	}
}

// TestOllamaUsesWhatIsFetched: the real Ollama lists, shows and runs what was fetched here, without a network; and when
// it starts it takes away nothing of a fetch that is not finished.
func TestOllamaUsesWhatIsFetched(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	pushReal(t, reg, "team/smol", "135m")
	gate := newFront(t, reg.Host)
	dir := t.TempDir()
	s := newSource(t, dir, insecure(gate.host))
	name := gate.host + "/team/smol:135m"
	snap, a, err := bring(t, s, ref(name))
	if err != nil {
		t.Fatal(err)
	}
	// From afar little was read, and the numbers are the library's; here they are exact.
	t.Logf("looked up with %d requests and %d bytes", snap.Cost.Requests, snap.Cost.Bytes)
	if snap.Cost.Requests > 8 || snap.Cost.Bytes > 400<<10 || snap.Facts.Parameters != 134520000 || snap.Facts.Quantization != "Q4_1" || snap.Facts.Layers != 30 {
		t.Errorf("looked up for %+v: %+v", snap.Cost, snap.Facts)
	}
	if a.Facts.Parameters != 134515008 || !a.Facts.ChatTemplate || a.Facts.Licence == "" {
		t.Errorf("fetched: %+v", a.Facts)
	}
	gate.Close()

	// What a fetch has so far, of days ago: Ollama removes what it does not know when it is older than an hour.
	old := time.Now().Add(-72 * time.Hour)
	hex := strings.Repeat("ab", 32)
	ours := []string{"sha256-" + hex + ".partial", "sha256-" + hex + ".partial.journal", "sha256-" + strings.Repeat("cd", 32), hex + ".pending"}
	for _, f := range ours {
		path := filepath.Join(dir, "blobs", ".llmm", f)
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(filepath.Join(dir, "blobs", ".llmm"), old, old); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(dir, "blobs", "sha256-"+hex+"-partial-0")
	if err := os.WriteFile(theirs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(theirs, old, old); err != nil {
		t.Fatal(err)
	}

	o := ollamatest.StartOllama(t, dir)
	list, ok := o.Call(t, http.MethodGet, "/api/tags", nil)["models"].([]any)
	if !ok || len(list) != 1 {
		t.Fatalf("ollama lists %v", list)
	}
	entry, ok := list[0].(map[string]any)
	if !ok || entry["name"] != name || "sha256:"+fmt.Sprint(entry["digest"]) != snap.Revision {
		t.Errorf("ollama lists %v; want %s of %s", entry, name, snap.Revision)
	}
	show := o.Call(t, http.MethodPost, "/api/show", map[string]any{"model": name})
	if show["template"] != chatTemplate || !strings.Contains(fmt.Sprint(show["license"]), "Apache") || !strings.Contains(fmt.Sprint(show["parameters"]), "im_end") {
		t.Errorf("ollama shows %v", show)
	}
	said := o.Call(t, http.MethodPost, "/api/generate", map[string]any{
		"model": name, "prompt": "What is the capital of France? Answer with one word.", "stream": false, "options": map[string]any{"num_predict": 12, "seed": 1},
	})
	if text := fmt.Sprint(said["response"]); !strings.Contains(text, "Paris") {
		t.Errorf("ollama answers %q", text)
	}
	for _, f := range ours {
		if !exists(t, filepath.Join(dir, "blobs", ".llmm", f)) {
			t.Errorf("ollama removed %s", f)
		}
	}
	if exists(t, theirs) {
		t.Error("ollama did not clean up at its start, so this test shows nothing")
	}
	// What Ollama deletes is gone for this source as well.
	if _, status, err := o.Try(t, http.MethodDelete, "/api/delete", map[string]any{"model": name}); err != nil || status != http.StatusOK {
		t.Fatalf("ollama rm: %d, %v", status, err)
	}
	if stored, err := s.Stored(t.Context()); err != nil || slices.ContainsFunc(stored, func(x registry.StoredArtifact) bool { return x.Revision == snap.Revision }) || exists(t, a.Path) {
		t.Errorf("stored %+v, %v", stored, err)
	}
}

// TestPushedByOllama: a model that the real Ollama made out of one that was fetched here, and pushed, is understood here,
// and goes on to another Ollama.
func TestPushedByOllama(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	pushReal(t, reg, "team/smol", "135m")
	made := t.TempDir()
	from := reg.Host + "/team/smol:135m"
	if _, _, err := bring(t, newSource(t, made, insecure(reg.Host)), ref(from)); err != nil {
		t.Fatal(err)
	}
	maker := ollamatest.StartOllama(t, made)
	name := reg.Host + "/team/made:v1"
	maker.Call(t, http.MethodPost, "/api/create", map[string]any{
		"model": name, "from": from, "system": "You are brief.", "parameters": map[string]any{"num_ctx": 1024}, "stream": false,
	})
	maker.Call(t, http.MethodPost, "/api/push", map[string]any{"model": name, "insecure": true, "stream": false})
	maker.Stop(t)

	dir := t.TempDir()
	_, a, err := bring(t, newSource(t, dir, insecure(reg.Host)), ref(name))
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(a.Facts.Notes, " "); a.Facts.Parameters != 134515008 || !strings.Contains(notes, "num_ctx 1024") || !strings.Contains(notes, "system prompt") {
		t.Errorf("facts %+v", a.Facts)
	}
	taker := ollamatest.StartOllama(t, dir)
	if show := taker.Call(t, http.MethodPost, "/api/show", map[string]any{"model": name}); show["system"] != "You are brief." {
		t.Errorf("ollama shows %v", show)
	}
}
