// Package store keeps the registry in SQLite.
package store

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Store is the registry in one SQLite file.
type Store struct{}

func Open(ctx context.Context, o Options) (*Store, error)                      { panic("not yet") }
func (s *Store) Close() error                                                  { panic("not yet") }
func (s *Store) InstallationID() string                                        { panic("not yet") }
func (s *Store) Sessions() scs.CtxStore                                        { panic("not yet") }
func (s *Store) ListModels(ctx context.Context, q ListQuery) (Page, error)     { panic("not yet") }
func (s *Store) CountModels(ctx context.Context) (int, error)                  { panic("not yet") }
func (s *Store) Model(ctx context.Context, id string) (registry.Record, error) { panic("not yet") }
func (s *Store) Listed(ctx context.Context, id string) (Listed, error)         { panic("not yet") }
func (s *Store) PutModel(ctx context.Context, m registry.Model, o PutOptions) (rec registry.Record, created bool, err error) {
	panic("not yet")
}
func (s *Store) PutModels(ctx context.Context, ms []registry.Model, o PutOptions) (created, changed, unchanged []string, err error) {
	panic("not yet")
}
func (s *Store) DeleteModel(ctx context.Context, id string, ifVersion int64, toManifest bool) error {
	panic("not yet")
}
func (s *Store) SetRegistration(ctx context.Context, id string, st registry.RegistrationState, actor string) (registry.Record, error) {
	panic("not yet")
}
func (s *Store) EachModel(ctx context.Context, teams []string, fn func(registry.Record) error) error {
	panic("not yet")
}
func (s *Store) ManifestPending(ctx context.Context) ([]ManifestChange, error)    { panic("not yet") }
func (s *Store) ManifestDone(ctx context.Context, upToSeq int64) error            { panic("not yet") }
func (s *Store) Runtime(ctx context.Context, id string) (registry.Runtime, error) { panic("not yet") }
func (s *Store) PutRuntime(ctx context.Context, rt registry.Runtime) error        { panic("not yet") }
func (s *Store) ActiveRuntimes(ctx context.Context) ([]registry.Runtime, error)   { panic("not yet") }
func (s *Store) OrphanedRuntimes(ctx context.Context) ([]registry.Runtime, error) { panic("not yet") }
func (s *Store) DeleteRuntime(ctx context.Context, id string) error               { panic("not yet") }
func (s *Store) PutOperation(ctx context.Context, op registry.Operation) error    { panic("not yet") }
func (s *Store) Operation(ctx context.Context, id string) (registry.Operation, error) {
	panic("not yet")
}
func (s *Store) UnfinishedOperations(ctx context.Context) ([]registry.Operation, error) {
	panic("not yet")
}
func (s *Store) PruneOperations(ctx context.Context, keep int) error { panic("not yet") }
func (s *Store) ListOperations(ctx context.Context, q OperationQuery) (ops []registry.Operation, next string, err error) {
	panic("not yet")
}
func (s *Store) Audit(ctx context.Context, e registry.AuditEntry) error { panic("not yet") }
func (s *Store) ListAudit(ctx context.Context, limit int, before int64) ([]registry.AuditEntry, error) {
	panic("not yet")
}
func (s *Store) CountUsers(ctx context.Context) (int, error)                        { panic("not yet") }
func (s *Store) CreateUser(ctx context.Context, u registry.User) error              { panic("not yet") }
func (s *Store) CreateFirstUser(ctx context.Context, u registry.User) error         { panic("not yet") }
func (s *Store) User(ctx context.Context, id string) (registry.User, error)         { panic("not yet") }
func (s *Store) UserByName(ctx context.Context, name string) (registry.User, error) { panic("not yet") }
func (s *Store) ListUsers(ctx context.Context) ([]registry.User, error)             { panic("not yet") }
func (s *Store) UpdateUser(ctx context.Context, u registry.User) error              { panic("not yet") }
func (s *Store) DeleteUser(ctx context.Context, id string) error                    { panic("not yet") }
func (s *Store) EnsureTeam(ctx context.Context, name string) error                  { panic("not yet") }
func (s *Store) ListTeams(ctx context.Context) ([]registry.Team, error)             { panic("not yet") }
func (s *Store) DeleteTeam(ctx context.Context, name string) error                  { panic("not yet") }
func (s *Store) SetMember(ctx context.Context, m registry.Member) error             { panic("not yet") }
func (s *Store) Members(ctx context.Context, team string) ([]registry.Member, error) {
	panic("not yet")
}
func (s *Store) Memberships(ctx context.Context, userID string) (map[string]registry.Role, error) {
	panic("not yet")
}
func (s *Store) CreateToken(ctx context.Context, t registry.Token) error { panic("not yet") }
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (registry.Token, error) {
	panic("not yet")
}
func (s *Store) ListTokens(ctx context.Context, userID string) ([]registry.Token, error) {
	panic("not yet")
}
func (s *Store) DeleteToken(ctx context.Context, id string) error              { panic("not yet") }
func (s *Store) TouchToken(ctx context.Context, id string, at time.Time) error { panic("not yet") }
func (s *Store) Setting(ctx context.Context, key string) (value string, ok bool, err error) {
	panic("not yet")
}
func (s *Store) SetSetting(ctx context.Context, key, value string) error { panic("not yet") }
