package transformers_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestImportsNothingFromOtherFolders plants modules in the folder of temporary files, which every user of the machine may
// write to, and in the one that the worker runs in. The interpreter is one to which PYTHONSAFEPATH says nothing, as Python
// before 3.11 does not know it.
func TestImportsNothingFromOtherFolders(t *testing.T) {
	models(t) // fails where there is no engine
	v, err := transformers.New(options("")).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shared, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	plant := func(dir string) {
		for _, name := range []string{"json", "asyncio", "runpy", "numpy", "tokenizers", "onnxruntime", "torch", "sitecustomize", "llmm_worker"} {
			write(t, filepath.Join(dir, name+".py"), fmt.Sprintf("import os; os.makedirs(%q, exist_ok=True)", ran))
		}
	}
	plant(shared)
	python := filepath.Join(t.TempDir(), "python")
	script := fmt.Sprintf("#!/bin/sh\nunset PYTHONSAFEPATH\nPYTHONPATH=%s; export PYTHONPATH\nexec %s \"$@\"\n", shared, v.Path)
	if err := os.WriteFile(python, []byte(script), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", shared)
	t.Chdir(shared)
	l := transformers.New(transformers.Options{Python: python, TagPrefix: tagOf(t), WorkerDir: t.TempDir()})
	if _, err := l.Check(t.Context()); err != nil {
		t.Errorf("the interpreter is not found: %v", err)
	}
	notRun(t, ran)

	// A load that fails after the worker has imported what it needs, which for ONNX takes a moment only.
	model := t.TempDir()
	write(t, filepath.Join(model, "model.onnx"), "")
	s := spec(model, nil)
	s.Model.ModelFormat = registry.FormatONNX
	s.Model.ModelID = "test/planted"
	s.Artifact.Files = []registry.File{{Path: "model.onnx"}}
	s.Dir = t.TempDir()
	plant(s.Dir)
	s.LogPath, s.InstanceID, s.Model = filepath.Join(t.TempDir(), "log"), "planted", s.Model.WithDefaults()
	s.Started = func(registry.Handle) {}
	_, err = l.Load(t.Context(), s, func(registry.Progress) {})
	if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureMissingFile || !strings.Contains(f.Msg, "config.json") {
		t.Errorf("got %v\n%s", err, strings.Join(tail(err), "\n"))
	}
	notRun(t, ran)
}
