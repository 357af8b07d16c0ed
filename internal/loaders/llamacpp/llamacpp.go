// Package llamacpp is the loader of llama.cpp's server: GGUF weights on the CPU or on CUDA devices.
package llamacpp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
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
const Name = "llamacpp"

// goodbye ends a server that was started in child mode; see argv.
const goodbye = "cmd_router_to_child:exit"

// Options say where the engine may be and how its processes are tagged.
type Options struct {
	Path       string   // the program, from a flag; found if empty
	SearchDirs []string // folders that hold llamacpp/VERSION/llama-server, as Install makes them
	Archive    string   // the archive of the sources that Install builds; it downloads them if empty
	TagPrefix  string   // the installation; see process.FindTagged
	Logger     *slog.Logger
}

// Loader drives llama-server.
type Loader struct {
	o     Options
	known builds
	arch  architectures.Book
}

// New returns the loader. It looks at nothing yet.
func New(o Options) *Loader { return &Loader{o: o} }

// Info says what llama.cpp can do.
func (l *Loader) Info() loaders.Info {
	return loaders.Info{
		Name: Name, Title: "llama.cpp",
		Sources:  []registry.SourceType{registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3, registry.SourceOllama},
		Formats:  []registry.Format{registry.FormatGGUF},
		Devices:  []registry.Device{registry.DeviceCPU, registry.DeviceCUDA},
		APIs:     []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings},
		Params:   params.Infos(table),
		HowToGet: "Run `llmm engine install llamacpp` (it builds llama.cpp's server; needs cmake, g++ and python3-pip), or put llama-server on the PATH.",
		LogNoise: []string{statePrefix},
	}
}

// Check finds the engine and asks its version and devices. The answer is kept until the file changes.
func (l *Loader) Check(ctx context.Context) (loaders.Version, error) {
	b, err := l.build(ctx)
	if err != nil {
		return loaders.Version{}, err
	}
	return loaders.Version{Version: b.version, Path: b.path, Devices: slices.Clone(b.devices)}, nil
}

// Load starts a server for the model; see loaders.Loader.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	v, err := params.Read(Name, spec.Model.CustomLoaderParams, table)
	if err != nil {
		return nil, err
	}
	cfg := l.config()
	if err := httpengine.MainFile(cfg, spec.Artifact.Path); err != nil {
		return nil, err
	}
	file, err := weightsFile(spec.Artifact)
	if err != nil {
		return nil, err
	}
	b, err := l.build(ctx)
	if err != nil {
		return nil, err
	}
	if spec.Device == registry.DeviceCUDA && !slices.Contains(b.devices, registry.DeviceCUDA) {
		return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Load", Msg: fmt.Sprintf(
			"The llama-server at %s cannot use CUDA. Install one that can (`llmm engine install llamacpp` on a machine with nvcc), or set device_preference to cpu", b.path)}
	}
	embeds := embedding(spec.Artifact.Facts, v)
	n := spec.Context
	if n <= 0 {
		n = ContextFor(spec.Model, spec.Artifact.Facts)
	}
	cfg.Endpoint = registry.Endpoint{Model: spec.Model.ModelID, APIs: []registry.API{registry.APIChat, registry.APICompletions},
		ContextLength: padContext(n), ModelClass: modelClass(spec.Artifact.Facts), TokenizerClass: "llama.cpp"}
	cfg.Warmup = httpengine.API{Path: "/v1/completions", Body: map[string]any{"model": spec.Model.ModelID, "prompt": "Hi", "max_tokens": 1}}
	if embeds {
		cfg.Endpoint.APIs = []registry.API{registry.APIEmbeddings}
		cfg.Warmup = httpengine.API{Path: "/v1/embeddings", Body: map[string]any{"model": spec.Model.ModelID, "input": "Hi"}}
		if v.String("pooling", "") == "none" { // the OpenAI route refuses token vectors
			cfg.Warmup.Path = "/embeddings"
		}
	}
	warmup := cfg.Warmup
	cfg.Describe = func(report []byte, ep *registry.Endpoint) httpengine.API { describe(report, ep); return warmup }
	cfg.Parse = newParser(spec.Artifact.Facts.WeightBytes).parse
	cfg.Command = func(port int, key string) httpengine.Command {
		return httpengine.Command{Argv: argv(b, spec, v, file, n, port), Env: environ(spec, key)}
	}
	in, err := httpengine.Load(ctx, cfg, spec, report)
	if err != nil {
		return nil, err
	}
	return in, nil
}

// Recover re-attaches to a server that still runs; see loaders.Recoverer.
func (l *Loader) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	in, err := httpengine.Recover(ctx, l.config(), h)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (l *Loader) config() httpengine.Config {
	return httpengine.Config{Loader: Name, Title: "llama.cpp", TagPrefix: l.o.TagPrefix, Goodbye: goodbye, Logger: l.o.Logger, Diagnose: diagnose,
		ActivityPath: "/metrics", Activity: activity, ReportPath: "/v1/models", Describe: describe,
		WarmupHint: "If the model embeds text and does not chat, set embeddings: true in custom_loader_params."}
}

// describe completes the endpoint from the server's list of models, of which there is one. Where it runs is not in it.
func describe(report []byte, ep *registry.Endpoint) httpengine.API {
	var r struct {
		Data []struct {
			Meta struct {
				Parameters int64  `json:"n_params"`
				Bytes      int64  `json:"size"`
				DType      string `json:"ftype"`
			} `json:"meta"`
		} `json:"data"`
	}
	if json.Unmarshal(report, &r) == nil && len(r.Data) > 0 { // what is missing stays empty
		m := r.Data[0].Meta
		ep.DType, ep.Parameters, ep.Bytes = m.DType, m.Parameters, m.Bytes
	}
	return httpengine.API{}
}

// modelClass is what stands for the guide's type(model_object).
func modelClass(f registry.Facts) string {
	if f.Architecture == "" {
		return "llama.cpp"
	}
	return "llama.cpp:" + f.Architecture
}

// weightsFile returns the file that -m takes. In a folder that is the only GGUF, or the first shard of the only split
// one; what belongs to a vision part (mmproj) is not the model.
func weightsFile(a registry.Artifact) (string, error) {
	fi, err := os.Stat(a.Path)
	if err != nil || !fi.IsDir() {
		return a.Path, nil //nolint:nilerr // MainFile has told it already; the engine would tell it again
	}
	found, err := filepath.Glob(filepath.Join(escapeGlob(a.Path), "*.gguf"))
	if err != nil {
		return "", err
	}
	for _, f := range a.Files {
		p := filepath.Join(a.Path, filepath.FromSlash(f.Path))
		if strings.HasSuffix(f.Path, ".gguf") && filepath.IsLocal(filepath.FromSlash(f.Path)) && !slices.Contains(found, p) {
			found = append(found, p)
		}
	}
	found = slices.DeleteFunc(found, func(p string) bool {
		base := filepath.Base(p)
		m := shard.FindStringSubmatch(base)
		return strings.HasPrefix(base, "mmproj") || m != nil && m[1] != "00001"
	})
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		f := &registry.Failure{Kind: registry.FailureMissingFile, Msg: "There is no GGUF file in " + a.Path, Hint: "Point source_path to a .gguf file, or to a folder that has one."}
		return "", &registry.Error{Code: registry.CodeLoadingFailed, Op: "llamacpp.Load", Msg: f.Msg, Failure: f}
	}
	slices.Sort(found)
	return "", &registry.Error{Code: registry.CodeInvalid, Op: "llamacpp.Load", Msg: "The folder holds more than one model", Fields: []registry.FieldError{{
		Field: "source_path", Msg: fmt.Sprintf("holds %d GGUF models; name one of them, for example %s", len(found), found[0])}}}
}

func escapeGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}

// environ is the engine's environment: ours without our secrets, the devices it may see, and its key.
func environ(spec loaders.LoadSpec, key string) []string {
	gpus := ""
	if spec.Device == registry.DeviceCUDA {
		gpus = strings.Join(spec.GPUUUIDs, ",")
	}
	env := slices.DeleteFunc(process.BaseEnv(), func(kv string) bool { return strings.HasPrefix(kv, "NVIDIA_VISIBLE_DEVICES=") })
	env = append(env, "LLAMA_API_KEY="+key,
		// In child mode the server prints its progress as JSON. The port is only used to talk about itself.
		"LLAMA_SERVER_ROUTER_PORT=1")
	if spec.Device == registry.DeviceCPU || gpus != "" {
		env = append(env, "CUDA_VISIBLE_DEVICES="+gpus)
	}
	return env
}
