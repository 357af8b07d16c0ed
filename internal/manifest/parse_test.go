package manifest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// guide is the example of the usage guide, to the letter.
const guide = `models:
  - model_id: "tiny-bert"
    source_type: "huggingface"
    source_path: "prajjwal1/bert-tiny"
    model_format: "transformers_pt"
    device_preference: "cpu"
    required_ram_mb: 200
    trust_remote_code: False

  - model_id: "local-custom-model"
    source_type: "local"
    source_path: "/opt/models/my-custom-local-model-dir"
    model_format: "safetensors"
    tokenizer_path: "/opt/models/my-custom-local-model-dir/tokenizer/"
    device_preference: "cuda"
    required_gpu_memory_mb: 4000
    trust_remote_code: True # If your local model has custom code
`

func tinyBert() registry.Model {
	return registry.Model{
		ModelID: "tiny-bert", SourceType: "huggingface", SourcePath: "prajjwal1/bert-tiny", ModelFormat: "transformers_pt",
		DevicePreference: "cpu", RequiredRAMMB: 200,
	}.WithDefaults()
}

func localCustom() registry.Model {
	return registry.Model{
		ModelID: "local-custom-model", SourceType: "local", SourcePath: "/opt/models/my-custom-local-model-dir", ModelFormat: "safetensors",
		TokenizerPath: "/opt/models/my-custom-local-model-dir/tokenizer/", DevicePreference: "cuda", RequiredGPUMemoryMB: 4000, TrustRemoteCode: true,
	}.WithDefaults()
}

func small(id string) registry.Model {
	return registry.Model{ModelID: id, SourceType: "local", SourcePath: "/m/" + id, ModelFormat: "gguf"}.WithDefaults()
}

func models(d *Document) []registry.Model {
	var out []registry.Model
	for _, e := range d.Entries {
		out = append(out, e.Model)
	}
	return out
}

func mustParse(t *testing.T, text string) *Document {
	t.Helper()
	d, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return d
}

// issues in short: "line:column field message".
func short(d *Document) []string {
	var out []string
	for _, fe := range d.Issues {
		out = append(out, fmt.Sprintf("%d:%d %s %s", fe.Line, fe.Column, fe.Field, fe.Msg))
	}
	return out
}

func TestParseGuide(t *testing.T) {
	d := mustParse(t, guide)
	want := &Document{Entries: []Entry{{tinyBert(), 2, 5}, {localCustom(), 10, 5}}}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
}

func TestShippedFile(t *testing.T) {
	b, err := os.ReadFile("../../models.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), guide) {
		t.Error("models.yaml does not hold the guide's example to the letter")
	}
	if diff := cmp.Diff([]registry.Model{tinyBert(), localCustom()}, models(mustParse(t, string(b)))); diff != "" {
		t.Error(diff)
	}
	// Every example in a comment is good once the "# " in front of it is taken away.
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		if rest, ok := strings.CutPrefix(line, "  # "); ok && (strings.HasPrefix(rest, "- ") || strings.HasPrefix(rest, "  ")) {
			lines[i] = "  " + rest
		}
	}
	d := mustParse(t, strings.Join(lines, "\n"))
	if len(d.Issues) > 0 || len(d.Entries) != 8 {
		t.Errorf("uncommented: %d entries, issues %q", len(d.Entries), short(d))
	}
	fields := map[string]bool{}
	for _, e := range d.Entries {
		for name := range registry.Encode(e.Model) {
			fields[name] = true
		}
	}
	for _, f := range registry.Fields {
		if !fields[f.Name] && !strings.Contains(string(b), f.Name+":") {
			t.Errorf("no example shows %s", f.Name)
		}
	}
}

const good = "source_type: local, source_path: /m/x, model_format: gguf"

func TestParseEmpty(t *testing.T) {
	for _, text := range []string{"", "\n\n", "# only a comment\n", "---\n", "---\n...\n", "~\n", "models:\n", "models: ~\n", "models: null", "models: []\n", "\ufeffmodels:\r\n", "models: # nothing\n"} {
		d := mustParse(t, text)
		if len(d.Entries) != 0 || len(d.Issues) != 0 {
			t.Errorf("%q: %+v", text, d)
		}
	}
}

func TestParseNothingReadable(t *testing.T) {
	laughs := "a0: &a0 [x,x]\n"
	for i := 1; i < 20; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [*a%d,*a%d]\n", i, i, i-1, i-1)
	}
	for name, c := range map[string]struct {
		text         string
		line, column int
		msg          string
	}{
		"not a map":       {"- model_id: x\n", 1, 1, "found a list"},
		"text":            {"hello", 1, 1, "found text"},
		"no models":       {"\nmodel:\n  - a\n", 2, 1, "is missing"},
		"models is text":  {"models: all\n", 1, 9, "must be a list of entries, each beginning with a dash, not text"},
		"models is a map": {"models:\n  a: 1\n", 2, 3, "not a map"},
		"models twice":    {"models: []\nmodels: []\n", 2, 1, "first on line 1"},
		"unclosed":        {"models: [\n", 2, 1, "could not be parsed"},
		"tab":             {"models:\n\t- model_id: x\n", 2, 1, "spaces, not tabs"},
		"unquoted colon":  {"models:\n  - model_id: a: b\n", 2, 16, "quote text that contains a colon"},
		"missing colon":   {"models:\n  - model_id x\n    source_type: local\n", 3, 16, "could not be parsed"},
		"unknown alias":   {"models: *gone\n", 1, 9, "anchor that is not defined"},
		"two documents":   {"models: []\n---\nmodels: []\n", 2, 1, "second YAML document"},
		"broken second":   {"models: []\n---\n[\n", 4, 1, "could not be parsed"},
		"latin-1":         {"models:\n  - model_id: caf\xe9\n", 2, 18, "is not UTF-8"},
		"utf-16":          {"\xff\xfem\x00", 1, 1, "UTF-16"},
		"nul":             {"models:\n- \x00", 2, 3, "U+0000"},
		"escape":          {"models: [\x1b]", 1, 10, "U+001B"},
		"delete":          {"models: \x7f", 1, 9, "U+007F"},
		"inner mark":      {"models: \ufeff", 1, 9, "U+FEFF"},
		"deep":            {"models: " + strings.Repeat("[", 5000), 1, 0, "depth"},
		"deep block":      {"models:\n" + strings.Repeat("- ", 5000), 2, 0, "depth"},
		"too many values": {"models: [" + strings.Repeat("1,", MaxValues) + "]", 0, 0, "values"},
		"too large":       {"models:" + strings.Repeat(" ", MaxBytes), 0, 0, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Parse([]byte(c.text))
			var e *registry.Error
			if d != nil || !errors.As(err, &e) || e.Code != registry.CodeInvalid || !e.Malformed || len(e.Fields) != 1 {
				t.Fatalf("got %+v, %v", d, err)
			}
			fe := e.Fields[0]
			if fe.Line != c.line || (c.column != 0 && fe.Column != c.column) || !strings.Contains(fe.Msg, c.msg) {
				t.Errorf("got %d:%d %q, want %d:%d …%s…", fe.Line, fe.Column, fe.Msg, c.line, c.column, c.msg)
			}
		})
	}
	d, err := Parse([]byte(laughs + "models:\n  - {model_id: x, " + good + ", custom_loader_params: {a: *a19}}\n  - {model_id: y, " + good + "}\n"))
	if err != nil || len(d.Entries) != 1 || d.Entries[0].Model.ModelID != "y" || !strings.Contains(d.Issues[len(d.Issues)-1].Msg, "too many values") {
		t.Errorf("a billion laughs: %v %v", d, err)
	}
}

func TestParseIssues(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
		ids  string
	}{
		"bad among good": {
			"models:\n  - {model_id: a, " + good + "}\n  - model_id: b\n    source_type: floppy\n    source_path: /x\n    model_format: gguf\n  - {model_id: c, " + good + "}\n",
			[]string{`4:18 models[1].source_type must be one of huggingface, local, s3, ollama, external_service, not "floppy"`}, "a c",
		},
		"missing fields": {
			"models:\n  - model_id: a\n",
			[]string{
				"2:5 models[0].source_type is required; one of huggingface, local, s3, ollama, external_service",
				"2:5 models[0].source_path is required",
				"2:5 models[0].model_format is required; one of safetensors, transformers_pt, gguf, onnx",
			}, "",
		},
		"null is missing": {
			"models:\n  - model_id:\n    source_type: local\n    source_path: /x\n    model_format: gguf\n",
			[]string{"2:5 models[0].model_id is required"}, "",
		},
		"unknown field": {
			"models:\n- {model_id: a, " + good + ",\n   device_preferense: cpu}\n",
			[]string{"3:4 models[0].device_preferense is not a field of a model; did you mean device_preference?"}, "",
		},
		"unknown field with a long name": {
			"models:\n- model_id: a\n  source_type: local\n  source_path: /x\n  model_format: gguf\n  " + strings.Repeat("q", 100) + ": 1\n",
			[]string{"6:3 models[0]." + strings.Repeat("q", 60) + "… is not a field of a model"}, "",
		},
		"given twice": {
			"models:\n- model_id: a\n  source_type: local\n  source_path: /x\n  model_format: gguf\n  model_format: onnx\n",
			[]string{"6:3 models[0].model_format is given twice, first on line 5"}, "",
		},
		"a number as a name": {
			"models:\n- {model_id: 123, " + good + "}\n",
			[]string{`2:14 models[0].model_id must be text, not the number 123; put it in quotes: "123"`}, "",
		},
		"not a map": {
			"models:\n- just-a-name\n-\n- [a]\n- {model_id: a, " + good + "}\n",
			[]string{
				`2:3 models[0] must be a map of fields such as model_id: "name", not text`,
				`3:2 models[1] must be a map of fields such as model_id: "name", not nothing`,
				`4:3 models[2] must be a map of fields such as model_id: "name", not a list`,
			}, "a",
		},
		"duplicates": {
			"models:\n- {model_id: a, " + good + "}\n- {model_id: a, " + good + "}\n- {model_id: A, " + good + "}\n",
			[]string{
				`3:14 models[1].model_id "a" is already the id of an earlier entry; the earlier one is used`,
				`4:14 models[2].model_id "A" differs only in case from "a", an earlier entry; the earlier one is used`,
			}, "a",
		},
		"a bad entry takes no id": {
			"models:\n- {model_id: a}\n- {model_id: a, " + good + "}\n",
			[]string{
				"2:3 models[0].source_type is required; one of huggingface, local, s3, ollama, external_service",
				"2:3 models[0].source_path is required",
				"2:3 models[0].model_format is required; one of safetensors, transformers_pt, gguf, onnx",
			}, "a",
		},
		"top-level key": {
			"version: 2\nx-notes: free\nmodels:\n- {model_id: a, " + good + "}\n",
			[]string{"1:1 version is not known at the top of this file and was left alone; only models is (names that start with x- are free)"}, "a",
		},
		"tags and keys": {
			"models:\n- {model_id: !secret a, " + good + "}\n- {model_id: b, 7: x, " + good + "}\n- {model_id: c, [a]: x, " + good + "}\n",
			[]string{
				"2:14 models[0].model_id has the tag !secret, which has no meaning here; remove it",
				"3:17 models[1] has the key 7, which is not text; put it in quotes",
				"4:17 models[2] has a key that is not text",
			}, "",
		},
		"params": {
			"models:\n- {model_id: a, " + good + ", custom_loader_params: {a: 1, a: 2}}\n- {model_id: b, " + good + ", custom_loader_params: {a: !!int zz}}\n- {model_id: c, " + good + ", custom_loader_params: {a: .inf}}\n",
			[]string{
				"2:105 models[0].custom_loader_params is wrong: a is given twice, first on line 2",
				"3:102 models[1].custom_loader_params is not the int that it says it is",
				"4:98 models[2].custom_loader_params has a value that is not a number",
			}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustParse(t, c.text)
			if diff := cmp.Diff(c.want, short(d)); diff != "" {
				t.Error(diff)
			}
			var ids []string
			for _, e := range d.Entries {
				ids = append(ids, e.Model.ModelID)
			}
			if got := strings.Join(ids, " "); got != c.ids {
				t.Errorf("good entries %q, want %q", got, c.ids)
			}
		})
	}
}

func TestParseWrongTypes(t *testing.T) {
	base := "models:\n  - model_id: a\n    source_type: local\n    source_path: /x\n    model_format: gguf\n"
	values := map[registry.FieldKind][]string{
		registry.KindString:   {"12", "1.5", "true", "[a]", "{a: b}", "\"a\\x01b\"", "\"" + strings.Repeat("x", 10<<20) + "\""},
		registry.KindEnum:     {"12", "true", "[a]", "{a: b}", "nonsense", "\"\\t\"", "\"" + strings.Repeat("x", 70<<10) + "\""},
		registry.KindInt:      {"many", "1.5", "true", "[1]", "{a: b}", "99999999999999999999", "-101", ".nan", ".inf", "\"" + strings.Repeat("9", 70<<10) + "\""},
		registry.KindBool:     {"12", "maybe", "[true]", "{a: b}", "\"true\""},
		registry.KindMap:      {"12", "text", "true", "[a]", "{\"\": 1}", "{a: \"\\x01\"}", "{a: " + strings.Repeat("x", 70<<10) + "}"},
		registry.KindStrings:  {"12", "text", "true", "{a: b}", "[1]", "[[a]]", "['']", "[\"\\x01\"]", "[" + strings.Repeat("x", 70<<10) + "]"},
		registry.KindInts:     {"12", "text", "true", "{a: b}", "[a]", "[-1]", "[1, 1]", "[1.5]", "[2000]"},
		registry.KindDuration: {"soon", "true", "[1]", "{a: b}", "-5", "10000h", "\"" + strings.Repeat("1", 70<<10) + "\""},
	}
	huge := false
	for _, f := range registry.Fields {
		if len(values[f.Kind]) == 0 {
			t.Fatalf("no wrong values for %s", f.Kind)
		}
		for _, v := range values[f.Kind] {
			if len(v) > 10<<20 {
				if huge {
					continue // 10 MB once: they are read by the same code for all fields
				}
				huge = true
			}
			text, line := base+"    "+f.Name+": "+v+"\n", 6
			for i, l := range strings.Split(base, "\n") {
				if rest, ok := strings.CutSuffix(l, strings.TrimPrefix(strings.TrimSpace(l), "- ")); ok && strings.Contains(l, f.Name+": ") {
					text, line = strings.Replace(base, l, rest+f.Name+": "+v, 1), i+1
				}
			}
			d := mustParse(t, text)
			if len(d.Entries) != 0 || len(d.Issues) != 1 {
				t.Errorf("%s: %.40s: accepted %d, issues %.300q", f.Name, v, len(d.Entries), short(d))
				continue
			}
			fe := d.Issues[0]
			if fe.Field != "models[0]."+f.Name || fe.Line != line || fe.Column < 5+len(f.Name) || fe.Msg == "" || len(fe.Msg) > 300 {
				t.Errorf("%s: %.40s: %+v", f.Name, v, fe)
			}
		}
	}
}

// PyYAML, which the guide's library reads its file with, knows YAML 1.1; what it takes for a truth value is one here.
func TestParseLikePyYAML(t *testing.T) {
	d := mustParse(t, `
x-base: &base {source_type: local, model_format: gguf, required_ram_mb: 1_000}
x-more: &more {revision: dev, tags: [one]}
models:
- {model_id: no, <<: [*base, *more], source_path: /x, trust_remote_code: yes, pinned: OFF, tags: [on, no]}
- model_id: 'b'
  <<: *base
  source_path: "/x"
  model_format: onnx
  revision: 2024-01-01
  required_ram_mb: 0x10
  priority: 010
  idle_timeout: 90
  custom_loader_params: {flag: on, word: "on", float: 1.5, int: 2, none: ~, date: 2024-01-01, list: [1, a]}
`)
	want := []registry.Model{
		{ModelID: "no", SourceType: "local", SourcePath: "/x", ModelFormat: "gguf", Revision: "dev", RequiredRAMMB: 1000, TrustRemoteCode: true, Tags: []string{"on", "no"}},
		{ModelID: "b", SourceType: "local", SourcePath: "/x", ModelFormat: "onnx", Revision: "2024-01-01", RequiredRAMMB: 16, Priority: 8, IdleTimeout: 90e9,
			CustomLoaderParams: map[string]any{"flag": true, "word": "on", "float": 1.5, "int": int64(2), "none": nil, "date": "2024-01-01", "list": []any{int64(1), "a"}}},
	}
	for i := range want {
		want[i] = want[i].WithDefaults()
	}
	if diff := cmp.Diff(want, models(d)); diff != "" || len(d.Issues) > 0 {
		t.Error(diff, short(d))
	}
}

func TestParseManyIssues(t *testing.T) {
	d := mustParse(t, "models:\n"+strings.Repeat("- x\n", 5000))
	if len(d.Issues) != MaxIssues+1 || !strings.Contains(d.Issues[MaxIssues].Msg, "4000 more") {
		t.Errorf("%d issues, last %+v", len(d.Issues), d.Issues[len(d.Issues)-1])
	}
}

func TestErrorsQuoteNoSecret(t *testing.T) {
	for _, text := range []string{
		"models:\n- model_id: x\n  custom_loader_params:\n    auth_token: hf_SECRET: x\n",
		"models:\n- model_id: x\n  custom_loader_params:\n    auth_token: *hf_SECRET\n",
		"models:\n- model_id: x\n  custom_loader_params: {auth_token: !!int hf_SECRET}\n",
		"models:\n- model_id: x\n  custom_loader_params: {auth_token: \"hf_SECRET\\x01\"}\n",
	} {
		d, err := Parse([]byte(text))
		if s := fmt.Sprint(d, err); strings.Contains(s, "SECRET") {
			t.Errorf("%q: %s", text, s)
		}
	}
}
