package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

type server struct {
	o       options
	key     string
	advance chan struct{}
	ready   atomic.Bool
	answers atomic.Int64
	memory  [][]byte
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("GET /v1/models", s.guard(s.models))
	mux.HandleFunc("POST /v1/chat/completions", s.guard(s.answer(s.chat)))
	mux.HandleFunc("POST /v1/completions", s.guard(s.answer(s.completions)))
	mux.HandleFunc("POST /v1/embeddings", s.guard(s.answer(s.embeddings)))
	mux.HandleFunc("POST /control/advance", s.guard(s.control))
	mux.HandleFunc("POST /control/crash", s.guard(func(http.ResponseWriter, *http.Request) { abortFromHandler("on request") }))
	return mux
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	switch {
	case s.o.fault == faultRefuseHealth:
		fail(w, http.StatusInternalServerError, "not feeling well")
	case !s.ready.Load():
		fail(w, http.StatusServiceUnavailable, "Loading model")
	default:
		reply(w, map[string]string{"status": "ok"})
	}
}

// control lets the load take n steps (1 by default).
func (s *server) control(w http.ResponseWriter, r *http.Request) {
	n := 1
	if v, err := strconv.Atoi(r.URL.Query().Get("n")); err == nil {
		n = v
	}
	for range n {
		select {
		case s.advance <- struct{}{}:
		default:
		}
	}
	reply(w, map[string]int{"advanced": n})
}

func (s *server) guard(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.key != "" && r.Header.Get("Authorization") != "Bearer "+s.key {
			fail(w, http.StatusUnauthorized, "Invalid API Key")
			return
		}
		next(w, r)
	}
}

// answer is around every request for the model: the faults that happen on requests are here.
func (s *server) answer(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.ready.Load() {
			fail(w, http.StatusServiceUnavailable, "Loading model")
			return
		}
		n := s.answers.Add(1)
		if s.o.fault == faultCrashRequest && n > 1 {
			abortFromHandler("on a request")
		}
		next(w, r)
		if s.o.fault == faultCrashReady && n == 1 {
			// The answer has a length and is out as a whole once it is flushed.
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			abortFromHandler("after the first answer")
		}
	}
}

// abortFromHandler aborts the whole process; net/http would catch a handler's panic.
func abortFromHandler(when string) {
	go abort(when)
	select {}
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) {
	reply(w, map[string]any{"object": "list", "data": []any{map[string]any{"id": s.o.alias, "object": "model", "owned_by": "fakeengine"}}})
}

// words is what the fake says: the prompt's words, at most max.
func words(prompt string, limit int) []string {
	w := append([]string{"You", "said:"}, strings.Fields(prompt)...)
	if limit > 0 && len(w) > limit {
		w = w[:limit]
	}
	return w
}

type request struct {
	Messages []struct {
		Content any `json:"content"`
	} `json:"messages"`
	Prompt    any  `json:"prompt"`
	Input     any  `json:"input"`
	MaxTokens int  `json:"max_tokens"`
	Stream    bool `json:"stream"`
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r)
	if !ok {
		return
	}
	last := ""
	if n := len(q.Messages); n > 0 {
		last = fmt.Sprint(q.Messages[n-1].Content)
	}
	s.say(w, r, words(last, q.MaxTokens), q.Stream, "chat.completion", func(text string, delta bool) map[string]any {
		if delta {
			return map[string]any{"index": 0, "delta": map[string]string{"role": "assistant", "content": text}, "finish_reason": nil}
		}
		return map[string]any{"index": 0, "message": map[string]string{"role": "assistant", "content": text}, "finish_reason": "stop"}
	})
}

func (s *server) completions(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r)
	if !ok {
		return
	}
	s.say(w, r, words(fmt.Sprint(q.Prompt), q.MaxTokens), q.Stream, "text_completion", func(text string, delta bool) map[string]any {
		if delta {
			return map[string]any{"index": 0, "text": text, "finish_reason": nil}
		}
		return map[string]any{"index": 0, "text": text, "finish_reason": "stop"}
	})
}

func (s *server) read(w http.ResponseWriter, r *http.Request) (request, bool) {
	var q request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<20)).Decode(&q); err != nil {
		fail(w, http.StatusBadRequest, "the body is not JSON: "+err.Error())
		return q, false
	}
	if s.o.emb && r.URL.Path != "/v1/embeddings" {
		fail(w, http.StatusNotImplemented, "This server only embeds")
		return q, false
	}
	return q, true
}

func (s *server) say(w http.ResponseWriter, r *http.Request, ws []string, stream bool, object string, choice func(string, bool) map[string]any) {
	frame := func(c map[string]any, object string) map[string]any {
		return map[string]any{"id": "fake-1", "object": object, "created": time.Now().Unix(), "model": s.o.alias, "choices": []any{c}}
	}
	pause := func() bool {
		select {
		case <-r.Context().Done():
			return false
		case <-time.After(time.Duration(s.o.answerMS) * time.Millisecond):
			return true
		}
	}
	if stream {
		w.Header().Set("Content-Type", "text/event-stream")
		for i, word := range ws {
			if !pause() {
				return
			}
			if i > 0 {
				word = " " + word
			}
			b, err := json.Marshal(frame(choice(word, true), object+".chunk"))
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(w, "data: %s\n\n", b)
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
		}
		_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
		return
	}
	for range ws {
		if !pause() {
			return
		}
	}
	out := frame(choice(strings.Join(ws, " "), false), object)
	out["usage"] = map[string]int{"prompt_tokens": len(ws), "completion_tokens": len(ws), "total_tokens": 2 * len(ws)}
	reply(w, out)
}

// embeddings answers with a vector of 8 numbers that depends on the text alone.
func (s *server) embeddings(w http.ResponseWriter, r *http.Request) {
	q, ok := s.read(w, r)
	if !ok {
		return
	}
	if !s.o.emb {
		fail(w, http.StatusNotImplemented, "This server does not embed; start it with --embeddings")
		return
	}
	in, many := q.Input.([]any)
	if !many {
		in = []any{q.Input}
	}
	var rows []any
	for i, t := range in {
		sum := sha256.Sum256([]byte(fmt.Sprint(t)))
		v := make([]float64, 8)
		for j := range v {
			v[j] = float64(int(sum[j])-128) / 128
		}
		rows = append(rows, map[string]any{"object": "embedding", "index": i, "embedding": v})
	}
	reply(w, map[string]any{"object": "list", "model": s.o.alias, "data": rows, "usage": map[string]int{"prompt_tokens": len(in), "total_tokens": len(in)}})
}

func reply(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}

func fail(w http.ResponseWriter, code int, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": msg}})
}
