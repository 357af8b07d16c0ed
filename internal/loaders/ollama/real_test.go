package ollama_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The real engine and real weights, from the environment or from where the scripts put them.
const (
	envOllama = "LLMM_TEST_OLLAMA"
	envWeight = "LLMM_TEST_GGUF"
	envNone   = "LLMM_TEST_NO_ENGINE"
)

func TestMain(m *testing.M) {
	os.Exit(loadertest.Main(m, func() *loadertest.Harness {
		program, gguf := locate()
		h := harness(program, gguf)
		return &h
	}))
}

// locate finds the program and the weights; either may be "".
func locate() (program, gguf string) {
	program, gguf = os.Getenv(envOllama), os.Getenv(envWeight)
	cache, err := os.UserCacheDir()
	if err != nil {
		return program, gguf
	}
	there := func(path string) string {
		if _, err := os.Stat(path); err != nil {
			return ""
		}
		return path
	}
	if program == "" {
		program = there(filepath.Join(cache, "llmm", "engines", "ollama", "0.33.0", "bin", "ollama"))
	}
	if gguf == "" {
		gguf = there(filepath.Join(cache, "llmm", "models", "SmolLM2-135M-Instruct.Q4_1.gguf"))
	}
	return program, gguf
}

// engine returns the real program and weights. A machine without them fails, so that nobody believes that these tests
// have passed; -short and LLMM_TEST_NO_ENGINE=1 say that it is meant.
func engine(t *testing.T) (program, gguf string) {
	t.Helper()
	program, gguf = locate()
	if program != "" && gguf != "" {
		return program, gguf
	}
	msg := fmt.Sprintf("no ollama (%q) or weights (%q): run scripts/ollama-tool and scripts/setup (make test does), or set %s and %s", program, gguf, envOllama, envWeight)
	if testing.Short() || os.Getenv(envNone) == "1" {
		t.Skip(msg)
	}
	t.Fatal(msg + "; -short or " + envNone + "=1 skips this")
	return "", ""
}

// facts are those of SmolLM2-135M.
func facts(gguf string) registry.Facts {
	f := registry.Facts{Format: registry.FormatGGUF, Architecture: "llama", DType: "q4_1", ContextLength: 8192, Layers: 30, KVHeads: 3, KeyLength: 64, ValueLength: 64}
	if fi, err := os.Stat(gguf); err == nil {
		f.WeightBytes = fi.Size()
	}
	return f
}

func spec(gguf string, params map[string]any) loaders.LoadSpec {
	f := facts(gguf)
	if params == nil {
		params = map[string]any{}
	}
	// One thread: several wait for each other at every layer, which takes minutes when other tests use the CPUs.
	if _, ok := params["num_thread"]; !ok {
		params["num_thread"] = int64(1)
	}
	return loaders.LoadSpec{Device: registry.DeviceCPU, Artifact: registry.Artifact{Path: gguf, Bytes: f.WeightBytes, Facts: f},
		Model: registry.Model{ModelID: "test/model", SourceType: registry.SourceLocal, SourcePath: gguf, ModelFormat: registry.FormatGGUF, ContextLength: 1024, CustomLoaderParams: params}}
}

func harness(program, gguf string) loadertest.Harness {
	return loadertest.Harness{
		New: func(tag string) loaders.Loader {
			return ollama.New(ollama.Options{Path: program, ModelsDir: os.TempDir(), TagPrefix: tag})
		},
		Spec:  func() loaders.LoadSpec { return spec(gguf, nil) },
		Kills: 6, Span: 2500 * time.Millisecond,
	}
}

func TestConformance(t *testing.T) {
	program, gguf := engine(t)
	loadertest.Run(t, harness(program, gguf))
}
