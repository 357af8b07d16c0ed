package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell is a tool that runs a script.
func shell(t *testing.T, script string, line func(string)) Tool {
	t.Helper()
	dir := t.TempDir()
	return Tool{Argv: []string{"sh", "-c", script}, Env: Environment(nil), Dir: dir, Log: filepath.Join(dir, "install.log"), Line: line}
}

func TestRun(t *testing.T) {
	j := New("engine", "The Engine", "")
	var lines []string
	if err := j.Run(t.Context(), shell(t, "echo one; echo two >&2", func(l string) { lines = append(lines, l) })); err != nil || !slices.Equal(lines, []string{"one", "two"}) {
		t.Errorf("%q, %v", lines, err)
	}
	for script, want := range map[string]string{
		"echo fine; echo 'Error: no room'; echo bye; exit 3": "sh: Error: no room",
		"echo fine; echo bye; exit 3":                        "sh: bye",
		"exit 3":                                             "sh: it printed nothing",
		"echo linking; kill -9 $$":                           "sh: sh was ended by a signal (killed), perhaps because memory ran out; before that it said: linking",
	} {
		err := j.Run(t.Context(), shell(t, script, nil))
		var te *ToolError
		if !errors.As(err, &te) || te.Error() != want {
			t.Errorf("%s: %v, want %s", script, err, want)
			continue
		}
		if log, err := os.ReadFile(te.Log); err != nil || !strings.Contains(string(log), strings.Join(te.Tail, "\n")) {
			t.Errorf("%s: the log %s says %q, %v", script, te.Log, log, err)
		}
	}
	missing := shell(t, "", nil)
	missing.Argv[0] = "no-such-program"
	if err := j.Run(t.Context(), missing); registry.CodeOf(err) != registry.CodeInternal || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestRunIsStopped ends a tool and the child that it waits for; without that the pipe would stay open and the test hang.
func TestRunIsStopped(t *testing.T) {
	j := New("engine", "The Engine", "mine")
	for name, when := range map[string]string{"before": "", "while": "waiting"} {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		if when == "" {
			cancel()
		}
		err := j.Run(ctx, shell(t, "sleep 600 & echo waiting; wait", func(l string) {
			if l == when {
				cancel()
			}
		}))
		e := registry.AsError(err)
		if e == nil || e.Failure == nil || e.Failure.Kind != registry.FailureCancelled || !errors.Is(err, context.Canceled) || !strings.Contains(e.Msg, "The Engine") || e.Op != "engine.Install" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".lock")
	j := New("engine", "The Engine", "")
	unlock, err := j.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New("engine", "The Engine", "").Lock(path); registry.CodeOf(err) != registry.CodeConflict || !strings.Contains(err.Error(), "The Engine is being installed already") {
		t.Errorf("a second one: %v", err)
	}
	unlock()
	again, err := j.Lock(path)
	if err != nil {
		t.Fatalf("when the first is done: %v", err)
	}
	again()
	if _, err := j.Lock(filepath.Join(path, "x")); registry.CodeOf(err) != registry.CodeInternal {
		t.Errorf("where no file can be: %v", err)
	}
}

func TestEnvironments(t *testing.T) {
	for name, value := range map[string]string{"LLMM_DATA_DIR": "ours", "SOME_API_KEY": "secret", "HTTPS_PROXY": "http://proxy", "GOFLAGS": "-x", "PYTHONPATH": "/p", "VIRTUAL_ENV": "/v", "PIP_INDEX_URL": "https://index.example/simple"} {
		t.Setenv(name, value)
	}
	t.Setenv("UV_DEFAULT_INDEX", "")
	has := slices.Contains[[]string]
	env := Environment([]string{"GOFLAGS"}, "MORE=1")
	if has(env, "LLMM_DATA_DIR=ours") || has(env, "SOME_API_KEY=secret") || has(env, "GOFLAGS=-x") || !has(env, "HTTPS_PROXY=http://proxy") || !has(env, "MORE=1") || !has(env, "PYTHONPATH=/p") {
		t.Errorf("%q", env)
	}
	env = PythonEnvironment("/cache")
	if has(env, "SOME_API_KEY=secret") || has(env, "PYTHONPATH=/p") || has(env, "VIRTUAL_ENV=/v") || !has(env, "UV_DEFAULT_INDEX=https://index.example/simple") || !has(env, "UV_CACHE_DIR=/cache") {
		t.Errorf("%q", env)
	}
}
