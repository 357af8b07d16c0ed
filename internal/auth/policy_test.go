package auth_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// expected is written by hand and on purpose not derived from the table: one letter for each caller who may, on a thing
// of the team "ml". Callers: n nobody, o signed in without a team, x maintainer of another team only, v viewer of ml,
// m member of ml, M maintainer of ml, a admin.
var expected = map[auth.Action]string{
	"public":               "noxvmMa",
	"account.own":          "oxvmMa",
	"token.own":            "oxvmMa",
	"model.list":           "vmMa",
	"model.read":           "vmMa",
	"model.use":            "vmMa",
	"model.register":       "mMa",
	"model.edit":           "mMa",
	"model.load":           "mMa",
	"model.unload":         "mMa",
	"model.delete":         "Ma",
	"model.fetch":          "mMa",
	"model.override":       "Ma",
	"storage.read":         "vmMa",
	"storage.delete":       "Ma",
	"storage.manage":       "a",
	"secret.list":          "mMa",
	"secret.manage":        "Ma",
	"registration.approve": "Ma",
	"operation.read":       "vmMa",
	"operation.cancel":     "mMa",
	"logs.read":            "mMa",
	"events.read":          "vmMa",
	"resources.read":       "vmMa",
	"engines.read":         "vmMa",
	"engine.install":       "a",
	"engine.test":          "a",
	"manifest.import":      "mMa",
	"manifest.export":      "vmMa",
	"member.manage":        "Ma",
	"team.manage":          "a",
	"user.manage":          "a",
	"audit.read":           "a",
}

// expectedNoTeam is the same where no team is named, for the actions for which that differs: what needs a role in
// some team is then open to x as well, and what belongs to a team is open to admins only.
var expectedNoTeam = map[auth.Action]string{
	"model.list": "xvmMa", "events.read": "xvmMa", "resources.read": "xvmMa", "engines.read": "xvmMa",
	"manifest.import": "xmMa", "manifest.export": "xvmMa",
	"model.read": "a", "model.use": "a", "model.register": "a", "model.edit": "a", "model.load": "a", "model.unload": "a",
	"model.delete": "a", "model.override": "a", "registration.approve": "a", "operation.read": "a", "operation.cancel": "a",
	"logs.read": "a", "member.manage": "a", "model.fetch": "a",
	"storage.read": "xvmMa", "storage.delete": "a", "secret.list": "xmMa", "secret.manage": "a",
}

func callers() map[rune]auth.Identity {
	known := func(roles map[string]registry.Role) auth.Identity {
		return auth.Identity{UserID: "1", Name: "mia", Roles: roles, Via: auth.ViaSession}
	}
	return map[rune]auth.Identity{
		'n': {Via: auth.ViaNone},
		'o': known(nil),
		'x': known(map[string]registry.Role{"other": registry.RoleMaintainer}),
		'v': known(map[string]registry.Role{"ml": registry.RoleViewer}),
		'm': known(map[string]registry.Role{"ml": registry.RoleMember}),
		'M': known(map[string]registry.Role{"ml": registry.RoleMaintainer}),
		'a': {UserID: "2", Name: "root", Admin: true, Via: auth.ViaToken},
	}
}

func TestPolicyTable(t *testing.T) {
	for _, rule := range auth.Policy() {
		want, ok := expected[rule.Action]
		if !ok {
			t.Errorf("%s is not in the expected table", rule.Action)
			continue
		}
		check := func(team, want string) {
			for letter, id := range callers() {
				err := auth.Allowed(id, rule.Action, team)
				code := registry.CodeOf(err)
				wantCode := registry.CodeForbidden
				switch {
				case strings.ContainsRune(want, letter):
					wantCode = ""
				case letter == 'n':
					wantCode = registry.CodeUnauthenticated
				}
				if code != wantCode {
					t.Errorf("%s by %c on team %q: %q (%v), want %q", rule.Action, letter, team, code, err, wantCode)
				}
			}
		}
		check("ml", want)
		if other, differs := expectedNoTeam[rule.Action]; differs {
			want = other
		}
		check("", want)
	}
}

// Every constant of type Action has exactly one row, and every row a constant: read from the source, so that a
// new constant without a row fails here.
func TestEveryActionHasOneRow(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "policy.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	for _, r := range auth.Policy() {
		rows[string(r.Action)]++
	}
	constants := map[string]int{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Action" {
			return true
		}
		for _, v := range spec.Values {
			lit, ok := v.(*ast.BasicLit)
			if !ok {
				t.Fatalf("an Action that is no literal: %v", v)
			}
			name, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			constants[name]++
		}
		return true
	})
	want := map[string]int{}
	for a := range expected {
		want[string(a)] = 1
	}
	if d := cmp.Diff(want, constants); d != "" {
		t.Errorf("constants (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Errorf("rows (-want +got):\n%s", d)
	}
}

func TestRowsMakeSense(t *testing.T) {
	for _, r := range auth.Policy() {
		inTeam := r.Scope == auth.ScopeTeam || r.Scope == auth.ScopeAnyTeam
		if inTeam != (r.Role != "") {
			t.Errorf("%s: scope %s and role %q do not go together", r.Action, r.Scope, r.Role)
		}
		if r.Does == "" {
			t.Errorf("%s does not say what it does", r.Action)
		}
	}
}

func TestUnknownActionIsRefused(t *testing.T) {
	for letter, id := range callers() {
		if err := auth.Allowed(id, "model.sing", "ml"); registry.CodeOf(err) != registry.CodeInternal {
			t.Errorf("%c: %v", letter, err)
		}
	}
}

// An unknown role, an identity that was never proved and a zero one hold nothing.
func TestDefectiveIdentitiesHoldNothing(t *testing.T) {
	for name, id := range map[string]auth.Identity{
		"unknown role":     {UserID: "1", Via: auth.ViaToken, Roles: map[string]registry.Role{"ml": "owner"}},
		"unproved admin":   {UserID: "1", Admin: true, Via: auth.ViaNone},
		"zero admin":       {Admin: true},
		"admin without id": {Admin: true, Via: auth.ViaSession},
	} {
		if auth.Allowed(id, auth.ModelRead, "ml") == nil || auth.Sees(id, "ml") {
			t.Errorf("%s may see a model", name)
		}
		if teams := auth.VisibleTeams(id); teams == nil || len(teams) > 0 {
			t.Errorf("%s sees %v", name, teams)
		}
	}
}

func TestForbiddenSaysWhatIsNeeded(t *testing.T) {
	err := auth.Allowed(callers()['v'], auth.ModelLoad, "ml")
	for _, part := range []string{"load this model", "member", `"ml"`, "viewer", "maintainer of the team"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if err := auth.Allowed(callers()['M'], auth.UserManage, ""); !strings.Contains(err.Error(), "admin") {
		t.Errorf("%q does not say who may", err)
	}
}

func TestVisibleTeams(t *testing.T) {
	c := callers()
	if got := auth.VisibleTeams(c['a']); got != nil {
		t.Errorf("an admin sees %v, want all (nil)", got)
	}
	if got := auth.VisibleTeams(c['n']); got == nil || len(got) != 0 {
		t.Errorf("nobody sees %v, want none", got)
	}
	two := auth.Identity{UserID: "1", Via: auth.ViaSession, Roles: map[string]registry.Role{"z": registry.RoleViewer, "b": registry.RoleMaintainer}}
	if d := cmp.Diff([]string{"b", "z"}, auth.VisibleTeams(two)); d != "" {
		t.Error(d)
	}
}
