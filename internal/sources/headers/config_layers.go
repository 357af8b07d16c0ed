package headers

import (
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// configPatterns gives the period of full attention for architectures whose older configurations do not list their
// layers: sliding_window_pattern's default in the configuration classes of transformers 4.50.
var configPatterns = map[string]int{"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n": 5, "gemma3n_text": 5, "cohere2": 4, "gpt_oss": 2, "exaone4": 4, "olmo3": 4}

// windows finds the layers that see only a sliding window, or a chunk of the context (Llama 4).
func (c config) windows(kind string, s *stack, f *registry.Facts) {
	window := c.number("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size")
	if use, ok := c.value("use_sliding_window").(bool); ok && !use {
		window = 0
	}
	f.Window = window
	if window == 0 || f.Embedding {
		return
	}
	if types := c.list("layer_types"); len(types) > 0 {
		for i, t := range types {
			if t == "sliding_attention" || t == "chunked_attention" {
				s.windowed(i, window)
				c.windowShape(s, i)
			} else if t == "full_attention" {
				c.globalShape(s, i)
			}
		}
		return
	}
	if pattern := c.list("hybrid_layer_pattern"); len(pattern) > 0 { // MiMo-V2: 1 is windowed
		for i := range pattern {
			if numberIn(pattern, i) == 1 {
				s.windowed(i, window)
				c.windowShape(s, i)
			}
		}
		return
	}
	if rope := c.list("no_rope_layers"); len(rope) > 0 { // Llama 4: those with positions see a chunk, those without see all
		for i := range rope {
			if numberIn(rope, i) == 1 {
				s.windowed(i, window)
			}
		}
		return
	}
	letters := strings.ToUpper(c.text("sliding_window_pattern")) // EXAONE 4: LLLG
	// Qwen 2: the first max_window_layers layers use full attention.
	first := c.number("max_window_layers")
	period := c.number("sliding_window_pattern", "_sliding_window_pattern")
	if period == 0 && letters == "" {
		period = configPatterns[kind]
	}
	if kind == "llama4" || kind == "llama4_text" {
		period = 4
	}
	for i := range s.layers {
		switch {
		case letters != "":
			if letters[i%len(letters)] == 'L' {
				s.windowed(i, window)
			}
		case first > 0:
			if i >= first {
				s.windowed(i, window)
			}
		case period == 0 || (i+1)%period != 0:
			s.windowed(i, window)
		}
	}
}

// windowShape gives a windowed layer heads of its own where the configuration has some: MiMo-V2.
func (c config) windowShape(s *stack, i int) {
	if i >= len(s.layers) {
		return
	}
	l := &s.layers[i]
	l.heads = orElse(c.number("swa_num_key_value_heads"), l.heads)
	l.key = orElse(c.number("swa_head_dim"), l.key)
	l.value = orElse(c.number("swa_v_head_dim", "swa_head_dim"), l.value)
}

// globalShape gives a layer of full attention heads of its own where the configuration has some: Gemma 4.
func (c config) globalShape(s *stack, i int) {
	if i >= len(s.layers) {
		return
	}
	l := &s.layers[i]
	l.heads = orElse(c.number("num_global_key_value_heads"), l.heads)
	l.key = orElse(c.number("global_head_dim"), l.key)
	l.value = orElse(c.number("global_head_dim"), l.value)
}

func orElse(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// withoutKeys finds the layers that keep a state in place of keys and values: linear attention, state spaces, short
// convolutions.
func (c config) withoutKeys(kind string, s *stack) {
	state := c.state(s)
	switch {
	case kind == "mamba" || kind == "mamba2" || kind == "falcon_mamba":
		for i := range s.layers {
			s.recurrent(i, state)
		}
	case kind == "falcon_h1": // every layer has both
		for i := range s.layers {
			s.layers[i].state = state
		}
	case c.text("hybrid_override_pattern") != "": // Nemotron-H: M is Mamba, * attention, - a layer without either
		for i, letter := range []byte(c.text("hybrid_override_pattern")) {
			switch letter {
			case 'M':
				s.recurrent(i, state)
			case '*':
			default:
				s.recurrent(i, 0)
			}
		}
	case len(c.list("layer_types", "layers_block_type")) > 0:
		for i, t := range c.list("layer_types", "layers_block_type") {
			switch t {
			case "linear_attention", "mamba", "conv", "recurrent", "lightning_attention":
				s.recurrent(i, state)
			case "mlp", "moe":
				s.recurrent(i, 0)
			case "hybrid": // Zamba2: both
				if i < len(s.layers) {
					s.layers[i].state = state
				}
			}
		}
	default:
		c.byPosition(s, state)
	}
}

// byPosition reads the older ways to say which layers attend.
func (c config) byPosition(s *stack, state int64) {
	attends := func(int) bool { return true }
	in := func(list []any, base int) func(int) bool {
		set := map[int]bool{}
		for i := range list {
			set[numberIn(list, i)-base] = true
		}
		return func(i int) bool { return set[i] }
	}
	if period := c.number("attn_layer_period"); period > 1 { // Jamba
		offset := c.number("attn_layer_offset")
		attends = func(i int) bool { return i%period == offset }
	} else if every := c.number("full_attention_interval"); every > 1 { // Qwen3-Next
		attends = func(i int) bool { return (i+1)%every == 0 }
	} else if list := c.list("attn_layer_indices", "full_attn_idxs"); len(list) > 0 { // Bamba, LFM2
		attends = in(list, 0)
	} else if list := c.part("linear_attn_config").list("full_attn_layers"); len(list) > 0 { // Kimi Linear counts from 1
		attends = in(list, 1)
	} else if list := c.list("attn_type_list"); len(list) > 0 { // MiniMax-01
		attends = func(i int) bool { return numberIn(list, i) == 1 }
	} else if list := c.list("block_types"); len(list) > 0 { // RecurrentGemma repeats them
		attends = func(i int) bool { return list[i%len(list)] == "attention" }
	}
	for i := range s.layers {
		if !attends(i) {
			s.recurrent(i, state)
		}
	}
}

// state returns the elements that one layer without keys and values keeps of a sequence: the last inputs of its
// convolution, and the matrix that linear attention or the state space updates.
func (c config) state(s *stack) int64 {
	n := func(names ...string) int64 {
		v := c.number(names...)
		if v > 1<<20 {
			return 0 // no such number is this large, and the products below must not overflow
		}
		return int64(v)
	}
	width := n("hidden_size", "n_embd", "d_model")
	if taps := n("conv_L_cache"); taps > 0 { // LFM2
		return (taps - 1) * width
	}
	if l := c.part("linear_attn_config"); l != nil { // Kimi delta attention: a convolution each for q, k and v
		dim, heads, taps := min(int64(l.number("head_dim")), 1<<20), min(int64(l.number("num_heads")), 1<<20), min(int64(l.number("short_conv_kernel_size")), 1<<10)
		return 3*max(taps-1, 0)*heads*dim + heads*dim*dim
	}
	if heads := n("linear_num_value_heads"); heads > 0 { // gated delta net: Qwen3-Next
		keys, key, value := n("linear_num_key_heads"), n("linear_key_head_dim"), n("linear_value_head_dim")
		return max(n("linear_conv_kernel_dim")-1, 0)*(2*keys*key+heads*value) + heads*key*value
	}
	if lru := n("lru_width"); lru > 0 { // RecurrentGemma
		return lru + max(n("conv1d_width")-1, 0)*lru
	}
	if len(c.list("attn_type_list")) > 0 && len(s.layers) > 0 { // lightning attention: MiniMax-01
		dim := min(int64(s.layers[0].key), 1<<20)
		return n("num_attention_heads") * dim * dim
	}
	size := n("mamba_d_state", "ssm_state_size", "state_size", "mamba_state_dim")
	if size == 0 {
		return 0
	}
	inner := n("mamba_d_ssm", "mamba_intermediate_size")
	if heads := n("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"); inner == 0 {
		inner = heads * n("mamba_d_head", "mamba_head_dim", "mamba_headdim")
	}
	if inner == 0 {
		expand := n("mamba_expand", "expand")
		if expand == 0 {
			expand = 2
		}
		inner = expand * width
	}
	taps := n("mamba_d_conv", "conv_kernel", "mamba_conv_kernel")
	groups := n("mamba_n_groups", "n_groups", "mamba_ngroups")
	return max(taps-1, 0)*(inner+2*groups*size) + inner*size
}
