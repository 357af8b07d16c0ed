package ollama_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestTakesWhatWasPromised holds the estimate against what the kernel counts after a prompt that filled the context, and
// what ps says, and looks that all of it comes back.
func TestTakesWhatWasPromised(t *testing.T) {
	program, gguf := engine(t)
	for _, n := range []int{1024, 4096} {
		prefix := tag(t)
		l := ollama.New(ollama.Options{Path: program, ModelsDir: t.TempDir(), TagPrefix: prefix})
		sp := spec(gguf, nil)
		sp.Model.ContextLength = n
		promised := l.Estimate(sp.Model, sp.Artifact, registry.DeviceCPU)
		in, _ := loadIt(t, l, &sp)
		complete(t, in, strings.Repeat("hello ", 900))
		taken := pss(t, prefix)
		m := running(t, in)
		t.Logf("context %d: promised %d MiB (weights %d, cache %d, overhead %d), taken %d MiB, ps %d MiB", n, promised.Estimated>>20, promised.Weights>>20, promised.KVCache>>20, promised.Overhead>>20, taken>>20, m.Size>>20)
		if taken > promised.Estimated || taken < promised.Estimated/2 {
			t.Errorf("context %d: promised %d MiB, took %d MiB", n, promised.Estimated>>20, taken>>20)
		}
		if m.SizeVRAM != 0 || m.ContextLength != n || in.Endpoint().ContextLength != n {
			t.Errorf("ps shows %+v", m)
		}
		stopIt(t, in)
		if left := pss(t, prefix); left != 0 {
			t.Errorf("%d bytes did not come back", left)
		}
	}
}

// pss is the memory of all that carries a tag, shared pages by their part.
func pss(t *testing.T, prefix string) int64 {
	t.Helper()
	found, err := process.FindTagged(prefix)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, p := range found {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/smaps_rollup")
		if err != nil {
			continue // it ended meanwhile
		}
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, "Pss:"); ok {
				kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += kb << 10
			}
		}
	}
	return sum
}

// TestBadWeights: what is no model is told with its kind and the log's tail, and nothing is left.
func TestBadWeights(t *testing.T) {
	program, gguf := engine(t)
	whole, err := os.ReadFile(gguf)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content []byte
		kind    registry.FailureKind
	}{
		"truncated":            {whole[:len(whole)/2], registry.FailureCorruptFile},
		"a web page":           {[]byte("<html>not here</html>"), registry.FailureCorruptFile},
		"empty":                {nil, registry.FailureCorruptFile},
		"unknown architecture": {bytes.Replace(bytes.Clone(whole), []byte("general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama"), []byte("general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00wibbl"), 1), registry.FailureUnsupportedArch},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.gguf")
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			sp := spec(path, nil)
			f := loadFails(t, ollama.New(ollama.Options{Path: program, ModelsDir: t.TempDir(), TagPrefix: tag(t)}), &sp)
			if f.Kind != c.kind || f.Hint == "" || name == "unknown architecture" && len(f.LogTail) == 0 {
				t.Errorf("got %s: %s (%s), want %s\n%s", f.Kind, f.Msg, f.Hint, c.kind, strings.Join(f.LogTail, "\n"))
			}
			if _, err := os.Stat(filepath.Join(sp.Dir, "ollama")); err == nil {
				t.Error("the instance's folder is not empty")
			}
		})
	}
}

// TestRunnerDies: the llama-server below an Ollama is killed; the instance ends and says so, and nothing is left.
func TestRunnerDies(t *testing.T) {
	program, gguf := engine(t)
	prefix := tag(t)
	sp := spec(gguf, nil)
	in, _ := loadIt(t, ollama.New(ollama.Options{Path: program, ModelsDir: t.TempDir(), TagPrefix: prefix}), &sp)
	found, err := process.FindTagged(prefix)
	if err != nil {
		t.Fatal(err)
	}
	killed := false
	for _, p := range found {
		if p.PID != in.Handle().PID {
			proc, err := os.FindProcess(p.PID)
			if err != nil {
				t.Fatal(err)
			}
			killed = proc.Kill() == nil
		}
	}
	if !killed {
		t.Fatalf("no llama-server among %v", found)
	}
	select {
	case <-in.Done():
	case <-time.After(time.Minute):
		t.Fatal("nobody noticed")
	}
	f := registry.AsError(in.Err()).Failure
	if f == nil || f.Kind != registry.FailureCrash || !strings.Contains(f.Msg, "llama-server") || len(f.LogTail) == 0 {
		t.Errorf("Err: %v", in.Err())
	}
	nothingLeft(t, prefix)
}
