// Package pick chooses the files of one model from a list of names and sizes, before anything of them is read. It serves
// sources that see a listing and pay for every byte: a prefix in an object store, a repository of a hub.
package pick

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Choice is what a model's custom_loader_params say about which files it wants. The zero Choice takes what is there.
type Choice struct {
	Quantization  string   // of GGUF files, as their names call it: Q4_K_M
	Filename      string   // the one file, relative to the folder; of a split model any of its shards
	Allow, Ignore []string // patterns as Match takes them
}

// Picked is the files of one model. For safetensors and PyTorch, Files holds every file that may belong to it, and Keep
// drops the weights that the index does not name.
type Picked struct {
	Format registry.Format
	Main   string // the file that an engine is to be given; "" means the folder
	Files  []registry.File
	Shards []registry.File // of a GGUF model, in order
	Data   []registry.File // of an ONNX model, the external data beside Main
	Notes  []string
}

// Choose picks the model of the format among files. Errors: CodeInvalid when there are several and choice tells none of
// them apart, naming those there are, or when there is only another format; CodeLoadingFailed with
// FailureMissingFile when there is none or a shard is missing.
func Choose(files []registry.File, format registry.Format, choice Choice) (Picked, error) {
	all, err := filter(files, choice)
	if err != nil {
		return Picked{}, err
	}
	p := Picked{Format: format}
	switch format {
	case registry.FormatGGUF:
		err = p.gguf(all, choice)
	case registry.FormatONNX:
		err = p.onnx(all, choice)
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		if choice.Filename != "" || choice.Quantization != "" {
			return p, wrongChoice(format, choice)
		}
		p.folder(all)
	default:
		err = registry.Errorf(registry.CodeInvalid, "model_format %q is none that can be fetched", format)
	}
	return p, err
}

// wrongChoice says that a parameter which chooses one file was given for a model that is a folder.
func wrongChoice(format registry.Format, choice Choice) error {
	field, name := "custom_loader_params.filename", "filename"
	if choice.Filename == "" {
		field, name = "custom_loader_params.quantization", "quantization"
	}
	return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the parameters do not fit the format",
		Fields: []registry.FieldError{{Field: field, Msg: fmt.Sprintf("chooses one file, and a model of format %s is a whole folder; remove %s, or set model_format to gguf", format, name)}}}
}

// filter applies the patterns. What they leave out of a folder with files in it is said.
func filter(files []registry.File, choice Choice) ([]registry.File, error) {
	if len(choice.Allow) == 0 && len(choice.Ignore) == 0 {
		return files, nil
	}
	var out []registry.File
	for _, f := range files {
		if (len(choice.Allow) == 0 || MatchAny(choice.Allow, f.Path)) && !MatchAny(choice.Ignore, f.Path) {
			out = append(out, f)
		}
	}
	if len(out) == 0 && len(files) > 0 {
		names := make([]string, len(files))
		for i, f := range files {
			names[i] = f.Path
		}
		return nil, registry.Errorf(registry.CodeInvalid, "allow_patterns and ignore_patterns leave none of %d files (%s); correct the patterns", len(files), headers.Some(names))
	}
	return out, nil
}

// splitName is how llama.cpp names the shards of a split model; see llama_split_path.
var splitName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// sideFiles are GGUF files that belong to a model and are none: the vision part, and statistics for quantising.
var sideFiles = regexp.MustCompile(`(?i)mmproj|imatrix`)

const maxShards = 1000

// set is the GGUF files of one model.
type set struct {
	name  string // of its first file
	label string // the quantisation; "" when the name tells none
	files []registry.File
	bytes int64
}

// sets groups the GGUF files into models, in the order of their names, and returns the names of those that are none.
func sets(files []registry.File) (out []set, side []string) {
	at := map[string]int{}
	for _, f := range files {
		if headers.FormatOf(f.Path) != registry.FormatGGUF {
			continue
		}
		if sideFiles.MatchString(path.Base(f.Path)) {
			side = append(side, f.Path)
			continue
		}
		key := f.Path
		if s := splitName.FindStringSubmatch(f.Path); s != nil {
			key = s[1] + "\x00" + s[3]
		}
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, set{name: f.Path, label: Quantization(f.Path)})
		}
		out[i].files = append(out[i].files, f)
		out[i].bytes += f.Size
	}
	for i := range out {
		slices.SortFunc(out[i].files, byPath)
		out[i].name = out[i].files[0].Path
	}
	slices.SortFunc(out, func(a, b set) int { return strings.Compare(a.name, b.name) })
	slices.Sort(side)
	return out, side
}

func byPath(a, b registry.File) int { return strings.Compare(a.Path, b.Path) }

func (p *Picked) gguf(files []registry.File, choice Choice) error {
	all, side := sets(files)
	for _, name := range side {
		p.Notes = append(p.Notes, name+" is not the model itself and is not used.")
	}
	if len(all) == 0 {
		return headers.Mismatch(files, registry.FormatGGUF)
	}
	one, err := narrow(all, choice)
	if err != nil {
		return err
	}
	want, err := ShardNames(one.files[0].Path)
	if err != nil {
		return err
	}
	if len(one.files) != len(want) {
		return missingShards(want, one.files)
	}
	p.Main, p.Shards = one.files[0].Path, one.files
	p.Files = one.files
	return nil
}

// narrow finds the one model that the choice means.
func narrow(all []set, choice Choice) (set, error) {
	left := all
	field := "quantization"
	switch {
	case choice.Filename != "":
		field = "filename"
		left = slices.DeleteFunc(slices.Clone(all), func(s set) bool {
			return !slices.ContainsFunc(s.files, func(f registry.File) bool { return f.Path == choice.Filename })
		})
	case choice.Quantization != "":
		left = slices.DeleteFunc(slices.Clone(all), func(s set) bool { return !strings.EqualFold(s.label, choice.Quantization) })
	}
	switch {
	case len(left) == 1:
		return left[0], nil
	case len(left) == 0 && field == "filename":
		return set{}, noneSuch(field, fmt.Sprintf("is %s, which is not there; there are %s", choice.Filename, choices(all, true)))
	case len(left) == 0:
		return set{}, noneSuch(field, fmt.Sprintf("is %s, which is not there; there are %s", choice.Quantization, choices(all, false)))
	case !distinct(left):
		return set{}, noneSuch("filename", fmt.Sprintf("must say which of %d GGUF models is meant: %s", len(left), choices(left, true)))
	}
	return set{}, noneSuch(field, fmt.Sprintf("must say which of %d GGUF models is meant: %s", len(left), choices(left, false)))
}

func noneSuch(param, msg string) error {
	return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "one model must be chosen",
		Fields: []registry.FieldError{{Field: "custom_loader_params." + param, Msg: msg}}}
}

// distinct reports whether the quantisations tell the models apart.
func distinct(all []set) bool {
	seen := map[string]bool{}
	for _, s := range all {
		if s.label == "" || seen[s.label] {
			return false
		}
		seen[s.label] = true
	}
	return true
}

// choices lists models with their sizes, the small ones first.
func choices(all []set, byName bool) string {
	byName = byName || !distinct(all)
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b set) int { return cmp.Compare(a.bytes, b.bytes) })
	const show = 30
	words := make([]string, 0, show)
	for _, s := range all[:min(len(all), show)] {
		name := s.label
		if byName {
			name = s.name
		}
		words = append(words, fmt.Sprintf("%s (%s)", name, registry.Bytes(s.bytes)))
	}
	text := strings.Join(words, ", ")
	if more := len(all) - show; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// ShardNames returns the names of all shards of the set that name belongs to, or name alone.
func ShardNames(name string) ([]string, error) {
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

func missingShards(want []string, have []registry.File) error {
	missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool {
		return slices.ContainsFunc(have, func(f registry.File) bool { return f.Path == name })
	})
	return headers.Missing("Upload them to the same place", "the model is split into %d files of which %d are not there: %s", len(want), len(missing), headers.Some(missing))
}

func (p *Picked) onnx(files []registry.File, choice Choice) error {
	var models []registry.File
	for _, f := range files {
		if headers.FormatOf(f.Path) == registry.FormatONNX && (choice.Filename == "" || f.Path == choice.Filename) {
			models = append(models, f)
		}
	}
	slices.SortFunc(models, byPath)
	switch {
	case choice.Quantization != "":
		return wrongChoice(registry.FormatONNX, Choice{Quantization: choice.Quantization})
	case len(models) == 0 && choice.Filename != "":
		return noneSuch("filename", fmt.Sprintf("is %s, which is no ONNX file that is there", choice.Filename))
	case len(models) == 0:
		return headers.Mismatch(files, registry.FormatONNX)
	case len(models) > 1:
		words := make([]string, len(models))
		for i, m := range models {
			words[i] = fmt.Sprintf("%s (%s)", m.Path, registry.Bytes(m.Size))
		}
		return noneSuch("filename", fmt.Sprintf("must say which of %d ONNX models is meant: %s", len(models), strings.Join(words, ", ")))
	}
	main := models[0]
	p.Main = main.Path
	p.Files = []registry.File{main}
	for _, f := range files {
		switch {
		case f.Path == main.Path:
		case path.Dir(f.Path) == path.Dir(main.Path) && isDataOf(f.Path, main.Path):
			p.Data = append(p.Data, f)
			p.Files = append(p.Files, f)
		case small(f.Path):
			p.Files = append(p.Files, f)
		}
	}
	slices.SortFunc(p.Files, byPath)
	return nil
}

// isDataOf reports whether a file beside an ONNX model holds its tensors. Exporters name it after the model, or once for
// the folder.
func isDataOf(name, model string) bool {
	base := path.Base(name)
	if headers.FormatOf(name) == registry.FormatONNX {
		return false
	}
	return strings.HasPrefix(name, model) || path.Ext(base) == ".onnx_data" && strings.HasPrefix(base, "model.") || path.Ext(base) == ".data"
}

// module is a folder of sentence-transformers that holds one step after the model: 1_Pooling, 2_Dense.
var module = regexp.MustCompile(`^\d+_[A-Za-z]+/[^/]+$`)

// folder takes everything of a Hugging Face style folder that an engine may read.
func (p *Picked) folder(files []registry.File) {
	for _, f := range files {
		top := !strings.Contains(f.Path, "/")
		if top && (weights(f.Path) || small(f.Path)) || module.MatchString(f.Path) && (weights(f.Path) || small(path.Base(f.Path))) ||
			strings.HasPrefix(f.Path, "additional_chat_templates/") && path.Ext(f.Path) == ".jinja" {
			p.Files = append(p.Files, f)
		}
	}
	slices.SortFunc(p.Files, byPath)
}

// Keep drops the weights in the folder itself that are not among names: other formats, checkpoints, copies.
func (p *Picked) Keep(names []string) {
	p.Files = slices.DeleteFunc(p.Files, func(f registry.File) bool {
		return !strings.Contains(f.Path, "/") && !small(f.Path) && !slices.Contains(names, f.Path)
	})
}

// weights reports whether a name is that of weights which transformers reads.
func weights(name string) bool {
	switch headers.FormatOf(name) {
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		return true
	case registry.FormatGGUF, registry.FormatONNX:
	}
	return false
}

// smallKinds are what configurations, tokenizers, templates, licences and code of a model are written in.
var smallKinds = []string{".json", ".txt", ".model", ".jinja", ".py", ".md", ".tiktoken", ".spm", ".vocab", ".bpe", ".yaml", ".yml"}

// small reports whether a name in the folder itself is that of a file beside the weights which an engine or a person
// may read.
func small(name string) bool {
	if strings.Contains(name, "/") || strings.HasPrefix(name, ".") || headers.FormatOf(name) != "" {
		return false
	}
	ext := strings.ToLower(path.Ext(name))
	return slices.Contains(smallKinds, ext) || ext == "" && strings.ToUpper(name) == name // LICENSE, NOTICE
}
