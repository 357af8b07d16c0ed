package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func look(ctx context.Context, t *testing.T) (*inspection, found) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := os.WriteFile(path, sourcetest.TinyGGUF(1), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	in := New(Options{}).look(ctx)
	return in, found{rel: "m.gguf", path: path, info: info}
}

// TestOpenIsTheSameFile: what was checked (its kind, that it is within the roots) is what is read.
func TestOpenIsTheSameFile(t *testing.T) {
	in, f := look(t.Context(), t)
	for name, replace := range map[string]func() error{
		"another file of the same size": func() error { return os.WriteFile(f.path+"2", sourcetest.TinyGGUF(1), 0o600) },
		"a named pipe":                  func() error { return syscall.Mkfifo(f.path+"2", 0o600) },
		"a longer file":                 func() error { return os.WriteFile(f.path+"2", make([]byte, 1<<20), 0o600) },
	} {
		if err := errors.Join(replace(), os.Rename(f.path+"2", f.path)); err != nil {
			t.Fatal(err)
		}
		if _, err := in.open(f); registry.CodeOf(err) != registry.CodeUnavailable {
			t.Errorf("%s in its place: %v", name, err)
		}
	}
}

// TestReadingStops: a header of many megabytes on a slow disk is left when the context ends.
func TestReadingStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	in, f := look(ctx, t)
	file, err := in.open(f)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := file.ReadAt(make([]byte, 4), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a read after the end of the context: %v", err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
}

// TestRevisionSeesAnotherInode: a file that was replaced by one of the same size and time is another revision.
func TestRevisionSeesAnotherInode(t *testing.T) {
	_, f := look(t.Context(), t)
	ref := sources.Ref{Path: f.path, Format: registry.FormatGGUF}
	before, err := New(Options{}).Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.WriteFile(f.path+"2", sourcetest.TinyGGUF(2), 0o600),
		os.Chtimes(f.path+"2", f.info.ModTime(), f.info.ModTime()), os.Rename(f.path+"2", f.path))
	if err != nil {
		t.Fatal(err)
	}
	after, err := New(Options{}).Resolve(t.Context(), ref)
	if err != nil || before.Revision == after.Revision {
		t.Errorf("%s before and %s after, %v", before.Revision, after.Revision, err)
	}
}
