// Package local is the source for weights that are already on this machine: a file, or a folder. Nothing is ever copied
// or changed. It follows symbolic links, opens only regular files, and reads no more than headers and small files.
package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Options configure the source.
type Options struct {
	// Roots are the folders that models may be read from, links resolved. Empty allows any folder.
	Roots []string
}

// Source implements sources.Source, Offerer, Checker and Watcher.
type Source struct {
	roots atomic.Pointer[roots]
}

var (
	_ sources.Source  = (*Source)(nil)
	_ sources.Offerer = (*Source)(nil)
	_ sources.Checker = (*Source)(nil)
	_ sources.Watcher = (*Source)(nil)
)

// New returns the source. Roots need not exist yet.
func New(o Options) *Source {
	s := &Source{}
	r := cleaned(o.Roots)
	s.roots.Store(&r)
	return s
}

// SetRoots confines the source to these folders from now on; what was begun before ends under the old ones. None at all
// allows any folder. They need not exist yet. CodeInvalid when one of them is not absolute: nothing is changed then.
func (s *Source) SetRoots(folders []string) error {
	var fields []registry.FieldError
	for _, f := range folders {
		if !filepath.IsAbs(f) || strings.ContainsRune(f, 0) {
			fields = append(fields, registry.FieldError{Field: "roots", Msg: fmt.Sprintf("%q is not an absolute path; begin it with a slash", f)})
		}
	}
	if len(fields) > 0 {
		return &registry.Error{Code: registry.CodeInvalid, Op: "set roots", Msg: "the folders for models were not changed", Fields: fields}
	}
	r := cleaned(folders)
	s.roots.Store(&r)
	return nil
}

// Roots returns the folders that the source is confined to; none means any folder.
func (s *Source) Roots() []string { return slices.Clone(*s.roots.Load()) }

// Within checks that what a model of any source names on this machine is there and within the roots, all links followed,
// also those in a folder. field is what names it. Without roots it looks at nothing. CodeInvalid when it is outside, CodeNotFound
// or CodeLoadingFailed with FailureMissingFile when something is not there, CodeUnavailable when the disk fails.
func (s *Source) Within(ctx context.Context, field, path string) error {
	in := s.look(ctx)
	if len(in.roots) == 0 {
		return nil
	}
	path, info, err := in.locate(field, path)
	if err == nil && info.IsDir() {
		_, err = in.walk(path)
	}
	return err
}

func cleaned(folders []string) roots {
	var r roots
	for _, f := range folders {
		r = append(r, filepath.Clean(f))
	}
	return r
}

// Type returns SourceLocal.
func (s *Source) Type() registry.SourceType { return registry.SourceLocal }

// Resolve finds the files of the model at ref.Path, checks that they are complete and reads their headers. The
// revision is a fingerprint of their names, sizes, times and inodes; ref.Revision is ignored, as there is only one.
//
// Errors: CodeNotFound when nothing is there; CodeInvalid when it is outside of the roots, unreadable, ambiguous, a loop
// of links or of another format; CodeLoadingFailed with FailureMissingFile or FailureCorruptFile when it is incomplete or
// damaged; CodeUnavailable when the disk fails. A cancelled ctx is returned as it is.
func (s *Source) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	return s.look(ctx).snapshot(ref)
}

func (s *Source) look(ctx context.Context) *inspection {
	return &inspection{ctx: ctx, roots: *s.roots.Load(), verified: map[string]bool{}, progress: func(string, int64) {}}
}

// Fetch verifies that the snapshot is still what is on the disk, reading every header again, and returns it as
// the artifact. Errors are those of Resolve, and CodeUnavailable when the files were changed since they were resolved.
func (s *Source) Fetch(ctx context.Context, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	report(registry.Progress{Stage: registry.StageFetch, Done: snap.Bytes, Total: snap.Bytes, Unit: registry.UnitBytes,
		Msg: "Already on this machine: nothing is copied."})
	verify := registry.Progress{Stage: registry.StageVerify, Total: snap.Bytes, Unit: registry.UnitBytes, Msg: "Reading the headers."}
	report(verify)
	in := s.look(ctx)
	in.progress = func(name string, size int64) {
		verify.Done = min(verify.Done+size, verify.Total)
		verify.Msg = fmt.Sprintf("%d of %d files: %s", min(len(in.verified), len(snap.Files)), len(snap.Files), name)
		report(verify)
	}
	now, err := in.snapshot(snap.Ref)
	if err != nil {
		return registry.Artifact{}, err
	}
	if now.Revision != snap.Revision {
		return registry.Artifact{}, changed(snap, now)
	}
	return registry.Artifact{
		Path: filepath.Join(now.Root, now.Main), Revision: now.Revision, Files: now.Files, Bytes: now.Bytes,
		Facts: now.Facts, At: time.Now().UTC(),
	}, nil
}

// changed says in what two looks at the same path differ.
func changed(before, now sources.Snapshot) error {
	sizes := map[string]int64{}
	for _, f := range now.Files {
		sizes[f.Path] = f.Size
	}
	for _, f := range before.Files {
		size, there := sizes[f.Path]
		switch name := filepath.Join(before.Root, f.Path); {
		case !there:
			return headers.Missing("Put it back, or load again to use what is there now", "%s was there when the model was looked at and is gone", name)
		case size != f.Size:
			return registry.Errorf(registry.CodeUnavailable, "%s changed from %d to %d bytes while the model was prepared; wait until the copy has finished and load again", name, f.Size, size)
		}
	}
	return registry.Errorf(registry.CodeUnavailable, "files in %s were replaced or added while the model was prepared; load again when the copy has finished", before.Root)
}

// inspection is one look at a model.
type inspection struct {
	ctx      context.Context
	roots    roots
	verified map[string]bool               // files that were opened, by path relative to the root
	progress func(name string, size int64) // called after a file was verified for the first time
}

func (in *inspection) snapshot(ref sources.Ref) (sources.Snapshot, error) {
	snap := sources.Snapshot{Ref: ref}
	if err := in.ctx.Err(); err != nil {
		return snap, err
	}
	path, info, err := in.locate("source_path", ref.Path)
	if err != nil {
		return snap, err
	}
	var m *model
	if info.IsDir() {
		m, err = in.fromFolder(path, ref)
	} else {
		m, err = in.fromFile(path, ref.Format)
	}
	if err != nil {
		return snap, err
	}
	for _, f := range m.files {
		if err := in.readable(m.root, f); err != nil {
			return snap, err
		}
		snap.Files = append(snap.Files, registry.File{Path: f.rel, Size: f.info.Size(), ETag: identity(f)})
		snap.Bytes += f.info.Size()
	}
	var tokenizer []found
	if ref.Tokenizer != "" {
		if tokenizer, err = in.tokenizer(ref.Tokenizer); err != nil {
			return snap, err
		}
		m.facts.Tokenizer = true
	}
	if !m.facts.Tokenizer {
		m.facts.Notes = append(m.facts.Notes, "No tokenizer was found; set tokenizer_path if it is somewhere else.")
	}
	m.facts.Notes = append(m.facts.Notes, m.notes...)
	snap.Root, snap.Main, snap.Facts = m.root, m.main, m.facts
	snap.Revision = revisionOf(m.files, tokenizer)
	return snap, nil
}

// revisionOf is a fingerprint of what tells one state of the files from another without reading them.
func revisionOf(files, tokenizer []found) string {
	mark := sha256.New()
	for _, f := range files {
		fmt.Fprintf(mark, "%q %s\n", f.rel, identity(f))
	}
	for _, f := range tokenizer {
		fmt.Fprintf(mark, "tokenizer %q %s\n", f.rel, identity(f))
	}
	return "local-" + hex.EncodeToString(mark.Sum(nil)[:12])
}

// identity is what tells one state of a file from another without reading it. It is kept as the file's ETag, so that it
// can be said later which of them changed.
func identity(f found) string {
	inode := uint64(0)
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprintf("%d-%d-%d", f.info.Size(), f.info.ModTime().UnixNano(), inode)
}

// tokenizer checks tokenizer_path: a file, or a folder that holds a tokenizer.
func (in *inspection) tokenizer(path string) ([]found, error) {
	files, err := in.tokenizerFiles(path)
	if err != nil {
		return nil, err
	}
	if len(files) == 1 && files[0].path == filepath.Clean(path) {
		return files, in.readable(filepath.Dir(path), files[0])
	}
	var names []string
	for _, f := range files {
		names = append(names, f.rel)
	}
	if !headers.HasTokenizer(names) {
		return nil, headers.InFile(headers.Missing("Set tokenizer_path to the folder that holds tokenizer.json or tokenizer.model",
			"tokenizer_path holds no tokenizer"), filepath.Clean(path))
	}
	return files, nil
}

// tokenizerFiles lists what is at tokenizer_path without opening it.
func (in *inspection) tokenizerFiles(path string) ([]found, error) {
	path, info, err := in.locate("tokenizer_path", path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []found{{rel: filepath.Base(path), path: path, info: info}}, nil
	}
	w, err := in.walk(path)
	if err != nil {
		return nil, err
	}
	return w.files, nil
}
