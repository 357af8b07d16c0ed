package llamacpp

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// causes is what llama-server prints and what it means. The most telling come first: a failed cudaMalloc is followed by
// several lines that only say that loading failed.
var causes = []httpengine.Cause{
	{Kind: registry.FailurePort, Pattern: regexp.MustCompile(`(?i)couldn't bind HTTP server socket|address already in use`),
		Msg: "llama.cpp could not listen: the port was taken by another program", Hint: "Load the model again; another port is chosen."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`(?i)V cache quantization requires flash_attn|quantized V cache (?:was requested, but this )?requires`),
		Msg: "llama.cpp refuses a quantised cache of values without flash attention", Hint: "Set flash_attn to on in custom_loader_params, or leave cache_type_v out."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)cudaMalloc failed: out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|unable to allocate CUDA\d* buffer`),
		Msg: "llama.cpp ran out of GPU memory", Hint: "Unload other models, give it a shorter context_length, a smaller cache_type_k and cache_type_v, or fewer n_gpu_layers."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)failed to allocate (?:\S+ )?buffer of size (\d+)`),
		Msg: "llama.cpp ran out of memory when it asked for $1 bytes", Hint: "Give the model a shorter context_length, or unload others."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)std::bad_alloc|cannot allocate memory|insufficient memory|failed to allocate (?:buffer|compute|the)|unable to allocate \S+ buffer|out of memory`),
		Msg: "llama.cpp ran out of memory", Hint: "Give the model a shorter context_length, or unload others."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`unknown model architecture: '([^']*)'`),
		Msg: "This llama.cpp does not know the architecture $1", Hint: "Install a newer llama.cpp (`llmm engine install llamacpp`), or use another engine."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`unknown pre-tokenizer type: '([^']*)'`),
		Msg: "This llama.cpp does not know the tokenizer $1", Hint: "Install a newer llama.cpp (`llmm engine install llamacpp`)."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`failed to open (?:GGUF file )?'?([^' ]+?)'?:? \(?No such file or directory`),
		Msg: "llama.cpp cannot find $1", Hint: "Put the file back, or correct source_path. A model in several files needs all of them in one folder."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`failed to open (?:GGUF file )?'?([^' ]+?)'?:? \(?Permission denied`),
		Msg: "llama.cpp may not read $1", Hint: "Give the user that runs this server the right to read it."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`invalid split file|illegal split file|missing split`),
		Msg: "A file of this model in several files is missing or is not one of them", Hint: "Fetch the model again, all of its files."},
	{Kind: registry.FailureCorruptFile, Pattern: regexp.MustCompile(`data is not within the file bounds|model is corrupted or incomplete`),
		Msg: "The weights are damaged or incomplete: the file is shorter than its header says", Hint: "Fetch or copy it again."},
	{Kind: registry.FailureCorruptFile, Pattern: regexp.MustCompile(`invalid magic characters|failed to read magic|bad GGUF magic|gguf_init_from_\w+: failed to read|invalid GGUF|tensor '[^']*' has (?:invalid|offset)|wrong number of tensors|missing tensor '`),
		Msg: "The file is not a whole GGUF file", Hint: "Check that source_path names a .gguf file and not, for example, a web page that was saved under its name; fetch it again."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`error: invalid argument: (\S+)`),
		Msg: "This llama.cpp does not know the option $1", Hint: "Install a newer llama.cpp (`llmm engine install llamacpp`)."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`error while handling argument "([^"]+)": (.*)`),
		Msg: "llama.cpp refuses the value of $1: $2", Hint: "Correct custom_loader_params."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`(?i)the supplied chat template is not supported|failed to parse (?:chat )?template|chat template parsing error`),
		Msg: "llama.cpp does not accept the chat template", Hint: "Correct or remove chat_template in custom_loader_params."},
	{Kind: registry.FailureCrash, Pattern: regexp.MustCompile(`GGML_ASSERT\((.*)\) failed`),
		Msg: "llama.cpp stopped itself: $1 did not hold", Hint: "This is a fault of llama.cpp or of the file. Try another version, or report it with the log."},
	{Kind: registry.FailureCrash, Pattern: regexp.MustCompile(`CUDA error: (.*)`),
		Msg: "llama.cpp stopped after a CUDA error: $1", Hint: "Look at the driver (nvidia-smi, dmesg), then load the model again."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`error while loading shared libraries: (\S+):`),
		Msg: "llama-server cannot start: the library $1 is missing", Hint: "Install that library, or install llama.cpp again (`llmm engine install llamacpp`)."},
}

// diagnose explains the end of a server. The log of one that was killed says nothing about why, so that only its exit
// counts then.
func diagnose(tail []string, exit process.Exit) registry.Failure {
	if exit.Signal == 9 {
		return registry.Failure{}
	}
	return httpengine.Diagnose(causes, tail)
}

// statePrefix begins the lines that a server in child mode prints for its parent.
const statePrefix = "cmd_child_to_router:state:"

// parser turns the server's log into progress.
type parser struct {
	weights int64 // bytes; 0 unknown
	dots    int64
}

func newParser(weights int64) *parser { return &parser{weights: weights} }

// parse reads a state line ({"state":"loading","payload":{"stages":["text_model"],"current":"text_model","value":0.42}})
// and, from builds without child mode, the lines that frame the loading of tensors and the dots that stand for one per
// cent each.
func (p *parser) parse(line string) (registry.Progress, bool) {
	if rest, ok := strings.CutPrefix(line, statePrefix); ok {
		var s struct {
			State   string `json:"state"`
			Payload struct {
				Stages  []string `json:"stages"`
				Current string   `json:"current"`
				Value   float64  `json:"value"`
			} `json:"payload"`
		}
		if json.Unmarshal([]byte(rest), &s) != nil {
			return registry.Progress{}, false
		}
		switch s.State {
		case "loading":
			// With several files (a projector, a draft) each is one share of the whole.
			at, n := 0, max(1, len(s.Payload.Stages))
			for i, name := range s.Payload.Stages {
				if name == s.Payload.Current {
					at = i
				}
			}
			return p.weightsAt((float64(at) + s.Payload.Value) / float64(n)), true
		case "ready":
			return p.weightsAt(1), true
		}
		return registry.Progress{}, false
	}
	switch {
	case strings.Contains(line, "load_tensors:") || strings.Contains(line, "llm_load_tensors:"):
		return p.weightsAt(0), true
	case line != "" && strings.Trim(line, ".") == "":
		p.dots = max(p.dots, int64(len(line)))
		return p.weightsAt(float64(p.dots) / 100), true
	case strings.Contains(line, "model loaded"):
		return p.weightsAt(1), true
	}
	return registry.Progress{}, false
}

func (p *parser) weightsAt(part float64) registry.Progress {
	part = max(0, min(1, part))
	if p.weights > 0 {
		return registry.Progress{Stage: registry.StageWeights, Done: int64(part * float64(p.weights)), Total: p.weights, Unit: registry.UnitBytes, Msg: "Reading the weights"}
	}
	return registry.Progress{Stage: registry.StageWeights, Done: int64(part * 100), Total: 100, Unit: registry.UnitPercent, Msg: "Reading the weights"}
}
