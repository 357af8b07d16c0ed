package hw_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gib = 1 << 30

// start runs a Sampler of the fake machine until the end of the bubble.
func start(t *testing.T, f *hwtest.Fake, opts hw.Options) (s *hw.Sampler, stop func()) {
	t.Helper()
	opts.GPU, opts.Host = f.GPUs(), f.Host()
	sampler := hw.New(opts)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- sampler.Run(ctx) }()
	return sampler, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestSamplesOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New(hwtest.GPU(0, 80*gib))
		var samples []registry.Sample
		s, stop := start(t, f, hw.Options{OnSample: func(x registry.Sample) { samples = append(samples, x) }})
		if x := s.Latest(); x.At != (time.Time{}) {
			t.Errorf("a sample before the first reading: %+v", x)
		}
		time.Sleep(10*time.Second + 500*time.Millisecond)
		f.Take(0, 42, 3*gib)
		f.Take(hwtest.CPU, 42, 10*gib)
		time.Sleep(time.Second)
		stop()
		if len(samples) != 12 {
			t.Errorf("%d samples in 11.5 s", len(samples))
		}
		x := s.Latest()
		if x.GPUs[0].MemoryFree != 77*gib || x.Host.RAMAvailable != 50*gib || x.Driver == "" || x.CUDA == "" || x.GPUProblem != "" {
			t.Errorf("%+v", x)
		}
		if got := hw.ProcessTreeGPU(x, []int{42}); len(got) != 1 || got[0] != 3*gib {
			t.Errorf("held %v", got)
		}
		if !f.Closed() {
			t.Error("the GPU reader was not closed")
		}
	})
}

func TestNoGPUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := start(t, hwtest.New(), hw.Options{})
		defer stop()
		synctest.Wait()
		x := s.Latest()
		if x.GPUs == nil || len(x.GPUs) != 0 || x.GPUProblem != "" || len(hw.Usable(x)) != 0 || x.Host.RAMTotal == 0 {
			t.Errorf("%+v", x)
		}
	})
}

func TestHungDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New(hwtest.GPU(0, 80*gib))
		var log lines
		s, stop := start(t, f, hw.Options{Logger: log.logger()})
		time.Sleep(1500 * time.Millisecond)
		resume := f.Hang()
		time.Sleep(3 * time.Second) // hangs since 2 s
		f.Take(hwtest.CPU, 1, 20*gib)
		if x := s.Latest(); x.GPUProblem != "" || !x.GPUs[0].Usable {
			t.Errorf("called hung after 2.5 s: %+v", x)
		}
		time.Sleep(4 * time.Second)
		x := s.Latest()
		if !strings.Contains(x.GPUProblem, "not answered for 6 s") || x.GPUs[0].Usable || x.GPUs[0].MemoryTotal != 80*gib || len(hw.Usable(x)) != 0 {
			t.Errorf("%+v", x)
		}
		if x.Host.RAMAvailable != 40*gib || time.Since(x.At) > 2*time.Second {
			t.Errorf("the host is no longer read: %+v", x)
		}
		// Who asks now is told at once.
		before := time.Now()
		if x, err := s.Refresh(t.Context()); err != nil || len(hw.Usable(x)) != 0 || time.Since(before) != 0 {
			t.Errorf("Refresh took %v: %+v, %v", time.Since(before), x, err)
		}
		if n := f.Reads(); n != 3 {
			t.Errorf("%d readings; a hung driver is not asked again", n)
		}
		time.Sleep(time.Hour)
		resume()
		time.Sleep(2 * time.Second)
		if x := s.Latest(); x.GPUProblem != "" || !x.GPUs[0].Usable {
			t.Errorf("it does not come back: %+v", x)
		}
		stop()
		if got := log.String(); strings.Count(got, "cannot be read") != 1 || strings.Count(got, "can be read again") != 1 {
			t.Errorf("log:\n%s", got)
		}
	})
}

func TestStopWhileTheDriverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New()
		resume := f.Hang()
		_, stop := start(t, f, hw.Options{})
		time.Sleep(time.Minute)
		before := time.Now()
		stop()
		if took := time.Since(before); took > time.Second {
			t.Errorf("Run took %v to end", took)
		}
		resume()
	})
}

// A driver that takes longer than the interval for every answer still has its figures shown.
func TestSlowDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New(hwtest.GPU(0, gib))
		slow := slowGPU{f.GPUs()}
		s := hw.New(hw.Options{GPU: slow, Host: f.Host()})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Run(ctx) })
		time.Sleep(10 * time.Second)
		f.Take(0, 1, gib/2)
		time.Sleep(8 * time.Second)
		if x := s.Latest(); x.GPUProblem != "" || len(x.GPUs) != 1 || x.GPUs[0].MemoryFree != gib/2 {
			t.Errorf("%+v", x)
		}
		cancel()
		wg.Wait()
		time.Sleep(10 * time.Second) // the readings that were asked for come to their end
	})
}

type slowGPU struct{ hw.GPUReader }

func (g slowGPU) Read() ([]registry.GPU, string, string, error) {
	time.Sleep(3 * time.Second)
	return g.GPUReader.Read()
}

func TestBrokenAndRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New(hwtest.GPU(0, gib))
		var log lines
		s, stop := start(t, f, hw.Options{Logger: log.logger()})
		defer stop()
		synctest.Wait()
		f.SetProblem(errors.New("the driver is gone; reinstall it"))
		f.SetHostError(errors.New("no /proc"))
		time.Sleep(3 * time.Second)
		x := s.Latest()
		if x.GPUProblem != "the driver is gone; reinstall it" || len(x.GPUs) != 0 || x.Host.RAMTotal != 64*gib {
			t.Errorf("%+v", x)
		}
		if _, err := s.Refresh(t.Context()); registry.CodeOf(err) != registry.CodeInternal || !strings.Contains(err.Error(), "no /proc") {
			t.Errorf("Refresh: %v", err)
		}
		f.SetProblem(nil)
		f.SetHostError(nil)
		if x, err := s.Refresh(t.Context()); err != nil || len(hw.Usable(x)) != 1 {
			t.Errorf("%+v, %v", x, err)
		}
		if got := log.String(); strings.Count(got, "\n") != 3 {
			t.Errorf("log:\n%s", got)
		}
	})
}

func TestRefreshIsFreshAndShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New(hwtest.GPU(0, 80*gib))
		s := hw.New(hw.Options{GPU: f.GPUs(), Host: f.Host()})
		resume := f.Hang()
		first := make(chan registry.Sample, 1)
		go func() {
			x, _ := s.Refresh(t.Context())
			first <- x
		}()
		synctest.Wait() // the first reading is under way
		f.Take(0, 1, 10*gib)
		const callers = 50
		got := make(chan registry.Sample, callers)
		for range callers {
			go func() {
				x, err := s.Refresh(t.Context())
				if err != nil {
					t.Error(err)
				}
				got <- x
			}()
		}
		synctest.Wait()
		resume()
		<-first
		for range callers {
			if x := <-got; x.GPUs[0].MemoryFree != 70*gib {
				t.Errorf("a caller got figures from before its call: %+v", x.GPUs[0])
			}
		}
		if n := f.Reads(); n != 2 {
			t.Errorf("%d readings for %d callers, want the one under way and one more", n, callers)
		}
	})
}

func TestRefreshEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := hwtest.New()
		resume := f.Hang()
		s := hw.New(hw.Options{GPU: f.GPUs(), Host: f.Host()})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := time.Now()
		if _, err := s.Refresh(ctx); registry.CodeOf(err) != registry.CodeTimeout || !errors.Is(err, context.DeadlineExceeded) || time.Since(before) != time.Second {
			t.Errorf("after %v: %v", time.Since(before), err)
		}
		if x, err := s.Refresh(t.Context()); err != nil || !strings.Contains(x.GPUProblem, "has not answered for 5 s") || time.Since(before) != 5*time.Second {
			t.Errorf("after %v: %+v, %v", time.Since(before), x, err)
		}
		resume()
	})
}

func TestSamplesComeInOrder(t *testing.T) {
	f := hwtest.New(hwtest.GPU(0, gib))
	var last time.Time
	s := hw.New(hw.Options{GPU: f.GPUs(), Host: f.Host(), OnSample: func(x registry.Sample) {
		if x.At.Before(last) {
			t.Errorf("%v after %v", x.At, last)
		}
		last = x.At
	}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				if _, err := s.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
				s.Latest()
			}
		})
	}
	wg.Wait()
}
