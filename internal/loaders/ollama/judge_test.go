package ollama

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestJudge lays programs out as an installation does, with the names in them that decide.
func TestJudge(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o755); err != nil { //nolint:gosec // it stands for a program
			t.Fatal(err)
		}
		return p
	}
	program := write("ollama/1/bin/ollama", "MixtralForCausalLM Phi3ForCausalLM LlamaForCausalLM ownmodel")
	server := write("llamacpp/1/llama-server", "\x00gptneox\x00starcoder2\x00llama\x00")
	if err := os.MkdirAll(filepath.Join(dir, "ollama/1/lib/ollama"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(server, filepath.Join(dir, "ollama/1/lib/ollama/llama-server")); err != nil {
		t.Fatal(err)
	}
	l := New(Options{SearchDirs: []string{dir}, ModelsDir: dir})
	v := loaders.Version{Version: "0.33.0", Path: program}
	for name, c := range map[string]struct {
		model registry.Model
		facts registry.Facts
		v     loaders.Version
		why   string
		sure  bool
	}{
		"safetensors it converts":        {registry.Model{ModelFormat: registry.FormatSafetensors}, registry.Facts{Architecture: "LlamaForCausalLM"}, v, "", false},
		"safetensors it does not":        {registry.Model{ModelFormat: registry.FormatSafetensors}, registry.Facts{Architecture: "MambaForCausalLM"}, v, "does not convert the architecture MambaForCausalLM", false},
		"nothing known":                  {registry.Model{ModelFormat: registry.FormatSafetensors}, registry.Facts{}, v, "", false},
		"a GGUF of llama.cpp's":          {registry.Model{ModelFormat: registry.FormatGGUF}, registry.Facts{Architecture: "llama"}, v, "", false},
		"a GGUF of its own engine's":     {registry.Model{ModelFormat: registry.FormatGGUF}, registry.Facts{Architecture: "ownmodel"}, v, "", false},
		"a GGUF of neither":              {registry.Model{ModelFormat: registry.FormatGGUF}, registry.Facts{Architecture: "mamba"}, v, "does not know the architecture mamba", false},
		"a server elsewhere":             {registry.Model{ModelFormat: registry.FormatGGUF}, registry.Facts{Architecture: "mamba"}, loaders.Version{Path: "http://127.0.0.1:11434"}, "", false},
		"a quantised GGUF, to quantise":  {registry.Model{ModelFormat: registry.FormatGGUF, QuantizationBits: 4}, registry.Facts{DType: "q4_1"}, v, "quantises f16", true},
		"an f16 GGUF, to quantise":       {registry.Model{ModelFormat: registry.FormatGGUF, QuantizationBits: 4}, registry.Facts{DType: "f16", Architecture: "llama"}, v, "", false},
		"a model that brings code":       {registry.Model{ModelFormat: registry.FormatSafetensors, TrustRemoteCode: true}, registry.Facts{}, v, "runs no code", false},
		"a library's model, to quantise": {registry.Model{ModelFormat: registry.FormatGGUF, SourceType: registry.SourceOllama, QuantizationBits: 8}, registry.Facts{}, v, "their tag names", true},
	} {
		got := l.Judge(c.model, c.facts, registry.DeviceCPU, c.v)
		if !strings.Contains(got.Why, c.why) || (c.why == "") != (got.Why == "") || got.Sure != c.sure {
			t.Errorf("%s: %+v, want %q, sure %v", name, got, c.why, c.sure)
		}
	}
	if !l.Borrows(filepath.Join(dir, "llamacpp")) {
		t.Error("it does not see that it uses llama.cpp's programs")
	}
	if l.Borrows(filepath.Join(dir, "llama")) || l.Borrows(filepath.Join(dir, "transformers")) {
		t.Error("it claims to use what it does not")
	}
}
