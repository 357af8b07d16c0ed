// Package hw reads the hardware: GPUs through NVML, the host through gopsutil and the cgroup files.
//
// A Sampler reads once a second and keeps the newest sample. Drivers hang, vanish and come back; disks on dead network
// mounts never answer. Every reading therefore runs in a goroutine of its own, at most one per reader, and nobody who
// asks for the newest sample ever waits for one.
package hw

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// GPUReader reads the GPUs. Read is never called by two goroutines at once. It may block for as long as the driver
// does. err says in a sentence for people what is wrong and what to do about it; gpus may be set beside it. A machine
// without GPUs is no error.
type GPUReader interface {
	Read() (gpus []registry.GPU, driver, cuda string, err error)
	Close() error
}

// HostReader reads the machine without its GPUs. Read is never called by two goroutines at once.
type HostReader interface {
	Read() (registry.Host, error)
}

// Options set up a Sampler. The zero value reads this machine once a second.
type Options struct {
	Interval time.Duration // between samples; default 1 s
	GPU      GPUReader     // default NVML
	Host     HostReader    // default this machine, with Disks
	Disks    []string      // folders whose file systems are shown; used when Host is nil
	Logger   *slog.Logger  // default: nothing is logged
	// HungAfter is how long the driver may take to answer before its GPUs are called unusable. Default 5 s: the first
	// answer of a driver that has to wake up its devices takes a second or two.
	HungAfter time.Duration
	// OnSample is called with each new sample, in the order of their times, by one goroutine at a time. It must not
	// block, and not call Refresh.
	OnSample func(registry.Sample)
}

// Sampler keeps the newest sample of the hardware. It is safe for concurrent use.
type Sampler struct {
	opts   Options
	gpu    *probe[gpuReading]
	host   *probe[hostReading]
	latest atomic.Pointer[registry.Sample]

	mu      sync.Mutex    // makes samples one after the other; never held while something is read
	known   registry.Host // the newest that could be read
	problem string        // GPUProblem as it was logged last
	trouble string        // the host's, likewise
}

type gpuReading struct {
	gpus         []registry.GPU
	driver, cuda string
	err          error
}

type hostReading struct {
	host registry.Host
	err  error
}

// New makes a Sampler. Nothing is read before Run or Refresh is called.
func New(opts Options) *Sampler {
	if opts.Interval <= 0 {
		opts.Interval = time.Second
	}
	if opts.HungAfter <= 0 {
		opts.HungAfter = 5 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.GPU == nil {
		opts.GPU = NewNVML()
	}
	if opts.Host == nil {
		opts.Host = NewHost(opts.Disks)
	}
	return &Sampler{
		opts: opts,
		gpu: &probe[gpuReading]{read: func() gpuReading {
			gpus, driver, cuda, err := opts.GPU.Read()
			return gpuReading{gpus, driver, cuda, err}
		}},
		host: &probe[hostReading]{read: func() hostReading {
			h, err := opts.Host.Read()
			return hostReading{h, err}
		}},
	}
}

// Run samples until ctx ends, then closes the GPU reader. Call it once.
func (s *Sampler) Run(ctx context.Context) error {
	ticker := time.NewTicker(s.opts.Interval)
	defer ticker.Stop()
	for {
		// A reader that is slower than the interval holds up neither the other nor the age of its own figures.
		patience, cancel := context.WithTimeout(ctx, s.opts.Interval)
		_, _ = s.read(patience) // its errors are in the sample and in the log
		cancel()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if s.gpu.busy() >= s.opts.Interval {
				return nil // the driver hangs: closing it would hang too
			}
			return s.opts.GPU.Close()
		}
	}
}

// Latest returns the newest sample without waiting for anything; the zero Sample before the first reading. The caller
// must not change what it points to.
func (s *Sampler) Latest() registry.Sample {
	if p := s.latest.Load(); p != nil {
		return *p
	}
	return registry.Sample{}
}

// Refresh reads the hardware now and returns what it found: no part of it was read before the call. Callers at the same
// time share a reading. When the driver does not answer within HungAfter, the sample says so in GPUProblem and at its
// GPUs, which are then not usable. An error is ctx's end (CodeTimeout) or a host that cannot be read (CodeInternal); it
// comes with the newest sample there is.
func (s *Sampler) Refresh(ctx context.Context) (registry.Sample, error) {
	sample, err := s.read(ctx)
	if ctx.Err() != nil {
		return sample, &registry.Error{Code: registry.CodeTimeout, Op: "hw.refresh",
			Msg: "The memory of this machine could not be read in time. Try again; if it happens again, look at the GPU driver.", Err: ctx.Err()}
	}
	return sample, err
}

// read starts a reading of both, waits for them and makes a sample of what there is then.
func (s *Sampler) read(ctx context.Context) (registry.Sample, error) {
	gpu, host := s.gpu.ask(), s.host.ask()
	s.host.wait(ctx, host, s.opts.HungAfter)
	s.gpu.wait(ctx, gpu, s.opts.HungAfter)

	s.mu.Lock()
	defer s.mu.Unlock()
	g, _ := s.gpu.newest()
	h, _ := s.host.newest()
	if h.err == nil && h.host.RAMTotal > 0 {
		s.known = h.host
	}
	sample := registry.Sample{At: time.Now(), GPUs: g.gpus, Driver: g.driver, CUDA: g.cuda, Host: s.known}
	if sample.GPUs == nil {
		sample.GPUs = []registry.GPU{} // an empty list in JSON, not null
	}
	hung := s.gpu.busy()
	if hung < s.opts.HungAfter {
		hung = 0
	}
	switch {
	case hung > 0:
		sample.GPUProblem = fmt.Sprintf("The GPU driver has not answered for %d s. The figures shown are from before. See whether nvidia-smi answers; if it hangs too, restart the machine.", int(hung.Seconds()))
		sample.GPUs = unusable(sample.GPUs, "the driver does not answer")
	case g.err != nil:
		sample.GPUProblem = g.err.Error()
	}
	var err error
	switch busy := s.host.busy(); {
	case h.err != nil:
		err = &registry.Error{Code: registry.CodeInternal, Op: "hw.host", Msg: "The memory of this machine could not be read: " + h.err.Error() + ". Plans go by the figures from before.", Err: h.err}
	case busy >= s.opts.HungAfter:
		err = &registry.Error{Code: registry.CodeInternal, Op: "hw.host", Msg: "The memory of this machine could not be read: the kernel does not answer. Plans go by the figures from before."}
	}
	s.logChanges(sample.GPUProblem, hung > 0, err)
	s.latest.Store(&sample)
	if s.opts.OnSample != nil {
		s.opts.OnSample(sample)
	}
	return sample, err
}

// logChanges logs a fault when it appears and when it has gone, not once a second.
func (s *Sampler) logChanges(problem string, hung bool, hostErr error) {
	key := problem
	if hung {
		key = "hung" // the seconds in the message grow
	}
	switch key {
	case s.problem:
	case "":
		s.opts.Logger.Info("the GPUs can be read again")
	default:
		s.opts.Logger.Warn("the GPUs cannot be read", "problem", problem)
	}
	s.problem = key

	trouble := ""
	if hostErr != nil {
		trouble = hostErr.Error()
	}
	if trouble != s.trouble && trouble != "" {
		s.opts.Logger.Warn("the host cannot be read", "problem", trouble)
	}
	s.trouble = trouble
}

// unusable returns copies of the GPUs on which nothing may be loaded.
func unusable(gpus []registry.GPU, why string) []registry.GPU {
	out := make([]registry.GPU, len(gpus))
	for i, g := range gpus {
		g.Usable, g.Problem = false, why
		out[i] = g
	}
	return out
}

// Usable returns the GPUs of the sample on which a model may be loaded: what auto chooses from. With none of them,
// auto is the CPU and cuda is CodeInsufficientResources.
func Usable(sample registry.Sample) []registry.GPU {
	var out []registry.GPU
	for _, g := range sample.GPUs {
		if g.Usable {
			out = append(out, g)
		}
	}
	return out
}

// errClosed is what a reader says after Close.
const errClosed = problem("The GPUs are no longer read: the server is stopping.")
