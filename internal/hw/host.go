package hw

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/disk"
	"github.com/shirou/gopsutil/v3/mem"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Host reads this machine: memory as the kernel counts it (MemAvailable) and as our cgroup and those above it allow,
// the CPUs that this process may use, how busy all CPUs are, and the disks.
type Host struct {
	root  fs.FS
	disks []*diskProbe

	cgroup  cgroupPlace // as it was found at foundAt
	foundAt time.Time

	busy, total float64 // seconds of all CPUs since boot, at the last reading
	percent     float64
	readAt      time.Time
}

var _ HostReader = (*Host)(nil)

// findCgroupEvery is how often it is looked for the cgroup that this process is in.
const findCgroupEvery = 30 * time.Second

// NewHost makes a reader of this machine. Each path is shown with the file system it is on; one that does not exist yet
// with that of the nearest folder above it that does.
func NewHost(disks []string) *Host {
	h := &Host{root: os.DirFS("/")}
	for _, path := range disks {
		h.disks = append(h.disks, newDiskProbe(path))
	}
	return h
}

// Read implements HostReader.
func (h *Host) Read() (registry.Host, error) {
	m, err := mem.VirtualMemory()
	if err != nil {
		return registry.Host{}, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	// The list of all mounts is long, and hardly a process is ever moved into another cgroup.
	if time.Since(h.foundAt) > findCgroupEvery {
		h.cgroup, h.foundAt = findCgroup(h.root), time.Now()
	}
	out := limited(registry.Host{
		RAMTotal:     signed(m.Total),
		RAMAvailable: signed(m.Available),
		CPUs:         runtime.GOMAXPROCS(0), // the runtime follows affinity and the cgroup's quota
	}, readCgroup(h.root, h.cgroup))
	out.CPUPercent = h.cpuPercent()
	for _, d := range h.disks {
		if usage, ok := d.read(); ok {
			out.Disks = append(out.Disks, usage)
		}
	}
	return out, nil
}

// limited lowers the host's memory to what the cgroups leave of it.
func limited(h registry.Host, c cgroupMemory) registry.Host {
	if c.limit > 0 && c.limit < h.RAMTotal {
		h.CgroupLimit = c.limit
		h.RAMTotal = c.limit
	}
	if c.limit > 0 {
		h.RAMAvailable = min(h.RAMAvailable, c.available)
	}
	return h
}

// cpuPercent returns how busy all CPUs were since the last reading; 0 at the first. It does not use gopsutil's own
// Percent: that keeps one state for all callers in the process.
func (h *Host) cpuPercent() float64 {
	if time.Since(h.readAt) < 100*time.Millisecond {
		return h.percent // too short to say anything: the kernel counts in steps of 10 ms
	}
	times, err := cpu.Times(false)
	if err != nil || len(times) != 1 {
		return h.percent
	}
	t := times[0]
	// Guest time is in user and nice already. Waiting for disks is idling.
	busy := t.User + t.Nice + t.System + t.Irq + t.Softirq + t.Steal
	total := busy + t.Idle + t.Iowait
	if !h.readAt.IsZero() && total > h.total {
		h.percent = min(max(100*(busy-h.busy)/(total-h.total), 0), 100)
	}
	h.busy, h.total, h.readAt = busy, total, time.Now()
	return h.percent
}

// diskProbe asks a file system for its figures. A dead network mount never answers, so it is asked beside the reading
// and its last figures stand meanwhile.
type diskProbe struct {
	path  string
	probe *probe[registry.Disk]
}

// diskPatience is how long a reading of the host waits for one disk.
const diskPatience = 100 * time.Millisecond

func newDiskProbe(path string) *diskProbe {
	return &diskProbe{path: path, probe: &probe[registry.Disk]{read: func() registry.Disk { return diskUsage(path) }}}
}

func (d *diskProbe) read() (registry.Disk, bool) {
	d.probe.wait(context.Background(), d.probe.ask(), diskPatience)
	usage, ok := d.probe.newest()
	return usage, ok && usage.Total > 0
}

// diskUsage returns the figures of the file system that path is on or will be on; zeros if they cannot be had. Free is
// what this user can have: less than what is free where blocks are set aside for root.
func diskUsage(path string) registry.Disk {
	at := filepath.Clean(path)
	for {
		if _, err := os.Stat(at); err == nil || filepath.Dir(at) == at {
			break
		}
		at = filepath.Dir(at)
	}
	usage, err := disk.Usage(at)
	if err != nil {
		return registry.Disk{Path: path}
	}
	return registry.Disk{Path: path, Total: signed(usage.Total), Free: signed(usage.Free)}
}

// signed turns a count of bytes from the kernel or the driver into ours.
func signed(n uint64) int64 {
	return int64(min(n, math.MaxInt64))
}
