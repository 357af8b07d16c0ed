package transformers

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

//go:embed worker/llmm_worker/*.py
var sources embed.FS

// begin runs the worker from the folder that is its only argument. Isolated, Python takes none from PYTHONPATH.
const begin = `import runpy, sys; sys.path.insert(0, sys.argv.pop()); runpy.run_module("llmm_worker", run_name="__main__", alter_sys=True)`

// argv is the command line of a worker that was written to dir.
func argv(python, dir string) []string {
	return append(append([]string{python}, isolated...), "-c", begin, dir)
}

// worker writes the Python package out and returns the folder to import it from. The folder is named by what is in it, so
// that another version of this program never changes the code of a worker that is starting.
func (l *Loader) worker() (string, error) {
	root := l.o.WorkerDir
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", writeFailed(err)
		}
		root = filepath.Join(cache, "llmm", "worker")
	}
	files := map[string][]byte{}
	sum := sha256.New()
	err := fs.WalkDir(sources, "worker", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := sources.ReadFile(p)
		files[d.Name()] = b
		fmt.Fprintf(sum, "%s %d\n%s", d.Name(), len(b), b)
		return err
	})
	if err != nil {
		return "", writeFailed(err)
	}
	final := filepath.Join(root, hex.EncodeToString(sum.Sum(nil))[:16])
	if whole(filepath.Join(final, "llmm_worker"), files) {
		return final, nil
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", writeFailed(err)
	}
	tmp, err := os.MkdirTemp(root, ".new-")
	if err != nil {
		return "", writeFailed(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Mkdir(filepath.Join(tmp, "llmm_worker"), 0o700); err != nil {
		return "", writeFailed(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(tmp, "llmm_worker", name), b, 0o600); err != nil {
			return "", writeFailed(err)
		}
	}
	// One that somebody damaged goes; one that another load has just written stays.
	if err := os.Rename(tmp, final); err != nil {
		if whole(filepath.Join(final, "llmm_worker"), files) {
			return final, nil
		}
		if err := os.RemoveAll(final); err != nil {
			return "", writeFailed(err)
		}
		if err := os.Rename(tmp, final); err != nil && !whole(filepath.Join(final, "llmm_worker"), files) {
			return "", writeFailed(err)
		}
	}
	return final, nil
}

func whole(dir string, files map[string][]byte) bool {
	for name, b := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, b) {
			return false
		}
	}
	return true
}

func writeFailed(err error) error {
	return &registry.Error{Code: registry.CodeInternal, Op: "transformers.Load", Msg: fmt.Sprintf("The worker cannot be written out: %v. Look at the room and the rights of the cache folder", err), Err: err}
}
