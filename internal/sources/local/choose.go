package local

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// want is which of several models in one folder the parameters choose.
type want struct {
	filename     string // relative to the folder, or its last part
	quantization string
}

func wantOf(ref sources.Ref) want {
	name, _ := ref.Params["filename"].(string)
	quantization, _ := ref.Params["quantization"].(string)
	return want{strings.TrimPrefix(path.Clean("/"+name), "/"), strings.ToUpper(strings.TrimSpace(quantization))}
}

func (w want) any() bool { return w.filename != "" || w.quantization != "" }

// matches reports whether a file is one that is wanted.
func (w want) matches(rel string) bool {
	if w.filename != "" && rel != w.filename && path.Base(rel) != w.filename {
		return false
	}
	if w.quantization == "" {
		return true
	}
	has := headers.QuantizationOf(rel)
	return has == w.quantization || strings.TrimPrefix(has, "UD-") == w.quantization
}

// nothing says that what is wanted is not there, and what is.
func (w want) nothing(files []found, format registry.Format) error {
	var have []string
	for _, f := range files {
		if headers.FormatOf(f.rel) == format {
			have = append(have, f.rel)
		}
	}
	if len(have) == 0 {
		return headers.Mismatch(list(files), format)
	}
	field, value := "custom_loader_params.filename", w.filename
	if value == "" {
		field, value = "custom_loader_params.quantization", w.quantization
	}
	return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the model cannot be found",
		Fields: []registry.FieldError{{Field: field, Msg: fmt.Sprintf("is %q, which none of the files there is; there are %s", value, headers.Some(have))}}}
}

// ambiguous says that several models are there, and how to choose one.
func (w want) ambiguous(kind string, names []string) error {
	return registry.Errorf(registry.CodeInvalid, "the folder holds %d %s models (%s); name one of them in source_path, for a split one its first file, or set custom_loader_params.quantization or .filename",
		len(names), kind, headers.Some(names))
}

// ggufSets gathers the GGUF models of a folder: each is one file, or the shards of a split one. The key is a name for it.
func ggufSets(files []found) (sets map[string][]found, notes []string) {
	sets = map[string][]found{}
	for _, f := range files {
		if headers.FormatOf(f.rel) != registry.FormatGGUF {
			continue
		}
		if sideFiles.MatchString(path.Base(f.rel)) {
			notes = append(notes, f.rel+" is not the model itself and is not used.")
			continue
		}
		key := f.rel
		if s := splitName.FindStringSubmatch(f.rel); s != nil {
			key = s[1] + "-*-of-" + s[3] + ".gguf"
		}
		sets[key] = append(sets[key], f)
	}
	return sets, notes
}

// ggufFolder picks the one model among the GGUF files of a folder, or the one that is wanted.
func (in *inspection) ggufFolder(m *model, files []found, want want) error {
	sets, notes := ggufSets(files)
	m.notes = append(m.notes, notes...)
	maps.DeleteFunc(sets, func(_ string, set []found) bool {
		return !slices.ContainsFunc(set, func(f found) bool { return want.matches(f.rel) })
	})
	names := slices.Sorted(maps.Keys(sets))
	switch {
	case len(names) == 0 && want.any():
		return want.nothing(files, registry.FormatGGUF)
	case len(names) == 0:
		return headers.Mismatch(list(files), registry.FormatGGUF)
	case len(names) > 1:
		return want.ambiguous("GGUF", names)
	}
	set := sets[names[0]]
	all, err := shardNames(set[0].rel)
	if err != nil {
		return err
	}
	if len(set) != len(all) {
		return missingShards(all, func(name string) bool {
			return slices.ContainsFunc(set, func(f found) bool { return f.rel == name })
		})
	}
	return in.ggufSet(m, set)
}
