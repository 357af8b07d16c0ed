package cli

import (
	stdbytes "bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type fetchCmd struct {
	remote
	ID     string `arg:"" help:"The model's id."`
	Detach bool   `help:"Do not wait for it." short:"d"`
	Verify bool   `help:"Read all of it from the disk once more and compare it with its hashes."`
}

func (c *fetchCmd) Run(e *env) error {
	var op registry.Operation
	raw, _, err := c.post(e, modelPath(c.ID)+fmt.Sprintf("/fetch?verify=%t", c.Verify), map[string]any{}, &op)
	if err != nil {
		return err
	}
	if c.Detach {
		if c.JSON {
			_, err := e.stdout.Write(indent(raw))
			return err
		}
		fmt.Fprintf(e.stdout, "Fetching; operation %s.\n", op.ID)
		return nil
	}
	return c.watchToEnd(e, op)
}

// watchToEnd shows an operation until it ends or is paused.
func (r *remote) watchToEnd(e *env, op registry.Operation) error {
	op, err := r.watch(e, op)
	if err != nil {
		return err
	}
	return r.finish(e, op)
}

type pauseCmd struct {
	remote
	Operation string `arg:"" help:"The operation's id; llmm ops lists them."`
}

func (c *pauseCmd) Run(e *env) error {
	var op registry.Operation
	if _, _, err := c.post(e, "/api/v1/operations/"+url.PathEscape(c.Operation)+"/pause", map[string]any{}, &op); err != nil {
		return err
	}
	return c.finish(e, op)
}

type resumeCmd struct {
	remote
	Operation string `arg:"" help:"The operation's id; llmm ops lists them."`
	Detach    bool   `help:"Do not wait for it." short:"d"`
}

func (c *resumeCmd) Run(e *env) error {
	var op registry.Operation
	if _, _, err := c.post(e, "/api/v1/operations/"+url.PathEscape(c.Operation)+"/resume", map[string]any{}, &op); err != nil {
		return err
	}
	if c.Detach {
		fmt.Fprintf(e.stdout, "Operation %s goes on.\n", op.ID)
		return nil
	}
	return c.watchToEnd(e, op)
}

type lookupCmd struct {
	remote
	Path       string   `arg:"" help:"The Hub's model id, a path on the server, an s3:// address or an Ollama name."`
	SourceType string   `help:"Where it is: huggingface, local, s3, ollama. Guessed from the path if not given."`
	Fields     []string `arg:"" optional:"" help:"Fields as name=value, as with llmm register: revision=main model_format=gguf"`
}

func (c *lookupCmd) Run(e *env) error {
	in := map[string]any{"source_path": c.Path, "source_type": c.SourceType}
	if c.SourceType == "" {
		in["source_type"] = guessSource(c.Path)
	}
	for _, f := range c.Fields {
		name, value, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("%q is not a field: write name=value", f)
		}
		in[name] = fieldValue(name, value)
	}
	var l registry.Lookup
	raw, _, err := c.post(e, "/api/v1/lookup", in, &l)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	if err := table(e.stdout, "FIELD\tVALUE", func(t *tabwriter.Writer) { lookupLines(t, l) }); err != nil {
		return err
	}
	if len(l.Offers) > 1 {
		fmt.Fprintln(e.stdout)
		return table(e.stdout, "OFFERED\tFORMAT\tFILES\tSIZE\tCHOOSE WITH", func(t *tabwriter.Writer) {
			for _, o := range l.Offers {
				fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", o.Label, o.Format, o.Files, bytes(o.Bytes), dash(paramsText(o.Params)))
			}
		})
	}
	return nil
}

func guessSource(path string) string {
	switch {
	case strings.HasPrefix(path, "/"):
		return string(registry.SourceLocal)
	case strings.HasPrefix(path, "s3://"):
		return string(registry.SourceS3)
	case strings.HasPrefix(path, "ollama://"), strings.Contains(path, ":") && !strings.Contains(path, "://"):
		return string(registry.SourceOllama)
	}
	return string(registry.SourceHuggingFace)
}

func paramsText(p map[string]any) string {
	if len(p) == 0 {
		return ""
	}
	b, err := json.Marshal(p)
	if err != nil {
		return ""
	}
	return "custom_loader_params=" + string(b)
}

func lookupLines(t io.Writer, l registry.Lookup) {
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	row("model_id", l.Model.ModelID)
	row("model_format", string(l.Model.ModelFormat))
	row("custom_loader_params", strings.TrimPrefix(paramsText(l.Model.CustomLoaderParams), "custom_loader_params="))
	row("revision", l.Revision)
	size := bytes(l.Bytes) + " in " + countFiles(len(l.Files))
	if l.OnDisk > 0 {
		size += ", of which " + bytes(l.OnDisk) + " are on the server's disk"
	}
	row("files", size)
	factLines(row, l.Facts)
	row("tokenizer_path", companionText(l.Tokenizer))
	if l.Plan != nil {
		row("load", l.Plan.Sentence)
	}
	if l.Problem != nil {
		row("problem", l.Problem.Msg)
	}
	row("read", fmt.Sprintf("%s in %d requests", bytes(l.Read), l.Requests))
}

func countFiles(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// factLines writes what is known of a model's weights.
func factLines(row func(name, value string), f registry.Facts) {
	number := func(name string, n int64) {
		if n > 0 {
			row(name, strconv.FormatInt(n, 10))
		}
	}
	yes := func(name string, is bool, what string) {
		if is {
			row(name, what)
		}
	}
	row("architecture", f.Architecture)
	number("parameters", f.Parameters)
	row("dtype", f.DType)
	row("quantization", f.Quantization)
	number("context_length", int64(f.ContextLength))
	yes("tokenizer", f.Tokenizer, "yes")
	yes("chat_template", f.ChatTemplate, "yes")
	row("licence", f.Licence)
	yes("gated", f.Gated, "yes: accept its licence at the source and give a token")
	yes("code", f.Code, "carries Python that only trust_remote_code runs")
	yes("pickles", f.Pickles, "the weights are pickles, which can run code when they are loaded")
	for _, n := range f.Notes {
		row("note", n)
	}
}

// companionText is a tokenizer of another place in one line; "" for none.
func companionText(c *registry.Companion) string {
	if c == nil {
		return ""
	}
	text := fmt.Sprintf("%s at %s, %s in %s", c.Path, c.Revision, bytes(c.Bytes), countFiles(len(c.Files)))
	if c.Folder != "" {
		text += ", in " + c.Folder
	}
	return text
}

type storageCmd struct {
	Ls        storageLsCmd        `cmd:"" help:"List what occupies the disks."`
	Rm        storageRmCmd        `cmd:"" help:"Delete one revision from disk."`
	Clean     storageCleanCmd     `cmd:"" help:"Remove unfinished downloads. For admins."`
	Retention storageRetentionCmd `cmd:"" help:"Show, set or apply what is deleted by itself. For admins."`
	Limits    storageLimitsCmd    `cmd:"" help:"Show or set how fast downloads may be. For admins."`
	Roots     storageRootsCmd     `cmd:"" help:"Show or set the folders that local models may be read from. For admins."`
}

type storageLsCmd struct{ remote }

func (c *storageLsCmd) Run(e *env) error {
	var st registry.Storage
	if err := c.get(e, "/api/v1/storage", &st); err != nil || c.JSON {
		return err
	}
	err := table(e.stdout, "SOURCE\tPATH\tREVISION\tSIZE\tDELETING FREES\tUSED\tMODELS", func(t *tabwriter.Writer) {
		for _, a := range st.Artifacts {
			used, models, rev := "-", strings.Join(a.Models, ", "), a.Revision
			if !a.UsedAt.IsZero() {
				used = a.UsedAt.Local().Format("2006-01-02")
			}
			if a.InUse {
				used = "now"
			}
			if rev == "" && a.Partial > 0 {
				rev = "unfinished"
			}
			if a.Incomplete {
				rev += " (incomplete, " + bytes(a.Missing) + " missing)"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.Source, a.Path, dash(rev), bytes(a.Bytes+a.Partial), bytes(a.Own+a.Partial), used, dash(models))
		}
	})
	fmt.Fprintf(e.stdout, "%s in all, %s of them used by no model; %s of unfinished downloads.\n", bytes(st.Bytes), bytes(st.Unused), bytes(st.Partial))
	for _, d := range st.Disks {
		fmt.Fprintf(e.stdout, "Disk of %s: %s of %s free.\n", d.Path, bytes(d.Free), bytes(d.Total))
	}
	for _, p := range st.Problems {
		fmt.Fprintln(e.stderr, p)
	}
	return err
}

type storageRmCmd struct {
	remote
	SourceType string `arg:"" help:"Its source_type, as llmm storage ls shows it."`
	Path       string `arg:"" help:"Its path."`
	Revision   string `arg:"" help:"Its exact revision."`
}

func (c *storageRmCmd) Run(e *env) error {
	q := url.Values{"source_type": {c.SourceType}, "source_path": {c.Path}, "revision": {c.Revision}}
	return c.freed(e, http.MethodDelete, "/api/v1/storage?"+q.Encode())
}

func (r *remote) freed(e *env, method, path string) error {
	var got struct {
		Freed int64 `json:"freed"`
	}
	raw, _, err := r.call(e.ctx, method, path, nil, "", &got)
	if err != nil {
		return err
	}
	if r.JSON {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	fmt.Fprintf(e.stdout, "%s are free again.\n", bytes(got.Freed))
	return nil
}

type storageCleanCmd struct {
	remote
	OlderThan time.Duration `help:"Only those that have not grown for so long." default:"24h"`
}

func (c *storageCleanCmd) Run(e *env) error {
	return c.freed(e, http.MethodPost, "/api/v1/storage/clean?older_than="+c.OlderThan.String())
}

type storageRetentionCmd struct {
	remote
	UnusedFor   *string `help:"Delete revisions that no model is registered with and nobody used for so long: 720h. 0s: never."`
	PartialFor  *string `help:"Remove unfinished downloads that have not grown for so long: 168h. 0s: never."`
	MaxBytes    *int64  `help:"Keep at most so many bytes; the longest unused go first. 0: no limit."`
	IncludeUsed *bool   `help:"Also delete what registered models use while they are not loaded."`
	Apply       bool    `help:"Apply the policy now."`
	DryRun      bool    `help:"Only say what would go."`
}

func (c *storageRetentionCmd) Run(e *env) error {
	const path = "/api/v1/storage/retention"
	var r map[string]any
	raw, _, err := c.call(e.ctx, http.MethodGet, path, nil, "", &r)
	if err != nil {
		return err
	}
	changed := false
	set := func(name string, given bool, value any) {
		if given {
			r[name], changed = value, true
		}
	}
	set("unused_for", c.UnusedFor != nil, deref(c.UnusedFor))
	set("partial_for", c.PartialFor != nil, deref(c.PartialFor))
	set("max_bytes", c.MaxBytes != nil, deref(c.MaxBytes))
	set("include_used", c.IncludeUsed != nil, deref(c.IncludeUsed))
	if changed && !c.DryRun { // a dry run tries a policy without setting it
		if raw, err = c.put(e, path, r); err != nil {
			return err
		}
	}
	if !c.Apply && !c.DryRun {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	var got struct {
		Items []registry.RetentionItem `json:"items"`
	}
	if raw, _, err = c.post(e, path+fmt.Sprintf("?dry_run=%t", c.DryRun), r, &got); err != nil {
		return err
	}
	if c.JSON {
		_, err := e.stdout.Write(indent(raw))
		return err
	}
	if len(got.Items) == 0 {
		fmt.Fprintln(e.stdout, "There is nothing to delete.")
		return nil
	}
	return table(e.stdout, "SOURCE\tPATH\tREVISION\tFREES\tWHY", func(t *tabwriter.Writer) {
		for _, it := range got.Items {
			why := it.Why
			if it.Error != nil {
				why = "not deleted: " + it.Error.Msg
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", dash(string(it.Source)), dash(it.Path), dash(it.Revision), bytes(it.Freed), why)
		}
	})
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// put sends a JSON body with PUT.
func (r *remote) put(e *env, path string, in any) ([]byte, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	raw, _, err := r.call(e.ctx, http.MethodPut, path, stdbytes.NewReader(b), "application/json", nil)
	return raw, err
}

type storageLimitsCmd struct {
	remote
	Total  *int64           `help:"Bytes per second of all downloads together; 0 for no limit."`
	Source map[string]int64 `help:"Bytes per second of one source: huggingface=50000000. 0 for no limit."`
}

func (c *storageLimitsCmd) Run(e *env) error {
	const path = "/api/v1/storage/limits"
	var l registry.BandwidthLimits
	raw, _, err := c.call(e.ctx, http.MethodGet, path, nil, "", &l)
	if err != nil {
		return err
	}
	if c.Total != nil || len(c.Source) > 0 {
		if c.Total != nil {
			l.Total = *c.Total
		}
		for name, n := range c.Source {
			if l.Sources == nil {
				l.Sources = map[registry.SourceType]int64{}
			}
			l.Sources[registry.SourceType(name)] = n
		}
		if raw, err = c.put(e, path, l); err != nil {
			return err
		}
	}
	_, err = e.stdout.Write(indent(raw))
	return err
}

type storageRootsCmd struct {
	remote
	Folders []string `arg:"" optional:"" help:"The folders, as the server sees them; they replace those of before."`
	Any     bool     `help:"Allow any folder."`
	Reset   bool     `help:"Go back to those of the server's command line."`
}

func (c *storageRootsCmd) Run(e *env) error {
	const path = "/api/v1/storage/roots"
	var raw []byte
	var err error
	switch {
	case (c.Any && c.Reset) || (len(c.Folders) > 0 && (c.Any || c.Reset)):
		return errors.New("give folders, or --any, or --reset")
	case len(c.Folders) > 0:
		raw, err = c.put(e, path, map[string]any{"folders": c.Folders})
	case c.Any:
		raw, err = c.put(e, path, map[string]any{"folders": []string{}})
	case c.Reset:
		raw, err = c.put(e, path, map[string]any{"folders": nil})
	default:
		raw, _, err = c.call(e.ctx, http.MethodGet, path, nil, "", nil)
	}
	if err != nil {
		return err
	}
	_, err = e.stdout.Write(indent(raw))
	return err
}
