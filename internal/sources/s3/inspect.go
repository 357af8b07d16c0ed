package s3

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// inspection chooses the files of a model and reads as much of their headers as tells what it is: below 1 MB, whatever
// its size. That each header is whole and fits the others is found out when they are here; see job.inspect.
type inspection struct {
	ctx   context.Context
	conn  *connection
	place *place

	main  string
	files []registry.File
	facts registry.Facts
	notes []string
}

func (in *inspection) choose(format registry.Format) error {
	choice := in.conn.choice
	files := pick.Filter(in.place.files, choice.Allow, choice.Ignore)
	if len(files) == 0 && len(in.place.files) > 0 {
		names := make([]string, len(in.place.files))
		for i, f := range in.place.files {
			names[i] = f.Path
		}
		return registry.Errorf(registry.CodeInvalid, "allow_patterns and ignore_patterns leave none of the %d files there (%s); correct the patterns", len(names), headers.Some(names))
	}
	if len(files) == 0 {
		return headers.Missing("Upload the model under plain names", "no object there has a name that could be a file")
	}
	if in.place.single != "" {
		if kind := headers.FormatOf(in.place.single); kind != format && (format == registry.FormatGGUF || format == registry.FormatONNX || kind == registry.FormatGGUF || kind == registry.FormatONNX) {
			return registry.Errorf(registry.CodeInvalid, "%s is a file of format %s, the model says %s; set model_format to %s", in.place.single, kind, format, kind)
		}
		choice.Filename = in.place.single
	}
	in.notes = in.place.notes
	var err error
	switch format {
	case registry.FormatGGUF:
		err = in.gguf(files, choice.Choice)
	case registry.FormatONNX:
		err = in.onnx(files, choice.Filename)
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		if in.place.single != "" {
			return registry.Errorf(registry.CodeInvalid, "%s is one object; a model of format %s is a folder with config.json and weights: set source_path to the folder", in.place.single, format)
		}
		err = in.folder(files, format)
	default:
		err = registry.Errorf(registry.CodeInvalid, "model_format %q is none that can be fetched from an object store", format)
	}
	if err == nil && !in.facts.Tokenizer {
		in.notes = append(in.notes, "No tokenizer was found; set tokenizer_path if it is somewhere else.")
	}
	return err
}

func (in *inspection) gguf(files []registry.File, choice pick.Choice) error {
	set, notes, err := pick.GGUF(files, choice)
	if err != nil {
		return err
	}
	in.main, in.files = set.Main, set.Files
	in.notes = append(in.notes, notes...)
	open := in.opener(files)
	in.facts, err = headers.SketchGGUF(set.Files, open, headers.Hints{})
	if err == nil && in.facts.Parameters == 0 {
		// A quantisation of which nobody knows what it takes on average: it is counted, which costs some megabytes.
		in.facts, err = exact(set.Files, open)
	}
	return err
}

func (in *inspection) onnx(files []registry.File, filename string) error {
	set, err := pick.ONNX(files, filename)
	if err != nil {
		return err
	}
	in.main = set.Main
	small := pick.BesideONNX(files, set.Main, in.conn.code)
	in.files = sorted(append(slices.Clone(small), set.Files...))
	in.facts, err = headers.ReadONNX(set.Files[0], set.Files[1:], small, in.opener(files))
	return err
}

func (in *inspection) folder(files []registry.File, format registry.Format) error {
	w, err := headers.Sketch(files, format, in.opener(files), headers.Hints{})
	if err != nil {
		return err
	}
	in.facts = w.Facts
	in.files = pick.Keep(pick.Folder(files, in.conn.code), w.Files)
	return nil
}

func (in *inspection) opener(files []registry.File) headers.Opener {
	byName := make(map[string]registry.File, len(files))
	for _, f := range files {
		byName[f.Path] = f
	}
	return func(name string) (headers.File, error) {
		f, ok := byName[name]
		if !ok {
			return nil, headers.Missing("Upload it beside the others", "%s is not there", name)
		}
		return in.open(f)
	}
}

// open makes an object readable by ranges. An archived one is refused before anything is asked for.
func (in *inspection) open(f registry.File) (headers.File, error) {
	if err := in.ctx.Err(); err != nil {
		return nil, err
	}
	o := in.place.objects[f.Path]
	if archived(o.class) {
		return nil, in.conn.archived(f.Path, fmt.Sprintf("the storage class %q", clip(o.class)))
	}
	return remoteFile{fetch.ReaderAt(in.ctx, &remote{conn: in.conn, key: o.key, etag: o.etag}, f.Size, fetch.ReaderOptions{})}, nil
}

// remoteFile is an object as package headers wants it; there is nothing to close.
type remoteFile struct{ io.ReaderAt }

func (remoteFile) Close() error { return nil }

// inspect reads every header of a revision on disk, which is cheap there and was not over the network.
func (j *job) inspect(folder string) error {
	open := func(name string) (headers.File, error) {
		return os.Open(filepath.Join(folder, filesDir, filepath.FromSlash(name)))
	}
	switch j.snap.Ref.Format {
	case registry.FormatGGUF:
		_, err := exact(slices.DeleteFunc(slices.Clone(j.snap.Files), func(f registry.File) bool {
			return headers.FormatOf(f.Path) != registry.FormatGGUF
		}), open)
		return err
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		_, err := headers.ReadFolder(j.snap.Files, j.snap.Ref.Format, open)
		return err
	case registry.FormatONNX: // its graph is not needed
	}
	return nil
}

// exact reads the whole headers of the shards of a GGUF model.
func exact(files []registry.File, open headers.Opener) (registry.Facts, error) {
	shards := make([]headers.GGUF, 0, len(files))
	for _, f := range files {
		file, err := open(f.Path)
		if err != nil {
			return registry.Facts{}, err
		}
		g, err := headers.ScanGGUF(file, f.Size)
		if err = cmp.Or(err, file.Close()); err != nil {
			return registry.Facts{}, headers.InFile(err, f.Path)
		}
		shards = append(shards, g)
	}
	return headers.CombineGGUF(shards)
}

func sorted(files []registry.File) []registry.File {
	slices.SortFunc(files, func(a, b registry.File) int { return strings.Compare(a.Path, b.Path) })
	return files
}
