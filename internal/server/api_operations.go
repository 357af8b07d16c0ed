package server

import (
	"context"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// mayOperate checks an operation's team: that of its model; those of engines and of models that are gone are for
// everybody who may see the engines, and for admins.
func (s *Server) mayOperate(ctx context.Context, op registry.Operation, a auth.Action) error {
	id := auth.FromContext(ctx)
	if op.Kind.OfEngine() || op.Kind == registry.OperationImport {
		test := op.Kind == registry.OperationSelfTest
		switch change := a == auth.OperationCancel || a == auth.ModelFetch; {
		case test && (change || op.Subject == external): // which services there are is told to who sees every team's models
			a = auth.EngineTest
		case change:
			a = auth.EngineInstall
		default:
			a = auth.EnginesRead
		}
		return auth.Allowed(id, a, "")
	}
	rec, err := s.Store.Model(ctx, op.Subject)
	if registry.CodeOf(err) == registry.CodeNotFound && id.Admin {
		return nil
	}
	if err != nil || !auth.Sees(id, rec.Team) {
		return registry.Errorf(registry.CodeNotFound, "There is no operation %s", op.ID)
	}
	return auth.Allowed(id, a, rec.Team)
}

func (s *Server) listOperations(c echo.Context) error {
	limit, err := intParam(c, "limit", store.DefaultLimit, store.MaxLimit)
	if err != nil {
		return err
	}
	q := store.OperationQuery{Subject: c.QueryParam("model"), Kind: registry.OperationKind(c.QueryParam("kind")), State: registry.OperationState(c.QueryParam("state")), After: c.QueryParam("after")}
	ops, next, err := s.operations(c, q, limit, nil)
	if err != nil {
		return err
	}
	if ops == nil {
		ops = []registry.Operation{}
	}
	return c.JSON(http.StatusOK, map[string]any{"operations": ops, "next": next})
}

func (s *Server) getOperation(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	op, err := s.Manager.Operation(c.Request().Context(), c.Param("op"))
	if err != nil {
		return err
	}
	if err := s.mayOperate(c.Request().Context(), op, auth.OperationRead); err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

func (s *Server) cancelOperation(c echo.Context) error {
	ctx := c.Request().Context()
	op, err := s.Manager.Operation(ctx, c.Param("op"))
	if err != nil {
		return err
	}
	if err := s.mayOperate(ctx, op, auth.OperationCancel); err != nil {
		return err
	}
	op, err = s.Manager.CancelOperation(ctx, op.ID, actor(c))
	s.Auth.Audit(ctx, auth.OperationCancel, "operation:"+c.Param("op"), err, string(op.Kind)+" of "+op.Subject)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

func (s *Server) getResources(c echo.Context) error {
	return c.JSON(http.StatusOK, s.visibleResources(c.Request().Context()))
}

// visibleResources hides the names of other teams' models in the reservations; the bytes stay.
func (s *Server) visibleResources(ctx context.Context) registry.Resources {
	res := s.Manager.Resources()
	id := auth.FromContext(ctx)
	for i := range res.Reservations {
		if r := &res.Reservations[i]; !auth.Sees(id, r.Team) {
			r.ModelID, r.Team, r.InstanceID, r.PID = "a model of another team", "", "", 0
		}
	}
	return res
}
