// Package ollama is the loader of Ollama: GGUF weights, names of an Ollama library, and folders of safetensors or PyTorch
// files that Ollama converts. Of PyTorch's files it gets safetensors that we make, see package pytorch: the server of 0.33
// takes none, and its own reader of them mistakes shapes. It uses the server that the admin names, and runs an Ollama of
// its own otherwise.
//
// Of its own it runs one for each instance: a child process on a private port, with a folder of models that holds this
// one model and nothing else, see view. So a model's processes, memory, log and end are its own, as with the other
// engines; docs/adr/0009 says why. A server that somebody else runs is shared by all: see shared.
//
// An Ollama asks nobody for a key. The child listens on 127.0.0.1 alone, but every user of this machine may talk to it
// while the model is loaded; they can use the model, and delete nothing but links in the instance's own folder.
package ollama

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/architectures"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Name is the loader's name in a model's engine field.
const Name = "ollama"

// Options say where Ollama may be, and where its models are.
type Options struct {
	// Host is the address of a running server, as OLLAMA_HOST has it: host, host:port or a URL. It is used for every
	// model. "" runs one for each instance.
	Host string
	Path string // the program, from a flag; found if empty
	// SearchDirs are folders that hold ollama/VERSION/bin/ollama, as Install makes them, and llamacpp/VERSION/llama-server.
	SearchDirs []string
	// ModelsDir is the folder of models in Ollama's layout that the source ollama keeps; converted models are kept there,
	// too. Required.
	ModelsDir string
	// Insecure are registries (host or host:port) that a running server may fetch from without encryption.
	Insecure  []string
	TagPrefix string // the installation; see process.FindTagged
	Logger    *slog.Logger
}

// Loader drives Ollama.
type Loader struct {
	o     Options
	known programs
	here  func(ctx context.Context, host string) bool // netaddr.Here
	arch  architectures.Book
}

var (
	_ loaders.Loader    = (*Loader)(nil)
	_ loaders.Recoverer = (*Loader)(nil)
	_ loaders.Estimator = (*Loader)(nil)
)

// New returns the loader. It looks at nothing yet.
func New(o Options) *Loader {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Loader{o: o, here: netaddr.Here}
}

// Info says what Ollama can do.
func (l *Loader) Info() loaders.Info {
	return loaders.Info{
		Name: Name, Title: "Ollama",
		Sources:  []registry.SourceType{registry.SourceOllama, registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3},
		Formats:  []registry.Format{registry.FormatGGUF, registry.FormatSafetensors, registry.FormatTransformersPT},
		Devices:  []registry.Device{registry.DeviceCPU, registry.DeviceCUDA},
		APIs:     []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings},
		Params:   params.Infos(table),
		HowToGet: "Run `llmm engine install ollama` (it builds Ollama; needs Go), install it as https://ollama.com/download says, or name a running one in OLLAMA_HOST.",
		LogNoise: []string{"[GIN", "[GIN-debug]"},
	}
}

// Load loads the model; see loaders.Loader. A model that has to be converted is converted once for each revision and
// quantisation, and kept in ModelsDir.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	v, err := params.Read(Name, spec.Model.CustomLoaderParams, table)
	if err != nil {
		return nil, err
	}
	if err := httpengine.MainFile(l.config(), spec.Artifact.Path); err != nil {
		return nil, err
	}
	w, err := l.weightsOf(spec)
	if err != nil {
		return nil, err
	}
	prog, err := l.find(ctx)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, cancelled(spec)
	}
	if prog.host != nil {
		return l.loadShared(ctx, prog, spec, v, w, report)
	}
	if spec.Device == registry.DeviceCUDA && !slices.Contains(prog.devices, registry.DeviceCUDA) {
		return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Load", Msg: fmt.Sprintf(
			"The Ollama at %s cannot use CUDA: its llama-server knows no such device. Install Ollama's own build, or set device_preference to cpu", prog.path)}
	}
	if w.convert {
		var last registry.Progress
		if w, err = l.converted(ctx, prog, spec, w, func(p registry.Progress) { last = p; report(p) }); err != nil {
			return nil, err
		}
		report = after(last, report)
	}
	return l.loadChild(ctx, prog, spec, v, w, report)
}

// Recover re-attaches to an instance; see loaders.Recoverer.
func (l *Loader) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	if h.Loader == Name && h.PID == 0 {
		return l.recoverShared(ctx, h)
	}
	in, err := httpengine.Recover(ctx, l.config(), h)
	if err != nil {
		return nil, err
	}
	return l.newChild(ctx, in), nil
}

// config is what all of our children have in common.
func (l *Loader) config() httpengine.Config {
	return httpengine.Config{Loader: Name, Title: "Ollama", TagPrefix: l.o.TagPrefix, Logger: l.o.Logger, Diagnose: diagnose,
		HealthPath: "/api/version", Tidy: tidy, Parse: func(string) (registry.Progress, bool) { return registry.Progress{}, false }}
}

// homeOf is the folder in an instance's folder that all files of a child lie in.
func homeOf(dir string) string { return filepath.Join(dir, "ollama") }

func tidy(dir string) { _ = os.RemoveAll(homeOf(dir)) } // what cannot be removed goes with the instance's folder

// loadChild runs an Ollama for this model alone.
func (l *Loader) loadChild(ctx context.Context, prog program, spec loaders.LoadSpec, v params.Values, w weights, report func(registry.Progress)) (loaders.Instance, error) {
	n := spec.Context
	if n <= 0 {
		n = contextFor(spec.Model, spec.Artifact.Facts, v)
	}
	name := nameOf(spec.Model.ModelID)
	cfg := l.config()
	cfg.Endpoint = endpointOf(spec, name, n)
	cfg.Warmup = warmup(spec.Artifact.Facts, name)
	home := homeOf(spec.Dir)
	models := filepath.Join(home, "models")
	cfg.Command = func(port int, _ string) httpengine.Command {
		return httpengine.Command{Argv: []string{prog.path, "serve"}, Env: childEnv(spec, v, home, models, port)}
	}
	cfg.Prepare = func(ctx context.Context, base string, report func(registry.Progress)) error {
		if err := makeView(models, name, w, options(v, spec.Device, n, spec.Artifact.Facts), v); err != nil {
			return failedWith(err, spec.Artifact.Path)
		}
		watch := l.watchWeights(spec, report)
		defer watch()
		return load(ctx, clientOf(base), name, spec.Artifact.Facts.Embedding)
	}
	in, err := httpengine.Load(ctx, cfg, spec, report)
	if err != nil {
		return nil, err
	}
	return l.newChild(ctx, in), nil
}

// load makes Ollama load a model and keep it. An error that a server gave is a *registry.Error; any other says that the
// connection broke.
func load(ctx context.Context, c *api.Client, name string, embeds bool) error {
	forever := &api.Duration{Duration: -1}
	var err error
	if embeds {
		_, err = c.Embed(ctx, &api.EmbedRequest{Model: name, KeepAlive: forever})
	} else {
		err = c.Generate(ctx, &api.GenerateRequest{Model: name, KeepAlive: forever}, func(api.GenerateResponse) error { return nil })
	}
	return explain(err)
}

func endpointOf(spec loaders.LoadSpec, name string, n int) registry.Endpoint {
	f := spec.Artifact.Facts
	ep := registry.Endpoint{Model: name, APIs: []registry.API{registry.APIChat, registry.APICompletions}, ContextLength: n,
		ModelClass: "ollama", TokenizerClass: "ollama"}
	if f.Architecture != "" {
		ep.ModelClass = "ollama:" + f.Architecture
	}
	if f.ContextLength > 0 {
		ep.ContextLength = min(n, f.ContextLength)
	}
	if f.Embedding {
		ep.APIs = []registry.API{registry.APIEmbeddings}
	}
	return ep
}

func warmup(f registry.Facts, name string) httpengine.API {
	if f.Embedding {
		return httpengine.API{Path: "/v1/embeddings", Body: map[string]any{"model": name, "input": "Hi"}}
	}
	// Raw, without the model's template: with the system prompt that some templates bring, a prompt of dozens of tokens would
	// be read, and a load take longer by that.
	return httpengine.API{Path: "/api/generate", Body: map[string]any{"model": name, "prompt": "Hi", "raw": true, "stream": false,
		"keep_alive": -1, "options": map[string]any{"num_predict": 1}}}
}

// nameOf makes a name of Ollama's out of a model_id: llmm/ and what Ollama allows of it.
func nameOf(modelID string) string {
	slug := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, modelID)
	slug = strings.TrimLeft(slug, "-._")
	return "llmm/" + cmp.Or(slug[:min(len(slug), 60)], "model")
}

// childEnv is the environment of an Ollama of ours. Its llama-server gets it, too.
func childEnv(spec loaders.LoadSpec, v params.Values, home, models string, port int) []string {
	env := slices.DeleteFunc(process.BaseEnv(), func(kv string) bool {
		return strings.HasPrefix(kv, "NVIDIA_VISIBLE_DEVICES=") || strings.HasPrefix(kv, "HOME=")
	})
	parallel, _ := v.Int("parallel", 1)
	env = append(env, "HOME="+home, "OLLAMA_MODELS="+models, "OLLAMA_HOST=127.0.0.1:"+strconv.Itoa(port),
		"OLLAMA_KEEP_ALIVE=-1",       // a request does not say how long, and none may end the load
		"OLLAMA_LOAD_TIMEOUT=-1",     // the manager tells what stalls, and ends nothing because of it
		"OLLAMA_MAX_LOADED_MODELS=1", // nobody loads another one into the memory of this one
		"OLLAMA_NUM_PARALLEL="+strconv.FormatInt(parallel, 10),
		"OLLAMA_NOPRUNE=1", "OLLAMA_NO_CLOUD=1", "OLLAMA_VULKAN=0", "GIN_MODE=release",
		// The plan has promised bytes: nothing is moved or shrunk to fit elsewhere, and prompts of idle requests are not kept
		// in up to 8 GiB of memory that nobody has reserved.
		"LLAMA_ARG_FIT=off", "LLAMA_ARG_CACHE_RAM=0", "LLAMA_ARG_CTX_CHECKPOINTS="+strconv.Itoa(checkpoints))
	if t := v.String("cache_type", ""); t != "" {
		env = append(env, "OLLAMA_KV_CACHE_TYPE="+t)
	}
	switch v.String("flash_attn", "auto") {
	case "on":
		env = append(env, "OLLAMA_FLASH_ATTENTION=1")
	case "off":
		env = append(env, "OLLAMA_FLASH_ATTENTION=0")
	}
	gpus := ""
	if spec.Device == registry.DeviceCUDA {
		gpus = strings.Join(spec.GPUUUIDs, ",")
	}
	if spec.Device != registry.DeviceCUDA || gpus != "" {
		env = append(env, "CUDA_VISIBLE_DEVICES="+gpus)
	}
	return env
}

// straight goes to Ollama without a proxy of the environment, and leaves no connection behind.
var straight = &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}

func clientOf(base string) *api.Client {
	u, err := url.Parse(base)
	if err != nil { // it is an address that we made or have parsed before
		u = &url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	}
	return api.NewClient(u, straight)
}

// listed returns what ps says of a loaded model. CodeUnavailable when it is not loaded, or the server does not answer.
func listed(ctx context.Context, c *api.Client, name string) (api.ProcessModelResponse, error) {
	ps, err := c.ListRunning(ctx)
	if err != nil {
		return api.ProcessModelResponse{}, &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Health", Msg: "Ollama does not answer: " + process.Scrub(err.Error()), Err: err}
	}
	for _, m := range ps.Models {
		if strings.TrimSuffix(m.Name, ":latest") == strings.TrimSuffix(name, ":latest") {
			return m, nil
		}
	}
	return api.ProcessModelResponse{}, &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Health", Err: errNotLoaded,
		Msg: fmt.Sprintf("Ollama has %s not loaded any more; load the model again", name)}
}

func cancelled(spec loaders.LoadSpec) error {
	f := &registry.Failure{Kind: registry.FailureCancelled, Msg: fmt.Sprintf("Loading %s with Ollama was cancelled", spec.Model.ModelID)}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + Name, Msg: f.Msg, Failure: f, Err: context.Canceled}
}
