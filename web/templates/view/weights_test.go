package view

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestParamsWithFieldsOfTheirOwn: what a form lifts out of the parameters comes back where it was.
func TestParamsWithFieldsOfTheirOwn(t *testing.T) {
	params := map[string]any{"auth_token": "secret:hub", "quantization": "Q4_K_M", "threads": int64(8)}
	m := registry.Model{ModelID: "a", SourceType: registry.SourceHuggingFace, SourcePath: "org/a", ModelFormat: registry.FormatGGUF, CustomLoaderParams: params}.WithDefaults()
	f := FormOf(registry.Record{Model: m})
	if f.Values["param.auth_token"] != "secret:hub" || f.Values["custom_loader_params"] != "threads: 8" || f.Offered != "huggingface:org/a" {
		t.Fatalf("lifted: %v, offered at %q", f.Values, f.Offered)
	}
	in := url.Values{"offered": {f.Offered}}
	for k, v := range f.Values {
		in.Set(k, v)
	}
	back, _, errs := DecodeForm(in)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	got, ferrs := registry.Decode(back)
	if len(ferrs) > 0 || cmp.Diff(params, got.CustomLoaderParams) != "" {
		t.Errorf("%v %s", ferrs, cmp.Diff(params, got.CustomLoaderParams))
	}
	// A secret that was typed stays where it was typed, redacted.
	m.CustomLoaderParams = map[string]any{"auth_token": "hf_typed"}
	typed := FormOf(registry.Record{Model: m})
	if typed.Values["param.auth_token"] != "" || !strings.Contains(typed.Values["custom_loader_params"], registry.Redaction) {
		t.Errorf("a typed secret: %v", typed.Values)
	}
	if left := OtherParams(m); left["auth_token"] != "hf_typed" {
		t.Errorf("what a look needs is lost: %v", left)
	}
}

func TestParamsGivenTwiceOrElsewhere(t *testing.T) {
	in := func(pairs ...string) url.Values {
		v := url.Values{"source_type": {"huggingface"}, "source_path": {"org/a"}}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	offer := "model_format=gguf&quantization=Q8_0"
	for name, c := range map[string]struct {
		in     url.Values
		params map[string]any
		format any
		wrong  string
	}{
		"chosen":                     {in("offer", offer, "offered", "huggingface:org/a"), map[string]any{"quantization": "Q8_0"}, "gguf", ""},
		"chosen at another path":     {in("offer", offer, "offered", "huggingface:org/b"), nil, nil, ""},
		"chosen and typed alike":     {in("offer", offer, "offered", "huggingface:org/a", "custom_loader_params", "quantization: Q8_0"), map[string]any{"quantization": "Q8_0"}, "gguf", ""},
		"chosen and typed":           {in("offer", offer, "offered", "huggingface:org/a", "custom_loader_params", "quantization: Q2_K"), map[string]any{"quantization": "Q2_K"}, "gguf", "custom_loader_params"},
		"another format was chosen":  {in("offer", offer, "offered", "huggingface:org/a", "model_format", "safetensors"), nil, "safetensors", ""},
		"another format filled in":   {in("offer", offer, "offered", "huggingface:org/a", "model_format", "safetensors", "filled_model_format", "safetensors"), map[string]any{"quantization": "Q8_0"}, "gguf", ""},
		"filled in for another path": {in("model_format", "onnx", "filled_model_format", "onnx", "offered", "huggingface:org/b"), nil, nil, ""},
		"a raw secret":               {in("param.auth_token", "hf_raw"), nil, nil, "custom_loader_params.auth_token"},
		"a field of another source":  {in("param.endpoint_url", "https://x"), nil, nil, ""},
		"an offer of nonsense":       {in("offer", "%zz", "offered", "huggingface:org/a"), nil, nil, ""},
		"an offer with other names":  {in("offer", offer+"&auth_token=x&threads=1", "offered", "huggingface:org/a"), map[string]any{"quantization": "Q8_0"}, "gguf", ""},
	} {
		m, _, errs := DecodeForm(c.in)
		got, _ := m["custom_loader_params"].(map[string]any)
		if cmp.Diff(c.params, got) != "" || m["model_format"] != c.format {
			t.Errorf("%s: %v, %v", name, m["model_format"], got)
		}
		if (len(errs) == 1) != (c.wrong != "") || (c.wrong != "" && errs[0].Field != c.wrong) {
			t.Errorf("%s: %v", name, errs)
		}
	}
}

func FuzzDecodeForm(f *testing.F) {
	f.Add("source_type=huggingface&source_path=org/a&offer=model_format%3Dgguf%26quantization%3DQ8_0&offered=huggingface:org/a")
	f.Add("source_type=s3&source_path=s3://b/c&param.endpoint_url=https://x&param.access_key_id=secret:id&filled_model_id=x&model_id=x")
	f.Add("custom_loader_params=quantization: 4\nauth_token: x&param.auth_token=secret:hub&source_type=ollama")
	f.Fuzz(func(t *testing.T, raw string) {
		in, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		m, form, errs := DecodeForm(in)
		if len(errs) > 0 {
			return
		}
		params, _ := m["custom_loader_params"].(map[string]any)
		for _, p := range SourceParams {
			v, _ := params[p.Name].(string)
			if p.Secret && form.Values[p.Field()] != "" && p.Of(form.Values["source_type"]) && !registry.IsReference(v) {
				t.Errorf("%s is %q, which names no secret", p.Name, v)
			}
		}
		_, _ = registry.Decode(m)
	})
}

func TestStorageBars(t *testing.T) {
	const gib = int64(1) << 30
	now := time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)
	st := registry.Storage{
		Disks: []registry.Disk{{Path: "/", Total: 100 * gib, Free: 40 * gib}, {Path: "/srv", Total: 200 * gib, Free: 100 * gib}},
		Artifacts: []registry.StoredArtifact{
			{Source: registry.SourceHuggingFace, Path: "org/a", Revision: "new", Folder: "/srv/hub", Bytes: 20 * gib, Own: 15 * gib, Models: []string{"a"}},
			{Source: registry.SourceHuggingFace, Path: "org/a", Revision: "old", Folder: "/srv/hub", Bytes: 20 * gib, Own: 15 * gib},
			{Source: registry.SourceS3, Path: "s3://b/c", Revision: "x", Folder: "/srvother/s3", Bytes: 10 * gib, Own: 10 * gib, Models: []string{"theirs"}},
			{Source: registry.SourceHuggingFace, Path: "org/p", Folder: "/srv/hub", Partial: 3 * gib},
		},
	}
	v := StorageOf(StorageInput{Storage: st, Hidden: []bool{false, false, true, false}, Can: []bool{true, true, true, true}, Now: now})
	if len(v.Disks) != 2 {
		t.Fatalf("%d disks", len(v.Disks))
	}
	if got, want := v.Disks[1].Sentence(), "100 GiB of 200 GiB used: org/a · 15 GiB, shared by revisions · 5 GiB, unused · 15 GiB, unfinished downloads · 3 GiB, other files · 62 GiB, free · 100 GiB"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got, want := v.Disks[0].Sentence(), "60 GiB of 100 GiB used: weights of other teams · 10 GiB, other files · 50 GiB, free · 40 GiB"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	var order []string
	for _, r := range v.Rows {
		order = append(order, r.Path+"@"+r.Revision)
		if (r.Revision == "" || r.Hidden) && r.Can {
			t.Errorf("%s may be deleted", r.ID())
		}
	}
	if got := strings.Join(order, " "); got != "org/a@new org/a@old s3://b/c@x org/p@" {
		t.Errorf("order: %s", got)
	}
	sum := 0.0
	for _, s := range v.Disks[1].Segments {
		sum += s.W
	}
	if sum < 49.9 || sum > 50.1 {
		t.Errorf("the bar shows %.1f%%, half is used", sum)
	}
}

func TestDeletionSays(t *testing.T) {
	s := Stored{StoredArtifact: registry.StoredArtifact{Source: registry.SourceHuggingFace, Path: "org/a", Revision: "new", Bytes: 20 << 30, Own: 15 << 30, Models: []string{"a"}}}
	if got, want := s.DeleteSays(), "15 GiB come back. 5 GiB stay, since other revisions use them. a stays registered and fetches 15 GiB again when it is loaded. Python programs that share this cache lose it, too."; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	s.Source, s.Models, s.Own = registry.SourceS3, nil, s.Bytes
	if got, want := s.DeleteSays(), "20 GiB come back. No model is registered with it."; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestOneDiskOfSeveralFolders: folders on one disk are one bar, which names all of them.
func TestOneDiskOfSeveralFolders(t *testing.T) {
	st := registry.Storage{Disks: []registry.Disk{{Path: "/data", Total: 100, Free: 40}, {Path: "/cache", Total: 100, Free: 40}, {Path: "/other", Total: 200, Free: 40}, {Path: "/data", Total: 100, Free: 40}}}
	v := StorageOf(StorageInput{Storage: st, Now: time.Now()})
	if len(v.Disks) != 2 || v.Disks[0].Name != "/data and /cache" || v.Disks[1].Name != "/other" {
		t.Errorf("%+v", v.Disks)
	}
}

// TestIncompleteRow: a revision that is not whole says so, and what deleting it brings back.
func TestIncompleteRow(t *testing.T) {
	a := registry.StoredArtifact{Source: registry.SourceHuggingFace, Path: "org/m", Revision: "abc", Files: 2, Bytes: 1 << 20, Own: 1 << 20, Partial: 2 << 20, Missing: 3 << 20, Incomplete: true, Models: []string{"m"}}
	v := StorageOf(StorageInput{Storage: registry.Storage{Artifacts: []registry.StoredArtifact{a}}, Hidden: []bool{false}, Can: []bool{true}, Verify: []string{""}, Now: time.Now()})
	r := v.Rows[0]
	if r.Use().Label != "Incomplete" || !strings.Contains(r.Sub(), "3 MiB missing") || r.Frees() != 3<<20 || !r.Can {
		t.Errorf("%+v %q", r.Use(), r.Sub())
	}
	if says := r.DeleteSays(); !strings.Contains(says, "3 MiB come back") || !strings.Contains(says, "begins anew") {
		t.Error(says)
	}
}

// TestCheckedSays: files whose source keeps no checksum do not pass for verified.
func TestCheckedSays(t *testing.T) {
	some := []registry.File{{Path: "a"}, {Path: "b", Unsummed: true}}
	if got := checked(some[:1]); got != "and verified" {
		t.Error(got)
	}
	if got := checked(some); !strings.Contains(got, "of 1 file only size and ETag") {
		t.Error(got)
	}
	if got := checked(some[1:]); !strings.Contains(got, "only size and ETag checked") {
		t.Error(got)
	}
}
