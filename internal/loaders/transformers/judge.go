package transformers

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

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
		return loaders.Objection{Why: "quantises on a CUDA GPU only, and quantization_bits is set", Sure: true}
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
