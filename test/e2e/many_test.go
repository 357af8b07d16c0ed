package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// registerFake registers a model of the fake engine, which takes next to no memory.
func (s *server) registerFake(id, file string, params map[string]any) {
	s.t.Helper()
	s.call("POST", "/api/v1/models", map[string]any{"model_id": id, "source_type": "local", "source_path": file, "model_format": "gguf", "device_preference": "cpu",
		"engine": "fake", "required_ram_mb": 1, "custom_loader_params": params}, http.StatusCreated, nil)
}

func tinyModel(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := os.WriteFile(file, sourcetest.TinyGGUF(1), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Two hundred loads asked at once never block the API: all their engines hang, and everything else is answered
// meanwhile, the page and a change as well as a read. A request that waited for one of them would wait for ever.
func TestManyLoadsAtOnce(t *testing.T) {
	const n = 200
	s := setUp(t, "LLMM_FAKE_ENGINE="+fakeEngine, fmt.Sprintf("LLMM_MAX_CONCURRENT_LOADS=%d", n))
	file, id := tinyModel(t), func(i int) string { return fmt.Sprintf("hangs-%03d", i) }
	for i := range n {
		s.registerFake(id(i), file, map[string]any{"fault": "hang_loading"})
	}
	s.registerFake("other", file, nil)

	var ops [n]struct{ ID, State string }
	began := time.Now()
	s.together(n, func(i int) error { return s.try("POST", path(id(i))+"/load", nil, http.StatusAccepted, &ops[i]) })
	t.Logf("%d loads were taken in %v", n, time.Since(began))

	var slowest time.Duration
	requests := 0
	for i := 0; len(engines(t, s.data)) < n; i++ {
		for _, r := range []struct {
			method, path string
			body         any
		}{
			{"GET", "/readyz", nil}, {"GET", "/api/v1/models?q=hangs&limit=10", nil}, {"GET", path("other") + "/plan", nil}, {"GET", "/models", nil},
			{"GET", "/api/v1/operations?limit=50", nil}, {"PATCH", path("other"), map[string]any{"description": fmt.Sprint("change ", i)}},
		} {
			asked := time.Now()
			s.call(r.method, r.path, r.body, http.StatusOK, nil)
			slowest, requests = max(slowest, time.Since(asked)), requests+1
		}
		var failed struct{ Models []model }
		s.call("GET", "/api/v1/models?status=failed", nil, http.StatusOK, &failed)
		if len(failed.Models) > 0 {
			t.Fatalf("engines should hang, and these loads failed: %+v", failed.Models)
		}
	}
	t.Logf("%d other requests were answered while %d engines started; the slowest took %v", requests, n, slowest)
	// A model that can be loaded waits for a place as long as the others hang, and says so.
	var waits struct{ ID, State string }
	s.call("POST", path("other")+"/load", nil, http.StatusAccepted, &waits)

	s.together(n, func(i int) error {
		if err := s.try("DELETE", "/api/v1/operations/"+ops[i].ID, nil, http.StatusOK, nil); err != nil {
			return err
		}
		var op struct{ State string }
		if err := s.try("GET", "/api/v1/operations/"+ops[i].ID+"?wait=60s", nil, http.StatusOK, &op); err != nil {
			return err
		}
		if op.State != "cancelled" {
			return fmt.Errorf("load %d was cancelled while its engine hung, it is %s", i, op.State)
		}
		return nil
	})
	var op struct{ State string }
	s.call("GET", "/api/v1/operations/"+waits.ID+"?wait=60s", nil, http.StatusOK, &op)
	if op.State != "succeeded" {
		t.Errorf("the load that waited for a place should have come through, it is %s", op.State)
	}
	s.call("POST", path("other")+"/unload?wait=60s", nil, http.StatusOK, nil)
	s.noEngines()
}

// together does something n times at once and waits for all.
func (s *server) together(n int, do func(i int) error) {
	s.t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = do(i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

// A thousand readers of the events, of which fifty never read: a load goes on, every reader that reads is told of its end,
// and the server's memory stays within bounds. How long the load takes beside them is a line of make bench.
func TestDeafReaders(t *testing.T) {
	const readers, deaf, changes = 1000, 50, 30
	s := setUp(t, "LLMM_FAKE_ENGINE="+fakeEngine)
	s.registerFake("watched", tinyModel(t), map[string]any{"steps": 50, "step_ms": 1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, readers)
	for i := range readers {
		s.subscribe(ctx, i < deaf, ended)
	}
	before := s.memory("VmRSS")
	for i := range changes { // each longer than what the deaf ones' buffers take together
		s.call("PATCH", path("watched"), map[string]any{"description": fmt.Sprint(i, strings.Repeat(" and so on", 400))}, http.StatusOK, nil)
	}
	s.call("POST", path("watched")+"/load?wait=60s", nil, http.StatusOK, nil)
	for range readers - deaf {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	after := s.memory("VmRSS")
	t.Logf("resident with %d readers: %d MB, after %d changes of 4 KB and a load %d MB", readers, before>>20, changes, after>>20)
	if after > 400<<20 {
		t.Errorf("the server takes %d MB", after>>20)
	}
	var m model
	s.call("GET", path("watched"), nil, http.StatusOK, &m)
	if m.Status != "ready" {
		t.Errorf("the model is %s", m.Status)
	}
}

// subscribe opens a stream of events, on a plain connection: a thousand clients of net/http would cost more than the
// server does. It returns when the server has answered. Unless it is deaf the stream is read until it tells that the
// model is ready.
func (s *server) subscribe(ctx context.Context, deaf bool, ended chan<- error) {
	s.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if deaf {
		if err := conn.(*net.TCPConn).SetReadBuffer(2048); err != nil { // full as soon as can be
			s.t.Fatal(err)
		}
	}
	if _, err := fmt.Fprintf(conn, "GET /api/v1/events HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\n\r\n", token); err != nil {
		s.t.Fatal(err)
	}
	if deaf {
		return
	}
	lines := bufio.NewReader(conn)
	if status, err := lines.ReadString('\n'); err != nil || !strings.Contains(status, " 200 ") {
		s.t.Fatalf("the stream begins with %q, %v", status, err)
	}
	go func() {
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				ended <- err
				return
			}
			if strings.Contains(line, `"kind":"model.status"`) && strings.Contains(line, `"ready"`) {
				ended <- nil
				return // and is deaf from here on
			}
		}
	}()
}

// memory reads a line of the server's /proc/PID/status, in bytes.
func (s *server) memory(name string) int64 {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), name+":")
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	return kb << 10
}
