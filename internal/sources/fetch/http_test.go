package fetch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestPrivateAddress does not follow a redirect of a stranger to this machine, and reaches it where that is allowed.
func TestPrivateAddress(t *testing.T) {
	var asked atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer inside.Close()
	// A name instead of a number: what counts is where it leads.
	named := strings.Replace(inside.URL, "127.0.0.1", "localhost", 1)
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, named+"/secret?token=geheim", http.StatusFound)
	}))
	defer outside.Close()
	endpoint := strings.TrimPrefix(outside.URL, "http://")
	tr := Transport(TransportOptions{AllowPrivate: func(hostport string) bool { return hostport == endpoint }})
	defer tr.CloseIdleConnections()
	remote := &HTTP{Client: &http.Client{Transport: tr}, Locate: func(context.Context, bool) (string, http.Header, error) { return outside.URL, nil, nil }}
	_, err := remote.Open(t.Context(), 0, 10)
	var retry *RetryError
	if registry.CodeOf(err) != registry.CodeUnavailable || errors.As(err, &retry) || !strings.Contains(err.Error(), "private network") || strings.Contains(err.Error(), "geheim") {
		t.Errorf("%v", err)
	}
	if asked.Load() > 0 {
		t.Error("it was asked")
	}
	all := Transport(TransportOptions{})
	defer all.CloseIdleConnections()
	remote.Client = &http.Client{Transport: all}
	a, err := remote.Open(t.Context(), 0, 10)
	must(t, err)
	a.Body.Close()
	if asked.Load() != 1 {
		t.Errorf("where everything is allowed it was asked %d times", asked.Load())
	}
}

// TestProxy goes through a proxy on this machine, and does not let it be used to reach a private address.
func TestProxy(t *testing.T) {
	var seen atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.URL.String())
		fmt.Fprint(w, "0123456789")
	}))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	must(t, err)
	tr := Transport(TransportOptions{Proxy: http.ProxyURL(at), AllowPrivate: func(string) bool { return false }})
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	resp, err := client.Get("http://hub.example/f")
	must(t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if seen.Load() != "http://hub.example/f" {
		t.Errorf("the proxy saw %v", seen.Load())
	}
	if resp, err := client.Get("http://169.254.169.254/latest"); err == nil {
		resp.Body.Close()
		t.Error("the proxy was sent to a private address")
	}
}

// TestTransient tells what may pass from what will not, and keeps addresses out of what it says.
func TestTransient(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer plain.Close()
	tls := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	tls.Config.ErrorLog = nil
	defer tls.Close()
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.String(), http.StatusFound) }))
	defer loop.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	cuts := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer cuts.Close()
	tr := Transport(TransportOptions{})
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	for name, c := range map[string]struct {
		address string
		retry   bool
	}{
		"refused":         {gone.URL, true},
		"cut":             {cuts.URL, true},
		"no such name":    {"http://nothing.invalid", true},
		"a bad name":      {"https" + strings.TrimPrefix(tls.URL, "https"), false},
		"not TLS":         {"https" + strings.TrimPrefix(plain.URL, "http"), false},
		"a loop":          {loop.URL, false},
		"no such scheme":  {"gopher://hub.example", false},
		"no address":      {"http://[::1", false},
		"control letters": {"http://hub.example/\x00", false},
	} {
		h := &HTTP{Client: client, Locate: func(context.Context, bool) (string, http.Header, error) {
			return c.address + "/path?signature=geheim", nil, nil
		}}
		_, err := h.Open(t.Context(), 0, 1)
		var retry *RetryError
		if err == nil || errors.As(err, &retry) != c.retry || registry.CodeOf(err) != registry.CodeUnavailable {
			t.Errorf("%s: %v may pass: %v, want %v", name, err, errors.As(err, &retry), c.retry)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v tells the signature", name, err)
		}
	}
}

// TestExplained gives a final answer the words of its source, and lets it see the body.
func TestExplained(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": {1}})
	h.set(func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "gated")
		return true
	}, nil)
	remote := h.remote("f")
	remote.Explain = func(r *http.Response) error {
		b, _ := io.ReadAll(r.Body)
		return registry.Errorf(registry.CodeForbidden, "it is %s", b)
	}
	_, err := remote.Open(t.Context(), 0, 1)
	if registry.CodeOf(err) != registry.CodeForbidden || err.Error() != "it is gated" {
		t.Errorf("%v", err)
	}
}

// TestReaderAt reads a header of many small pieces with few requests, and only what is needed.
func TestReaderAt(t *testing.T) {
	data := content(3<<20, 1)
	binary.LittleEndian.PutUint64(data, 200_000)
	h := newHub(t, map[string][]byte{"f": data})
	r := ReaderAt(within(t), h.remote("f"), int64(len(data)), ReaderOptions{})
	b := make([]byte, 8)
	read := func(n int, off int64) {
		t.Helper()
		b := make([]byte, n)
		got, err := r.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(b[:got], data[off:min(off+int64(n), int64(len(data)))]) {
			t.Fatalf("%d bytes at %d: %d, %v", n, off, got, err)
		}
	}
	_, err := r.ReadAt(b, 0)
	must(t, err)
	read(200_000, 8)
	if r.Requests() != 2 || r.Bytes() > 300_000 {
		t.Errorf("%d requests, %d bytes for a header of 200,000 bytes", r.Requests(), r.Bytes())
	}
	for off := int64(200_008); off < 1_000_000; off += 100 {
		read(100, off)
	}
	if r.Requests() > 9 || r.Bytes() > 2<<20 {
		t.Errorf("%d requests, %d bytes for a million bytes in small pieces", r.Requests(), r.Bytes())
	}
	before := r.Requests()
	read(1000, 10)
	read(400_000, 100_000)
	if r.Requests() != before {
		t.Error("what is there was asked for again")
	}
	// A hole between two pieces, and the end.
	read(100, 2<<20)
	read(1<<20, 1<<20+500_000)
	read(1000, int64(len(data))-10)
	if n, err := r.ReadAt(b, int64(len(data))); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
	if n, err := r.ReadAt(make([]byte, 100), int64(len(data))-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("over the end: %d, %v", n, err)
	}
	if _, err := r.ReadAt(b, -1); err == nil {
		t.Error("before the beginning")
	}
}

// TestReaderAtFaults retries what may pass, as often as it should, and reads from a server without ranges.
func TestReaderAtFaults(t *testing.T) {
	data := content(1<<20, 1)
	h := newHub(t, map[string][]byte{"f": data})
	options := ReaderOptions{Tries: 4, Patience: 20 * time.Second}
	check := func(name string) *RangeReader {
		t.Helper()
		r := ReaderAt(within(t), h.remote("f"), int64(len(data)), options)
		b := make([]byte, 5000)
		if _, err := r.ReadAt(b, 500_000); err != nil || !bytes.Equal(b, data[500_000:505_000]) {
			t.Errorf("%s: %v", name, err)
		}
		return r
	}
	first := h.requests.Load()
	h.set(func(w http.ResponseWriter, _ *http.Request, q request, _ []byte) bool {
		if q.n-first <= 2 {
			w.WriteHeader(502)
			return true
		}
		return false
	}, nil)
	if r := check("two failures"); r.Requests() != 3 {
		t.Errorf("%d requests", r.Requests())
	}
	first = h.requests.Load()
	h.set(nil, func(q request, _ int64, b []byte) ([]byte, error) {
		if q.n-first == 1 {
			return b[:100], io.ErrClosedPipe
		}
		return b, nil
	})
	check("a broken body")
	h.set(func(w http.ResponseWriter, _ *http.Request, _ request, data []byte) bool {
		_, _ = w.Write(data)
		return true
	}, nil)
	check("no ranges")

	h.set(func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
		w.Header()["RateLimit"] = []string{`"api";r=0;t=200`}
		w.WriteHeader(429)
		return true
	}, nil)
	r := ReaderAt(within(t), h.remote("f"), int64(len(data)), options)
	_, err := r.ReadAt(make([]byte, 10), 0)
	if e := registry.AsError(err); e.Code != registry.CodeBusy || e.RetryAfter != 201*time.Second || r.Requests() != 1 {
		t.Errorf("%v, %s", err, e.RetryAfter)
	}
	h.set(nil, nil)
	options.Limit = 10_000
	if _, err := ReaderAt(within(t), h.remote("f"), int64(len(data)), options).ReadAt(make([]byte, 20_000), 0); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("more than the limit: %v", err)
	}
}
