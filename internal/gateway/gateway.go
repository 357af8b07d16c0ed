// Package gateway answers OpenAI-compatible requests under /v1: it finds the model that a request names, has it
// loaded if need be, and passes the request to the engine and the answer back as it comes. It is plain net/http;
// internal/server mounts it and puts the caller's identity into the context first.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Backend is what the gateway needs of the manager.
type Backend interface {
	// Acquire returns a ready instance's endpoint and a release func, loading the model if it isn't loaded and policy
	// allows; it waits for that until ctx ends. It counts as use (idle timers) until release. Errors: CodeNotFound,
	// CodeBadState, CodeInsufficientResources, CodeLoadingFailed, CodeBusy, CodeUnavailable.
	Acquire(ctx context.Context, modelID, actor string) (Lease, error)

	// UsableModels returns the models of these teams that may be asked for (nil: of all teams), sorted by model_id.
	UsableModels(ctx context.Context, teams []string) ([]registry.Record, error)

	// Model returns one model. CodeNotFound if there is none.
	Model(ctx context.Context, id string) (registry.Record, error)
}

// Lease is an instance that will not be unloaded, except by force, until Release is called. Release may be nil.
type Lease struct {
	Endpoint      registry.Endpoint
	Authorization string // the whole header for the engine, "Bearer …"; "" for none
	// Transport carries the request; nil is the gateway's own, which reaches every host and port, and no socket.
	Transport http.RoundTripper
	Release   func()
}

// Options are what a Gateway is made of.
type Options struct {
	Backend Backend
	Logger  *slog.Logger

	// Authorize checks the caller of ctx against the policy table.
	Authorize func(ctx context.Context, action auth.Action, team string) error

	// Loaded reports whether the model can answer now without being loaded. A caller who may use a model but not load it
	// (a viewer) is let through only then; if nil, never.
	Loaded func(ctx context.Context, modelID string) bool

	MaxBody      int64         // bytes of one request; 64 MiB if 0
	MaxInFlight  int64         // bytes of all requests that are being answered; 512 MiB if 0
	WriteTimeout time.Duration // a client that takes nothing for this long is dropped; 2 minutes if 0
}

// Gateway is an http.Handler for everything under /v1.
type Gateway struct {
	o         Options
	mux       *http.ServeMux
	transport *http.Transport
	inFlight  *semaphore.Weighted
}

// api is one kind of request that is passed on.
type api struct {
	path string // under the engine's base URL, and ours
	kind registry.API
}

var apis = []api{
	{"/v1/chat/completions", registry.APIChat},
	{"/v1/completions", registry.APICompletions},
	{"/v1/embeddings", registry.APIEmbeddings},
	{"/v1/fill-mask", registry.APIFillMask},
	{"/v1/classify", registry.APIClassify},
}

// New returns a Gateway. Close it in the end.
func New(o Options) *Gateway {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Loaded == nil {
		o.Loaded = func(context.Context, string) bool { return false }
	}
	if o.MaxBody == 0 {
		o.MaxBody = 64 << 20
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 512 << 20
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = 2 * time.Minute
	}
	g := &Gateway{
		o: o, mux: http.NewServeMux(), inFlight: semaphore.NewWeighted(o.MaxInFlight),
		// One transport keeps a pool for each address, and an instance at a port has an address of its own. One at a socket
		// brings its own transport, and so its own pool. There is no time-out for
		// the answer: a long prompt on a CPU takes minutes, and the client decides how long it waits.
		transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment, // for external services; never used for this machine
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second,
			ForceAttemptHTTP2:   true,
			MaxIdleConns:        256,
			MaxIdleConnsPerHost: 32,
			IdleConnTimeout:     60 * time.Second,
			DisableCompression:  true, // we pass bytes on and do not unpack them
		},
	}
	g.mux.HandleFunc("GET /v1/models", g.listModels)
	g.mux.HandleFunc("GET /v1/models/{id...}", g.showModel)
	for _, a := range apis {
		g.mux.HandleFunc("POST "+a.path, func(w http.ResponseWriter, r *http.Request) { g.forward(w, r, a) })
	}
	g.mux.HandleFunc("/", g.unknown)
	return g
}

// Close ends idle connections to engines.
func (g *Gateway) Close() { g.transport.CloseIdleConnections() }

// ServeHTTP answers one request. Its context must carry the caller's identity (auth.WithIdentity).
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// What comes back depends on who asks and is never to be kept by anything in between.
	w.Header().Set("Cache-Control", "no-store")
	g.mux.ServeHTTP(w, r)
}

// modelObject is a model in OpenAI's shape.
type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"` // Unix seconds
	OwnedBy string `json:"owned_by"`
}

func object(r registry.Record) modelObject {
	return modelObject{ID: r.ModelID, Object: "model", Created: r.CreatedAt.Unix(), OwnedBy: r.Team}
}

func (g *Gateway) listModels(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	if err := g.o.Authorize(ctx, auth.ModelList, ""); err != nil {
		g.fail(w, r, err)
		return
	}
	records, err := g.o.Backend.UsableModels(ctx, auth.VisibleTeams(auth.FromContext(ctx)))
	if err != nil {
		g.fail(w, r, err)
		return
	}
	list := struct {
		Object string        `json:"object"`
		Data   []modelObject `json:"data"`
	}{"list", make([]modelObject, 0, len(records))}
	for _, rec := range records {
		list.Data = append(list.Data, object(rec))
	}
	writeJSON(w, http.StatusOK, list)
}

func (g *Gateway) showModel(w http.ResponseWriter, r *http.Request) {
	rec, err := g.visible(r.Context(), r.PathValue("id"), auth.ModelRead)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, object(rec))
}

func (g *Gateway) unknown(w http.ResponseWriter, r *http.Request) {
	method := ""
	switch {
	case slices.ContainsFunc(apis, func(a api) bool { return a.path == r.URL.Path }):
		method = http.MethodPost
	case r.URL.Path == "/v1/models" || strings.HasPrefix(r.URL.Path, "/v1/models/"):
		method = http.MethodGet
	}
	if method != "" {
		w.Header().Set("Allow", method)
		writeProblem(w, http.StatusMethodNotAllowed, problem{
			Message: clip(r.Method) + " is not possible on " + clip(r.URL.Path) + "; use " + method, Type: typeInvalid, Code: "method_not_allowed",
		})
		return
	}
	writeProblem(w, http.StatusNotFound, problem{
		Message: "there is no " + clip(r.URL.Path) + " here; there are /v1/models, " + joinAnd(apis),
		Type:    typeInvalid, Code: "unknown_url",
	})
}

// joinAnd lists paths as a sentence does.
func joinAnd(list []api) string {
	var b strings.Builder
	for i, a := range list {
		switch {
		case i > 0 && i == len(list)-1:
			b.WriteString(" and ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(a.path)
	}
	return b.String()
}

// visible returns a model that the caller may do action to. A model of a team that the caller is not in is answered as
// one that does not exist.
func (g *Gateway) visible(ctx context.Context, id string, action auth.Action) (registry.Record, error) {
	who := auth.FromContext(ctx)
	if !who.Known() {
		return registry.Record{}, auth.Allowed(who, action, "")
	}
	rec, err := g.o.Backend.Model(ctx, id)
	if registry.CodeOf(err) == registry.CodeNotFound || (err == nil && !auth.Sees(who, rec.Team)) {
		return registry.Record{}, noSuchModel(id)
	}
	if err != nil {
		return registry.Record{}, err
	}
	return rec, g.o.Authorize(ctx, action, rec.Team)
}

func noSuchModel(id string) error {
	return registry.Errorf(registry.CodeNotFound, "there is no model %q, or it belongs to a team that you are not in; GET /v1/models lists yours", clip(id))
}

// mayAnswer checks that the caller may use the model now: whoever may not load it can only use it while it is loaded.
func (g *Gateway) mayAnswer(ctx context.Context, rec registry.Record) error {
	err := g.o.Authorize(ctx, auth.ModelLoad, rec.Team)
	if err == nil || g.o.Loaded(ctx, rec.ModelID) {
		return nil
	}
	if registry.CodeOf(err) != registry.CodeForbidden {
		return err
	}
	return &registry.Error{
		Code: registry.CodeForbidden, Op: "load on demand", Err: err,
		Msg: "the model " + rec.ModelID + " is not loaded and you may not load it; ask a member of the team " + rec.Team + " to load it",
	}
}

// aborted reports whether the client has gone away, so that there is nobody to answer.
func aborted(r *http.Request) bool { return errors.Is(r.Context().Err(), context.Canceled) }

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > 128 {
		return strings.ToValidUTF8(s[:128], "") + "…"
	}
	return s
}
