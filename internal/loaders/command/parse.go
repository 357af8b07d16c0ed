package command

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const (
	maxFile      = 1 << 20 // bytes of a file of templates
	maxDepth     = 16
	defaultStart = 30 * time.Minute
)

// ReadFile reads the templates of a file. CodeInvalid names every fault with its line and column; CodeUnavailable when the
// file cannot be read.
func ReadFile(path string) ([]*Template, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, registry.Errorf(registry.CodeUnavailable, "The file of commands cannot be read: %w", err)
	}
	return Parse(b)
}

// Parse reads templates from YAML. All of them are good, or there is an error of CodeInvalid with every fault.
func Parse(b []byte) ([]*Template, error) {
	p := &parser{}
	bad := func(fields ...registry.FieldError) error {
		return &registry.Error{Code: registry.CodeInvalid, Op: "command.Parse", Msg: "The file of commands is not valid", Fields: fields, Malformed: true}
	}
	if len(b) > maxFile {
		return nil, bad(registry.FieldError{Field: "commands", Msg: fmt.Sprintf("take %d bytes; at most %d are read", len(b), maxFile)})
	}
	loader, err := yaml.NewLoader(bytes.NewReader(b), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		return nil, bad(registry.FieldError{Field: "commands", Msg: err.Error()})
	}
	var root yaml.Node
	if err := loader.Load(&root); err != nil {
		f := registry.FieldError{Field: "commands", Msg: "are not YAML: " + err.Error()}
		var le *yaml.LoadError
		if errors.As(err, &le) {
			f.Line, f.Column = le.Mark.Line, le.Mark.Column
		}
		return nil, bad(f)
	}
	doc := &root
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		doc = doc.Content[0]
	}
	var out []*Template
	p.mapping(doc, "", map[string]func(*yaml.Node, string){
		"commands": func(n *yaml.Node, at string) {
			p.list(n, at, func(n *yaml.Node, at string) {
				if t := p.template(n, at); t != nil {
					if slices.ContainsFunc(out, func(o *Template) bool { return o.Name == t.Name }) {
						p.bad(n, at+".name", "is the second command named %s", t.Name)
					}
					out = append(out, t)
				}
			})
		},
	}, "commands")
	if len(p.errs) > 0 {
		return nil, bad(p.errs...)
	}
	return out, nil
}

// parser walks the nodes of a document and collects what is wrong with them.
type parser struct{ errs []registry.FieldError }

func (p *parser) bad(n *yaml.Node, at, format string, args ...any) {
	p.errs = append(p.errs, registry.FieldError{Field: strings.TrimPrefix(at, "."), Msg: fmt.Sprintf(format, args...), Line: n.Line, Column: n.Column})
}

func (p *parser) mapping(n *yaml.Node, at string, fields map[string]func(*yaml.Node, string), required ...string) {
	if n.Kind != yaml.MappingNode {
		p.bad(n, at, "must be a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		f, ok := fields[key.Value]
		switch {
		case !ok:
			p.bad(key, at+"."+key.Value, "is not known here")
		case seen[key.Value]:
			p.bad(key, at+"."+key.Value, "is given twice")
		default:
			f(value, at+"."+key.Value)
		}
		seen[key.Value] = true
	}
	for _, r := range required {
		if !seen[r] {
			p.bad(n, at+"."+r, "is required")
		}
	}
}

func (p *parser) list(n *yaml.Node, at string, each func(*yaml.Node, string)) {
	if n.Kind != yaml.SequenceNode {
		p.bad(n, at, "must be a list")
		return
	}
	for i, item := range n.Content {
		each(item, fmt.Sprintf("%s[%d]", at, i))
	}
}

// text reads a scalar as it is written: a port of 8000 is as good as "8000".
func (p *parser) text(n *yaml.Node, at string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.bad(n, at, "must be a text")
		return ""
	}
	if strings.ContainsRune(n.Value, 0) {
		p.bad(n, at, "must not hold a zero byte")
	}
	return n.Value
}

func (p *parser) texts(n *yaml.Node, at string) []string {
	out := []string{}
	p.list(n, at, func(n *yaml.Node, at string) { out = append(out, p.text(n, at)) })
	return out
}

func (p *parser) pattern(n *yaml.Node, at string) *regexp.Regexp {
	re, err := regexp.Compile(p.text(n, at))
	if err != nil {
		p.bad(n, at, "is not a regular expression: %v", err)
		return regexp.MustCompile(`\A\z`)
	}
	return re
}

func choice[S ~string](p *parser, n *yaml.Node, at string, of []S) S {
	s := S(p.text(n, at))
	if !slices.Contains(of, s) {
		names := make([]string, len(of))
		for i, o := range of {
			names[i] = string(o)
		}
		p.bad(n, at, "must be one of %s, not %q", strings.Join(names, ", "), s)
	}
	return s
}

func choices[S ~string](p *parser, n *yaml.Node, at string, of []S) []S {
	var out []S
	p.list(n, at, func(n *yaml.Node, at string) { out = append(out, choice(p, n, at, of)) })
	return out
}

var (
	goodName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	envName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	signals  = map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT, "SIGHUP": syscall.SIGHUP, "SIGQUIT": syscall.SIGQUIT, "SIGUSR1": syscall.SIGUSR1, "SIGUSR2": syscall.SIGUSR2}
	allAPIs  = []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings}
)

func (p *parser) template(n *yaml.Node, at string) *Template {
	t := &Template{Model: "${MODEL_ID}", Health: "/health", StartTimeout: defaultStart, StopSignal: syscall.SIGTERM,
		APIs: allAPIs[:2], Devices: []registry.Device{registry.DeviceCUDA, registry.DeviceCPU}}
	var argv, env, model *yaml.Node
	before := len(p.errs)
	p.mapping(n, at, map[string]func(*yaml.Node, string){
		"name": func(n *yaml.Node, at string) {
			if t.Name = p.text(n, at); !goodName.MatchString(t.Name) {
				p.bad(n, at, "must be lower-case letters, digits, dashes and underscores, at most 64")
			}
		},
		"title":  func(n *yaml.Node, at string) { t.Title = p.text(n, at) },
		"argv":   func(n *yaml.Node, _ string) { argv = n },
		"env":    func(n *yaml.Node, _ string) { env = n },
		"model":  func(n *yaml.Node, _ string) { model = n },
		"params": func(n *yaml.Node, at string) { t.Params = p.params(n, at) },
		"health": func(n *yaml.Node, at string) {
			if t.Health = p.text(n, at); !strings.HasPrefix(t.Health, "/") || strings.ContainsAny(t.Health, " \t\r\n") {
				p.bad(n, at, "must be a path that begins with a slash")
			}
		},
		"start_timeout": func(n *yaml.Node, at string) {
			d, err := time.ParseDuration(p.text(n, at))
			if t.StartTimeout = d; err != nil || d < time.Second || d > 24*time.Hour {
				p.bad(n, at, "must be a duration from 1s to 24h, such as 10m")
			}
		},
		"stop_signal": func(n *yaml.Node, at string) {
			s, ok := signals[p.text(n, at)]
			if t.StopSignal = s; !ok {
				p.bad(n, at, "must be SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 or SIGUSR2")
			}
		},
		"apis":    func(n *yaml.Node, at string) { t.APIs = choices(p, n, at, allAPIs) },
		"formats": func(n *yaml.Node, at string) { t.Formats = choices(p, n, at, registry.Formats) },
		"devices": func(n *yaml.Node, at string) {
			t.Devices = choices(p, n, at, []registry.Device{registry.DeviceCUDA, registry.DeviceCPU})
		},
		"progress": func(n *yaml.Node, at string) { t.Progress = p.progress(n, at) },
		"failures": func(n *yaml.Node, at string) { t.Failures = p.failures(n, at) },
	}, "name", "argv", "formats")
	// Last, when the parameters are known that they may name.
	if env != nil {
		t.Env = p.env(t, env, at+".env")
	}
	if argv != nil {
		t.Argv = p.argv(t, argv, at+".argv")
	}
	if model != nil {
		t.Model = p.text(model, at+".model")
		p.known(t, model, at+".model", t.Model, true)
	}
	for _, l := range []struct {
		name string
		n    int
	}{{"apis", len(t.APIs)}, {"formats", len(t.Formats)}, {"devices", len(t.Devices)}} {
		if l.n == 0 && len(p.errs) == before {
			p.bad(n, at+"."+l.name, "must not be empty")
		}
	}
	if t.Title == "" {
		t.Title = t.Name
	}
	if len(p.errs) > before {
		return nil
	}
	return t
}

// known reports the placeholders that mean nothing, and the key where everybody could read it.
func (p *parser) known(t *Template, n *yaml.Node, at, s string, public bool) {
	for _, u := range t.unknown(s) {
		p.bad(n, at, "names the placeholder %q, which there is not; there are %s and ${param.NAME} for a parameter of the command", u, strings.Join(placeholders, ", "))
	}
	if public && strings.Contains(s, "${"+phKey+"}") {
		p.bad(n, at, "would show the key to every user of the machine; put ${API_KEY} into env")
	}
}

func (p *parser) argv(t *Template, n *yaml.Node, at string) []arg {
	var out []arg
	usesPort := false
	p.list(n, at, func(n *yaml.Node, at string) {
		var a arg
		if n.Kind == yaml.MappingNode {
			p.mapping(n, at, map[string]func(*yaml.Node, string){
				"if": func(n *yaml.Node, at string) {
					if a.only = p.text(n, at); !t.knows(a.only) {
						p.known(t, n, at, "${"+a.only+"}", false)
					}
				},
				"args": func(n *yaml.Node, at string) { a.args = p.texts(n, at) },
			}, "if", "args")
		} else {
			a.args = []string{p.text(n, at)}
		}
		for _, s := range a.args {
			p.known(t, n, at, s, true)
			usesPort = usesPort || strings.Contains(s, "${"+phPort+"}")
		}
		out = append(out, a)
	})
	switch {
	case len(out) == 0 || len(out[0].args) == 0:
		p.bad(n, at, "must begin with a program")
	case out[0].only != "" || placeholder.MatchString(out[0].args[0]) || out[0].args[0] == "":
		p.bad(n, at+"[0]", "must be a program's name, not one that a model could change")
	case strings.Contains(out[0].args[0], "/") && !filepath.IsAbs(out[0].args[0]):
		p.bad(n, at+"[0]", "must be an absolute path, or a name that is looked for on the PATH")
	case !usesPort && !t.envUsesPort():
		p.bad(n, at, "must tell the program ${PORT}, here or in env")
	}
	return out
}

func (t *Template) envUsesPort() bool {
	return slices.ContainsFunc(t.Env, func(v variable) bool { return strings.Contains(v.value, "${"+phPort+"}") })
}

func (p *parser) env(t *Template, n *yaml.Node, at string) []variable {
	var out []variable
	if n.Kind != yaml.MappingNode {
		p.bad(n, at, "must be a mapping of names to values")
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		v := variable{key.Value, p.text(value, at+"."+key.Value)}
		if !envName.MatchString(v.name) || strings.HasPrefix(v.name, "LLMM_") {
			p.bad(key, at+"."+v.name, "is no name of a variable that a command may have")
		}
		p.known(t, value, at+"."+v.name, v.value, false)
		out = append(out, v)
	}
	return out
}

func (p *parser) params(n *yaml.Node, at string) []param {
	var out []param
	p.list(n, at, func(n *yaml.Node, at string) {
		q := param{}
		kind := ""
		p.mapping(n, at, map[string]func(*yaml.Node, string){
			"name": func(n *yaml.Node, at string) {
				if q.Name = p.text(n, at); !goodName.MatchString(q.Name) || q.Name == "template" {
					p.bad(n, at, "must be lower-case letters, digits, dashes and underscores, and not template")
				}
			},
			"help": func(n *yaml.Node, at string) { q.Help = p.text(n, at) },
			"type": func(n *yaml.Node, at string) {
				kind = choice(p, n, at, []string{"text", "int", "number", "bool", "choice"})
			},
			"choices": func(n *yaml.Node, at string) { q.Opts = p.texts(n, at) },
			"min":     func(n *yaml.Node, at string) { q.Min = p.number(n, at) },
			"max":     func(n *yaml.Node, at string) { q.Max = p.number(n, at) },
			"default": func(n *yaml.Node, at string) { q.def = p.text(n, at) },
			"pattern": func(n *yaml.Node, at string) {
				if q.pattern = p.pattern(n, at); q.pattern != nil {
					q.pattern = regexp.MustCompile(`^(?:` + q.pattern.String() + `)$`)
				}
			},
		}, "name", "type", "help")
		q.Kind = map[string]registry.FieldKind{"text": registry.KindString, "number": registry.KindString, "int": registry.KindInt, "bool": registry.KindBool, "choice": registry.KindEnum}[kind]
		q.Number = kind == "number"
		switch {
		case kind == "choice" && len(q.Opts) == 0:
			p.bad(n, at+".choices", "is required with type choice")
		case kind != "choice" && len(q.Opts) > 0:
			p.bad(n, at+".choices", "needs type choice")
		case kind != "text" && q.pattern != nil:
			p.bad(n, at+".pattern", "needs type text")
		case q.Max < q.Min:
			p.bad(n, at+".max", "must not be below min")
		}
		if msg := q.refuses(q.def); q.def != "" && msg != "" {
			p.bad(n, at+".default", "%s", msg)
		}
		if slices.ContainsFunc(out, func(o param) bool { return o.Name == q.Name }) {
			p.bad(n, at+".name", "is the second parameter named %s", q.Name)
		}
		out = append(out, q)
	})
	return out
}

func (p *parser) number(n *yaml.Node, at string) int64 {
	i, err := strconv.ParseInt(p.text(n, at), 10, 64)
	if err != nil {
		p.bad(n, at, "must be a whole number")
	}
	return i
}

func (p *parser) progress(n *yaml.Node, at string) []*regexp.Regexp {
	var out []*regexp.Regexp
	p.list(n, at, func(n *yaml.Node, at string) {
		re := p.pattern(n, at)
		if g := re.NumSubexp(); g != 1 && g != 2 {
			p.bad(n, at, "must have one group (per cent) or two (done and total)")
		}
		out = append(out, re)
	})
	return out
}

// kinds are the diagnoses that a template may give.
var kinds = []registry.FailureKind{registry.FailureOutOfMemory, registry.FailureMissingFile, registry.FailureUnsupportedArch, registry.FailureEngineMissing,
	registry.FailurePort, registry.FailureCrash, registry.FailureCorruptFile, registry.FailureParameter}

func (p *parser) failures(n *yaml.Node, at string) []httpengine.Cause {
	var out []httpengine.Cause
	p.list(n, at, func(n *yaml.Node, at string) {
		c := httpengine.Cause{}
		p.mapping(n, at, map[string]func(*yaml.Node, string){
			"pattern": func(n *yaml.Node, at string) { c.Pattern = p.pattern(n, at) },
			"kind":    func(n *yaml.Node, at string) { c.Kind = choice(p, n, at, kinds) },
			"message": func(n *yaml.Node, at string) { c.Msg = p.text(n, at) },
			"hint":    func(n *yaml.Node, at string) { c.Hint = p.text(n, at) },
		}, "pattern", "kind", "message", "hint")
		out = append(out, c)
	})
	return out
}
