package transformers

import (
	"encoding/json"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// activity reads what the worker tells of itself beside what it has loaded.
func activity(stats []byte) (a registry.Activity, err error) {
	var s struct {
		Running *int64 `json:"running"`
		Waiting *int64 `json:"waiting"`
	}
	if err := json.Unmarshal(stats, &s); err != nil {
		return a, &registry.Error{Code: registry.CodeUnavailable, Op: "transformers.activity", Msg: "What the worker tells of its work cannot be read", Err: err}
	}
	return registry.Activity{Running: s.Running, Waiting: s.Waiting}, nil
}
