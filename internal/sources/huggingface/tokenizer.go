package huggingface

import (
	"context"
	"errors"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// tokenizer finds what tokenizer_path names: a folder of this machine, which is the engine's to open; a folder of the
// repository, whose files are added to the snapshot; or another repository, of which a few small files are fetched along.
func (s *Source) tokenizer(ctx context.Context, snap *sources.Snapshot, f *found, files []registry.File) error {
	name := f.ref.Tokenizer
	if name == "" {
		return nil
	}
	if filepath.IsAbs(name) {
		snap.Facts.Tokenizer = true
		snap.Facts.Notes = append(snap.Facts.Notes, "tokenizer_path is a folder of the server's machine, which is given to the engine as it is.")
		return nil
	}
	if own := folderOf(files, name, f.ref.RemoteCode); len(own) > 0 {
		snap.Facts.Tokenizer = true
		snap.Files = sorted(snap.Files, own)
		return nil
	}
	id, revision, _, err := s.address(name)
	if err != nil {
		return headers.Missing("Set tokenizer_path to a folder of the repository, another repository such as org/name, or an absolute path on the server's machine",
			"tokenizer_path %s", err.Error())
	}
	if id == f.id && revision == "" {
		return nil // its own
	}
	snap.Tokenizer, err = s.otherTokenizer(ctx, f, id, revision)
	switch {
	case err == nil:
		snap.Facts.Tokenizer = true
	case snap.Facts.Tokenizer && f.ref.Format == registry.FormatGGUF && ctx.Err() == nil:
		// What engines read of a GGUF file has its own in it: a model must not fail for one that it can do without.
		snap.Facts.Notes = append(snap.Facts.Notes, "The tokenizer that tokenizer_path names is not fetched ("+strings.TrimSuffix(err.Error(), ".")+"); the file has its own.")
		return nil
	}
	return err
}

// folderOf returns the small files of a folder of the repository.
func folderOf(files []registry.File, folder string, code bool) []registry.File {
	var out []registry.File
	for _, f := range files {
		if path.Dir(f.Path) == path.Clean(folder) && pick.Small(path.Base(f.Path)) && (code || path.Ext(f.Path) != ".py") {
			out = append(out, f)
		}
	}
	return out
}

// otherTokenizer looks at another repository, as whoever the model's token is.
func (s *Source) otherTokenizer(ctx context.Context, f *found, id, revision string) (*registry.Companion, error) {
	other, err := s.find(ctx, sources.Ref{Path: id, Revision: revision, Params: withoutChoice(f.ref.Params)})
	defer other.close()
	if other != nil && other.look != nil {
		f.requests.Add(other.requests.Load())
		f.bytes.Add(other.bytes.Load())
	}
	if err != nil {
		return nil, aboutTokenizer(err)
	}
	c := &registry.Companion{Path: id, Revision: other.commit, Files: pick.Tokenizer(other.files, f.ref.RemoteCode)}
	if !headers.HasTokenizer(names(c.Files)) {
		return nil, headers.Missing("Set tokenizer_path to a repository that has tokenizer.json or tokenizer.model", "%s, which tokenizer_path names, holds no tokenizer", id)
	}
	for _, file := range c.Files {
		c.Bytes += file.Size
	}
	f.notes = append(f.notes, other.notes...)
	return c, nil
}

// aboutTokenizer lets an error about another repository name the field that named it.
func aboutTokenizer(err error) error {
	var e *registry.Error
	if !errors.As(err, &e) {
		return err
	}
	n := *e
	n.Msg = "The tokenizer: " + strings.ReplaceAll(e.Msg, "source_path", "tokenizer_path")
	if e.Failure != nil {
		failure := *e.Failure
		failure.Msg = "The tokenizer: " + failure.Msg
		n.Failure = &failure
	}
	n.Fields = slices.Clone(e.Fields)
	for i, field := range e.Fields {
		if field.Field == "source_path" || field.Field == "revision" {
			n.Fields[i].Field = "tokenizer_path"
		}
	}
	if isPassing(err) {
		return passing{&n}
	}
	return &n
}

// bringTokenizer fetches the files of another repository that belong to a snapshot.
func (s *Source) bringTokenizer(ctx context.Context, snap sources.Snapshot, report func(registry.Progress)) (*registry.Companion, error) {
	if snap.Tokenizer == nil {
		return nil, nil //nolint:nilnil // none is wanted
	}
	c := *snap.Tokenizer
	_, revision, _, err := s.address(snap.Ref.Tokenizer)
	if err != nil {
		return nil, refused([]registry.FieldError{{Field: "tokenizer_path", Msg: err.Error()}})
	}
	d := &download{source: s, report: report, snap: sources.Snapshot{
		Ref: sources.Ref{Path: c.Path, Revision: revision, Params: withoutChoice(snap.Ref.Params)}, Revision: c.Revision, Files: c.Files, Bytes: c.Bytes,
	}}
	defer d.close()
	if err := d.obtain(ctx); err != nil {
		return nil, aboutTokenizer(err)
	}
	c.Folder = d.repo.on("snapshots", c.Revision)
	return &c, nil
}
