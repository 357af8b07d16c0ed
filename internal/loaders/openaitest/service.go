// Package openaitest is a service that answers the OpenAI API without knowing a model, for tests of the loaders of engines
// and services that speak it.
package openaitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Service answers like an OpenAI-compatible server. Its fields are not changed while it serves.
type Service struct {
	Key    string // asked for under /v1; "" for none
	Models []string
	APIs   []registry.API // nil: chat and completions
	// Fault, if it returns true, has answered in place of the service.
	Fault func(w http.ResponseWriter, r *http.Request) bool

	Asked atomic.Int64 // requests that were answered
}

// ServeHTTP answers one request.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Asked.Add(1)
	if s.Fault != nil && s.Fault(w, r) {
		return
	}
	if r.URL.Path == "/health" {
		return
	}
	if s.Key != "" && r.Header.Get("Authorization") != "Bearer "+s.Key {
		Problem(w, http.StatusUnauthorized, "Incorrect API key provided: "+strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		return
	}
	var in struct {
		Model    string `json:"model"`
		Stream   bool   `json:"stream"`
		Input    any    `json:"input"`
		Messages []any  `json:"messages"`
	}
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			Problem(w, http.StatusBadRequest, "not JSON")
			return
		}
		if in.Model != "" && !slices.Contains(s.Models, in.Model) {
			Problem(w, http.StatusNotFound, "The model "+in.Model+" does not exist.")
			return
		}
	}
	apis := s.APIs
	if apis == nil {
		apis = []registry.API{registry.APIChat, registry.APICompletions}
	}
	serves := func(a registry.API) bool {
		if slices.Contains(apis, a) {
			return true
		}
		Problem(w, http.StatusBadRequest, "The model does not support this API")
		return false
	}
	switch {
	case r.URL.Path == "/v1/models":
		list := make([]map[string]any, len(s.Models))
		for i, m := range s.Models {
			list[i] = map[string]any{"id": m, "object": "model", "max_model_len": 512}
		}
		answer(w, map[string]any{"object": "list", "data": list})
	case r.URL.Path == "/v1/chat/completions" && serves(registry.APIChat):
		if in.Stream {
			w.Header().Set("Content-Type", "text/event-stream")
			for _, word := range []string{"Hello", " there"} {
				_, _ = fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":%q}}]}\n\n", word)
			}
			_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
			return
		}
		answer(w, map[string]any{"choices": []any{map[string]any{"message": map[string]any{"role": "assistant", "content": "Hello"}}}})
	case r.URL.Path == "/v1/completions" && serves(registry.APICompletions):
		answer(w, map[string]any{"choices": []any{map[string]any{"text": " there"}}})
	case r.URL.Path == "/v1/embeddings" && serves(registry.APIEmbeddings):
		n := 1
		if list, ok := in.Input.([]any); ok {
			n = len(list)
		}
		data := make([]any, n)
		for i := range data {
			data[i] = map[string]any{"index": i, "embedding": []float64{0.5, float64(i)}}
		}
		answer(w, map[string]any{"data": data})
	case !slices.Contains([]string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}, r.URL.Path):
		Problem(w, http.StatusNotFound, "there is no "+r.URL.Path)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Problem answers with an error in OpenAI's shape.
func Problem(w http.ResponseWriter, status int, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": msg}})
}
