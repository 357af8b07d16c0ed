package ollama_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// tensor is one of a model's, in bf16.
type tensor struct {
	shape []int
	data  []byte
}

// Sizes of the tiny Llama. Rows of 256 are what the k-quants want.
const (
	tinyHidden, tinyInner, tinyLayers, tinyHeads, tinyKV = 256, 512, 2, 4, 2
)

// tinyTensors are the weights of a Llama that nobody has trained.
func tinyTensors(vocab int) map[string]tensor {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(shape ...int) tensor {
		n := 1
		for _, s := range shape {
			n *= s
		}
		b := make([]byte, 0, 2*n)
		for range n {
			x := float32(rnd.NormFloat64() * 0.02)
			if len(shape) == 1 {
				x = 1
			}
			b = binary.LittleEndian.AppendUint16(b, uint16(math.Float32bits(x)>>16))
		}
		return tensor{shape, b}
	}
	head := tinyHidden / tinyHeads
	out := map[string]tensor{
		"model.embed_tokens.weight": random(vocab, tinyHidden), "model.norm.weight": random(tinyHidden), "lm_head.weight": random(vocab, tinyHidden),
	}
	for i := range tinyLayers {
		shapes := map[string][]int{
			"self_attn.q_proj": {tinyHidden, tinyHidden}, "self_attn.k_proj": {tinyKV * head, tinyHidden}, "self_attn.v_proj": {tinyKV * head, tinyHidden},
			"self_attn.o_proj": {tinyHidden, tinyHidden}, "mlp.gate_proj": {tinyInner, tinyHidden}, "mlp.up_proj": {tinyInner, tinyHidden}, "mlp.down_proj": {tinyHidden, tinyInner},
			"input_layernorm": {tinyHidden}, "post_attention_layernorm": {tinyHidden},
		}
		for _, name := range slices.Sorted(maps.Keys(shapes)) { // in one order: the same weights each time
			out[fmt.Sprintf("model.layers.%d.%s.weight", i, name)] = random(shapes[name]...)
		}
	}
	// Only letters and signs are ever likely: an answer neither ends at once nor has half a character in it.
	for id, head := 0, out["lm_head.weight"]; id < vocab; id++ {
		if id < '!' || id > '~' {
			clear(head.data[id*2*tinyHidden : (id+1)*2*tinyHidden])
		}
	}
	return out
}

// safetensors writes the format of that name: the length of a header, the header, the bytes.
func safetensors(t *testing.T, tensors map[string]tensor) []byte {
	t.Helper()
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		at := data.Len()
		data.Write(tensors[name].data)
		header[name] = map[string]any{"dtype": "BF16", "shape": tensors[name].shape, "data_offsets": []int{at, data.Len()}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), data.Bytes()...)
}

// tinyTokens are one for each byte, as GPT-2 writes bytes, and the two that begin and end a text.
func tinyTokens() []string {
	out := make([]string, 0, 258)
	next := rune(256)
	for b := range 256 {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			out = append(out, string(rune(b)))
			continue
		}
		out = append(out, string(next))
		next++
	}
	return append(out, "<s>", "</s>")
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tinyFolder writes a Llama as Transformers saves one.
func tinyFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	tokens := tinyTokens()
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), safetensors(t, tinyTensors(len(tokens))), 0o600); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(dir, "config.json"), map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": tinyHidden, "intermediate_size": tinyInner,
		"num_hidden_layers": tinyLayers, "num_attention_heads": tinyHeads, "num_key_value_heads": tinyKV, "vocab_size": len(tokens),
		"max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 256, "eos_token_id": 257, "torch_dtype": "bfloat16",
	})
	vocab := map[string]int{}
	for i, tok := range tokens {
		vocab[tok] = i
	}
	added := []map[string]any{}
	for _, id := range []int{256, 257} {
		added = append(added, map[string]any{"id": id, "content": tokens[id], "special": true})
	}
	writeJSON(t, filepath.Join(dir, "tokenizer.json"), map[string]any{
		"version": "1.0", "added_tokens": added, "pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false},
		"model": map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{"t h"}},
	})
	writeJSON(t, filepath.Join(dir, "tokenizer_config.json"), map[string]any{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true})
	return dir
}

func tinySpec(dir string, bits int) loaders.LoadSpec {
	f := registry.Facts{Format: registry.FormatSafetensors, Architecture: "LlamaForCausalLM", DType: "bf16", ContextLength: 512, Layers: tinyLayers, KVHeads: tinyKV,
		KeyLength: tinyHidden / tinyHeads, ValueLength: tinyHidden / tinyHeads}
	if fi, err := os.Stat(filepath.Join(dir, "model.safetensors")); err == nil {
		f.WeightBytes, f.Parameters = fi.Size(), fi.Size()/2
	}
	return loaders.LoadSpec{Device: registry.DeviceCPU, Artifact: registry.Artifact{Path: dir, Bytes: f.WeightBytes, Facts: f},
		Model: registry.Model{ModelID: "tiny/llama", SourceType: registry.SourceLocal, SourcePath: dir, ModelFormat: registry.FormatSafetensors, QuantizationBits: bits,
			CustomLoaderParams: map[string]any{"num_thread": int64(1)}}}
}

// tinyEncoder writes a BERT as sentence-transformers saves one.
func tinyEncoder(t *testing.T) string {
	t.Helper()
	const hidden, inner, layers = 64, 128, 2
	dir := t.TempDir()
	tokens := []string{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "hi", "hello", "world", "##s", "a", "b", "c", ".", ","}
	rnd := rand.New(rand.NewPCG(3, 4))
	random := func(shape ...int) tensor {
		n := 1
		for _, s := range shape {
			n *= s
		}
		b := make([]byte, 0, 2*n)
		for range n {
			b = binary.LittleEndian.AppendUint16(b, uint16(math.Float32bits(float32(rnd.NormFloat64()*0.1))>>16))
		}
		return tensor{shape, b}
	}
	tensors := map[string]tensor{}
	both := func(name string, shape ...int) {
		tensors[name+".weight"], tensors[name+".bias"] = random(shape...), random(shape[0])
	}
	for name, rows := range map[string]int{"word": len(tokens), "position": 128, "token_type": 2} {
		tensors["embeddings."+name+"_embeddings.weight"] = random(rows, hidden)
	}
	both("embeddings.LayerNorm", hidden)
	for i := range layers {
		at := fmt.Sprintf("encoder.layer.%d.", i)
		for _, name := range []string{"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"} {
			both(at+name, hidden, hidden)
		}
		both(at+"attention.output.LayerNorm", hidden)
		both(at+"intermediate.dense", inner, hidden)
		both(at+"output.dense", hidden, inner)
		both(at+"output.LayerNorm", hidden)
	}
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), safetensors(t, tensors), 0o600); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(dir, "config.json"), map[string]any{
		"architectures": []string{"BertModel"}, "model_type": "bert", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
		"num_attention_heads": 4, "vocab_size": len(tokens), "max_position_embeddings": 128, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
	})
	vocab, added := map[string]int{}, []map[string]any{}
	for i, tok := range tokens {
		vocab[tok] = i
		if i < 5 {
			added = append(added, map[string]any{"id": i, "content": tok, "special": true})
		}
	}
	writeJSON(t, filepath.Join(dir, "tokenizer.json"), map[string]any{"version": "1.0", "added_tokens": added, "model": map[string]any{"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"}})
	writeJSON(t, filepath.Join(dir, "tokenizer_config.json"), map[string]any{"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"})
	writeJSON(t, filepath.Join(dir, "modules.json"), []map[string]any{{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}, {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}})
	if err := os.Mkdir(filepath.Join(dir, "1_Pooling"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(dir, "1_Pooling", "config.json"), map[string]any{"pooling_mode_mean_tokens": true})
	return dir
}
