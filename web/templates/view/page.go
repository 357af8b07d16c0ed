package view

import (
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Page is what every page has around its content. There is no token against cross-site requests in it: the session
// cookie is SameSite and the server refuses requests whose Sec-Fetch-Site or Origin is another site's.
type Page struct {
	Title   string
	Nav     string // the entry that is current: overview, models, activity, storage, engines, secrets, teams, yaml, account
	User    User
	Needs   int    // what waits for somebody, for the badge
	Live    string // the page's event stream, from LiveURL; "" for pages that do not move
	Flash   *Flash // told once, above the content
	Version string // of llmm
	Now     time.Time
}

// User is who is signed in.
type User struct {
	Name    string
	Admin   bool
	Secrets bool // may see the names of secrets
}

// Flash is a sentence about what was just done.
type Flash struct {
	Kind string // ok, warn or bad
	Msg  string
}

// Can says which actions the signed-in user may take here; what they may not is not offered.
type Can struct {
	Register bool // also edit
	Load     bool // also unload, cancel and fetch
	Override bool // load in spite of a shortage
	Delete   bool
	Approve  bool
	Install  bool // engines; also upgrade and remove
	Test     bool // engines
	Manage   bool // users and teams
}

// SignIn is the sign-in page, and the page that makes the first account.
type SignIn struct {
	Name  string
	Next  string            // where to go afterwards; a path of ours
	Error string            // why it was refused
	Field map[string]string // first account: what is wrong with which field
}

// Overview is the first page.
type Overview struct {
	Page
	Can      Can
	Total    int // registered models
	Devices  []Device
	GPUNote  string // why there is no GPU, when that is a fault
	Loaded   []ModelRow
	Needs    []Need
	Activity []Operation
}

// Need is something that waits for a person.
type Need struct {
	ID     string // unique on the page, fit for an id attribute
	Kind   string // failed, approval, manifest, engine, stalled
	What   string // the subject, emphasised: a model's or an engine's name
	Says   string // what about it: "failed to load"
	Detail string
	Action string // the button's words
	URL    string // where the button leads
}

// Models is the list.
type Models struct {
	Page
	Can    Can
	Filter Filter
	Rows   []ModelRow
	Total  int      // registered models, whatever the filter
	Next   string   // keyset: the value of after for the next page; "" at the end
	Teams  []string // to filter by; empty when there is only one
}

// Filter is the list's search, as in its address.
type Filter struct {
	Q      string
	Status string
	Team   string
	Source string
	After  string
}

// Active reports whether anything is filtered.
func (f Filter) Active() bool { return f.Q != "" || f.Status != "" || f.Team != "" || f.Source != "" }

// Activity is the list of operations.
type Activity struct {
	Page
	Running []Operation
	Past    []Operation
	Kind    string // filter
	Next    string // keyset
	Can     Can
}

// OperationPage is one operation.
type OperationPage struct {
	Page
	Op  Operation
	Log []string
	Can Can
}

// Account is the signed-in user's own page. Secret is a token that was made just now, shown this once.
type Account struct {
	Page
	Tokens        []registry.Token
	Secret        string
	SecretName    string
	PasswordError string
	TokenError    string
	BaseURL       string // of this server, for the example
	Memberships   []registry.Member
}

// Teams is users and teams.
type Teams struct {
	Page
	Can    Can
	Teams  []Team
	Users  []registry.User
	Form   map[string]string // what was typed
	Errors map[string]string // by "user.name", "user.password", "team.name", "member.TEAM"
	Audit  []registry.AuditEntry
}

// Team is a team with its members' names.
type Team struct {
	registry.Team
	Models  int
	Members []Member
}

// Member is a user in a team.
type Member struct {
	UserID string
	Name   string
	Role   registry.Role
}

// YAML is the models file, in and out.
type YAML struct {
	Page
	Can      Can
	Manifest registry.ManifestStatus
	Text     string      // what was pasted
	Diff     *ImportDiff // the dry run's answer
	Result   *ImportDiff // what was applied
	Error    string      // the text is not YAML at all
	Models   int         // how many an export would hold
}

// ImportDiff is what an import would change, or changed.
type ImportDiff struct {
	Added     []string
	Changed   []ModelChange
	Unchanged int
	Issues    []registry.FieldError
}

// ModelChange is one model with the fields that differ. Secrets are redacted.
type ModelChange struct {
	ModelID string
	Fields  []FieldChange
}

// FieldChange is one field before and after, as text.
type FieldChange struct{ Name, Old, New string }

// Error is an error page.
type Error struct {
	Page
	Status  int
	Problem registry.Problem
	ID      string // of the request, to find it in the log; "" when there is none
}

// Jump is the answer to the search-or-jump box.
type Jump struct {
	Q    string
	Hits []Hit
}

// Hit is one place to jump to.
type Hit struct {
	Kind  string // model, page, action
	Title string
	Note  string
	URL   string
	Dot   string // a status class
}
