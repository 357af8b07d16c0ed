package ollama_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// stub writes a program that prints a text.
func stub(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
}

// fakeGo writes a go whose "install" makes an ollama, as the real one does into GOBIN.
func fakeGo(t *testing.T, install string) string {
	t.Helper()
	bin := t.TempDir()
	stub(t, filepath.Join(bin, "go"), `case "$1" in
mod) exit 0 ;;
install) `+install+` ;;
esac`)
	return bin
}

const makesOllama = `printf '#!/bin/sh\necho "Warning: client version is 0.33.0"\n' >"$GOBIN/ollama"; chmod +x "$GOBIN/ollama"`

// TestInstall: what go builds is put beside links to llama.cpp's programs, is found, and is not built twice.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", fakeGo(t, makesOllama+`; echo built >>"$PWD/count"`)+":/usr/bin:/bin")
	stub(t, filepath.Join(dir, "llamacpp", "9.0", "llama-server"), "exit 0")
	stub(t, filepath.Join(dir, "llamacpp", "10.0", "llama-server"), "exit 0")
	stub(t, filepath.Join(dir, "llamacpp", "10.0", "llama-quantize"), "exit 0")
	l := ollama.New(ollama.Options{SearchDirs: []string{dir}, ModelsDir: t.TempDir(), TagPrefix: tag(t)})
	var said []registry.Progress
	for range 2 {
		if err := l.Install(t.Context(), dir, func(p registry.Progress) { said = append(said, p) }); err != nil {
			t.Fatal(err)
		}
	}
	if last := said[len(said)-1]; last.Stage != registry.StageReady || strings.Contains(last.Msg, "llama-quantize") {
		t.Errorf("the last report is %+v", last)
	}
	root := filepath.Join(dir, "ollama")
	if count, err := os.ReadFile(filepath.Join(root, "count")); err != nil || string(count) != "built\n" {
		t.Errorf("built %q, %v", count, err)
	}
	for _, name := range []string{"llama-server", "llama-quantize"} {
		if at, err := os.Readlink(filepath.Join(root, "0.33.0", "lib", "ollama", name)); err != nil || at != filepath.Join(dir, "llamacpp", "10.0", name) {
			t.Errorf("%s is %s, %v", name, at, err)
		}
	}
	v, err := l.Check(t.Context())
	if err != nil || v.Version != "0.33.0" || v.Path != filepath.Join(root, "0.33.0", "bin", "ollama") || len(v.Devices) != 1 {
		t.Errorf("Check: %+v, %v", v, err)
	}
	left, err := filepath.Glob(filepath.Join(root, ".build-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestInstallFails: what is missing, and a build that fails or is stopped, is told; no program appears.
func TestInstallFails(t *testing.T) {
	withServer := func(t *testing.T) string {
		dir := t.TempDir()
		stub(t, filepath.Join(dir, "llamacpp", "1", "llama-server"), "exit 0")
		return dir
	}
	for name, c := range map[string]struct {
		path string
		dir  func(*testing.T) string
		code registry.Code
		says string
	}{
		"no llama-server": {fakeGo(t, makesOllama), func(t *testing.T) string { return t.TempDir() }, registry.CodeUnavailable, "engine install llamacpp"},
		"no go":           {t.TempDir(), withServer, registry.CodeUnavailable, "https://ollama.com/download"},
		"build fails":     {fakeGo(t, "echo no such package; exit 1"), withServer, registry.CodeInternal, "no such package"},
		"does not run":    {fakeGo(t, `printf '#!/bin/sh\nexit 3\n' >"$GOBIN/ollama"; chmod +x "$GOBIN/ollama"`), withServer, registry.CodeInternal, "does not run"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", c.path)
			if name != "no go" {
				t.Setenv("PATH", c.path+":/usr/bin:/bin")
			}
			dir := c.dir(t)
			l := ollama.New(ollama.Options{SearchDirs: []string{dir}, ModelsDir: t.TempDir(), TagPrefix: tag(t)})
			err := l.Install(t.Context(), dir, func(registry.Progress) {})
			if registry.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v (%s)", err, registry.CodeOf(err))
			}
			if _, err := os.Stat(filepath.Join(dir, "ollama", "0.33.0", "bin", "ollama")); err == nil {
				t.Error("a program appeared")
			}
		})
	}
	t.Run("stopped", func(t *testing.T) {
		t.Setenv("PATH", fakeGo(t, "sleep 600")+":/usr/bin:/bin")
		dir := withServer(t)
		l := ollama.New(ollama.Options{SearchDirs: []string{dir}, ModelsDir: t.TempDir(), TagPrefix: tag(t)})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := l.Install(ctx, dir, func(p registry.Progress) {
			if p.Stage == registry.StageEngine {
				cancel()
			}
		})
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureCancelled {
			t.Errorf("got %v", err)
		}
	})
}
