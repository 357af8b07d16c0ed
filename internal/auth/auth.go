// Package auth answers two questions: who is asking, and may they. It holds accounts, teams, sessions and API
// tokens, the one policy table that every route passes, and the audit. It knows net/http but no web framework;
// internal/server wraps its pieces.
package auth

import (
	"context"
	"slices"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Via is how a caller proved who they are.
type Via string

// The ways to be known.
const (
	ViaNone    Via = "none"    // nobody in particular
	ViaSession Via = "session" // signed in, in a browser
	ViaToken   Via = "token"   // an API token
	ViaSystem  Via = "system"  // the server itself: start-up and the reconciler; never made from a request
)

// Identity is who is asking. The zero value is nobody. It is a snapshot: it is made anew for every request and
// must not be kept.
type Identity struct {
	UserID  string
	Name    string
	Admin   bool
	Roles   map[string]registry.Role // by team; shared with other requests, so read only
	Via     Via
	TokenID string // with ViaToken

	// A token may not make another one that outlives it.
	tokenExpires time.Time
}

// System is the identity of the server itself. Name is what the audit shows as the actor.
func System(name string) Identity { return Identity{Name: name, Admin: true, Via: ViaSystem} }

// Known reports whether the caller proved who they are.
func (id Identity) Known() bool {
	return id.Via == ViaSystem || (id.UserID != "" && (id.Via == ViaSession || id.Via == ViaToken))
}

// Actor returns the name under which what the caller does is recorded: the account's name, whichever way it was
// proved, or "anonymous".
func (id Identity) Actor() string {
	if !id.Known() {
		return "anonymous"
	}
	return id.Name
}

// Teams returns the teams that the caller is a member of, sorted. An admin may do everything everywhere and need
// not be a member of any: see VisibleTeams.
func (id Identity) Teams() []string {
	teams := make([]string, 0, len(id.Roles))
	for t := range id.Roles {
		teams = append(teams, t)
	}
	slices.Sort(teams)
	return teams
}

type identityKey struct{}

// WithIdentity returns ctx carrying who is asking.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// FromContext returns who is asking, nobody if ctx does not say.
func FromContext(ctx context.Context) Identity {
	id, ok := ctx.Value(identityKey{}).(Identity)
	if !ok {
		return Identity{Via: ViaNone}
	}
	return id
}
