package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageModels(c echo.Context) error {
	v, err := s.models(c)
	if err != nil {
		return err
	}
	switch swaps(c) {
	case "results":
		return html(c, http.StatusOK, partials.ModelResults(v))
	case "more":
		return html(c, http.StatusOK, partials.ModelRows(v))
	}
	if v.Total, err = s.countModels(c, ""); err != nil {
		return err
	}
	if v.Teams, err = s.visibleTeams(c); err != nil {
		return err
	}
	f := v.Filter
	v.Page = s.page(c, "Models", "models", view.LiveURL("models", "q", f.Q, "status", f.Status, "team", f.Team, "source_type", f.Source))
	return html(c, http.StatusOK, pages.Models(v))
}

// models is one page of the list as its address asks for it.
func (s *Server) models(c echo.Context) (view.Models, error) {
	ctx := c.Request().Context()
	f := view.Filter{Q: strings.TrimSpace(c.QueryParam("q")), Status: c.QueryParam("status"), Team: c.QueryParam("team"), Source: c.QueryParam("source_type"), After: c.QueryParam("after")}
	v := view.Models{Can: canAnywhere(ctx), Filter: f}
	q := store.ListQuery{Q: f.Q, Team: f.Team, Teams: teamsOf(c), Status: registry.Status(f.Status), SourceType: registry.SourceType(f.Source), After: f.After, NoTotal: true}
	if err := oneOf("status", q.Status, registry.Statuses); err != nil {
		return v, err
	}
	if err := oneOf("source_type", q.SourceType, registry.SourceTypes); err != nil {
		return v, err
	}
	page, err := s.Manager.List(ctx, q)
	if err != nil {
		return v, err
	}
	v.Next = page.Next
	res, can := s.Manager.Resources(), map[string]view.Can{}
	v.Rows = make([]view.ModelRow, len(page.Items))
	for i := range page.Items {
		l := &page.Items[i]
		if _, known := can[l.Team]; !known {
			can[l.Team] = canIn(ctx, l.Team)
		}
		v.Rows[i] = s.row(l, can[l.Team], res)
	}
	return v, nil
}

// visibleTeams are the teams whose models the caller sees, by name.
func (s *Server) visibleTeams(c echo.Context) ([]string, error) {
	teams, err := s.Auth.ListTeams(c.Request().Context())
	if err != nil {
		return nil, err
	}
	out := make([]string, len(teams))
	for i, t := range teams {
		out[i] = t.Name
	}
	return out, nil
}

// row is the model's line in a list; can is what the caller may do with it.
func (s *Server) row(l *manager.Listed, can view.Can, res registry.Resources) view.ModelRow {
	return view.RowOf(view.RowInput{
		Record: l.Record, Runtime: l.Runtime, Percent: l.Percent, Largest: largest(res), Requests: float64(l.PerMinute),
		Can: can, Now: s.Now(),
	})
}

// largest is the memory of the largest device, in bytes.
func largest(res registry.Resources) int64 {
	n := int64(0)
	for _, g := range res.GPUs {
		n = max(n, g.MemoryTotal)
	}
	if n == 0 {
		n = res.Host.RAMTotal
	}
	return n
}

// How long a page waits for the source to say what it has. The live stream waits longer and fills in the rest.
const (
	lookForPage = 1500 * time.Millisecond
	lookForLive = 3 * time.Second
)

func (s *Server) pageModel(c echo.Context) error {
	v, err := s.modelPage(c, record(c).ModelID, lookForPage)
	if err != nil {
		return err
	}
	if v.History, err = s.history(c, v.ID()); err != nil {
		return err
	}
	if s.mayReadLog(c, v.Record.Team) {
		v.Log = s.logTail(c.Request().Context(), v.ID())
	}
	v.Page = s.page(c, v.ID(), "models", view.LiveURL("model", "id", v.ID()))
	return html(c, http.StatusOK, pages.Model(v))
}

// modelPage is a model's page without its frame, history and log.
func (s *Server) modelPage(c echo.Context, id string, patience time.Duration) (view.ModelPage, error) {
	ctx := c.Request().Context()
	l, err := s.Manager.Get(ctx, id)
	if err != nil {
		return view.ModelPage{}, err
	}
	res := s.Manager.Resources()
	v := view.ModelPage{
		Page: s.quietPage(c, id, "models"), Can: canIn(ctx, l.Team), Record: l.Record, Runtime: l.Runtime, Status: l.Status,
		BaseURL: baseURL(c), Largest: largest(res), CanSleep: l.CanSleep, WhyAwake: l.WhyAwake, Service: l.Service,
	}
	v.Runtime.Failure = visibleFailure(ctx, l.Runtime.Failure, l.Team, nil)
	if l.Operation != nil && l.Operation.Kind != registry.OperationFetch {
		op := view.OperationOf(s.visibleOperation(c, *l.Operation), s.Now())
		v.Operation = &op
	}
	if v.Files.Fetch, v.Files.Last, err = s.fetches(c, id); err != nil {
		return v, err
	}
	for _, r := range res.Reservations {
		if r.ModelID == id {
			v.Requests = max(v.Requests, r.Active)
		}
	}
	idle := v.Operation == nil && (v.Status == registry.StatusNotLoaded || v.Status == registry.StatusFailed || v.Fetching())
	if v.Usable() {
		if patience == lookForLive && !idle {
			patience = 0 // progress must not wait for a source that is slow
		}
		look, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		seen := s.live.look(look, l.Record, idle)
		v.Facts = seen.facts
		v.Files.OnDisk = seen.onDisk
		if idle && seen.plan != nil {
			p := s.visiblePlan(c, *seen.plan)
			v.Plan, v.Engines = &p, p.Engines
		}
	}
	if l.Status == registry.StatusReady || l.Status == registry.StatusSleeping {
		if v.Engines, err = s.Manager.WhyEngine(ctx, l.Model); err != nil {
			return v, err
		}
	}
	s.fillFiles(c, &v, l.Artifact)
	v.Record.Model = l.Redacted()
	return v, nil
}

func (s *Server) history(c echo.Context, id string) ([]view.Operation, error) {
	ops, _, err := s.operations(c, store.OperationQuery{Subject: id}, 10, func(op registry.Operation) bool {
		return !op.Kind.OfEngine() // an engine may be called as the model is
	})
	return view.OperationsOf(ops, s.Now()), err
}

func (s *Server) mayReadLog(c echo.Context, team string) bool {
	return auth.Allowed(auth.FromContext(c.Request().Context()), auth.LogsRead, team) == nil
}

const logLines = 200

func (s *Server) logTail(ctx context.Context, id string) []string {
	path, err := s.Manager.LogPath(ctx, id)
	if err != nil {
		return nil // never loaded: there is no log
	}
	return s.Manager.ForPeople(process.Tail(path, 0, logLines))
}

// settle is how long a button waits for what it began, so that a refusal is told at the button.
const settle = 400 * time.Millisecond

func (s *Server) postLoad(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	on := func(name string) bool { return in.Get(name) == "true" }
	o := manager.LoadOptions{ForceReload: on("force_reload"), Override: on("override_resources"), Evict: on("evict"),
		Device: registry.Device(in.Get("device")), Actor: actor(c), Cause: "asked for in the console"}
	if err := oneOf("device", o.Device, registry.Devices); err != nil {
		return err
	}
	op, err := s.load(c.Request().Context(), record(c), o)
	if err != nil {
		return err
	}
	if err := s.refusal(c, op); err != nil {
		return err
	}
	return s.modelAnswer(c)
}

// refusal waits a moment for an operation and returns why it was refused, if it was. A load that was tried and failed is
// no refusal: the model's page tells it.
func (s *Server) refusal(c echo.Context, op registry.Operation) error {
	op, err := s.await(c, op, settle)
	if err != nil || op.State != registry.OperationFailed {
		return err
	}
	if l, err := s.Manager.Get(c.Request().Context(), op.Subject); err != nil || l.Status == registry.StatusFailed {
		return err
	}
	return op.Error.AsError()
}

// modelAnswer answers a button: with the row or the part of the page that it stands in, or with the page.
func (s *Server) modelAnswer(c echo.Context) error {
	id := record(c).ModelID
	target := swaps(c)
	if !fragment(c) {
		return c.Redirect(http.StatusSeeOther, view.ModelURL(id))
	}
	if strings.HasPrefix(target, "m-") {
		l, err := s.Manager.Get(c.Request().Context(), id)
		if err != nil {
			return err
		}
		return html(c, http.StatusOK, partials.ModelRow(s.row(&l, canIn(c.Request().Context(), l.Team), s.Manager.Resources()), false))
	}
	v, err := s.modelPage(c, id, lookForPage)
	if err != nil {
		return err
	}
	return html(c, http.StatusOK, partials.ModelAnswer(v))
}

func (s *Server) postUnload(c echo.Context) error {
	op, unloaded, err := s.unload(c.Request().Context(), record(c).ModelID, "asked for in the console")
	if err != nil {
		return err
	}
	if unloaded {
		if _, err := s.await(c, op, settle); err != nil {
			return err
		}
	}
	return s.modelAnswer(c)
}

func (s *Server) postSleep(c echo.Context) error {
	ctx, id := c.Request().Context(), record(c).ModelID
	op, err := s.Manager.Sleep(ctx, id, manager.UnloadOptions{Actor: actor(c), Cause: "asked for in the console"})
	s.Auth.Audit(ctx, auth.ModelUnload, "model:"+id, err, "sleep")
	if err != nil {
		return err
	}
	if _, err := s.await(c, op, settle); err != nil {
		return err
	}
	return s.modelAnswer(c)
}

// postCancelModel ends what is on its way: the load, or the pause before the next start.
func (s *Server) postCancelModel(c echo.Context) error {
	ctx, id := c.Request().Context(), record(c).ModelID
	l, err := s.Manager.Get(ctx, id)
	if err != nil {
		return err
	}
	op := l.Operation
	if op == nil || op.Kind != registry.OperationLoad {
		if l.Status != registry.StatusFetching {
			return s.postUnload(c)
		}
		fetch, err := s.fetchOf(c, id)
		if err != nil || fetch == nil {
			return errors.Join(err, s.modelAnswer(c))
		}
		op = &fetch.Operation
	}
	_, err = s.Manager.CancelOperation(ctx, op.ID, actor(c))
	s.Auth.Audit(ctx, auth.OperationCancel, "operation:"+op.ID, err, string(op.Kind)+" of "+id)
	if err != nil && registry.CodeOf(err) != registry.CodeBadState { // it ended by itself in this moment
		return err
	}
	return s.modelAnswer(c)
}

func (s *Server) postApprove(c echo.Context) error {
	ctx, id := c.Request().Context(), record(c).ModelID
	_, err := s.Manager.SetRegistration(ctx, id, "approve", actor(c))
	s.Auth.Audit(ctx, auth.RegistrationApprove, "model:"+id, err, "approve")
	if err != nil {
		return err
	}
	return s.modelAnswer(c)
}

func (s *Server) pageDelete(c echo.Context) error {
	v, err := s.modelPage(c, record(c).ModelID, 0)
	if err != nil {
		return err
	}
	if swaps(c) == "delete" {
		if c.QueryParam("keep") != "" {
			return html(c, http.StatusOK, partials.DeleteOffer(v.ID()))
		}
		return html(c, http.StatusOK, partials.DeleteAsk(v))
	}
	v.Page = s.page(c, "Delete "+v.ID(), "models", "")
	return html(c, http.StatusOK, pages.Delete(v))
}

// deleteWithin is how long a deletion waits for the model to be unloaded first.
const deleteWithin = time.Minute

func (s *Server) postDelete(c echo.Context) (err error) {
	in, err := form(c)
	if err != nil {
		return err
	}
	ctx, rec := c.Request().Context(), record(c)
	defer func() { s.Auth.Audit(ctx, auth.ModelDelete, "model:"+rec.ModelID, err, "") }()
	version, err := formVersion(in.Get("version"))
	if err != nil {
		return err
	}
	if version != 0 && version != rec.Version {
		return registry.Errorf(registry.CodeConflict, "%s was changed by %s while this page was open. Look at it again before you delete it.", rec.ModelID, rec.UpdatedBy)
	}
	op, unloaded, err := s.Manager.Unload(ctx, rec.ModelID, manager.UnloadOptions{Actor: actor(c), Cause: "deleted in the console"})
	if err != nil {
		return err
	}
	if unloaded {
		if op, err = s.await(c, op, deleteWithin); err != nil {
			return err
		}
		if !op.State.Final() {
			return registry.Errorf(registry.CodeTimeout, "%s is still being unloaded. It was not deleted; try again when it is unloaded.", rec.ModelID)
		}
	}
	if err := s.Manager.Delete(ctx, rec.ModelID, version, actor(c)); err != nil {
		return err
	}
	return seeOther(c, "/models", "ok", rec.ModelID+" was deleted.")
}

// formVersion reads the version that a form started from; 0 when it says none.
func formVersion(v string) (int64, error) {
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, badParam("version", "must be the version that the form came with")
	}
	return n, nil
}
