package loadertest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func describes(t *testing.T, s *suite) {
	i := s.loader.Info()
	if i.Name == "" || i.Title == "" || i.HowToGet == "" || len(i.Sources) == 0 || len(i.Formats) == 0 || len(i.Devices) == 0 || len(i.APIs) == 0 {
		t.Errorf("Info is not complete: %+v", i)
	}
	if !slices.Contains(registry.Engines, i.Name) {
		t.Errorf("%q cannot be a model's engine", i.Name)
	}
	for _, p := range i.Params {
		if p.Name == "" || p.Kind == "" || p.Help == "" || (p.Kind == registry.KindEnum) != (len(p.Opts) > 0) {
			t.Errorf("parameter is not complete: %+v", p)
		}
	}
	v, err := s.loader.Check(t.Context())
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	if v.Version == "" || v.Path == "" || !slices.Contains(v.Devices, registry.DeviceCPU) {
		t.Errorf("Check is not complete: %+v", v)
	}
}

func loadsAndAnswers(t *testing.T, s *suite) {
	a := s.attempt(t, s.Spec())
	ready := make(chan struct{})
	a.onStart = func(h registry.Handle) {
		select {
		case <-ready:
			t.Error("Started was called after Load returned")
		default:
		}
		if h.Loader != s.loader.Info().Name || h.InstanceID != a.spec.InstanceID || !s.Remote && (h.PID <= 0 || h.StartTicks == 0 || h.BootID == "") || s.Remote && h.PID != 0 {
			t.Errorf("the handle is not complete: loader %q, instance %q, pid %d", h.Loader, h.InstanceID, h.PID)
		}
	}
	in := s.load(t, a)
	close(ready)
	if n := len(a.handles()); n != 1 {
		t.Errorf("Started was called %d times", n)
	}
	checkProgress(t, a, s.Remote)
	if err := in.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
	if in.Handle().PID != a.handles()[0].PID {
		t.Error("Handle is not the one that Started got")
	}
	checkAnswers(t, in, a.spec.Model.ModelID)
	checkPrivate(t, s, a, in)
	checkTells(t, s, in)
	stopIsIdempotent(t, s, in)
	s.gone(t, a)
	if err := in.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if err := in.Health(t.Context()); err == nil {
		t.Error("Health of a stopped instance says nothing")
	}
}

// checkTells asks an engine what it does, in its own words. Some count a request a moment after they have answered it.
func checkTells(t *testing.T, s *suite, in loaders.Instance) {
	t.Helper()
	if s.Tells == nil {
		return
	}
	meter, ok := in.(loaders.Meter)
	if !ok {
		t.Error("it never tells what it does")
		return
	}
	for began := time.Now(); ; {
		told, err := meter.Activity(t.Context())
		if err == nil && s.Tells(told) {
			return
		}
		if err != nil || time.Since(began) > limit {
			said, _ := json.Marshal(told) //nolint:errchkjson // numbers
			t.Errorf("of what it does it tells %s, %v", said, err)
			return
		}
	}
}

// checkProgress holds the reports against the contract.
func checkProgress(t *testing.T, a *attempt, remote bool) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.overlap.Load() {
		t.Error("two reports overlapped")
	}
	rank, done := -1, int64(0)
	seen := map[registry.StageName]bool{}
	for _, p := range a.reports {
		r := slices.Index(registry.LoadStages, p.Stage)
		switch {
		case r < slices.Index(registry.LoadStages, registry.StageEngine) || r > slices.Index(registry.LoadStages, registry.StageWarmup):
			t.Errorf("stage %q is not a loader's", p.Stage)
		case r < rank:
			t.Errorf("stage %q came after %q", p.Stage, registry.LoadStages[rank])
		case r == rank && p.Done < done:
			t.Errorf("%s shrank from %d to %d", p.Stage, done, p.Done)
		case p.Total > 0 && p.Done > p.Total:
			t.Errorf("%s is at %d of %d", p.Stage, p.Done, p.Total)
		}
		rank, done = r, p.Done
		seen[p.Stage] = true
	}
	for _, want := range []registry.StageName{registry.StageEngine, registry.StageWeights, registry.StageWarmup} {
		if !seen[want] && !(remote && want == registry.StageWeights) {
			t.Errorf("stage %q was not reported; got %v", want, a.reports)
		}
	}
}

func cancelAtEveryStage(t *testing.T, s *suite) {
	for _, stage := range []registry.StageName{"", registry.StageEngine, registry.StageWeights, registry.StageWarmup} {
		name := "before the start"
		if stage != "" {
			name = string(stage)
		}
		if s.Remote && stage == registry.StageWeights {
			continue
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			a := s.attempt(t, s.Spec())
			a.on = func(p registry.Progress) {
				if p.Stage == stage {
					cancel()
				}
			}
			if stage == "" {
				cancel()
			}
			in, err := s.loader.Load(ctx, a.spec, a.report)
			if err == nil {
				s.stop(t, in)
				t.Fatal("Load succeeded although it was cancelled")
			}
			wantCancelled(t, err)
			s.gone(t, a)
			if stage == "" && len(a.handles()) != 0 {
				t.Error("a process was started after the cancellation")
			}
		})
	}
}

func wantCancelled(t *testing.T, err error) {
	t.Helper()
	_ = wantFailure(t, err, registry.FailureCancelled)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the cause of %v is not context.Canceled", err)
	}
}

func cancelAtRandom(t *testing.T, s *suite) {
	for range max(1, s.Kills/3) {
		ctx, cancel := context.WithCancel(t.Context())
		moment := time.AfterFunc(rand.N(s.Span), cancel)
		a := s.attempt(t, s.Spec())
		in, err := s.loader.Load(ctx, a.spec, a.report)
		if err == nil {
			s.stop(t, in)
		} else {
			wantCancelled(t, err)
		}
		s.gone(t, a)
		moment.Stop()
		cancel()
	}
}

func killIsNoticed(t *testing.T, s *suite) {
	in, a := s.ready(t)
	if err := in.Err(); err != nil {
		t.Errorf("Err of a running instance: %v", err)
	}
	kill9(t, in.Handle())
	waitDone(t, in)
	f := wantFailure(t, in.Err(), registry.FailureCrash, registry.FailureOutOfMemory)
	if f.Signal != "SIGKILL" || f.Hint == "" || len(f.LogTail) == 0 {
		t.Errorf("the failure says too little: signal %q, hint %q, %d lines", f.Signal, f.Hint, len(f.LogTail))
	}
	s.gone(t, a)
	s.stop(t, in)
	if in.Err() == nil {
		t.Error("Stop hid the crash")
	}
}

// stopIsIdempotent stops an instance eight times at once, and then again.
func stopIsIdempotent(t *testing.T, s *suite, in loaders.Instance) {
	t.Helper()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s.stop(t, in)
			select {
			case <-in.Done():
			default:
				t.Error("Stop returned before Done")
			}
		})
	}
	wg.Wait()
	s.stop(t, in)
}

func stopKillsTheStubborn(t *testing.T, s *suite) {
	spec, name := s.Spec, "stop with an ended context"
	if s.Stubborn != nil {
		spec, name = s.Stubborn, "engine that ignores SIGTERM"
	}
	t.Run(name, func(t *testing.T) {
		a := s.attempt(t, spec())
		in := s.load(t, a)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if s.Stubborn == nil {
			cancel()
		}
		if err := in.Stop(ctx); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if s.Stubborn != nil && ctx.Err() == nil {
			t.Error("the engine ended before it was killed: it is not stubborn")
		}
		s.gone(t, a)
	})
}

// placesAreNotShared loads three at once, and a stranger takes the port or the socket of the first before its engine does: that
// one gets another.
func placesAreNotShared(t *testing.T, s *suite) {
	for range 5 { // the engine may be the quicker one, which shows nothing
		if s.placeIsTaken(t) || t.Failed() {
			return
		}
	}
	t.Error("nobody could take the port or the socket before the engine did, so that nothing is known of one that is taken")
}

// placeIsTaken loads three models at once and has a stranger take the place of one. It reports whether that was quick enough.
func (s *suite) placeIsTaken(t *testing.T) bool {
	t.Helper()
	const n = 3
	var wg sync.WaitGroup
	attempts := make([]*attempt, n)
	ins := make([]loaders.Instance, n)
	errs := make([]error, n)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var stranger func()
	for i := range n {
		attempts[i] = s.attempt(t, s.Spec())
		if i == 0 {
			attempts[i].onStart = func(h registry.Handle) {
				if stranger == nil {
					stranger = placeOf(t, h).take(t) // the engine has just been forked
				}
			}
		}
		wg.Go(func() { ins[i], errs[i] = s.loader.Load(ctx, attempts[i].spec, attempts[i].report) })
	}
	wg.Wait()
	if stranger != nil {
		if hs := attempts[0].handles(); errs[0] == nil && (len(hs) < 2 || placeOf(t, hs[0]) == placeOf(t, hs[len(hs)-1]) || hs[0].PID == hs[len(hs)-1].PID) {
			t.Errorf("the place was taken, and the engine was started %d times", len(hs))
		}
		if path := placeOf(t, attempts[0].handles()[0]).Socket; path != "" {
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("the stranger's socket was removed: %v", err)
			}
		}
		stranger()
	}
	bases := map[string]bool{}
	for i, in := range ins {
		if errs[i] != nil {
			t.Errorf("load %d: %v\n%s", i, errs[i], logOf(errs[i]))
			continue
		}
		if b := in.Endpoint().BaseURL; bases[b] {
			t.Errorf("two instances answer at %s", b)
		} else {
			bases[b] = true
		}
		s.stop(t, in)
		s.gone(t, attempts[i])
	}
	return stranger != nil
}

func missingFile(t *testing.T, s *suite) {
	spec := s.Spec()
	spec.Artifact.Path = filepath.Join(t.TempDir(), "nowhere", "model.gguf")
	a := s.attempt(t, spec)
	in, err := s.loader.Load(t.Context(), a.spec, a.report)
	if err == nil {
		s.stop(t, in)
		t.Fatal("a missing file was loaded")
	}
	f := wantFailure(t, err, registry.FailureMissingFile)
	if f.Hint == "" {
		t.Error("the failure does not say what to do")
	}
	s.gone(t, a)
}

func unknownParameter(t *testing.T, s *suite) {
	spec := s.Spec()
	spec.Model.CustomLoaderParams = map[string]any{"no_such_parameter": int64(1)}
	maps.Copy(spec.Model.CustomLoaderParams, s.Needs)
	a := s.attempt(t, spec)
	in, err := s.loader.Load(t.Context(), a.spec, a.report)
	if err == nil {
		s.stop(t, in)
		t.Fatal("an unknown parameter was accepted")
	}
	e := registry.AsError(err)
	if e.Code != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params.no_such_parameter" {
		t.Errorf("got %v (%s, fields %v), want CodeInvalid that names the parameter", err, e.Code, e.Fields)
	}
	if len(a.handles()) != 0 || len(a.reports) != 0 {
		t.Error("something was started")
	}
}

// roundTrip sends a handle through JSON, as the store does.
func roundTrip(t *testing.T, h registry.Handle) registry.Handle {
	t.Helper()
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var out registry.Handle
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *suite) recoverer(t *testing.T) loaders.Recoverer {
	t.Helper()
	r, ok := s.Harness.New(s.tag).(loaders.Recoverer)
	if !ok {
		t.Fatal("the loader is no Recoverer")
	}
	return r
}

func recovers(t *testing.T, s *suite) {
	in, a := s.ready(t)
	h := roundTrip(t, in.Handle())
	if !s.Remote {
		refusesStrangers(t, s, in)
	}
	back, err := loaders.Instance(nil), error(nil)
	if s.Remote {
		back, err = s.loader.(loaders.Reconnector).Reconnect(t.Context(), h, a.spec.Model)
	} else {
		back, err = s.recoverer(t).Recover(t.Context(), roundTrip(t, a.handles()[0]))
	}
	if err != nil {
		t.Fatalf("Recover: %v", err)
	}
	if back.Endpoint().BaseURL != in.Endpoint().BaseURL || !slices.Equal(back.Endpoint().APIs, in.Endpoint().APIs) || back.Handle().PID != in.Handle().PID {
		t.Errorf("Recover gave another endpoint: %+v, want %+v", back.Endpoint(), in.Endpoint())
	}
	if err := back.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
	checkAnswers(t, back, a.spec.Model.ModelID)
	s.stop(t, back)
	if s.Remote {
		s.stop(t, in) // two sessions with one service do not know of each other
	}
	waitDone(t, in)
	if err := back.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if !s.Remote {
		if path := placeOf(t, h).Socket; path != "" {
			deadSocket(t, path) // as if it had been killed while no manager ran
		}
		if _, err := s.recoverer(t).Recover(t.Context(), h); registry.CodeOf(err) != registry.CodeNotFound {
			t.Errorf("a dead process: got %v, want CodeNotFound", err)
		}
	}
	s.gone(t, a)
}

// refusesStrangers offers the loader handles that are nearly the instance's: none is taken for it, and it does not suffer.
func refusesStrangers(t *testing.T, s *suite, in loaders.Instance) {
	t.Helper()
	r := s.recoverer(t)
	h := in.Handle()
	for name, change := range map[string]func(*registry.Handle){
		"another process with the same number": func(h *registry.Handle) { h.StartTicks++ },
		"another boot":                         func(h *registry.Handle) { h.BootID = "another" },
		"another loader":                       func(h *registry.Handle) { h.Loader = "another" },
		"another version":                      func(h *registry.Handle) { h.Version += 1000 },
		"no data":                              func(h *registry.Handle) { h.Data = nil },
	} {
		other := h
		change(&other)
		if _, err := r.Recover(t.Context(), other); registry.CodeOf(err) != registry.CodeNotFound {
			t.Errorf("%s: got %v, want CodeNotFound", name, err)
		}
	}
	if err := in.Health(t.Context()); err != nil {
		t.Errorf("the instance suffered: %v", err)
	}
}
