package headers_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestFolderFacts(t *testing.T) {
	files := sourcetest.SafetensorsFolder(1)
	files["README.md"] = []byte("---\nlanguage: en\nlicense: mit\n---\n# Tiny\nlicense: no\n")
	w, err := readFolder(files, registry.FormatSafetensors)
	if err != nil {
		t.Fatal(err)
	}
	want := headers.Weights{
		Facts: registry.Facts{
			Format: registry.FormatSafetensors, Architecture: "LlamaForCausalLM", Parameters: 4160, WeightBytes: 8448, DType: "bf16",
			ContextLength: 2048, Layers: 2, KVHeads: 2, KeyLength: 16, ValueLength: 16, ChatTemplate: true, Tokenizer: true, Licence: "mit",
		},
		Files: []string{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
	}
	if d := cmp.Diff(want, w); d != "" {
		t.Error(d)
	}
}

// TestConfigs holds what a configuration says against what it means for the cache.
func TestConfigs(t *testing.T) {
	type want struct{ layers, heads, key, value, window, windowed int }
	for name, tt := range map[string]struct {
		config string
		want   want
	}{
		"grouped heads":         {`{"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"hidden_size":4096}`, want{32, 8, 128, 128, 0, 0}},
		"head_dim wins":         {`{"num_hidden_layers":28,"num_attention_heads":16,"num_key_value_heads":8,"hidden_size":1024,"head_dim":128}`, want{28, 8, 128, 128, 0, 0}},
		"GPT-2's names":         {`{"n_layer":12,"n_head":12,"n_embd":768,"n_positions":1024}`, want{12, 12, 64, 64, 0, 0}},
		"multi-query":           {`{"n_layer":24,"n_head":16,"n_embd":2048,"multi_query":true}`, want{24, 1, 128, 128, 0, 0}},
		"every layer windowed":  {`{"num_hidden_layers":32,"num_attention_heads":32,"hidden_size":4096,"sliding_window":4096}`, want{32, 32, 128, 128, 4096, 32}},
		"window switched off":   {`{"num_hidden_layers":32,"num_attention_heads":32,"hidden_size":4096,"sliding_window":4096,"use_sliding_window":false}`, want{32, 32, 128, 128, 0, 0}},
		"from a layer on":       {`{"num_hidden_layers":32,"num_attention_heads":32,"hidden_size":4096,"sliding_window":4096,"use_sliding_window":true,"max_window_layers":24}`, want{32, 32, 128, 128, 4096, 8}},
		"a pattern":             {`{"model_type":"gemma3_text","num_hidden_layers":26,"num_attention_heads":4,"num_key_value_heads":1,"head_dim":256,"sliding_window":512,"sliding_window_pattern":6}`, want{26, 1, 256, 256, 512, 22}},
		"a pattern by its type": {`{"model_type":"gemma2","num_hidden_layers":26,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"sliding_window":4096}`, want{26, 4, 256, 256, 4096, 13}},
		"layer by layer":        {`{"num_hidden_layers":4,"num_attention_heads":4,"head_dim":8,"sliding_window":128,"layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"]}`, want{4, 4, 8, 8, 128, 2}},
		"linear attention":      {`{"num_hidden_layers":4,"num_attention_heads":16,"num_key_value_heads":8,"head_dim":8,"layer_types":["linear_attention","linear_attention","linear_attention","full_attention"]}`, want{4, 8, 8, 8, 0, 0}},
		"under text_config":     {`{"model_type":"gemma3","text_config":{"num_hidden_layers":6,"num_attention_heads":4,"head_dim":8,"sliding_window":16}}`, want{6, 4, 8, 8, 16, 5}},
		"latent attention":      {`{"num_hidden_layers":27,"num_attention_heads":16,"num_key_value_heads":16,"hidden_size":2048,"kv_lora_rank":512,"qk_rope_head_dim":64,"qk_nope_head_dim":128,"v_head_dim":128}`, want{27, 16, 192, 128, 0, 0}},
		"wrong types":           {`{"num_hidden_layers":"many","num_attention_heads":-3,"hidden_size":1e300,"sliding_window":null}`, want{}},
	} {
		t.Run(name, func(t *testing.T) {
			files := sourcetest.SafetensorsFolder(1)
			files["config.json"] = []byte(tt.config)
			w, err := readFolder(files, registry.FormatSafetensors)
			if err != nil {
				t.Fatal(err)
			}
			f := w.Facts
			if got := (want{f.Layers, f.KVHeads, f.KeyLength, f.ValueLength, f.Window, f.WindowLayers}); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestEdgeParameters: what bitsandbytes leaves in the weights' own dtype.
func TestEdgeParameters(t *testing.T) {
	for name, tt := range map[string]struct {
		config string
		want   int64
	}{
		"Llama 3 8B, two tables":       {`{"vocab_size":128256,"hidden_size":4096}`, 2 * 128256 * 4096},
		"one table for both":           {`{"vocab_size":49152,"hidden_size":576,"tie_word_embeddings":true}`, 49152 * 576},
		"an encoder has no head":       {`{"model_type":"bert","vocab_size":30522,"hidden_size":384}`, 30522 * 384},
		"under text_config":            {`{"text_config":{"vocab_size":100,"hidden_size":8},"tie_word_embeddings":true}`, 800},
		"nothing said":                 {`{}`, 0},
		"the largest that is a number": {`{"vocab_size":2147483647,"hidden_size":2147483647}`, 2 * 2147483647 * 2147483647},
	} {
		t.Run(name, func(t *testing.T) {
			files := sourcetest.SafetensorsFolder(1)
			files["config.json"] = []byte(tt.config)
			if w, err := readFolder(files, registry.FormatSafetensors); err != nil || w.Facts.EdgeParameters != tt.want {
				t.Errorf("got %d, %v, want %d", w.Facts.EdgeParameters, err, tt.want)
			}
		})
	}
}

func TestFolderKinds(t *testing.T) {
	files := sourcetest.SafetensorsFolder(1)
	files["config.json"] = []byte(`{"architectures":["BertModel"],"model_type":"bert","auto_map":{"AutoModel":"x.Y"},
		"quantization_config":{"quant_method":"gptq","bits":4}}`)
	w, err := readFolder(files, registry.FormatSafetensors)
	if f := w.Facts; err != nil || !f.Embedding || !f.Code || f.Quantization != "gptq 4-bit" || f.Pickles {
		t.Errorf("got %+v, %v", f, err)
	}
	// transformers takes safetensors before pickles, and so does the format named after it.
	both := sourcetest.SafetensorsFolder(1)
	both["pytorch_model.bin"] = []byte("rubbish")
	w, err = readFolder(both, registry.FormatTransformersPT)
	if err != nil || w.Facts.Pickles || w.Facts.WeightBytes != 8448 {
		t.Errorf("got %+v, %v", w.Facts, err)
	}
}

func TestFolderFaults(t *testing.T) {
	invalid, missing, damaged := registry.FailureKind(""), registry.FailureMissingFile, registry.FailureCorruptFile
	index := func(shards int) []byte {
		m := map[string]string{}
		for i := range shards {
			m[fmt.Sprintf("t%d", i)] = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)
		}
		b, err := json.Marshal(map[string]any{"weight_map": m})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const first, second, idx = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"
	for name, tt := range map[string]struct {
		change map[string][]byte // nil deletes
		kind   registry.FailureKind
		words  []string
	}{
		"no config.json":       {map[string][]byte{"config.json": nil}, missing, []string{"config.json"}},
		"config.json is empty": {map[string][]byte{"config.json": {}}, damaged, []string{"config.json"}},
		"config.json is cut":   {map[string][]byte{"config.json": []byte(`{"a":`)}, damaged, []string{"config.json", "at byte 5"}},
		"a shard is missing":   {map[string][]byte{second: nil}, missing, []string{idx, "2 files", "1 are not here", second}},
		"20 shards are missing": {map[string][]byte{idx: index(20)}, missing,
			[]string{"20 are not here", "model-00001-of-00020", "model-00005-of-00020.safetensors and 15 more"}},
		"a shard is half copied": {map[string][]byte{first: sourcetest.SafetensorsFolder(1)[first][:5000]}, damaged, []string{first, "half copied"}},
		"shards are swapped": {map[string][]byte{first: sourcetest.SafetensorsFolder(1)[second], second: sourcetest.SafetensorsFolder(1)[first]},
			damaged, []string{"the index places 2 tensors"}},
		"a tensor is in both":       {map[string][]byte{second: sourcetest.SafetensorsFolder(1)[first]}, damaged, []string{"is in " + first + " too"}},
		"the index leads out":       {map[string][]byte{idx: []byte(`{"weight_map":{"a":"../../etc/passwd"}}`)}, invalid, []string{idx, "passwd"}},
		"the index is empty":        {map[string][]byte{idx: []byte(`{}`)}, damaged, []string{idx}},
		"no index, one shard short": {map[string][]byte{idx: nil, second: nil}, missing, []string{second}},
		"several models": {map[string][]byte{idx: nil, first: nil, second: nil, "a.safetensors": {1}, "b.safetensors": {1}}, invalid,
			[]string{"a.safetensors, b.safetensors"}},
		"only an adapter": {map[string][]byte{idx: nil, first: nil, second: nil, "adapter_model.safetensors": {1}, "adapter_config.json": {1}}, invalid,
			[]string{"adapter (LoRA)"}},
		"an adapter that names its base": {map[string][]byte{idx: nil, first: nil, second: nil, "adapter_model.safetensors": {1}, "adapter_config.json": []byte(`{"base_model_name_or_path":"org/base"}`)}, invalid,
			[]string{"adapter (LoRA) for org/base"}},
		"diffusers": {map[string][]byte{idx: nil, first: nil, second: nil, "model_index.json": {1}, "unet/diffusion_pytorch_model.safetensors": {1}, "unet/config.json": {1}}, invalid,
			[]string{"diffusers"}},
		"Mistral's own": {map[string][]byte{idx: nil, first: nil, second: nil, "config.json": nil, "consolidated.safetensors": {1}, "params.json": {1}, "tekken.json": {1}}, invalid,
			[]string{"Mistral's own format", "consolidated.safetensors"}},
		"Meta's own": {map[string][]byte{idx: nil, first: nil, second: nil, "config.json": nil, "consolidated.00.pth": {1}, "params.json": {1}}, invalid,
			[]string{"Meta's own format", "consolidated.00.pth", "convert"}},
		"TensorFlow": {map[string][]byte{idx: nil, first: nil, second: nil, "tf_model.h5": {1}}, invalid, []string{"TensorFlow", "tf_model.h5"}},
		"an unfinished download": {map[string][]byte{idx: nil, first: nil, second: nil, "model.safetensors.incomplete": {1}}, missing,
			[]string{"unfinished download"}},
		"another format": {map[string][]byte{idx: nil, first: nil, second: nil, "m.gguf": {1}}, invalid,
			[]string{"holds gguf", "says safetensors"}},
		"no weights": {map[string][]byte{idx: nil, first: nil, second: nil}, missing, []string{"no weights", "config.json"}},
		"one level too high": {map[string][]byte{idx: nil, first: nil, second: nil, "config.json": nil, "sub/model.safetensors": {1}, "sub/config.json": {1}},
			missing, []string{"but sub does"}},
		"tokenizer_config.json is cut": {map[string][]byte{"tokenizer_config.json": []byte("{")}, damaged, []string{"tokenizer_config.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			files := sourcetest.SafetensorsFolder(1)
			maps.Copy(files, tt.change)
			maps.DeleteFunc(files, func(_ string, b []byte) bool { return b == nil })
			_, err := readFolder(files, registry.FormatSafetensors)
			code := registry.CodeLoadingFailed
			if tt.kind == invalid {
				code = registry.CodeInvalid
			}
			wantError(t, err, code, tt.kind, tt.words...)
		})
	}
	_, err := readFolder(nil, registry.FormatSafetensors)
	wantError(t, err, registry.CodeLoadingFailed, missing, "empty")
}
