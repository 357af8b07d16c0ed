package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/gateway"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestListModels(t *testing.T) {
	w := newWorld(t)
	a := w.do("GET", "/v1/models", "")
	want := `{"object":"list","data":[{"id":"meta-llama/Llama-2-7b-chat-hf","object":"model","created":1700000001,"owned_by":"default"},` +
		`{"id":"tiny","object":"model","created":1700000000,"owned_by":"default"}]}` + "\n"
	if a.status != 200 || a.body != want {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.do("GET", "/v1/models", "", "X-As", "admin"); !strings.Contains(a.body, "secret") {
		t.Errorf("an admin sees %s", a.body)
	}
	w.do("GET", "/v1/models", "", "X-As", "nobody").problem(t, 401, "unauthenticated")
	w.do("GET", "/v1/models", "", "X-As", "lonely").problem(t, 403, "forbidden", "team")
}

func TestShowModel(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/v1/models/meta-llama/Llama-2-7b-chat-hf", "/v1/models/meta-llama%2FLlama-2-7b-chat-hf"} {
		if a := w.do("GET", path, ""); a.status != 200 || !strings.Contains(a.body, `"id":"meta-llama/Llama-2-7b-chat-hf"`) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	missing := w.do("GET", "/v1/models/nope", "")
	missing.problem(t, 404, "model_not_found", `"nope"`)
	hidden := w.do("GET", "/v1/models/secret", "")
	hidden.problem(t, 404, "model_not_found")
	if strings.ReplaceAll(hidden.body, "secret", "nope") != missing.body {
		t.Errorf("a hidden model is told from a missing one: %s", hidden.body)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	w := newWorld(t)
	w.do("GET", "/v1/nothing", "").problem(t, 404, "unknown_url")
	a := w.do("GET", chat, "")
	if a.problem(t, 405, "method_not_allowed", "POST"); a.header.Get("Allow") != "POST" {
		t.Errorf("Allow %q", a.header.Get("Allow"))
	}
	w.do("DELETE", "/v1/models/tiny", "").problem(t, 405, "method_not_allowed", "GET")
}

// TestFillMaskAndClassify: what is not OpenAI's goes the same way: to whoever may use the model, whole, and loaded on demand.
func TestFillMaskAndClassify(t *testing.T) {
	w := newWorld(t)
	w.lease.Endpoint.APIs = []registry.API{registry.APIFillMask, registry.APIClassify}
	for _, path := range []string{"/v1/fill-mask", "/v1/classify"} {
		body := `{"model":"tiny","input":["a [MASK] c"],"top_k":3}`
		a := w.do("POST", path, body)
		var got struct{ Path, Body string }
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || got.Path != path || got.Body != body {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
		if a := w.do("GET", path, ""); a.status != 405 || a.header.Get("Allow") != "POST" {
			t.Errorf("GET %s: %d %s", path, a.status, a.body)
		}
		w.do("POST", path, body, "X-As", "nobody").problem(t, 401, "unauthenticated")
		w.do("POST", path, body, "X-As", "viewer").problem(t, 403, "forbidden", "not loaded")
		w.do("POST", path, `{"model":"secret","input":"x"}`).problem(t, 404, "model_not_found")
	}
	if len(w.acquired) != 2 {
		t.Errorf("loaded for %q", w.acquired)
	}
}

func TestForward(t *testing.T) {
	w := newWorld(t)
	w.lease.Authorization = "Bearer engine-key"
	body := `{ "model" : "meta-llama/Llama-2-7b-chat-hf", "messages":[{"role":"user","content":"hi"}] }`
	a := w.do("POST", chat+"?api_key=mine", body,
		"Authorization", "Bearer llmm_of_the_client", "Cookie", "llmm_session=x", "Connection", "X-Hop", "X-Hop", "1",
		"Proxy-Authorization", "Basic x", "X-Api-Key", "mine", "X-Forwarded-For", "1.2.3.4", "X-Request-Id", "r-1", "Te", "trailers")
	var got struct {
		Path, Body, Host string
		Header           http.Header
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 {
		t.Fatalf("%d %s %v", a.status, a.body, err)
	}
	if got.Path != chat || got.Body != body || got.Host != strings.TrimPrefix(w.engine.URL, "http://") {
		t.Errorf("%+v", got)
	}
	allowed := []string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "User-Agent", "X-Request-Id"}
	for h := range got.Header {
		if !slices.Contains(allowed, h) {
			t.Errorf("the engine got %s: %v", h, got.Header[h])
		}
	}
	if got.Header.Get("Authorization") != "Bearer engine-key" || got.Header.Get("X-Request-Id") != "r-1" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%v", got.Header)
	}
	if d := w.acquired; len(d) != 1 || d[0] != "meta-llama/Llama-2-7b-chat-hf gateway:mia" {
		t.Errorf("acquired %v", d)
	}
}

func TestTheEnginesNameReplacesOurs(t *testing.T) {
	w := newWorld(t)
	w.lease.Endpoint.Model = `llama "2"`
	a := w.do("POST", "/v1/completions", `{"prompt":"tiny","model":"tiny"}`)
	var got struct{ Body string }
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.Body != `{"prompt":"tiny","model":"llama \"2\""}` {
		t.Errorf("%q %v", got.Body, err)
	}
}

func TestEngineHeadersStayBehind(t *testing.T) {
	w := newWorld(t)
	w.handler = func(rw http.ResponseWriter, _ *http.Request) {
		h := rw.Header()
		h.Set("Content-Type", "text/html")
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Set-Cookie", "llmm_session=evil")
		h.Set("Server", "engine")
		h.Set("Keep-Alive", "timeout=5")
		h.Set("X-Request-Id", "e-1")
		_, _ = io.WriteString(rw, "<script>alert(1)</script>")
	}
	a := w.do("POST", chat, `{"model":"tiny"}`)
	for _, h := range []string{"Access-Control-Allow-Origin", "Set-Cookie", "Server", "Keep-Alive"} {
		if v := a.header.Get(h); v != "" {
			t.Errorf("%s: %s", h, v)
		}
	}
	if a.header.Get("Content-Type") != "text/plain; charset=utf-8" || a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("X-Request-Id") != "e-1" {
		t.Errorf("%v", a.header)
	}
}

func TestWhoMayUse(t *testing.T) {
	w := newWorld(t)
	post := func(who, model string) answer {
		return w.do("POST", chat, fmt.Sprintf(`{"model":%q}`, model), "X-As", who)
	}
	post("nobody", "tiny").problem(t, 401, "unauthenticated")
	post("lonely", "tiny").problem(t, 404, "model_not_found")
	post("member", "secret").problem(t, 404, "model_not_found")
	post("member", "nope").problem(t, 404, "model_not_found")
	post("viewer", "tiny").problem(t, 403, "forbidden", "not loaded", "ask a member")
	if len(w.acquired) != 0 {
		t.Errorf("acquired %v", w.acquired)
	}
	w.mu.Lock()
	w.loaded = true
	w.mu.Unlock()
	for who, model := range map[string]string{"viewer": "tiny", "member": "tiny", "admin": "secret"} {
		if a := post(who, model); a.status != 200 {
			t.Errorf("%s: %d %s", who, a.status, a.body)
		}
	}
}

func TestStrangersBodiesAreNotRead(t *testing.T) {
	w := newWorld(t)
	r := w.request(t.Context(), "POST", chat, "", "X-As", "nobody")
	read := atomic.Int64{}
	r.Body = io.NopCloser(io.LimitReader(countingReader{&read}, 50<<20))
	r.ContentLength = 50 << 20
	r.Header.Set("Expect", "100-continue")
	resp, err := (&http.Transport{ExpectContinueTimeout: time.Minute, DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || read.Load() > 0 {
		t.Errorf("%d after %d bytes", resp.StatusCode, read.Load())
	}
}

type countingReader struct{ n *atomic.Int64 }

func (c countingReader) Read(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t, func(o *gateway.Options) { o.MaxBody = 1 << 20 })
	for body, part := range map[string]string{
		``: "not JSON", `{`: "not JSON", `{}`: "model", `{"model":"tiny","model":"secret"}`: "more than once",
		`{"model":"tiny","x":"` + strings.Repeat("x", 1<<20) + `"}`: "larger than 1 MiB",
	} {
		w.do("POST", chat, body).problem(t, 400, "invalid", part)
	}
	w.do("POST", chat, `{"model":"tiny"}`, "Content-Encoding", "gzip").problem(t, 400, "invalid", "Content-Encoding")
	w.do("POST", "/v1/embeddings", `{"model":"tiny","input":"x"}`).problem(t, 400, "invalid", "does not answer embeddings", chat)
	w.do("POST", "/v1/classify", `{"model":"tiny","input":"x"}`).problem(t, 400, "invalid", "does not answer classify", "at "+chat+" and /v1/completions")
	w.lease.Endpoint.APIs = []registry.API{registry.APIFillMask, registry.APIEmbeddings}
	w.do("POST", chat, `{"model":"tiny"}`).problem(t, 400, "invalid", "does not answer chat", "at /v1/embeddings and /v1/fill-mask")
	w.lease.Endpoint.APIs = []registry.API{registry.APIClassify}
	w.do("POST", chat, `{"model":"tiny"}`).problem(t, 400, "invalid", "it answers at /v1/classify")
	a := w.do("POST", chat, `{"model":["tiny"]}`)
	if a.problem(t, 400, "invalid"); !strings.Contains(a.body, `"param":"model"`) {
		t.Error(a.body)
	}
}

func TestTheBudgetOfBytes(t *testing.T) {
	w := newWorld(t, func(o *gateway.Options) { o.MaxInFlight = 1000 })
	entered, leave := make(chan struct{}), make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		entered <- struct{}{}
		<-leave
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, "{}")
	}
	body := `{"model":"tiny","x":"` + strings.Repeat("x", 600) + `"}`
	first := make(chan int, 1)
	go func() { first <- w.do("POST", chat, body).status }()
	<-entered
	a := w.do("POST", chat, body)
	if a.problem(t, 429, "busy"); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	close(leave)
	if s := <-first; s != 200 {
		t.Error(s)
	}
	go func() { <-entered }()
	if a := w.do("POST", chat, body); a.status != 200 {
		t.Errorf("the bytes were not given back: %d %s", a.status, a.body)
	}
}

func TestErrorsOfLoading(t *testing.T) {
	for code, want := range map[registry.Code]int{
		registry.CodeBadState: 409, registry.CodeInsufficientResources: 409, registry.CodeLoadingFailed: 502,
		registry.CodeBusy: 429, registry.CodeUnavailable: 503, registry.CodeTimeout: 504, registry.CodeUnsupported: 501,
		registry.CodeInternal: 500, registry.CodeInvalid: 400, registry.CodeConflict: 409,
	} {
		w := newWorld(t)
		w.acquire = func(context.Context, string, string) error {
			return &registry.Error{Code: code, Msg: "it went wrong", RetryAfter: 1500 * time.Millisecond, Failure: &registry.Failure{Hint: "Do this."}}
		}
		a := w.do("POST", chat, `{"model":"tiny","stream":true}`)
		a.problem(t, want, string(code), "it went wrong", "Do this.")
		if a.header.Get("Retry-After") != "2" {
			t.Errorf("%s: Retry-After %q", code, a.header.Get("Retry-After"))
		}
	}
}
