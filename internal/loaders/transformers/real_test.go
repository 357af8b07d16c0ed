package transformers_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The real engine, from the environment or from where `llmm engine install transformers` puts it.
const (
	envPython = "LLMM_TEST_TRANSFORMERS_PYTHON"
	envNone   = "LLMM_TEST_NO_ENGINE"
)

func TestMain(m *testing.M) {
	os.Exit(loadertest.Main(m, func() *loadertest.Harness {
		if dir := os.Getenv(envONNXVictim); dir != "" {
			h := onnxHarness(dir)
			return &h
		}
		dir, err := makeModels(options(""))
		if err != nil {
			fmt.Println(err)
			return nil
		}
		h := harness(filepath.Join(dir, "llama-sharded"))
		return &h
	}))
}

func options(tag string) transformers.Options {
	o := transformers.Options{Python: os.Getenv(envPython), TagPrefix: tag}
	if cache, err := os.UserCacheDir(); err == nil {
		o.SearchDirs = []string{filepath.Join(cache, "llmm", "engines")}
	}
	return o
}

// makeModels makes the tiny models, once for each version of the script and of the engine, and returns their folder.
func makeModels(o transformers.Options) (string, error) {
	v, err := transformers.New(o).Check(context.Background())
	if err != nil {
		return "", err
	}
	script, err := os.ReadFile("testdata/make_models.py")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(script, v.Version...))
	dir := filepath.Join(cache, "llmm", "test-models", hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, ".complete")); err == nil {
		return dir, nil
	}
	cmd := exec.Command(v.Path, "testdata/make_models.py", dir) //nolint:noctx // it is quick, or the tests end it
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("the models cannot be made: %w\n%s", err, out)
	}
	return dir, os.WriteFile(filepath.Join(dir, ".complete"), nil, 0o600)
}

// models returns the folder of the tiny models. A machine without the engine fails, so that nobody believes that these
// tests have passed; -short and LLMM_TEST_NO_ENGINE=1 say that it is meant.
func models(t *testing.T) string {
	t.Helper()
	dir, err := makeModels(options(""))
	if err == nil {
		return dir
	}
	if testing.Short() || os.Getenv(envNone) == "1" {
		t.Skip(err)
	}
	t.Fatalf("%v: set %s, or run `llmm engine install transformers`; -short or %s=1 skips this", err, envPython, envNone)
	return ""
}

func spec(path string, params map[string]any) loaders.LoadSpec {
	if params == nil {
		params = map[string]any{}
	}
	// One thread: several wait for each other at every layer, which takes long when other tests use the CPUs.
	if _, ok := params["threads"]; !ok {
		params["threads"] = int64(1)
	}
	return loaders.LoadSpec{Device: registry.DeviceCPU, Artifact: registry.Artifact{Path: path},
		Model: registry.Model{ModelID: "test/model", SourceType: registry.SourceLocal, SourcePath: path, ModelFormat: registry.FormatSafetensors, ContextLength: 512, CustomLoaderParams: params}}
}

func harness(path string) loadertest.Harness {
	return loadertest.Harness{
		New:   func(tag string) loaders.Loader { return transformers.New(options(tag)) },
		Spec:  func() loaders.LoadSpec { return spec(path, nil) },
		Kills: 6, Span: 6 * time.Second,
	}
}

func TestConformance(t *testing.T) {
	loadertest.Run(t, harness(filepath.Join(models(t), "llama-sharded")))
}

// load fills in what the manager would and loads with the real engine.
func load(t *testing.T, s loaders.LoadSpec) (loaders.Instance, error) {
	t.Helper()
	in, _, err := loadWith(t, transformers.New(options(tagOf(t))), s)
	return in, err
}

// tagOf is a test's own, so that tests that run beside each other do not see each other's workers.
func tagOf(t *testing.T) string {
	return fmt.Sprintf("transformerstest-%d-%s", os.Getpid(), strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
}

func loadWith(t *testing.T, l *transformers.Loader, s loaders.LoadSpec) (loaders.Instance, []registry.Progress, error) {
	t.Helper()
	s.Dir = t.TempDir()
	s.LogPath, s.InstanceID = filepath.Join(t.TempDir(), "log"), strings.ReplaceAll(t.Name(), "/", "-")
	s.Model = s.Model.WithDefaults()
	s.Started = func(registry.Handle) {}
	var reports []registry.Progress
	in, err := l.Load(t.Context(), s, func(p registry.Progress) { reports = append(reports, p) })
	t.Cleanup(func() {
		if in != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := in.Stop(ctx); err != nil {
				t.Error(err)
			}
		}
		if left, err := process.FindTagged(tagOf(t)); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		if entries, err := os.ReadDir(s.Dir); err != nil || len(entries) > 0 {
			t.Errorf("left in the instance's folder: %v, %v", entries, err)
		}
	})
	return in, reports, err
}

func mustLoad(t *testing.T, s loaders.LoadSpec) loaders.Instance {
	t.Helper()
	in, err := load(t, s)
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
	}
	return in
}

func tail(err error) []string {
	if f := registry.AsError(err).Failure; f != nil {
		return f.LogTail
	}
	return nil
}

// ask posts body and returns the status and the answer.
func ask(t *testing.T, in loaders.Instance, path string, body any) (int, map[string]any) {
	t.Helper()
	return answerOf(t, open(t, in, path, body))
}

// get is ask without a body.
func get(t *testing.T, in loaders.Instance, path string) (int, map[string]any) {
	t.Helper()
	return answerOf(t, send(t, in, path, nil))
}

// open posts body and returns the answer as it begins.
func open(t *testing.T, in loaders.Instance, path string, body any) *http.Response {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, in, path, b)
}

func send(t *testing.T, in loaders.Instance, path string, body []byte) *http.Response {
	t.Helper()
	resp, err := loadertest.Send(t, in, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func answerOf(t *testing.T, resp *http.Response) (int, map[string]any) {
	t.Helper()
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatalf("status %d: %v in %.300s", resp.StatusCode, err, text)
	}
	return resp.StatusCode, out
}

func unmarshal(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%v in %.300s", err, b)
	}
}
