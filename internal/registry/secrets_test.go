package registry_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestReplaceSecrets(t *testing.T) {
	in := map[string]any{
		"auth_token": "secret:hub", "tokens": "secret:hub", "n_ctx": int64(4), "plain_token": "abc", "api_key": "${HF_TOKEN}",
		"nested": map[string]any{"secret_access_key": "secret:s3"}, "list": []any{"secret:hub", map[string]any{"password": "secret:pw"}},
	}
	asked := map[string]string{}
	got, err := registry.ReplaceSecrets(in, func(field, name string) (string, error) {
		asked[field] = name
		return "value of " + name, nil
	})
	want := map[string]any{
		"auth_token": "value of hub", "tokens": "secret:hub", "n_ctx": int64(4), "plain_token": "abc", "api_key": "${HF_TOKEN}",
		"nested": map[string]any{"secret_access_key": "value of s3"}, "list": []any{"secret:hub", map[string]any{"password": "value of pw"}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	wantAsked := map[string]string{"custom_loader_params.auth_token": "hub", "custom_loader_params.nested.secret_access_key": "s3", "custom_loader_params.list.password": "pw"}
	if diff := cmp.Diff(wantAsked, asked); diff != "" {
		t.Error(diff)
	}
	if in["auth_token"] != "secret:hub" || in["nested"].(map[string]any)["secret_access_key"] != "secret:s3" {
		t.Error("what was given was changed")
	}
	boom := errors.New("boom")
	if _, err := registry.ReplaceSecrets(in, func(string, string) (string, error) { return "", boom }); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if got, err := registry.ReplaceSecrets(nil, nil); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
}

// A reference may be shown and exported; anything that only looks like one may not.
func TestReferencesAreNoSecrets(t *testing.T) {
	for value, shown := range map[string]bool{
		"secret:hub": true, "secret:my.key-2_b": true, "${HF_TOKEN}": true,
		"secret:": false, "secret:a b": false, "secret:a/b": false, " secret:hub": false, "secret:hub\nx": false, "hf_abc": false, "${HF-TOKEN}": false, "secret:-x": false,
	} {
		m := registry.Model{CustomLoaderParams: map[string]any{"auth_token": value}}.Redacted()
		if got := m.CustomLoaderParams["auth_token"] == value; got != shown || registry.IsReference(value) != shown {
			t.Errorf("%q is shown: %v, want %v", value, got, shown)
		}
		if name, ok := registry.SecretReference(value); ok && registry.IsReference(value) != (registry.ValidateSecretName(name) == nil) {
			t.Errorf("%q: a name that can be stored and a reference that can be shown differ", value)
		}
	}
}

func TestDecodeGaps(t *testing.T) {
	for name, c := range map[string]struct {
		in     map[string]any
		fields []string
	}{
		"gaps":         {map[string]any{"source_type": "huggingface", "source_path": "a/b"}, nil},
		"empty ones":   {map[string]any{"source_type": "huggingface", "source_path": "a/b", "model_id": "", "model_format": nil}, nil},
		"no path":      {map[string]any{"source_type": "huggingface"}, []string{"source_path"}},
		"bad format":   {map[string]any{"source_type": "huggingface", "source_path": "a/b", "model_format": "pt"}, []string{"model_format"}},
		"bad id":       {map[string]any{"source_type": "huggingface", "source_path": "a/b", "model_id": "a b"}, []string{"model_id"}},
		"unknown":      {map[string]any{"source_type": "huggingface", "source_path": "a/b", "x": 1}, []string{"x"}},
		"wrong format": {map[string]any{"source_type": "huggingface", "source_path": "a/b", "model_format": 1}, []string{"model_format"}},
	} {
		m, errs := registry.DecodeGaps(c.in)
		var fields []string
		for _, e := range errs {
			fields = append(fields, e.Field)
		}
		if diff := cmp.Diff(c.fields, fields); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if len(errs) == 0 && (m.Revision != "main" || m.Team != "default") {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// A fetch without a load shows as one, and does not hide what was decided about the registration.
func TestStatusOfAFetch(t *testing.T) {
	for _, c := range []struct {
		reg  registry.RegistrationState
		art  registry.ArtifactState
		want registry.Status
	}{
		{registry.RegistrationActive, registry.ArtifactFetching, registry.StatusFetching}, {"", registry.ArtifactVerifying, registry.StatusFetching},
		{"", registry.ArtifactResolving, registry.StatusNotLoaded}, {"", registry.ArtifactPresent, registry.StatusNotLoaded},
		{registry.RegistrationArchived, registry.ArtifactFetching, registry.StatusArchived},
	} {
		if got := registry.DeriveStatus(c.reg, c.art, registry.RuntimeStopped); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.reg, c.art, got, c.want)
		}
	}
	if !registry.OperationPaused.Resting() || registry.OperationPaused.Final() || registry.OperationRunning.Resting() || !registry.OperationFailed.Resting() {
		t.Error("paused rests and has not ended")
	}
}
