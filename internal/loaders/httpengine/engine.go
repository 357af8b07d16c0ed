// Package httpengine loads a model into an engine that is a child process and answers the OpenAI API on a port of
// 127.0.0.1, or on a socket in the instance's folder. It is what the loaders of such engines have in common; each of them says what to run, how to read its log
// and what its failures mean.
package httpengine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// How often the log is read and the engine asked while it loads, which bounds what we add to a load: in the first moments,
// in which small engines are up, and later.
const (
	firstTick   = 2 * time.Millisecond
	tick        = 10 * time.Millisecond
	firstMoment = time.Second
)

// placeAttempts is how often another port or socket is tried when a stranger took the one we chose.
const placeAttempts = 5

// TailLines is how many of the log's last lines a failure carries.
const TailLines = 40

// Command is how an engine is started once it is known where it listens, and its key.
type Command struct {
	Argv []string
	Env  []string // all of the environment, the key included
}

// Config says how to drive one engine.
type Config struct {
	Loader    string // the loader's name, for the handle
	Title     string // for messages: "llama.cpp"
	TagPrefix string
	Goodbye   string // a line on stdin that ends the engine; see process.Spec
	Logger    *slog.Logger

	// Command is how the engine is started that listens at a port; CommandOnSocket, of an engine of ours, at a socket with
	// this path, which it makes and opens to nobody but its user. One of the two is set.
	Command         func(port int, key string) Command
	CommandOnSocket func(path, key string) Command
	// Parse reads a line of the log. ok is false if it says nothing about progress.
	Parse func(line string) (p registry.Progress, ok bool)
	// Diagnose explains the end of the engine from its last lines.
	Diagnose func(tail []string, exit process.Exit) registry.Failure
	Endpoint registry.Endpoint // without BaseURL
	// Warmup is the tiny request whose answer means that the model works.
	Warmup API
	// WarmupHint is what may help, in this engine's own parameters, when it refuses Warmup; "" when nothing is known.
	WarmupHint string

	// HealthPath is asked while the engine starts, and by Health; "" is /health. An instance that is recovered keeps its own.
	HealthPath string
	// Asked, if not nil, is told the status of every answer of HealthPath while the engine starts; 0 when there was none.
	Asked func(status int)
	// StopSignal asks the engine to end; SIGTERM when 0.
	StopSignal syscall.Signal
	// Prepare, if not nil, is called once HealthPath answers and before Warmup, for an engine that starts empty and is told
	// what to load. It may call report from any goroutine until it returns. An error with a registry.Failure ends the load,
	// with the log's tail added to it, from which one without a Kind is diagnosed; any other means that the connection broke, and it is called again unless the engine
	// has ended.
	Prepare func(ctx context.Context, baseURL string, report func(registry.Progress)) error
	// Ready, if not nil, tells whether a line of the log says that the engine answers. Nothing is asked before such a line.
	Ready func(line string) bool
	// ReportPath, if not "", is where a ready engine tells what it has loaded; Describe completes the endpoint from that
	// and returns the request for Warmup. It is asked again by Recover.
	ReportPath string
	Describe   func(report []byte, ep *registry.Endpoint) API
	// Activity, if not nil, reads what ActivityPath answers: what the engine is doing.
	ActivityPath string
	Activity     func(answer []byte) (registry.Activity, error)
	// Tidy, if not nil, is called with the instance's folder when nothing of the engine runs any more, before Done is
	// closed: what the engine wrote there goes.
	Tidy func(dir string)
}

// API is a request: a path under the base URL and its JSON body.
type API struct {
	Path string
	Body any
}

// handleVersion is the version of data in a Handle.
const handleVersion = 1

// data is what a Handle keeps for us. It holds the key: it is stored, never shown.
type data struct {
	Port      int               `json:"port,omitempty"`   // 0 for an engine at a socket
	Socket    string            `json:"socket,omitempty"` // its path
	Key       string            `json:"key"`
	LogPath   string            `json:"log_path"`
	LogOffset int64             `json:"log_offset"`
	Tag       string            `json:"tag"`
	Dir       string            `json:"dir,omitempty"`
	Endpoint  registry.Endpoint `json:"endpoint"`

	HealthPath string         `json:"health_path,omitempty"`
	StopSignal syscall.Signal `json:"stop_signal,omitempty"`
}

// Load starts the engine, reports its progress, and returns when it has answered Warmup. Promises and errors are those
// of loaders.Loader. spec.Started is called again if the engine had to be started again at another place.
func Load(ctx context.Context, cfg Config, spec loaders.LoadSpec, report func(registry.Progress)) (*Instance, error) {
	rep := &reporter{report: report, sent: -1}
	var err error
	for range placeAttempts {
		var inst *Instance
		inst, err = loadOnce(ctx, cfg, spec, rep)
		if err == nil {
			return inst, nil
		}
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailurePort || ctx.Err() != nil {
			return nil, err
		}
	}
	return nil, err
}

func loadOnce(ctx context.Context, cfg Config, spec loaders.LoadSpec, rep *reporter) (_ *Instance, err error) {
	if ctx.Err() != nil {
		return nil, cancelled(cfg, spec)
	}
	at, err := choosePlace(cfg, spec.Dir)
	if err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		at.release(cfg.Logger)
		return nil, err
	}
	rep.send(registry.Progress{Stage: registry.StageEngine, Msg: "Starting " + cfg.Title})
	cmd := cfg.command(at, key)
	ps := process.Spec{Argv: cmd.Argv, Env: cmd.Env, Dir: spec.Dir, LogPath: spec.LogPath, Tag: cfg.TagPrefix + "/" + spec.InstanceID,
		Goodbye: cfg.Goodbye, StopSignal: cfg.StopSignal, Logger: cfg.Logger}
	proc, err := process.Start(ps)
	if err != nil {
		at.release(cfg.Logger)
		return nil, err
	}
	cfg.Endpoint.BaseURL = at.base.String()
	inst := newInstance(cfg, proc, at, data{Port: at.number(), Socket: at.base.Socket(), Key: key, LogPath: spec.LogPath, LogOffset: proc.LogOffset(), Tag: ps.Tag, Dir: spec.Dir,
		Endpoint: cfg.Endpoint, HealthPath: cfg.HealthPath, StopSignal: cfg.StopSignal}, spec.InstanceID)
	spec.Started(inst.Handle())
	if err := inst.await(ctx, rep); err != nil {
		kerr := inst.kill()
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = cancelled(cfg, spec)
		}
		if kerr != nil {
			return nil, errors.Join(err, kerr)
		}
		return nil, err
	}
	return inst, nil
}

func cancelled(cfg Config, spec loaders.LoadSpec) error {
	f := &registry.Failure{Kind: registry.FailureCancelled, Msg: fmt.Sprintf("Loading %s with %s was cancelled", spec.Model.ModelID, cfg.Title)}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + cfg.Loader, Msg: f.Msg, Failure: f, Err: context.Canceled}
}

func newKey() (string, error) {
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return process.KeyPrefix + hex.EncodeToString(b), nil
}

// await drives the load of a started engine from one goroutine, so that reports never overlap.
func (in *Instance) await(ctx context.Context, rep *reporter) error {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answer, 1)
	asking := false
	defer func() {
		cancel()
		if asking {
			<-answers // no request outlives the load
		}
	}()
	ask := func(f func() (int, error)) {
		asking = true
		go func() {
			code, err := f()
			answers <- answer{code, err}
		}()
	}
	follow := process.Follow(in.data.LogPath, in.data.LogOffset)
	clock, began, slow := time.NewTicker(firstTick), time.Now(), false
	defer clock.Stop()
	warming, preparing := false, false
	reports := make(chan registry.Progress)
	prepare := func() (int, error) {
		err := in.cfg.Prepare(ctx, in.data.Endpoint.BaseURL, func(p registry.Progress) {
			select {
			case reports <- p:
			case <-ctx.Done():
			}
		})
		if err == nil {
			return http.StatusOK, nil
		}
		return 0, err
	}
	ready := in.cfg.Ready == nil
	read := func() {
		for _, line := range follow.Lines() {
			ready = ready || in.cfg.Ready(line)
			if p, ok := in.cfg.Parse(line); ok {
				rep.send(p)
			}
		}
	}
	for {
		read()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-in.proc.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return in.failure("ended while loading")
		case p := <-reports:
			rep.send(p)
		case a := <-answers:
			asking = false
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case preparing && a.code != http.StatusOK:
				if failure := registry.AsError(a.err).Failure; failure != nil {
					f := *failure
					f.LogTail = in.proc.Tail(TailLines)
					if d := in.cfg.Diagnose(f.LogTail, process.Exit{}); f.Kind == "" && d.Msg != "" {
						f.Kind, f.Msg, f.Hint = d.Kind, d.Msg, d.Hint
					}
					f.Kind = cmp.Or(f.Kind, registry.FailureCrash)
					return in.failed(f)
				}
				preparing = false
			case !warming && !preparing && a.code == http.StatusOK && in.cfg.Prepare != nil:
				preparing = true
				ask(prepare)
			case !warming && a.code == http.StatusOK:
				warming = true
				read() // the last of the weights was written before this answer was given
				rep.send(registry.Progress{Stage: registry.StageWarmup, Msg: "Asking for a first answer"})
				ask(func() (int, error) { return in.post(ctx, in.cfg.Warmup) })
			case warming && a.code == http.StatusOK:
				return nil
			case warming && a.code != 0:
				return in.failed(registry.Failure{Kind: registry.FailureCrash, LogTail: in.proc.Tail(TailLines),
					Msg:  fmt.Sprintf("%s loaded the model and then refused a first request: %v", in.cfg.Title, a.err),
					Hint: strings.TrimSpace("Look at the engine's log. " + in.cfg.WarmupHint)})
			case warming:
				warming, preparing = false, false // the connection broke: either it is ending, which Done will say, or it answers again
			}
		case <-clock.C:
			if !slow && time.Since(began) > firstMoment {
				slow = true
				clock.Reset(tick)
			}
			if !asking && ready {
				ask(func() (int, error) {
					code, err := in.get(ctx, in.cfg.healthPath())
					if in.cfg.Asked != nil {
						in.cfg.Asked(code)
					}
					if code == http.StatusOK && in.cfg.ReportPath != "" {
						code, err = in.describe(ctx)
					}
					return code, err
				})
			}
		}
	}
}

type answer struct {
	code int
	err  error
}

func (c Config) command(at place, key string) Command {
	if at.port == nil {
		return c.CommandOnSocket(at.base.Socket(), key)
	}
	return c.Command(at.port.Number, key)
}

func (c Config) healthPath() string { return cmp.Or(c.HealthPath, "/health") }

// reporter keeps the promise that stages come in order and Done never shrinks, whatever the engine prints.
type reporter struct {
	report func(registry.Progress)
	sent   int // index in registry.LoadStages
	last   registry.Progress
}

func (r *reporter) send(p registry.Progress) {
	rank := -1
	for i, s := range registry.LoadStages {
		if s == p.Stage {
			rank = i
		}
	}
	if rank < r.sent || rank == r.sent && (p.Done < r.last.Done || p == r.last) {
		return
	}
	if p.Total > 0 && p.Done > p.Total {
		p.Done = p.Total
	}
	r.sent, r.last = rank, p
	if r.report != nil {
		r.report(p)
	}
}

// Recover returns the instance of a handle. CodeNotFound if its engine no longer runs or the number is another
// process's; CodeUnavailable if it runs and does not answer, for example because it was still loading: end it then
// with process.KillGroup.
func Recover(ctx context.Context, cfg Config, h registry.Handle) (*Instance, error) {
	gone := func(why string) error {
		return &registry.Error{Code: registry.CodeNotFound, Op: "loaders." + cfg.Loader + ".Recover",
			Msg: fmt.Sprintf("The engine of instance %s (process %d) %s; load the model again", h.InstanceID, h.PID, why)}
	}
	if h.Loader != cfg.Loader || h.Version != handleVersion {
		return nil, gone(fmt.Sprintf("was started by %s in version %d of its handle, which this program does not know", h.Loader, h.Version))
	}
	var d data
	if err := json.Unmarshal(h.Data, &d); err != nil {
		return nil, gone("left a handle that cannot be read")
	}
	at, err := socketPlace(d.Socket)
	if err != nil && d.Port == 0 {
		return nil, gone("left a handle that cannot be read")
	}
	id := process.Identity{PID: h.PID, StartTicks: h.StartTicks, BootID: h.BootID}
	proc, err := process.Attach(id, process.Spec{LogPath: d.LogPath, Tag: d.Tag, Goodbye: cfg.Goodbye, StopSignal: d.StopSignal, Logger: cfg.Logger}, d.LogOffset)
	if err != nil {
		if d.Port == 0 {
			at.release(cfg.Logger) // of an engine that died while nobody looked
		}
		return nil, gone("has ended")
	}
	if d.Port != 0 {
		at = portPlace(process.ClaimPort(d.Port))
	}
	cfg.Endpoint, cfg.HealthPath = d.Endpoint, cmp.Or(d.HealthPath, cfg.HealthPath)
	in := newInstance(cfg, proc, at, d, h.InstanceID)
	if err := in.Health(ctx); err != nil {
		select {
		case <-in.Done():
			return nil, gone("has ended")
		default:
			return nil, err
		}
	}
	if cfg.ReportPath != "" {
		if _, err := in.describe(ctx); err != nil {
			return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "loaders." + cfg.Loader + ".Recover", Err: err,
				Msg: fmt.Sprintf("%s (process %d) does not tell what it has loaded: %v", cfg.Title, h.PID, err)}
		}
	}
	return in, nil
}

// MainFile checks the file or folder that an engine is given, so that a missing one is told before anything starts.
func MainFile(cfg Config, path string) error {
	if _, err := os.Stat(path); err != nil {
		f := &registry.Failure{Kind: registry.FailureMissingFile, Msg: fmt.Sprintf("The weights are not at %s: %v", path, errors.Unwrap(err)),
			Hint: "Put the file back, or correct source_path and load again."}
		if path == "" {
			f.Msg = "The model has no file to load"
		}
		return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + cfg.Loader, Msg: f.Msg, Failure: f, Err: err}
	}
	return nil
}
