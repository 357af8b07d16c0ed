package ollama

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:11500":          "http://127.0.0.1:11500",
		"0.0.0.0":                  "http://127.0.0.1:11434",
		":8000":                    "http://127.0.0.1:8000",
		"gpu.example.com":          "http://gpu.example.com:11434",
		"http://gpu.example.com":   "http://gpu.example.com:80",
		"https://gpu.example.com/": "https://gpu.example.com:443",
		"https://h.example.com/a/": "https://h.example.com:443/a",
		"[::]:9000":                "http://127.0.0.1:9000",
		"[::1]":                    "http://[::1]:11434",
		`"127.0.0.1"`:              "http://127.0.0.1:11434",
	} {
		got, err := ParseHost(in)
		if err != nil || got.String() != want {
			t.Errorf("%s: %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"ftp://x", "x:99999", "x:0", "http://u:secret@x", "http://x?y=1", "a b", "http://x#f"} {
		if got, err := ParseHost(in); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%s: %v, %v", in, got, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%v tells a password", err)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"127.0.0.1:11434", "[::]", "https://a/b", ":", "a:b:c", "http://[", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseHost(s)
		if err != nil {
			return
		}
		if u.Port() == "" || u.Hostname() == "" || u.User != nil {
			t.Errorf("%q became %s", s, u)
		}
		if again, err := ParseHost(u.String()); err != nil || again.String() != u.String() {
			t.Errorf("%q became %s, and that %v, %v", s, u, again, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:00","size":1},"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"../../etc/passwd","size":-1}]}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"layers":[{"digest":"sha256:` + strings.Repeat("a", 64) + `"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		man, err := parseManifest(raw)
		if err != nil {
			return
		}
		dir := t.TempDir()
		var w weights
		if w.take(dir, man) == nil && len(man.Layers) > 0 {
			t.Error("blobs that are not there were taken")
		}
		for _, ly := range w.layers {
			if rel, err := filepath.Rel(filepath.Join(dir, "blobs"), ly.path); err != nil || strings.Contains(rel, "..") {
				t.Errorf("a layer lies at %s", ly.path)
			}
		}
	})
}

func TestOptions(t *testing.T) {
	v, err := params.Read(Name, map[string]any{"num_gpu": 7, "main_gpu": 1, "temperature": 0.2, "stop": []any{"a"}, "parallel": 3, "system": "s", "num_thread": 2}, table)
	if err != nil {
		t.Fatal(err)
	}
	for device, want := range map[registry.Device]map[string]any{
		registry.DeviceCPU:  {"num_gpu": int64(0), "temperature": 0.2, "stop": []string{"a"}, "num_thread": int64(2), "num_ctx": int64(512), "num_batch": int64(512)},
		registry.DeviceAuto: {"num_gpu": int64(7), "main_gpu": int64(1), "temperature": 0.2, "stop": []string{"a"}, "num_thread": int64(2), "num_ctx": int64(512), "num_batch": int64(512)},
		registry.DeviceCUDA: {"num_gpu": int64(7), "main_gpu": int64(1), "temperature": 0.2, "stop": []string{"a"}, "num_thread": int64(2), "num_ctx": int64(512), "num_batch": int64(512)},
	} {
		if diff := cmp.Diff(want, options(v, device, 512, registry.Facts{})); diff != "" {
			t.Errorf("%s: %s", device, diff)
		}
	}
	if got := options(nil, registry.DeviceCUDA, 512, registry.Facts{Embedding: true}); got["num_gpu"] != int64(allLayers) || got["num_batch"] != nil {
		t.Errorf("an encoder on a GPU gets %v", got)
	}
	if got, ok := options(nil, registry.DeviceAuto, 512, registry.Facts{})["num_gpu"]; ok {
		t.Errorf("an Ollama elsewhere is told to use %v layers on its GPU", got)
	}
	// Ollama reads them from JSON, into its own options.
	b, err := json.Marshal(options(v, registry.DeviceCUDA, 512, registry.Facts{}))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	o := api.DefaultOptions()
	if err := o.FromMap(m); err != nil || o.NumCtx != 512 || o.NumGPU != 7 || *o.MainGPU != 1 || o.NumThread != 2 {
		t.Errorf("Ollama reads %+v, %v", o, err)
	}
}

// TestParamsAreOllamas: every parameter that is passed on is one that Ollama knows.
func TestParamsAreOllamas(t *testing.T) {
	v := params.Values{}
	for _, s := range table {
		switch s.Kind { //nolint:exhaustive // the kinds of the table
		case registry.KindInt:
			v[s.Name] = int64(1)
		case registry.KindBool:
			v[s.Name] = true
		case registry.KindStrings:
			v[s.Name] = []string{"x"}
		case registry.KindString:
			v[s.Name] = 0.5
		}
	}
	b, err := json.Marshal(api.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]any{}
	if err := json.Unmarshal(b, &known); err != nil {
		t.Fatal(err)
	}
	for name := range options(v, registry.DeviceCUDA, 8, registry.Facts{}) {
		one := map[string]any{name: float64(1)}
		o := api.DefaultOptions()
		switch v[name].(type) {
		case bool:
			one[name] = true
		case []string:
			one[name] = []any{"x"}
		}
		before, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.FromMap(one); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		after, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(before, after) && known[name] != float64(1) {
			t.Errorf("Ollama does not know %s", name)
		}
	}
}

func TestNames(t *testing.T) {
	for id, want := range map[string]string{
		"meta-llama/Llama-2-7b-chat-hf": "llmm/meta-llama-llama-2-7b-chat-hf", "...": "llmm/model", "": "llmm/model", "ü/ß": "llmm/model",
		strings.Repeat("a", 200): "llmm/" + strings.Repeat("a", 60),
	} {
		if got := nameOf(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("OLLAMA_MODELS", "/elsewhere")
	t.Setenv("HF_TOKEN", "secret")
	t.Setenv("HOME", "/home/somebody")
	v := params.Values{"parallel": int64(3), "cache_type": "q8_0", "flash_attn": "on"}
	env := childEnv(loaders.LoadSpec{Device: registry.DeviceCUDA, GPUUUIDs: []string{"GPU-a", "GPU-b"}}, v, "/h", "/m", 1234)
	text := "\n" + strings.Join(env, "\n") + "\n"
	for _, want := range []string{"HOME=/h", "OLLAMA_MODELS=/m", "OLLAMA_HOST=127.0.0.1:1234", "OLLAMA_NUM_PARALLEL=3", "OLLAMA_KV_CACHE_TYPE=q8_0", "OLLAMA_FLASH_ATTENTION=1", "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b", "OLLAMA_KEEP_ALIVE=-1"} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	for _, not := range []string{"secret", "/elsewhere", "/home/somebody"} {
		if strings.Contains(text, not) {
			t.Errorf("%s is in the environment", not)
		}
	}
	if text := strings.Join(childEnv(loaders.LoadSpec{Device: registry.DeviceCPU}, nil, "/h", "/m", 1), "\n"); !strings.HasSuffix(text, "CUDA_VISIBLE_DEVICES=") {
		t.Error("a model on the CPU sees GPUs")
	}
}

func TestDiagnose(t *testing.T) {
	for line, want := range map[string]registry.FailureKind{
		"Error: listen tcp 127.0.0.1:4000: bind: address already in use":                                                    registry.FailurePort,
		"llama-server process has terminated: exit status 1: ggml_cuda: cudaMalloc failed: out of memory":                   registry.FailureOutOfMemory,
		"model requires more system memory (40.0 GiB) than is available (20.0 GiB)":                                         registry.FailureOutOfMemory,
		"ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1099511627776":                        registry.FailureOutOfMemory,
		"error loading model: unknown model architecture: 'wibble'":                                                         registry.FailureUnsupportedArch,
		"llama_model_load: error loading model: error loading model vocabulary: cannot find tokenizer merges in model file": registry.FailureUnsupportedArch,
		`unsupported architecture "WibbleForCausalLM"`:                                                                      registry.FailureUnsupportedArch,
		"llama-server binary not found (checked: /x)":                                                                       registry.FailureEngineMissing,
		"llama-quantize unavailable: llama-quantize binary not found (checked: /x)":                                         registry.FailureEngineMissing,
		"open /m/blobs/sha256-ab: no such file or directory":                                                                registry.FailureMissingFile,
		"model 'llmm/x:latest' not found":                                                                                   registry.FailureMissingFile,
		"llama_model_load: error loading model: tensor 'a' data is not within the file bounds, model is corrupted":          registry.FailureCorruptFile,
		"invalid file magic":                       registry.FailureCorruptFile,
		`option "num_ctx" must be of type integer`: registry.FailureParameter,
		"GGML_ASSERT(n > 0) failed":                registry.FailureCrash,
	} {
		f := diagnose([]string{"noise", line}, process.Exit{Known: true, Code: 1})
		if f.Kind != want || f.Msg == "" || f.Hint == "" {
			t.Errorf("%s: %+v, want %s", line, f, want)
		}
		var e *registry.Error
		if err := explain(api.StatusError{StatusCode: 500, ErrorMessage: line}); !errors.As(err, &e) || e.Failure == nil || e.Failure.Kind != want {
			t.Errorf("as an answer: %v", err)
		}
	}
	if f := diagnose([]string{"out of memory"}, process.Exit{Known: true, Signal: 9}); f.Msg != "" {
		t.Errorf("the log of one that was killed explains nothing: %+v", f)
	}
	if f := registry.AsError(explain(&url.Error{Op: "Post", URL: "http://x", Err: errors.New("refused")})).Failure; f != nil {
		t.Error("a broken connection is no failure of the model")
	}
}

func TestEstimate(t *testing.T) {
	l := New(Options{})
	f := registry.Facts{WeightBytes: 1 << 30, Parameters: 1 << 29, Layers: 10, KVHeads: 4, KeyLength: 64, ValueLength: 64, ContextLength: 4096}
	at := func(m registry.Model, device registry.Device) registry.Footprint {
		return l.Estimate(m, registry.Artifact{Facts: f}, device)
	}
	one := at(registry.Model{ContextLength: 1024}, registry.DeviceCPU)
	if want := int64(10 * 4 * 128 * 1024 * 2); one.KVCache != want || one.Context != 1024 || one.Weights != 1<<30 || one.Estimated != one.Weights+one.KVCache+one.Overhead {
		t.Errorf("%+v, want a cache of %d", one, want)
	}
	if got := at(registry.Model{ContextLength: 1024, CustomLoaderParams: map[string]any{"parallel": 2, "cache_type": "q8_0"}}, registry.DeviceCPU); got.KVCache != one.KVCache*17/16 {
		t.Errorf("two q8_0 caches take %d, one f16 %d", got.KVCache, one.KVCache)
	}
	if got := at(registry.Model{CustomLoaderParams: map[string]any{"num_ctx": 2048}}, registry.DeviceCPU); got.Context != 2048 {
		t.Errorf("context %d", got.Context)
	}
	if got := at(registry.Model{QuantizationBits: 4}, registry.DeviceCPU); got.Weights != (1<<29)*5/8 {
		t.Errorf("quantised weights %d", got.Weights)
	}
	if got := at(registry.Model{CustomLoaderParams: map[string]any{"num_gpu": 0}}, registry.DeviceCUDA); got.Weights != 0 || got.KVCache != 0 {
		t.Errorf("without a layer on the GPU: %+v", got)
	}
	if got := l.Estimate(registry.Model{}, registry.Artifact{}, registry.DeviceCPU); got.Basis != "" {
		t.Errorf("without facts: %+v", got)
	}
}

// TestGGUFs: which file of a folder is the model, and what belongs to it.
func TestGGUFs(t *testing.T) {
	write := func(names ...string) string {
		dir := t.TempDir()
		for _, n := range names {
			if err := os.WriteFile(filepath.Join(dir, n), []byte("GGUF"+n), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	load := func(path string) (weights, error) {
		return New(Options{}).weightsOf(loaders.LoadSpec{Artifact: registry.Artifact{Path: path}, Model: registry.Model{SourceType: registry.SourceLocal, ModelFormat: registry.FormatGGUF}})
	}
	dir := write("m.gguf", "mmproj-m.gguf")
	if w, err := load(dir); err != nil || len(w.layers) != 2 || w.layers[0].MediaType != kindModel || w.layers[1].MediaType != kindProjector || w.convert {
		t.Errorf("with a projector: %+v, %v", w, err)
	}
	if w, err := load(filepath.Join(dir, "m.gguf")); err != nil || len(w.layers) != 1 {
		t.Errorf("one file: %+v, %v", w, err)
	}
	if w, err := load(write("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "n-00001-of-00002.gguf.txt")); err != nil || !w.convert || len(w.files) != 2 {
		t.Errorf("in two files: %+v, %v", w, err)
	}
	for name, c := range map[string]struct {
		dir  string
		code registry.Code
	}{
		"a part is missing": {write("m-00001-of-00003.gguf", "m-00002-of-00003.gguf"), registry.CodeLoadingFailed},
		"two models":        {write("a.gguf", "b.gguf"), registry.CodeInvalid},
		"none":              {write("a.txt"), registry.CodeLoadingFailed},
	} {
		if _, err := load(c.dir); registry.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokenizerPath: the tokenizer that Ollama is given is the one that tokenizer_path names, within the model's folder or on
// this machine, and never one of the folder that the server happens to run in.
func TestTokenizerPath(t *testing.T) {
	write := func(root string, names ...string) string {
		for _, n := range names {
			at := filepath.Join(root, n)
			if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	t.Chdir(write(t.TempDir(), "tokenizer/tokenizer.json", "org/name/tokenizer.json", "elsewhere/tokenizer.json"))
	dir := write(t.TempDir(), "model.safetensors", "config.json", "tokenizer.model", "tokenizer_config.json", "tokenizer/tokenizer.json", "slow/vocab.txt")
	other := write(t.TempDir(), "tokenizer.model", "tokenizer_config.json", "old [1]/tokenizer.json")
	for named, want := range map[string]struct{ json, spm, config string }{
		"":                                {"", dir + "/tokenizer.model", dir + "/tokenizer_config.json"},
		"org/name":                        {"", dir + "/tokenizer.model", dir + "/tokenizer_config.json"}, // the model's own name
		"tokenizer":                       {dir + "/tokenizer/tokenizer.json", "", dir + "/tokenizer_config.json"},
		"tokenizer/tokenizer.json":        {dir + "/tokenizer/tokenizer.json", "", dir + "/tokenizer_config.json"},
		other:                             {"", other + "/tokenizer.model", other + "/tokenizer_config.json"},
		other + "/tokenizer.model":        {"", other + "/tokenizer.model", dir + "/tokenizer_config.json"},
		other + "/old [1]/tokenizer.json": {other + "/old [1]/tokenizer.json", "", dir + "/tokenizer_config.json"},
		"elsewhere":                       {},
		other + "/nothing":                {},
		"slow":                            {},
		dir + "/slow/vocab.txt":           {},
	} {
		w, err := New(Options{}).weightsOf(loaders.LoadSpec{
			Artifact: registry.Artifact{Path: dir, Files: []registry.File{{Path: "model.safetensors"}}},
			Model:    registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "org/name", ModelFormat: registry.FormatSafetensors, TokenizerPath: named},
		})
		if want.config == "" {
			if e := registry.AsError(err); e == nil || e.Failure == nil || e.Failure.Kind != registry.FailureMissingFile || !strings.Contains(e.Failure.Hint, "tokenizer_path") {
				t.Errorf("%q: %v, %v", named, w.files, err)
			}
			continue
		}
		if got := w.files; err != nil || got["tokenizer.json"] != want.json || got["tokenizer.model"] != want.spm || got["tokenizer_config.json"] != want.config {
			t.Errorf("%q: %v, %v", named, got, err)
		}
	}
}
