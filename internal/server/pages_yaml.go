package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageYAML(c echo.Context) error {
	return s.showYAML(c, http.StatusOK, view.YAML{})
}

func (s *Server) showYAML(c echo.Context, status int, v view.YAML) error {
	v.Can = canAnywhere(c.Request().Context())
	v.Manifest = s.visibleManifest(c)
	var err error
	if v.Models, err = s.countModels(c, ""); err != nil {
		return err
	}
	v.Page = s.page(c, "YAML", "yaml", view.LiveURL("yaml"))
	return html(c, status, pages.YAML(v))
}

// visibleManifest is the models file's state. What is wrong in it quotes entries of every team, so only admins see that.
func (s *Server) visibleManifest(c echo.Context) registry.ManifestStatus {
	st := s.Manager.ManifestStatus(c.Request().Context())
	if st == nil {
		return registry.ManifestStatus{}
	}
	out := *st
	if !auth.FromContext(c.Request().Context()).Admin {
		out.Issues, out.Refused = nil, nil
		if out.Err != "" {
			out.Err = "It cannot be used as it is; an admin sees why."
		}
	}
	return out
}

// postYAML shows what an import would change, or applies it.
func (s *Server) postYAML(c echo.Context) error {
	if err := mayRegister(c.Request().Context()); err != nil {
		return err
	}
	text, apply, err := yamlForm(c)
	if err != nil {
		return err
	}
	v := view.YAML{Text: text}
	if strings.TrimSpace(text) == "" {
		v.Error = "There is nothing to import: paste YAML or choose a file."
		return s.showYAML(c, http.StatusUnprocessableEntity, v)
	}
	res, err := s.applyManifest(c.Request().Context(), []byte(text), true, !apply)
	if err != nil {
		var e *registry.Error
		if !errors.As(err, &e) || e.Code != registry.CodeInvalid {
			return err
		}
		v.Error = e.Error()
		return s.showYAML(c, http.StatusUnprocessableEntity, v)
	}
	d := diffOf(res)
	if apply {
		v.Result, v.Text = &d, ""
		if len(d.Issues) > 0 {
			v.Text = text // to be mended
		}
	} else {
		v.Diff = &d
	}
	return s.showYAML(c, http.StatusOK, v)
}

// yamlForm reads the import form: a file wins over text.
func yamlForm(c echo.Context) (text string, apply bool, err error) {
	r := c.Request()
	r.Body = http.MaxBytesReader(c.Response(), r.Body, maxImportBody)
	err = r.ParseMultipartForm(1 << 20)
	if errors.Is(err, http.ErrNotMultipart) {
		err = r.ParseForm() // without scripts some clients send it plain
	}
	if err != nil {
		return "", false, badForm(err)
	}
	if r.MultipartForm != nil {
		defer func() { _ = r.MultipartForm.RemoveAll() }() // what is left lies in the temporary folder only
		for _, h := range r.MultipartForm.File["file"] {
			if h.Size > 0 {
				text, err = readPart(h)
				return text, r.PostFormValue("action") == "apply", err
			}
		}
	}
	return r.PostFormValue("text"), r.PostFormValue("action") == "apply", nil
}

func readPart(h *multipart.FileHeader) (string, error) {
	f, err := h.Open()
	if err != nil {
		return "", badForm(err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(f)
	if err != nil {
		return "", badForm(err)
	}
	return string(b), nil
}

func diffOf(res manager.ImportResult) view.ImportDiff {
	d := view.ImportDiff{Added: res.Added, Unchanged: len(res.Unchanged), Issues: res.Issues}
	fields := map[string][]view.FieldChange{}
	for _, ch := range res.Changes {
		if ch.Kind != manifest.ChangeChanged {
			continue
		}
		for _, f := range ch.Fields {
			fields[ch.ModelID] = append(fields[ch.ModelID], view.FieldChange{Name: f.Name, Old: fieldText(f.Old), New: fieldText(f.New)})
		}
	}
	for _, id := range res.Changed {
		d.Changed = append(d.Changed, view.ModelChange{ModelID: id, Fields: fields[id]})
	}
	return d
}

// fieldText writes a value of a field in one line; "" for one that is not given.
func fieldText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case map[string]any, []any, []string, []int:
		b, err := json.Marshal(v)
		if err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(v)
}
