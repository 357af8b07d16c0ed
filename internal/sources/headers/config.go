package headers

import (
	"fmt"
	"math"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// config is a config.json of the Hugging Face kind. Names differ between architectures, and multimodal ones keep
// those of the language model under text_config, so it is read by name and not into a struct.
type config map[string]any

// value returns the first of the names that is set, here or under text_config.
func (c config) value(names ...string) any {
	for _, name := range names {
		if v, ok := c[name]; ok && v != nil {
			return v
		}
	}
	if text, ok := c["text_config"].(map[string]any); ok {
		for _, name := range names {
			if v, ok := text[name]; ok && v != nil {
				return v
			}
		}
	}
	return nil
}

func (c config) number(names ...string) int {
	n, ok := c.value(names...).(float64)
	if !ok || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}

func (c config) text(names ...string) string {
	s, _ := c.value(names...).(string)
	return clean(s)
}

// encoderTypes are model_type values of encoders: they answer embeddings and cannot chat.
var encoderTypes = map[string]bool{
	"albert": true, "bert": true, "camembert": true, "deberta": true, "deberta-v2": true, "distilbert": true,
	"electra": true, "ernie": true, "eurobert": true, "jina_bert": true, "modernbert": true, "mpnet": true,
	"new": true, "nomic_bert": true, "roberta": true, "roformer": true, "xlm-roberta": true,
}

// configPatterns gives the period of full attention for architectures whose older configurations do not list their
// layers: sliding_window_pattern's default in the configuration classes of transformers 4.50.
var configPatterns = map[string]int{"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}

// facts fills in what the configuration says.
func (c config) facts(f *registry.Facts) {
	if list, ok := c["architectures"].([]any); ok && len(list) > 0 {
		s, _ := list[0].(string)
		f.Architecture = clean(s)
	}
	kind := c.text("model_type")
	if f.Architecture == "" {
		f.Architecture = kind
	}
	f.Name = c.text("_name_or_path")
	if strings.HasPrefix(f.Name, "/") || strings.HasPrefix(f.Name, ".") {
		f.Name = "" // where somebody trained it, not what it is called
	}
	f.ContextLength = c.number("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length")
	f.Layers = c.number("num_hidden_layers", "n_layer", "num_layers", "n_layers")
	heads := c.number("num_attention_heads", "n_head", "n_heads")
	f.KVHeads = c.number("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
	if f.KVHeads == 0 {
		f.KVHeads = heads
		if multi, _ := c.value("multi_query").(bool); multi {
			f.KVHeads = 1
		}
	}
	f.KeyLength = c.number("head_dim", "kv_channels")
	if f.KeyLength == 0 && heads > 0 {
		f.KeyLength = c.number("hidden_size", "n_embd", "d_model", "dim") / heads
	}
	f.ValueLength = f.KeyLength
	c.latentAttention(f)
	c.windows(kind, f)
	c.quantization(f)
	f.Embedding = encoderTypes[kind]
	if m, ok := c["auto_map"].(map[string]any); ok && len(m) > 0 {
		f.Code = true
	}
	distrust(f)
}

// latentAttention is DeepSeek's MLA: one latent vector of kv_lora_rank and one rotary key are cached per token and layer,
// whatever the number of heads; see section 2.1 of arXiv:2405.04434.
func (c config) latentAttention(f *registry.Facts) {
	if rank := c.number("kv_lora_rank"); rank > 0 {
		f.KVHeads, f.KeyLength, f.ValueLength = 1, rank, c.number("qk_rope_head_dim")
		f.Notes = append(f.Notes, "Uses latent attention (MLA): an engine that does not support it needs far more cache.")
	}
}

// windows counts the layers that see only the sliding window, and leaves out of the heads the layers that keep no
// keys and values at all (linear attention, state space).
func (c config) windows(kind string, f *registry.Facts) {
	f.Window = c.number("sliding_window", "sliding_window_size")
	if use, ok := c.value("use_sliding_window").(bool); ok && !use {
		f.Window = 0
	}
	if list, ok := c.value("layer_types").([]any); ok && len(list) > 0 {
		windowed, without := 0, 0
		for _, v := range list {
			switch v {
			case "sliding_attention", "chunked_attention":
				windowed++
			case "full_attention", "attention":
			default:
				without++
			}
		}
		if f.Window > 0 {
			f.WindowLayers = min(windowed, f.Layers)
		}
		if without > 0 && without < len(list) {
			f.Notes = append(f.Notes, fmt.Sprintf("%d of %d layers keep no keys and values.", without, len(list)))
			if f.WindowLayers == 0 {
				f.KVHeads = (f.KVHeads*(len(list)-without) + len(list) - 1) / len(list)
			}
		}
		return
	}
	if f.Window == 0 {
		return
	}
	period := c.number("sliding_window_pattern", "_sliding_window_pattern")
	if period == 0 {
		period = configPatterns[kind]
	}
	f.WindowLayers = swaPattern{period: period}.windowed(f.Layers)
	// Qwen 2: the first max_window_layers layers use full attention.
	if full := c.number("max_window_layers"); full > 0 {
		f.WindowLayers = max(f.Layers-full, 0)
	}
}

func (c config) quantization(f *registry.Facts) {
	q, ok := c.value("quantization_config").(map[string]any)
	if !ok {
		return
	}
	method := config(q).text("quant_method")
	bits := config(q).number("bits", "w_bit")
	if four, _ := q["load_in_4bit"].(bool); four {
		bits = 4
	}
	if eight, _ := q["load_in_8bit"].(bool); eight {
		bits = 8
	}
	f.Quantization = method
	if bits > 0 {
		f.Quantization = strings.TrimSpace(fmt.Sprintf("%s %d-bit", method, bits))
	}
}
