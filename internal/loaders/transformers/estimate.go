package transformers

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What a worker takes beyond weights and cache, in bytes. The CPU's: Python with torch 2.15 and transformers 5.23 and
// all-MiniLM-L6-v2 (87 MiB of weights), after an answer, had 785 MiB resident, of which 374 are mapped files. The GPU's is
// not measured: a CUDA context with torch's and cuBLAS's own is commonly 500 to 700 MB. The manager learns what is right
// on a host from its own measurements.
const (
	cpuOverhead    = 700 << 20
	cudaOverhead   = 640 << 20
	weightShare    = 50 // one 50th of the weights for what a step computes: 2 %
	defaultContext = 8192
)

// ContextFor returns the tokens of context that a model is loaded with: what the plan reserved for, else context_length,
// else what it was trained for, at most 8,192.
func ContextFor(m registry.Model, f registry.Facts, planned int) int {
	switch {
	case planned > 0:
		return planned
	case m.ContextLength > 0:
		return m.ContextLength
	case f.ContextLength > 0:
		return min(f.ContextLength, defaultContext)
	}
	return defaultContext
}

// elementBytes are the bytes of one element of each dtype as it lies in memory.
var elementBytes = map[string]int64{"float32": 4, "float16": 2, "bfloat16": 2, "f32": 4, "f16": 2, "bf16": 2}

// Estimate predicts what the worker takes on the device, in bytes: weights in the dtype or quantisation they are loaded
// with, the cache of one text of ContextFor tokens, and overhead. Several texts at once share what max_batch_tokens
// allows; the worker splits a batch that finds no memory. Basis is empty when the facts say too little.
func (l *Loader) Estimate(m registry.Model, a registry.Artifact, device registry.Device) registry.Footprint {
	f := a.Facts
	v, err := params.Read(Name, m.CustomLoaderParams, table)
	if err != nil {
		v = params.Values{} // a load would refuse them; an estimate need not
	}
	fp := registry.Footprint{Weights: f.WeightBytes, Context: ContextFor(m, f, 0), Basis: "safetensors header"}
	if f.Pickles {
		fp.Basis = "file size"
	}
	if fp.Weights == 0 {
		fp.Weights, fp.Basis = a.Bytes, "file size"
	}
	if fp.Weights == 0 {
		return registry.Footprint{}
	}
	dtype := v.String("dtype", v.String("torch_dtype", "auto"))
	if dtype == "auto" {
		dtype = f.DType
	}
	if device == registry.DeviceCPU && elementBytes[dtype] == 2 && dtype != "bfloat16" && dtype != "bf16" {
		dtype = "float32" // see dtype_of in the worker
	}
	element := elementBytes[dtype]
	if element == 0 {
		element = 2
	}
	switch bits := m.QuantizationBits; {
	case bits > 0 && f.Parameters > 0 && device == registry.DeviceCUDA:
		// Embeddings and norms stay as they are, and each block has its scale: about an eighth more.
		fp.Weights = min(fp.Weights, f.Parameters*int64(bits)/8*9/8)
	case f.Parameters > 0 && elementBytes[f.DType] > 0 && elementBytes[dtype] > 0:
		fp.Weights = fp.Weights * elementBytes[dtype] / elementBytes[f.DType]
	}
	if !f.Embedding {
		for _, g := range f.Cache() {
			fp.KVCache += g.Bytes(fp.Context, element)
		}
		fp.KVCache += f.StateBytes
	}
	fp.Overhead = cpuOverhead
	if device == registry.DeviceCUDA {
		fp.Overhead = cudaOverhead
	}
	fp.Overhead += fp.Weights / weightShare
	fp.Estimated = fp.Weights + fp.KVCache + fp.Overhead
	return fp
}
