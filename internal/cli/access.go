package cli

import (
	stdbytes "bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// secretInput reads one secret from standard input, without the line's end that echo and editors add.
func secretInput(e *env, what string) (string, error) {
	if f, ok := e.stdin.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			fmt.Fprintf(e.stderr, "Type or paste %s (it is shown while you type), then press Enter and Ctrl-D.\n", what)
		}
	}
	b, err := io.ReadAll(io.LimitReader(e.stdin, 1<<20))
	if err != nil {
		return "", err
	}
	value := strings.TrimRight(string(b), "\r\n")
	if value == "" {
		return "", fmt.Errorf("there is nothing on standard input: pipe %s into this command", what)
	}
	return value, nil
}

type userCmd struct {
	Ls     userLsCmd     `cmd:"" help:"List the accounts. For admins."`
	Create userCreateCmd `cmd:"" help:"Make an account; its password is read from standard input. For admins."`
	Set    userSetCmd    `cmd:"" help:"Change an account. For admins."`
	Rm     userRmCmd     `cmd:"" help:"Delete an account, with its tokens. For admins."`
}

type userLsCmd struct{ remote }

func (c *userLsCmd) Run(e *env) error {
	var got struct {
		Users []registry.User `json:"users"`
	}
	if err := c.get(e, "/api/v1/users", &got); err != nil || c.JSON {
		return err
	}
	return table(e.stdout, "NAME\tIS\tLAST SEEN", func(t *tabwriter.Writer) {
		for _, u := range got.Users {
			var is []string
			if u.Admin {
				is = append(is, "admin")
			}
			if u.Disabled {
				is = append(is, "disabled")
			}
			fmt.Fprintf(t, "%s\t%s\t%s\n", u.Name, dash(strings.Join(is, ", ")), day(u.LastSeenAt))
		}
	})
}

// day writes when something was, to the minute.
func day(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return at.Local().Format("2006-01-02 15:04")
}

type userCreateCmd struct {
	remote
	Name  string `arg:"" help:"The name to sign in with."`
	Admin bool   `help:"May do everything."`
}

func (c *userCreateCmd) Run(e *env) error {
	password, err := secretInput(e, "the first password")
	if err != nil {
		return err
	}
	if _, _, err := c.post(e, "/api/v1/users", map[string]any{"name": c.Name, "password": password, "admin": c.Admin}, nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Made the account %s. Put it into a team with: llmm team add TEAM %s member\n", c.Name, c.Name)
	return nil
}

type userSetCmd struct {
	remote
	Name     string `arg:"" help:"The account's name."`
	Admin    *bool  `help:"Make it an admin; --no-admin takes that back." negatable:""`
	Disable  bool   `help:"Nobody can sign in with it any more, and its tokens stop working." xor:"able"`
	Enable   bool   `help:"Take --disable back." xor:"able"`
	Password bool   `help:"Set its password, which is read from standard input; its sessions end."`
}

func (c *userSetCmd) Run(e *env) error {
	in := map[string]any{}
	if c.Admin != nil {
		in["admin"] = *c.Admin
	}
	if c.Disable || c.Enable {
		in["disabled"] = c.Disable
	}
	if c.Password {
		password, err := secretInput(e, "the new password")
		if err != nil {
			return err
		}
		in["password"] = password
	}
	if len(in) == 0 {
		return errors.New("nothing to change: give --admin, --no-admin, --disable, --enable or --password")
	}
	path, err := c.userPath(e, c.Name)
	if err != nil {
		return err
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if _, _, err := c.call(e.ctx, http.MethodPatch, path, stdbytes.NewReader(b), "application/json", nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Changed the account %s.\n", c.Name)
	return nil
}

// userPath finds an account by its name; the API knows accounts by their ids, which stay when a name is given anew.
func (r *remote) userPath(e *env, name string) (string, error) {
	var got struct {
		Users []registry.User `json:"users"`
	}
	if _, _, err := r.call(e.ctx, http.MethodGet, "/api/v1/users", nil, "", &got); err != nil {
		return "", err
	}
	for _, u := range got.Users {
		if strings.EqualFold(u.Name, name) {
			return "/api/v1/users/" + url.PathEscape(u.ID), nil
		}
	}
	return "", registry.Errorf(registry.CodeNotFound, "There is no account %q. llmm user ls lists them", name)
}

type userRmCmd struct {
	remote
	Name string `arg:"" help:"The account's name."`
}

func (c *userRmCmd) Run(e *env) error {
	path, err := c.userPath(e, c.Name)
	if err != nil {
		return err
	}
	if _, _, err := c.call(e.ctx, http.MethodDelete, path, nil, "", nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Deleted the account %s.\n", c.Name)
	return nil
}

type teamCmd struct {
	Ls      teamLsCmd      `cmd:"" help:"List your teams."`
	Create  teamCreateCmd  `cmd:"" help:"Make a team. For admins."`
	Rm      teamRmCmd      `cmd:"" help:"Delete a team that owns no model. For admins."`
	Members teamMembersCmd `cmd:"" help:"List the members of a team."`
	Add     teamAddCmd     `cmd:"" help:"Give an account a role in a team. For maintainers of the team."`
	Drop    teamDropCmd    `cmd:"" help:"Take an account out of a team. For maintainers of the team."`
}

type teamLsCmd struct{ remote }

func (c *teamLsCmd) Run(e *env) error {
	var got struct {
		Teams []registry.Team `json:"teams"`
	}
	if err := c.get(e, "/api/v1/teams", &got); err != nil || c.JSON {
		return err
	}
	for _, t := range got.Teams {
		fmt.Fprintln(e.stdout, t.Name)
	}
	return nil
}

type teamCreateCmd struct {
	remote
	Name string `arg:"" help:"Lower-case letters, digits, dashes and underscores."`
}

func (c *teamCreateCmd) Run(e *env) error {
	if _, _, err := c.post(e, "/api/v1/teams", map[string]any{"name": c.Name}, nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Made the team %s. Put somebody into it with: llmm team add %s NAME member\n", c.Name, c.Name)
	return nil
}

type teamRmCmd struct {
	remote
	Name string `arg:"" help:"The team's name."`
}

func (c *teamRmCmd) Run(e *env) error {
	if _, _, err := c.call(e.ctx, http.MethodDelete, "/api/v1/teams/"+url.PathEscape(c.Name), nil, "", nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Deleted the team %s.\n", c.Name)
	return nil
}

type teamMembersCmd struct {
	remote
	Team string `arg:"" help:"The team's name."`
}

func (c *teamMembersCmd) Run(e *env) error {
	var got struct {
		Members []struct {
			Name string        `json:"name"`
			Role registry.Role `json:"role"`
		} `json:"members"`
	}
	if err := c.get(e, "/api/v1/teams/"+url.PathEscape(c.Team)+"/members", &got); err != nil || c.JSON {
		return err
	}
	return table(e.stdout, "NAME\tROLE", func(t *tabwriter.Writer) {
		for _, m := range got.Members {
			fmt.Fprintf(t, "%s\t%s\n", m.Name, m.Role)
		}
	})
}

func memberPath(team, user string) string {
	return "/api/v1/teams/" + url.PathEscape(team) + "/members/" + url.PathEscape(user)
}

type teamAddCmd struct {
	remote
	Team string `arg:"" help:"The team's name."`
	User string `arg:"" help:"The account's name."`
	Role string `arg:"" help:"viewer, member or maintainer; it replaces the one before."`
}

func (c *teamAddCmd) Run(e *env) error {
	if _, err := c.put(e, memberPath(c.Team, c.User), map[string]any{"role": c.Role}); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s is a %s of %s now.\n", c.User, c.Role, c.Team)
	return nil
}

type teamDropCmd struct {
	remote
	Team string `arg:"" help:"The team's name."`
	User string `arg:"" help:"The account's name."`
}

func (c *teamDropCmd) Run(e *env) error {
	if _, _, err := c.call(e.ctx, http.MethodDelete, memberPath(c.Team, c.User), nil, "", nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s is not in %s any more.\n", c.User, c.Team)
	return nil
}

type auditCmd struct {
	remote
	Limit int `default:"50" help:"At most so many, up to 500."`
}

func (c *auditCmd) Run(e *env) error {
	var got struct {
		Audit []registry.AuditEntry `json:"audit"`
	}
	if err := c.get(e, fmt.Sprintf("/api/v1/audit?limit=%d", c.Limit), &got); err != nil || c.JSON {
		return err
	}
	return table(e.stdout, "TIME\tWHO\tDID\tTO\tOUTCOME\tFROM", func(t *tabwriter.Writer) {
		for _, a := range got.Audit {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", a.At.Local().Format("2006-01-02 15:04:05"), dash(a.Actor), a.Action, dash(a.Subject), a.Outcome, dash(a.Remote))
		}
	})
}

type registrationCmd struct {
	remote
	ID     string `arg:"" help:"The model's id."`
	Action string `arg:"" help:"approve, deprecate, archive or restore." enum:"approve,deprecate,archive,restore"`
}

func (c *registrationCmd) Run(e *env) error {
	var m struct {
		Registration string `json:"registration"`
	}
	if _, _, err := c.post(e, modelPath(c.ID)+"/registration", map[string]any{"action": c.Action}, &m); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s is %s now.\n", c.ID, m.Registration)
	return nil
}
