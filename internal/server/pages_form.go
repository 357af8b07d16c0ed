package server

import (
	"errors"
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageNewModel(c echo.Context) error {
	if err := mayRegister(c.Request().Context()); err != nil {
		return err
	}
	f := view.NewForm()
	return s.showForm(c, http.StatusOK, f)
}

func (s *Server) pageEditModel(c echo.Context) error {
	return s.showForm(c, http.StatusOK, view.FormOf(record(c)))
}

// showForm fills in what does not depend on what was typed.
func (s *Server) showForm(c echo.Context, status int, f view.Form) error {
	ctx := c.Request().Context()
	title := "Register a model"
	f.Can = canAnywhere(ctx)
	if !f.New {
		title = "Edit " + f.ModelID
		f.Can = canIn(ctx, record(c).Team)
	}
	teams, err := s.formTeams(c)
	if err != nil {
		return err
	}
	if t := f.Values["team"]; t != "" && !f.New && !slices.Contains(teams, t) && f.Errors["team"] == "" {
		teams = append(teams, t)
	}
	f.Teams = teams
	if f.New && len(teams) > 0 && f.Values["team"] == registry.DefaultTeam && !slices.Contains(teams, registry.DefaultTeam) {
		f.Values["team"] = teams[0] // the default is not one that they may register for
	}
	f.Params = s.loaderParams()
	if f.Secrets, err = s.Manager.Secrets(ctx, teamsOf(c)); err != nil {
		return err
	}
	f.Page = s.page(c, title, "models", "")
	return html(c, status, pages.Form(f))
}

// formTeams are the teams that the caller may register models for.
func (s *Server) formTeams(c echo.Context) ([]string, error) {
	id := auth.FromContext(c.Request().Context())
	teams, err := s.visibleTeams(c)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(teams, func(t string) bool { return auth.Allowed(id, auth.ModelRegister, t) != nil }), nil
}

// loaderParams are the settings that the engines know, for the help of the form.
func (s *Server) loaderParams() (out []view.Param) {
	for _, l := range s.Manager.Loaders {
		info := l.Info()
		if info.Name == "fake" {
			continue
		}
		for _, p := range info.Params {
			out = append(out, view.Param{Name: p.Name, Engine: info.Name, Help: p.Help})
		}
	}
	return out
}

func (s *Server) postNewModel(c echo.Context) error {
	if err := mayRegister(c.Request().Context()); err != nil {
		return err
	}
	in, err := form(c)
	if err != nil {
		return err
	}
	values, f, bad := view.DecodeForm(in)
	if in.Get("then") == "look" {
		return s.lookForm(c, f, values, bad)
	}
	if len(bad) == 0 {
		if err := s.complete(c, &f, values); err != nil {
			return err
		}
	}
	model, errs := registry.Decode(values)
	if errs = mergeErrors(bad, errs); len(errs) > 0 {
		return s.refuseForm(c, f, invalidModel(errs))
	}
	// The form says "register": it never changes a model that is there already.
	rec, _, err := s.register(c.Request().Context(), model, manager.PutOptions{Actor: actor(c), Persist: f.Persist, IfAbsent: true}, true)
	if registry.CodeOf(err) == registry.CodeConflict {
		e := registry.AsError(err)
		return s.refuseForm(c, f, &registry.Error{Code: registry.CodeInvalid, Msg: sentence(e.Msg), Fields: []registry.FieldError{{Field: "model_id", Msg: "is taken"}}})
	}
	if err != nil {
		return s.refuseForm(c, f, err)
	}
	to := view.ModelURL(rec.ModelID)
	if in.Get("then") != "load" {
		return seeOther(c, to, "ok", rec.ModelID+" is registered.")
	}
	op, err := s.load(c.Request().Context(), rec, manager.LoadOptions{Actor: actor(c), Cause: "asked for in the console"})
	if err == nil {
		err = s.refusal(c, op)
	}
	if err != nil {
		p := s.visibleProblem(c, *registry.ProblemOf(err))
		return seeOther(c, to, "warn", rec.ModelID+" is registered and was not loaded. "+p.Msg)
	}
	return seeOther(c, to, "ok", rec.ModelID+" is registered and is being loaded.")
}

func (s *Server) postModel(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	rec := record(c)
	version, err := formVersion(in.Get("version"))
	if err != nil {
		return err
	}
	in.Set("model_id", rec.ModelID) // its name cannot be changed, whatever was sent
	values, f, bad := view.DecodeForm(in)
	f.New, f.ModelID, f.Version = false, rec.ModelID, version
	model, errs := registry.Decode(values)
	if errs = mergeErrors(bad, errs); len(errs) > 0 {
		return s.refuseForm(c, f, invalidModel(errs))
	}
	saved, _, err := s.register(c.Request().Context(), model, manager.PutOptions{Actor: actor(c), Persist: f.Persist, IfVersion: version}, false)
	if registry.CodeOf(err) == registry.CodeConflict {
		return s.staleForm(c, f)
	}
	if err != nil {
		return s.refuseForm(c, f, err)
	}
	msg := "Saved."
	if l, err := s.Manager.Get(c.Request().Context(), saved.ModelID); err == nil && l.Runtime.State.HoldsMemory() {
		msg = "Saved. What is loaded goes on as it is; reload it to use the new settings."
	}
	return seeOther(c, view.ModelURL(saved.ModelID), "ok", msg)
}

// staleForm tells that somebody else changed the model meanwhile. What was typed stays; saving again means it.
func (s *Server) staleForm(c echo.Context, f view.Form) error {
	now, err := s.Store.Model(c.Request().Context(), f.ModelID)
	if err != nil {
		return err
	}
	f.Version = now.Version
	f.Error = now.UpdatedBy + " changed " + f.ModelID + " " + view.Ago(now.UpdatedAt, s.Now()) + ", while this form was open, and your changes were not saved. Save once more to put yours in the place of theirs, or leave it and look at theirs first."
	return s.showForm(c, http.StatusConflict, f)
}

// refuseForm shows a form again with its errors at their fields. Errors that no field can mend go to the error page.
func (s *Server) refuseForm(c echo.Context, f view.Form, err error) error {
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != registry.CodeInvalid {
		return err
	}
	return s.showForm(c, http.StatusUnprocessableEntity, f.WithErrors(e))
}

func invalidModel(errs []registry.FieldError) *registry.Error {
	return &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: errs}
}

// mergeErrors adds errors without telling two things about one field.
func mergeErrors(first, more []registry.FieldError) []registry.FieldError {
	for _, e := range more {
		if !slices.ContainsFunc(first, func(f registry.FieldError) bool { return f.Field == e.Field }) {
			first = append(first, e)
		}
	}
	return first
}
