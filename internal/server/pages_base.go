package server

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/a-h/templ"
	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// pageRoutes are the console: what web/templates/README.md lists. The GET rows next to forms that answer with a page of
// their own are for a reload, which would otherwise find nothing at that address.
func (s *Server) pageRoutes() []route {
	to := func(path string) echo.HandlerFunc {
		return func(c echo.Context) error { return c.Redirect(http.StatusSeeOther, path) }
	}
	return []route{
		{"GET", "/signin", auth.Public, s.pageSignIn},
		{"POST", "/signin", auth.Public, s.postSignIn},
		{"GET", "/welcome", auth.Public, s.pageWelcome},
		{"POST", "/welcome", auth.Public, s.postWelcome},
		{"POST", "/signout", auth.Public, s.postSignOut},

		{"GET", "/", auth.ModelList, s.pageOverview},
		{"GET", "/models", auth.ModelList, s.pageModels},
		{"GET", "/models/new", auth.ModelRegister, s.pageNewModel},
		{"POST", "/models", auth.ModelRegister, s.postNewModel},
		{"GET", "/models/:id", auth.ModelRead, s.pageModel},
		{"POST", "/models/:id", auth.ModelEdit, s.postModel},
		{"GET", "/models/:id/edit", auth.ModelEdit, s.pageEditModel},
		{"POST", "/models/:id/load", auth.ModelLoad, s.postLoad},
		{"POST", "/models/:id/unload", auth.ModelUnload, s.postUnload},
		{"POST", "/models/:id/sleep", auth.ModelUnload, s.postSleep},
		{"POST", "/models/:id/cancel", auth.ModelUnload, s.postCancelModel},
		{"POST", "/models/:id/fetch", auth.ModelFetch, s.postFetch},
		{"POST", "/models/:id/approve", auth.RegistrationApprove, s.postApprove},
		{"GET", "/models/:id/delete", auth.ModelDelete, s.pageDelete},
		{"POST", "/models/:id/delete", auth.ModelDelete, s.postDelete},

		{"GET", "/operations", auth.ModelList, s.pageActivity},
		{"GET", "/operations/:op", auth.OperationRead, s.pageOperation},
		{"POST", "/operations/:op/cancel", auth.OperationCancel, s.postCancelOperation},
		{"POST", "/operations/:op/pause", auth.ModelFetch, s.postPause},
		{"POST", "/operations/:op/resume", auth.ModelFetch, s.postResume},

		{"GET", "/storage", auth.StorageRead, s.pageStorage},
		{"GET", "/storage/delete", auth.StorageRead, s.pageDeleteStored},
		{"POST", "/storage/delete", auth.StorageDelete, s.postDeleteStored},
		{"GET", "/storage/retention", auth.AccountOwn, to("/storage")},
		{"POST", "/storage/retention", auth.StorageManage, s.postRetention},
		{"GET", "/storage/limits", auth.AccountOwn, to("/storage")},
		{"POST", "/storage/limits", auth.StorageManage, s.postLimits},
		{"GET", "/storage/roots", auth.AccountOwn, to("/storage")},
		{"POST", "/storage/roots", auth.StorageManage, s.postRoots},
		{"GET", "/storage/clean", auth.AccountOwn, to("/storage")},
		{"POST", "/storage/clean", auth.StorageManage, s.postClean},

		{"GET", "/secrets", auth.SecretList, s.pageSecrets},
		{"POST", "/secrets", auth.SecretManage, s.postSecret},
		{"GET", "/secrets/:name/delete", auth.SecretList, s.pageDeleteSecret},
		{"POST", "/secrets/:name/delete", auth.SecretManage, s.postDeleteSecret},

		{"GET", "/engines", auth.EnginesRead, s.pageEngines},
		{"POST", "/engines/check", auth.EnginesRead, s.postCheckEngines},
		{"GET", "/engines/check", auth.AccountOwn, to("/engines")},
		{"GET", "/engines/:name", auth.EnginesRead, s.pageEngine},
		{"POST", "/engines/:name/install", auth.EngineInstall, s.postInstallEngine},
		{"POST", "/engines/:name/test", auth.EngineTest, s.postTestEngine},
		{"GET", "/engines/:name/remove", auth.EnginesRead, s.pageRemoveEngine},
		{"POST", "/engines/:name/remove", auth.EngineInstall, s.postRemoveEngine},

		{"GET", "/account", auth.AccountOwn, s.pageAccount},
		{"GET", "/account/password", auth.AccountOwn, to("/account")},
		{"POST", "/account/password", auth.AccountOwn, s.postPassword},
		{"GET", "/account/tokens", auth.AccountOwn, to("/account")},
		{"POST", "/account/tokens", auth.TokenOwn, s.postToken},
		{"POST", "/account/tokens/:token/revoke", auth.TokenOwn, s.postRevokeToken},

		{"GET", "/teams", auth.AccountOwn, s.pageTeams},
		{"POST", "/teams", auth.TeamManage, s.postTeam},
		{"GET", "/teams/:team/members", auth.AccountOwn, to("/teams")},
		{"POST", "/teams/:team/members", auth.MemberManage, s.postMember},
		{"POST", "/teams/:team/members/:user/remove", auth.MemberManage, s.postRemoveMember},
		{"GET", "/users", auth.AccountOwn, to("/teams")},
		{"POST", "/users", auth.UserManage, s.postUser},
		{"POST", "/users/:user/disable", auth.UserManage, s.postDisableUser},
		{"POST", "/users/:user/enable", auth.UserManage, s.postEnableUser},

		{"GET", "/yaml", auth.ManifestExport, s.pageYAML},
		{"POST", "/yaml", auth.ManifestImport, s.postYAML},
		{"GET", "/yaml/export", auth.ManifestExport, s.exportManifest},

		{"GET", "/ui/jump", auth.ModelList, s.uiJump},
		{"GET", "/ui/preview", auth.ModelRegister, s.uiPreview},
		{"GET", "/ui/events", auth.EventsRead, s.uiEvents},
	}
}

// maxForm is how large a form may be, in bytes; imports have maxImportBody.
const maxForm = 1 << 20

// html answers with a component. It is rendered before anything is sent, so that a fault becomes an error page and not
// half a page.
func html(c echo.Context, status int, page templ.Component) error {
	b := buffers.take()
	defer buffers.giveBack(b)
	if err := page.Render(c.Request().Context(), b); err != nil {
		return err
	}
	c.Response().Header().Set("Vary", "HX-Request")
	return sendWhole(c, status, echo.MIMETextHTMLCharsetUTF8, b.Bytes())
}

// swaps is the id of the element that the answer replaces: "" when the answer is a whole page.
func swaps(c echo.Context) string {
	h := c.Request().Header
	if h.Get("HX-Request") != "true" || h.Get("HX-Boosted") == "true" {
		return ""
	}
	return h.Get("HX-Target")
}

// fragment reports whether htmx asked for a piece of a page.
func fragment(c echo.Context) bool {
	h := c.Request().Header
	return h.Get("HX-Request") == "true" && h.Get("HX-Boosted") != "true"
}

// form reads the fields of a posted form of at most maxForm bytes.
func form(c echo.Context) (url.Values, error) {
	r := c.Request()
	r.Body = http.MaxBytesReader(c.Response(), r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, badForm(err)
	}
	return r.PostForm, nil
}

// badForm keeps a body that is too large apart from one that cannot be read.
func badForm(err error) error {
	if asError(err).Malformed {
		return err
	}
	return &registry.Error{Code: registry.CodeInvalid, Malformed: true, Msg: "The form could not be read. Send it again from the page.", Err: err}
}

// page is what every page has around its content.
func (s *Server) page(c echo.Context, title, nav, live string) view.Page {
	p := s.quietPage(c, title, nav)
	p.Live = live
	p.Flash = takeFlash(c)
	if needs, n, err := s.needs(c); err == nil {
		p.Needs = max(n, len(needs))
	}
	return p
}

// quietPage is page without what has to be looked up, for telling that looking up did not work.
func (s *Server) quietPage(c echo.Context, title, nav string) view.Page {
	id := auth.FromContext(c.Request().Context())
	user := view.User{Name: id.Name, Admin: id.Admin, Secrets: auth.Allowed(id, auth.SecretList, "") == nil}
	return view.Page{Title: title, Nav: nav, User: user, Version: s.Version, Now: s.Now()}
}

// canIn says what the caller may do with what belongs to a team.
func canIn(ctx context.Context, team string) view.Can {
	id := auth.FromContext(ctx)
	may := func(a auth.Action) bool { return auth.Allowed(id, a, team) == nil }
	return view.Can{
		Register: may(auth.ModelEdit), Load: may(auth.ModelLoad), Override: may(auth.ModelOverride), Delete: may(auth.ModelDelete),
		Approve: may(auth.RegistrationApprove), Install: may(auth.EngineInstall), Test: may(auth.EngineTest), Manage: may(auth.UserManage),
	}
}

// canAnywhere says what the caller may do in some team, for what is offered before a team is known.
func canAnywhere(ctx context.Context) view.Can {
	id := auth.FromContext(ctx)
	can := canIn(ctx, "")
	for team := range id.Roles {
		c := canIn(ctx, team)
		can.Register, can.Load = can.Register || c.Register, can.Load || c.Load
	}
	return can
}

// mayRegister refuses who is a member of no team, before a form is shown or a path of this machine is looked at.
func mayRegister(ctx context.Context) error {
	id := auth.FromContext(ctx)
	var err error
	for _, team := range append(id.Teams(), registry.DefaultTeam) {
		if err = auth.Allowed(id, auth.ModelRegister, team); err == nil {
			return nil
		}
	}
	return err
}

// baseURL is this server as the browser reached it, for the examples on the pages.
func baseURL(c echo.Context) string { return c.Scheme() + "://" + c.Request().Host }

const flashCookie = "llmm_flash"

// flash tells a sentence on the next page that is shown. It is text, never markup.
func flash(c echo.Context, kind, msg string) {
	v := base64.RawURLEncoding.EncodeToString([]byte(kind + "\n" + msg))
	c.SetCookie(&http.Cookie{Name: flashCookie, Value: v, Path: "/", MaxAge: 60, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: c.IsTLS()})
}

func takeFlash(c echo.Context) *view.Flash {
	k, err := c.Cookie(flashCookie)
	if err != nil {
		return nil
	}
	c.SetCookie(&http.Cookie{Name: flashCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	b, err := base64.RawURLEncoding.DecodeString(k.Value)
	kind, msg, ok := strings.Cut(string(b), "\n")
	if err != nil || !ok || len(msg) > 1000 || (kind != "ok" && kind != "warn" && kind != "bad") {
		return nil
	}
	return &view.Flash{Kind: kind, Msg: msg}
}

// seeOther answers a form: the page to look at now, and what to tell there.
func seeOther(c echo.Context, to, kind, msg string) error {
	if msg != "" {
		flash(c, kind, msg)
	}
	return c.Redirect(http.StatusSeeOther, to)
}

// errorPage tells an error to a browser: who is not signed in is sent to sign in, htmx gets a fragment, everybody else
// a page.
func (s *Server) errorPage(c echo.Context, e *registry.Error, status int, msg string) error {
	r := c.Request()
	if r.URL.Path == "/ui/events" {
		return c.String(status, msg+"\n") // an EventSource shows nothing of it
	}
	known := auth.FromContext(r.Context()).Known()
	if e.Code == registry.CodeUnauthenticated || (e.Code == registry.CodeNotFound && !known && r.Method == http.MethodGet) {
		return s.toSignIn(c)
	}
	p := *registry.ProblemOf(e)
	p.Msg = msg
	p = s.visibleProblem(c, p)
	if fragment(c) {
		// The page keeps what it shows; the script puts every other status above the content by itself.
		c.Response().Header().Set("HX-Retarget", "#flash")
		c.Response().Header().Set("HX-Reswap", "innerHTML")
		return html(c, status, partials.ErrorNote(p))
	}
	v := view.Error{Page: s.quietPage(c, http.StatusText(status), ""), Status: status, Problem: p}
	if status < 500 && known {
		v.Page = s.page(c, http.StatusText(status), "", "")
	}
	return html(c, status, pages.Error(v))
}

// toSignIn sends the browser to sign in, or to make the first account, and remembers where it wanted to go.
func (s *Server) toSignIn(c echo.Context) error {
	r := c.Request()
	to := "/signin"
	if s.Auth.NeedsFirstAccount(r.Context()) {
		to = "/welcome"
	} else if next := wanted(c); next != "/" {
		to += "?" + url.Values{"next": {next}}.Encode()
	}
	if r.Header.Get("HX-Request") == "true" {
		c.Response().Header().Set("HX-Redirect", to)
		return c.NoContent(http.StatusUnauthorized)
	}
	return c.Redirect(http.StatusSeeOther, to)
}

// wanted is the page that a browser is on, or asked for.
func wanted(c echo.Context) string {
	r := c.Request()
	if r.Method == http.MethodGet && !fragment(c) {
		return localPath(r.URL.RequestURI())
	}
	from := r.Header.Get("HX-Current-URL")
	if from == "" {
		from = r.Referer()
	}
	u, err := url.Parse(from)
	if err != nil || u.Host != r.Host {
		return "/"
	}
	return localPath(u.RequestURI())
}

// localPath returns p if it is a path of ours and "/" otherwise: what is followed after signing in must not lead
// elsewhere.
func localPath(p string) string {
	u, err := url.Parse(p)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") ||
		strings.ContainsAny(p, "\\\r\n\t") || len(p) > 2000 {
		return "/"
	}
	return p
}

// hidden stands where the name of a model was that the caller may not see.
const hidden = "a model of another team"

// visibleProblem hides the names of other teams' models in an error.
func (s *Server) visibleProblem(c echo.Context, p registry.Problem) registry.Problem {
	if p.Shortage == nil {
		return p
	}
	sh := *p.Shortage
	for _, h := range sh.Holders {
		if h.ModelID != "" && !s.sees(c, h.ModelID) {
			p.Msg = strings.ReplaceAll(p.Msg, h.ModelID, hidden)
		}
	}
	sh.Holders = s.visibleHolders(c, sh.Holders)
	p.Shortage = &sh
	return p
}

func (s *Server) sees(c echo.Context, id string) bool {
	_, err := s.seen(c.Request().Context(), id)
	return err == nil
}

// What the manager writes into an operation about another model: why it was evicted, and for whom room is made.
const (
	evictedFor = "evicted for "
	unloading  = "Unloading "
	makeRoom   = " to make room"
)

// visibleOperation hides what the caller may not see of an operation that they may see: the names of other teams'
// models, and from viewers the lines of the engine's log.
func (s *Server) visibleOperation(c echo.Context, op registry.Operation) registry.Operation {
	ctx := c.Request().Context()
	if auth.FromContext(ctx).Admin {
		return op
	}
	named := map[string]bool{}
	if id, ok := strings.CutPrefix(op.Cause, evictedFor); ok {
		named[id] = true
	}
	op.Stages = append([]registry.Stage(nil), op.Stages...)
	for _, st := range op.Stages {
		if rest, ok := strings.CutPrefix(st.Msg, unloading); ok {
			named[strings.TrimSuffix(rest, makeRoom)] = true
		}
	}
	if op.Error != nil && op.Error.Shortage != nil {
		for _, h := range op.Error.Shortage.Holders {
			named[h.ModelID] = true
		}
	}
	for id := range named {
		if id == "" || id == op.Subject || s.sees(c, id) {
			continue
		}
		op.Cause, op.Outcome = strings.ReplaceAll(op.Cause, id, hidden), strings.ReplaceAll(op.Outcome, id, hidden)
		for i := range op.Stages {
			op.Stages[i].Msg = strings.ReplaceAll(op.Stages[i].Msg, id, hidden)
		}
	}
	if op.Error != nil {
		p := s.visibleProblem(c, *op.Error)
		if !op.Kind.OfEngine() {
			rec, err := s.seen(ctx, op.Subject)
			p.Failure = visibleFailure(ctx, p.Failure, rec.Team, err)
		}
		op.Error = &p
	}
	return op
}

// visibleFailure leaves the log's lines out for who may not read logs: they may quote prompts.
func visibleFailure(ctx context.Context, f *registry.Failure, team string, unseen error) *registry.Failure {
	if f == nil || (unseen == nil && auth.Allowed(auth.FromContext(ctx), auth.LogsRead, team) == nil) {
		return f
	}
	short := *f
	short.LogTail = nil
	return &short
}

// operations returns up to want operations that the caller may see and that keep lets through, newest first, and the
// cursor of the next page. It gives up after a bounded number of operations that are not for the caller, and the
// cursor leads on from there.
func (s *Server) operations(c echo.Context, q store.OperationQuery, want int, keep func(registry.Operation) bool) ([]registry.Operation, string, error) {
	ctx := c.Request().Context()
	var out []registry.Operation
	for range 10 {
		q.Limit = store.DefaultLimit
		ops, next, err := s.Manager.Operations(ctx, q)
		if err != nil {
			return nil, "", err
		}
		for i, op := range ops {
			if (keep != nil && !keep(op)) || s.mayOperate(ctx, op, auth.OperationRead) != nil {
				continue
			}
			out = append(out, s.visibleOperation(c, op))
			if len(out) == want {
				if i == len(ops)-1 && next == "" {
					return out, "", nil
				}
				return out, op.ID, nil
			}
		}
		if q.After = next; next == "" {
			return out, "", nil
		}
	}
	return out, q.After, nil
}

// within returns the context of a request with less time, for what a page may do without.
func within(c echo.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Request().Context(), d)
}
