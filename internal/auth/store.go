package auth

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Store is what this package needs of the registry's database; *store.Store has it. Reads of one thing return
// CodeNotFound when there is none, creating what exists is CodeConflict.
type Store interface {
	CountUsers(ctx context.Context) (int, error)
	CreateUser(ctx context.Context, u registry.User) error
	// CreateFirstUser creates u if there is no account at all, in one transaction; CodeConflict otherwise.
	CreateFirstUser(ctx context.Context, u registry.User) error
	User(ctx context.Context, id string) (registry.User, error)
	UserByName(ctx context.Context, name string) (registry.User, error)
	ListUsers(ctx context.Context) ([]registry.User, error)
	UpdateUser(ctx context.Context, u registry.User) error
	DeleteUser(ctx context.Context, id string) error

	EnsureTeam(ctx context.Context, name string) error
	ListTeams(ctx context.Context) ([]registry.Team, error)
	DeleteTeam(ctx context.Context, name string) error
	// SetMember gives a role in a team; an empty role takes the membership away.
	SetMember(ctx context.Context, m registry.Member) error
	Members(ctx context.Context, team string) ([]registry.Member, error)
	Memberships(ctx context.Context, userID string) (map[string]registry.Role, error)

	CreateToken(ctx context.Context, t registry.Token) error
	TokenByHash(ctx context.Context, hash []byte) (registry.Token, error)
	// ListTokens returns the tokens of an account; those of all accounts if userID is empty.
	ListTokens(ctx context.Context, userID string) ([]registry.Token, error)
	DeleteToken(ctx context.Context, id string) error
	TouchToken(ctx context.Context, id string, at time.Time) error

	Audit(ctx context.Context, e registry.AuditEntry) error

	Sessions() scs.CtxStore
}
