package command

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The preset for llama-server runs the real program with real weights.
func TestPresetOfLlamaServer(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	servers, err := filepath.Glob(filepath.Join(cache, "llmm", "engines", "llamacpp", "*", "llama-server"))
	if err != nil {
		t.Fatal(err)
	}
	weights, err := filepath.Glob(filepath.Join(cache, "llmm", "models", "*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if len(servers) == 0 || len(weights) == 0 {
		t.Fatal("there is no llama-server or no weights here; run scripts/setup --strict")
	}
	ts, err := Parse([]byte(strings.ReplaceAll(string(Presets), "      - llama-server\n", "      - "+servers[len(servers)-1]+"\n")))
	if err != nil {
		t.Fatal(err)
	}
	s := loaders.LoadSpec{Artifact: registry.Artifact{Path: weights[0]}, Context: 512,
		Model: registry.Model{ModelID: "org/smol", ModelFormat: registry.FormatGGUF, CustomLoaderParams: map[string]any{"template": "llama-server", "threads": int64(2)}}}
	in, err := load(t, New(Options{Templates: ts, TagPrefix: tag}), s)
	if err != nil {
		t.Fatal(err, registry.AsError(err).Failure)
	}
	if ep := in.Endpoint(); ep.Model != "org/smol" || !slices.Contains(ep.APIs, registry.APIChat) {
		t.Errorf("the endpoint is %+v", ep)
	}
	if _, err := in.(*httpengine.Instance).Post(t.Context(), warmup(registry.APIChat, "org/smol")); err != nil {
		t.Error(err)
	}
}
