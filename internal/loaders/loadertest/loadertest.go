// Package loadertest is the conformance suite of loaders: what internal/loaders promises, checked on a real process.
// Every loader that starts processes passes it, the fake included.
package loadertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Harness is one loader with a model that it can load.
type Harness struct {
	New func(tagPrefix string) loaders.Loader
	// Spec returns Model, Artifact and Device of a model that loads in seconds. The suite fills in the rest.
	Spec func() loaders.LoadSpec
	// Needs are parameters without which the loader refuses every model.
	Needs map[string]any
	// Stubborn, if not nil, is one whose engine ignores SIGTERM and leaves processes behind.
	Stubborn func() loaders.LoadSpec
	// Kills is how many times an engine is killed at a random moment; a third as many loads are cancelled at one. Six or more
	// kill at every stage; LLMM_KILLS sets another number of kills.
	Kills int
	// Remote is true for a loader of services elsewhere: there is no process to kill, no port of ours, no file, and the
	// loader is a Reconnector.
	Remote bool
	// Notes is how long the loader may take to note what the engine shares under names that say nothing; 0 if it has none such.
	Notes time.Duration
	// Tells, if not nil, reports whether an engine that has answered tells what it does as it should; it is asked until it does.
	Tells func(registry.Activity) bool
	// Span is about how long a load takes, and so the time within which it is killed.
	Span time.Duration
}

// limit ends a check that hangs. Nothing that works comes near it.
const limit = 3 * time.Minute

var instances atomic.Int64

// suite is a Harness at work: with its own tag, so that suites of several packages do not see each other's engines.
type suite struct {
	Harness
	tag    string
	loader loaders.Loader
}

// Run checks the loader of h against every promise of internal/loaders.
func Run(t *testing.T, h Harness) {
	s := &suite{Harness: h, tag: fmt.Sprintf("loadertest-%d", os.Getpid())}
	s.loader = h.New(s.tag)
	for _, c := range []struct {
		name  string
		check func(*testing.T, *suite)
	}{
		{"Describes", describes}, {"LoadsAndAnswers", loadsAndAnswers}, {"CancelAtEveryStage", cancelAtEveryStage}, {"CancelAtRandom", cancelAtRandom},
		{"KillIsNoticed", killIsNoticed}, {"KillAtRandom", killAtRandom}, {"StopKillsTheStubborn", stopKillsTheStubborn},
		{"PlacesAreNotShared", placesAreNotShared}, {"MissingFile", missingFile}, {"UnknownParameter", unknownParameter}, {"Recovers", recovers},
		{"SurvivesTheManager", survivesTheManager},
	} {
		if h.Remote && slices.Contains(ofProcesses, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			c.check(t, s)
			s.nothingLeft(t)
			goleak.VerifyNone(t, leaks)
		})
	}
}

// ofProcesses are the checks that have no meaning where nothing of ours runs.
var ofProcesses = []string{"KillIsNoticed", "KillAtRandom", "PlacesAreNotShared", "MissingFile", "SurvivesTheManager"}

// attempt is one load with all that was reported about it.
type attempt struct {
	spec    loaders.LoadSpec
	mu      sync.Mutex
	started []registry.Handle
	reports []registry.Progress
	inside  atomic.Int32
	overlap atomic.Bool
	on      func(registry.Progress) // called within report
	onStart func(registry.Handle)
}

func (s *suite) attempt(t *testing.T, spec loaders.LoadSpec) *attempt {
	t.Helper()
	a := &attempt{spec: spec}
	s.fill(&a.spec, t.TempDir())
	a.spec.Started = func(h registry.Handle) {
		a.mu.Lock()
		a.started = append(a.started, h)
		a.mu.Unlock()
		if a.onStart != nil {
			a.onStart(h)
		}
	}
	return a
}

// fill sets what the manager would set.
func (s *suite) fill(spec *loaders.LoadSpec, dir string) {
	spec.InstanceID = fmt.Sprintf("i%d", instances.Add(1))
	spec.Dir, spec.LogPath = dir, filepath.Join(dir, "engine.log")
	if spec.Model.ModelID == "" {
		spec.Model.ModelID = "test/model"
	}
	spec.Model = spec.Model.WithDefaults()
	if spec.Device == "" {
		spec.Device = registry.DeviceCPU
	}
}

func (a *attempt) report(p registry.Progress) {
	if a.inside.Add(1) > 1 {
		a.overlap.Store(true)
	}
	a.mu.Lock()
	a.reports = append(a.reports, p)
	a.mu.Unlock()
	if a.on != nil {
		a.on(p)
	}
	a.inside.Add(-1)
}

func (a *attempt) handles() []registry.Handle {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.started)
}

func (s *suite) load(t *testing.T, a *attempt) loaders.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	in, err := s.loader.Load(ctx, a.spec, a.report)
	if err != nil {
		t.Fatalf("Load: %v\n%s", err, logOf(err))
	}
	t.Cleanup(func() { s.stop(t, in) })
	return in
}

func (s *suite) stop(t *testing.T, in loaders.Instance) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := in.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

// ready loads the harness's model.
func (s *suite) ready(t *testing.T) (loaders.Instance, *attempt) {
	t.Helper()
	a := s.attempt(t, s.Spec())
	return s.load(t, a), a
}

func logOf(err error) string {
	if f := registry.AsError(err).Failure; f != nil {
		return strings.Join(f.LogTail, "\n")
	}
	return ""
}

// nothingLeft fails if any process of the suite's runs.
func (s *suite) nothingLeft(t *testing.T) {
	t.Helper()
	found, err := process.FindTagged(s.tag)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		t.Errorf("process %d of instance %s is left", p.PID, p.InstanceID)
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		_ = process.KillGroup(ctx, s.tag, p)
		cancel()
	}
}

// gone fails if anything of the load is left: its processes, somebody listening on its port, its socket.
func (s *suite) gone(t *testing.T, a *attempt) {
	t.Helper()
	found, err := process.FindTagged(s.tag)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		if p.InstanceID == a.spec.InstanceID {
			t.Errorf("process %d is left", p.PID)
		}
	}
	for _, h := range a.handles() {
		if (process.Identity{PID: h.PID, StartTicks: h.StartTicks, BootID: h.BootID}).Alive() {
			t.Errorf("process %d is alive", h.PID)
		}
		placeOf(t, h).free(t)
	}
	if b, err := os.ReadFile("/proc/net/unix"); err == nil && bytes.Contains(b, []byte(a.spec.Dir)) {
		t.Errorf("a socket in %s is left", a.spec.Dir)
	}
	if entries, err := os.ReadDir(a.spec.Dir); err == nil {
		for _, e := range entries {
			if e.Name() != "engine.log" && e.Name() != "engine.log.1" {
				t.Errorf("%s is left in the instance's folder", e.Name())
			}
		}
	}
}

// wantFailure fails unless err is a loading failure of that kind, worded for people.
func wantFailure(t *testing.T, err error, kinds ...registry.FailureKind) *registry.Failure {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != registry.CodeLoadingFailed || e.Failure == nil {
		t.Fatalf("got %v, want CodeLoadingFailed with a Failure", err)
	}
	if !slices.Contains(kinds, e.Failure.Kind) {
		t.Errorf("got failure %q (%s), want %v\n%s", e.Failure.Kind, e.Failure.Msg, kinds, strings.Join(e.Failure.LogTail, "\n"))
	}
	if e.Failure.Msg == "" || e.Msg == "" {
		t.Error("the failure says nothing")
	}
	return e.Failure
}

func waitDone(t *testing.T, in loaders.Instance) {
	t.Helper()
	select {
	case <-in.Done():
	case <-time.After(limit):
		t.Fatal("Done was not closed")
	}
}

func kill9(t *testing.T, h registry.Handle) {
	t.Helper()
	if err := signalKill(h); err != nil {
		t.Fatal(err)
	}
}
