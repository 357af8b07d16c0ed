package server

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// How long a look at a source is waited for.
const (
	previewFirst = 2500 * time.Millisecond // before the form says that the source is slow
	previewAgain = 5 * time.Second         // between two such words
	formPatience = 15 * time.Second        // by a form that cannot be shown or stored without it
)

// uiPreview says what is at a source before anything is registered. It does not wait for a slow source: what it answers
// then asks again, and the look goes on meanwhile.
func (s *Server) uiPreview(c echo.Context) error {
	if err := mayRegister(c.Request().Context()); err != nil {
		return err
	}
	q := url.Values{}
	for name, v := range c.QueryParams() {
		if name != "custom_loader_params" { // secrets do not belong into addresses
			q[name] = v
		}
	}
	if q.Get("source_path") == "" {
		return html(c, http.StatusOK, partials.FormPreview(nil))
	}
	patience := previewFirst
	if swaps(c) == "preview" && c.Request().Header.Get("HX-Trigger") != "preview" {
		patience = previewAgain // the answer before has asked
	}
	values, f, bad := view.DecodeForm(q)
	p, _, err := s.preview(c, f, values, bad, patience)
	if err != nil {
		return err
	}
	if p.Waited > 0 {
		p.Again = c.Request().URL.RequestURI()
	}
	return html(c, http.StatusOK, partials.FormPreview(p))
}

// preview looks at what a form asks for, for as long as patience. The error is one that no look can mend.
func (s *Server) preview(c echo.Context, f view.Form, values map[string]any, bad []registry.FieldError, patience time.Duration) (*view.Preview, registry.Lookup, error) {
	source := registry.SourceType(f.Values["source_type"])
	p := &view.Preview{Source: source, Offered: view.OfferedAt(string(source), f.Values["source_path"])}
	refused := func(problem *registry.Problem) (*view.Preview, registry.Lookup, error) {
		v := s.visibleProblem(c, *problem)
		p.Problem = &v
		return p, registry.Lookup{}, nil
	}
	values = maps.Clone(values)
	if id := f.Values["model_id"]; registry.ValidateModelID(id) != nil {
		delete(values, "model_id") // it is told at its field when the form is sent
	}
	model, errs := registry.DecodeGaps(values)
	if errs = mergeErrors(bad, errs); len(errs) > 0 {
		return refused(&registry.Problem{Code: registry.CodeInvalid, Msg: "This cannot be looked up yet.", Fields: errs})
	}
	if err := s.forLook(c, &model); err != nil {
		return nil, registry.Lookup{}, err
	}
	ctx, cancel := within(c, patience)
	defer cancel()
	l, began, err := s.lookups.look(ctx, model, s.Manager.LookUp)
	switch {
	case errors.Is(err, errStillLooking):
		p.Waited = max(time.Since(began), time.Second)
		return p, l, nil
	case err != nil:
		switch registry.CodeOf(err) {
		case registry.CodeInternal, registry.CodeUnauthenticated, registry.CodeForbidden:
			return nil, l, err
		case registry.CodeInvalid, registry.CodeNotFound, registry.CodeLoadingFailed, registry.CodeInsufficientResources, registry.CodeConflict, registry.CodeBadState,
			registry.CodeBusy, registry.CodeUnavailable, registry.CodeTimeout, registry.CodeUnsupported:
		}
		if len(l.Offers) > 0 || l.Problem != nil { // there is a choice to make first, or it is gated
			p = s.previewOf(c, &l, f)
		}
		p, _, err := refused(registry.ProblemOf(err))
		return p, l, err
	}
	p = s.previewOf(c, &l, f)
	return p, l, nil
}

// previewOf shows what was found as far as the caller may see it.
func (s *Server) previewOf(c echo.Context, l *registry.Lookup, f view.Form) *view.Preview {
	if l.Plan != nil {
		plan := s.visiblePlan(c, *l.Plan)
		l.Plan = &plan
	}
	return view.PreviewOf(*l, f)
}

// forLook makes a model fit to be looked up for the caller: with a team whose secrets they may use, and with the
// parameters of the registered model that is being edited. Those are given only for the very source that they were given
// for: a secret must not go to another address.
func (s *Server) forLook(c echo.Context, m *registry.Model) error {
	ctx := c.Request().Context()
	id := auth.FromContext(ctx)
	if rec, err := s.seen(ctx, m.ModelID); err != nil || auth.Allowed(id, auth.ModelEdit, rec.Team) != nil {
		m.ModelID = "" // not theirs to be compared with
	} else if rec.SourceType == m.SourceType && rec.SourcePath == m.SourcePath && rec.CustomLoaderParams["endpoint_url"] == m.CustomLoaderParams["endpoint_url"] {
		params := view.OtherParams(rec.Model)
		maps.Copy(params, m.CustomLoaderParams)
		m.CustomLoaderParams = params
		if m.Team == registry.DefaultTeam && auth.Allowed(id, auth.ModelRegister, m.Team) != nil {
			m.Team = rec.Team
		}
	}
	if auth.Allowed(id, auth.ModelRegister, m.Team) == nil {
		return nil
	}
	teams, err := s.formTeams(c)
	if err != nil || len(teams) == 0 {
		return err
	}
	m.Team = teams[0]
	return nil
}

// lookForm answers the button that looks what is there, for browsers without scripts: the form with what was found.
func (s *Server) lookForm(c echo.Context, f view.Form, values map[string]any, bad []registry.FieldError) error {
	if f.Values["source_path"] == "" {
		return s.refuseForm(c, f, invalidModel([]registry.FieldError{{Field: "source_path", Msg: "is required, so that it can be looked up"}}))
	}
	p, _, err := s.preview(c, f, values, bad, formPatience)
	if err != nil {
		return err
	}
	if p.Waited > 0 {
		p.Problem = slowSource()
		p.Waited = 0
	}
	for name, v := range p.Suggested {
		f.Values[name], f.Filled[name] = v, v
	}
	f.Preview = p
	return s.showForm(c, http.StatusOK, f)
}

func slowSource() *registry.Problem {
	return &registry.Problem{Code: registry.CodeTimeout, Msg: "The source has not answered yet. Try again in a moment, or give the name and the format yourself: then the model can be registered without waiting."}
}

// complete fills in the name and the format of a form that was sent without them: before the preview came, or from a
// browser without scripts.
func (s *Server) complete(c echo.Context, f *view.Form, values map[string]any) error {
	if (values["model_id"] != nil && values["model_format"] != nil) || f.Values["source_path"] == "" {
		return nil
	}
	p, l, err := s.preview(c, *f, values, nil, formPatience)
	if err != nil {
		return err
	}
	if p.Waited > 0 {
		p.Problem, p.Waited = slowSource(), 0
	}
	f.Preview = p
	if p.Problem != nil && l.Problem == nil {
		return nil // the fields say that they are required, and the preview why they could not be filled in
	}
	for name, v := range p.Suggested {
		values[name], f.Values[name], f.Filled[name] = v, v, v
	}
	view.Choose(values, l.Model)
	return nil
}

// errStillLooking is what a look returns that has not ended.
var errStillLooking = errors.New("the source has not answered yet")

// lookFunc is manager.Manager.LookUp.
type lookFunc func(context.Context, registry.Model) (registry.Lookup, error)
