package manager

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// A local model that leads into what a source keeps, by its path or by a link, uses it: retention leaves it alone.
func TestBorrowedFiles(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, func(o *Options) {
		o.Sources = append(o.Sources[:0:0], local.New(local.Options{}))
		withDepot(&d)(o)
	})
	r.fetchable("m", "org/m")
	r.end(r.mustFetch("m"), registry.OperationSucceeded)
	if err := r.Delete(r.ctx(), "m", 0, "ada"); err != nil {
		t.Fatal(err)
	}
	models := func() []string {
		a, ok := r.onDisk("org/m", "r1")
		if !ok {
			t.Fatal("it is not on disk")
		}
		return a.Models
	}
	if got := models(); len(got) != 0 {
		t.Errorf("used by %q", got)
	}
	inside := filepath.Join(d.Folder("org/m", "r1"), "weights.gguf")
	links := t.TempDir()
	if err := os.Symlink(d.Folder("org/m", "r1"), filepath.Join(links, "folder")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join("folder", "weights.gguf"), filepath.Join(links, "file.gguf")); err != nil {
		t.Fatal(err)
	}
	for id, path := range map[string]string{"a": inside, "b": filepath.Join(links, "folder", "weights.gguf"), "c": filepath.Join(links, "file.gguf"), "elsewhere": filepath.Join(links, "x.gguf")} {
		if _, _, err := r.Register(r.ctx(), registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: path, ModelFormat: registry.FormatGGUF}, PutOptions{Actor: "ada", Persist: true}); err != nil {
			t.Fatal(err)
		}
	}
	if got := models(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("used by %q", got)
	}
	items, err := r.Retain(r.ctx(), registry.Retention{MaxBytes: 1, UnusedFor: registry.Duration(time.Minute)}, false, "ada")
	if err != nil || len(items) != 0 {
		t.Errorf("%+v %v", items, err)
	}
}

func TestHopsEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if got := hops(loop); !got[loop] || len(got) > 2 {
		t.Errorf("%v", got)
	}
	if got := hops("/nowhere/at/all"); len(got) != 1 {
		t.Errorf("%v", got)
	}
}
