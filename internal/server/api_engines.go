package server

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// external is the engine of models that run elsewhere.
const external = "external"

func (s *Server) listEngines(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"engines": s.Manager.Engines(c.Request().Context())})
}

// apiEngine is one engine with the models of the caller's teams that use it.
type apiEngine struct {
	registry.EngineStatus
	UsedBy []registry.EngineUse `json:"used_by"`
}

func (s *Server) getEngine(c echo.Context) error {
	ctx := c.Request().Context()
	st, err := s.Manager.Engine(ctx, c.Param("name"))
	if err != nil {
		return err
	}
	uses, err := s.Manager.EngineUses(ctx, st.Name, teamsOf(c))
	if err != nil {
		return err
	}
	if uses == nil {
		uses = []registry.EngineUse{}
	}
	return c.JSON(http.StatusOK, apiEngine{st, uses})
}

func (s *Server) installEngine(c echo.Context) error {
	return s.engineJob(c, auth.EngineInstall, "", func() (registry.Operation, error) {
		return s.Manager.InstallEngine(c.Request().Context(), c.Param("name"), actor(c))
	})
}

func (s *Server) removeEngine(c echo.Context) error {
	version := c.QueryParam("version")
	return s.engineJob(c, auth.EngineInstall, "remove "+version, func() (registry.Operation, error) {
		return s.Manager.RemoveEngine(c.Request().Context(), c.Param("name"), version, actor(c))
	})
}

func (s *Server) testEngine(c echo.Context) error {
	raw, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	o := manager.SelfTestOptions{Actor: actor(c)}
	if len(raw) > 0 {
		in, err := registry.DecodeObject(raw)
		if err != nil {
			return err
		}
		for name, v := range in {
			text, ok := v.(string)
			switch {
			case name == "device" && ok:
				o.Device = registry.Device(text)
			case name == "model" && ok:
				o.Model = text
			default:
				return &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: name, Msg: "is not taken; a self-test takes device and model, both texts"}}}
			}
		}
	}
	return s.engineJob(c, auth.EngineTest, "", func() (registry.Operation, error) {
		return s.Manager.SelfTest(c.Request().Context(), c.Param("name"), o)
	})
}

// engineJob begins a job with an engine and answers with its operation, awaited if that is asked for.
func (s *Server) engineJob(c echo.Context, action auth.Action, detail string, begin func() (registry.Operation, error)) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	op, err := begin()
	s.Auth.Audit(c.Request().Context(), action, "engine:"+c.Param("name"), err, detail)
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	if op.State.Final() && wait > 0 {
		if err := outcome(c, op); err != nil {
			return err
		}
		return c.JSON(http.StatusOK, s.visibleOperation(c, op))
	}
	return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
}
