package manifest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestDiff(t *testing.T) {
	secret := func(token string) map[string]any { return map[string]any{"auth_token": token, "threads": int64(4)} }
	stored := map[string]registry.Model{
		"tiny-bert": tinyBert(),
		"a":         with(small("a"), func(m *registry.Model) { m.CustomLoaderParams, m.Tags = secret("hf_OLD"), []string{"x"} }),
		"b":         with(small("b"), func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"auth_token": "hf_OLD", "threads": 4.0} }),
		"c":         with(small("c"), func(m *registry.Model) { m.CustomLoaderParams = secret("hf_OLD") }),
	}
	doc := &Document{Entries: []Entry{
		{Model: tinyBert()},
		{Model: with(small("a"), func(m *registry.Model) { m.CustomLoaderParams, m.Pinned = secret("hf_NEW"), true })},
		{Model: with(small("b"), func(m *registry.Model) { m.CustomLoaderParams = secret(registry.Redaction) })},
		{Model: with(small("c"), func(m *registry.Model) { m.DevicePreference = "cpu" })},
		{Model: with(small("new"), func(m *registry.Model) { m.Team = "vision" })},
	}}
	got := Diff(doc, func(id string) (registry.Record, bool) {
		m, ok := stored[id]
		return registry.Record{Model: m}, ok
	})
	hidden := map[string]any{"auth_token": registry.Redaction, "threads": int64(4)}
	want := []Change{
		{ModelID: "tiny-bert", Kind: ChangeUnchanged, Team: "default"},
		{ModelID: "a", Kind: ChangeChanged, Team: "default", Fields: []FieldChange{
			{"custom_loader_params", hidden, hidden}, {"tags", []any{"x"}, nil}, {"pinned", nil, true}}},
		{ModelID: "b", Kind: ChangeUnchanged, Team: "default"},
		{ModelID: "c", Kind: ChangeChanged, Team: "default", Fields: []FieldChange{{"device_preference", nil, "cpu"}, {"custom_loader_params", hidden, nil}}},
		{ModelID: "new", Kind: ChangeAdded, Team: "vision", Fields: []FieldChange{
			{"model_id", nil, "new"}, {"source_type", nil, "local"}, {"source_path", nil, "/m/new"}, {"model_format", nil, "gguf"}, {"team", nil, "vision"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if s := fmt.Sprintf("%+v", got); strings.Contains(s, "hf_") {
		t.Errorf("a secret: %s", s)
	}
}
