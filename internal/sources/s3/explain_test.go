package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
)

// TestNetworkErrors are those that cannot be had from a server on the same machine in a short time.
func TestNetworkErrors(t *testing.T) {
	c := &connection{settings: settings{bucket: "bucket"}, at: &url.URL{Scheme: "https", Host: "s3.example.com"}, given: true, stranger: true, count: &counter{}, now: fixedNow}
	wrap := func(err error) error {
		return &url.Error{Op: "Get", URL: "https://s3.example.com/bucket?list-type=2", Err: err}
	}
	for name, tt := range map[string]struct {
		err   error
		word  string
		again bool
	}{
		"a dial that takes too long": {wrap(&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}), "in time", true},
		"no route":                   {wrap(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}), "no route to host", true},
		"a reset":                    {wrap(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), "ended the connection", true},
		"an early end":               {wrap(io.ErrUnexpectedEOF), "ended the connection", true},
		"something else":             {wrap(errors.New("malformed HTTP response")), "malformed HTTP response", false},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.explain(t.Context(), tt.err, "", false)
			var own *registry.Error
			if !errors.As(err, &own) || own.Code != registry.CodeUnavailable || !strings.Contains(err.Error(), tt.word) || strings.Contains(err.Error(), "list-type") {
				t.Errorf("got %v", err)
			}
			var again *fetch.RetryError
			if errors.As(c.explain(t.Context(), tt.err, "key", true), &again) != tt.again {
				t.Errorf("that it may pass is not %v", tt.again)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.explain(ctx, wrap(context.Canceled), "", true); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context is %v", err)
	}
}
