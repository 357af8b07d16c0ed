package ollama_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
)

// TestLlamaCppLoadsALibrarysModel: what was fetched of an Ollama library, a blob without an ending, is loaded by
// llama.cpp and answers.
func TestLlamaCppLoadsALibrarysModel(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	l := llamacpp.New(llamacpp.Options{Path: os.Getenv("LLMM_TEST_LLAMA_SERVER"), SearchDirs: []string{filepath.Join(cache, "llmm", "engines")}, TagPrefix: "library-" + filepath.Base(t.TempDir())})
	if _, err := l.Check(t.Context()); err != nil {
		if testing.Short() || os.Getenv("LLMM_TEST_NO_ENGINE") == "1" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	pushReal(t, reg, "team/smol", "135m")
	gate := newFront(t, reg.Host)
	_, a, err := bring(t, newSource(t, t.TempDir(), insecure(gate.host)), ref(gate.host+"/team/smol:135m"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	spec := loaders.LoadSpec{InstanceID: "library", Device: registry.DeviceCPU, Artifact: a, Context: 512, Dir: dir, LogPath: filepath.Join(dir, "engine.log"), Started: func(registry.Handle) {},
		Model: registry.Model{ModelID: "smol", SourceType: registry.SourceOllama, SourcePath: "team/smol:135m", ModelFormat: registry.FormatGGUF, CustomLoaderParams: map[string]any{"threads": int64(1)}}.WithDefaults()}
	in, err := l.Load(t.Context(), spec, func(registry.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := in.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	body := []byte(`{"max_tokens": 8, "temperature": 0, "prompt": "The capital of France is"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.Endpoint().BaseURL+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if auth, ok := in.(loaders.Authenticator); ok {
		req.Header.Set("Authorization", auth.Authorization())
	}
	client := &http.Client{}
	if carrier, ok := in.(loaders.Transporter); ok && carrier.Transport() != nil {
		client.Transport = carrier.Transport()
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err != nil || cerr != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), "Paris") {
		t.Errorf("it answers %d %s, %v", resp.StatusCode, text, err)
	}
}
