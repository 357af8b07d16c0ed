package registry

import "time"

// Role is what a member may do in a team.
type Role string

// The roles, each including the one before. An admin of the installation may do everything everywhere.
const (
	RoleViewer     Role = "viewer"     // sees models, uses those that are loaded
	RoleMember     Role = "member"     // registers and edits models, loads and unloads them
	RoleMaintainer Role = "maintainer" // deletes, overrides a refusal for lack of memory, manages members
)

// Roles lists the roles from the least to the most.
var Roles = []Role{RoleViewer, RoleMember, RoleMaintainer}

// User is an account.
type User struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Admin        bool      `json:"admin"`
	Disabled     bool      `json:"disabled,omitempty"`
	PasswordHash string    `json:"-"`
	CreatedAt    time.Time `json:"created_at"`
	LastSeenAt   time.Time `json:"last_seen_at,omitzero"`
}

// Team owns models.
type Team struct {
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// Member is a user's role in a team.
type Member struct {
	Team   string `json:"team"`
	UserID string `json:"user_id"`
	Role   Role   `json:"role"`
}

// Token is an API token. The secret itself is shown once and stored as a SHA-256 only.
type Token struct {
	ID         string    `json:"id"`
	UserID     string    `json:"user_id"`
	Name       string    `json:"name"`
	Prefix     string    `json:"prefix"` // the first characters, to tell tokens apart
	Hash       []byte    `json:"-"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
}

// AuditEntry is one line of the audit: who did what to what, from where, and how it ended.
type AuditEntry struct {
	ID      int64     `json:"id"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	Action  string    `json:"action"`
	Subject string    `json:"subject"`
	Outcome string    `json:"outcome"` // ok, or the error's code
	Detail  string    `json:"detail,omitempty"`
	Remote  string    `json:"remote,omitempty"`
}
