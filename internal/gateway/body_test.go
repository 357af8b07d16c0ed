package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestFindModel(t *testing.T) {
	for raw, want := range map[string]string{
		`{"model":"a"}`: "a",
		" {\n\t\"messages\" : [{\"model\":\"inner\"}] , \"model\"\r:\t\"meta-llama/Llama-2-7b-chat-hf\" } \n": "meta-llama/Llama-2-7b-chat-hf",
		`{"x":{"model":"inner"},"model":"a","y":[[],{}],"z":-1.5e3,"n":null,"t":true}`:                        "a",
		`{"mod\u0065l":"\u0061\"\\b\/ü"}`:                   `a"\b/ü`,
		`{"x":"\"model\":\"b\"}","model":"a"}`:              "a",
		`{"":1,"models":1,"mode":2,"model ":3,"model":"a"}`: "a",
		`{"model":"` + strings.Repeat(`\u0061`, 256) + `"}`: strings.Repeat("a", 256),
		`{"n":1,"model":"a"}`:                               "a",
		`{"n":1 ,"model":"a","e":{}}`:                       "a",
	} {
		b, err := findModel([]byte(raw))
		if err != nil || b.model != want {
			t.Errorf("%s: %q, %v", raw, b.model, err)
		}
	}
}

func TestFindModelRefuses(t *testing.T) {
	for raw, part := range map[string]string{
		``:                                "not JSON",
		`{`:                               "not JSON",
		`{"model":"a"} x`:                 "not JSON",
		`{"model":"a"}{"model":"b"}`:      "not JSON",
		`{"model":"a",}`:                  "not JSON",
		`{'model':'a'}`:                   "not JSON",
		"{\"model\":\"a\nb\"}":            "not JSON",
		`[]`:                              "must be a JSON object",
		`"model"`:                         "must be a JSON object",
		`null`:                            "must be a JSON object",
		`{}`:                              "is required",
		`{"x":{"model":"a"}}`:             "is required",
		`{"model":null}`:                  "must be a string",
		`{"model":1}`:                     "must be a string",
		`{"model":["a"]}`:                 "must be a string",
		`{"model":""}`:                    "not empty",
		`{"model":"a","model":"b"}`:       "more than once",
		`{"model":"a","x":1,"model":"a"}`: "more than once",
		`{"model":"a","\u006dodel":"b"}`:  "more than once",
		`{"model":"a","Model":"b"}`:       "small letters",
		`{"MODEL":"a"}`:                   "small letters",
		`{"model":"a","\u004dODEL":"b"}`:  "small letters",
		`{"model":"` + strings.Repeat("a", 6*256+1) + `"}`: "too long",
	} {
		_, err := findModel([]byte(raw))
		if registry.CodeOf(err) != registry.CodeInvalid || !strings.Contains(err.Error(), part) {
			t.Errorf("%.60s: %v, want %q", raw, err, part)
		}
	}
}

func TestReplacingTouchesNothingElse(t *testing.T) {
	raw := "{ \"a\" : 1.000, \"model\" : \"x/y\" ,\t\"b\":\"\\u00e9\" }\n"
	b, err := findModel([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	got := string(bytes.Join(b.parts(`n"e`), nil))
	if want := strings.Replace(raw, `"x/y"`, `"n\"e"`, 1); got != want {
		t.Errorf("%s", got)
	}
	for _, same := range []string{"", "x/y"} {
		if parts := b.parts(same); len(parts) != 1 || &parts[0][0] != &b.raw[0] {
			t.Errorf("%q: the body was copied", same)
		}
	}
}

// tokens finds the model by encoding/json's own tokens: slow, and independent of the scanner.
func tokens(raw []byte) (values []any, similar int, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
		return nil, 0, errors.New("no object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, 0, err
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return nil, 0, err
		}
		if s, ok := key.(string); ok && strings.EqualFold(s, "model") {
			if similar++; s == "model" {
				values = append(values, v)
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, 0, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, 0, errors.New("more than one value")
	}
	return values, similar, nil
}

func FuzzFindModel(f *testing.F) {
	for _, s := range []string{
		`{"model":"a"}`, `{"messages":[{"role":"user","content":"\"model\":"}],"model":"b","stream":true}`, `{"model":"a","model":"b"}`,
		`{"MODEL":1}`, `{"mod\u0065l":"x"}`, `{"a":[1,{"b":[]}],"model":""}`, `{}`, `[]`, `{"model"`, "{\"model\":\"\xff\"}", `{"x":"\\","model":"\ud83d\ude00"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		values, similar, err := tokens(raw)
		var name string
		if len(values) == 1 {
			name, _ = values[0].(string)
		}
		b, got := findModel(raw)
		if got == nil {
			if err != nil || similar != 1 || name == "" || b.model != name {
				t.Fatalf("found %q; the tokens say %v, %d, %v", b.model, values, similar, err)
			}
			var before, after map[string]any
			if json.Unmarshal(raw, &before) != nil || json.Unmarshal(bytes.Join(b.parts("new \"name\""), nil), &after) != nil {
				t.Fatal("replacing broke the JSON")
			}
			if after["model"] != "new \"name\"" || len(before) != len(after) {
				t.Fatalf("%v became %v", before, after)
			}
			return
		}
		if err == nil && similar == 1 && name != "" && len(raw) < registry.MaxModelID {
			t.Fatalf("%v, though the model is %q", got, name)
		}
	})
}
