package transformers

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// mark begins the lines of the log that are for us; see worker/llmm_worker/control.py.
const mark = "llmm-worker: "

// told is one of them.
type told struct {
	Stage   string `json:"stage"`
	Message string `json:"message"`
	Done    int64  `json:"done"`
	Total   int64  `json:"total"`
	Unit    string `json:"unit"`
	Ready   bool   `json:"ready"`
	Failure *struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
	} `json:"failure"`
}

func read(line string) (told, bool) {
	rest, ok := strings.CutPrefix(line, mark)
	if !ok {
		return told{}, false
	}
	var t told
	return t, json.Unmarshal([]byte(rest), &t) == nil
}

// stages are those that the worker passes through.
var stages = []registry.StageName{registry.StageEngine, registry.StageWeights}

func parse(line string) (registry.Progress, bool) {
	t, ok := read(line)
	if !ok || !slices.Contains(stages, registry.StageName(t.Stage)) || t.Done < 0 || t.Total < 0 {
		return registry.Progress{}, false
	}
	return registry.Progress{Stage: registry.StageName(t.Stage), Done: t.Done, Total: t.Total, Unit: registry.Unit(t.Unit), Msg: t.Message}, true
}

func isReady(line string) bool {
	t, ok := read(line)
	return ok && t.Ready
}

// failures are the kinds that the worker names.
var failures = []registry.FailureKind{registry.FailureOutOfMemory, registry.FailureMissingFile, registry.FailureUnsupportedArch, registry.FailureEngineMissing,
	registry.FailurePort, registry.FailureCrash, registry.FailureCorruptFile, registry.FailureParameter}

// causes are ends that the worker could not explain itself: Python that does not start, a library that ends the process.
var causes = []httpengine.Cause{
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`No module named '?llmm_worker`),
		Msg: "The interpreter does not find the worker", Hint: "Load the model again. If that does not help, name a plain python with --transformers-python."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)CUDA out of memory|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError`),
		Msg: "The worker ran out of GPU memory", Hint: "Unload other models, give it a shorter context_length, or set quantization_bits to 8 or 4."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)\bMemoryError\b|std::bad_alloc|DefaultCPUAllocator: (?:can't|not enough)`),
		Msg: "The worker ran out of memory", Hint: "Unload other models, or give it a shorter context_length."},
	{Kind: registry.FailureCrash, Pattern: regexp.MustCompile(`CUDA error: (.*)`),
		Msg: "The worker stopped after a CUDA error: $1", Hint: "Look at the driver (nvidia-smi, dmesg), then load the model again."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`error while loading shared libraries: (\S+):|Fatal Python error: init_\w+: (.*)`),
		Msg: "The Python interpreter cannot start: $1$2", Hint: "Run `llmm engine install transformers`, or name another interpreter with --transformers-python."},
}

// diagnose explains the end of a worker: in its own words, else by what its libraries printed. The log of one that was
// killed says nothing about why.
func diagnose(tail []string, exit process.Exit) registry.Failure {
	if exit.Signal == 9 {
		return registry.Failure{}
	}
	for _, line := range slices.Backward(tail) {
		t, ok := read(line)
		if !ok || t.Failure == nil || t.Failure.Message == "" {
			continue
		}
		f := registry.Failure{Kind: registry.FailureKind(t.Failure.Kind), Msg: t.Failure.Message, Hint: t.Failure.Hint}
		if !slices.Contains(failures, f.Kind) {
			f.Kind = registry.FailureCrash
		}
		return f
	}
	return httpengine.Diagnose(causes, tail)
}
