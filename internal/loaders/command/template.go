package command

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Template is a command that an admin has defined. Models name it and give values to its parameters; what is run, and with
// which flags, is the admin's alone.
type Template struct {
	Name         string
	Title        string
	Argv         []arg
	Env          []variable
	Model        string // the name by which the program knows the model, with placeholders
	Health       string // path that answers 200 once the model does
	StartTimeout time.Duration
	StopSignal   syscall.Signal
	APIs         []registry.API
	Formats      []registry.Format
	Devices      []registry.Device
	Params       []param
	Progress     []*regexp.Regexp // one group: per cent; two: done and total
	Failures     []httpengine.Cause
}

// arg is one or more arguments; with only, they are left out when that placeholder is empty or false.
type arg struct {
	only string
	args []string
}

// variable is one of the program's environment.
type variable struct{ name, value string }

// param is a setting that a model may give.
type param struct {
	params.Spec
	pattern *regexp.Regexp // of the whole value, with KindString
	def     string         // "" none
}

// The placeholders that every template may use. Those in may be empty.
const (
	phPort      = "PORT"
	phModelPath = "MODEL_PATH"
	phModelID   = "MODEL_ID"
	phGPUs      = "GPU_IDS"             // 0,1: numbers as nvidia-smi shows them; "" on the CPU
	phGPUCount  = "GPU_COUNT"           // "" on the CPU
	phFraction  = "GPU_MEMORY_FRACTION" // of each GPU, what was promised to the model: 0.4500; "" when not known
	phContext   = "CONTEXT_LENGTH"      // tokens; "" when not known
	phTokenizer = "TOKENIZER_PATH"
	phTrust     = "TRUST_REMOTE_CODE" // true or ""
	phDir       = "DIR"               // an empty folder of this instance's own, removed afterwards
	phKey       = "API_KEY"           // that we will send; in env only, since everybody can read arguments
	phParam     = "param."            // followed by a parameter's name
)

var placeholders = []string{phPort, phModelPath, phModelID, phGPUs, phGPUCount, phFraction, phContext, phTokenizer, phTrust, phDir, phKey}

var placeholder = regexp.MustCompile(`\$\{([^{}]*)\}`)

// values are what the placeholders stand for.
type values map[string]string

// fill replaces the placeholders of one argument. The outcome is one argument, whatever the values hold.
func (v values) fill(s string) string {
	return placeholder.ReplaceAllStringFunc(s, func(m string) string { return v[m[2:len(m)-1]] })
}

// uses tells whether the program is told what a placeholder stands for.
func (t *Template) uses(name string) bool {
	in := func(s string) bool { return strings.Contains(s, "${"+name+"}") }
	return slices.ContainsFunc(t.Argv, func(a arg) bool { return slices.ContainsFunc(a.args, in) }) ||
		slices.ContainsFunc(t.Env, func(v variable) bool { return in(v.value) })
}

// argv is the command line.
func (t *Template) argv(v values) []string {
	var out []string
	for _, a := range t.Argv {
		if a.only != "" && (v[a.only] == "" || v[a.only] == "false") {
			continue
		}
		for _, s := range a.args {
			out = append(out, v.fill(s))
		}
	}
	return out
}

// table is what a model may give when it uses this template.
func (t *Template) table() []params.Spec {
	out := []params.Spec{{Param: templateParam([]string{t.Name})}}
	for _, p := range t.Params {
		out = append(out, p.Spec)
	}
	return out
}

// read checks a model's parameters. CodeInvalid names those at fault.
func (t *Template) read(in map[string]any) (values, error) {
	got, err := params.Read(Name, in, t.table())
	if err != nil {
		return nil, err
	}
	out := values{}
	var errs []registry.FieldError
	for _, p := range t.Params {
		out[phParam+p.Name] = p.def
		given, ok := got[p.Name]
		if !ok {
			continue
		}
		var s string
		switch g := given.(type) {
		case int64:
			s = strconv.FormatInt(g, 10)
		case float64:
			s = strconv.FormatFloat(g, 'f', -1, 64)
		case bool:
			s = strconv.FormatBool(g)
		case string:
			s = g
		}
		if msg := p.refuses(s); msg != "" {
			errs = append(errs, registry.FieldError{Field: "custom_loader_params." + p.Name, Msg: msg})
		}
		out[phParam+p.Name] = s
	}
	if len(errs) > 0 {
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "command", Msg: "The command " + t.Name + " refuses the model's parameters", Fields: errs}
	}
	return out, nil
}

// refuses says why a value cannot be an argument, "" if it can. A value that begins with a dash could be taken for a flag.
func (p param) refuses(s string) string {
	if p.Kind != registry.KindString || p.Number {
		return ""
	}
	switch {
	case len(s) > 4096:
		return "must not be longer than 4,096 bytes"
	case strings.HasPrefix(s, "-"):
		return "must not begin with a dash"
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "must not hold control characters"
	case p.pattern != nil && !p.pattern.MatchString(s):
		return fmt.Sprintf("must match %s", p.pattern)
	}
	return ""
}

// unknown returns the placeholders of s that mean nothing in this template.
func (t *Template) unknown(s string) []string {
	var out []string
	for _, m := range placeholder.FindAllStringSubmatch(s, -1) {
		if !t.knows(m[1]) {
			out = append(out, m[1])
		}
	}
	if rest := placeholder.ReplaceAllString(s, ""); strings.Contains(rest, "${") {
		out = append(out, "${ without its end")
	}
	return out
}

func (t *Template) knows(name string) bool {
	if p, ok := strings.CutPrefix(name, phParam); ok {
		return slices.ContainsFunc(t.Params, func(q param) bool { return q.Name == p })
	}
	return slices.Contains(placeholders, name)
}
