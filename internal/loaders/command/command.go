// Package command is the loader of any program that answers the OpenAI API at a port: what is run is a template that an
// admin has defined in a file, with places for the port, the model's path and parameters that models may give.
package command

import (
	_ "embed"

	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Name is the loader's name in a model's engine field.
const Name = "command"

// Presets is a file of templates to begin with: llama-server, vLLM, SGLang and Text Generation Inference.
//
//go:embed presets.yaml
var Presets []byte

// Options say which commands there are and how their processes are tagged.
type Options struct {
	Templates []*Template // see ReadFile
	File      string      // where they came from, for people
	TagPrefix string      // the installation; see process.FindTagged
	// WrongHealth is how long a program may answer its health path with 404 before the path is taken for a wrong one; 15
	// seconds if 0. Programs that load first and listen then never do.
	WrongHealth time.Duration
	Logger      *slog.Logger
}

// Loader runs templates.
type Loader struct{ o Options }

var (
	_ loaders.Loader    = (*Loader)(nil)
	_ loaders.Recoverer = (*Loader)(nil)
)

// New returns the loader. It looks at nothing yet.
func New(o Options) *Loader {
	if o.WrongHealth == 0 {
		o.WrongHealth = 15 * time.Second
	}
	return &Loader{o: o}
}

func templateParam(names []string) loaders.Param {
	return loaders.Param{Name: "template", Kind: registry.KindEnum, Opts: names, Help: "Which of the commands that the admin has defined runs the model."}
}

// Info says what all templates together can do. A model has to name the engine and a template.
func (l *Loader) Info() loaders.Info {
	i := loaders.Info{Name: Name, Title: "Command", OnlyNamed: true,
		Sources:  []registry.SourceType{registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3, registry.SourceOllama},
		HowToGet: "Define commands in a YAML file and start the server with --commands FILE; the documentation has some to begin with."}
	var names []string
	for _, t := range l.o.Templates {
		names = append(names, t.Name)
		i.Formats = union(i.Formats, t.Formats)
		i.Devices = union(i.Devices, t.Devices)
		i.APIs = union(i.APIs, t.APIs)
	}
	if len(names) > 0 {
		i.Params = append(i.Params, templateParam(names))
	}
	for _, t := range l.o.Templates {
		for _, p := range t.Params {
			if !slices.ContainsFunc(i.Params, func(q loaders.Param) bool { return q.Name == p.Name }) {
				p.Help = t.Name + ": " + p.Help
				i.Params = append(i.Params, p.Param)
			}
		}
	}
	return i
}

func union[T comparable](a, b []T) []T {
	for _, x := range b {
		if !slices.Contains(a, x) {
			a = append(a, x)
		}
	}
	return a
}

// Check reports the templates. Whether a template's program is there is looked at when a model is loaded with it.
func (l *Loader) Check(context.Context) (loaders.Version, error) {
	if len(l.o.Templates) == 0 {
		return loaders.Version{}, &registry.Error{Code: registry.CodeUnavailable, Op: "command.Check", Msg: "No commands are defined. " + l.Info().HowToGet}
	}
	names := make([]string, len(l.o.Templates))
	for i, t := range l.o.Templates {
		names[i] = t.Name
	}
	return loaders.Version{Version: strings.Join(names, ", "), Path: l.o.File, Devices: l.Info().Devices}, nil
}

// choose returns the template that a model names.
func (l *Loader) choose(m registry.Model) (*Template, error) {
	name, _ := m.CustomLoaderParams["template"].(string)
	var names []string
	for _, t := range l.o.Templates {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	msg := fmt.Sprintf("must name a command; there are %s", strings.Join(names, ", "))
	if len(names) == 0 {
		msg = "names a command, and no admin has defined any"
	}
	return nil, &registry.Error{Code: registry.CodeInvalid, Op: "command.Load", Msg: "The model's command cannot be run", Fields: []registry.FieldError{{Field: "custom_loader_params.template", Msg: msg}}}
}

// The reasons for which a program that runs is given up.
var (
	errNeverAnswered = errors.New("it did not answer in time")
	errWrongPath     = errors.New("its health path does not exist")
)

// Load runs the model's template; see loaders.Loader. A program that does not answer within the template's start_timeout is
// ended: an admin said how long it may take.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	t, err := l.choose(spec.Model)
	if err != nil {
		return nil, err
	}
	given, err := t.read(spec.Model.CustomLoaderParams)
	if err != nil {
		return nil, err
	}
	if err := t.suits(spec); err != nil {
		return nil, err
	}
	cfg := l.config(t.Title)
	if err := httpengine.MainFile(cfg, spec.Artifact.Path); err != nil {
		return nil, err
	}
	if t.uses(phTokenizer) {
		if spec.Model.TokenizerPath, err = loaders.TokenizerPath(spec, loaders.ArtifactFolder(spec.Artifact)); err != nil {
			return nil, err
		}
	}
	program, err := exec.LookPath(t.Argv[0].args[0])
	if err != nil {
		f := &registry.Failure{Kind: registry.FailureEngineMissing, Msg: fmt.Sprintf("The program %s of the command %s cannot be run: %v", t.Argv[0].args[0], t.Name, errors.Unwrap(err)),
			Hint: "Install it, or have an admin correct argv in the file of commands."}
		return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "command.Load", Msg: f.Msg + ". " + f.Hint, Failure: f, Err: err}
	}
	set := t.values(spec, given)
	name := set.fill(t.Model)
	cfg.Endpoint = registry.Endpoint{Model: name, APIs: t.APIs, ContextLength: spec.Context, ModelClass: "command:" + t.Name}
	cfg.Warmup = warmup(t.APIs[0], name)
	cfg.HealthPath, cfg.StopSignal, cfg.Parse = t.Health, t.StopSignal, t.parse
	cfg.Diagnose = func(tail []string, exit process.Exit) registry.Failure {
		return diagnose(slices.Concat(t.Failures, causes), tail, exit)
	}
	cfg.Command = func(port int, key string) httpengine.Command {
		set[phPort], set[phKey] = strconv.Itoa(port), key
		argv := t.argv(set)
		argv[0] = program
		return httpengine.Command{Argv: argv, Env: t.environ(spec, set)}
	}
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer time.AfterFunc(t.StartTimeout, func() { stop(errNeverAnswered) }).Stop()
	cfg.Asked = l.wrongPath(func() { stop(errWrongPath) })
	in, err := httpengine.Load(run, cfg, spec, report)
	if err == nil {
		return in, nil
	}
	if cause := context.Cause(run); ctx.Err() == nil && (errors.Is(cause, errNeverAnswered) || errors.Is(cause, errWrongPath)) {
		return nil, t.gaveUp(spec, cause)
	}
	return nil, err
}

// wrongPath calls give when the program has answered its health path with "there is no such thing" for too long.
func (l *Loader) wrongPath(give func()) func(status int) {
	var since atomic.Int64
	return func(status int) {
		if status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
			since.Store(0)
			return
		}
		now := time.Now().UnixNano()
		if !since.CompareAndSwap(0, now) && now-since.Load() > int64(l.o.WrongHealth) {
			give()
		}
	}
}

func (t *Template) gaveUp(spec loaders.LoadSpec, cause error) error {
	f := &registry.Failure{Kind: registry.FailureCrash, LogTail: process.Tail(spec.LogPath, 0, httpengine.TailLines),
		Msg:  fmt.Sprintf("%s did not answer at %s within %s and was ended", t.Title, t.Health, t.StartTimeout),
		Hint: "Read the log's last lines. If it only is slow, an admin can give the command a longer start_timeout."}
	if errors.Is(cause, errWrongPath) {
		f.Msg = fmt.Sprintf("%s runs and has no %s, so that nobody can tell when it is ready; it was ended", t.Title, t.Health)
		f.Hint = "Have an admin correct health in the file of commands."
	}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "command.Load", Msg: f.Msg, Failure: f, Err: cause}
}

// suits refuses a model that the template is not for.
func (t *Template) suits(spec loaders.LoadSpec) error {
	var errs []registry.FieldError
	if spec.Model.ModelFormat != "" && !slices.Contains(t.Formats, spec.Model.ModelFormat) {
		errs = append(errs, registry.FieldError{Field: "model_format", Msg: fmt.Sprintf("is not one that the command %s loads; it loads %s", t.Name, joined(t.Formats))})
	}
	if strings.HasPrefix(spec.Model.TokenizerPath, "-") {
		errs = append(errs, registry.FieldError{Field: "tokenizer_path", Msg: "must not begin with a dash"}) // it would be taken for a flag
	}
	if !slices.Contains(t.Devices, spec.Device) {
		errs = append(errs, registry.FieldError{Field: "device_preference", Msg: fmt.Sprintf("would be %s, which the command %s does not run on; it runs on %s", spec.Device, t.Name, joined(t.Devices))})
	}
	if len(errs) == 0 {
		return nil
	}
	return &registry.Error{Code: registry.CodeInvalid, Op: "command.Load", Msg: "The model's command cannot run it", Fields: errs}
}

func joined[S ~string](list []S) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ", ")
}

// values are what the placeholders stand for, but for the port and the key.
func (t *Template) values(spec loaders.LoadSpec, given values) values {
	given[phModelPath], given[phModelID], given[phTokenizer], given[phDir] = spec.Artifact.Path, spec.Model.ModelID, spec.Model.TokenizerPath, spec.Dir
	if spec.Context > 0 {
		given[phContext] = strconv.Itoa(spec.Context)
	} else if spec.Model.ContextLength > 0 {
		given[phContext] = strconv.Itoa(spec.Model.ContextLength)
	}
	if spec.Model.TrustRemoteCode {
		given[phTrust] = "true"
	}
	if spec.Device == registry.DeviceCUDA {
		ids := make([]string, len(spec.GPUs))
		for i, g := range spec.GPUs {
			ids[i] = strconv.Itoa(g)
		}
		given[phGPUs], given[phGPUCount] = strings.Join(ids, ","), strconv.Itoa(len(ids))
		if spec.Reserved > 0 && spec.DeviceSize > 0 && len(ids) > 0 {
			share := float64(spec.Reserved) / float64(len(ids)) / float64(spec.DeviceSize)
			given[phFraction] = strconv.FormatFloat(min(0.98, max(0.01, math.Floor(share*1e4)/1e4)), 'f', 4, 64)
		}
	}
	return given
}

// environ is ours without our secrets, the devices that the program may see, and what the template says.
func (t *Template) environ(spec loaders.LoadSpec, set values) []string {
	env := slices.DeleteFunc(process.BaseEnv(), func(kv string) bool { return strings.HasPrefix(kv, "NVIDIA_VISIBLE_DEVICES=") })
	if gpus := strings.Join(spec.GPUUUIDs, ","); spec.Device == registry.DeviceCPU || gpus != "" {
		env = append(env, "CUDA_VISIBLE_DEVICES="+gpus)
	}
	for _, v := range t.Env {
		env = append(env, v.name+"="+set.fill(v.value))
	}
	return env
}

func warmup(api registry.API, model string) httpengine.API {
	switch api {
	case registry.APIEmbeddings:
		return httpengine.API{Path: "/v1/embeddings", Body: map[string]any{"model": model, "input": "Hi"}}
	case registry.APICompletions:
		return httpengine.API{Path: "/v1/completions", Body: map[string]any{"model": model, "prompt": "Hi", "max_tokens": 1}}
	case registry.APIChat, registry.APIFillMask, registry.APIClassify:
	}
	return httpengine.API{Path: "/v1/chat/completions", Body: map[string]any{"model": model, "messages": []any{map[string]any{"role": "user", "content": "Hi"}}, "max_tokens": 1}}
}

// Recover re-attaches to a program that still runs, also when its template is gone; see loaders.Recoverer.
func (l *Loader) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	in, err := httpengine.Recover(ctx, l.config("The command's program"), h)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (l *Loader) config(title string) httpengine.Config {
	return httpengine.Config{Loader: Name, Title: title, TagPrefix: l.o.TagPrefix, Logger: l.o.Logger,
		Parse:    func(string) (registry.Progress, bool) { return registry.Progress{}, false },
		Diagnose: func(tail []string, exit process.Exit) registry.Failure { return diagnose(causes, tail, exit) }}
}

// parse reads progress by the template's patterns.
func (t *Template) parse(line string) (registry.Progress, bool) {
	for _, re := range t.Progress {
		m := re.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		p := registry.Progress{Stage: registry.StageWeights, Total: 100, Unit: registry.UnitPercent, Msg: "Loading"}
		done, err := strconv.ParseFloat(m[1], 64)
		if err != nil || math.IsNaN(done) {
			continue
		}
		if len(m) == 3 {
			total, err := strconv.ParseFloat(m[2], 64)
			if err != nil || math.IsNaN(total) || total <= 0 {
				continue
			}
			done = 100 * done / total
		}
		p.Done = int64(max(0, min(100, done)))
		return p, true
	}
	return registry.Progress{}, false
}

// causes is what programs of all kinds print when they fail. A template's own come first.
var causes = []httpengine.Cause{
	{Kind: registry.FailurePort, Pattern: regexp.MustCompile(`(?i)address already in use|couldn't bind|EADDRINUSE`),
		Msg: "The program could not listen: the port was taken by another one", Hint: "Load the model again; another port is chosen."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)out of memory|std::bad_alloc|cannot allocate memory|OutOfMemoryError`),
		Msg: "The program ran out of memory", Hint: "Give the model a shorter context_length, or unload others."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`(?i)(?:unknown|unsupported) (?:model )?architecture:? *'?([\w-]*)`),
		Msg: "The program does not know the architecture $1", Hint: "Use a newer version of it, or another engine."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`error while loading shared libraries: (\S+):|ModuleNotFoundError: No module named '([^']+)'|No module named (\S+)`),
		Msg: "The program is not installed completely: $1$2$3 is missing", Hint: "Install what is missing for the interpreter that the command's argv names."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`(?i)(unrecognized arguments?: .*|unknown (?:option|argument|flag).*|invalid argument: \S+|flag provided but not defined: \S+|unexpected argument .*)`),
		Msg: "The program refuses its command line: $1", Hint: "Have an admin correct argv in the file of commands."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`(?i)(\S+): No such file or directory|FileNotFoundError: (.*)`),
		Msg: "The program does not find $1$2", Hint: "Fetch or copy the model again, or have an admin correct the command."},
}

func diagnose(table []httpengine.Cause, tail []string, exit process.Exit) registry.Failure {
	if exit.Signal == 9 {
		return registry.Failure{}
	}
	return httpengine.Diagnose(table, tail)
}
