package gateway_test

import (
	"net/http"
	"sync/atomic"
	"testing"
)

// counted is a transport of an instance's own.
type counted struct{ n atomic.Int64 }

func (c *counted) RoundTrip(req *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
}

// An instance that is reached in its own way is reached in no other.
func TestTransportOfTheLease(t *testing.T) {
	w := newWorld(t)
	own := &counted{}
	w.mu.Lock()
	w.lease.Transport = own
	w.mu.Unlock()
	if got := w.do(http.MethodPost, "/v1/chat/completions", `{"model":"tiny","messages":[]}`); got.status != http.StatusOK {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if own.n.Load() != 1 {
		t.Errorf("the instance's transport carried %d requests", own.n.Load())
	}
}
