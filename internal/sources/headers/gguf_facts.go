package headers

import (
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
	f, err := first.facts()
	if err != nil {
		return f, err
	}
	if len(sum.byType) == 0 {
		return f, invalid("this GGUF file holds no tensors: it is only a vocabulary or a header")
	}
	f.Parameters, f.WeightBytes, f.DType = sum.elements, sum.bytes, sum.dominant()
	if f.Quantization == "" && !plainTypes[f.DType] {
		f.Quantization = strings.ToUpper(f.DType)
	}
	if total, used := first.number(f.Architecture+".expert_count"), first.number(f.Architecture+".expert_used_count"); used > 0 && used <= total && sum.experts > 0 {
		f.ActiveParameters = sum.elements - sum.experts + sum.experts/int64(total)*int64(used)
	}
	return f, nil
}

// facts returns what the keys say.
func (g GGUF) facts() (registry.Facts, error) {
	var f registry.Facts
	arch := g.text("general.architecture")
	if arch == "" {
		return f, invalid("this GGUF file does not say its general.architecture: no engine can load it")
	}
	f = registry.Facts{
		Format:        registry.FormatGGUF,
		Architecture:  arch,
		Name:          g.text("general.name"),
		Licence:       g.text("general.license"),
		ContextLength: g.number(arch + ".context_length"),
		ChatTemplate:  g.values["tokenizer.chat_template"].size > 0,
		Embedding:     encoderArchitectures[arch] || g.number(arch+".pooling_type") > 0,
	}
	model := g.text("tokenizer.ggml.model")
	f.Tokenizer = model != "" && model != "none" && model != "no_vocab"
	// 1024 marks a file type that was guessed; see LLAMA_FTYPE_GUESSED.
	if t, ok := g.values["general.file_type"]; ok {
		f.Quantization = fileTypes[t.num&^1024]
	}
	g.stack(arch, &f).facts(&f)
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

// stack reads what each layer keeps, as llama.cpp does: load_arch_hparams in src/models/*.cpp and
// src/llama-hparams.cpp of 11434.
func (g GGUF) stack(arch string, f *registry.Facts) *stack {
	key := func(name string) string { return arch + ".attention." + name }
	heads := g.perLayer(key("head_count"))
	kv := g.perLayer(key("head_count_kv"))
	if kv == nil {
		kv = heads
	}
	var width, value int
	if n := int(slices.Max(append(heads, 0))); n > 0 {
		width = g.number(arch+".embedding_length") / n
	}
	width = orElse(g.number(key("key_length")), width)
	value = orElse(g.number(key("value_length")), width)
	// The layers that predict further tokens have no cache of their own while they are not used for that.
	layers := g.number(arch+".block_count") - g.number(arch+".nextn_predict_layers")
	s := newStack(layers, 0, width, value)
	for i := range s.layers {
		s.layers[i].heads = int(at(kv, i))
	}
	g.latent(arch, s)
	g.windows(arch, s, f)
	g.recurrent(arch, s, kv)
	s.share(g.number(key("shared_kv_layers")))
	if arch == "gemma3n" { // n_layer_kv_from_start
		s.share(len(s.layers) - 20)
	}
	return s
}

// at returns the number of layer i from a list that has one for each layer, or one for all.
func at(list []int64, i int) int64 {
	switch {
	case len(list) == 1:
		return list[0]
	case i < len(list):
		return list[i]
	}
	return 0
}

// latent reads DeepSeek's MLA. Files that were made before llama.cpp knew it lack key_length_mla; their cache holds the
// keys and values of all heads.
func (g GGUF) latent(arch string, s *stack) {
	key := func(name string) string { return arch + ".attention." + name }
	k, v := g.number(key("key_length_mla")), g.number(key("value_length_mla"))
	if k == 0 || v == 0 || len(s.layers) == 0 {
		return
	}
	// key_length is kv_lora_rank and the rotary part together. The indexer of sparse attention keeps keys of its own.
	s.latent = s.layers[0].key + g.number(key("indexer.key_length"))
	heads := int(at(g.perLayer(key("head_count")), 0))
	for i := range s.layers {
		if s.layers[i].heads > 0 {
			s.layers[i].heads, s.layers[i].key, s.layers[i].value = heads, k, v
		}
	}
}

// windows finds the layers that see only the sliding window.
func (g GGUF) windows(arch string, s *stack, f *registry.Facts) {
	key := func(name string) string { return arch + ".attention." + name }
	f.Window = g.number(key("sliding_window"))
	pattern, known := swaPatterns[arch]
	if _, said := g.values[key("sliding_window")]; known && !said {
		f.Window = pattern.windowIfNone
	}
	// EXAONE 4 has windows in its model of 64 layers only.
	if f.Window == 0 || fullAttention[arch] || arch == "exaone4" && len(s.layers) != 64 {
		return
	}
	windowed := func(i int) bool { return known && pattern.windowed(i) }
	if p, ok := g.values[key("sliding_window_pattern")]; ok {
		switch {
		case p.kind == kindArray:
			windowed = func(i int) bool { return at(p.list, i) != 0 }
		case known:
			pattern.period = g.number(key("sliding_window_pattern"))
		}
	}
	k, v := g.number(key("key_length_swa")), g.number(key("value_length_swa"))
	for i := range s.layers {
		if windowed(i) {
			s.windowed(i, f.Window)
			s.layers[i].key, s.layers[i].value = orElse(k, s.layers[i].key), orElse(v, s.layers[i].value)
		}
	}
}

// recurrent finds the layers that keep a state in place of keys and values.
func (g GGUF) recurrent(arch string, s *stack, kv []int64) {
	state := g.state(arch)
	list := g.perLayer(arch + ".attention.recurrent_layers")
	every := orElse(g.number(arch+".full_attention_interval"), recurrentIntervals[arch])
	ffn := g.perLayer(arch + ".feed_forward_length")
	for i := range s.layers {
		switch {
		case arch == "falcon-h1": // every layer has both
			s.layers[i].state = state
		case arch == "mamba" || arch == "mamba2":
			s.recurrent(i, state)
		case len(list) > 1:
			if at(list, i) != 0 {
				s.recurrent(i, state)
			}
		case every > 1:
			if (i+1)%every != 0 {
				s.recurrent(i, state)
			}
		case len(kv) > 1 && at(kv, i) == 0:
			if strings.HasPrefix(arch, "nemotron_h") && at(ffn, i) != 0 {
				s.recurrent(i, 0) // neither attention nor a state
			} else {
				s.recurrent(i, state)
			}
		}
	}
}

// state returns the elements that a layer without keys and values keeps of a sequence: n_embd_r and n_embd_s of
// src/llama-hparams.cpp.
func (g GGUF) state(arch string) int64 {
	n := func(name string) int64 {
		v := int64(g.number(arch + "." + name))
		if v > 1<<20 {
			return 0 // no such number is this large, and the products below must not overflow
		}
		return v
	}
	width := n("embedding_length")
	heads := min(at(g.perLayer(arch+".attention.head_count"), 0), 1<<20)
	taps := n("ssm.conv_kernel")
	if l := n("shortconv.l_cache"); l > 0 {
		return width * (l - 1)
	}
	if dim := n("kda.head_dim"); dim > 0 {
		if taps == 0 {
			taps = 4
		}
		return 3*(taps-1)*heads*dim + heads*dim*dim
	}
	if head := n("wkv.head_size"); head > 0 {
		return n("token_shift_count")*width + width*head
	}
	if arch == "minimax-01" {
		dim := n("attention.key_length")
		return heads * dim * dim
	}
	inner, size := n("ssm.inner_size"), n("ssm.state_size")
	return max(taps-1, 0)*(inner+2*n("ssm.group_count")*size) + inner*size
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
