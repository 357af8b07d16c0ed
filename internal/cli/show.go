package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type showCmd struct {
	remote
	ID string `arg:"" help:"The model's id."`
}

// state is what the API says of a model besides its fields.
type state struct {
	Artifact *registry.ModelArtifact `json:"artifact"`
	Memory   *registry.Memory        `json:"memory"`
	Failure  *registry.Failure       `json:"failure"`
	Loaded   *registry.Endpoint      `json:"loaded"`
	Activity *registry.Activity      `json:"activity"`

	UpdatedAt time.Time `json:"updated_at"`
}

// Run writes the fields as they were given, then what became of the model, and at the end, since it is long and what a
// person looks for then, why it failed.
func (c *showCmd) Run(e *env) error {
	var fields map[string]any
	raw, _, err := c.call(e.ctx, http.MethodGet, modelPath(c.ID), nil, "", &fields)
	if err != nil {
		return err
	}
	if c.JSON {
		_, err = e.stdout.Write(indent(raw))
		return err
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("%s answered something that is not the API of llmm; is the address right?", c.Server)
	}
	err = table(e.stdout, "FIELD\tVALUE", func(t *tabwriter.Writer) {
		row := func(name, value string) {
			if value != "" {
				fmt.Fprintf(t, "%s\t%s\n", name, value)
			}
		}
		for _, f := range registry.Fields {
			row(f.Name, plain(fields[f.Name]))
		}
		artifactRows(row, s.Artifact)
		for _, name := range []string{"artifact_state", "changed", "status", "unwell", "device", "loaded_engine"} {
			row(name, plain(fields[name]))
		}
		memoryRows(row, s.Memory)
		loadedRows(row, s.Loaded)
		activityRows(row, s.Activity)
		for _, name := range []string{"registration", "version", "updated_by"} {
			row(name, plain(fields[name]))
		}
		if !s.UpdatedAt.IsZero() {
			row("updated_at", s.UpdatedAt.Local().Format("2006-01-02 15:04:05"))
		}
	})
	if err != nil || s.Failure == nil {
		return err
	}
	_, err = fmt.Fprintln(e.stdout, "\n"+failureText(s.Failure))
	return err
}

// plain is a value of the API as a person writes it: a text without quotes, what has parts as JSON.
func plain(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// artifactRows are what is known of a model's files.
func artifactRows(row func(name, value string), a *registry.ModelArtifact) {
	if a == nil {
		return
	}
	if a.Revision != "" {
		row("resolved to", fmt.Sprintf("%s, %s in %s, on %s", a.Revision, bytes(a.Bytes), countFiles(len(a.Files)), a.ResolvedAt.Local().Format("2006-01-02 15:04")))
	}
	if a.Fetched != "" {
		row("on disk", a.Fetched+" in "+a.Root+", since "+a.FetchedAt.Local().Format("2006-01-02 15:04"))
	}
	factLines(row, a.Facts)
	row("tokenizer", companionText(a.Tokenizer))
	if a.Problem != nil {
		row("problem", a.Problem.Msg)
	}
}

// memoryRows set side by side what was promised, what the kernel and the driver show, and what the engine says itself.
func memoryRows(row func(name, value string), m *registry.Memory) {
	if m == nil {
		return
	}
	of := func(predicted, measured, reported int64) string {
		var parts []string
		for _, p := range []struct {
			n    int64
			what string
		}{{predicted, "predicted"}, {measured, "measured"}, {reported, "by the engine's own count"}} {
			if p.n > 0 {
				parts = append(parts, bytes(p.n)+" "+p.what)
			}
		}
		return strings.Join(parts, ", ")
	}
	row("memory of GPUs", of(m.PredictedGPU, m.MeasuredGPU, m.ReportedGPU))
	row("main memory", of(m.PredictedRAM, m.MeasuredRAM, m.ReportedRAM))
}

// loadedRows are what an engine has loaded; none of what it does not tell.
func loadedRows(row func(name, value string), e *registry.Endpoint) {
	if e == nil {
		return
	}
	row("model_class", e.ModelClass)
	row("tokenizer_class", e.TokenizerClass)
	row("loaded on", e.Device)
	row("loaded dtype", e.DType)
	if e.Parameters > 0 {
		row("loaded parameters", strconv.FormatInt(e.Parameters, 10))
	}
	if e.Bytes > 0 {
		row("loaded bytes", bytes(e.Bytes))
	}
}

// activityRows are what an engine is doing; none where it does not tell.
func activityRows(row func(name, value string), a *registry.Activity) {
	if a == nil {
		return
	}
	row("requests", a.Requests())
	row("KV cache", a.Cache())
	row("tokens", a.Tokens())
	row("answers", a.Waits())
}

// failureText is why a model failed, what to do, and the engine's last lines.
func failureText(f *registry.Failure) string {
	head := "Failed (" + string(f.Kind)
	switch {
	case f.Signal != "":
		head += ", " + f.Signal
	case f.ExitCode != 0:
		head += fmt.Sprintf(", exit code %d", f.ExitCode)
	}
	head += "): " + f.Msg
	if f.Hint != "" && !strings.Contains(f.Msg, f.Hint) {
		head += "\n  " + f.Hint
	}
	return head + logTail(f)
}

// logTail is the engine's last lines, each after a line break, marked as somebody else's words.
func logTail(f *registry.Failure) string {
	var b strings.Builder
	for _, l := range f.LogTail {
		b.WriteString("\n  | " + l)
	}
	return b.String()
}
