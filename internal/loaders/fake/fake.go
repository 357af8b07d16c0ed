// Package fake is the loader of cmd/fakeengine, a program that behaves like an engine without knowing a model. It
// takes any source and format, and its custom_loader_params choose how the engine fails.
package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Name is the loader's name in a model's engine field.
const Name = "fake"

// Options say where the engine is and how its processes are tagged.
type Options struct {
	Path      string // the fakeengine binary
	Socket    bool   // it listens at a socket instead of a port
	TagPrefix string // the installation; see process.FindTagged
	Logger    *slog.Logger
}

// Loader drives cmd/fakeengine.
type Loader struct{ o Options }

// New returns the loader. It looks at nothing yet.
func New(o Options) *Loader { return &Loader{o: o} }

// The faults that the parameter fault chooses from.
var faults = []string{"none", "hang_loading", "crash_loading", "oom_loading", "corrupt", "unsupported", "crash_ready", "crash_request", "refuse_health", "endless_log"}

var table = []params.Spec{
	{Param: loaders.Param{Name: "steps", Kind: registry.KindInt, Help: "Steps of loading; 4 if not given."}, Min: 1, Max: 100000},
	{Param: loaders.Param{Name: "step_ms", Kind: registry.KindInt, Help: "Milliseconds for each step."}, Max: 3_600_000},
	{Param: loaders.Param{Name: "manual", Kind: registry.KindBool, Help: "Take a step only when told through the control endpoint."}},
	{Param: loaders.Param{Name: "fault", Kind: registry.KindEnum, Opts: faults, Help: "How the engine fails."}},
	{Param: loaders.Param{Name: "at_step", Kind: registry.KindInt, Help: "The step at which a fault of loading happens; 1 if not given."}, Min: 1, Max: 100000},
	{Param: loaders.Param{Name: "memory_mb", Kind: registry.KindInt, Help: "MiB of memory that the engine really takes."}, Max: 1 << 20},
	{Param: loaders.Param{Name: "answer_ms", Kind: registry.KindInt, Help: "Milliseconds before each word of an answer."}, Max: 3_600_000},
	{Param: loaders.Param{Name: "ignore_sigterm", Kind: registry.KindBool, Help: "Go on when asked to end."}},
	{Param: loaders.Param{Name: "grandchild", Kind: registry.KindBool, Help: "Start processes that would stay behind."}},
	{Param: loaders.Param{Name: "embeddings", Kind: registry.KindBool, Help: "Embed instead of chatting."}},
}

// Info says that the fake takes everything.
func (l *Loader) Info() loaders.Info {
	return loaders.Info{
		Name: Name, Title: "Fake engine",
		Sources: registry.SourceTypes, Formats: registry.Formats,
		Devices:      []registry.Device{registry.DeviceCPU, registry.DeviceCUDA},
		APIs:         []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings},
		Params:       params.Infos(table),
		Experimental: true,
		HowToGet:     "Build it from this repository: go build ./cmd/fakeengine",
	}
}

// Check reports the binary, CodeUnavailable if there is none.
func (l *Loader) Check(context.Context) (loaders.Version, error) {
	fi, err := os.Stat(l.o.Path)
	if l.o.Path == "" || err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
		return loaders.Version{}, &registry.Error{Code: registry.CodeUnavailable, Op: "fake.Check", Msg: "The fake engine is not here. " + l.Info().HowToGet}
	}
	return loaders.Version{Version: "fake", Path: l.o.Path, Devices: []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}}, nil
}

// Load starts a fakeengine; see loaders.Loader.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	v, err := params.Read(Name, spec.Model.CustomLoaderParams, table)
	if err != nil {
		return nil, err
	}
	if _, err := l.Check(ctx); err != nil {
		return nil, err
	}
	cfg := l.config()
	if spec.Artifact.Path != "" {
		if err := httpengine.MainFile(cfg, spec.Artifact.Path); err != nil {
			return nil, err
		}
	}
	embeds := v.Bool("embeddings", spec.Artifact.Facts.Embedding)
	cfg.Endpoint = registry.Endpoint{Model: spec.Model.ModelID, APIs: []registry.API{registry.APIChat, registry.APICompletions},
		ContextLength: max(spec.Context, spec.Model.ContextLength), ModelClass: "FakeModel", TokenizerClass: "FakeTokenizer",
		Device: string(spec.Device), DType: "float32", Parameters: fakeParameters, Bytes: 4 * fakeParameters}
	cfg.Warmup = httpengine.API{Path: "/v1/completions", Body: map[string]any{"model": spec.Model.ModelID, "prompt": "Hi", "max_tokens": 1}}
	if embeds {
		cfg.Endpoint.APIs = []registry.API{registry.APIEmbeddings}
		cfg.Warmup = httpengine.API{Path: "/v1/embeddings", Body: map[string]any{"model": spec.Model.ModelID, "input": "Hi"}}
	}
	command := func(key string, at ...string) httpengine.Command {
		return httpengine.Command{Argv: l.argv(spec, v, embeds, at...), Env: append(process.BaseEnv(), "FAKEENGINE_KEY="+key)}
	}
	cfg.Command = func(port int, key string) httpengine.Command {
		return command(key, "--host", "127.0.0.1", "--port", strconv.Itoa(port))
	}
	if l.o.Socket {
		cfg.CommandOnSocket = func(path, key string) httpengine.Command { return command(key, "--socket", path) }
	}
	in, err := httpengine.Load(ctx, cfg, spec, report)
	if err != nil {
		return nil, err
	}
	return in, nil
}

// fakeParameters is what the engine says that its models have.
const fakeParameters = 1 << 20

func (l *Loader) argv(spec loaders.LoadSpec, v params.Values, embeds bool, at ...string) []string {
	argv := append([]string{l.o.Path, "--alias", spec.Model.ModelID, "--fault", v.String("fault", "none")}, at...)
	if spec.Artifact.Path != "" {
		argv = append(argv, "--model", filepath.Clean(spec.Artifact.Path))
	}
	for _, pf := range [][2]string{{"steps", "--steps"}, {"step_ms", "--step-ms"}, {"at_step", "--at-step"}, {"memory_mb", "--memory-mb"}, {"answer_ms", "--answer-ms"}} {
		if n, ok := v.Int(pf[0], 0); ok {
			argv = append(argv, pf[1], strconv.FormatInt(n, 10))
		}
	}
	for _, pf := range [][2]string{{"manual", "--manual"}, {"ignore_sigterm", "--ignore-sigterm"}, {"grandchild", "--grandchild"}} {
		if v.Bool(pf[0], false) {
			argv = append(argv, pf[1])
		}
	}
	if embeds {
		argv = append(argv, "--embeddings")
	}
	return argv
}

// Recover re-attaches to a fakeengine that still runs; see loaders.Recoverer.
func (l *Loader) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	in, err := httpengine.Recover(ctx, l.config(), h)
	if err != nil {
		return nil, err
	}
	return in, nil
}

// Estimate counts memory_mb and the program itself; see loaders.Estimator.
func (l *Loader) Estimate(m registry.Model, a registry.Artifact, _ registry.Device) registry.Footprint {
	f := registry.Footprint{Weights: a.Bytes, Overhead: 16 << 20, Basis: "file size"}
	if v, err := params.Read(Name, m.CustomLoaderParams, table); err == nil {
		if mb, ok := v.Int("memory_mb", 0); ok {
			f.Weights, f.Basis = mb<<20, "memory_mb"
		}
	}
	f.Estimated = f.Weights + f.Overhead
	return f
}

func (l *Loader) config() httpengine.Config {
	return httpengine.Config{Loader: Name, Title: "The fake engine", TagPrefix: l.o.TagPrefix, Logger: l.o.Logger, Parse: parse, Diagnose: diagnose,
		WarmupHint: "If the model embeds text and does not chat, set embeddings: true in custom_loader_params."}
}

var progressLine = regexp.MustCompile(`^fakeengine: progress (\d+)/(\d+)$`)

func parse(line string) (registry.Progress, bool) {
	m := progressLine.FindStringSubmatch(line)
	if m == nil {
		return registry.Progress{}, false
	}
	done, err1 := strconv.ParseInt(m[1], 10, 64)
	total, err2 := strconv.ParseInt(m[2], 10, 64)
	return registry.Progress{Stage: registry.StageWeights, Done: done, Total: total, Unit: registry.UnitTensors}, err1 == nil && err2 == nil
}

var causes = []httpengine.Cause{
	{Kind: registry.FailurePort, Pattern: regexp.MustCompile(`couldn't bind`), Msg: "The port was taken by another program", Hint: "Load the model again."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`out of memory`), Msg: "The fake engine ran out of memory", Hint: "Unload other models, or choose a smaller one."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`failed to open (\S+)`), Msg: "The fake engine cannot open $1", Hint: "Put the file back and load again."},
	{Kind: registry.FailureCorruptFile, Pattern: regexp.MustCompile(`corrupted or incomplete`), Msg: "The weights are damaged or incomplete", Hint: "Fetch them again."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`unknown model architecture: '(\w+)'`), Msg: "The fake engine does not know the architecture $1", Hint: "Use another engine."},
}

func diagnose(tail []string, _ process.Exit) registry.Failure {
	return httpengine.Diagnose(causes, tail)
}

// Control tells a running fakeengine what to do next.
type Control struct {
	base netaddr.Base
	key  string
}

// NewControl returns the control of the engine that a handle belongs to, also while it loads.
func NewControl(h registry.Handle) (*Control, error) {
	var d struct {
		Endpoint registry.Endpoint `json:"endpoint"`
		Key      string            `json:"key"`
	}
	if err := json.Unmarshal(h.Data, &d); err != nil {
		return nil, err
	}
	base, err := netaddr.ParseBase(d.Endpoint.BaseURL)
	return &Control{base: base, key: d.Key}, err
}

// Advance lets a load with manual take n more steps. An error means that the engine does not listen yet, or has ended.
func (c *Control) Advance(ctx context.Context, n int) error {
	return c.post(ctx, fmt.Sprintf("/control/advance?n=%d", n))
}

// Crash makes the engine abort. The connection breaks, so there is an error unless something is wrong.
func (c *Control) Crash(ctx context.Context) error { return c.post(ctx, "/control/crash") }

func (c *Control) post(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base.At(path).String(), nil)
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("Authorization", "Bearer "+c.key)
	resp, err := (&http.Client{Transport: c.base.Transport(&http.Transport{DisableKeepAlives: true})}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %d", path, resp.StatusCode)
	}
	return nil
}
