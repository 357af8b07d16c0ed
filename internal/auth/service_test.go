package auth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
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

func newRig(t *testing.T, edit ...func(*auth.Options)) *rig {
	t.Helper()
	m := newMemStore()
	r := newRigOver(t, m, edit...)
	r.mem = m
	return r
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

func TestSessionLifecycle(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	b := r.browser()
	b.want("anonymous")
	if len(b.cookies) != 0 {
		t.Error("a visitor got a cookie")
	}
	if code, _ := b.do("POST", "/in", "name", "mia", "password", "wrong password"); code != 401 {
		t.Errorf("wrong password: %d", code)
	}
	b.want("anonymous")
	if code, body := b.do("POST", "/in", "name", " MIA ", "password", goodPassword); code != 200 {
		t.Fatalf("sign in: %d %s", code, body)
	}
	b.want("mia")
	c := b.cookies[auth.SessionCookie]
	if c == nil || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Secure || c.MaxAge < 13*24*3600 || c.Path != "/" {
		t.Errorf("cookie %+v", c)
	}
	// What is stored is not what the cookie says.
	if _, found, _ := r.store.Sessions().FindCtx(t.Context(), c.Value); found && r.mem != nil {
		t.Error("the session is stored under the cookie's value")
	}
	// Reading writes nothing.
	before := r.mem.commits.Load()
	b.want("mia")
	if r.mem.commits.Load() != before {
		t.Error("a request wrote the session although nothing changed")
	}
	stolen := r.browser()
	stolen.cookies[auth.SessionCookie] = c
	stolen.want("mia")
	if code, _ := b.do("POST", "/out"); code != 200 || len(b.cookies) != 0 {
		t.Errorf("sign out: %d, cookies %v", code, b.cookies)
	}
	stolen.want("anonymous") // the session ended, not only the cookie
}

func TestSignInRenewsThePlantedSession(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	b := r.browser()
	b.do("POST", "/in", "name", "mia", "password", goodPassword)
	planted := *b.cookies[auth.SessionCookie]
	b.do("POST", "/in", "name", "mia", "password", goodPassword)
	if b.cookies[auth.SessionCookie].Value == planted.Value {
		t.Error("the session kept its token")
	}
	attacker := r.browser()
	attacker.cookies[auth.SessionCookie] = &planted
	attacker.want("anonymous")
}

func TestSessionIdle(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	b := r.browser()
	b.do("POST", "/in", "name", "mia", "password", goodPassword)
	r.clock.Add(auth.SessionIdle - time.Hour)
	b.want("mia") // and this counts as use
	r.clock.Add(auth.SessionIdle - time.Hour)
	b.want("mia")
	r.clock.Add(auth.SessionIdle + time.Hour)
	b.want("anonymous")
}

func TestSecureCookie(t *testing.T) {
	for name, c := range map[string]struct {
		tls, trust bool
		proto      string
		want       bool
	}{
		"plain":                 {},
		"our own TLS":           {tls: true, want: true},
		"a trusted proxy's TLS": {trust: true, proto: "https", want: true},
		"a trusted proxy":       {trust: true, proto: "http"},
		"an unknown proxy":      {proto: "https"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *auth.Options) { o.TrustProxy = c.trust })
			b := r.browser()
			b.tls = c.tls
			if c.proto != "" {
				b.header.Set("X-Forwarded-Proto", c.proto)
			}
			b.do("POST", "/in", "name", "admin", "password", goodPassword)
			if got := b.cookies[auth.SessionCookie].Secure; got != c.want {
				t.Errorf("Secure %v", got)
			}
			b.want("admin")
		})
	}
}

func TestSessionsEndWithThePassword(t *testing.T) {
	r := newRig(t)
	u := r.user("mia")
	here, there := r.browser(), r.browser()
	here.do("POST", "/in", "name", "mia", "password", goodPassword)
	there.do("POST", "/in", "name", "mia", "password", goodPassword)
	if code, body := here.do("POST", "/password", "old", goodPassword, "new", otherPassword); code != 200 {
		t.Fatal(code, body)
	}
	here.want("mia")
	there.want("anonymous")
	if err := r.ResetPassword(r.admin(), u.ID, goodPassword); err != nil {
		t.Fatal(err)
	}
	here.want("anonymous")
}

func TestDisabling(t *testing.T) {
	r := newRig(t)
	u := r.user("mia")
	secret, _, err := r.CreateToken(r.as("mia"), "ci", 0)
	if err != nil {
		t.Fatal(err)
	}
	b := r.browser()
	b.do("POST", "/in", "name", "mia", "password", goodPassword)
	b.want("mia")
	if _, err := r.VerifyToken(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if err := r.SetDisabled(r.admin(), u.ID, true); err != nil {
		t.Fatal(err)
	}
	b.want("anonymous")
	_, err = r.VerifyToken(t.Context(), secret) // it was cached a moment ago
	wantCode(t, err, registry.CodeUnauthenticated)
	_, err = r.SignIn(t.Context(), "mia", goodPassword)
	wantCode(t, err, registry.CodeUnauthenticated)
	if !strings.Contains(err.Error(), "disabled") {
		t.Errorf("who knows the password is told %q", err)
	}
	_, err = r.SignIn(t.Context(), "mia", "not the password")
	if strings.Contains(err.Error(), "disabled") {
		t.Errorf("who does not know the password is told %q", err)
	}
	if err := r.SetDisabled(r.admin(), u.ID, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.VerifyToken(t.Context(), secret); err != nil {
		t.Error(err)
	}
}

func TestCrossSiteRequests(t *testing.T) {
	r := newRig(t)
	b := r.browser()
	b.do("POST", "/in", "name", "admin", "password", goodPassword)
	for name, c := range map[string]struct {
		method, path, key, value string
		want                     int
	}{
		"same origin":             {"POST", "/me", "Sec-Fetch-Site", "same-origin", 200},
		"typed by the user":       {"POST", "/me", "Sec-Fetch-Site", "none", 200},
		"a program":               {"POST", "/me", "X", "y", 200},
		"another site":            {"POST", "/me", "Sec-Fetch-Site", "cross-site", 403},
		"another port":            {"DELETE", "/me", "Sec-Fetch-Site", "same-site", 403},
		"an old browser":          {"PUT", "/me", "Origin", "https://evil.test", 403},
		"signing in from another": {"POST", "/in", "Sec-Fetch-Site", "cross-site", 403},
		"a link to us":            {"GET", "/me", "Sec-Fetch-Site", "cross-site", 200},
	} {
		b.header = http.Header{c.key: {c.value}}
		if code, body := b.do(c.method, c.path, "name", "admin", "password", goodPassword); code != c.want {
			t.Errorf("%s: %d %s, want %d", name, code, body, c.want)
		}
	}
	b.header = http.Header{"Sec-Fetch-Site": {"cross-site"}, "Authorization": {"Bearer " + adminToken}}
	if code, body := b.do("POST", "/me"); code != 200 || body != "admin" {
		t.Errorf("with a token: %d %s", code, body)
	}
}

func TestAuthorizationHeader(t *testing.T) {
	r := newRig(t)
	b := r.browser()
	b.do("POST", "/in", "name", "admin", "password", goodPassword)
	for _, c := range []struct {
		values []string
		code   int
		who    string
	}{
		{nil, 200, "admin"},
		{[]string{"Basic YTpi"}, 200, "admin"}, // a proxy's own
		{[]string{"bearer  " + adminToken + " "}, 200, "admin"},
		{[]string{"Bearer"}, 401, ""},
		{[]string{"Bearer "}, 401, ""},
		{[]string{"Bearer short"}, 401, ""},
		{[]string{"Bearer " + adminToken + "x"}, 401, ""}, // a wrong token does not fall back to the session
		{[]string{"Bearer " + adminToken, "Bearer " + adminToken}, 401, ""},
		{[]string{"Bearer " + strings.Repeat("a", 10_000)}, 401, ""},
	} {
		b.header = http.Header{"Authorization": c.values}
		code, body := b.do("GET", "/me")
		if code != c.code || (c.who != "" && body != c.who) {
			t.Errorf("%.60v: %d %q, want %d %q", c.values, code, body, c.code, c.who)
		}
		if strings.Contains(body, adminToken) {
			t.Errorf("the answer quotes the token: %s", body)
		}
	}
}

func TestWithoutSessionsOnlyTokensCount(t *testing.T) {
	r := newRig(t)
	req := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	req.AddCookie(&http.Cookie{Name: auth.SessionCookie, Value: "x"})
	if id, err := r.Authenticate(req); err != nil || id.Known() {
		t.Errorf("%+v %v", id, err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	if id, err := r.Authenticate(req); err != nil || id.Actor() != "admin" || id.Via != auth.ViaToken {
		t.Errorf("%+v %v", id, err)
	}
}

func TestBruteForce(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	r.user("tom")
	from := func(ip string) context.Context { return auth.WithRemote(t.Context(), auth.Remote{IP: ip}) }
	for range 5 {
		_, err := r.SignIn(from("192.0.2.1"), "mia", "wrong password")
		wantCode(t, err, registry.CodeUnauthenticated)
	}
	_, err := r.SignIn(from("192.0.2.1"), "mia", goodPassword)
	wantCode(t, err, registry.CodeBusy)
	var e *registry.Error
	if !errors.As(err, &e) || e.RetryAfter < time.Second || e.RetryAfter > time.Minute {
		t.Fatalf("RetryAfter %+v", e)
	}
	_, err = r.SignIn(from("192.0.2.1"), "MIA ", goodPassword) // the same account, spelled otherwise
	wantCode(t, err, registry.CodeBusy)
	// Others are not shut out by it: not the same account from elsewhere, nor another one from there.
	if _, err := r.SignIn(from("192.0.2.2"), "mia", goodPassword); err != nil {
		t.Error(err)
	}
	if _, err := r.SignIn(from("192.0.2.1"), "tom", goodPassword); err != nil {
		t.Error(err)
	}
	r.clock.Add(e.RetryAfter)
	if _, err := r.SignIn(from("192.0.2.1"), "mia", goodPassword); err != nil {
		t.Errorf("after waiting as told: %v", err)
	}
	for range 5 { // the success gave all of them back
		_, err := r.SignIn(from("192.0.2.1"), "mia", "wrong password")
		wantCode(t, err, registry.CodeUnauthenticated)
	}
}

func TestPasswordSprayingIsLimitedByRemote(t *testing.T) {
	r := newRig(t)
	limited := false
	for i := range 40 {
		// One IPv6 host can use any address of its /64.
		ctx := auth.WithRemote(t.Context(), auth.Remote{IP: fmt.Sprintf("2001:db8::%x", i+1)})
		_, err := r.SignIn(ctx, fmt.Sprintf("user%d", i), "wrong password")
		limited = limited || registry.CodeOf(err) == registry.CodeBusy
	}
	if !limited {
		t.Error("40 accounts could be tried from one network at once")
	}
}

func TestSignInTellsNothing(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	_, unknown := r.SignIn(t.Context(), "nobody", goodPassword)
	_, wrong := r.SignIn(t.Context(), "mia", "wrong password")
	_, odd := r.SignIn(t.Context(), "not a name!", goodPassword)
	_, empty := r.SignIn(t.Context(), "mia", "")
	_, long := r.SignIn(t.Context(), "mia", strings.Repeat("x", 10<<20))
	for _, err := range []error{unknown, wrong, odd, empty, long} {
		wantCode(t, err, registry.CodeUnauthenticated)
		if err.Error() != unknown.Error() {
			t.Errorf("%q differs from %q", err, unknown)
		}
	}
}

func TestPasswordRules(t *testing.T) {
	r := newRig(t)
	for password, ok := range map[string]bool{
		"123456789":              false,
		"1234567890":             true,
		"ééééééééé":              false, // nine characters, more bytes
		"administrator":          false, // the name
		" ADMINISTRATOR":         false,
		"\xff\xfe\xfd1234567890": false,
		strings.Repeat("ü", 256): true,
		strings.Repeat("ü", 257): false,
	} {
		_, err := r.CreateUser(r.admin(), "administrator", password, false)
		if (err == nil) != ok {
			t.Errorf("%.20q: %v", password, err)
		}
		if err == nil {
			users, _ := r.ListUsers(r.admin())
			for _, u := range users {
				if u.Name == "administrator" {
					if err := r.DeleteUser(r.admin(), u.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
		} else if e := registry.AsError(err); e.Code != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "password" {
			t.Errorf("%.20q: %+v", password, e)
		}
	}
}

func TestAccountNames(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"", " ", "a b", "../x", "ä", "-a", "a\n", strings.Repeat("a", 65), "a\x00"} {
		_, err := r.CreateUser(r.admin(), name, goodPassword, false)
		if name == "a\n" { // spaces at the ends are typing, not naming
			if err != nil {
				t.Errorf("%q: %v", name, err)
			}
			continue
		}
		if registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%q: %v", name, err)
		}
	}
	r.user("mia")
	_, err := r.CreateUser(r.admin(), "Mia", goodPassword, false)
	wantCode(t, err, registry.CodeConflict)
}

func TestTokens(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	mia := r.as("mia")
	secret, tok, err := r.CreateToken(mia, "ci", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(secret, tok.Prefix) || len(tok.Prefix) > 12 || !strings.HasPrefix(secret, "llmm_") {
		t.Errorf("secret %q, prefix %q", secret, tok.Prefix)
	}
	if strings.Contains(fmt.Sprintf("%+v", tok), secret) {
		t.Error("the stored token holds the secret")
	}
	id, err := r.VerifyToken(t.Context(), secret)
	if err != nil || id.Name != "mia" || id.Via != auth.ViaToken || id.TokenID != tok.ID {
		t.Fatalf("%+v %v", id, err)
	}
	// A token does not make one that outlives it.
	_, child, err := r.CreateToken(auth.WithIdentity(t.Context(), id), "child", 0)
	if err != nil || !child.ExpiresAt.Equal(tok.ExpiresAt) {
		t.Errorf("child expires %v, %v", child.ExpiresAt, err)
	}
	_, err = r.VerifyToken(t.Context(), secret[:len(secret)-1]+"~")
	if wantCode(t, err, registry.CodeUnauthenticated); !strings.Contains(err.Error(), "cut off") {
		t.Errorf("a mistyped token: %v", err)
	}
	r.user("tom")
	tom := r.as("tom")
	wantCode(t, r.DeleteToken(tom, "", tok.ID), registry.CodeNotFound)
	tomID := auth.FromContext(tom).UserID
	_, err = r.ListTokens(mia, tomID)
	wantCode(t, err, registry.CodeForbidden)
	if list, err := r.ListTokens(mia, ""); err != nil || len(list) != 2 {
		t.Errorf("%v %v", list, err)
	}
	r.clock.Add(time.Hour)
	_, err = r.VerifyToken(t.Context(), secret) // expired while cached
	if wantCode(t, err, registry.CodeUnauthenticated); !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	if err := r.DeleteToken(mia, "", tok.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.DeleteToken(mia, "", tok.ID), registry.CodeNotFound)
	for _, bad := range []string{"", " ", "a\nb", strings.Repeat("n", 65)} {
		_, _, err := r.CreateToken(mia, bad, 0)
		wantCode(t, err, registry.CodeInvalid)
	}
	for _, ttl := range []time.Duration{-1, auth.MaxTokenTTL + 1} {
		_, _, err := r.CreateToken(mia, "x", ttl)
		wantCode(t, err, registry.CodeInvalid)
	}
	_, _, err = r.CreateToken(t.Context(), "x", 0)
	wantCode(t, err, registry.CodeUnauthenticated)
}

func TestTokensAreCachedAndTakenBackAtOnce(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	mia := r.as("mia")
	secret, tok, err := r.CreateToken(mia, "ci", 0)
	if err != nil {
		t.Fatal(err)
	}
	verify := func() error { _, err := r.VerifyToken(t.Context(), secret); return err }
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	tokens, users, touches := r.mem.tokenReads.Load(), r.mem.userReads.Load(), r.mem.touches.Load()
	for range 1000 {
		if err := verify(); err != nil {
			t.Fatal(err)
		}
	}
	if r.mem.tokenReads.Load() != tokens || r.mem.userReads.Load() != users || r.mem.touches.Load() != touches {
		t.Error("a cached token asked the database")
	}
	r.clock.Add(61 * time.Second)
	if err := verify(); err != nil || r.mem.tokenReads.Load() != tokens+1 || r.mem.touches.Load() != touches+1 {
		t.Errorf("after a minute: %v, %d reads, %d touches", err, r.mem.tokenReads.Load()-tokens, r.mem.touches.Load()-touches)
	}
	if err := r.DeleteToken(mia, "", tok.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, verify(), registry.CodeUnauthenticated)
}

// A role that changed counts at once, also for a caller whose account was cached.
func TestRolesChangeAtOnce(t *testing.T) {
	r := newRig(t)
	r.user("mia")
	secret, _, err := r.CreateToken(r.as("mia"), "ci", 0)
	if err != nil {
		t.Fatal(err)
	}
	may := func() error {
		id, err := r.VerifyToken(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		return auth.Allowed(id, auth.ModelLoad, registry.DefaultTeam)
	}
	wantCode(t, may(), registry.CodeForbidden)
	for _, step := range []struct {
		role registry.Role
		want registry.Code
	}{{registry.RoleMember, ""}, {registry.RoleViewer, registry.CodeForbidden}, {registry.RoleMaintainer, ""}, {"", registry.CodeForbidden}} {
		if err := r.SetMember(r.admin(), registry.DefaultTeam, "mia", step.role); err != nil {
			t.Fatal(err)
		}
		wantCode(t, may(), step.want)
	}
}

func TestTeams(t *testing.T) {
	r := newRig(t)
	for _, n := range []string{"mia", "tom"} {
		r.user(n)
	}
	if err := r.CreateTeam(r.admin(), "Vision"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetMember(r.admin(), "vision", "mia", registry.RoleMaintainer); err != nil {
		t.Fatal(err)
	}
	mia, tom := r.as("mia"), r.as("tom")
	if err := r.SetMember(mia, "vision", "tom", registry.RoleViewer); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.SetMember(mia, "default", "tom", registry.RoleViewer), registry.CodeForbidden)
	wantCode(t, r.SetMember(mia, "vision", "tom", "owner"), registry.CodeInvalid)
	wantCode(t, r.SetMember(mia, "vision", "ghost", registry.RoleViewer), registry.CodeNotFound)
	wantCode(t, r.SetMember(r.admin(), "nope", "tom", registry.RoleViewer), registry.CodeNotFound)
	wantCode(t, r.CreateTeam(mia, "mine"), registry.CodeForbidden)
	wantCode(t, r.CreateTeam(r.admin(), "../x"), registry.CodeInvalid)
	wantCode(t, r.DeleteTeam(r.admin(), "default"), registry.CodeConflict)
	_, err := r.Members(tom, "vision") // tom's snapshot is from before he was a member
	wantCode(t, err, registry.CodeNotFound)
	members, err := r.Members(mia, "vision")
	if err != nil || len(members) != 2 || members[0].Name != "mia" || members[1].Role != registry.RoleViewer {
		t.Errorf("%+v %v", members, err)
	}
	if teams, err := r.ListTeams(mia); err != nil || len(teams) != 1 || teams[0].Name != "vision" {
		t.Errorf("%v %v", teams, err)
	}
	if teams, err := r.ListTeams(r.admin()); err != nil || len(teams) != 2 {
		t.Errorf("%v %v", teams, err)
	}
}

func TestTheLastAdminStays(t *testing.T) {
	r := newRig(t)
	adm := r.admin()
	root := auth.FromContext(adm).UserID
	wantCode(t, r.SetAdmin(adm, root, false), registry.CodeConflict)
	wantCode(t, r.SetDisabled(adm, root, true), registry.CodeConflict)
	wantCode(t, r.DeleteUser(adm, root), registry.CodeConflict)
	u := r.user("mia")
	if err := r.SetAdmin(adm, u.ID, true); err != nil {
		t.Fatal(err)
	}
	// Two admins that demote each other at once: one of them stays.
	var wg sync.WaitGroup
	for _, id := range []string{root, u.ID} {
		wg.Go(func() { _ = r.SetAdmin(adm, id, false) })
	}
	wg.Wait()
	users, err := r.store.ListUsers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	admins := 0
	for _, u := range users {
		if u.Admin {
			admins++
		}
	}
	if admins != 1 {
		t.Errorf("%d admins are left", admins)
	}
}

func TestOnlyAdminsManageAccounts(t *testing.T) {
	r := newRig(t)
	u := r.user("mia")
	for name, ctx := range map[string]context.Context{"a user": r.as("mia"), "nobody": t.Context()} {
		_, err1 := r.CreateUser(ctx, "x", goodPassword, true)
		_, err2 := r.ListUsers(ctx)
		for i, err := range []error{
			err1, err2, r.SetAdmin(ctx, u.ID, true), r.SetDisabled(ctx, u.ID, false), r.DeleteUser(ctx, u.ID),
			r.ResetPassword(ctx, u.ID, otherPassword), r.DeleteTeam(ctx, "default"),
		} {
			if c := registry.CodeOf(err); c != registry.CodeForbidden && c != registry.CodeUnauthenticated {
				t.Errorf("%s, %d: %v", name, i, err)
			}
		}
	}
	if got, _ := r.store.User(t.Context(), u.ID); got.Admin {
		t.Error("mia made herself an admin")
	}
}

func TestAuditHoldsEverythingAndNoSecret(t *testing.T) {
	r := newRig(t)
	u := r.user("mia")
	ctx := auth.WithRemote(r.as("mia"), auth.Remote{IP: "192.0.2.7"})
	secret, tok, err := r.CreateToken(ctx, "ci", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = r.SignIn(ctx, goodPassword, "x") // the password in the wrong field
	_, _ = r.SignIn(ctx, "mia", "wrong secret word")
	_ = r.ChangePassword(ctx, goodPassword, otherPassword)
	_ = r.DeleteToken(ctx, "", tok.ID)
	_ = r.DeleteUser(ctx, u.ID)
	_, _ = r.CreateUser(r.admin(), "eve\n", "hunter2", false)
	all := fmt.Sprintf("%+v", r.mem.entries()) + r.log.String()
	for _, s := range []string{goodPassword, otherPassword, secret, adminToken, "wrong secret word", "hunter2"} {
		if strings.Contains(all, s) {
			t.Errorf("%q is in the audit or the log", s)
		}
	}
	for _, want := range []registry.AuditEntry{
		{Actor: "admin", Action: "user.manage", Subject: "user:mia", Outcome: "ok", Detail: "create"},
		{Actor: "mia", Action: "account.own", Subject: "user:mia", Outcome: "ok", Detail: "sign in"},
		{Actor: "mia", Action: "token.own", Subject: "token:" + tok.ID, Outcome: "ok", Detail: "create", Remote: "192.0.2.7"},
		{Actor: "mia", Action: "account.own", Subject: "user:mia", Outcome: "ok", Detail: "change password", Remote: "192.0.2.7"},
		{Actor: "mia", Action: "user.manage", Subject: "user:" + u.ID, Outcome: "forbidden", Remote: "192.0.2.7"},
		{Actor: "mia", Action: "account.own", Subject: "user:(unknown)", Outcome: "unauthenticated", Detail: "sign in", Remote: "192.0.2.7"},
		{Actor: "admin", Action: "user.manage", Subject: "user:eve", Outcome: "invalid", Detail: "create"},
	} {
		found := false
		for _, e := range r.mem.entries() {
			e.At = time.Time{}
			found = found || e == want
		}
		if !found {
			t.Errorf("the audit lacks %+v", want)
		}
	}
	r.Audit(ctx, auth.ModelLoad, "model:a\nb", nil, strings.Repeat("x", 5000))
	last := r.mem.entries()[len(r.mem.entries())-1]
	if strings.Contains(last.Subject, "\n") || len(last.Detail) > 510 {
		t.Errorf("%q, %d bytes", last.Subject, len(last.Detail))
	}
}
