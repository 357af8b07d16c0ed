package registry_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestJSONThatDoesNotParse(t *testing.T) {
	for body, says := range map[string]string{
		"":                                 "empty",
		"  \n":                             "empty",
		"null":                             "must be a JSON object",
		"[]":                               "must be a JSON object",
		`"x"`:                              "must be a JSON object",
		"{":                                "not JSON",
		`{"a"}`:                            "not JSON",
		`{"a":}`:                           "not JSON",
		`{"a":1,}`:                         "not JSON",
		`{a:1}`:                            "not JSON",
		`{"a":[1}`:                         "not JSON",
		`{"a":1`:                           "not JSON",
		`{"a":1}}`:                         "more after",
		`{"a":1}{"b":2}`:                   "more after",
		`{"a":1} x`:                        "more after",
		`{"a":1,"a":2}`:                    `"a" is given twice`,
		`{"p":{"k":1,"k":2}}`:              `"k" is given twice`,
		`{"p":[{"k":1,"k":2}]}`:            `"k" is given twice`,
		`{"a":1,"\u0061":2}`:               `"a" is given twice`,
		"{\"a\":\"\xff\"}":                 "not UTF-8",
		"{\"a\":\"\n\"}":                   "not JSON",
		strings.Repeat(`{"a":`, 100_000):   "nested more than 32 deep",
		`{"a":` + strings.Repeat("[", 100): "nested more than 32 deep",
	} {
		_, err := registry.DecodeJSON([]byte(body))
		var e *registry.Error
		if !errors.As(err, &e) || e.Code != registry.CodeInvalid || !e.Malformed {
			t.Errorf("%.40q: %v, want an invalid, malformed error", body, err)
			continue
		}
		if !strings.Contains(e.Msg, says) {
			t.Errorf("%.40q: %q, want it to say %q", body, e.Msg, says)
		}
	}
}

func TestJSONThatParsesAndIsWrong(t *testing.T) {
	_, err := registry.DecodeJSON([]byte(`{"model_id":"a b","source_type":"local","source_path":"x","model_format":"gguf"}`))
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != registry.CodeInvalid || e.Malformed {
		t.Fatalf("%v, want an invalid error that is not malformed", err)
	}
	if len(e.Fields) != 2 || !strings.Contains(err.Error(), "model_id must not contain spaces") || !strings.Contains(err.Error(), "; source_path must be an absolute path") {
		t.Errorf("the error is %q", err)
	}
}

func TestModelIDs(t *testing.T) {
	for _, id := range []string{
		"a", "meta-llama/Llama-2-7b-chat-hf", "a/b/c/d", "llama3.2:3b", "user@host", "c++", "模型/七", "Größe", "модель",
		"हिन्दी", "e\u0301", "_x", "x-", "1", "a..b", "...", strings.Repeat("x", registry.MaxModelID),
	} {
		if err := registry.ValidateModelID(id); err != nil {
			t.Errorf("%q %v", id, err)
		}
	}
	for id, says := range map[string]string{
		"":           "is required",
		"a b":        "spaces",
		" a":         "spaces",
		"a\u00a0b":   "U+00A0",
		"a%2Fb":      `"%"`,
		"a?b":        `"?"`,
		"a#b":        `"#"`,
		"a&b":        `"&"`,
		"a\\b":       "must not contain",
		"a\"b":       "must not contain",
		"<b>":        `"<"`,
		"a\x00b":     "U+0000",
		"a\nb":       "U+000A",
		"a\u202eb":   "U+202E",
		"a\u200bb":   "U+200B",
		"a\ufe0f":    "must not contain", // a variation selector: not drawn
		"a\u3164":    "must not contain", // Hangul filler: a letter that is not drawn
		"a\ufeff":    "U+FEFF",
		"😀":          "must not contain",
		"/a":         "slash",
		"a/":         "slash",
		"a//b":       "slash",
		"/":          "slash",
		".":          `"."`,
		"../a":       `".."`,
		"a/../b":     `".."`,
		"a/..":       `".."`,
		"a/./b":      `"."`,
		"-rf":        "dash",
		"a/-rf":      "dash",
		"\xff":       "UTF-8",
		"a\xed\xa0b": "UTF-8",
		strings.Repeat("x", registry.MaxModelID+1): "257 bytes",
		strings.Repeat("x", 10<<20):                "10485760 bytes",
	} {
		if err := registry.ValidateModelID(id); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want it to say %q", id, err, says)
		}
	}
}

func TestTeams(t *testing.T) {
	for _, name := range []string{"default", "a", "team-1_b", "0", strings.Repeat("x", 64)} {
		if err := registry.ValidateTeam(name); err != nil {
			t.Errorf("%q %v", name, err)
		}
	}
	for _, name := range []string{"", "A", "a b", "a/b", "-a", "_a", "é", "a.b", "a\x00", strings.Repeat("x", 65)} {
		if err := registry.ValidateTeam(name); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

// word draws a string that a text field accepts.
func word(t *rapid.T, label string) string {
	return rapid.StringMatching(`[a-zA-Z0-9ßéж模][a-zA-Z0-9 ._ßéж模-]{0,12}[a-z]`).Draw(t, label)
}

func drawParam(t *rapid.T, depth int) any {
	switch n := rapid.IntRange(0, 6).Draw(t, "kind"); {
	case n == 0:
		return nil
	case n == 1:
		return rapid.Bool().Draw(t, "bool")
	case n == 2:
		return rapid.Int64().Draw(t, "int")
	case n == 3:
		return rapid.Float64Range(-1e6, 1e6).Filter(func(f float64) bool { return f != float64(int64(f)) }).Draw(t, "float")
	case n == 4 && depth < 4:
		list := make([]any, rapid.IntRange(0, 3).Draw(t, "len"))
		for i := range list {
			list[i] = drawParam(t, depth+1)
		}
		return list
	case n == 5 && depth < 4:
		return drawParams(t, depth+1)
	}
	return word(t, "text")
}

func drawParams(t *rapid.T, depth int) map[string]any {
	out := map[string]any{}
	for range rapid.IntRange(0, 3).Draw(t, "entries") {
		out[word(t, "name")] = drawParam(t, depth)
	}
	return out
}

func drawModel(t *rapid.T) registry.Model {
	id := rapid.StringMatching(`[a-z0-9ß模_][A-Za-z0-9._:@+-]{0,20}(/[a-z0-9ß模_][A-Za-z0-9._:@+-]{0,20}){0,2}`).Draw(t, "model_id")
	source := rapid.SampledFrom(registry.SourceTypes).Draw(t, "source_type")
	prefix := map[registry.SourceType]string{
		registry.SourceHuggingFace: "org/", registry.SourceLocal: "/opt/", registry.SourceS3: "s3://bucket/",
		registry.SourceOllama: "", registry.SourceExternal: "https://host/",
	}[source]
	m := registry.Model{
		ModelID: id, SourceType: source,
		SourcePath:          prefix + rapid.StringMatching(`[a-z][a-z0-9]{0,20}`).Draw(t, "source_path"),
		ModelFormat:         rapid.SampledFrom(registry.Formats).Draw(t, "model_format"),
		Revision:            rapid.StringMatching(`[a-z0-9]{0,40}`).Draw(t, "revision"),
		QuantizationBits:    rapid.SampledFrom([]int{0, 4, 8}).Draw(t, "quantization_bits"),
		DevicePreference:    rapid.SampledFrom(registry.Devices).Draw(t, "device_preference"),
		RequiredGPUMemoryMB: rapid.Int64Range(0, registry.MaxMemoryMB).Draw(t, "required_gpu_memory_mb"),
		RequiredRAMMB:       rapid.Int64Range(0, registry.MaxMemoryMB).Draw(t, "required_ram_mb"),
		TrustRemoteCode:     rapid.Bool().Draw(t, "trust_remote_code"),
		Engine:              rapid.SampledFrom(registry.Engines).Draw(t, "engine"),
		Description:         word(t, "description"),
		ContextLength:       rapid.IntRange(0, registry.MaxContext).Draw(t, "context_length"),
		IdleTimeout:         registry.Duration(rapid.Int64Range(0, 365*24*3600*1e9).Draw(t, "idle_timeout")),
		Pinned:              rapid.Bool().Draw(t, "pinned"),
		Priority:            rapid.IntRange(-100, 100).Draw(t, "priority"),
	}
	if rapid.Bool().Draw(t, "has lists") {
		m.Tags = rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,8}`), 1, 4, rapid.ID).Draw(t, "tags")
		m.GPUIDs = rapid.SliceOfNDistinct(rapid.IntRange(0, 1023), 1, 4, rapid.ID).Draw(t, "gpu_ids")
		m.TokenizerPath = "/opt/tokenizer"
		m.Team = rapid.StringMatching(`[a-z0-9][a-z0-9_-]{0,10}`).Draw(t, "team")
	}
	if p := drawParams(t, 1); len(p) > 0 {
		m.CustomLoaderParams = p
	}
	return m.WithDefaults()
}

// TestRoundTrip: Decode is the inverse of Encode, directly and through JSON text.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawModel(t)
		enc := registry.Encode(want)
		got, errs := registry.Decode(enc)
		if diff := cmp.Diff(want, got); diff != "" || len(errs) > 0 {
			t.Fatalf("%v\n%s", errs, diff)
		}
		for _, v := range []any{enc, want} { // both ways of writing a model
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			got, err = registry.DecodeJSON(b)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Fatalf("%s: %v\n%s", b, err, diff)
			}
		}
	})
}

// FuzzDecodeJSON: whatever arrives, there is no panic, an error is one of ours and bounded, and what is accepted is
// valid and survives a round trip.
func FuzzDecodeJSON(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := registry.DecodeJSON(b)
		if err != nil {
			var e *registry.Error
			if !errors.As(err, &e) || e.Code != registry.CodeInvalid {
				t.Fatalf("%v is not an invalid error", err)
			}
			if e.Malformed == (len(e.Fields) > 0) {
				t.Fatalf("malformed %v with the fields %v", e.Malformed, e.Fields)
			}
			for _, fe := range e.Fields {
				if fe.Msg == "" || len(fe.Field)+len(fe.Msg) > 1000 {
					t.Fatalf("the error on %q says %q", fe.Field, fe.Msg)
				}
			}
			return
		}
		if errs := registry.Validate(m); len(errs) > 0 {
			t.Fatalf("accepted and not valid: %v", errs)
		}
		out, err := json.Marshal(registry.Encode(m))
		if err != nil {
			t.Fatal(err)
		}
		again, err := registry.DecodeJSON(out)
		if diff := cmp.Diff(m, again); diff != "" || err != nil {
			t.Fatalf("%s became %s: %v\n%s", b, out, err, diff)
		}
		if err := registry.ValidateModelID(m.ModelID); err != nil {
			t.Fatalf("accepted the id %q, which %v", m.ModelID, err)
		}
	})
}

// FuzzModelID: an accepted id can be a path segment by segment, a log line and a part of a URL.
func FuzzModelID(f *testing.F) {
	f.Fuzz(func(t *testing.T, id string) {
		err := registry.ValidateModelID(id)
		if err != nil {
			if len(err.Error()) > 300 || !utf8.ValidString(err.Error()) {
				t.Fatalf("the message on %q is %q", id, err)
			}
			return
		}
		if id == "" || len(id) > registry.MaxModelID || !utf8.ValidString(id) || strings.ContainsAny(id, " \t\r\n\x00%?#&\\\"'<>`$|;*") {
			t.Fatalf("accepted %q", id)
		}
		for seg := range strings.SplitSeq(id, "/") {
			if seg == "" || seg == "." || seg == ".." || strings.HasPrefix(seg, "-") {
				t.Fatalf("accepted %q", id)
			}
		}
	})
}
