package local

import (
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// model is what an inspection found at a path.
type model struct {
	root  string
	main  string // relative to root; "" means the folder
	files []found
	facts registry.Facts
	notes []string
}

// fromFolder finds the model of the format in a folder.
func (in *inspection) fromFolder(root string, ref sources.Ref) (*model, error) {
	w, err := in.walk(root)
	if err != nil {
		return nil, err
	}
	m := &model{root: root, notes: w.notes}
	want := wantOf(ref)
	switch ref.Format {
	case registry.FormatGGUF:
		err = in.ggufFolder(m, w.files, want)
	case registry.FormatONNX:
		err = in.onnxFolder(m, w.files, want)
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		err = in.weightsFolder(m, w.files, ref.Format)
	default:
		err = registry.Errorf(registry.CodeInvalid, "model_format %q is none that can be read from disk", ref.Format)
	}
	return m, headers.InFile(err, root)
}

// fromFile takes a file that was named itself.
func (in *inspection) fromFile(path string, format registry.Format) (*model, error) {
	m := &model{root: filepath.Dir(path)}
	name := filepath.Base(path)
	var err error
	switch format {
	case registry.FormatGGUF:
		var set []found
		if set, err = in.shardsBeside(m.root, name); err == nil {
			err = in.ggufSet(m, set)
		}
	case registry.FormatONNX:
		err = in.onnxFile(m, name)
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		if kind := headers.FormatOf(name); kind == registry.FormatGGUF || kind == registry.FormatONNX {
			err = registry.Errorf(registry.CodeInvalid, "%s is a file of format %s, the model says %s; set model_format to %s", name, kind, format, kind)
		} else {
			err = registry.Errorf(registry.CodeInvalid, "%s is a file; a model of format %s is a folder with config.json and weights: set source_path to the folder", name, format)
		}
	default:
		err = registry.Errorf(registry.CodeInvalid, "model_format %q is none that can be read from disk", format)
	}
	return m, headers.InFile(err, m.root)
}

// splitName is how llama.cpp names the shards of a split model; see llama_split_path.
var splitName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// sideFiles are GGUF files that belong to a model and are none: the vision part, and statistics for quantising.
var sideFiles = regexp.MustCompile(`(?i)mmproj|imatrix`)

const maxShards = 1000

// shardNames returns the names of all shards of the set that name belongs to, or name alone.
func shardNames(name string) ([]string, error) {
	s := splitName.FindStringSubmatch(name)
	if s == nil {
		return []string{name}, nil
	}
	no, _ := strconv.Atoi(s[2]) // five digits, by the pattern
	count, _ := strconv.Atoi(s[3])
	if no < 1 || no > count || count > maxShards {
		return nil, registry.Errorf(registry.CodeInvalid, "%s calls itself shard %d of %d, which cannot be; correct its name", name, no, count)
	}
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%05d-of-%05d.gguf", s[1], i+1, count)
	}
	return names, nil
}

func missingShards(want []string, have func(string) bool) error {
	missing := slices.DeleteFunc(slices.Clone(want), have)
	return headers.Missing("Copy or download them to the same folder", "the model is split into %d files of which %d are not here: %s", len(want), len(missing), headers.Some(missing))
}

// shardsBeside finds the shards beside a file that was named itself.
func (in *inspection) shardsBeside(root, name string) ([]found, error) {
	names, err := shardNames(name)
	if err != nil {
		return nil, err
	}
	var set []found
	for _, n := range names {
		f, err := in.beside(root, n)
		if err != nil {
			return nil, err
		}
		if f != nil {
			set = append(set, *f)
		}
	}
	if len(set) < len(names) {
		return nil, missingShards(names, func(n string) bool {
			return slices.ContainsFunc(set, func(f found) bool { return f.rel == n })
		})
	}
	return set, nil
}

// ggufSet reads the shards of one model, in order.
func (in *inspection) ggufSet(m *model, set []found) error {
	var shards []headers.GGUF
	for _, f := range set {
		file, err := in.open(f)
		if err != nil {
			return err
		}
		g, err := headers.ScanGGUF(file, f.info.Size())
		if err != nil {
			_ = file.Close() // only read from
			return headers.InFile(err, f.rel)
		}
		if err := file.Close(); err != nil {
			return explain(f.path, f.rel, err)
		}
		shards = append(shards, g)
	}
	var err error
	m.main, m.files = set[0].rel, set
	m.facts, err = headers.CombineGGUF(shards)
	return headers.InFile(err, m.main)
}

// weightsFolder reads a Hugging Face style folder. Weights that the engine will not read do not belong to the model.
func (in *inspection) weightsFolder(m *model, files []found, format registry.Format) error {
	w, err := headers.ReadFolder(list(files), format, in.opener(files))
	if err != nil {
		return err
	}
	m.facts = w.Facts
	for _, f := range files {
		if !weightsLike(f.rel) || slices.Contains(w.Files, f.rel) {
			m.files = append(m.files, f)
		}
	}
	return nil
}

// weightsLike reports whether a name is that of weights in whatever format, of checkpoints or of a training's state.
func weightsLike(rel string) bool {
	switch strings.ToLower(path.Ext(rel)) {
	case ".gguf", ".safetensors", ".onnx", ".onnx_data", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".tflite":
		return true
	}
	return false
}

func (in *inspection) opener(files []found) headers.Opener {
	byName := make(map[string]found, len(files))
	for _, f := range files {
		byName[f.rel] = f
	}
	return func(name string) (headers.File, error) {
		f, ok := byName[name]
		if !ok {
			return nil, headers.Missing("Put it back and load again", "%s is not there", name)
		}
		return in.open(f)
	}
}

func list(files []found) []registry.File {
	out := make([]registry.File, len(files))
	for i, f := range files {
		out[i] = registry.File{Path: f.rel, Size: f.info.Size()}
	}
	return out
}
