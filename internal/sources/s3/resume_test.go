package s3_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/s3"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// bigGGUF is a model of about size bytes, in which no two blocks are alike.
func bigGGUF(size int, fill byte) []byte {
	data := make([]byte, size/4*4)
	if _, err := rand.NewChaCha8([32]byte{fill}).Read(data); err != nil {
		panic(err) // it never fails
	}
	return sourcetest.GGUF(sourcetest.LlamaKeys(), []sourcetest.GGUFTensor{{Name: "w", Type: 0, Shape: []uint64{uint64(size / 4)}, Data: data}})
}

// interrupt begins a fetch and cancels it once bytes have come.
func (r *rig) interrupt(t *testing.T, s sources.Snapshot) {
	t.Helper()
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	// Limited, or a fast machine has all of it before the first report.
	slow := s3.New(s3.Options{Dir: r.dir, Fetcher: fetch.New(fetch.Options{MinFree: -1, Rate: 8 << 20}), AllowPrivate: true})
	defer slow.Close()
	_, err := slow.Fetch(ctx, s, func(p registry.Progress) {
		if p.Done > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the fetch was not cancelled: %v", err)
	}
}

// The test binary is its own fetcher: with this in its environment it fetches, and kills itself when it has so many bytes.
const childJob = "LLMM_S3_TEST_FETCH"

type childOrder struct {
	Dir    string
	Ref    sources.Ref
	KillAt int64
}

func child() bool {
	text := os.Getenv(childJob)
	if text == "" {
		return false
	}
	var order childOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	// Slow enough to be killed on the way.
	src := s3.New(s3.Options{Dir: order.Dir, Fetcher: fetch.New(fetch.Options{MinFree: -1, Rate: 200 << 20}), AllowPrivate: true})
	s, err := src.Resolve(context.Background(), order.Ref)
	if err == nil {
		_, err = src.Fetch(context.Background(), s, func(p registry.Progress) {
			if p.Stage == registry.StageFetch && p.Done >= order.KillAt {
				self, _ := os.FindProcess(os.Getpid())
				_ = self.Kill()
				select {}
			}
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
	return true
}

// TestResumeAfterKill kills the process that fetches at several moments. What comes out is the same, and little was
// fetched twice.
func TestResumeAfterKill(t *testing.T) {
	r := newRig(t)
	content := bigGGUF(64<<20, 1)
	r.put(t, "m", map[string][]byte{"big.gguf": content})
	ref := r.ref("m", registry.FormatGGUF)
	before := r.proxy.Served()
	killed := 0
	for _, at := range []int64{1, 20 << 20, 50 << 20} {
		order, err := json.Marshal(childOrder{Dir: r.dir, Ref: ref, KillAt: at})
		check(t, err)
		cmd := exec.CommandContext(within(t), os.Args[0])
		cmd.Env = append(os.Environ(), childJob+"="+string(order))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == -1 {
			killed++
		} else {
			t.Errorf("the process was not killed at %d: %v %s", at, err, out)
		}
	}
	s := r.resolve(t, ref)
	last := r.proxy.Served()
	a := r.fetch(t, s)
	if n := r.proxy.Served() - last; n > int64(len(content))/2 {
		t.Errorf("%d bytes of %d were served after the last kill", n, len(content))
	}
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("not what was put: %v", err)
	}
	// What was on its way in the buffers of connections counts as served, too.
	t.Logf("%d kills; of %d bytes %d were served again", killed, len(content), r.proxy.Served()-before-int64(len(content)))
}

// TestTwoProcesses fetches the same revision in two processes at once.
func TestTwoProcesses(t *testing.T) {
	r := newRig(t)
	content := bigGGUF(48<<20, 1)
	r.put(t, "m", map[string][]byte{"big.gguf": content})
	ref := r.ref("m", registry.FormatGGUF)
	order, err := json.Marshal(childOrder{Dir: r.dir, Ref: ref, KillAt: 1 << 60})
	check(t, err)
	before := r.proxy.Served()
	cmd := exec.CommandContext(within(t), os.Args[0])
	cmd.Env = append(os.Environ(), childJob+"="+string(order))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	check(t, cmd.Start())
	a := r.fetch(t, r.resolve(t, ref))
	if err := cmd.Wait(); err != nil {
		t.Errorf("the other process: %v %s", err, out.String())
	}
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("not what was put: %v", err)
	}
	// A part more, as what is on its way when a slow connection is replaced counts as served.
	if n := r.proxy.Served() - before; n > int64(len(content))*8/5 {
		t.Errorf("%d bytes were served for %d", n, len(content))
	}
}

// TestDeleteWhileFetching is refused.
func TestDeleteWhileFetching(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	s := r.resolve(t, r.ref("m", registry.FormatGGUF))
	r.fetch(t, s)
	tried := false
	_, err := r.source.Fetch(within(t), s, func(p registry.Progress) {
		if p.Stage == registry.StageVerify && !tried {
			tried = true
			_, err := r.source.Delete(t.Context(), s.Ref.Path, s.Revision)
			refused(t, err, registry.CodeConflict, none, "being fetched")
		}
	})
	check(t, err)
	if !tried {
		t.Error("nothing was tried")
	}
}
