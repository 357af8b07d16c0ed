// Package local is the source for weights that are already on this machine: a file, or a folder. Nothing is ever copied
// or changed. It follows symbolic links, opens only regular files, and reads no more than headers and small files.
package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
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

// Source implements sources.Source.
type Source struct {
	roots []string
}

var _ sources.Source = (*Source)(nil)

// New returns the source. Roots need not exist yet.
func New(o Options) *Source {
	s := &Source{}
	for _, r := range o.Roots {
		s.roots = append(s.roots, filepath.Clean(r))
	}
	return s
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
	in := &inspection{ctx: ctx, source: s, verified: map[string]bool{}, progress: func(string, int64) {}}
	return in.snapshot(ref)
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
	in := &inspection{ctx: ctx, source: s, verified: map[string]bool{}}
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
	source   *Source
	verified map[string]bool               // files that were opened, by path relative to the root
	progress func(name string, size int64) // called after a file was verified for the first time
}

func (in *inspection) snapshot(ref sources.Ref) (sources.Snapshot, error) {
	snap := sources.Snapshot{Ref: ref}
	if err := in.ctx.Err(); err != nil {
		return snap, err
	}
	path, info, err := in.source.locate("source_path", ref.Path)
	if err != nil {
		return snap, err
	}
	var m *model
	if info.IsDir() {
		m, err = in.fromFolder(path, ref.Format)
	} else {
		m, err = in.fromFile(path, ref.Format)
	}
	if err != nil {
		return snap, err
	}
	mark := sha256.New()
	for _, f := range m.files {
		if err := in.readable(m.root, f); err != nil {
			return snap, err
		}
		snap.Files = append(snap.Files, registry.File{Path: f.rel, Size: f.info.Size()})
		snap.Bytes += f.info.Size()
		fmt.Fprintf(mark, "%q %s\n", f.rel, identity(f))
	}
	if ref.Tokenizer != "" {
		files, err := in.tokenizer(ref.Tokenizer)
		if err != nil {
			return snap, err
		}
		for _, f := range files {
			fmt.Fprintf(mark, "tokenizer %q %s\n", f.rel, identity(f))
		}
		m.facts.Tokenizer = true
	}
	if !m.facts.Tokenizer {
		m.facts.Notes = append(m.facts.Notes, "No tokenizer was found; set tokenizer_path if it is somewhere else.")
	}
	m.facts.Notes = append(m.facts.Notes, m.notes...)
	snap.Root, snap.Main, snap.Facts = m.root, m.main, m.facts
	snap.Revision = "local-" + hex.EncodeToString(mark.Sum(nil)[:12])
	return snap, nil
}

// identity is what tells one state of a file from another without reading it.
func identity(f found) string {
	inode := uint64(0)
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprintf("%d %d %d", f.info.Size(), f.info.ModTime().UnixNano(), inode)
}

// tokenizer checks tokenizer_path: a file, or a folder that holds a tokenizer.
func (in *inspection) tokenizer(path string) ([]found, error) {
	path, info, err := in.source.locate("tokenizer_path", path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		f := found{rel: filepath.Base(path), path: path, info: info}
		return []found{f}, in.readable(filepath.Dir(path), f)
	}
	w, err := in.walk(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range w.files {
		names = append(names, f.rel)
	}
	if !headers.HasTokenizer(names) {
		return nil, headers.InFile(headers.Missing("Set tokenizer_path to the folder that holds tokenizer.json or tokenizer.model",
			"tokenizer_path holds no tokenizer"), path)
	}
	return w.files, nil
}
