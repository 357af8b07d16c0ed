package manifest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func manyModels(n int) []registry.Model {
	out := make([]registry.Model, n)
	for i := range out {
		out[i] = registry.Model{
			ModelID: fmt.Sprintf("org-%d/model-%d", i%50, i), SourceType: "huggingface", SourcePath: fmt.Sprintf("org-%d/model-%d", i%50, i), ModelFormat: "safetensors",
			Revision: "v1", DevicePreference: "cuda", RequiredGPUMemoryMB: int64(4000 + i), TrustRemoteCode: i%2 == 0, Description: "One of many, for measuring.",
			Tags: []string{"chat", "measured"}, CustomLoaderParams: map[string]any{"threads": int64(4)},
		}.WithDefaults()
	}
	return out
}

func exportTo(tb testing.TB, w io.Writer, list []registry.Model) {
	tb.Helper()
	if err := Export(w, func(yield func(registry.Record) error) error {
		for _, m := range list {
			if err := yield(registry.Record{Model: m}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
}

// Budget: 1 s.
func BenchmarkParse10000(b *testing.B) {
	text := []byte(exported(b, manyModels(10_000)...))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if d, err := Parse(text); err != nil || len(d.Entries) != 10_000 {
			b.Fatal(err)
		}
	}
}

// Budget: 1 s.
func BenchmarkExport10000(b *testing.B) {
	list := manyModels(10_000)
	for b.Loop() {
		exportTo(b, io.Discard, list)
	}
}

// One new entry in a file of 1,000, to disk and forced there. Budget: a few milliseconds.
func BenchmarkAppendTo1000(b *testing.B) {
	benchmarkApply(b, 1000, func(i int) Edit { return put(small(fmt.Sprintf("new-%d", i))) })
}

// One field of one entry in the middle of 5,000.
func BenchmarkEditIn5000(b *testing.B) {
	list := manyModels(5000)
	benchmarkApply(b, 5000, func(i int) Edit {
		return put(with(list[2500], func(m *registry.Model) { m.RequiredGPUMemoryMB = int64(i + 1) }))
	})
}

func benchmarkApply(b *testing.B, n int, edit func(i int) Edit) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "models.yaml")
	if err := os.WriteFile(path, []byte(exported(b, manyModels(n)...)), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := OpenFile(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := applyAll(f, put(small("first"))); err != nil { // reads the file as a whole, once
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		i++
		if err := applyAll(f, edit(i)); err != nil {
			b.Fatal(err)
		}
	}
}

// An import of 10,000 models written into the file at once.
func BenchmarkApply10000(b *testing.B) {
	var edits []Edit
	for _, m := range manyModels(10_000) {
		edits = append(edits, put(m))
	}
	for b.Loop() {
		f, err := OpenFile(filepath.Join(b.TempDir(), "models.yaml"))
		if err != nil {
			b.Fatal(err)
		}
		if err := applyAll(f, edits...); err != nil {
			b.Fatal(err)
		}
	}
}
