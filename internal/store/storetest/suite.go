// Package storetest is what every store of the registry has to keep to. Run it with a function that opens an empty one.
package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// Store is the interface under test: that of *store.Store.
type Store interface {
	ListModels(ctx context.Context, q store.ListQuery) (store.Page, error)
	CountModels(ctx context.Context) (int, error)
	Model(ctx context.Context, id string) (registry.Record, error)
	Listed(ctx context.Context, id string) (store.Listed, error)
	PutModel(ctx context.Context, m registry.Model, o store.PutOptions) (rec registry.Record, created bool, err error)
	PutModels(ctx context.Context, ms []registry.Model, o store.PutOptions) (created, changed, unchanged []string, err error)
	DeleteModel(ctx context.Context, id string, ifVersion int64, toManifest bool) error
	SetRegistration(ctx context.Context, id string, st registry.RegistrationState, actor string) (registry.Record, error)
	EachModel(ctx context.Context, teams []string, fn func(registry.Record) error) error
	ManifestPending(ctx context.Context) ([]store.ManifestChange, error)
	ManifestDone(ctx context.Context, upToSeq int64, except ...string) error
	Runtime(ctx context.Context, id string) (registry.Runtime, error)
	PutRuntime(ctx context.Context, rt registry.Runtime) error
	ActiveRuntimes(ctx context.Context) ([]registry.Runtime, error)
	OrphanedRuntimes(ctx context.Context) ([]registry.Runtime, error)
	DeleteRuntime(ctx context.Context, id string) error
	PutOperation(ctx context.Context, op registry.Operation) error
	Operation(ctx context.Context, id string) (registry.Operation, error)
	UnfinishedOperations(ctx context.Context) ([]registry.Operation, error)
	PruneOperations(ctx context.Context, keep int) error
	ListOperations(ctx context.Context, q store.OperationQuery) (ops []registry.Operation, next string, err error)
	Audit(ctx context.Context, e registry.AuditEntry) error
	ListAudit(ctx context.Context, limit int, before int64) ([]registry.AuditEntry, error)
	CountUsers(ctx context.Context) (int, error)
	CreateUser(ctx context.Context, u registry.User) error
	CreateFirstUser(ctx context.Context, u registry.User) error
	User(ctx context.Context, id string) (registry.User, error)
	UserByName(ctx context.Context, name string) (registry.User, error)
	ListUsers(ctx context.Context) ([]registry.User, error)
	UpdateUser(ctx context.Context, u registry.User) error
	DeleteUser(ctx context.Context, id string) error
	EnsureTeam(ctx context.Context, name string) error
	ListTeams(ctx context.Context) ([]registry.Team, error)
	DeleteTeam(ctx context.Context, name string) error
	SetMember(ctx context.Context, m registry.Member) error
	Members(ctx context.Context, team string) ([]registry.Member, error)
	Memberships(ctx context.Context, userID string) (map[string]registry.Role, error)
	CreateToken(ctx context.Context, t registry.Token) error
	TokenByHash(ctx context.Context, hash []byte) (registry.Token, error)
	ListTokens(ctx context.Context, userID string) ([]registry.Token, error)
	DeleteToken(ctx context.Context, id string) error
	TouchToken(ctx context.Context, id string, at time.Time) error
	Setting(ctx context.Context, key string) (value string, ok bool, err error)
	SetSetting(ctx context.Context, key, value string) error
	InstallationID() string
	Sessions() scs.CtxStore
	Close() error
}

// Harness makes stores for the suite.
type Harness struct {
	// Open opens the store in the folder dir, making it if there is none, with now as its clock. It is called again on
	// the same folder after Close.
	Open func(dir string, now func() time.Time) (Store, error)
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"models", testModels},
		{"versions and conflicts", testConflicts},
		{"ids that differ only in case", testCase},
		{"many at once, or none", testBulk},
		{"models that pass", testPassing},
		{"orphaned runtimes", testOrphans},
		{"manifest outbox", testOutbox},
		{"lists and filters", testLists},
		{"search", testSearch},
		{"status follows the three axes", testStatus},
		{"export", testEach},
		{"runtimes", testRuntimes},
		{"operations", testOperations},
		{"audit", testAudit},
		{"accounts", testUsers},
		{"first account", testFirstUser},
		{"teams and members", testTeams},
		{"tokens", testTokens},
		{"sessions", testSessions},
		{"settings", testSettings},
		{"concurrent writers", testConcurrent},
		{"against a map", testAgainstMap},
		{"ended contexts and closed stores", testEnded},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fixture{Harness: h, dir: t.TempDir(), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
			f.open(t)
			t.Cleanup(func() {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
			c.test(t, f)
		})
	}
}

// fixture is a store with a clock that stands still.
type fixture struct {
	Harness
	Store
	dir string
	now time.Time
}

func (f *fixture) open(t tb) {
	t.Helper()
	s, err := f.Harness.Open(f.dir, func() time.Time { return f.now })
	ok(t, err)
	f.Store = s
}

// reopen closes the store and opens it again, as a restart does.
func (f *fixture) reopen(t tb) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.open(t)
}

// tb is what a *testing.T and a *rapid.T share.
type tb interface {
	Context() context.Context
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// lasting is how a person registers a model.
var lasting = store.PutOptions{Actor: "ada", Persist: true}

func model(id string) registry.Model {
	return registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: "/opt/models/" + id, ModelFormat: registry.FormatGGUF}.WithDefaults()
}

func (f *fixture) put(t tb, m registry.Model, o store.PutOptions) registry.Record {
	t.Helper()
	rec, _, err := f.PutModel(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func ok(t tb, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode fails unless err is a *registry.Error of this code that names the operation.
func wantCode(t tb, err error, code registry.Code) {
	t.Helper()
	if got := registry.CodeOf(err); got != code {
		t.Fatalf("got the code %q (%v), want %q", got, err, code)
	}
	if registry.AsError(err).Op == "" {
		t.Errorf("%v does not name its operation", err)
	}
}

// ids returns the ids of a page.
func ids(p store.Page) []string {
	out := make([]string, len(p.Items))
	for i, l := range p.Items {
		out[i] = l.ModelID
	}
	return out
}
