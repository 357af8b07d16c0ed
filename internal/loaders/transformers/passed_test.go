package transformers_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
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
	if code != http.StatusOK || stats["dtype"] != "bfloat16" || stats["attention"] != "eager" || stats["device"] != "cpu" {
		t.Errorf("status %d: %v", code, stats)
	}
	n, _ := stats["parameters"].(float64)
	if bytes, _ := stats["weight_bytes"].(float64); n <= 0 || bytes < 2*n || bytes > 2.1*n { // some tables are not parameters
		t.Errorf("%v parameters take %v bytes", stats["parameters"], stats["weight_bytes"])
	}
	if code, got := ask(t, in, "/v1/completions", map[string]any{"prompt": "Hi", "max_tokens": 2}); code != http.StatusOK {
		t.Errorf("status %d: %v", code, got)
	}
}
