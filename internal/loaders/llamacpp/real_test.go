package llamacpp_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The real engine and real weights, from the environment or from where `make` puts them.
const (
	envServer = "LLMM_TEST_LLAMA_SERVER"
	envWeight = "LLMM_TEST_GGUF"
	envNone   = "LLMM_TEST_NO_ENGINE"
)

func TestMain(m *testing.M) {
	os.Exit(loadertest.Main(m, func() *loadertest.Harness {
		server, gguf := locate()
		h := harness(server, gguf)
		return &h
	}))
}

// locate finds the engine and the weights; either may be "".
func locate() (server, gguf string) {
	server, gguf = os.Getenv(envServer), os.Getenv(envWeight)
	cache, err := os.UserCacheDir()
	if err != nil {
		return server, gguf
	}
	newest := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(cache, "llmm", pattern))
		if err != nil || len(found) == 0 {
			return ""
		}
		return slices.Max(found)
	}
	if server == "" {
		server = newest("engines/llamacpp/*/llama-server")
	}
	if gguf == "" {
		gguf = newest("models/SmolLM2*.gguf")
	}
	if gguf == "" {
		gguf = newest("models/*.gguf")
	}
	return server, gguf
}

// engine returns the real engine and weights. A machine without them fails, so that nobody believes that these tests
// have passed; -short and LLMM_TEST_NO_ENGINE=1 say that it is meant.
func engine(t *testing.T) (server, gguf string) {
	t.Helper()
	server, gguf = locate()
	if server != "" && gguf != "" {
		return server, gguf
	}
	msg := fmt.Sprintf("no llama-server (%q) or weights (%q): set %s and %s, or run make setup", server, gguf, envServer, envWeight)
	if testing.Short() || os.Getenv(envNone) == "1" {
		t.Skip(msg)
	}
	t.Fatal(msg + "; -short or " + envNone + "=1 skips this")
	return "", ""
}

// facts are those of SmolLM2-135M, which the estimate needs. A test of another file gets its size alone.
func facts(gguf string) registry.Facts {
	f := registry.Facts{Format: registry.FormatGGUF, Architecture: "llama"}
	if fi, err := os.Stat(gguf); err == nil {
		f.WeightBytes = fi.Size()
	}
	if strings.HasPrefix(filepath.Base(gguf), "SmolLM2-135M") {
		f.ContextLength, f.Layers, f.KVHeads, f.KeyLength, f.ValueLength = 8192, 30, 3, 64, 64
	}
	return f
}

func spec(gguf string, params map[string]any) loaders.LoadSpec {
	f := facts(gguf)
	if params == nil {
		params = map[string]any{}
	}
	// One thread: several wait for each other at every layer, which takes minutes when other tests use the CPUs.
	if _, ok := params["threads"]; !ok {
		params["threads"] = int64(1)
	}
	return loaders.LoadSpec{Device: registry.DeviceCPU, Artifact: registry.Artifact{Path: gguf, Bytes: f.WeightBytes, Facts: f},
		Model: registry.Model{ModelID: "test/model", SourceType: registry.SourceLocal, SourcePath: gguf, ModelFormat: registry.FormatGGUF, ContextLength: 1024, CustomLoaderParams: params}}
}

func harness(server, gguf string) loadertest.Harness {
	return loadertest.Harness{
		New:   func(tag string) loaders.Loader { return llamacpp.New(llamacpp.Options{Path: server, TagPrefix: tag}) },
		Spec:  func() loaders.LoadSpec { return spec(gguf, nil) },
		Kills: 12, Span: time.Second, Tells: tells,
	}
}

// tells reports whether the server has told all that it counts, in the words that are read, once it has answered.
func tells(a registry.Activity) bool {
	return a.Running != nil && a.Waiting != nil && a.PromptTokens != nil && *a.PromptTokens > 0 && a.GeneratedTokens != nil && *a.GeneratedTokens > 0
}

func TestConformance(t *testing.T) {
	loadertest.Run(t, harness(engine(t)))
}

func TestConformanceOfEmbeddings(t *testing.T) {
	server, gguf := engine(t)
	h := harness(server, gguf)
	h.Kills, h.Tells = 1, nil // it generates nothing
	h.Spec = func() loaders.LoadSpec { return spec(gguf, map[string]any{"embeddings": true, "pooling": "mean"}) }
	loadertest.Run(t, h)
}

// load fills in what the manager would and loads with the real engine.
func load(t *testing.T, s loaders.LoadSpec) (loaders.Instance, error) {
	t.Helper()
	server, _ := engine(t)
	tag := fmt.Sprintf("llamacpptest-%d", os.Getpid())
	s.Dir = t.TempDir()
	s.LogPath, s.InstanceID = filepath.Join(s.Dir, "log"), strings.ReplaceAll(t.Name(), "/", "-")
	s.Model = s.Model.WithDefaults()
	s.Started = func(registry.Handle) {}
	in, err := llamacpp.New(llamacpp.Options{Path: server, TagPrefix: tag}).Load(t.Context(), s, func(registry.Progress) {})
	t.Cleanup(func() {
		if in != nil {
			if err := in.Stop(t.Context()); err != nil { // the test's context has ended: this kills
				t.Error(err)
			}
		}
		if left, err := process.FindTagged(tag); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	return in, err
}

// TestEveryParameter gives the real server every parameter at once, so that a flag that it does not know or a value that
// it refuses cannot go unnoticed.
func TestEveryParameter(t *testing.T) {
	_, gguf := engine(t)
	in, err := load(t, spec(gguf, map[string]any{
		"threads": int64(1), "threads_batch": int64(2), "batch_size": int64(256), "ubatch_size": int64(128), "parallel": int64(2), "flash_attn": "on",
		"cache_type_k": "q8_0", "cache_type_v": "q8_0", "cache_ram_mb": int64(16), "n_gpu_layers": int64(0), "rope_scaling": "yarn", "rope_scale": "2",
		"rope_freq_base": 100000.0, "rope_freq_scale": json.Number("0.5"), "chat_template": "chatml", "embeddings": false, "mmap": false, "mlock": false,
	}))
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
	}
	if err := in.Health(t.Context()); err != nil {
		t.Error(err)
	}
	ep := in.Endpoint()
	if ep.Parameters <= 0 || ep.Bytes <= 0 || ep.Bytes > facts(gguf).WeightBytes || ep.DType == "" || ep.ModelClass != "llama.cpp:llama" {
		t.Errorf("the server does not tell what it has loaded: %+v", ep)
	}
	if filepath.Base(gguf) == "SmolLM2-135M-Instruct.Q4_1.gguf" && (ep.Parameters != 134_515_008 || ep.Bytes != 96_576_768 || ep.DType != "Q4_1") {
		t.Errorf("it says %d parameters as %s in %d bytes", ep.Parameters, ep.DType, ep.Bytes)
	}
}

func tail(err error) []string {
	if f := registry.AsError(err).Failure; f != nil {
		return f.LogTail
	}
	return nil
}

// TestRealFailures makes the real server fail and reads its own words.
func TestRealFailures(t *testing.T) {
	_, gguf := engine(t)
	whole, err := os.ReadFile(gguf)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	arch := slices.Clone(whole)
	copy(arch[strings.Index(string(arch[:4096]), "llama"):], "zzzma")
	for name, c := range map[string]struct {
		path    string
		context int
		params  map[string]any
		want    registry.FailureKind
	}{
		"cut short":            {path: write("cut.gguf", whole[:len(whole)/4]), want: registry.FailureCorruptFile},
		"a web page":           {path: write("page.gguf", []byte("<!doctype html><title>404</title>")), want: registry.FailureCorruptFile},
		"empty":                {path: write("empty.gguf", nil), want: registry.FailureCorruptFile},
		"another architecture": {path: write("arch.gguf", arch), want: registry.FailureUnsupportedArch},
		"cache too large":      {path: gguf, context: registry.MaxContext, params: map[string]any{"cache_type_k": "f32", "cache_type_v": "f32"}, want: registry.FailureOutOfMemory},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(c.path, c.params)
			if c.context > 0 {
				s.Model.ContextLength = c.context
			}
			_, err := load(t, s)
			e := registry.AsError(err)
			if e == nil || e.Failure == nil || e.Failure.Kind != c.want {
				t.Fatalf("got %v, want %s\n%s", err, c.want, strings.Join(tail(err), "\n"))
			}
			if e.Failure.Hint == "" || e.Failure.ExitCode == 0 {
				t.Errorf("the failure says too little: %+v", e.Failure)
			}
		})
	}
}

// TestKeyIsNotInTheLog looks for the engine's key where others could read it.
func TestKeyIsNotInTheLog(t *testing.T) {
	_, gguf := engine(t)
	in, err := load(t, spec(gguf, nil))
	if err != nil {
		t.Fatal(err)
	}
	a, ok := in.(loaders.Authenticator)
	if !ok {
		t.Fatal("the instance is no Authenticator")
	}
	key := strings.TrimPrefix(a.Authorization(), "Bearer ")
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", in.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		LogPath string `json:"log_path"`
	}
	if err := json.Unmarshal(in.Handle().Data, &d); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(d.LogPath)
	if err != nil || len(log) == 0 {
		t.Fatalf("the log is empty: %v", err)
	}
	if len(key) < 32 || strings.Contains(string(argv), key) || strings.Contains(string(log), key) {
		t.Error("the key is short, on the command line or in the log")
	}
	if fi, err := os.Stat(d.LogPath); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the log's mode is %v, %v", fi.Mode(), err)
	}
}

// TestEstimateHolds loads the real model at two contexts and compares what it takes with what was promised: never
// more, and not less than half.
func TestEstimateHolds(t *testing.T) {
	_, gguf := engine(t)
	if facts(gguf).Layers == 0 {
		t.Fatalf("the test knows the facts of SmolLM2-135M, and %s names another file: unset %s and run scripts/setup", gguf, envWeight)
	}
	for _, n := range []int{1024, 8192} {
		s := spec(gguf, nil)
		s.Model.ContextLength = n
		in, err := load(t, s)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.Handle().PID))
		if err != nil {
			t.Fatal(err)
		}
		var kb int64
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				if _, err := fmt.Sscanf(v, "%d", &kb); err != nil {
					t.Fatal(err)
				}
			}
		}
		promised := llamacpp.New(llamacpp.Options{}).Estimate(s.Model, s.Artifact, registry.DeviceCPU)
		t.Logf("context %d: promised %d MiB, took %d MiB", n, promised.Estimated>>20, kb>>10)
		if kb<<10 > promised.Estimated || kb<<10 < promised.Estimated/2 {
			t.Errorf("context %d: promised %d MiB, took %d MiB", n, promised.Estimated>>20, kb>>10)
		}
		if err := in.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
