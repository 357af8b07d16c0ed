package server

import (
	"context"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// fetchOf is a model's fetch that is under way or paused; nil when there is none.
func (s *Server) fetchOf(c echo.Context, id string) (*view.Operation, error) {
	op, err := s.newestFetch(c, id)
	if op == nil || op.State.Final() {
		return nil, err
	}
	return op, nil
}

// fetches are a model's fetch that is under way or paused, or the one that ended last; at most one of them is there.
func (s *Server) fetches(c echo.Context, id string) (now, last *view.Operation, err error) {
	op, err := s.newestFetch(c, id)
	if op != nil && op.State.Final() {
		return nil, op, nil
	}
	return op, nil, err
}

// newestFetch is a model's newest fetch, whether it has ended or not; nil when there was none.
func (s *Server) newestFetch(c echo.Context, id string) (*view.Operation, error) {
	ops, _, err := s.Manager.Operations(c.Request().Context(), store.OperationQuery{Subject: id, Kind: registry.OperationFetch, Limit: 1})
	if err != nil || len(ops) == 0 {
		return nil, err
	}
	op := view.OperationOf(s.visibleOperation(c, ops[0]), s.Now())
	return &op, nil
}

// fillFiles adds what is known of a model's files to its page. Where they lie on this machine is for admins; of local ones
// the source_path says it already.
func (s *Server) fillFiles(c echo.Context, v *view.ModelPage, a *registry.ModelArtifact) {
	if a == nil {
		return
	}
	known := *a
	v.Files.Known = &known
	if v.Facts.Format == "" {
		v.Facts = known.Facts // from the last look, when the source cannot be asked now
	}
	if v.Remote() && v.Here() && known.Fetched != "" && auth.FromContext(c.Request().Context()).Admin {
		v.Files.Where = known.Root
	}
}

// postFetch brings a model's files here without loading it, or with verify has those that are here read again.
func (s *Server) postFetch(c echo.Context) error {
	o := manager.FetchOptions{Cause: "asked for in the console", Verify: c.FormValue("verify") == "true"}
	if o.Verify {
		o.Cause = "verification asked for in the console"
	}
	op, err := s.fetchWith(c.Request().Context(), record(c).ModelID, o)
	if err != nil {
		return err
	}
	if _, err := s.await(c, op, settle); err != nil {
		return err
	}
	return s.filesAnswer(c, record(c).ModelID)
}

func (s *Server) postPause(c echo.Context) error {
	return s.postSteer(c, "pause", s.Manager.PauseOperation)
}

func (s *Server) postResume(c echo.Context) error {
	return s.postSteer(c, "resume", s.Manager.ResumeOperation)
}

// postSteer pauses a fetch or lets it go on. One that has ended by itself in this moment is shown as it is.
func (s *Server) postSteer(c echo.Context, verb string, do func(ctx context.Context, id, by string) (registry.Operation, error)) error {
	op, err := s.steer(c.Request().Context(), c.Param("op"), verb, do)
	if err != nil && (op.Kind != registry.OperationFetch || registry.CodeOf(err) != registry.CodeBadState) {
		return err
	}
	return s.operationAnswer(c, op)
}

// operationAnswer answers a button of an operation with the part of the page that it stands in.
func (s *Server) operationAnswer(c echo.Context, op registry.Operation) error {
	switch swaps(c) {
	case "running":
		ops, err := s.running(c, "")
		if err != nil {
			return err
		}
		return html(c, http.StatusOK, partials.RunningNow(ops, canAnywhere(c.Request().Context())))
	case "operation":
		v, err := s.operationPage(c, op.ID)
		if err != nil {
			return err
		}
		return html(c, http.StatusOK, partials.OperationNow(v))
	case "files":
		return s.filesAnswer(c, op.Subject)
	case "work":
		v, err := s.enginePage(c, op.Subject)
		if err != nil {
			return err
		}
		return html(c, http.StatusOK, partials.EngineAnswer(v))
	}
	switch c.FormValue("to") {
	case "model":
		return c.Redirect(http.StatusSeeOther, view.ModelURL(op.Subject))
	case "engine":
		return c.Redirect(http.StatusSeeOther, view.EngineURL(op.Subject))
	}
	return c.Redirect(http.StatusSeeOther, view.OperationURL(op.ID))
}

// filesAnswer answers a button of the card of a model's files.
func (s *Server) filesAnswer(c echo.Context, id string) error {
	if !fragment(c) {
		return c.Redirect(http.StatusSeeOther, view.ModelURL(id))
	}
	v, err := s.modelPage(c, id, lookForPage)
	if err != nil {
		return err
	}
	return html(c, http.StatusOK, partials.FilesAnswer(v))
}
