package auth_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestBruteForce(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestPasswordSprayingIsLimitedByRemote(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestSignInTellsNothing(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestPasswordRules(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t)
		for password, ok := range map[string]bool{
			"123456789":              false,
			"1234567890":             true,
			"ééééééééé":              false, // nine characters, more bytes
			"administrator":          false, // the name
			"Administrator":          false,
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
	})
}

func TestAccountNames(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestTokens(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
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
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestTeams(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
		wantCode(t, r.DeleteTeam(r.admin(), "default"), registry.CodeBadState)
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
	})
}

func TestTheLastAdminStays(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
		r := newRig(t)
		adm := r.admin()
		root := auth.FromContext(adm).UserID
		wantCode(t, r.SetAdmin(adm, root, false), registry.CodeBadState)
		wantCode(t, r.SetDisabled(adm, root, true), registry.CodeBadState)
		wantCode(t, r.DeleteUser(adm, root), registry.CodeBadState)
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
	})
}

func TestOnlyAdminsManageAccounts(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
	})
}

func TestAuditHoldsEverythingAndNoSecret(t *testing.T) {
	overEachStore(t, func(t *testing.T, newRig makeRig) {
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
		all := fmt.Sprintf("%+v", r.entries()) + r.log.String()
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
			for _, e := range r.entries() {
				e.At = time.Time{}
				found = found || e == want
			}
			if !found {
				t.Errorf("the audit lacks %+v", want)
			}
		}
		r.Audit(ctx, auth.ModelLoad, "model:a\nb", nil, strings.Repeat("x", 5000))
		last := r.entries()[len(r.entries())-1]
		if strings.Contains(last.Subject, "\n") || len(last.Detail) > 510 {
			t.Errorf("%q, %d bytes", last.Subject, len(last.Detail))
		}
	})
}
