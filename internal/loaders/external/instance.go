package external

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Instance is a session with a service: nothing but what we know of it, and a watch over it.
type Instance struct {
	id     string
	data   data
	client *client
	every  time.Duration
	away   time.Duration
	log    *slog.Logger
	ctx    context.Context // ends with Stop
	cancel context.CancelFunc
	doubt  chan struct{} // a user's request failed: look at once
	once   sync.Once
	done   chan struct{}
	err    error // written before done is closed

	mu    sync.Mutex
	stats registry.ServiceHealth
	heard time.Time // the last answer of any kind
}

var (
	_ loaders.Instance      = (*Instance)(nil)
	_ loaders.Authenticator = (*Instance)(nil)
	_ loaders.Transporter   = (*Instance)(nil)
	_ loaders.Observer      = (*Instance)(nil)
)

func (l *Loader) instance(id string, s settings, logPath string) *Instance {
	ctx, cancel := context.WithCancel(context.Background()) // a session outlives the request that began it
	return &Instance{
		id: id, client: l.client(s), every: l.o.Every, away: l.o.Away, log: l.o.Logger, ctx: ctx, cancel: cancel,
		doubt: make(chan struct{}, 1), done: make(chan struct{}),
		data: data{LogPath: logPath, Endpoint: registry.Endpoint{BaseURL: s.base.String(), Model: s.model, ModelClass: title}},
	}
}

// Handle returns what Reconnect needs. There is no process and no key in it.
func (in *Instance) Handle() registry.Handle {
	b, err := json.Marshal(in.data)
	if err != nil {
		b = nil // cannot happen: data holds strings and numbers
	}
	return registry.Handle{Loader: Name, Version: handleVersion, InstanceID: in.id, Data: b}
}

// Endpoint returns the service's address and what it answers.
func (in *Instance) Endpoint() registry.Endpoint { return in.data.Endpoint }

// Authorization returns the header with the service's key, "" if it has none. It is a secret.
func (in *Instance) Authorization() string {
	if in.client.s.key == "" {
		return ""
	}
	return "Bearer " + in.client.s.key
}

// Transport carries requests to this service only, looks at the addresses that they go to, and watches how it answers.
func (in *Instance) Transport() http.RoundTripper { return watched{in} }

// Done is closed when the service was away for too long, or after Stop.
func (in *Instance) Done() <-chan struct{} { return in.done }

// Err says why it ended; nil while it lasts and after Stop.
func (in *Instance) Err() error {
	select {
	case <-in.done:
		return in.err
	default:
		return nil
	}
}

// Health asks the service whether it is there and still has the model. CodeUnavailable if not.
func (in *Instance) Health(ctx context.Context) error {
	select {
	case <-in.done:
		return &registry.Error{Code: registry.CodeUnavailable, Op: "external.Health", Msg: "The session with " + in.client.s.base.Host + " has ended", Err: in.err}
	default:
	}
	if err := in.look(ctx); err != nil {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "external.Health", Msg: registry.AsError(err).Msg, Err: err}
	}
	return nil
}

// Stop forgets the session. The service does not notice.
func (in *Instance) Stop(context.Context) error {
	in.end(nil)
	return nil
}

func (in *Instance) end(err error) {
	in.once.Do(func() {
		in.err = err
		in.close()
		if err != nil {
			in.note("the session ends: %v", err)
		}
		close(in.done)
	})
}

// close lets go of everything that the session holds.
func (in *Instance) close() {
	in.cancel()
	in.client.wire.CloseIdleConnections()
}

// Observe returns how the service has answered so far.
func (in *Instance) Observe() registry.ServiceHealth {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stats
}

// look asks once and notes the outcome.
func (in *Instance) look(ctx context.Context) error {
	_, err := in.client.find(ctx, in.client.s.model)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	now := time.Now()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stats.CheckedAt = now
	switch {
	case err == nil:
		if !in.stats.AwaySince.IsZero() {
			in.note("is back after %s", now.Sub(in.stats.AwaySince).Round(time.Second))
			in.log.Info("An external service is back", "service", in.client.s.base.Host, "away", now.Sub(in.stats.AwaySince))
		}
		in.stats.AwaySince, in.heard = time.Time{}, now
	default:
		in.stats.LastError = registry.AsError(err).Msg
		if in.stats.AwaySince.IsZero() {
			in.stats.AwaySince = now
			in.note("is away: %v", err)
			in.log.Warn("An external service is away", "service", in.client.s.base.Host, "err", err)
		}
	}
	return err
}

// watch looks after the service: seldom while it answers, at once when a request of a user failed, then after pauses that
// grow. An outage is no crash: the instance stays ready until the service was away for long, and then ends with a
// reason that says so. A later request loads it again.
func (in *Instance) watch() {
	pause := in.every
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-in.ctx.Done():
			return
		case <-in.doubt:
		case <-timer.C:
		}
		if in.used() {
			pause = in.every
		} else if err := in.look(in.ctx); err == nil {
			pause = in.every
		} else {
			if in.ctx.Err() != nil {
				return
			}
			away := in.Observe().AwaySince
			if out := time.Since(away); out >= in.away {
				in.end(in.gone(out, err))
				return
			}
			pause = min(in.every, max(pause/8, time.Since(away)/2, in.every/30))
		}
		timer.Reset(pause)
	}
}

// used reports whether the service answered somebody so lately that there is no need to ask.
func (in *Instance) used() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stats.AwaySince.IsZero() && len(in.doubt) == 0 && time.Since(in.heard) < in.every/2
}

func (in *Instance) gone(out time.Duration, err error) error {
	f := registry.Failure{Kind: registry.FailureUnreachable, Hint: "It is asked again when the model is loaded, or by the next request for it."}
	if last := registry.AsError(err).Failure; last != nil {
		f.Kind, f.Hint = last.Kind, last.Hint+" "+f.Hint
	}
	f.Msg = fmt.Sprintf("%s was away for %s: %s", in.client.s.base.Host, out.Round(time.Second), registry.AsError(err).Msg)
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "external", Msg: f.Msg, Failure: &f}
}

// note writes a line into the instance's log, for people.
func (in *Instance) note(format string, args ...any) {
	f, err := os.OpenFile(in.data.LogPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return // the log is a courtesy
	}
	defer func() { _ = f.Close() }()
	_, _ = fmt.Fprintf(f, "%s %s %s\n", time.Now().UTC().Format(time.RFC3339), in.client.s.base.Host, in.client.scrub(fmt.Sprintf(format, args...)))
}

// watched is the transport of requests of users.
type watched struct{ in *Instance }

func (w watched) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	resp, err := w.in.client.RoundTrip(req)
	took := time.Since(began)
	if err != nil && req.Context().Err() != nil {
		return resp, err // the client went away: says nothing of the service
	}
	w.in.answered(took, resp, err)
	if err == nil {
		resp.Body = &body{ReadCloser: resp.Body, in: w.in, req: req}
	}
	return resp, err
}

// answered counts a request.
func (in *Instance) answered(took time.Duration, resp *http.Response, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stats.Requests++
	if err == nil && resp.StatusCode < http.StatusInternalServerError {
		in.heard = time.Now()
	}
	switch {
	case err != nil:
		in.stats.Errors++
		in.stats.LastError = in.client.scrub(registry.AsError(in.client.unreachable(context.Background(), err)).Msg)
		in.suspect()
	case resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		in.stats.Errors++
		in.stats.LastError = fmt.Sprintf("%s answered %s with status %d", in.client.s.base.Host, resp.Request.URL.Path, resp.StatusCode)
		in.suspect()
	default:
		ms := float64(took) / float64(time.Millisecond)
		if in.stats.LatencyMS == 0 {
			in.stats.LatencyMS = ms
		}
		in.stats.LatencyMS += (ms - in.stats.LatencyMS) / 8 // the last few count most
	}
}

func (in *Instance) suspect() {
	select {
	case in.doubt <- struct{}{}:
	default:
	}
}

// body notices an answer that breaks off.
type body struct {
	io.ReadCloser
	in  *Instance
	req *http.Request
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && b.req.Context().Err() == nil {
		b.in.mu.Lock()
		b.in.stats.Errors++
		b.in.stats.LastError = b.in.client.s.base.Host + " broke an answer off"
		b.in.mu.Unlock()
		b.in.suspect()
	}
	return n, err
}
