package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type secretCmd struct {
	Ls  secretLsCmd  `cmd:"" help:"List the names of secrets."`
	Set secretSetCmd `cmd:"" help:"Store a secret; its value is read from standard input. For maintainers of the team."`
	Rm  secretRmCmd  `cmd:"" help:"Remove a secret. For maintainers of the team."`
}

type secretLsCmd struct{ remote }

func (c *secretLsCmd) Run(e *env) error {
	var got struct {
		Secrets []registry.Secret `json:"secrets"`
	}
	if err := c.get(e, "/api/v1/secrets", &got); err != nil || c.JSON {
		return err
	}
	return table(e.stdout, "NAME\tTEAM\tCHANGED\tBY\tUSED BY", func(t *tabwriter.Writer) {
		for _, s := range got.Secrets {
			team := s.Team
			if team == "" {
				team = "(every team)"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", s.Name, team, s.UpdatedAt.Local().Format("2006-01-02 15:04"), s.UpdatedBy, strings.Join(s.UsedBy, ", "))
		}
	})
}

// whose says which team's secret is meant.
type whose struct {
	Team     string `help:"Whose models may use it; the default team if not given."`
	AllTeams bool   `help:"Every team's models may use it. For admins."`
}

func (w whose) path(name string) string {
	q := url.Values{}
	if w.Team != "" {
		q.Set("team", w.Team)
	}
	if w.AllTeams {
		q.Set("all", "true")
	}
	return "/api/v1/secrets/" + url.PathEscape(name) + "?" + q.Encode()
}

type secretSetCmd struct {
	remote
	whose
	Name string `arg:"" help:"Its name, as in secret:NAME."`
}

func (c *secretSetCmd) Run(e *env) error {
	b, err := io.ReadAll(io.LimitReader(e.stdin, 1<<20))
	if err != nil {
		return err
	}
	value := strings.TrimRight(string(b), "\r\n") // what echo and editors add
	if value == "" {
		return errors.New("there is nothing on standard input: pipe the secret's value into this command")
	}
	if _, err := c.put(e, c.path(c.Name), map[string]string{"value": value}); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Stored. Use it as secret:%s.\n", c.Name)
	return nil
}

type secretRmCmd struct {
	remote
	whose
	Name  string `arg:"" help:"Its name."`
	Force bool   `help:"Also when models use it."`
}

func (c *secretRmCmd) Run(e *env) error {
	path := c.path(c.Name)
	if c.Force {
		path += "&force=true"
	}
	if _, _, err := c.call(e.ctx, http.MethodDelete, path, nil, "", nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Removed %s.\n", c.Name)
	return nil
}
