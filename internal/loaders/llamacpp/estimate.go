package llamacpp

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What a server takes beyond weights and cache, in bytes. Measured on the CPU with version 11434 and
// SmolLM2-135M-Instruct Q4_1 (576 wide, 49,152 words), physical batch 512, after a prompt that filled the context:
//
//	context   RssAnon     RssFile     KVBytes(context)   file        left over
//	  2,048   85,208 kB   106,280 kB   46,080 kB         94,313 kB   51,095 kB
//	  8,192  223,968 kB   106,404 kB  184,320 kB         94,313 kB   51,739 kB
//
// The same with 4 slots, split or unified: -c is the sum over the slots, so the cache does not grow with them. What is
// left over is the program (12 MB), its buffers, and the graph's scratch memory, which grows with the batch and the
// model's width and hardly with the context (0.1 kB a token). The width is not among the facts, so that the part that
// grows with the model is taken as a share of the weights. The CUDA numbers are not measured: a CUDA context with
// cuBLAS's workspace is commonly 300 to 500 MB. The manager learns what is right on a host from its own measurements.
const (
	cpuOverhead      = 56 << 20
	cudaOverhead     = 512 << 20
	perTokenOverhead = 128 // bytes for each token of context
	weightShare      = 50  // one 50th of the weights: 2 %
	defaultContext   = 8192
	defaultUBatch    = 512
	// windowCheckpoints are the copies of a sliding window's cache, or of the state of layers without one, that the server
	// keeps for each slot, in RAM. Its own default is 32, which is more than the weights for some models.
	windowCheckpoints = 2
)

// ContextFor returns the tokens of context a model is loaded with: context_length if it is given, else what it was
// trained for, at most 8,192. Estimate and Load both use it.
func ContextFor(m registry.Model, f registry.Facts) int {
	if m.ContextLength > 0 {
		return m.ContextLength
	}
	if f.ContextLength > 0 {
		return min(f.ContextLength, defaultContext)
	}
	return defaultContext
}

// padContext rounds up to 256 as llama.cpp does.
func padContext(n int) int { return (n + 255) / 256 * 256 }

// elementBits are the bits of one element of the cache. Quantised types store a block of 32 elements with its scale:
// bytes of the block × 8 / 32.
var elementBits = map[string]float64{"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5, "iq4_nl": 4.5, "q5_0": 5.5, "q5_1": 6}

// Estimate predicts what the server takes on the device, in bytes: weights, cache at ContextFor, and overhead. The
// cache of a sliding window holds the window once for each slot and one physical batch more, and layers that keep a state
// keep one for each slot, as llama.cpp sizes them. An encoder has no cache. Basis is empty when the facts say too little.
func (l *Loader) Estimate(m registry.Model, a registry.Artifact, device registry.Device) registry.Footprint {
	f := a.Facts
	v, err := params.Read(Name, m.CustomLoaderParams, table)
	if err != nil {
		v = params.Values{} // a load would refuse them; an estimate need not
	}
	fp := registry.Footprint{Weights: f.WeightBytes, Context: padContext(ContextFor(m, f)), Basis: "gguf header"}
	if fp.Weights == 0 {
		fp.Weights, fp.Basis = a.Bytes, "file size"
	}
	if fp.Weights == 0 {
		return registry.Footprint{}
	}
	ubatch := physicalBatch(embedding(f, v), fp.Context, v)
	slots := parallel(v, true)
	if !f.Embedding {
		fp.KVCache = cacheBytes(f, fp.Context, int(slots), int(ubatch), v) + f.StateBytes*slots
	}
	switch device {
	case registry.DeviceCUDA:
		fp.Overhead = cudaOverhead
		if n, ok := v.Int("n_gpu_layers", 0); ok && f.Layers > 0 && n < int64(f.Layers+1) {
			// The rest stays in RAM. The output layer counts as one more.
			fp.Weights = fp.Weights * n / int64(f.Layers+1)
			fp.KVCache = fp.KVCache * min(n, int64(f.Layers)) / int64(f.Layers)
		}
	default:
		fp.Overhead = cpuOverhead
		kept, _ := v.Int("cache_ram_mb", 0)
		fp.Overhead += kept << 20
		if !f.Embedding {
			fp.Overhead += windowCheckpoints * slots * (windowBytes(f, fp.Context, v) + f.StateBytes)
		}
	}
	fp.Overhead += fp.Weights/weightShare + int64(fp.Context)*perTokenOverhead
	fp.Overhead += max(0, ubatch-defaultUBatch) * (32 << 10) // scratch memory beyond that of the measured batch
	fp.Estimated = fp.Weights + fp.KVCache + fp.Overhead
	return fp
}

// cacheBytes is the cache of n tokens with the types that the parameters choose for keys and values. What latent attention
// keeps counts as keys, as in llama.cpp.
func cacheBytes(f registry.Facts, n, slots, ubatch int, v params.Values) int64 {
	var sum int64
	for _, g := range f.Cache() {
		if g.Window > 0 {
			g.Window = padContext(g.Window*slots + ubatch)
		}
		sum += typedBytes(g, n, v)
	}
	return sum
}

// windowBytes is what one sequence keeps in the windows.
func windowBytes(f registry.Facts, n int, v params.Values) int64 {
	var sum int64
	for _, g := range f.Cache() {
		if g.Window > 0 {
			sum += typedBytes(g, n, v)
		}
	}
	return sum
}

// typedBytes is what a group of layers keeps of n tokens.
func typedBytes(g registry.KVGroup, n int, v params.Values) int64 {
	keys, values := g, g
	keys.Value, values.Key = 0, 0
	return int64(float64(keys.Bytes(n, 1))*elementBits[v.String("cache_type_k", "f16")]/8 +
		float64(values.Bytes(n, 1))*elementBits[v.String("cache_type_v", "f16")]/8)
}
