// Package e2e walks the whole path with the real program, the real engine and real weights: nothing here is faked.
package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewcomer(t *testing.T) {
	s := setUp(t)
	const id = "team-a/smollm2-135m" // with a slash: one path segment

	var list struct{ Models []model }
	s.call("GET", "/api/v1/models", nil, 200, &list)
	if len(list.Models) != 2 || list.Models[0].ModelID != "local-custom-model" || list.Models[1].ModelID != "tiny-bert" || list.Models[1].Status != "not_loaded" {
		t.Fatalf("the guide's two models should have been imported, got %+v", list.Models)
	}

	s.registerSample(id, nil)
	var written struct{ Pending int }
	s.call("GET", "/api/v1/manifest?wait=10s", nil, 200, &written) // the file follows a moment after the answer
	if written.Pending != 0 {
		t.Errorf("%d changes are not in the models file after ten seconds", written.Pending)
	}
	file, err := os.ReadFile(s.yaml)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, []byte(id)) || !bytes.Contains(file, []byte("# If your local model has custom code")) {
		t.Errorf("the models file should have the new model and its old comments:\n%s", file)
	}
	if out := s.cli("plan", id); !strings.Contains(out, "Fits in main memory") || !strings.Contains(out, "gguf header") {
		t.Errorf("plan says %q", out)
	}

	stages := s.watchStages(id)
	if out := s.cli("load", id); !strings.Contains(out, "Ready in main memory") {
		t.Errorf("load says %q", out)
	}
	seen := stages()
	for _, want := range []string{"verify", "engine", "weights", "warmup"} {
		if !strings.Contains(seen, want) {
			t.Errorf("the events should have told stage %s; they told %s", want, seen)
		}
	}
	var m model
	s.call("GET", path(id), nil, 200, &m)
	if m.Status != "ready" || m.Device != "cpu" || m.LoadedEngine != "llamacpp" {
		t.Errorf("after the load: %+v", m)
	}
	var inst struct {
		Config   map[string]any
		Engine   string
		Device   string
		Endpoint struct {
			BaseURL string `json:"base_url"`
		}
		Memory struct {
			Measured  int64 `json:"measured_ram"`
			Predicted int64 `json:"predicted_ram"`
		}
	}
	s.call("POST", path(id)+"/instance", nil, 200, &inst)
	if inst.Engine != "llamacpp" || inst.Config["model_id"] != id || inst.Memory.Measured == 0 || inst.Memory.Predicted == 0 {
		t.Errorf("instance: %+v", inst)
	}
	t.Logf("predicted %d MB, measured %d MB", inst.Memory.Predicted/1e6, inst.Memory.Measured/1e6)

	s.chat(id)
	s.stream(id)

	var got struct {
		Unloaded  bool
		Operation struct {
			Outcome  string
			Released struct {
				Measured int64
				Verified bool
			}
		}
	}
	s.call("POST", path(id)+"/unload?wait=60s", nil, 200, &got)
	if !got.Unloaded || !got.Operation.Released.Verified || got.Operation.Released.Measured == 0 {
		t.Errorf("unload: %+v", got)
	}
	s.call("POST", path(id)+"/unload?wait=60s", nil, 200, &got)
	if got.Unloaded {
		t.Error("a second unload should say false")
	}
	s.noEngines()

	s.chat(id) // not loaded: a request loads it on demand
	s.call("POST", path(id)+"/load?wait=60s", map[string]any{"force_reload": true}, 200, nil)
	s.chat(id)
}

func (s *server) chat(id string) {
	s.t.Helper()
	var got struct {
		Choices []struct{ Message struct{ Content string } }
		Usage   struct {
			Tokens int `json:"completion_tokens"`
		}
	}
	s.call("POST", "/v1/chat/completions", map[string]any{"model": id, "temperature": 0, "max_tokens": 24,
		"messages": []map[string]string{{"role": "user", "content": "What is the capital of France? Answer in one word."}}}, 200, &got)
	if len(got.Choices) != 1 || !strings.Contains(got.Choices[0].Message.Content, "Paris") {
		s.t.Errorf("the model should know that it is Paris, it says %+v", got)
	}
}

func (s *server) stream(id string) {
	s.t.Helper()
	body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":24,"messages":[{"role":"user","content":"Count from one to five."}]}`, id)
	req, err := http.NewRequestWithContext(s.t.Context(), "POST", s.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	chunks, done := 0, false
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		switch line := sc.Text(); {
		case line == "data: [DONE]":
			done = true
		case strings.HasPrefix(line, "data: "):
			chunks++
		}
	}
	if chunks < 5 || !done {
		s.t.Errorf("a stream of %d chunks, done %v", chunks, done)
	}
}

func TestEmbeddings(t *testing.T) {
	s := setUp(t)
	s.registerSample("embedder", map[string]any{"custom_loader_params": map[string]any{"embeddings": true, "pooling": "mean"}})
	var got struct {
		Data []struct{ Embedding []float64 }
	}
	s.call("POST", "/v1/embeddings", map[string]any{"model": "embedder", "input": []string{"a cat", "a dog"}}, 200, &got)
	if len(got.Data) != 2 || len(got.Data[0].Embedding) < 100 {
		t.Errorf("two embeddings should have come back, got %d", len(got.Data))
	}
	// A chat request at an embedding model is a clear 400.
	s.call("POST", "/v1/chat/completions", map[string]any{"model": "embedder", "messages": []any{}}, 400, nil)
}

func TestRefusals(t *testing.T) {
	s := setUp(t)
	var p struct {
		Code    string
		Detail  string
		Needed  int64
		Free    int64
		Device  string
		Holders []any
		Failure struct{ Kind string }
	}
	s.registerSample("too-big", map[string]any{"required_ram_mb": 16_000_000})
	s.call("POST", path("too-big")+"/load?wait=60s", nil, 409, &p)
	if p.Code != "insufficient_resources" || p.Needed != 16_000_000<<20 || p.Device != "cpu" || p.Free == 0 {
		t.Errorf("%+v", p)
	}
	s.registerSample("no-gpu", map[string]any{"device_preference": "cuda"})
	var res struct{ GPUs []any }
	s.call("GET", "/api/v1/resources", nil, 200, &res)
	if len(res.GPUs) == 0 {
		s.call("POST", path("no-gpu")+"/load?wait=60s", nil, 409, &p)
		if p.Code != "insufficient_resources" || !strings.Contains(p.Detail, "no GPU") {
			t.Errorf("%+v", p)
		}
	}
	missing := filepath.Join(t.TempDir(), "nothing.gguf")
	s.registerSample("missing", map[string]any{"source_path": missing})
	s.call("POST", path("missing")+"/load?wait=60s", nil, 502, &p)
	if !strings.Contains(p.Detail, missing) || p.Failure.Kind != "missing_file" {
		t.Errorf("the error should name the file: %+v", p)
	}
	half := filepath.Join(t.TempDir(), "half.gguf")
	b, err := os.ReadFile(weights(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(half, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	s.registerSample("half", map[string]any{"source_path": half})
	s.call("POST", path("half")+"/load?wait=60s", nil, 502, &p)
	if p.Failure.Kind != "corrupt_file" {
		t.Errorf("half a file should be diagnosed as corrupt: %+v", p)
	}
	s.noEngines()
}
