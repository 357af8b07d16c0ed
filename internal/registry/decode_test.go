package registry_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// given returns the fields of a valid model, with those of change put over them; a nil value in change removes one.
func given(change map[string]any) map[string]any {
	in := map[string]any{
		"model_id":     "meta-llama/Llama-2-7b-chat-hf",
		"source_type":  "local",
		"source_path":  "/opt/models/llama",
		"model_format": "gguf",
	}
	for k, v := range change {
		if v == nil {
			delete(in, k)
		} else {
			in[k] = v
		}
	}
	return in
}

// with is given with one field changed.
func with(name string, v any) map[string]any { return given(map[string]any{name: v}) }

// wantField checks that exactly one field is at fault, and that what is said about it contains every word of want.
func wantField(t *testing.T, in map[string]any, field string, want ...string) {
	t.Helper()
	_, errs := registry.Decode(in)
	if len(errs) != 1 || errs[0].Field != field {
		t.Fatalf("Decode found %v, want one error at %s", errs, field)
	}
	for _, w := range want {
		if !strings.Contains(errs[0].Msg, w) {
			t.Errorf("%s %s: want it to say %q", errs[0].Field, errs[0].Msg, w)
		}
	}
	if len(errs[0].Msg) > 400 {
		t.Errorf("the message on %s is %d bytes long", field, len(errs[0].Msg))
	}
}

// wantGood checks that there is nothing at fault.
func wantGood(t *testing.T, in map[string]any) registry.Model {
	t.Helper()
	m, errs := registry.Decode(in)
	if len(errs) > 0 {
		t.Fatalf("Decode found %v, want nothing", errs)
	}
	return m
}

func TestDefaultsAreTheGuides(t *testing.T) {
	got := wantGood(t, given(nil))
	want := registry.Model{
		ModelID: "meta-llama/Llama-2-7b-chat-hf", SourceType: registry.SourceLocal, SourcePath: "/opt/models/llama",
		ModelFormat: registry.FormatGGUF, Revision: "main", DevicePreference: "auto", Engine: "auto", Team: "default",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRequiredFieldsMissing(t *testing.T) {
	for _, f := range registry.Fields {
		t.Run(f.Name, func(t *testing.T) {
			in := with(f.Name, nil)
			if !f.Required {
				wantGood(t, in)
				in[f.Name] = nil // null means not given
				wantGood(t, in)
				return
			}
			wantField(t, in, f.Name, "is required")
			in[f.Name] = nil
			wantField(t, in, f.Name, "is required")
			if f.Kind == registry.KindString {
				wantField(t, with(f.Name, ""), f.Name, "is required")
			}
		})
	}
	_, errs := registry.Decode(map[string]any{})
	var names []string
	for _, e := range errs {
		names = append(names, e.Field)
	}
	if diff := cmp.Diff([]string{"model_id", "source_type", "source_path", "model_format"}, names); diff != "" {
		t.Errorf("of an empty model: %s", diff)
	}
}

// oneOfEach holds one value of every type that JSON or YAML can give.
var oneOfEach = map[string]any{
	"text": "some text", "whole": int64(7), "number": json.Number("7"), "fraction": 7.5, "bool": true,
	"list": []any{"a"}, "map": map[string]any{"a": int64(1)},
}

func TestWrongTypes(t *testing.T) {
	fitting := map[registry.FieldKind][]string{
		registry.KindString: {"text"}, registry.KindEnum: {"text"}, registry.KindInt: {"whole", "number"},
		registry.KindBool: {"bool"}, registry.KindMap: {"map"}, registry.KindStrings: {"list"}, registry.KindInts: {"list"},
		registry.KindDuration: {"text", "whole", "number", "fraction"},
	}
	for _, f := range registry.Fields {
		if fitting[f.Kind] == nil {
			t.Fatalf("field %s has the kind %q, which this test does not know", f.Name, f.Kind)
		}
		for kind, v := range oneOfEach {
			if slices.Contains(fitting[f.Kind], kind) {
				continue
			}
			t.Run(f.Name+"/"+kind, func(t *testing.T) { wantField(t, with(f.Name, v), f.Name, "must be") })
		}
	}
}

func TestOutOfRange(t *testing.T) {
	long := strings.Repeat("x", 10<<20)
	deep := any("leaf")
	for range 20 {
		deep = []any{deep}
	}
	for _, c := range []struct {
		field string
		value any
		says  string
	}{
		{"source_type", "floppy", "huggingface, local, s3, ollama, external_service"},
		{"source_type", "Local", "must be one of"},
		{"model_format", "pickle", "safetensors, transformers_pt, gguf, onnx"},
		{"device_preference", "tpu", "auto, cuda, cpu"},
		{"device_preference", "", "must be one of"},
		{"engine", "sglang", "llamacpp"},
		{"quantization_bits", int64(0), "4 or 8"},
		{"quantization_bits", int64(5), "4 or 8, not 5"},
		{"quantization_bits", int64(-4), "4 or 8"},
		{"quantization_bits", 4.5, "a whole number"},
		{"quantization_bits", math.NaN(), "a whole number"},
		{"required_gpu_memory_mb", int64(-1), "between 0 and 16777216"},
		{"required_gpu_memory_mb", int64(registry.MaxMemoryMB + 1), "between"},
		{"required_gpu_memory_mb", uint64(math.MaxUint64), "a whole number"},
		{"required_gpu_memory_mb", json.Number("1e400"), "a whole number"},
		{"required_ram_mb", int64(-1), "between"},
		{"required_ram_mb", json.Number("99999999999999999999"), "a whole number"},
		{"required_ram_mb", math.Inf(1), "a whole number"},
		{"context_length", int64(-1), "between"},
		{"context_length", int64(registry.MaxContext + 1), "between"},
		{"priority", int64(101), "between -100 and 100, not 101"},
		{"priority", int64(-101), "between"},
		{"idle_timeout", "-1s", "between 0 and 8760h"},
		{"idle_timeout", "9000h", "between"},
		{"idle_timeout", "a while", "such as 15m"},
		{"idle_timeout", "", "such as 15m"},
		{"idle_timeout", json.Number("1e300"), "below 1e9"},
		{"idle_timeout", math.NaN(), "number of seconds"},
		{"gpu_ids", []any{int64(-1)}, "entry 1"},
		{"gpu_ids", []any{int64(0), int64(1024)}, "entry 2"},
		{"gpu_ids", []any{int64(3), int64(3)}, "GPU 3 twice"},
		{"gpu_ids", []any{"0"}, "entry 1 must be a whole number"},
		{"gpu_ids", make([]any, 65), "at most 64"},
		{"tags", []any{"ok", " "}, "entry 2 is empty"},
		{"tags", []any{int64(1)}, "entry 1"},
		{"tags", []any{strings.Repeat("x", 65)}, "at most 64"},
		{"tags", make([]any, 33), "at most 32"},
		{"custom_loader_params", map[string]any{"": 1}, "without a name"},
		{"custom_loader_params", map[string]any{"a": deep}, "more than 8 deep"},
		{"custom_loader_params", map[string]any{"a": math.Inf(1)}, "not a number"},
		{"custom_loader_params", map[string]any{"a": uint64(math.MaxUint64)}, "too large"},
		{"custom_loader_params", map[string]any{"a": json.Number("1e19")}, "too large"},
		{"custom_loader_params", map[string]any{"a": json.Number("1e999")}, "too large"},
		{"custom_loader_params", map[string]any{"a": struct{}{}}, "not possible"},
		{"custom_loader_params", map[string]any{"a": long}, "at most"},
		{"custom_loader_params", map[string]any{long: 1}, "at most"},
		{"custom_loader_params", map[string]any{"a": strings.Repeat("x", 40<<10), "b": strings.Repeat("x", 40<<10)}, "as JSON"},
		{"team", "Platform", "lower-case"},
		{"team", "-x", "lower-case"},
		{"team", strings.Repeat("x", 65), "at most 64"},
		{"revision", "../main", "branch, tag or commit"},
		{"revision", "--upload-pack=x", "branch, tag or commit"},
		{"description", strings.Repeat("x", registry.MaxDescription+1), "4097 bytes"},
	} {
		t.Run(fmt.Sprintf("%s/%.40q", c.field, fmt.Sprint(c.value)), func(t *testing.T) {
			wantField(t, with(c.field, c.value), c.field, c.says)
		})
	}
}

// TestTenMegabytes and TestControlCharacters try every field that takes text.
func TestTenMegabytes(t *testing.T) {
	long := strings.Repeat("x", 10<<20)
	for _, f := range registry.Fields {
		if f.Kind == registry.KindString || f.Kind == registry.KindEnum || f.Kind == registry.KindDuration {
			t.Run(f.Name, func(t *testing.T) { wantField(t, with(f.Name, long), f.Name) })
		}
	}
	wantField(t, with("tags", []any{long}), "tags")
	in := with(long, "x")
	_, errs := registry.Decode(in)
	if len(errs) != 1 || len(errs[0].Field) > 100 || !strings.Contains(errs[0].Msg, "is not a field") {
		t.Errorf("a field with a name of 10 MB: %d errors, the first on a field of %d bytes", len(errs), len(errs[0].Field))
	}
}

func TestControlCharacters(t *testing.T) {
	for _, bad := range []string{"\x00", "\x1b[31m", "\x7f", "\u0085", "\u202e", "\u2066", "\u2028", "\xff\xfe"} {
		for _, f := range registry.Fields {
			if f.Kind == registry.KindString || f.Kind == registry.KindEnum || f.Kind == registry.KindDuration {
				t.Run(fmt.Sprintf("%s/%q", f.Name, bad), func(t *testing.T) { wantField(t, with(f.Name, "/a"+bad+"b"), f.Name) })
			}
		}
		wantField(t, with("tags", []any{"a" + bad + "b"}), "tags", "entry 1")
		wantField(t, with("custom_loader_params", map[string]any{"a" + bad: 1}), "custom_loader_params")
		wantField(t, with("custom_loader_params", map[string]any{"a": []any{"b" + bad}}), "custom_loader_params")
	}
	for _, f := range registry.Fields {
		if f.Kind != registry.KindString || f.Name == "description" {
			continue
		}
		wantField(t, with(f.Name, "/a\nb"), f.Name)
	}
	if m := wantGood(t, with("description", "two\n\tlines")); m.Description != "two\n\tlines" {
		t.Errorf("description became %q", m.Description)
	}
}

func TestUnknownFields(t *testing.T) {
	for name, says := range map[string]string{
		"modelid":     "did you mean model_id?",
		"Source_Type": "did you mean source_type?",
		"colour":      "is not a field of a model",
		"":            "is not a field of a model",
	} {
		wantField(t, with(name, "x"), name, says)
	}
	if _, ok := registry.FieldByName("colour"); ok {
		t.Error("FieldByName found colour")
	}
}

func TestSourcePaths(t *testing.T) {
	for _, c := range []struct{ source, path, says string }{
		{"local", "models/llama", "absolute"},
		{"local", "./llama", "absolute"},
		{"local", "~/llama", "absolute"},
		{"local", "/opt/../etc/passwd", "must not contain .."},
		{"local", "/opt/models/..", "must not contain .."},
		{"huggingface", "/opt/models", "Hub model id"},
		{"huggingface", "../secret", "Hub model id"},
		{"huggingface", "org/name/more", "Hub model id"},
		{"huggingface", "org//name", "Hub model id"},
		{"huggingface", "-org/name", "Hub model id"},
		{"huggingface", "org/na me", "Hub model id"},
		{"huggingface", "org/name.git", "Hub model id"},
		{"huggingface", "org/naïve", "Hub model id"},
		{"huggingface", "https://ada:hf_verysecret@huggingface.co/org/name", "must not carry a user name"},
		{"huggingface", "hf://ada:hf_verysecret@org/name", "must not carry a user name"},
		{"huggingface", "https:///org/name", "Hub model id"},
		{"s3", "/bucket/key", "s3://bucket"},
		{"s3", "s3://", "s3://bucket"},
		{"s3", "s3:///key", "s3://bucket"},
		{"s3", "s3://key:secret@bucket/x", "s3://bucket"},
		{"s3", "s3://bucket/../other", "must not contain .."},
		{"ollama", "../llama", "Ollama model name"},
		{"ollama", "/llama", "Ollama model name"},
		{"ollama", "--insecure", "Ollama model name"},
		{"ollama", "two words", "Ollama model name"},
		{"external_service", "localhost:8000", "base URL"},
		{"external_service", "file:///etc/passwd", "base URL"},
		{"external_service", "http://", "names a host"},
		{"external_service", "http://user:pass@host", "must not carry"},
		{"external_service", "http://host/?a=b", "without ?"},
		{"external_service", "http://host/%zz", "base URL"},
	} {
		t.Run(c.source+" "+c.path, func(t *testing.T) {
			wantField(t, given(map[string]any{"source_type": c.source, "source_path": c.path}), "source_path", c.says)
		})
	}
	for _, c := range []struct{ source, path string }{
		{"local", "/opt/models/my model (v2)"}, {"local", "/opt/模型"}, {"local", "/opt/a..b"},
		{"huggingface", "gpt2"}, {"huggingface", "meta-llama/Llama-2-7b-chat-hf"},
		{"s3", "s3://bucket"}, {"s3", "s3://bucket/a/b c/"},
		{"ollama", "llama3.2:3b"}, {"ollama", "registry.example/library/llama3:latest"},
		{"external_service", "http://127.0.0.1:8000"}, {"external_service", "https://host/prefix"},
	} {
		wantGood(t, given(map[string]any{"source_type": c.source, "source_path": c.path}))
	}
	wantField(t, with("tokenizer_path", "../tokenizer"), "tokenizer_path", "..")
	wantField(t, with("tokenizer_path", "/opt/../tokenizer"), "tokenizer_path", "..")
	wantGood(t, with("tokenizer_path", "/opt/tokenizer"))
	wantGood(t, with("tokenizer_path", "org/tokenizer"))
}

// TestEveryFaultIsTold: several wrong fields are told at once, in the order of the form.
func TestEveryFaultIsTold(t *testing.T) {
	in := given(map[string]any{"priority": "high", "model_id": "a b", "source_type": int64(1), "zebra": true, "tags": "x"})
	_, errs := registry.Decode(in)
	var got []string
	for _, e := range errs {
		got = append(got, e.Field)
	}
	if diff := cmp.Diff([]string{"model_id", "source_type", "tags", "priority", "zebra"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDurations(t *testing.T) {
	for in, want := range map[any]string{
		"15m": "15m", "90m": "1h30m", "1h0m0s": "1h", "45s": "45s", "1.5s": "1.5s", int64(60): "1m", 90: "1m30s",
		json.Number("0.5"): "500ms", 3600.0: "1h", "10h0m10s": "10h0m10s", "0s": "0s",
	} {
		if got := wantGood(t, with("idle_timeout", in)).IdleTimeout.String(); got != want {
			t.Errorf("idle_timeout %v is %s, want %s", in, got, want)
		}
	}
	for body, want := range map[string]string{`"2h"`: `"2h"`, `90`: `"1m30s"`} {
		var d registry.Duration
		if err := json.Unmarshal([]byte(body), &d); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(d); err != nil || string(got) != want {
			t.Errorf("%s came back as %s (%v), want %s", body, got, err, want)
		}
	}
	for _, body := range []string{`"soon"`, `true`, `1e300`, `{}`} {
		var d registry.Duration
		if err := json.Unmarshal([]byte(body), &d); err == nil {
			t.Errorf("%s was read as %s", body, d)
		}
	}
}

// TestNumbersOfParamsCompareEqual: one value is the same whether YAML, JSON or a form gave it.
func TestNumbersOfParamsCompareEqual(t *testing.T) {
	for _, same := range [][]any{
		{1, int64(1), uint64(1), 1.0, json.Number("1"), json.Number("1.0"), json.Number("1e0")},
		{0.5, json.Number("0.5")},
		{int64(1) << 60, json.Number("1152921504606846976"), float64(int64(1) << 60)},
	} {
		want := wantGood(t, with("custom_loader_params", map[string]any{"n": same[0]}))
		for _, v := range same[1:] {
			got := wantGood(t, with("custom_loader_params", map[string]any{"n": v}))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%T %v differs from %T %v: %s", v, v, same[0], same[0], diff)
			}
		}
	}
}

func TestTagsAreTrimmedAndUnique(t *testing.T) {
	got := wantGood(t, with("tags", []any{" chat ", "small", "chat"})).Tags
	if diff := cmp.Diff([]string{"chat", "small"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestDecodeAtOnce is for the race detector: the table of fields is shared by all requests.
func TestDecodeAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, f := range registry.Fields {
				for _, v := range oneOfEach {
					registry.Decode(with(f.Name, v))
				}
				registry.Decode(with(f.Name, int64(-1_000_000)))
			}
		})
	}
	wg.Wait()
}

func TestFieldsDescribeThemselves(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range registry.Fields {
		if seen[f.Name] {
			t.Errorf("%s is there twice", f.Name)
		}
		seen[f.Name] = true
		if !strings.HasSuffix(f.Help, ".") {
			t.Errorf("the help of %s is not a sentence: %q", f.Name, f.Help)
		}
		if (f.Kind == registry.KindEnum) != (len(f.Options) > 0) {
			t.Errorf("%s is of kind %s and has the options %v", f.Name, f.Kind, f.Options)
		}
		if got, ok := registry.FieldByName(f.Name); !ok || got.Name != f.Name {
			t.Errorf("FieldByName(%s) is %v, %v", f.Name, got.Name, ok)
		}
	}
	// Every field of Model in JSON is in the table and the other way round.
	var m registry.Model
	b, err := json.Marshal(fill(&m))
	if err != nil {
		t.Fatal(err)
	}
	inJSON, err := registry.DecodeObject(b)
	if err != nil {
		t.Fatal(err)
	}
	for name := range inJSON {
		if !seen[name] {
			t.Errorf("Model has %s and the table has not", name)
		}
	}
	for name := range seen {
		if _, ok := inJSON[name]; !ok {
			t.Errorf("the table has %s and Model has not", name)
		}
		f, _ := registry.FieldByName(name)
		if f.Value(m) == nil {
			t.Errorf("%s has no value in a model that has all", name)
		}
	}
}

// fill gives every field a value other than its default.
func fill(m *registry.Model) *registry.Model {
	*m = registry.Model{
		ModelID: "a/b", SourceType: registry.SourceHuggingFace, SourcePath: "a/b", ModelFormat: registry.FormatSafetensors,
		Revision: "v1", QuantizationBits: 4, DevicePreference: registry.DeviceCPU, RequiredGPUMemoryMB: 1, RequiredRAMMB: 2,
		CustomLoaderParams: map[string]any{"auth_token": "x"}, TokenizerPath: "a/t", TrustRemoteCode: true, Engine: "vllm",
		Team: "research", Description: "d", Tags: []string{"t"}, ContextLength: 1, GPUIDs: []int{0}, IdleTimeout: 1e9,
		Pinned: true, Priority: 1,
	}
	return m
}

func TestRoundTripOfEveryField(t *testing.T) {
	var want registry.Model
	fill(&want)
	got, errs := registry.Decode(registry.Encode(want))
	if diff := cmp.Diff(want, got); diff != "" || len(errs) > 0 {
		t.Errorf("%v %s", errs, diff)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err = registry.DecodeJSON(b)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("through JSON: %v %s", err, diff)
	}
	if enc := registry.Encode(registry.Model{}.WithDefaults()); len(enc) != 0 {
		t.Errorf("defaults are written: %v", enc)
	}
}
