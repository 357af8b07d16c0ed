package netaddr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseBase(t *testing.T) {
	for given, want := range map[string]struct{ text, asked, socket string }{
		"http://127.0.0.1:8081":             {"http://127.0.0.1:8081", "http://127.0.0.1:8081/v1/models", ""},
		"https://host/prefix//":             {"https://host/prefix", "https://host/prefix/v1/models", ""},
		"https://host/a%2Fb/":               {"https://host/a%2Fb", "https://host/a%2Fb/v1/models", ""},
		"unix:///run/llmm/i1/engine.sock":   {"unix:///run/llmm/i1/engine.sock", "unix://engine/v1/models", "/run/llmm/i1/engine.sock"},
		"unix:///a%20folder/%25%3F%23.sock": {"unix:///a%20folder/%25%3F%23.sock", "unix://engine/v1/models", "/a folder/%?#.sock"},
	} {
		b, err := ParseBase(given)
		if err != nil {
			t.Errorf("%s: %v", given, err)
			continue
		}
		if b.String() != want.text || b.At("/v1/models").String() != want.asked || b.Socket() != want.socket {
			t.Errorf("%s: %s, asks %s, socket %q", given, b, b.At("/v1/models"), b.Socket())
		}
	}
	for path, want := range map[string]string{"/health": "/health", "/a%20b": "/a%20b", "/a%2Fb?x=%20&y": "/a%2Fb?x=%20&y", "//x": "//x", "/%zz": "/%25zz", "/ä b#?": "/%C3%A4%20b%23"} {
		if got := PortBase(80).At(path).String(); got != "http://127.0.0.1:80"+want {
			t.Errorf("%s is asked at %s", path, got)
		}
	}
	for _, s := range []string{"", "::", "/run/x.sock", "http://", "http:host", "ftp://host", "unix:", "unix://", "unix:///", "unix://run/x.sock", "unix:x.sock",
		"unix:///run/../x.sock", "unix:///run//x.sock", "unix:///run/", "unix:///x.sock?a", "unix:///x.sock?", "unix:///x.sock#a", "unix:///x.sock#", "unix:///x%00.sock",
		"unix://me@/x.sock", "unix:///%zz"} {
		if b, err := ParseBase(s); err == nil {
			t.Errorf("%q became %q", s, b)
		}
	}
	if _, err := ParseBase("unix://secret:p%zz@/x"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error quotes what was given: %v", err)
	}
}

func FuzzParseBase(f *testing.F) {
	for _, s := range []string{"http://127.0.0.1:1/", "https://h/%2F/", "unix:///run/a b/x.sock", "unix:///%2F", "unix:///a%2Fb", "http://[::1%25eth0]:1?a#b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBase(s)
		if err == nil {
			again, err := ParseBase(b.String())
			if err != nil || again.String() != b.String() || again.Socket() != b.Socket() {
				t.Errorf("%q became %q, and that %q (%v)", s, b, again, err)
			}
			if u := b.At("/v1"); u.Host == "" || !strings.HasSuffix(u.Path, "/v1") || (u.Scheme == scheme) != (b.Socket() != "") {
				t.Errorf("%q is asked at %q", s, u)
			}
		}
		// Every path of a socket can be written and read again.
		if b, err := SocketBase(s); err == nil {
			if again, err := ParseBase(b.String()); err != nil || again.Socket() != s {
				t.Errorf("the socket %q became %q and that %q (%v)", s, b, again.Socket(), err)
			}
		}
	})
}

// listen opens a socket, also at a path that is too long for the kernel, and returns its address.
func listen(t *testing.T, path string) (net.Listener, Base) {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	b, err := SocketBase(path)
	if err != nil {
		t.Fatal(err)
	}
	return l, b
}

func serve(t *testing.T, path, says string) Base {
	t.Helper()
	l, b := listen(t, path)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s %s", says, r.Method, r.URL.Path)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return b
}

func get(t *testing.T, via http.RoundTripper, b Base) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.At("/v1/models").String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: via}).Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return string(text), nil
}

// TestSocketsAreReached: those with a long path, too, and each by its own transport only.
func TestSocketsAreReached(t *testing.T) {
	long := t.TempDir()
	for range 8 {
		long = filepath.Join(long, strings.Repeat("long", 10))
	}
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	bases := []Base{serve(t, filepath.Join(t.TempDir(), "one.sock"), "one"), serve(t, filepath.Join(t.TempDir(), "two ?#%.sock"), "two"), serve(t, filepath.Join(long, "three.sock"), "three")}
	for range 3 { // connections are used again
		for i, says := range []string{"one", "two", "three"} {
			via := bases[i].Transport(&http.Transport{Proxy: http.ProxyFromEnvironment})
			for range 2 {
				if got, err := get(t, via, bases[i]); err != nil || got != says+" GET /v1/models" {
					t.Errorf("%s said %q, %v", says, got, err)
				}
			}
			via.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		}
	}
	if _, err := get(t, &http.Transport{}, bases[0]); err == nil {
		t.Error("a transport that knows nothing of the socket carried a request")
	}
	port, err := ParseBase("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := get(t, bases[0].Transport(&http.Transport{}), port); err == nil {
		t.Errorf("a request for a port went to the socket, which said %q", got)
	}
	if own := (&http.Transport{}); port.Transport(own) != http.RoundTripper(own) {
		t.Error("a port has another transport than the one that was given")
	}
}

// fullSocket is a socket that nobody accepts at, with as many connections waiting as it holds.
func fullSocket(t *testing.T) (path string, fd int, waiting []net.Conn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "x.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { _ = f.Close() })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return path, fd, waiting
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		waiting = append(waiting, c)
	}
}

// TestNobodyAccepts: a connection to an engine that is stopped is given up by itself, since http.Transport goes on with one
// after its request has ended. The clock is that of the test.
func TestNobodyAccepts(t *testing.T) {
	path, _, _ := fullSocket(t)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := dialSocket(context.WithoutCancel(t.Context()), path)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "takes no connections") || took < backlogFor || took > backlogFor+backlogMost {
			t.Errorf("after %s: %v", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := dialSocket(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the request has ended, and it got %v", err)
		}
	})
}

// TestManyAtOnce has more come than the socket's queue holds: they wait instead of failing.
func TestManyAtOnce(t *testing.T) {
	path, fd, early := fullSocket(t)
	const n = 20
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			c, err := dialSocket(t.Context(), path)
			if errs[i] = err; err == nil {
				errs[i] = c.Close()
			}
		})
	}
	go func() {
		for {
			c, _, err := syscall.Accept(fd)
			if err != nil {
				return // shut down
			}
			_ = syscall.Close(c)
		}
	}()
	wg.Wait()
	for _, c := range early {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(errors.Join(errs...), syscall.Shutdown(fd, syscall.SHUT_RDWR)); err != nil {
		t.Error(err)
	}
}

func TestRemoveSocket(t *testing.T) {
	dir := t.TempDir()
	alive, dead, file := filepath.Join(dir, "alive"), filepath.Join(dir, "dead"), filepath.Join(dir, "file")
	l, _ := listen(t, alive)
	gone, _ := listen(t, dead)
	gone.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(gone.Close(), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	for _, path := range []string{alive, dead, file, filepath.Join(dir, "nothing")} {
		if err := RemoveSocket(t.Context(), path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || entries[0].Name() != "alive" || entries[1].Name() != "file" {
		t.Errorf("there are %v, %v", entries, err)
	}
}
