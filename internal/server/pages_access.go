package server

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageAccount(c echo.Context) error {
	return s.showAccount(c, http.StatusOK, view.Account{})
}

func (s *Server) showAccount(c echo.Context, status int, v view.Account) error {
	ctx := c.Request().Context()
	id := auth.FromContext(ctx)
	tokens, err := s.Auth.ListTokens(ctx, "")
	if err != nil {
		return err
	}
	v.Tokens, v.BaseURL = tokens, baseURL(c)
	for _, team := range id.Teams() {
		v.Memberships = append(v.Memberships, registry.Member{Team: team, UserID: id.UserID, Role: id.Roles[team]})
	}
	v.Page = s.page(c, "Account", "account", "")
	return html(c, status, pages.Account(v))
}

func (s *Server) postPassword(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	if err := s.Auth.ChangePassword(c.Request().Context(), in.Get("old"), in.Get("new")); err != nil {
		e := registry.AsError(err)
		switch e.Code {
		case registry.CodeInvalid, registry.CodeBusy:
			retryAfter(c, e)
			return s.showAccount(c, statusOf(e), view.Account{PasswordError: passwordWords(e)})
		default:
			return err
		}
	}
	return seeOther(c, "/account", "ok", "The password is changed. Everywhere else you are signed out.")
}

// passwordWords tells which of the two passwords is at fault: the form has one place for both.
func passwordWords(e *registry.Error) string {
	if len(e.Fields) == 0 {
		return sentence(e.Msg)
	}
	which := "The new password "
	if e.Fields[0].Field == "current_password" {
		which = "The present password "
	}
	return sentence(which + e.Fields[0].Msg)
}

// retryAfter tells a browser when to come back.
func retryAfter(c echo.Context, e *registry.Error) {
	if e.RetryAfter > 0 {
		c.Response().Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
}

func (s *Server) postToken(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	days, err := strconv.Atoi(in.Get("days"))
	if err != nil || days < 0 || days > 5*365 {
		return s.showAccount(c, http.StatusUnprocessableEntity, view.Account{TokenError: "It may last for 1 to 1,825 days, or 0 for ever."})
	}
	secret, t, err := s.Auth.CreateToken(c.Request().Context(), in.Get("name"), time.Duration(days)*24*time.Hour)
	if err != nil {
		e := registry.AsError(err)
		if e.Code != registry.CodeInvalid && e.Code != registry.CodeConflict {
			return err
		}
		msg := sentence(e.Msg)
		if len(e.Fields) > 0 {
			msg = sentence("The " + strings.ReplaceAll(e.Fields[0].Field, "_", " ") + " " + e.Fields[0].Msg)
		}
		return s.showAccount(c, statusOf(e), view.Account{TokenError: msg})
	}
	return s.showAccount(c, http.StatusOK, view.Account{Secret: secret, SecretName: t.Name})
}

func (s *Server) postRevokeToken(c echo.Context) error {
	if err := s.Auth.DeleteToken(c.Request().Context(), "", c.Param("token")); err != nil {
		return err
	}
	return seeOther(c, "/account", "ok", "The token is revoked and works no more.")
}

func (s *Server) pageTeams(c echo.Context) error {
	return s.showTeams(c, http.StatusOK, nil, nil)
}

func (s *Server) showTeams(c echo.Context, status int, typed, errs map[string]string) error {
	ctx := c.Request().Context()
	v := view.Teams{Can: canAnywhere(ctx), Form: typed, Errors: errs}
	teams, err := s.Auth.ListTeams(ctx)
	if err != nil {
		return err
	}
	for _, t := range teams {
		team := view.Team{Team: t}
		if team.Models, err = s.countModels(c, t.Name); err != nil {
			return err
		}
		members, err := s.Auth.Members(ctx, t.Name)
		if err != nil {
			return err
		}
		for _, m := range members {
			team.Members = append(team.Members, view.Member{UserID: m.UserID, Name: m.Name, Role: m.Role})
		}
		v.Teams = append(v.Teams, team)
	}
	if v.Can.Manage {
		if v.Users, err = s.Auth.ListUsers(ctx); err != nil {
			return err
		}
	}
	if auth.Allowed(auth.FromContext(ctx), auth.AuditRead, "") == nil {
		if v.Audit, err = s.Store.ListAudit(ctx, 20, 0); err != nil {
			return err
		}
	}
	v.Page = s.page(c, "Teams", "teams", "")
	return html(c, status, pages.Teams(v))
}

func (s *Server) postTeam(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	if err := s.Auth.CreateTeam(c.Request().Context(), in.Get("name")); err != nil {
		e := registry.AsError(err)
		if e.Code != registry.CodeInvalid {
			return err
		}
		return s.showTeams(c, statusOf(e), map[string]string{"team.name": in.Get("name")}, map[string]string{"team.name": fieldWords("The name", e)})
	}
	return seeOther(c, "/teams", "ok", "The team is made.")
}

// fieldWords tells an error that stands below the field it is about.
func fieldWords(what string, e *registry.Error) string {
	if len(e.Fields) > 0 {
		return sentence(what + " " + e.Fields[0].Msg)
	}
	return sentence(e.Msg)
}

func (s *Server) postMember(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	role := registry.Role(in.Get("role"))
	if !slices.Contains(registry.Roles, role) { // an empty one would take the membership away
		return badParam("role", "must be viewer, member or maintainer")
	}
	return s.setMember(c, in.Get("user_id"), role)
}

func (s *Server) postRemoveMember(c echo.Context) error {
	return s.setMember(c, c.Param("user"), "")
}

// setMember names the account by its id, as the form does. Who may not manage the team learns nothing about accounts.
func (s *Server) setMember(c echo.Context, userID string, role registry.Role) error {
	ctx, team := c.Request().Context(), c.Param("team")
	if err := auth.Allowed(auth.FromContext(ctx), auth.MemberManage, team); err != nil {
		s.Auth.Audit(ctx, auth.MemberManage, "team:"+team, err, "")
		return err
	}
	u, err := s.Store.User(ctx, userID)
	if err == nil {
		err = s.Auth.SetMember(ctx, team, u.Name, role)
	}
	if err != nil {
		if e := registry.AsError(err); e.Code == registry.CodeInvalid || e.Code == registry.CodeNotFound {
			return s.showTeams(c, http.StatusUnprocessableEntity, nil, map[string]string{"member." + team: fieldWords("The role", e)})
		}
		return err
	}
	msg := u.Name + " is now " + string(role) + " of " + team + "."
	if role == "" {
		msg = u.Name + " is no longer in " + team + "."
	}
	return seeOther(c, "/teams", "ok", msg)
}

func (s *Server) postUser(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	typed := map[string]string{"user.name": in.Get("name")}
	if in.Get("password") == "" {
		return s.showTeams(c, http.StatusUnprocessableEntity, typed, map[string]string{"user.password": "The password is required."})
	}
	u, err := s.Auth.CreateUser(c.Request().Context(), in.Get("name"), in.Get("password"), in.Get("admin") == "true")
	if err != nil {
		e := registry.AsError(err)
		switch e.Code {
		case registry.CodeInvalid:
			errs := map[string]string{}
			for _, f := range e.Fields {
				errs["user."+f.Field] = sentence("The " + f.Field + " " + f.Msg)
			}
			return s.showTeams(c, http.StatusUnprocessableEntity, typed, errs)
		case registry.CodeConflict:
			return s.showTeams(c, http.StatusUnprocessableEntity, typed, map[string]string{"user.name": sentence(e.Msg)})
		default:
			return err
		}
	}
	return seeOther(c, "/teams", "ok", u.Name+" can sign in now. Add them to a team, so that they see its models.")
}

func (s *Server) postDisableUser(c echo.Context) error { return s.setDisabled(c, true) }
func (s *Server) postEnableUser(c echo.Context) error  { return s.setDisabled(c, false) }

func (s *Server) setDisabled(c echo.Context, off bool) error {
	if err := s.Auth.SetDisabled(c.Request().Context(), c.Param("user"), off); err != nil {
		return err
	}
	msg := "The account is switched on."
	if off {
		msg = "The account is switched off and its sessions have ended."
	}
	return seeOther(c, "/teams", "ok", msg)
}
