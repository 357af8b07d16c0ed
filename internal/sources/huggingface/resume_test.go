package huggingface_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// cancelled fetches until so many bytes are there, and cancels.
func (r *rig) cancelled(ref sources.Ref, at int64) {
	r.t.Helper()
	snap := r.resolve(r.source, ref)
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultSlow, Host: hubtest.OnCDN, Rate: 2 << 20})
	defer r.hub.Heal()
	ctx, cancel := context.WithCancel(within(r.t))
	defer cancel()
	_, err := r.source.Fetch(ctx, snap, func(p registry.Progress) {
		if p.Done >= at {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		r.t.Fatalf("the fetch was not cancelled: %v", err)
	}
}

func TestResumeAfterCancel(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := bigGGUF(4<<20, 1)
	r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": content})
	r.cancelled(gguf("org/tiny"), 2<<20)
	r.hub.Forget()
	snap := r.resolve(r.source, gguf("org/tiny"))
	var first *registry.Progress
	a, err := r.source.Fetch(within(t), snap, func(p registry.Progress) {
		if first == nil {
			first = &p
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if first.Done < 1<<20 || first.Total != int64(len(content)) {
		t.Errorf("after 2 MiB of %d bytes it went on with %+v", len(content), first)
	}
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("it is not what was put: %v", err)
	}
	if n := r.hub.Served().Bytes; n > 3<<20 {
		t.Errorf("of %d bytes %d were fetched again", len(content), n)
	}
}

// TestResumeAfterKill kills a process that fetches, again and again, and lets another one go on in the same cache.
func TestResumeAfterKill(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := sourcetest.SafetensorsFolder(1)
	const size = 8 << 20
	big := sourcetest.STTensor{Name: "model.norm.weight", DType: "F32", Shape: []int64{size / 4}, Data: bigGGUF(size, 3)[:size]}
	files["model-00002-of-00002.safetensors"] = sourcetest.Safetensors(big)
	r.hub.Put(t, "org/kill", files)
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultSlow, Host: hubtest.OnCDN, Rate: 6 << 20})
	rng := rand.New(rand.NewPCG(3, 5))
	killed := 0
	for range 6 {
		cmd := exec.CommandContext(within(t), os.Args[0]) //nolint:gosec // this test itself
		cmd.Env = []string{"HF_TEST_ROLE=safetensors", "HF_TEST_ID=org/kill", "HF_TEST_CACHE=" + r.cache, "HF_TEST_ENDPOINT=" + r.hub.URL, "HOME=" + t.TempDir(), "GOCOVERDIR=" + t.TempDir()}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		at := rng.Int64N(size)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var stage string
			var done int64
			if n, _ := fmt.Sscan(lines.Text(), &stage, &done); n == 2 && done >= at {
				if err := cmd.Process.Kill(); err != nil {
					t.Error(err)
				}
				break
			}
		}
		for lines.Scan() {
			continue // until the pipe is closed
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); errors.As(err, &exit) && exit.ExitCode() == -1 {
			killed++
		} else if err != nil {
			t.Fatalf("it failed before it was killed: %v", err)
		}
		if entries, err := os.ReadDir(filepath.Join(r.cache, "models--org--kill", "refs")); err == nil && len(entries) > 0 {
			break // whole already
		}
	}
	a := r.fetch(r.source, safetensors("org/kill"))
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(a.Path, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what was put: %v", name, err)
		}
	}
	if killed < 2 {
		t.Errorf("only %d processes were killed", killed)
	}
	again := r.hub.Served().Files["org/kill/model-00002-of-00002.safetensors"] - int64(len(files["model-00002-of-00002.safetensors"]))
	if most := int64(killed) * childConnections * childChunk; again > most {
		t.Errorf("after %d kills %d bytes were served again, want at most %d", killed, again, most)
	}
	t.Logf("%d kills; of %d bytes %d were served again", killed, size, again)
	left, err := filepath.Glob(filepath.Join(r.cache, "models--org--kill", "blobs", "*.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
	r.run(nil, `assert not scan_cache_dir().warnings
assert snapshot_download("org/kill", local_files_only=True)`, noNetwork)
}

// TestExpiredAddresses lets every signed address expire at once: each is renewed.
func TestExpiredAddresses(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := bigGGUF(2<<20, 1)
	r.hub.Put(t, "org/tiny", map[string][]byte{"tiny.gguf": content})
	snap := r.resolve(r.source, gguf("org/tiny"))
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultExpired, Times: 1})
	a, err := r.source.Fetch(within(t), snap, func(registry.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("it is not what was put: %v", err)
	}
	if n := len(r.hub.Served().CDNTokens); n != 0 {
		t.Errorf("the second host saw %d tokens", n)
	}
}

// TestFailingHub fetches from a Hub of which a fifth of the requests fail in some way.
func TestFailingHub(t *testing.T) {
	r := newRig(t, hubtest.Options{Seed: 7})
	files := sourcetest.SafetensorsFolder(1)
	files["tiny.gguf"] = bigGGUF(3<<20, 2)
	r.hub.Put(t, "org/tiny", files)
	r.hub.Fault(
		hubtest.Fault{Kind: hubtest.FaultStatus, Status: 503, Share: 0.1},
		hubtest.Fault{Kind: hubtest.FaultReset, After: hubtest.Anywhere, Share: 0.1},
		hubtest.Fault{Kind: hubtest.FaultTruncate, After: hubtest.Anywhere, Share: 0.05},
		hubtest.Fault{Kind: hubtest.FaultIgnoreRange, Share: 0.05},
	)
	for _, ref := range []sources.Ref{safetensors("org/tiny"), gguf("org/tiny")} {
		a := r.fetch(r.source, ref)
		for _, f := range a.Files {
			at := a.Path
			if !strings.HasSuffix(at, f.Path) {
				at = filepath.Join(at, f.Path)
			}
			if got, err := os.ReadFile(at); err != nil || !bytes.Equal(got, files[f.Path]) {
				t.Errorf("%s is not what was put: %v", f.Path, err)
			}
		}
	}
}
