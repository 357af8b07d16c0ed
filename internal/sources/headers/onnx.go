package headers

import (
	"bytes"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ReadONNX reads the facts of an ONNX model: main, and the files of external data beside it. The graph itself is not
// parsed; what is known of it comes from a config.json in the same folder, if there is one.
func ReadONNX(main registry.File, data []registry.File, beside []registry.File, open Opener) (registry.Facts, error) {
	f := registry.Facts{Format: registry.FormatONNX, WeightBytes: main.Size}
	for _, x := range data {
		f.WeightBytes += x.Size
	}
	d := &folder{size: map[string]int64{main.Path: main.Size}, open: open}
	for _, x := range beside {
		d.size[x.Path] = x.Size
	}
	start, err := d.start(main.Path)
	if err != nil {
		return f, err
	}
	// A ModelProto begins with its field 1, ir_version, or, written by some exporters, with another small field.
	if len(start) == 0 || start[0] == 0 || bytes.HasPrefix(start, []byte("version ")) || bytes.HasPrefix(start, []byte("GGUF")) || start[0] == '<' {
		return f, InFile(notWeights(start, "ONNX"), main.Path)
	}
	if _, ok := d.size["config.json"]; ok {
		cfg := config{}
		if err := d.json("config.json", maxConfig, &cfg); err != nil {
			return f, err
		}
		cfg.facts(&f)
	}
	err = d.extras(&f)
	return f, err
}
