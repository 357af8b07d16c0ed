package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/gateway"
)

// While the model loads nothing is written; a client that gives up ends the wait.
func TestHangingUpWhileLoading(t *testing.T) {
	w := newWorld(t)
	waiting, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	w.acquire = func(ctx context.Context, _, _ string) error {
		once.Do(func() { close(waiting) })
		<-ctx.Done()
		select {
		case ended <- ctx.Err():
		default:
		}
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		resp, err := w.site.Client().Do(w.request(ctx, "POST", chat, `{"model":"tiny","stream":true}`))
		if err == nil {
			_ = resp.Body.Close()
		}
		result <- err
	}()
	<-waiting
	select {
	case err := <-result:
		t.Fatalf("answered before the model was ready: %v", err)
	default:
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Each event arrives before the engine sends the next: the engine waits for the client to have read it.
func TestStreamingIsNotBuffered(t *testing.T) {
	w := newWorld(t)
	read := make(chan struct{})
	const n = 20
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		rc := http.NewResponseController(rw)
		_ = rc.Flush()
		<-read // the headers are there
		for i := range n {
			_, _ = fmt.Fprintf(rw, "data: {\"n\":%d}\n\n", i)
			_ = rc.Flush()
			<-read
		}
		_, _ = io.WriteString(rw, "data: [DONE]\n\n")
	}
	resp, err := w.site.Client().Do(w.request(t.Context(), "POST", chat, `{"model":"tiny","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("%v", resp.Header)
	}
	read <- struct{}{}
	lines := bufio.NewScanner(resp.Body)
	for i := range n {
		if !lines.Scan() || lines.Text() != fmt.Sprintf(`data: {"n":%d}`, i) || !lines.Scan() || lines.Text() != "" {
			t.Fatalf("event %d: %q", i, lines.Text())
		}
		if w.released.Load() != 0 {
			t.Error("the lease was given back before the end")
		}
		read <- struct{}{}
	}
	if !lines.Scan() || lines.Text() != "data: [DONE]" {
		t.Errorf("%q", lines.Text())
	}
}

func TestHangingUpCancelsTheEngine(t *testing.T) {
	w := newWorld(t)
	ended := make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(rw, "data: 1\n\n")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		close(ended)
	}
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := w.site.Client().Do(w.request(ctx, "POST", chat, `{"model":"tiny","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(resp.Body, make([]byte, 4))
	cancel()
	_ = resp.Body.Close()
	<-ended
}

// hijack answers with raw bytes and then breaks the connection, as an engine that is killed does.
func hijack(raw string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, raw)
		if c, ok := conn.(*net.TCPConn); ok {
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c) // so that what was written arrives before the end does
		}
		_ = conn.Close()
	}
}

func chunked(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(p), p)
	}
	return b.String()
}

func TestEngineDiesInAStream(t *testing.T) {
	w := newWorld(t)
	w.handler = hijack("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" +
		chunked("data: {\"n\":1}\n\n", "data: {\"n\":2}\n\ndata: {\"half"))
	a := w.do("POST", chat, `{"model":"tiny","stream":true}`)
	if !strings.HasPrefix(a.body, "data: {\"n\":1}\n\ndata: {\"n\":2}\n\n") || strings.Contains(a.body, "half") {
		t.Fatalf("%q", a.body)
	}
	last := strings.TrimSpace(a.body[strings.LastIndex(a.body, "data: ")+6:])
	var v struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal([]byte(last), &v); err != nil || v.Error.Code != "unavailable" || v.Error.Type != "server_error" || !strings.HasSuffix(a.body, "\n\n") {
		t.Errorf("%q %v", last, err)
	}
	if strings.Contains(a.body, "127.0.0.1") {
		t.Errorf("the engine's address is told: %s", a.body)
	}
}

func TestEngineDies(t *testing.T) {
	w := newWorld(t)
	for name, raw := range map[string]string{
		"before it answers": "",
		"in the headers":    "HTTP/1.1 200 OK\r\nContent-",
		"in a short answer": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"half",
	} {
		w.handler = hijack(raw)
		a := w.do("POST", chat, `{"model":"tiny"}`)
		a.problem(t, 503, "unavailable", "stopped before it had answered")
		if strings.Contains(a.body, "127.0.0.1") || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %v %s", name, a.header, a.body)
		}
	}
	// So large that the beginning was sent already: the client must not take it for the whole.
	w.handler = hijack("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(strings.Repeat("x", 3<<20)))
	resp, err := w.site.Client().Do(w.request(t.Context(), "POST", chat, `{"model":"tiny"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a cut answer looks whole")
	}
}

func TestNoEngine(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.lease.Endpoint.BaseURL = "http://" + l.Addr().String()
	_ = l.Close()
	w.do("POST", chat, `{"model":"tiny"}`).problem(t, 503, "unavailable")
	w.lease.Endpoint.BaseURL = "::"
	w.do("POST", chat, `{"model":"tiny"}`).problem(t, 500, "internal", "no address")
}

func TestEngineErrors(t *testing.T) {
	for _, c := range []struct {
		status, want int
		body, part   string
	}{
		{400, 400, `{"error":{"code":400,"message":"the prompt is too long","type":"exceed_context_size_error"}}`, "the prompt is too long"},
		{404, 404, `{"error":"model not found"}`, "model not found"},
		{422, 422, `{"detail":[{"loc":["body"],"msg":"field required"}]}`, "field required"},
		{500, 500, `{"message":"boom"}`, "boom"},
		{503, 503, `<html>`, "did not say why"},
		{401, 502, `{"error":{"message":"Incorrect API key provided: sk-verysecret"}}`, "custom_loader_params"},
		{403, 502, ``, "custom_loader_params"},
		{302, 502, ``, "not followed"},
	} {
		w := newWorld(t)
		w.handler = func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Location", "http://192.0.2.1/")
			rw.WriteHeader(c.status)
			_, _ = io.WriteString(rw, c.body)
		}
		a := w.do("POST", chat, `{"model":"tiny","stream":true}`)
		a.problem(t, c.want, "engine_error", c.part)
		if strings.Contains(a.body, "sk-verysecret") || a.header.Get("Location") != "" {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
}

func TestLargePromptAndAnswer(t *testing.T) {
	w := newWorld(t)
	w.lease.Endpoint.Model = "other"
	big := strings.Repeat("0123456789abcdef", 10<<20/16)
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if int64(len(body)) != r.ContentLength || string(body) != `{"messages":"`+big+`","model":"other"}` {
			t.Errorf("%d bytes, Content-Length %d", len(body), r.ContentLength)
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, `"`+big+`"`)
	}
	a := w.do("POST", chat, `{"messages":"`+big+`","model":"tiny"}`)
	if a.status != 200 || a.body != `"`+big+`"` {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

func TestALineWithoutEndIsNotHeldForEver(t *testing.T) {
	w := newWorld(t)
	got := make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		_, _ = rw.Write(bytes.Repeat([]byte("x"), 3<<20))
		_ = http.NewResponseController(rw).Flush()
		<-got
	}
	resp, err := w.site.Client().Do(w.request(t.Context(), "POST", chat, `{"model":"tiny","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	close(got)
	_, _ = io.Copy(io.Discard, resp.Body)
}

// A client that stops reading gives the instance back after the write time-out.
func TestAClientThatTakesNothing(t *testing.T) {
	w := newWorld(t, func(o *gateway.Options) { o.WriteTimeout = 50 * time.Millisecond })
	ended := make(chan struct{})
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		rw.Header().Set("Content-Type", "text/event-stream")
		line := []byte("data: " + strings.Repeat("x", 64<<10) + "\n\n")
		for r.Context().Err() == nil {
			if _, err := rw.Write(line); err != nil {
				break
			}
		}
		close(ended)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.site.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	body := `{"model":"tiny","stream":true}`
	_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nX-As: member\r\nContent-Length: %d\r\n\r\n%s", chat, len(body), body)
	<-ended
}

func TestConcurrentRequests(t *testing.T) {
	w := newWorld(t)
	w.handler = func(rw http.ResponseWriter, r *http.Request) {
		var in struct{ N int }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if in.N%2 == 0 {
			rw.Header().Set("Content-Type", "text/event-stream")
			for i := range 5 {
				_, _ = fmt.Fprintf(rw, "data: %d-%d\n\n", in.N, i)
				_ = http.NewResponseController(rw).Flush()
			}
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(rw, "%d", in.N)
	}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 20 {
				n := worker*100 + i
				want := fmt.Sprint(n)
				if n%2 == 0 {
					want = ""
					for j := range 5 {
						want += fmt.Sprintf("data: %d-%d\n\n", n, j)
					}
				}
				if a := w.do("POST", chat, fmt.Sprintf(`{"model":"tiny","n":%d}`, n)); a.body != want {
					t.Errorf("%d: %q", n, a.body)
				}
			}
		})
	}
	wg.Wait()
}
