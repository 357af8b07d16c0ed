package fake_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// envBinary hands the built engine to the process that plays a manager.
const envBinary = "LLMM_TEST_FAKEENGINE"

// envSocket has every engine listen at a socket.
const envSocket = "LLMM_TEST_FAKE_SOCKET"

var binary string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if binary = os.Getenv(envBinary); binary == "" {
		dir, err := os.MkdirTemp("", "fakeengine")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binary = filepath.Join(dir, "fakeengine")
		if out, err := exec.Command("go", "build", "-o", binary, "github.com/industriverse/llmmodelmanager/cmd/fakeengine").CombinedOutput(); err != nil {
			fmt.Printf("go build: %v\n%s", err, out)
			return 1
		}
		if err := os.Setenv(envBinary, binary); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return loadertest.Main(m, func() *loadertest.Harness { h := harness(); return &h })
}

func spec(params map[string]any) loaders.LoadSpec {
	return loaders.LoadSpec{Device: registry.DeviceCPU, Artifact: registry.Artifact{Path: binary},
		Model: registry.Model{ModelID: "test/model", SourceType: registry.SourceLocal, SourcePath: binary, ModelFormat: registry.FormatGGUF, CustomLoaderParams: params}}
}

func harness() loadertest.Harness {
	return loadertest.Harness{
		New: func(tag string) loaders.Loader {
			return fake.New(fake.Options{Path: binary, TagPrefix: tag, Socket: os.Getenv(envSocket) != ""})
		},
		Spec: func() loaders.LoadSpec { return spec(map[string]any{"steps": int64(5), "step_ms": int64(5)}) },
		Stubborn: func() loaders.LoadSpec {
			return spec(map[string]any{"steps": int64(5), "step_ms": int64(5), "ignore_sigterm": true, "grandchild": true})
		},
		Kills: 20, Span: 90 * time.Millisecond,
	}
}

func TestConformance(t *testing.T) {
	loadertest.Run(t, harness())
}

// TestConformanceAtASocket has paths that are too long for the kernel.
func TestConformanceAtASocket(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	t.Setenv(envSocket, "1") // also to the process that plays a manager
	loadertest.Run(t, harness())
}

func TestConformanceOfEmbeddings(t *testing.T) {
	h := harness()
	h.Kills = 2
	h.Spec = func() loaders.LoadSpec { return spec(map[string]any{"embeddings": true}) }
	loadertest.Run(t, h)
}

// run is one load by the fake with a folder of its own.
type run struct {
	spec    loaders.LoadSpec
	started chan registry.Handle
	reports chan registry.Progress
}

var tag = fmt.Sprintf("faketest-%d", os.Getpid())

func newRun(t *testing.T, params map[string]any) *run {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		left, err := process.FindTagged(tag)
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		goleak.VerifyNone(t, leaks)
	})
	r := &run{spec: spec(params), started: make(chan registry.Handle, 8), reports: make(chan registry.Progress, 1000)}
	r.spec.Dir = t.TempDir()
	r.spec.LogPath = filepath.Join(r.spec.Dir, "log")
	r.spec.InstanceID = "x"
	r.spec.Started = func(h registry.Handle) { r.started <- h }
	return r
}

func (r *run) load(ctx context.Context) (loaders.Instance, error) {
	return fake.New(fake.Options{Path: binary, TagPrefix: tag}).Load(ctx, r.spec, func(p registry.Progress) { r.reports <- p })
}

func TestFaultsOfLoading(t *testing.T) {
	for fault, want := range map[string]registry.FailureKind{
		"crash_loading": registry.FailureCrash, "oom_loading": registry.FailureOutOfMemory, "corrupt": registry.FailureCorruptFile, "unsupported": registry.FailureUnsupportedArch,
	} {
		t.Run(fault, func(t *testing.T) {
			r := newRun(t, map[string]any{"fault": fault, "at_step": int64(2), "grandchild": true})
			_, err := r.load(t.Context())
			e := registry.AsError(err)
			if e == nil || e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != want {
				t.Fatalf("got %v, want a failure of kind %s", err, want)
			}
			if e.Failure.Hint == "" || len(e.Failure.LogTail) == 0 {
				t.Errorf("the failure says too little: %+v", e.Failure)
			}
			if fault == "crash_loading" && e.Failure.Signal != "SIGABRT" {
				t.Errorf("signal %q", e.Failure.Signal)
			}
		})
	}
}

func TestFaultsThatNeverEndAreCancelled(t *testing.T) {
	for _, fault := range []string{"hang_loading", "refuse_health"} {
		t.Run(fault, func(t *testing.T) {
			r := newRun(t, map[string]any{"fault": fault, "at_step": int64(3), "steps": int64(3), "ignore_sigterm": true})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			errs := make(chan error, 1)
			go func() {
				_, err := r.load(ctx)
				errs <- err
			}()
			for p := range r.reports {
				if p.Stage == registry.StageWeights && (p.Done == 2 || p.Done == 3) {
					break
				}
			}
			cancel()
			if f := registry.AsError(<-errs).Failure; f == nil || f.Kind != registry.FailureCancelled {
				t.Errorf("got failure %+v", f)
			}
		})
	}
}

func TestCrashAfterReady(t *testing.T) {
	t.Run("by itself", func(t *testing.T) {
		r := newRun(t, map[string]any{"fault": "crash_ready"})
		in, err := r.load(t.Context())
		if err == nil {
			<-in.Done()
			err = in.Err()
		}
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureCrash || f.Signal != "SIGABRT" {
			t.Errorf("got %v, failure %+v", err, f)
		}
	})
	t.Run("when told", func(t *testing.T) {
		r := newRun(t, nil)
		in, err := r.load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := fake.NewControl(in.Handle())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Crash(t.Context()); err == nil {
			t.Error("the engine answered instead of crashing")
		}
		<-in.Done()
		if registry.CodeOf(in.Err()) != registry.CodeLoadingFailed {
			t.Errorf("Err: %v", in.Err())
		}
	})
}

// TestManualSteps moves a load step by step and sees each step reported before the next is asked for.
func TestManualSteps(t *testing.T) {
	r := newRun(t, map[string]any{"manual": true, "steps": int64(3)})
	type result struct {
		in  loaders.Instance
		err error
	}
	results := make(chan result, 1)
	go func() {
		in, err := r.load(t.Context())
		results <- result{in, err}
	}()
	c, err := fake.NewControl(<-r.started)
	if err != nil {
		t.Fatal(err)
	}
	for want := int64(0); want <= 3; want++ {
		for p := range r.reports {
			if p.Stage == registry.StageWeights && p.Done == want {
				break
			}
			if p.Stage == registry.StageWeights && p.Done > want {
				t.Fatalf("step %d came before it was asked for", p.Done)
			}
		}
		if want < 3 {
			if err := c.Advance(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	res := <-results
	if res.err != nil {
		t.Fatal(res.err)
	}
	if err := res.in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestMemoryIsTaken reads the engine's resident memory: a fake that only pretends would make the manager's own
// measurements untestable.
func TestMemoryIsTaken(t *testing.T) {
	r := newRun(t, map[string]any{"memory_mb": int64(96)})
	in, err := r.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	var kb int64
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmRSS:") {
			_, _ = fmt.Sscanf(strings.TrimPrefix(line, "VmRSS:"), "%d", &kb)
		}
	}
	if kb < 96<<10 || kb > 256<<10 {
		t.Errorf("the engine holds %d kB, want 96 MiB and a little", kb)
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestParametersAreChecked(t *testing.T) {
	for name, params := range map[string]map[string]any{
		"fault": {"fault": "explode"}, "steps": {"steps": "many"}, "step_ms": {"step_ms": int64(-1)}, "manual": {"manual": "yes"},
	} {
		r := newRun(t, params)
		_, err := r.load(t.Context())
		e := registry.AsError(err)
		if e == nil || e.Code != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params."+name {
			t.Errorf("%v: got %v", params, err)
		}
	}
	r := newRun(t, map[string]any{"auth_token": "hf_something"}) // the source's
	in, err := r.load(t.Context())
	if err != nil {
		t.Fatalf("a parameter of the source is refused: %v", err)
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCheckWithoutBinary(t *testing.T) {
	_, err := fake.New(fake.Options{Path: filepath.Join(t.TempDir(), "none")}).Check(t.Context())
	if registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}

// TestTakenPort has an engine that finds its port taken the first time.
func TestTakenPort(t *testing.T) {
	r := newRun(t, nil)
	marker, script := filepath.Join(t.TempDir(), "was here"), filepath.Join(t.TempDir(), "engine")
	text := fmt.Sprintf("#!/bin/sh\n[ -e '%s' ] && exec '%s' \"$@\"\n: > '%s'\necho \"fakeengine: couldn't bind port\"\nexit 1\n", marker, binary, marker)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	in, err := fake.New(fake.Options{Path: script, TagPrefix: tag}).Load(t.Context(), r.spec, func(p registry.Progress) { r.reports <- p })
	if err != nil {
		t.Fatal(err)
	}
	first, second := <-r.started, <-r.started
	if first.PID == second.PID || in.Handle().PID != second.PID {
		t.Error("the handle is not that of the engine that runs")
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPlaceThatStaysTaken has an engine that finds every port and every socket taken: the load ends and says so.
func TestPlaceThatStaysTaken(t *testing.T) {
	for name, atSocket := range map[string]bool{"port": false, "socket": true} {
		t.Run(name, func(t *testing.T) {
			r := newRun(t, nil)
			script := filepath.Join(t.TempDir(), "engine")
			if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"fakeengine: couldn't bind\"\nexit 1\n"), 0o700); err != nil { //nolint:gosec // it is to be run
				t.Fatal(err)
			}
			_, err := fake.New(fake.Options{Path: script, TagPrefix: tag, Socket: atSocket}).Load(t.Context(), r.spec, func(p registry.Progress) { r.reports <- p })
			e := registry.AsError(err)
			if e == nil || e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != registry.FailurePort || e.Failure.Hint == "" || len(e.Failure.LogTail) == 0 {
				t.Fatalf("got %v, want a failure of kind port", err)
			}
			if len(r.started) != 5 {
				t.Errorf("it was started %d times", len(r.started))
			}
		})
	}
}

// TestRecoverOfALoadingEngine finds an engine that runs and does not answer yet.
func TestRecoverOfALoadingEngine(t *testing.T) {
	r := newRun(t, map[string]any{"manual": true})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errs := make(chan error, 1)
	go func() {
		_, err := r.load(ctx)
		errs <- err
	}()
	_, err := fake.New(fake.Options{Path: binary, TagPrefix: tag}).Recover(t.Context(), <-r.started)
	if registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	cancel()
	t.Logf("it ended with %v", <-errs)
}

// TestEndlessLog has an engine that writes as fast as it can: its log stays bounded, and it can be stopped.
func TestEndlessLog(t *testing.T) {
	r := newRun(t, map[string]any{"fault": "endless_log"})
	in, err := r.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for cut := false; !cut; {
		select {
		case <-deadline:
			t.Fatal("the log was never cut")
		case <-tick.C:
			_, err := os.Stat(r.spec.LogPath + ".1")
			cut = err == nil
		}
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{r.spec.LogPath, r.spec.LogPath + ".1"} {
		if fi, err := os.Stat(name); err != nil || fi.Size() > process.DefaultMaxLog {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}
