package local

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// walked is what a folder holds, sorted by name.
type walked struct {
	files []found
	notes []string
}

// walk lists the regular files below a folder. Names that begin with a dot are left out: they are caches and
// repositories. A loop of links, a dangling link or a pipe where a model's file should be is an error.
func (in *inspection) walk(root string) (*walked, error) {
	w := &walked{}
	info, err := os.Stat(root)
	if err != nil {
		return nil, explain(root, root, err)
	}
	if err := in.folder(w, root, "", []above{{root, info}}); err != nil {
		return nil, headers.InFile(err, root)
	}
	slices.SortFunc(w.files, func(a, b found) int { return strings.Compare(a.rel, b.rel) })
	return w, nil
}

// above is one folder on the way down, to recognise it when a link leads back.
type above struct {
	path string
	info fs.FileInfo
}

func (in *inspection) folder(w *walked, dir, rel string, parents []above) error {
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_DIRECTORY, 0)
	if err != nil {
		return explain(dir, cmp.Or(rel, "the folder"), err)
	}
	defer func() { _ = d.Close() }() // only read from
	for {
		if err := in.ctx.Err(); err != nil {
			return err
		}
		// In portions, so that a folder of a million files is refused before its list fills the memory.
		list, err := d.ReadDir(256)
		for _, e := range list {
			if strings.HasPrefix(e.Name(), ".") {
				continue
			}
			if err := in.entry(w, dir, path.Join(rel, e.Name()), e, parents); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return explain(dir, cmp.Or(rel, "the folder"), err)
		}
	}
}

func (in *inspection) entry(w *walked, dir, rel string, e fs.DirEntry, parents []above) error {
	full := filepath.Join(dir, e.Name())
	link := e.Type()&fs.ModeSymlink != 0
	info, err := os.Stat(full)
	if err != nil {
		if link && errors.Is(err, fs.ErrNotExist) {
			return dangling(w, full, rel)
		}
		return explain(full, rel, err)
	}
	if link {
		if err := in.roots.hold(full, rel); err != nil {
			return err
		}
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		if len(w.files) == maxFiles {
			return registry.Errorf(registry.CodeInvalid, "there are more than %d files; set source_path to the folder of one model", maxFiles)
		}
		w.files = append(w.files, found{rel, full, info})
	case mode.IsDir():
		for _, p := range parents {
			if os.SameFile(p.info, info) {
				return registry.Errorf(registry.CodeInvalid, "%s is a symbolic link that leads back to %s, which it is in; remove the link", rel, p.path)
			}
		}
		if len(parents) > maxDepth {
			return registry.Errorf(registry.CodeInvalid, "folders are nested more than %d deep at %s; set source_path to the folder of one model", maxDepth, rel)
		}
		return in.folder(w, full, rel, append(parents[:len(parents):len(parents)], above{full, info}))
	case matters(rel):
		return registry.Errorf(registry.CodeInvalid, "%s is %s, not a file; remove it or put the file in its place", rel, kindOf(mode))
	default:
		w.notes = append(w.notes, rel+" is "+kindOf(mode)+" and is ignored.")
	}
	return nil
}

func dangling(w *walked, full, rel string) error {
	target, err := os.Readlink(full)
	if err != nil {
		return explain(full, rel, err)
	}
	if matters(rel) {
		return headers.Missing("Restore the file, or copy the model together with what its links point to", "%s is a symbolic link to %s, which does not exist", rel, target)
	}
	w.notes = append(w.notes, rel+" is a dangling symbolic link and is ignored.")
	return nil
}

// matters reports whether a file of this name could be one that an engine needs.
func matters(rel string) bool {
	switch strings.ToLower(path.Ext(rel)) {
	case ".gguf", ".safetensors", ".onnx", ".bin", ".pt", ".pth", ".json", ".model", ".txt", ".py", ".jinja":
		return true
	}
	return false
}
