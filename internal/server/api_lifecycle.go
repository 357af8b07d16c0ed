package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func (s *Server) planModel(c echo.Context) error {
	device := registry.Device(c.QueryParam("device"))
	if err := oneOf("device", device, registry.Devices); err != nil {
		return err
	}
	p, err := s.Manager.Plan(c.Request().Context(), record(c).ModelID, device)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visiblePlan(c, p))
}

// visiblePlan hides the names of other teams' models.
func (s *Server) visiblePlan(c echo.Context, p registry.Plan) registry.Plan {
	hidden := false
	for _, h := range p.Evict {
		if _, err := s.seen(c.Request().Context(), h.ModelID); err != nil {
			p.Sentence, hidden = strings.ReplaceAll(p.Sentence, h.ModelID, "a model of another team"), true
		}
	}
	if hidden {
		p.Evict = s.visibleHolders(c, p.Evict)
	}
	if p.Shortage != nil {
		sh := *p.Shortage
		sh.Holders = s.visibleHolders(c, sh.Holders)
		p.Shortage = &sh
	}
	return p
}

// planUnregistered plans for a configuration that need not be registered: what the form shows while it is filled in.
func (s *Server) planUnregistered(c echo.Context) error {
	b, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	m, err := registry.DecodeJSON(b)
	if err != nil {
		return err
	}
	if err := auth.Allowed(auth.FromContext(c.Request().Context()), auth.ModelRegister, m.Team); err != nil {
		return err
	}
	p, snap, err := s.Manager.PlanModel(c.Request().Context(), m)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"plan": s.visiblePlan(c, p), "facts": snap.Facts, "files": len(snap.Files), "bytes": snap.Bytes})
}

// loadBody is the body of a load; an empty one means all defaults.
type loadBody struct {
	ForceReload bool            `json:"force_reload"`
	Device      registry.Device `json:"device"`
	Override    bool            `json:"override_resources"`
	Evict       bool            `json:"evict"`
}

func decodeLoad(c echo.Context) (b loadBody, err error) {
	raw, err := readBody(c, maxModelBody)
	if err != nil || strings.TrimSpace(string(raw)) == "" {
		return b, err
	}
	in, err := registry.DecodeObject(raw)
	if err != nil {
		return b, err
	}
	var fields []registry.FieldError
	for name, v := range in {
		switch name {
		case "force_reload", "override_resources", "evict":
			on, ok := v.(bool)
			if !ok && v != nil {
				fields = append(fields, registry.FieldError{Field: name, Msg: "must be true or false"})
			}
			switch name {
			case "force_reload":
				b.ForceReload = on
			case "override_resources":
				b.Override = on
			default:
				b.Evict = on
			}
		case "device":
			d, ok := v.(string)
			if (!ok && v != nil) || oneOf("device", registry.Device(d), registry.Devices) != nil {
				fields = append(fields, registry.FieldError{Field: name, Msg: "must be auto, cuda or cpu"})
			}
			b.Device = registry.Device(d)
		default:
			fields = append(fields, registry.FieldError{Field: name, Msg: "is not a field of a load request; there are force_reload, device, override_resources and evict"})
		}
	}
	if len(fields) > 0 {
		return b, &registry.Error{Code: registry.CodeInvalid, Msg: "The load request is not valid", Fields: fields}
	}
	return b, nil
}

// load applies the policy to a load, begins it and writes the audit. Pages and API share it.
func (s *Server) load(ctx context.Context, rec registry.Record, o manager.LoadOptions) (registry.Operation, error) {
	action, detail := auth.ModelLoad, ""
	if o.Override {
		action, detail = auth.ModelOverride, "despite what the memory check says"
		if err := auth.Allowed(auth.FromContext(ctx), action, rec.Team); err != nil {
			s.Auth.Audit(ctx, action, "model:"+rec.ModelID, err, detail)
			return registry.Operation{}, err
		}
	}
	op, err := s.Manager.Load(ctx, rec.ModelID, o)
	s.Auth.Audit(ctx, action, "model:"+rec.ModelID, err, detail)
	return op, err
}

func (s *Server) loadModel(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	b, err := decodeLoad(c)
	if err != nil {
		return err
	}
	op, err := s.load(c.Request().Context(), record(c), manager.LoadOptions{ForceReload: b.ForceReload, Device: b.Device, Override: b.Override, Evict: b.Evict, Actor: actor(c), Cause: "asked for over the API"})
	if err != nil {
		return err
	}
	op, err = s.await(c, op, wait)
	if err != nil {
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

// await waits for an operation, at most for wait.
func (s *Server) await(c echo.Context, op registry.Operation, wait time.Duration) (registry.Operation, error) {
	if wait <= 0 || op.State.Final() {
		return op, nil
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), wait)
	defer cancel()
	return s.Manager.Await(ctx, op.ID)
}

// outcome is the error that an ended operation ended with.
func outcome(c echo.Context, op registry.Operation) error {
	c.Set("operation", op.ID)
	switch op.State {
	case registry.OperationFailed:
		return op.Error.AsError()
	case registry.OperationCancelled:
		return registry.Errorf(registry.CodeUnavailable, "The load was cancelled. %s", op.Outcome)
	case registry.OperationQueued, registry.OperationRunning, registry.OperationPaused, registry.OperationSucceeded:
	}
	return nil
}

// unloadModel is the guide's unload_model: true when the model was loaded and is not any more, false when it was not.
func (s *Server) unloadModel(c echo.Context) error {
	wait, err := waitFor(c, time.Minute)
	if err != nil {
		return err
	}
	op, unloaded, err := s.unload(c.Request().Context(), record(c).ModelID, "asked for over the API")
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	body := map[string]any{"unloaded": unloaded, "operation": s.visibleOperation(c, op)}
	if !op.State.Final() {
		return c.JSON(http.StatusAccepted, body)
	}
	if op.Kind == registry.OperationUnload {
		if err := outcome(c, op); err != nil {
			return err
		}
	}
	return c.JSON(http.StatusOK, body)
}

func (s *Server) unload(ctx context.Context, id, cause string) (registry.Operation, bool, error) {
	op, unloaded, err := s.Manager.Unload(ctx, id, manager.UnloadOptions{Actor: auth.FromContext(ctx).Actor(), Cause: cause})
	s.Auth.Audit(ctx, auth.ModelUnload, "model:"+id, err, "")
	return op, unloaded, err
}

// sleepModel lets a model's engine give the device's memory back without ending.
func (s *Server) sleepModel(c echo.Context) error {
	return s.nap(c, auth.ModelUnload, func(ctx context.Context, id, actor string) (registry.Operation, error) {
		return s.Manager.Sleep(ctx, id, manager.UnloadOptions{Actor: actor, Cause: "asked for over the API"})
	})
}

func (s *Server) wakeModel(c echo.Context) error {
	return s.nap(c, auth.ModelLoad, func(ctx context.Context, id, actor string) (registry.Operation, error) {
		return s.Manager.Wake(ctx, id, manager.LoadOptions{Actor: actor, Cause: "asked for over the API"})
	})
}

// nap begins a sleep or a wake and waits for it.
func (s *Server) nap(c echo.Context, action auth.Action, begin func(ctx context.Context, id, actor string) (registry.Operation, error)) error {
	wait, err := waitFor(c, time.Minute)
	if err != nil {
		return err
	}
	id := record(c).ModelID
	op, err := begin(c.Request().Context(), id, actor(c))
	s.Auth.Audit(c.Request().Context(), action, "model:"+id, err, c.Path())
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	if !op.State.Final() {
		return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
	}
	if err := outcome(c, op); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

// modelInstance is the guide's get_model_instance: it loads the model if need be.
func (s *Server) modelInstance(c echo.Context) error {
	wait, err := waitFor(c, time.Minute)
	if err != nil {
		return err
	}
	ctx, rec := c.Request().Context(), record(c)
	info, err := s.Manager.Instance(ctx, rec.ModelID)
	if err == nil || registry.CodeOf(err) != registry.CodeBadState {
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, info)
	}
	if err := auth.Allowed(auth.FromContext(ctx), auth.ModelLoad, rec.Team); err != nil {
		return err
	}
	op, err := s.load(ctx, rec, manager.LoadOptions{Actor: actor(c), Cause: "its instance was asked for over the API"})
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	if !op.State.Final() {
		c.Response().Header().Set("Location", "/api/v1/operations/"+op.ID)
		return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
	}
	if err := outcome(c, op); err != nil {
		return err
	}
	if info, err = s.Manager.Instance(ctx, rec.ModelID); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, info)
}

func (s *Server) modelLogs(c echo.Context) error {
	n, err := intParam(c, "lines", 200, 10_000)
	if err != nil {
		return err
	}
	path, err := s.Manager.LogPath(c.Request().Context(), record(c).ModelID)
	if err != nil {
		return err
	}
	lines := s.Manager.ForPeople(process.Tail(path, 0, n))
	return c.String(http.StatusOK, strings.Join(lines, "\n")+"\n")
}

func (s *Server) setRegistration(c echo.Context) error {
	raw, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	in, err := registry.DecodeObject(raw)
	if err != nil {
		return err
	}
	do, _ := in["action"].(string)
	if len(in) != 1 || (do != "approve" && do != "deprecate" && do != "archive" && do != "restore") {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: "action", Msg: "must be approve, deprecate, archive or restore"}}}
	}
	rec, err := s.Manager.SetRegistration(c.Request().Context(), record(c).ModelID, registry.Trigger(do), actor(c))
	s.Auth.Audit(c.Request().Context(), auth.RegistrationApprove, "model:"+record(c).ModelID, err, do)
	if err != nil {
		return err
	}
	got, err := s.Manager.Get(c.Request().Context(), rec.ModelID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.apiModelOf(c, &got))
}
