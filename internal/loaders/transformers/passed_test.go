package transformers_test

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestSettingsReachTheModel loads with a type of weights and an attention that are not the model's defaults, and a
// tokenizer that lies in another folder.
func TestSettingsReachTheModel(t *testing.T) {
	t.Parallel()
	dir, elsewhere := copied(t, "llama"), t.TempDir()
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(elsewhere, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := spec(dir, map[string]any{"dtype": "bfloat16", "attn_implementation": "eager"})
	s.Model.TokenizerPath = elsewhere
	in := mustLoad(t, s)
	code, stats := get(t, in, "/stats")
	if code != http.StatusOK || stats["attention"] != "eager" {
		t.Errorf("status %d: %v", code, stats)
	}
	checkLoaded(t, in.Endpoint(), filepath.Join(dir, "model.safetensors"), "bfloat16", 2)
	if code, got := ask(t, in, "/v1/completions", map[string]any{"prompt": "Hi", "max_tokens": 2}); code != http.StatusOK {
		t.Errorf("status %d: %v", code, got)
	}
}

// checkLoaded holds what an instance says of its weights to their file: device, dtype, parameters and bytes.
func checkLoaded(t *testing.T, ep registry.Endpoint, file, dtype string, element int64) {
	t.Helper()
	n := elements(t, file)
	if ep.Device != "cpu" || ep.DType != dtype || ep.Parameters != n {
		t.Errorf("the instance says %d parameters of %s on %q; %s has %d, and %s on the cpu was asked for", ep.Parameters, ep.DType, ep.Device, file, n, dtype)
	}
	if ep.Bytes < n*element || ep.Bytes > n*element+n*element/10 { // some tables are not parameters
		t.Errorf("%d parameters of %s take %d bytes", n, dtype, ep.Bytes)
	}
}

// elements counts the numbers of a safetensors file, by its header.
func elements(t *testing.T, file string) int64 {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var header map[string]struct {
		Shape []int64 `json:"shape"`
	}
	if err := json.Unmarshal(b[8:8+binary.LittleEndian.Uint64(b)], &header); err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for name, tensor := range header {
		if name == "__metadata__" {
			continue
		}
		n := int64(1)
		for _, d := range tensor.Shape {
			n *= d
		}
		sum += n
	}
	return sum
}
