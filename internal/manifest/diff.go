package manifest

import (
	"maps"
	"reflect"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ChangeKind says what importing an entry would do.
type ChangeKind string

// The kinds of change.
const (
	ChangeAdded     ChangeKind = "added"
	ChangeChanged   ChangeKind = "changed"
	ChangeUnchanged ChangeKind = "unchanged"
	ChangeMissing   ChangeKind = "missing" // registered, but not in the document; Diff cannot see these, its caller can
)

// Change is what importing one entry would do to the registry.
type Change struct {
	ModelID string        `json:"model_id"`
	Kind    ChangeKind    `json:"kind"`
	Fields  []FieldChange `json:"fields,omitempty"` // those that differ, in the guide's order; all that are given when added
	Team    string        `json:"team"`             // that owns the model after the import
}

// FieldChange is one field before and after. nil is "not given, or at its default". Secrets are redacted on both
// sides, so a secret that changed shows the same text twice.
type FieldChange struct {
	Name string `json:"name"`
	Old  any    `json:"old"`
	New  any    `json:"new"`
}

// Diff says what importing doc would change, in the document's order. current returns the registered model of an
// id. A secret that reads "[redacted]" in the document stands for the one that is stored, as in the forms.
func Diff(doc *Document, current func(id string) (registry.Record, bool)) []Change {
	out := make([]Change, 0, len(doc.Entries))
	for _, e := range doc.Entries {
		m := e.Model
		c := Change{ModelID: m.ModelID, Kind: ChangeAdded, Team: m.Team}
		var old registry.Model
		if rec, ok := current(m.ModelID); ok {
			old, c.Kind = rec.Model, ChangeUnchanged
			m.CustomLoaderParams = registry.KeepSecrets(m.CustomLoaderParams, old.CustomLoaderParams)
		}
		before, after := encode(old), encode(m)
		if c.Kind == ChangeUnchanged && sameValues(before, after) {
			out = append(out, c)
			continue
		}
		if c.Kind == ChangeUnchanged {
			c.Kind = ChangeChanged
		}
		shownBefore, shownAfter := encode(old.Redacted()), encode(m.Redacted())
		for _, f := range registry.Fields {
			if !reflect.DeepEqual(before[f.Name], after[f.Name]) {
				c.Fields = append(c.Fields, FieldChange{Name: f.Name, Old: shownBefore[f.Name], New: shownAfter[f.Name]})
			}
		}
		out = append(out, c)
	}
	return out
}

func sameValues(a, b map[string]any) bool {
	return maps.EqualFunc(a, b, reflect.DeepEqual)
}
