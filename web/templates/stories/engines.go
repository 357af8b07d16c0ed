package stories

import (
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func engineSet() []view.Engine {
	files := []registry.SourceType{registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3}
	both := []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}
	apis := []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings}
	return []view.Engine{
		{EngineStatus: registry.EngineStatus{Name: "llamacpp", Title: "llama.cpp", Usable: true, Version: "b11434", Path: "/home/llmm/.cache/llmm/engines/llamacpp/11434.0.0/llama-server", Devices: both, RunsOn: both, APIs: apis,
			Sources: append(files, registry.SourceOllama), Formats: []registry.Format{registry.FormatGGUF}, Installable: true, Offered: "11520.0.0", Upgrade: "11520.0.0",
			Installed: []registry.InstalledEngine{{Version: "11434.0.0", Path: "/home/llmm/.cache/llmm/engines/llamacpp/11434.0.0", Bytes: 212 * mib, InUse: true}, {Version: "11290.0.0", Path: "/home/llmm/.cache/llmm/engines/llamacpp/11290.0.0", Bytes: 198 * mib}},
			Params:    []registry.EngineParam{{Name: "threads", Kind: registry.KindInt, Help: "CPU threads; the physical cores that may be used if not given."}, {Name: "cache_type_k", Kind: registry.KindEnum, Opts: []string{"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"}, Help: "Type of the cache of keys; f16 if not given. Smaller types take less memory."}, {Name: "mmap", Kind: registry.KindBool, Help: "Map the file instead of reading it; on if not given."}}}},
		{EngineStatus: registry.EngineStatus{Name: "transformers", Title: "Transformers", Installable: true, Offered: "5.23.0", Sources: files, RunsOn: both, Problem: "There is no Python with torch and transformers on this machine.", HowToGet: "Run `llmm engine install transformers` (it makes a Python environment of several gigabytes; needs Python 3.11 or later).", Formats: []registry.Format{registry.FormatTransformersPT, registry.FormatSafetensors}}},
		{EngineStatus: registry.EngineStatus{Name: "ollama", Title: "Ollama", Sources: files, RunsOn: both, Problem: "The Ollama at http://127.0.0.1:11434 does not answer: connection refused. Start it, correct OLLAMA_HOST, or leave OLLAMA_HOST out to have one run for each model", Formats: []registry.Format{registry.FormatGGUF, registry.FormatSafetensors}}},
		{EngineStatus: registry.EngineStatus{Name: "vllm", Title: "vLLM", Usable: true, Version: "0.32.0", Path: "/opt/vllm/bin/vllm", Sources: files, Devices: []registry.Device{registry.DeviceCUDA}, RunsOn: both, APIs: apis, Formats: []registry.Format{registry.FormatSafetensors, registry.FormatTransformersPT}, Experimental: true, CanSleep: true, Installable: true, Offered: "0.32.0"}},
		{EngineStatus: registry.EngineStatus{Name: "external", Title: "External service", Usable: true, Version: "OpenAI API v1", Path: "the model's source_path", Sources: []registry.SourceType{registry.SourceExternal}, RunsOn: both, Devices: both, Formats: registry.Formats, APIs: apis}},
		{EngineStatus: registry.EngineStatus{Name: "command", Title: "Command", OnlyNamed: true, Usable: true, Path: "/etc/llmm/commands.yaml", Sources: files, RunsOn: both, Devices: both, Formats: []registry.Format{registry.FormatGGUF, registry.FormatSafetensors}, APIs: apis[:2],
			Parts: []registry.EnginePart{{Name: "llama-server", Title: "llama-server", Program: "/usr/local/bin/llama-server", Version: "b11434"}, {Name: "sglang", Title: "SGLang", Program: "python3", Problem: "python3 cannot be run: executable file not found in $PATH"}}}},
	}
}

// trial is a self-test with what was measured so far, as far as the step that is given.
func trial(state registry.OperationState, ago, took time.Duration, at registry.StageName) view.Operation {
	op := operation(registry.OperationSelfTest, "llamacpp", state, ago, took, "")
	says := map[registry.StageName]string{
		registry.StageCheck: "llama.cpp b11434 at /home/llmm/.cache/llmm/engines/llamacpp/11434.0.0/llama-server", registry.StageMake: "714 KiB of random weights as gguf",
		registry.StageLoad: "Ready on GPU 0 in 1.42s (predicted 412 MiB, measured 418 MiB).", registry.StageAsk: "Answered 8 tokens in 29ms", registry.StageUnload: "Unloaded; 418 MiB came back on GPU 0.",
	}
	op.Stages = nil
	over := false
	for i, name := range registry.SelfTestStages {
		s := stage(name, registry.StageDone, 0, 0, "", ago-time.Duration(i)*400*time.Millisecond, 400*time.Millisecond)
		s.Msg = says[name]
		switch {
		case over:
			s = stage(name, registry.StageWaiting, 0, 0, "", 0, 0)
			if state.Final() {
				s.State = registry.StageSkipped
			}
		case name == at && state == registry.OperationRunning:
			s.State, s.Msg, over = registry.StageRunning, "weights: Reading the weights", true
		case name == at && state == registry.OperationFailed:
			s.State, s.Msg, over = registry.StageFailed, "engine: Starting llama.cpp", true
		}
		op.Stages = append(op.Stages, s)
	}
	switch state {
	case registry.OperationSucceeded:
		op.Outcome = "llama.cpp works: a tiny model was loaded in 1.48s and answered in 29ms."
	case registry.OperationFailed:
		op.Error = &registry.Problem{Code: registry.CodeLoadingFailed, Msg: "llama.cpp ended at once: a library is missing", Failure: &registry.Failure{Kind: registry.FailureEngineMissing, Msg: "libcudart.so.13 is missing", Hint: "Install the CUDA runtime, or install the engine again on this machine.",
			LogTail: []string{"llama-server: error while loading shared libraries: libcudart.so.13: cannot open shared object file: No such file or directory"}, ExitCode: 127}}
		op.Outcome = op.Error.Msg
	case registry.OperationQueued, registry.OperationRunning, registry.OperationPaused, registry.OperationCancelled:
	}
	return op
}

func enginePage(e view.Engine) view.EnginePage {
	return view.EnginePage{Page: page(e.Title, "engines", view.LiveURL("engine", "id", e.Name)), Engine: e, Can: everything}
}

func engines() []Story {
	list := view.Engines{Page: page("Engines", "engines", view.LiveURL("engines")), Can: everything, Engines: engineSet()}
	installing := list
	installing.Engines = engineSet()
	op := operation(registry.OperationInstall, "transformers", registry.OperationRunning, 40*time.Second, 0, "")
	s := stage(registry.StageFetch, registry.StageRunning, gb(1.2), gb(2.9), registry.UnitBytes, 30*time.Second, 0)
	s.Rate, s.ETA = 48e6, registry.Duration(38*time.Second)
	op.Stages = []registry.Stage{s, stage(registry.StageVerify, registry.StageWaiting, 0, 0, "", 0, 0), stage(registry.StageReady, registry.StageWaiting, 0, 0, "", 0, 0)}
	installing.Engines[1].Job = &op

	tested := enginePage(engineSet()[0])
	done := trial(registry.OperationSucceeded, 6*time.Minute, 3*time.Second, "")
	tested.Test, tested.History = &done, []view.Operation{done, past()[len(past())-1]}
	tested.Uses = []registry.EngineUse{{ModelID: "llama-3.3-70b-q2", Team: "research", State: registry.RuntimeReady}, {ModelID: "SmolLM2-135M-Instruct", Team: "default", State: registry.RuntimeStopped, Named: true}}
	testing := tested
	now := trial(registry.OperationRunning, 4*time.Second, 0, registry.StageLoad)
	testing.Engine.Job, testing.Test = &now, nil
	broken := tested
	wrong := trial(registry.OperationFailed, 6*time.Minute, time.Second, registry.StageLoad)
	broken.Test = &wrong
	asking := tested
	asking.Asking, asking.Which = true, "11290.0.0"
	missing := enginePage(engineSet()[1])
	getting := enginePage(installing.Engines[1])
	vllm := enginePage(engineSet()[3])
	far := enginePage(engineSet()[4])
	commands := enginePage(engineSet()[5])
	return []Story{
		{"engines", pages.Engines(list)}, {"engines-installing", pages.Engines(installing)}, {"engine", pages.Engine(tested)}, {"engine-testing", pages.Engine(testing)}, {"engine-broken", pages.Engine(broken)},
		{"engine-remove", pages.Engine(asking)}, {"engine-remove-page", pages.EngineRemove(asking)}, {"engine-missing", pages.Engine(missing)}, {"engine-installing", pages.Engine(getting)}, {"engine-vllm", pages.Engine(vllm)},
		{"engine-external", pages.Engine(far)}, {"engine-command", pages.Engine(commands)}, {"model-service", pages.Model(elsewhere(false))}, {"model-service-away", pages.Model(elsewhere(true))},
	}
}

// elsewhere is a model at a service that answers, or is away.
func elsewhere(away bool) view.ModelPage {
	r := record("gpt-eu", registry.SourceExternal, "https://llm.example.eu/v1", registry.FormatSafetensors, "research", nil)
	rt := runtime(r, registry.RuntimeReady, "remote", 0, 0)
	rt.Engine, rt.EngineVersion, rt.ReadyAt, rt.LastUsedAt = "external", "OpenAI API v1", before(50*time.Hour), before(12*time.Second)
	rt.Endpoint = &registry.Endpoint{APIs: []registry.API{registry.APIChat}, ContextLength: 131072}
	v := modelPage(r, rt)
	v.Service = &registry.ServiceHealth{Requests: 12840, Errors: 3, LatencyMS: 412, LastError: "llm.example.eu answered /v1/chat/completions with status 503", CheckedAt: before(14 * time.Second)}
	if away {
		v.Service.Errors, v.Service.AwaySince, v.Service.LastError = 41, before(4*time.Minute), "llm.example.eu refuses the connection"
	}
	return v
}

// verdicts are what is said of the engines for a GGUF.
func verdicts() []registry.EngineVerdict {
	return []registry.EngineVerdict{
		{Engine: "llamacpp", Title: "llama.cpp", Chosen: true, Why: "loads gguf, and is preferred to Ollama"},
		{Engine: "transformers", Title: "Transformers", Why: "does not load gguf; it loads transformers_pt, safetensors"},
		{Engine: "ollama", Title: "Ollama", Would: true, Why: "could load it, too; llama.cpp is preferred"},
		{Engine: "vllm", Title: "vLLM", Why: "does not load gguf; it loads safetensors, transformers_pt"},
		{Engine: "external", Title: "External service", Why: "does not load from local"},
	}
}
