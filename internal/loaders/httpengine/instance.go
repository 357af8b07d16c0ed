package httpengine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Instance is a loaded model in an engine process. It implements loaders.Instance, loaders.Authenticator and
// loaders.Transporter.
type Instance struct {
	cfg        Config
	proc       *process.Process
	at         place
	client     *http.Client      // of what we ask ourselves
	transport  http.RoundTripper // of users' requests; nil is the gateway's own
	data       data
	instanceID string
	stopping   atomic.Bool
	done       chan struct{}
	err        error // written before done is closed
}

func newInstance(cfg Config, proc *process.Process, at place, d data, instanceID string) *Instance {
	in := &Instance{cfg: cfg, proc: proc, at: at, client: &http.Client{Transport: at.asking()}, transport: at.carrying(), data: d, instanceID: instanceID,
		done: make(chan struct{})}
	go func() {
		<-proc.Done()
		at.release(cfg.Logger)
		if t, ok := in.transport.(interface{ CloseIdleConnections() }); ok {
			t.CloseIdleConnections()
		}
		if cfg.Tidy != nil && d.Dir != "" {
			cfg.Tidy(d.Dir)
		}
		if !in.stopping.Load() {
			in.err = in.failure("ended without being asked to")
		}
		close(in.done)
	}()
	return in
}

// Handle returns what is needed to find the engine again. Its Data holds the engine's key.
func (in *Instance) Handle() registry.Handle {
	b, err := json.Marshal(in.data)
	if err != nil {
		b = nil // cannot happen: data holds numbers and strings
	}
	id := in.proc.Identity()
	return registry.Handle{Loader: in.cfg.Loader, Version: handleVersion, InstanceID: in.instanceID, PID: id.PID, StartTicks: id.StartTicks, BootID: id.BootID, Data: b}
}

// Endpoint returns where the engine answers.
func (in *Instance) Endpoint() registry.Endpoint { return in.data.Endpoint }

// Authorization returns the header that the engine asks for. It is a secret.
func (in *Instance) Authorization() string { return "Bearer " + in.data.Key }

// Transport reaches an engine at a socket; nil for one at a port, which every transport reaches.
func (in *Instance) Transport() http.RoundTripper { return in.transport }

// Done is closed when the engine has ended and nothing of it is left.
func (in *Instance) Done() <-chan struct{} { return in.done }

// Err says why it ended; nil while it runs and after Stop.
func (in *Instance) Err() error {
	select {
	case <-in.done:
		return in.err
	default:
		return nil
	}
}

// Health asks the engine whether it still answers. CodeUnavailable if it does not.
func (in *Instance) Health(ctx context.Context) error {
	select {
	case <-in.done:
		return &registry.Error{Code: registry.CodeUnavailable, Op: "httpengine.Health", Msg: in.cfg.Title + " has ended", Err: in.err}
	default:
	}
	code, err := in.get(ctx, in.cfg.healthPath())
	if code == http.StatusOK {
		return nil
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "httpengine.Health", Msg: fmt.Sprintf("%s (process %d) does not answer: %v", in.cfg.Title, in.proc.Identity().PID, err), Err: err}
}

// Stop ends the engine: it asks, kills when ctx ends, and returns when nothing is left.
func (in *Instance) Stop(ctx context.Context) error {
	in.stopping.Store(true)
	if err := in.proc.Stop(ctx); err != nil {
		return err
	}
	<-in.done
	return nil
}

func (in *Instance) kill() error {
	in.stopping.Store(true)
	if err := in.proc.Kill(); err != nil {
		return err
	}
	<-in.done
	return nil
}

// get asks the engine and returns the status; an error for all but 200.
func (in *Instance) get(ctx context.Context, path string) (int, error) {
	return in.do(ctx, http.MethodGet, path, nil)
}

// Post sends a command to the engine and returns the status, with an error that quotes the answer for all but 200. It
// is for what an engine understands beside the OpenAI API.
func (in *Instance) Post(ctx context.Context, a API) (int, error) { return in.post(ctx, a) }

func (in *Instance) post(ctx context.Context, a API) (int, error) {
	b, err := json.Marshal(a.Body)
	if err != nil {
		return 0, err
	}
	return in.do(ctx, http.MethodPost, a.Path, b)
}

// describe asks the engine what it has loaded. Only while nobody else has the instance.
func (in *Instance) describe(ctx context.Context) (int, error) {
	code, text, err := in.ask(ctx, http.MethodGet, in.cfg.ReportPath, nil)
	if err == nil {
		in.cfg.Warmup = in.cfg.Describe(text, &in.data.Endpoint)
	}
	return code, err
}

func (in *Instance) do(ctx context.Context, method, path string, body []byte) (int, error) {
	code, _, err := in.ask(ctx, method, path, body)
	return code, err
}

// ask sends a request and returns the status and what was answered; an error for all but 200.
func (in *Instance) ask(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, in.at.base.At(path).String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", in.Authorization())
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := in.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case resp.StatusCode != http.StatusOK:
		return resp.StatusCode, nil, fmt.Errorf("status %d: %s", resp.StatusCode, process.Scrub(string(bytes.TrimSpace(text[:min(len(text), 400)]))))
	case err != nil:
		return 0, nil, err
	}
	return resp.StatusCode, text, nil
}

// failure explains the end of the process from its log. Only after the process is done.
func (in *Instance) failure(how string) error {
	exit := in.proc.Exit()
	tail := in.proc.Tail(TailLines)
	f := in.cfg.Diagnose(tail, exit)
	f.LogTail = tail
	f.ExitCode = exit.Code
	if exit.Signal != 0 {
		f.Signal = signalName(exit.Signal)
	}
	if f.Msg == "" {
		f.Kind = registry.FailureCrash
		f.Msg, f.Hint = Unexplained(in.cfg.Title, how, exit)
	}
	return in.failed(f)
}

func (in *Instance) failed(f registry.Failure) error {
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + in.cfg.Loader, Msg: f.Msg, Failure: &f, Err: errors.New(string(f.Kind))}
}

// Unexplained words the end of an engine whose log says nothing. A SIGKILL that we did not send is nearly always the
// kernel's.
func Unexplained(title, how string, exit process.Exit) (msg, hint string) {
	switch {
	case exit.Signal == syscall.SIGKILL:
		return fmt.Sprintf("%s %s: it was killed (SIGKILL)", title, how),
			"Most likely the kernel ended it because memory ran out: look for \"Out of memory\" in dmesg, then give the model a shorter context_length or unload others. Otherwise somebody killed it."
	case exit.Signal != 0:
		return fmt.Sprintf("%s %s: it crashed (%s)", title, how, signalName(exit.Signal)),
			"The log's last lines say where. If it happens again, try another version of the engine."
	case exit.Known:
		return fmt.Sprintf("%s %s with exit code %d", title, how, exit.Code), "Look at the log's last lines."
	}
	return fmt.Sprintf("%s %s; how is not known, because it was started by an earlier run of this server", title, how),
		"Look at the log's last lines, and in dmesg for \"Out of memory\"."
}

func signalName(s syscall.Signal) string {
	names := map[syscall.Signal]string{syscall.SIGKILL: "SIGKILL", syscall.SIGSEGV: "SIGSEGV", syscall.SIGABRT: "SIGABRT", syscall.SIGBUS: "SIGBUS",
		syscall.SIGILL: "SIGILL", syscall.SIGFPE: "SIGFPE", syscall.SIGTERM: "SIGTERM", syscall.SIGINT: "SIGINT", syscall.SIGHUP: "SIGHUP", syscall.SIGTRAP: "SIGTRAP"}
	if n, ok := names[s]; ok {
		return n
	}
	return fmt.Sprintf("signal %d", int(s))
}
