package transformers

import (
	"fmt"
	"regexp"
	"runtime"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// table is every custom_loader_params entry. Names are those of from_pretrained where it has them. There is no entry that
// names a file or a package: whoever may register a model must not get those.
var table = []params.Spec{
	{Param: loaders.Param{Name: "dtype", Kind: registry.KindEnum, Opts: []string{"auto", "float32", "float16", "bfloat16"}, Help: "Type of the weights in memory; auto (the file's own) if not given. On the CPU float16 becomes float32."}},
	{Param: loaders.Param{Name: "torch_dtype", Kind: registry.KindEnum, Opts: []string{"auto", "float32", "float16", "bfloat16"}, Help: "The older name of dtype."}},
	{Param: loaders.Param{Name: "attn_implementation", Kind: registry.KindEnum, Opts: []string{"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}, Help: "How attention is computed; the model's default if not given."}},
	{Param: loaders.Param{Name: "device_map", Kind: registry.KindEnum, Opts: []string{"auto", "balanced", "balanced_low_0", "sequential"}, Help: "How layers are spread over several GPUs; needs accelerate."}},
	{Param: loaders.Param{Name: "max_memory", Kind: registry.KindMap, Help: "Most memory for each device of device_map: {0: 20GiB, cpu: 60GiB}. Numbers count the GPUs of this model from 0."}},
	{Param: loaders.Param{Name: "low_cpu_mem_usage", Kind: registry.KindBool, Help: "Load without a second copy in RAM. Newer versions always do."}},
	{Param: loaders.Param{Name: "variant", Kind: registry.KindString, Help: "Which of several sets of weights: fp16 takes model.fp16.safetensors."}},
	{Param: loaders.Param{Name: "task", Kind: registry.KindEnum, Opts: []string{"generate", "embed"}, Help: "What the model is used for; what its architecture says if not given."}},
	{Param: loaders.Param{Name: "pooling", Kind: registry.KindEnum, Opts: []string{"mean", "cls", "last", "max"}, Help: "How token vectors become an embedding; what the folder says, else mean."}},
	{Param: loaders.Param{Name: "normalize", Kind: registry.KindBool, Help: "Give embeddings the length 1; what the folder says, else not."}},
	{Param: loaders.Param{Name: "max_batch_size", Kind: registry.KindInt, Help: "Texts generated at once; 8 if not given."}, Min: 1, Max: 256},
	{Param: loaders.Param{Name: "max_batch_tokens", Kind: registry.KindInt, Help: "Tokens of prompts and answers that a batch may come to; 65,536 if not given."}, Min: 1, Max: 1 << 24},
	{Param: loaders.Param{Name: "hang_after", Kind: registry.KindInt, Help: "Seconds in which nothing moves, although there is work, after which the engine counts as hanging; 120 if not given."}, Min: 1, Max: 86400},
	{Param: loaders.Param{Name: "threads", Kind: registry.KindInt, Help: "CPU threads; all cores that may be used if not given."}, Min: 1, Max: 1024},
}

func threads(v params.Values) int64 {
	n, _ := v.Int("threads", int64(runtime.GOMAXPROCS(0)))
	return n
}

var (
	memoryDevice = regexp.MustCompile(`^(\d{1,3}|cpu)$`)
	memorySize   = regexp.MustCompile(`^\d{1,6}(\.\d+)?\s?([KMGT]i?B)$`)
)

// checkMaxMemory refuses what accelerate would misread.
func checkMaxMemory(v params.Values) error {
	m, _ := v["max_memory"].(map[string]any)
	for device, size := range m {
		s, ok := size.(string)
		if !memoryDevice.MatchString(device) || !ok || !memorySize.MatchString(s) {
			return &registry.Error{Code: registry.CodeInvalid, Op: "transformers.params", Msg: "The loader transformers refuses the model's parameters", Fields: []registry.FieldError{{
				Field: "custom_loader_params.max_memory", Msg: fmt.Sprintf("must map numbers of GPUs and cpu to sizes such as 20GiB; %s: %v is not that", device, size)}}}
		}
	}
	return nil
}
