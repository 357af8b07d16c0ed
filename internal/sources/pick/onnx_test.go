package pick

import (
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func listing(names ...string) []registry.File {
	out := make([]registry.File, len(names))
	for i, n := range names {
		out[i] = registry.File{Path: n, Size: int64(i + 1)}
	}
	return out
}

func pathsOf(files []registry.File) []string {
	out := make([]string, len(files))
	for i, f := range files {
		out[i] = f.Path
	}
	slices.Sort(out)
	return out
}

func TestONNX(t *testing.T) {
	// As repositories of sentence-transformers have it.
	repository := listing("config.json", "tokenizer.json", "vocab.txt", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "model.safetensors", "README.md", "modeling.py",
		"onnx/model.onnx", "onnx/model_O4.onnx", "onnx/model_qint8_avx512.onnx", "openvino/openvino_model.xml", "openvino/config.json", ".gitattributes")
	for name, c := range map[string]struct {
		files    []registry.File
		filename string
		main     string
		with     string // external data
		refused  string
	}{
		"the usual one":                   {files: repository, main: "onnx/model.onnx"},
		"one that is named":               {files: repository, filename: "onnx/model_O4.onnx", main: "onnx/model_O4.onnx"},
		"one by its base name":            {files: repository, filename: "model_O4.onnx", main: "onnx/model_O4.onnx"},
		"one that is not there":           {files: repository, filename: "model_q4.onnx", refused: "none of the 3"},
		"the top before the folder":       {files: listing("onnx/model.onnx", "model.onnx"), main: "model.onnx"},
		"the only one":                    {files: listing("int8.onnx"), main: "int8.onnx"},
		"several, none of them usual":     {files: listing("a.onnx", "b.onnx"), refused: "one of the 2"},
		"weights outside of the graph":    {files: listing("onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx_data", "model.onnx_data"), main: "onnx/model.onnx", with: "onnx/model.onnx_data"},
		"weights in several files":        {files: listing("model.onnx", "model.onnx_data", "model.onnx_data_1"), main: "model.onnx", with: "model.onnx_data model.onnx_data_1"},
		"weights by another's convention": {files: listing("model.onnx", "model.onnx.data"), main: "model.onnx", with: "model.onnx.data"},
		"none":                            {files: listing("model.safetensors"), refused: "safetensors"},
	} {
		set, err := ONNX(c.files, c.filename)
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: got %+v, %v", name, set, err)
			}
			continue
		}
		if err != nil || set.Main != c.main || strings.Join(pathsOf(set.Files[1:]), " ") != c.with {
			t.Errorf("%s: got %+v, %v", name, set, err)
		}
	}
	want := []string{"1_Pooling/config.json", "README.md", "config.json", "modules.json", "tokenizer.json", "vocab.txt"}
	if got := pathsOf(BesideONNX(repository, "onnx/model.onnx", false)); !slices.Equal(got, want) {
		t.Errorf("beside it are %v", got)
	}
	if got := pathsOf(BesideONNX(append(repository, listing("onnx/config.json")...), "onnx/model.onnx", true)); !slices.Contains(got, "modeling.py") || !slices.Contains(got, "onnx/config.json") || slices.Contains(got, "openvino/config.json") {
		t.Errorf("with code, beside it are %v", got)
	}
}
