// Package vllm is the loader of vLLM: safetensors and PyTorch weights on CUDA devices, or on the CPU with a build for it.
package vllm

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/architectures"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Name is the loader's name in a model's engine field.
const Name = "vllm"

const title = "vLLM"

// Options say where the engine may be and how its processes are tagged.
type Options struct {
	Path       string   // the program vllm, or a Python interpreter that has it, from a flag; found if empty
	SearchDirs []string // folders that hold vllm/VERSION/bin/vllm, as Install makes them
	TagPrefix  string   // the installation; see process.FindTagged
	Logger     *slog.Logger
}

// Loader drives `vllm serve`.
type Loader struct {
	o     Options
	found finder
	arch  architectures.Book
}

var (
	_ loaders.Loader    = (*Loader)(nil)
	_ loaders.Recoverer = (*Loader)(nil)
	_ loaders.Estimator = (*Loader)(nil)
)

// New returns the loader. It looks at nothing yet.
func New(o Options) *Loader { return &Loader{o: o} }

// Info says what vLLM can do. It is experimental: on GPUs it was written against vLLM's documentation and never run.
func (l *Loader) Info() loaders.Info {
	return loaders.Info{
		Name: Name, Title: title,
		Sources:  []registry.SourceType{registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3},
		Formats:  []registry.Format{registry.FormatSafetensors, registry.FormatTransformersPT},
		Devices:  []registry.Device{registry.DeviceCUDA, registry.DeviceCPU},
		APIs:     []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings},
		Params:   params.Infos(table),
		CanSleep: true, Experimental: true,
		HowToGet: "Run `llmm engine install vllm` (gigabytes; needs python3 with venv), or put vllm on the PATH.",
	}
}

// Check finds the engine, its version and what it can use.
func (l *Loader) Check(ctx context.Context) (loaders.Version, error) {
	p, err := l.program(ctx)
	if err != nil {
		return loaders.Version{}, err
	}
	return loaders.Version{Version: p.version, Path: p.path, Devices: p.devices()}, nil
}

// Load starts a server for the model; see loaders.Loader.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	v, err := params.Read(Name, spec.Model.CustomLoaderParams, table)
	if err != nil {
		return nil, err
	}
	if err := checkModel(spec, v); err != nil {
		return nil, err
	}
	cfg := l.config(spec.LogPath)
	if err := httpengine.MainFile(cfg, spec.Artifact.Path); err != nil {
		return nil, err
	}
	if spec.Model.TokenizerPath, err = loaders.TokenizerPath(spec, loaders.ArtifactFolder(spec.Artifact)); err != nil {
		return nil, err
	}
	p, err := l.program(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(p.devices(), spec.Device) {
		return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Load", Msg: fmt.Sprintf(
			"The vLLM %s at %s is not built for %s. Install one that is (`llmm engine install vllm`), or choose another device_preference", p.version, p.path, spec.Device)}
	}
	tokens := contextOf(spec)
	cfg.Endpoint = registry.Endpoint{Model: spec.Model.ModelID, APIs: []registry.API{registry.APIChat, registry.APICompletions},
		ContextLength: tokens, ModelClass: "vllm:" + spec.Artifact.Facts.Architecture, TokenizerClass: title}
	cfg.Warmup = httpengine.API{Path: "/v1/completions", Body: map[string]any{"model": spec.Model.ModelID, "prompt": "Hi", "max_tokens": 1}}
	if embedding(spec, v) {
		cfg.Endpoint.APIs = []registry.API{registry.APIEmbeddings}
		cfg.Warmup = httpengine.API{Path: "/v1/embeddings", Body: map[string]any{"model": spec.Model.ModelID, "input": "Hi"}}
	}
	if _, err := p.shim(spec.Dir); err != nil {
		return nil, err
	}
	cfg.Command = func(port int, key string) httpengine.Command {
		extra, err := p.shim(spec.Dir) // again: an attempt on another port has tidied it away
		if err != nil {
			extra = nil // the engine says what it lacks
		}
		return httpengine.Command{Argv: argv(p, spec, v, tokens, port), Env: environ(spec, v, tokens, key, extra)}
	}
	book := &sharedBook{prefix: l.o.TagPrefix, instance: spec.InstanceID, dir: spec.Dir}
	cfg.Asked = func(int) { book.look(false) }
	in, err := httpengine.Load(ctx, cfg, spec, report)
	if err != nil {
		tidy(spec.Dir)
		return nil, err
	}
	book.look(true) // after the first answer all of it is there
	return &Instance{Instance: in, level: sleepLevel(v), book: book}, nil
}

// Recover re-attaches to a server that still runs; see loaders.Recoverer.
func (l *Loader) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	var d struct {
		Level int    `json:"sleep_level"`
		Dir   string `json:"dir"`
		Log   string `json:"log_path"`
	}
	if err := json.Unmarshal(h.Data, &d); err != nil {
		d.Level = 0 // it cannot sleep, which is all that is lost
	}
	in, err := httpengine.Recover(ctx, l.config(d.Log), h)
	if err != nil {
		return nil, err
	}
	book := &sharedBook{prefix: l.o.TagPrefix, instance: h.InstanceID, dir: d.Dir}
	book.look(true) // nobody looked while there was no manager
	return &Instance{Instance: in, level: d.Level, book: book}, nil
}

// config is how a server with that log is driven.
func (l *Loader) config(log string) httpengine.Config {
	return httpengine.Config{Loader: Name, Title: title, TagPrefix: l.o.TagPrefix, Logger: l.o.Logger, Parse: parse, Tidy: tidy,
		Diagnose: func(_ []string, exit process.Exit) registry.Failure {
			return diagnose(process.Tail(log, 0, causeLines), exit)
		},
		ActivityPath: "/metrics", Activity: activity,
		WarmupHint: "If the model embeds text and does not chat, set embeddings: true in custom_loader_params."}
}

// tidy removes what vLLM leaves when it is killed: shared memory, and sockets and our shim in the instance's folder.
func tidy(dir string) {
	sweep(dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "engine.log") {
			_ = os.RemoveAll(filepath.Join(dir, e.Name())) // the manager removes the whole folder in the end
		}
	}
}

// Instance is a model in a vLLM server. With sleep_mode it can sleep.
type Instance struct {
	*httpengine.Instance
	level int // of sleep: 1 weights go to main memory, 2 they are dropped and read again; 0 it cannot
	book  *sharedBook
}

var _ loaders.Sleeper = (*Instance)(nil)

// Stop ends the server; see loaders.Instance. What it shares by then is noted first, in case that it must be killed.
func (in *Instance) Stop(ctx context.Context) error {
	in.book.look(true)
	return in.Instance.Stop(ctx)
}

// Handle is that of the process, with the level of sleep.
func (in *Instance) Handle() registry.Handle {
	h := in.Instance.Handle()
	var d map[string]any
	if in.level == 0 || json.Unmarshal(h.Data, &d) != nil {
		return h
	}
	d["sleep_level"] = in.level
	if b, err := json.Marshal(d); err == nil {
		h.Data = b
	}
	return h
}

// Sleep gives the GPU's memory back and keeps the process: with level 1 the weights wait in main memory, with level 2 they
// are dropped. CodeUnsupported if the model was loaded without sleep_mode; CodeUnavailable if the engine refuses.
func (in *Instance) Sleep(ctx context.Context) error {
	if in.level == 0 {
		return registry.Errorf(registry.CodeUnsupported, "%s was loaded without sleep_mode; set it to true in custom_loader_params and load the model again", in.Endpoint().Model)
	}
	return in.tell(ctx, fmt.Sprintf("/sleep?level=%d", in.level), nil)
}

// Wake brings the weights back. CodeUnavailable if the engine cannot, for example because the memory is taken meanwhile.
func (in *Instance) Wake(ctx context.Context) error {
	if in.level != 2 {
		return in.tell(ctx, "/wake_up", nil)
	}
	// Room for the weights first, then the weights, and the cache last: so that both are never there twice.
	if err := in.tell(ctx, "/wake_up?tags=weights", nil); err != nil {
		return err
	}
	if err := in.tell(ctx, "/collective_rpc", map[string]any{"method": "reload_weights"}); err != nil {
		return err
	}
	if err := in.tell(ctx, "/wake_up?tags=kv_cache", nil); err != nil {
		return err
	}
	return in.tell(ctx, "/reset_prefix_cache", nil)
}

// WhyAwake says why the model cannot sleep; see loaders.Awake.
func (in *Instance) WhyAwake() string {
	if in.level > 0 {
		return ""
	}
	return "vLLM lets a model sleep only on a GPU and with sleep_mode: true in its loader settings, which this one was loaded without"
}

// tell sends a command to the engine.
func (in *Instance) tell(ctx context.Context, path string, body any) error {
	code, err := in.Post(ctx, httpengine.API{Path: path, Body: body})
	if code == http.StatusOK {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "vllm", Msg: fmt.Sprintf("vLLM refused %s: %v", strings.TrimPrefix(path, "/"), err), Err: err}
}
