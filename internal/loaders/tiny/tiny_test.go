package tiny

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
)

// TestFormatsAgree holds both formats against what the product itself reads of their headers.
func TestFormatsAgree(t *testing.T) {
	var facts []registry.Facts
	for _, format := range Formats {
		dir := t.TempDir()
		path, size, err := Write(dir, format)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := local.New(local.Options{}).Resolve(t.Context(), sources.Ref{Path: path, Format: format})
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		f := snap.Facts
		if f.Parameters == 0 || f.ContextLength != ContextLength || f.Layers != layers || f.KVHeads != kvHeads || f.KeyLength != head || !f.ChatTemplate || !f.Tokenizer {
			t.Errorf("%s: not all of the facts can be read: %+v", format, f)
		}
		if size < 500_000 || size > 1_000_000 {
			t.Errorf("%s takes %d bytes", format, size)
		}
		facts = append(facts, f)
	}
	if facts[0].Parameters != facts[1].Parameters {
		t.Errorf("%d parameters as GGUF, %d as safetensors", facts[0].Parameters, facts[1].Parameters)
	}
}

func TestTheSameBytesEveryTime(t *testing.T) {
	var got [2][]byte
	for i := range got {
		dir := t.TempDir()
		if _, _, err := Write(dir, registry.FormatSafetensors); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		got[i] = b
	}
	if !bytes.Equal(got[0], got[1]) {
		t.Error("two models differ")
	}
}

func TestNoSuchFormat(t *testing.T) {
	if _, _, err := Write(t.TempDir(), registry.FormatONNX); registry.CodeOf(err) != registry.CodeUnsupported {
		t.Errorf("a format that it cannot make: %v", err)
	}
}
