package server

import (
	"context"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// fetchModel brings a model's files to disk without loading it.
func (s *Server) fetchModel(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	verify, err := boolParam(c, "verify", false)
	if err != nil {
		return err
	}
	op, err := s.fetchWith(c.Request().Context(), record(c).ModelID, manager.FetchOptions{Cause: "asked for over the API", Verify: verify})
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/operations/"+op.ID)
	if !op.State.Final() || wait == 0 {
		return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
	}
	if err := outcome(c, op); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

// fetchWith begins a fetch and writes the audit. Pages and API share it.
func (s *Server) fetchWith(ctx context.Context, id string, o manager.FetchOptions) (registry.Operation, error) {
	o.Actor = auth.FromContext(ctx).Actor()
	op, err := s.Manager.Fetch(ctx, id, o)
	s.Auth.Audit(ctx, auth.ModelFetch, "model:"+id, err, "")
	return op, err
}

func (s *Server) pauseOperation(c echo.Context) error {
	return s.steerOperation(c, "pause", s.Manager.PauseOperation)
}

func (s *Server) resumeOperation(c echo.Context) error {
	return s.steerOperation(c, "resume", s.Manager.ResumeOperation)
}

func (s *Server) steerOperation(c echo.Context, verb string, steer func(ctx context.Context, id, by string) (registry.Operation, error)) error {
	op, err := s.steer(c.Request().Context(), c.Param("op"), verb, steer)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

// steer applies the policy to a pause or a resumption, does it and writes the audit. Pages and API share it.
func (s *Server) steer(ctx context.Context, id, verb string, steer func(ctx context.Context, id, by string) (registry.Operation, error)) (registry.Operation, error) {
	op, err := s.Manager.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	if err := s.mayOperate(ctx, op, auth.ModelFetch); err != nil {
		return op, err
	}
	op, err = steer(ctx, op.ID, auth.FromContext(ctx).Actor())
	s.Auth.Audit(ctx, auth.ModelFetch, "operation:"+id, err, verb+" "+string(op.Kind)+" of "+op.Subject)
	return op, err
}

// withKeptSecrets puts back the secrets that a form shows redacted, for those who may edit the model that has them.
func (s *Server) withKeptSecrets(ctx context.Context, m registry.Model) registry.Model {
	if m.ModelID == "" || len(m.CustomLoaderParams) == 0 {
		return m
	}
	old, err := s.Store.Model(ctx, m.ModelID)
	if err == nil && auth.Allowed(auth.FromContext(ctx), auth.ModelEdit, old.Team) == nil {
		m.CustomLoaderParams = registry.KeepSecrets(m.CustomLoaderParams, old.CustomLoaderParams)
	}
	return m
}

// lookUp says what is known of a model before it is registered: what the form fills itself in with.
func (s *Server) lookUp(c echo.Context) error {
	raw, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	in, err := registry.DecodeObject(raw)
	if err != nil {
		return err
	}
	m, fields := registry.DecodeGaps(in)
	if len(fields) > 0 {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The model cannot be looked up", Fields: fields}
	}
	if err := auth.Allowed(auth.FromContext(c.Request().Context()), auth.ModelRegister, m.Team); err != nil {
		return err
	}
	l, err := s.Manager.LookUp(c.Request().Context(), s.withKeptSecrets(c.Request().Context(), m))
	if err != nil && l.Problem == nil {
		return err
	}
	if l.Plan != nil {
		p := s.visiblePlan(c, *l.Plan)
		l.Plan = &p
	}
	return c.JSON(http.StatusOK, l)
}
