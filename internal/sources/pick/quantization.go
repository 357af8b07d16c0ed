package pick

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// quantization finds the names that llama.cpp gives to its file types (llama_model_ftype_name, without the prefix
// LLAMA_FTYPE_MOSTLY_) between separators of a file's name.
var quantization = regexp.MustCompile(`(?i)(?:^|[-._])((?:UD-)?(?:IQ[1-4]_(?:XXS|XS|NL|S|M)|TQ[12]_0|Q[2-8]_K_(?:XXL|XL|XS|L|M|S)|Q[2-8]_K|Q[2-8]_[01](?:_\d+_\d+)?|MXFP4(?:_MOE)?|NVFP4|BF16|FP?(?:16|32)))(?:[-._]|$)`)

// Quantization returns the quantisation that a GGUF file's name tells, in capitals: Q4_K_M. Where the file's own name
// tells none, the folder's counts. "" when neither does.
func Quantization(name string) string {
	base := strings.TrimSuffix(path.Base(name), ".gguf")
	if s := splitName.FindStringSubmatch(path.Base(name)); s != nil {
		base = s[1]
	}
	for _, part := range []string{base, path.Base(path.Dir(name))} {
		if found := last(part); found != "" {
			return strings.ToUpper(found)
		}
	}
	return ""
}

// last returns the last match: a model's name may hold one too, and the quantisation stands at the end. Separators are
// shared by neighbours, so that the search goes on from within the match.
func last(s string) (found string) {
	for {
		m := quantization.FindStringSubmatchIndex(s)
		if m == nil {
			return found
		}
		found = s[m[2]:m[3]]
		s = s[m[3]:]
	}
}

// favourites are the quantisations that are offered first: small without a loss that most would notice.
var favourites = []string{"Q4_K_M", "UD-Q4_K_XL", "Q5_K_M", "Q6_K", "Q8_0", "Q4_K_S", "Q5_K_S", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "MXFP4"}

// Offers lists the models among files, best first: folders of weights by bytes, then GGUF with the usual quantisations
// in front. The parameters of an offer choose it.
func Offers(files []registry.File) []registry.Offer {
	var out []registry.Offer
	all, _ := sets(files)
	rank := func(s set) int {
		if i := slices.Index(favourites, s.label); i >= 0 {
			return i
		}
		return len(favourites)
	}
	slices.SortStableFunc(all, func(a, b set) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.name, b.name)
	})
	for _, s := range all {
		o := registry.Offer{Format: registry.FormatGGUF, Label: s.label, Files: len(s.files), Bytes: s.bytes}
		same := slices.ContainsFunc(all, func(other set) bool { return other.name != s.name && other.label == s.label })
		switch {
		case len(all) == 1:
		case s.label == "" || same:
			o.Params = map[string]any{"filename": s.name}
		default:
			o.Params = map[string]any{"quantization": s.label}
		}
		if s.label == "" || same {
			o.Label = strings.TrimSuffix(path.Base(s.name), ".gguf")
		}
		out = append(out, o)
	}
	return slices.Concat(folders(files), out, onnxOffers(files))
}

// folders are the offers of the folder as a whole.
func folders(files []registry.File) []registry.Offer {
	var safe, pickles registry.Offer
	for _, f := range files {
		if strings.Contains(f.Path, "/") {
			continue
		}
		switch headers.FormatOf(f.Path) {
		case registry.FormatSafetensors:
			safe.Files++
			safe.Bytes += f.Size
		case registry.FormatTransformersPT:
			pickles.Files++
			pickles.Bytes += f.Size
		case registry.FormatGGUF, registry.FormatONNX:
		}
	}
	var out []registry.Offer
	if safe.Files > 0 {
		safe.Format, safe.Label = registry.FormatSafetensors, "safetensors"
		out = append(out, safe)
	}
	if pickles.Files > 0 && safe.Files == 0 { // transformers takes safetensors before pickles
		pickles.Format, pickles.Label = registry.FormatTransformersPT, "PyTorch"
		out = append(out, pickles)
	}
	return out
}

func onnxOffers(files []registry.File) []registry.Offer {
	var models []registry.File
	for _, f := range files {
		if headers.FormatOf(f.Path) == registry.FormatONNX {
			models = append(models, f)
		}
	}
	slices.SortFunc(models, byPath)
	out := make([]registry.Offer, 0, len(models))
	for _, m := range models {
		o := registry.Offer{Format: registry.FormatONNX, Label: strings.TrimSuffix(path.Base(m.Path), ".onnx"), Files: 1, Bytes: m.Size}
		for _, f := range files {
			if path.Dir(f.Path) == path.Dir(m.Path) && f.Path != m.Path && isDataOf(f.Path, m.Path) {
				o.Files++
				o.Bytes += f.Size
			}
		}
		if len(models) > 1 {
			o.Params = map[string]any{"filename": m.Path}
		}
		out = append(out, o)
	}
	return out
}
