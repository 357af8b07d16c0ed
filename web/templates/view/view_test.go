package view

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 232 << 20: "232 MiB", 1<<30 - 1: "1 GiB",
		18038862643: "16.8 GiB", 128 << 30: "128 GiB", -(2 << 30): "−2 GiB", 99<<30 + 1000<<20: "100 GiB", 1 << 40: "1 TiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPercentIsNotDoneBeforeItIs(t *testing.T) {
	for _, c := range []struct {
		part, whole int64
		want        int
	}{{0, 0, 0}, {5, 0, 0}, {-1, 10, 0}, {241, 389, 61}, {999, 1000, 99}, {1000, 1000, 100}, {2000, 1000, 100}} {
		if got := Percent(c.part, c.whole); got != c.want {
			t.Errorf("Percent(%d, %d) = %d, want %d", c.part, c.whole, got, c.want)
		}
	}
}

func TestNumbersAndTimes(t *testing.T) {
	now := time.Date(2026, 11, 23, 14, 2, 0, 0, time.UTC)
	for got, want := range map[string]string{
		Count(1250002): "1,250,002", Count(999): "999", Count(-4000): "−4,000", Big(567754752): "568 M", Big(8190735360): "8.2 B", Big(12): "12",
		Duration(3100 * time.Millisecond): "3.1 s", Duration(9960 * time.Millisecond): "10 s", Duration(94 * time.Second): "1 min 34 s",
		Duration(45 * time.Minute): "45 min", Duration(80 * time.Minute): "1 h 20 min", Duration(73 * time.Hour): "3 days", Duration(-1): None,
		Ago(time.Time{}, now): None, Ago(now.Add(-time.Second), now): "now", Ago(now.Add(-4*time.Minute), now): "4 min ago", Ago(now.Add(-30*time.Hour), now): "yesterday",
		Clock(now.Add(-time.Hour), now): "13:02", Clock(now.Add(-48*time.Hour), now): "21 Nov",
		DeviceName("cuda:0"): "GPU 0", DeviceName("cuda:0,1"): "GPUs 0, 1", DeviceName("cpu"): "CPU", DeviceName(""): None, Plural(1, "model", "models"): "1 model", Plural(1200, "model", "models"): "1,200 models",
		Rate(72e6, true): "69 MiB/s", Rate(0, true): "", Rate(54, false): "54/s",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestModelURLIsOneSegment(t *testing.T) {
	for id, want := range map[string]string{
		"qwen3-8b": "/models/qwen3-8b", "meta-llama/Llama-2-7b-chat-hf": "/models/meta-llama%2FLlama-2-7b-chat-hf",
		"a b?c#d%2F": "/models/a%20b%3Fc%23d%252F", "..": "/models/%2E%2E", ".": "/models/%2E", "é/ü": "/models/%C3%A9%2F%C3%BC",
	} {
		got := ModelURL(id)
		if got != want {
			t.Errorf("ModelURL(%q) = %q, want %q", id, got, want)
		}
		back, err := url.PathUnescape(strings.TrimPrefix(got, "/models/"))
		if err != nil || back != id {
			t.Errorf("%q does not come back: %q, %v", id, back, err)
		}
	}
	first, again := RowID("x"), RowID("x")
	if RowID("a/b") == RowID("a-b") || first != again {
		t.Error("row ids are not one per model")
	}
}

func TestStatusWords(t *testing.T) {
	for _, s := range registry.Statuses {
		if got := StatusOf(s, 0, 0).Label; got == "" || (got == "Not loaded") != (s == registry.StatusNotLoaded) {
			t.Errorf("%s has the word %q", s, got)
		}
	}
	if got := StatusOf(registry.StatusLoading, 62, 0).Label; got != "Loading 62%" {
		t.Error(got)
	}
	for place, want := range map[int]string{1: "Queued, 1st", 2: "Queued, 2nd", 3: "Queued, 3rd", 11: "Queued, 11th", 22: "Queued, 22nd", 112: "Queued, 112th"} {
		if got := StatusOf(registry.StatusQueued, 0, place).Label; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestEveryFieldAndStageHasWords(t *testing.T) {
	for _, f := range registry.Fields {
		if FieldLabel(f.Name) == f.Name {
			t.Errorf("%s has no label", f.Name)
		}
	}
	for _, s := range append(registry.LoadStages, registry.UnloadStages...) {
		if StageWord(s) == string(s) {
			t.Errorf("stage %s has no word", s)
		}
	}
}

func TestDeviceShares(t *testing.T) {
	res := registry.Resources{
		Sample: registry.Sample{
			GPUs: []registry.GPU{{Index: 0, Name: "NVIDIA A100", MemoryTotal: 100 << 30, MemoryUsed: 50 << 30, Utilization: -1, Temperature: -1, Power: -1, Usable: true, Processes: []registry.GPUProcess{{PID: 7}, {PID: 4121}}}},
			Host: registry.Host{RAMTotal: 64 << 30, RAMAvailable: 60 << 30, CPUs: 8},
		},
		Reservations: []registry.Reservation{
			{ModelID: "a", Device: "cuda:0", Bytes: 30 << 30, Taken: 30 << 30, PID: 7},
			{ModelID: "b", Device: "cuda:0", Bytes: 20 << 30, Taken: 5 << 30},
		},
	}
	d := DevicesOf(res, nil)
	if len(d) != 2 {
		t.Fatalf("%d devices, want the GPU and the memory", len(d))
	}
	gpu := d[0]
	var labels []string
	end := 0.0
	for _, s := range gpu.Segments {
		labels = append(labels, s.Label)
		if s.X < end-.001 {
			t.Errorf("%s begins at %v, inside the one before", s.Label, s.X)
		}
		end = s.X + s.W
	}
	want := []string{"a · 30 GiB", "b · 5 GiB", "b · promised 15 GiB", "not ours · 15 GiB (pid 4121)"}
	if diff := cmp.Diff(want, labels); diff != "" {
		t.Error(diff)
	}
	if end < 64.9 || end > 65.1 {
		t.Errorf("the bar ends at %v %%, want 65", end)
	}
	if got := gpu.Free(); got != 35<<30 {
		t.Errorf("free is %s, want 35 GiB", Bytes(got))
	}
	if gpu.Segments[0].Color == gpu.Segments[1].Color || gpu.Segments[1].Color != gpu.Segments[2].Color {
		t.Error("two models share a colour, or one has two")
	}
	if got := SparkPath([]float64{0, 1}, false); got != "M0 35L100 1" {
		t.Errorf("spark is %q", got)
	}
}

func TestDevicesNeverOverflowTheirBar(t *testing.T) {
	res := registry.Resources{Sample: registry.Sample{Host: registry.Host{RAMTotal: 10 << 30, RAMAvailable: 0}},
		Reservations: []registry.Reservation{{ModelID: "a", Device: "cpu", Bytes: 40 << 30, Taken: 9 << 30}}}
	d := DevicesOf(res, nil)[0]
	for _, s := range d.Segments {
		if s.W < 0 || s.X+s.W > 100.001 {
			t.Errorf("%s reaches from %v over %v", s.Label, s.X, s.W)
		}
	}
	if d.Free() != 0 {
		t.Error("free must not be negative")
	}
}

func TestDecodeForm(t *testing.T) {
	in := url.Values{
		"model_id": {"  x/y "}, "source_type": {"local"}, "source_path": {"/m.gguf"}, "model_format": {"gguf"}, "context_length": {"8,192"},
		"pinned": {"true"}, "tags": {"chat, fast ,"}, "gpu_ids": {"0, 1"}, "idle_timeout": {"45m"}, "quantization_bits": {""},
		"custom_loader_params": {"threads: 8\r\nauth_token: ${HF_TOKEN}\r\n"}, "persist": {"true"},
	}
	m, form, errs := DecodeForm(in)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	got, fe := registry.Decode(m)
	if len(fe) > 0 {
		t.Fatal(fe)
	}
	want := registry.Model{ModelID: "x/y", SourceType: "local", SourcePath: "/m.gguf", ModelFormat: "gguf", ContextLength: 8192, Pinned: true, Tags: []string{"chat", "fast"}, GPUIDs: []int{0, 1}, IdleTimeout: registry.Duration(45 * time.Minute),
		CustomLoaderParams: got.CustomLoaderParams}.WithDefaults()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if b, _ := json.Marshal(got.CustomLoaderParams); string(b) != `{"auth_token":"${HF_TOKEN}","threads":8}` {
		t.Errorf("params are %s", b)
	}
	if !form.Persist || form.Values["context_length"] != "8,192" {
		t.Error("the form does not come back as it was typed")
	}
}

func TestDecodeFormKeepsWhatIsWrong(t *testing.T) {
	in := url.Values{"model_id": {"x"}, "source_type": {"local"}, "source_path": {"/m"}, "model_format": {"gguf"}, "required_ram_mb": {"a lot"}, "custom_loader_params": {"threads 8"}}
	m, form, errs := DecodeForm(in)
	if len(errs) != 1 || errs[0].Field != "custom_loader_params" {
		t.Errorf("errors are %v", errs)
	}
	_, fe := registry.Decode(m)
	e := &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: append(errs, fe...)}
	form = form.WithErrors(e)
	if !strings.Contains(form.Errors["required_ram_mb"], "System memory must be a whole number") || form.Errors["custom_loader_params"] == "" {
		t.Errorf("errors at the fields are %v", form.Errors)
	}
	if form.Values["required_ram_mb"] != "a lot" {
		t.Error("what was typed is lost")
	}
}

// A form that is opened and saved must not change the model.
func TestFormRoundTrip(t *testing.T) {
	m := registry.Model{ModelID: "x", SourceType: "s3", SourcePath: "s3://b/x", ModelFormat: "onnx", QuantizationBits: 8, RequiredRAMMB: 300, Tags: []string{"a", "b"}, GPUIDs: []int{0, 2},
		IdleTimeout: registry.Duration(90 * time.Minute), Priority: -3, Description: "two\nlines", TrustRemoteCode: true, CustomLoaderParams: map[string]any{"auth_token": "hidden", "n": int64(3), "deep": map[string]any{"a": true}}}.WithDefaults()
	form := FormOf(registry.Record{Model: m, Persist: true})
	in := url.Values{}
	for k, v := range form.Values {
		if v != "" {
			in.Set(k, v)
		}
	}
	if strings.Contains(in.Get("custom_loader_params"), "hidden") {
		t.Error("the form shows a secret")
	}
	raw, _, errs := DecodeForm(in)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	got, fe := registry.Decode(raw)
	if len(fe) > 0 {
		t.Fatal(fe)
	}
	got.CustomLoaderParams = registry.KeepSecrets(got.CustomLoaderParams, m.CustomLoaderParams)
	if diff := cmp.Diff(m, got); diff != "" {
		t.Error(diff)
	}
}

func TestSnippetsQuoteTheID(t *testing.T) {
	p := ModelPage{Record: registry.Record{Model: registry.Model{ModelID: `it's "x"`}}, BaseURL: "http://h:1/"}
	curl := p.Snippets()[0].Code
	if !strings.Contains(curl, `it'\''s \"x\"`) || !strings.Contains(curl, "http://h:1/v1/chat") {
		t.Errorf("curl is %s", curl)
	}
}

func TestOperationSentences(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	op := OperationOf(registry.Operation{State: registry.OperationRunning, Actor: "gateway:ci", Cause: "asked for by a request", StartedAt: now.Add(-9 * time.Second), CreatedAt: now.Add(-9 * time.Second),
		Stages: []registry.Stage{{Name: registry.StageQueue, State: registry.StageSkipped}, {Name: registry.StageWeights, State: registry.StageRunning, Done: 241, Total: 389, Unit: registry.UnitTensors, Rate: 54, ETA: registry.Duration(3 * time.Second)}}}, now)
	if got, want := op.StageLine(), "Weights: 241 of 389 tensors, 54/s, about 3 s left"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := op.Meta(), "asked for by a request · by ci, through the API · 9 s · about 3 s left"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if steps := op.Steps(); len(steps) != 1 || steps[0].Percent != 61 || !steps[0].Current {
		t.Errorf("steps are %+v", steps)
	}
	op.Stages[1].Stalled = true
	if got := op.StageLine(); !strings.Contains(got, "nothing has moved") || strings.Contains(got, "left") {
		t.Errorf("a stalled stage says %q", got)
	}
	rel := OperationOf(registry.Operation{Released: &registry.Released{Device: "cuda:0", Expected: 2 << 30, Measured: 1 << 30, Note: "pid 9 still holds it"}}, now)
	if got, want := rel.ReleasedLine(), "1 GiB came back on GPU 0, 2 GiB expected; not verified: pid 9 still holds it."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
