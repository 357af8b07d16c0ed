package vllm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/loaders/tiny"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The real vLLM, and the folder that a test keeps its model in, for the process that plays a manager.
const (
	envVLLM  = "LLMM_TEST_VLLM"
	envModel = "LLMM_TEST_VLLM_MODEL"
)

func realLoader(tag string) loaders.Loader {
	return New(Options{Path: os.Getenv(envVLLM), TagPrefix: tag})
}

// realHarness loads the tiny model of a self-test, whose folder exists.
func realHarness(dir string) loadertest.Harness {
	return loadertest.Harness{
		New: realLoader,
		Spec: func() loaders.LoadSpec {
			return loaders.LoadSpec{Device: registry.DeviceCPU,
				Artifact: registry.Artifact{Path: dir, Bytes: 1 << 20, Facts: registry.Facts{Format: registry.FormatSafetensors, Architecture: "LlamaForCausalLM", ContextLength: tiny.ContextLength}},
				Model:    registry.Model{ModelID: "test/tiny", SourceType: registry.SourceLocal, SourcePath: dir, ModelFormat: registry.FormatSafetensors, CustomLoaderParams: New(Options{}).TrialParams()},
			}
		},
		Kills: 6, Span: 30 * time.Second, Notes: 400 * time.Millisecond,
	}
}

// TestConformanceOfRealVLLM takes many minutes, so that it runs where somebody asks for it: make vllm.
func TestConformanceOfRealVLLM(t *testing.T) {
	if os.Getenv(envVLLM) == "" {
		t.Skipf("%s names no vLLM; `make vllm` installs one and runs this, and TestConformance runs a stand-in", envVLLM)
	}
	dir := t.TempDir()
	if _, _, err := tiny.Write(dir, registry.FormatSafetensors); err != nil {
		t.Fatal(err)
	}
	t.Setenv(envModel, dir)
	v, err := realLoader("").Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("vLLM %s at %s on %v", v.Version, v.Path, v.Devices)
	loadertest.Run(t, realHarness(dir))
}

// TestRealVLLM: what it loads tells what it does in the words that are read, and what it cannot load it says as expected.
func TestRealVLLM(t *testing.T) {
	if os.Getenv(envVLLM) == "" {
		t.Skipf("%s names no vLLM; `make vllm` installs one and runs this", envVLLM)
	}
	tag := vllmTag + "-real"
	start := func(dir string) (loaders.Instance, error) {
		s := realHarness(dir).Spec()
		s.Model = s.Model.WithDefaults()
		s.InstanceID, s.Dir = filepath.Base(t.TempDir()), t.TempDir()
		s.LogPath, s.Started = filepath.Join(s.Dir, "engine.log"), func(registry.Handle) {}
		return realLoader(tag).Load(t.Context(), s, func(registry.Progress) {})
	}
	whole := t.TempDir()
	if _, _, err := tiny.Write(whole, registry.FormatSafetensors); err != nil {
		t.Fatal(err)
	}
	in, err := start(whole)
	if err != nil {
		t.Fatalf("%v\n%v", err, registry.AsError(err).Failure)
	}
	before, err := in.(loaders.Meter).Activity(t.Context())
	if err != nil || before.Running == nil || before.Waiting == nil || before.KVCacheUse == nil || before.PromptTokens == nil || before.GeneratedTokens == nil || before.Preemptions == nil {
		t.Errorf("it tells %+v, %v", before, err)
	}
	if _, err := in.(*Instance).Post(t.Context(), realCompletion(20)); err != nil {
		t.Error(err)
	}
	for after := before; after.GeneratedTokens != nil && *after.GeneratedTokens < *before.GeneratedTokens+20; { // counted soon after it has answered
		if after, err = in.(loaders.Meter).Activity(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after.FirstTokenSeconds == nil || after.WholeAnswerSeconds == nil || *after.WholeAnswerSeconds < *after.FirstTokenSeconds {
			t.Errorf("it tells %+v of how long answers take", after)
		}
	}
	if err := in.(loaders.Sleeper).Sleep(t.Context()); registry.CodeOf(err) != registry.CodeUnsupported {
		t.Errorf("asleep on the CPU: %v", err)
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct {
		spoil func(dir string) error
		kind  registry.FailureKind
	}{
		"without weights":      {func(dir string) error { return os.Remove(filepath.Join(dir, "model.safetensors")) }, registry.FailureMissingFile},
		"with weights cut off": {func(dir string) error { return os.Truncate(filepath.Join(dir, "model.safetensors"), 4096) }, registry.FailureCorruptFile},
		"an unknown architecture": {func(dir string) error {
			return replaceIn(filepath.Join(dir, "config.json"), "LlamaForCausalLM", "NobodyForCausalLM")
		}, registry.FailureUnsupportedArch},
	} {
		dir := t.TempDir()
		if _, _, err := tiny.Write(dir, registry.FormatSafetensors); err != nil {
			t.Fatal(err)
		}
		if err := c.spoil(dir); err != nil {
			t.Fatal(err)
		}
		in, err := start(dir)
		if err == nil {
			t.Errorf("%s: it loads", what)
			_ = in.Stop(t.Context())
			continue
		}
		if f := registry.AsError(err).Failure; f == nil || f.Kind != c.kind {
			t.Errorf("%s: %v: %+v", what, err, f)
		}
	}
	if left, err := process.FindTagged(tag); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func replaceIn(path, old, with string) error {
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(old)) {
		return fmt.Errorf("%s is not in %s: %w", old, path, err)
	}
	return os.WriteFile(path, bytes.ReplaceAll(b, []byte(old), []byte(with)), 0o600)
}

func realCompletion(tokens int) httpengine.API {
	return httpengine.API{Path: "/v1/completions", Body: map[string]any{"model": "test/tiny", "prompt": "Hi", "max_tokens": tokens, "ignore_eos": true}}
}
