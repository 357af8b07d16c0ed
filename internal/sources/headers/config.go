package headers

import (
	"math"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// config is a config.json of the Hugging Face kind. Names differ between architectures, and multimodal ones keep
// those of the language model one level down, so it is read by name and not into a struct.
type config map[string]any

// nested are the names under which multimodal configurations keep that of the language model.
var nested = []string{"text_config", "llm_config", "language_config", "thinker_config", "decoder"}

// language returns the configuration of the language model.
func (c config) language() config {
	for _, name := range nested {
		if inner, ok := c[name].(map[string]any); ok {
			if _, deeper := inner["text_config"].(map[string]any); deeper {
				return config(inner).language()
			}
			return inner
		}
	}
	return c
}

// value returns the first of the names that is set, here or for the language model. One of these says what another
// only inherits, so that all names are looked for at one place before the next.
func (c config) value(names ...string) any {
	for _, level := range []config{c, c.language()} {
		for _, name := range names {
			if v, ok := level[name]; ok && v != nil {
				return v
			}
		}
	}
	return nil
}

func (c config) number(names ...string) int {
	n, ok := c.value(names...).(float64)
	if !ok || !(n >= 0 && n <= math.MaxInt32) {
		return 0
	}
	return int(n)
}

func (c config) text(names ...string) string {
	s, _ := c.value(names...).(string)
	return clean(s)
}

func (c config) yes(names ...string) bool {
	b, _ := c.value(names...).(bool)
	return b
}

func (c config) list(names ...string) []any {
	list, _ := c.value(names...).([]any)
	return list
}

// part returns a configuration within the configuration, nil when there is none.
func (c config) part(names ...string) config {
	m, _ := c.value(names...).(map[string]any)
	return m
}

// numberIn returns an element of a list as a count, 0 when it is none.
func numberIn(list []any, i int) int {
	if i < 0 || i >= len(list) {
		return 0
	}
	return config{"n": list[i]}.number("n")
}

// encoderTypes are model_type values of encoders: they answer embeddings and cannot chat.
var encoderTypes = map[string]bool{
	"albert": true, "bert": true, "camembert": true, "convbert": true, "deberta": true, "deberta-v2": true, "distilbert": true,
	"electra": true, "ernie": true, "eurobert": true, "funnel": true, "gte": true, "jina_bert": true, "jina_bert_v3": true,
	"megatron-bert": true, "mobilebert": true, "modernbert": true, "mpnet": true, "new": true, "nomic_bert": true,
	"nystromformer": true, "roberta": true, "roformer": true, "squeezebert": true, "t5_encoder": true, "xlm-roberta": true,
	"xlm-roberta-xl": true, "xmod": true,
}

var widthNames = []string{"hidden_size", "n_embd", "d_model", "dim", "model_dim"}

// facts fills in what the configuration says.
func (c config) facts(f *registry.Facts) {
	if list := c.list("architectures"); len(list) > 0 {
		s, _ := list[0].(string)
		f.Architecture = clean(s)
	}
	kind, _ := c["model_type"].(string)
	kind = clean(kind)
	if f.Architecture == "" {
		f.Architecture = kind
	}
	f.Name = c.text("_name_or_path")
	if strings.HasPrefix(f.Name, "/") || strings.HasPrefix(f.Name, ".") {
		f.Name = "" // where somebody trained it, not what it is called
	}
	f.ContextLength = c.number("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length", "max_seq_len")
	f.Embedding = encoderTypes[kind]
	f.Vision = c.part("vision_config", "vit_config", "vision_tower_config", "visual") != nil
	c.stack(kind, f).facts(f)
	f.EdgeParameters = int64(c.number("vocab_size", "n_vocab", "padded_vocab_size")) * int64(c.number(widthNames...))
	if !f.Embedding && !c.yes("tie_word_embeddings") {
		f.EdgeParameters *= 2 // a head of its own
	}
	if c.yes("is_encoder_decoder") {
		f.Notes = append(f.Notes, "An encoder and a decoder: the cache of the encoder's output is not counted.")
	}
	f.Quantization = c.quantization().label()
	if m := c.part("auto_map"); len(m) > 0 {
		f.Code = true
	}
	distrust(f)
}

// stack reads what each layer keeps.
func (c config) stack(kind string, f *registry.Facts) *stack {
	if inner, ok := c.language()["model_type"].(string); ok {
		kind = inner
	}
	layers := c.number("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers", "num_decoder_layers")
	heads := c.number("num_attention_heads", "n_head", "n_heads", "num_heads")
	width := c.number(widthNames...)
	kv := c.number("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
	if kv == 0 {
		kv = c.part("attn_config").number("kv_n_heads")
	}
	if kv == 0 {
		kv = heads
		if c.yes("multi_query") {
			kv = 1
		}
	}
	key := c.number("head_dim", "attention_head_dim", "kv_channels", "d_kv")
	if key == 0 && heads > 0 {
		key = width / heads
	}
	value := c.number("v_head_dim")
	if value == 0 {
		value = key
	}
	s := newStack(layers, kv, key, value)
	if rank := c.number("kv_lora_rank"); rank > 0 {
		rope := c.number("qk_rope_head_dim")
		s.latent = rank + rope
		if n := c.number("qk_nope_head_dim"); n > 0 {
			for i := range s.layers {
				s.layers[i].key = n + rope
			}
		}
		// Sparse attention's indexer keeps a key of its own: DeepSeek-V3.2, GLM-5.
		s.latent += c.number("index_head_dim")
	}
	c.unevenHeads(s)
	c.windows(kind, s, f)
	c.withoutKeys(kind, s)
	s.share(c.number("num_kv_shared_layers"))
	return s
}

// unevenHeads reads numbers of heads that differ from layer to layer: OpenELM, DeciLM and its descendants.
func (c config) unevenHeads(s *stack) {
	per := c.list("num_key_value_heads", "num_kv_heads", "num_key_value_heads_per_layer")
	for i := range s.layers[:min(len(per), len(s.layers))] {
		s.layers[i].heads = numberIn(per, i)
	}
	heads := c.number("num_attention_heads")
	blocks := c.list("block_configs")
	for i := range s.layers[:min(len(blocks), len(s.layers))] {
		block, _ := blocks[i].(map[string]any)
		attention := config(block).part("attention")
		if group := attention.number("n_heads_in_group"); group > 0 {
			s.layers[i].heads = heads / group
		} else if n := attention.number("num_key_value_heads"); n > 0 {
			s.layers[i].heads = n
		} else if attention != nil {
			s.layers[i].heads = 0 // left out, or replaced by a linear layer
		}
	}
}
