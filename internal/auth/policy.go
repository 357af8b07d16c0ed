package auth

import (
	"fmt"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Action is something that the product does for somebody. Every route of the console, the API and the gateway names
// one; what is not in the policy table is refused.
type Action string

// The actions.
const (
	Public Action = "public" // health, the sign-in page, static files

	AccountOwn Action = "account.own" // see one's own account, change one's password, sign out
	TokenOwn   Action = "token.own"   // one's own API tokens

	ModelList     Action = "model.list" // what comes back is narrowed to VisibleTeams
	ModelRead     Action = "model.read"
	ModelUse      Action = "model.use" // inference on a loaded model; loading it on demand is ModelLoad
	ModelRegister Action = "model.register"
	ModelEdit     Action = "model.edit"
	ModelLoad     Action = "model.load"
	ModelUnload   Action = "model.unload"
	ModelDelete   Action = "model.delete"
	ModelFetch    Action = "model.fetch"    // bring its files to disk, or pause and resume that
	ModelOverride Action = "model.override" // load although the plan says there is too little memory

	RegistrationApprove Action = "registration.approve"

	OperationRead   Action = "operation.read"
	OperationCancel Action = "operation.cancel"

	LogsRead Action = "logs.read" // an engine's log may quote prompts, so viewers do not see it

	EventsRead    Action = "events.read"
	ResourcesRead Action = "resources.read"
	EnginesRead   Action = "engines.read"
	EngineInstall Action = "engine.install" // install, upgrade and remove
	EngineTest    Action = "engine.test"    // load a tiny model for a moment; ask the services that models name

	ManifestImport Action = "manifest.import" // each entry is checked for ModelRegister or ModelEdit as well
	ManifestExport Action = "manifest.export" // narrowed to VisibleTeams

	StorageRead   Action = "storage.read"   // what other teams' models use is counted and not named
	StorageDelete Action = "storage.delete" // what one team's models use is that team's; all else belongs to no team
	StorageManage Action = "storage.manage" // retention, bandwidth limits, root folders, unfinished downloads

	SecretList   Action = "secret.list"   // names only, of VisibleTeams
	SecretManage Action = "secret.manage" // those of every team belong to no team

	MemberManage Action = "member.manage"
	TeamManage   Action = "team.manage"
	UserManage   Action = "user.manage"
	AuditRead    Action = "audit.read"
)

// Scope says where the role that an action needs is looked for.
type Scope string

// The scopes.
const (
	ScopePublic   Scope = "public"    // anybody, known or not
	ScopeSignedIn Scope = "signed_in" // any account; it concerns only itself
	ScopeTeam     Scope = "team"      // the role in the team that owns the thing
	ScopeAnyTeam  Scope = "any_team"  // the role in some team; in that team, if one is named
	ScopeAdmin    Scope = "admin"     // admins of the installation only
)

// Rule is one row of the policy table.
type Rule struct {
	Action Action        `json:"action"`
	Scope  Scope         `json:"scope"`
	Role   registry.Role `json:"role,omitempty"` // the least role, with ScopeTeam and ScopeAnyTeam
	Does   string        `json:"does"`           // completes "you may not …"
}

// policy is the only place that says who may do what. An admin may do all of it.
var policy = []Rule{
	{Public, ScopePublic, "", "see public pages"},

	{AccountOwn, ScopeSignedIn, "", "manage your account"},
	{TokenOwn, ScopeSignedIn, "", "manage your API tokens"},

	{ModelList, ScopeAnyTeam, registry.RoleViewer, "list models"},
	{ModelRead, ScopeTeam, registry.RoleViewer, "see this model"},
	{ModelUse, ScopeTeam, registry.RoleViewer, "use this model"},
	{ModelRegister, ScopeTeam, registry.RoleMember, "register models"},
	{ModelEdit, ScopeTeam, registry.RoleMember, "edit this model"},
	{ModelLoad, ScopeTeam, registry.RoleMember, "load this model"},
	{ModelUnload, ScopeTeam, registry.RoleMember, "unload this model"},
	{ModelDelete, ScopeTeam, registry.RoleMaintainer, "delete this model"},
	{ModelFetch, ScopeTeam, registry.RoleMember, "fetch this model's files"},
	{ModelOverride, ScopeTeam, registry.RoleMaintainer, "load this model despite too little memory"},
	{RegistrationApprove, ScopeTeam, registry.RoleMaintainer, "approve registrations"},

	{OperationRead, ScopeTeam, registry.RoleViewer, "see this operation"},
	{OperationCancel, ScopeTeam, registry.RoleMember, "cancel this operation"},
	{LogsRead, ScopeTeam, registry.RoleMember, "read this engine's log"},

	{EventsRead, ScopeAnyTeam, registry.RoleViewer, "follow events"},
	{ResourcesRead, ScopeAnyTeam, registry.RoleViewer, "see this machine's resources"},
	{EnginesRead, ScopeAnyTeam, registry.RoleViewer, "see the engines"},
	{EngineInstall, ScopeAdmin, "", "install or remove engines"},
	{EngineTest, ScopeAdmin, "", "test engines"},

	{ManifestImport, ScopeAnyTeam, registry.RoleMember, "import models"},
	{ManifestExport, ScopeAnyTeam, registry.RoleViewer, "export models"},

	{StorageRead, ScopeAnyTeam, registry.RoleViewer, "see what occupies the disks"},
	{StorageDelete, ScopeTeam, registry.RoleMaintainer, "delete these files"},
	{StorageManage, ScopeAdmin, "", "change how files are fetched and kept"},

	{SecretList, ScopeAnyTeam, registry.RoleMember, "see the names of secrets"},
	{SecretManage, ScopeTeam, registry.RoleMaintainer, "change this secret"},

	{MemberManage, ScopeTeam, registry.RoleMaintainer, "manage members"},
	{TeamManage, ScopeAdmin, "", "manage teams"},
	{UserManage, ScopeAdmin, "", "manage accounts"},
	{AuditRead, ScopeAdmin, "", "read the audit"},
}

// Policy returns the table, for the docs, the console and the tests.
func Policy() []Rule { return slices.Clone(policy) }

// RuleFor returns the row of an action.
func RuleFor(a Action) (Rule, bool) {
	for _, r := range policy {
		if r.Action == a {
			return r, true
		}
	}
	return Rule{}, false
}

// Allowed returns nil if the caller may do a to something that belongs to team. team is empty for what belongs to no
// team. Errors: CodeUnauthenticated if the caller is not known, CodeForbidden with a message that says which role is
// needed where, CodeInternal for an action without a row.
//
// Allowed says "forbidden", which tells that the thing exists. Whoever looks something up by name must answer
// CodeNotFound instead when the caller is not a member of its team at all: see Sees.
func Allowed(id Identity, a Action, team string) error {
	rule, ok := RuleFor(a)
	if !ok {
		return registry.Errorf(registry.CodeInternal, "the action %q is not in the policy table; report this as a bug", a)
	}
	if rule.Scope == ScopePublic {
		return nil
	}
	if !id.Known() {
		return registry.Errorf(registry.CodeUnauthenticated, "this needs an account: sign in, or send an API token as \"Authorization: Bearer …\"")
	}
	if id.Admin || rule.Scope == ScopeSignedIn {
		return nil
	}
	switch rule.Scope {
	case ScopeTeam, ScopeAnyTeam:
		if rule.Scope == ScopeAnyTeam && team == "" {
			for _, has := range id.Roles {
				if atLeast(has, rule.Role) {
					return nil
				}
			}
		} else if atLeast(id.Roles[team], rule.Role) {
			return nil
		}
	case ScopeAdmin, ScopePublic, ScopeSignedIn:
	}
	return registry.Errorf(registry.CodeForbidden, "%s", refusal(id, rule, team))
}

func refusal(id Identity, rule Rule, team string) string {
	if rule.Scope == ScopeAdmin {
		return fmt.Sprintf("%s may not %s: only an admin of this installation may; ask one", id.Name, rule.Does)
	}
	where := fmt.Sprintf("the role %s or higher in the team %q", rule.Role, team)
	who := "a maintainer of the team"
	if team == "" {
		where, who = fmt.Sprintf("the role %s or higher in a team", rule.Role), "an admin"
	}
	return fmt.Sprintf("%s may not %s: this needs %s and you %s; ask %s", id.Name, rule.Does, where, standing(id, team), who)
}

func standing(id Identity, team string) string {
	switch {
	case team != "" && id.Roles[team] != "":
		return "are " + string(id.Roles[team])
	case team != "":
		return "are not a member"
	case len(id.Roles) == 0:
		return "are in none yet"
	}
	return "have a lesser one"
}

// atLeast reports whether has includes need. A role that is not in registry.Roles includes nothing.
func atLeast(has, need registry.Role) bool {
	h, n := slices.Index(registry.Roles, has), slices.Index(registry.Roles, need)
	return h >= 0 && n >= 0 && h >= n
}

// VisibleTeams returns the teams whose models the caller may see, sorted: nil means every team (an admin), an empty
// list none.
func VisibleTeams(id Identity) []string {
	if !id.Known() {
		return []string{}
	}
	if id.Admin {
		return nil
	}
	teams := id.Teams()
	return slices.DeleteFunc(teams, func(t string) bool { return !atLeast(id.Roles[t], registry.RoleViewer) })
}

// Sees reports whether the caller may know that a thing of this team exists.
func Sees(id Identity, team string) bool {
	return id.Known() && (id.Admin || atLeast(id.Roles[team], registry.RoleViewer))
}
