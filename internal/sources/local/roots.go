package local

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// roots are the folders that models may be read from; none allows any.
type roots []string

// allow compares words only, so that nothing outside of the roots is even looked at.
func (r roots) allow(path string) bool {
	for _, root := range r {
		if within(root, path) {
			return true
		}
		if resolved, err := filepath.EvalSymlinks(root); err == nil && within(resolved, path) {
			return true
		}
	}
	return len(r) == 0
}

// hold checks that a path, all links followed, is still within the roots. name is how it is called in the message.
func (r roots) hold(path, name string) error {
	if len(r) == 0 {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return explain(path, name, err)
	}
	return r.contain(resolved, name)
}

// holdOpen checks the same of a file that is open: the links on the way to it may have been changed between looking and
// opening.
func (r roots) holdOpen(file *os.File, name string) error {
	if len(r) == 0 {
		return nil
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return r.hold(file.Name(), name) // no /proc here: look once more
	}
	return r.contain(real, name)
}

func (r roots) contain(resolved, name string) error {
	for _, root := range r {
		if real, err := filepath.EvalSymlinks(root); err == nil && within(real, resolved) {
			return nil
		}
	}
	return registry.Errorf(registry.CodeInvalid, "%s is a link that leads to %s, outside of the folders that this server may read models from (%s); put the file itself there", name, resolved, strings.Join(r, ", "))
}

func within(root, path string) bool {
	rel, err := filepath.Rel(root, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
