package vllm

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// table is every custom_loader_params entry. There is no entry for free arguments: an argument can name files, plugins
// and addresses, and whoever may register a model must not get those.
var table = []params.Spec{
	{Param: loaders.Param{Name: "dtype", Kind: registry.KindEnum, Opts: []string{"auto", "half", "float16", "bfloat16", "float", "float32"}, Help: "Type of the weights; auto if not given."}},
	{Param: loaders.Param{Name: "kv_cache_dtype", Kind: registry.KindEnum, Opts: []string{"auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"}, Help: "Type of the cache of keys and values; auto if not given."}},
	{Param: loaders.Param{Name: "quantization", Kind: registry.KindEnum, Opts: []string{"awq", "gptq", "bitsandbytes", "fp8", "compressed-tensors"}, Help: "How the weights are quantised; read from the model's config if not given."}},
	{Param: loaders.Param{Name: "max_num_seqs", Kind: registry.KindInt, Help: "Requests answered at once."}, Min: 1, Max: 65536},
	{Param: loaders.Param{Name: "max_num_batched_tokens", Kind: registry.KindInt, Help: "Tokens computed at once."}, Min: 1, Max: 1 << 20},
	{Param: loaders.Param{Name: "enforce_eager", Kind: registry.KindBool, Help: "Start sooner and answer slower: no CUDA graphs."}},
	{Param: loaders.Param{Name: "enable_prefix_caching", Kind: registry.KindBool, Help: "Keep the cache of prompts that begin alike; on if not given."}},
	{Param: loaders.Param{Name: "embeddings", Kind: registry.KindBool, Help: "Answer embeddings and nothing else; on for encoders."}},
	{Param: loaders.Param{Name: "seed", Kind: registry.KindInt, Help: "Of the random numbers."}, Max: math.MaxInt32},
	{Param: loaders.Param{Name: "sleep_mode", Kind: registry.KindBool, Help: "Let the model sleep. vLLM then takes commands without a key from other users of this machine, so that it is off if not given."}},
	{Param: loaders.Param{Name: "sleep_level", Kind: registry.KindInt, Help: "1 keeps the weights in main memory while it sleeps, 2 drops them and reads them again; 1 if not given."}, Min: 1, Max: 2},
}

func sleepLevel(v params.Values) int {
	if !v.Bool("sleep_mode", false) {
		return 0
	}
	n, _ := v.Int("sleep_level", 1)
	return int(n)
}

// contextOf is the tokens of context that the plan reserved for.
func contextOf(spec loaders.LoadSpec) int {
	if spec.Context > 0 {
		return spec.Context
	}
	return ContextFor(spec.Model, spec.Artifact.Facts)
}

func embedding(spec loaders.LoadSpec, v params.Values) bool {
	return v.Bool("embeddings", spec.Artifact.Facts.Embedding)
}

// checkModel refuses what vLLM would only refuse after minutes.
func checkModel(spec loaders.LoadSpec, v params.Values) error {
	var errs []registry.FieldError
	bad := func(field, msg string) { errs = append(errs, registry.FieldError{Field: field, Msg: msg}) }
	if spec.Device == registry.DeviceCPU && spec.Model.QuantizationBits != 0 {
		bad("quantization_bits", "needs a GPU with vLLM; load the model in full precision, or a GGUF version with llama.cpp")
	}
	if spec.Device == registry.DeviceCPU && sleepLevel(v) > 0 {
		bad("custom_loader_params.sleep_mode", "needs a GPU: vLLM cannot sleep on the CPU")
	}
	if q := v.String("quantization", ""); q != "" && spec.Model.QuantizationBits != 0 {
		bad("custom_loader_params.quantization", "contradicts quantization_bits; give one of the two")
	}
	if _, ok := v.Int("sleep_level", 0); ok && sleepLevel(v) == 0 {
		bad("custom_loader_params.sleep_level", "needs sleep_mode: true")
	}
	if strings.HasPrefix(spec.Model.TokenizerPath, "-") {
		bad("tokenizer_path", "must not begin with a dash") // it would be taken for a flag
	}
	if n := len(spec.GPUs); n > 1 && n&(n-1) != 0 {
		bad("gpu_ids", "must be 1, 2, 4, 8 … GPUs: vLLM splits the heads of a model evenly")
	}
	if len(errs) == 0 {
		return nil
	}
	return &registry.Error{Code: registry.CodeInvalid, Op: "vllm.Load", Msg: "vLLM cannot load the model like this", Fields: errs}
}

// argv builds the command line. Each flag was checked against vLLM 0.32.0.
func argv(p program, spec loaders.LoadSpec, v params.Values, tokens, port int) []string {
	a := append(slices.Clone(p.argv), "serve", spec.Artifact.Path, "--host", "127.0.0.1", "--port", strconv.Itoa(port),
		"--served-model-name", spec.Model.ModelID, "--max-model-len", strconv.Itoa(tokens))
	for _, pf := range [][2]string{{"dtype", "--dtype"}, {"kv_cache_dtype", "--kv-cache-dtype"}, {"quantization", "--quantization"}} {
		if s := v.String(pf[0], ""); s != "" {
			a = append(a, pf[1], s)
		}
	}
	for _, pf := range [][2]string{{"max_num_seqs", "--max-num-seqs"}, {"max_num_batched_tokens", "--max-num-batched-tokens"}, {"seed", "--seed"}} {
		if n, ok := v.Int(pf[0], 0); ok {
			a = append(a, pf[1], strconv.FormatInt(n, 10))
		}
	}
	switch spec.Model.QuantizationBits {
	case 4:
		a = append(a, "--quantization", "bitsandbytes")
	case 8:
		a = append(a, "--quantization", "fp8")
	}
	if v.Bool("enforce_eager", false) {
		a = append(a, "--enforce-eager")
	}
	if !v.Bool("enable_prefix_caching", true) {
		a = append(a, "--no-enable-prefix-caching")
	}
	if embedding(spec, v) {
		a = append(a, "--runner", "pooling")
	}
	if spec.Model.TrustRemoteCode {
		a = append(a, "--trust-remote-code")
	}
	if t := spec.Model.TokenizerPath; t != "" {
		a = append(a, "--tokenizer", t)
	}
	if sleepLevel(v) > 0 {
		a = append(a, "--enable-sleep-mode")
	}
	if spec.Device == registry.DeviceCUDA {
		if n := len(spec.GPUs); n > 1 {
			a = append(a, "--tensor-parallel-size", strconv.Itoa(n))
		}
		if u := utilization(spec); u > 0 {
			a = append(a, "--gpu-memory-utilization", strconv.FormatFloat(u, 'f', 4, 64))
		}
	}
	return a
}

// utilization is the share of each GPU that vLLM may take: what was promised to the model, so that it never takes what was
// promised to others. It fills it to the last byte with its cache. 0 when nothing is known; vLLM then takes its default.
func utilization(spec loaders.LoadSpec) float64 {
	if spec.Reserved <= 0 || spec.DeviceSize <= 0 || len(spec.GPUs) == 0 {
		return 0
	}
	share := float64(spec.Reserved) / float64(len(spec.GPUs)) / float64(spec.DeviceSize)
	return min(0.98, max(0.01, math.Floor(share*1e4)/1e4))
}

// cacheGiB is the cache that vLLM is given on the CPU, in GiB: room for one sequence of the whole context, as Estimate says.
func cacheGiB(f registry.Facts, tokens int) int64 {
	return max(1, (f.KVBytes(tokens, 2)+(1<<30)-1)>>30)
}

// environ is the engine's environment: ours without our secrets, the devices it may see, its key, and no network.
func environ(spec loaders.LoadSpec, v params.Values, tokens int, key string, extra []string) []string {
	env := slices.DeleteFunc(process.BaseEnv(), func(kv string) bool { return strings.HasPrefix(kv, "NVIDIA_VISIBLE_DEVICES=") })
	env = append(env, "VLLM_API_KEY="+key, "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "NO_COLOR=1",
		"VLLM_HOST_IP=127.0.0.1", "PYTHONUNBUFFERED=1")
	if len(spec.Dir) <= 60 { // a socket's path may have 107 bytes, and its name has 36
		env = append(env, "VLLM_RPC_BASE_PATH="+spec.Dir)
	}
	if sleepLevel(v) > 0 {
		env = append(env, "VLLM_SERVER_DEV_MODE=1")
	}
	if spec.Device == registry.DeviceCPU {
		env = append(env, "CUDA_VISIBLE_DEVICES=", "VLLM_CPU_KVCACHE_SPACE="+strconv.FormatInt(cacheGiB(spec.Artifact.Facts, tokens), 10))
	} else if gpus := strings.Join(spec.GPUUUIDs, ","); gpus != "" {
		env = append(env, "CUDA_VISIBLE_DEVICES="+gpus)
	}
	return append(env, extra...)
}
