package gateway_test

import (
	"context"
	"encoding/json"
	"io"
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
