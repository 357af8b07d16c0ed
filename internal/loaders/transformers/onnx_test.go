package transformers_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// envMiniLM names the folder of the real all-MiniLM-L6-v2; scripts/minilm-tool fetches one.
const envMiniLM = "LLMM_TEST_MINILM"

// minilm returns the folder of the real all-MiniLM-L6-v2, or "".
func minilm() string {
	if dir := os.Getenv(envMiniLM); dir != "" {
		return dir
	}
	if cache, err := os.UserCacheDir(); err == nil {
		dir := filepath.Join(cache, "llmm", "test-models", "all-MiniLM-L6-v2")
		if _, err := os.Stat(filepath.Join(dir, "model.safetensors")); err == nil {
			return dir
		}
	}
	return ""
}

// exported returns the folder of models in ONNX, made once for each version of the script, of the tiny models and of the
// engine.
func exported(t *testing.T) string {
	t.Helper()
	tiny := models(t)
	v, err := transformers.New(options("")).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/export_onnx.py")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(fmt.Sprint(string(script), tiny, minilm(), v.Version)))
	dir := filepath.Join(filepath.Dir(tiny), "onnx-"+hex.EncodeToString(sum[:8]))
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".complete")); err == nil {
		return dir
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), v.Path, "testdata/export_onnx.py", tiny, minilm(), dir).CombinedOutput(); err != nil {
		t.Fatalf("the models cannot be exported: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, ".complete"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// onnxSpec is a load of file within dir, listed as a source does.
func onnxSpec(dir, file string, params map[string]any) loaders.LoadSpec {
	s := spec(dir, params)
	s.Model.ModelFormat = registry.FormatONNX
	s.Artifact = registry.Artifact{Path: filepath.Join(dir, file), Files: []registry.File{{Path: file}, {Path: "config.json"}, {Path: "tokenizer.json"}}}
	return s
}

// expectation is what torch answers, as the exporting script wrote it down.
type expectation struct {
	Texts   []string
	Vectors [][]float64
	Scores  [][]float64
	Filled  []struct {
		Token int
		Score float64
	}
}

func expected(t *testing.T, dir string) expectation {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var e expectation
	unmarshal(t, b, &e)
	return e
}

// alike fails unless the vectors that an embedder gives point where those of the reference do.
func alike(t *testing.T, in loaders.Instance, want expectation, least float64) {
	t.Helper()
	code, got := ask(t, in, "/v1/embeddings", map[string]any{"input": want.Texts})
	if code != http.StatusOK {
		t.Fatalf("status %d: %v", code, got)
	}
	for i, w := range want.Vectors {
		vector := got["data"].([]any)[i].(map[string]any)["embedding"].([]any)
		var dot, length float64
		for k, x := range vector {
			dot += x.(float64) * w[k]
			length += x.(float64) * x.(float64)
		}
		if len(vector) != len(w) || math.Abs(length-1) > 1e-4 || dot < least {
			t.Errorf("%q: cosine %.6f to torch, length² %.6f", want.Texts[i], dot, length)
		}
	}
}

// classified fails unless a classifier gives the scores of the reference.
func classified(t *testing.T, in loaders.Instance, want expectation) {
	t.Helper()
	code, got := ask(t, in, "/v1/classify", map[string]any{"input": want.Texts})
	if code != http.StatusOK {
		t.Fatalf("status %d: %v", code, got)
	}
	for i, w := range want.Scores {
		row := got["data"].([]any)[i].(map[string]any)
		for k, label := range []string{"bad", "fair", "good"} {
			if p := row["scores"].(map[string]any)[label].(float64); math.Abs(p-w[k]) > 1e-4 || w[k] == slices.Max(w) && row["label"] != label {
				t.Errorf("%q is %v, torch says %v", want.Texts[i], row, w)
			}
		}
	}
}

// filled fails unless a masked model fills a gap with the guesses of the reference, also beside a longer text.
func filled(t *testing.T, in loaders.Instance, want expectation) {
	t.Helper()
	code, got := ask(t, in, "/v1/fill-mask", map[string]any{"input": []string{"a much longer [MASK] text than that", "a [MASK] c"}, "top_k": 3})
	if code != http.StatusOK {
		t.Fatalf("status %d: %v", code, got)
	}
	guesses := got["data"].([]any)[1].(map[string]any)["masks"].([]any)[0].([]any)
	if len(guesses) != 3 || len(want.Filled) != 3 {
		t.Fatalf("got %v, torch says %v", guesses, want.Filled)
	}
	for i, w := range want.Filled {
		if g := guesses[i].(map[string]any); int(g["token"].(float64)) != w.Token || math.Abs(g["score"].(float64)-w.Score) > 1e-4 {
			t.Errorf("guess %d is %v, torch says %+v", i, g, w)
		}
	}
	if code, got := ask(t, in, "/v1/fill-mask", map[string]any{"input": "no gap"}); code != http.StatusBadRequest || !strings.Contains(fmt.Sprint(got), "[MASK]") {
		t.Errorf("a text without a gap: status %d: %v", code, got)
	}
}

// TestONNX loads one model of each kind, with its weights inside and outside of the graph, and holds what it answers against
// what torch does. The worker does not import torch, so that all of this takes no longer than one load with it.
func TestONNX(t *testing.T) {
	dir := exported(t)
	only := func(apis ...registry.API) []registry.API { return apis }
	for name, c := range map[string]struct {
		model, file string
		apis        []registry.API
		check       func(t *testing.T, in loaders.Instance, want expectation)
	}{
		"embedder": {"embedder", "onnx/model.onnx", only(registry.APIEmbeddings), func(t *testing.T, in loaders.Instance, want expectation) {
			alike(t, in, want, 0.9999)
			code, got := ask(t, in, "/v1/classify", map[string]any{"input": "x"})
			if code != http.StatusNotFound || !strings.Contains(fmt.Sprint(got), "/v1/embeddings") {
				t.Errorf("status %d: %v", code, got)
			}
			if code, got := ask(t, in, "/v1/embeddings", map[string]any{"input": strings.Repeat("x", 600)}); code != http.StatusBadRequest || !strings.Contains(fmt.Sprint(got), "512") {
				t.Errorf("a text that is too long: status %d: %v", code, got)
			}
		}},
		"external data": {"embedder", "external/model.onnx", only(registry.APIEmbeddings), func(t *testing.T, in loaders.Instance, want expectation) {
			alike(t, in, want, 0.9999)
		}},
		"classifier": {"classifier", "onnx/model.onnx", only(registry.APIClassify), classified},
		"filler":     {"filler", "onnx/model.onnx", only(registry.APIFillMask), filled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, c.model)
			in := mustLoad(t, onnxSpec(path, c.file, nil))
			if ep := in.Endpoint(); !slices.Equal(ep.APIs, c.apis) || ep.ModelClass != "InferenceSession" || ep.TokenizerClass != "Tokenizer" || ep.ContextLength != 512 {
				t.Errorf("the endpoint says %+v", ep)
			}
			c.check(t, in, expected(t, path))
			if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", in.Handle().PID)); err != nil || bytes.Contains(maps, []byte("libtorch")) || !bytes.Contains(maps, []byte("onnxruntime")) {
				t.Errorf("the worker has torch in its memory, or no onnxruntime (%v)", err)
			}
		})
	}
}

// TestConformanceOfONNX: the same promises as with torch, without its seconds.
func TestConformanceOfONNX(t *testing.T) {
	dir := filepath.Join(exported(t), "classifier")
	t.Setenv(envONNXVictim, dir)
	loadertest.Run(t, onnxHarness(dir))
}

// envONNXVictim tells the manager that the suite starts, and kills, to load the model in this folder.
const envONNXVictim = "LLMM_TEST_ONNX_VICTIM"

func onnxHarness(dir string) loadertest.Harness {
	return loadertest.Harness{
		New:   func(tag string) loaders.Loader { return transformers.New(options(tag)) },
		Spec:  func() loaders.LoadSpec { return onnxSpec(dir, "onnx/model.onnx", nil) },
		Kills: 6, Span: time.Second,
	}
}

// TestRealMiniLMInONNX holds all-MiniLM-L6-v2 as ONNX against its safetensors, and what it takes of memory against what was
// predicted.
func TestRealMiniLMInONNX(t *testing.T) {
	if minilm() == "" {
		if testing.Short() || os.Getenv(envNone) == "1" {
			t.Skip("no all-MiniLM-L6-v2")
		}
		t.Fatalf("no all-MiniLM-L6-v2: run scripts/minilm-tool, or set %s; -short or %s=1 skips this", envMiniLM, envNone)
	}
	t.Parallel()
	dir := filepath.Join(exported(t), "minilm")
	s := onnxSpec(dir, "onnx/model.onnx", nil)
	l := transformers.New(options(tagOf(t)))
	in, _, err := loadWith(t, l, s)
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
	}
	alike(t, in, expected(t, dir), 0.9999)
	fi, err := os.Stat(s.Artifact.Path)
	if err != nil {
		t.Fatal(err)
	}
	s.Artifact.Facts = registry.Facts{Format: registry.FormatONNX, WeightBytes: fi.Size(), Parameters: fi.Size() / 4}
	// A batch of long texts must not leave what it needed.
	long := make([]string, 8)
	for i := range long {
		long[i] = strings.Repeat("word ", 500)
	}
	if code, got := ask(t, in, "/v1/embeddings", map[string]any{"input": long}); code != http.StatusOK {
		t.Fatalf("status %d: %v", code, got)
	}
	predicted, resident := l.Estimate(s.Model, s.Artifact, registry.DeviceCPU).Estimated, vmRSS(t, in)
	t.Logf("predicted %d MiB, resident %d MiB", predicted>>20, resident>>20)
	if resident > predicted || predicted > 2*resident {
		t.Errorf("%d bytes were predicted, and %d are resident", predicted, resident)
	}
}

// vmRSS is the memory of an instance's process, in bytes.
func vmRSS(t *testing.T, in loaders.Instance) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("no VmRSS in %s", b)
	return 0
}

// TestBadONNX loads what cannot be: each is told as what it is, with what to do, and nothing is left.
func TestBadONNX(t *testing.T) {
	dir := exported(t)
	spoil := func(t *testing.T, path string, change func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		model, file string
		spoil       func(t *testing.T, dir string, s *loaders.LoadSpec)
		want        registry.FailureKind
		says        string
	}{
		"a graph cut short": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			spoil(t, filepath.Join(dir, "onnx", "model.onnx"), func(b []byte) []byte { return b[:len(b)/2] })
		}, registry.FailureCorruptFile, "model.onnx"},
		"no graph but a page": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			write(t, filepath.Join(dir, "onnx", "model.onnx"), "<html>")
		}, registry.FailureCorruptFile, "model.onnx"},
		"external data that is not there": {"embedder", "external/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			remove(t, filepath.Join(dir, "external"), "model.onnx_data")
		}, registry.FailureMissingFile, "model.onnx_data"},
		"external data cut short": {"embedder", "external/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			spoil(t, filepath.Join(dir, "external", "model.onnx_data"), func(b []byte) []byte { return b[:1000] })
		}, registry.FailureCorruptFile, "external data"},
		"external data that lies elsewhere": {"embedder", "external/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			spoil(t, filepath.Join(dir, "external", "model.onnx"), func(b []byte) []byte {
				return bytes.ReplaceAll(b, []byte("model.onnx_data"), []byte("../config.json\x00")[:15])
			})
		}, registry.FailureCorruptFile, "external data"},
		"a newer opset": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			spoil(t, filepath.Join(dir, "onnx", "model.onnx"), func(b []byte) []byte {
				b[len(b)-1] = 99 // the last field is the version of the operators
				return b
			})
		}, registry.FailureUnsupportedArch, "Opset 99"},
		"a newer format": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			spoil(t, filepath.Join(dir, "onnx", "model.onnx"), func(b []byte) []byte {
				b[1] = 99 // ir_version is the first
				return b
			})
		}, registry.FailureUnsupportedArch, "IR version"},
		"no tokenizer": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			remove(t, dir, "tokenizer.json")
			remove(t, dir, "tokenizer_config.json")
		}, registry.FailureMissingFile, "tokenizer"},
		"a tokenizer that is none": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			write(t, filepath.Join(dir, "tokenizer.json"), "{}")
		}, registry.FailureCorruptFile, "tokenizer.json"},
		"no config": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) { remove(t, dir, "config.json") }, registry.FailureMissingFile, "config.json"},
		"a pooling that is not there": {"embedder", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			remove(t, filepath.Join(dir, "1_Pooling"), "config.json")
		}, registry.FailureMissingFile, "1_Pooling"},
		"a model that writes text": {"filler", "onnx/model.onnx", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			edit(t, filepath.Join(dir, "config.json"), func(m map[string]any) { m["architectures"] = []string{"GPT2LMHeadModel"} })
		}, registry.FailureUnsupportedArch, "generates text"},
		"cuda with an onnxruntime for the CPU": {"embedder", "onnx/model.onnx", func(_ *testing.T, _ string, s *loaders.LoadSpec) {
			s.Device, s.GPUUUIDs = registry.DeviceCUDA, []string{"GPU-none"}
		}, registry.FailureEngineMissing, "without CUDA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := copiedFrom(t, filepath.Join(dir, c.model))
			s := onnxSpec(dir, c.file, nil)
			c.spoil(t, dir, &s)
			_, err := load(t, s)
			e := registry.AsError(err)
			if e == nil || e.Failure == nil || e.Failure.Kind != c.want {
				t.Fatalf("got %v, want %s\n%s", err, c.want, strings.Join(tail(err), "\n"))
			}
			if !strings.Contains(e.Failure.Msg, c.says) || e.Failure.Hint == "" {
				t.Errorf("it says %q, hint %q", e.Failure.Msg, e.Failure.Hint)
			}
		})
	}
	t.Run("settings that ONNX models do not have", func(t *testing.T) {
		s := onnxSpec(filepath.Join(dir, "embedder"), "onnx/model.onnx", map[string]any{"dtype": "float16"})
		s.Model.QuantizationBits = 8
		_, err := load(t, s)
		if e := registry.AsError(err); e.Code != registry.CodeInvalid || len(e.Fields) != 2 || e.Fields[0].Field != "custom_loader_params.dtype" || e.Fields[1].Field != "quantization_bits" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a Python without onnxruntime", func(t *testing.T) {
		python := filepath.Join(t.TempDir(), "python")
		script := "#!/bin/sh\n" + `echo '{"python": "3.11.7", "torch": "2.9.0+cu130", "cuda": "13.0", "transformers": "5.0.0", "safetensors": "0.8.0", "site": "/"}'` + "\n"
		if err := os.WriteFile(python, []byte(script), 0o700); err != nil { //nolint:gosec // it is to be run
			t.Fatal(err)
		}
		l := transformers.New(transformers.Options{Python: python, TagPrefix: tagOf(t)})
		s := onnxSpec(filepath.Join(dir, "embedder"), "onnx/model.onnx", nil)
		_, _, err := loadWith(t, l, s)
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureEngineMissing || !strings.Contains(f.Hint, "llmm engine install transformers") {
			t.Errorf("got %v", err)
		}
		v, err := l.Check(t.Context())
		if err != nil || len(v.Devices) != 2 {
			t.Fatalf("%+v, %v", v, err)
		}
		if o := l.Judge(s.Model, registry.Facts{}, registry.DeviceCPU, v); !o.Sure || !strings.Contains(o.Why, "onnxruntime") {
			t.Errorf("the judgement is %+v", o)
		}
		if n := l.Narrow(s.Model, v); !slices.Equal(n.Devices, []registry.Device{registry.DeviceCPU}) || !strings.Contains(n.NoCUDA, "onnxruntime-gpu") {
			t.Errorf("an ONNX model can run on %v (%s)", n.Devices, n.NoCUDA)
		}
		s.Model.ModelFormat = registry.FormatSafetensors
		if n := l.Narrow(s.Model, v); len(n.Devices) != 2 {
			t.Errorf("a model in safetensors can run on %v", n.Devices)
		}
	})
}

// TestONNXOfADecoder is told before anything is fetched where the config says it.
func TestONNXOfADecoder(t *testing.T) {
	l := transformers.New(transformers.Options{})
	m := registry.Model{ModelFormat: registry.FormatONNX}
	if o := l.Judge(m, registry.Facts{Architecture: "LlamaForCausalLM"}, registry.DeviceCPU, loaders.Version{}); !o.Sure || !strings.Contains(o.Why, "generates text") {
		t.Errorf("the judgement is %+v", o)
	}
	if o := l.Judge(m, registry.Facts{Architecture: "BertModel"}, registry.DeviceCPU, loaders.Version{}); o.Why != "" {
		t.Errorf("the judgement is %+v", o)
	}
}
