package external

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// maxAnswer bounds what is read of an answer to a question of ours, in bytes. Lists of hundreds of models with prose about
// each fit.
const maxAnswer = 8 << 20

// client asks one service. Its key goes to the service's own host and nowhere else.
type client struct {
	s       settings
	timeout time.Duration
	wire    *http.Transport
}

func (l *Loader) client(s settings) *client {
	g := &guard{allow: l.o.AllowPrivate}
	return &client{s: s, timeout: l.o.Timeout, wire: &http.Transport{
		Proxy: g.proxy, DialContext: g.dial, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Minute, DisableCompression: true, MaxResponseHeaderBytes: 256 << 10,
	}}
}

// RoundTrip sends a request of the gateway's, or of ours. Redirects come back as they are.
func (c *client) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != c.s.base.Host || req.URL.Scheme != c.s.base.Scheme {
		return nil, fmt.Errorf("a request for %s was to be sent to %s", req.URL.Host, c.s.base.Host)
	}
	return c.wire.RoundTrip(req)
}

// reply is an answer to a question of ours, read to its end.
type reply struct {
	status   int
	kind     string // content type
	location string // host of a redirect
	body     []byte
}

// ask sends one request. An error is one for people; a status other than 200 is none here.
func (c *client) ask(ctx context.Context, method, path string, body any) (reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errSlow)
	defer cancel()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return reply{}, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.s.base.String()+path, content)
	if err != nil {
		return reply{}, err
	}
	if c.s.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.s.key)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return reply{}, c.unreachable(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return reply{}, c.unreachable(ctx, err)
	}
	r := reply{status: resp.StatusCode, kind: resp.Header.Get("Content-Type"), body: text}
	if u, err := resp.Location(); err == nil {
		r.location = u.Scheme + "://" + u.Host
	}
	return r, nil
}

// entry is a model in the service's list, with what some services say of its context.
type entry struct {
	ID            string `json:"id"`
	MaxModelLen   int    `json:"max_model_len"`  // vLLM
	ContextLength int    `json:"context_length"` // OpenRouter and others
	Meta          struct {
		Trained int `json:"n_ctx_train"` // llama.cpp
	} `json:"meta"`
}

func (e entry) context() int { return max(0, e.MaxModelLen, e.ContextLength, e.Meta.Trained) }

// find asks for the list of models and returns the one of that name.
func (c *client) find(ctx context.Context, model string) (entry, error) {
	r, err := c.ask(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return entry{}, err
	}
	if r.status != http.StatusOK {
		return entry{}, c.refused(r, "/v1/models")
	}
	var list struct {
		Data []entry `json:"data"`
	}
	if err := json.Unmarshal(r.body, &list); err != nil {
		what := "with something that is not JSON"
		if strings.HasPrefix(r.kind, "text/html") || bytes.HasPrefix(bytes.TrimSpace(r.body), []byte("<")) {
			what = "with a web page"
		}
		return entry{}, fault(registry.FailureUnreachable, fmt.Sprintf("%s answers /v1/models %s", c.s.base.Host, what),
			"source_path must be the base URL of an OpenAI-compatible API, not of a web site or a sign-in page. Look at its documentation, or ask curl for "+c.s.base.String()+"/v1/models.")
	}
	names := make([]string, 0, len(list.Data))
	for _, e := range list.Data {
		if e.ID == model {
			return e, nil
		}
		names = append(names, e.ID)
	}
	return entry{}, fault(registry.FailureParameter, fmt.Sprintf("%s has no model named %s", c.s.base.Host, clip(model)), "Set model in custom_loader_params to a name that it has: "+some(names)+".")
}

// some lists names, not more than a sentence holds.
func some(names []string) string {
	const most = 12
	if len(names) == 0 {
		return "its list is empty"
	}
	rest := ""
	if len(names) > most {
		rest = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = clip(n)
	}
	return strings.Join(out, ", ") + rest
}

func clip(s string) string {
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s), "?")
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// guard refuses connections to addresses that are not of the open internet. The proxy that the server's environment names
// may be anywhere; what it may reach is for its own rules to say, but for addresses written as numbers.
type guard struct {
	allow   bool
	proxies sync.Map // host:port
}

var errPrivate = errors.New("an address of this machine or of a private network")

func (g *guard) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	if _, proxy := g.proxies.Load(hostport); !g.allow && !proxy {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error { return outside(address) }
	}
	return d.DialContext(ctx, network, hostport)
}

// outside is errPrivate for an address, as a connection is made to it, that is not of the open internet.
func outside(address string) error {
	if at, err := netip.ParseAddrPort(address); err != nil || !netaddr.Public(at.Addr()) {
		return errPrivate
	}
	return nil
}

func (g *guard) proxy(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if err != nil || u == nil {
		return u, err
	}
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && !g.allow && !netaddr.Public(ip) {
		return nil, errPrivate
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	if port == "" {
		port = "443"
	}
	g.proxies.Store(net.JoinHostPort(u.Hostname(), port), true)
	return u, nil
}
