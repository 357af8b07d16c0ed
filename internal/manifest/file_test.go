package manifest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func put(m registry.Model) Edit { return Edit{Model: m} }

func del(id string) Edit { return Edit{Delete: id} }

func with(m registry.Model, change func(*registry.Model)) registry.Model {
	change(&m)
	return m
}

// applyAll makes all of the edits; it is an error if one is refused.
func applyAll(f *File, edits ...Edit) error {
	refused, err := f.Apply(edits)
	for _, r := range refused {
		err = errors.Join(err, r.Err)
	}
	return err
}

// fileWith makes a models file that holds text.
func fileWith(t *testing.T, text string) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "models.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func textOf(t *testing.T, f *File) string {
	t.Helper()
	b, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const bertLines = `  - model_id: "tiny-bert"
    source_type: "huggingface"
    source_path: "prajjwal1/bert-tiny"
    model_format: "transformers_pt"
    device_preference: "cpu"
    required_ram_mb: 200
    trust_remote_code: False
`

const xLines = `  - model_id: "x"
    source_type: "local"
    source_path: "/m/x"
    model_format: "gguf"
`

// A file as people write them: every style that the table below edits.
const lived = `# Our models
models:   # the list
- model_id: a   # first
  # where it is
  source_type: local
  source_path: '/m/a'
  model_format: gguf
  custom_loader_params: # for the engine
    threads: 4 # cores
    # keep this
    auth_token: hf_1
    nested: {k: v} # small
  tags:
  - one
  - "two" # second
  description: |
    # not a comment
    of two lines

  # revision: dev
# about b
-   {model_id: b, source_type: local, source_path: /m/b, model_format: gguf} # b in braces

- description: "goes
    # on
    # and on" # end
  model_id: "c"
  source_type: "local"
  "source_path": "/m/c"
  model_format: gguf
# the end
x-note: kept
`

func after(t *testing.T, s, sep string) string {
	t.Helper()
	_, rest, found := strings.Cut(s, sep)
	if !found {
		t.Fatalf("%q is not there", sep)
	}
	return rest
}

func livedA(t *testing.T) registry.Model {
	t.Helper()
	return mustParse(t, lived).Entries[0].Model
}

func TestApply(t *testing.T) {
	a := livedA(t)
	sub := func(text string, oldNew ...string) string {
		for i := 0; i < len(oldNew); i += 2 {
			if strings.Count(text, oldNew[i]) != 1 {
				t.Fatalf("%q is not there once", oldNew[i])
			}
			text = strings.Replace(text, oldNew[i], oldNew[i+1], 1)
		}
		return text
	}
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	params := func(change func(map[string]any)) registry.Model {
		return with(a, func(m *registry.Model) {
			p := map[string]any{}
			for k, v := range m.CustomLoaderParams {
				p[k] = v
			}
			change(p)
			m.CustomLoaderParams = p
		})
	}
	cMoved := with(small("c"), func(m *registry.Model) { m.SourcePath = "/new/c" })
	for name, c := range map[string]struct {
		in    string
		edits []Edit
		want  string
	}{
		"nothing to do":                 {guide, []Edit{put(tinyBert()), del("gone")}, guide},
		"append":                        {guide, []Edit{put(small("x"))}, guide + "\n" + xLines},
		"append two":                    {guide, []Edit{put(small("x")), put(small("x2"))}, guide + "\n" + xLines + "\n" + strings.ReplaceAll(xLines, "x\"", "x2\"")},
		"the last edit of an id wins":   {guide, []Edit{put(small("x")), del("x")}, guide},
		"into an empty file":            {"", []Edit{put(small("x"))}, "models:\n" + xLines},
		"into comments":                 {"# hello", []Edit{put(small("x"))}, "# hello\nmodels:\n" + xLines},
		"after a mark":                  {"\ufeff", []Edit{put(small("x"))}, "\ufeffmodels:\n" + xLines},
		"into models:":                  {"models: # none\n# end\n", []Edit{put(small("x"))}, "models: # none\n" + xLines + "# end\n"},
		"into models: []":               {"models: [] # none\nx-a: 1\n", []Edit{put(small("x"))}, "models: # none\n" + xLines + "x-a: 1\n"},
		"into models: ~":                {"models: ~", []Edit{put(small("x"))}, "models:\n" + xLines},
		"into models: with lines in []": {"models: [\n  # none yet\n]\n", []Edit{put(small("x"))}, "models:\n" + xLines},
		"without a final line end":      {strings.TrimSuffix(guide, "\n"), []Edit{put(small("x"))}, guide + "\n" + strings.TrimSuffix(xLines, "\n")},
		"with CRLF":                     {crlf(guide), []Edit{put(small("x"))}, crlf(guide + "\n" + xLines)},
		"before a document's end":       {"---\n" + guide + "...\n", []Edit{put(small("x"))}, "---\n" + guide + "\n" + xLines + "...\n"},
		"before other keys":             {guide + "# c\nx-a: 1\n", []Edit{put(small("x"))}, guide + "\n" + xLines + "# c\nx-a: 1\n"},
		"before comments at the end":    {guide + "    # pinned: true\n\n  # - model_id: z\n", []Edit{put(small("x"))}, guide + "    # pinned: true\n\n" + xLines + "\n  # - model_id: z\n"},
		"in the file's own style":       {"models:\n-   model_id: a\n    source_type: local\n    source_path: /m/a\n    model_format: gguf\n-   model_id: b\n    source_type: local\n    source_path: /m/b\n    model_format: gguf\n", []Edit{put(small("x"))}, "models:\n-   model_id: a\n    source_type: local\n    source_path: /m/a\n    model_format: gguf\n-   model_id: b\n    source_type: local\n    source_path: /m/b\n    model_format: gguf\n-   model_id: x\n    source_type: local\n    source_path: /m/x\n    model_format: gguf\n"},
		"a field, its comment stays":    {guide, []Edit{put(with(localCustom(), func(m *registry.Model) { m.TrustRemoteCode = false }))}, sub(guide, "True #", "False #")},
		"another field":                 {guide, []Edit{put(with(localCustom(), func(m *registry.Model) { m.RequiredGPUMemoryMB = 5000 }))}, sub(guide, "4000", "5000")},
		"to the default":                {guide, []Edit{put(with(localCustom(), func(m *registry.Model) { m.DevicePreference = "auto" }))}, sub(guide, "cuda", "auto")},
		"a default stays as written":    {guide, []Edit{put(with(tinyBert(), func(m *registry.Model) { m.RequiredRAMMB = 1 }))}, sub(guide, "200", "1")},
		"new fields in their place": {guide, []Edit{put(with(tinyBert(), func(m *registry.Model) { m.Revision, m.Pinned, m.Tags = "dev", true, []string{"a", "b"} }))},
			sub(guide, "transformers_pt\"\n", "transformers_pt\"\n    revision: \"dev\"\n", "False\n", "False\n    tags: [\"a\", \"b\"]\n    pinned: true\n")},
		"at the end without a line end": {strings.TrimSuffix(guide, " # If your local model has custom code\n"), []Edit{put(with(localCustom(), func(m *registry.Model) { m.Pinned = true }))},
			strings.TrimSuffix(guide, " # If your local model has custom code\n") + "\n    pinned: true"},
		"with CRLF, a field":  {crlf(guide), []Edit{put(with(tinyBert(), func(m *registry.Model) { m.Pinned = true }))}, crlf(sub(guide, "False\n", "False\n    pinned: true\n"))},
		"delete the first":    {guide, []Edit{del("tiny-bert")}, sub(guide, bertLines+"\n", "")},
		"delete the last":     {guide, []Edit{del("local-custom-model")}, "models:\n" + bertLines},
		"delete all":          {guide, []Edit{del("local-custom-model"), del("tiny-bert")}, "models:\n"},
		"replace all":         {guide, []Edit{del("local-custom-model"), del("tiny-bert"), put(small("x"))}, "models:\n" + xLines},
		"delete all of an id": {"models:\n" + xLines + "\n" + bertLines + "\n" + xLines, []Edit{del("x")}, "models:\n" + bertLines},

		"lived: append":                  {lived, []Edit{put(small("x"))}, sub(lived, "# the end\n", strings.ReplaceAll("\n"+xLines, "\n  ", "\n")+"# the end\n")},
		"lived: single quotes":           {lived, []Edit{put(with(a, func(m *registry.Model) { m.SourcePath = "/it's" }))}, sub(lived, "'/m/a'", "'/it''s'")},
		"lived: plain that needs quotes": {lived, []Edit{put(params(func(p map[string]any) { p["auth_token"] = "no" }))}, sub(lived, "hf_1", `"no"`)},
		"lived: one parameter":           {lived, []Edit{put(params(func(p map[string]any) { p["threads"] = int64(8) }))}, sub(lived, "threads: 4 #", "threads: 8 #")},
		"lived: a parameter more and one less": {lived, []Edit{put(params(func(p map[string]any) { delete(p, "threads"); p["zeta"] = 1.5 }))},
			sub(lived, "    threads: 4 # cores\n", "", "{k: v} # small\n", "{k: v} # small\n    zeta: 1.5\n")},
		"lived: braces in a parameter": {lived, []Edit{put(params(func(p map[string]any) { p["nested"] = map[string]any{"k": "v", "l": int64(1)} }))}, sub(lived, "{k: v} #", `{"k": "v", "l": 1} #`)},
		"lived: all other parameters": {lived, []Edit{put(with(a, func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"layers": int64(1)} }))},
			sub(lived, "    threads: 4 # cores\n    # keep this\n    auth_token: hf_1\n    nested: {k: v} # small\n", "    layers: 1\n")},
		"lived: no parameters": {lived, []Edit{put(with(a, func(m *registry.Model) { m.CustomLoaderParams = nil }))},
			sub(lived, "  custom_loader_params: # for the engine\n    threads: 4 # cores\n    # keep this\n    auth_token: hf_1\n    nested: {k: v} # small\n", "")},
		"lived: tags":                           {lived, []Edit{put(with(a, func(m *registry.Model) { m.Tags = []string{"three"} }))}, sub(lived, "  - one\n  - \"two\" # second\n", "  - three\n")},
		"lived: block text":                     {lived, []Edit{put(with(a, func(m *registry.Model) { m.Description = "short" }))}, sub(lived, "|\n    # not a comment\n    of two lines\n", "\"short\"\n")},
		"lived: after block":                    {lived, []Edit{put(with(a, func(m *registry.Model) { m.Pinned = true }))}, sub(lived, "of two lines\n", "of two lines\n  pinned: true\n")},
		"lived: in braces":                      {lived, []Edit{put(with(small("b"), func(m *registry.Model) { m.Pinned = true }))}, sub(lived, "{model_id: b, source_type: local, source_path: /m/b, model_format: gguf}", `{"model_id": "b", "source_type": "local", "source_path": "/m/b", "model_format": "gguf", "pinned": true}`)},
		"lived: the field behind the dash goes": {lived, []Edit{put(cMoved)}, sub(lived, "- description: \"goes\n    # on\n    # and on\" # end\n  model_id: \"c\"", "- model_id: \"c\"", "\"/m/c\"", "\"/new/c\"")},
		"lived: quoted over lines":              {lived, []Edit{put(with(small("c"), func(m *registry.Model) { m.Description = "x" }))}, sub(lived, "\"goes\n    # on\n    # and on\" # end", "\"x\" # end")},
		"lived: delete in braces":               {lived, []Edit{del("b")}, sub(lived, "-   {model_id: b, source_type: local, source_path: /m/b, model_format: gguf} # b in braces\n", "")},
		"lived: delete the first":               {lived, []Edit{del("a")}, "# Our models\nmodels:   # the list\n  # revision: dev\n# about b\n" + after(t, lived, "# about b\n")},

		"a bad entry is mended": {"models:\n- model_id: x # mine\n  source_type: floppy # odd\n  source_path: /m/x\n  modl_format: gguf\n", []Edit{put(small("x"))},
			"models:\n- model_id: x # mine\n  source_type: local # odd\n  source_path: /m/x\n  model_format: gguf\n"},
		"a bad entry stays": {"models:\n- just text # why\n- {model_id: b}\n", []Edit{put(small("x"))}, "models:\n- just text # why\n- {model_id: b}\n" + strings.ReplaceAll("\n"+xLines, "\n  ", "\n")[1:]},
		"a null gets a value": {"models:\n- model_id: x\n  source_type: local\n  source_path: /m/x\n  model_format: gguf\n  revision: # none\n  tokenizer_path: ~ # none\n", []Edit{put(with(small("x"), func(m *registry.Model) { m.Revision, m.TokenizerPath = "dev", "/t" }))},
			"models:\n- model_id: x\n  source_type: local\n  source_path: /m/x\n  model_format: gguf\n  revision: dev # none\n  tokenizer_path: /t # none\n"},
		"kept blank lines stay": {"models:\n- model_id: x\n  source_type: local\n  source_path: /m/x\n  model_format: gguf\n  description: |+\n    a\n\n\n", []Edit{put(small("y"))},
			"models:\n- model_id: x\n  source_type: local\n  source_path: /m/x\n  model_format: gguf\n  description: |+\n    a\n\n\n- model_id: \"y\"\n  source_type: local\n  source_path: /m/y\n  model_format: gguf\n"},
		"anchors": {"x-b: &b {source_type: local, model_format: gguf, pinned: true}\nmodels:\n- model_id: x\n  <<: *b # base\n  source_path: /m/x\n", []Edit{put(with(small("x"), func(m *registry.Model) { m.SourcePath = "/y" }))},
			"x-b: &b {source_type: local, model_format: gguf, pinned: true}\nmodels:\n- model_id: x\n  <<: *b # base\n  source_path: /y\n  pinned: null\n"},
		"an alias is replaced": {"x-p: &p /m/x\nmodels:\n- model_id: x\n  source_type: local\n  source_path: *p # there\n  model_format: gguf\n", []Edit{put(with(small("x"), func(m *registry.Model) { m.SourcePath = "/y" }))},
			"x-p: &p /m/x\nmodels:\n- model_id: x\n  source_type: local\n  source_path: /y # there\n  model_format: gguf\n"},
		"JSON": {`{"models": [{"model_id": "a", "source_type": "local", "source_path": "/m/a", "model_format": "gguf"}]}`, []Edit{put(small("x")), put(with(small("a"), func(m *registry.Model) { m.Pinned = true }))},
			`{"models": [{"model_id": "a", "source_type": "local", "source_path": "/m/a", "model_format": "gguf", "pinned": true}, {"model_id": "x", "source_type": "local", "source_path": "/m/x", "model_format": "gguf"}]}`},
		"brackets": {"models: [\n  {model_id: a, " + good + "}, # first\n  {model_id: b, " + good + "}  # last\n]\n", []Edit{del("a"), put(small("x"))},
			"models: [\n  {model_id: b, " + good + "}, {\"model_id\": \"x\", \"source_type\": \"local\", \"source_path\": \"/m/x\", \"model_format\": \"gguf\"}  # last\n]\n"},
		"brackets, all gone": {"models: [{model_id: a, " + good + "},]\n", []Edit{del("a")}, "models: []\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := fileWith(t, c.in)
			if err := applyAll(f, c.edits...); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, textOf(t, f)); diff != "" {
				t.Errorf("%s\n%s", diff, textOf(t, f))
			}
			// The same again changes nothing, and what was remembered of the text is still right.
			if err := applyAll(f, c.edits...); err != nil || textOf(t, f) != c.want {
				t.Errorf("again: %v\n%s", err, textOf(t, f))
			}
			if err := applyAll(f, put(small("later")), del("later")); err != nil || textOf(t, f) != c.want {
				t.Errorf("later: %v\n%s", err, textOf(t, f))
			}
		})
	}
}

// The blank lines after a text in a block may belong to it.
func TestApplyAfterKeptBreaks(t *testing.T) {
	for _, head := range []string{"|+", "|2+", ">+2 # all of it"} {
		for _, end := range []string{"\n", "\n\n", "\n  "} {
			text := "models:\n" + xLines + "    description: " + head + "\n      one" + end
			f := fileWith(t, text)
			if err := applyAll(f, put(small("new")), put(small("newer"))); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			before, after := mustParse(t, text).Entries, mustParse(t, textOf(t, f)).Entries
			if len(after) != 3 || after[0].Model.Description != before[0].Model.Description {
				t.Errorf("%q became\n%s", text, textOf(t, f))
			}
		}
	}
}

// A file may end in the middle of a line that is text in a block. What follows must not add to that text.
func TestApplyAfterOpenBlock(t *testing.T) {
	for _, c := range []struct{ head, want string }{
		{"|", "|-"}, {"|-", "|-"}, {"|+", "|-"}, {">", ">-"}, {"|2", "|2-"}, {"|+2", "|2-"}, {"!!str |", "!!str |-"}, {"| # why", "|- # why"},
	} {
		for _, eol := range []string{"\n", "\r\n"} {
			for _, top := range []string{"", "x: &a 1\ny: *a\n"} {
				text := strings.ReplaceAll(top+"models:\n"+xLines+"    description: "+c.head+"\n      one\n      two", "\n", eol)
				before := mustParse(t, text).Entries[0].Model
				f := fileWith(t, text)
				if err := applyAll(f, put(small("new"))); err != nil {
					t.Fatalf("%q: %v", c.head, err)
				}
				got := textOf(t, f)
				if !strings.HasPrefix(got, strings.Replace(text, "description: "+c.head+eol, "description: "+c.want+eol, 1)+eol) {
					t.Errorf("%q became\n%s", c.head, got)
				}
				after := mustParse(t, got).Entries
				if len(after) != 2 || after[0].Model.Description != before.Description || after[1].Model.ModelID != "new" {
					t.Errorf("%q reads as %+v, was %+v", c.head, after, before)
				}
			}
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		edit Edit
		code registry.Code
		msg  string
	}{
		"does not parse":     {"models:\n  - a: b: c\n", put(small("x")), registry.CodeInvalid, "left as it is"},
		"no models":          {"other: 1\n", put(small("x")), registry.CodeInvalid, "is missing"},
		"differs in case":    {guide, put(small("Tiny-Bert")), registry.CodeConflict, "differs from \"Tiny-Bert\" only in case"},
		"invalid model":      {guide, put(registry.Model{ModelID: "x"}), registry.CodeInvalid, "source_type is required"},
		"an anchor in use":   {"models:\n- &a\n  model_id: a\n  source_type: local\n  source_path: &p /m/a\n  model_format: gguf\n- {model_id: b, source_type: local, source_path: *p, model_format: gguf}\n", del("a"), registry.CodeUnsupported, "by hand"},
		"an alias as list":   {"x-l: &l []\nmodels: *l\n", put(small("x")), registry.CodeUnsupported, "anchor"},
		"old line ends":      {"models:\r- {model_id: b, " + good + "}\r", put(small("x")), registry.CodeUnsupported, "line ends"},
		"braces and no list": {"{models: }", put(small("x")), registry.CodeUnsupported, "models: []"},
	} {
		t.Run(name, func(t *testing.T) {
			f := fileWith(t, c.in)
			err := applyAll(f, c.edit)
			if registry.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.msg) {
				t.Errorf("got %v (%s)", err, registry.CodeOf(err))
			}
			if textOf(t, f) != c.in {
				t.Errorf("the file was changed:\n%s", textOf(t, f))
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(f.Path()), ".*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// The edits that cannot be made keep none of the others out.
func TestApplyMakesTheRest(t *testing.T) {
	const linked = "models:\n- &a\n  model_id: a\n  source_type: local\n  source_path: &p /m/a\n  model_format: gguf\n- {model_id: b, source_type: local, source_path: *p, model_format: gguf}\n- model_id: c\n  source_type: local\n  source_path: /m/c\n  model_format: gguf\n"
	var many []Edit
	var wantMany []string
	for i := range 300 {
		many = append(many, put(small(fmt.Sprintf("m-%03d", i))))
		if i%2 == 0 {
			many = append(many, put(small(fmt.Sprintf("M-%03d", i))))
			wantMany = append(wantMany, fmt.Sprintf("M-%03d", i))
		}
	}
	for name, c := range map[string]struct {
		in      string
		edits   []Edit
		refused []string
		ids     []string // afterwards; nil is not looked at
	}{
		"first and last":                {guide, []Edit{put(small("Tiny-Bert")), put(small("x")), del("tiny-bert"), put(registry.Model{ModelID: "y"})}, []string{"y"}, []string{"local-custom-model", "Tiny-Bert", "x"}},
		"in the middle":                 {guide, []Edit{put(small("x")), put(small("Tiny-Bert")), put(small("z"))}, []string{"Tiny-Bert"}, []string{"tiny-bert", "local-custom-model", "x", "z"}},
		"two of a kind":                 {"models: []\n", []Edit{put(small("x")), put(small("X")), put(small("y"))}, []string{"X"}, []string{"x", "y"}},
		"an anchor":                     {linked, []Edit{del("a"), del("c")}, []string{"a"}, []string{"a", "b"}},
		"all of them":                   {guide, []Edit{put(small("Tiny-Bert")), put(small("LOCAL-custom-model"))}, []string{"Tiny-Bert", "LOCAL-custom-model"}, []string{"tiny-bert", "local-custom-model"}},
		"more than it takes one by one": {"models: []\n", many, wantMany, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := fileWith(t, c.in)
			got, err := f.Apply(c.edits)
			if err != nil {
				t.Fatal(err)
			}
			refused := map[string]bool{}
			for _, r := range got {
				refused[r.ID] = true
				if registry.CodeOf(r.Err) == registry.CodeInternal || r.Err == nil {
					t.Errorf("%s: %v", r.ID, r.Err)
				}
			}
			for _, id := range c.refused {
				if !refused[id] && len(refused) < maxRefusals {
					t.Errorf("%q is not refused", id)
				}
			}
			doc, err := f.Read()
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, e := range doc.Entries {
				ids = append(ids, e.Model.ModelID)
			}
			if c.ids == nil {
				if len(ids) < 200 || len(ids)+len(refused) != len(c.edits) {
					t.Errorf("%d made, %d refused of %d", len(ids), len(refused), len(c.edits))
				}
				return
			}
			if diff := cmp.Diff(c.ids, ids); diff != "" || len(refused) != len(c.refused) {
				t.Errorf("refused %v\n%s", refused, diff)
			}
		})
	}
}

func TestFileLife(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenFile(""); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("no path: %v", err)
	}
	if _, err := OpenFile(dir); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("a folder: %v", err)
	}
	link := filepath.Join(dir, "models.yaml")
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real/there.yaml", link); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(link)
	if err != nil || f.Path() != link {
		t.Fatal(err)
	}
	if _, err := f.Read(); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("missing: %v", err)
	}
	if err := applyAll(f, put(small("x"))); err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(dir, "real", "there.yaml")
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("a new file: %v %v", info.Mode(), err)
	}
	if err := os.Chmod(real, 0o664); err != nil {
		t.Fatal(err)
	}
	if err := applyAll(f, put(small("y"))); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o664 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	if to, err := os.Readlink(link); err != nil || to != "real/there.yaml" {
		t.Errorf("the link is gone: %q %v", to, err)
	}
	// Somebody else edits the file in between.
	if err := os.WriteFile(real, []byte(guide), 0o664); err != nil {
		t.Fatal(err)
	}
	if err := applyAll(f, put(small("x"))); err != nil || textOf(t, f) != guide+"\n"+xLines {
		t.Errorf("%v\n%s", err, textOf(t, f))
	}
	// …and breaks it.
	if err := os.WriteFile(real, []byte(guide+"\t- oops\n"), 0o664); err != nil {
		t.Fatal(err)
	}
	var e *registry.Error
	if err := applyAll(f, put(small("z"))); !errors.As(err, &e) || !e.Malformed || e.Fields[0].Line != 18 || !strings.Contains(e.Msg, link) {
		t.Errorf("broken: %v", err)
	}
	if _, err := f.Read(); !errors.As(err, &e) || !e.Malformed || !strings.Contains(err.Error(), "line 18") {
		t.Errorf("broken: %v", err)
	}
	if got := textOf(t, f); got != guide+"\t- oops\n" {
		t.Errorf("the broken file was changed:\n%s", got)
	}
	gone, err := OpenFile(filepath.Join(dir, "nowhere", "models.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := applyAll(gone, put(small("z"))); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "make its folder") {
		t.Errorf("no folder: %v", err)
	}
}

// Writers in several processes: two File values stand for them. Every acknowledged edit is in the file at the end.
func TestApplyAtTheSameTime(t *testing.T) {
	one := fileWith(t, guide)
	two, err := OpenFile(one.Path())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range 40 {
		wg.Go(func() {
			f := one
			if i%4 == 0 {
				mu.Lock() // the second process edits while the first is not in the window between its last look and its rename
				defer mu.Unlock()
				one.mu.Lock()
				defer one.mu.Unlock()
				f = two
			}
			if err := applyAll(f, put(small(fmt.Sprintf("m%d", i)))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	d, err := one.Read()
	if err != nil || len(d.Entries) != 42 || len(d.Issues) != 0 {
		t.Errorf("%d entries, %v", len(d.Entries), err)
	}
}
