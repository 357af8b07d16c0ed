package vllm

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What a server takes beyond weights and cache, in bytes. Measured on the CPU with vLLM 0.32.0 and a model of 0.7 MB: three
// processes of 929, 894 and 2,009 MiB resident, 1,024 MiB of which are the cache. On CUDA it is not measured: a context of
// about 500 MiB, the graphs, and room for activations.
const (
	cpuOverhead    = 2808 << 20
	cudaOverhead   = 2560 << 20
	defaultContext = 8192
)

// ContextFor returns the tokens of context a model is loaded with: context_length if it is given, else what it was
// trained for, at most 8,192.
func ContextFor(m registry.Model, f registry.Facts) int {
	if m.ContextLength > 0 {
		return m.ContextLength
	}
	if f.ContextLength > 0 {
		return min(f.ContextLength, defaultContext)
	}
	return defaultContext
}

// Estimate predicts what the server takes on the device: weights as they are stored or quantised, a cache for one sequence
// of the whole context, and overhead. On a GPU that is also what it is allowed to take.
func (l *Loader) Estimate(m registry.Model, a registry.Artifact, device registry.Device) registry.Footprint {
	f := a.Facts
	fp := registry.Footprint{Weights: f.WeightBytes, Context: ContextFor(m, f), Basis: "safetensors header"}
	if fp.Weights == 0 {
		fp.Weights, fp.Basis = a.Bytes, "file size"
	}
	if fp.Weights == 0 {
		return registry.Footprint{}
	}
	v, err := params.Read(Name, m.CustomLoaderParams, table)
	if err != nil {
		v = params.Values{} // a load would refuse them; an estimate need not
	}
	switch {
	case m.QuantizationBits == 4 && f.Parameters > 0:
		fp.Weights = min(fp.Weights, f.Parameters*5/8) // 4 bits and their scales
	case m.QuantizationBits == 8 && f.Parameters > 0:
		fp.Weights = min(fp.Weights, f.Parameters*17/16)
	case (v.String("dtype", "") == "float32" || v.String("dtype", "") == "float") && f.Parameters > 0:
		fp.Weights = max(fp.Weights, f.Parameters*4)
	}
	if !f.Embedding {
		fp.KVCache = f.KVBytes(fp.Context, 2)
	}
	fp.Overhead = cudaOverhead
	if device != registry.DeviceCUDA {
		fp.Overhead, fp.KVCache = cpuOverhead, cacheGiB(f, fp.Context)<<30
	}
	fp.Overhead += fp.Weights / 20
	fp.Estimated = fp.Weights + fp.KVCache + fp.Overhead
	return fp
}
