// Package transformers is the loader of models in Hugging Face's formats: a Python worker of ours, carried in this program,
// that runs them with transformers and torch on the CPU or on CUDA devices.
package transformers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
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
const Name = "transformers"

// Options say where Python may be and how the processes are tagged.
type Options struct {
	Python     string   // the interpreter, from a flag; found if empty
	SearchDirs []string // folders that hold transformers/VERSION/bin/python, as Install makes them
	WorkerDir  string   // where the worker is written out; llmm/worker in the user's cache folder if empty
	TagPrefix  string   // the installation; see process.FindTagged
	Logger     *slog.Logger
}

// Loader drives the worker.
type Loader struct {
	o     Options
	known environments
	arch  architectures.Book
}

// New returns the loader. It looks at nothing yet.
func New(o Options) *Loader { return &Loader{o: o} }

// Info says what the worker can do.
func (l *Loader) Info() loaders.Info {
	return loaders.Info{
		Name: Name, Title: "Transformers",
		Sources:  []registry.SourceType{registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3},
		Formats:  []registry.Format{registry.FormatTransformersPT, registry.FormatSafetensors, registry.FormatONNX},
		Devices:  []registry.Device{registry.DeviceCPU, registry.DeviceCUDA},
		APIs:     []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings, registry.APIFillMask, registry.APIClassify},
		Params:   params.Infos(table),
		HowToGet: "Run `llmm engine install transformers` (it makes a Python environment of several gigabytes; needs Python 3.11 or later), or name an interpreter that has torch and transformers with --transformers-python.",
		LogNoise: []string{mark},
	}
}

// Check finds the environment and its versions. The answer is kept until the environment changes.
func (l *Loader) Check(ctx context.Context) (loaders.Version, error) {
	e, err := l.environment(ctx)
	if err != nil {
		return loaders.Version{}, err
	}
	return loaders.Version{Version: e.Transformers + " (torch " + e.Torch + ")", Path: e.path, Devices: e.devices()}, nil
}

// Load starts a worker for the model; see loaders.Loader.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	v, err := params.Read(Name, spec.Model.CustomLoaderParams, table)
	if err != nil {
		return nil, err
	}
	if err := checkMaxMemory(v); err != nil {
		return nil, err
	}
	cfg := l.config()
	if err := httpengine.MainFile(cfg, spec.Artifact.Path); err != nil {
		return nil, err
	}
	if spec.Model.QuantizationBits != 0 && spec.Device == registry.DeviceCPU && spec.Model.ModelFormat != registry.FormatONNX {
		return nil, noBits(spec.Model)
	}
	root, file := spec.Artifact.Path, ""
	if spec.Model.ModelFormat == registry.FormatONNX {
		if err := checkONNX(spec.Model, v); err != nil {
			return nil, err
		}
		root, file = onnxFolder(spec.Artifact)
	}
	tokenizer, err := loaders.TokenizerPath(spec, root)
	if err != nil {
		return nil, err
	}
	e, err := l.environment(ctx)
	if ctx.Err() != nil {
		return nil, cancelled(spec)
	}
	if err != nil {
		return nil, err
	}
	if file != "" && e.ONNXRuntime == "" {
		return nil, noONNXRuntime(e.path)
	}
	if spec.Device == registry.DeviceCUDA && file == "" && e.Cuda == "" {
		return nil, noCUDA(e)
	}
	worker, err := l.worker()
	if err != nil {
		return nil, err
	}
	cfg.Endpoint = registry.Endpoint{Model: spec.Model.ModelID}
	cfg.CommandOnSocket = func(socket, key string) httpengine.Command {
		return httpengine.Command{Argv: argv(e.path, worker), Env: environ(spec, v, settings{Path: root, File: file, TokenizerPath: tokenizer, Socket: socket}, key)}
	}
	in, err := httpengine.Load(ctx, cfg, spec, report)
	if err != nil {
		return nil, err
	}
	return in, nil
}

// noCUDA is told before anything starts: an import of torch would take seconds to find the same.
func noCUDA(e environment) error {
	f := &registry.Failure{Kind: registry.FailureEngineMissing, Msg: fmt.Sprintf("cuda was asked for, and the torch %s of %s is built without CUDA", e.Torch, e.path),
		Hint: "Install a torch with CUDA into it, name another interpreter with --transformers-python, or set device_preference to cpu."}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "transformers.Load", Msg: f.Msg, Failure: f}
}

func cancelled(spec loaders.LoadSpec) error {
	f := &registry.Failure{Kind: registry.FailureCancelled, Msg: fmt.Sprintf("Loading %s with Transformers was cancelled", spec.Model.ModelID)}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "transformers.Load", Msg: f.Msg, Failure: f, Err: context.Canceled}
}

// Recover re-attaches to a worker that still runs; see loaders.Recoverer.
func (l *Loader) Recover(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	in, err := httpengine.Recover(ctx, l.config(), h)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (l *Loader) config() httpengine.Config {
	return httpengine.Config{Loader: Name, Title: "Transformers", TagPrefix: l.o.TagPrefix, Logger: l.o.Logger, Parse: parse, Ready: isReady,
		Diagnose: diagnose, ReportPath: "/stats", Describe: describe, ActivityPath: "/stats", Activity: activity, Tidy: tidy}
}

// home is the folder that the worker's libraries get as theirs, in the instance's own: code that a model brings is copied
// there to be run.
const home = "hf"

func tidy(dir string) {
	for _, name := range []string{home, offload} {
		_ = os.RemoveAll(filepath.Join(dir, name))
	}
}

// offload is where weights go that max_memory leaves no room for.
const offload = "offload"

// settings are what the worker is told, as JSON; see worker/llmm_worker/__main__.py.
type settings struct {
	Socket           string         `json:"socket"`
	Path             string         `json:"path"`
	File             string         `json:"file,omitempty"` // below Path, of an ONNX model
	TokenizerPath    string         `json:"tokenizer_path,omitempty"`
	Format           string         `json:"format"`
	Name             string         `json:"name"`
	Source           string         `json:"source"` // source_path: the name that the model has where it comes from
	Device           string         `json:"device"`
	QuantizationBits int            `json:"quantization_bits,omitempty"`
	ContextLength    int            `json:"context_length,omitempty"`
	TrustRemoteCode  bool           `json:"trust_remote_code"`
	Offload          string         `json:"offload_folder"`
	Params           map[string]any `json:"params"`
}

// environ is the worker's environment: ours without our secrets, the devices it may see, its settings and its key; where
// the files are, s says already. No library in it may reach a network.
func environ(spec loaders.LoadSpec, v params.Values, s settings, key string) []string {
	s.Format, s.Name, s.Source, s.Device = string(spec.Model.ModelFormat), spec.Model.ModelID, spec.Model.SourcePath, string(spec.Device)
	s.QuantizationBits, s.ContextLength = spec.Model.QuantizationBits, ContextFor(spec.Model, spec.Artifact.Facts, spec.Context)
	s.TrustRemoteCode, s.Offload, s.Params = spec.Model.TrustRemoteCode, filepath.Join(spec.Dir, offload), v
	b, err := json.Marshal(s)
	if err != nil {
		b = []byte("{}") // cannot happen: params were read from JSON or YAML
	}
	gpus := ""
	if spec.Device == registry.DeviceCUDA {
		gpus = strings.Join(spec.GPUUUIDs, ",")
	}
	env := slices.DeleteFunc(process.BaseEnv(), func(kv string) bool { return strings.HasPrefix(kv, "NVIDIA_VISIBLE_DEVICES=") })
	env = append(env, "LLMM_WORKER="+string(b), "LLMM_WORKER_KEY="+key,
		"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1", "HF_HOME="+filepath.Join(spec.Dir, home),
		"TOKENIZERS_PARALLELISM=false", fmt.Sprintf("OMP_NUM_THREADS=%d", threads(v)))
	if spec.Device == registry.DeviceCPU || gpus != "" {
		env = append(env, "CUDA_VISIBLE_DEVICES="+gpus)
	}
	return env
}

// warmups are first requests, by what the model answers; the first that it does is sent.
var warmups = []struct {
	api  registry.API
	path string
	body map[string]any
}{
	{registry.APICompletions, "/v1/completions", map[string]any{"prompt": "Hi", "max_tokens": 1, "temperature": 0}},
	{registry.APIEmbeddings, "/v1/embeddings", map[string]any{"input": "Hi"}},
	{registry.APIClassify, "/v1/classify", map[string]any{"input": "Hi"}},
	{registry.APIFillMask, "/v1/fill-mask", map[string]any{"top_k": 1}},
}

// describe completes the endpoint from what the worker tells of its model.
func describe(report []byte, ep *registry.Endpoint) httpengine.API {
	var r struct {
		ModelClass     string         `json:"model_class"`
		TokenizerClass string         `json:"tokenizer_class"`
		APIs           []registry.API `json:"apis"`
		Mask           string         `json:"mask"` // a gap, as its tokenizer writes it
		ContextLength  int            `json:"context_length"`
		Device         string         `json:"device"`
		Devices        []string       `json:"devices"` // all of them, where weights lie on several
		DType          string         `json:"dtype"`
		Parameters     int64          `json:"parameters"`
		Bytes          int64          `json:"weight_bytes"`
	}
	_ = json.Unmarshal(report, &r) // what is missing stays empty
	ep.ModelClass, ep.TokenizerClass, ep.ContextLength = r.ModelClass, r.TokenizerClass, r.ContextLength
	ep.Device, ep.DType, ep.Parameters, ep.Bytes = r.Device, r.DType, r.Parameters, r.Bytes
	if len(r.Devices) > 1 {
		ep.Device = strings.Join(r.Devices, ",")
	}
	if r.APIs != nil {
		ep.APIs = r.APIs
	}
	for _, w := range warmups {
		if !slices.Contains(ep.APIs, w.api) {
			continue
		}
		body := maps.Clone(w.body)
		body["model"] = ep.Model
		if w.api == registry.APIFillMask {
			body["input"] = r.Mask
		}
		return httpengine.API{Path: w.path, Body: body}
	}
	return httpengine.API{}
}
