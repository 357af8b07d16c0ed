package ollama

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var (
	_ loaders.Judge     = (*Loader)(nil)
	_ loaders.Installer = (*Loader)(nil)
	_ loaders.Borrower  = (*Loader)(nil)
)

// Offered is the version that Install builds.
func (l *Loader) Offered() string { return installVersion }

// Judge looks for the architecture's name in Ollama and in its llama-server; see loaders.Judge. Of a server that somebody
// else runs nothing is known.
func (l *Loader) Judge(m registry.Model, f registry.Facts, _ registry.Device, v loaders.Version) loaders.Objection {
	folder := m.ModelFormat == registry.FormatSafetensors || m.ModelFormat == registry.FormatTransformersPT
	if folder && m.TrustRemoteCode {
		return loaders.Objection{Why: "runs no code of a model's own, and trust_remote_code is set"}
	}
	if m.ModelFormat == registry.FormatGGUF && m.SourceType == registry.SourceOllama && m.QuantizationBits != 0 {
		return loaders.Objection{Why: "takes a library's models in the quantisation that their tag names, and quantization_bits is set", Sure: true}
	}
	if m.ModelFormat == registry.FormatGGUF && m.QuantizationBits != 0 && f.DType != "" && !slices.Contains([]string{"f16", "bf16", "f32"}, strings.ToLower(f.DType)) {
		return loaders.Objection{Why: "quantises f16, bf16 and f32 only, these weights are " + f.DType + ", and quantization_bits is set", Sure: true}
	}
	if f.Architecture == "" || strings.Contains(v.Path, "://") {
		return loaders.Objection{}
	}
	if folder {
		if holds, sure := l.arch.Holds(v.Path, f.Architecture, "MixtralForCausalLM", "Phi3ForCausalLM"); sure && !holds {
			return loaders.Objection{Why: fmt.Sprintf("%s does not convert the architecture %s", v.Version, f.Architecture)}
		}
		return loaders.Objection{}
	}
	// What llama.cpp does not know, Ollama's own engine may.
	theirs, sure := l.arch.Holds(beside(v.Path, "llama-server"), f.Architecture+"\x00", "gptneox\x00", "starcoder2\x00")
	if !sure || theirs {
		return loaders.Objection{}
	}
	if own, _ := l.arch.Holds(v.Path, f.Architecture); own {
		return loaders.Objection{}
	}
	return loaders.Objection{Why: fmt.Sprintf("%s does not know the architecture %s", v.Version, f.Architecture)}
}

// Borrows reports whether an installed Ollama has links to programs below folder: those of llama.cpp.
func (l *Loader) Borrows(folder string) bool {
	for _, dir := range l.o.SearchDirs {
		links, err := filepath.Glob(filepath.Join(quoteGlob(dir), Name, "*", "lib", "ollama", "*"))
		if err != nil {
			continue
		}
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && strings.HasPrefix(filepath.Clean(to), filepath.Clean(folder)+string(filepath.Separator)) {
				return true
			}
		}
	}
	return false
}
