package cli

import (
	"encoding/json"
	"strconv"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// loadedLines are the rows of `llmm show` that say what an engine has loaded; none of what it does not tell.
func loadedLines(v any) []string {
	b, err := json.Marshal(v)
	if err != nil || v == nil {
		return nil
	}
	var e registry.Endpoint
	if json.Unmarshal(b, &e) != nil {
		return nil
	}
	var out []string
	row := func(name, value string) {
		if value != "" {
			out = append(out, name+"\t"+value)
		}
	}
	row("model_class", e.ModelClass)
	row("tokenizer_class", e.TokenizerClass)
	row("loaded on", e.Device)
	row("loaded dtype", e.DType)
	if e.Parameters > 0 {
		row("loaded parameters", strconv.FormatInt(e.Parameters, 10))
	}
	if e.Bytes > 0 {
		row("loaded bytes", bytes(e.Bytes))
	}
	return out
}
