package local

import (
	"cmp"
	"context"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Check returns what is wrong with a model's fields without looking at the disk. That source_path is absolute is a rule
// of the registry.
func (s *Source) Check(ref sources.Ref) []registry.FieldError {
	var out []registry.FieldError
	bad := func(field, msg string) { out = append(out, registry.FieldError{Field: field, Msg: msg}) }
	for field, value := range map[string]string{"source_path": ref.Path, "tokenizer_path": ref.Tokenizer} {
		if strings.ContainsRune(value, 0) {
			bad(field, "holds a zero byte")
		} else if field == "tokenizer_path" && value != "" && !filepath.IsAbs(value) {
			bad(field, "must be an absolute path on this machine; begin it with a slash")
		}
	}
	for _, name := range []string{"filename", "quantization"} {
		v, given := ref.Params[name]
		text, isText := v.(string)
		switch field := "custom_loader_params." + name; {
		case !given || v == nil:
		case !isText || strings.TrimSpace(text) == "":
			bad(field, "must be a text")
		case name == "filename" && (filepath.IsAbs(text) || slices.Contains(strings.Split(text, "/"), "..")):
			bad(field, "must be the name of a file in the folder, relative to it")
		case name == "quantization" && ref.Format != "" && ref.Format != registry.FormatGGUF && ref.Format != registry.FormatONNX:
			bad(field, "chooses among GGUF files; the model is "+string(ref.Format))
		}
	}
	slices.SortFunc(out, func(a, b registry.FieldError) int { return cmp.Compare(a.Field, b.Field) })
	return out
}

// Offers returns the models that lie at ref.Path: one for each format, and for GGUF and ONNX one for each file or set of
// shards. It looks at names only, except for a file without an ending. Errors are those of Resolve.
func (s *Source) Offers(ctx context.Context, ref sources.Ref) ([]registry.Offer, error) {
	in := s.look(ctx)
	at, info, err := in.locate("source_path", ref.Path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return in.offerFile(at, info)
	}
	w, err := in.walk(at)
	if err != nil {
		return nil, err
	}
	var out []registry.Offer
	small := offer(registry.Offer{}, keep(w.files, func(f found) bool { return !weightsLike(f.rel) }))
	for _, format := range []registry.Format{registry.FormatSafetensors, registry.FormatTransformersPT} {
		weights := keep(w.files, func(f found) bool { return !strings.Contains(f.rel, "/") && headers.FormatOf(f.rel) == format })
		if len(weights) == 0 || len(out) > 0 { // transformers_pt takes safetensors where there are some
			continue
		}
		o := offer(registry.Offer{Format: format, Label: string(format)}, weights)
		o.Files, o.Bytes = o.Files+small.Files, o.Bytes+small.Bytes
		out = append(out, o)
	}
	out = append(out, ggufOffers(w.files)...)
	out = append(out, onnxOffers(w.files)...)
	if len(out) == 0 {
		return nil, headers.InFile(headers.Mismatch(list(w.files), cmp.Or(ref.Format, registry.FormatSafetensors)), at)
	}
	return out, nil
}

// offerFile offers one file that was named itself.
func (in *inspection) offerFile(at string, info os.FileInfo) ([]registry.Offer, error) {
	f := found{rel: filepath.Base(at), path: at, info: info}
	format := headers.FormatOf(f.rel)
	if path.Ext(f.rel) == "" || format == "" {
		is, err := in.isGGUF(f) // Ollama's blobs have no ending
		if err != nil {
			return nil, err
		}
		if is {
			format = registry.FormatGGUF
		}
	}
	set := []found{f}
	switch format {
	case registry.FormatGGUF:
		var err error
		if set, err = in.shardsBeside(filepath.Dir(at), f.rel); err != nil {
			return nil, err
		}
	case registry.FormatONNX:
	default:
		return nil, registry.Errorf(registry.CodeInvalid, "%s is a file that is no model by itself; set source_path to the folder that holds config.json and the weights", at)
	}
	return []registry.Offer{offer(registry.Offer{Format: format, Label: cmp.Or(headers.QuantizationOf(f.rel), string(format))}, set)}, nil
}

func (in *inspection) isGGUF(f found) (bool, error) {
	file, err := in.open(f)
	if err != nil {
		return false, err
	}
	defer file.Close() // only read from
	magic := make([]byte, 4)
	n, _ := file.ReadAt(magic, 0) // a file that is shorter is none
	return n == 4 && string(magic) == "GGUF", nil
}

// ggufOffers are the GGUF models of a folder, the largest first: what is larger is better.
func ggufOffers(files []found) []registry.Offer {
	sets, _ := ggufSets(files)
	return several(registry.FormatGGUF, slices.Collect(maps.Values(sets)))
}

func onnxOffers(files []found) []registry.Offer {
	var sets [][]found
	for _, f := range files {
		if headers.FormatOf(f.rel) != registry.FormatONNX {
			continue
		}
		sets = append(sets, keep(files, func(x found) bool {
			return path.Dir(x.rel) == path.Dir(f.rel) && (x.rel == f.rel || x.rel == f.rel+"_data" || x.rel == f.rel+".data")
		}))
	}
	return several(registry.FormatONNX, sets)
}

// several offers models of one format. Each is chosen by its quantisation, or by its name where that is not enough.
func several(format registry.Format, sets [][]found) []registry.Offer {
	times := map[string]int{}
	for _, set := range sets {
		times[headers.QuantizationOf(set[0].rel)]++
	}
	var out []registry.Offer
	for _, set := range sets {
		o := registry.Offer{Format: format}
		quantization := headers.QuantizationOf(set[0].rel)
		o.Label = cmp.Or(quantization, path.Base(set[0].rel))
		switch {
		case len(sets) == 1:
		case quantization != "" && times[quantization] == 1 && times["UD-"+quantization] == 0:
			o.Params = map[string]any{"quantization": quantization}
		default:
			o.Label, o.Params = path.Base(set[0].rel), map[string]any{"filename": set[0].rel}
		}
		out = append(out, offer(o, set))
	}
	slices.SortFunc(out, func(a, b registry.Offer) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Label, b.Label))
	})
	return out
}

// offer counts the files.
func offer(o registry.Offer, files []found) registry.Offer {
	for _, f := range files {
		o.Files++
		o.Bytes += f.info.Size()
	}
	return o
}

func keep(files []found, fn func(found) bool) []found {
	var out []found
	for _, f := range files {
		if fn(f) {
			out = append(out, f)
		}
	}
	return out
}
