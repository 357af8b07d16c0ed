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
	if err := otherKind(files); err != nil {
		return err
	}
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

// otherKind says what files are that are no model as engines here load it, nil when it cannot tell.
func otherKind(files []registry.File) error {
	top := map[string]bool{}
	consolidated, foreign, unfinished := "", "", ""
	for _, f := range files {
		name := strings.ToLower(f.Path)
		if strings.Contains(name, "/") {
			continue
		}
		top[name] = true
		switch {
		case strings.HasPrefix(name, "consolidated"):
			consolidated = f.Path
		case foreignWeights[path.Ext(name)] != "":
			foreign = f.Path
		case slices.Contains([]string{".part", ".incomplete", ".crdownload", ".aria2", ".download"}, path.Ext(name)):
			unfinished = f.Path
		}
	}
	switch {
	case top["adapter_config.json"]:
		return invalid("the folder holds an adapter (LoRA), not a model; merge it into its base model first")
	case top["model_index.json"]:
		return invalid("the folder holds a pipeline of the diffusers library (model_index.json), which makes images; no engine here runs it")
	case consolidated != "" && top["params.json"] && strings.HasSuffix(strings.ToLower(consolidated), ".pth"):
		return invalid("the folder holds weights in Meta's own format (%s, params.json); convert them with transformers' convert_llama_weights_to_hf, or take a repository in the format of transformers", clean(consolidated))
	case consolidated != "" && !top["config.json"]:
		return invalid("the folder holds weights in Mistral's own format (%s), without the config.json and model-*.safetensors that engines load; take these from the same repository", clean(consolidated))
	case foreign != "" && len(Holds(files)) == 0:
		return invalid("the folder holds weights of %s (%s), which no engine here loads; convert them to safetensors", foreignWeights[path.Ext(strings.ToLower(foreign))], clean(foreign))
	case unfinished != "" && len(Holds(files)) == 0:
		return Missing("Finish the download, or correct source_path", "the folder holds only an unfinished download (%s)", clean(unfinished))
	}
	return nil
}

// foreignWeights are the ends of files of weights of other libraries.
var foreignWeights = map[string]string{
	".h5": "TensorFlow", ".msgpack": "Flax", ".ot": "rust-bert", ".tflite": "TensorFlow Lite", ".mlmodel": "Core ML", ".nemo": "NeMo",
	".ckpt": "a training's checkpoint", ".pdparams": "PaddlePaddle", ".npz": "NumPy", ".engine": "TensorRT",
}

// nothing says what the folder holds instead of weights in the format. An adapter's own configuration names its base.
func (d *folder) nothing(format registry.Format) error {
	if d.has("adapter_config.json") {
		var adapter struct {
			Base any `json:"base_model_name_or_path"`
		}
		if err := d.json("adapter_config.json", maxConfig, &adapter); err == nil {
			if base, _ := adapter.Base.(string); clean(base) != "" {
				return invalid("the folder holds an adapter (LoRA) for %s, not a model; merge it into that model first", clean(base))
			}
		}
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
