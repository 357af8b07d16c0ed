// Package stories renders every state of every page of the console with made-up data, for looking at
// (cmd/storybook, cmd/screenshots) and for the tests of what must hold on all of them.
package stories

import (
	"errors"
	"strings"
	"time"

	"github.com/a-h/templ"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// Story is one state of one page.
type Story struct {
	Name string // as in an address: model-loading
	Page templ.Component
}

// All returns every story.
func All() []Story {
	var out []Story
	for _, part := range [][]Story{start(), overviews(), lists(), forms(), models(), files(), storage(), secrets(), activity(), engines(), rest(), hostile()} {
		out = append(out, part...)
	}
	return out
}

func start() []Story {
	return []Story{
		{"signin", pages.SignIn(view.SignIn{Next: "/models"})},
		{"signin-refused", pages.SignIn(view.SignIn{Name: "asha", Error: "The name and the password do not go together."})},
		{"welcome", pages.Welcome(view.SignIn{})},
		{"welcome-refused", pages.Welcome(view.SignIn{Name: "asha", Field: map[string]string{"password": "must have at least 10 characters", "again": "It is not the same as above."}})},
	}
}

func overview() view.Overview {
	all := rows()
	return view.Overview{
		Page: page("Overview", "overview", view.LiveURL("overview")), Can: everything, Total: 128, Devices: devices(),
		Loaded: []view.ModelRow{all[1], all[3], all[2], all[4], all[8]},
		Needs: []view.Need{
			{ID: "1", Kind: "approval", What: "phi-4-custom", Says: "asks to run remote code", Detail: "registered by research, 20 min ago", Action: "Review", URL: view.ModelURL("phi-4-custom")},
			{ID: "2", Kind: "failed", What: "tiny-bert", Says: "failed to load", Detail: "tokenizer files are missing from the folder", Action: "See why", URL: view.ModelURL("tiny-bert")},
			{ID: "3", Kind: "manifest", What: "models.yaml", Says: "has an entry that is not valid", Detail: "line 14, column 5: model_format must be one of safetensors, transformers_pt, gguf, onnx", Action: "Open", URL: "/yaml"},
		},
		Activity: append([]view.Operation{loadingOp()}, past()[:4]...),
	}
}

func overviews() []Story {
	full := overview()
	first := overview()
	first.Total, first.Loaded, first.Activity, first.Page.Needs = 0, nil, nil, 1
	first.Devices = view.DevicesOf(registry.Resources{Sample: registry.Sample{Host: registry.Host{RAMTotal: gb(15.6), RAMAvailable: gb(12.1), CPUs: 2, CPUPercent: 4}}}, map[string][]float64{"ram": wave(.2, .22)})
	first.Needs = []view.Need{{ID: "e", Kind: "engine", What: "No engine", Says: "can run models here yet", Detail: "llama.cpp runs GGUF models on the CPU and on GPUs and is built here in about four minutes.", Action: "Get llama.cpp", URL: "/engines"}}
	idle := overview()
	idle.Loaded, idle.Needs, idle.Page.Needs = nil, nil, 0
	idle.Devices = nil
	idle.GPUNote = "There is a GPU, but the driver does not answer: the library is 580.82 and the kernel module 570.11. Restart the machine or reload the module."
	return []Story{{"overview", pages.Overview(full)}, {"overview-first", pages.Overview(first)}, {"overview-idle", pages.Overview(idle)}}
}

func lists() []Story {
	v := view.Models{Page: page("Models", "models", view.LiveURL("models")), Can: everything, Rows: rows(), Total: 128, Next: "whisper-notes", Teams: []string{"default", "research", "search team", "support"}}
	none := v
	none.Rows, none.Filter, none.Next = nil, view.Filter{Q: "falcon", Status: "ready"}, ""
	empty := v
	empty.Rows, empty.Total, empty.Next, empty.Teams = nil, 0, "", nil
	looker := v
	looker.Can = view.Can{}
	looker.Rows = append([]view.ModelRow(nil), rows()...)
	for i := range looker.Rows {
		looker.Rows[i].CanLoad, looker.Rows[i].CanEnd = false, false
	}
	return []Story{{"models", pages.Models(v)}, {"models-none", pages.Models(none)}, {"models-empty", pages.Models(empty)}, {"models-viewer", pages.Models(looker)}}
}

func params() []view.Param {
	return []view.Param{
		{Name: "threads", Engine: "llamacpp", Help: "Threads of the CPU to use."},
		{Name: "parallel", Engine: "llamacpp", Help: "Requests answered at the same time."},
		{Name: "auth_token", Engine: "transformers", Help: "A token of the Hub, for gated repositories."},
	}
}

func forms() []Story {
	fresh := view.NewForm()
	fresh.Page, fresh.Teams, fresh.Params = page("Register a model", "models", ""), []string{"default", "research", "search team"}, params()
	wrong := fresh
	wrong.Values = map[string]string{"model_id": "meta-llama/../x", "source_type": "local", "source_path": "models/x.gguf", "model_format": "gguf", "required_ram_mb": "a lot", "context_length": "8k", "custom_loader_params": "threads 8", "device_preference": "cuda", "engine": "auto", "team": "default", "idle_timeout": "tomorrow"}
	wrong = wrong.WithErrors(&registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: []registry.FieldError{
		{Field: "model_id", Msg: `must not contain ".." as a part`}, {Field: "source_path", Msg: `must be an absolute path, not "models/x.gguf"`},
		{Field: "required_ram_mb", Msg: `must be a whole number, not the text "a lot"`}, {Field: "context_length", Msg: `must be a whole number, not the text "8k"`},
		{Field: "custom_loader_params", Msg: "must be settings, one a line, as name: value"}, {Field: "idle_timeout", Msg: `must be a duration such as 15m or 1h30m, not "tomorrow"`},
	}})
	wrong.Page.Title = "Register a model"
	r := qwen
	r.CustomLoaderParams = map[string]any{"auth_token": "hf_secret", "threads": int64(8)}
	r.RequiredGPUMemoryMB = 18000
	edit := view.FormOf(r)
	edit.Page, edit.Teams, edit.Params = page("Edit qwen3-8b", "models", ""), fresh.Teams, params()
	edit.Preview = seen(edit, fitPlan(), qwenFacts())
	edit.Secrets = secretList()
	gated := fresh
	gated.Secrets = secretList()
	gated.Values = map[string]string{"source_type": "huggingface", "source_path": "meta-llama/Llama-3.3-70B-Instruct", "device_preference": "auto", "engine": "auto", "team": "default", "param.auth_token": "secret:hub"}
	gated.Preview = &view.Preview{Source: registry.SourceHuggingFace, Offered: "huggingface:meta-llama/Llama-3.3-70B-Instruct", Problem: &registry.Problem{Code: registry.CodeLoadingFailed, Msg: "The repository is gated: the Hub refused the files to the token that was given.", Failure: &registry.Failure{Kind: registry.FailureGated, Hint: "Accept the terms on the model's page at the Hub with the account that the token belongs to, and look again."}}}
	slow := gated
	slow.Preview = &view.Preview{Source: registry.SourceHuggingFace, Waited: 8 * time.Second, Again: "/ui/slow"}
	s3 := fresh
	s3.Secrets = secretList()
	s3.Values = map[string]string{"source_type": "s3", "source_path": "s3://models/bge-m3", "device_preference": "auto", "engine": "auto", "team": "default", "param.endpoint_url": "minio.example.com", "param.access_key_id": "secret:minio-id", "param.secret_access_key": "secret:gone"}
	s3 = s3.WithErrors(&registry.Error{Code: registry.CodeInvalid, Msg: "The model cannot be looked up", Fields: []registry.FieldError{
		{Field: "custom_loader_params.endpoint_url", Msg: "must be an address that begins with https:// or http://"}, {Field: "custom_loader_params.secret_access_key", Msg: `refers to the secret "gone", which the team default does not have`}}})
	return []Story{{"form-new", pages.Form(fresh)}, {"form-errors", pages.Form(wrong)}, {"form-edit", pages.Form(edit)}, {"form-filled", pages.Form(filledForm(fresh))},
		{"form-gated", pages.Form(gated)}, {"form-slow", pages.Form(slow)}, {"form-s3", pages.Form(s3)}}
}

func qwenFacts() registry.Facts {
	return registry.Facts{Format: registry.FormatSafetensors, Architecture: "Qwen3ForCausalLM", Parameters: 8_190_735_360, WeightBytes: gb(15.3), DType: "bf16", ContextLength: 40960, Layers: 36, Licence: "Apache 2.0", ChatTemplate: true, Tokenizer: true}
}

func fitPlan() registry.Plan {
	return registry.Plan{ModelID: "qwen3-8b", Verdict: registry.VerdictFits, Device: "cuda:0", Engine: "vllm", EngineWhy: "safetensors on a GPU", DeviceWhy: "GPU 0 has room and is preferred to the CPU.",
		Needs: registry.Footprint{Weights: gb(15.3), KVCache: gb(1.1), Overhead: gb(.4), Estimated: gb(16.8), Context: 8192, Basis: "safetensors header"}, Free: gb(18.4), Spare: gb(1.6), Sentence: "Fits on GPU 0 now, with 1.6 GiB to spare."}
}

func modelPage(r registry.Record, rt registry.Runtime) view.ModelPage {
	return view.ModelPage{
		Page: page(r.ModelID, "models", view.LiveURL("model", "id", r.ModelID)), Can: everything, Record: r, Runtime: rt,
		Status: registry.DeriveStatus(r.Registration, rt.Artifact, rt.State), BaseURL: "http://gpu1:8080", Largest: gb(79.6),
	}
}

func models() []Story {
	var out []Story
	add := func(name string, v view.ModelPage) { out = append(out, Story{name, pages.Model(v)}) }

	idle := modelPage(smol, registry.Runtime{})
	idle.Plan = &registry.Plan{ModelID: smol.ModelID, Verdict: registry.VerdictFits, Device: "cpu", Engine: "llamacpp", EngineWhy: "GGUF", DeviceWhy: "There is no usable GPU, so auto means the CPU.", Needs: registry.Footprint{Weights: 94 * mib, KVCache: 90 * mib, Overhead: 48 * mib, Estimated: 232 * mib, Context: 2048, Basis: "gguf header"}, Free: gb(12.1), Spare: gb(11.9), Sentence: "Fits in memory now, with 11.9 GiB to spare."}
	idle.Facts = registry.Facts{Format: registry.FormatGGUF, Name: "SmolLM2 135M Instruct", Architecture: "llama", Parameters: 134_515_008, WeightBytes: 94 * mib, DType: "q4_1", Quantization: "Q4_1", ContextLength: 8192, Licence: "Apache 2.0"}
	idle.Engines, idle.Plan.Engines = verdicts(), verdicts()
	idle.Files.Known = known(smol, "f9c3d1", []registry.File{{Path: "SmolLM2-135M-Instruct.Q4_1.gguf", Size: 94 * mib}})
	add("model", idle)

	loading := runtime(bge, registry.RuntimeStarting, "cuda:0", 0, 0)
	loading.Engine, loading.EngineVersion = "transformers", "5.23"
	lp := modelPage(bge, loading)
	op := loadingOp()
	lp.Operation, lp.Log = &op, engineLog()
	lp.Facts = registry.Facts{Format: registry.FormatSafetensors, Architecture: "XLMRobertaModel", Parameters: 567_754_752, DType: "bf16", ContextLength: 8192, Embedding: true, Licence: "MIT", WeightBytes: gb(2.3)}
	add("model-loading", lp)

	fetching := registry.Runtime{State: registry.RuntimeQueued, Artifact: registry.ArtifactFetching}
	fp := modelPage(qwen, fetching)
	st := fetchingOp(true)
	st.Kind = registry.OperationLoad
	fp.Operation, fp.Facts = &st, qwenFacts()
	fp.Files.Known = absent(qwen)
	add("model-stalled", fp)

	ready := runtime(qwen, registry.RuntimeReady, "cuda:0", gb(16.8), 0)
	ready.Memory.PredictedGPU, ready.Engine, ready.EngineVersion = gb(16.6), "vllm", "0.24.0"
	ready.ReadyAt, ready.LastUsedAt = before(20*time.Minute), before(2*time.Second)
	ready.Endpoint = &registry.Endpoint{APIs: []registry.API{registry.APIChat, registry.APICompletions}, ContextLength: 8192, ModelClass: "Qwen3ForCausalLM", TokenizerClass: "Qwen2TokenizerFast",
		DType: "bfloat16", Parameters: 8_190_735_360, Bytes: gb(16.4)}
	rp := modelPage(qwen, ready)
	rp.Facts, rp.Requests, rp.History, rp.Log = qwenFacts(), 3, past()[:1], engineLog()
	rp.Files.Known = present(qwen)
	rp.CanSleep = true
	rp.Flash = &view.Flash{Kind: "ok", Msg: "Saved. The new idle timeout holds from now on."}
	add("model-ready", rp)

	changed := rp
	changed.Flash, changed.Record.UpdatedAt = nil, before(2*time.Minute)
	add("model-changed", changed)

	// No model does all of this; a masked one fills gaps and embeds, a base model continues texts.
	able := runtime(bert, registry.RuntimeReady, "cpu", 0, 536*mib)
	able.Engine, able.EngineVersion = "transformers", "5.23"
	able.Endpoint = &registry.Endpoint{APIs: []registry.API{registry.APICompletions, registry.APIEmbeddings, registry.APIFillMask, registry.APIClassify}, ContextLength: 512, ModelClass: "BertForMaskedLM", TokenizerClass: "BertTokenizer",
		Device: "cpu", DType: "float32", Parameters: 109_514_298, Bytes: 438_057_192}
	add("model-encoder", modelPage(bert, able))

	evict := modelPage(record("mixtral-8x7b", registry.SourceHuggingFace, "mistralai/Mixtral-8x7B-Instruct-v0.1", registry.FormatSafetensors, "research", nil), registry.Runtime{})
	evict.Plan = &registry.Plan{Verdict: registry.VerdictEvict, Device: "cuda:0", Engine: "vllm", EngineWhy: "safetensors on a GPU", Needs: registry.Footprint{Weights: gb(24.6), KVCache: gib, Overhead: gb(.5), Estimated: gb(26.1), Context: 8192}, Free: gb(18.4), Spare: gb(-7.7),
		Evict: []registry.Holder{{ModelID: "llama-3.3-70b-q2", Bytes: gb(28.4), Evictable: true, IdleFor: registry.Duration(4 * time.Minute)}}, Sentence: "Fits on GPU 0 after llama-3.3-70b-q2 leaves. It has been idle for 4 minutes and belongs to research."}
	evict.History = past()[2:3]
	add("model-evict", evict)

	never := modelPage(record("meta-llama/Llama-3.1-405B", registry.SourceHuggingFace, "meta-llama/Llama-3.1-405B", registry.FormatSafetensors, "research", func(m *registry.Model) { m.QuantizationBits = 4; m.DevicePreference = registry.DeviceCUDA }), registry.Runtime{})
	never.Plan = &registry.Plan{Verdict: registry.VerdictNever, Device: "cuda:0", Needs: registry.Footprint{Estimated: gb(214), Weights: gb(203), KVCache: gb(8), Overhead: gb(3), Context: 8192}, Free: gb(18.4), Sentence: "Can never fit here: 134.4 GiB short on the largest device even at 4-bit.",
		Shortage: &registry.Shortage{Device: "cuda:0", Needed: gb(214), Free: gb(18.4), Short: gb(134.4), Total: gb(79.6), Holders: []registry.Holder{{ModelID: "qwen3-8b", Bytes: gb(16.8)}, {ModelID: "llama-3.3-70b-q2", Bytes: gb(28.4), Evictable: true}, {ModelID: "bge-m3", Bytes: gb(9.6), Promised: true}, {PID: 4121, Bytes: gb(5.6)}}}}
	add("model-never", never)

	failed := modelPage(bert, registry.Runtime{State: registry.RuntimeFailed, Failure: failure()})
	failed.History = past()[1:2]
	add("model-failed", failed)

	pending := modelPage(waitingPhi(), registry.Runtime{})
	add("model-pending", pending)

	asleep := runtime(mistral, registry.RuntimeSleeping, "cuda:0", gb(14.5), 0)
	asleep.LastUsedAt = before(52 * time.Minute)
	add("model-asleep", modelPage(mistral, asleep))

	engineless := modelPage(smol, registry.Runtime{})
	engineless.Plan = &registry.Plan{Problem: &registry.Problem{Code: registry.CodeUnavailable, Msg: "No engine on this machine can run GGUF.", Failure: &registry.Failure{Kind: registry.FailureEngineMissing, Hint: "Install llama.cpp on the page Engines, or with: llmm engine install llamacpp"}}}
	add("model-no-engine", engineless)
	out = append(out, Story{"model-delete", pages.Delete(rp)})
	return out
}

func activity() []Story {
	running := []view.Operation{loadingOp(), fetchingOp(false)}
	v := view.Activity{Page: page("Activity", "activity", view.LiveURL("activity")), Running: running, Past: past(), Next: "01J", Can: everything}
	empty := v
	empty.Running, empty.Past, empty.Next = nil, nil, ""
	failed := past()[1]
	failed.Stages = loadStages()
	failed.Stages[5].State = registry.StageFailed
	done := past()[2]
	done.Stages = []registry.Stage{stage(registry.StageDrain, registry.StageDone, 0, 0, "", 34*time.Minute, 200*time.Millisecond), stage(registry.StageStop, registry.StageDone, 0, 0, "", 34*time.Minute, 900*time.Millisecond), stage(registry.StageRelease, registry.StageDone, gb(26), gb(26), registry.UnitBytes, 34*time.Minute, 300*time.Millisecond)}
	one := func(name string, op view.Operation) Story {
		return Story{name, pages.Operation(view.OperationPage{Page: page(op.Verb()+" "+op.Subject, "activity", view.LiveURL("operation", "id", op.ID)), Op: op, Can: everything})}
	}
	return []Story{{"activity", pages.Activity(v)}, {"activity-empty", pages.Activity(empty)}, one("operation-failed", failed), one("operation-unload", done), one("operation-running", loadingOp())}
}

func rest() []Story {
	user := registry.User{ID: "u1", Name: "asha", Admin: true, LastSeenAt: before(time.Second)}
	account := view.Account{Page: page("Account", "account", ""), BaseURL: "http://gpu1:8080", Tokens: []registry.Token{
		{ID: "t1", Name: "ci", Prefix: "llmm_4fQz", CreatedAt: before(24 * 12 * time.Hour), LastUsedAt: before(3 * time.Minute), ExpiresAt: Now.Add(24 * 78 * time.Hour)},
		{ID: "t2", Name: "laptop", Prefix: "llmm_9aXe", CreatedAt: before(24 * 40 * time.Hour)},
	}}
	made := account
	made.Secret, made.SecretName = "llmm_7c1sJv0qTtT3mZr9u8yQvXfP2bN6kLwEo", "evaluation"
	bare := account
	bare.Tokens, bare.PasswordError = nil, "That is not your present password."

	teams := view.Teams{Page: page("Teams", "teams", ""), Can: everything, Users: []registry.User{user, {ID: "u2", Name: "ben", LastSeenAt: before(3 * time.Hour)}, {ID: "u3", Name: "chiara", Disabled: true}},
		Teams: []view.Team{{Team: registry.Team{Name: "research"}, Models: 14, Members: []view.Member{{UserID: "u1", Name: "asha", Role: registry.RoleMaintainer}, {UserID: "u2", Name: "ben", Role: registry.RoleViewer}}}, {Team: registry.Team{Name: "default"}, Models: 3}},
		Form:  map[string]string{"user.name": "ben"}, Errors: map[string]string{"user.name": "There is a user of this name already."},
		Audit: []registry.AuditEntry{{At: before(2 * time.Minute), Actor: "ben", Action: "model.load", Subject: "qwen3-8b", Outcome: "ok"}, {At: before(9 * time.Minute), Actor: "ben", Action: "model.delete", Subject: "bge-m3", Outcome: "forbidden"}}}

	yaml := view.YAML{Page: page("YAML", "yaml", view.LiveURL("yaml")), Can: everything, Models: 128, Manifest: registry.ManifestStatus{Path: "/srv/llmm/models.yaml"}}
	diff := yaml
	diff.Text = "models:\n  - model_id: \"tiny-bert\"\n    source_type: \"huggingface\"\n    source_path: \"prajjwal1/bert-tiny\"\n    model_format: \"transformers_pt\"\n"
	diff.Diff = &view.ImportDiff{Added: []string{"tiny-bert", "local-custom-model"}, Unchanged: 4, Changed: []view.ModelChange{{ModelID: "qwen3-8b", Fields: []view.FieldChange{{Name: "context_length", Old: "8192", New: "16384"}, {Name: "idle_timeout", New: "45m"}}}},
		Issues: []registry.FieldError{{Field: "model_format", Msg: `must be one of safetensors, transformers_pt, gguf, onnx, not "pickle"`, Line: 14, Column: 19}}}
	diff.Manifest.Pending = 2
	broken := yaml
	broken.Text, broken.Error = "models: [", "This is not YAML: line 1, column 9: did not find the end of the list"
	broken.Manifest.Issues = diff.Diff.Issues

	errs := func(name, title string, status int, p registry.Problem, id string) Story {
		return Story{name, pages.Error(view.Error{Page: page(title, "", ""), Status: status, Problem: p, ID: id})}
	}
	return []Story{
		{"account", pages.Account(account)}, {"account-token", pages.Account(made)}, {"account-refused", pages.Account(bare)},
		{"teams", pages.Teams(teams)},
		{"yaml", pages.YAML(yaml)}, {"yaml-diff", pages.YAML(diff)}, {"yaml-broken", pages.YAML(broken)},
		errs("error-404", "Not found", 404, registry.Problem{Code: registry.CodeNotFound, Msg: "There is no model called falcon-40b. It may have been deleted, or its name is written differently."}, ""),
		errs("error-403", "Not allowed", 403, registry.Problem{Code: registry.CodeForbidden, Msg: "You are a viewer of research and may not load its models. Ask a maintainer: asha."}, ""),
		errs("error-500", "Something went wrong", 500, *registry.ProblemOf(errors.New("The registry could not be read: the disk is full.")), "01JD8Q6Z"),
	}
}

// Hostile is text that must come out as text wherever a person or a model's file could have written it.
const Hostile = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>`

func hostile() []Story {
	long := strings.Repeat("a-very-long-name-", 14)
	r := record(Hostile, registry.SourceLocal, "/srv/"+Hostile, registry.FormatGGUF, Hostile, func(m *registry.Model) {
		m.Description, m.Tags = Hostile, []string{Hostile}
		m.CustomLoaderParams = map[string]any{Hostile: Hostile}
	})
	rt := runtime(r, registry.RuntimeReady, "cpu", 0, gib)
	v := modelPage(r, rt)
	v.Log, v.Flash = []string{Hostile, "\x1b[31mred\x1b[0m"}, &view.Flash{Kind: "bad", Msg: Hostile}
	op := operation(registry.OperationLoad, Hostile, registry.OperationFailed, time.Minute, time.Second, "")
	op.Actor, op.Cause = Hostile, Hostile
	op.Error = &registry.Problem{Msg: Hostile, Failure: &registry.Failure{Msg: Hostile, Hint: Hostile, LogTail: []string{Hostile}}}
	v.History = []view.Operation{op}
	v.Files.Known = &registry.ModelArtifact{Source: registry.SourceLocal, Changed: Hostile, Revision: Hostile, Files: []registry.File{{Path: Hostile}, {Path: long}}, Facts: registry.Facts{Pickles: true}}
	v.Facts = registry.Facts{Name: Hostile, Architecture: Hostile, Licence: Hostile, Notes: []string{Hostile}}
	l := record(long, registry.SourceLocal, "/srv/"+long, registry.FormatGGUF, long, nil)
	list := view.Models{Page: page("Models", "models", view.LiveURL("models")), Can: everything, Total: 2, Filter: view.Filter{Q: Hostile}, Teams: []string{Hostile, "default"},
		Rows: []view.ModelRow{row(r, rt, 0, 0, time.Minute, 1), row(l, registry.Runtime{}, 0, 0, 0, -1)}}
	lp := modelPage(l, registry.Runtime{State: registry.RuntimeFailed, Failure: &registry.Failure{Msg: long, LogTail: []string{long + long}}})
	form := view.FormOf(r)
	form.Page = page("Edit", "models", "")
	form.Errors = map[string]string{"source_path": Hostile}
	form.Preview = &view.Preview{Offered: Hostile, Suggested: map[string]string{"model_id": Hostile}, Facts: v.Facts, Offers: []view.Offer{{Offer: registry.Offer{Label: Hostile}, Value: Hostile}, {Offer: registry.Offer{Label: long}}}}
	return []Story{{"hostile-model", pages.Model(v)}, {"hostile-list", pages.Models(list)}, {"hostile-long", pages.Model(lp)}, {"hostile-form", pages.Form(form)}, {"hostile-storage", pages.Storage(hostileStorage(long))}, {"hostile-operation", pages.Operation(view.OperationPage{Page: page(Hostile, "activity", ""), Op: op})}}
}
