package ollama

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What an Ollama of ours takes beyond weights and cache, in bytes: the server itself and llama-server with its buffers.
// Measured on the CPU with version 0.33.0 and SmolLM2-135M-Instruct Q4_1, see TestTakesWhatWasPromised. The CUDA number is
// not measured: a CUDA context with cuBLAS's workspace is commonly 300 to 500 MB. The manager learns what is right on a
// host from its own measurements.
const (
	serverOverhead = 40 << 20 // ollama serve
	runnerOverhead = 56 << 20 // llama-server, as the loader llamacpp measured it
	cudaOverhead   = 512 << 20
	perToken       = 128 // bytes of scratch memory for each token of context
	weightShare    = 50  // one 50th of the weights: 2 %
	defaultContext = 8192
	defaultBatch   = 512
	checkpoints    = 2 // copies of a window's cache or of a state that llama-server keeps for each slot
	cellMultiple   = 256
)

// contextFor returns the tokens of context a model is loaded with: context_length if it is given, else num_ctx, else what
// it was trained for, at most 8,192. Estimate and Load both use it.
func contextFor(m registry.Model, f registry.Facts, v params.Values) int {
	if m.ContextLength > 0 {
		return m.ContextLength
	}
	if n, ok := v.Int("num_ctx", 0); ok {
		return int(n)
	}
	if f.ContextLength > 0 {
		return min(f.ContextLength, defaultContext)
	}
	return defaultContext
}

// elementBits are the bits of one element of the cache; quantised types store a block of 32 elements with its scale.
var elementBits = map[string]float64{"f16": 16, "q8_0": 8.5, "q4_0": 4.5}

// quantizedBits are the bits of a weight in the types that quantization_bits chooses, with what stays at full size.
var quantizedBits = map[int]float64{4: 5.0, 8: 8.6}

// Estimate predicts what Ollama takes on the device, in bytes: weights, cache at the context it would be loaded with for
// each of its parallel requests, and overhead. Weights that are quantised when they are converted count as they will be.
// Basis is empty when the facts say too little.
func (l *Loader) Estimate(m registry.Model, a registry.Artifact, device registry.Device) registry.Footprint {
	f := a.Facts
	v, err := params.Read(Name, m.CustomLoaderParams, table)
	if err != nil {
		v = params.Values{} // a load would refuse them; an estimate need not
	}
	n := contextFor(m, f, v)
	fp := registry.Footprint{Weights: f.WeightBytes, Context: n, Basis: "header of the weights"}
	if fp.Weights == 0 {
		fp.Weights, fp.Basis = a.Bytes, "file size"
	}
	if fp.Weights == 0 {
		return registry.Footprint{}
	}
	if bits, ok := quantizedBits[m.QuantizationBits]; ok && f.Parameters > 0 {
		fp.Weights = min(fp.Weights, int64(float64(f.Parameters)*bits/8))
	}
	parallel, _ := v.Int("parallel", 1)
	cells := (n + cellMultiple - 1) / cellMultiple * cellMultiple
	batch, _ := v.Int("num_batch", defaultBatch)
	if !f.Embedding {
		fp.KVCache = (cacheBytes(f, cells, int(batch), v) + f.StateBytes) * parallel
	}
	if device == registry.DeviceCUDA {
		fp.Overhead = cudaOverhead
		if layers, ok := v.Int("num_gpu", 0); ok && f.Layers > 0 && layers < int64(f.Layers+1) {
			// The rest stays in RAM. The output layer counts as one more.
			fp.Weights = fp.Weights * layers / int64(f.Layers+1)
			fp.KVCache = fp.KVCache * min(layers, int64(f.Layers)) / int64(f.Layers)
		}
	} else {
		fp.Overhead = serverOverhead + runnerOverhead
		if !f.Embedding {
			fp.Overhead += checkpoints * parallel * (windowBytes(f, cells, v) + f.StateBytes)
		}
	}
	fp.Overhead += fp.Weights/weightShare + int64(cells)*parallel*perToken
	fp.Overhead += max(0, batch-defaultBatch) * (32 << 10) // scratch memory beyond that of the measured batch
	fp.Estimated = fp.Weights + fp.KVCache + fp.Overhead
	return fp
}

// cacheBytes is the cache of one sequence of n tokens. The cache of a sliding window holds the window and one batch more,
// as llama.cpp sizes it.
func cacheBytes(f registry.Facts, n, batch int, v params.Values) int64 {
	var sum int64
	for _, g := range f.Cache() {
		if g.Window > 0 {
			g.Window = (g.Window + batch + cellMultiple - 1) / cellMultiple * cellMultiple
		}
		sum += typed(g.Bytes(n, 1), v)
	}
	return sum
}

// windowBytes is what one sequence keeps in the windows.
func windowBytes(f registry.Facts, n int, v params.Values) int64 {
	var sum int64
	for _, g := range f.Cache() {
		if g.Window > 0 {
			sum += typed(g.Bytes(n, 1), v)
		}
	}
	return sum
}

// typed turns elements into bytes. The facts may be nonsense: what no device has stays within an int64.
func typed(elements int64, v params.Values) int64 {
	return int64(min(float64(elements)*elementBits[v.String("cache_type", "f16")]/8, 1<<52))
}
