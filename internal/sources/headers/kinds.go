package headers

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// notModel are files that training and adapters leave beside the weights.
var notModel = regexp.MustCompile(`(?i)^(adapter_|training_args|optimizer|scheduler|rng_state|consolidated)`)

// Some lists the first five names and counts the rest.
func Some(names []string) string {
	const show = 5
	shown := make([]string, 0, show)
	for _, n := range names[:min(len(names), show)] {
		shown = append(shown, clean(n))
	}
	s := strings.Join(shown, ", ")
	if more := len(names) - show; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// Mismatch says that files hold no model of the format, what they hold instead, and what to do.
func Mismatch(files []registry.File, format registry.Format) error {
	held := Holds(files)
	if len(held) == 0 {
		if len(files) == 0 {
			return Missing("Copy the model into it, or correct source_path", "the folder is empty")
		}
		names := make([]string, 0, len(files))
		for _, f := range files {
			names = append(names, f.Path)
		}
		return Missing("Copy the weights into it, or correct source_path", "the folder holds no weights in any format we know, only %s", Some(names))
	}
	if !slices.Contains(held, format) {
		words := make([]string, 0, len(held))
		for _, h := range held {
			words = append(words, string(h))
		}
		return invalid("the folder holds %s, the model says %s; set model_format to %s or correct source_path", strings.Join(words, " and "), format, held[0])
	}
	d := &folder{all: files}
	return Missing("Set source_path to the folder that holds config.json and the weights", "the folder itself holds no %s weights%s", format, d.elsewhere(""))
}

// Holds returns the formats of the weights among files, the one with most bytes first.
func Holds(files []registry.File) []registry.Format {
	bytesOf := map[registry.Format]int64{}
	for _, f := range files {
		if format := FormatOf(f.Path); format != "" {
			bytesOf[format] += f.Size + 1
		}
	}
	var out []registry.Format
	for _, f := range registry.Formats {
		if bytesOf[f] > 0 {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b registry.Format) int { return cmp.Compare(bytesOf[b], bytesOf[a]) })
	return out
}

// FormatOf guesses the format of weights from a file's name; "" when they are no weights.
func FormatOf(name string) registry.Format {
	base := strings.ToLower(path.Base(name))
	if notModel.MatchString(base) {
		return ""
	}
	switch path.Ext(base) {
	case ".gguf":
		return registry.FormatGGUF
	case ".safetensors":
		return registry.FormatSafetensors
	case ".onnx":
		return registry.FormatONNX
	case ".bin", ".pt", ".pth":
		return registry.FormatTransformersPT
	}
	return ""
}

// nothing says what the folder holds instead of weights in the format.
func (d *folder) nothing(format registry.Format) error {
	if _, ok := d.size["adapter_config.json"]; ok {
		return invalid("the folder holds an adapter (LoRA), not a model; merge it into its base model first")
	}
	return Mismatch(d.all, format)
}

// elsewhere names the one folder below that holds a config.json, for when the path was given one level too high.
func (d *folder) elsewhere(name string) string {
	var at []string
	for _, f := range d.all {
		base := path.Base(f.Path)
		if strings.Contains(f.Path, "/") && (base == name || name == "" && (base == "config.json" || FormatOf(base) != "")) {
			at = append(at, path.Dir(f.Path))
		}
	}
	slices.Sort(at)
	if at = slices.Compact(at); len(at) == 1 {
		return fmt.Sprintf(" (but %s does)", clean(at[0]))
	}
	return ""
}
