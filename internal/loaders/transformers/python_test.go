package transformers_test

import (
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestWorkerInPython runs the worker's own unit tests with the interpreter that runs the worker.
func TestWorkerInPython(t *testing.T) {
	models(t) // fails, or skips, where there is no engine
	v, err := transformers.New(options("")).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), v.Path, "-m", "unittest", "discover", "-s", "tests")
	cmd.Dir = "worker"
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=.", "OMP_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestEmbeddingsAreThoseOfTheReference compares the vectors of an encoder with what transformers gives in a process of its
// own, one text at a time: mean pooling must not see the padding of a batch.
func TestEmbeddingsAreThoseOfTheReference(t *testing.T) {
	dir := filepath.Join(models(t), "bert-plain")
	l := transformers.New(options(tagOf(t)))
	texts := []string{"one", "a longer text than the first", "漢字"}
	s := spec(dir, map[string]any{"pooling": "mean", "normalize": false})
	in, _, err := loadWith(t, l, s)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(in.Endpoint().APIs, []registry.API{registry.APIEmbeddings}) {
		t.Errorf("the endpoint says %+v", in.Endpoint())
	}
	code, got := ask(t, in, "/v1/embeddings", map[string]any{"input": texts})
	if code != http.StatusOK {
		t.Fatalf("status %d: %v", code, got)
	}
	v, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), v.Path, append([]string{"-c", `
import json, sys
from transformers import AutoModel as M, AutoTokenizer as T
m, k = M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1])
m.eval()
print(json.dumps([m(**k(x, return_tensors="pt")).last_hidden_state.mean(1)[0].tolist() for x in sys.argv[2:]]))`, dir}, texts...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var want [][]float64
	unmarshal(t, out, &want)
	for i, w := range want {
		vector := got["data"].([]any)[i].(map[string]any)["embedding"].([]any)
		if len(vector) != len(w) {
			t.Fatalf("%q: %d numbers, want %d", texts[i], len(vector), len(w))
		}
		for k, x := range vector {
			if math.Abs(x.(float64)-w[k]) > 1e-4 {
				t.Fatalf("%q: number %d is %v, want %v", texts[i], k, x, w[k])
			}
		}
	}
}
