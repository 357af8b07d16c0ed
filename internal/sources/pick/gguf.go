package pick

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Choice says which of several models is meant: custom_loader_params.quantization and filename. The zero Choice takes
// the only one there is.
type Choice struct {
	Quantization string // Q4_K_M, in any case
	Filename     string // a path, a base name, or a pattern that matches one model
}

// splitName is how llama.cpp names the shards of a split model; see llama_split_path.
var splitName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// sideFiles are GGUF files that belong to a model and are none: the vision part, and statistics for quantising.
var sideFiles = regexp.MustCompile(`(?i)mmproj|imatrix`)

// quantName is a quantisation at the end of a part of a name. They are those of llama.cpp's llama-quantize and of those who
// publish with it.
var quantName = regexp.MustCompile(`(?i)(?:^|_)(I?Q[1-9](?:_(?:K|S|M|L|XS|XXS|XL|XXL|NL|KS|KSS|KT|KL|R4|R8|0|1|4|8))*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32|FP8)$`)

const maxShards = 1000

// Label returns the quantisation that a GGUF file's path tells, in capitals: its name, else its folder. "" when neither
// tells one.
func Label(name string) string {
	base := strings.TrimSuffix(path.Base(name), path.Ext(name))
	if s := splitName.FindStringSubmatch(path.Base(name)); s != nil {
		base = s[1]
	}
	for _, text := range []string{base, path.Base(path.Dir(name))} {
		parts := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune("-. ", r) })
		// From the end, as models have names like Q2-7B-Q4_K_M.
		for i, part := range slices.Backward(parts) {
			if m := quantName.FindStringSubmatch(part); m != nil {
				label := strings.ToUpper(m[1])
				if i > 0 && strings.EqualFold(parts[i-1], "UD") { // Unsloth's dynamic kind is another one
					label = "UD-" + label
				}
				return label
			}
		}
	}
	return ""
}

// GGUFSets groups the GGUF files into models, in the order of their main files. side are the names of GGUF files that are
// no model themselves.
func GGUFSets(files []registry.File) (sets []Set, side []string) {
	groups := map[string]map[string]registry.File{} // by the name of the first shard
	want := map[string][]string{}
	for _, f := range files {
		if headers.FormatOf(f.Path) != registry.FormatGGUF {
			continue
		}
		if sideFiles.MatchString(path.Base(f.Path)) {
			side = append(side, f.Path)
			continue
		}
		names := shardNames(f.Path)
		if groups[names[0]] == nil {
			groups[names[0]], want[names[0]] = map[string]registry.File{}, names
		}
		groups[names[0]][f.Path] = f
	}
	for _, main := range slices.Sorted(maps.Keys(groups)) {
		s := Set{Label: Label(main), Main: main}
		for _, name := range want[main] {
			if f, ok := groups[main][name]; ok {
				s.Files = append(s.Files, f)
				s.Bytes += f.Size
			}
		}
		if len(s.Files) < len(want[main]) {
			s.Want = want[main]
		}
		sets = append(sets, s)
	}
	return sets, side
}

// shardNames returns the names of all shards of the set that name belongs to, or name alone, also when its numbers make
// no sense.
func shardNames(name string) []string {
	s := splitName.FindStringSubmatch(name)
	if s == nil {
		return []string{name}
	}
	no, _ := strconv.Atoi(s[2]) // five digits, by the pattern
	count, _ := strconv.Atoi(s[3])
	if no < 1 || no > count || count > maxShards {
		return []string{name}
	}
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%05d-of-%05d.gguf", s[1], i+1, count)
	}
	return names
}

// GGUF returns the model among files that c means, with notes for people. Errors: CodeInvalid with the field at fault
// when there are several and none was chosen, or the chosen one is not there, with what is there; CodeLoadingFailed with
// FailureMissingFile when shards are missing; those of headers.Mismatch when there is none at all.
func GGUF(files []registry.File, c Choice) (Set, []string, error) {
	sets, side := GGUFSets(files)
	var notes []string
	for _, name := range side {
		notes = append(notes, name+" is not the model itself and is not used.")
	}
	if len(sets) == 0 {
		return Set{}, nil, headers.Mismatch(files, registry.FormatGGUF)
	}
	field, wanted, found := "custom_loader_params.quantization", "", sets
	switch {
	case c.Filename != "":
		field, wanted = "custom_loader_params.filename", c.Filename
		found = byName(sets, c.Filename)
	case c.Quantization != "":
		wanted = c.Quantization
		found = byLabel(sets, c.Quantization)
	}
	switch {
	case len(found) == 0:
		return Set{}, nil, choose(field, sets, "is %q, which is none of the %d GGUF models there", wanted, len(sets))
	case len(found) > 1 && wanted == "":
		return Set{}, nil, choose(field, sets, "must choose one of the %d GGUF models there", len(sets))
	case len(found) > 1:
		return Set{}, nil, choose("custom_loader_params.filename", found, "must choose one of the %d GGUF models that %q means", len(found), wanted)
	}
	s := found[0]
	if s.complete() {
		return s, notes, nil
	}
	missing := slices.DeleteFunc(slices.Clone(s.Want), func(name string) bool {
		return slices.ContainsFunc(s.Files, func(f registry.File) bool { return f.Path == name })
	})
	return Set{}, nil, headers.Missing("Put them there too, or choose another model",
		"the model is split into %d files of which %d are not there: %s", len(s.Want), len(missing), headers.Some(missing))
}

func byLabel(sets []Set, quantization string) []Set {
	q := strings.ReplaceAll(quantization, "-", "_")
	var out []Set
	for _, s := range sets {
		if s.Label != "" && strings.EqualFold(strings.ReplaceAll(s.Label, "-", "_"), q) {
			out = append(out, s)
		}
	}
	return out
}

// byName finds the models of which a file has this path; else this base name; else matches it as a pattern.
func byName(sets []Set, name string) []Set {
	for _, same := range []func(p string) bool{
		func(p string) bool { return p == name },
		func(p string) bool { return path.Base(p) == name },
		func(p string) bool { return Match(name, p) },
	} {
		var out []Set
		for _, s := range sets {
			if slices.ContainsFunc(s.Files, func(f registry.File) bool { return same(f.Path) }) {
				out = append(out, s)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// choose is the error of a choice that is missing or means nothing. It lists what there is, smallest first.
func choose(field string, sets []Set, format string, args ...any) error {
	const show = 30
	sorted := slices.SortedStableFunc(slices.Values(sets), func(a, b Set) int { return cmp.Compare(a.Bytes, b.Bytes) })
	words := make([]string, 0, show)
	for _, s := range sorted[:min(len(sorted), show)] {
		name := s.Main
		if p, ok := s.params(sets)["quantization"].(string); ok && field != "custom_loader_params.filename" {
			name = p
		}
		words = append(words, fmt.Sprintf("%s (%s)", name, registry.Bytes(s.Bytes)))
	}
	if more := len(sorted) - show; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the model's files cannot be told",
		Fields: []registry.FieldError{{Field: field, Msg: fmt.Sprintf(format, args...) + ": " + strings.Join(words, ", ")}}}
}
