package headers

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// readWeights reads the header of every file of weights and holds them against the index.
func (d *folder) readWeights(w *Weights, idx *index, cfg config) error {
	if !strings.HasSuffix(w.Files[0], ".safetensors") {
		return d.readPickles(w, cfg)
	}
	q := cfg.quantization()
	var sum tally
	where := map[string]string{}
	for _, name := range w.Files {
		err := d.read(name, func(r io.ReaderAt, size int64) error {
			s, err := ReadSafetensors(r, size)
			for _, t := range s.Tensors {
				if other, dup := where[t.Name]; dup {
					return Corrupt("Get all shards again from one place", "the tensor %s is in %s too", quote(t.Name), other)
				}
				where[t.Name] = name
				sum.addPacked(t, q)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(sum.byType) == 0 {
		return Corrupt(copyAgain, "%s holds no tensors", Some(w.Files))
	}
	f := &w.Facts
	f.Parameters, f.WeightBytes, f.DType = sum.elements, sum.bytes, sum.dominant()
	if total, used := cfg.experts(); used > 0 && sum.experts > 0 {
		f.ActiveParameters = sum.elements - sum.experts + sum.experts/int64(total)*int64(used)
	}
	q.note(f)
	return checkIndex(idx, where)
}

// note says where the number of parameters is in doubt.
func (q quantized) note(f *registry.Facts) {
	if !q.understood() {
		f.Notes = append(f.Notes, fmt.Sprintf("The weights are quantised by a method we do not know (%s): several parameters may be packed into one element.", quote(q.method)))
	}
}

// readPickles looks at PyTorch's own files, which are never unpickled: the number of parameters follows from the
// bytes and the type that config.json names.
func (d *folder) readPickles(w *Weights, cfg config) error {
	f := &w.Facts
	f.Pickles = true
	ends := len(w.Files)
	for i, name := range w.Files {
		bytes := d.size[name]
		// A sketch looks at the first and the last only.
		if !d.sketch || i == 0 || i == ends-1 {
			err := d.read(name, func(r io.ReaderAt, size int64) (err error) {
				bytes, err = checkPickle(r, size)
				return err
			})
			if err != nil {
				return err
			}
		}
		f.WeightBytes += bytes
	}
	f.DType = cfg.dtype()
	f.Notes = append(f.Notes, "The weights are pickles: loading them can run code.")
	if bits := safetensorsBits[hubType(f.DType)]; bits > 0 && f.Quantization == "" {
		f.Parameters = f.WeightBytes * 8 / bits
		f.Notes = append(f.Notes, fmt.Sprintf("The number of parameters is derived from the bytes of the weights, taken as %s.", f.DType))
	}
	return nil
}

// dtypes are the names that PyTorch has for the types of safetensors.
var dtypes = map[string]string{
	"float32": "f32", "float": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16", "float64": "f64", "double": "f64",
	"float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2", "int8": "i8", "uint8": "u8",
}

// dtype is the type in which the model was saved, "" when config.json does not say. A model whose config.json is
// silent was saved in 32 bits by the releases of that time, which nobody can be sure of.
func (c config) dtype() string {
	name := strings.TrimPrefix(c.text("torch_dtype", "dtype"), "torch.")
	if short, ok := dtypes[name]; ok {
		return short
	}
	return name
}

// hubType is a type as safetensors writes it: BF16.
func hubType(dtype string) string { return strings.ToUpper(dtype) }

// experts returns how many experts a layer has and how many of them a token passes through; 0, 0 for a model without.
func (c config) experts() (total, used int) {
	total = c.number("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", "num_routed_experts")
	used = c.number("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
	if ffn := c.part("ffn_config"); ffn != nil && total == 0 { // DBRX
		total, used = ffn.number("moe_num_experts"), ffn.number("moe_top_k")
	}
	if total < 2 || used < 1 || used > total {
		return 0, 0
	}
	return total, used
}

// checkIndex holds the index against what the shards say.
func checkIndex(idx *index, where map[string]string) error {
	if idx == nil {
		return nil
	}
	var wrong []string
	for tensor, file := range idx.WeightMap {
		if where[tensor] != file {
			wrong = append(wrong, quote(tensor)+" in "+file)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return Corrupt("Get the index and all shards again from one place", "the index places %d tensors in shards that do not hold them: %s", len(wrong), Some(wrong))
}
