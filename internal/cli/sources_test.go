package cli

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
)

// A cache on a disk of its own is shown, one beside the data is not shown twice.
func TestDisks(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", data)
	hub := func(cache string) []sources.Source {
		s, err := huggingface.New(huggingface.Options{Cache: cache, Getenv: func(string) string { return "" }})
		if err != nil {
			t.Fatal(err)
		}
		return []sources.Source{s}
	}
	beside := filepath.Join(data, "not", "made", "yet")
	if got := disks(data, hub(beside)); slices.Contains(got, beside) {
		t.Errorf("%q", got)
	}
	const other = "/proc" // a file system of its own on every Linux
	if got := disks(data, hub(other)); !slices.Contains(got, other) {
		t.Errorf("%q", got)
	}
}
