package headers

import (
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// File is an open file.
type File interface {
	io.ReaderAt
	io.Closer
}

// Opener opens one file of a folder by its path relative to the folder.
type Opener func(name string) (File, error)

// Weights is what ReadFolder found: the facts, and the files of weights that an engine will read, in order.
type Weights struct {
	Facts registry.Facts
	Files []string
}

// Limits on the small files beside the weights, in bytes. An index has some 100 bytes for each tensor.
const (
	maxConfig = 4 << 20
	maxIndex  = 64 << 20
	maxReadme = 64 << 10
)

// ReadFolder reads a Hugging Face style folder whose files are given: config.json, the weights in the format, the
// tokenizer's files. It checks that every shard is there and complete. Format is FormatSafetensors or
// FormatTransformersPT; the latter takes safetensors before pickles, as transformers does.
func ReadFolder(files []registry.File, format registry.Format, open Opener) (Weights, error) {
	d := newFolder(files, open)
	w := Weights{Facts: registry.Facts{Format: format}}
	idx, err := d.choose(format, &w)
	if err != nil {
		return w, err
	}
	cfg, err := d.config(&w.Facts)
	if err != nil {
		return w, err
	}
	if err := d.readWeights(&w, idx, cfg); err != nil {
		return w, err
	}
	err = d.extras(&w.Facts)
	return w, err
}

// folder is a folder while it is read.
type folder struct {
	size   map[string]int64 // the files directly in it
	all    []registry.File
	open   Opener
	sketch bool // as little as possible is read; see Sketch
}

func newFolder(files []registry.File, open Opener) *folder {
	d := &folder{size: map[string]int64{}, all: files, open: open}
	for _, f := range files {
		if !strings.Contains(f.Path, "/") {
			d.size[f.Path] = f.Size
		}
	}
	return d
}

func (d *folder) has(name string) bool {
	_, ok := d.size[name]
	return ok
}

// config reads config.json.
func (d *folder) config(f *registry.Facts) (config, error) {
	if !d.has("config.json") {
		return nil, Missing("Copy config.json from where the model came from", "the folder holds weights but no config.json%s", d.elsewhere("config.json"))
	}
	cfg := config{}
	if err := d.json("config.json", maxConfig, &cfg); err != nil {
		return nil, err
	}
	cfg.facts(f)
	return cfg, nil
}

// read opens a file for the time of fn and puts its name in front of errors.
func (d *folder) read(name string, fn func(io.ReaderAt, int64) error) error {
	f, err := d.open(name)
	if err != nil {
		return err
	}
	if err := fn(f, d.size[name]); err != nil {
		_ = f.Close() // nothing was written; the first error is the one that matters
		return InFile(err, name)
	}
	return f.Close()
}

func (d *folder) json(name string, limit int64, v any) error {
	return d.read(name, func(r io.ReaderAt, size int64) error { return readJSON(r, size, limit, v) })
}

func (d *folder) start(name string) (start []byte, err error) {
	err = d.read(name, func(r io.ReaderAt, size int64) (err error) {
		start, err = sniff(r, size)
		return err
	})
	return start, err
}

// choose finds the files of weights, and reads the index if there is one.
func (d *folder) choose(format registry.Format, w *Weights) (*index, error) {
	type kind struct {
		index, single string
		ext           []string
	}
	kinds := []kind{{"model.safetensors.index.json", "model.safetensors", []string{".safetensors"}}}
	if format == registry.FormatTransformersPT {
		kinds = append(kinds, kind{"pytorch_model.bin.index.json", "pytorch_model.bin", []string{".bin", ".pt", ".pth"}})
	}
	for _, k := range kinds {
		if d.has(k.index) {
			return d.indexed(k.index, k.ext, w)
		}
		if d.has(k.single) {
			w.Files = []string{k.single}
			return nil, nil
		}
		loose := d.loose(k.ext)
		if len(loose) == 0 {
			continue
		}
		w.Files = loose
		if len(loose) == 1 && !shardName.MatchString(loose[0]) {
			if path.Ext(loose[0]) != path.Ext(k.single) {
				w.Facts.Notes = append(w.Facts.Notes, fmt.Sprintf("transformers looks for %s; %s may not load under its name.", k.single, loose[0]))
			}
			return nil, nil
		}
		w.Facts.Notes = append(w.Facts.Notes, k.index+" is not there; transformers needs it to load shards.")
		return nil, d.numbered(loose, k.index, w)
	}
	return nil, d.nothing(format)
}

// indexed takes the shards that the index names.
func (d *folder) indexed(name string, ext []string, w *Weights) (*index, error) {
	if d.sketch && d.size[name] > sketchIndex {
		return d.longIndex(name, ext, w)
	}
	idx := &index{}
	if err := d.json(name, maxIndex, idx); err != nil {
		return nil, err
	}
	names, err := idx.shards()
	if err != nil {
		return nil, InFile(err, name)
	}
	w.Files = names
	return idx, d.allHere(names, name+" names")
}

// loose lists the weights in the folder by the ends of their names.
func (d *folder) loose(ext []string) []string {
	var out []string
	for name := range d.size {
		if slices.Contains(ext, path.Ext(name)) && !notModel.MatchString(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// shardName is how shards are named. Some write the count with six digits: model-00001-of-000163.safetensors.
var shardName = regexp.MustCompile(`^(.+)-(\d{5,6})-of-(\d{5,6})\.[a-z]+$`)

// numbered checks shards by their names alone: all of one set, and all there.
func (d *folder) numbered(names []string, indexName string, w *Weights) error {
	var want []string
	first := shardName.FindStringSubmatch(names[0])
	for _, name := range names {
		m := shardName.FindStringSubmatch(name)
		if m == nil || first == nil || m[1] != first[1] || m[3] != first[3] {
			return invalid("the folder holds several files of weights (%s) and no %s that says which belong together; keep one model in a folder", Some(names), indexName)
		}
	}
	count, _ := strconv.Atoi(first[3])
	ext := path.Ext(names[0])
	for i := 1; i <= min(count, 10_000); i++ {
		want = append(want, fmt.Sprintf("%s-%0*d-of-%s%s", first[1], len(first[2]), i, first[3], ext))
	}
	w.Files = want
	return d.allHere(want, "the names of the shards call for")
}

func (d *folder) allHere(names []string, who string) error {
	var missing []string
	for _, name := range names {
		if _, ok := d.size[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return Missing("Copy or download them to the same folder", "%s %d files of which %d are not here: %s", who, len(names), len(missing), Some(missing))
}
