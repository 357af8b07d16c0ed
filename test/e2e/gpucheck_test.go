package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
)

// TestGPUCheckWithoutAGPU runs scripts/gpu-check as on a GPU machine, with a tiny model on the CPU: loads, answers, unloads and
// kills go through the program. One engine is enough, since the script does the same with the other.
func TestGPUCheckWithoutAGPU(t *testing.T) {
	t.Parallel()
	weights(t) // fails, or skips, where the engines are not meant to be
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	installed := []string{filepath.Join(cache, "llmm", "engines")}
	found := func(l loaders.Loader) string {
		v, err := l.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v.Path
	}
	python := found(transformers.New(transformers.Options{Python: os.Getenv("LLMM_TEST_TRANSFORMERS_PYTHON"), SearchDirs: installed}))
	server := found(llamacpp.New(llamacpp.Options{Path: os.Getenv("LLMM_TEST_LLAMA_SERVER"), SearchDirs: installed}))
	cmd := exec.CommandContext(t.Context(), python, "../../scripts/gpu-check", "--tiny", "--engines", "llamacpp", "--rounds", "1", "--kills", "2", "--llmm", program, "--llama-server", server, "--keep", t.TempDir())
	cmd.Env = append(os.Environ(), "OUT=", "CUDA_VISIBLE_DEVICES=", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"\n| llamacpp, BF16 | ", "\nllamacpp: 1 rounds; ", "\nllamacpp: 2 kills, "} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("%v, or no %q in\n%s", err, want, out)
		}
	}
}
