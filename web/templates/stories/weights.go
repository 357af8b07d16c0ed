package stories

import (
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

const (
	commit = "a3c5f1d07b8e49126f0d3c2b1a98e7f6d5c4b3a2"
	older  = "0f6e5d4c3b2a19087f6e5d4c3b2a19087f6e5d4c"
)

// seen is a preview of one model that there is no choice about.
func seen(f view.Form, plan registry.Plan, facts registry.Facts) *view.Preview {
	files := make([]registry.File, 12)
	return view.PreviewOf(registry.Lookup{Model: registry.Model{ModelID: "qwen3-8b", SourceType: registry.SourceHuggingFace, SourcePath: "Qwen/Qwen3-8B", ModelFormat: registry.FormatSafetensors}, Revision: commit,
		Files: files, Bytes: gb(15.3), OnDisk: gb(6.1), Facts: facts, Plan: &plan, Requests: 7, Read: 212 << 10}, f)
}

// filledForm is a form that has filled itself in from a repository with many quantisations.
func filledForm(f view.Form) view.Form {
	f.Secrets = secretList()
	f.Values = map[string]string{"source_type": "huggingface", "source_path": "unsloth/Qwen3-30B-A3B-GGUF", "device_preference": "auto", "engine": "auto", "team": "default", "model_id": "unsloth/Qwen3-30B-A3B-GGUF", "model_format": "gguf"}
	f.Filled = map[string]string{"model_id": "unsloth/Qwen3-30B-A3B-GGUF", "model_format": "gguf"}
	plan := registry.Plan{Verdict: registry.VerdictFits, Device: "cuda:0", Engine: "llamacpp", Needs: registry.Footprint{Weights: gb(17.3), KVCache: gb(.8), Overhead: gb(.5), Estimated: gb(18.6), Context: 8192}, Free: gb(27.4), Spare: gb(8.8), Sentence: "Fits on GPU 0 now, with 8.8 GiB to spare."}
	l := registry.Lookup{
		Model:    registry.Model{ModelID: "unsloth/Qwen3-30B-A3B-GGUF", SourceType: registry.SourceHuggingFace, SourcePath: "unsloth/Qwen3-30B-A3B-GGUF", ModelFormat: registry.FormatGGUF, CustomLoaderParams: map[string]any{"quantization": "Q4_K_M"}},
		Revision: commit, Files: make([]registry.File, 1), Bytes: gb(17.3), Plan: &plan, Requests: 5, Read: 96 << 10,
		Facts: registry.Facts{Format: registry.FormatGGUF, Name: "Qwen3 30B A3B", Architecture: "qwen3moe", Parameters: 30_532_122_624, ActiveParameters: 3_345_000_000, DType: "q4_k", Quantization: "Q4_K_M", ContextLength: 40960, Licence: "apache-2.0", Tokenizer: true},
	}
	for _, q := range []struct {
		label string
		size  float64
	}{{"Q4_K_M", 17.3}, {"UD-Q4_K_XL", 16.5}, {"Q5_K_M", 20.2}, {"Q6_K", 23.4}, {"Q8_0", 30.2}, {"Q4_K_S", 16.3}, {"Q5_K_S", 19.6}, {"Q4_0", 16.2}, {"Q4_1", 17.9}, {"Q3_K_M", 13.7}, {"Q2_K", 10.5}, {"BF16", 56.9}} {
		l.Offers = append(l.Offers, registry.Offer{Format: registry.FormatGGUF, Label: q.label, Files: 1, Bytes: gb(q.size), Params: map[string]any{"quantization": q.label}})
	}
	f.Preview = view.PreviewOf(l, f)
	return f
}

func known(r registry.Record, revision string, files []registry.File) *registry.ModelArtifact {
	a := &registry.ModelArtifact{ModelID: r.ModelID, Source: r.SourceType, Path: r.SourcePath, Format: r.ModelFormat, Requested: r.Revision, Revision: revision, Files: files, ResolvedAt: before(3 * time.Minute)}
	for _, f := range files {
		a.Bytes += f.Size
	}
	return a
}

func shards() []registry.File {
	return []registry.File{{Path: "config.json", Size: 728}, {Path: "model-00001-of-00004.safetensors", Size: gb(3.9)}, {Path: "model-00002-of-00004.safetensors", Size: gb(3.9)}, {Path: "model-00003-of-00004.safetensors", Size: gb(3.9)}, {Path: "model-00004-of-00004.safetensors", Size: gb(3.6)}, {Path: "tokenizer.json", Size: 11 * mib}}
}

func absent(r registry.Record) *registry.ModelArtifact { return known(r, commit, shards()) }

func present(r registry.Record) *registry.ModelArtifact {
	a := known(r, commit, shards())
	a.Fetched, a.FetchedAt = commit, before(26*time.Hour)
	return a
}

// files are the states of a model's files on its page.
func files() []Story {
	var out []Story
	add := func(name string, v view.ModelPage) {
		v.Plan = nil
		if v.Files.Known != nil && v.Files.Known.Problem == nil {
			plan := fitPlan()
			v.Plan, v.Facts = &plan, qwenFacts()
		}
		out = append(out, Story{name, pages.Model(v)})
	}
	idle := func() view.ModelPage { return modelPage(qwen, registry.Runtime{}) }

	away := idle()
	away.Files.Known = absent(qwen)
	add("files-absent", away)

	coming := modelPage(qwen, registry.Runtime{Artifact: registry.ArtifactFetching})
	coming.Files.Known = absent(qwen)
	op := fetchingOp(false)
	coming.Files.Fetch = &op
	coming.History = []view.Operation{op}
	add("files-fetching", coming)

	stalled := coming
	st := fetchingOp(true)
	stalled.Files.Fetch = &st
	add("files-stalled", stalled)

	paused := idle()
	paused.Files.Known = absent(qwen)
	p := fetchingOp(false)
	p.State, p.Outcome = registry.OperationPaused, "Paused by asha with 6.1 GiB of 15.3 GiB here."
	p.Stages = append([]registry.Stage(nil), p.Stages...)
	p.Stages[1].State, p.Stages[1].Rate, p.Stages[1].ETA = registry.StageWaiting, 0, 0
	paused.Files.Fetch = &p
	add("files-paused", paused)

	broken := idle()
	broken.Files.Known = absent(qwen)
	lost := registry.Problem{Code: registry.CodeUnavailable, Msg: "The Hub does not answer: the connection was reset 6 times in 2 minutes. What has arrived is kept; fetch it again and it goes on there."}
	ended := view.OperationOf(registry.Operation{ID: "02", Kind: registry.OperationFetch, Subject: qwen.ModelID, State: registry.OperationFailed, EndedAt: before(2 * time.Minute), Outcome: lost.Msg, Error: &lost}, Now)
	broken.Files.Last = &ended
	broken.History = []view.Operation{ended}
	add("files-failed", broken)

	here := idle()
	here.Files.Known = present(qwen)
	here.Files.Where = "/home/llmm/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/" + commit
	done := view.OperationOf(registry.Operation{ID: "01", Kind: registry.OperationFetch, Subject: qwen.ModelID, State: registry.OperationSucceeded, EndedAt: before(4 * time.Minute),
		Outcome: "15.3 GiB in 9 files are on this machine and every byte of them was read and is as it should be."}, Now)
	here.Files.Last = &done
	add("files-here", here)

	damaged := here
	bad := view.OperationOf(registry.Operation{ID: "02", Kind: registry.OperationFetch, Subject: qwen.ModelID, State: registry.OperationFailed, EndedAt: before(4 * time.Minute),
		Error: &registry.Problem{Code: registry.CodeLoadingFailed, Msg: "model-00002-of-00005.safetensors is not what it was.", Failure: &registry.Failure{Kind: registry.FailureCorruptFile, Msg: "model-00002-of-00005.safetensors is not what it was: it is sha256 1f3a… instead of 9b2c…", Hint: "Delete revision " + commit[:12] + " and fetch it again; if that comes back, test the disk and the memory of this machine."}}}, Now)
	damaged.Files.Last = &bad
	add("files-damaged", damaged)

	newer := idle()
	newer.Files.Known = present(qwen)
	newer.Files.Known.Fetched = older
	add("files-older", newer)

	changed := modelPage(smol, registry.Runtime{})
	changed.Files.Known = known(smol, "sha256:f9c3d1a0b1c2d3e4f5", []registry.File{{Path: "SmolLM2-135M-Instruct.Q4_1.gguf", Size: 94 * mib}})
	changed.Files.Known.Changed = "SmolLM2-135M-Instruct.Q4_1.gguf has 101 MiB instead of 94 MiB"
	add("files-changed", changed)

	gone := idle()
	gone.Files.Known = &registry.ModelArtifact{Source: registry.SourceHuggingFace, Requested: "main", Problem: &registry.Problem{Code: registry.CodeLoadingFailed, Msg: "The repository is gated: the Hub refused the files without a token.",
		Failure: &registry.Failure{Kind: registry.FailureGated, Hint: "Accept the terms on the model's page at the Hub, store a token as a secret and choose it in the model's settings."}}}
	add("files-gated", gone)
	return out
}

func storedThings() registry.Storage {
	hub := func(path, revision string, names []string, bytes, own float64, models []string, used time.Duration, busy bool) registry.StoredArtifact {
		return registry.StoredArtifact{Source: registry.SourceHuggingFace, Path: path, Revision: revision, Names: names, Folder: "/srv/cache/hub", Files: 12, Bytes: gb(bytes), Own: gb(own), UsedAt: before(used), Models: models, InUse: busy}
	}
	st := registry.Storage{
		Artifacts: []registry.StoredArtifact{
			hub("meta-llama/Llama-3.3-70B-Instruct", commit, []string{"main"}, 131.4, 131.4, []string{"meta-llama/Llama-3.3-70B-Instruct"}, 26*time.Hour, false),
			hub("Qwen/Qwen3-8B", commit, []string{"main"}, 15.3, 4.1, []string{"qwen3-8b"}, 2*time.Minute, true),
			hub("Qwen/Qwen3-8B", older, nil, 15.3, 4.1, nil, 40*24*time.Hour, false),
			hub("mistralai/Mixtral-8x7B-Instruct-v0.1", older, []string{"main"}, 86.9, 86.9, nil, 75*24*time.Hour, false),
			{Source: registry.SourceS3, Path: "s3://models/bge-m3", Revision: "sha256:9f8e7d6c5b4a", Folder: "/var/lib/llmm/s3", Files: 6, Bytes: gb(2.3), Own: gb(2.3), UsedAt: before(9 * time.Second), Models: []string{"bge-m3", "bge-m3-cpu"}, InUse: true},
			{Source: registry.SourceHuggingFace, Path: "unsloth/Qwen3-30B-A3B-GGUF", Folder: "/srv/cache/hub", Partial: gb(6.1), ModifiedAt: before(20 * time.Minute)},
			{Source: registry.SourceHuggingFace, Path: "google/gemma-3-27b-it", Revision: older, Names: []string{"main"}, Folder: "/srv/cache/hub", Files: 4, Bytes: gb(8.6), Own: gb(8.6), Partial: gb(3.2), Missing: gb(39.3), Incomplete: true, ModifiedAt: before(2 * time.Hour), Models: []string{"gemma-27b"}},
			{Source: registry.SourceOllama, Path: "llama3.2:3b", Revision: "sha256:0123456789abcdef", Folder: "/var/lib/llmm/ollama", Files: 5, Bytes: gb(1.9), Own: gb(1.9), UsedAt: before(3 * time.Hour), Models: []string{"llama3.2"}},
		},
		Disks:   []registry.Disk{{Path: "/", Total: gb(220), Free: gb(142)}, {Path: "/srv", Total: gb(931), Free: gb(402)}},
		Bytes:   gb(240.8),
		Partial: gb(6.1), Unused: gb(91),
	}
	return st
}

func storagePage(admin bool, change func(*registry.Storage)) view.Storage {
	st := storedThings()
	if change != nil {
		change(&st)
	}
	in := view.StorageInput{Storage: st, Hidden: make([]bool, len(st.Artifacts)), Can: make([]bool, len(st.Artifacts)), Verify: make([]string, len(st.Artifacts)), Now: Now}
	for i, a := range st.Artifacts {
		if in.Can[i] = admin; admin && len(a.Models) > 0 && !a.InUse && !a.Incomplete {
			in.Verify[i] = a.Models[0]
		}
	}
	v := view.StorageOf(in)
	v.Page = page("Storage", "storage", view.LiveURL("storage"))
	v.Can.Manage = admin
	v.Retention = map[string]string{"unused_for": "30", "partial_for": "2"}
	v.Limits = map[string]string{"total": "200", "huggingface": "80"}
	v.Roots = registry.RootFolders{Folders: []string{"/srv/models"}, From: "settings"}
	v.RootsText = "/srv/models"
	return v
}

func storage() []Story {
	dry := storagePage(true, nil)
	dry.Dry = true
	dry.DryRun = []registry.RetentionItem{
		{Source: registry.SourceHuggingFace, Path: "mistralai/Mixtral-8x7B-Instruct-v0.1", Revision: older, Freed: gb(86.9), Why: "unused for 75 days"},
		{Source: registry.SourceHuggingFace, Path: "Qwen/Qwen3-8B", Revision: older, Freed: gb(4.1), Why: "unused for 40 days"},
		{Source: registry.SourceHuggingFace, Path: "unsloth/Qwen3-30B-A3B-GGUF", Freed: gb(6.1), Why: "unfinished, and has not grown for 3 days"},
	}
	wrong := storagePage(true, nil)
	wrong.Retention["unused_for"], wrong.Errors["retention.unused_for"] = "soon", "It must be a number that is not negative, or empty."
	wrong.Limits["s3"], wrong.Errors["limits.s3"] = "-4", "It must be a number that is not negative, or empty."
	wrong.RootsText, wrong.Errors["roots"] = "models\n/srv/models", "Models must be an absolute path, such as /srv/models."
	wrong.Problems = []string{"What ollama keeps could not be listed: /var/lib/llmm/ollama may not be read. Give the server the right to, or name another folder with OLLAMA_MODELS."}
	empty := storagePage(true, func(st *registry.Storage) {
		st.Artifacts, st.Bytes, st.Partial, st.Unused = nil, 0, 0, 0
		st.Disks = st.Disks[:1]
	})
	all := storagePage(true, nil)
	find := func(f func(view.Stored) bool) view.Stored {
		for _, r := range all.Rows {
			if f(r) {
				return r
			}
		}
		return all.Rows[0]
	}
	free := find(func(r view.Stored) bool { return len(r.Models) == 1 && !r.InUse })
	busy := find(func(r view.Stored) bool { return r.InUse })
	return []Story{
		{"storage", pages.Storage(all)}, {"storage-viewer", pages.Storage(storagePage(false, nil))}, {"storage-dry-run", pages.Storage(dry)},
		{"storage-refused", pages.Storage(wrong)}, {"storage-empty", pages.Storage(empty)},
		{"storage-delete", pages.StorageDelete(page("Delete", "storage", ""), free)}, {"storage-in-use", pages.StorageDelete(page("Delete", "storage", ""), busy)},
	}
}

func hostileStorage(long string) view.Storage {
	return storagePage(true, func(st *registry.Storage) {
		st.Artifacts[0].Path, st.Artifacts[0].Models, st.Artifacts[0].Names = Hostile, []string{Hostile}, []string{Hostile}
		st.Artifacts[1].Path, st.Artifacts[1].Models = long, []string{long}
		st.Problems = []string{Hostile}
	})
}

func secretList() []registry.Secret {
	return []registry.Secret{
		{Name: "hub", Team: "default", UpdatedAt: before(12 * 24 * time.Hour), UpdatedBy: "asha", UsedBy: []string{"meta-llama/Llama-3.1-8B-Instruct", "google/gemma-3-270m", "org/three", "org/four", "org/five"}},
		{Name: "minio-id", Team: "", UpdatedAt: before(3 * time.Hour), UpdatedBy: "asha", UsedBy: []string{"house/reranker"}},
		{Name: "minio-key", Team: "", UpdatedAt: before(3 * time.Hour), UpdatedBy: "asha"},
	}
}

func secrets() []Story {
	v := view.Secrets{Page: page("Secrets", "secrets", ""), Teams: []string{"default", "research"}, Every: true}
	for _, s := range secretList() {
		v.Secrets = append(v.Secrets, view.Secret{Secret: s, Can: true})
	}
	empty := v
	empty.Secrets = nil
	refused := v
	refused.Values = map[string]string{"name": "my secret", "team": "research"}
	refused.Errors = map[string]string{"name": "The name must be 1 to 64 letters, digits and . _ -, and begin with a letter or digit.", "value": "The value is required."}
	member := v
	member.Teams, member.Every = nil, false
	member.Secrets = append([]view.Secret(nil), v.Secrets...)
	for i := range member.Secrets {
		member.Secrets[i].Can = false
	}
	ask, unused := v, v
	ask.Ask, unused.Ask = &v.Secrets[0], &v.Secrets[2]
	long := member
	long.Secrets = append([]view.Secret{{Secret: registry.Secret{Name: strings.Repeat("x", 64), Team: strings.Repeat("long-team-", 5), UpdatedAt: before(time.Hour), UpdatedBy: Hostile}}}, member.Secrets...)
	return []Story{{"secrets", pages.Secrets(v)}, {"secrets-empty", pages.Secrets(empty)}, {"secrets-refused", pages.Secrets(refused)}, {"secrets-member", pages.Secrets(member)}, {"secrets-delete", pages.Secrets(ask)}, {"secrets-delete-unused", pages.Secrets(unused)}, {"secrets-long", pages.Secrets(long)}}
}
