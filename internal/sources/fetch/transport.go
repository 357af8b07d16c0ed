package fetch

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TransportOptions configure a transport. Zero values are the defaults.
type TransportOptions struct {
	// AllowPrivate says whether host:port, as an address names it, may lead to this machine or to a private network.
	// The address is looked at after its name was resolved, so that a name that a stranger controls cannot point inside.
	// Nil allows everything: for a client that never follows what a stranger says.
	AllowPrivate func(hostport string) bool
	// Proxy as in http.Transport; nil takes it from the environment. A proxy's own address is always allowed.
	Proxy func(*http.Request) (*url.URL, error)
	// Connections is how many idle ones are kept to one host; 0 is 64.
	Connections int
}

// Transport returns a transport for bulk. It speaks HTTP/1.1 on purpose: with HTTP/2 all ranges would share one TCP
// connection, with one congestion window, one edge and one window of flow control, and a slow one could not be
// replaced. It decompresses nothing, as the bytes of a file are what its digest is made of.
func Transport(o TransportOptions) *http.Transport {
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.Connections == 0 {
		o.Connections = 64
	}
	g := &guard{allow: o.AllowPrivate}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                 g.proxy(o.Proxy),
		DialContext:           g.dial,
		Protocols:             &protocols,
		DisableCompression:    true,
		MaxIdleConnsPerHost:   o.Connections,
		MaxIdleConns:          4 * o.Connections,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ExpectContinueTimeout: time.Second,
		// Bodies are read in pieces larger than this, which go from the socket straight into the caller's memory.
		ReadBufferSize:         16 << 10,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// guard refuses connections to private addresses.
type guard struct {
	allow   func(hostport string) bool
	proxies sync.Map // host:port of each proxy that was used
}

func (g *guard) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	d := net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}
	if _, proxy := g.proxies.Load(hostport); g.allow != nil && !proxy && !g.allow(hostport) {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil || !netaddr.Public(at.Addr()) {
				return refused(hostport)
			}
			return nil
		}
	}
	return d.DialContext(ctx, network, hostport)
}

// proxy remembers the proxies' own addresses, and looks at the addresses that a proxy would connect to as far as they
// are written as numbers: names are resolved by the proxy, whose rules apply then.
func (g *guard) proxy(next func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(req *http.Request) (*url.URL, error) {
		u, err := next(req)
		if err != nil || u == nil {
			return u, err
		}
		target := withPort(req.URL)
		if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && g.allow != nil && !g.allow(target) && !netaddr.Public(ip) {
			return nil, refused(target)
		}
		g.proxies.Store(withPort(u), true)
		return u, nil
	}
}

func withPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "http":
			port = "80"
		case "socks5", "socks5h":
			port = "1080"
		default:
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func refused(hostport string) error {
	return &registry.Error{Code: registry.CodeUnavailable, Op: "fetch",
		Msg: fmt.Sprintf("the other side points to %s, which is an address of this machine or of a private network; nothing was sent there. If that is meant to be, configure it as the endpoint", hostport)}
}
