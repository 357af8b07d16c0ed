package auth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

const (
	goodPassword  = "a long pass phrase"
	otherPassword = "another pass phrase"
	adminToken    = "an-admin-token-of-thirty-chars"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a service with an admin, over the store of the test, and a small site in front of it.
type rig struct {
	t     *testing.T
	store auth.Store
	mem   *memStore // nil over the real store
	clock *clock
	log   *bytes.Buffer
	*auth.Service
}

type makeRig func(t *testing.T, edit ...func(*auth.Options)) *rig

// overEachStore runs the test over the store in memory and over the real one.
func overEachStore(t *testing.T, test func(t *testing.T, newRig makeRig)) {
	t.Run("memory", func(t *testing.T) { test(t, newRig) })
	t.Run("sqlite", func(t *testing.T) { test(t, newSQLiteRig) })
}

func newRig(t *testing.T, edit ...func(*auth.Options)) *rig {
	t.Helper()
	m := newMemStore()
	r := newRigOver(t, m, edit...)
	r.mem = m
	return r
}

func newSQLiteRig(t *testing.T, edit ...func(*auth.Options)) *rig {
	t.Helper()
	return newRigOver(t, openSQLite(t), edit...)
}

func openSQLite(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "llmm.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newRigOver(t *testing.T, s auth.Store, edit ...func(*auth.Options)) *rig {
	t.Helper()
	r := &rig{t: t, store: s, clock: newClock(), log: &bytes.Buffer{}}
	o := auth.Options{
		Store: s, Now: r.clock.Now, AdminPassword: goodPassword, AdminToken: adminToken,
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, e := range edit {
		e(&o)
	}
	r.Service = auth.New(o)
	r.CheapHashes()
	if err := r.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// entries returns the audit, oldest first.
func (r *rig) entries() []registry.AuditEntry {
	r.t.Helper()
	if r.mem != nil {
		return r.mem.entries()
	}
	s, ok := r.store.(*store.Store)
	if !ok {
		r.t.Fatalf("what store is %T?", r.store)
	}
	out, err := s.ListAudit(r.t.Context(), 1000, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Reverse(out) // the newest comes first
	for i := range out {
		out[i].ID = 0
	}
	return out
}

func bare(o *auth.Options) { o.AdminPassword, o.AdminToken = "", "" }

func (r *rig) admin() context.Context {
	r.t.Helper()
	id, err := r.VerifyToken(r.t.Context(), adminToken)
	if err != nil {
		r.t.Fatal(err)
	}
	return auth.WithIdentity(r.t.Context(), id)
}

func (r *rig) user(name string) registry.User {
	r.t.Helper()
	u, err := r.CreateUser(r.admin(), name, goodPassword, false)
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// as returns a context of the account as of now.
func (r *rig) as(name string) context.Context {
	r.t.Helper()
	id, err := r.SignIn(r.t.Context(), name, goodPassword)
	if err != nil {
		r.t.Fatal(err)
	}
	return auth.WithIdentity(r.t.Context(), id)
}

func wantCode(t *testing.T, err error, want registry.Code) {
	t.Helper()
	if got := registry.CodeOf(err); got != want {
		t.Fatalf("code %q (%v), want %q", got, err, want)
	}
}

// browser keeps cookies and talks to a small site: POST /in, /out, /password, GET /me.
type browser struct {
	t       *testing.T
	site    http.Handler
	cookies map[string]*http.Cookie
	header  http.Header
	tls     bool
}

func (r *rig) site() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, err error, ok string) {
		if err != nil {
			w.WriteHeader(map[registry.Code]int{registry.CodeForbidden: 403, registry.CodeUnauthenticated: 401}[registry.CodeOf(err)])
			ok = err.Error()
		}
		_, _ = io.WriteString(w, ok)
	}
	handle := func(pattern string, h func(req *http.Request) (string, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			id, err := r.Authenticate(req)
			if err != nil {
				answer(w, err, "")
				return
			}
			out, err := h(req.WithContext(auth.WithIdentity(req.Context(), id)))
			if registry.CodeOf(err) != "" && registry.CodeOf(err) != registry.CodeForbidden {
				err = registry.Errorf(registry.CodeUnauthenticated, "%v", err)
			}
			answer(w, err, out)
		})
	}
	handle("POST /in", func(req *http.Request) (string, error) {
		id, err := r.SignIn(req.Context(), req.FormValue("name"), req.FormValue("password"))
		return id.Name, err
	})
	handle("POST /out", func(req *http.Request) (string, error) { return "", r.SignOut(req.Context()) })
	handle("POST /password", func(req *http.Request) (string, error) {
		return "", r.ChangePassword(req.Context(), req.FormValue("old"), req.FormValue("new"))
	})
	handle("/me", func(req *http.Request) (string, error) { return auth.FromContext(req.Context()).Actor(), nil })
	return r.Sessions(mux)
}

func (r *rig) browser() *browser {
	return &browser{t: r.t, site: r.site(), cookies: map[string]*http.Cookie{}, header: http.Header{}}
}

func (b *browser) do(method, path string, form ...string) (int, string) {
	b.t.Helper()
	var parts []string
	for i := 0; i+1 < len(form); i += 2 {
		parts = append(parts, form[i]+"="+strings.ReplaceAll(form[i+1], " ", "+"))
	}
	req := httptest.NewRequestWithContext(b.t.Context(), method, "http://llmm.test"+path, strings.NewReader(strings.Join(parts, "&")))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for k, v := range b.header {
		req.Header[k] = v
	}
	if b.tls {
		req.TLS = &tls.ConnectionState{}
	}
	for _, c := range b.cookies {
		req.AddCookie(c)
	}
	rec := httptest.NewRecorder()
	b.site.ServeHTTP(rec, req)
	for _, c := range rec.Result().Cookies() {
		if c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c
		}
	}
	return rec.Code, rec.Body.String()
}

func (b *browser) want(who string) {
	b.t.Helper()
	if code, got := b.do("GET", "/me"); got != who {
		b.t.Fatalf("the site says %d %q, want %q", code, got, who)
	}
}
