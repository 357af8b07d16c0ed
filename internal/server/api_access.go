package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// accessRoutes are accounts, tokens, teams and the audit. The service behind them checks the policy once more and
// writes the audit itself.
func (s *Server) accessRoutes() []route {
	const p = "/api/v1"
	return []route{
		{"GET", p + "/account", auth.AccountOwn, s.apiAccount},
		{"GET", p + "/tokens", auth.TokenOwn, s.apiTokens},
		{"POST", p + "/tokens", auth.TokenOwn, s.apiCreateToken},
		{"DELETE", p + "/tokens/:token", auth.TokenOwn, s.apiDeleteToken},
		{"GET", p + "/users", auth.UserManage, s.apiUsers},
		{"POST", p + "/users", auth.UserManage, s.apiCreateUser},
		{"PATCH", p + "/users/:user", auth.UserManage, s.apiPatchUser},
		{"DELETE", p + "/users/:user", auth.UserManage, s.apiDeleteUser},
		{"GET", p + "/teams", auth.ModelList, s.apiTeams},
		{"POST", p + "/teams", auth.TeamManage, s.apiCreateTeam},
		{"DELETE", p + "/teams/:team", auth.TeamManage, s.apiDeleteTeam},
		{"GET", p + "/teams/:team/members", auth.ModelList, s.apiMembers},
		{"PUT", p + "/teams/:team/members/:user", auth.MemberManage, s.apiSetMember},
		{"DELETE", p + "/teams/:team/members/:user", auth.MemberManage, s.apiDeleteMember},
		{"GET", p + "/audit", auth.AuditRead, s.apiAudit},
		{"GET", p + "/policy", auth.AccountOwn, func(c echo.Context) error { return c.JSON(http.StatusOK, auth.Policy()) }},
	}
}

// object reads a JSON object whose fields are all in allowed; the values are strings and booleans.
func object(c echo.Context, allowed ...string) (map[string]any, error) {
	raw, err := readBody(c, maxModelBody)
	if err != nil {
		return nil, err
	}
	in, err := registry.DecodeObject(raw)
	if err != nil {
		return nil, err
	}
	var fields []registry.FieldError
	for name := range in {
		known := false
		for _, a := range allowed {
			known = known || a == name
		}
		if !known {
			fields = append(fields, registry.FieldError{Field: name, Msg: "is not a field of this request"})
		}
	}
	if len(fields) > 0 {
		return nil, &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: fields}
	}
	return in, nil
}

func text(in map[string]any, name string) (string, error) {
	v, given := in[name]
	s, ok := v.(string)
	if given && v != nil && !ok {
		return "", &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: name, Msg: "must be text"}}}
	}
	return s, nil
}

func flag(in map[string]any, name string) (value, given bool, err error) {
	v, given := in[name]
	if !given || v == nil {
		return false, false, nil
	}
	b, ok := v.(bool)
	if !ok {
		return false, true, &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: name, Msg: "must be true or false"}}}
	}
	return b, true, nil
}

func (s *Server) apiAccount(c echo.Context) error {
	id := auth.FromContext(c.Request().Context())
	u, err := s.Auth.Account(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"user": u, "roles": id.Roles, "via": id.Via})
}

func (s *Server) apiTokens(c echo.Context) error {
	list, err := s.Auth.ListTokens(c.Request().Context(), "")
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"tokens": list})
}

// apiCreateToken answers with the secret, the only time it is shown.
func (s *Server) apiCreateToken(c echo.Context) error {
	in, err := object(c, "name", "expires_in")
	if err != nil {
		return err
	}
	name, err := text(in, "name")
	if err != nil {
		return err
	}
	life, err := text(in, "expires_in")
	if err != nil {
		return err
	}
	var ttl time.Duration
	if life != "" {
		if ttl, err = time.ParseDuration(life); err != nil || ttl <= 0 {
			return &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: "expires_in", Msg: "must be a duration such as 720h"}}}
		}
	}
	secret, t, err := s.Auth.CreateToken(c.Request().Context(), name, ttl)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, map[string]any{"secret": secret, "token": t})
}

func (s *Server) apiDeleteToken(c echo.Context) error {
	if err := s.Auth.DeleteToken(c.Request().Context(), "", c.Param("token")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) apiUsers(c echo.Context) error {
	list, err := s.Auth.ListUsers(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"users": list})
}

func (s *Server) apiCreateUser(c echo.Context) error {
	in, err := object(c, "name", "password", "admin")
	if err != nil {
		return err
	}
	name, err := text(in, "name")
	if err != nil {
		return err
	}
	password, err := text(in, "password")
	if err != nil {
		return err
	}
	admin, _, err := flag(in, "admin")
	if err != nil {
		return err
	}
	u, err := s.Auth.CreateUser(c.Request().Context(), name, password, admin)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, u)
}

func (s *Server) apiPatchUser(c echo.Context) error {
	ctx, id := c.Request().Context(), c.Param("user")
	in, err := object(c, "admin", "disabled", "password")
	if err != nil {
		return err
	}
	admin, setAdmin, err := flag(in, "admin")
	if err != nil {
		return err
	}
	disabled, setDisabled, err := flag(in, "disabled")
	if err != nil {
		return err
	}
	password, err := text(in, "password")
	if err != nil {
		return err
	}
	if password != "" {
		if err := s.Auth.ResetPassword(ctx, id, password); err != nil {
			return err
		}
	}
	if setAdmin {
		if err := s.Auth.SetAdmin(ctx, id, admin); err != nil {
			return err
		}
	}
	if setDisabled {
		if err := s.Auth.SetDisabled(ctx, id, disabled); err != nil {
			return err
		}
	}
	u, err := s.Store.User(ctx, id)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, u)
}

func (s *Server) apiDeleteUser(c echo.Context) error {
	if err := s.Auth.DeleteUser(c.Request().Context(), c.Param("user")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) apiTeams(c echo.Context) error {
	list, err := s.Auth.ListTeams(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"teams": list})
}

func (s *Server) apiCreateTeam(c echo.Context) error {
	in, err := object(c, "name")
	if err != nil {
		return err
	}
	name, err := text(in, "name")
	if err != nil {
		return err
	}
	if err := s.Auth.CreateTeam(c.Request().Context(), name); err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, map[string]string{"name": name})
}

func (s *Server) apiDeleteTeam(c echo.Context) error {
	if err := s.Auth.DeleteTeam(c.Request().Context(), c.Param("team")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) apiMembers(c echo.Context) error {
	list, err := s.Auth.Members(c.Request().Context(), c.Param("team"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"members": list})
}

func (s *Server) apiSetMember(c echo.Context) error {
	in, err := object(c, "role")
	if err != nil {
		return err
	}
	role, err := text(in, "role")
	if err != nil {
		return err
	}
	if role == "" {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: "role", Msg: "is required; viewer, member or maintainer"}}}
	}
	if err := s.Auth.SetMember(c.Request().Context(), c.Param("team"), c.Param("user"), registry.Role(role)); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]string{"team": c.Param("team"), "user": c.Param("user"), "role": role})
}

func (s *Server) apiDeleteMember(c echo.Context) error {
	if err := s.Auth.SetMember(c.Request().Context(), c.Param("team"), c.Param("user"), ""); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) apiAudit(c echo.Context) error {
	limit, err := intParam(c, "limit", 100, store.MaxLimit)
	if err != nil {
		return err
	}
	before := int64(0)
	if v := c.QueryParam("before"); v != "" {
		if before, err = strconv.ParseInt(v, 10, 64); err != nil {
			return badParam("before", "must be the id of an entry")
		}
	}
	list, err := s.Store.ListAudit(c.Request().Context(), limit, before)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"audit": list})
}
