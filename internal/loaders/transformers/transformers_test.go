package transformers

import (
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
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
	// What torch had allocated on an H200 for a model of this shape, and what the driver counted after answers of 160 tokens: the
	// weights to within a hundredth, and the sum never too small.
	facts.EdgeParameters = 2 * 128256 * 4096
	for bits, measured := range map[int]struct{ weights, all int64 }{0: {16_060_523_520, 16_078 << 20}, 8: {9_086_706_688, 9_744 << 20}, 4: {5_707_474_944, 6_412 << 20}} {
		got := of(registry.Model{QuantizationBits: bits, ContextLength: 160}, registry.DeviceCUDA)
		if off := float64(got.Weights)/float64(measured.weights) - 1; off < -0.01 || off > 0.01 || got.Estimated < measured.all || got.Estimated > measured.all*21/20 {
			t.Errorf("%d bits: predicted %+v, measured %+v", bits, got, measured)
		}
	}
	facts.EdgeParameters = 0
	if got := of(registry.Model{QuantizationBits: 4}, registry.DeviceCUDA); got.Weights < 5_000_000_000 || got.Weights > 7_000_000_000 {
		t.Errorf("4 bits of a model whose edges are not known: %+v", got)
	}
	if got := l.Estimate(registry.Model{}, registry.Artifact{}, registry.DeviceCPU); got.Basis != "" {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestChosenLeavesOutWhatACPUDoesNotNeed(t *testing.T) {
	with, without := install.Chosen(requirements), install.Chosen(requirements, needless...)
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

// TestDescribe takes over what a worker tells of a model that lies on several devices.
func TestDescribe(t *testing.T) {
	var ep registry.Endpoint
	describe([]byte(`{"model_class": "M", "tokenizer_class": "T", "apis": ["completions"], "context_length": 512, "device": "cuda:0",
		"devices": ["cpu", "cuda:0"], "dtype": "nf4", "parameters": 8030261248, "weight_bytes": 5701901296}`), &ep)
	if ep.Device != "cpu,cuda:0" || ep.DType != "nf4" || ep.Parameters != 8030261248 || ep.Bytes != 5701901296 {
		t.Errorf("%+v", ep)
	}
	describe([]byte(`{"model_class": "InferenceSession", "device": "cpu"}`), &ep)
	if ep.Device != "cpu" || ep.DType != "" || ep.Parameters != 0 || ep.Bytes != 0 {
		t.Errorf("an engine that tells no more than the device: %+v", ep)
	}
}
