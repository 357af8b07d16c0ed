package pick

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// ONNX returns the ONNX model among files that filename means: a path, a base name or a pattern; "" means model.onnx at
// the top, else onnx/model.onnx as Optimum exports it, else the only one. With it come the files of external data
// beside it, told by their names. Errors are those of GGUF.
func ONNX(files []registry.File, filename string) (Set, error) {
	sets := onnxSets(files)
	if len(sets) == 0 {
		return Set{}, headers.Mismatch(files, registry.FormatONNX)
	}
	const field = "custom_loader_params.filename"
	if filename != "" {
		switch found := byName(sets, filename); len(found) {
		case 0:
			return Set{}, choose(field, sets, "is %q, which is none of the %d ONNX models there", filename, len(sets))
		case 1:
			return found[0], nil
		default:
			return Set{}, choose(field, found, "is %q, which means %d ONNX models", filename, len(found))
		}
	}
	for _, usual := range UsualONNX {
		if i := slices.IndexFunc(sets, func(s Set) bool { return s.Main == usual }); i >= 0 {
			return sets[i], nil
		}
	}
	if len(sets) > 1 {
		return Set{}, choose(field, sets, "must choose one of the %d ONNX models there", len(sets))
	}
	return sets[0], nil
}

// BesideONNX returns the small files that a graph at main needs, from the top of the model and from the graph's own folder:
// configurations, tokenizers, the steps of sentence-transformers; Python only with code.
func BesideONNX(files []registry.File, main string, code bool) []registry.File {
	var out []registry.File
	for _, f := range files {
		if NearONNX(f.Path, main) && (code || path.Ext(f.Path) != ".py") {
			out = append(out, f)
		}
	}
	return out
}

// NearONNX reports whether a name is that of a small file which belongs to a graph at main.
func NearONNX(name, main string) bool {
	dir := path.Dir(name)
	near := dir == "." || dir == path.Dir(main) || module.MatchString(name)
	return near && Small(path.Base(name))
}

// UsualONNX are where a graph lies that is meant when none is named, the first before the second: Optimum exports to onnx/.
var UsualONNX = []string{"model.onnx", "onnx/model.onnx"}

// onnxSets are the ONNX models among files, the conventional name first.
func onnxSets(files []registry.File) []Set {
	var sets []Set
	for _, f := range files {
		if headers.FormatOf(f.Path) != registry.FormatONNX {
			continue
		}
		s := Set{Main: f.Path, Files: []registry.File{f}, Bytes: f.Size}
		for _, d := range files {
			if externalData(f.Path, d.Path) {
				s.Files = append(s.Files, d)
				s.Bytes += d.Size
			}
		}
		sets = append(sets, s)
	}
	slices.SortStableFunc(sets, func(a, b Set) int {
		return cmp.Or(cmp.Compare(unusual(a), unusual(b)), strings.Compare(a.Main, b.Main))
	})
	return sets
}

func unusual(s Set) int {
	if path.Base(s.Main) == "model.onnx" {
		return 0
	}
	return 1
}

// externalData tells whether data by its name holds tensors of the model: model.onnx_data, model.onnx_data_1,
// model.onnx.data, model.data.
func externalData(model, data string) bool {
	if path.Dir(model) != path.Dir(data) || model == data || path.Ext(data) == ".onnx" {
		return false
	}
	rest, ok := strings.CutPrefix(data, model)
	if ok {
		return strings.HasPrefix(rest, "_data") || strings.HasPrefix(rest, ".data")
	}
	return data == strings.TrimSuffix(model, ".onnx")+".data"
}
