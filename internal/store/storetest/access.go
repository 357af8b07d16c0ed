package storetest

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func user(name string) registry.User {
	return registry.User{ID: "id-" + name, Name: name, PasswordHash: "hash of " + name}
}

func testUsers(t *testing.T, f *fixture) {
	ctx := t.Context()
	ada := user("Ada")
	ada.Admin = true
	ok(t, f.CreateUser(ctx, ada))
	ok(t, f.CreateUser(ctx, user("bob")))
	wantCode(t, f.CreateUser(ctx, registry.User{ID: "other", Name: "ADA"}), registry.CodeConflict)
	wantCode(t, f.CreateUser(ctx, registry.User{ID: "id-bob", Name: "robert"}), registry.CodeConflict)
	wantCode(t, f.CreateUser(ctx, registry.User{ID: "nameless"}), registry.CodeInvalid)
	ada.CreatedAt = f.now
	f.reopen(t)
	byID, err := f.User(ctx, "id-Ada")
	ok(t, err)
	byName, err := f.UserByName(ctx, "aDA")
	ok(t, err)
	for _, got := range []registry.User{byID, byName} {
		if diff := cmp.Diff(ada, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
	_, err = f.User(ctx, "none")
	wantCode(t, err, registry.CodeNotFound)
	_, err = f.UserByName(ctx, "none")
	wantCode(t, err, registry.CodeNotFound)
	all, err := f.ListUsers(ctx)
	ok(t, err)
	if n, err := f.CountUsers(ctx); n != 2 || len(all) != 2 || all[1].Name != "bob" || err != nil {
		t.Errorf("counted %d, listed %+v, %v", n, all, err)
	}

	// The last admin who can sign in stays one.
	for _, change := range []func(*registry.User){func(u *registry.User) { u.Admin = false }, func(u *registry.User) { u.Disabled = true }} {
		changed := ada
		change(&changed)
		wantCode(t, f.UpdateUser(ctx, changed), registry.CodeBadState)
	}
	wantCode(t, f.DeleteUser(ctx, ada.ID), registry.CodeBadState)
	bob := all[1]
	bob.Admin, bob.Disabled, bob.LastSeenAt = true, true, f.now.Add(time.Minute)
	ok(t, f.UpdateUser(ctx, bob))
	wantCode(t, f.DeleteUser(ctx, ada.ID), registry.CodeBadState)
	bob.Disabled = false
	bob.Name = "ada"
	wantCode(t, f.UpdateUser(ctx, bob), registry.CodeConflict)
	bob.Name = "Bob"
	ok(t, f.UpdateUser(ctx, bob))
	if got, err := f.User(ctx, bob.ID); !cmp.Equal(bob, got) || err != nil {
		t.Errorf("after the change %+v, %v", got, err)
	}
	ok(t, f.DeleteUser(ctx, ada.ID))
	wantCode(t, f.DeleteUser(ctx, ada.ID), registry.CodeNotFound)
	wantCode(t, f.UpdateUser(ctx, ada), registry.CodeNotFound)
}

func testFirstUser(t *testing.T, f *fixture) {
	var made atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := f.CreateFirstUser(t.Context(), user(fmt.Sprint("u", i)))
			switch registry.CodeOf(err) {
			case "":
				made.Add(1)
			case registry.CodeConflict:
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, err := f.CountUsers(t.Context()); made.Load() != 1 || n != 1 || err != nil {
		t.Errorf("%d were told that they were first, %d accounts, %v", made.Load(), n, err)
	}
}

func testTeams(t *testing.T, f *fixture) {
	ctx := t.Context()
	ok(t, f.EnsureTeam(ctx, "blue"))
	ok(t, f.EnsureTeam(ctx, "blue"))
	wantCode(t, f.EnsureTeam(ctx, "Blue!"), registry.CodeInvalid)
	m := model("m")
	m.Team = "green"
	f.put(t, m, lasting)
	teams, err := f.ListTeams(ctx)
	ok(t, err)
	var names []string
	for _, team := range teams {
		names = append(names, team.Name)
		if team.CreatedAt.IsZero() {
			t.Errorf("%s was made at no time", team.Name)
		}
	}
	if diff := cmp.Diff([]string{"blue", "default", "green"}, names); diff != "" {
		t.Fatalf("teams (-want +got):\n%s", diff)
	}
	wantCode(t, f.DeleteTeam(ctx, "green"), registry.CodeBadState)
	wantCode(t, f.DeleteTeam(ctx, "default"), registry.CodeBadState)
	wantCode(t, f.DeleteTeam(ctx, "none"), registry.CodeNotFound)

	ok(t, f.CreateUser(ctx, user("ada")))
	ok(t, f.CreateUser(ctx, user("bob")))
	for _, member := range []registry.Member{{Team: "blue", UserID: "id-ada", Role: registry.RoleViewer}, {Team: "blue", UserID: "id-ada", Role: registry.RoleMaintainer},
		{Team: "green", UserID: "id-ada", Role: registry.RoleMember}, {Team: "blue", UserID: "id-bob", Role: registry.RoleViewer}} {
		ok(t, f.SetMember(ctx, member))
	}
	wantCode(t, f.SetMember(ctx, registry.Member{Team: "none", UserID: "id-ada", Role: registry.RoleViewer}), registry.CodeNotFound)
	wantCode(t, f.SetMember(ctx, registry.Member{Team: "blue", UserID: "none", Role: registry.RoleViewer}), registry.CodeNotFound)
	wantCode(t, f.SetMember(ctx, registry.Member{Team: "blue", UserID: "id-ada", Role: "king"}), registry.CodeInvalid)
	members, err := f.Members(ctx, "blue")
	ok(t, err)
	if diff := cmp.Diff([]registry.Member{{Team: "blue", UserID: "id-ada", Role: registry.RoleMaintainer}, {Team: "blue", UserID: "id-bob", Role: registry.RoleViewer}}, members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	memberships := func(want map[string]registry.Role) {
		t.Helper()
		got, err := f.Memberships(ctx, "id-ada")
		ok(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("memberships (-want +got):\n%s", diff)
		}
	}
	memberships(map[string]registry.Role{"blue": registry.RoleMaintainer, "green": registry.RoleMember})
	ok(t, f.SetMember(ctx, registry.Member{Team: "green", UserID: "id-ada"}))
	memberships(map[string]registry.Role{"blue": registry.RoleMaintainer})
	ok(t, f.DeleteTeam(ctx, "blue"))
	memberships(map[string]registry.Role{})
	ok(t, f.SetMember(ctx, registry.Member{Team: "green", UserID: "id-bob", Role: registry.RoleViewer}))
	ok(t, f.DeleteUser(ctx, "id-bob"))
	if members, err := f.Members(ctx, "green"); len(members) != 0 || err != nil {
		t.Errorf("a deleted account is still a member: %v, %v", members, err)
	}
}

func testTokens(t *testing.T, f *fixture) {
	ctx := t.Context()
	ok(t, f.CreateUser(ctx, user("ada")))
	ok(t, f.CreateUser(ctx, user("bob")))
	token := registry.Token{ID: "t1", UserID: "id-ada", Name: "laptop", Prefix: "llmm_ab", Hash: bytes.Repeat([]byte{7}, 32), CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
	ok(t, f.CreateToken(ctx, token))
	other := registry.Token{ID: "t2", UserID: "id-bob", Hash: bytes.Repeat([]byte{8}, 32), CreatedAt: f.now.Add(time.Second)}
	ok(t, f.CreateToken(ctx, other))
	wantCode(t, f.CreateToken(ctx, registry.Token{ID: "t3", UserID: "id-ada", Hash: token.Hash}), registry.CodeConflict)
	wantCode(t, f.CreateToken(ctx, registry.Token{ID: "t4", UserID: "none", Hash: []byte{1}}), registry.CodeNotFound)
	_, err := f.TokenByHash(ctx, []byte{9})
	wantCode(t, err, registry.CodeNotFound)

	ok(t, f.TouchToken(ctx, "t1", f.now))
	ok(t, f.TouchToken(ctx, "t1", f.now.Add(time.Second))) // too soon to be written again
	ok(t, f.TouchToken(ctx, "gone", f.now))
	token.LastUsedAt = f.now
	f.reopen(t)
	got, err := f.TokenByHash(ctx, token.Hash)
	ok(t, err)
	if diff := cmp.Diff(token, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	ok(t, f.TouchToken(ctx, "t1", f.now.Add(time.Hour)))
	got, err = f.TokenByHash(ctx, token.Hash)
	ok(t, err)
	if !got.LastUsedAt.Equal(f.now.Add(time.Hour)) {
		t.Errorf("last used at %v", got.LastUsedAt)
	}
	count := func(user string, want int) {
		t.Helper()
		list, err := f.ListTokens(ctx, user)
		if len(list) != want || err != nil {
			t.Errorf("%d tokens of %q, want %d, %v", len(list), user, want, err)
		}
	}
	count("", 2)
	count("id-ada", 1)
	ok(t, f.DeleteToken(ctx, "t1"))
	wantCode(t, f.DeleteToken(ctx, "t1"), registry.CodeNotFound)
	ok(t, f.DeleteUser(ctx, "id-bob"))
	count("", 0)
}

func testSessions(t *testing.T, f *fixture) {
	x := f.Sessions()
	find := func(token, want string) {
		t.Helper()
		data, found, err := f.Sessions().FindCtx(t.Context(), token)
		ok(t, err)
		if string(data) != want || found != (want != "") {
			t.Errorf("session %q: %q, found %v, want %q", token, data, found, want)
		}
	}
	find("a", "")
	ok(t, x.CommitCtx(t.Context(), "a", []byte("one"), f.now.Add(time.Minute)))
	ok(t, x.Commit("b", []byte("two"), f.now.Add(time.Hour)))
	ok(t, x.Commit("b", []byte("three"), f.now.Add(time.Hour)))
	f.reopen(t)
	x = f.Sessions()
	find("a", "one")
	find("b", "three")
	f.now = f.now.Add(time.Minute)
	find("a", "")
	find("b", "three")
	ok(t, x.Delete("b"))
	ok(t, x.DeleteCtx(t.Context(), "b"))
	find("b", "")
	if _, found, err := x.Find("b"); found || err != nil {
		t.Error(found, err)
	}
}

func testSettings(t *testing.T, f *fixture) {
	ctx := t.Context()
	id := f.InstallationID()
	if len(id) < 20 {
		t.Errorf("the installation's name is %q", id)
	}
	if _, found, err := f.Setting(ctx, "k"); found || err != nil {
		t.Fatal(found, err)
	}
	ok(t, f.SetSetting(ctx, "k", "v"))
	ok(t, f.SetSetting(ctx, "k", "w"))
	ok(t, f.SetSetting(ctx, "empty", ""))
	f.reopen(t)
	if v, found, err := f.Setting(ctx, "k"); v != "w" || !found || err != nil {
		t.Error(v, found, err)
	}
	if v, found, err := f.Setting(ctx, "empty"); v != "" || !found || err != nil {
		t.Error(v, found, err)
	}
	if f.InstallationID() != id {
		t.Errorf("the installation was %q and is now %q", id, f.InstallationID())
	}
}
