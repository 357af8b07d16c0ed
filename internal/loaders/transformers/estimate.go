package transformers

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What a worker takes beyond weights and cache, in bytes. The CPU's: Python with torch 2.15 and transformers 5.23 and
// all-MiniLM-L6-v2 (87 MiB of weights), after an answer, had 785 MiB resident, of which 374 are mapped files. The GPU's: on
// an H200 with torch 2.11 (CUDA 13) the driver counted 702 to 768 MiB more than torch had reserved, for an 8B model in bf16, 8
// and 4 bits. The manager learns what is right on a host from its own measurements.
const (
	cpuOverhead    = 700 << 20
	cudaOverhead   = 768 << 20
	bitsOverhead   = 256 << 20 // what bitsandbytes works in; measured in the same way
	weightShare    = 50        // one 50th of the weights for what a step computes: 2 %
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
	if m.ModelFormat == registry.FormatONNX {
		return estimateONNX(a, device)
	}
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
		fp.Weights = min(fp.Weights, quantised(f, bits, element))
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
	if m.QuantizationBits > 0 && device == registry.DeviceCUDA {
		fp.Overhead += bitsOverhead
	}
	fp.Overhead += fp.Weights / weightShare
	fp.Estimated = fp.Weights + fp.KVCache + fp.Overhead
	return fp
}

// quantised is what bitsandbytes makes of the weights, in bytes: table and head keep their dtype. With 4 bits each 64
// weights have a scale of one byte, each 256 of these one of four (double quantisation); with 8 bits each row has one, which is
// nothing beside it. An H200 had 5,591,540,224 bytes of weights and 115,934,720 of scales for an 8B model of Llama's shape where
// this says 5,701,901,296 of both, and 9,086,706,688 with 8 bits where this says 9,080,934,400.
func quantised(f registry.Facts, bits int, element int64) int64 {
	edge := min(f.EdgeParameters, f.Parameters)
	inner := f.Parameters - edge
	bytes := edge*element + inner*int64(bits)/8
	if f.EdgeParameters == 0 { // not known: a quarter of a model of this size may be its edges
		bytes += bytes / 4
	}
	if bits == 4 {
		bytes += inner/64 + inner/(64*64)
	}
	return bytes
}
