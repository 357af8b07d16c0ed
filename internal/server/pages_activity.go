package server

import (
	"net/http"

	"github.com/a-h/templ"
	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

var operationKinds = []registry.OperationKind{registry.OperationLoad, registry.OperationUnload, registry.OperationFetch, registry.OperationImport,
	registry.OperationInstall, registry.OperationRemove, registry.OperationSelfTest}

func (s *Server) pageActivity(c echo.Context) error {
	v, err := s.activity(c)
	if err != nil {
		return err
	}
	if swaps(c) == "more" {
		return html(c, http.StatusOK, templ.Join(partials.OperationRows(v.Past), partials.OperationMore(v.Next)))
	}
	v.Page = s.page(c, "Activity", "activity", view.LiveURL("activity", "kind", v.Kind, "after", c.QueryParam("after")))
	return html(c, http.StatusOK, pages.Activity(v))
}

// activity is a page of the history and what is under way.
func (s *Server) activity(c echo.Context) (view.Activity, error) {
	v := view.Activity{Kind: c.QueryParam("kind"), Can: canAnywhere(c.Request().Context())}
	kind := registry.OperationKind(v.Kind)
	if err := oneOf("kind", kind, operationKinds); err != nil {
		return v, err
	}
	var err error
	if v.Running, err = s.running(c, kind); err != nil {
		return v, err
	}
	past, next, err := s.operations(c, store.OperationQuery{Kind: kind, After: c.QueryParam("after")}, store.DefaultLimit, func(op registry.Operation) bool { return op.State.Final() })
	v.Past, v.Next = view.OperationsOf(past, s.Now()), next
	return v, err
}

// running are the operations under way that the caller may see: those that run, then those that wait, then those that
// are paused.
func (s *Server) running(c echo.Context, kind registry.OperationKind) ([]view.Operation, error) {
	var out []view.Operation
	for _, st := range []registry.OperationState{registry.OperationRunning, registry.OperationQueued, registry.OperationPaused} {
		ops, _, err := s.operations(c, store.OperationQuery{Kind: kind, State: st}, store.DefaultLimit, func(op registry.Operation) bool { return !op.State.Final() })
		if err != nil {
			return nil, err
		}
		for _, op := range ops {
			if contains(out, op.ID) {
				continue // it began, or was paused, between two looks
			}
			out = append(out, view.OperationOf(op, s.Now()))
		}
	}
	return out, nil
}

func contains(ops []view.Operation, id string) bool {
	for _, o := range ops {
		if o.ID == id {
			return true
		}
	}
	return false
}

func (s *Server) pageOperation(c echo.Context) error {
	v, err := s.operationPage(c, c.Param("op"))
	if err != nil {
		return err
	}
	v.Log = s.operationLog(c, v.Op.Operation)
	v.Page = s.page(c, v.Op.Verb()+" "+v.Op.Subject, "activity", view.LiveURL("operation", "id", v.Op.ID))
	return html(c, http.StatusOK, pages.Operation(v))
}

// operationPage is one operation's page without its frame and log.
func (s *Server) operationPage(c echo.Context, id string) (view.OperationPage, error) {
	ctx := c.Request().Context()
	op, err := s.Manager.Operation(ctx, id)
	if err != nil {
		return view.OperationPage{}, err
	}
	if err := s.mayOperate(ctx, op, auth.OperationRead); err != nil {
		return view.OperationPage{}, err
	}
	v := view.OperationPage{Op: view.OperationOf(s.visibleOperation(c, op), s.Now())}
	v.Can.Load = cancellable(op) && s.mayOperate(ctx, op, auth.OperationCancel) == nil
	return v, nil
}

// cancellable reports whether the manager takes a cancellation of it at all.
func cancellable(op registry.Operation) bool {
	return !op.State.Final() && (op.Kind == registry.OperationLoad || op.Kind == registry.OperationFetch || op.Kind == registry.OperationInstall || op.Kind == registry.OperationSelfTest)
}

// operationLog is the engine's last lines while the operation is the newest one of its model; a later load has a log of
// its own.
func (s *Server) operationLog(c echo.Context, op registry.Operation) []string {
	ctx := c.Request().Context()
	if op.Kind != registry.OperationLoad {
		return nil
	}
	l, err := s.Manager.Get(ctx, op.Subject)
	if err != nil || l.Runtime.OperationID != op.ID || !s.mayReadLog(c, l.Team) {
		return nil
	}
	path, err := s.Manager.LogPath(ctx, op.Subject)
	if err != nil {
		return nil
	}
	return s.Manager.ForPeople(process.Tail(path, 0, 60))
}

func (s *Server) postCancelOperation(c echo.Context) error {
	ctx := c.Request().Context()
	op, err := s.Manager.Operation(ctx, c.Param("op"))
	if err != nil {
		return err
	}
	if err := s.mayOperate(ctx, op, auth.OperationCancel); err != nil {
		if registry.CodeOf(err) == registry.CodeForbidden {
			s.Auth.Audit(ctx, auth.OperationCancel, "operation:"+op.ID, err, "")
		}
		return err
	}
	op, err = s.Manager.CancelOperation(ctx, op.ID, actor(c))
	s.Auth.Audit(ctx, auth.OperationCancel, "operation:"+c.Param("op"), err, string(op.Kind)+" of "+op.Subject)
	if err != nil && (op.Kind != registry.OperationFetch || registry.CodeOf(err) != registry.CodeBadState) { // a fetch that ended by itself in this moment
		return err
	}
	return s.operationAnswer(c, op)
}
