package transformers

import (
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestEstimate(t *testing.T) {
	l := New(Options{})
	// Llama 3 8B: 32 layers, 8 heads of keys and values of 128.
	facts := registry.Facts{Format: registry.FormatSafetensors, Architecture: "llama", Parameters: 8_030_261_248, WeightBytes: 16_060_522_496, DType: "bf16",
		ContextLength: 8192, Layers: 32, KVHeads: 8, KeyLength: 128, ValueLength: 128}
	of := func(m registry.Model, d registry.Device) registry.Footprint {
		return l.Estimate(m, registry.Artifact{Bytes: facts.WeightBytes, Facts: facts}, d)
	}
	fp := of(registry.Model{ContextLength: 4096}, registry.DeviceCUDA)
	if fp.Weights != 16_060_522_496 || fp.KVCache != 2*32*8*128*2*4096 || fp.Context != 4096 || fp.Estimated != fp.Weights+fp.KVCache+fp.Overhead {
		t.Errorf("bf16: %+v", fp)
	}
	if got := of(registry.Model{CustomLoaderParams: map[string]any{"dtype": "float32"}}, registry.DeviceCPU); got.Weights != 2*facts.WeightBytes || got.Context != 8192 {
		t.Errorf("float32: %+v", got)
	}
	for bits, most := range map[int]int64{8: 10 << 30, 4: 5 << 30} {
		if got := of(registry.Model{QuantizationBits: bits}, registry.DeviceCUDA); got.Weights > most || got.Weights < facts.Parameters*int64(bits)/8 {
			t.Errorf("%d bits: %+v", bits, got)
		}
	}
	if got := l.Estimate(registry.Model{}, registry.Artifact{}, registry.DeviceCPU); got.Basis != "" {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestChosenLeavesOutWhatACPUDoesNotNeed(t *testing.T) {
	with, without := chosen(requirements, true), chosen(requirements, false)
	for _, name := range needless {
		if !strings.Contains(with, "\n"+name+"==") || strings.Contains(without, "\n"+name+"==") {
			t.Errorf("%s: %v with a GPU, %v without", name, strings.Contains(with, name), strings.Contains(without, name))
		}
	}
	if !strings.Contains(without, "\ntorch==") || !strings.Contains(without, "\ntransformers=="+bundled) || !strings.Contains(without, "\nnvidia-cudnn") {
		t.Error("what torch is linked to is missing")
	}
	for line := range strings.Lines(without) {
		if strings.Contains(line, "==") && !strings.HasPrefix(line, "#") && !strings.HasSuffix(line, "\\\n") {
			t.Errorf("a package without a hash: %s", line)
		}
	}
}

func FuzzLines(f *testing.F) {
	f.Add(`llmm-worker: {"stage": "weights", "done": 3, "total": 290, "unit": "tensors"}`)
	f.Add(`llmm-worker: {"failure": {"kind": "port", "message": "taken", "hint": "again"}}`)
	f.Add(`llmm-worker: {"ready": true}`)
	f.Add("torch.OutOfMemoryError: CUDA out of memory.")
	f.Fuzz(func(t *testing.T, line string) {
		if p, ok := parse(line); ok && (p.Done < 0 || p.Total < 0 || p.Stage != registry.StageEngine && p.Stage != registry.StageWeights) {
			t.Errorf("%q became %+v", line, p)
		}
		if got := diagnose([]string{line}, process.Exit{Known: true, Code: 1}); got.Msg != "" && got.Kind == "" {
			t.Errorf("%q became %+v", line, got)
		}
		isReady(line)
	})
}
