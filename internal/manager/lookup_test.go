package manager

import (
	"fmt"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestSecrets(t *testing.T) {
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	t.Setenv("LLMM_SECRET_FROM_ENV", "env-value")
	t.Setenv("SOME_OTHER", "must not be read")
	put := func(team, name, value string) {
		t.Helper()
		if _, err := r.PutSecret(r.ctx(), registry.Secret{Name: name, Team: team, UpdatedBy: "ada"}, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.store.EnsureTeam(r.ctx(), "vision"); err != nil {
		t.Fatal(err)
	}
	put("", "hub", "for-all")
	put("vision", "hub", "for-vision")
	put("vision", "own", "vision-only")
	with := func(team string, params map[string]any) (registry.Model, error) {
		return r.withSecrets(r.ctx(), registry.Model{Team: team, CustomLoaderParams: params})
	}
	for _, c := range []struct {
		team, value string
		want        string // "" is refused
	}{
		{"default", "secret:hub", "for-all"}, {"vision", "secret:hub", "for-vision"}, {"", "secret:hub", "for-all"},
		{"vision", "secret:own", "vision-only"}, {"default", "secret:own", ""},
		{"default", "secret:from-env", "env-value"}, {"default", "secret:from.env", "env-value"},
		{"default", "secret:SOME_OTHER", ""}, {"default", "secret:../../etc", ""}, {"default", "secret:", ""},
		{"default", "plain", "plain"},
	} {
		m, err := with(c.team, map[string]any{"auth_token": c.value})
		if c.want == "" {
			e := registry.AsError(err)
			if registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params.auth_token" {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || m.CustomLoaderParams["auth_token"] != c.want {
			t.Errorf("%+v: %v %v", c, m.CustomLoaderParams, err)
		}
	}
	// Only where a secret belongs, at any depth; what was given is not changed.
	in := map[string]any{"note": "secret:hub", "headers": []any{map[string]any{"authorization": "secret:hub"}}}
	m, err := with("default", in)
	if err != nil || m.CustomLoaderParams["note"] != "secret:hub" || m.CustomLoaderParams["headers"].([]any)[0].(map[string]any)["authorization"] != "for-all" {
		t.Errorf("%v %v", m.CustomLoaderParams, err)
	}
	if in["headers"].([]any)[0].(map[string]any)["authorization"] != "secret:hub" {
		t.Error("the value was put into the model itself")
	}

	// The source is given the value; nothing that is stored, shown or exported is.
	r.fetchable("m", "org/m", func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"auth_token": "secret:hub"} })
	r.ready("m")
	if got := d.Params("org/m")["auth_token"]; got != "for-all" {
		t.Errorf("the source was given %v", got)
	}
	var b strings.Builder
	if err := r.Export(r.ctx(), &b, nil); err != nil || !strings.Contains(b.String(), "secret:hub") || strings.Contains(b.String(), "for-all") {
		t.Errorf("%v\n%s", err, b.String())
	}
	if rec, err := r.store.Model(r.ctx(), "m"); err != nil || rec.CustomLoaderParams["auth_token"] != "secret:hub" {
		t.Errorf("%v %v", rec.CustomLoaderParams, err)
	}
	r.fetchable("lost", "org/lost", func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"auth_token": "secret:none"} })
	if got := r.end(r.mustFetch("lost"), registry.OperationFailed); got.Error.Code != registry.CodeInvalid || len(got.Error.Fields) != 1 {
		t.Errorf("%+v", got.Error)
	}

	for name, bad := range map[string]struct{ name, value string }{"name": {"a/b", "x"}, "empty": {"a", ""}, "long": {"a", strings.Repeat("x", maxSecret+1)}} {
		if _, err := r.PutSecret(r.ctx(), registry.Secret{Name: bad.name}, bad.value); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.DeleteSecret(r.ctx(), "", "own", false); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("%v", err)
	}
	if err := r.DeleteSecret(r.ctx(), "vision", "own", false); err != nil {
		t.Error(err)
	}
}

func TestLookUp(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	l, err := r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "many/quants", Engine: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	if m := l.Model; m.ModelID != "many/quants" || m.ModelFormat != registry.FormatGGUF || m.CustomLoaderParams["quantization"] != "Q4_K_M" || m.Revision != "main" || m.Team != "default" {
		t.Errorf("%+v", m)
	}
	if l.Revision != "r1" || l.Facts.Parameters != 42 || len(l.Offers) != 2 || l.Plan == nil || l.Plan.Verdict != registry.VerdictFits || l.Requests != 2 || l.Read != 300 || l.Bytes == 0 || l.OnDisk != 0 {
		t.Errorf("%+v", l)
	}
	if n, err := r.store.CountModels(r.ctx()); err != nil || n != 0 {
		t.Errorf("a look-up registered something: %d %v", n, err)
	}
	if n := d.Fetches("many/quants"); n != 0 {
		t.Error("a look-up fetched something")
	}
	// What it answers can be registered; the next one gets another id. A choice is kept.
	if _, _, err := r.Register(r.ctx(), l.Model, PutOptions{Actor: "ada"}); err != nil {
		t.Fatal(err)
	}
	l, err = r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "many/quants", CustomLoaderParams: map[string]any{"quantization": "q8_0"}})
	if err != nil || l.Model.ModelID != "many/quants-Q8_0" || l.Model.CustomLoaderParams["quantization"] != "q8_0" {
		t.Errorf("%+v %v", l.Model, err)
	}
	l, err = r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceLocal, SourcePath: r.weights()})
	if err != nil || l.Model.ModelID != "weights" || l.Model.ModelFormat != registry.FormatGGUF || l.Facts.Architecture == "" {
		t.Errorf("%+v %v", l, err)
	}
	for name, c := range map[string]struct {
		m     registry.Model
		field string
	}{
		"no path":   {registry.Model{SourceType: registry.SourceLocal}, "source_path"},
		"no source": {registry.Model{SourcePath: "/x"}, "source_type"},
		"its rules": {registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "bad/name"}, "source_path"},
	} {
		_, err := r.LookUp(r.ctx(), c.m)
		if e := registry.AsError(err); registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) == 0 || e.Fields[0].Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A gated model: everything that everybody may know, and why there is no more.
	d.Fail("org/gated", &registry.Error{Code: registry.CodeLoadingFailed, Msg: "It is gated", Failure: &registry.Failure{Kind: registry.FailureGated, Hint: "Accept the terms"}})
	l, err = r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "org/gated", Engine: "fake"})
	if registry.CodeOf(err) != registry.CodeLoadingFailed || l.Problem == nil || l.Problem.Failure.Hint == "" {
		t.Errorf("%+v %v", l.Problem, err)
	}
	if l.Model.ModelID != "org/gated" || l.Model.ModelFormat != registry.FormatGGUF || l.Revision == "" || len(l.Files) != 1 || l.Bytes == 0 || !l.Facts.Gated || l.Facts.Licence == "" || l.Plan == nil || len(l.Facts.Notes) == 0 {
		t.Errorf("%+v", l)
	}
	d.Fail("org/none", registry.Errorf(registry.CodeNotFound, "nothing there"))
	if _, err := r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "org/none"}); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("%v", err)
	}
	if _, err := r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceExternal, SourcePath: "http://x"}); registry.CodeOf(err) != registry.CodeUnsupported {
		t.Errorf("%v", err)
	}
}

func TestSuggestedID(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		source registry.SourceType
		path   string
		want   string
	}{
		{registry.SourceHuggingFace, "org/name", "org/name"}, {registry.SourceHuggingFace, "hf://org/name", "org/name"},
		{registry.SourceLocal, "/srv/models/Llama 3.gguf", "Llama-3"}, {registry.SourceLocal, "/", "model"},
		{registry.SourceS3, "s3://bucket/models/qwen3/", "qwen3"}, {registry.SourceOllama, "llama3.2:3b", "llama3.2:3b"},
		{registry.SourceHuggingFace, strings.Repeat("x", 300), "model"},
	} {
		got := suggestedID(registry.Model{SourceType: c.source, SourcePath: c.path})
		if got != c.want || registry.ValidateModelID(got) != nil {
			t.Errorf("%s %s: %q, want %q", c.source, c.path, got, c.want)
		}
	}
}

// TestAddresses: an address is stored as what it names, however it comes in.
func TestAddresses(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	const address = "https://depot.example/org/pasted@v2"
	l, err := r.LookUp(r.ctx(), registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: address})
	if err != nil || l.Model.SourcePath != "org/pasted" || l.Model.Revision != "v2" || l.Model.ModelID != "org/pasted" {
		t.Errorf("%+v %v", l.Model, err)
	}
	rec := r.fetchable("pasted", address)
	if rec.SourcePath != "org/pasted" || rec.Revision != "v2" {
		t.Errorf("stored: %+v", rec.Model)
	}
	yaml := "models:\n- {model_id: pasted, source_type: huggingface, source_path: '" + address + "', model_format: gguf, engine: fake, required_ram_mb: 32}\n"
	doc, err := manifest.Parse([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		res, err := r.Import(r.ctx(), doc, PutOptions{Actor: "ada", Persist: true}, dry, nil)
		if err != nil || len(res.Unchanged) != 1 || len(res.Issues) != 0 {
			t.Errorf("dry %v: %+v %v", dry, res, err)
		}
	}
	_, _, err = r.Register(r.ctx(), registry.Model{ModelID: "x", SourceType: registry.SourceHuggingFace, SourcePath: "https://ada:hf_verysecret@depot.example/org/x", ModelFormat: registry.FormatGGUF}, PutOptions{Actor: "ada"})
	if registry.CodeOf(err) != registry.CodeInvalid || strings.Contains(fmt.Sprint(err, registry.AsError(err).Fields), "verysecret") {
		t.Errorf("with a password: %v", err)
	}
}
