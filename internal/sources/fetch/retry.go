package fetch

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The waits between tries: doubling from the first to the longest, each varied by a quarter so that many clients
// of one server do not come back at the same moment. A hint of the server is taken as it is, up to a limit.
const (
	firstWait   = 200 * time.Millisecond
	longestWait = 30 * time.Second
	longestHint = time.Hour
)

// backoff returns how long to wait after so many failures in a row, 1 or more.
func backoff(failures int, hint time.Duration) time.Duration {
	if hint > 0 {
		hint = min(hint, longestHint)
		// Never before the time that was asked for.
		return hint + time.Duration(rand.Int64N(int64(hint/50)+1)) //nolint:gosec // no secret hangs on it
	}
	d := min(firstWait<<min(failures-1, 20), longestWait)
	return d*3/4 + time.Duration(rand.Int64N(int64(d)/2+1)) //nolint:gosec // likewise
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// wrongAnswer is an answer that cannot be part of the file: of another size, another content, a page of HTML. One faulty
// edge of a network must not end a fetch, so it is asked for again, a few times.
type wrongAnswer struct{ err error }

func (e *wrongAnswer) Error() string { return e.err.Error() }
func (e *wrongAnswer) Unwrap() error { return e.err }

// lost is a network that does not reach the other side. It is waited for without end.
type lost struct{ err error }

func (e *lost) Error() string { return e.err.Error() }
func (e *lost) Unwrap() error { return e.err }

// Transient makes a *RetryError of an error of an http.Client that may pass: no connection, a connection that broke, a
// time-out. Any other is returned without the address, whose query may hold a signature. host is for the message.
func Transient(host string, err error) error {
	if err == nil {
		return nil
	}
	var retry *RetryError
	var ours *registry.Error
	if errors.As(err, &retry) || errors.As(err, &ours) {
		// A redirect rule or a Locate said it in words of its own.
		if ours != nil {
			return ours
		}
		return retry
	}
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if isNetwork(err) {
		return &RetryError{Err: &lost{registry.Errorf(registry.CodeUnavailable, "%s cannot be reached: %s", host, networkWords(err))}}
	}
	return registry.Errorf(registry.CodeUnavailable, "%s cannot be used: %s; check the address, the proxy and the certificates", host, err.Error())
}

func isNetwork(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &dns):
		return true
	case errors.As(err, &op):
		// "remote error" and "local error" are alerts of TLS: a certificate that one of the two does not accept.
		return op.Op != "remote error" && op.Op != "local error"
	case errors.As(err, &timeout) && timeout.Timeout():
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED) ||
		// The transport has no error values for these.
		strings.Contains(err.Error(), "server closed idle connection") || strings.Contains(err.Error(), "transport connection broken")
}

// networkWords says shortly why there is no connection.
func networkWords(err error) string {
	var dns *net.DNSError
	var errno syscall.Errno
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &dns):
		return "its name cannot be resolved (" + dns.Err + ")"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "it does not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection"
	}
	return err.Error()
}

// StatusError makes a *RetryError of an answer whose status may pass: 408, 425, 429 and 5xx, with the hint of its headers.
// It returns nil for any other. The body is left alone.
func StatusError(resp *http.Response) error {
	code := resp.StatusCode
	if code != http.StatusRequestTimeout && code != http.StatusTooEarly && code != http.StatusTooManyRequests && code < 500 ||
		code == http.StatusNotImplemented || code == http.StatusHTTPVersionNotSupported {
		return nil
	}
	what := "has a fault at the moment"
	if code == http.StatusTooManyRequests {
		what = "allows no more requests for now"
	}
	after := Hint(resp.Header, time.Now())
	return &RetryError{
		Err: &registry.Error{Code: registry.CodeUnavailable, RetryAfter: after,
			Msg: hostOf(resp) + " " + what + " (it answered " + strconv.Itoa(code) + " " + http.StatusText(code) + "); try again later"},
		After: after,
		// A 503 that names a time is how storage services say 429.
		Slower: code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable && after > 0,
	}
}

func hostOf(resp *http.Response) string {
	if resp.Request != nil && resp.Request.URL != nil {
		return resp.Request.URL.Host
	}
	return "the server"
}

var rateLimitParam = regexp.MustCompile(`(?:^|;)\s*([rt])\s*=\s*(\d{1,9})\b`)

// Hint returns how long an answer asks to wait: what is left of the window of the RateLimit header and one second
// (`"api";r=0;t=55` is 56 s), else Retry-After in seconds or as a date. 0 when it does not say.
func Hint(h http.Header, now time.Time) time.Duration {
	var longest int64 = -1
	for _, policy := range strings.Split(h.Get("RateLimit"), ",") {
		remaining, left := int64(0), int64(-1)
		for _, m := range rateLimitParam.FindAllStringSubmatch(policy, -1) {
			n, _ := strconv.ParseInt(m[2], 10, 64) // nine digits at most
			if m[1] == "r" {
				remaining = n
			} else {
				left = n
			}
		}
		if remaining == 0 {
			longest = max(longest, left)
		}
	}
	if longest >= 0 {
		return time.Duration(longest+1) * time.Second
	}
	after := strings.TrimSpace(h.Get("Retry-After"))
	if n, err := strconv.ParseInt(after, 10, 32); err == nil {
		return time.Duration(max(n, 0)) * time.Second
	}
	if at, err := http.ParseTime(after); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// Retry calls do until it succeeds, fails with an error that is no *RetryError, or has failed tries times; between
// the calls it waits as the engine does. It is for the few requests before a fetch: somebody is waiting for the answer,
// so it waits no longer than patience altogether. The last error is returned with CodeUnavailable, or CodeBusy and
// RetryAfter when the other side asks for more time than that.
func Retry(ctx context.Context, tries int, patience time.Duration, do func(context.Context) error) error {
	deadline := time.Now().Add(patience)
	for failures := 1; ; failures++ {
		err := do(ctx)
		var retry *RetryError
		if err == nil || !errors.As(err, &retry) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := backoff(failures, retry.After)
		if failures >= tries || time.Now().Add(wait).After(deadline) {
			return GiveUp(retry)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// GiveUp makes of a failure that might pass one that is not waited for any longer.
func GiveUp(e *RetryError) error {
	var ours *registry.Error
	if !errors.As(e.Err, &ours) {
		ours = &registry.Error{Code: registry.CodeUnavailable, Msg: e.Err.Error(), Err: e.Err}
	}
	final := *ours
	if e.After > 0 {
		final.RetryAfter = e.After
		if e.Slower {
			final.Code = registry.CodeBusy
		}
	}
	return &final
}
