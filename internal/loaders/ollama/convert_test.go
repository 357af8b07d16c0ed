package ollama_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestConverts: a folder as Transformers saves it is converted, quantised as asked, answers, and is converted only once.
func TestConverts(t *testing.T) {
	program, _ := engine(t)
	dir, models := tinyFolder(t), t.TempDir()
	l := ollama.New(ollama.Options{Path: program, ModelsDir: models, TagPrefix: tag(t)})
	for bits, want := range map[int]string{0: "F16", 4: "Q4_K_M", 8: "Q8_0"} {
		t.Run(want, func(t *testing.T) {
			sp := tinySpec(dir, bits)
			in, msgs := loadIt(t, l, &sp)
			if !strings.Contains(msgs, "Converting the model") {
				t.Errorf("the conversion was not reported: %s", msgs)
			}
			if bits > 0 && !strings.Contains(msgs, "quantising it to "+strings.ToLower(want)) && !strings.Contains(msgs, "quantising it to q4_K_M") {
				t.Errorf("the quantisation was not reported: %s", msgs)
			}
			if got := details(t, in); got.QuantizationLevel != want || got.Family != "llama" {
				t.Errorf("Ollama shows %+v", got)
			}
			if text := complete(t, in, "a"); text == "" {
				t.Error("it answers nothing")
			}
			stopIt(t, in)

			before := tree(t, models)
			again := tinySpec(dir, bits)
			in, msgs = loadIt(t, l, &again)
			if strings.Contains(msgs, "Converting") || tree(t, models) != before {
				t.Errorf("it was converted again: %s", msgs)
			}
			stopIt(t, in)
		})
	}
	left, err := filepath.Glob(filepath.Join(models, "blobs", ".llmm", "convert-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// TestEmbeds: an encoder is converted, and answers embeddings and nothing else.
func TestEmbeds(t *testing.T) {
	program, _ := engine(t)
	dir := tinyEncoder(t)
	sp := tinySpec(dir, 0)
	sp.Artifact.Facts = registry.Facts{Format: registry.FormatSafetensors, Architecture: "BertModel", Embedding: true, ContextLength: 128, WeightBytes: sp.Artifact.Bytes}
	in, _ := loadIt(t, ollama.New(ollama.Options{Path: program, ModelsDir: t.TempDir(), TagPrefix: tag(t)}), &sp)
	if ep := in.Endpoint(); len(ep.APIs) != 1 || ep.APIs[0] != registry.APIEmbeddings || ep.ContextLength != 128 {
		t.Errorf("endpoint %+v", ep)
	}
	var got struct {
		Data []struct {
			Embedding []float64 `json:"embedding"`
		} `json:"data"`
	}
	ask(t, in, "/v1/embeddings", map[string]any{"model": in.Endpoint().Model, "input": []string{"hello world", "two"}}, &got)
	if len(got.Data) != 2 || len(got.Data[0].Embedding) != 64 || slices.Equal(got.Data[0].Embedding, got.Data[1].Embedding) {
		t.Errorf("it answers %+v", got)
	}
	if err := in.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestQuantizesGGUF: a GGUF file in f16 is quantised as asked, and the file itself is not touched.
func TestQuantizesGGUF(t *testing.T) {
	program, _ := engine(t)
	models := t.TempDir()
	l := ollama.New(ollama.Options{Path: program, ModelsDir: models, TagPrefix: tag(t)})
	from := tinySpec(tinyFolder(t), 0)
	in, _ := loadIt(t, l, &from)
	stopIt(t, in)
	blobs, err := filepath.Glob(filepath.Join(models, "blobs", "sha256-*"))
	if err != nil {
		t.Fatal(err)
	}
	var f16 string
	for _, b := range blobs {
		if fi, err := os.Stat(b); err == nil && fi.Size() > 1<<20 {
			f16 = b
		}
	}
	dir := t.TempDir()
	gguf := filepath.Join(dir, "tiny.gguf")
	if err := os.Rename(f16, gguf); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	sp := tinySpec(dir, 8)
	sp.Artifact.Path, sp.Model.SourcePath, sp.Model.ModelFormat = gguf, gguf, registry.FormatGGUF
	sp.Artifact.Facts.DType, sp.Artifact.Facts.Architecture = "f16", "llama"
	in, _ = loadIt(t, l, &sp)
	if got := details(t, in); got.QuantizationLevel != "Q8_0" {
		t.Errorf("Ollama shows %+v", got)
	}
	stopIt(t, in)
	if tree(t, dir) != before {
		t.Error("the file was touched")
	}
	sp.Artifact.Facts.DType = "q4_1"
	fill(t, &sp)
	if _, err := l.Load(t.Context(), sp, func(registry.Progress) {}); registry.CodeOf(err) != registry.CodeInvalid || !strings.Contains(err.Error(), "quantization_bits") {
		t.Errorf("weights that are quantised already: %v", err)
	}
}

// TestBadFolders: what cannot be converted is told with its kind, and nothing is left.
func TestBadFolders(t *testing.T) {
	program, _ := engine(t)
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		kind  registry.FailureKind
		says  string
	}{
		"no config": {func(t *testing.T, dir string) { remove(t, dir, "config.json") }, registry.FailureMissingFile, "config.json"},
		"unknown architecture": {func(t *testing.T, dir string) {
			writeJSON(t, filepath.Join(dir, "config.json"), map[string]any{"architectures": []string{"WibbleForCausalLM"}})
		}, registry.FailureUnsupportedArch, "WibbleForCausalLM"},
		"truncated shard": {func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "model.safetensors"), 400_000); err != nil {
				t.Fatal(err)
			}
		}, registry.FailureCorruptFile, "not whole"},
		"no tokenizer": {func(t *testing.T, dir string) { remove(t, dir, "tokenizer.json") }, registry.FailureMissingFile, "tokenizer.json"},
		"index names an absent file": {func(t *testing.T, dir string) {
			writeJSON(t, filepath.Join(dir, "model.safetensors.index.json"), map[string]any{"weight_map": map[string]string{"lm_head.weight": "model-00002-of-00002.safetensors"}})
		}, registry.FailureMissingFile, "model-00002-of-00002.safetensors"},
		"only PyTorch files": {func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, "model.safetensors"), filepath.Join(dir, "pytorch_model.bin")); err != nil {
				t.Fatal(err)
			}
		}, registry.FailureMissingFile, "only PyTorch files"},
		"no weights": {func(t *testing.T, dir string) { remove(t, dir, "model.safetensors") }, registry.FailureMissingFile, "no weights"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, models := tinyFolder(t), t.TempDir()
			c.spoil(t, dir)
			sp := tinySpec(dir, 0)
			f := loadFails(t, ollama.New(ollama.Options{Path: program, ModelsDir: models, TagPrefix: tag(t)}), &sp)
			if f.Kind != c.kind || !strings.Contains(f.Msg, c.says) || f.Hint == "" {
				t.Errorf("got %s: %s (%s)\n%s", f.Kind, f.Msg, f.Hint, strings.Join(f.LogTail, "\n"))
			}
			if got := tree(t, models); strings.Contains(got, "sha256") || strings.Contains(got, "convert-") {
				t.Errorf("left: %s", got)
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}
