package llamacpp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestJudge(t *testing.T) {
	dir := t.TempDir()
	whole, thin := filepath.Join(dir, "whole"), filepath.Join(dir, "thin")
	for path, content := range map[string]string{whole: "\x00llama\x00gptneox\x00starcoder2\x00", thin: "loads a library"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := New(Options{})
	for name, c := range map[string]struct {
		path, arch string
		bits       int
		why        string
	}{
		"one that it knows":           {whole, "llama", 0, ""},
		"one that it does not":        {whole, "newest", 0, "does not know the architecture newest"},
		"the end of another's name":   {whole, "lama", 0, ""}, // a doubt must never be a false one
		"a program without the names": {thin, "newest", 0, ""},
		"bits":                        {whole, "llama", 4, "quantization_bits is set"},
	} {
		got := l.Judge(registry.Model{QuantizationBits: c.bits}, registry.Facts{Architecture: c.arch, Format: registry.FormatGGUF}, registry.DeviceCPU, loaders.Version{Path: c.path})
		if (got.Why == "") != (c.why == "") || !strings.Contains(got.Why, c.why) || got.Sure {
			t.Errorf("%s: %+v, want %q", name, got, c.why)
		}
	}
}
