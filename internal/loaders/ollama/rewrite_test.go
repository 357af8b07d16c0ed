package ollama

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/pytorch/pytorchtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestRoomForWhatIsWrittenHere has PyTorch's files of which Ollama makes more than any disk holds. An Ollama of ours writes
// that here, so that it is refused; a running one writes it wherever it keeps its models, so that here only the safetensors
// need room, which are small.
func TestRoomForWhatIsWrittenHere(t *testing.T) {
	var sent, created int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch {
		case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/api/blobs/"):
			sent++
			w.WriteHeader(http.StatusCreated)
		case r.URL.Path == "/api/create":
			created++
			_, _ = w.Write([]byte(`{"status":"success"}`))
		default: // it has neither the model nor its blobs
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"error":"not found"}`))
		}
	}))
	defer server.Close()
	dir, models := t.TempDir(), t.TempDir()
	for name, content := range map[string][]byte{
		"pytorch_model.bin": pytorchtest.Save(t, pytorchtest.Tensor{Name: "a.weight", Class: "HalfStorage", Shape: []int{4}, Data: make([]byte, 8)}),
		"config.json":       []byte("{}"), "tokenizer.json": []byte("{}"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := New(Options{ModelsDir: models})
	spec := loaders.LoadSpec{
		Model:    registry.Model{ModelID: "m", SourceType: registry.SourceLocal, SourcePath: dir, ModelFormat: registry.FormatTransformersPT},
		Artifact: registry.Artifact{Path: dir, Bytes: 1 << 58},
	}
	w, err := l.weightsOf(spec)
	if err != nil {
		t.Fatal(err)
	}
	report := func(registry.Progress) {}
	_, err = l.rewrite(t.Context(), t.TempDir(), w, newConversion(w, report), cost.disk)
	if e := registry.AsError(err); e == nil || e.Failure == nil || e.Failure.Kind != registry.FailureDiskFull || e.Shortage == nil || e.Shortage.Needed < 1<<59 {
		t.Errorf("to be converted here: %v", err)
	}
	host, err := ParseHost(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	name, err := l.give(t.Context(), clientOf(server.URL), spec, program{host: host, version: "0.33.0"}, w, report)
	if err != nil || name == "" || sent != 3 || created != 1 {
		t.Errorf("to be converted elsewhere: %q, %v, %d files sent, %d models created", name, err, sent, created)
	}
}
