package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Limits on a model's folder, so that a path like / is refused and not walked for an hour.
const (
	maxFiles = 10_000
	maxDepth = 8
)

// found is a regular file, links followed. rel is relative to the model's root, with slashes.
type found struct {
	rel, path string
	info      fs.FileInfo
}

// locate checks a path that a user gave in a field and returns it cleaned, with what is there, links followed. It is a
// regular file or a folder within the roots.
func (in *inspection) locate(field, path string) (string, fs.FileInfo, error) {
	bad := func(format string, args ...any) error {
		return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the model cannot be found",
			Fields: []registry.FieldError{{Field: field, Msg: fmt.Sprintf(format, args...)}}}
	}
	switch {
	case path == "":
		return "", nil, bad("is empty; give the absolute path of a file or folder on this machine")
	case strings.ContainsRune(path, 0):
		return "", nil, bad("holds a zero byte")
	case !filepath.IsAbs(path):
		return "", nil, bad("is %q, which is not absolute; begin it with a slash", path)
	}
	path = filepath.Clean(path)
	if !in.roots.allow(path) {
		return "", nil, bad("is %s, outside of the folders that this server may read models from: %s", path, strings.Join(in.roots, ", "))
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", nil, absent(field, path, err)
	}
	if err := in.roots.hold(path, path); err != nil {
		return "", nil, err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", nil, bad("is %s, which is %s; it must be a file or a folder", path, kindOf(info.Mode()))
	}
	return path, info, nil
}

// absent explains why there is nothing at a path that a user gave.
func absent(field, path string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return explain(path, path, err)
	}
	if target, linkErr := os.Readlink(path); linkErr == nil {
		return headers.Missing("Mount or restore what it points to, or correct "+field, "%s is a symbolic link to %s, which does not exist", path, target)
	}
	for parent := filepath.Dir(path); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		switch {
		case err == nil && !info.IsDir():
			return registry.Errorf(registry.CodeNotFound, "there is nothing at %s: %s is a file, not a folder; correct %s", path, parent, field)
		case err == nil:
			return registry.Errorf(registry.CodeNotFound, "there is nothing at %s (the last folder on the way that exists is %s); correct %s or mount the disk", path, parent, field)
		case parent == filepath.Dir(parent):
			return registry.Errorf(registry.CodeNotFound, "there is nothing at %s; correct %s", path, field)
		}
	}
}

// kindOf names what is neither a file nor a folder.
func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	case m.IsDir():
		return "a folder"
	}
	return "not a regular file"
}

// explain turns an error of the operating system into one that helps. name is how the file is called in the message.
func explain(path, name string, err error) error {
	cause := err
	var pe *fs.PathError
	if errors.As(err, &pe) {
		cause = pe.Err // its own path would be said twice
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return headers.Missing("Put it back and load again", "%s vanished while the model was looked at", name)
	case errors.Is(err, fs.ErrPermission):
		return registry.Errorf(registry.CodeInvalid, "%s cannot be read: permission denied%s; let the server's user read it (chmod or chown)", name, whose(path))
	case errors.Is(err, syscall.ELOOP):
		return registry.Errorf(registry.CodeInvalid, "%s is a loop of symbolic links; remove the link", name)
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		return registry.Errorf(registry.CodeInvalid, "%s is no path that this system can open: %w", name, cause)
	}
	return registry.Errorf(registry.CodeUnavailable, "%s cannot be read: %w; check the disk and load again", name, cause)
}

// whose says which permissions stand in the way, where that can be seen: those of the file or, when it cannot even be
// looked at, of the first folder above that can.
func whose(path string) string {
	for {
		if info, err := os.Stat(path); err == nil {
			owner := ""
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				owner = fmt.Sprintf(" and belongs to user %d, group %d", st.Uid, st.Gid)
			}
			return fmt.Sprintf(" (%s is %s%s; the server runs as user %d)", path, info.Mode(), owner, os.Geteuid())
		}
		if path == filepath.Dir(path) {
			return ""
		}
		path = filepath.Dir(path)
	}
}

// open opens a file that was found, makes sure that it is the very same, and counts it as verified when closed.
func (in *inspection) open(f found) (headers.File, error) {
	if err := in.ctx.Err(); err != nil {
		return nil, err
	}
	// Not blocking, because a named pipe may have taken the file's place, and opening one waits for a writer.
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain(f.path, f.rel, err)
	}
	info, err := file.Stat()
	if err == nil {
		err = in.roots.holdOpen(file, f.rel)
	}
	if err == nil && (!os.SameFile(info, f.info) || info.Size() != f.info.Size()) {
		err = registry.Errorf(registry.CodeUnavailable, "%s was replaced or changed while it was looked at; load again when the copy has finished", f.rel)
	}
	if err != nil {
		_ = file.Close() // only read from
		return nil, err
	}
	return &reading{File: file, in: in, found: f}, nil
}

// reading is an open file that stops when the context ends.
type reading struct {
	*os.File
	in    *inspection
	found found
}

func (r *reading) ReadAt(p []byte, off int64) (int, error) {
	if err := r.in.ctx.Err(); err != nil {
		return 0, err
	}
	return r.File.ReadAt(p, off)
}

func (r *reading) Close() error {
	if !r.in.verified[r.found.rel] {
		r.in.verified[r.found.rel] = true
		r.in.progress(r.found.rel, r.found.info.Size())
	}
	return r.File.Close()
}

// readable makes sure that a file which was not read yet could be.
func (in *inspection) readable(root string, f found) error {
	if in.verified[f.rel] {
		return nil
	}
	file, err := in.open(f)
	if err != nil {
		return headers.InFile(err, root)
	}
	return file.Close()
}

// beside returns a regular file next to one that was named, nil when there is none.
func (in *inspection) beside(root, name string) (*found, error) {
	full := filepath.Join(root, name)
	info, err := os.Stat(full)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, explain(full, name, err)
	case !info.Mode().IsRegular():
		return nil, registry.Errorf(registry.CodeInvalid, "%s is %s, not a file; remove it or put the file in its place", name, kindOf(info.Mode()))
	}
	if err := in.roots.hold(full, name); err != nil {
		return nil, err
	}
	return &found{name, full, info}, nil
}
