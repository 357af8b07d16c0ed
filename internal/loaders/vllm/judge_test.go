package vllm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestJudge(t *testing.T) {
	home := t.TempDir()
	models := filepath.Join(home, "lib", "python3.12", "site-packages", "vllm", "model_executor", "models")
	for path, content := range map[string]string{
		filepath.Join(models, "registry.py"):         "_TEXT = {\n    \"LlamaForCausalLM\": (\"llama\", \"LlamaForCausalLM\"),\n    \"Qwen3ForCausalLM\": (\"qwen3\", \"x\"),\n}",
		filepath.Join(home, "bin", "vllm"):           "#!" + filepath.Join(home, "bin", "python") + "\n",
		filepath.Join(home, "other", "bin", "serve"): "#!/bin/sh\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := New(Options{})
	for name, c := range map[string]struct {
		bits   int
		arch   string
		device registry.Device
		path   string
		why    string
		sure   bool
	}{
		"one that it has":         {0, "Qwen3ForCausalLM", registry.DeviceCPU, "bin/vllm", "", false},
		"one that it has not":     {0, "OtherForCausalLM", registry.DeviceCPU, "bin/vllm", "no code of its own for the architecture OtherForCausalLM", false},
		"nothing known":           {0, "", registry.DeviceCPU, "bin/vllm", "", false},
		"a vLLM without its list": {0, "OtherForCausalLM", registry.DeviceCPU, "other/bin/serve", "", false},
		"bits on the CPU":         {4, "Qwen3ForCausalLM", registry.DeviceCPU, "bin/vllm", "on a GPU only", true},
		"bits on a GPU":           {4, "Qwen3ForCausalLM", registry.DeviceCUDA, "bin/vllm", "", false},
	} {
		got := l.Judge(registry.Model{QuantizationBits: c.bits}, registry.Facts{Architecture: c.arch}, c.device, loaders.Version{Version: "1", Path: filepath.Join(home, c.path)})
		if (got.Why == "") != (c.why == "") || !strings.Contains(got.Why, c.why) || got.Sure != c.sure {
			t.Errorf("%s: %+v, want %q, sure %v", name, got, c.why, c.sure)
		}
	}
}
