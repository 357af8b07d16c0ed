// Package tiny makes language models of a few hundred kilobytes with random weights, to try an engine with: they load and
// answer as any other does, need no network, and say nothing that makes sense. The same bytes come out every time.
package tiny

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The shape: a Llama of two layers. Heads are of 64 elements, which every engine's attention can do.
const (
	hidden, inner, layers = 128, 256, 2
	heads, kvHeads        = 2, 1
	head                  = hidden / heads
	// ContextLength is what the model claims to have been trained for, in tokens.
	ContextLength = 512
)

const chatTemplate = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

// Formats are those that Write makes, in the order in which they are to be preferred.
var Formats = []registry.Format{registry.FormatGGUF, registry.FormatSafetensors}

// Write makes a model in dir, an empty folder, and returns its source_path and how many bytes it takes. CodeUnsupported for
// a format that is not in Formats.
func Write(dir string, format registry.Format) (path string, size int64, err error) {
	files := map[string][]byte{}
	path = dir
	switch format {
	case registry.FormatGGUF:
		path = filepath.Join(dir, "tiny.gguf")
		files["tiny.gguf"], err = gguf()
	case registry.FormatSafetensors:
		files, err = folder()
	case registry.FormatTransformersPT, registry.FormatONNX:
		err = errors.ErrUnsupported
	default:
		err = errors.ErrUnsupported
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return "", 0, registry.Errorf(registry.CodeUnsupported, "There is no tiny model in the format %s", format)
	}
	if err != nil {
		return "", 0, err
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return "", 0, registry.Errorf(registry.CodeUnavailable, "The tiny model cannot be written: %w", err)
		}
		size += int64(len(b))
	}
	return path, size, nil
}

// tensor is one of the model's: rows of columns, as PyTorch counts. A vector has one row.
type tensor struct {
	names      [2]string // in safetensors and in GGUF
	rows, cols int
	values     []float32
}

// weights are the model's tensors in a fixed order.
func weights() []tensor {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // no secret: the same weights every time
	matrix := func(hf, gg string, rows, cols int) tensor {
		t := tensor{names: [2]string{hf, gg}, rows: rows, cols: cols, values: make([]float32, rows*cols)}
		for i := range t.values {
			t.values[i] = float32(rnd.NormFloat64() * 0.05)
		}
		return t
	}
	ones := func(hf, gg string) tensor {
		return tensor{names: [2]string{hf, gg}, cols: hidden, values: slices.Repeat([]float32{1}, hidden)}
	}
	vocab := len(tokens())
	out := []tensor{
		matrix("model.embed_tokens.weight", "token_embd.weight", vocab, hidden), ones("model.norm.weight", "output_norm.weight"),
		matrix("lm_head.weight", "output.weight", vocab, hidden),
	}
	for i := range layers {
		hf, gg := fmt.Sprintf("model.layers.%d.", i), fmt.Sprintf("blk.%d.", i)
		out = append(out, ones(hf+"input_layernorm.weight", gg+"attn_norm.weight"), ones(hf+"post_attention_layernorm.weight", gg+"ffn_norm.weight"),
			matrix(hf+"self_attn.q_proj.weight", gg+"attn_q.weight", hidden, hidden), matrix(hf+"self_attn.k_proj.weight", gg+"attn_k.weight", kvHeads*head, hidden),
			matrix(hf+"self_attn.v_proj.weight", gg+"attn_v.weight", kvHeads*head, hidden), matrix(hf+"self_attn.o_proj.weight", gg+"attn_output.weight", hidden, hidden),
			matrix(hf+"mlp.gate_proj.weight", gg+"ffn_gate.weight", inner, hidden), matrix(hf+"mlp.up_proj.weight", gg+"ffn_up.weight", inner, hidden),
			matrix(hf+"mlp.down_proj.weight", gg+"ffn_down.weight", hidden, inner))
	}
	return out
}

// The words beside the bytes: one merge, since some tokenizers want one, and the two that begin and end a text.
const (
	merged   = "th"
	bos, eos = 257, 258
)

// tokens are one for each byte, as GPT-2 writes bytes, and what is beside them.
func tokens() []string {
	out := make([]string, 0, eos+1)
	next := rune(256)
	for b := range 256 {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			out = append(out, string(rune(b)))
			continue
		}
		out = append(out, string(next))
		next++
	}
	return append(out, merged, "<s>", "</s>")
}

// folder is the model as Transformers saves one, by file name.
func folder() (map[string][]byte, error) {
	vocab := map[string]int{}
	for i, t := range tokens() {
		vocab[t] = i
	}
	var special []any
	for _, id := range []int{bos, eos} {
		special = append(special, map[string]any{"id": id, "content": tokens()[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
	}
	bytesOf := map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
	out := map[string][]byte{}
	for name, v := range map[string]any{
		"config.json": map[string]any{
			"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
			"num_attention_heads": heads, "num_key_value_heads": kvHeads, "head_dim": head, "vocab_size": len(vocab), "max_position_embeddings": ContextLength,
			"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": bos, "eos_token_id": eos, "torch_dtype": "bfloat16",
		},
		"generation_config.json": map[string]any{"bos_token_id": bos, "eos_token_id": eos},
		"tokenizer.json": map[string]any{
			"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": special, "normalizer": nil, "pre_tokenizer": bytesOf, "post_processor": nil, "decoder": bytesOf,
			"model": map[string]any{"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil, "fuse_unk": false,
				"byte_fallback": false, "vocab": vocab, "merges": []string{"t h"}},
		},
		"tokenizer_config.json": map[string]any{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true,
			"model_max_length": ContextLength, "chat_template": chatTemplate},
	} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, err
		}
		out[name] = b
	}
	var err error
	out["model.safetensors"], err = safetensors(weights())
	return out, err
}

// safetensors writes the format of that name in bf16: the length of a header, the header, the bytes.
func safetensors(list []tensor) ([]byte, error) {
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data []byte
	for _, t := range list {
		at := len(data)
		for _, v := range t.values {
			data = binary.LittleEndian.AppendUint16(data, uint16(math.Float32bits(v)>>16))
		}
		shape := []int{t.rows, t.cols}
		if t.rows == 0 {
			shape = shape[1:]
		}
		header[t.names[0]] = map[string]any{"dtype": "BF16", "shape": shape, "data_offsets": []int{at, len(data)}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), data...), nil
}

// GGUF's numbers for types of tensors and of values; docs/gguf.md of ggml has them.
const (
	ggufF32, ggufBF16                                              = uint32(0), uint32(30)
	ggufUint32, ggufInt32, ggufFloat32, ggufBool, ggufString, list = uint32(4), uint32(5), uint32(6), uint32(7), uint32(8), uint32(9)
	alignment                                                      = 32
)

// gguf is the model as one GGUF file of version 3. Vectors are in f32, as llama.cpp wants them.
func gguf() ([]byte, error) {
	kinds := slices.Repeat([]int32{1}, len(tokens()))
	kinds[bos], kinds[eos] = 3, 3 // control
	keys := map[string]any{
		"general.architecture": "llama", "general.name": "Self-test", "general.file_type": uint32(32), "general.quantization_version": uint32(2),
		"llama.context_length": uint32(ContextLength), "llama.block_count": uint32(layers), "llama.embedding_length": uint32(hidden), "llama.feed_forward_length": uint32(inner),
		"llama.attention.head_count": uint32(heads), "llama.attention.head_count_kv": uint32(kvHeads), "llama.attention.key_length": uint32(head), "llama.attention.value_length": uint32(head),
		"llama.attention.layer_norm_rms_epsilon": float32(1e-5), "llama.rope.dimension_count": uint32(head), "llama.rope.freq_base": float32(10000), "llama.vocab_size": uint32(len(tokens())),
		"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens(), "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": []string{"t h"},
		"tokenizer.ggml.bos_token_id": uint32(bos), "tokenizer.ggml.eos_token_id": uint32(eos), "tokenizer.ggml.add_bos_token": true, "tokenizer.chat_template": chatTemplate,
	}
	var b bytes.Buffer
	w := writer{w: &b}
	tensors := weights()
	b.WriteString("GGUF")
	w.put(uint32(3), uint64(len(tensors)), uint64(len(keys)))
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		w.text(k)
		w.value(keys[k])
	}
	var data []byte
	for _, t := range tensors {
		data = append(data, make([]byte, pad(len(data)))...)
		w.text(t.names[1])
		at, kind := uint64(len(data)), ggufBF16
		if t.rows == 0 {
			kind = ggufF32
			w.put(uint32(1), uint64(t.cols))
		} else {
			w.put(uint32(2), uint64(t.cols), uint64(t.rows)) // GGUF names the shorter stride first
		}
		w.put(kind, at)
		for _, v := range t.values {
			if kind == ggufF32 {
				data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
			} else {
				data = binary.LittleEndian.AppendUint16(data, uint16(math.Float32bits(v)>>16))
			}
		}
	}
	b.Write(make([]byte, pad(b.Len())))
	b.Write(data)
	return b.Bytes(), w.err
}

// pad is how many bytes are missing to the next place where data may begin.
func pad(n int) int { return (alignment - n%alignment) % alignment }

// writer writes GGUF's values and keeps the first error.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) put(values ...any) {
	for _, v := range values {
		if w.err == nil {
			w.err = binary.Write(w.w, binary.LittleEndian, v)
		}
	}
}

func (w *writer) text(s string) { w.put(uint64(len(s)), []byte(s)) }

func (w *writer) value(v any) {
	switch v := v.(type) {
	case string:
		w.put(ggufString)
		w.text(v)
	case []string:
		w.put(list, ggufString, uint64(len(v)))
		for _, s := range v {
			w.text(s)
		}
	case []int32:
		w.put(list, ggufInt32, uint64(len(v)), v)
	case uint32:
		w.put(ggufUint32, v)
	case float32:
		w.put(ggufFloat32, v)
	case bool:
		w.put(ggufBool, v)
	}
}
