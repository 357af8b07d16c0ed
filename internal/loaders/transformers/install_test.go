package transformers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestInstallBringsAnEnvironmentUpToDate runs the installer over an environment that was made by another list, with programs
// in the place of Python and uv that write down what they are asked.
func TestInstallBringsAnEnvironmentUpToDate(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	asked := filepath.Join(t.TempDir(), "asked")
	script := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil { //nolint:gosec // it is to be run
			t.Fatal(err)
		}
	}
	python := fmt.Sprintf(`case "$*" in *importlib.metadata*) echo '{"python": "3.11.7", "torch": "2.15.0", "transformers": %q, "safetensors": "0.8.0", "site": "/"}';; esac`, bundled)
	script(filepath.Join(bin, "python3"), "exit 0")
	script(filepath.Join(bin, "uv"), `echo "$*" >> `+asked+`; [ "$1" = venv ] && { mkdir -p "$5/bin"; printf '#!/bin/sh\n%s\n' '`+strings.ReplaceAll(python, "'", `'\''`)+`' > "$5/bin/python"; chmod +x "$5/bin/python"; }; exit 0`)
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	env := filepath.Join(dir, Name, bundled)
	makes := func() []string {
		t.Helper()
		_ = os.Remove(asked)
		var last registry.Progress
		if err := New(Options{TagPrefix: "transformersinstall"}).Install(t.Context(), dir, func(p registry.Progress) { last = p }); err != nil {
			t.Fatal(err)
		}
		if last.Stage != registry.StageReady {
			t.Errorf("the last that was told is %+v", last)
		}
		text, err := os.ReadFile(asked)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var steps []string
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "--version") {
				steps = append(steps, strings.Fields(line)[0])
			}
		}
		return steps
	}
	if got := makes(); strings.Join(got, " ") != "venv pip" {
		t.Errorf("where there was nothing, uv was asked for %q", got)
	}
	if got := makes(); got != nil {
		t.Errorf("what is up to date was installed again: %q", got)
	}
	own := filepath.Join(env, "lib", "own.py")
	script(own, "somebody's own package")
	if err := os.Symlink("own.py", filepath.Join(env, "lib", "link")); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"made by an older list": func() error {
			return os.WriteFile(filepath.Join(env, install.PackagesFile), []byte("torch==1.0\n"), 0o600)
		},
		"made before there was one": func() error { return os.Remove(filepath.Join(env, install.PackagesFile)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if got := makes(); strings.Join(got, " ") != "pip" {
			t.Errorf("%s: uv was asked for %q", name, got)
		}
		if b, err := os.ReadFile(filepath.Join(env, install.PackagesFile)); err != nil || string(b) != packages() {
			t.Errorf("%s: the list in it is %.60q, %v", name, b, err)
		}
		if _, err := os.Stat(filepath.Join(env, "lib", "link")); err != nil {
			t.Errorf("%s: what somebody had installed is gone: %v", name, err)
		}
	}
	script(filepath.Join(env, "bin", "python"), "exit 1")
	if got := makes(); strings.Join(got, " ") != "venv pip" {
		t.Errorf("one that does not work is mended with %q", got)
	}

	// An engine runs from the environment, under a title of a Python: nothing is fetched, and nothing replaced.
	if err := os.Remove(filepath.Join(env, install.PackagesFile)); err != nil {
		t.Fatal(err)
	}
	script(filepath.Join(env, "bin", "engine"), "sleep 600")
	p, err := process.Start(process.Spec{Argv: []string{filepath.Join(env, "bin", "engine")}, Env: process.BaseEnv(), Dir: dir, Tag: "transformersinstall/one", LogPath: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(asked)
	err = New(Options{TagPrefix: "transformersinstall"}).Install(t.Context(), dir, nil)
	if registry.CodeOf(err) != registry.CodeConflict || !strings.Contains(err.Error(), "Unload") {
		t.Errorf("under a running engine: %v", err)
	}
	if _, err := os.Stat(asked); err == nil {
		t.Error("under a running engine uv was asked all the same")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := makes(); len(got) == 0 {
		t.Error("once it had ended nothing was installed")
	}
	left, err := os.ReadDir(filepath.Join(dir, "build", Name))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.IsDir() {
			t.Errorf("the folder %s is left", e.Name())
		}
	}
}
