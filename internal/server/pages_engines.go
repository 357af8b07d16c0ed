package server

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageEngines(c echo.Context) error {
	v, err := s.enginesPage(c)
	if err != nil {
		return err
	}
	v.Page = s.page(c, "Engines", "engines", view.LiveURL("engines"))
	return html(c, http.StatusOK, pages.Engines(v))
}

// enginesPage is the engines with what is under way with each.
func (s *Server) enginesPage(c echo.Context) (view.Engines, error) {
	ctx := c.Request().Context()
	v := view.Engines{Can: canAnywhere(ctx)}
	for _, st := range s.live.engines(ctx) {
		ops, err := s.engineOperations(c, st.Name)
		if err != nil {
			return v, err
		}
		e := view.Engine{EngineStatus: st}
		e.Job, _ = s.jobAndTest(ops, st)
		v.Engines = append(v.Engines, e)
	}
	return v, nil
}

// engineHistory is how many operations of an engine are looked at.
const engineHistory = 8

// engineOperations are the last operations of an engine that the caller may see, newest first.
func (s *Server) engineOperations(c echo.Context, name string) ([]registry.Operation, error) {
	ctx := c.Request().Context()
	ops, _, err := s.Manager.Operations(ctx, store.OperationQuery{Subject: name, Limit: 4 * engineHistory})
	if err != nil {
		return nil, err
	}
	var out []registry.Operation
	for _, op := range ops {
		// A model may be called as the engine is.
		if op.Kind.OfEngine() && s.mayOperate(ctx, op, auth.OperationRead) == nil && len(out) < engineHistory {
			out = append(out, s.visibleOperation(c, op))
		}
	}
	return out, nil
}

// jobAndTest are what is under way with an engine, or an installation or removal that failed and nothing came after; and the
// last self-test that has ended.
func (s *Server) jobAndTest(ops []registry.Operation, st registry.EngineStatus) (job, test *view.Operation) {
	for i, op := range ops {
		o := view.OperationOf(op, s.Now())
		switch {
		case i == 0 && !op.State.Final(),
			i == 0 && op.State == registry.OperationFailed && op.Kind == registry.OperationRemove,
			i == 0 && op.State == registry.OperationFailed && op.Kind == registry.OperationInstall && (!st.Usable || st.Upgrade != ""):
			job = &o
		case op.Kind == registry.OperationSelfTest && op.State.Final() && test == nil:
			test = &o
		case op.Kind == registry.OperationInstall && op.State == registry.OperationSucceeded && test == nil:
			return job, nil // what was tested before is another version
		}
	}
	return job, test
}

func (s *Server) pageEngine(c echo.Context) error {
	v, err := s.enginePage(c, c.Param("name"))
	if err != nil {
		return err
	}
	v.Page = s.page(c, v.Title, "engines", view.LiveURL("engine", "id", v.Name))
	return html(c, http.StatusOK, pages.Engine(v))
}

// enginePage is an engine's page without its frame.
func (s *Server) enginePage(c echo.Context, name string) (view.EnginePage, error) {
	ctx := c.Request().Context()
	st, err := s.live.engine(ctx, name)
	if err != nil {
		return view.EnginePage{}, err
	}
	v := view.EnginePage{Page: s.quietPage(c, st.Title, "engines"), Can: canAnywhere(ctx), Engine: view.Engine{EngineStatus: st}}
	ops, err := s.engineOperations(c, name)
	if err != nil {
		return v, err
	}
	v.Job, v.Test = s.jobAndTest(ops, st)
	v.History = view.OperationsOf(ops, s.Now())
	v.Uses, err = s.live.uses(ctx, name, teamsOf(c))
	return v, err
}

// usesWait is how long a page waits for which models use an engine; what was known before is shown then.
const usesWait = time.Second

// uses are the models that use an engine, as they were a moment ago: for each of them it is asked which engine auto would
// choose.
func (b *liveBook) uses(ctx context.Context, name string, teams []string) ([]registry.EngineUse, error) {
	key := fmt.Sprintf("%s %t %q", name, teams == nil, teams)
	b.oneMu.Lock()
	defer b.oneMu.Unlock()
	if u, ok := b.used[key]; ok && b.s.Now().Sub(u.at) <= usesFor {
		return u.uses, nil
	}
	soon, cancel := context.WithTimeout(ctx, usesWait)
	defer cancel()
	uses, err := b.s.Manager.EngineUses(soon, name, teams)
	if soon.Err() != nil && ctx.Err() == nil { // an engine that does not answer is waited for with each model
		uses, err = b.used[key].uses, nil
	}
	if err != nil {
		return nil, err
	}
	if b.used == nil || len(b.used) >= maxLooks {
		b.used = map[string]usedEngine{}
	}
	b.used[key] = usedEngine{uses, b.s.Now()}
	return uses, nil
}

// engine returns one engine in full, as it was found at most a minute ago: looking starts programs, and adds up tens of
// thousands of files.
func (b *liveBook) engine(ctx context.Context, name string) (registry.EngineStatus, error) {
	if _, err := b.s.Manager.EngineName(name); err != nil {
		return registry.EngineStatus{}, err
	}
	b.oneMu.Lock()
	defer b.oneMu.Unlock()
	of := b.s.Manager.EngineChanges()
	if one, ok := b.one[name]; ok && one.of == of && b.s.Now().Sub(one.at) <= enginesFor {
		return one.st, nil
	}
	st, err := b.s.Manager.EngineSoon(ctx, name)
	if err != nil {
		return st, err
	}
	if b.one == nil {
		b.one = map[string]foundEngine{}
	}
	b.one[name] = foundEngine{st, b.believedFrom(st.Pending), of}
	return st, nil
}

func (s *Server) postCheckEngines(c echo.Context) error {
	s.Manager.ForgetEngines()
	return s.engineAnswer(c)
}

func (s *Server) postInstallEngine(c echo.Context) error {
	ctx := c.Request().Context()
	_, err := s.Manager.InstallEngine(ctx, c.Param("name"), actor(c))
	s.Auth.Audit(ctx, auth.EngineInstall, "engine:"+c.Param("name"), err, "")
	if err != nil {
		return err
	}
	return s.engineAnswer(c)
}

func (s *Server) postTestEngine(c echo.Context) error {
	ctx := c.Request().Context()
	_, err := s.Manager.SelfTest(ctx, c.Param("name"), manager.SelfTestOptions{Actor: actor(c)})
	s.Auth.Audit(ctx, auth.EngineTest, "engine:"+c.Param("name"), err, "")
	if err != nil {
		return err
	}
	return s.engineAnswer(c)
}

// pageRemoveEngine asks before an engine is removed: in place, or without scripts on a page of its own.
func (s *Server) pageRemoveEngine(c echo.Context) error {
	v, err := s.enginePage(c, c.Param("name"))
	if err != nil {
		return err
	}
	v.Asking, v.Which = c.QueryParam("keep") == "", c.QueryParam("version")
	if swaps(c) == "versions" {
		return html(c, http.StatusOK, partials.EngineVersions(v))
	}
	v.Page = s.page(c, "Remove "+v.Title, "engines", "")
	return html(c, http.StatusOK, pages.EngineRemove(v))
}

func (s *Server) postRemoveEngine(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	_, err = s.Manager.RemoveEngine(ctx, c.Param("name"), in.Get("version"), actor(c))
	s.Auth.Audit(ctx, auth.EngineInstall, "engine:"+c.Param("name"), err, "remove "+in.Get("version"))
	if err != nil {
		return err
	}
	return s.engineAnswer(c)
}

// engineAnswer answers a button: with the part of the page that it stands in, or with the page.
func (s *Server) engineAnswer(c echo.Context) error {
	switch target := swaps(c); target {
	case "engines":
		v, err := s.enginesPage(c)
		if err != nil {
			return err
		}
		return html(c, http.StatusOK, partials.EngineList(v))
	case "work", "versions":
		v, err := s.enginePage(c, c.Param("name"))
		if err != nil {
			return err
		}
		if target == "versions" {
			return html(c, http.StatusOK, partials.EngineVersions(v))
		}
		return html(c, http.StatusOK, partials.EngineAnswer(v))
	}
	if name := c.Param("name"); name != "" {
		return c.Redirect(http.StatusSeeOther, view.EngineURL(name))
	}
	return c.Redirect(http.StatusSeeOther, "/engines")
}
