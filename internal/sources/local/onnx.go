package local

import (
	"path"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// onnxFolder picks the one ONNX model of a folder, the one that is wanted, or the usual one of several, and the data that its
// graph names.
func (in *inspection) onnxFolder(m *model, files []found, want want) error {
	var models []found
	for _, f := range files {
		if headers.FormatOf(f.rel) == registry.FormatONNX && want.matches(f.rel) {
			models = append(models, f)
		}
	}
	switch {
	case len(models) == 0 && want.any():
		return want.nothing(files, registry.FormatONNX)
	case len(models) == 0:
		return headers.Mismatch(list(files), registry.FormatONNX)
	case len(models) > 1 && usual(models, want) >= 0:
		models = models[usual(models, want):]
	case len(models) > 1:
		names := make([]string, len(models))
		for i, f := range models {
			names[i] = f.rel
		}
		return want.ambiguous("ONNX", names)
	}
	small := keep(files, func(f found) bool { return pick.NearONNX(f.rel, models[0].rel) && !weightsLike(f.rel) })
	return in.onnx(m, models[0], small, func(name string) (*found, error) {
		if i := slices.IndexFunc(files, func(f found) bool { return f.rel == name }); i >= 0 {
			return &files[i], nil
		}
		return nil, nil
	})
}

// usual is the index of the graph whose path is the wanted name itself, or of one at a usual place when none is wanted; -1
// when there is none.
func usual(models []found, want want) int {
	names := []string{want.filename}
	if !want.any() {
		names = pick.UsualONNX
	}
	for _, name := range names {
		if i := slices.IndexFunc(models, func(f found) bool { return f.rel == name }); i >= 0 {
			return i
		}
	}
	return -1
}

// besideONNX are the small files that are looked for beside a graph which is named by itself.
var besideONNX = []string{"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "modules.json", "1_Pooling/config.json", "README.md"}

// onnxFile takes one ONNX file and what belongs to it.
func (in *inspection) onnxFile(m *model, name string) error {
	find := func(name string) (*found, error) { return in.beside(m.root, name) }
	main, err := find(name)
	if err != nil {
		return err
	}
	if main == nil {
		return headers.Missing("Put it back and load again", "%s vanished while the model was looked at", name)
	}
	var small []found
	for _, n := range besideONNX {
		f, err := find(n)
		if err != nil {
			return err
		}
		if f != nil {
			small = append(small, *f)
		}
	}
	return in.onnx(m, *main, small, find)
}

// onnx reads the graph for the files of external data. find looks for one by its name relative to the root.
func (in *inspection) onnx(m *model, main found, small []found, find func(string) (*found, error)) error {
	graph, err := in.scanONNX(main)
	if err != nil {
		return err
	}
	var data []found
	var missing []string
	for _, x := range graph.External {
		name := path.Join(path.Dir(main.rel), x.Path)
		f, err := find(name)
		switch {
		case err != nil:
			return err
		case f == nil:
			missing = append(missing, name)
		case f.info.Size() < x.Size:
			return headers.InFile(headers.Corrupt("Copy or download the file again, or wait until the copy has finished",
				"the file is truncated or half copied: the graph needs %d bytes of it, it has %d", x.Size, f.info.Size()), name)
		default:
			data = append(data, *f)
		}
	}
	if len(missing) > 0 {
		return headers.Missing("Copy or download them to where the graph looks for them", "%s keeps its weights in %d files of which %d are not here: %s",
			main.rel, len(graph.External), len(missing), headers.Some(missing))
	}
	// What the graph names may be called like a small file.
	small = keep(small, func(f found) bool { return !slices.ContainsFunc(data, func(d found) bool { return d.rel == f.rel }) })
	m.main, m.files = main.rel, slices.Concat([]found{main}, data, small)
	slices.SortFunc(m.files, func(a, b found) int { return strings.Compare(a.rel, b.rel) })
	m.facts, err = headers.ReadONNX(list([]found{main})[0], list(data), list(small), in.opener(m.files))
	m.facts.Parameters, m.facts.WeightBytes, m.facts.DType = graph.Parameters, graph.Bytes, graph.DType
	return err
}

func (in *inspection) scanONNX(main found) (headers.ONNX, error) {
	file, err := in.open(main)
	if err != nil {
		return headers.ONNX{}, err
	}
	graph, err := headers.ScanONNX(file, main.info.Size())
	if err != nil {
		_ = file.Close() // only read from
		return graph, headers.InFile(err, main.rel)
	}
	return graph, file.Close()
}
