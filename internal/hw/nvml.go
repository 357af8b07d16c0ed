package hw

import (
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// NVML reads the GPUs of NVIDIA through the driver's own library, which is opened while the program runs: without it
// there are zero GPUs and no error. A driver that breaks or vanishes is an error that says what to do, and is tried
// again, less and less often up to once a minute.
type NVML struct {
	lib  nvml.Interface
	root fs.FS // "/": /proc is looked up in it
	now  func() time.Time

	mu      sync.Mutex
	ready   bool
	closed  bool
	driver  string
	cuda    string
	can     map[string]bool // symbols of the library; calling one that is missing ends the process
	known   map[int]registry.GPU
	failed  error // what Read returns until retryAt
	retryAt time.Time
	wait    time.Duration
}

var _ GPUReader = (*NVML)(nil)

// NewNVML makes a reader of this machine's GPUs.
func NewNVML() *NVML { return newNVML(nvml.New(), os.DirFS("/"), time.Now) }

func newNVML(lib nvml.Interface, root fs.FS, now func() time.Time) *NVML {
	return &NVML{lib: lib, root: root, now: now, known: map[int]registry.GPU{}}
}

// The time between attempts to start a driver that does not answer.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// optional are the functions that older drivers lack, or that newer ones may drop.
var optional = []string{
	"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount",
	"nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetAttributes_v2", "nvmlDeviceGetMPSComputeRunningProcesses",
	"nvmlDeviceGetTemperature",
}

// Read implements GPUReader. Devices that fail alone carry a Problem; err is for what concerns all of them.
func (r *NVML) Read() (gpus []registry.GPU, driver, cuda string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, "", "", errClosed
	}
	if !r.ready {
		if r.now().Before(r.retryAt) {
			return nil, "", "", r.failed
		}
		if r.failed = r.start(); !r.ready {
			return nil, "", "", r.failed
		}
	}
	n, ret := r.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, "", "", r.stop(ret)
	}
	broken := nvml.SUCCESS
	failed := 0
	for i := range n {
		found, ret := r.device(i)
		if ret != nvml.SUCCESS {
			failed++
			broken = ret
		}
		gpus = append(gpus, found...)
	}
	if n > 0 && failed == n && !ofOneDevice(broken) {
		return nil, "", "", r.stop(broken)
	}
	r.wait = 0
	return gpus, r.driver, r.cuda, nil
}

// start opens the library and asks what it can do. It leaves ready false, and says when to try again, if that fails.
func (r *NVML) start() error {
	ret := r.lib.Init()
	if ret != nvml.SUCCESS {
		r.backOff(ret)
		if ret == nvml.ERROR_LIBRARY_NOT_FOUND && !r.kernelDriver() {
			return nil // nothing of NVIDIA here
		}
		return problemOf(ret)
	}
	r.ready = true
	r.can = map[string]bool{}
	for _, symbol := range optional {
		r.can[symbol] = r.lib.Extensions().LookupSymbol(symbol) == nil
	}
	r.driver, r.cuda = "", ""
	if v, ret := r.lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		r.driver = v
	}
	if v, ret := r.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		r.cuda = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	return nil
}

// stop lets go of a driver that fails as a whole.
func (r *NVML) stop(ret nvml.Return) error {
	_ = r.lib.Shutdown() // what it answers says no more than ret
	r.ready = false
	r.backOff(ret)
	r.failed = problemOf(ret)
	return r.failed
}

func (r *NVML) backOff(ret nvml.Return) {
	r.wait = min(max(2*r.wait, firstRetry), lastRetry)
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		r.wait = lastRetry // looking for a file that is not there, in all the library paths
	}
	r.retryAt = r.now().Add(r.wait)
}

// kernelDriver reports whether the kernel has NVIDIA's driver, whatever there is in the way of libraries.
func (r *NVML) kernelDriver() bool {
	_, err := fs.Stat(r.root, "proc/driver/nvidia/version")
	return err == nil
}

// Close lets go of the driver. A Read that hangs is not waited for.
func (r *NVML) Close() error {
	if !r.mu.TryLock() {
		return nil
	}
	defer r.mu.Unlock()
	if r.ready {
		_ = r.lib.Shutdown() // nothing can be done about it at the end
	}
	r.ready, r.closed = false, true
	return nil
}

// ofOneDevice reports whether the failure says something about a device rather than about the driver.
func ofOneDevice(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED, nvml.ERROR_NO_PERMISSION, nvml.ERROR_INSUFFICIENT_POWER,
		nvml.ERROR_IRQ_ISSUE, nvml.ERROR_CORRUPTED_INFOROM, nvml.ERROR_IN_USE, nvml.ERROR_MEMORY, nvml.ERROR_NOT_SUPPORTED:
		return true
	default:
		return false
	}
}

// problem is an error whose text is shown to people as it is, in sentences.
type problem string

func (p problem) Error() string { return string(p) }

// problemOf says what is wrong with the driver as a whole and what to do.
func problemOf(ret nvml.Return) error {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return problem("This machine has NVIDIA's kernel driver but not its library libnvidia-ml.so.1. In a container, start it with GPU access and the capabilities compute and utility; otherwise install the rest of the driver.")
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return problem("The GPU driver was updated while it was in use: its library and the kernel's part are of different versions. Restart the machine, or unload and load the nvidia kernel modules and then restart this server.")
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return problem("The GPU driver is installed but not loaded into the kernel. Run nvidia-smi as root to see why; after a kernel update the driver often has to be installed again.")
	case nvml.ERROR_NO_PERMISSION:
		return problem("This server may not talk to the GPU driver. Give its user access to /dev/nvidia*, usually by adding it to the group video.")
	case nvml.ERROR_GPU_IS_LOST:
		return problem("The GPU driver has lost its devices: they no longer answer on the bus. Look for Xid messages in the kernel's log and restart the machine.")
	case nvml.ERROR_UNINITIALIZED:
		return problem("The GPU driver has gone away, as it does when it is updated or reset. It is tried again; if it does not come back, run nvidia-smi to see why.")
	default:
		return problem("The GPU driver does not work: NVML says " + nvmlName(ret) + ". Run nvidia-smi to see more.")
	}
}

// deviceProblem says what is wrong with one device and what to do.
func deviceProblem(ret nvml.Return) string {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST:
		return "The GPU no longer answers on the bus. Look for Xid messages in the kernel's log, then restart the machine."
	case nvml.ERROR_RESET_REQUIRED:
		return "The GPU has to be reset. Stop what uses it and run nvidia-smi --gpu-reset, or restart the machine."
	case nvml.ERROR_NO_PERMISSION:
		return "This server may not read the GPU. Give its user access to /dev/nvidia*, usually by adding it to the group video."
	case nvml.ERROR_INSUFFICIENT_POWER:
		return "The GPU's power cables are not connected properly."
	case nvml.ERROR_IRQ_ISSUE:
		return "The kernel has an interrupt problem with the GPU. Look into the kernel's log."
	default:
		return "The GPU cannot be read: NVML says " + nvmlName(ret) + ". Run nvidia-smi to see more."
	}
}

// nvmlName names a return code without asking the library, which may be the one that is broken.
func nvmlName(ret nvml.Return) string {
	for name, code := range map[string]nvml.Return{
		"timeout": nvml.ERROR_TIMEOUT, "unknown error": nvml.ERROR_UNKNOWN, "operating system": nvml.ERROR_OPERATING_SYSTEM,
		"function not found": nvml.ERROR_FUNCTION_NOT_FOUND, "out of memory": nvml.ERROR_MEMORY, "not supported": nvml.ERROR_NOT_SUPPORTED,
		"in use": nvml.ERROR_IN_USE, "not found": nvml.ERROR_NOT_FOUND, "corrupted inforom": nvml.ERROR_CORRUPTED_INFOROM,
		"insufficient resources": nvml.ERROR_INSUFFICIENT_RESOURCES, "invalid argument": nvml.ERROR_INVALID_ARGUMENT, "not ready": nvml.ERROR_NOT_READY,
	} {
		if code == ret {
			return fmt.Sprintf("%q (%d)", name, ret)
		}
	}
	return fmt.Sprintf("error %d", ret)
}
