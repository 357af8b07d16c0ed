package vllm

import (
	"fmt"
	"path/filepath"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var (
	_ loaders.Judge     = (*Loader)(nil)
	_ loaders.Installer = (*Loader)(nil)
	_ loaders.Trier     = (*Loader)(nil)
	_ loaders.Awake     = (*Instance)(nil)
)

// Offered is the version that Install brings.
func (l *Loader) Offered() string { return pinned }

// TrialParams leave out what vLLM compiles and records before it answers, which takes minutes and is of no use to a model
// that is asked once.
func (l *Loader) TrialParams() map[string]any { return map[string]any{"enforce_eager": true} }

// Judge looks for the architecture in vLLM's register of models; see loaders.Judge. What is not in it, vLLM may still run
// with the code of Transformers.
func (l *Loader) Judge(m registry.Model, f registry.Facts, device registry.Device, v loaders.Version) loaders.Objection {
	if device == registry.DeviceCPU && m.QuantizationBits != 0 {
		return loaders.Objection{Why: "quantises on a GPU only, and quantization_bits is set", Sure: true,
			Hint: "Leave quantization_bits out, or use a GGUF of the model with llama.cpp, which runs quantised on the CPU."}
	}
	if f.Architecture == "" {
		return loaders.Objection{}
	}
	interpreter := interpreterOf(v.Path)
	if interpreter == "" {
		interpreter = v.Path
	}
	found, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(interpreter)), "lib", "python3*", "site-packages", "vllm", "model_executor", "models", "registry.py"))
	if err != nil || len(found) == 0 {
		return loaders.Objection{}
	}
	if holds, sure := l.arch.Holds(found[0], `"`+f.Architecture+`"`, `"LlamaForCausalLM"`); sure && !holds {
		return loaders.Objection{Why: fmt.Sprintf("%s has no code of its own for the architecture %s", v.Version, f.Architecture)}
	}
	return loaders.Objection{}
}
