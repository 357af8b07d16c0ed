package ollama

import (
	"context"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func (l *Loader) converted(context.Context, program, loaders.LoadSpec, weights, func(registry.Progress)) (weights, error) {
	return weights{}, registry.Errorf(registry.CodeUnsupported, "not yet")
}
