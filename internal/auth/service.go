package auth

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// AdminName is the account that LLMM_ADMIN_PASSWORD and LLMM_ADMIN_TOKEN belong to.
const AdminName = "admin"

// Options are what a Service is made of.
type Options struct {
	Store  Store
	Logger *slog.Logger
	Now    func() time.Time // time.Now if nil

	AdminPassword string // LLMM_ADMIN_PASSWORD: used by Bootstrap while there is no account, and never again
	AdminToken    string // LLMM_ADMIN_TOKEN: an API token of the account admin

	// TrustProxy says that a proxy stands in front and that its X-Forwarded-Proto is true. It decides whether the session
	// cookie is marked Secure; TLS of our own always marks it.
	TrustProxy bool

	// OnSessionError answers a request whose session could not be read or stored. A plain 503 if nil.
	OnSessionError func(http.ResponseWriter, *http.Request, error)
}

// Service is accounts, teams, sessions, tokens and the audit. It is safe for concurrent use. Methods that change
// something take the caller from the context (WithIdentity), check the policy table themselves and write the
// audit themselves, refusals included.
type Service struct {
	store Store
	log   *slog.Logger
	now   func() time.Time
	opts  Options

	hasher   *hasher
	attempts *limiter
	cache    *cache
	sessions *scs.SessionManager
	secure   *scs.SessionManager // the same sessions, cookie marked Secure
	origin   *http.CrossOriginProtection

	hasAccount atomic.Bool // never becomes false again: the last admin cannot be deleted

	// change serialises read-modify-write of accounts, so that "is there another admin" stays true until it is used.
	change sync.Mutex
}

// New returns a Service. Call Bootstrap before serving.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		store: o.Store, log: o.Logger, now: o.Now, opts: o,
		hasher: newHasher(argonMemoryKiB), attempts: newLimiter(o.Now), cache: newCache(o.Now),
		origin: http.NewCrossOriginProtection(),
	}
	s.sessions, s.secure = newSessions(o.Store.Sessions(), s.sessionError)
	return s
}

// Bootstrap makes the team default, the account admin if Options.AdminPassword or AdminToken is given and there is no
// account yet, and gives admin the token. The token follows its variable: another value replaces the one before. Errors:
// CodeInvalid naming the variable at fault.
func (s *Service) Bootstrap(ctx context.Context) error {
	if err := s.store.EnsureTeam(ctx, registry.DefaultTeam); err != nil {
		return err
	}
	n, err := s.store.CountUsers(ctx)
	if err != nil {
		return err
	}
	if n > 0 {
		s.hasAccount.Store(true)
	}
	ctx = WithIdentity(ctx, System("start-up"))
	if n == 0 && (s.opts.AdminPassword != "" || s.opts.AdminToken != "") {
		if err := s.bootstrapAccount(ctx); err != nil {
			return err
		}
	}
	if s.opts.AdminToken != "" {
		return s.bootstrapToken(ctx)
	}
	return nil
}

func (s *Service) bootstrapAccount(ctx context.Context) error {
	u := registry.User{ID: newID(), Name: AdminName, Admin: true, CreatedAt: s.now().UTC()}
	if s.opts.AdminPassword != "" {
		if err := checkPassword("LLMM_ADMIN_PASSWORD", AdminName, s.opts.AdminPassword); err != nil {
			return err
		}
		hash, err := s.hasher.hash(ctx, s.opts.AdminPassword)
		if err != nil {
			return err
		}
		u.PasswordHash = hash
	} else {
		s.log.Warn("the account admin was made without a password because only LLMM_ADMIN_TOKEN is set; it can use the API and cannot sign in")
	}
	if s.opts.AdminToken != "" && !possibleToken(s.opts.AdminToken) {
		return badAdminToken()
	}
	err := s.store.CreateFirstUser(ctx, u)
	if registry.CodeOf(err) == registry.CodeConflict {
		return nil // somebody was quicker
	}
	if err != nil {
		return err
	}
	s.hasAccount.Store(true)
	s.Audit(ctx, UserManage, "user:"+AdminName, nil, "made at the first start")
	return nil
}

const adminTokenName = "LLMM_ADMIN_TOKEN" // the name of a variable, not its value

func badAdminToken() error {
	return invalid("LLMM_ADMIN_TOKEN cannot be used", "LLMM_ADMIN_TOKEN", "must be 20 to 512 characters of printable ASCII without spaces; make it random, for example with: openssl rand -hex 24")
}

func (s *Service) bootstrapToken(ctx context.Context) error {
	if !possibleToken(s.opts.AdminToken) {
		return badAdminToken()
	}
	admin, err := s.store.UserByName(ctx, AdminName)
	if registry.CodeOf(err) == registry.CodeNotFound {
		s.log.Warn("LLMM_ADMIN_TOKEN is set and there is no account admin; it is ignored")
		return nil
	}
	if err != nil {
		return err
	}
	hash := tokenHash(s.opts.AdminToken)
	switch t, err := s.store.TokenByHash(ctx, hash[:]); {
	case err == nil && t.UserID == admin.ID:
		return nil
	case err == nil:
		return invalid("LLMM_ADMIN_TOKEN cannot be used", "LLMM_ADMIN_TOKEN", "is already the API token of another account")
	case registry.CodeOf(err) != registry.CodeNotFound:
		return err
	}
	tokens, err := s.store.ListTokens(ctx, admin.ID)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.Name == adminTokenName {
			if err := s.store.DeleteToken(ctx, t.ID); err != nil {
				return err
			}
		}
	}
	t := registry.Token{ID: newID(), UserID: admin.ID, Name: adminTokenName, Prefix: displayPrefix(s.opts.AdminToken), Hash: hash[:], CreatedAt: s.now().UTC()}
	err = s.store.CreateToken(ctx, t)
	s.cache.invalidate()
	s.Audit(ctx, TokenOwn, "token:"+t.ID, err, "from LLMM_ADMIN_TOKEN")
	return err
}

// NeedsFirstAccount reports whether there is no account yet. It asks the database only until there is one.
func (s *Service) NeedsFirstAccount(ctx context.Context) bool {
	if s.hasAccount.Load() {
		return false
	}
	n, err := s.store.CountUsers(ctx)
	if err != nil {
		s.log.Error("cannot count the accounts", "error", err)
		return false
	}
	if n > 0 {
		s.hasAccount.Store(true)
	}
	return n == 0
}

// FirstAccount makes the first account, an admin, and signs it in if ctx carries a session. It works once, and only for
// a request that Remote.Local says comes from this very machine. Errors: CodeForbidden from elsewhere,
// CodeConflict when there is an account already, CodeInvalid for the name or password.
//
// A proxy on the same machine makes everybody look local. Forwarding headers give it away and the request is refused; a
// proxy that sends none cannot be told from a person. Behind a proxy set LLMM_ADMIN_PASSWORD before the first start.
func (s *Service) FirstAccount(ctx context.Context, name, password string) (Identity, error) {
	id, err := s.firstAccount(ctx, name, password)
	subject := "user:(first)"
	if err == nil {
		subject = "user:" + id.Name
		ctx = WithIdentity(ctx, id)
	}
	s.Audit(ctx, UserManage, subject, err, "the first account")
	return id, err
}

func (s *Service) firstAccount(ctx context.Context, name, password string) (Identity, error) {
	none := Identity{Via: ViaNone}
	if !s.NeedsFirstAccount(ctx) {
		return none, firstIsTaken()
	}
	if !RemoteFrom(ctx).Local {
		return none, registry.Errorf(registry.CodeForbidden, "the first account can only be made from the machine that the server runs on (open http://localhost and its port there), or by starting the server with LLMM_ADMIN_PASSWORD set")
	}
	name, err := accountName(name)
	if err != nil {
		return none, err
	}
	if err := checkPassword("password", name, password); err != nil {
		return none, err
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return none, err
	}
	now := s.now().UTC()
	u := registry.User{ID: newID(), Name: name, Admin: true, PasswordHash: hash, CreatedAt: now, LastSeenAt: now}
	if err := s.store.CreateFirstUser(ctx, u); err != nil {
		if registry.CodeOf(err) == registry.CodeConflict {
			return none, firstIsTaken()
		}
		return none, err
	}
	s.hasAccount.Store(true)
	s.cache.invalidate()
	id := Identity{UserID: u.ID, Name: u.Name, Admin: true, Via: ViaSession}
	if inSession(ctx) {
		if err := s.startSession(ctx, u); err != nil {
			return none, err
		}
	}
	return id, nil
}

func firstIsTaken() error {
	return registry.Errorf(registry.CodeConflict, "there is an account already; sign in, or ask an admin for one")
}

// Audit writes one line of the audit: the caller of ctx did action to subject ("model:ID", "user:NAME"), and it ended
// with err. detail is one line for people; it must not hold a secret. A line that cannot be stored is
// logged: what was done stays done.
func (s *Service) Audit(ctx context.Context, action Action, subject string, err error, detail string) {
	e := s.Entry(ctx, action, subject, err, detail)
	// What happened is recorded even if whoever asked has gone away since.
	if serr := s.store.Audit(context.WithoutCancel(ctx), e); serr != nil {
		s.log.Error("cannot store an audit entry", "actor", e.Actor, "action", e.Action, "subject", e.Subject, "outcome", e.Outcome, "error", serr)
	}
}

// Entry is the line that Audit would write, for those who store it together with what was done.
func (s *Service) Entry(ctx context.Context, action Action, subject string, err error, detail string) registry.AuditEntry {
	outcome := "ok"
	if err != nil {
		outcome = string(registry.CodeOf(err))
	}
	return registry.AuditEntry{
		At: s.now().UTC(), Actor: FromContext(ctx).Actor(), Action: string(action), Subject: oneLine(subject, 320),
		Outcome: outcome, Detail: oneLine(detail, 500), Remote: oneLine(RemoteFrom(ctx).IP, 64),
	}
}

// oneLine keeps a value from breaking out of its line or filling the table.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// newID returns an identifier that nobody can guess: 128 bits and more, in base32.
func newID() string { return strings.ToLower(rand.Text()) }
