package ollama_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// victim makes the test binary fetch a model, to be killed.
const victim = "LLMM_TEST_OLLAMA_VICTIM"

// TestKill: however often a server is killed while it fetches, Ollama never sees a model that is not whole, and in the end
// it is there as it was pushed.
func TestKill(t *testing.T) {
	if job := os.Getenv(victim); job != "" {
		dir, path, _ := strings.Cut(job, "|")
		host, _, _ := strings.Cut(path, "/")
		s := newSource(t, dir, func(o *ollama.Options) {
			o.Insecure, o.Fetcher = []string{host}, fetch.New(fetch.Options{MinFree: -1, Rate: 8 << 20})
		})
		if _, _, err := bring(t, s, ref(path)); err != nil {
			t.Error(err)
		}
		return
	}
	const size = 12 << 20
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{Storage: true})
	data := make([]byte, size)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same bytes each time
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	content := sourcetest.GGUF(sourcetest.LlamaKeys(), []sourcetest.GGUFTensor{{Name: "w", Type: 0, Shape: []uint64{size / 4}, Data: data}})
	pushed := reg.Push(t, "team/big", "1", []byte(config), ollamatest.Layer{Type: ollamatest.Model, Content: content}, license("x"))
	dir := t.TempDir()
	path := reg.Host + "/team/big:1"
	manifest := filepath.Join(dir, "manifests", reg.Host, "team", "big", "1")
	kills := 0
	for round := 0; ; round++ {
		if round == 40 {
			t.Fatal("it never ends")
		}
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKill$", "-test.count=1")
		cmd.Env = append(os.Environ(), victim+"="+dir+"|"+path)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		var err error
		select {
		case err = <-ended:
			if err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
		case <-time.After(time.Duration(100+random.IntN(700)) * time.Millisecond):
			if cmd.Process.Kill() == nil && <-ended != nil {
				kills++
			}
		}
		if exists(t, manifest) {
			for _, b := range pushed.Blobs {
				got, err := os.ReadFile(filepath.Join(dir, "blobs", strings.Replace(b, ":", "-", 1)))
				if err != nil || ollamatest.Digest(got) != b {
					t.Fatalf("after %d kills there is a manifest, and of its blob %s: %v", kills, b, err)
				}
			}
			break
		}
	}
	if kills == 0 {
		t.Fatal("nothing was killed")
	}
	s := newSource(t, dir, insecure(reg.Host))
	if snap, err := s.Resolve(t.Context(), ref(path)); err != nil || snap.OnDisk != snap.Bytes {
		t.Errorf("%+v, %v", snap, err)
	}
	if _, _, err := bring(t, s, ref(path)); err != nil { // which removes a note that a kill at the very end left
		t.Fatal(err)
	}
	if _, err := s.Clean(t.Context(), time.Now().Add(time.Hour)); err != nil { // of files that were being written at that moment
		t.Fatal(err)
	}
	if stored, err := s.Stored(t.Context()); err != nil || len(stored) != 1 || stored[0].Partial != 0 || stored[0].Source != registry.SourceOllama {
		t.Errorf("after %d kills: stored %+v, %v", kills, stored, err)
	}
	t.Logf("killed %d times", kills)
}
