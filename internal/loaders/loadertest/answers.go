package loadertest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// checkAnswers asks the endpoint for each API that it says it answers, and that it answers nobody without the key.
func checkAnswers(t *testing.T, in loaders.Instance, modelID string) {
	t.Helper()
	ep := in.Endpoint()
	if base := baseOf(t, in); base.Socket() == "" && !strings.HasPrefix(ep.BaseURL, "http://127.0.0.1:") || strings.HasSuffix(ep.BaseURL, "/v1") || len(ep.APIs) == 0 {
		t.Errorf("the endpoint is not one: %+v", ep)
	}
	model := ep.Model
	if model == "" {
		model = modelID
	}
	for _, api := range ep.APIs {
		switch api {
		case registry.APIChat:
			msg := []any{map[string]any{"role": "user", "content": "Say hello."}}
			var got struct {
				Choices []struct {
					Message struct {
						Content string `json:"content"`
					} `json:"message"`
				} `json:"choices"`
			}
			post(t, in, "/v1/chat/completions", map[string]any{"model": model, "messages": msg, "max_tokens": 8}, &got)
			if len(got.Choices) == 0 || got.Choices[0].Message.Content == "" {
				t.Errorf("chat answered nothing: %+v", got)
			}
			if n := stream(t, in, "/v1/chat/completions", map[string]any{"model": model, "messages": msg, "max_tokens": 8, "stream": true}); n < 2 {
				t.Errorf("the stream had %d parts", n)
			}
		case registry.APICompletions:
			var got struct {
				Choices []struct {
					Text string `json:"text"`
				} `json:"choices"`
			}
			post(t, in, "/v1/completions", map[string]any{"model": model, "prompt": "Once upon a time", "max_tokens": 8}, &got)
			if len(got.Choices) == 0 || got.Choices[0].Text == "" {
				t.Errorf("completions answered nothing: %+v", got)
			}
		case registry.APIEmbeddings:
			var got struct {
				Data []struct {
					Embedding []float64 `json:"embedding"`
				} `json:"data"`
			}
			post(t, in, "/v1/embeddings", map[string]any{"model": model, "input": []string{"one", "two"}}, &got)
			if len(got.Data) != 2 || len(got.Data[0].Embedding) == 0 {
				t.Errorf("embeddings answered %d vectors", len(got.Data))
			}
		case registry.APIClassify:
			var got struct {
				Data []struct {
					Label  string             `json:"label"`
					Scores map[string]float64 `json:"scores"`
				} `json:"data"`
			}
			post(t, in, "/v1/classify", map[string]any{"model": model, "input": []string{"one", "two"}}, &got)
			if len(got.Data) != 2 || len(got.Data[0].Scores) == 0 || got.Data[0].Label == "" {
				t.Errorf("classify answered %+v", got)
			}
		case registry.APIFillMask: // how a gap is written is the model's own; the engine's tests know it
		}
	}
	if _, ok := in.(loaders.Authenticator); ok {
		resp := request(t, in, "", "/v1/models", nil)
		again := request(t, in, "", "/v1/chat/completions", []byte(`{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}`))
		if again.StatusCode != http.StatusUnauthorized {
			t.Errorf("a stranger got status %d (and %d for the models)", again.StatusCode, resp.StatusCode)
		}
	}
}

// baseOf is the address of an instance.
func baseOf(t *testing.T, in loaders.Instance) netaddr.Base {
	t.Helper()
	base, err := netaddr.ParseBase(in.Endpoint().BaseURL)
	if err != nil {
		t.Fatalf("%s: %v", in.Endpoint().BaseURL, err)
	}
	return base
}

// Send sends body (GET without one) to an instance at a port or a socket, with its key, and returns the answer as it begins.
func Send(t *testing.T, in loaders.Instance, path string, body []byte) (*http.Response, error) {
	t.Helper()
	client, req := prepare(t, in, keyOf(in), path, body)
	return client.Do(req)
}

// keyOf is the header that the engine asks for; "" if it asks for none.
func keyOf(in loaders.Instance) string {
	if a, ok := in.(loaders.Authenticator); ok {
		return a.Authorization()
	}
	return ""
}

// prepare makes a request to an instance, and the client that reaches it.
func prepare(t *testing.T, in loaders.Instance, key, path string, body []byte) (*http.Client, *http.Request) {
	t.Helper()
	method := http.MethodPost
	if body == nil {
		method = http.MethodGet
	}
	base := baseOf(t, in)
	req, err := http.NewRequestWithContext(t.Context(), method, base.At(path).String(), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", key)
	}
	return &http.Client{Transport: base.Transport(&http.Transport{DisableKeepAlives: true})}, req
}

// request sends body with this key and returns the response with its body read into memory.
func request(t *testing.T, in loaders.Instance, key, path string, body []byte) *http.Response {
	t.Helper()
	client, req := prepare(t, in, key, path, body)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return resp
}

func post(t *testing.T, in loaders.Instance, path string, body, into any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp := request(t, in, keyOf(in), path, b)
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %.300s", path, resp.StatusCode, text)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v in %.300s", path, err, text)
	}
}

// stream returns how many parts an answer by server-sent events had; it must end with [DONE].
func stream(t *testing.T, in loaders.Instance, path string, body any) int {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp := request(t, in, keyOf(in), path, b)
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %.300s", path, resp.StatusCode, text)
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") || !strings.Contains(string(text), "data: [DONE]") {
		t.Errorf("%s does not stream: %.300s", path, text)
	}
	return strings.Count(string(text), "data: {")
}
