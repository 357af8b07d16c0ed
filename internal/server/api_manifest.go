package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func (s *Server) importManifest(c echo.Context) error {
	dry, err := boolParam(c, "dry_run", false)
	if err != nil {
		return err
	}
	persist, err := boolParam(c, "persist", true)
	if err != nil {
		return err
	}
	b, err := readBody(c, maxImportBody)
	if err != nil {
		return err
	}
	res, err := s.applyManifest(c.Request().Context(), b, persist, dry)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, res)
}

// applyManifest imports a models file with the caller's rights, entry by entry. Pages and API share it.
func (s *Server) applyManifest(ctx context.Context, b []byte, persist, dry bool) (manager.ImportResult, error) {
	doc, err := manifest.Parse(b)
	if err != nil {
		return manager.ImportResult{}, err
	}
	id := auth.FromContext(ctx)
	kept := doc.Entries[:0:0]
	for _, e := range doc.Entries {
		if id.Admin { // may edit every model: no need to look at ten thousand of them
			kept = append(kept, e)
			continue
		}
		if old, err := s.Store.Model(ctx, e.Model.ModelID); err == nil {
			if err := auth.Allowed(id, auth.ModelEdit, old.Team); err != nil {
				doc.Issues = append(doc.Issues, registry.FieldError{Field: e.Model.ModelID, Msg: err.Error(), Line: e.Line, Column: e.Column})
				continue
			}
		}
		kept = append(kept, e)
	}
	doc.Entries = kept
	known := map[string]error{}
	res, err := s.Manager.Import(ctx, doc, manager.PutOptions{Actor: id.Actor(), Persist: persist, Admin: id.Admin}, dry, func(team string) error {
		if err := auth.Allowed(id, auth.ModelRegister, team); err != nil {
			return err
		}
		if _, asked := known[team]; !asked {
			known[team] = s.knownTeam(ctx, team)
		}
		var e *registry.Error
		if errors.As(known[team], &e) && len(e.Fields) > 0 {
			return errors.New("team " + e.Fields[0].Msg)
		}
		return known[team]
	})
	if !dry {
		s.Auth.Audit(ctx, auth.ManifestImport, "manifest", err, fmt.Sprintf("%d added, %d changed, %d left out", len(res.Added), len(res.Changed), len(res.Issues)))
	}
	return res, err
}

func (s *Server) exportManifest(c echo.Context) error {
	c.Response().Header().Set(echo.HeaderContentType, "application/yaml; charset=utf-8")
	c.Response().Header().Set(echo.HeaderContentDisposition, `attachment; filename="models.yaml"`)
	return s.Manager.Export(c.Request().Context(), c.Response(), teamsOf(c))
}

func (s *Server) manifestStatus(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	if wait > 0 {
		ctx, cancel := within(c, wait)
		defer cancel()
		s.Manager.AwaitManifest(ctx)
	}
	st := s.visibleManifest(c)
	if st.Path == "" {
		return registry.Errorf(registry.CodeNotFound, "The server was started without a models file")
	}
	return c.JSON(http.StatusOK, st)
}
