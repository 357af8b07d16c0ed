package vllm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// python stands for the machine's: it makes "environments" whose python notes what it was asked to do and does as the
// script says.
func python(t *testing.T, script string) (dir, notes string) {
	t.Helper()
	bin := t.TempDir()
	dir, notes = t.TempDir(), filepath.Join(bin, "notes")
	inner := "#!/bin/sh\necho \"$*\" >> " + notes + "\nenv > " + notes + ".env\n" + script
	outer := "#!/bin/sh\nmkdir -p \"$3/bin\"\ncat > \"$3/bin/python\" <<'END'\n" + inner + "\nEND\nchmod +x \"$3/bin/python\"\n"
	if err := os.WriteFile(filepath.Join(bin, "python3"), []byte(outer), 0o755); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	return dir, notes
}

func TestInstall(t *testing.T) {
	dir, notes := python(t, `mkdir -p "$UV_CACHE_DIR"; echo "Downloaded torch"`)
	t.Setenv("LLMM_ADMIN_TOKEN", "very-secret")
	t.Setenv("PIP_INDEX_URL", "https://index.example/simple")
	var says []string
	l := New(Options{SearchDirs: []string{dir}})
	run := func() error {
		says = nil
		return l.Install(t.Context(), dir, func(p registry.Progress) { says = append(says, string(p.Stage)+" "+p.Msg) })
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(says, "fetch Downloaded torch") || !slices.Contains(says, "ready vLLM "+pinned+" is installed") {
		t.Errorf("it reports %q", says)
	}
	asked, err := os.ReadFile(notes)
	if err != nil || !strings.Contains(string(asked), "-m uv pip install") || !strings.Contains(string(asked), "import vllm, torch") {
		t.Errorf("it ran %q, %v", asked, err)
	}
	env, err := os.ReadFile(notes + ".env")
	if err != nil || strings.Contains(string(env), "very-secret") || !strings.Contains(string(env), "UV_DEFAULT_INDEX=https://index.example/simple") {
		t.Errorf("the tools' environment is %q, %v", env, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "build", Name, "uv-cache")); !os.IsNotExist(err) {
		t.Errorf("what was downloaded is kept beside the environment: %v", err)
	}
	if err := os.Remove(notes); err != nil {
		t.Fatal(err)
	}
	if err := run(); err != nil || len(says) != 1 {
		t.Errorf("a second one does it again: %q, %v", says, err)
	}
	unlock, err := install.New(Name, "vLLM", "").Lock(filepath.Join(dir, "build", Name, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := os.RemoveAll(filepath.Join(dir, Name)); err != nil {
		t.Fatal(err)
	}
	if err := run(); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("two at once: %v", err)
	}
}

func TestInstallFails(t *testing.T) {
	dir, _ := python(t, `echo "error: no route to the index"; exit 2`)
	err := New(Options{}).Install(t.Context(), dir, func(registry.Progress) {})
	if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "Fetching uv failed: error: no route to the index") {
		t.Errorf("it says %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, Name)); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

func TestInstallIsCancelled(t *testing.T) {
	dir, _ := python(t, `echo waiting; sleep 600 & wait`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := New(Options{}).Install(ctx, dir, func(p registry.Progress) {
		if p.Msg == "waiting" {
			cancel()
		}
	})
	if e := registry.AsError(err); e.Failure == nil || e.Failure.Kind != registry.FailureCancelled {
		t.Errorf("it says %v", err)
	}
}
