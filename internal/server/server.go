// Package server is Echo and nothing but Echo: the JSON API, the console's pages, the event streams and the one place
// that turns an error into a status and a body. Every route is a row of Server.routes with the action that the policy
// table must allow; a route without one fails a test.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/gateway"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/static"
)

// Options are what a Server is made of.
type Options struct {
	Manager *manager.Manager
	Store   *store.Store
	Auth    *auth.Service
	Bus     *events.Bus
	Logger  *slog.Logger
	Version string
	Now     func() time.Time

	// TrustedProxies are the networks whose X-Forwarded-For is believed. Empty: nobody's.
	TrustedProxies []*net.IPNet
}

// Server is an http.Handler.
type Server struct {
	Options
	echo    *echo.Echo
	gateway *gateway.Gateway
	handler http.Handler
	metrics *metrics
	live    *liveBook
	lookups *lookups
	stored  storageLook
	closing chan struct{} // closed when streams have to end
}

// route is one row of the table. Action is what the policy must allow; with a team-wide action on a path that has :id
// the team is that of the model, and a model that the caller does not see does not exist.
type route struct {
	method, path string
	action       auth.Action
	handler      echo.HandlerFunc
}

// New returns a Server.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{Options: o, echo: echo.New(), closing: make(chan struct{})}
	s.metrics = newMetrics(s)
	s.live = newLiveBook(s)
	s.lookups = newLookups(s.closing, o.Now)
	e := s.echo
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = s.handleError
	e.IPExtractor = echo.ExtractIPDirect()
	if len(o.TrustedProxies) > 0 {
		opts := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
		for _, n := range o.TrustedProxies {
			opts = append(opts, echo.TrustIPRange(n))
		}
		e.IPExtractor = echo.ExtractIPFromXFFHeader(opts...)
	}
	// Paths are matched as they were sent, so that a model's id is one segment however many slashes it has.
	e.Pre(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			c.Request().URL.RawPath = c.Request().URL.EscapedPath()
			return next(c)
		}
	})
	e.Use(s.observe, s.secure, s.identify)
	for _, r := range s.routes() {
		e.Add(r.method, r.path, s.guard(r))
	}
	s.gateway = gateway.New(gateway.Options{
		Backend: backend{s}, Logger: o.Logger,
		Authorize: func(ctx context.Context, a auth.Action, team string) error {
			return auth.Allowed(auth.FromContext(ctx), a, team)
		},
		Loaded: func(ctx context.Context, id string) bool {
			l, err := o.Manager.Get(ctx, id)
			return err == nil && l.Status == registry.StatusReady
		},
	})
	s.handler = o.Auth.Sessions(e)
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// CloseStreams ends the event streams, which would otherwise hold up a shutdown.
func (s *Server) CloseStreams() { close(s.closing) }

// Close gives back what the server holds.
func (s *Server) Close() { s.gateway.Close() }

func (s *Server) routes() []route {
	static := echo.WrapHandler(static.Handler())
	rows := []route{
		{"GET", "/healthz", auth.Public, s.healthz},
		{"GET", "/readyz", auth.Public, s.readyz},
		{"GET", "/static/*", auth.Public, static},
		{"HEAD", "/static/*", auth.Public, static},
		{"GET", "/favicon.ico", auth.Public, func(c echo.Context) error { return c.Redirect(http.StatusFound, "/static/icon.svg") }},
		{"GET", "/openapi.yaml", auth.Public, s.openapi},
		{"GET", "/docs", auth.Public, s.docs},
		{"GET", "/metrics", auth.ResourcesRead, s.metrics.handler},
	}
	rows = append(rows, s.apiRoutes()...)
	rows = append(rows, s.accessRoutes()...)
	rows = append(rows, s.storageRoutes()...)
	rows = append(rows, s.pageRoutes()...)
	for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		// The gateway checks the model's team itself: the model is named in the body.
		rows = append(rows, route{m, "/v1/*", auth.ModelList, func(c echo.Context) error {
			s.gateway.ServeHTTP(c.Response(), c.Request())
			return nil
		}})
	}
	return rows
}

// observe logs each request and catches panics, so that one bad request is one 500.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		began := s.Now()
		defer func() {
			if p := recover(); p != nil {
				if perr, ok := p.(error); ok && errors.Is(perr, http.ErrAbortHandler) {
					panic(p) // net/http's own way to cut a connection
				}
				err = registry.Errorf(registry.CodeInternal, "something went wrong in the server itself; the log of the server says more")
				s.Logger.Error("A request panicked", "method", c.Request().Method, "path", c.Path(), "panic", p, "stack", stack())
			}
			if err != nil {
				c.Error(err)
			}
			took := s.Now().Sub(began)
			s.metrics.seen(c, took)
			s.Logger.Debug("Request", "method", c.Request().Method, "route", c.Path(), "status", c.Response().Status, "took", took, "actor", auth.FromContext(c.Request().Context()).Actor())
		}()
		return next(c)
	}
}

// secure sets the headers that keep a browser from doing what the console never asks for.
func (s *Server) secure(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("Content-Security-Policy", "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("X-Frame-Options", "DENY")
		if !strings.HasPrefix(c.Request().URL.Path, static.Prefix) {
			h.Set("Cache-Control", "no-store")
		}
		return next(c)
	}
}

// identify puts who asks and from where into the context.
func (s *Server) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		ctx := auth.WithRemote(r.Context(), auth.RemoteOf(r, c.RealIP()))
		c.SetRequest(r.WithContext(ctx))
		id, err := s.Auth.Authenticate(c.Request())
		if err != nil {
			return err
		}
		c.SetRequest(r.WithContext(auth.WithIdentity(ctx, id)))
		return next(c)
	}
}

// guard asks the policy table before the handler runs.
func (s *Server) guard(r route) echo.HandlerFunc {
	rule, known := auth.RuleFor(r.action)
	byModel := known && rule.Scope == auth.ScopeTeam && strings.Contains(r.path, "/models/:id")
	return func(c echo.Context) error {
		ctx := c.Request().Context()
		id := auth.FromContext(ctx)
		if !known {
			return registry.Errorf(registry.CodeForbidden, "This route has no rule and is refused")
		}
		for i, v := range c.ParamValues() {
			plain, err := url.PathUnescape(v)
			if err != nil {
				return registry.Errorf(registry.CodeInvalid, "The address has a broken percent-encoding: %s", c.ParamNames()[i])
			}
			c.ParamValues()[i] = plain
		}
		switch {
		case rule.Scope == auth.ScopePublic:
		case byModel:
			if !id.Known() {
				return auth.Allowed(id, r.action, "")
			}
			rec, err := s.seen(ctx, c.Param("id"))
			if err == nil {
				err = auth.Allowed(id, r.action, rec.Team)
			}
			if err != nil {
				s.auditRefusal(c, r, "model:"+c.Param("id"), err)
				return err
			}
			c.Set("record", rec)
		case rule.Scope == auth.ScopeTeam:
			if !id.Known() { // the handler checks the team, which is not in the path
				return auth.Allowed(id, r.action, "")
			}
		default:
			if err := auth.Allowed(id, r.action, ""); err != nil {
				s.auditRefusal(c, r, r.path, err)
				return err
			}
		}
		return r.handler(c)
	}
}

func (s *Server) auditRefusal(c echo.Context, r route, subject string, err error) {
	if r.method != http.MethodGet && registry.CodeOf(err) == registry.CodeForbidden {
		s.Auth.Audit(c.Request().Context(), r.action, subject, err, "")
	}
}

// seen returns a model if the caller may know that it exists; CodeNotFound otherwise.
func (s *Server) seen(ctx context.Context, id string) (registry.Record, error) {
	rec, err := s.Store.Model(ctx, id)
	if err != nil {
		if registry.CodeOf(err) == registry.CodeNotFound && !auth.FromContext(ctx).Admin {
			return rec, noSuchModel(id) // the store's hint could name a model of another team
		}
		return rec, err
	}
	if !auth.Sees(auth.FromContext(ctx), rec.Team) {
		return registry.Record{}, noSuchModel(id)
	}
	return rec, nil
}

func noSuchModel(id string) error {
	if len(id) > 80 {
		id = id[:80] + "…"
	}
	return registry.Errorf(registry.CodeNotFound, "There is no model %q here. List the models to see those that you may use.", id)
}

// record is the model of the path, put there by guard.
func record(c echo.Context) registry.Record {
	rec, _ := c.Get("record").(registry.Record)
	return rec
}

func actor(c echo.Context) string { return auth.FromContext(c.Request().Context()).Actor() }

func (s *Server) healthz(c echo.Context) error { return c.String(http.StatusOK, "ok\n") }

func (s *Server) readyz(c echo.Context) error {
	select {
	case <-s.Manager.Ready():
		return c.String(http.StatusOK, "ready\n")
	default:
		return registry.Errorf(registry.CodeUnavailable, "The server is starting")
	}
}

// waitFor reads ?wait=60s: how long the answer may take. A bare number is seconds.
func waitFor(c echo.Context, def time.Duration) (time.Duration, error) {
	v := c.QueryParam("wait")
	if v == "" {
		return def, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		n, nerr := strconv.ParseFloat(v, 64)
		if nerr != nil || n != n {
			return 0, badParam("wait", "must be a duration such as 60s, or a number of seconds")
		}
		d = time.Duration(min(max(n, -1), 1e6) * float64(time.Second))
	}
	if d < 0 || d > time.Hour {
		return 0, badParam("wait", "must be between 0s and 1h")
	}
	return d, nil
}

func badParam(field, msg string) error {
	return &registry.Error{Code: registry.CodeInvalid, Malformed: true, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: field, Msg: msg}}}
}

// backend is the manager as the gateway wants it.
type backend struct{ s *Server }

func (b backend) Acquire(ctx context.Context, id, who string) (gateway.Lease, error) {
	l, err := b.s.Manager.Acquire(ctx, id, "gateway:"+who)
	return gateway.Lease{Endpoint: l.Endpoint, Authorization: l.Authorization, Transport: l.Transport, Release: l.Release}, err
}

func (b backend) UsableModels(ctx context.Context, teams []string) ([]registry.Record, error) {
	var out []registry.Record
	err := b.s.Store.EachModel(ctx, teams, func(r registry.Record) error {
		if r.Registration == registry.RegistrationActive || r.Registration == registry.RegistrationDeprecated {
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

func (b backend) Model(ctx context.Context, id string) (registry.Record, error) {
	return b.s.Store.Model(ctx, id)
}

// streamContext ends when the client goes or the server closes its streams.
func (s *Server) streamContext(c echo.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(c.Request().Context())
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// escape writes an id as one path segment.
func escape(id string) string { return url.PathEscape(id) }
