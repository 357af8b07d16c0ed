package headers_test

import (
	"bytes"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// TestCacheOfRealModels holds the facts from the configurations that real models are published with against what is
// published of their caches. Configurations are cut down to what is read; all figures are for 16-bit elements.
func TestCacheOfRealModels(t *testing.T) {
	const k = 1024
	for name, tt := range map[string]struct {
		config   string
		perToken int64 // bytes of a token beyond every window
		context  int
		cache    int64 // bytes at that context
		state    int64 // bytes of a sequence
	}{
		// meta-llama/Meta-Llama-3-8B: 128 KiB a token, 1 GiB at 8,192.
		"Llama 3 8B": {`{"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":32,"max_position_embeddings":8192}`,
			128 * k, 8192, 1 << 30, 0},
		// meta-llama/Meta-Llama-3-70B: 320 KiB a token, and arXiv:2505.09343, table 1, says 516.096 KB of Llama 3.1 405B.
		"Llama 3 70B": {`{"model_type":"llama","hidden_size":8192,"num_attention_heads":64,"num_key_value_heads":8,"num_hidden_layers":80}`,
			320 * k, 8192, 2560 << 20, 0},
		"Llama 3.1 405B": {`{"model_type":"llama","hidden_size":16384,"num_attention_heads":128,"num_key_value_heads":8,"num_hidden_layers":126}`,
			516_096, 131072, 516_096 * 131072, 0},
		// arXiv:2505.09343, table 1: 327.680 KB of Qwen2.5 72B.
		"Qwen2.5 72B": {`{"model_type":"qwen2","hidden_size":8192,"num_attention_heads":64,"num_key_value_heads":8,"num_hidden_layers":80,"sliding_window":131072,"use_sliding_window":false,"max_window_layers":70}`,
			327_680, 32768, 32768 * 327_680, 0},
		"Qwen2.5 7B": {`{"model_type":"qwen2","hidden_size":3584,"num_attention_heads":28,"num_key_value_heads":4,"num_hidden_layers":28,"sliding_window":131072,"use_sliding_window":false,"max_window_layers":28}`,
			56 * k, 32768, 1792 << 20, 0},
		// arXiv:2505.09343, table 1: 70.272 KB of DeepSeek-V3.
		"DeepSeek-V3": {`{"model_type":"deepseek_v3","hidden_size":7168,"num_attention_heads":128,"num_key_value_heads":128,"num_hidden_layers":61,"kv_lora_rank":512,"q_lora_rank":1536,
			"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128}`, 70_272, 4096, 4096 * 70_272, 0},
		// DeepSeek-V3.2 keeps the indexer's keys of 128 beside them.
		"DeepSeek-V3.2": {`{"model_type":"deepseek_v32","hidden_size":7168,"num_attention_heads":128,"num_key_value_heads":128,"num_hidden_layers":61,"kv_lora_rank":512,
			"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,"index_head_dim":128,"index_topk":2048}`, 61 * (576 + 128) * 2, 100, 100 * 61 * 704 * 2, 0},
		// google/gemma-3-27b-it: 62 layers, every sixth sees all, the others 1,024 tokens (arXiv:2503.19786, section 2).
		"Gemma 3 27B": {`{"model_type":"gemma3","text_config":{"model_type":"gemma3_text","hidden_size":5376,"num_attention_heads":32,"num_key_value_heads":16,"head_dim":128,
			"num_hidden_layers":62,"sliding_window":1024,"rope_scaling":{"factor":8.0}},"vision_config":{"model_type":"siglip_vision_model","num_hidden_layers":27}}`,
			10 * 16 * 256 * 2, 32768, (10*32768 + 52*1024) * 16 * 256 * 2, 0},
		"Gemma 2 9B": {`{"model_type":"gemma2","hidden_size":3584,"num_attention_heads":16,"num_key_value_heads":8,"head_dim":256,"num_hidden_layers":42,"sliding_window":4096,"cache_implementation":"hybrid"}`,
			21 * 8 * 512 * 2, 8192, 21 * (8192 + 4096) * 8 * 512 * 2, 0},
		// openai/gpt-oss-20b: every second layer sees 128 tokens (arXiv:2508.10925, section 2.2).
		"gpt-oss 20B": {`{"model_type":"gpt_oss","hidden_size":2880,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,"num_hidden_layers":4,"sliding_window":128,
			"layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"]}`, 2 * 8 * 128 * 2, 131072, 2 * (131072 + 128) * 8 * 128 * 2, 0},
		// The same without the list of layers, all 24: 24 KiB a token beyond the windows.
		"gpt-oss 20B by its type": {`{"model_type":"gpt_oss","hidden_size":2880,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,"num_hidden_layers":24,"sliding_window":128}`,
			24 * k, 131072, 12 * (131072 + 128) * 8 * 128 * 2, 0},
		// mistralai/Mistral-7B-v0.1: every layer sees 4,096 tokens. arXiv:2403.19887, table 1, says 32 GB at 256K of 7B without a window.
		"Mistral 7B v0.1": {`{"model_type":"mistral","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":32,"sliding_window":4096}`,
			0, 32768, 512 << 20, 0},
		"Mistral 7B v0.2": {`{"model_type":"mistral","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":32,"sliding_window":null}`,
			128 * k, 256 * k, 32 << 30, 0},
		"Phi-3 mini 4k": {`{"model_type":"phi3","hidden_size":3072,"num_attention_heads":32,"num_key_value_heads":32,"num_hidden_layers":32,"sliding_window":2047}`,
			0, 4096, 32 * 32 * 192 * 2 * 2047, 0},
		"Command R7B": {`{"model_type":"cohere2","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":32,"head_dim":128,"sliding_window":4096,"sliding_window_pattern":4,"order_of_interleaved_layers":"local_attn_first"}`,
			8 * 8 * 256 * 2, 8192, (8*8192 + 24*4096) * 8 * 256 * 2, 0},
		// Llama 4 Scout: three layers of four see a chunk of 8,192.
		"Llama 4": {`{"model_type":"llama4","text_config":{"model_type":"llama4_text","hidden_size":5120,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"num_hidden_layers":48,
			"attention_chunk_size":8192,"no_rope_layers":[]},"vision_config":{}}`, 12 * 8 * 256 * 2, 32768, (12*32768 + 36*8192) * 8 * 256 * 2, 0},
		"Llama 4 by its layers": {`{"model_type":"llama4_text","hidden_size":5120,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"num_hidden_layers":4,
			"attention_chunk_size":8192,"no_rope_layers":[1,1,1,0]}`, 8 * 256 * 2, 32768, (32768 + 3*8192) * 8 * 256 * 2, 0},
		// EXAONE 4.0 32B writes its pattern in letters.
		"EXAONE 4.0 32B": {`{"model_type":"exaone4","hidden_size":5120,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"num_hidden_layers":64,"sliding_window":4096,"sliding_window_pattern":"LLLG"}`,
			16 * 8 * 256 * 2, 8192, (16*8192 + 48*4096) * 8 * 256 * 2, 0},
		// Gemma 3n E4B: the last 15 of 35 layers use the keys and values of earlier ones.
		"Gemma 3n E4B": {`{"model_type":"gemma3n","text_config":{"model_type":"gemma3n_text","hidden_size":2048,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":256,"num_hidden_layers":35,
			"sliding_window":512,"num_kv_shared_layers":15}}`, 4 * 2 * 512 * 2, 8192, (4*8192 + 16*512) * 2 * 512 * 2, 0},
		// MiMo-V2-Flash: 48 layers, of which 9 see all with 4 heads and 39 see 128 tokens with 8, keys of 192 and values of 128.
		"MiMo-V2": {`{"model_type":"mimo_v2_flash","hidden_size":4096,"num_attention_heads":64,"num_key_value_heads":4,"head_dim":192,"v_head_dim":128,"num_hidden_layers":4,
			"swa_num_key_value_heads":8,"swa_head_dim":192,"swa_v_head_dim":128,"sliding_window":128,"hybrid_layer_pattern":[0,1,1,1]}`,
			4 * 320 * 2, 4096, (4*4096 + 3*8*128) * 320 * 2, 0},
		// ai21labs/Jamba-v0.1: 4 of 32 layers attend; 4 GB at 256K (arXiv:2403.19887, table 1). The state of the others is
		// 16 x 8,192 and 3 x 8,192 each.
		"Jamba v0.1": {`{"model_type":"jamba","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":32,"attn_layer_period":8,"attn_layer_offset":4,
			"mamba_d_conv":4,"mamba_d_state":16,"mamba_expand":2,"num_experts":16,"num_experts_per_tok":2,"expert_layer_period":2,"expert_layer_offset":1}`,
			16 * k, 256 * k, 4 << 30, 28 * (16 + 3) * 8192 * 4},
		// Qwen/Qwen3-Next-80B-A3B: 12 of 48 layers attend, with 2 heads of 256.
		"Qwen3-Next 80B": {`{"model_type":"qwen3_next","hidden_size":2048,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"num_hidden_layers":48,"full_attention_interval":4,
			"linear_conv_kernel_dim":4,"linear_key_head_dim":128,"linear_value_head_dim":128,"linear_num_key_heads":16,"linear_num_value_heads":32}`,
			24 * k, 262144, 6 << 30, 36 * (32*128*128 + 3*(2*16*128+32*128)) * 4},
		// ibm-granite/granite-4.0-h-small: 4 of 40 layers attend, the others are Mamba 2.
		"Granite 4.0 H": {`{"model_type":"granitemoehybrid","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":4,"mamba_d_conv":4,"mamba_d_state":128,"mamba_d_head":64,
			"mamba_n_heads":128,"mamba_n_groups":1,"mamba_expand":2,"layer_types":["mamba","mamba","attention","mamba"]}`,
			8 * 256 * 2, 1000, 8 * 256 * 2 * 1000, 3 * (128*8192 + 3*(8192+2*128)) * 4},
		// nvidia/Nemotron-H-8B: M is Mamba 2, * attends, - is neither.
		"Nemotron-H": {`{"model_type":"nemotron_h","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"num_hidden_layers":4,"hybrid_override_pattern":"M-M*",
			"mamba_num_heads":128,"mamba_head_dim":64,"n_groups":8,"ssm_state_size":128,"conv_kernel":4}`,
			8 * 256 * 2, 1000, 8 * 256 * 2 * 1000, 2 * (128*8192 + 3*(8192+2*8*128)) * 4},
		// LiquidAI/LFM2-1.2B: 6 of 16 layers attend, the others keep two inputs of their convolution.
		"LFM2 1.2B": {`{"model_type":"lfm2","hidden_size":2048,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":16,"conv_L_cache":3,"full_attn_idxs":[2,5,8,10,12,14]}`,
			6 * 8 * 128 * 2, 4096, 6 * 8 * 128 * 2 * 4096, 10 * 2 * 2048 * 4},
		// moonshotai/Kimi-Linear-48B: the layers that attend are counted from 1, and use latent attention.
		"Kimi Linear": {`{"model_type":"kimi_linear","hidden_size":2304,"num_attention_heads":32,"num_key_value_heads":32,"num_hidden_layers":27,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
			"v_head_dim":128,"linear_attn_config":{"full_attn_layers":[4,8,12,16,20,24,27],"head_dim":128,"num_heads":32,"short_conv_kernel_size":4}}`,
			7 * 576 * 2, 1000, 7 * 576 * 2 * 1000, 20 * (32*128*128 + 3*3*32*128) * 4},
		"Mamba 2.8B": {`{"model_type":"mamba","hidden_size":2560,"num_hidden_layers":64,"state_size":16,"conv_kernel":4,"expand":2,"intermediate_size":5120}`,
			0, 4096, 0, 64 * (16 + 3) * 5120 * 4},
		"Falcon-H1: both in every layer": {`{"model_type":"falcon_h1","hidden_size":1024,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":64,"num_hidden_layers":36,"mamba_d_ssm":1536,"mamba_d_state":128,
			"mamba_n_groups":1,"mamba_d_conv":4,"mamba_n_heads":24,"mamba_d_head":64}`, 36 * 2 * 128 * 2, 100, 36 * 2 * 128 * 2 * 100, 36 * (128*1536 + 3*(1536+256)) * 4},
		// nvidia/Llama-3_1-Nemotron-51B: some layers lost their attention, others have fewer heads.
		"DeciLM": {`{"model_type":"nemotron-nas","hidden_size":8192,"num_attention_heads":64,"num_hidden_layers":3,"block_configs":[{"attention":{"n_heads_in_group":8,"no_op":false}},
			{"attention":{"n_heads_in_group":null,"no_op":true}},{"attention":{"n_heads_in_group":16}}]}`, (8 + 4) * 256 * 2, 10, (8 + 4) * 256 * 2 * 10, 0},
		"OpenELM": {`{"model_type":"openelm","model_dim":1280,"head_dim":64,"num_transformer_layers":2,"num_kv_heads":[3,5],"num_query_heads":[12,20]}`,
			8 * 128 * 2, 10, 8 * 128 * 2 * 10, 0},
		"DBRX":        {`{"model_type":"dbrx","d_model":6144,"n_heads":48,"n_layers":40,"max_seq_len":32768,"attn_config":{"kv_n_heads":8}}`, 160 * k, 1, 160 * k, 0},
		"ChatGLM3 6B": {`{"model_type":"chatglm","hidden_size":4096,"num_attention_heads":32,"num_layers":28,"kv_channels":128,"multi_query_attention":true,"multi_query_group_num":2}`, 28 * k, 1, 28 * k, 0},
	} {
		t.Run(name, func(t *testing.T) {
			files := sourcetest.SafetensorsFolder(1)
			files["config.json"] = []byte(tt.config)
			w, err := readFolder(files, registry.FormatSafetensors)
			if err != nil {
				t.Fatal(err)
			}
			f := w.Facts
			if got := f.KVBytes(1<<20+1, 2) - f.KVBytes(1<<20, 2); got != tt.perToken {
				t.Errorf("%d bytes a token, want %d: %+v", got, tt.perToken, f)
			}
			if got := f.KVBytes(tt.context, 2); got != tt.cache {
				t.Errorf("%d bytes at %d, want %d: %+v", got, tt.context, tt.cache, f)
			}
			if f.StateBytes != tt.state {
				t.Errorf("a state of %d bytes, want %d", f.StateBytes, tt.state)
			}
		})
	}
}

// TestCacheOfGGUF is the same for the keys that llama.cpp's converter writes.
func TestCacheOfGGUF(t *testing.T) {
	for name, tt := range map[string]struct {
		arch     string
		keys     map[string]any // behind the architecture
		perToken int64
		context  int
		cache    int64
		state    int64
	}{
		"DeepSeek-V3": {"deepseek2", map[string]any{"block_count": uint32(61), "embedding_length": uint32(7168), "attention.head_count": uint32(128), "attention.head_count_kv": uint32(1),
			"attention.key_length": uint32(576), "attention.value_length": uint32(512), "attention.kv_lora_rank": uint32(512), "attention.key_length_mla": uint32(192), "attention.value_length_mla": uint32(128)},
			70_272, 4096, 4096 * 70_272, 0},
		"DeepSeek-V2 of before MLA": {"deepseek2", map[string]any{"block_count": uint32(27), "embedding_length": uint32(2048), "attention.head_count": uint32(16), "attention.head_count_kv": uint32(16),
			"attention.key_length": uint32(192), "attention.value_length": uint32(128), "attention.kv_lora_rank": uint32(512)}, 27 * 16 * 320 * 2, 1, 27 * 16 * 320 * 2, 0},
		"GLM-4.6: the predicting layer has no cache": {"glm4moe", map[string]any{"block_count": uint32(93), "nextn_predict_layers": uint32(1), "embedding_length": uint32(5120), "attention.head_count": uint32(96),
			"attention.head_count_kv": uint32(8), "attention.key_length": uint32(128), "attention.value_length": uint32(128)}, 92 * 8 * 256 * 2, 1, 92 * 8 * 256 * 2, 0},
		"gpt-oss 20B": {"gpt-oss", map[string]any{"block_count": uint32(24), "embedding_length": uint32(2880), "attention.head_count": uint32(64), "attention.head_count_kv": uint32(8),
			"attention.key_length": uint32(64), "attention.value_length": uint32(64), "attention.sliding_window": uint32(128)}, 24 * 1024, 131072, 12 * (131072 + 128) * 8 * 128 * 2, 0},
		"Gemma 4: other heads in the windows": {"gemma4", map[string]any{"block_count": uint32(6), "embedding_length": uint32(5376), "attention.head_count": uint32(32), "attention.head_count_kv": []uint32{16, 16, 16, 16, 16, 4},
			"attention.key_length": uint32(512), "attention.value_length": uint32(512), "attention.key_length_swa": uint32(256), "attention.value_length_swa": uint32(256),
			"attention.sliding_window": uint32(1024), "attention.sliding_window_pattern": []bool{true, true, true, true, true, false}}, 4 * 1024 * 2, 4096, (4096*4*1024 + 5*1024*16*512) * 2, 0},
		"Gemma 3n E4B": {"gemma3n", map[string]any{"block_count": uint32(35), "embedding_length": uint32(2048), "attention.head_count": uint32(8), "attention.head_count_kv": uint32(2), "attention.key_length": uint32(256),
			"attention.value_length": uint32(256), "attention.sliding_window": uint32(512)}, 4 * 2 * 512 * 2, 8192, (4*8192 + 16*512) * 2 * 512 * 2, 0},
		"Qwen3-Next": {"qwen3next", map[string]any{"block_count": uint32(48), "embedding_length": uint32(2048), "attention.head_count": uint32(16), "attention.head_count_kv": uint32(2), "attention.key_length": uint32(256),
			"attention.value_length": uint32(256), "ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(4096), "ssm.state_size": uint32(128), "ssm.group_count": uint32(16), "ssm.time_step_rank": uint32(32)},
			24 * 1024, 262144, 6 << 30, 36 * (128*4096 + 3*(4096+2*16*128)) * 4},
		"Jamba": {"jamba", map[string]any{"block_count": uint32(8), "embedding_length": uint32(4096), "attention.head_count": uint32(32), "attention.head_count_kv": []uint32{0, 0, 0, 0, 8, 0, 0, 0},
			"ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(8192), "ssm.state_size": uint32(16), "ssm.time_step_rank": uint32(256)}, 8 * 256 * 2, 1, 8 * 256 * 2, 7 * (16 + 3) * 8192 * 4},
		"Nemotron-H": {"nemotron_h", map[string]any{"block_count": uint32(4), "embedding_length": uint32(4096), "attention.head_count": uint32(32), "attention.head_count_kv": []uint32{0, 0, 0, 8}, "feed_forward_length": []uint32{0, 21504, 0, 0},
			"ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(8192), "ssm.state_size": uint32(128), "ssm.group_count": uint32(8), "ssm.time_step_rank": uint32(128)},
			8 * 256 * 2, 1, 8 * 256 * 2, 2 * (128*8192 + 3*(8192+2*8*128)) * 4},
		"Kimi Linear": {"kimi-linear", map[string]any{"block_count": uint32(4), "embedding_length": uint32(2304), "attention.head_count": uint32(32), "attention.head_count_kv": []uint32{0, 0, 0, 1}, "attention.key_length": uint32(576),
			"attention.value_length": uint32(512), "attention.kv_lora_rank": uint32(512), "attention.key_length_mla": uint32(192), "attention.value_length_mla": uint32(128), "kda.head_dim": uint32(128), "ssm.conv_kernel": uint32(4)},
			576 * 2, 1, 576 * 2, 3 * (3*3*32*128 + 32*128*128) * 4},
		"Mamba": {"mamba", map[string]any{"block_count": uint32(64), "embedding_length": uint32(2560), "attention.head_count": uint32(0), "ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(5120), "ssm.state_size": uint32(16)},
			0, 1, 0, 64 * (16 + 3) * 5120 * 4},
		"Falcon-H1": {"falcon-h1", map[string]any{"block_count": uint32(36), "embedding_length": uint32(1024), "attention.head_count": uint32(8), "attention.head_count_kv": uint32(2), "attention.key_length": uint32(64), "attention.value_length": uint32(64),
			"ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(1536), "ssm.state_size": uint32(128), "ssm.group_count": uint32(1)}, 36 * 2 * 128 * 2, 1, 36 * 2 * 128 * 2, 36 * (128*1536 + 3*(1536+256)) * 4},
		"Phi-3: that engine has no windows for it": {"phi3", map[string]any{"block_count": uint32(32), "embedding_length": uint32(3072), "attention.head_count": uint32(32), "attention.sliding_window": uint32(2047)},
			32 * 32 * 192 * 2, 1, 32 * 32 * 192 * 2, 0},
		"EXAONE 4 of 30 layers":  {"exaone4", map[string]any{"block_count": uint32(30), "embedding_length": uint32(2048), "attention.head_count": uint32(32), "attention.sliding_window": uint32(4096)}, 30 * 32 * 128 * 2, 1, 30 * 32 * 128 * 2, 0},
		"Llama 4 without chunks": {"llama4", map[string]any{"block_count": uint32(4), "embedding_length": uint32(1024), "attention.head_count": uint32(8), "attention.sliding_window": uint32(0)}, 4 * 8 * 256 * 2, 1, 4 * 8 * 256 * 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			keys := map[string]any{"general.architecture": tt.arch}
			for k, v := range tt.keys {
				keys[tt.arch+"."+k] = v
			}
			f, err := readGGUF(sourcetest.GGUF(keys, sourcetest.LlamaTensors(0)))
			if err != nil {
				t.Fatal(err)
			}
			if got := f.KVBytes(1<<20+1, 2) - f.KVBytes(1<<20, 2); got != tt.perToken {
				t.Errorf("%d bytes a token, want %d: %+v", got, tt.perToken, f)
			}
			if got := f.KVBytes(tt.context, 2); got != tt.cache || f.StateBytes != tt.state {
				t.Errorf("%d bytes at %d and a state of %d, want %d and %d: %+v", got, tt.context, f.StateBytes, tt.cache, tt.state, f)
			}
		})
	}
}

// TestParametersOfPackedWeights: what is counted are the model's parameters, however they are packed.
func TestParametersOfPackedWeights(t *testing.T) {
	st := func(name, dtype string, bytes int, shape ...int64) sourcetest.STTensor {
		return sourcetest.STTensor{Name: name, DType: dtype, Shape: shape, Data: make([]byte, bytes)}
	}
	norm := st("norm.weight", "F16", 128, 64)
	for name, tt := range map[string]struct {
		quantization string
		tensors      []sourcetest.STTensor
		dtype, label string
		notes        int
	}{
		"gptq": {`{"quant_method":"gptq","bits":4,"group_size":32,"desc_act":false}`, []sourcetest.STTensor{norm, st("a.qweight", "I32", 2048, 8, 64),
			st("a.qzeros", "I32", 64, 2, 8), st("a.scales", "F16", 256, 2, 64), st("a.g_idx", "I32", 256, 64)}, "int4", "gptq 4-bit", 0},
		"gptq in 3 bits": {`{"quant_method":"gptq","bits":3}`, []sourcetest.STTensor{norm, st("a.qweight", "I32", 1536, 6, 64), st("a.scales", "F16", 256, 2, 64)}, "int3", "gptq 3-bit", 0},
		"awq":            {`{"quant_method":"awq","bits":4,"version":"gemm"}`, []sourcetest.STTensor{norm, st("a.qweight", "I32", 2048, 64, 8), st("a.qzeros", "I32", 64, 2, 8), st("a.scales", "F16", 256, 2, 64)}, "int4", "awq 4-bit", 0},
		"fp8": {`{"quant_method":"fp8","fmt":"e4m3"}`, []sourcetest.STTensor{norm, st("a.weight", "F8_E4M3", 4096, 64, 64), st("a.weight_scale_inv", "F32", 4, 1, 1)},
			"f8_e4m3", "fp8", 0},
		"bitsandbytes nf4": {`{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4"}`, []sourcetest.STTensor{norm, st("a.weight", "U8", 2048, 2048, 1), st("a.weight.absmax", "U8", 64, 64),
			st("a.weight.quant_map", "F32", 64, 16), st("a.weight.nested_absmax", "F32", 4, 1), st("a.weight.quant_state.bitsandbytes__nf4", "U8", 80, 80)}, "nf4", "bitsandbytes 4-bit", 0},
		"bitsandbytes int8": {`{"quant_method":"bitsandbytes","load_in_8bit":true}`, []sourcetest.STTensor{norm, st("a.weight", "I8", 4096, 64, 64), st("a.SCB", "F32", 256, 64), st("a.weight_format", "U8", 1)}, "int8", "bitsandbytes 8-bit", 0},
		"mxfp4":             {`{"quant_method":"mxfp4","modules_to_not_convert":["x"]}`, []sourcetest.STTensor{norm, st("a.gate_up_proj_blocks", "U8", 2048, 1, 64, 2, 16), st("a.gate_up_proj_scales", "U8", 128, 1, 64, 2)}, "mxfp4", "mxfp4", 0},
		"compressed-tensors": {`{"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"group_0":{"weights":{"num_bits":4,"type":"int"}}}}`,
			[]sourcetest.STTensor{norm, st("a.weight_packed", "I32", 2048, 64, 8), st("a.weight_scale", "BF16", 256, 64, 2), st("a.weight_shape", "I64", 16, 2)}, "int4", "compressed-tensors 4-bit", 0},
		"nvfp4": {`{"quant_method":"modelopt","quant_algo":"NVFP4"}`, []sourcetest.STTensor{norm, st("a.weight", "U8", 2048, 64, 32), st("a.weight_scale", "F8_E4M3", 256, 64, 4), st("a.weight_scale_2", "F32", 4), st("a.input_scale", "F32", 4)},
			"nvfp4", "modelopt 4-bit", 0},
		"unknown": {`{"quant_method":"newest"}`, []sourcetest.STTensor{norm, st("a.weight", "BF16", 8192, 64, 64)}, "bf16", "newest", 1},
		"none":    {`null`, []sourcetest.STTensor{norm, st("a.weight", "BF16", 8192, 64, 64)}, "bf16", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string][]byte{"config.json": []byte(`{"num_hidden_layers":1,"quantization_config":` + tt.quantization + `}`), "model.safetensors": sourcetest.Safetensors(tt.tensors...)}
			for how, read := range map[string]func(map[string][]byte, registry.Format) (headers.Weights, error){"whole": readFolder, "sketch": sketchFolder} {
				w, err := read(files, registry.FormatSafetensors)
				if err != nil {
					t.Fatal(err)
				}
				if f := w.Facts; f.Parameters != 4160 || f.DType != tt.dtype || f.Quantization != tt.label || len(f.Notes) != tt.notes {
					t.Errorf("%s: got %d of %s, %q, %q", how, f.Parameters, f.DType, f.Quantization, f.Notes)
				}
			}
		})
	}
}

// TestActiveParameters: of a mixture of experts a token passes through some.
func TestActiveParameters(t *testing.T) {
	files := map[string][]byte{"config.json": []byte(`{"num_hidden_layers":1,"hidden_size":8,"moe_intermediate_size":16,"n_routed_experts":4,"num_experts_per_tok":1}`)}
	tensors := []sourcetest.STTensor{{Name: "model.embed.weight", DType: "F32", Shape: []int64{100}, Data: make([]byte, 400)},
		{Name: "model.layers.0.mlp.shared_experts.up_proj.weight", DType: "F32", Shape: []int64{10}, Data: make([]byte, 40)}}
	for _, e := range []string{"0", "1", "2", "3"} {
		for _, m := range []string{"gate", "up", "down"} {
			tensors = append(tensors, sourcetest.STTensor{Name: "model.layers.0.mlp.experts." + e + "." + m + "_proj.weight", DType: "F32", Shape: []int64{8, 16}, Data: make([]byte, 512)})
		}
	}
	files["model.safetensors"] = sourcetest.Safetensors(tensors...)
	for _, read := range []func(map[string][]byte, registry.Format) (headers.Weights, error){readFolder, sketchFolder} {
		w, err := read(files, registry.FormatSafetensors)
		if f := w.Facts; err != nil || f.Parameters != 110+12*128 || f.ActiveParameters != 110+3*128 {
			t.Errorf("%d of %d, %v", f.ActiveParameters, f.Parameters, err)
		}
	}
	keys := sourcetest.LlamaKeys()
	keys["llama.expert_count"], keys["llama.expert_used_count"] = uint32(8), uint32(2)
	f, err := readGGUF(sourcetest.GGUF(keys, append(sourcetest.LlamaTensors(1), sourcetest.GGUFTensor{Name: "blk.0.ffn_up_exps.weight", Shape: []uint64{32, 8}, Data: make([]byte, 1024)})))
	if err != nil || f.Parameters != 4160+256 || f.ActiveParameters != 4160+64 {
		t.Errorf("%d of %d, %v", f.ActiveParameters, f.Parameters, err)
	}
}

// TestFactsOfKinds: encoders, models that see, and what lies in one folder but is none of the model.
func TestFactsOfKinds(t *testing.T) {
	base := registry.Facts{Format: registry.FormatSafetensors, Parameters: 4160, WeightBytes: 8448, DType: "bf16"}
	for name, tt := range map[string]struct {
		config string
		more   map[string][]byte
		want   func(*registry.Facts)
	}{
		"sentence-transformers with a word-piece vocabulary": {`{"architectures":["BertModel"],"model_type":"bert","max_position_embeddings":512}`,
			map[string][]byte{"modules.json": []byte("[]"), "1_Pooling/config.json": []byte("{}"), "vocab.txt": []byte("a"), "tokenizer.json": nil, "tokenizer_config.json": nil},
			func(f *registry.Facts) {
				f.Architecture, f.ContextLength, f.Embedding, f.Tokenizer = "BertModel", 512, true, true
			}},
		"a decoder that embeds": {`{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3"}`, map[string][]byte{"modules.json": []byte("[]"), "tokenizer.json": []byte("{}"), "tokenizer_config.json": nil},
			func(f *registry.Facts) { f.Architecture, f.Embedding, f.Tokenizer = "Qwen3ForCausalLM", true, true }},
		"it sees": {`{"architectures":["X"],"model_type":"llava","vision_config":{"num_hidden_layers":24},"text_config":{"max_position_embeddings":4096}}`, map[string][]byte{"chat_template.jinja": []byte("{{ x }}"), "tokenizer_config.json": nil},
			func(f *registry.Facts) {
				f.Architecture, f.ContextLength, f.Vision, f.Tokenizer, f.ChatTemplate = "X", 4096, true, true, true
			}},
		"an adapter beside it": {`{}`, map[string][]byte{"adapter_config.json": []byte("{}"), "adapter_model.safetensors": {1}, "tokenizer.json": nil, "spiece.model": {1}, "tokenizer_config.json": nil},
			func(f *registry.Facts) {
				f.Tokenizer, f.Notes = true, []string{"An adapter (LoRA) lies beside the model and is not used."}
			}},
		"no tokenizer": {`{}`, map[string][]byte{"tokenizer.json": nil, "tokenizer_config.json": nil, "consolidated.safetensors": {1}}, func(*registry.Facts) {}},
	} {
		t.Run(name, func(t *testing.T) {
			files := sourcetest.SafetensorsFolder(1)
			files["config.json"] = []byte(tt.config)
			maps.Copy(files, tt.more)
			maps.DeleteFunc(files, func(_ string, b []byte) bool { return b == nil })
			want := base
			tt.want(&want)
			w, err := readFolder(files, registry.FormatSafetensors)
			if d := cmp.Diff(want, w.Facts); err != nil || d != "" {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
}

// FuzzExtras: whatever the small files beside the weights say.
func FuzzExtras(f *testing.F) {
	f.Add([]byte(`{"chat_template": [{"name": "default", "template": "{{ x }}"}], "auto_map": {"AutoTokenizer": ["a", null]}}`), []byte("---\nlicense: mit\n---\n"), []byte(`{"base_model_name_or_path": "x"}`))
	f.Add([]byte(`{"added_tokens_decoder": {}}`), []byte("---\r\nlicense:\r\n- mit\r\n"), []byte(`[]`))
	f.Fuzz(func(t *testing.T, tokenizer, card, adapter []byte) {
		files := sourcetest.SafetensorsFolder(1)
		files["tokenizer_config.json"], files["README.md"], files["adapter_config.json"] = tokenizer, card, adapter
		whole, err := readFolder(files, registry.FormatSafetensors)
		sketch, err2 := sketchFolder(files, registry.FormatSafetensors)
		for _, err := range []error{err, err2} {
			if err != nil && registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
		}
		if err == nil && err2 == nil && len(tokenizer) < 100<<10 && whole.Facts.Licence != sketch.Facts.Licence || len(whole.Facts.Licence) > 200 {
			t.Fatalf("%q and %q", whole.Facts.Licence, sketch.Facts.Licence)
		}
		// Without weights the adapter's own words are repeated.
		for name := range files {
			if headers.FormatOf(name) != "" {
				delete(files, name)
			}
		}
		delete(files, "model.safetensors.index.json")
		if _, err := readFolder(files, registry.FormatSafetensors); err == nil || registry.CodeOf(err) == registry.CodeInternal || len(err.Error()) > 1000 {
			t.Fatalf("an adapter alone: %v", err)
		}
	})
}

// TestLicences: from the front matter, however long it is.
func TestLicences(t *testing.T) {
	long := "---\nlanguage:\n" + string(bytes.Repeat([]byte("- en\n"), 2000)) + "license: gemma\n---\n"
	for card, want := range map[string]string{"---\r\nlicense: mit\r\n---\r\n": "mit", long: "gemma", "no front matter\nlicense: mit\n": "", "---\nlicense: 'apache-2.0'\n": "apache-2.0", "---\n": "", "---\nother: x\n---\nlicense: mit\n": ""} {
		files := sourcetest.SafetensorsFolder(1)
		files["README.md"] = []byte(card)
		if w, err := readFolder(files, registry.FormatSafetensors); err != nil || w.Facts.Licence != want {
			t.Errorf("%.40q: %q, want %q, %v", card, w.Facts.Licence, want, err)
		}
	}
}
