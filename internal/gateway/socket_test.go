package gateway_test

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/netaddr"
)

// TestEnginesAtSockets asks two by turns, whole answers and streams: each answers what was asked of it, over connections of its own.
func TestEnginesAtSockets(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	peers := map[string]int{} // connections by engine
	engine := func(name string) (netaddr.Base, http.RoundTripper) {
		path := filepath.Join(t.TempDir(), "engine.sock")
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{
			Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer "+name {
					rw.WriteHeader(http.StatusUnauthorized)
					return
				}
				if r.URL.Path == "/v1/completions" {
					rw.Header().Set("Content-Type", "text/event-stream")
					_, _ = fmt.Fprintf(rw, "data: {%q: 1}\n\ndata: [DONE]\n\n", name)
					return
				}
				rw.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprintf(rw, "{%q: %q}", "from", name)
			}),
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					mu.Lock()
					peers[name]++
					mu.Unlock()
				}
			},
		}
		go func() { _ = srv.Serve(l) }()
		base, err := netaddr.SocketBase(path)
		if err != nil {
			t.Fatal(err)
		}
		pool := &http.Transport{}
		t.Cleanup(func() { pool.CloseIdleConnections(); _ = srv.Close() })
		return base, base.Transport(pool)
	}
	type place struct {
		base netaddr.Base
		via  http.RoundTripper
	}
	at := map[string]place{}
	for _, name := range []string{"one", "two"} {
		base, via := engine(name)
		at[name] = place{base, via}
	}
	for range 5 {
		for _, name := range []string{"one", "two"} {
			w.mu.Lock()
			w.lease.Endpoint.BaseURL, w.lease.Transport, w.lease.Authorization = at[name].base.String(), at[name].via, "Bearer "+name
			w.mu.Unlock()
			if got := w.do(http.MethodPost, "/v1/chat/completions", `{"model":"tiny","messages":[]}`); got.status != http.StatusOK || !strings.Contains(got.body, name) {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
			if got := w.do(http.MethodPost, "/v1/completions", `{"model":"tiny","prompt":"x","stream":true}`); got.status != http.StatusOK || !strings.Contains(got.body, name) || !strings.Contains(got.body, "[DONE]") {
				t.Errorf("%s, streamed: %d %s", name, got.status, got.body)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if peers["one"] == 0 || peers["two"] == 0 || peers["one"] >= 10 || peers["two"] >= 10 {
		t.Errorf("connections were not used again, or not made: %v", peers)
	}
	// Without its transport nothing is sent anywhere.
	w.mu.Lock()
	w.lease.Transport = nil
	w.mu.Unlock()
	if got := w.do(http.MethodPost, "/v1/chat/completions", `{"model":"tiny","messages":[]}`); got.status != http.StatusServiceUnavailable {
		t.Errorf("without a transport: %d %s", got.status, got.body)
	}
}
