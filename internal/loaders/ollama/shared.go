package ollama

import (
	"context"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func (l *Loader) loadShared(context.Context, program, loaders.LoadSpec, params.Values, weights, func(registry.Progress)) (loaders.Instance, error) {
	return nil, registry.Errorf(registry.CodeUnsupported, "not yet")
}

func (l *Loader) recoverShared(context.Context, registry.Handle) (loaders.Instance, error) {
	return nil, registry.Errorf(registry.CodeNotFound, "not yet")
}
