package auth

import (
	"context"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func teamName(name string) (string, error) {
	n := strings.ToLower(strings.TrimSpace(name))
	if err := registry.ValidateTeam(n); err != nil {
		return "", invalid("this team name cannot be used", "team", err.Error())
	}
	return n, nil
}

// ListTeams returns the teams that the caller may see.
func (s *Service) ListTeams(ctx context.Context) ([]registry.Team, error) {
	id := FromContext(ctx)
	if err := Allowed(id, AccountOwn, ""); err != nil {
		return nil, err
	}
	teams, err := s.store.ListTeams(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(teams, func(t registry.Team) bool { return !Sees(id, t.Name) }), nil
}

// CreateTeam makes a team. It is no error if there is one of that name. For admins.
func (s *Service) CreateTeam(ctx context.Context, name string) (err error) {
	clean, nameErr := teamName(name)
	subject := "team:" + clean
	if err := s.require(ctx, TeamManage, "", subject); err != nil {
		return err
	}
	defer func() { s.Audit(ctx, TeamManage, subject, err, "create") }()
	if nameErr != nil {
		return nameErr
	}
	return s.store.EnsureTeam(ctx, clean)
}

// DeleteTeam removes a team and its memberships. For admins. CodeBadState for the team default
// and for one that still has models.
func (s *Service) DeleteTeam(ctx context.Context, name string) (err error) {
	subject := "team:" + name
	if err := s.require(ctx, TeamManage, "", subject); err != nil {
		return err
	}
	defer func() { s.Audit(ctx, TeamManage, subject, err, "delete") }()
	if name == registry.DefaultTeam {
		return registry.Errorf(registry.CodeBadState, "the team %q owns every model for which no team is given and cannot be deleted", name)
	}
	defer s.cache.invalidate()
	return s.store.DeleteTeam(ctx, name)
}

// TeamMember is a member with the account's name.
type TeamMember struct {
	registry.Member
	Name     string `json:"name"`
	Disabled bool   `json:"disabled,omitempty"`
}

// Members returns a team's members, sorted by name, for everybody in the team. CodeNotFound to others.
func (s *Service) Members(ctx context.Context, team string) ([]TeamMember, error) {
	id := FromContext(ctx)
	if err := Allowed(id, AccountOwn, ""); err != nil {
		return nil, err
	}
	if err := s.knownTeam(ctx, id, team); err != nil {
		return nil, err
	}
	members, err := s.store.Members(ctx, team)
	if err != nil {
		return nil, err
	}
	out := make([]TeamMember, 0, len(members))
	for _, m := range members {
		u, err := s.store.User(ctx, m.UserID)
		if registry.CodeOf(err) == registry.CodeNotFound {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		out = append(out, TeamMember{m, u.Name, u.Disabled})
	}
	slices.SortFunc(out, func(a, b TeamMember) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// SetMember gives the account of that name a role in a team; an empty role takes the membership away. For the team's
// maintainers and admins. Errors: CodeInvalid for the role, CodeNotFound for the team or account.
func (s *Service) SetMember(ctx context.Context, team, userName string, role registry.Role) (err error) {
	subject := "team:" + team
	if err := s.require(ctx, MemberManage, team, subject); err != nil {
		return err
	}
	detail := "set the role of " + oneLine(userName, 64) + " to " + oneLine(string(role), 20)
	if role == "" {
		detail = "remove " + oneLine(userName, 64)
	}
	defer func() { s.Audit(ctx, MemberManage, subject, err, detail) }()
	if role != "" && !slices.Contains(registry.Roles, role) {
		return invalid("the member was not changed", "role", "must be viewer, member or maintainer")
	}
	if err := s.knownTeam(ctx, FromContext(ctx), team); err != nil {
		return err
	}
	clean, err := accountName(userName)
	if err != nil {
		return err
	}
	u, err := s.store.UserByName(ctx, clean)
	if err != nil {
		return err
	}
	defer s.cache.invalidate()
	return s.store.SetMember(ctx, registry.Member{Team: team, UserID: u.ID, Role: role})
}

// knownTeam returns CodeNotFound if there is no such team or the caller may not know of it.
func (s *Service) knownTeam(ctx context.Context, id Identity, team string) error {
	teams, err := s.store.ListTeams(ctx)
	if err != nil {
		return err
	}
	if Sees(id, team) && slices.ContainsFunc(teams, func(t registry.Team) bool { return t.Name == team }) {
		return nil
	}
	return registry.Errorf(registry.CodeNotFound, "there is no team %q", oneLine(team, 64))
}
