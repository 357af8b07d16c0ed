package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// SessionCookie is the name of the session's cookie.
const SessionCookie = "llmm_session"

// A session ends this long after signing in, and after this long without a request.
const (
	SessionLifetime = 14 * 24 * time.Hour
	SessionIdle     = 7 * 24 * time.Hour

	// That a session was used is stored at most this often: scs's own idle time-out would write at every request.
	sessionTouch = time.Hour
)

const (
	keyUser  = "user"
	keyEpoch = "epoch"
	keySeen  = "seen" // Unix seconds
)

func newSessions(store scs.Store, onError func(http.ResponseWriter, *http.Request, error)) (plain, secure *scs.SessionManager) {
	m := scs.New()
	m.Store = store
	m.Lifetime = SessionLifetime
	m.HashTokenInStore = true // who reads the database cannot use its sessions
	m.ErrorFunc = onError
	m.Cookie.Name = SessionCookie
	m.Cookie.HttpOnly = true
	m.Cookie.SameSite = http.SameSiteLaxMode
	m.Cookie.Path = "/"
	m.Cookie.Persist = true
	// The copy shares the key under which the session lies in a context, so that both speak of the same sessions.
	s := *m
	s.Cookie.Secure = true
	return m, &s
}

func (s *Service) sessionError(w http.ResponseWriter, r *http.Request, err error) {
	err = &registry.Error{Code: registry.CodeUnavailable, Op: "session", Msg: "your session could not be read or stored; try again in a moment", Err: err}
	s.log.Error("session store", "error", errors.Unwrap(err))
	if s.opts.OnSessionError != nil {
		s.opts.OnSessionError(w, r, err)
		return
	}
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

type inSessionKey struct{}

// inSession reports whether ctx went through Sessions: scs panics where it did not.
func inSession(ctx context.Context) bool { return ctx.Value(inSessionKey{}) != nil }

// Sessions is the middleware that reads the session cookie before next and stores what changed after it. Without it a
// request can only prove who it is with an API token. It costs one read of the database when there is a cookie.
func (s *Service) Sessions(next http.Handler) http.Handler {
	marked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), inSessionKey{}, true)))
	})
	plain, secure := s.sessions.LoadAndSave(marked), s.secure.LoadAndSave(marked)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil || (s.opts.TrustProxy && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")) {
			secure.ServeHTTP(w, r)
			return
		}
		plain.ServeHTTP(w, r)
	})
}

// startSession signs u in. The session gets a new token, so that one that somebody planted before is worth nothing.
func (s *Service) startSession(ctx context.Context, u registry.User) error {
	if err := s.sessions.RenewToken(ctx); err != nil {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "session", Msg: "your session could not be stored; try again in a moment", Err: err}
	}
	s.sessions.Put(ctx, keyUser, u.ID)
	s.sessions.Put(ctx, keyEpoch, epoch(u))
	s.sessions.Put(ctx, keySeen, s.now().Unix())
	return nil
}

// Authenticate says who sent the request: by its API token if it has one, otherwise by its session, otherwise nobody (no
// error; the policy decides what nobody may do). Errors: CodeUnauthenticated for a token that is not valid,
// CodeForbidden for a request that another site made a browser send.
//
// That last check is net/http's CrossOriginProtection: a browser says in Sec-Fetch-Site (older ones: Origin) where a
// request comes from, and one that changes something and comes from elsewhere is refused. It needs no token in
// forms. It is made for everything without an API token, not only with a session, because signing in is itself worth
// protecting; requests with a token are exempt because a browser never adds one by itself. Programs send neither
// header and pass.
func (s *Service) Authenticate(r *http.Request) (Identity, error) {
	none := Identity{Via: ViaNone}
	secret, err := bearer(r)
	if err != nil {
		return none, err
	}
	if secret != "" {
		return s.VerifyToken(r.Context(), secret)
	}
	if err := s.origin.Check(r); err != nil {
		return none, &registry.Error{Code: registry.CodeForbidden, Op: "authenticate", Err: err,
			Msg: "this request came from another web site and was refused; open the console and do it there"}
	}
	if !inSession(r.Context()) {
		return none, nil
	}
	return s.fromSession(r.Context())
}

func (s *Service) fromSession(ctx context.Context) (Identity, error) {
	none := Identity{Via: ViaNone}
	userID := s.sessions.GetString(ctx, keyUser)
	if userID == "" {
		return none, nil
	}
	a, err := s.account(ctx, userID)
	if err != nil && registry.CodeOf(err) != registry.CodeNotFound {
		return none, err
	}
	now := s.now()
	seen := time.Unix(s.sessions.GetInt64(ctx, keySeen), 0)
	same := subtle.ConstantTimeCompare([]byte(epoch(a.user)), []byte(s.sessions.GetString(ctx, keyEpoch))) == 1
	if err != nil || a.user.Disabled || !same || now.Sub(seen) > SessionIdle {
		if err := s.sessions.Destroy(ctx); err != nil {
			s.log.Error("cannot delete a session that has ended", "error", err)
		}
		return none, nil
	}
	if now.Sub(seen) > sessionTouch {
		s.sessions.Put(ctx, keySeen, now.Unix())
	}
	return identity(a, ViaSession), nil
}

// VerifyToken says whose API token this is. CodeUnauthenticated if it is nobody's, has expired, or its account is
// disabled.
func (s *Service) VerifyToken(ctx context.Context, secret string) (Identity, error) {
	none := Identity{Via: ViaNone}
	if !possibleToken(secret) {
		return none, registry.Errorf(registry.CodeUnauthenticated, "this is no API token; make one on your account page")
	}
	hash := tokenHash(secret)
	t, err := s.token(ctx, hash)
	if registry.CodeOf(err) == registry.CodeNotFound {
		return none, unknownToken(secret)
	}
	if err != nil {
		return none, err
	}
	// The look-up compared the hash already; this holds should a store ever match by less than all of it.
	if subtle.ConstantTimeCompare(hash[:], t.Hash) != 1 {
		return none, unknownToken(secret)
	}
	now := s.now()
	if !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) {
		return none, registry.Errorf(registry.CodeUnauthenticated, "the API token %q expired on %s; make a new one on your account page", t.Name, t.ExpiresAt.UTC().Format("2006-01-02 15:04 MST"))
	}
	a, err := s.account(ctx, t.UserID)
	if registry.CodeOf(err) == registry.CodeNotFound {
		return none, unknownToken(secret)
	}
	if err != nil {
		return none, err
	}
	if a.user.Disabled {
		return none, registry.Errorf(registry.CodeUnauthenticated, "the account of this API token is disabled; ask an admin")
	}
	if s.cache.shouldTouch(t) {
		s.touch(ctx, t.ID, now)
	}
	id := identity(a, ViaToken)
	id.TokenID, id.tokenExpires = t.ID, t.ExpiresAt
	return id, nil
}

func unknownToken(secret string) error {
	if strings.HasPrefix(secret, tokenPrefix) && !ours(secret) {
		return registry.Errorf(registry.CodeUnauthenticated, "this API token was mistyped or cut off: its last six characters do not match the rest")
	}
	return registry.Errorf(registry.CodeUnauthenticated, "this API token is not known; it may have been deleted. Make a new one on your account page")
}

// touch stores that a token was used. A database that is busy must not hold the request up for that.
func (s *Service) touch(ctx context.Context, id string, at time.Time) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 250*time.Millisecond)
	defer cancel()
	if err := s.store.TouchToken(ctx, id, at.UTC()); err != nil && registry.CodeOf(err) != registry.CodeNotFound {
		s.log.Warn("cannot store when an API token was last used", "token", id, "error", err)
	}
}

func (s *Service) token(ctx context.Context, hash [sha256.Size]byte) (registry.Token, error) {
	t, ok, gen := s.cache.token(hash)
	if ok {
		return t, nil
	}
	t, err := s.store.TokenByHash(ctx, hash[:])
	if err != nil {
		return registry.Token{}, err
	}
	s.cache.putToken(hash, t, gen)
	return t, nil
}

func (s *Service) account(ctx context.Context, userID string) (account, error) {
	a, ok, gen := s.cache.account(userID)
	if ok {
		return a, nil
	}
	u, err := s.store.User(ctx, userID)
	if err != nil {
		return account{}, err
	}
	roles, err := s.store.Memberships(ctx, userID)
	if err != nil {
		return account{}, err
	}
	a = account{u, roles}
	s.cache.putAccount(a, gen)
	return a, nil
}

func identity(a account, via Via) Identity {
	return Identity{UserID: a.user.ID, Name: a.user.Name, Admin: a.user.Admin, Roles: a.roles, Via: via}
}

// Remote is where a request comes from.
type Remote struct {
	IP    string // for the audit and for counting attempts: as the server's IP extractor says
	Local bool   // it comes from this very machine, as far as can be told
}

// RemoteOf returns where r comes from; ip is the client's address as the server's IP extractor says.
//
// Local needs all of: the connection comes from a loopback address, nobody says to have forwarded it, and the browser was
// pointed at a loopback name. The last is against a web site whose name was made to resolve to 127.0.0.1: its pages
// would be "same origin" with us.
func RemoteOf(r *http.Request, ip string) Remote {
	return Remote{IP: ip, Local: loopback(r.RemoteAddr) && !forwarded(r.Header) && localName(r.Host)}
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func forwarded(h http.Header) bool {
	for name := range h {
		if name == "Forwarded" || name == "X-Real-Ip" || name == "Via" || strings.HasPrefix(name, "X-Forwarded-") {
			return true
		}
	}
	return false
}

func localName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || loopback(host)
}

type remoteKey struct{}

// WithRemote returns ctx carrying where the request comes from.
func WithRemote(ctx context.Context, r Remote) context.Context {
	return context.WithValue(ctx, remoteKey{}, r)
}

// RemoteFrom returns where the request comes from; not local if ctx does not say.
func RemoteFrom(ctx context.Context) Remote {
	r, ok := ctx.Value(remoteKey{}).(Remote)
	if !ok {
		return Remote{}
	}
	return r
}
