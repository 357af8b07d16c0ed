package ollama

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestServerThatIsSilent takes every question and answers none: the instance ends and says so, and the questions do too.
func TestServerThatIsSilent(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close() // waits for every question to be over
	s := &shared{data: sharedData{Host: srv.URL}, api: clientOf(srv.URL), quit: make(chan struct{}), done: make(chan struct{})}
	go s.watch(time.Millisecond, 10*time.Millisecond)
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		close(s.quit)
		<-s.done
		t.Fatal("nobody noticed")
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "does not answer any more") {
		t.Errorf("Err: %v", err)
	}
}
