package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Edit is one change to a models file: Model is put in (in place of the entry with the same id, or as a new one at
// the end), or the model with the id Delete is taken out.
type Edit struct {
	Model  registry.Model
	Delete string
}

// Refusal is an edit that cannot be made, and why.
type Refusal struct {
	ID  string
	Err error // *registry.Error: CodeInvalid, CodeConflict, CodeUnsupported
}

// File is the models file that the server was started with. Its methods may be called at the same time.
type File struct {
	path string

	mu   sync.Mutex
	last *index // of the text as it was seen last; used again only if the file still holds that very text
}

// OpenFile returns the file at path, which may not exist yet: it is made at the first write, in a folder that must
// exist. CodeInvalid if path is empty or a folder.
func OpenFile(path string) (*File, error) {
	if path == "" {
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "manifest.OpenFile", Msg: "No models file is named; give its path with --models"}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &registry.Error{Code: registry.CodeInternal, Op: "manifest.OpenFile", Msg: fmt.Sprintf("%s: the working folder is unknown; give an absolute path", path), Err: err}
	}
	if info, err := os.Stat(abs); err == nil && !info.Mode().IsRegular() {
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "manifest.OpenFile", Msg: fmt.Sprintf("%s is not a file; name a models.yaml with --models", abs)}
	}
	return &File{path: abs}, nil
}

// Path returns the absolute path, with symbolic links as they were given.
func (f *File) Path() string { return f.path }

// Read parses the file. CodeNotFound if it is missing; CodeInvalid, Malformed if it holds no list of models;
// CodeUnavailable if it cannot be read.
func (f *File) Read() (*Document, error) {
	b, err := os.ReadFile(f.path)
	if err != nil {
		return nil, f.osError("manifest.Read", "read", err)
	}
	doc, err := Parse(b)
	if err != nil {
		return nil, f.named("manifest.Read", err)
	}
	return doc, nil
}

// Apply makes the edits in the file, all that can be made at once, and returns the others. Everything that they are not
// about stays as it is, byte for byte: comments, order, quotes, indentation, line ends. The new text is read back and
// compared with what was meant, then takes the old one's place at once. Edits made by others since are kept. A later
// edit of an id replaces an earlier. Deleting an id that the file does not hold changes nothing.
//
// An edit is refused with CodeInvalid if its model is not valid or would make the file too large, CodeConflict if its id
// differs only in case from another's, and CodeUnsupported if its entry is written in a way that cannot be edited.
//
// With an error nothing was written. CodeInvalid, Malformed: the file does not parse; CodeUnsupported: it is written in
// a way that cannot be edited; CodeBusy: others keep writing it; CodeUnavailable: it cannot be written.
func (f *File) Apply(edits []Edit) ([]Refusal, error) {
	ops, invalid := operations(edits)
	if len(ops) == 0 {
		return invalid, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	const attempts = 10
	for range attempts {
		refused, done, err := f.try(ops)
		if err != nil {
			return nil, err
		}
		if done {
			return append(invalid, refused...), nil
		}
	}
	return nil, &registry.Error{Code: registry.CodeBusy, Op: "manifest.Apply", Msg: f.path + " is being changed by another program all the time; try again when it has finished"}
}

// operations reduces the edits to one for each id, in the order in which ids first appear, and leaves out those whose
// model is not valid.
func operations(edits []Edit) (out []op, invalid []Refusal) {
	at := make(map[string]int, len(edits))
	for _, e := range edits {
		o := op{id: e.Delete}
		if e.Delete == "" {
			m, errs := registry.Decode(encode(e.Model))
			if len(errs) > 0 {
				invalid = append(invalid, Refusal{ID: e.Model.ModelID, Err: &registry.Error{Code: registry.CodeInvalid, Op: "manifest.Apply",
					Msg: fmt.Sprintf("The model %q is not valid and was not written to the models file", clip(e.Model.ModelID)), Fields: errs}})
				continue
			}
			o = op{id: m.ModelID, model: m, fields: encode(m)}
		}
		if i, again := at[o.id]; again {
			out[i] = o
			continue
		}
		at[o.id] = len(out)
		out = append(out, o)
	}
	return out, invalid
}

// try makes the operations on the file as it is now. done is false when somebody wrote it meanwhile.
func (f *File) try(ops []op) (refused []Refusal, done bool, err error) {
	real, err := realPath(f.path)
	if err != nil {
		return nil, false, f.osError("manifest.Apply", "follow the link of", err)
	}
	b, err := os.ReadFile(real)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, false, f.osError("manifest.Apply", "read", err)
	}
	if f.last == nil || !bytes.Equal(f.last.b, b) {
		if f.last, err = newIndex(b); err != nil {
			f.last = nil
			return nil, false, f.named("manifest.Apply", err)
		}
	}
	r, refused := f.last.applyEach(ops)
	for i := range refused {
		refused[i].Err = f.named("manifest.Apply", refused[i].Err)
	}
	if r == nil {
		return refused, true, nil
	}
	if done, err = f.swap(real, b, missing, r.b); err != nil || !done {
		return nil, false, err
	}
	f.last = f.last.after(r)
	return refused, true, nil
}

// after returns the index of a result that was written; nil if it must be read again.
func (x *index) after(r *result) *index {
	if x.kind != listBlock || x.linked || len(r.spans) == 0 {
		return nil
	}
	n := *x
	n.b, n.spans = r.b, r.spans
	n.src = &source{b: r.b} // lines are found by number only while indexing
	return &n
}

// swap puts text in the place of old: written beside it, forced to disk, renamed over it. done is false when the
// file no longer holds old.
func (f *File) swap(real string, old []byte, missing bool, text []byte) (done bool, err error) {
	dir := filepath.Dir(real)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(real)+".new-*")
	if err != nil {
		return false, f.osError("manifest.Apply", "write beside", err)
	}
	defer func() {
		if !done {
			_ = tmp.Close()           // closed already where that matters
			_ = os.Remove(tmp.Name()) // renamed files are not here any more
		}
	}()
	if _, err = tmp.Write(text); err == nil {
		err = likeOriginal(tmp, real, missing)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return false, f.osError("manifest.Apply", "write", err)
	}
	now, err := os.ReadFile(real)
	if gone := errors.Is(err, fs.ErrNotExist); gone != missing || !bytes.Equal(now, old) {
		return false, nil
	}
	if err := os.Rename(tmp.Name(), real); err != nil {
		return false, f.osError("manifest.Apply", "replace", err)
	}
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync() // some file systems cannot; the rename has happened
		_ = d.Close()
	}
	return true, nil
}

// likeOriginal gives the new file the mode and owner of the one it replaces. A new one is for its owner only: it may
// come to hold tokens.
func likeOriginal(tmp *os.File, real string, missing bool) error {
	if missing {
		return tmp.Chmod(0o600)
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		// Only root may give files away; for others the file becomes the server's, as with any editor.
		if err := tmp.Chown(int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return tmp.Chmod(info.Mode().Perm())
}

// realPath follows symbolic links, also one that leads to a file that does not exist yet.
func realPath(path string) (string, error) {
	for range 40 {
		target, err := os.Readlink(path)
		if err != nil {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			return filepath.Join(dir, filepath.Base(path)), err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return "", &fs.PathError{Op: "readlink", Path: path, Err: syscall.ELOOP}
}

// named puts the file's name, and what became of it, into an error about its text.
func (f *File) named(op string, err error) error {
	e := *registry.AsError(err)
	e.Op = op
	e.Fields = slices.Clone(e.Fields)
	switch {
	case e.Malformed && op == "manifest.Apply":
		e.Msg = f.path + " does not parse and was left as it is; mend the line, or move the file away, and try again"
	case e.Malformed:
		e.Msg = f.path + " cannot be read as a list of models; mend the line and start or import again"
	default:
		e.Msg = f.path + " " + e.Msg
	}
	return &e
}

func (f *File) osError(op, verb string, err error) error {
	e := &registry.Error{Code: registry.CodeUnavailable, Op: op, Err: err}
	cause := err
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		cause = pe.Err
	case errors.As(err, &le):
		cause = le.Err
	}
	e.Msg = fmt.Sprintf("could not %s %s: %v", verb, f.path, cause)
	switch {
	case errors.Is(err, fs.ErrNotExist) && op == "manifest.Read":
		e.Code, e.Msg = registry.CodeNotFound, f.path+" does not exist; it is made when the first model is registered"
	case errors.Is(err, fs.ErrNotExist):
		e.Msg += "; make its folder"
	case errors.Is(err, fs.ErrPermission):
		e.Msg += "; let the server's account read and write the file and its folder, or register without persist"
	case errors.Is(err, syscall.EBUSY):
		e.Msg += "; mount the folder that holds it, not the single file"
	case errors.Is(err, syscall.ENOSPC):
		e.Msg += "; free some space"
	}
	return e
}
