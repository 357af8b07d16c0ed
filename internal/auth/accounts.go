package auth

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._@-]{0,63}$`)

// accountName returns the one spelling of an account's name. Names that differ only in case are the same.
func accountName(name string) (string, error) {
	n := strings.ToLower(strings.TrimSpace(name))
	if n == "" {
		return "", invalid("the account needs a name", "name", "is required")
	}
	if !namePattern.MatchString(n) {
		return "", invalid("this name cannot be used", "name", "must be 1 to 64 letters a-z, digits and . _ @ - and begin with a letter or digit")
	}
	return n, nil
}

// require checks the policy for the caller of ctx and records a refusal.
func (s *Service) require(ctx context.Context, a Action, team, subject string) error {
	err := Allowed(FromContext(ctx), a, team)
	if err != nil {
		s.Audit(ctx, a, subject, err, "")
	}
	return err
}

// SignIn checks name and password and, if ctx went through Sessions, starts a session. Errors: CodeUnauthenticated, the
// same whether the name or the password is wrong; CodeBusy with RetryAfter after too many attempts.
func (s *Service) SignIn(ctx context.Context, name, password string) (Identity, error) {
	none := Identity{Via: ViaNone}
	// What is no possible name may be a password typed into the wrong field: it counts as one and is not recorded.
	clean, nameErr := accountName(name)
	remote := RemoteFrom(ctx).IP
	if err := s.attempts.attempt(clean, remote); err != nil {
		s.log.Warn("too many attempts to sign in", "remote", remote)
		return none, err
	}
	u, err := registry.User{}, error(nil)
	if nameErr == nil {
		u, err = s.store.UserByName(ctx, clean)
		if err != nil && registry.CodeOf(err) != registry.CodeNotFound {
			return none, err
		}
	}
	unknown := nameErr != nil || err != nil
	if len(password) > 4*MaxPassword {
		password = "" // cannot match; not worth hashing megabytes
	}
	good, err := s.hasher.verify(ctx, u.PasswordHash, password)
	if err != nil {
		return none, err
	}
	if unknown || !good || u.Disabled {
		err := registry.Errorf(registry.CodeUnauthenticated, "the name or the password is wrong")
		subject := "user:(unknown)"
		if !unknown {
			subject = "user:" + u.Name
		}
		if good && u.Disabled {
			// Only who knows the password learns that the account exists and is disabled.
			err = registry.Errorf(registry.CodeUnauthenticated, "this account is disabled; ask an admin")
		}
		s.Audit(ctx, AccountOwn, subject, err, "sign in")
		return none, err
	}
	s.attempts.succeeded(clean, remote)
	s.seen(ctx, u.ID)
	if inSession(ctx) {
		if err := s.startSession(ctx, u); err != nil {
			return none, err
		}
	}
	a, err := s.account(ctx, u.ID)
	if err != nil {
		return none, err
	}
	id := identity(a, ViaSession)
	s.Audit(WithIdentity(ctx, id), AccountOwn, "user:"+u.Name, nil, "sign in")
	return id, nil
}

// seen stores when the account signed in last. It only informs, so a failure is only logged.
func (s *Service) seen(ctx context.Context, id string) {
	s.change.Lock()
	defer s.change.Unlock()
	u, err := s.store.User(ctx, id)
	if err == nil {
		u.LastSeenAt = s.now().UTC()
		err = s.store.UpdateUser(ctx, u)
	}
	if err != nil {
		s.log.Warn("cannot store when an account signed in", "error", err)
	}
}

// SignOut ends the session of ctx. It does nothing where there is none.
func (s *Service) SignOut(ctx context.Context) error {
	if !inSession(ctx) || s.sessions.GetString(ctx, keyUser) == "" {
		return nil
	}
	if err := s.sessions.Destroy(ctx); err != nil {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "sign out", Msg: "your session could not be ended; try again", Err: err}
	}
	if id := FromContext(ctx); id.Known() {
		s.Audit(ctx, AccountOwn, "user:"+id.Name, nil, "sign out")
	}
	return nil
}

// ChangePassword changes the caller's own password. Every session of the account ends except the one of ctx, which
// gets a new token; API tokens stay. Errors: CodeInvalid for either password, CodeBusy after too many
// attempts.
func (s *Service) ChangePassword(ctx context.Context, current, next string) (err error) {
	id := FromContext(ctx)
	subject := "user:" + id.Name
	if err := s.require(ctx, AccountOwn, "", subject); err != nil {
		return err
	}
	defer func() { s.Audit(ctx, AccountOwn, subject, err, "change password") }()
	if err := s.attempts.attempt(id.Name, RemoteFrom(ctx).IP); err != nil {
		return err
	}
	u, err := s.store.User(ctx, id.UserID)
	if err != nil {
		return err
	}
	good, err := s.hasher.verify(ctx, u.PasswordHash, current)
	if err != nil {
		return err
	}
	if !good {
		return invalid("the password was not changed", "current_password", "is wrong")
	}
	s.attempts.succeeded(id.Name, RemoteFrom(ctx).IP)
	u, err = s.setPassword(ctx, u, "new_password", next)
	if err != nil {
		return err
	}
	if id.Via == ViaSession && inSession(ctx) {
		return s.startSession(ctx, u)
	}
	return nil
}

// ResetPassword gives an account a new password and ends its sessions; its API tokens stay. For admins.
func (s *Service) ResetPassword(ctx context.Context, userID, next string) error {
	return s.manageUser(ctx, userID, "reset password", func(u registry.User) (registry.User, error) {
		if err := checkPassword("password", u.Name, next); err != nil {
			return u, err
		}
		hash, err := s.hasher.hash(ctx, next)
		u.PasswordHash = hash
		return u, err
	})
}

func (s *Service) setPassword(ctx context.Context, seen registry.User, field, password string) (registry.User, error) {
	if err := checkPassword(field, seen.Name, password); err != nil {
		return seen, err
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return seen, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	u, err := s.store.User(ctx, seen.ID)
	if err != nil {
		return seen, err
	}
	if u.PasswordHash != seen.PasswordHash {
		return seen, registry.Errorf(registry.CodeConflict, "the password was changed by somebody else at the same moment; sign in again")
	}
	u.PasswordHash = hash
	defer s.cache.invalidate()
	return u, s.store.UpdateUser(ctx, u)
}

// CreateUser makes an account; an empty password makes one that can only use API tokens. For admins. Errors: CodeInvalid,
// CodeConflict if the name is taken.
func (s *Service) CreateUser(ctx context.Context, name, password string, admin bool) (u registry.User, err error) {
	clean, nameErr := accountName(name)
	if err := s.require(ctx, UserManage, "", "user:"+clean); err != nil {
		return registry.User{}, err
	}
	defer func() { s.Audit(ctx, UserManage, "user:"+clean, err, "create") }()
	if nameErr != nil {
		return registry.User{}, nameErr
	}
	u = registry.User{ID: newID(), Name: clean, Admin: admin, CreatedAt: s.now().UTC()}
	if password != "" {
		if err := checkPassword("password", clean, password); err != nil {
			return registry.User{}, err
		}
		if u.PasswordHash, err = s.hasher.hash(ctx, password); err != nil {
			return registry.User{}, err
		}
	}
	s.change.Lock()
	defer s.change.Unlock()
	if _, err := s.store.UserByName(ctx, clean); err == nil {
		return registry.User{}, registry.Errorf(registry.CodeConflict, "there is an account named %q already; choose another name", clean)
	} else if registry.CodeOf(err) != registry.CodeNotFound {
		return registry.User{}, err
	}
	if err := s.store.CreateUser(ctx, u); err != nil {
		return registry.User{}, err
	}
	s.hasAccount.Store(true)
	return u, nil
}

// ListUsers returns all accounts. For admins.
func (s *Service) ListUsers(ctx context.Context) ([]registry.User, error) {
	if err := s.require(ctx, UserManage, "", "users"); err != nil {
		return nil, err
	}
	return s.store.ListUsers(ctx)
}

// Account returns the caller's own account.
func (s *Service) Account(ctx context.Context) (registry.User, error) {
	if err := Allowed(FromContext(ctx), AccountOwn, ""); err != nil {
		return registry.User{}, err
	}
	return s.store.User(ctx, FromContext(ctx).UserID)
}

// SetAdmin makes an account an admin of the installation, or no longer one. For admins. CodeBadState for the last one.
func (s *Service) SetAdmin(ctx context.Context, userID string, admin bool) error {
	what := "make admin"
	if !admin {
		what = "make no longer admin"
	}
	return s.manageUser(ctx, userID, what, func(u registry.User) (registry.User, error) {
		if !admin {
			if err := s.notLastAdmin(ctx, u); err != nil {
				return u, err
			}
		}
		u.Admin = admin
		return u, nil
	})
}

// SetDisabled shuts an account out, or lets it in again. Its sessions end; its API tokens stop to work while it is
// disabled. For admins. CodeBadState for the last admin.
func (s *Service) SetDisabled(ctx context.Context, userID string, disabled bool) error {
	what := "disable"
	if !disabled {
		what = "enable"
	}
	return s.manageUser(ctx, userID, what, func(u registry.User) (registry.User, error) {
		if disabled {
			if err := s.notLastAdmin(ctx, u); err != nil {
				return u, err
			}
		}
		u.Disabled = disabled
		return u, nil
	})
}

// DeleteUser removes an account with its sessions, tokens and memberships. For admins. CodeBadState for the last admin.
func (s *Service) DeleteUser(ctx context.Context, userID string) (err error) {
	subject := "user:" + userID
	if err := s.require(ctx, UserManage, "", subject); err != nil {
		return err
	}
	defer func() { s.Audit(ctx, UserManage, subject, err, "delete") }()
	s.change.Lock()
	defer s.change.Unlock()
	u, err := s.store.User(ctx, userID)
	if err != nil {
		return err
	}
	subject = "user:" + u.Name
	if err := s.notLastAdmin(ctx, u); err != nil {
		return err
	}
	defer s.cache.invalidate()
	return s.store.DeleteUser(ctx, userID)
}

// manageUser changes one account as an admin.
func (s *Service) manageUser(ctx context.Context, userID, what string, edit func(registry.User) (registry.User, error)) (err error) {
	subject := "user:" + userID
	if err := s.require(ctx, UserManage, "", subject); err != nil {
		return err
	}
	defer func() { s.Audit(ctx, UserManage, subject, err, what) }()
	s.change.Lock()
	defer s.change.Unlock()
	u, err := s.store.User(ctx, userID)
	if err != nil {
		return err
	}
	subject = "user:" + u.Name
	if u, err = edit(u); err != nil {
		return err
	}
	defer s.cache.invalidate()
	return s.store.UpdateUser(ctx, u)
}

// notLastAdmin returns CodeBadState if u is the only admin that can sign in. Called with s.change held.
func (s *Service) notLastAdmin(ctx context.Context, u registry.User) error {
	if !u.Admin || u.Disabled {
		return nil
	}
	users, err := s.store.ListUsers(ctx)
	if err != nil {
		return err
	}
	for _, o := range users {
		if o.ID != u.ID && o.Admin && !o.Disabled {
			return nil
		}
	}
	return registry.Errorf(registry.CodeBadState, "%s is the last admin; make somebody else an admin first", u.Name)
}

// Limits on API tokens.
const (
	MaxTokens   = 100                      // of one account
	MaxTokenTTL = 5 * 365 * 24 * time.Hour // longer is as good as for ever: give 0
)

// CreateToken makes an API token for the caller that works for ttl, 0 without end, and returns its secret, which is shown
// this once and cannot be had again. A token made with a token does not outlive it. Errors: CodeInvalid,
// CodeConflict when the account has MaxTokens.
func (s *Service) CreateToken(ctx context.Context, name string, ttl time.Duration) (secret string, t registry.Token, err error) {
	id := FromContext(ctx)
	subject := "token:(new)"
	if err := s.require(ctx, TokenOwn, "", subject); err != nil {
		return "", registry.Token{}, err
	}
	defer func() { s.Audit(ctx, TokenOwn, subject, err, "create") }()
	name = strings.TrimSpace(name)
	switch {
	case id.UserID == "":
		return "", registry.Token{}, registry.Errorf(registry.CodeForbidden, "only an account can have API tokens")
	case name == "" || len(name) > 64 || oneLine(name, 64) != name:
		return "", registry.Token{}, invalid("the token was not made", "name", "must be 1 to 64 characters on one line; say what the token is for")
	case ttl < 0 || ttl > MaxTokenTTL:
		return "", registry.Token{}, invalid("the token was not made", "expires_in", "must be between 0 (never) and 5 years")
	}
	now := s.now().UTC()
	secret = newTokenSecret()
	hash := tokenHash(secret)
	t = registry.Token{ID: newID(), UserID: id.UserID, Name: name, Prefix: displayPrefix(secret), Hash: hash[:], CreatedAt: now}
	if ttl > 0 {
		t.ExpiresAt = now.Add(ttl)
	}
	if end := id.tokenExpires; !end.IsZero() && (t.ExpiresAt.IsZero() || t.ExpiresAt.After(end)) {
		t.ExpiresAt = end
	}
	s.change.Lock()
	defer s.change.Unlock()
	have, err := s.store.ListTokens(ctx, id.UserID)
	if err != nil {
		return "", registry.Token{}, err
	}
	if len(have) >= MaxTokens {
		return "", registry.Token{}, registry.Errorf(registry.CodeConflict, "you have %d API tokens; delete one that you no longer use", len(have))
	}
	if err := s.store.CreateToken(ctx, t); err != nil {
		return "", registry.Token{}, err
	}
	subject = "token:" + t.ID
	return secret, t, nil
}

// ListTokens returns the API tokens of an account: the caller's own if userID is empty. Those of others are for admins.
func (s *Service) ListTokens(ctx context.Context, userID string) ([]registry.Token, error) {
	userID, err := s.tokenOwner(ctx, userID, "tokens")
	if err != nil {
		return nil, err
	}
	return s.store.ListTokens(ctx, userID)
}

// DeleteToken takes an API token back; it stops to work at once. userID as in ListTokens. CodeNotFound if the account has
// no such token.
func (s *Service) DeleteToken(ctx context.Context, userID, tokenID string) (err error) {
	subject := "token:" + tokenID
	userID, err = s.tokenOwner(ctx, userID, subject)
	if err != nil {
		return err
	}
	defer func() { s.Audit(ctx, TokenOwn, subject, err, "delete") }()
	tokens, err := s.store.ListTokens(ctx, userID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(tokens, func(t registry.Token) bool { return t.ID == tokenID }) {
		return registry.Errorf(registry.CodeNotFound, "there is no API token %q; it may have been deleted already", oneLine(tokenID, 40))
	}
	defer s.cache.invalidate()
	return s.store.DeleteToken(ctx, tokenID)
}

func (s *Service) tokenOwner(ctx context.Context, userID, subject string) (string, error) {
	id := FromContext(ctx)
	if userID == "" || userID == id.UserID {
		return id.UserID, s.require(ctx, TokenOwn, "", subject)
	}
	return userID, s.require(ctx, UserManage, "", subject)
}
