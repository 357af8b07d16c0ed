package server

import (
	"context"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageSignIn(c echo.Context) error {
	ctx := c.Request().Context()
	next := localPath(c.QueryParam("next"))
	if auth.FromContext(ctx).Known() {
		return c.Redirect(http.StatusSeeOther, next)
	}
	if s.Auth.NeedsFirstAccount(ctx) {
		return c.Redirect(http.StatusSeeOther, "/welcome")
	}
	return html(c, http.StatusOK, pages.SignIn(view.SignIn{Next: next}))
}

func (s *Server) postSignIn(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	next := localPath(in.Get("next"))
	if _, err := s.Auth.SignIn(c.Request().Context(), in.Get("name"), in.Get("password")); err != nil {
		e := registry.AsError(err)
		switch e.Code {
		case registry.CodeUnauthenticated:
			return html(c, http.StatusUnprocessableEntity, pages.SignIn(view.SignIn{Name: in.Get("name"), Next: next, Error: sentence(e.Msg)}))
		case registry.CodeBusy:
			retryAfter(c, e)
			return html(c, http.StatusTooManyRequests, pages.SignIn(view.SignIn{Name: in.Get("name"), Next: next, Error: sentence(e.Msg)}))
		default:
			return err
		}
	}
	return c.Redirect(http.StatusSeeOther, next)
}

// pageWelcome is the first visit. From elsewhere the page says where the first account can be made.
func (s *Server) pageWelcome(c echo.Context) error {
	ctx := c.Request().Context()
	if !s.Auth.NeedsFirstAccount(ctx) {
		return c.Redirect(http.StatusSeeOther, "/")
	}
	if !auth.RemoteFrom(ctx).Local {
		return html(c, http.StatusForbidden, pages.SignIn(view.SignIn{Next: "/", Error: "There is no account yet. The first one can only be made from the machine that the server runs on: open http://localhost and its port there, or start the server with LLMM_ADMIN_PASSWORD set."}))
	}
	return html(c, http.StatusOK, pages.Welcome(view.SignIn{}))
}

func (s *Server) postWelcome(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	v := view.SignIn{Name: in.Get("name"), Field: map[string]string{}}
	if in.Get("password") != in.Get("again") {
		v.Field["again"] = "It is not the same as above."
		return html(c, http.StatusUnprocessableEntity, pages.Welcome(v))
	}
	if _, err := s.Auth.FirstAccount(c.Request().Context(), in.Get("name"), in.Get("password")); err != nil {
		e := registry.AsError(err)
		switch e.Code {
		case registry.CodeConflict:
			return c.Redirect(http.StatusSeeOther, "/signin")
		case registry.CodeInvalid:
			for _, f := range e.Fields {
				v.Field[f.Field] = "It " + f.Msg + "."
			}
			return html(c, http.StatusUnprocessableEntity, pages.Welcome(v))
		default:
			return err
		}
	}
	return c.Redirect(http.StatusSeeOther, "/")
}

func (s *Server) postSignOut(c echo.Context) error {
	if err := s.Auth.SignOut(c.Request().Context()); err != nil {
		return err
	}
	return c.Redirect(http.StatusSeeOther, "/signin")
}

// sentence makes a message of the house (lower case, no full stop) fit to stand alone.
func sentence(msg string) string {
	if msg == "" {
		return msg
	}
	msg = strings.ToUpper(msg[:1]) + msg[1:]
	if !strings.HasSuffix(msg, ".") {
		msg += "."
	}
	return msg
}

func (s *Server) pageOverview(c echo.Context) error {
	v, err := s.overview(c)
	if err != nil {
		return err
	}
	v.Page = s.page(c, "Overview", "overview", view.LiveURL("overview"))
	return html(c, http.StatusOK, pages.Overview(v))
}

// onOverview are the statuses that the overview lists, in its order.
var onOverview = []registry.Status{
	registry.StatusReady, registry.StatusLoading, registry.StatusFetching, registry.StatusQueued, registry.StatusSleeping, registry.StatusUnloading, registry.StatusRetrying,
}

// overview is the first page without its frame.
func (s *Server) overview(c echo.Context) (view.Overview, error) {
	ctx := c.Request().Context()
	res := s.visibleResources(ctx)
	v := view.Overview{Page: s.quietPage(c, "Overview", "overview"), Can: canAnywhere(ctx), Devices: view.DevicesOf(res, s.live.sparks()), GPUNote: res.GPUProblem}
	var err error
	if v.Total, err = s.countModels(c, ""); err != nil {
		return v, err
	}
	for _, st := range onOverview {
		page, err := s.Manager.List(ctx, store.ListQuery{Teams: teamsOf(c), Status: st, NoTotal: true})
		if err != nil {
			return v, err
		}
		for _, l := range page.Items {
			v.Loaded = append(v.Loaded, s.row(&l, canIn(c.Request().Context(), l.Team), res))
		}
	}
	if v.Needs, v.Page.Needs, err = s.needs(c); err != nil {
		return v, err
	}
	ops, _, err := s.operations(c, store.OperationQuery{}, 12, nil)
	v.Activity = view.OperationsOf(ops, s.Now())
	return v, err
}

// countModels counts the models that the caller sees, of one team if it is named.
func (s *Server) countModels(c echo.Context, team string) (int, error) {
	return s.Store.CountMatching(c.Request().Context(), store.ListQuery{Teams: teamsOf(c), Team: team})
}

// maxNeeds is how many of a kind are listed; the badge counts all of them.
const maxNeeds = 20

// needs is what waits for the caller and how much of it there is: only what they may do something about.
func (s *Server) needs(c echo.Context) (out []view.Need, total int, err error) {
	ctx := c.Request().Context()
	id := auth.FromContext(ctx)
	if !id.Known() {
		return nil, 0, nil
	}
	if id.Admin {
		out = append(out, s.adminNeeds(ctx)...)
		total = len(out)
	}
	for _, kind := range []struct {
		status registry.Status
		action auth.Action
		need   func(registry.Record, registry.Runtime) view.Need
	}{
		{registry.StatusPending, auth.RegistrationApprove, s.approvalNeed},
		{registry.StatusFailed, auth.ModelLoad, s.failureNeed},
	} {
		teams := teamsOf(c)
		if teams != nil {
			teams = allowedTeams(id, kind.action)
		}
		page, err := s.Manager.List(ctx, store.ListQuery{Teams: teams, Status: kind.status, Limit: maxNeeds})
		if err != nil {
			return nil, 0, err
		}
		total += page.Total
		for _, l := range page.Items {
			out = append(out, kind.need(l.Record, l.Runtime))
		}
	}
	return out, total, nil
}

// allowedTeams are the caller's teams in which they may do this; never nil, which would mean all.
func allowedTeams(id auth.Identity, a auth.Action) []string {
	out := []string{}
	for _, t := range id.Teams() {
		if auth.Allowed(id, a, t) == nil {
			out = append(out, t)
		}
	}
	return out
}

func (s *Server) approvalNeed(r registry.Record, _ registry.Runtime) view.Need {
	says := "waits for approval"
	if r.TrustRemoteCode {
		says = "asks to run remote code"
	}
	return view.Need{ID: view.RowID(r.ModelID), Kind: "approval", What: r.ModelID, Says: says, Detail: "registered by " + r.CreatedBy + ", " + view.Ago(r.CreatedAt, s.Now()), Action: "Review", URL: view.ModelURL(r.ModelID)}
}

func (s *Server) failureNeed(r registry.Record, rt registry.Runtime) view.Need {
	n := view.Need{ID: view.RowID(r.ModelID), Kind: "failed", What: r.ModelID, Says: "failed to load", Action: "See why", URL: view.ModelURL(r.ModelID)}
	if rt.Failure != nil {
		n.Detail = rt.Failure.Msg
	}
	return n
}

// adminNeeds are the faults of the installation itself.
func (s *Server) adminNeeds(ctx context.Context) (out []view.Need) {
	if st := s.Manager.ManifestProblems(); st != nil {
		n := view.Need{ID: "manifest", Kind: "manifest", What: "The models file", Detail: st.Err, Action: "Open", URL: "/yaml"}
		switch {
		case st.Err != "":
			n.Says = "cannot be used"
		case len(st.Refused) > 0:
			n.Says, n.Detail = "does not take a change", st.Refused[0].Msg
		case len(st.Issues) > 0:
			n.Says = "has entries that are not valid"
		}
		if n.Says != "" {
			out = append(out, n)
		}
	}
	usable, installable := false, ""
	engines := s.live.knownEngines(ctx)
	for _, e := range engines {
		usable = usable || (e.Usable || e.Pending) && e.Here()
		if e.Installable && installable == "" {
			installable = e.Title
		}
	}
	if len(engines) > 0 && !usable {
		n := view.Need{ID: "engine", Kind: "engine", What: "No engine", Says: "can run models here yet", Action: "See the engines", URL: "/engines"}
		if installable != "" {
			n.Action = "Get " + installable
		}
		out = append(out, n)
	}
	return out
}

// places are where the jump box leads besides models.
var places = []struct {
	hit view.Hit
	can func(view.Can) bool
}{
	{view.Hit{Kind: "page", Title: "Overview", Note: "devices, what is loaded", URL: "/"}, nil},
	{view.Hit{Kind: "page", Title: "Models", Note: "all registered models", URL: "/models"}, nil},
	{view.Hit{Kind: "page", Title: "Activity", Note: "operations", URL: "/operations"}, nil},
	{view.Hit{Kind: "action", Title: "Register a model", Note: "action", URL: "/models/new"}, func(v view.Can) bool { return v.Register }},
	{view.Hit{Kind: "page", Title: "Storage", Note: "what occupies the disks", URL: "/storage"}, nil},
	{view.Hit{Kind: "page", Title: "Secrets", Note: "tokens and keys by name", URL: "/secrets"}, func(v view.Can) bool { return v.Register }},
	{view.Hit{Kind: "page", Title: "Engines", Note: "what runs models", URL: "/engines"}, nil},
	{view.Hit{Kind: "page", Title: "Teams", Note: "users and roles", URL: "/teams"}, nil},
	{view.Hit{Kind: "page", Title: "YAML", Note: "import and export", URL: "/yaml"}, nil},
	{view.Hit{Kind: "page", Title: "Account", Note: "password and API tokens", URL: "/account"}, nil},
}

const maxHits = 8

// uiJump answers the search-or-jump box.
func (s *Server) uiJump(c echo.Context) error {
	j := view.Jump{Q: strings.TrimSpace(c.QueryParam("q"))}
	if len(j.Q) > 200 {
		j.Q = strings.ToValidUTF8(j.Q[:200], "")
	}
	ctx := c.Request().Context()
	can := canAnywhere(ctx)
	var found []view.Hit
	for _, p := range places {
		if (p.can == nil || p.can(can)) && strings.Contains(strings.ToLower(p.hit.Title+" "+p.hit.Note), strings.ToLower(j.Q)) {
			found = append(found, p.hit)
		}
	}
	if j.Q != "" {
		page, err := s.Manager.List(ctx, store.ListQuery{Q: j.Q, Teams: teamsOf(c), Limit: maxHits, NoTotal: true})
		if err != nil {
			return err
		}
		for _, l := range page.Items {
			word := view.StatusOf(l.Status, l.Percent, 0)
			j.Hits = append(j.Hits, view.Hit{Kind: "model", Title: l.ModelID, Note: word.Label, URL: view.ModelURL(l.ModelID), Dot: word.Class})
		}
	}
	// Models come first, but a page that was named is always among the hits.
	j.Hits = append(j.Hits[:min(len(j.Hits), max(maxHits-len(found), maxHits/2))], found...)
	j.Hits = j.Hits[:min(len(j.Hits), maxHits)]
	return html(c, http.StatusOK, partials.Hits(j))
}
