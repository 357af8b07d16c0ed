package ollama

import (
	"maps"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// table is every custom_loader_params entry: Ollama's own parameters under their names, and those of its settings that
// concern one model. They become part of the model that Ollama sees, because a request in OpenAI's dialect cannot carry
// them, and one with others would make Ollama load the model anew.
var table = []params.Spec{
	{Param: loaders.Param{Name: "num_ctx", Kind: registry.KindInt, Help: "Tokens of context, where context_length is not given."}, Min: 4, Max: 1 << 24},
	{Param: loaders.Param{Name: "num_batch", Kind: registry.KindInt, Help: "Tokens computed at once; Ollama chooses if not given."}, Min: 1, Max: 65536},
	{Param: loaders.Param{Name: "num_gpu", Kind: registry.KindInt, Help: "Layers on the GPU, with device cuda; all if not given."}, Max: 10000},
	{Param: loaders.Param{Name: "main_gpu", Kind: registry.KindInt, Help: "The one of the model's GPUs that it is put on alone, counted from 0."}, Max: 64},
	{Param: loaders.Param{Name: "num_thread", Kind: registry.KindInt, Help: "CPU threads; Ollama chooses if not given."}, Min: 1, Max: 1024},
	{Param: loaders.Param{Name: "use_mmap", Kind: registry.KindBool, Help: "Map the file instead of reading it; Ollama chooses if not given: not on the CPU."}},
	{Param: loaders.Param{Name: "parallel", Kind: registry.KindInt, Help: "Requests answered at once, each with a context of its own; 1 if not given. Set by the server where a running Ollama is used."}, Min: 1, Max: 256},
	{Param: loaders.Param{Name: "flash_attn", Kind: registry.KindEnum, Opts: []string{"on", "off", "auto"}, Help: "Flash attention; auto if not given. Set by the server where a running Ollama is used."}},
	{Param: loaders.Param{Name: "cache_type", Kind: registry.KindEnum, Opts: []string{"f16", "q8_0", "q4_0"}, Help: "Type of the cache of keys and values; f16 if not given. Set by the server where a running Ollama is used."}},
	{Param: loaders.Param{Name: "system", Kind: registry.KindString, Help: "System prompt of requests that bring none."}},
	{Param: loaders.Param{Name: "template", Kind: registry.KindString, Help: "Chat template in Ollama's language, instead of the model's own."}},
	{Param: loaders.Param{Name: "num_predict", Kind: registry.KindInt, Help: "Tokens of an answer at most, where the request does not say; -1 no limit."}, Min: -2, Max: 1 << 24},
	{Param: loaders.Param{Name: "num_keep", Kind: registry.KindInt, Help: "Tokens of the prompt that stay when the context is shifted."}, Min: -1, Max: 1 << 24},
	{Param: loaders.Param{Name: "seed", Kind: registry.KindInt, Help: "Seed of requests that bring none."}},
	{Param: loaders.Param{Name: "top_k", Kind: registry.KindInt, Help: "Tokens among which the next is drawn."}, Max: 1 << 20},
	{Param: loaders.Param{Name: "repeat_last_n", Kind: registry.KindInt, Help: "Tokens within which repetition is punished; -1 the whole context."}, Min: -1, Max: 1 << 24},
	{Param: loaders.Param{Name: "temperature", Kind: registry.KindString, Help: "How freely tokens are drawn, where the request does not say."}, Number: true},
	{Param: loaders.Param{Name: "top_p", Kind: registry.KindString, Help: "Share of the probability among which the next token is drawn."}, Number: true},
	{Param: loaders.Param{Name: "min_p", Kind: registry.KindString, Help: "Least probability of a token, relative to the likeliest."}, Number: true},
	{Param: loaders.Param{Name: "typical_p", Kind: registry.KindString, Help: "Locally typical sampling."}, Number: true},
	{Param: loaders.Param{Name: "repeat_penalty", Kind: registry.KindString, Help: "How strongly repetition is punished."}, Number: true},
	{Param: loaders.Param{Name: "presence_penalty", Kind: registry.KindString, Help: "Punishes tokens that were there before."}, Number: true},
	{Param: loaders.Param{Name: "frequency_penalty", Kind: registry.KindString, Help: "Punishes tokens the more often they were there."}, Number: true},
	{Param: loaders.Param{Name: "stop", Kind: registry.KindStrings, Help: "Texts that end an answer."}},
}

// notOptions are the entries of the table that are no parameters of Ollama's models.
var notOptions = []string{"num_ctx", "parallel", "flash_attn", "cache_type", "system", "template"}

// allLayers is more than any model has.
const allLayers = 999

// options returns the parameters that a model is given: what decides over memory is always there, so that no request
// changes it.
func options(v params.Values, device registry.Device, context int, f registry.Facts) map[string]any {
	out := map[string]any{}
	maps.Copy(out, v)
	maps.DeleteFunc(out, func(name string, _ any) bool { return slices.Contains(notOptions, name) })
	out["num_ctx"] = int64(context)
	switch device {
	case registry.DeviceAuto: // an Ollama on another machine, which knows its devices
	case registry.DeviceCUDA:
		if _, ok := v.Int("num_gpu", 0); !ok {
			out["num_gpu"] = int64(allLayers)
		}
	default:
		out["num_gpu"] = int64(0)
		delete(out, "main_gpu")
	}
	if _, ok := v.Int("num_batch", 0); !ok && !f.Embedding {
		out["num_batch"] = int64(defaultBatch) // else it grows with the memory that happens to be free
	}
	return out
}
