package llamacpp

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// script writes a llama-server that answers --version, --help and --list-devices.
func script(t *testing.T, dir, version, help, devices string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, "llama-server")
	text := fmt.Sprintf("#!/bin/sh\necho \"$1\" >> \"$0.calls\"\ncase $1 in\n--version) echo 'version: %s';;\n--help) cat <<'E'\n%s\nE\n;;\n--list-devices) printf '%s';;\nesac\n", version, help, devices)
	if err := os.WriteFile(p, []byte(text), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	return p
}

func TestWhichEngineIsFound(t *testing.T) {
	dir, path := t.TempDir(), t.TempDir()
	t.Setenv("PATH", path+":/usr/bin:/bin")
	l := func(p string) *Loader {
		return New(Options{Path: p, SearchDirs: []string{dir, filepath.Join(dir, "none")}})
	}
	check := func(l *Loader, want string) {
		t.Helper()
		v, err := l.Check(t.Context())
		if want == "" {
			if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "llmm engine install llamacpp") {
				t.Errorf("got %v, %v", v, err)
			}
			return
		}
		if err != nil || v.Version != want {
			t.Errorf("got %q, %v; want %q", v.Version, err, want)
		}
	}
	check(l(""), "")
	script(t, filepath.Join(dir, Name, "999.0.0"), "old", "", "")
	script(t, filepath.Join(dir, Name, "11434.0.0"), "new", "", "")
	check(l(""), "new")
	onPath := script(t, path, "path", "", "")
	check(l(""), "path")
	named := script(t, t.TempDir(), "named", "", `Available devices:\n  CUDA0: NVIDIA (1 MiB)\n`)
	check(l(named), "named")
	check(l(filepath.Join(dir, "nowhere")), "")
	if err := os.WriteFile(onPath, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	check(l(""), "")

	v, err := l(named).Check(t.Context())
	if err != nil || !slices.Equal(v.Devices, []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}) {
		t.Errorf("devices %v, %v", v.Devices, err)
	}
}

func TestCheckAsksOnceForEachFile(t *testing.T) {
	p := script(t, t.TempDir(), "1", "", "")
	l := New(Options{Path: p})
	asked := func() int {
		b, err := os.ReadFile(p + ".calls")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "--version")
	}
	for range 3 {
		if _, err := l.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if err := os.Chtimes(p, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Check(t.Context()); err != nil || asked() != 2 {
		t.Errorf("a changed file was not asked: %v", err)
	}
}

func TestArgumentsFitTheBuild(t *testing.T) {
	spec := loaders.LoadSpec{Device: registry.DeviceCPU, Model: registry.Model{ModelID: "a/b"}}
	args := func(flags string, in map[string]any) string {
		t.Helper()
		v, err := params.Read(Name, in, table)
		if err != nil {
			t.Fatal(err)
		}
		b := build{path: "llama-server", flags: map[string]bool{}}
		for f := range strings.FieldsSeq(flags) {
			b.flags[f] = true
		}
		return strings.Join(argv(b, spec, v, "/m.gguf", 1000, 1234), " ")
	}
	const always = "llama-server -m /m.gguf --host 127.0.0.1 --port 1234 --alias a/b -c 1024"
	if got := args("", map[string]any{"mlock": true}); got != always {
		t.Errorf("a build that knows nothing gets %q", got)
	}
	if got := args("--parallel --no-webui --n-gpu-layers --no-mmap", map[string]any{"mmap": false}); got != always+" --parallel 1 --n-gpu-layers 0 --no-mmap --no-webui" {
		t.Errorf("an old build gets %q", got)
	}
	if got := args("--parallel --kv-unified --no-ui --no-webui --cache-ram --load-mode", map[string]any{"mmap": false, "mlock": true}); got != always+" --parallel 4 --kv-unified --cache-ram 0 --load-mode mlock --no-ui" {
		t.Errorf("a new build gets %q", got)
	}
	spec.Device = registry.DeviceCUDA
	if got := args("--n-gpu-layers --device --fit", nil); got != always+" --n-gpu-layers 999 --fit off" {
		t.Errorf("on CUDA it gets %q", got)
	}
	if got := args("--n-gpu-layers", map[string]any{"n_gpu_layers": int64(7)}); !strings.Contains(got, "--n-gpu-layers 7") {
		t.Errorf("n_gpu_layers is ignored: %q", got)
	}
}

func TestDevicesThatAreSeen(t *testing.T) {
	t.Setenv("CUDA_VISIBLE_DEVICES", "5")
	cpu := environ(loaders.LoadSpec{Device: registry.DeviceCPU}, "k")
	if !slices.Contains(cpu, "CUDA_VISIBLE_DEVICES=") || slices.Contains(cpu, "CUDA_VISIBLE_DEVICES=5") {
		t.Errorf("on the CPU it sees %q", cpu)
	}
	gpu := environ(loaders.LoadSpec{Device: registry.DeviceCUDA, GPUUUIDs: []string{"GPU-a", "GPU-b"}}, "k")
	if !slices.Contains(gpu, "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b") {
		t.Errorf("on CUDA it sees %q", gpu)
	}
}

func TestParametersThatAreRefused(t *testing.T) {
	for name, v := range map[string]any{"extra_args": "--tools all", "threads": int64(0), "flash_attn": true, "cache_type_k": "q9", "rope_scale": "much", "mmap": "no", "pooling": "max"} {
		_, err := params.Read(Name, map[string]any{name: v, "auth_token": "x"}, table)
		e := registry.AsError(err)
		if e == nil || e.Code != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params."+name {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, err := params.Read(Name, map[string]any{"extra_args": "x"}, table)
	if err == nil || !strings.Contains(err.Error(), "cache_type_k") {
		t.Errorf("the known ones are not named: %v", err)
	}
}

// TestDiagnoses gives each line as the engine prints it, most of them taken from version 11434.
func TestDiagnoses(t *testing.T) {
	for text, want := range map[string]registry.FailureKind{
		"0.00.003.373 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18997":                                                  registry.FailurePort,
		"ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: cudaMalloc failed: out of memory":                                      registry.FailureOutOfMemory,
		"0.00.549.664 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 92160000000":                                               registry.FailureOutOfMemory,
		"0.00.549.665 E ggml_backend_buft_alloc_buffer_n_default: failed to allocate CPU buffer of size 92160000000":                                            registry.FailureOutOfMemory,
		"terminate called after throwing an instance of 'std::bad_alloc'":                                                                                       registry.FailureOutOfMemory,
		"llama_model_load: error loading model: mmap failed: Cannot allocate memory":                                                                            registry.FailureOutOfMemory,
		"0.00.095.381 E llama_model_load: error loading model: unknown model architecture: 'zzzma'":                                                             registry.FailureUnsupportedArch,
		"llama_model_load: error loading model: error loading model vocabulary: unknown pre-tokenizer type: 'new'":                                              registry.FailureUnsupportedArch,
		"0.00.009.175 E gguf_init_from_file: failed to open GGUF file 'missing.gguf' (No such file or directory)":                                               registry.FailureMissingFile,
		"llama_model_load: error loading model: failed to open /m/x-00002-of-00002.gguf: No such file or directory":                                             registry.FailureMissingFile,
		"gguf_init_from_file: failed to open GGUF file '/m/x.gguf' (Permission denied)":                                                                         registry.FailureMissingFile,
		"0.00.046.576 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete": registry.FailureCorruptFile,
		"0.00.007.302 E gguf_init_from_reader: invalid magic characters: '????', expected 'GGUF'":                                                               registry.FailureCorruptFile,
		"0.00.007.451 E gguf_init_from_reader: failed to read magic":                                                                                            registry.FailureCorruptFile,
		"error: invalid argument: --zork":                                                                                                registry.FailureParameter,
		`error while handling argument "--pooling": invalid value`:                                                                       registry.FailureParameter,
		"llama_init_from_model: quantized V cache was requested, but this requires Flash Attention":                                      registry.FailureParameter,
		"/src/ggml.c:1: GGML_ASSERT(a == b) failed":                                                                                      registry.FailureCrash,
		"CUDA error: an illegal memory access was encountered":                                                                           registry.FailureCrash,
		"llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file or directory": registry.FailureEngineMissing,
	} {
		tail := []string{"something before", text, "srv llama_server: exiting due to model loading error", "E cmn common_init_: failed to load model 'x'"}
		got := diagnose(tail, process.Exit{Known: true, Code: 1})
		if got.Kind != want || got.Msg == "" || got.Hint == "" || strings.Contains(got.Msg, "$") {
			t.Errorf("%s\n got %+v, want %s", text, got, want)
		}
	}
	if got := diagnose([]string{"failed to read magic"}, process.Exit{Known: true, Signal: syscall.SIGKILL}); got.Kind != "" {
		t.Errorf("a killed server is explained by its log: %+v", got)
	}
}

func TestProgress(t *testing.T) {
	state := func(stages, current string, value float64) string {
		return fmt.Sprintf(`cmd_child_to_router:state:{"state":"loading","payload":{"stages":[%s],"current":%q,"value":%g}}`, stages, current, value)
	}
	for _, c := range []struct {
		weights, done, total int64
		unit                 registry.Unit
		line                 string
	}{
		{1000, 420, 1000, registry.UnitBytes, state(`"text_model"`, "text_model", 0.42)},
		{0, 42, 100, registry.UnitPercent, state(`"text_model"`, "text_model", 0.42)},
		{0, 75, 100, registry.UnitPercent, state(`"text_model","mmproj_model"`, "mmproj_model", 0.5)},
		{0, 100, 100, registry.UnitPercent, `cmd_child_to_router:state:{"state":"ready","payload":{}}`},
		{0, 0, 100, registry.UnitPercent, "load_tensors: loading model tensors, this can take a while... (mmap = true)"},
		{0, 30, 100, registry.UnitPercent, strings.Repeat(".", 30)},
	} {
		p, ok := newParser(c.weights).parse(c.line)
		p.Msg = ""
		if want := (registry.Progress{Stage: registry.StageWeights, Done: c.done, Total: c.total, Unit: c.unit}); !ok || p != want {
			t.Errorf("%s\n got %+v, %v; want %+v", c.line, p, ok, want)
		}
	}
	for _, line := range []string{"", "hello", "cmd_child_to_router:state:{", `cmd_child_to_router:state:{"state":"sleeping"}`} {
		if p, ok := newParser(0).parse(line); ok {
			t.Errorf("%q is taken for progress: %+v", line, p)
		}
	}
}

func TestContextFor(t *testing.T) {
	for _, c := range []struct{ given, trained, want int }{{0, 0, 8192}, {0, 2048, 2048}, {0, 131072, 8192}, {32768, 2048, 32768}, {512, 0, 512}} {
		if got := ContextFor(registry.Model{ContextLength: c.given}, registry.Facts{ContextLength: c.trained}); got != c.want {
			t.Errorf("given %d, trained %d: got %d, want %d", c.given, c.trained, got, c.want)
		}
	}
}

func TestEstimate(t *testing.T) {
	l := New(Options{})
	smol := registry.Artifact{Bytes: 98362432, Facts: registry.Facts{WeightBytes: 96576768, ContextLength: 8192, Layers: 30, KVHeads: 3, KeyLength: 64, ValueLength: 64}}
	est := func(p map[string]any, a registry.Artifact, d registry.Device) registry.Footprint {
		return l.Estimate(registry.Model{CustomLoaderParams: p}, a, d)
	}
	full := est(nil, smol, registry.DeviceCPU)
	if full.KVCache != 8192*30*3*128*2 || full.Weights != 96576768 || full.Context != 8192 || full.Basis == "" || full.Estimated != full.Weights+full.KVCache+full.Overhead {
		t.Errorf("got %+v", full)
	}
	if q8 := est(map[string]any{"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, smol, registry.DeviceCPU); q8.KVCache != full.KVCache*17/32 {
		t.Errorf("q8_0 takes %d, want %d", q8.KVCache, full.KVCache*17/32)
	}
	if p := est(map[string]any{"parallel": int64(16)}, smol, registry.DeviceCPU); p.KVCache != full.KVCache {
		t.Error("slots share the context, and yet the cache grew")
	}
	if p := est(map[string]any{"cache_ram_mb": int64(100)}, smol, registry.DeviceCPU); p.Estimated != full.Estimated+100<<20 {
		t.Error("cache_ram_mb is not counted")
	}
	encoder := smol
	encoder.Facts.Embedding = true
	if e := est(nil, encoder, registry.DeviceCPU); e.KVCache != 0 {
		t.Errorf("an encoder has a cache of %d", e.KVCache)
	}
	window := smol
	window.Facts.Window, window.Facts.WindowLayers = 128, 25
	perToken := int64(3 * 128 * 2)
	if w := est(nil, window, registry.DeviceCPU); w.KVCache != perToken*(5*8192+25*1024) {
		t.Errorf("a window's cache is %d, want %d", w.KVCache, perToken*(5*8192+25*1024))
	}
	// DeepSeek-V3: what latent attention keeps counts as keys.
	latent := registry.Artifact{Facts: registry.Facts{WeightBytes: 1 << 30, Layers: 61, KVHeads: 128, KeyLength: 192, ValueLength: 128, KVLatent: 576}}
	if m := est(map[string]any{"cache_type_k": "q8_0"}, latent, registry.DeviceCPU); m.KVCache != 8192*70272*17/32 {
		t.Errorf("latent attention's cache is %d", m.KVCache)
	}
	// Qwen3-Next: 12 layers that attend, and a state for each slot.
	hybrid := registry.Artifact{Facts: registry.Facts{WeightBytes: 1 << 30, Layers: 48, KVLayers: 12, KVHeads: 2, KeyLength: 256, ValueLength: 256, StateBytes: 75 << 20}}
	if h := est(map[string]any{"parallel": int64(3)}, hybrid, registry.DeviceCPU); h.KVCache != 8192*24576+3*75<<20 {
		t.Errorf("a hybrid's cache is %d", h.KVCache)
	}
	// Gemma 4's windows have other heads than its full layers.
	uneven := registry.Artifact{Facts: registry.Facts{WeightBytes: 1 << 30, Layers: 6, KVGroups: []registry.KVGroup{{Layers: 1, Heads: 4, Key: 512, Value: 512}, {Layers: 5, Heads: 16, Key: 256, Value: 256, Window: 1024}}}}
	if u := est(nil, uneven, registry.DeviceCPU); u.KVCache != 2*(8192*4096+5*(4*1024+512)*8192) {
		t.Errorf("an uneven cache is %d", u.KVCache)
	}
	half := est(map[string]any{"n_gpu_layers": int64(15)}, smol, registry.DeviceCUDA)
	if half.KVCache != full.KVCache/2 || half.Weights >= full.Weights/2 {
		t.Errorf("half of the layers on the GPU take %+v", half)
	}
	if e := est(nil, registry.Artifact{Bytes: 1000}, registry.DeviceCPU); e.Weights != 1000 || e.Basis != "file size" {
		t.Errorf("without facts: %+v", e)
	}
	if diff := cmp.Diff(registry.Footprint{}, est(nil, registry.Artifact{}, registry.DeviceCPU)); diff != "" {
		t.Errorf("of nothing: %s", diff)
	}
}

func TestWeightsFile(t *testing.T) {
	for name, c := range map[string]struct {
		files []string
		want  string
		code  registry.Code
	}{
		"one file":     {[]string{"a.gguf", "README.md", "mmproj-a.gguf"}, "a.gguf", ""},
		"several":      {[]string{"a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf"}, "a-00001-of-00003.gguf", ""},
		"two models":   {[]string{"a.gguf", "b.gguf"}, "", registry.CodeInvalid},
		"none":         {[]string{"README.md"}, "", registry.CodeLoadingFailed},
		"only a shard": {[]string{"a-00002-of-00003.gguf"}, "", registry.CodeLoadingFailed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "with [brackets]*")
			if err := os.Mkdir(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			for _, f := range c.files {
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := weightsFile(registry.Artifact{Path: dir})
			if registry.CodeOf(err) != c.code || err == nil && got != filepath.Join(dir, c.want) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
