package cli

import (
	"encoding/json"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// activityLines are the rows of `llmm show` that say what an engine is doing; none where it does not tell.
func activityLines(v any) []string {
	b, err := json.Marshal(v)
	if err != nil || v == nil {
		return nil
	}
	var a registry.Activity
	if json.Unmarshal(b, &a) != nil {
		return nil
	}
	var out []string
	for _, row := range [][2]string{{"requests", a.Requests()}, {"KV cache", a.Cache()}, {"tokens", a.Tokens()}, {"answers", a.Waits()}} {
		if row[1] != "" {
			out = append(out, row[0]+"\t"+row[1])
		}
	}
	return out
}
