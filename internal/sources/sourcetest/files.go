package sourcetest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// GGUFTensor is one tensor of a GGUF file that a test makes. Type is the ggml number: 0 f32, 1 f16, 3 q4_1.
type GGUFTensor struct {
	Name  string
	Type  uint32
	Shape []uint64
	Data  []byte
}

// GGUF writes a GGUF file of version 3. The values of keys are string, uint32, uint64, int32, float32, bool,
// []string, []uint32, []int32 or []bool.
func GGUF(keys map[string]any, tensors []GGUFTensor) []byte {
	var b bytes.Buffer
	b.WriteString("GGUF")
	put(&b, uint32(3), uint64(len(tensors)), uint64(len(keys)))
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		putString(&b, k)
		putValue(&b, keys[k])
	}
	offset := uint64(0)
	for _, t := range tensors {
		putString(&b, t.Name)
		put(&b, uint32(len(t.Shape)))
		for _, d := range t.Shape {
			put(&b, d)
		}
		put(&b, t.Type, offset)
		offset += pad(uint64(len(t.Data)))
	}
	for _, t := range tensors {
		b.Write(make([]byte, pad(uint64(b.Len()))-uint64(b.Len())))
		b.Write(t.Data)
	}
	return b.Bytes()
}

func pad(n uint64) uint64 { return (n + 31) &^ 31 }

func put(b *bytes.Buffer, values ...any) {
	for _, v := range values {
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err) // a type that has no fixed size: a mistake in the test
		}
	}
}

func putString(b *bytes.Buffer, s string) {
	put(b, uint64(len(s)))
	b.WriteString(s)
}

func putValue(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case string:
		put(b, uint32(8))
		putString(b, v)
	case []string:
		put(b, uint32(9), uint32(8), uint64(len(v)))
		for _, s := range v {
			putString(b, s)
		}
	case []uint32:
		put(b, uint32(9), uint32(4), uint64(len(v)), v)
	case []int32:
		put(b, uint32(9), uint32(5), uint64(len(v)), v)
	case []bool:
		put(b, uint32(9), uint32(7), uint64(len(v)), v)
	case uint32:
		put(b, uint32(4), v)
	case int32:
		put(b, uint32(5), v)
	case float32:
		put(b, uint32(6), v)
	case bool:
		put(b, uint32(7), v)
	case uint64:
		put(b, uint32(10), v)
	default:
		panic(fmt.Sprintf("sourcetest: no GGUF type for %T", v))
	}
}

// LlamaKeys are the keys of a tiny model of the llama architecture.
func LlamaKeys() map[string]any {
	return map[string]any{
		"general.architecture":                   "llama",
		"general.name":                           "Tiny",
		"general.license":                        "apache-2.0",
		"general.file_type":                      uint32(3),
		"llama.context_length":                   uint32(2048),
		"llama.block_count":                      uint32(2),
		"llama.embedding_length":                 uint32(64),
		"llama.attention.head_count":             uint32(4),
		"llama.attention.head_count_kv":          uint32(2),
		"tokenizer.ggml.model":                   "gpt2",
		"tokenizer.ggml.tokens":                  []string{"a", "b", "<eos>"},
		"tokenizer.chat_template":                "{{ messages }}",
		"llama.rope.freq_base":                   float32(10000),
		"tokenizer.ggml.add_bos_token":           false,
		"general.quantization_version":           uint32(2),
		"llama.feed_forward_length":              uint32(128),
		"llama.vocab_size":                       uint32(3),
		"tokenizer.ggml.eos_token_id":            uint32(2),
		"tokenizer.ggml.token_type":              []int32{1, 1, 3},
		"llama.attention.layer_norm_rms_epsilon": float32(1e-5),
	}
}

// LlamaTensors are the tensors of a tiny model: 4,096 elements of q4_1 and 64 of f32. fill makes two models differ.
func LlamaTensors(fill byte) []GGUFTensor {
	return []GGUFTensor{
		{Name: "token_embd.weight", Type: 3, Shape: []uint64{64, 64}, Data: bytes.Repeat([]byte{fill}, 4096/32*20)},
		{Name: "output_norm.weight", Type: 0, Shape: []uint64{64}, Data: bytes.Repeat([]byte{fill}, 64*4)},
	}
}

// TinyGGUF is a whole tiny model in one file.
func TinyGGUF(fill byte) []byte { return GGUF(LlamaKeys(), LlamaTensors(fill)) }

// SplitGGUF is the tiny model in two shards, by name.
func SplitGGUF(prefix string, fill byte) map[string][]byte {
	tensors := LlamaTensors(fill)
	first := LlamaKeys()
	maps.Copy(first, map[string]any{"split.no": uint32(0), "split.count": uint32(2), "split.tensors.count": int32(2)})
	second := map[string]any{"split.no": uint32(1), "split.count": uint32(2), "split.tensors.count": int32(2)}
	return map[string][]byte{
		prefix + "-00001-of-00002.gguf": GGUF(first, tensors[:1]),
		prefix + "-00002-of-00002.gguf": GGUF(second, tensors[1:]),
	}
}

// STTensor is one tensor of a safetensors file that a test makes.
type STTensor struct {
	Name  string
	DType string // F32, BF16, …
	Shape []int64
	Data  []byte
}

// Safetensors writes a safetensors file.
func Safetensors(tensors ...STTensor) []byte {
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data []byte
	for _, t := range tensors {
		header[t.Name] = map[string]any{"dtype": t.DType, "shape": t.Shape, "data_offsets": []int{len(data), len(data) + len(t.Data)}}
		data = append(data, t.Data...)
	}
	text, err := json.Marshal(header)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return RawSafetensors(string(text), data)
}

// RawSafetensors writes a safetensors file with this very header, right or wrong.
func RawSafetensors(header string, data []byte) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), data...)
}

// LlamaConfig is the config.json of a tiny model.
const LlamaConfig = `{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
  "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 2048
}`

// SafetensorsFolder is a whole tiny model in two shards with config, index and tokenizer, by name: 4,096 elements of
// bf16 in the first shard and 64 of f32 in the second.
func SafetensorsFolder(fill byte) map[string][]byte {
	return map[string][]byte{
		"config.json":           []byte(LlamaConfig),
		"tokenizer.json":        []byte(`{"version": "1.0"}`),
		"tokenizer_config.json": []byte(`{"chat_template": "{{ messages }}"}`),
		"model-00001-of-00002.safetensors": Safetensors(
			STTensor{"model.embed_tokens.weight", "BF16", []int64{64, 64}, bytes.Repeat([]byte{fill}, 8192)}),
		"model-00002-of-00002.safetensors": Safetensors(
			STTensor{"model.norm.weight", "F32", []int64{64}, bytes.Repeat([]byte{fill}, 256)}),
		"model.safetensors.index.json": []byte(`{"metadata": {"total_size": 8448}, "weight_map": {
			"model.embed_tokens.weight": "model-00001-of-00002.safetensors",
			"model.norm.weight": "model-00002-of-00002.safetensors"}}`),
	}
}
