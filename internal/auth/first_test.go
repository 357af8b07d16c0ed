package auth_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func local(t *testing.T) context.Context {
	return auth.WithRemote(t.Context(), auth.Remote{IP: "127.0.0.1", Local: true})
}

func TestFirstAccountOnce(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t, bare)
		if !r.NeedsFirstAccount(t.Context()) {
			t.Fatal("an empty registry needs no account?")
		}
		_, err := r.FirstAccount(t.Context(), "mia", goodPassword)
		wantCode(t, err, registry.CodeForbidden)
		_, err = r.FirstAccount(auth.WithRemote(t.Context(), auth.Remote{IP: "192.0.2.1"}), "mia", goodPassword)
		wantCode(t, err, registry.CodeForbidden)
		_, err = r.FirstAccount(local(t), "mia", "short")
		wantCode(t, err, registry.CodeInvalid)
		if !r.NeedsFirstAccount(t.Context()) {
			t.Fatal("a refused one counts")
		}
		id, err := r.FirstAccount(local(t), "Mia", goodPassword)
		if err != nil || !id.Admin || id.Name != "mia" {
			t.Fatalf("%+v %v", id, err)
		}
		if r.NeedsFirstAccount(t.Context()) {
			t.Error("still needs one")
		}
		_, err = r.FirstAccount(local(t), "tom", goodPassword)
		wantCode(t, err, registry.CodeConflict)
		if _, err := r.SignIn(t.Context(), "mia", goodPassword); err != nil {
			t.Error(err)
		}
	})
}

func TestFirstAccountRace(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t, bare)
		var won, lost atomic.Int64
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range 100 {
			wg.Go(func() {
				<-start
				_, err := r.FirstAccount(local(t), fmt.Sprintf("user%d", i), goodPassword)
				switch registry.CodeOf(err) {
				case "":
					won.Add(1)
				case registry.CodeConflict, registry.CodeBusy:
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		n, err := r.store.CountUsers(t.Context())
		if won.Load() != 1 || lost.Load() != 99 || n != 1 || err != nil {
			t.Errorf("%d won, %d lost, %d accounts, %v", won.Load(), lost.Load(), n, err)
		}
	})
}

func TestRemoteOf(t *testing.T) {
	for _, c := range []struct {
		addr, host, header string
		want               bool
	}{
		{"127.0.0.1:5000", "localhost:8080", "", true},
		{"[::1]:5000", "[::1]:8080", "", true},
		{"127.8.8.8:5000", "127.0.0.1", "", true},
		{"[::ffff:127.0.0.1]:5000", "LOCALHOST", "", true},
		{"192.0.2.1:5000", "localhost:8080", "", false},
		{"10.0.0.1:5000", "10.0.0.2", "", false},
		{"127.0.0.1:5000", "rebound.evil.test:8080", "", false},
		{"127.0.0.1:5000", "localhost.evil.test", "", false},
		{"127.0.0.1:5000", "localhost", "X-Forwarded-For", false},
		{"127.0.0.1:5000", "localhost", "X-Forwarded-Host", false},
		{"127.0.0.1:5000", "localhost", "Forwarded", false},
		{"127.0.0.1:5000", "localhost", "X-Real-IP", false},
		{"@", "localhost", "", false}, // a Unix socket says nothing
		{"", "localhost", "", false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/", nil)
		r.RemoteAddr, r.Host = c.addr, c.host
		if c.header != "" {
			r.Header = http.Header{}
			r.Header.Set(c.header, "127.0.0.1")
		}
		if got := auth.RemoteOf(r, "x").Local; got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestBootstrap(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t)
		if r.NeedsFirstAccount(t.Context()) {
			t.Error("needs an account")
		}
		if id, err := r.SignIn(t.Context(), "admin", goodPassword); err != nil || !id.Admin {
			t.Errorf("%+v %v", id, err)
		}
		again := func(password, token string) *auth.Service {
			s := auth.New(auth.Options{Store: r.store, AdminPassword: password, AdminToken: token})
			s.CheapHashes()
			if err := s.Bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
			return s
		}
		// Later starts do not change the password, and the token follows its variable.
		s := again(otherPassword, adminToken)
		_, err := s.SignIn(t.Context(), "admin", otherPassword)
		wantCode(t, err, registry.CodeUnauthenticated)
		s = again("", adminToken+"-new")
		_, err = s.VerifyToken(t.Context(), adminToken)
		wantCode(t, err, registry.CodeUnauthenticated)
		id, err := s.VerifyToken(t.Context(), adminToken+"-new")
		if err != nil || id.Name != "admin" {
			t.Errorf("%+v %v", id, err)
		}
		if tokens, err := s.ListTokens(auth.WithIdentity(t.Context(), id), ""); err != nil || len(tokens) != 1 || len(tokens[0].Prefix) > 4 {
			t.Errorf("%+v %v", tokens, err)
		}
		again("", "")
	})
}

func TestBootstrapRefusesBadSecrets(t *testing.T) {
	for variable, o := range map[string]auth.Options{
		"LLMM_ADMIN_PASSWORD": {AdminPassword: "short"},
		"LLMM_ADMIN_TOKEN":    {AdminToken: "nineteen-characters"},
	} {
		o.Store = newMemStore()
		err := auth.New(o).Bootstrap(t.Context())
		wantCode(t, err, registry.CodeInvalid)
		if !strings.Contains(err.Error(), variable) || strings.Contains(err.Error(), o.AdminPassword+o.AdminToken) {
			t.Errorf("%v", err)
		}
		if n, _ := o.Store.CountUsers(t.Context()); n != 0 {
			t.Errorf("%s: an account was made", variable)
		}
	}
}

func TestBootstrapWithATokenOnly(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t, func(o *auth.Options) { o.AdminPassword = "" })
		if id, err := r.VerifyToken(t.Context(), adminToken); err != nil || !id.Admin {
			t.Errorf("%+v %v", id, err)
		}
		for _, p := range []string{"", adminToken} {
			_, err := r.SignIn(t.Context(), "admin", p)
			wantCode(t, err, registry.CodeUnauthenticated)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t)
		u := r.user("mia")
		mia := r.as("mia")
		adm := r.admin()
		secret, _, err := r.CreateToken(mia, "ci", 0)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					if _, err := r.VerifyToken(t.Context(), secret); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Go(func() {
				_, tok, err := r.CreateToken(mia, "x", 0)
				if err == nil {
					err = r.DeleteToken(mia, "", tok.ID)
				}
				if err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if err := r.SetAdmin(adm, u.ID, true); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}
