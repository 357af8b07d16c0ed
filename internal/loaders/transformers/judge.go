package transformers

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// withoutBits is what works where bitsandbytes does not.
const withoutBits = "Leave quantization_bits out, or use a GGUF of the model with llama.cpp, which runs quantised on the CPU."

// noBits is told before anything starts: an import of torch would take seconds to find the same.
func noBits(m registry.Model) error {
	f := &registry.Failure{Kind: registry.FailureUnsupported, Hint: withoutBits,
		Msg: fmt.Sprintf("quantization_bits %d needs a CUDA GPU with Transformers: bitsandbytes is what does it, and it does not do so on the CPU here", m.QuantizationBits)}
	return &registry.Error{Code: registry.CodeUnsupported, Op: "transformers.Load", Msg: f.Msg + ". " + f.Hint, Failure: f}
}

var (
	_ loaders.Judge     = (*Loader)(nil)
	_ loaders.Installer = (*Loader)(nil)
)

// Offered is the version that Install brings.
func (l *Loader) Offered() string { return bundled }

// Judge looks for the architecture among the classes of the Transformers that is used; see loaders.Judge. One that comes
// with the model's own code is not among them.
func (l *Loader) Judge(m registry.Model, f registry.Facts, device registry.Device, v loaders.Version) loaders.Objection {
	if m.ModelFormat == registry.FormatONNX {
		return l.judgeONNX(m, f, v)
	}
	if device == registry.DeviceCPU && m.QuantizationBits != 0 {
		return loaders.Objection{Why: "quantises on a CUDA GPU only, and quantization_bits is set", Sure: true, Hint: withoutBits}
	}
	if f.Architecture == "" || m.TrustRemoteCode {
		return loaders.Objection{}
	}
	l.known.mu.Lock()
	site, path := l.known.e.Site, l.known.e.path
	l.known.mu.Unlock()
	if site == "" || path != v.Path {
		return loaders.Objection{}
	}
	list := filepath.Join(site, "transformers", "models", "auto", "modeling_auto.py")
	if holds, sure := l.arch.Holds(list, `"`+f.Architecture+`"`, `"LlamaForCausalLM"`, `"BertModel"`); sure && !holds {
		version, _, _ := strings.Cut(v.Version, " ")
		return loaders.Objection{Why: fmt.Sprintf("%s has no class for the architecture %s", version, f.Architecture)}
	}
	return loaders.Objection{}
}
