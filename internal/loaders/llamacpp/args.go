package llamacpp

import (
	"regexp"
	"runtime"
	"strconv"
	"sync"

	"github.com/shirou/gopsutil/v3/cpu"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var cacheTypes = []string{"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"}

// table is every custom_loader_params entry. There is no entry for free arguments: an argument can name files, tools
// and addresses, and whoever may register a model must not get those.
var table = []params.Spec{
	{Param: loaders.Param{Name: "threads", Kind: registry.KindInt, Help: "CPU threads; the physical cores that may be used if not given."}, Min: 1, Max: 1024},
	{Param: loaders.Param{Name: "threads_batch", Kind: registry.KindInt, Help: "CPU threads for prompts; as threads if not given."}, Min: 1, Max: 1024},
	{Param: loaders.Param{Name: "batch_size", Kind: registry.KindInt, Help: "Tokens of a logical batch; 2048 if not given."}, Min: 1, Max: 65536},
	{Param: loaders.Param{Name: "ubatch_size", Kind: registry.KindInt, Help: "Tokens computed at once; 512 if not given. More is faster on long prompts and takes more memory."}, Min: 1, Max: 65536},
	{Param: loaders.Param{Name: "parallel", Kind: registry.KindInt, Help: "Requests answered at once; 4 if not given. They share the context."}, Min: 1, Max: 256},
	{Param: loaders.Param{Name: "flash_attn", Kind: registry.KindEnum, Opts: []string{"on", "off", "auto"}, Help: "Flash attention; auto if not given."}},
	{Param: loaders.Param{Name: "cache_type_k", Kind: registry.KindEnum, Opts: cacheTypes, Help: "Type of the cache of keys; f16 if not given. Smaller types take less memory."}},
	{Param: loaders.Param{Name: "cache_type_v", Kind: registry.KindEnum, Opts: cacheTypes, Help: "Type of the cache of values; f16 if not given. Quantised ones need flash attention."}},
	{Param: loaders.Param{Name: "cache_ram_mb", Kind: registry.KindInt, Help: "MiB of RAM in which prompts of idle requests are kept; 0 if not given."}, Max: 1 << 20},
	{Param: loaders.Param{Name: "n_gpu_layers", Kind: registry.KindInt, Help: "Layers on the GPU, with device cuda; all if not given."}, Max: 10000},
	{Param: loaders.Param{Name: "rope_scaling", Kind: registry.KindEnum, Opts: []string{"none", "linear", "yarn"}, Help: "How positions beyond the trained context are scaled."}},
	{Param: loaders.Param{Name: "rope_scale", Kind: registry.KindString, Help: "Factor by which the context is stretched."}, Number: true},
	{Param: loaders.Param{Name: "rope_freq_base", Kind: registry.KindString, Help: "Base frequency of the positions."}, Number: true},
	{Param: loaders.Param{Name: "rope_freq_scale", Kind: registry.KindString, Help: "Frequency factor of the positions."}, Number: true},
	{Param: loaders.Param{Name: "chat_template", Kind: registry.KindString, Help: "A built-in template's name or a Jinja template, instead of the model's own."}},
	{Param: loaders.Param{Name: "embeddings", Kind: registry.KindBool, Help: "Answer embeddings and nothing else; on for encoders."}},
	{Param: loaders.Param{Name: "pooling", Kind: registry.KindEnum, Opts: []string{"none", "mean", "cls", "last", "rank"}, Help: "How token vectors become one; the model's own way if not given."}},
	{Param: loaders.Param{Name: "mmap", Kind: registry.KindBool, Help: "Map the file instead of reading it; on if not given."}},
	{Param: loaders.Param{Name: "mlock", Kind: registry.KindBool, Help: "Keep the weights in RAM."}},
}

var shard = regexp.MustCompile(`-(\d{5})-of-\d{5}\.gguf$`)

// defaultParallel is how many requests are answered at once. They share one cache of the whole context
// (--kv-unified), so that more of them take no more memory and each may use all of it.
const defaultParallel = 4

// parallel returns how many slots the server gets. Without a unified cache the context would be split among them, so
// such a build gets one unless the user wants more.
func parallel(v params.Values, unified bool) int64 {
	if n, ok := v.Int("parallel", defaultParallel); ok || unified {
		return n
	}
	return 1
}

// embedding reports whether the server is started to embed.
func embedding(f registry.Facts, v params.Values) bool { return v.Bool("embeddings", f.Embedding) }

// physicalBatch is how many tokens are computed at once. A text to embed must fit into one batch, so that such a
// server gets a larger one.
func physicalBatch(embeds bool, context int, v params.Values) int64 {
	def := int64(defaultUBatch)
	if embeds {
		def = int64(min(padContext(context), 2048))
	}
	n, _ := v.Int("ubatch_size", def)
	return n
}

// argv builds the command line. Each flag was checked against `llama-server --help` of version 11434; those that
// came late are given only to builds that know them.
func argv(b build, spec loaders.LoadSpec, v params.Values, file string, context, port int) []string {
	a := []string{b.path, "-m", file, "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--alias", spec.Model.ModelID, "-c", strconv.Itoa(padContext(context))}
	opt := func(flag string, value ...string) {
		if b.has(flag) {
			a = append(append(a, flag), value...)
		}
	}
	num := func(flag string, n int64) { opt(flag, strconv.FormatInt(n, 10)) }

	threads, _ := v.Int("threads", defaultThreads())
	num("--threads", threads)
	for _, pf := range [][2]string{{"threads_batch", "--threads-batch"}} {
		if n, ok := v.Int(pf[0], 0); ok {
			num(pf[1], n)
		}
	}
	num("--parallel", parallel(v, b.has("--kv-unified")))
	opt("--kv-unified")

	if spec.Device == registry.DeviceCUDA {
		layers, _ := v.Int("n_gpu_layers", 999)
		num("--n-gpu-layers", layers)
		// The plan has promised bytes; the server must not shrink or move things on its own to fit elsewhere.
	} else {
		num("--n-gpu-layers", 0)
		opt("--device", "none")
	}
	opt("--fit", "off")

	embeds := embedding(spec.Artifact.Facts, v)
	ubatch := physicalBatch(embeds, context, v)
	num("--ubatch-size", ubatch)
	if embeds {
		opt("--embeddings")
		num("--batch-size", ubatch) // the server would only warn and do the same
	} else if n, ok := v.Int("batch_size", 0); ok {
		num("--batch-size", n)
	}
	for _, pf := range [][2]string{{"flash_attn", "--flash-attn"}, {"cache_type_k", "--cache-type-k"}, {"cache_type_v", "--cache-type-v"},
		{"rope_scaling", "--rope-scaling"}, {"pooling", "--pooling"}} {
		if s := v.String(pf[0], ""); s != "" {
			opt(pf[1], s)
		}
	}
	for _, pf := range [][2]string{{"rope_scale", "--rope-scale"}, {"rope_freq_base", "--rope-freq-base"}, {"rope_freq_scale", "--rope-freq-scale"}} {
		if f, ok := v.Float(pf[0]); ok {
			opt(pf[1], strconv.FormatFloat(f, 'g', -1, 64))
		}
	}
	opt("--jinja") // before the template: it decides which ones are accepted
	if t := v.String("chat_template", ""); t != "" {
		opt("--chat-template", t)
	}
	a = append(a, memoryFlags(b, spec.Artifact.Facts, v)...)
	if b.has("--no-ui") {
		opt("--no-ui")
	} else {
		opt("--no-webui")
	}
	opt("--no-slots") // it shows everybody's prompts
	opt("--metrics")
	opt("--offline") // an engine fetches nothing
	return a
}

// memoryFlags are those that decide what stays in memory beyond weights and cache.
func memoryFlags(b build, f registry.Facts, v params.Values) []string {
	var a []string
	// The server would keep up to 8 GiB of prompts in RAM that nobody has reserved.
	if b.has("--cache-ram") {
		n, _ := v.Int("cache_ram_mb", 0)
		a = append(a, "--cache-ram", strconv.FormatInt(n, 10))
	}
	if (f.WindowLayers > 0 || f.StateBytes > 0) && b.has("--ctx-checkpoints") {
		a = append(a, "--ctx-checkpoints", strconv.Itoa(windowCheckpoints))
	}
	mmap, mlock := v.Bool("mmap", true), v.Bool("mlock", false)
	switch {
	case b.has("--load-mode"):
		mode := map[[2]bool]string{{true, true}: "mmap+mlock", {false, true}: "mlock", {false, false}: "none"}[[2]bool{mmap, mlock}]
		if mode != "" {
			a = append(a, "--load-mode", mode)
		}
	default: // older builds
		if !mmap && b.has("--no-mmap") {
			a = append(a, "--no-mmap")
		}
		if mlock && b.has("--mlock") {
			a = append(a, "--mlock")
		}
	}
	return a
}

// defaultThreads is the physical cores, but not more than this program may use (affinity and the cgroup's quota): a
// second thread on a core does not help, and threads without a CPU wait for each other at every layer.
var defaultThreads = sync.OnceValue(func() int64 {
	n := runtime.GOMAXPROCS(0)
	if cores, err := cpu.Counts(false); err == nil && cores > 0 {
		n = min(n, cores)
	}
	return int64(max(1, n))
})
