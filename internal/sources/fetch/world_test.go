package fetch

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// patience bounds a test that hangs; no test waits for it otherwise.
const patience = time.Minute

// content returns n bytes that are the same for the same seed and occur nowhere twice.
func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// request is one that a hub has got.
type request struct {
	name     string
	off, end int64
	n        int64 // from 1 on, over all
	header   http.Header
}

// hub serves files by ranges and misbehaves where a test tells it to.
type hub struct {
	*httptest.Server
	t     testing.TB
	mu    sync.Mutex
	files map[string][]byte

	// fault answers a request in place of the hub when it returns true.
	fault func(w http.ResponseWriter, r *http.Request, q request, data []byte) bool
	// pipe may change what is sent; chunks are at most 32 KiB. An error ends the connection.
	pipe func(q request, off int64, chunk []byte) ([]byte, error)

	requests atomic.Int64
	served   atomic.Int64 // bytes of bodies that were handed to the kernel
	conns    atomic.Int64
	client   *http.Client // of all remotes, as a source has one
}

func newHub(t testing.TB, files map[string][]byte, options ...func(*hub)) *hub {
	t.Helper()
	h := &hub{t: t, files: files}
	h.Server = httptest.NewUnstartedServer(h)
	h.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			h.conns.Add(1)
		}
	}
	for _, o := range options {
		o(h)
	}
	h.Start()
	t.Cleanup(h.Close)
	transport := Transport(TransportOptions{})
	t.Cleanup(transport.CloseIdleConnections)
	h.client = &http.Client{Transport: transport}
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	h.mu.Lock()
	data, ok := h.files[name]
	fault, pipe := h.fault, h.pipe
	h.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	q := request{name: name, end: int64(len(data)), n: h.requests.Add(1), header: r.Header}
	partial := false
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &q.off, &q.end); err == nil {
		q.end, partial = min(q.end+1, int64(len(data))), true
	}
	if fault != nil && fault(w, r, q, data) {
		return
	}
	w.Header().Set("ETag", `"`+etag(data)+`"`)
	w.Header().Set("Content-Length", strconv.FormatInt(q.end-q.off, 10))
	if partial {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off, q.end-1, len(data)))
		w.WriteHeader(http.StatusPartialContent)
	}
	h.send(w, q, data[q.off:q.end], pipe)
}

func (h *hub) send(w http.ResponseWriter, q request, body []byte, pipe func(request, int64, []byte) ([]byte, error)) {
	if pipe == nil {
		_ = h.write(w, body) // a client that goes away is no fault here
		return
	}
	for off := 0; off < len(body); off += 32 << 10 {
		chunk, err := pipe(q, q.off+int64(off), body[off:min(off+32<<10, len(body))])
		if werr := h.write(w, chunk); err != nil || werr != nil {
			panic(http.ErrAbortHandler)
		}
		_ = http.NewResponseController(w).Flush()
	}
}

// write counts before it writes: a client that has its last bytes may look at the count at once.
func (h *hub) write(w http.ResponseWriter, b []byte) error {
	h.served.Add(int64(len(b)))
	n, err := w.Write(b)
	h.served.Add(int64(n - len(b)))
	return err
}

// etag names a content cheaply, as it is made for every answer.
func etag(data []byte) string {
	if len(data) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d-%x-%x", len(data), data[:min(len(data), 8)], data[max(0, len(data)-8):])
}

func digest(kind DigestKind, data []byte) Digest {
	var sum []byte
	switch kind {
	case SHA256:
		s := sha256.Sum256(data)
		sum = s[:]
	case GitBlobSHA1:
		s := sha1.Sum(append([]byte(fmt.Sprintf("blob %d\x00", len(data))), data...))
		sum = s[:]
	case MD5:
		s := md5.Sum(data)
		sum = s[:]
	default:
		h := newHash(kind)
		h.Write(data)
		sum = h.Sum(nil)
	}
	return Digest{Kind: kind, Sum: hex.EncodeToString(sum)}
}

// remote returns a Remote for a file of the hub.
func (h *hub) remote(name string) *HTTP {
	return &HTTP{Client: h.client,
		Locate: func(context.Context, bool) (string, http.Header, error) { return h.URL + "/" + name, nil, nil },
		Tag:    func(r *http.Response) string { return ETag(r.Header) }}
}

// file returns a File of the hub's that is committed to dir under its name.
func (h *hub) file(dir, name string, kind DigestKind) File {
	data := h.files[name]
	f := File{Name: name, Size: int64(len(data)), Tag: etag(data), Remote: h.remote(name),
		Partial: filepath.Join(dir, "partial", name+".part"),
		Commit:  func(partial string) error { return os.Rename(partial, filepath.Join(dir, name)) },
	}
	if kind != "" {
		f.Digest = digest(kind, data)
	}
	return f
}

func (h *hub) job(dir string) Job {
	j := Job{Source: registry.SourceHuggingFace}
	for name := range h.files {
		j.Files = append(j.Files, h.file(dir, name, SHA256))
	}
	return j
}

// hasty returns a fetcher with small blocks, whose patience is measured in moments.
func hasty(o Options) *Fetcher {
	if o.Memory == 0 {
		o.Memory, o.Connections = 16*minBlock, 16
	}
	if o.MinFree == 0 {
		o.MinFree = -1
	}
	f := New(o)
	f.tune.lease, f.tune.longest = 8*f.block, 64*f.block
	f.tune.answer, f.tune.idle, f.tune.stall = 2*time.Second, time.Second, time.Second/2
	f.tune.sync = 50 * time.Millisecond
	return f
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// sameFiles checks that dir holds the hub's files, byte for byte, and nothing is left beside them.
func (h *hub) sameFiles(t *testing.T, dir string) {
	t.Helper()
	for name, want := range h.files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s has %d bytes of %d, the same: %v (%v)", name, len(got), len(want), bytes.Equal(got, want), err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "partial", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v (%v)", left, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// set changes how the hub misbehaves.
func (h *hub) set(fault func(http.ResponseWriter, *http.Request, request, []byte) bool, pipe func(request, int64, []byte) ([]byte, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.pipe = fault, pipe
}

// inMemory returns a folder on a file system in memory where there is one: a kill leaves there what it leaves on a disk,
// and syncing costs nothing.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "llmm-fetch-test-") //nolint:usetesting // t.TempDir is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
