package external

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/openaitest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const secret = "sk-very-secret-0123456789"

// patience bounds a test that hangs.
const patience = 30 * time.Second

func model(base string, p map[string]any) registry.Model {
	if p == nil {
		p = map[string]any{"api_key": secret}
	}
	return registry.Model{ModelID: "org/model", SourceType: registry.SourceExternal, SourcePath: base, ModelFormat: registry.FormatSafetensors, CustomLoaderParams: p}.WithDefaults()
}

func spec(t *testing.T, m registry.Model) loaders.LoadSpec {
	t.Helper()
	dir := t.TempDir()
	return loaders.LoadSpec{Model: m, InstanceID: "i1", Device: registry.DeviceCPU, Dir: dir, LogPath: filepath.Join(dir, "engine.log"), Started: func(registry.Handle) {}}
}

func load(t *testing.T, l *Loader, m registry.Model) (*Instance, error) {
	t.Helper()
	s := spec(t, m)
	in, err := l.Load(t.Context(), s, func(registry.Progress) {})
	if log, _ := os.ReadFile(s.LogPath); strings.Contains(string(log), secret) {
		t.Error("the key is in the log")
	}
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = in.Stop(context.Background()) })
	return in.(*Instance), nil
}

func TestConformance(t *testing.T) {
	srv := httptest.NewServer(&openaitest.Service{Key: secret, Models: []string{"org/model"}})
	defer srv.Close()
	loadertest.Run(t, loadertest.Harness{
		New:    func(string) loaders.Loader { return New(Options{AllowPrivate: true}) },
		Spec:   func() loaders.LoadSpec { return loaders.LoadSpec{Model: model(srv.URL, nil)} },
		Remote: true, Kills: 30, Span: 10 * time.Millisecond,
	})
}

// Every way in which a service can be wrong is told in words that say which, with what to do, and without the key.
func TestFailures(t *testing.T) {
	plain := func(status int, kind, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, body)
			return true
		}
	}
	release := make(chan struct{})
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for name, c := range map[string]struct {
		fault  func(http.ResponseWriter, *http.Request) bool
		params map[string]any
		kind   registry.FailureKind
		words  []string
	}{
		"no key":        {nil, map[string]any{}, registry.FailureParameter, []string{"asks for a key", "llmm secret set"}},
		"wrong key":     {nil, map[string]any{"api_key": secret + "x"}, registry.FailureParameter, []string{"refused the key", "401"}},
		"no such model": {nil, map[string]any{"api_key": secret, "model": "gpt-9"}, registry.FailureParameter, []string{"gpt-9", "org/model"}},
		"a web page":    {plain(200, "text/html", "<!doctype html><title>Sign in</title>"), nil, registry.FailureUnreachable, []string{"web page", "base URL"}},
		"not JSON":      {plain(200, "text/plain", "hello"), nil, registry.FailureUnreachable, []string{"not JSON"}},
		"no such path":  {plain(404, "text/plain", ""), nil, registry.FailureUnreachable, []string{"has no /v1/models", "before /v1"}},
		"broken":        {plain(503, "application/json", `{"error":{"message":"overloaded, `+secret+`"}}`), nil, registry.FailureUnreachable, []string{"503", "overloaded", registry.Redaction}},
		"too many":      {plain(429, "application/json", `{"error":"slow down"}`), nil, registry.FailureUnreachable, []string{"429", "slow down"}},
		"sent elsewhere": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, other.URL+"/v1/models?x="+secret, http.StatusFound)
			return true
		}, nil, registry.FailureUnreachable, []string{"not followed", other.URL}},
		"breaks off": {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, nil, registry.FailureUnreachable, []string{"broke the connection off"}},
		"slow": {func(_ http.ResponseWriter, r *http.Request) bool {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return true
		}, nil, registry.FailureUnreachable, []string{"did not answer within"}},
		"answers nothing": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				openaitest.Problem(w, http.StatusNotFound, "no such route")
			}
			return r.Method == http.MethodPost
		}, nil, registry.FailureUnreachable, []string{"/v1/chat/completions"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(&openaitest.Service{Key: secret, Models: []string{"org/model"}, Fault: c.fault})
			defer srv.Close()
			_, err := load(t, New(Options{AllowPrivate: true, Timeout: time.Second}), model(srv.URL, c.params))
			e := registry.AsError(err)
			if err == nil || e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != c.kind || e.Failure.Hint == "" {
				t.Fatalf("got %v: %+v", err, e.Failure)
			}
			all := err.Error() + e.Failure.Msg + e.Failure.Hint
			for _, w := range c.words {
				if !strings.Contains(all, w) {
					t.Errorf("%q is not in: %s", w, all)
				}
			}
			if strings.Contains(all, secret) {
				t.Errorf("the key is in: %s", all)
			}
		})
	}
	close(release)
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

func TestFailuresOfTheWire(t *testing.T) {
	secure := httptest.NewTLSServer(&openaitest.Service{})
	defer secure.Close()
	open := httptest.NewServer(&openaitest.Service{})
	defer open.Close()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	_ = l.Close()
	for base, word := range map[string]string{
		secure.URL: "authority", strings.Replace(open.URL, "http:", "https:", 1): "does not speak TLS", closed: "Nothing listens",
	} {
		_, err := load(t, New(Options{AllowPrivate: true}), model(base, nil))
		if e := registry.AsError(err); err == nil || e.Failure == nil || e.Failure.Kind != registry.FailureUnreachable || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want %q", base, err, word)
		}
	}
}

// Addresses of this machine and of private networks are refused when the connection is made, whatever the name says.
func TestPrivateAddresses(t *testing.T) {
	svc := &openaitest.Service{Key: secret, Models: []string{"org/model"}}
	srv := httptest.NewServer(svc)
	defer srv.Close()
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		_, err := load(t, New(Options{}), model("http://"+host+":"+port, nil))
		if err == nil || !strings.Contains(err.Error(), "private network") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if n := svc.Asked.Load(); n != 0 {
		t.Errorf("the service was asked %d times", n)
	}
	// Looked at before a packet is sent, so that these need not exist.
	for _, host := range []string{"100.64.1.1", "100.100.100.200", "198.18.0.1", "169.254.169.254", "10.1.2.3", "192.0.2.1"} {
		_, err := load(t, New(Options{Timeout: time.Second}), model("http://"+host, nil))
		if err == nil || !strings.Contains(err.Error(), "private network") {
			t.Errorf("%s: %v", host, err)
		}
	}
	for at, want := range map[string]error{
		"8.8.8.8:443": nil, "[2606:4700::1]:443": nil, "[64:ff9b::808:808]:443": nil, "[2002:808:808::1]:443": nil,
		"100.64.1.1:80": errPrivate, "192.168.0.1:80": errPrivate, "0.0.0.0:80": errPrivate, "[::1]:80": errPrivate, "[fd00::1]:80": errPrivate,
		"[fe80::1%eth0]:80": errPrivate, "[64:ff9b::a9fe:a9fe]:80": errPrivate, "[2002:7f00:1::]:80": errPrivate, "[::127.0.0.1]:80": errPrivate,
		"no address": errPrivate,
	} {
		if got := outside(at); !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", at, got, want)
		}
	}
}

// The transport carries requests to the service and to nobody else, so that the key cannot leave.
func TestTransportKeepsToItsHost(t *testing.T) {
	srv := httptest.NewServer(&openaitest.Service{Key: secret, Models: []string{"org/model"}})
	defer srv.Close()
	other := httptest.NewServer(&openaitest.Service{})
	defer other.Close()
	in, err := load(t, New(Options{AllowPrivate: true}), model(srv.URL+"/v1/", nil))
	if err != nil {
		t.Fatal(err)
	}
	if in.Endpoint().BaseURL != srv.URL || in.Endpoint().ContextLength != 512 {
		t.Errorf("the endpoint is %+v", in.Endpoint())
	}
	send := func(base string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", in.Authorization())
		resp, err := in.Transport().RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := send(srv.URL); err != nil {
		t.Error(err)
	}
	if err := send(other.URL); err == nil {
		t.Error("another host was asked with the service's key")
	}
	if h := in.Handle(); strings.Contains(string(h.Data), secret) || h.PID != 0 {
		t.Errorf("the handle is %s with process %d", h.Data, h.PID)
	}
	s := in.Observe()
	if s.Requests != 2 || s.LatencyMS <= 0 {
		t.Errorf("observed %+v", s)
	}
}

// What a model answers is found out by asking, whatever the words in which a service says no.
func TestAsksWhatItAnswers(t *testing.T) {
	all := []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings}
	for _, want := range [][]registry.API{all, all[:1], all[2:], all[1:]} {
		srv := httptest.NewServer(&openaitest.Service{Key: secret, Models: []string{"org/model"}, APIs: want})
		in, err := load(t, New(Options{AllowPrivate: true}), model(srv.URL, nil))
		if err != nil || !slices.Equal(in.Endpoint().APIs, want) {
			t.Errorf("got %v, %v; want %v", in, err, want)
		}
		srv.Close()
	}
	svc := &openaitest.Service{Key: secret, Models: []string{"org/model"}}
	srv := httptest.NewServer(svc)
	defer srv.Close()
	in, err := load(t, New(Options{AllowPrivate: true}), model(srv.URL, map[string]any{"api_key": secret, "apis": []any{"embeddings"}}))
	if err != nil || !slices.Equal(in.Endpoint().APIs, all[2:]) || svc.Asked.Load() != 1 {
		t.Errorf("got %v, %v after %d questions; what is given need not be asked", in, err, svc.Asked.Load())
	}
	for _, c := range []struct {
		status int
		msg    string
		want   bool
	}{
		{200, "", true}, {429, "quota", true}, {400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", true},
		{400, "The model does not support Chat Completions API", false}, {400, `"all-minilm" does not support chat`, false}, {404, "This is not a chat model", false},
		{501, "This server does not support embeddings", false}, {400, "messages: at least 3 words", true}, {422, "prompt is too short", true}, {400, "", false}, {500, "oops", false},
	} {
		b, err := json.Marshal(map[string]any{"error": map[string]any{"message": c.msg}})
		if err != nil {
			t.Fatal(err)
		}
		if answersKind(reply{status: c.status, body: b}) != c.want {
			t.Errorf("%d %q: not %t", c.status, c.msg, c.want)
		}
	}
}

// A short outage is no crash: the instance lasts, says that the service is away, and that it is back. A long one ends it, with
// the reason.
func TestOutage(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	var down atomic.Bool
	srv := httptest.NewServer(&openaitest.Service{Key: secret, Models: []string{"org/model"}, Fault: func(w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() {
			openaitest.Problem(w, http.StatusBadGateway, "no upstream")
		}
		return down.Load()
	}})
	await := func(in *Instance, what string, ok func(registry.ServiceHealth) bool) {
		t.Helper()
		for end := time.Now().Add(patience); !ok(in.Observe()); {
			if time.Now().After(end) {
				t.Fatalf("%s did not happen: %+v", what, in.Observe())
			}
			select {
			case <-in.Done():
				t.Fatalf("%s did not happen before the end: %v", what, in.Err())
			case <-time.After(time.Millisecond):
			}
		}
	}
	l := New(Options{AllowPrivate: true, Every: 10 * time.Millisecond, Away: time.Hour})
	in, err := load(t, l, model(srv.URL, nil))
	if err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	await(in, "the outage", func(s registry.ServiceHealth) bool {
		return !s.AwaySince.IsZero() && strings.Contains(s.LastError, "no upstream")
	})
	if err := in.Health(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("Health while it is away: %v", err)
	}
	if in.Err() != nil {
		t.Errorf("an outage ended it: %v", in.Err())
	}
	down.Store(false)
	await(in, "the end of the outage", func(s registry.ServiceHealth) bool { return s.AwaySince.IsZero() })
	if err := in.Health(t.Context()); err != nil {
		t.Errorf("Health when it is back: %v", err)
	}
	_ = in.Stop(t.Context())

	short := New(Options{AllowPrivate: true, Every: 10 * time.Millisecond, Away: 50 * time.Millisecond})
	if in, err = load(t, short, model(srv.URL, nil)); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	select {
	case <-in.Done():
	case <-time.After(patience):
		t.Fatal("a service that is away for long did not end its instance")
	}
	e := registry.AsError(in.Err())
	if e.Failure == nil || e.Failure.Kind != registry.FailureUnreachable || !strings.Contains(e.Msg, "was away for") {
		t.Errorf("it ended with %v", in.Err())
	}
	srv.Close()
	goleak.VerifyNone(t, leaks)
}

func TestReconnects(t *testing.T) {
	srv := httptest.NewServer(&openaitest.Service{Key: secret, Models: []string{"org/model", "other"}})
	defer srv.Close()
	l := New(Options{AllowPrivate: true})
	in, err := load(t, l, model(srv.URL, nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]registry.Model{
		"another address": model("http://127.0.0.1:1", nil), "another model": model(srv.URL, map[string]any{"api_key": secret, "model": "other"}),
	} {
		if _, err := l.Reconnect(t.Context(), in.Handle(), m); registry.CodeOf(err) != registry.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.Reconnect(t.Context(), in.Handle(), model(srv.URL, map[string]any{"api_key": "old"})); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("a key that is refused: %v", err)
	}
}

func TestRefusesSettings(t *testing.T) {
	for name, c := range map[string]struct {
		model registry.Model
		field string
	}{
		"a secret that is not there": {model("http://h", map[string]any{"api_key": "secret:hub"}), "custom_loader_params.api_key"},
		"a line's end in the key":    {model("http://h", map[string]any{"api_key": "a\r\nHost: x"}), "custom_loader_params.api_key"},
		"an API that is none":        {model("http://h", map[string]any{"apis": []any{"images"}}), "custom_loader_params.apis"},
		"no address":                 {model("h:80", nil), "source_path"},
		"another source":             {registry.Model{ModelID: "m", SourceType: registry.SourceLocal, SourcePath: "http://h"}, "engine"},
	} {
		_, err := load(t, New(Options{}), c.model)
		if e := registry.AsError(err); registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	for _, s := range []string{`{"error":{"message":"x"}}`, `{"error":"x"}`, `{"message":"x"}`, `{"detail":"x"}`, `{"detail":[{"msg":1}]}`, `[]`, `{"error":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = clip(message(b))
		_ = answersKind(reply{status: http.StatusBadRequest, body: b})
	})
}

func FuzzBaseURL(f *testing.F) {
	for _, s := range []string{"http://h", "https://h/v1", "https://h/v1/", "http://h/a/v1", "http://[::1]:8/", "http://u:p@h", "http://h?x", "//", "http://h/%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := baseURL(s)
		if err != nil {
			return
		}
		if u.Hostname() == "" || u.User != nil || strings.HasSuffix(u.Path, "/") || u.Scheme != "http" && u.Scheme != "https" {
			t.Errorf("%q became %q", s, u)
		}
	})
}
