package vllm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestActivity reads what a real vLLM answered, as the stand-in tells it.
func TestActivity(t *testing.T) {
	t.Parallel()
	in, err := load(t, spec(t.TempDir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	meter, ok := in.(loaders.Meter)
	if !ok {
		t.Fatal("it never tells what it does")
	}
	got, err := meter.Activity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	none, prompt, generated, use, first, whole := int64(0), int64(12), int64(30), 0.0, 0.20116925239562988/3, 0.43924760818481445/3
	want := registry.Activity{Running: &none, Waiting: &none, KVCacheUse: &use, PromptTokens: &prompt, GeneratedTokens: &generated, Preemptions: &none,
		FirstTokenSeconds: &first, WholeAnswerSeconds: &whole}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(registry.Activity{}, "At"), cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Error(diff)
	}
}
