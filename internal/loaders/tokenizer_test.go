package loaders

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestTokenizerPath(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	for _, dir := range []string{"tokenizer", "onnx"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	graph := filepath.Join(root, "onnx", "model.onnx")
	if err := os.WriteFile(graph, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	folder := registry.Artifact{Path: root, Files: []registry.File{{Path: "model.safetensors"}}}
	inFolder := registry.Artifact{Path: graph, Files: []registry.File{{Path: "config.json"}, {Path: "onnx/model.onnx"}}}
	alone := registry.Artifact{Path: graph, Files: []registry.File{{Path: "model.onnx"}}}
	own := filepath.Join(root, "tokenizer")
	for _, c := range []struct {
		named string
		art   registry.Artifact
		want  string // "-" for an error
	}{
		{"", folder, ""}, {"org/model", folder, ""}, {"tokenizer", folder, own}, {"tokenizer", inFolder, own}, {"tokenizer", alone, "-"},
		{elsewhere, folder, elsewhere}, {"org/other", folder, "-"}, {elsewhere + "/nothing", folder, "-"}, {"../" + filepath.Base(elsewhere), folder, root},
	} {
		got, err := TokenizerPath(LoadSpec{Artifact: c.art, Model: registry.Model{SourcePath: "org/model", TokenizerPath: c.named}}, ArtifactFolder(c.art))
		if c.want == "-" {
			if e := registry.AsError(err); e == nil || e.Failure == nil || e.Failure.Kind != registry.FailureMissingFile {
				t.Errorf("%q of %s: %q %v", c.named, c.art.Path, got, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%q of %s: %q, want %q: %v", c.named, c.art.Path, got, c.want, err)
		}
	}
}
