package server

import (
	"net/http"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageSecrets(c echo.Context) error {
	return s.showSecrets(c, http.StatusOK, view.Secrets{})
}

// secrets are the stored secrets that the caller may see, without their values.
func (s *Server) secrets(c echo.Context, v view.Secrets) (view.Secrets, error) {
	ctx := c.Request().Context()
	id := auth.FromContext(ctx)
	list, err := s.Manager.Secrets(ctx, teamsOf(c))
	if err != nil {
		return v, err
	}
	for _, x := range list {
		v.Secrets = append(v.Secrets, view.Secret{Secret: x, Can: auth.Allowed(id, auth.SecretManage, x.Team) == nil})
	}
	teams, err := s.visibleTeams(c)
	if err != nil {
		return v, err
	}
	v.Teams = slices.DeleteFunc(teams, func(t string) bool { return auth.Allowed(id, auth.SecretManage, t) != nil })
	v.Every = auth.Allowed(id, auth.SecretManage, "") == nil
	v.Now = s.Now()
	return v, nil
}

func (s *Server) showSecrets(c echo.Context, status int, v view.Secrets) error {
	v, err := s.secrets(c, v)
	if err != nil {
		return err
	}
	v.Page = s.page(c, "Secrets", "secrets", "")
	return html(c, status, pages.Secrets(v))
}

// everyTeam stands for a secret of every team in the form.
const everyTeam = "*"

func (s *Server) postSecret(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	name, team := strings.TrimSpace(in.Get("name")), in.Get("team")
	switch team {
	case everyTeam:
		team = ""
	case "":
		team = registry.DefaultTeam
	}
	secret := registry.Secret{Name: name, Team: team, UpdatedBy: actor(c)}
	created := false
	if err = auth.Allowed(auth.FromContext(ctx), auth.SecretManage, team); err == nil {
		created, err = s.Manager.PutSecret(ctx, secret, in.Get("value"))
	}
	s.Auth.Audit(ctx, auth.SecretManage, "secret:"+name, err, "PUT, of "+view.Secret{Secret: secret}.Whose())
	if err != nil {
		e := registry.AsError(err)
		if e.Code != registry.CodeInvalid && e.Code != registry.CodeNotFound {
			return err
		}
		v := view.Secrets{Values: map[string]string{"name": name, "team": in.Get("team")}, Errors: map[string]string{}}
		for _, f := range e.Fields {
			v.Errors[f.Field] = sentence("The " + f.Field + " " + f.Msg)
		}
		if len(e.Fields) == 0 {
			v.Errors["team"] = sentence(e.Msg)
		}
		return s.showSecrets(c, http.StatusUnprocessableEntity, v)
	}
	msg := name + " is stored. Models of " + view.Secret{Secret: secret}.Whose() + " can refer to it as secret:" + name + "."
	if !created {
		msg = name + " has its new value. Models use it from their next look, fetch or load on."
	}
	return seeOther(c, "/secrets", "ok", msg)
}

// pageDeleteSecret asks before a secret is deleted.
func (s *Server) pageDeleteSecret(c echo.Context) error {
	v, err := s.secrets(c, view.Secrets{})
	if err != nil {
		return err
	}
	for i, x := range v.Secrets {
		if x.Name != c.Param("name") || x.Team != c.QueryParam("team") {
			continue
		}
		if strings.HasPrefix(swaps(c), "x-") {
			return html(c, http.StatusOK, partials.SecretAsk(x))
		}
		return s.showSecrets(c, http.StatusOK, view.Secrets{Ask: &v.Secrets[i]})
	}
	return registry.Errorf(registry.CodeNotFound, "There is no secret %s of this team any more", c.Param("name"))
}

func (s *Server) postDeleteSecret(c echo.Context) error {
	ctx, name, team := c.Request().Context(), c.Param("name"), c.QueryParam("team")
	err := auth.Allowed(auth.FromContext(ctx), auth.SecretManage, team)
	if err == nil {
		err = s.Manager.DeleteSecret(ctx, team, name, c.FormValue("force") == "true")
	}
	s.Auth.Audit(ctx, auth.SecretManage, "secret:"+name, err, "DELETE, of "+view.Secret{Secret: registry.Secret{Team: team}}.Whose())
	if registry.CodeOf(err) == registry.CodeConflict { // a model began to use it while the question was open
		return c.Redirect(http.StatusSeeOther, view.SecretURL(registry.Secret{Name: name, Team: team}, "delete"))
	}
	if err != nil {
		return err
	}
	return seeOther(c, "/secrets", "ok", name+" is deleted.")
}
