package cli

import (
	stdbytes "bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// modelLine is what lists need of the API's model.
type modelLine struct {
	registry.Model
	Status  registry.Status   `json:"status"`
	Device  string            `json:"device"`
	Percent int               `json:"percent"`
	Memory  *registry.Memory  `json:"memory"`
	Failure *registry.Failure `json:"failure"`
}

type lsCmd struct {
	remote
	Q      string `arg:"" optional:"" help:"Words to search for."`
	Team   string `help:"Only this team's models."`
	Status string `help:"Only models in this state: ready, loading, failed, not_loaded, …"`
	Source string `help:"Only models of this source_type."`
	Limit  int    `help:"At most so many." default:"100"`
}

func (c *lsCmd) Run(e *env) error {
	var all []modelLine
	q := url.Values{"limit": {fmt.Sprint(min(max(c.Limit, 1), 500))}}
	for k, v := range map[string]string{"q": c.Q, "team": c.Team, "status": c.Status, "source_type": c.Source} {
		if v != "" {
			q.Set(k, v)
		}
	}
	more := false
	for {
		var page struct {
			Models []modelLine `json:"models"`
			Next   string      `json:"next"`
		}
		if err := c.get(e, "/api/v1/models?"+q.Encode(), &page); err != nil {
			return err
		}
		all = append(all, page.Models...)
		if more = page.Next != ""; !more || len(all) >= c.Limit || c.JSON {
			break
		}
		q.Set("after", page.Next)
	}
	if c.JSON {
		return nil
	}
	switch {
	case len(all) > 0:
	case c.Q+c.Team+c.Status+c.Source != "":
		fmt.Fprintln(e.stdout, "No model matches.")
		return nil
	default:
		fmt.Fprintln(e.stdout, "No models. Register one with llmm register, or import a file with llmm import.")
		return nil
	}
	err := table(e.stdout, "MODEL\tSOURCE\tFORMAT\tSTATUS\tDEVICE", func(t *tabwriter.Writer) {
		for _, m := range all {
			st := string(m.Status)
			if m.Percent > 0 {
				st += fmt.Sprintf(" %d%%", m.Percent)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", m.ModelID, m.SourceType, m.ModelFormat, st, dash(m.Device))
		}
	})
	if more {
		fmt.Fprintln(e.stderr, "There are more; narrow the search or raise --limit.")
	}
	return err
}

type registerCmd struct {
	remote
	File      string   `help:"A JSON file with the fields; - reads standard input." short:"f" placeholder:"FILE"`
	Fields    []string `arg:"" optional:"" help:"Fields as name=value: model_id=my-model source_type=local source_path=/models/my.gguf model_format=gguf"`
	NoPersist bool     `help:"Keep it only until the server stops, and out of the models file."`
}

func (c *registerCmd) Run(e *env) error {
	in := map[string]any{}
	if c.File != "" {
		r := e.stdin
		if c.File != "-" {
			f, err := os.Open(c.File)
			if err != nil {
				return err
			}
			defer f.Close()
			r = f
		}
		b, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil {
			return err
		}
		if in, err = registry.DecodeObject(b); err != nil {
			return err
		}
	}
	for _, f := range c.Fields {
		name, value, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("%q is not a field: write name=value", f)
		}
		in[name] = fieldValue(name, value)
	}
	if len(in) == 0 {
		return errors.New("nothing to register: give fields as name=value, or a file with --file")
	}
	var m modelLine
	raw, status, err := c.post(e, fmt.Sprintf("/api/v1/models?persist=%t", !c.NoPersist), in, &m)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	verb := "Changed"
	if status == http.StatusCreated {
		verb = "Registered"
	}
	if m.Status == registry.StatusReady || m.Status == registry.StatusSleeping {
		fmt.Fprintf(e.stdout, "%s %s. It runs on as it was loaded; take the change over with: llmm load %s --force\n", verb, m.ModelID, m.ModelID)
		return nil
	}
	fmt.Fprintf(e.stdout, "%s %s. Load it with: llmm load %s\n", verb, m.ModelID, m.ModelID)
	return nil
}

// fieldValue gives a field typed on the command line the type that the API wants.
func fieldValue(name, v string) any {
	f, _ := registry.FieldByName(name)
	switch f.Kind {
	case registry.KindInt:
		return number(v)
	case registry.KindBool:
		switch v {
		case "true":
			return true
		case "false":
			return false
		}
	case registry.KindMap:
		var m map[string]any
		if json.Unmarshal([]byte(v), &m) == nil {
			return m
		}
	case registry.KindStrings, registry.KindInts:
		list := []any{}
		for p := range strings.SplitSeq(v, ",") {
			if f.Kind == registry.KindInts {
				list = append(list, number(strings.TrimSpace(p)))
			} else {
				list = append(list, strings.TrimSpace(p))
			}
		}
		return list
	case registry.KindString, registry.KindEnum, registry.KindDuration:
	}
	return v
}

// number is v as a number if it is one. What is none goes as it is, and the server's answer names the field.
func number(v string) any {
	if _, err := strconv.ParseInt(v, 10, 64); err != nil {
		return v
	}
	return json.Number(v)
}

type rmCmd struct {
	remote
	ID string `arg:"" help:"The model's id."`
}

func (c *rmCmd) Run(e *env) error {
	if _, _, err := c.call(e.ctx, http.MethodDelete, modelPath(c.ID), nil, "", nil); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Deleted %s. Its files are where they were.\n", c.ID)
	return nil
}

type planCmd struct {
	remote
	ID     string `arg:"" help:"The model's id."`
	Device string `help:"auto, cuda or cpu, instead of the model's preference."`
}

func (c *planCmd) Run(e *env) error {
	path := modelPath(c.ID) + "/plan"
	if c.Device != "" {
		path += "?device=" + url.QueryEscape(c.Device)
	}
	var p registry.Plan
	if err := c.get(e, path, &p); err != nil || c.JSON {
		return err
	}
	if p.Problem != nil {
		return p.Problem.AsError()
	}
	fmt.Fprintln(e.stdout, p.Sentence)
	if n := p.Needs; n.Bytes() > 0 && p.Verdict != registry.VerdictLoaded {
		why := ""
		if p.DeviceWhy != "" && !strings.Contains(p.Sentence, p.DeviceWhy) {
			why = " (" + p.DeviceWhy + ")"
		}
		fmt.Fprintf(e.stdout, "Needs %s (weights %s, cache %s, engine %s; from %s), free %s. Engine %s (%s), device %s%s.\n",
			bytes(n.Bytes()), bytes(n.Weights), bytes(n.KVCache), bytes(n.Overhead), n.Basis, bytes(p.Free), dash(p.Engine), p.EngineWhy, dash(p.Device), why)
	}
	return nil
}

type loadCmd struct {
	remote
	ID     string `arg:"" help:"The model's id."`
	Force  bool   `help:"Unload a loaded instance first (force_reload)."`
	Device string `help:"auto, cuda or cpu, instead of the model's preference."`
	Evict  bool   `help:"Unload idle models if that makes room."`
	// OverrideResources is for maintainers, and audited.
	OverrideResources bool `help:"Load although the memory check says no. For maintainers; it is audited."`
	Detach            bool `help:"Do not wait for it." short:"d"`
}

func (c *loadCmd) Run(e *env) error {
	in := map[string]any{"force_reload": c.Force, "evict": c.Evict, "override_resources": c.OverrideResources}
	if c.Device != "" {
		in["device"] = c.Device
	}
	var op registry.Operation
	raw, _, err := c.post(e, modelPath(c.ID)+"/load", in, &op)
	if err != nil {
		return err
	}
	if c.Detach {
		if c.JSON {
			_, err := e.stdout.Write(indent(raw))
			return err
		}
		fmt.Fprintf(e.stdout, "Loading; operation %s.\n", op.ID)
		return nil
	}
	if op, err = c.watch(e, op); err != nil {
		return err
	}
	return c.finish(e, op)
}

type unloadCmd struct {
	remote
	ID string `arg:"" help:"The model's id."`
}

func (c *unloadCmd) Run(e *env) error {
	var got struct {
		Unloaded  bool               `json:"unloaded"`
		Operation registry.Operation `json:"operation"`
	}
	if _, _, err := c.post(e, modelPath(c.ID)+"/unload?wait=0s", map[string]any{}, &got); err != nil {
		return err
	}
	op, err := c.watch(e, got.Operation)
	if err != nil {
		return err
	}
	if op.Kind == registry.OperationLoad { // a load that was cancelled on the way
		fmt.Fprintln(e.stdout, op.Outcome)
		return nil
	}
	return c.finish(e, op)
}

type sleepCmd struct {
	remote
	ID string `arg:"" help:"The model's id."`
}

func (c *sleepCmd) Run(e *env) error { return c.nap(e, c.ID, "sleep") }

type wakeCmd struct {
	remote
	ID string `arg:"" help:"The model's id."`
}

func (c *wakeCmd) Run(e *env) error { return c.nap(e, c.ID, "wake") }

func (r *remote) nap(e *env, id, what string) error {
	var op registry.Operation
	if _, _, err := r.post(e, modelPath(id)+"/"+what+"?wait=0s", map[string]any{}, &op); err != nil {
		return err
	}
	op, err := r.watch(e, op)
	if err != nil {
		return err
	}
	return r.finish(e, op)
}

type instanceCmd struct {
	remote
	ID string `arg:"" help:"The model's id."`
}

func (c *instanceCmd) Run(e *env) error {
	raw, _, err := c.post(e, modelPath(c.ID)+"/instance?wait=1h", map[string]any{}, nil)
	if err != nil {
		return err
	}
	_, err = e.stdout.Write(indent(raw))
	return err
}

type psCmd struct{ remote }

func (c *psCmd) Run(e *env) error {
	var res registry.Resources
	if err := c.get(e, "/api/v1/resources", &res); err != nil || c.JSON {
		return err
	}
	err := table(e.stdout, "DEVICE\tUSED\tTOTAL\tNAME", func(t *tabwriter.Writer) {
		for _, g := range res.GPUs {
			fmt.Fprintf(t, "cuda:%d\t%s\t%s\t%s %s\n", g.Index, bytes(g.MemoryUsed), bytes(g.MemoryTotal), g.Name, g.Problem)
		}
		fmt.Fprintf(t, "cpu\t%s\t%s\tmain memory, %d CPUs\n", bytes(res.Host.RAMTotal-res.Host.RAMAvailable), bytes(res.Host.RAMTotal), res.Host.CPUs)
	})
	if err != nil {
		return err
	}
	if res.GPUProblem != "" {
		fmt.Fprintln(e.stdout, "GPUs: "+res.GPUProblem)
	}
	if len(res.Reservations) == 0 {
		fmt.Fprintln(e.stdout, "Nothing is loaded.")
		return nil
	}
	fmt.Fprintln(e.stdout)
	return table(e.stdout, "MODEL\tSTATE\tDEVICE\tPROMISED\tPID\tREQUESTS\tLAST USED", func(t *tabwriter.Writer) {
		for _, r := range res.Reservations {
			used := "-"
			if !r.LastUsedAt.IsZero() {
				used = time.Since(r.LastUsedAt).Round(time.Second).String() + " ago"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", r.ModelID, r.State, r.Device, bytes(r.Bytes), r.PID, r.Active, used)
		}
	})
}

type cancelCmd struct {
	remote
	Operation string `arg:"" help:"The operation's id; llmm ops lists them."`
}

func (c *cancelCmd) Run(e *env) error {
	var op registry.Operation
	raw, _, err := c.call(e.ctx, http.MethodDelete, "/api/v1/operations/"+url.PathEscape(c.Operation), nil, "", &op)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	fmt.Fprintln(e.stdout, cmp.Or(op.Outcome, "It is being cancelled."))
	return nil
}

type opsCmd struct {
	remote
	Model string `arg:"" optional:"" help:"Only this model's."`
	Limit int    `default:"20" help:"At most so many."`
}

func (c *opsCmd) Run(e *env) error {
	var page struct {
		Operations []registry.Operation `json:"operations"`
	}
	if err := c.get(e, fmt.Sprintf("/api/v1/operations?limit=%d&model=%s", c.Limit, url.QueryEscape(c.Model)), &page); err != nil || c.JSON {
		return err
	}
	return table(e.stdout, "OPERATION\tTIME\tKIND\tSUBJECT\tSTATE\tBY\tOUTCOME", func(t *tabwriter.Writer) {
		for _, op := range page.Operations {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", op.ID, op.CreatedAt.Local().Format("2006-01-02 15:04:05"), op.Kind, op.Subject, op.State, op.Actor, dash(op.Outcome))
		}
	})
}

type logsCmd struct {
	remote
	ID    string `arg:"" help:"The model's id."`
	Lines int    `short:"n" default:"100" help:"So many lines from the end."`
}

func (c *logsCmd) Run(e *env) error {
	raw, _, err := c.call(e.ctx, http.MethodGet, fmt.Sprintf("%s/logs?lines=%d", modelPath(c.ID), c.Lines), nil, "", nil)
	if err != nil {
		return err
	}
	_, err = e.stdout.Write(raw)
	return err
}

type eventsCmd struct {
	remote
	Models []string `help:"Only these models."`
	Kinds  []string `help:"Only these kinds: model.status, operation, resources, …"`
}

func (c *eventsCmd) Run(e *env) error {
	q := url.Values{"models": {strings.Join(c.Models, ",")}, "kinds": {strings.Join(c.Kinds, ",")}}
	resp, err := c.send(e.ctx, http.MethodGet, "/api/v1/events?"+q.Encode(), nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := follow(resp.Body, e.stdout); err != nil && e.ctx.Err() == nil {
		return err
	}
	return nil
}

type importCmd struct {
	remote
	File      string `arg:"" help:"A YAML file; - reads standard input."`
	DryRun    bool   `help:"Only say what would change."`
	NoPersist bool   `help:"Keep the models only until the server stops."`
}

func (c *importCmd) Run(e *env) error {
	r := e.stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	var res manager.ImportResult
	raw, _, err := c.call(e.ctx, http.MethodPost, fmt.Sprintf("/api/v1/import?dry_run=%t&persist=%t", c.DryRun, !c.NoPersist), stdbytes.NewReader(b), "application/yaml", &res)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	would := ""
	if c.DryRun {
		would = "would be "
	}
	fmt.Fprintf(e.stdout, "%d %sadded, %d %schanged, %d unchanged.\n", len(res.Added), would, len(res.Changed), would, len(res.Unchanged))
	for _, ch := range res.Changes {
		if ch.Kind != "unchanged" {
			fmt.Fprintf(e.stdout, "  %s %s\n", ch.Kind, ch.ModelID)
			for _, f := range ch.Fields {
				fmt.Fprintf(e.stdout, "    %s: %v -> %v\n", f.Name, f.Old, f.New)
			}
		}
	}
	for _, is := range res.Issues {
		fmt.Fprintf(e.stderr, "%s:%d:%d: %s %s\n", c.File, is.Line, is.Column, is.Field, is.Msg)
	}
	if n := entriesOf(res.Issues); n == 1 {
		return errors.New("1 entry was left out")
	} else if n > 1 {
		return fmt.Errorf("%d entries were left out", n)
	}
	return nil
}

// entriesOf counts the entries that issues are about: each may have several.
func entriesOf(issues []registry.FieldError) int {
	entries := map[string]bool{}
	for _, is := range issues {
		entry, _, _ := strings.Cut(is.Field, ".")
		entries[entry] = true
	}
	return len(entries)
}

type exportCmd struct {
	remote
	Output string `short:"o" help:"Write to this file instead of standard output." placeholder:"FILE"`
}

func (c *exportCmd) Run(e *env) error {
	raw, _, err := c.call(e.ctx, http.MethodGet, "/api/v1/export", nil, "", nil)
	if err != nil {
		return err
	}
	if c.Output == "" {
		_, err = e.stdout.Write(raw)
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.Output), ".models-*.yaml")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone after the rename
	if _, err := tmp.Write(raw); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), c.Output)
}

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a token. Its secret is shown once."`
	Ls     tokenLsCmd     `cmd:"" help:"List your tokens."`
	Rm     tokenRmCmd     `cmd:"" help:"Revoke a token."`
}

type tokenCreateCmd struct {
	remote
	Name      string        `arg:"" help:"What it is for."`
	ExpiresIn time.Duration `help:"How long it is good for; for ever if not given."`
}

func (c *tokenCreateCmd) Run(e *env) error {
	in := map[string]any{"name": c.Name}
	if c.ExpiresIn > 0 {
		in["expires_in"] = c.ExpiresIn.String()
	}
	var got struct {
		Secret string `json:"secret"`
	}
	if _, _, err := c.post(e, "/api/v1/tokens", in, &got); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, got.Secret)
	fmt.Fprintln(e.stderr, "Keep it safe: it is not shown again.")
	return nil
}

type tokenLsCmd struct{ remote }

func (c *tokenLsCmd) Run(e *env) error {
	var got struct {
		Tokens []registry.Token `json:"tokens"`
	}
	if err := c.get(e, "/api/v1/tokens", &got); err != nil || c.JSON {
		return err
	}
	return table(e.stdout, "ID\tNAME\tBEGINS WITH\tLAST USED", func(t *tabwriter.Writer) {
		for _, k := range got.Tokens {
			used := "never"
			if !k.LastUsedAt.IsZero() {
				used = k.LastUsedAt.Local().Format("2006-01-02 15:04")
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Prefix, used)
		}
	})
}

type tokenRmCmd struct {
	remote
	ID string `arg:"" help:"The token's id."`
}

func (c *tokenRmCmd) Run(e *env) error {
	_, _, err := c.call(e.ctx, http.MethodDelete, "/api/v1/tokens/"+url.PathEscape(c.ID), nil, "", nil)
	return err
}
