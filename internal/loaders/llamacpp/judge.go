package llamacpp

import (
	"fmt"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var (
	_ loaders.Judge     = (*Loader)(nil)
	_ loaders.Installer = (*Loader)(nil)
)

// Offered is the version that Install builds.
func (l *Loader) Offered() string { return sdistVersion }

// Judge looks for the architecture's name in the program; see loaders.Judge. In a program that loads llama.cpp as a library
// there are no such names, which says nothing.
func (l *Loader) Judge(m registry.Model, f registry.Facts, _ registry.Device, v loaders.Version) loaders.Objection {
	if m.QuantizationBits != 0 {
		return loaders.Objection{Why: "loads a GGUF in the quantisation that it has, and quantization_bits is set"}
	}
	if f.Architecture == "" || f.Format != registry.FormatGGUF {
		return loaders.Objection{}
	}
	if holds, sure := l.arch.Holds(v.Path, f.Architecture+"\x00", "gptneox\x00", "starcoder2\x00"); sure && !holds {
		return loaders.Objection{Why: fmt.Sprintf("%s does not know the architecture %s", v.Version, f.Architecture)}
	}
	return loaders.Objection{}
}
