package ollama

import (
	"context"
	"strconv"
	"strings"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var (
	_ loaders.Holder = (*child)(nil)
	_ loaders.Holder = (*shared)(nil)
)

// loaded takes from ps what was loaded and where it lies. Its sizes have the cache in them, so that they are no bytes of
// the weights; see held.
func loaded(m api.ProcessModelResponse, ep *registry.Endpoint) {
	if m.ContextLength > 0 {
		ep.ContextLength = m.ContextLength
	}
	ep.DType, ep.Parameters = m.Details.QuantizationLevel, parameters(m.Details.ParameterSize)
	switch {
	case m.Size <= 0:
		ep.Device = ""
	case m.SizeVRAM <= 0:
		ep.Device = "cpu"
	case m.SizeVRAM < m.Size:
		ep.Device = "gpu,cpu"
	default:
		ep.Device = "gpu"
	}
}

// parameters reads a number as Ollama writes it: 134.52M. 0 when it is none.
func parameters(s string) int64 {
	scale := 1.0
	for unit, n := range map[string]float64{"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			s, scale = rest, n
			break
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0 || n*scale > 1e18 {
		return 0
	}
	return int64(n*scale + 0.5)
}

// held asks a server how much of main memory and of GPUs a model takes, in bytes: weights, cache and buffers.
func held(ctx context.Context, c *api.Client, name string) (ram, gpu int64, err error) {
	m, err := listed(ctx, c, name)
	if err != nil {
		return 0, 0, err
	}
	gpu = max(0, m.SizeVRAM)
	return max(0, m.Size-gpu), gpu, nil
}
