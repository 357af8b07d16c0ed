package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Only these headers are passed on. A list of what may pass is shorter than one of what may not: the client's
// Authorization and cookies are ours and not the engine's, hop-by-hop headers end here, and an engine's
// Access-Control-Allow-Origin would open our origin to every web site.
var (
	requestHeaders  = []string{"Accept-Language", "User-Agent", "X-Request-Id", "Traceparent", "Tracestate", "Openai-Beta"}
	responseHeaders = []string{"X-Request-Id", "Retry-After", "Openai-Processing-Ms", "Openai-Version"}
)

// How much of an answer that is not a stream is held back before its status is sent, so that an engine that dies in the
// middle can still be answered with an error; and how much of an engine's error is read.
const (
	holdBack  = 1 << 20
	errorBody = 64 << 10
)

// forward passes one request to the model's engine and the answer back.
func (g *Gateway) forward(w http.ResponseWriter, r *http.Request, a api) {
	ctx := r.Context()
	who := auth.FromContext(ctx)
	if !who.Known() { // before the body is read: strangers cost nothing
		g.fail(w, r, auth.Allowed(who, auth.ModelUse, ""))
		return
	}
	b, done, err := readBody(w, r, g.o.MaxBody, g.inFlight)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	defer done()
	rec, err := g.visible(ctx, b.model, auth.ModelUse)
	if err == nil {
		err = g.mayAnswer(ctx, rec)
	}
	if err != nil {
		g.fail(w, r, err)
		return
	}
	lease, err := g.o.Backend.Acquire(ctx, rec.ModelID, "gateway:"+who.Actor())
	if err != nil {
		g.fail(w, r, err)
		return
	}
	if lease.Release != nil {
		defer lease.Release()
	}
	if err := answers(rec.ModelID, lease.Endpoint, a); err != nil {
		g.fail(w, r, err)
		return
	}
	// Ends with this function, however it ends, so that the engine stops working for nobody.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := g.request(ctx, r, a, b, lease)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	var transport http.RoundTripper = g.transport
	if lease.Transport != nil {
		transport = lease.Transport
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		g.fail(w, r, g.died(rec.ModelID, err))
		return
	}
	defer func() { _ = resp.Body.Close() }()
	g.answer(w, r, rec.ModelID, resp)
}

// answers returns CodeInvalid if the instance does not answer this kind of request.
func answers(id string, e registry.Endpoint, a api) error {
	if len(e.APIs) == 0 || slices.Contains(e.APIs, a.kind) {
		return nil
	}
	able := slices.DeleteFunc(slices.Clone(apis), func(other api) bool { return !slices.Contains(e.APIs, other.kind) })
	err := &registry.Error{Code: registry.CodeInvalid, Msg: "this request is not for this model", Fields: []registry.FieldError{{
		Field: "model", Msg: "is " + id + ", which does not answer " + string(a.kind) + "; it answers at " + joinAnd(able),
	}}}
	return err
}

func (g *Gateway) request(ctx context.Context, r *http.Request, a api, b body, lease Lease) (*http.Request, error) {
	base, err := netaddr.ParseBase(lease.Endpoint.BaseURL)
	if err != nil {
		return nil, registry.Errorf(registry.CodeInternal, "the instance has no address that can be asked; unload the model and load it again")
	}
	target, name := base.At(a.path), lease.Endpoint.Model
	parts := b.parts(name)
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	open := func() (io.ReadCloser, error) {
		readers := make([]io.Reader, len(parts))
		for i, p := range parts {
			readers[i] = bytes.NewReader(p)
		}
		return io.NopCloser(io.MultiReader(readers...)), nil
	}
	content, _ := open()
	req := (&http.Request{
		Method: http.MethodPost, URL: target, Host: target.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}},
		Body:   content, GetBody: open, ContentLength: int64(length),
	}).WithContext(ctx)
	for _, h := range requestHeaders {
		if v := r.Header.Values(h); len(v) > 0 {
			req.Header[h] = v
		}
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "") // not Go's own
	}
	if lease.Authorization != "" {
		req.Header.Set("Authorization", lease.Authorization)
	}
	return req, nil
}

// died is what a caller is told when the engine went away before or during its answer. The cause is for the log: it
// names addresses that do not concern the caller.
func (g *Gateway) died(id string, err error) error {
	if !errors.Is(err, context.Canceled) {
		g.o.Logger.Warn("an engine did not answer to the end", "model_id", id, "error", err)
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "forward", Err: err, RetryAfter: 5 * time.Second,
		Msg: "the engine of " + id + " stopped before it had answered; it is started again if it can be. Try again in a moment; if it goes on, read its log on the model's page"}
}

func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, id string, resp *http.Response) {
	if resp.StatusCode >= 300 || resp.StatusCode < 200 {
		g.relayError(w, r, id, resp)
		return
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	for _, h := range responseHeaders {
		if v := resp.Header.Values(h); len(v) > 0 {
			w.Header()[h] = v
		}
	}
	out := &client{w: w, rc: http.NewResponseController(w), timeout: g.o.WriteTimeout}
	defer out.end()
	if kind == "text/event-stream" {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Accel-Buffering", "no") // tells nginx not to collect the stream
		w.WriteHeader(resp.StatusCode)
		g.stream(out, r, id, resp.Body)
		return
	}
	// Whatever an external service sends, it is not a page of ours.
	if kind != "application/json" {
		kind = "text/plain; charset=utf-8"
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, holdBack))
	if err != nil {
		g.fail(w, r, g.died(id, err))
		return
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(resp.StatusCode)
	if out.write(head) != nil || len(head) < holdBack {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 && out.write(buf[:n]) != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			_ = g.died(id, err) // for the log
			// The status is sent; breaking the connection is the only way left to say that this is not all.
			panic(http.ErrAbortHandler)
		}
	}
}

// stream passes server-sent events on, each as soon as it is there. Only whole lines are passed on: half a line means
// nothing to a client yet, and if the engine dies in the middle of one it can be left out and an error told instead.
func (g *Gateway) stream(out *client, r *http.Request, id string, upstream io.Reader) {
	out.flush() // the headers: the client sees that it began
	var rest []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := upstream.Read(buf)
		chunk := buf[:n]
		if cut := bytes.LastIndexByte(chunk, '\n') + 1; cut > 0 {
			if len(rest) > 0 && out.write(rest) != nil {
				return
			}
			rest = rest[:0]
			if out.write(chunk[:cut]) != nil {
				return
			}
			out.flush()
			chunk = chunk[cut:]
		}
		rest = append(rest, chunk...)
		if len(rest) > holdBack { // an endless line: not for us to hold
			if out.write(rest) != nil {
				return
			}
			out.flush()
			rest = rest[:0]
		}
		if errors.Is(err, io.EOF) {
			_ = out.write(rest)
			out.flush()
			return
		}
		if err != nil {
			if aborted(r) {
				return
			}
			_, p := problemOf(g.died(id, err))
			event, _ := json.Marshal(map[string]problem{"error": p})
			// The empty line ends an event of which some lines were sent.
			_ = out.write([]byte("\ndata: " + string(event) + "\n\n"))
			out.flush()
			return
		}
	}
}

// client writes to whoever asked. A client that takes nothing for timeout is given up, so that it does not hold an
// instance for ever; the time counts for each write, not for the whole answer.
type client struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
}

func (c *client) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_ = c.rc.SetWriteDeadline(time.Now().Add(c.timeout)) // not supported by every ResponseWriter, and then not needed
	_, err := c.w.Write(b)
	return err
}

func (c *client) flush() { _ = c.rc.Flush() } // an error shows at the next write

// end takes the deadline off the connection, which may carry more requests.
func (c *client) end() { _ = c.rc.SetWriteDeadline(time.Time{}) }

// relayError tells a caller what the engine found wrong, in OpenAI's shape whatever the engine's was.
func (g *Gateway) relayError(w http.ResponseWriter, r *http.Request, id string, resp *http.Response) {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, errorBody))
	if err != nil {
		g.fail(w, r, g.died(id, err))
		return
	}
	status := resp.StatusCode
	p := problem{Message: engineMessage(raw), Code: "engine_error"}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		// It is our credential that was refused, not the caller's, and the message may quote it.
		g.o.Logger.Warn("an engine refused our credential", "model_id", id, "status", status)
		status = http.StatusBadGateway
		p.Message = "the engine refused the key that is configured for this model; check its custom_loader_params"
	case status < 400:
		g.o.Logger.Warn("an engine answered with a redirect or an unknown status", "model_id", id, "status", status)
		status = http.StatusBadGateway
		p.Message = "the engine sent the request elsewhere, which is not followed; check the model's source_path"
	case p.Message == "":
		p.Message = "the engine answered " + resp.Status + " and did not say why; read its log on the model's page"
	}
	if v := resp.Header.Get("Retry-After"); v != "" {
		w.Header().Set("Retry-After", v)
	}
	p.Type = typeOf(status)
	if !aborted(r) {
		writeProblem(w, status, p)
	}
}

// engineMessage finds the message in an engine's error: {"error": {"message": …}}, {"error": "…"}, {"message": "…"} or
// {"detail": …}. "" if there is none.
func engineMessage(raw []byte) string {
	var v struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
	}
	if json.Unmarshal(raw, &v) != nil {
		return ""
	}
	var inner struct {
		Message string `json:"message"`
	}
	var s string
	switch {
	case json.Unmarshal(v.Error, &inner) == nil && inner.Message != "":
		s = inner.Message
	case json.Unmarshal(v.Error, &s) == nil && s != "":
	case v.Message != "":
		s = v.Message
	case json.Unmarshal(v.Detail, &s) == nil && s != "":
	default:
		s = string(v.Detail)
	}
	if len(s) > 4096 {
		s = strings.ToValidUTF8(s[:4096], "") + "…"
	}
	return s
}
