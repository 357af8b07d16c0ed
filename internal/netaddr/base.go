package netaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Base is the address at which an engine answers, as its base URL says it: http://127.0.0.1:8081 or that of a service
// elsewhere, https://HOST/PREFIX; or a socket of this machine, unix:///PATH, in the notation that curl's --unix-socket and
// others have made usual. The zero Base is the address of nothing.
type Base struct{ url url.URL }

// scheme is that of the base URL of a socket, and of what is asked of it.
const scheme = "unix"

// ParseBase reads a base URL. It refuses what has no address to ask in it.
func ParseBase(s string) (Base, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Base{}, errors.New("the base URL cannot be read") // the cause would quote it, and what is in it
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" || u.Opaque != "" {
			return Base{}, errors.New("the base URL names no host")
		}
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
		return Base{*u}, nil
	case scheme:
		if u.Host != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#") {
			return Base{}, errors.New("the base URL of a socket is unix:// and its path from the root, and no more")
		}
		return SocketBase(u.Path)
	}
	return Base{}, errors.New("the base URL begins with neither http://, https:// nor unix://")
}

// SocketBase is the address of a socket, by its path from the root.
func SocketBase(path string) (Base, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0) {
		return Base{}, fmt.Errorf("%q is no path of a socket: it begins at the root and has no detours", path)
	}
	return Base{url.URL{Scheme: scheme, Path: path}}, nil
}

// PortBase is the address of a port of 127.0.0.1.
func PortBase(port int) Base {
	return Base{url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}}
}

// String is the base URL.
func (b Base) String() string { return b.url.String() }

// Socket is the path of the socket; "" if it is none.
func (b Base) Socket() string {
	if b.url.Scheme != scheme {
		return ""
	}
	return b.url.Path
}

// At returns the URL of path, which begins with a slash and may have a query, for a request that Transport carries. That of a
// socket has a scheme which any other transport refuses, so that no request goes astray.
func (b Base) At(path string) *url.URL {
	u := b.url
	if b.Socket() != "" {
		u = url.URL{Scheme: scheme, Host: "engine"}
	}
	escaped, query, _ := strings.Cut(path, "?")
	plain, err := url.PathUnescape(escaped)
	if err != nil {
		plain = escaped
	}
	u.RawPath = u.EscapedPath() + escaped
	u.Path += plain
	if query != "" {
		u.RawQuery = query
	}
	return &u
}

// Transport makes t, which nobody else has, the transport to this address: t itself, or one that carries every request to the
// socket, by the connections of t.
func (b Base) Transport(t *http.Transport) http.RoundTripper {
	path := b.Socket()
	if path == "" {
		return t
	}
	t.Proxy = nil
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, path) }
	return socketTransport{t}
}

type socketTransport struct{ http *http.Transport }

func (s socketTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != scheme {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("a request for %s does not belong on a socket", req.URL.Host)
	}
	u := *req.URL
	u.Scheme, u.Host = "http", "localhost"
	out := *req
	out.URL, out.Host = &u, u.Host
	return s.http.RoundTrip(&out)
}

// CloseIdleConnections closes those that carry nothing; see http.Client.CloseIdleConnections.
func (s socketTransport) CloseIdleConnections() { s.http.CloseIdleConnections() }

// maxSocketPath is how many bytes of a path the kernel takes: sun_path has 104 on macOS and 108 on Linux, with a zero.
const maxSocketPath = 103

// How long a connection waits before it tries again while more wait at the socket than it holds: from backlogFirst on, twice
// as long each time up to backlogMost, for backlogFor in all. The kernel lets those at a port wait by itself.
const (
	backlogFirst = 2 * time.Millisecond
	backlogMost  = 100 * time.Millisecond
	backlogFor   = 10 * time.Second
)

// dialSocket connects to a socket, also to one whose path is too long for the kernel. While too many others wait it does so,
// too, but not until ctx ends: http.Transport lets a connection go on for others when its own request has ended, and an
// engine that is stopped would have ever more of them tried.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	at := path
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer func() { _ = dir.Close() }()
		// The folder under a short name. Where there is no /proc this says that there is no such file.
		at = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	var d net.Dialer
	began := time.Now()
	for pause := backlogFirst; ; pause = min(2*pause, backlogMost) {
		c, err := d.DialContext(ctx, "unix", at)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		if time.Since(began) >= backlogFor {
			return nil, fmt.Errorf("the engine takes no connections: for %s more have waited at its socket than it holds: %w", backlogFor, err)
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, ctx.Err()
		case <-wait.C:
		}
	}
}

// RemoveSocket removes the socket at path if nobody listens there any more: a socket outlives its program. What is not a
// socket, and one that somebody listens at, stays.
func RemoveSocket(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || fi.Mode().Type() != os.ModeSocket {
		return err
	}
	c, err := dialSocket(ctx, path)
	if err == nil {
		return c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
