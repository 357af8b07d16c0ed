package auth_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestSessionLifecycle(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
		if r.mem != nil {
			before := r.mem.commits.Load()
			b.want("mia")
			if r.mem.commits.Load() != before {
				t.Error("a request wrote the session although nothing changed")
			}
		}
		stolen := r.browser()
		stolen.cookies[auth.SessionCookie] = c
		stolen.want("mia")
		if code, _ := b.do("POST", "/out"); code != 200 || len(b.cookies) != 0 {
			t.Errorf("sign out: %d, cookies %v", code, b.cookies)
		}
		stolen.want("anonymous") // the session ended, not only the cookie
	})
}

func TestSignInRenewsThePlantedSession(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestSessionIdle(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestSecureCookie(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestSessionsEndWithThePassword(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestDisabling(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestCrossSiteRequests(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestAuthorizationHeader(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
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
