// Package hwtest is hardware for tests: GPUs and a host whose state a test sets.
package hwtest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Fake is a machine. The zero value is one without GPUs and without memory; New gives it some. It is safe for concurrent
// use, and each reading shows the state as it is at that moment.
type Fake struct {
	mu      sync.Mutex
	gpus    []registry.GPU
	host    registry.Host
	ramFree int64 // before what Take took
	taken   map[int]map[int]int64
	problem error
	hostErr error
	hung    chan struct{} // nil: the driver answers
	reads   int
	closed  bool
}

// CPU is the device number of system memory for Take and Release.
const CPU = -1

// New makes a machine with 64 GiB of RAM, 8 CPUs and these GPUs.
func New(gpus ...registry.GPU) *Fake {
	f := &Fake{taken: map[int]map[int]int64{}}
	f.SetHost(registry.Host{RAMTotal: 64 << 30, RAMAvailable: 60 << 30, CPUs: 8, CPUPercent: 5})
	f.SetGPUs(gpus...)
	return f
}

// GPU makes a usable GPU with so many bytes, all free.
func GPU(index int, total int64) registry.GPU {
	return registry.GPU{
		Index: index, UUID: fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", index), Name: "NVIDIA Test",
		MemoryTotal: total, MemoryFree: total, Temperature: 40, Power: 60, PowerLimit: 300, Usable: true,
	}
}

// SetGPUs replaces the GPUs. Their MemoryUsed is what others hold; Take adds to it.
func (f *Fake) SetGPUs(gpus ...registry.GPU) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gpus = slices.Clone(gpus)
}

// SetHost replaces the host. What was taken of its memory stays taken.
func (f *Fake) SetHost(h registry.Host) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.host, f.ramFree = h, h.RAMAvailable
}

// SetProblem breaks the driver: there are no GPUs but this error. nil repairs it.
func (f *Fake) SetProblem(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problem = err
}

// SetHostError makes reading the host fail. nil repairs it.
func (f *Fake) SetHostError(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hostErr = err
}

// Hang makes the driver stop answering until the returned function is called.
func (f *Fake) Hang() (resume func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hung := make(chan struct{})
	f.hung = hung
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.hung == hung {
			f.hung = nil
		}
		close(hung)
	})
}

// Take lets a process hold bytes on a device (its index, or CPU), instead of what it held there before. -1 on a GPU is
// an amount that the driver does not tell; it takes nothing from what is free.
func (f *Fake) Take(device, pid int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.taken == nil {
		f.taken = map[int]map[int]int64{}
	}
	if f.taken[device] == nil {
		f.taken[device] = map[int]int64{}
	}
	f.taken[device][pid] = bytes
}

// Release lets a process give back everything on all devices.
func (f *Fake) Release(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, held := range f.taken {
		delete(held, pid)
	}
}

// Reads returns how often the GPUs were read.
func (f *Fake) Reads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

// Closed reports whether the GPU reader was closed.
func (f *Fake) Closed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// GPUs returns the reader of the GPUs, for hw.Options.
func (f *Fake) GPUs() hw.GPUReader { return gpuReader{f} }

// Host returns the reader of the host, for hw.Options.
func (f *Fake) Host() hw.HostReader { return hostReader{f} }

type gpuReader struct{ f *Fake }

func (r gpuReader) Read() (gpus []registry.GPU, driver, cuda string, err error) {
	f := r.f
	f.mu.Lock()
	f.reads++
	hung := f.hung
	f.mu.Unlock()
	if hung != nil {
		<-hung
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.problem != nil {
		return nil, "", "", f.problem
	}
	for _, g := range f.gpus {
		g.Processes = slices.Clone(g.Processes)
		for pid, n := range f.taken[g.Index] {
			g.Processes = append(g.Processes, registry.GPUProcess{PID: pid, Name: "engine", Bytes: n})
			g.MemoryUsed += max(n, 0)
			g.MemoryFree = max(g.MemoryFree-max(n, 0), 0)
		}
		slices.SortFunc(g.Processes, func(a, b registry.GPUProcess) int { return a.PID - b.PID })
		gpus = append(gpus, g)
	}
	if len(gpus) == 0 {
		return nil, "", "", nil
	}
	return gpus, "550.54.15", "12.4", nil
}

func (r gpuReader) Close() error {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.closed = true
	return nil
}

type hostReader struct{ f *Fake }

func (r hostReader) Read() (registry.Host, error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hostErr != nil {
		return registry.Host{}, f.hostErr
	}
	h := f.host
	h.Disks = slices.Clone(h.Disks)
	h.RAMAvailable = f.ramFree
	for _, n := range f.taken[CPU] {
		h.RAMAvailable = max(h.RAMAvailable-n, 0)
	}
	return h, nil
}
