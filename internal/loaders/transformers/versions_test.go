package transformers_test

import (
	"bufio"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// envPython4 names an interpreter with transformers 4.57, the oldest that the worker runs on.
const envPython4 = "LLMM_TEST_TRANSFORMERS4_PYTHON"

// oldest returns the interpreter with transformers 4.57 and the folder of models made by it: those that 5.x writes name
// classes that 4.57 does not have.
func oldest(t *testing.T) (python, dir string) {
	t.Helper()
	python = os.Getenv(envPython4)
	if cache, err := os.UserCacheDir(); err == nil && python == "" {
		found, err := filepath.Glob(filepath.Join(cache, "llmm", "tools", "transformers4", "*", "complete"))
		if err == nil && len(found) > 0 {
			python = filepath.Join(filepath.Dir(slices.Max(found)), "bin", "python")
		}
	}
	if python == "" {
		if testing.Short() || os.Getenv(envNone) == "1" {
			t.Skip("no transformers 4.57")
		}
		t.Fatalf("no transformers 4.57: run scripts/transformers4-tool, or set %s; -short or %s=1 skips this", envPython4, envNone)
	}
	dir, err := makeModels(transformers.Options{Python: python})
	if err != nil {
		t.Fatal(err)
	}
	return python, dir
}

// TestOldestTransformers holds the worker to its promise to run on transformers 4.57 as well: it loads, chats, streams, is
// left by a client, embeds, and refuses a pickle with code in it and code of the model's own.
func TestOldestTransformers(t *testing.T) {
	python, dir := oldest(t)
	with := func(t *testing.T, s loaders.LoadSpec) (loaders.Instance, []registry.Progress, error) {
		return loadWith(t, transformers.New(transformers.Options{Python: python, TagPrefix: tagOf(t)}), s)
	}
	v, err := transformers.New(transformers.Options{Python: python}).Check(t.Context())
	if err != nil || !strings.HasPrefix(v.Version, "4.57.") {
		t.Fatalf("%+v, %v", v, err)
	}
	t.Run("a language model", func(t *testing.T) {
		t.Parallel()
		in, reports, err := with(t, spec(filepath.Join(dir, "llama-sharded"), nil))
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
		}
		if ep := in.Endpoint(); ep.ModelClass != "LlamaForCausalLM" || !slices.Equal(ep.APIs, []registry.API{registry.APIChat, registry.APICompletions}) {
			t.Errorf("the endpoint says %+v", ep)
		}
		if !slices.ContainsFunc(reports, func(p registry.Progress) bool {
			return p.Stage == registry.StageWeights && p.Done > 1 && p.Done == p.Total
		}) {
			t.Errorf("the weights' progress is not told: %+v", reports)
		}
		chat := map[string]any{"messages": []any{map[string]any{"role": "user", "content": "x"}}, "max_tokens": 8, "temperature": 0}
		code, got := ask(t, in, "/v1/chat/completions", chat)
		if code != http.StatusOK {
			t.Fatalf("status %d: %v", code, got)
		}
		whole := got["choices"].([]any)[0].(map[string]any)["message"].(map[string]any)["content"].(string)
		chat["stream"] = true
		if streamed := streamedText(t, in, chat); whole == "" || streamed != whole {
			t.Errorf("the stream gives %q, the whole answer is %q", streamed, whole)
		}
		hangUp(t, in)
	})
	t.Run("an encoder", func(t *testing.T) {
		t.Parallel()
		in, _, err := with(t, spec(filepath.Join(dir, "bert-plain"), nil))
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
		}
		code, got := ask(t, in, "/v1/embeddings", map[string]any{"input": []string{"one", "two"}})
		if code != http.StatusOK || len(got["data"].([]any)) != 2 {
			t.Errorf("status %d: %v", code, got)
		}
	})
	t.Run("a pickle with code in it", func(t *testing.T) {
		t.Parallel()
		bad, ran := copiedFrom(t, filepath.Join(dir, "bert")), filepath.Join(t.TempDir(), "ran")
		if out, err := exec.CommandContext(t.Context(), python, "-c", evil, ran, filepath.Join(bad, "pytorch_model.bin")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		s := spec(bad, nil)
		s.Model.ModelFormat = registry.FormatTransformersPT
		_, _, err := with(t, s)
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureCorruptFile || !strings.Contains(f.Msg, "more than tensors") {
			t.Errorf("got %v", err)
		}
		notRun(t, ran)
	})
	t.Run("code of the model's own", func(t *testing.T) {
		t.Parallel()
		own, ran := ownCode(t, filepath.Join(dir, "llama"))
		_, _, err := with(t, spec(own, nil))
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureUnsupportedArch || !strings.Contains(f.Msg, "trust_remote_code") {
			t.Errorf("got %v", err)
		}
		notRun(t, ran)
		s := spec(own, nil)
		s.Model.TrustRemoteCode = true
		in, _, err := with(t, s)
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
		}
		answersByOwnCode(t, in, ran)
	})
}

// streamedText is the text of a streamed chat.
func streamedText(t *testing.T, in loaders.Instance, body map[string]any) string {
	t.Helper()
	resp := open(t, in, "/v1/chat/completions", body)
	defer func() { _ = resp.Body.Close() }()
	var text strings.Builder
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var e struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		unmarshal(t, []byte(data), &e)
		for _, c := range e.Choices {
			text.WriteString(c.Delta.Content)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
