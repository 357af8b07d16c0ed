package manifest

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func seeds(f *testing.F) []string {
	shipped, err := os.ReadFile("../../models.yaml")
	if err != nil {
		f.Fatal(err)
	}
	return []string{string(shipped), guide, lived, "", "models: []", "models:\n- {model_id: a, " + good + "}\n", "{\"models\": [{\"model_id\": \"a\"}]}",
		"x-a: &a {source_type: local}\nmodels:\n- <<: *a\n  model_id: &i b\n- *a\n", "\ufeff---\r\nmodels:\r\n-\r\n  model_id: x\r\n...\r\n"}
}

func FuzzParse(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b)
		if err != nil {
			var e *registry.Error
			if d != nil || !errors.As(err, &e) || e.Code != registry.CodeInvalid || !e.Malformed {
				t.Fatalf("%v is no clear error", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, e := range d.Entries {
			id := strings.ToLower(e.Model.ModelID)
			if seen[id] || e.Line < 1 || e.Column < 1 {
				t.Fatalf("entry %+v", e)
			}
			seen[id] = true
			if errs := registry.Validate(e.Model); len(errs) > 0 {
				t.Fatalf("a good entry is not valid: %v", errs)
			}
		}
		for _, fe := range d.Issues {
			if fe.Field == "" || fe.Msg == "" || (fe.Line < 1 && !strings.Contains(fe.Msg, "more problems")) {
				t.Fatalf("issue %+v", fe)
			}
		}
	})
}

func FuzzApply(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add([]byte(s), "tiny-bert", "/new", uint16(0b1010))
		f.Add([]byte(s), "a", "no", uint16(0b0101))
		f.Add([]byte(s), "c", "", uint16(0xffff))
	}
	f.Fuzz(func(t *testing.T, b []byte, id, text string, what uint16) {
		if registry.ValidateModelID(id) != nil || !cleanText(text) {
			return
		}
		x, err := newIndex(b)
		if err != nil {
			return
		}
		m := small(id)
		for i := range x.spans {
			if x.spans[i].id == id && !x.spans[i].bad && what&1 == 0 {
				m = x.spans[i].model
			}
		}
		e := del(id)
		if what&2 == 0 {
			e = put(with(m, func(m *registry.Model) {
				m.Description = text
				m.Pinned = what&4 != 0
				m.TrustRemoteCode = what&8 != 0
				if what&16 != 0 {
					m.Tags = []string{"a", "no"}
				}
				if what&32 != 0 {
					m.CustomLoaderParams = map[string]any{"k": text, "auth_token": int64(what)}
				}
				if what&64 != 0 {
					m.CustomLoaderParams, m.Tags, m.GPUIDs = nil, nil, nil
				}
			}))
		}
		ops, invalid := operations([]Edit{e})
		if len(invalid) > 0 {
			return
		}
		r, err := x.apply(ops)
		if err != nil {
			if c := registry.CodeOf(err); c != registry.CodeUnsupported && c != registry.CodeConflict && c != registry.CodeInvalid {
				t.Fatalf("no clear error: %v", err)
			}
			return
		}
		got := b
		if r != nil {
			got = r.b
		}
		after, err := parseTree(got)
		if err != nil {
			t.Fatalf("%v\n%q", err, got)
		}
		// The same entries as before, good and bad, but for the one that was edited.
		var want []span
		done := false
		for _, s := range x.spans {
			switch {
			case s.id != id:
				want = append(want, s)
			case e.Delete != "":
			case len(want) == len(x.spans[:x.target(id)]) && !done:
				want, done = append(want, span{id: id, model: ops[0].model}), true
			default:
				want = append(want, s)
			}
		}
		if e.Delete == "" && !done {
			want = append(want, span{id: id, model: ops[0].model})
		}
		if !slices.EqualFunc(after.items, want, func(it item, s span) bool { return it.is(s) }) {
			t.Fatalf("%v\nbefore:\n%s\nafter:\n%s", ops[0].fields, b, got)
		}
		if r != nil {
			remembered(t, x, r)
		}
	})
}
