package headers

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// CombineGGUF returns the facts of a model whose shards were read in order: its keys are in the first, its tensors in
// all. It checks that the shards belong together and that nothing is missing.
func CombineGGUF(shards []GGUF) (registry.Facts, error) {
	var f registry.Facts
	if len(shards) == 0 {
		return f, invalid("no GGUF file was given")
	}
	first := shards[0]
	if first.Type != "model" {
		return f, invalid("this GGUF file holds no model but general.type %s; name the file of the model itself", quote(first.Type))
	}
	if err := checkSplit(shards); err != nil {
		return f, err
	}
	var sum tally
	for _, s := range shards {
		for _, t := range s.Tensors {
			if sum.elements > math.MaxInt64-t.Elements || sum.bytes > math.MaxInt64-t.Bytes {
				return f, Corrupt(copyAgain, "the tensors together are larger than any disk")
			}
			sum.add(t)
		}
	}
	arch := first.text("general.architecture")
	if arch == "" {
		return f, invalid("this GGUF file does not say its general.architecture: no engine can load it")
	}
	if len(sum.byType) == 0 {
		return f, invalid("this GGUF file holds no tensors: it is only a vocabulary or a header")
	}
	f = registry.Facts{
		Format:        registry.FormatGGUF,
		Architecture:  arch,
		Name:          first.text("general.name"),
		Licence:       first.text("general.license"),
		Parameters:    sum.elements,
		WeightBytes:   sum.bytes,
		DType:         sum.dominant(),
		ContextLength: first.number(arch + ".context_length"),
		Layers:        first.number(arch + ".block_count"),
		ChatTemplate:  first.values["tokenizer.chat_template"].size > 0,
		Embedding:     encoderArchitectures[arch] || first.number(arch+".pooling_type") > 0,
	}
	model := first.text("tokenizer.ggml.model")
	f.Tokenizer = model != "" && model != "none" && model != "no_vocab"
	// 1024 marks a file type that was guessed; see LLAMA_FTYPE_GUESSED.
	if t, ok := first.values["general.file_type"]; ok {
		f.Quantization = fileTypes[t.num&^1024]
	}
	if f.Quantization == "" && !plainTypes[f.DType] {
		f.Quantization = strings.ToUpper(f.DType)
	}
	first.attention(arch, &f)
	distrust(&f)
	return f, nil
}

// checkSplit checks that the shards are all of one model, in order.
func checkSplit(shards []GGUF) error {
	first := shards[0]
	count := max(first.SplitCount, 1)
	if count != len(shards) {
		if len(shards) == 1 {
			return invalid("this GGUF file is shard %d of %d; keep all of them in one folder under their original names (…-%05d-of-%05d.gguf)",
				first.SplitNo+1, count, first.SplitNo+1, count)
		}
		return invalid("the first GGUF file says that there are %d shards, but %d were found", count, len(shards))
	}
	tensors, seen := 0, map[string]bool{}
	for i, s := range shards {
		if len(shards) > 1 && (s.SplitNo != i || s.SplitCount != count) {
			return invalid("the GGUF file in place %d says that it is shard %d of %d: files of different models are mixed up", i+1, s.SplitNo+1, s.SplitCount)
		}
		tensors += len(s.Tensors)
		for _, t := range s.Tensors {
			if seen[t.Name] {
				return Corrupt("Get all shards again from one place", "the tensor %s is in two shards", quote(t.Name))
			}
			seen[t.Name] = true
		}
	}
	if want := first.number("split.tensors.count"); want > 0 && want != tensors {
		return Corrupt("Get all shards again from one place", "the shards hold %d tensors, the first says that there are %d", tensors, want)
	}
	return nil
}

// attention fills in what the size of the key/value cache depends on.
func (g GGUF) attention(arch string, f *registry.Facts) {
	key := func(name string) string { return arch + ".attention." + name }
	heads := g.perLayer(key("head_count"))
	kv := g.perLayer(key("head_count_kv"))
	if kv == nil {
		kv = heads
	}
	f.Window = g.number(key("sliding_window"))
	pattern, known := swaPatterns[arch]
	if f.Window == 0 && known {
		f.Window = pattern.windowIfNone
	}
	if p, ok := g.values[key("sliding_window_pattern")]; ok && f.Window > 0 {
		switch {
		case p.kind == kindArray:
			for _, windowed := range p.list[:min(len(p.list), f.Layers)] {
				f.WindowLayers += int(min(max(windowed, 0), 1))
			}
			known = false
		case known:
			pattern.period = g.number(key("sliding_window_pattern"))
		}
	}
	if known && f.Window > 0 {
		f.WindowLayers = pattern.windowed(f.Layers)
	}
	f.KVHeads = oneCount(kv, f)
	if n := int(slices.Max(append(heads, 0))); n > 0 {
		f.KeyLength = g.number(arch+".embedding_length") / n
		f.ValueLength = f.KeyLength
	}
	if n := g.number(key("key_length")); n > 0 {
		f.KeyLength = n
	}
	if n := g.number(key("value_length")); n > 0 {
		f.ValueLength = n
	}
}

// oneCount makes one number of those of each layer. Without windows the mean, rounded up, gives the size of the
// whole cache; with windows the largest is used, so that memory is never promised too low.
func oneCount(perLayer []int64, f *registry.Facts) int {
	if len(perLayer) == 0 {
		return 0
	}
	lowest, highest := slices.Min(perLayer), slices.Max(perLayer)
	if lowest == highest {
		return int(highest)
	}
	f.Notes = append(f.Notes, fmt.Sprintf("The number of KV heads differs between layers (%d to %d).", lowest, highest))
	if f.WindowLayers > 0 {
		return int(highest)
	}
	var sum int64
	for _, n := range perLayer {
		sum += n
	}
	return int((sum + int64(len(perLayer)) - 1) / int64(len(perLayer)))
}

// distrust drops the numbers of a header that would make the size of the key/value cache larger than any machine's
// memory: they are wrong, and multiplying them would overflow.
func distrust(f *registry.Facts) {
	context := float64(max(f.ContextLength, registry.MaxContext))
	if cache := context * float64(f.Layers) * float64(f.KVHeads) * float64(f.KeyLength+f.ValueLength) * 8; cache > 1<<56 {
		f.Notes = append(f.Notes, "The header's numbers of layers, heads and lengths make no sense together and are not used.")
		f.Layers, f.KVHeads, f.KeyLength, f.ValueLength, f.WindowLayers = 0, 0, 0, 0, 0
	}
}

// number returns a setting that is a count, 0 when it is not there or makes no sense.
func (g GGUF) number(key string) int {
	return sensible(g.values[key].num)
}

func sensible(n int64) int {
	if n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}

// perLayer returns a setting that is one number or one for each layer.
func (g GGUF) perLayer(key string) []int64 {
	v, ok := g.values[key]
	if !ok {
		return nil
	}
	if v.kind != kindArray {
		return []int64{int64(sensible(v.num))}
	}
	out := make([]int64, len(v.list))
	for i, n := range v.list {
		out[i] = int64(sensible(n))
	}
	return out
}

func (g GGUF) text(key string) string { return clean(g.values[key].text) }

// clean makes text out of a file fit for a list: valid, on one line, and short.
func clean(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "")), " ")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return s
}
