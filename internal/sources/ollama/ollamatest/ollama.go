package ollamatest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Ollama is a running Ollama.
type Ollama struct {
	URL string
	p   *program
}

// StartOllama runs Ollama on a folder of models, with a home of its own, until the test ends or Stop is called.
func StartOllama(t *testing.T, models string) *Ollama {
	t.Helper()
	path := find(t, "LLMM_TEST_OLLAMA", "scripts/ollama-tool", "engines", "ollama", ollamaVersion, "bin", "ollama")
	p, host := start(t, path, []string{"serve"}, []string{
		"HOME=" + t.TempDir(), "OLLAMA_MODELS=" + models, "OLLAMA_HOST=127.0.0.1:0", "OLLAMA_NO_CLOUD=1", "OLLAMA_KEEP_ALIVE=0",
	}, regexp.MustCompile(`Listening on ([0-9.]+:\d+)`))
	return &Ollama{URL: "http://" + host, p: p}
}

// Stop ends it.
func (o *Ollama) Stop(t *testing.T) {
	t.Helper()
	o.p.stop(t)
}

// Log returns what it has written.
func (o *Ollama) Log() string { return o.p.output() }

// Call sends a request to Ollama's API and returns the answer's fields. It fails the test unless the status is 200.
func (o *Ollama) Call(t *testing.T, method, path string, body any) map[string]any {
	t.Helper()
	out, status, err := o.Try(t, method, path, body)
	if err != nil || status != http.StatusOK {
		t.Fatalf("ollama: %s %s answered %d %v, %v\n%s", method, path, status, out, err, o.Log())
	}
	return out
}

// Try is Call for what may fail.
func (o *Ollama) Try(t *testing.T, method, path string, body any) (map[string]any, int, error) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, o.URL+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, resp.StatusCode, err
	}
	var out map[string]any
	if len(raw) > 0 {
		err = json.Unmarshal(raw, &out)
	}
	return out, resp.StatusCode, err
}

// RealModel returns the path of SmolLM2-135M-Instruct as GGUF, which scripts/setup fetches.
func RealModel(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "llmm", "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run scripts/setup (or make test, which does)", path)
	}
	return path
}
