package view

import (
	"fmt"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Status is a model's status as the console shows it: a dot of a class and a word.
type Status struct {
	Class string // ready, busy, wait, sleeping, failed or "" (nothing going on)
	Label string
}

// StatusOf writes a status in words. percent is how far a load or a download is, 0 when that is not known; place is
// the position in the queue from 1, 0 when that is not known.
func StatusOf(s registry.Status, percent, place int) Status {
	with := func(class, label string) Status {
		if percent > 0 {
			label = fmt.Sprintf("%s %d%%", label, percent)
		}
		return Status{class, label}
	}
	switch s {
	case registry.StatusReady:
		return Status{"ready", "Ready"}
	case registry.StatusLoading:
		return with("busy", "Loading")
	case registry.StatusFetching:
		return with("busy", "Fetching")
	case registry.StatusQueued:
		if place > 0 {
			return Status{"wait", "Queued, " + ordinal(place)}
		}
		return Status{"wait", "Queued"}
	case registry.StatusSleeping:
		return Status{"sleeping", "Asleep"}
	case registry.StatusUnloading:
		return Status{"busy", "Unloading"}
	case registry.StatusRetrying:
		return Status{"wait", "Retrying"}
	case registry.StatusFailed:
		return Status{"failed", "Failed"}
	case registry.StatusPending:
		return Status{"wait", "Waits for approval"}
	case registry.StatusArchived:
		return Status{"", "Archived"}
	case registry.StatusNotLoaded:
	}
	return Status{"", "Not loaded"}
}

func ordinal(n int) string {
	suffix := "th"
	switch n % 10 {
	case 1:
		suffix = "st"
	case 2:
		suffix = "nd"
	case 3:
		suffix = "rd"
	}
	if n%100 >= 11 && n%100 <= 13 {
		suffix = "th"
	}
	return fmt.Sprintf("%d%s", n, suffix)
}

// SourceName writes a source for people.
func SourceName(s registry.SourceType) string {
	switch s {
	case registry.SourceHuggingFace:
		return "Hugging Face"
	case registry.SourceLocal:
		return "This machine"
	case registry.SourceS3:
		return "S3"
	case registry.SourceOllama:
		return "Ollama"
	case registry.SourceExternal:
		return "External service"
	}
	return string(s)
}

// FormatName writes a format for people.
func FormatName(f registry.Format) string {
	switch f {
	case registry.FormatTransformersPT:
		return "PyTorch"
	case registry.FormatSafetensors:
		return "safetensors"
	case registry.FormatGGUF:
		return "GGUF"
	case registry.FormatONNX:
		return "ONNX"
	}
	return string(f)
}

// EngineName writes an engine for people.
func EngineName(e string) string {
	switch e {
	case "llamacpp":
		return "llama.cpp"
	case "ollama":
		return "Ollama"
	case "transformers":
		return "Transformers"
	case "vllm":
		return "vLLM"
	case "external":
		return "external service"
	case "command":
		return "command of the admin's"
	case "", registry.EngineAuto:
		return "chosen automatically"
	}
	return e
}

// StageWord is the name of a stage as the console shows it.
func StageWord(s registry.StageName) string {
	switch s {
	case registry.StageQueue:
		return "Queue"
	case registry.StageResolve:
		return "Find"
	case registry.StageFetch:
		return "Fetch"
	case registry.StageVerify:
		return "Verify"
	case registry.StageReserve:
		return "Reserve"
	case registry.StageEngine:
		return "Engine"
	case registry.StageWeights:
		return "Weights"
	case registry.StageWarmup:
		return "Warm-up"
	case registry.StageReady:
		return "Ready"
	case registry.StageDrain:
		return "Drain"
	case registry.StageStop:
		return "Stop"
	case registry.StageRelease:
		return "Release"
	case registry.StageCheck:
		return "Find"
	case registry.StageMake:
		return "Tiny model"
	case registry.StageLoad:
		return "Load"
	case registry.StageAsk:
		return "Ask"
	case registry.StageUnload:
		return "Unload"
	case registry.StageRemove:
		return "Remove"
	}
	return string(s)
}

// FailureWord is a failure's diagnosis in a few words.
func FailureWord(k registry.FailureKind) string {
	switch k {
	case registry.FailureOutOfMemory:
		return "out of memory"
	case registry.FailureGated:
		return "gated repository"
	case registry.FailureMissingFile:
		return "missing file"
	case registry.FailureUnsupportedArch:
		return "architecture not supported"
	case registry.FailureEngineMissing:
		return "engine missing"
	case registry.FailurePort:
		return "no port"
	case registry.FailureCrash:
		return "engine crashed"
	case registry.FailureCorruptFile:
		return "corrupt file"
	case registry.FailureCancelled:
		return "cancelled"
	case registry.FailureParameter:
		return "parameter refused"
	case registry.FailureHang:
		return "engine did not answer"
	case registry.FailureUnreachable:
		return "service not reachable"
	case registry.FailureUnsupported:
		return "not supported"
	case registry.FailureDiskFull:
		return "disk full"
	}
	return string(k)
}

// OptionName writes one option of a field for people.
func OptionName(field, option string) string {
	switch field {
	case "source_type":
		return SourceName(registry.SourceType(option))
	case "model_format":
		switch registry.Format(option) {
		case "":
			return "As it is at the source"
		case registry.FormatTransformersPT:
			return "PyTorch for transformers (transformers_pt)"
		case registry.FormatSafetensors:
			return "safetensors"
		case registry.FormatGGUF:
			return "GGUF"
		case registry.FormatONNX:
			return "ONNX"
		}
	case "device_preference":
		switch registry.Device(option) {
		case registry.DeviceAuto:
			return "Automatic"
		case registry.DeviceCUDA:
			return "GPU (cuda)"
		case registry.DeviceCPU:
			return "CPU"
		}
	case "engine":
		if option == registry.EngineAuto {
			return "Automatic"
		}
		return EngineName(option)
	case "quantization_bits":
		if option == "" {
			return "None: full precision"
		}
		return option + "-bit"
	}
	return option
}

// FieldLabel is the label of a model's field. The field's own name is shown beside it, since files and the API use it.
func FieldLabel(name string) string {
	switch name {
	case "model_id":
		return "Name"
	case "source_type":
		return "Source"
	case "source_path":
		return "Path at the source"
	case "model_format":
		return "Format"
	case "revision":
		return "Revision"
	case "quantization_bits":
		return "Quantisation"
	case "device_preference":
		return "Device"
	case "required_gpu_memory_mb":
		return "GPU memory, MiB"
	case "required_ram_mb":
		return "System memory, MiB"
	case "custom_loader_params":
		return "Loader settings"
	case "tokenizer_path":
		return "Tokenizer"
	case "trust_remote_code":
		return "Run code that comes with the model"
	case "engine":
		return "Engine"
	case "team":
		return "Team"
	case "description":
		return "Description"
	case "tags":
		return "Tags"
	case "context_length":
		return "Context, tokens"
	case "gpu_ids":
		return "GPUs"
	case "idle_timeout":
		return "Unload when idle for"
	case "pinned":
		return "Keep loaded"
	case "priority":
		return "Priority"
	}
	return name
}

// ProblemWords are what happened, why, and what to do, each told once: an error's message often has all of it in itself.
func ProblemWords(p registry.Problem) (what, why, hint string) {
	what = Sentence(p.Msg)
	f := p.Failure
	if f == nil {
		return what, "", ""
	}
	why, hint = Sentence(f.Msg), Sentence(f.Hint)
	if hint != "" && why != "" && strings.Contains(what, hint) {
		return fullStop(why), "", fullStop(hint)
	}
	if strings.Contains(what, why) {
		why = ""
	}
	return what, why, hint
}

func fullStop(s string) string {
	if strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}
