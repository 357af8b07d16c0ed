package s3test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy stands between a client and a server. It counts, and does what the network and busy services do: it changes
// nothing that is signed, so that the server behind it is still the one that decides.
type Proxy struct {
	URL string

	served atomic.Int64
	mu     sync.Mutex
	gets   []string
	auth   []string
	fault  func(r *http.Request) Fault
}

// Fault is what happens to one request; the zero Fault is nothing.
type Fault struct {
	Status int    // answer this instead of asking the server
	Code   string // of the error in the answer
	Msg    string
	Header map[string]string
	Before func()              // called before the server is asked
	Body   func([]byte) []byte // changes the body of an answer with content
	Type   string              // its Content-Type, with Body
	Cut    bool                // end the connection in the middle of the body
}

// Proxy starts one in front of the server.
func (s *Server) Proxy(t testing.TB) *Proxy {
	t.Helper()
	p := &Proxy{}
	target, err := url.Parse(s.URL)
	check(t, err)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
			if fault, ok := r.In.Context().Value(faultKey{}).(Fault); ok && (fault.Body != nil || fault.Cut) {
				r.Out.Header.Del("Accept-Encoding")
			}
		},
		ModifyResponse: p.modify,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		FlushInterval:  -1,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // faults are on purpose
	}
	front := httptest.NewServer(p.handler(forward))
	t.Cleanup(front.Close)
	p.URL = front.URL
	return p
}

type faultKey struct{}

func (p *Proxy) handler(forward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.gets = append(p.gets, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Range"))
		p.auth = append(p.auth, r.Header.Get("Authorization"))
		decide := p.fault
		p.mu.Unlock()
		var f Fault
		if decide != nil {
			f = decide(r)
		}
		if f.Before != nil {
			f.Before()
		}
		for k, v := range f.Header {
			w.Header().Set(k, v)
		}
		if f.Status != 0 {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(f.Status)
			if r.Method != http.MethodHead {
				_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>`+f.Code+`</Code><Message>`+f.Msg+`</Message></Error>`)
			}
			return
		}
		forward.ServeHTTP(&counted{ResponseWriter: w, object: IsObject(r), n: &p.served}, r.WithContext(withFault(r.Context(), f)))
	})
}

// IsObject reports whether a request is for the content of an object.
func IsObject(r *http.Request) bool {
	q := r.URL.Query()
	return r.Method == http.MethodGet && strings.Count(strings.Trim(r.URL.Path, "/"), "/") > 0 && q.Get("list-type") == "" && !q.Has("attributes")
}

// modify applies a fault to an answer.
func (p *Proxy) modify(resp *http.Response) error {
	if at, err := time.Parse(time.ANSIC, resp.Header.Get("Last-Modified")); err == nil && resp.Request.URL.Query().Has("attributes") {
		resp.Header.Set("Last-Modified", at.UTC().Format(http.TimeFormat)) // as S3 writes it; the server here writes it so elsewhere
	}
	f, _ := resp.Request.Context().Value(faultKey{}).(Fault)
	if f.Body == nil && !f.Cut || resp.StatusCode >= 300 {
		return nil
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if f.Body != nil {
		b = f.Body(b)
	}
	if f.Cut {
		resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), broken{}))
		return nil
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	resp.ContentLength = int64(len(b))
	resp.Header.Set("Content-Length", strconv.Itoa(len(b)))
	if f.Type != "" {
		resp.Header.Set("Content-Type", f.Type)
	}
	return nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errFault }

// counted counts the bytes of objects.
type counted struct {
	http.ResponseWriter
	object bool
	n      *atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	if c.object {
		c.n.Add(int64(n))
	}
	return n, err
}

// Unwrap lets the proxy flush.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Served returns how many bytes of objects went through.
func (p *Proxy) Served() int64 { return p.served.Load() }

// Requests returns the requests so far: method, address and range.
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.gets...)
}

// Authorizations returns the Authorization of every request so far.
func (p *Proxy) Authorizations() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.auth...)
}

// Fault decides for each request from now on what happens to it; nil ends it.
func (p *Proxy) Fault(decide func(r *http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = decide
}

func withFault(ctx context.Context, f Fault) context.Context {
	return context.WithValue(ctx, faultKey{}, f)
}
