package ollama

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// TestWhereTheServerRuns: Check says whether a running server takes memory of this machine.
func TestWhereTheServerRuns(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"version":"0.33.0"}`))
	}))
	defer server.Close()
	l := New(Options{Host: server.URL})
	if v, err := l.Check(t.Context()); err != nil || v.Elsewhere {
		t.Errorf("at %s: %+v, %v", server.URL, v, err)
	}
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	l.here = func(_ context.Context, host string) bool { return host != at.Hostname() }
	if v, err := l.Check(t.Context()); err != nil || !v.Elsewhere {
		t.Errorf("at an address of another machine: %+v, %v", v, err)
	}
}
