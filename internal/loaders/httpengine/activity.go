package httpengine

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var _ loaders.Meter = (*Instance)(nil)

// Activity asks the engine what it is doing; see loaders.Meter.
func (in *Instance) Activity(ctx context.Context) (registry.Activity, error) {
	if in.cfg.Activity == nil {
		return registry.Activity{}, registry.Errorf(registry.CodeUnsupported, "%s does not tell what it is doing", in.cfg.Title)
	}
	_, text, err := in.ask(ctx, http.MethodGet, in.cfg.ActivityPath, nil)
	if err != nil {
		return registry.Activity{}, &registry.Error{Code: registry.CodeUnavailable, Op: "httpengine.Activity", Err: err,
			Msg: fmt.Sprintf("%s does not tell what it is doing: %v", in.cfg.Title, err)}
	}
	a, err := in.cfg.Activity(text)
	if err != nil {
		return registry.Activity{}, err
	}
	a.At = time.Now()
	return a, nil
}
