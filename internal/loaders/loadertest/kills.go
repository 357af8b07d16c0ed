package loadertest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// EnvKills sets how often each engine is killed, in place of the share that is the default: LLMM_KILLS=100.
const EnvKills = "LLMM_KILLS"

// A moment at which an engine is killed. Each is random within its part of the life of an engine.
type moment string

const (
	atStart     moment = "start"     // within milliseconds of the fork: the program is being mapped
	whileEngine moment = "engine"    // while it imports and opens its port, at the latest when the weights begin
	atWeights   moment = "weights"   // after the first word about weights
	atWarmup    moment = "warm-up"   // while its first answer is awaited
	whenReady   moment = "ready"     // soon after the load has succeeded
	answering   moment = "answering" // in the middle of a stream
)

// moments are passed through in turn, so that six kills have one of each and of many half are early, which costs least.
var moments = []moment{atStart, whileEngine, atWeights, atWarmup, whenReady, answering, atStart, whileEngine, atStart, whileEngine}

// kills is how often an engine is killed.
func (s *suite) kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv(EnvKills)
	if text == "" {
		return s.Kills
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, which is no number of kills", EnvKills, text)
	}
	return n
}

// killAtRandom kills one of the engine's processes with SIGKILL at random moments of its life, any of them, as the kernel
// does that needs memory; where it lives on without that one, its first process a moment later. Whatever the moment, the load
// or the instance ends with a failure that says so, and nothing is left: no process, no port, no socket, no file, no shared
// memory, and so no memory of a GPU, which goes with the last process that has it.
func killAtRandom(t *testing.T, s *suite) {
	n, began := s.kills(t), time.Now()
	at, others := map[moment]int{}, 0
	for i := range n {
		m := moments[i%len(moments)]
		at[m]++
		if s.killOnce(t, m) {
			others++
		}
		if t.Failed() {
			t.Fatalf("kill %d of %d, at %s", i+1, n, m)
		}
	}
	t.Logf("%d kills in %.1f s: %v; %d of a process that another had started", n, time.Since(began).Seconds(), at, others)
}

// killOnce reports whether another process than the engine's first was killed.
func (s *suite) killOnce(t *testing.T, m moment) (other bool) {
	t.Helper()
	spec := s.Spec()
	if s.Stubborn != nil {
		spec = s.Stubborn() // so that there are grandchildren to end
	}
	a := s.attempt(t, spec)
	v := &victim{suite: s, attempt: a}
	a.onStart = func(h registry.Handle) {
		if m == atStart {
			v.killAfter(h, 10*time.Millisecond)
		}
		if m == whileEngine {
			v.killAfter(h, s.Span*3/4)
		}
	}
	a.on = func(p registry.Progress) {
		h := a.handles()
		switch {
		case len(h) == 0:
		case m == whileEngine && p.Stage == registry.StageWeights:
			v.kill(h[len(h)-1])
		case m == atWeights && p.Stage == registry.StageWeights:
			v.killAfter(h[len(h)-1], s.Span/10)
		case m == atWarmup && p.Stage == registry.StageWarmup:
			v.killAfter(h[len(h)-1], 10*time.Millisecond)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	in, err := s.loader.Load(ctx, a.spec, a.report)
	if err == nil {
		if m == answering {
			killWhileAnswering(t, in, v, a.spec.Model.ModelID)
		} else {
			v.killAfter(in.Handle(), 20*time.Millisecond) // if it has not been yet
		}
		waitDone(t, in)
		err = in.Err()
	}
	errs := v.ended()
	// An engine that sees one of its own die may end in its own manner.
	if f := wantFailure(t, err, registry.FailureCrash, registry.FailureOutOfMemory); f.Signal != "SIGKILL" && !v.other {
		t.Errorf("the failure names signal %q: %s", f.Signal, f.Msg)
	}
	for _, err := range errs {
		t.Error(err)
	}
	s.gone(t, a)
	return v.other
}

// victim is an engine that is to be killed, once. What it holds is looked at before.
type victim struct {
	suite   *suite
	attempt *attempt

	mu     sync.Mutex
	timers []*time.Timer
	killed bool
	other  bool     // another of its processes than the first was killed
	shared []string // files of shared memory that it has mapped, long enough to be noted
	young  []string // and those that are too young for that
	pids   []int
	errs   []error
}

func (v *victim) killAfter(h registry.Handle, within time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.timers = append(v.timers, time.AfterFunc(rand.N(within), func() { v.kill(h) }))
}

func (v *victim) kill(h registry.Handle) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.killed {
		return
	}
	pids, err := process.Members(v.suite.tag, v.attempt.spec.InstanceID)
	if err != nil {
		v.errs = append(v.errs, err)
	}
	v.pids = pids
	v.note(pids)
	v.killed = true
	if len(pids) > 0 {
		if pid := pids[rand.N(len(pids))]; pid != h.PID {
			if p, err := os.FindProcess(pid); err == nil && p.Kill() == nil {
				v.other = true
				v.timers = append(v.timers, time.AfterFunc(rand.N(100*time.Millisecond), func() {
					v.mu.Lock()
					defer v.mu.Unlock()
					if pids, err := process.Members(v.suite.tag, v.attempt.spec.InstanceID); err == nil {
						v.note(pids)
					}
					_ = signalKill(h) // it may have ended
				}))
				return
			}
		}
	}
	if err := signalKill(h); err != nil {
		v.errs = append(v.errs, err)
	}
}

// note remembers what processes share.
func (v *victim) note(pids []int) {
	for _, pid := range pids {
		for _, name := range sharedBy(pid) {
			if fi, err := os.Stat(name); err == nil && time.Since(fi.ModTime()) < v.suite.Notes {
				v.young = append(v.young, name)
			} else if err == nil && !slices.Contains(v.young, name) {
				v.shared = append(v.shared, name)
			}
		}
	}
}

// ended returns what is left of the engine, and what went wrong in killing it. The load or the instance has ended.
func (v *victim) ended() []error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, timer := range v.timers {
		timer.Stop()
	}
	errs := v.errs
	if !v.killed {
		errs = append(errs, errors.New("it ended before it was killed"))
	}
	for _, name := range v.shared {
		if _, err := os.Stat(name); err == nil {
			errs = append(errs, fmt.Errorf("shared memory is left: %s", name))
		}
	}
	for _, name := range v.young {
		_ = os.Remove(name) // nobody could know whose it was
	}
	return append(errs, v.segments()...)
}

// segments are System V shared memory that one of the engine's processes has made and nobody removed.
func (v *victim) segments() []error {
	b, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return nil // a kernel without it
	}
	var errs []error
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // key shmid perms size cpid …
		if len(f) < 5 {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && slices.Contains(v.pids, pid) {
			errs = append(errs, fmt.Errorf("the shared memory segment %s of process %d is left", f[1], pid))
		}
	}
	return errs
}

// sharedBy lists the files of /dev/shm that a process has mapped or open.
func sharedBy(pid int) []string {
	const dir = "/dev/shm/"
	var out []string
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err == nil {
		for line := range strings.Lines(string(b)) {
			if _, name, ok := strings.Cut(strings.TrimSpace(line), " "+dir); ok && !strings.HasSuffix(name, " (deleted)") {
				out = append(out, dir+name)
			}
		}
	}
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return out
	}
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, dir) && !strings.HasSuffix(name, " (deleted)") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// killWhileAnswering kills the engine while a client reads a long answer. The client sees an end, not silence.
func killWhileAnswering(t *testing.T, in loaders.Instance, v *victim, modelID string) {
	t.Helper()
	ep := in.Endpoint()
	model := ep.Model
	if model == "" {
		model = modelID
	}
	path, body := "/v1/completions", map[string]any{"model": model, "prompt": "Once upon a time", "max_tokens": 400, "stream": true}
	switch {
	case slices.Contains(ep.APIs, registry.APICompletions):
	case slices.Contains(ep.APIs, registry.APIChat):
		delete(body, "prompt")
		path, body["messages"] = "/v1/chat/completions", []any{map[string]any{"role": "user", "content": "Tell me a long story."}}
	default:
		path, body = "/v1/embeddings", map[string]any{"model": model, "input": slices.Repeat([]string{"one and two and three"}, 64)}
	}
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	client, req := prepare(t, in, keyOf(in), path, b)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		resp, err := client.Do(req)
		if err != nil {
			return // killed before the answer began
		}
		defer func() { _ = resp.Body.Close() }()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			v.killAfter(in.Handle(), 20*time.Millisecond) // from the first line on
		}
	}()
	v.killAfter(in.Handle(), time.Second) // an answer that comes whole is killed while it is made
	select {
	case <-ended:
	case <-time.After(limit):
		t.Error("the client of a killed engine waits for ever")
	}
	v.kill(in.Handle()) // it had answered before
}

// signalKill sends SIGKILL to the process of a handle.
func signalKill(h registry.Handle) error {
	if !(process.Identity{PID: h.PID, StartTicks: h.StartTicks, BootID: h.BootID}).Alive() {
		return fmt.Errorf("process %d of the handle is not alive", h.PID)
	}
	p, err := os.FindProcess(h.PID)
	if err != nil {
		return err
	}
	return p.Kill()
}
