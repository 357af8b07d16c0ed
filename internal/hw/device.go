package hw

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// MIGIndex is the Index of the n-th partition of a GPU. NVML numbers partitions within their GPU only; here every
// device has a number of its own: 100 to 109 are those of GPU 0, 110 to 119 those of GPU 1, and so on.
func MIGIndex(gpu, n int) int { return 100 + 10*gpu + n }

// device reads the GPU with that index and, behind it, its partitions. ret is what stopped it, if the device could not
// be read at all; the GPU that is returned then says so and carries what was known of it before.
func (r *NVML) device(index int) (gpus []registry.GPU, ret nvml.Return) {
	g := registry.GPU{Index: index, Utilization: -1, Temperature: -1, Power: -1}
	lost := func(ret nvml.Return) ([]registry.GPU, nvml.Return) {
		if k, ok := r.known[index]; ok {
			g.UUID, g.Name, g.MemoryTotal = k.UUID, k.Name, k.MemoryTotal
		}
		if g.Name == "" {
			g.Name = fmt.Sprintf("GPU %d", index)
		}
		g.Problem = deviceProblem(ret)
		return []registry.GPU{g}, ret
	}
	d, ret := r.lib.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return lost(ret)
	}
	if g.UUID, ret = d.GetUUID(); ret != nvml.SUCCESS {
		return lost(ret)
	}
	if g.Name, ret = d.GetName(); ret != nvml.SUCCESS {
		return lost(ret)
	}
	if ret = r.memory(d, &g); ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return lost(ret)
	}
	r.known[index] = g

	if u, ret := d.GetUtilizationRates(); ret == nvml.SUCCESS {
		g.Utilization = int(u.Gpu)
	}
	if r.can["nvmlDeviceGetTemperature"] {
		if c, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
			g.Temperature = int(c)
		}
	}
	if mw, ret := d.GetPowerUsage(); ret == nvml.SUCCESS {
		g.Power = float64(mw) / 1000
	}
	if mw, ret := d.GetEnforcedPowerLimit(); ret == nvml.SUCCESS {
		g.PowerLimit = float64(mw) / 1000
	}
	if r.partitioned(d) {
		g.MIG = true
		g.Problem = "The GPU is partitioned (MIG): models are loaded on its partitions."
		parts := r.partitions(d, g)
		if len(parts) == 0 {
			g.Problem = "The GPU is in MIG mode but has no partitions. Create some with nvidia-smi mig -cgi, or turn MIG off with nvidia-smi -mig 0."
		}
		return append([]registry.GPU{g}, parts...), nvml.SUCCESS
	}
	g.Processes = r.processes(d)
	r.judge(d, &g)
	return []registry.GPU{g}, nvml.SUCCESS
}

// memory fills in the memory. What the driver reserves for itself counts as used: nobody can have it.
func (r *NVML) memory(d nvml.Device, g *registry.GPU) nvml.Return {
	if r.can["nvmlDeviceGetMemoryInfo_v2"] {
		if m, ret := d.GetMemoryInfo_v2(); ret == nvml.SUCCESS {
			setMemory(g, m.Total, m.Free)
			return nvml.SUCCESS
		}
	}
	m, ret := d.GetMemoryInfo()
	if ret == nvml.SUCCESS {
		setMemory(g, m.Total, m.Free)
	}
	return ret
}

func setMemory(g *registry.GPU, total, free uint64) {
	g.MemoryTotal = signed(total)
	g.MemoryFree = signed(min(free, total))
	g.MemoryUsed = g.MemoryTotal - g.MemoryFree
}

// judge says whether models may be loaded on the device.
func (r *NVML) judge(d nvml.Device, g *registry.GPU) {
	if g.MemoryTotal <= 0 {
		g.Problem = "The driver does not say how much memory the GPU has, so nothing can be promised on it."
		return
	}
	if mode, ret := d.GetComputeMode(); ret == nvml.SUCCESS && mode == nvml.COMPUTEMODE_PROHIBITED {
		g.Problem = "The GPU's compute mode forbids programs to use it. Allow it with nvidia-smi -c 0."
		return
	}
	g.Usable = true
}

func (r *NVML) partitioned(d nvml.Device) bool {
	if !r.can["nvmlDeviceGetMigMode"] {
		return false
	}
	mode, _, ret := d.GetMigMode()
	return ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE
}

// partitions reads the MIG devices of a GPU. Utilisation and power are not measured for a partition; the temperature
// is the chip's.
func (r *NVML) partitions(parent nvml.Device, of registry.GPU) []registry.GPU {
	if !r.can["nvmlDeviceGetMaxMigDeviceCount"] || !r.can["nvmlDeviceGetMigDeviceHandleByIndex"] {
		return nil
	}
	n, ret := parent.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var parts []registry.GPU
	for i := range n {
		d, ret := parent.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // the numbers of partitions have holes
		}
		g := registry.GPU{Index: MIGIndex(of.Index, i), MIG: true, Utilization: -1, Temperature: of.Temperature, Power: -1}
		uuid, ret := d.GetUUID()
		if ret != nvml.SUCCESS {
			continue // it was removed just now
		}
		g.UUID = uuid
		g.Name = r.partitionName(d, of.Name)
		if ret := r.memory(d, &g); ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
			g.Problem = deviceProblem(ret)
			parts = append(parts, g)
			continue
		}
		g.Processes = r.processes(d)
		r.judge(parent, &g)
		parts = append(parts, g)
	}
	return parts
}

// partitionName returns the GPU's name with the profile behind it: "NVIDIA H100 80GB HBM3 MIG 1g.10gb". Newer drivers
// say it themselves.
func (r *NVML) partitionName(d nvml.Device, gpu string) string {
	if name, ret := d.GetName(); ret == nvml.SUCCESS && strings.Contains(name, " MIG ") {
		return name
	}
	if !r.can["nvmlDeviceGetAttributes_v2"] {
		return gpu + " MIG"
	}
	a, ret := d.GetAttributes()
	if ret != nvml.SUCCESS {
		return gpu + " MIG"
	}
	profile := fmt.Sprintf("%dg.%dgb", a.GpuInstanceSliceCount, (a.MemorySizeMB+1023)/1024)
	if a.ComputeInstanceSliceCount != a.GpuInstanceSliceCount {
		profile = fmt.Sprintf("%dc.%s", a.ComputeInstanceSliceCount, profile)
	}
	return gpu + " MIG " + profile
}

// processes lists who holds memory on the device, by PID. A process that computes and draws is in both of the driver's
// lists with the same bytes, so the larger counts, not the sum.
func (r *NVML) processes(d nvml.Device) []registry.GPUProcess {
	type slot struct{ pid, gpuInstance, computeInstance uint32 }
	held := map[slot]int64{}
	add := func(list []nvml.ProcessInfo, ret nvml.Return) {
		if ret != nvml.SUCCESS {
			return
		}
		for _, p := range list {
			n := int64(-1) // where the driver does not tell it is all ones: NVML_VALUE_NOT_AVAILABLE
			if p.UsedGpuMemory < 1<<62 {
				n = signed(p.UsedGpuMemory)
			}
			s := slot{p.Pid, p.GpuInstanceId, p.ComputeInstanceId}
			if old, ok := held[s]; !ok || n > old {
				held[s] = n
			}
		}
	}
	add(d.GetComputeRunningProcesses())
	add(d.GetGraphicsRunningProcesses())
	if r.can["nvmlDeviceGetMPSComputeRunningProcesses"] {
		add(d.GetMPSComputeRunningProcesses())
	}

	byPID := map[int]int64{}
	for s, n := range held {
		old, ok := byPID[int(s.pid)]
		switch {
		case !ok:
			byPID[int(s.pid)] = n
		case old < 0 || n < 0:
			byPID[int(s.pid)] = -1 // part of it is unknown, so all of it is
		default:
			byPID[int(s.pid)] = old + n
		}
	}
	var out []registry.GPUProcess
	for pid, n := range byPID {
		out = append(out, registry.GPUProcess{PID: pid, Name: r.processName(pid), Bytes: n})
	}
	slices.SortFunc(out, func(a, b registry.GPUProcess) int { return a.PID - b.PID })
	return out
}

// processName returns the name of a process as the kernel has it, "" if there is none with that number here (it ended,
// or the driver's numbers are those outside of our container).
func (r *NVML) processName(pid int) string {
	b, err := fs.ReadFile(r.root, fmt.Sprintf("proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
