package ollama

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// errNotLoaded says that the server answers and does not have the model.
var errNotLoaded = errors.New("not loaded")

// causes is what Ollama and the llama-server below it say, and what that means. The most telling come first.
var causes = []httpengine.Cause{
	{Kind: registry.FailurePort, Pattern: regexp.MustCompile(`(?i)listen tcp.*address already in use|couldn't bind HTTP server socket`),
		Msg: "Ollama could not listen: the port was taken by another program", Hint: "Load the model again; another port is chosen."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`(?i)llama-server binary not found`),
		Msg: "Ollama has no llama-server in lib/ollama beside it, which runs the models", Hint: "Install Ollama again: `llmm engine install ollama`."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`(?i)llama-quantize unavailable|llama-quantize binary not found`),
		Msg: "Ollama has no llama-quantize in lib/ollama beside it, without which it converts and quantises nothing", Hint: "Install Ollama's own build, put llama.cpp's llama-quantize there, or register the model as GGUF."},
	{Kind: registry.FailureEngineMissing, Pattern: regexp.MustCompile(`error while loading shared libraries: (\S+):`),
		Msg: "Ollama's llama-server cannot start: the library $1 is missing", Hint: "Install that library, or install Ollama again (`llmm engine install ollama`)."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)cudaMalloc failed: out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|unable to allocate CUDA\d* buffer`),
		Msg: "Ollama ran out of GPU memory", Hint: "Unload other models, give this one a shorter context_length, a smaller cache_type, or fewer layers on the GPU (num_gpu)."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)requires more system memory \(([^)]*)\) than is available \(([^)]*)\)`),
		Msg: "Ollama needs $1 of memory and finds $2", Hint: "Give the model a shorter context_length, or unload others."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)failed to allocate (?:\S+ )?buffer of size (\d+)`),
		Msg: "Ollama ran out of memory when it asked for $1 bytes", Hint: "Give the model a shorter context_length, or unload others."},
	{Kind: registry.FailureOutOfMemory, Pattern: regexp.MustCompile(`(?i)std::bad_alloc|cannot allocate memory|insufficient memory|failed to allocate (?:buffer|compute|the)|unable to allocate \S+ buffer|out of memory`),
		Msg: "Ollama ran out of memory", Hint: "Give the model a shorter context_length, or unload others."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`unknown model architecture: '([^']*)'`),
		Msg: "This Ollama does not know the architecture $1", Hint: "Install a newer Ollama, or use another engine."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`error loading model vocabulary: (cannot find tokenizer merges)`),
		Msg: "llama.cpp, which runs Ollama's models, cannot use the model's tokenizer: it has no merges", Hint: "Load it with the engine transformers, or give it the tokenizer.json that the weights were made with."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`unknown pre-tokenizer type: '([^']*)'`),
		Msg: "This Ollama does not know the tokenizer $1", Hint: "Install a newer Ollama, or use another engine."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`unsupported architecture "?([^"\s]*)"?`),
		Msg: "Ollama cannot convert the architecture $1", Hint: "Load it with the engine transformers, or register a GGUF of it."},
	{Kind: registry.FailureUnsupportedArch, Pattern: regexp.MustCompile(`does not support (generate|chat|embeddings?)`),
		Msg: "Ollama says that the model does not support $1", Hint: "It answers another kind of request. Use an engine that knows its architecture."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`open (\S*(?:config|tokenizer|params)\S*\.(?:json|model)): (?:no such file|file does not exist)`),
		Msg: "The model's folder has no $1, which Ollama needs to convert it", Hint: "Fetch the model again with its configuration and tokenizer."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`(?i)model '?"?([^'"]*)'?"? not found`),
		Msg: "Ollama does not have the model $1", Hint: "Fetch it again; somebody may have deleted it from Ollama's folder."},
	{Kind: registry.FailureMissingFile, Pattern: regexp.MustCompile(`(?i)open (\S+): (?:no such file or directory|permission denied)`),
		Msg: "Ollama cannot read $1", Hint: "Put the file back, or let the user that runs Ollama read it; fetch the model again if it was deleted."},
	{Kind: registry.FailureCorruptFile, Pattern: regexp.MustCompile(`data is not within the file bounds|model is corrupted or incomplete|exceeds file size`),
		Msg: "The weights are damaged or incomplete: the file is shorter than its header says", Hint: "Fetch or copy it again."},
	{Kind: registry.FailureCorruptFile, Pattern: regexp.MustCompile(`(?i)invalid magic|invalid file magic|not in GGUF format|unsupported model format|failed to read magic|invalid GGUF|tensor '[^']*' has (?:invalid|offset)|wrong number of tensors|missing tensor '|unexpected EOF|^EOF$|invalid JSON header|digest mismatch`),
		Msg: "The weights are not whole, or not what their name says", Hint: "Check that source_path names weights and not, for example, a web page that was saved under their name; fetch them again."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`option "([^"]+)" must be (.*)`),
		Msg: "Ollama refuses $1: it must be $2", Hint: "Correct custom_loader_params."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`(?i)template error: (.*)`),
		Msg: "Ollama does not accept the template: $1", Hint: "Correct or remove template in custom_loader_params."},
	{Kind: registry.FailureParameter, Pattern: regexp.MustCompile(`quantization is only supported for (.*) models`),
		Msg: "Ollama quantises $1 weights only, and these are quantised already", Hint: "Leave quantization_bits out."},
	{Kind: registry.FailureCrash, Pattern: regexp.MustCompile(`GGML_ASSERT\((.*)\) failed`),
		Msg: "Ollama's llama-server stopped itself: $1 did not hold", Hint: "This is a fault of llama.cpp or of the file. Try another version, or report it with the log."},
	{Kind: registry.FailureCrash, Pattern: regexp.MustCompile(`CUDA error: (.*)`),
		Msg: "Ollama's llama-server stopped after a CUDA error: $1", Hint: "Look at the driver (nvidia-smi, dmesg), then load the model again."},
}

// diagnose explains the end of an Ollama from its log. The log of one that was killed says nothing about why, so that
// only its exit counts then.
func diagnose(tail []string, exit process.Exit) registry.Failure {
	if exit.Signal == 9 {
		return registry.Failure{}
	}
	return httpengine.Diagnose(causes, tail)
}

// explain turns what a server answered into a failure; a connection that broke stays what it is. A failure without a Kind
// is one that the answer alone does not explain.
func explain(err error) error {
	if err == nil || broken(err) {
		return err
	}
	msg := err.Error()
	var status api.StatusError
	if errors.As(err, &status) && status.ErrorMessage != "" {
		msg = status.ErrorMessage
	}
	msg = process.Scrub(strings.TrimSpace(msg))
	f := httpengine.Diagnose(causes, strings.Split(msg, "\n"))
	if f.Msg == "" {
		f.Msg, f.Hint = "Ollama could not load the model: "+clip(msg), "Look at the log's last lines."
	}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + Name, Msg: f.Msg, Failure: &f, Err: err}
}

// broken reports whether an error is about the connection and not about what was asked.
func broken(err error) bool {
	var at *url.Error
	var op *net.OpError
	return errors.As(err, &at) || errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// failedWith makes a failure of an error of our own files.
func failedWith(err error, path string) error {
	var own *registry.Error
	if errors.As(err, &own) && own.Failure != nil {
		return err
	}
	f := &registry.Failure{Kind: registry.FailureMissingFile, Msg: fmt.Sprintf("%s cannot be shown to Ollama: %v", path, cause(err)), Hint: "Check the disk and who may write to the data folder, then load again."}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + Name, Msg: f.Msg, Failure: f, Err: err}
}
