package headers_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// network serves files whose tail is not there in memory, and counts what is read of them.
type network struct {
	files    map[string]remote
	requests int
	bytes    int64
}

// remote is a file of size bytes that begins with start.
type remote struct {
	start []byte
	size  int64
}

func (n *network) put(name string, b []byte) { n.files[name] = remote{b, int64(len(b))} }

func (n *network) list() []registry.File {
	var out []registry.File
	for _, name := range slices.Sorted(maps.Keys(n.files)) {
		out = append(out, registry.File{Path: name, Size: n.files[name].size})
	}
	return out
}

func (n *network) open(name string) (headers.File, error) {
	f, ok := n.files[name]
	if !ok {
		return nil, fmt.Errorf("%s was opened and is not there", name)
	}
	return served{f, n}, nil
}

type served struct {
	remote
	n *network
}

func (s served) ReadAt(p []byte, off int64) (int, error) {
	s.n.requests++
	s.n.bytes += int64(len(p))
	if off < 0 || off+int64(len(p)) > s.size {
		return 0, io.ErrUnexpectedEOF
	}
	clear(p)
	if off < int64(len(s.start)) {
		copy(p, s.start[off:])
	}
	return len(p), nil
}

func (served) Close() error { return nil }

func serve(files map[string][]byte) *network {
	n := &network{files: map[string]remote{}}
	for name, b := range files {
		n.put(name, b)
	}
	return n
}

func sketchFolder(files map[string][]byte, format registry.Format) (headers.Weights, error) {
	n := serve(files)
	return headers.Sketch(n.list(), format, n.open, headers.Hints{})
}

func words(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
}

// TestSketchOfSmallModels: with no more than three shards everything is as exact as from the whole.
func TestSketchOfSmallModels(t *testing.T) {
	for name, files := range map[string]map[string][]byte{
		"two shards": sourcetest.SafetensorsFolder(1),
		"one file": {"config.json": []byte(sourcetest.LlamaConfig), "README.md": []byte("---\nlicense: mit\n---\n"),
			"model.safetensors": sourcetest.Safetensors(sourcetest.STTensor{Name: "a", DType: "F16", Shape: []int64{8, 8}, Data: make([]byte, 128)})},
	} {
		want, err := readFolder(files, registry.FormatSafetensors)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sketchFolder(files, registry.FormatSafetensors)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
}

// big is a model as large as those of today, of which only the headers exist.
type big struct {
	config   string
	shards   int
	name     string // of a shard, with its number and their count
	dtype    string
	bits     int64
	perShard func(shard int) []tensor
}

type tensor struct {
	name  string
	shape []int64
}

// built are the models that were built, by the names of their shards: building takes seconds under the race detector.
var built sync.Map

// build returns the model, its parameters and the bytes of its tensors. What is returned may be changed.
func (b big) build(t *testing.T) (n *network, parameters, bytesOf int64) {
	t.Helper()
	type model struct {
		n                   network
		parameters, bytesOf int64
	}
	if m, ok := built.Load(b.name); ok {
		m := m.(model)
		return &network{files: maps.Clone(m.n.files)}, m.parameters, m.bytesOf
	}
	defer func() { built.Store(b.name, model{network{files: maps.Clone(n.files)}, parameters, bytesOf}) }()
	n = serve(map[string][]byte{"config.json": []byte(b.config), "tokenizer.json": make([]byte, 9<<20),
		"tokenizer_config.json": []byte(`{"chat_template": "x"}`), "README.md": []byte("---\nlicense: llama3\n---\n" + strings.Repeat("text ", 8000))})
	weightMap := map[string]string{}
	for i := range b.shards {
		file := fmt.Sprintf(b.name, i+1, b.shards)
		header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
		var at int64
		for _, x := range b.perShard(i) {
			elements := int64(1)
			for _, d := range x.shape {
				elements *= d
			}
			header[x.name] = map[string]any{"dtype": b.dtype, "shape": x.shape, "data_offsets": []int64{at, at + elements*b.bits/8}}
			at += elements * b.bits / 8
			parameters += elements
			weightMap[x.name] = file
		}
		text, err := json.Marshal(header)
		if err != nil {
			t.Fatal(err)
		}
		start := sourcetest.RawSafetensors(string(text), nil)
		n.files[file] = remote{start, int64(len(start)) + at}
		bytesOf += at
	}
	index, err := json.MarshalIndent(map[string]any{"metadata": map[string]any{"total_size": bytesOf}, "weight_map": weightMap}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	n.put("model.safetensors.index.json", index)
	return n, parameters, bytesOf
}

// llama70 is Llama 3 70B: 80 layers in 30 shards, 723 tensors.
func llama70() big {
	layer := func(i int) []tensor {
		p := fmt.Sprintf("model.layers.%d.", i)
		return []tensor{{p + "input_layernorm.weight", []int64{8192}}, {p + "mlp.down_proj.weight", []int64{8192, 28672}},
			{p + "mlp.gate_proj.weight", []int64{28672, 8192}}, {p + "mlp.up_proj.weight", []int64{28672, 8192}},
			{p + "post_attention_layernorm.weight", []int64{8192}}, {p + "self_attn.k_proj.weight", []int64{1024, 8192}},
			{p + "self_attn.o_proj.weight", []int64{8192, 8192}}, {p + "self_attn.q_proj.weight", []int64{8192, 8192}},
			{p + "self_attn.v_proj.weight", []int64{1024, 8192}}}
	}
	return big{shards: 30, name: "model-%05d-of-%05d.safetensors", dtype: "BF16", bits: 16,
		config: `{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":8192,"num_hidden_layers":80,"num_attention_heads":64,
			"num_key_value_heads":8,"max_position_embeddings":8192,"torch_dtype":"bfloat16"}`,
		perShard: func(s int) []tensor {
			var out []tensor
			if s == 0 {
				out = append(out, tensor{"model.embed_tokens.weight", []int64{128256, 8192}})
			}
			for i := s * 80 / 30; i < (s+1)*80/30; i++ {
				out = append(out, layer(i)...)
			}
			if s == 29 {
				out = append(out, tensor{"lm_head.weight", []int64{128256, 8192}}, tensor{"model.norm.weight", []int64{8192}})
			}
			return out
		}}
}

// deepseek is as large as DeepSeek-V3: 163 shards, some 90,000 tensors, 10 MB of headers, an index of 9 MB.
func deepseek() big {
	return big{shards: 163, name: "model-%05d-of-%06d.safetensors", dtype: "F8_E4M3", bits: 8,
		config: `{"architectures":["DeepseekV3ForCausalLM"],"model_type":"deepseek_v3","hidden_size":7168,"num_hidden_layers":61,"num_attention_heads":128,
			"num_key_value_heads":128,"kv_lora_rank":512,"qk_rope_head_dim":64,"qk_nope_head_dim":128,"v_head_dim":128,"max_position_embeddings":163840,
			"n_routed_experts":256,"num_experts_per_tok":8,"moe_intermediate_size":2048,"first_k_dense_replace":3,
			"quantization_config":{"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,128]},"auto_map":{"AutoConfig":"x"}}`,
		perShard: func(s int) []tensor {
			var out []tensor
			for i := range 284 {
				p := fmt.Sprintf("model.layers.%d.mlp.experts.%d.gate_proj.", 3+s*58/163, (s*284+i)%256)
				if i >= 256 {
					p += "more."
				}
				out = append(out, tensor{p + "weight", []int64{2048, 7168}}, tensor{p + "weight_scale_inv", []int64{16, 56}})
			}
			return out
		}}
}

func TestSketchOfLargeModels(t *testing.T) {
	for name, tt := range map[string]struct {
		model    big
		requests int
		check    func(registry.Facts) bool
	}{
		"Llama 3 70B": {llama70(), 9, func(f registry.Facts) bool {
			return f.Parameters == 70_553_706_496 && f.WeightBytes == 141_107_412_992 && f.DType == "bf16" && f.KVBytes(8192, 2) == 8192*327_680
		}},
		"as large as DeepSeek-V3": {deepseek(), 12, func(f registry.Facts) bool {
			return f.DType == "f8_e4m3" && f.Quantization == "fp8" && f.KVBytes(1, 2) == 70_272 && f.Code && f.ActiveParameters > 0 && f.ActiveParameters < f.Parameters/2
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n, elements, weights := tt.model.build(t)
			w, err := headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d shards, index of %d bytes: %d reads, %d bytes; %d parameters of %d elements; notes %q",
				len(w.Files), n.files["model.safetensors.index.json"].size, n.requests, n.bytes, w.Facts.Parameters, elements, w.Facts.Notes)
			if n.requests > tt.requests || n.bytes >= 1_000_000 {
				t.Errorf("%d reads of %d bytes", n.requests, n.bytes)
			}
			f := w.Facts
			if len(w.Files) != tt.model.shards || f.WeightBytes != weights || !tt.check(f) || !f.Tokenizer || !f.ChatTemplate || f.Licence != "llama3" {
				t.Errorf("got %+v", f)
			}
			// Within a thousandth of what counting everything gives, less the scales of the quantised one.
			if off := float64(f.Parameters)/float64(elements) - 1; off > 0.001 || off < -0.001 {
				t.Errorf("%d parameters, there are %d", f.Parameters, elements)
			}
		})
	}
}

// TestSketchFaults: what is wrong is found from names, sizes and few headers.
func TestSketchFaults(t *testing.T) {
	const shard = "model-00017-of-00030.safetensors"
	sketch := func(change func(*network)) (headers.Weights, error) {
		n, _, _ := llama70().build(t)
		change(n)
		return headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{})
	}
	_, err := sketch(func(n *network) { delete(n.files, shard) })
	wantError(t, err, registry.CodeLoadingFailed, registry.FailureMissingFile, shard, "30 files", "1 are not here")
	// A shard in the middle, which would not be read, is cut by much: the sum does not add up and all are looked at.
	_, err = sketch(func(n *network) { n.files[shard] = remote{n.files[shard].start, n.files[shard].size - 4<<30} })
	corrupt(t, err, shard, "half copied")
	// The index is wrong and the shards are whole: the files count.
	w, err := sketch(func(n *network) {
		b := n.files["model.safetensors.index.json"].start
		n.put("model.safetensors.index.json", bytes.Replace(b, []byte(`"total_size": 141107412992`), []byte(`"total_size": 941107412992`), 1))
	})
	if err != nil || w.Facts.WeightBytes < 141e9 || w.Facts.WeightBytes > 142e9 || !strings.Contains(strings.Join(w.Facts.Notes, " "), "the files count") {
		t.Errorf("got %+v, %v", w.Facts, err)
	}
	_, err = sketch(func(n *network) {
		first := n.files["model-00001-of-00030.safetensors"]
		n.files["model-00001-of-00030.safetensors"] = remote{append([]byte{0, 0, 0, 0, 0, 0, 0, 0x80}, first.start[8:]...), first.size}
	})
	corrupt(t, err, "model-00001-of-00030.safetensors", "9223372036854775808 bytes long")
	// An index of which neither end tells anything is passed over; without it the names of the shards must do.
	n, _, _ := deepseek().build(t)
	n.put("model.safetensors.index.json", bytes.Repeat([]byte("nonsense "), 1<<20))
	if w, err = headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{}); err != nil || len(w.Files) != 163 {
		t.Errorf("got %d files, %v", len(w.Files), err)
	}
	delete(n.files, "model-00042-of-000163.safetensors")
	_, err = headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{})
	wantError(t, err, registry.CodeLoadingFailed, registry.FailureMissingFile, "model-00042-of-000163.safetensors")
}

func TestSketchHints(t *testing.T) {
	n, _, _ := llama70().build(t)
	w, err := headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{
		Parameters: map[string]int64{"BF16": 70_553_706_496}, Licence: "llama3", Gated: true, ChatTemplate: true})
	f := w.Facts
	if err != nil || f.Parameters != 70_553_706_496 || !f.Gated || f.Licence != "llama3" || f.DType != "bf16" || len(f.Notes) != 0 {
		t.Errorf("got %+v, %v", f, err)
	}
	if n.requests > 5 || n.bytes > 200_000 {
		t.Errorf("%d reads of %d bytes", n.requests, n.bytes)
	}
	// A GPTQ checkpoint: the Hub counts eight packed weights as one I32, or, lately, singly.
	for name, i32 := range map[string]int64{"packed": 512, "unpacked": 4096} {
		files := map[string][]byte{
			"config.json": []byte(`{"num_hidden_layers":1,"quantization_config":{"quant_method":"gptq","bits":4}}`),
			"model.safetensors": sourcetest.Safetensors(
				sourcetest.STTensor{Name: "a.qweight", DType: "I32", Shape: []int64{8, 64}, Data: make([]byte, 2048)},
				sourcetest.STTensor{Name: "b.weight", DType: "F16", Shape: []int64{64}, Data: make([]byte, 128)}),
		}
		n := serve(files)
		w, err := headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{Parameters: map[string]int64{"I32": i32, "F16": 64}})
		if f := w.Facts; err != nil || f.Parameters != 4160 || f.DType != "int4" || f.Quantization != "gptq 4-bit" || (name == "packed") != (len(f.Notes) == 1) {
			t.Errorf("%s: got %+v, %v", name, f, err)
		}
	}
}

func TestSketchGGUF(t *testing.T) {
	tiny := sourcetest.TinyGGUF(1)
	n := serve(map[string][]byte{"tiny.gguf": tiny})
	want, err := readGGUF(tiny)
	if err != nil {
		t.Fatal(err)
	}
	got, err := headers.SketchGGUF(n.list(), n.open, headers.Hints{})
	if d := cmp.Diff(want, got); err != nil || d != "" || n.requests != 1 {
		t.Errorf("%d reads, %v\n%s", n.requests, err, d)
	}
	n.put("tiny.gguf", tiny[:len(tiny)-100])
	_, err = headers.SketchGGUF(n.list(), n.open, headers.Hints{})
	corrupt(t, err, "tiny.gguf", "100 bytes are missing")

	// A vocabulary of megabytes: what stands before it is read, the rest is derived or hinted.
	keys := sourcetest.LlamaKeys()
	keys["general.file_type"] = uint32(15)
	words := make([]string, 128_256)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range words {
		words[i] = strings.Repeat("x", 4+r.IntN(12))
	}
	keys["tokenizer.ggml.tokens"] = words
	delete(keys, "tokenizer.chat_template") // it stands before the vocabulary in the order of this writer
	start := sourcetest.GGUF(keys, nil)
	n = &network{files: map[string]remote{}}
	for _, name := range []string{"m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"} {
		n.files[name] = remote{start, 20 << 30}
	}
	for _, hints := range []headers.Hints{{}, {Total: 70_553_706_496, ChatTemplate: true, Gated: true, Licence: "llama3"}} {
		n.requests, n.bytes = 0, 0
		f, err := headers.SketchGGUF(n.list(), n.open, hints)
		t.Logf("%d reads of %d bytes: %+v", n.requests, n.bytes, f)
		if err != nil || n.requests != 1 || n.bytes > 300_000 || f.Quantization != "Q4_K_M" || f.DType != "q4_k" || f.WeightBytes != 40<<30 || f.Layers != 2 || f.KVHeads != 2 ||
			!f.Tokenizer || f.ContextLength != 2048 || f.Gated != hints.Gated || f.ChatTemplate != hints.ChatTemplate || f.Licence != "apache-2.0" {
			t.Errorf("got %+v, %v", f, err)
		}
		if derived := f.Parameters > 69e9 && f.Parameters < 71e9; !derived || (hints.Total == 0) != (len(f.Notes) == 2) {
			t.Errorf("%d parameters, %q", f.Parameters, f.Notes)
		}
	}
	// A mixture of experts as large as Qwen3 30B A3B: 128 experts of which 8 are used, 48 layers.
	keys["llama.expert_count"], keys["llama.expert_used_count"], keys["llama.expert_feed_forward_length"] = uint32(128), uint32(8), uint32(768)
	keys["llama.embedding_length"], keys["llama.block_count"] = uint32(2048), uint32(48)
	n = &network{files: map[string]remote{"m.gguf": {sourcetest.GGUF(keys, nil), 18 << 30}}}
	if f, err := headers.SketchGGUF(n.list(), n.open, headers.Hints{Total: 30_532_122_624}); err != nil || f.ActiveParameters != 30_532_122_624-120*3*768*2048*48 {
		t.Errorf("%d of %d, %v", f.ActiveParameters, f.Parameters, err)
	}
	// A quantisation of which nothing is known: the size that the file is labelled with.
	delete(keys, "general.file_type")
	for label, want := range map[string]int64{"8B": 8e9, "0.5B": 5e8, "135M": 135e6, "8x7B": 0, "B": 0, "": 0, "-1B": 0, "1e300B": 0} {
		keys["general.size_label"] = label
		n = &network{files: map[string]remote{"UD-Q3_K_XL.gguf": {sourcetest.GGUF(keys, nil), 4 << 30}}}
		f, err := headers.SketchGGUF(n.list(), n.open, headers.Hints{})
		if err != nil || f.Parameters != want || f.Quantization != "UD-Q3_K_XL" || f.DType != "q3_k" {
			t.Errorf("%q: got %+v, %v", label, f, err)
		}
	}
	// Without a label: what the blocks take, and the output tensor.
	delete(keys, "general.size_label")
	for name, bits := range map[string]float64{"m-Q4_1.gguf": 5.1, "m-Q5_0.gguf": 5.57, "m-Q5_1.gguf": 6.04} {
		n = &network{files: map[string]remote{name: {sourcetest.GGUF(keys, nil), 4 << 30}}}
		f, err := headers.SketchGGUF(n.list(), n.open, headers.Hints{})
		if want := int64((4 << 30) * 8 / bits); err != nil || f.Parameters != want {
			t.Errorf("%s: got %d parameters, want %d, %v", name, f.Parameters, want, err)
		}
	}
	// One of millions is known better by its label.
	keys["general.size_label"] = "135M"
	n = &network{files: map[string]remote{"m-Q4_1.gguf": {sourcetest.GGUF(keys, nil), 98362432}}}
	if f, err := headers.SketchGGUF(n.list(), n.open, headers.Hints{}); err != nil || f.Parameters != 135e6 {
		t.Errorf("got %d parameters, %v", f.Parameters, err)
	}
	_, err = headers.SketchGGUF(nil, n.open, headers.Hints{})
	wantError(t, err, registry.CodeInvalid, "", "no GGUF file")
}

func TestQuantizationOf(t *testing.T) {
	for name, want := range map[string]string{
		"Llama-3.3-70B-Instruct-Q4_K_M.gguf":            "Q4_K_M",
		"llama-2-7b-chat.Q5_0.gguf":                     "Q5_0",
		"ggml-model-q4_0.gguf":                          "Q4_0",
		"Qwen3-8B-UD-Q4_K_XL.gguf":                      "UD-Q4_K_XL",
		"gpt-oss-20b-mxfp4.gguf":                        "MXFP4",
		"gpt-oss-120b-MXFP4_MOE-00001-of-00002.gguf":    "MXFP4_MOE",
		"model-IQ2_XXS.gguf":                            "IQ2_XXS",
		"gemma-3-27b-it-BF16-00001-of-00002.gguf":       "BF16",
		"phi-fp16.gguf":                                 "F16",
		"BF16/DeepSeek-R1-00001-of-00030.gguf":          "BF16",
		"UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-3.gguf": "UD-IQ1_S",
		"Q8_0/model-Q6_K.gguf":                          "Q6_K",
		"ternary-TQ2_0.gguf":                            "TQ2_0",
		"model.gguf":                                    "",
		"Qwen2.5-7B-Instruct.gguf":                      "",
		"q4you.gguf":                                    "",
	} {
		if got := headers.QuantizationOf(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// FuzzSketch: whatever an index and a shard say, the sketch stays bounded and makes sense.
func FuzzSketch(f *testing.F) {
	files := sourcetest.SafetensorsFolder(1)
	f.Add(files["model.safetensors.index.json"], files["model-00001-of-00002.safetensors"])
	f.Add(append([]byte(`{"metadata": {"total_size": 8448, "total_parameters": 4160}, "weight_map": {`), bytes.Repeat([]byte(`"x": "model-00001-of-00002.safetensors", `), 4000)...), files["model-00001-of-00002.safetensors"])
	f.Add([]byte(`{"metadata": "none", "weight_map": {"a": "model-00001-of-00002.safetensors"}}`), files["model-00002-of-00002.safetensors"])
	f.Fuzz(func(t *testing.T, index, shard []byte) {
		files := sourcetest.SafetensorsFolder(1)
		files["model.safetensors.index.json"], files["model-00001-of-00002.safetensors"] = index, shard
		n := serve(files)
		w, err := headers.Sketch(n.list(), registry.FormatSafetensors, n.open, headers.Hints{Parameters: map[string]int64{"BF16": int64(len(index))}})
		if n.bytes > 1_000_000 {
			t.Fatalf("%d bytes were read", n.bytes)
		}
		if err != nil {
			if registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		if why := sane(w.Facts); why != "" {
			t.Fatalf("%s: %+v", why, w.Facts)
		}
	})
}
