package manager

import (
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestNothingLoadsThat says what of that source can be loaded.
func TestNothingLoadsThat(t *testing.T) {
	t.Parallel()
	in := choiceInput{model: registry.Model{SourceType: registry.SourceOllama, ModelFormat: registry.FormatONNX}, device: registry.DeviceAuto, engines: park(nil)}
	if i, _ := chooseAmong(in); i >= 0 {
		t.Fatalf("%s loads ONNX of an Ollama library", in.engines[i].info.Name)
	}
	what, hint := in.noEngine()
	if what != "No engine of this version loads onnx from ollama." || !strings.Contains(hint, "gguf") || strings.Contains(hint, "onnx") {
		t.Errorf("%s %s", what, hint)
	}
}

// What an engine surely cannot do, and knows better, is refused when it is chosen: in the plan, and before a load fetches or
// starts anything.
func TestRefusal(t *testing.T) {
	t.Parallel()
	bits := registry.Model{SourceType: registry.SourceLocal, ModelFormat: registry.FormatSafetensors, QuantizationBits: 8, Engine: "transformers"}
	auto, typo := bits, bits
	auto.Engine = registry.EngineAuto
	typo.CustomLoaderParams = map[string]any{"typo": 1}
	objects := func(o loaders.Objection, absent ...string) func(string, *engineOption) {
		return func(name string, e *engineOption) {
			without(absent...)(name, e)
			if name == "transformers" {
				e.judge = func(d registry.Device) loaders.Objection {
					if d == registry.DeviceCPU {
						return o
					}
					return loaders.Objection{}
				}
			}
		}
	}
	sure := loaders.Objection{Why: "quantises on a GPU only", Sure: true, Hint: "Leave quantization_bits out."}
	for name, c := range map[string]struct {
		model  registry.Model
		gpu    bool
		change func(string, *engineOption)
		says   string // "" it is not refused
	}{
		"named":                       {bits, false, objects(sure), "Transformers quantises on a GPU only. Ollama and vLLM could load it as it is: set engine to auto. Leave quantization_bits out."},
		"named, and nothing else":     {bits, false, objects(sure, "ollama", "vllm"), "Transformers quantises on a GPU only. Leave quantization_bits out."},
		"auto, and nothing else":      {auto, false, objects(sure, "ollama", "vllm"), "Transformers quantises on a GPU only. Leave quantization_bits out."},
		"auto takes another":          {auto, false, objects(sure), ""},
		"on a GPU":                    {bits, true, objects(sure), ""},
		"it may do it after all":      {bits, false, objects(loaders.Objection{Why: "may not", Hint: "Try."}), ""},
		"it knows nothing better":     {bits, false, objects(loaders.Objection{Why: "cannot", Sure: true}), ""},
		"the loader tells its fields": {typo, false, objects(sure), ""},
	} {
		in := choiceInput{model: c.model, device: registry.DeviceAuto, gpu: c.gpu, engines: park(c.change)}
		i, verdicts := chooseAmong(in)
		if i < 0 {
			t.Fatalf("%s: nothing was chosen: %+v", name, verdicts)
		}
		err := in.refusal(i, verdicts)
		if c.says == "" {
			if err != nil {
				t.Errorf("%s: refused: %v", name, err)
			}
			continue
		}
		e := registry.AsError(err)
		if e == nil || e.Code != registry.CodeUnsupported || e.Failure == nil || e.Failure.Kind != registry.FailureUnsupported || strings.TrimSpace(e.Error()) != c.says {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}
