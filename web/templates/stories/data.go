package stories

import (
	"math"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// Now is the moment at which every story plays, so that two renderings are the same to the byte.
var Now = time.Date(2026, 11, 23, 14, 2, 20, 0, time.UTC)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func gb(f float64) int64 { return int64(f * float64(gib)) }

func before(d time.Duration) time.Time { return Now.Add(-d) }

var everything = view.Can{Register: true, Load: true, Override: true, Delete: true, Approve: true, Install: true, Test: true, Manage: true}

func page(title, nav, live string) view.Page {
	return view.Page{Title: title, Nav: nav, User: view.User{Name: "asha", Admin: true, Secrets: true}, Needs: 3, Live: live, Version: "0.1.0", Now: Now}
}

func record(id string, src registry.SourceType, path string, f registry.Format, team string, change func(*registry.Model)) registry.Record {
	m := registry.Model{ModelID: id, SourceType: src, SourcePath: path, ModelFormat: f, Team: team}.WithDefaults()
	if change != nil {
		change(&m)
	}
	return registry.Record{Model: m, Registration: registry.RegistrationActive, Persist: true, Version: 3, CreatedAt: before(26 * time.Hour), CreatedBy: "asha", UpdatedAt: before(2 * time.Hour), UpdatedBy: "asha"}
}

var (
	llama = record("meta-llama/Llama-3.3-70B-Instruct", registry.SourceHuggingFace, "meta-llama/Llama-3.3-70B-Instruct", registry.FormatSafetensors, "research", func(m *registry.Model) { m.QuantizationBits = 4 })
	qwen  = record("qwen3-8b", registry.SourceHuggingFace, "Qwen/Qwen3-8B", registry.FormatSafetensors, "search team", func(m *registry.Model) {
		m.Description = "Answers for the search box; change it together with its prompt"
		m.IdleTimeout = registry.Duration(45 * time.Minute)
		m.Tags = []string{"chat", "production"}
	})
	llamaQ2 = record("llama-3.3-70b-q2", registry.SourceLocal, "/srv/models/llama-3.3-70b-instruct-q2_k.gguf", registry.FormatGGUF, "research", nil)
	bge     = record("bge-m3", registry.SourceS3, "s3://models/bge-m3", registry.FormatSafetensors, "search team", nil)
	mistral = record("mistral-7b", registry.SourceLocal, "/srv/models/mistral-7b", registry.FormatSafetensors, "support", nil)
	smol    = record("smollm2-135m", registry.SourceLocal, "/srv/models/SmolLM2-135M-Instruct.Q4_1.gguf", registry.FormatGGUF, "default", func(m *registry.Model) { m.Description = "The sample model: small enough for any machine" })
	bert    = record("tiny-bert", registry.SourceHuggingFace, "prajjwal1/bert-tiny", registry.FormatTransformersPT, "default", nil)
	gpt     = record("gpt-eu", registry.SourceExternal, "https://llm.example.com", registry.FormatSafetensors, "support", nil)
	phi     = record("phi-4-custom", registry.SourceHuggingFace, "research/phi-4-custom", registry.FormatSafetensors, "research", func(m *registry.Model) { m.TrustRemoteCode = true })
)

// waitingPhi is phi before anybody approved it.
func waitingPhi() registry.Record {
	r := phi
	r.Registration = registry.RegistrationPending
	return r
}

func runtime(r registry.Record, s registry.RuntimeState, device string, gpu, ram int64) registry.Runtime {
	rt := registry.Runtime{ModelID: r.ModelID, Desired: registry.RuntimeReady, State: s, Artifact: registry.ArtifactPresent, Device: device, Engine: "llamacpp", EngineVersion: "b11434", Generation: 2}
	rt.Memory = registry.Memory{MeasuredGPU: gpu, MeasuredRAM: ram, PredictedGPU: gpu * 99 / 100, PredictedRAM: ram * 97 / 100}
	return rt
}

func row(r registry.Record, rt registry.Runtime, percent, place int, used time.Duration, rpm float64) view.ModelRow {
	if used > 0 {
		rt.LastUsedAt = before(used)
	}
	return view.RowOf(view.RowInput{Record: r, Runtime: rt, Percent: percent, Place: place, Largest: gb(79.6), Requests: rpm, Can: everything, Now: Now})
}

func rows() []view.ModelRow {
	queued := runtime(llama, registry.RuntimeQueued, "", 0, 0)
	queued.Memory.PredictedGPU = gb(39.8)
	loading := runtime(bge, registry.RuntimeStarting, "cuda:0", 0, 0)
	loading.Memory.PredictedGPU = gb(9.6)
	none := registry.Runtime{Memory: registry.Memory{PredictedRAM: 232 * mib}}
	failed := registry.Runtime{State: registry.RuntimeFailed, Memory: registry.Memory{PredictedRAM: 96 * mib}}
	pending := waitingPhi()
	archived := record("gpt2-ancient", registry.SourceOllama, "gpt2:latest", registry.FormatGGUF, "default", nil)
	archived.Registration = registry.RegistrationArchived
	unloading := runtime(record("whisper-notes", registry.SourceLocal, "/srv/models/whisper-notes", registry.FormatONNX, "support", nil), registry.RuntimeDraining, "cpu", 0, gb(2.1))
	return []view.ModelRow{
		row(llama, queued, 0, 2, 0, -1),
		row(qwen, runtime(qwen, registry.RuntimeReady, "cuda:0", gb(16.8), 0), 0, 0, time.Second, 412),
		row(bge, loading, 62, 0, 0, -1),
		row(llamaQ2, runtime(llamaQ2, registry.RuntimeReady, "cuda:0", gb(28.4), 0), 0, 0, 4*time.Minute, 3),
		row(mistral, runtime(mistral, registry.RuntimeSleeping, "cuda:0", gb(14.5), 0), 0, 0, 52*time.Minute, 0),
		row(smol, none, 0, 0, 72*time.Hour, -1),
		row(bert, failed, 0, 0, 0, -1),
		row(pending, registry.Runtime{}, 0, 0, 0, -1),
		row(gpt, registry.Runtime{State: registry.RuntimeReady, Device: "remote"}, 0, 0, time.Minute, 12),
		row(record("whisper-notes", registry.SourceLocal, "/srv/models/whisper-notes", registry.FormatONNX, "support", nil), unloading, 0, 0, 3*time.Hour, -1),
		row(archived, registry.Runtime{}, 0, 0, 24*90*time.Hour, -1),
	}
}

func wave(from, to float64) []float64 {
	out := make([]float64, 60)
	for i := range out {
		t := float64(i) / 59
		out[i] = from + (to-from)*t + .06*math.Sin(t*17) + .03*math.Sin(t*41)
	}
	return out
}

func resources() registry.Resources {
	return registry.Resources{
		Sample: registry.Sample{
			At: Now, Driver: "580.82", CUDA: "13.0",
			GPUs: []registry.GPU{
				{Index: 0, Name: "NVIDIA H100 80GB HBM3", MemoryTotal: gb(79.6), MemoryUsed: gb(52.2), MemoryFree: gb(27.4), Utilization: 71, Temperature: 58, Power: 412, Usable: true,
					Processes: []registry.GPUProcess{{PID: 900, Bytes: gb(16.8)}, {PID: 901, Bytes: gb(28.4)}, {PID: 4121, Name: "python", Bytes: gb(5.6)}}},
			},
			Host: registry.Host{RAMTotal: 128 * gib, RAMAvailable: gb(91.6), CPUs: 16, CPUPercent: 23},
		},
		Reservations: []registry.Reservation{
			{ModelID: "qwen3-8b", Device: "cuda:0", Bytes: gb(16.8), Taken: gb(16.8), PID: 900, State: registry.RuntimeReady},
			{ModelID: "llama-3.3-70b-q2", Device: "cuda:0", Bytes: gb(28.4), Taken: gb(28.4), PID: 901, State: registry.RuntimeReady},
			{ModelID: "bge-m3", Device: "cuda:0", Bytes: gb(9.6), Taken: gb(1.4), PID: 902, State: registry.RuntimeStarting},
			{ModelID: "mistral-7b", Device: "cpu", Bytes: gb(14.5), Taken: gb(14.5), PID: 903, State: registry.RuntimeSleeping},
		},
	}
}

func devices() []view.Device {
	return view.DevicesOf(resources(), map[string][]float64{"gpu-0": wave(.25, .6), "ram": wave(.12, .28)})
}

func stage(n registry.StageName, s registry.StageState, done, total int64, u registry.Unit, at, took time.Duration) registry.Stage {
	st := registry.Stage{Name: n, State: s, Done: done, Total: total, Unit: u}
	if at > 0 {
		st.StartedAt = before(at)
		if s == registry.StageDone {
			st.EndedAt = st.StartedAt.Add(took)
		}
	}
	return st
}

func loadStages() []registry.Stage {
	weights := stage(registry.StageWeights, registry.StageRunning, 241, 389, registry.UnitTensors, 4*time.Second, 0)
	weights.Rate, weights.ETA = 54, registry.Duration(3*time.Second)
	return []registry.Stage{
		stage(registry.StageQueue, registry.StageSkipped, 0, 0, "", 0, 0),
		stage(registry.StageResolve, registry.StageSkipped, 0, 0, "", 0, 0),
		stage(registry.StageFetch, registry.StageDone, gb(2.3), gb(2.3), registry.UnitBytes, 9*time.Second, 4*time.Second),
		stage(registry.StageVerify, registry.StageDone, 6, 6, registry.UnitFiles, 5*time.Second, 300*time.Millisecond),
		stage(registry.StageEngine, registry.StageDone, 0, 0, "", 5*time.Second, 400*time.Millisecond),
		weights,
		stage(registry.StageWarmup, registry.StageWaiting, 0, 0, "", 0, 0),
		stage(registry.StageReady, registry.StageWaiting, 0, 0, "", 0, 0),
	}
}

func operation(kind registry.OperationKind, subject string, state registry.OperationState, ago, took time.Duration, outcome string) view.Operation {
	op := registry.Operation{ID: "01J" + subject[:3] + string(kind), Kind: kind, Subject: subject, State: state, Actor: "asha", Cause: "asked for in the console", CreatedAt: before(ago), StartedAt: before(ago), Outcome: outcome}
	if state.Final() {
		op.EndedAt = op.StartedAt.Add(took)
	}
	return view.OperationOf(op, Now)
}

func loadingOp() view.Operation {
	op := operation(registry.OperationLoad, "bge-m3", registry.OperationRunning, 9*time.Second, 0, "")
	op.Actor, op.Cause, op.Stages = "gateway:ci", "asked for by a request of search team", loadStages()
	return op
}

func fetchingOp(stalled bool) view.Operation {
	op := operation(registry.OperationFetch, "qwen3-8b", registry.OperationRunning, 94*time.Second, 0, "")
	fetch := stage(registry.StageFetch, registry.StageRunning, gb(6.1), gb(15.3), registry.UnitBytes, 90*time.Second, 0)
	fetch.Rate, fetch.ETA, fetch.Stalled = 72e6, registry.Duration(137*time.Second), stalled
	op.Stages = []registry.Stage{stage(registry.StageResolve, registry.StageDone, 0, 0, "", 93*time.Second, time.Second), fetch, stage(registry.StageVerify, registry.StageWaiting, 0, 0, "", 0, 0)}
	return op
}

func failure() *registry.Failure {
	return &registry.Failure{
		Kind: registry.FailureMissingFile, Msg: "tokenizer.json is missing from prajjwal1/bert-tiny, and there is no vocab.txt either.",
		Hint: "Set tokenizer_path to a folder that has a tokenizer, for example bert-base-uncased.", ExitCode: 1,
		LogTail: []string{"14:01:58 worker  transformers 5.23, torch 2.15, cpu", "14:01:58 config  BertModel, 4.4 M parameters, f32", "14:01:59 error   OSError: Can't load tokenizer for 'prajjwal1/bert-tiny'"},
	}
}

func past() []view.Operation {
	unload := operation(registry.OperationUnload, "mixtral-8x7b", registry.OperationSucceeded, 34*time.Minute, 1400*time.Millisecond, "Unloaded")
	unload.Released = &registry.Released{Device: "cuda:0", Expected: gb(26.1), Measured: gb(26.0), Verified: true}
	unload.Actor, unload.Cause = "manager", "idle for 15m"
	failed := operation(registry.OperationLoad, "tiny-bert", registry.OperationFailed, 21*time.Minute, 2*time.Second, "")
	failed.Error = &registry.Problem{Code: registry.CodeLoadingFailed, Msg: "tokenizer files are missing from the folder", Failure: failure()}
	return []view.Operation{
		operation(registry.OperationLoad, "qwen3-8b", registry.OperationSucceeded, 20*time.Minute, 3100*time.Millisecond, "Ready in 3.1 s: 16.6 GiB predicted, 16.8 GiB measured"),
		failed, unload,
		operation(registry.OperationImport, "models.yaml", registry.OperationSucceeded, 42*time.Minute, 120*time.Millisecond, "3 models added, 1 changed"),
		operation(registry.OperationLoad, "meta-llama/Llama-3.1-405B", registry.OperationCancelled, 26*time.Hour, 12*time.Second, "Cancelled while waiting for room"),
		operation(registry.OperationInstall, "llamacpp", registry.OperationSucceeded, 27*time.Hour, 214*time.Second, "llama.cpp b11434 installed"),
	}
}

func engineLog() []string {
	return []string{
		"14:02:11 worker  transformers 5.23, torch 2.15, cuda 13.0, H100", "14:02:11 config  XLMRobertaModel, 568 M parameters, bf16",
		"14:02:12 tokens  sentencepiece, 250,002 entries", "14:02:12 weights 241 of 389 tensors, 1.4 of 2.3 GiB, 6.1 GiB/s",
	}
}
