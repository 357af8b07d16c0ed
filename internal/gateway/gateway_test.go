package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/gateway"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a backend with models of two teams, one engine behind all of them, and the gateway over HTTP.
type world struct {
	t       *testing.T
	engine  *httptest.Server
	site    *httptest.Server
	handler http.HandlerFunc // what the engine does; nil echoes the request
	o       gateway.Options

	mu       sync.Mutex
	lease    gateway.Lease
	acquire  func(ctx context.Context, id, actor string) error
	acquired []string // "id actor"
	released atomic.Int64
	loaded   bool
}

var models = map[string]registry.Record{
	"tiny":                          {Model: registry.Model{ModelID: "tiny", Team: "default"}, CreatedAt: time.Unix(1700000000, 0)},
	"meta-llama/Llama-2-7b-chat-hf": {Model: registry.Model{ModelID: "meta-llama/Llama-2-7b-chat-hf", Team: "default"}, CreatedAt: time.Unix(1700000001, 0)},
	"secret":                        {Model: registry.Model{ModelID: "secret", Team: "other"}, CreatedAt: time.Unix(1700000002, 0)},
}

func (w *world) Acquire(ctx context.Context, id, actor string) (gateway.Lease, error) {
	w.mu.Lock()
	w.acquired = append(w.acquired, id+" "+actor)
	acquire, lease := w.acquire, w.lease
	w.mu.Unlock()
	if acquire != nil {
		if err := acquire(ctx, id, actor); err != nil {
			return gateway.Lease{}, err
		}
	}
	var once sync.Once
	lease.Release = func() {
		once.Do(func() { w.released.Add(1) })
	}
	return lease, nil
}

func (w *world) UsableModels(_ context.Context, teams []string) ([]registry.Record, error) {
	var out []registry.Record
	for _, r := range models {
		if teams == nil || slices.Contains(teams, r.Team) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b registry.Record) int { return strings.Compare(a.ModelID, b.ModelID) })
	return out, nil
}

func (w *world) Model(_ context.Context, id string) (registry.Record, error) {
	r, ok := models[id]
	if !ok {
		return r, registry.Errorf(registry.CodeNotFound, "no model %q", id)
	}
	return r, nil
}

func identities() map[string]auth.Identity {
	in := func(name string, roles map[string]registry.Role) auth.Identity {
		return auth.Identity{UserID: name, Name: name, Via: auth.ViaToken, Roles: roles}
	}
	return map[string]auth.Identity{
		"member": in("mia", map[string]registry.Role{"default": registry.RoleMember}),
		"viewer": in("vic", map[string]registry.Role{"default": registry.RoleViewer}),
		"lonely": in("lou", nil),
		"admin":  {UserID: "root", Name: "root", Admin: true, Via: auth.ViaToken},
		"nobody": {},
	}
}

func newWorld(t *testing.T, edit ...func(*gateway.Options)) *world {
	t.Helper()
	w := &world{t: t}
	w.engine = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.handler != nil {
			w.handler(rw, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]any{"path": r.URL.RequestURI(), "header": r.Header, "body": string(body), "host": r.Host})
	}))
	w.lease = gateway.Lease{Endpoint: registry.Endpoint{BaseURL: w.engine.URL, APIs: []registry.API{registry.APIChat, registry.APICompletions}}}
	w.o = gateway.Options{
		Backend: w,
		Authorize: func(ctx context.Context, a auth.Action, team string) error {
			return auth.Allowed(auth.FromContext(ctx), a, team)
		},
		Loaded: func(context.Context, string) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.loaded
		},
	}
	for _, e := range edit {
		e(&w.o)
	}
	g := gateway.New(w.o)
	w.site = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		id := identities()[r.Header.Get("X-As")]
		g.ServeHTTP(rw, r.WithContext(auth.WithIdentity(r.Context(), id)))
	}))
	t.Cleanup(func() {
		w.site.Close()
		g.Close()
		w.engine.Close()
		if a, r := len(w.acquired), int(w.released.Load()); a-r != w.failedAcquires() {
			t.Errorf("%d leases, %d released", a, r)
		}
	})
	return w
}

// failedAcquires are those that returned an error: all of them when acquire is set to fail.
func (w *world) failedAcquires() int {
	n := 0
	for _, a := range w.acquired {
		if w.acquire != nil && w.acquire(canceled(), strings.Fields(a)[0], "") != nil {
			n++
		}
	}
	return n
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func (w *world) request(ctx context.Context, method, path, body string, header ...string) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, w.site.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("X-As", "member")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (w *world) do(method, path, body string, header ...string) answer {
	w.t.Helper()
	resp, err := w.site.Client().Do(w.request(w.t.Context(), method, path, body, header...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(raw)}
}

// problem checks that the answer is an error in OpenAI's shape.
func (a answer) problem(t *testing.T, status int, code string, parts ...string) {
	t.Helper()
	var v struct {
		Error struct {
			Message, Type, Code string
			Param               *string
		}
	}
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || v.Error.Message == "" || v.Error.Type == "" || !strings.Contains(a.body, `"param":`) {
		t.Fatalf("%d %s is not OpenAI's shape (%v)", a.status, a.body, err)
	}
	if a.status != status || v.Error.Code != code {
		t.Errorf("%d %q, want %d %q: %s", a.status, v.Error.Code, status, code, a.body)
	}
	for _, p := range parts {
		if !strings.Contains(v.Error.Message, p) {
			t.Errorf("%q does not say %q", v.Error.Message, p)
		}
	}
}

const chat = "/v1/chat/completions"

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
	if resp.StatusCode != 401 || read.Load() > 0 {
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

// While the model loads nothing is written; a client that gives up ends the wait.
func TestHangingUpWhileLoading(t *testing.T) {
	w := newWorld(t)
	waiting, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	w.acquire = func(ctx context.Context, _, _ string) error {
		once.Do(func() { close(waiting) })
		<-ctx.Done()
		select {
		case ended <- ctx.Err():
		default:
		}
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		resp, err := w.site.Client().Do(w.request(ctx, "POST", chat, `{"model":"tiny","stream":true}`))
		if err == nil {
			_ = resp.Body.Close()
		}
		result <- err
	}()
	<-waiting
	select {
	case err := <-result:
		t.Fatalf("answered before the model was ready: %v", err)
	default:
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Each event arrives before the engine sends the next: the engine waits for the client to have read it.
func TestStreamingIsNotBuffered(t *testing.T) {
	w := newWorld(t)
	read := make(chan struct{})
	const n = 20
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		rc := http.NewResponseController(rw)
		_ = rc.Flush()
		<-read // the headers are there
		for i := range n {
			_, _ = fmt.Fprintf(rw, "data: {\"n\":%d}\n\n", i)
			_ = rc.Flush()
			<-read
		}
		_, _ = io.WriteString(rw, "data: [DONE]\n\n")
	}
	resp, err := w.site.Client().Do(w.request(t.Context(), "POST", chat, `{"model":"tiny","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("%v", resp.Header)
	}
	read <- struct{}{}
	lines := bufio.NewScanner(resp.Body)
	for i := range n {
		if !lines.Scan() || lines.Text() != fmt.Sprintf(`data: {"n":%d}`, i) || !lines.Scan() || lines.Text() != "" {
			t.Fatalf("event %d: %q", i, lines.Text())
		}
		if w.released.Load() != 0 {
			t.Error("the lease was given back before the end")
		}
		read <- struct{}{}
	}
	if !lines.Scan() || lines.Text() != "data: [DONE]" {
		t.Errorf("%q", lines.Text())
	}
}

func TestHangingUpCancelsTheEngine(t *testing.T) {
	w := newWorld(t)
	ended := make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(rw, "data: 1\n\n")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		close(ended)
	}
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := w.site.Client().Do(w.request(ctx, "POST", chat, `{"model":"tiny","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(resp.Body, make([]byte, 4))
	cancel()
	_ = resp.Body.Close()
	<-ended
}

// hijack answers with raw bytes and then breaks the connection, as an engine that is killed does.
func hijack(raw string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, raw)
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c) // so that what was written arrives before the end does
		}
		_ = conn.Close()
	}
}

func chunked(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(p), p)
	}
	return b.String()
}

func TestEngineDiesInAStream(t *testing.T) {
	w := newWorld(t)
	w.handler = hijack("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" +
		chunked("data: {\"n\":1}\n\n", "data: {\"n\":2}\n\ndata: {\"half"))
	a := w.do("POST", chat, `{"model":"tiny","stream":true}`)
	if !strings.HasPrefix(a.body, "data: {\"n\":1}\n\ndata: {\"n\":2}\n\n") || strings.Contains(a.body, "half") {
		t.Fatalf("%q", a.body)
	}
	last := strings.TrimSpace(a.body[strings.LastIndex(a.body, "data: ")+6:])
	var v struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal([]byte(last), &v); err != nil || v.Error.Code != "unavailable" || v.Error.Type != "server_error" || !strings.HasSuffix(a.body, "\n\n") {
		t.Errorf("%q %v", last, err)
	}
	if strings.Contains(a.body, "127.0.0.1") {
		t.Errorf("the engine's address is told: %s", a.body)
	}
}

func TestEngineDies(t *testing.T) {
	w := newWorld(t)
	for name, raw := range map[string]string{
		"before it answers": "",
		"in the headers":    "HTTP/1.1 200 OK\r\nContent-",
		"in a short answer": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"half",
	} {
		w.handler = hijack(raw)
		a := w.do("POST", chat, `{"model":"tiny"}`)
		a.problem(t, 503, "unavailable", "stopped before it had answered")
		if strings.Contains(a.body, "127.0.0.1") || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %v %s", name, a.header, a.body)
		}
	}
	// So large that the beginning was sent already: the client must not take it for the whole.
	w.handler = hijack("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(strings.Repeat("x", 3<<20)))
	resp, err := w.site.Client().Do(w.request(t.Context(), "POST", chat, `{"model":"tiny"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a cut answer looks whole")
	}
}

func TestNoEngine(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.lease.Endpoint.BaseURL = "http://" + l.Addr().String()
	_ = l.Close()
	w.do("POST", chat, `{"model":"tiny"}`).problem(t, 503, "unavailable")
	w.lease.Endpoint.BaseURL = "::"
	w.do("POST", chat, `{"model":"tiny"}`).problem(t, 500, "internal", "no address")
}

func TestEngineErrors(t *testing.T) {
	for _, c := range []struct {
		status, want int
		body, part   string
	}{
		{400, 400, `{"error":{"code":400,"message":"the prompt is too long","type":"exceed_context_size_error"}}`, "the prompt is too long"},
		{404, 404, `{"error":"model not found"}`, "model not found"},
		{422, 422, `{"detail":[{"loc":["body"],"msg":"field required"}]}`, "field required"},
		{500, 500, `{"message":"boom"}`, "boom"},
		{503, 503, `<html>`, "did not say why"},
		{401, 502, `{"error":{"message":"Incorrect API key provided: sk-verysecret"}}`, "custom_loader_params"},
		{403, 502, ``, "custom_loader_params"},
		{302, 502, ``, "not followed"},
	} {
		w := newWorld(t)
		w.handler = func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Location", "http://192.0.2.1/")
			rw.WriteHeader(c.status)
			_, _ = io.WriteString(rw, c.body)
		}
		a := w.do("POST", chat, `{"model":"tiny","stream":true}`)
		a.problem(t, c.want, "engine_error", c.part)
		if strings.Contains(a.body, "sk-verysecret") || a.header.Get("Location") != "" {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
}

func TestLargePromptAndAnswer(t *testing.T) {
	w := newWorld(t)
	w.lease.Endpoint.Model = "other"
	big := strings.Repeat("0123456789abcdef", 10<<20/16)
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if int64(len(body)) != r.ContentLength || string(body) != `{"messages":"`+big+`","model":"other"}` {
			t.Errorf("%d bytes, Content-Length %d", len(body), r.ContentLength)
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, `"`+big+`"`)
	}
	a := w.do("POST", chat, `{"messages":"`+big+`","model":"tiny"}`)
	if a.status != 200 || a.body != `"`+big+`"` {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

func TestALineWithoutEndIsNotHeldForEver(t *testing.T) {
	w := newWorld(t)
	got := make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		_, _ = rw.Write(bytes.Repeat([]byte("x"), 3<<20))
		_ = http.NewResponseController(rw).Flush()
		<-got
	}
	resp, err := w.site.Client().Do(w.request(t.Context(), "POST", chat, `{"model":"tiny","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	close(got)
	_, _ = io.Copy(io.Discard, resp.Body)
}

// A client that stops reading gives the instance back after the write time-out.
func TestAClientThatTakesNothing(t *testing.T) {
	w := newWorld(t, func(o *gateway.Options) { o.WriteTimeout = 50 * time.Millisecond })
	ended := make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "text/event-stream")
		line := []byte("data: " + strings.Repeat("x", 64<<10) + "\n\n")
		for r.Context().Err() == nil {
			if _, err := rw.Write(line); err != nil {
				break
			}
		}
		close(ended)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.site.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	body := `{"model":"tiny","stream":true}`
	_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nX-As: member\r\nContent-Length: %d\r\n\r\n%s", chat, len(body), body)
	<-ended
}

func TestConcurrentRequests(t *testing.T) {
	w := newWorld(t)
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		var in struct{ N int }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if in.N%2 == 0 {
			rw.Header().Set("Content-Type", "text/event-stream")
			for i := range 5 {
				_, _ = fmt.Fprintf(rw, "data: %d-%d\n\n", in.N, i)
				_ = http.NewResponseController(rw).Flush()
			}
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(rw, "%d", in.N)
	}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 20 {
				n := worker*100 + i
				want := fmt.Sprint(n)
				if n%2 == 0 {
					want = ""
					for j := range 5 {
						want += fmt.Sprintf("data: %d-%d\n\n", n, j)
					}
				}
				if a := w.do("POST", chat, fmt.Sprintf(`{"model":"tiny","n":%d}`, n)); a.body != want {
					t.Errorf("%d: %q", n, a.body)
				}
			}
		})
	}
	wg.Wait()
}
