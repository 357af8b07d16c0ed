package llamacpp_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// shapes makes tensors of zeros.
type shapes []sourcetest.GGUFTensor

func (s *shapes) add(name string, shape ...uint64) {
	n := uint64(4)
	for _, d := range shape {
		n *= d
	}
	*s = append(*s, sourcetest.GGUFTensor{Name: name, Shape: shape, Data: make([]byte, n)})
}

// hollow is a model of an architecture with so many keys and tensors that the engine loads it, and no vocabulary.
func hollow(arch string, keys map[string]any, tensors shapes) []byte {
	all := map[string]any{"general.architecture": arch, "tokenizer.ggml.model": "none", arch + ".vocab_size": uint32(32), arch + ".context_length": uint32(4096)}
	for k, v := range keys {
		all[arch+"."+k] = v
	}
	tensors.add("token_embd.weight", 64, 32)
	return sourcetest.GGUF(all, tensors)
}

// deepseek is latent attention: two layers that keep 64 + 16 elements of each token.
func deepseek() []byte {
	var t shapes
	t.add("output_norm.weight", 64)
	for i := range 2 {
		p := fmt.Sprintf("blk.%d.", i)
		t.add(p+"attn_norm.weight", 64)
		t.add(p+"attn_q_a_norm.weight", 32)
		t.add(p+"attn_kv_a_norm.weight", 64)
		t.add(p+"attn_q_a.weight", 64, 32)
		t.add(p+"attn_q_b.weight", 32, 4*48)
		t.add(p+"attn_kv_a_mqa.weight", 64, 64+16)
		t.add(p+"attn_k_b.weight", 32, 64, 4)
		t.add(p+"attn_v_b.weight", 64, 32, 4)
		t.add(p+"attn_output.weight", 4*32, 64)
		feedForward(&t, p)
	}
	return hollow("deepseek2", map[string]any{"block_count": uint32(2), "embedding_length": uint32(64), "feed_forward_length": uint32(64), "attention.head_count": uint32(4),
		"attention.head_count_kv": uint32(1), "attention.key_length": uint32(80), "attention.value_length": uint32(64), "attention.key_length_mla": uint32(48), "attention.value_length_mla": uint32(32),
		"attention.q_lora_rank": uint32(32), "attention.kv_lora_rank": uint32(64), "rope.dimension_count": uint32(16), "attention.layer_norm_rms_epsilon": float32(1e-6),
		"leading_dense_block_count": uint32(2), "expert_feed_forward_length": uint32(64), "expert_shared_count": uint32(1)}, t)
}

// lfm is a hybrid: of four layers the last attends, the others keep 128 inputs of a convolution.
func lfm() []byte {
	var t shapes
	t.add("token_embd_norm.weight", 64)
	for i := range 4 {
		p := fmt.Sprintf("blk.%d.", i)
		t.add(p+"attn_norm.weight", 64)
		feedForward(&t, p)
		if i < 3 {
			t.add(p+"shortconv.conv.weight", 129, 64)
			t.add(p+"shortconv.in_proj.weight", 64, 192)
			t.add(p+"shortconv.out_proj.weight", 64, 64)
			continue
		}
		t.add(p+"attn_q_norm.weight", 16)
		t.add(p+"attn_k_norm.weight", 16)
		t.add(p+"attn_q.weight", 64, 64)
		t.add(p+"attn_k.weight", 64, 32)
		t.add(p+"attn_v.weight", 64, 32)
		t.add(p+"attn_output.weight", 64, 64)
	}
	return hollow("lfm2", map[string]any{"block_count": uint32(4), "embedding_length": uint32(64), "feed_forward_length": uint32(64), "attention.head_count": uint32(4),
		"attention.head_count_kv": []uint32{0, 0, 0, 2}, "shortconv.l_cache": uint32(129), "attention.layer_norm_rms_epsilon": float32(1e-6)}, t)
}

// mamba is a state space without any attention.
func mamba() []byte {
	var t shapes
	t.add("output_norm.weight", 64)
	for i := range 4 {
		p := fmt.Sprintf("blk.%d.", i)
		t.add(p+"attn_norm.weight", 64)
		t.add(p+"ssm_in.weight", 64, 128+128+2*2*64+4)
		t.add(p+"ssm_conv1d.weight", 4, 128+2*2*64)
		t.add(p+"ssm_conv1d.bias", 128+2*2*64)
		t.add(p+"ssm_dt.bias", 4)
		t.add(p+"ssm_a", 1, 4)
		t.add(p+"ssm_d", 1, 4)
		t.add(p+"ssm_norm.weight", 64, 2)
		t.add(p+"ssm_out.weight", 128, 64)
	}
	return hollow("mamba2", map[string]any{"block_count": uint32(4), "embedding_length": uint32(64), "feed_forward_length": uint32(0), "attention.head_count": uint32(0),
		"ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(128), "ssm.state_size": uint32(64), "ssm.time_step_rank": uint32(4), "ssm.group_count": uint32(2),
		"attention.layer_norm_rms_epsilon": float32(1e-6)}, t)
}

func feedForward(t *shapes, p string) {
	t.add(p+"ffn_norm.weight", 64)
	t.add(p+"ffn_gate.weight", 64, 64)
	t.add(p+"ffn_down.weight", 64, 64)
	t.add(p+"ffn_up.weight", 64, 64)
}

// TestCacheOfTheEngine holds the estimate against what the real engine says that it allocates, for the kinds of cache
// that the weights of the other tests do not have.
func TestCacheOfTheEngine(t *testing.T) {
	server, _ := engine(t)
	for name, file := range map[string][]byte{"latent attention": deepseek(), "a hybrid": lfm(), "a state space": mamba()} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.gguf")
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := headers.ReadGGUF(bytes.NewReader(file), int64(len(file)))
			if err != nil {
				t.Fatal(err)
			}
			got := llamacpp.New(llamacpp.Options{}).Estimate(registry.Model{ContextLength: 4096, CustomLoaderParams: map[string]any{"parallel": 3}}, registry.Artifact{Facts: f}, registry.DeviceCPU)
			want, tail := allocated(t, server, path)
			t.Logf("estimated %d, allocated %.0f", got.KVCache, want)
			// The engine tells MiB with two decimals, of two buffers at most.
			if want == 0 || math.Abs(float64(got.KVCache)-want) > 0.02*(1<<20) {
				t.Errorf("estimated %d bytes, the engine allocated %.0f: %+v\n%s", got.KVCache, want, f, tail)
			}
		})
	}
}

var sizeLine = regexp.MustCompile(`(?:llama_kv_cache|llama_memory_recurrent): size = +([0-9.]+) MiB.*`)

// allocated starts the engine with a context of 4,096 and three slots, and returns the bytes of the caches that its log
// tells of. It ends the engine as soon as they are told: it could not answer without a vocabulary.
func allocated(t *testing.T, server, path string) (float64, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, server, "-m", path, "-c", "4096", "--parallel", "3", "--kv-unified", "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--no-warmup", "--verbose")
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, or gone because it has no vocabulary
		_ = w.Close()  // never fails
		close(ended)
	}()
	var tail bytes.Buffer
	seen := map[string]float64{} // the engine tells it once while it looks how much fits, and once more
	for s := bufio.NewScanner(r); s.Scan(); {
		fmt.Fprintln(&tail, s.Text())
		if m := sizeLine.FindStringSubmatch(s.Text()); m != nil {
			n, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			seen[m[0]] = n * (1 << 20)
		}
		if bytes.Contains(s.Bytes(), []byte("compute buffer size")) && len(seen) > 0 {
			cancel()
		}
	}
	<-ended
	var sum float64
	for _, n := range seen {
		sum += n
	}
	return sum, tail.String()
}
