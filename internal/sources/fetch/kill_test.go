package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The test binary is its own fetching process: with this in its environment it fetches what it says, until it is killed.
const childJob = "LLMM_FETCH_TEST_JOB"

// order is a job for a child.
type order struct {
	URL, Dir string
	Files    []ordered
	Memory   int64
	Conns    int
}

type ordered struct {
	Name   string
	Size   int64
	Tag    string
	Digest Digest
}

func TestMain(m *testing.M) {
	if raw := os.Getenv(childJob); raw != "" {
		if err := fetchAsChild(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func fetchAsChild(raw string) error {
	var o order
	if err := json.Unmarshal([]byte(raw), &o); err != nil {
		return err
	}
	t := Transport(TransportOptions{})
	// What is in the kernel's buffers when the process dies was sent and is lost; with small ones that is little.
	t.DialContext = (&net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return joined(c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) }), err)
	}}).DialContext
	job := Job{Source: registry.SourceHuggingFace}
	for _, one := range o.Files {
		at := filepath.Join(o.Dir, one.Name)
		job.Files = append(job.Files, File{Name: one.Name, Size: one.Size, Tag: one.Tag, Digest: one.Digest, Partial: filepath.Join(o.Dir, "partial", one.Name+".part"),
			Present: func() bool { _, err := os.Stat(at); return err == nil },
			Commit:  func(partial string) error { return os.Rename(partial, at) },
			Remote: &HTTP{Client: &http.Client{Transport: t}, Locate: func(context.Context, bool) (string, http.Header, error) {
				return o.URL + "/" + one.Name, nil, nil
			}}})
	}
	f := New(Options{MinFree: -1, Memory: o.Memory, Connections: o.Conns})
	f.tune.lease = 8 << 20
	return f.Run(context.Background(), job)
}

func joined(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// child starts a process that fetches all files of the hub to dir.
func (h *hub) child(t *testing.T, dir string, memory int64, conns int) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	o := order{URL: h.URL, Dir: dir, Memory: memory, Conns: conns}
	for name, data := range h.files {
		o.Files = append(o.Files, ordered{name, int64(len(data)), etag(data), digest(SHA256, data)})
	}
	raw, err := json.Marshal(o)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	// The race detector would keep each child for a second at its end.
	cmd.Env = append(os.Environ(), childJob+"="+string(raw), strings.TrimSpace("GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	stderr := &strings.Builder{}
	cmd.Stderr = stderr
	must(t, cmd.Start())
	return cmd, stderr
}

// smallBuffers keeps what the kernel takes from the server ahead of the client small.
func smallBuffers(h *hub) {
	h.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(64 << 10)
		}
		return ctx
	}
}

// TestKill kills a fetching process fifty times, each time after another number of bytes, and lets the next go on: the
// files are the same byte for byte, and at most a chunk for each connection was served again.
func TestKill(t *testing.T) {
	const conns, memory = 4, 2 << 20
	const chunk = 1 << 20 // half of it is the most that is in memory, the other half is for what was under way
	h := newHub(t, map[string][]byte{"one": content(9<<20+333, 1), "two": content(6<<20, 2), "three": content(1000, 3)}, smallBuffers)
	var total int64
	for _, data := range h.files {
		total += int64(len(data))
	}
	var worst int64
	killed := 0
	for round := range 50 {
		dir := inMemory(t)
		h.served.Store(0)
		var process atomic.Pointer[os.Process]
		var once sync.Once
		at := rand.Int64N(total)
		h.set(nil, func(_ request, _ int64, chunk []byte) ([]byte, error) {
			// The process may not be known yet when its first bytes are asked for.
			if p := process.Load(); p != nil && h.served.Load() >= at {
				once.Do(func() { _ = p.Kill() })
			}
			return chunk, nil
		})
		cmd, first := h.child(t, dir, memory, conns)
		process.Store(cmd.Process)
		var exit *exec.ExitError
		if err := cmd.Wait(); errors.As(err, &exit) && exit.ExitCode() == -1 {
			killed++
		} else if err != nil {
			t.Fatalf("round %d: it failed before it was killed: %v: %s", round, err, first)
		}
		h.set(nil, nil)
		cmd, stderr := h.child(t, dir, memory, conns)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("round %d: %v: %s", round, err, stderr)
		}
		h.sameFiles(t, dir)
		again := h.served.Load() - total
		worst = max(worst, again)
		if again > conns*chunk {
			t.Errorf("round %d: killed after %d bytes, %d were served again, want at most %d", round, at, again, conns*chunk)
		}
	}
	// One whose turn came with the last bytes may be faster.
	if killed < 45 {
		t.Errorf("of 50 processes only %d were killed", killed)
	}
	t.Logf("%d kills; at most %d of %d bytes were served again", killed, worst, total)
}

// TestTwoProcesses lets two processes fetch the same files to the same place: one fetches, the other takes what is there.
func TestTwoProcesses(t *testing.T) {
	h := newHub(t, map[string][]byte{"one": content(5<<20, 1), "two": content(3<<20, 2)}, smallBuffers)
	both := make(chan struct{})
	var first sync.Once
	seen := make(chan struct{})
	h.set(nil, func(_ request, _ int64, chunk []byte) ([]byte, error) {
		first.Do(func() { close(seen) })
		<-both
		return chunk, nil
	})
	dir := inMemory(t)
	a, aErr := h.child(t, dir, 2<<20, 4)
	<-seen // it has a lock now
	b, bErr := h.child(t, dir, 2<<20, 4)
	close(both)
	if err := a.Wait(); err != nil {
		t.Errorf("%v: %s", err, aErr)
	}
	if err := b.Wait(); err != nil {
		t.Errorf("%v: %s", err, bErr)
	}
	h.sameFiles(t, dir)
	// A range that another connection took over in the end costs a little.
	if n := h.served.Load(); n > 9<<20 {
		t.Errorf("%d bytes were served for %d", n, 8<<20)
	}
}
