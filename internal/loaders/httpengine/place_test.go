package httpengine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func atSocket() Config {
	return Config{Loader: "test", Title: "The engine", CommandOnSocket: func(string, string) Command { return Command{} }}
}

// TestChoosesASocket: whatever lies in the folder, the path that is chosen is in it, nothing is there, and the folder is closed
// to others afterwards.
func TestChoosesASocket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "place") //nolint:usetesting // rapid.T has no TempDir: one folder for each draw
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if err := os.Chmod(dir, os.FileMode(rapid.SampledFrom([]int{0o700, 0o750, 0o755, 0o777, 0o500}).Draw(t, "mode"))); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 8).Draw(t, "loads") {
			at, err := choosePlace(atSocket(), dir)
			if err != nil {
				t.Fatal(err)
			}
			path := at.base.Socket()
			if filepath.Dir(path) != dir || at.number() != 0 {
				t.Fatalf("chose %s in %s, port %d", path, dir, at.number())
			}
			if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm()&0o077 != 0 {
				t.Fatalf("the folder is open: %v, %v", fi.Mode(), err)
			}
			switch rapid.IntRange(0, 3).Draw(t, "taken by") {
			case 0:
				err = os.WriteFile(path, nil, 0o600)
			case 1:
				err = os.Mkdir(path, 0o700)
			case 2:
				err = os.Symlink("nowhere", path)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := names(t, dir)
			at.release(nil) // removes nothing that is no socket
			if after := names(t, dir); !slices.Equal(before, after) {
				t.Fatalf("of %v there are %v", before, after)
			}
		}
	})
}

func names(t *rapid.T, dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestRefusesAFolderThatIsNotOurs(t *testing.T) {
	dir := t.TempDir()
	link, file, foreign := filepath.Join(dir, "link"), filepath.Join(dir, "file"), filepath.Join(dir, "foreign")
	for _, err := range []error{os.Symlink(t.TempDir(), link), os.WriteFile(file, nil, 0o600), os.Mkdir(foreign, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() != 0 {
		foreign = "/" // of root, and so not ours
	} else if err := os.Chown(foreign, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"a link": link, "a file": file, "somebody else's": foreign, "nothing": filepath.Join(dir, "nothing")} {
		at, err := choosePlace(atSocket(), path)
		if registry.CodeOf(err) != registry.CodeInternal || !strings.Contains(err.Error(), "load again") {
			t.Errorf("%s: %+v, %v", name, at, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("there are %v, %v", entries, err)
	}
}
