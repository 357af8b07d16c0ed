// Package pick chooses the files of one model from a listing, by names and sizes alone, before anything of them is read.
// It serves sources that see a listing and pay for every byte: a repository of a hub, a prefix in an object store.
package pick

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Set is the files of one GGUF or ONNX model.
type Set struct {
	Label string          // of GGUF: the quantisation that the name tells, "" for none
	Main  string          // the file that an engine is given
	Files []registry.File // of a split model in order; of ONNX the external data after Main
	Bytes int64
	Want  []string // all shards that there should be, when some are missing
}

func (s Set) complete() bool { return len(s.Want) == 0 }

// params are the custom_loader_params that tell the set from the others; nil when it is the only one.
func (s Set) params(all []Set) map[string]any {
	same := 0
	for _, o := range all {
		if o.Label == s.Label {
			same++
		}
	}
	switch {
	case len(all) <= 1:
		return nil
	case s.Label != "" && same == 1:
		return map[string]any{"quantization": s.Label}
	}
	return map[string]any{"filename": s.Main}
}

// Filter returns the files that a pattern of allow matches, all when there is none, and no pattern of ignore; see Match.
func Filter(files []registry.File, allow, ignore []string) []registry.File {
	if len(allow) == 0 && len(ignore) == 0 {
		return files
	}
	var out []registry.File
	for _, f := range files {
		if (len(allow) == 0 || MatchAny(allow, f.Path)) && !MatchAny(ignore, f.Path) {
			out = append(out, f)
		}
	}
	return out
}

// module is a folder of sentence-transformers that holds one step after the model: 1_Pooling, 2_Dense.
var module = regexp.MustCompile(`^\d+_[A-Za-z]+/[^/]+$`)

// Folder returns the files of a Hugging Face style folder that an engine may read: the weights in it of whatever format
// transformers knows, and the small files beside them; Python only with code. Once the headers have told which weights
// count, Keep drops the rest.
func Folder(files []registry.File, code bool) []registry.File {
	var out []registry.File
	for _, f := range files {
		name, ok := path.Base(f.Path), false
		switch {
		case path.Ext(name) == ".py" && !code:
		case !strings.Contains(f.Path, "/"), module.MatchString(f.Path):
			ok = weights(name) || Small(name)
		case strings.HasPrefix(f.Path, "additional_chat_templates/"):
			ok = path.Ext(name) == ".jinja"
		}
		if ok {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b registry.File) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// Keep drops the weights in the folder itself that are not among names: other formats, checkpoints, copies.
func Keep(files []registry.File, names []string) []registry.File {
	return slices.DeleteFunc(slices.Clone(files), func(f registry.File) bool {
		return !strings.Contains(f.Path, "/") && weights(f.Path) && !slices.Contains(names, f.Path)
	})
}

// weights reports whether a name is that of weights which transformers reads.
func weights(name string) bool {
	format := headers.FormatOf(name)
	return format == registry.FormatSafetensors || format == registry.FormatTransformersPT
}

// smallKinds are what configurations, tokenizers, templates, licences and code of a model are written in.
var smallKinds = []string{".json", ".txt", ".model", ".jinja", ".py", ".md", ".tiktoken", ".spm", ".vocab", ".bpe", ".yaml", ".yml"}

// Small reports whether a name without folders is that of a file beside the weights which an engine or a person may read.
func Small(name string) bool {
	if strings.HasPrefix(name, ".") || headers.FormatOf(name) != "" {
		return false
	}
	ext := strings.ToLower(path.Ext(name))
	return slices.Contains(smallKinds, ext) || ext == "" && strings.ToUpper(name) == name // LICENSE, NOTICE
}

// besideTokenizer are what belongs to a tokenizer of transformers beside the vocabulary. config.json is among them: where
// tokenizer_config.json names no class, the model's type does.
var besideTokenizer = []string{"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja", "chat_template.json", "config.json"}

// Tokenizer returns the files of a tokenizer among those of a folder, and nothing else of it; its Python only with code.
func Tokenizer(files []registry.File, code bool) []registry.File {
	var out []registry.File
	for _, f := range files {
		name := path.Base(f.Path)
		switch dir := path.Dir(f.Path); {
		case dir == "additional_chat_templates" && path.Ext(name) == ".jinja":
		case dir != ".":
			continue
		case slices.Contains(besideTokenizer, name), headers.HasTokenizer([]string{name}):
		case code && strings.HasPrefix(name, "tokenization_") && path.Ext(name) == ".py":
		default:
			continue
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b registry.File) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// favourites are the quantisations that are offered first: small without a loss that most would notice.
var favourites = []string{"Q4_K_M", "UD-Q4_K_XL", "Q5_K_M", "Q6_K", "Q8_0", "Q4_K_S", "Q5_K_S", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "MXFP4"}

// Offers lists the models among files, best first: the folder's own weights, then GGUF with the usual quantisations in
// front, then ONNX. The parameters of an offer choose it. Models with missing shards are not offered.
func Offers(files []registry.File) []registry.Offer {
	out := folders(files)
	gguf, _ := GGUFSets(files)
	rank := func(s Set) int {
		if i := slices.Index(favourites, s.Label); i >= 0 {
			return i
		}
		return len(favourites)
	}
	ranked := slices.SortedStableFunc(slices.Values(gguf), func(a, b Set) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Main, b.Main))
	})
	for _, s := range ranked {
		if !s.complete() {
			continue
		}
		o := registry.Offer{Format: registry.FormatGGUF, Label: s.Label, Params: s.params(gguf), Files: len(s.Files), Bytes: s.Bytes}
		if _, byName := o.Params["filename"]; byName || s.Label == "" {
			o.Label = strings.TrimSuffix(path.Base(s.Main), ".gguf")
		}
		out = append(out, o)
	}
	onnx := onnxSets(files)
	for _, s := range onnx {
		o := registry.Offer{Format: registry.FormatONNX, Label: strings.TrimSuffix(path.Base(s.Main), ".onnx"), Files: len(s.Files), Bytes: s.Bytes}
		if len(onnx) > 1 {
			o.Params = map[string]any{"filename": s.Main}
		}
		out = append(out, o)
	}
	return out
}

// folders are the offers of the folder as a whole.
func folders(files []registry.File) []registry.Offer {
	safe := registry.Offer{Format: registry.FormatSafetensors, Label: "safetensors"}
	pickles := registry.Offer{Format: registry.FormatTransformersPT, Label: "PyTorch"}
	for _, f := range files {
		switch format := headers.FormatOf(f.Path); {
		case strings.Contains(f.Path, "/"):
		case format == registry.FormatSafetensors:
			safe.Files++
			safe.Bytes += f.Size
		case format == registry.FormatTransformersPT:
			pickles.Files++
			pickles.Bytes += f.Size
		}
	}
	switch {
	case safe.Files > 0: // transformers takes safetensors before pickles
		return []registry.Offer{safe}
	case pickles.Files > 0:
		return []registry.Offer{pickles}
	}
	return nil
}
