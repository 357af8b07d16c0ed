package hw

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const gib = 1 << 30

// awake gives a server of go-nvml's mocks the functions that it leaves out, each answering what an idle GPU would.
func awake(s *server.Server) *server.Server {
	for _, d := range s.Devices {
		live(&d.(*server.Device).Device, d.(*server.Device).Config.MemoryMB<<20)
	}
	return s
}

func live(d *mock.Device, total uint64) {
	d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{Total: total, Reserved: gib / 2, Used: 2 * gib, Free: total - 2*gib - gib/2}, nvml.SUCCESS
	}
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 37, Memory: 5}, nvml.SUCCESS }
	d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 41, nvml.SUCCESS }
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 75_500, nvml.SUCCESS }
	d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 700_000, nvml.SUCCESS }
	d.GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) { return nvml.COMPUTEMODE_DEFAULT, nvml.SUCCESS }
	none := func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
	d.GetComputeRunningProcessesFunc, d.GetGraphicsRunningProcessesFunc, d.GetMPSComputeRunningProcessesFunc = none, none, none
}

func dev(s *server.Server, i int) *server.Device { return s.Devices[i].(*server.Device) }

// clock is a clock that a test moves.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func reader(lib nvml.Interface, files fstest.MapFS) (*NVML, *clock) {
	c := &clock{time.Unix(1_700_000_000, 0)}
	return newNVML(lib, files, c.now), c
}

func TestReadsEveryDGX(t *testing.T) {
	for _, tc := range []struct {
		name     string
		server   *server.Server
		gpu      string
		gib, cap int64
	}{
		{"A100", dgxa100.New(), "A100", 40, 8},
		{"H100", dgxh100.New(), "H100", 80, 8},
		{"H200", dgxh200.New(), "H200", 141, 8},
		{"B200", dgxb200.New(), "B200", 192, 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, _ := reader(awake(tc.server), nil)
			gpus, driver, cuda, err := r.Read()
			if err != nil || len(gpus) != 8 {
				t.Fatalf("%d GPUs, %v", len(gpus), err)
			}
			if driver != tc.server.DriverVersion || !strings.HasPrefix(cuda, fmt.Sprint(tc.server.CudaDriverVersion/1000)+".") {
				t.Errorf("driver %q, CUDA %q", driver, cuda)
			}
			uuids := map[string]bool{}
			for i, g := range gpus {
				uuids[g.UUID] = true
				if g.Index != i || !strings.Contains(g.Name, tc.gpu) || !g.Usable || g.Problem != "" || g.MIG {
					t.Errorf("GPU %d: %+v", i, g)
				}
				if g.MemoryTotal < tc.gib*gib*9/10 || g.MemoryUsed != 5*gib/2 || g.MemoryFree != g.MemoryTotal-g.MemoryUsed {
					t.Errorf("GPU %d: memory %d = %d + %d", i, g.MemoryTotal, g.MemoryUsed, g.MemoryFree)
				}
				if g.Utilization != 37 || g.Temperature != 41 || g.Power != 75.5 || g.PowerLimit != 700 {
					t.Errorf("GPU %d: %d %%, %d °C, %v of %v W", i, g.Utilization, g.Temperature, g.Power, g.PowerLimit)
				}
			}
			if len(uuids) != 8 {
				t.Errorf("%d UUIDs", len(uuids))
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := r.Read(); err == nil {
				t.Error("a closed reader reads")
			}
		})
	}
}

func TestCUDAVersion(t *testing.T) {
	s := awake(dgxh100.New())
	s.CudaDriverVersion = 12080
	r, _ := reader(s, nil)
	if _, _, cuda, _ := r.Read(); cuda != "12.8" {
		t.Errorf("CUDA %q, want 12.8", cuda)
	}
}

func TestMemoryWithoutVersion2(t *testing.T) {
	s := awake(dgxh100.New())
	s.LookupSymbolFunc = func(symbol string) error {
		if symbol == "nvmlDeviceGetMemoryInfo_v2" || strings.Contains(symbol, "MPS") {
			return errors.New("undefined symbol")
		}
		return nil
	}
	d := dev(s, 0)
	d.GetMemoryInfo_v2Func, d.GetMPSComputeRunningProcessesFunc = nil, nil // a call would end the process
	d.MemoryInfo = nvml.Memory{Total: 80 * gib, Free: 70 * gib, Used: 9 * gib}
	// The second one has the function, but it fails, as on a driver that knows version 2 for other devices only.
	dev(s, 1).GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{}, nvml.ERROR_ARGUMENT_VERSION_MISMATCH
	}
	dev(s, 1).MemoryInfo = d.MemoryInfo
	r, _ := reader(s, nil)
	gpus, _, _, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gpus[:2] {
		if g.MemoryTotal != 80*gib || g.MemoryFree != 70*gib || g.MemoryUsed != 10*gib || !g.Usable {
			t.Errorf("%+v", g)
		}
	}
}

func TestWhatADeviceDoesNotTell(t *testing.T) {
	s := awake(dgxh100.New())
	d := dev(s, 0)
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
	d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	d.GetMigModeFunc = func() (int, int, nvml.Return) { return 0, 0, nvml.ERROR_NOT_SUPPORTED }
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NO_PERMISSION }
	unified := dev(s, 1) // a chip that shares the host's memory
	unified.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) { return nvml.Memory_v2{}, nvml.ERROR_NOT_SUPPORTED }
	unified.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_NOT_SUPPORTED }
	dev(s, 2).GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) { return nvml.COMPUTEMODE_PROHIBITED, nvml.SUCCESS }

	r, _ := reader(s, nil)
	gpus, _, _, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	if g := gpus[0]; g.Utilization != -1 || g.Temperature != -1 || g.Power != -1 || g.PowerLimit != 0 || !g.Usable {
		t.Errorf("%+v", g)
	}
	if g := gpus[1]; g.Usable || !strings.Contains(g.Problem, "how much memory") {
		t.Errorf("%+v", g)
	}
	if g := gpus[2]; g.Usable || !strings.Contains(g.Problem, "nvidia-smi -c 0") {
		t.Errorf("%+v", g)
	}
	if got := len(Usable(registry.Sample{GPUs: gpus})); got != 6 {
		t.Errorf("%d usable GPUs, want 6", got)
	}
}

func TestProcesses(t *testing.T) {
	s := awake(dgxh100.New())
	d := dev(s, 0)
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{
			{Pid: 30, UsedGpuMemory: math.MaxUint64}, // not available
			{Pid: 10, UsedGpuMemory: 4 * gib},
			{Pid: 20, UsedGpuMemory: gib, GpuInstanceId: 1}, {Pid: 20, UsedGpuMemory: 2 * gib, GpuInstanceId: 2},
		}, nvml.SUCCESS
	}
	d.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 10, UsedGpuMemory: 5 * gib}, {Pid: 5, UsedGpuMemory: 7}}, nvml.SUCCESS
	}
	d.GetMPSComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 40, UsedGpuMemory: 8}}, nvml.SUCCESS
	}
	r, _ := reader(s, fstest.MapFS{"proc/10/comm": {Data: []byte("llama-server\n")}})
	gpus, _, _, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	want := []registry.GPUProcess{
		{PID: 5, Bytes: 7}, {PID: 10, Name: "llama-server", Bytes: 5 * gib}, {PID: 20, Bytes: 3 * gib}, {PID: 30, Bytes: -1}, {PID: 40, Bytes: 8},
	}
	if diff := cmp.Diff(want, gpus[0].Processes); diff != "" {
		t.Error(diff)
	}
	sample := registry.Sample{GPUs: gpus}
	if diff := cmp.Diff(map[int]int64{0: 8 * gib}, ProcessTreeGPU(sample, []int{10, 20, 99})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[int]int64{0: -1}, ProcessTreeGPU(sample, []int{10, 20, 30, 40})); diff != "" {
		t.Error(diff)
	}
}

func TestMIG(t *testing.T) {
	s := awake(dgxh100.New())
	partition := func(uuid string, total uint64, a nvml.DeviceAttributes, name string) nvml.Device {
		d := &mock.Device{
			GetUUIDFunc:       func() (string, nvml.Return) { return uuid, nvml.SUCCESS },
			GetNameFunc:       func() (string, nvml.Return) { return name, nvml.SUCCESS },
			GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) { return a, nvml.SUCCESS },
		}
		live(d, total)
		d.GetComputeModeFunc = nil // asked of the parent
		d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
			return []nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: gib}}, nvml.SUCCESS
		}
		return d
	}
	parts := map[int]nvml.Device{
		0: partition("MIG-a", 20*gib, nvml.DeviceAttributes{GpuInstanceSliceCount: 2, ComputeInstanceSliceCount: 1, MemorySizeMB: 19968}, "NVIDIA H100 80GB HBM3"),
		3: partition("MIG-b", 10*gib, nvml.DeviceAttributes{}, "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
		4: &mock.Device{GetUUIDFunc: func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }},
	}
	dev(s, 1).MigMode = nvml.DEVICE_MIG_ENABLE
	dev(s, 1).GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	dev(s, 1).GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if d, ok := parts[i]; ok {
			return d, nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	dev(s, 2).MigMode = nvml.DEVICE_MIG_ENABLE
	dev(s, 2).GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	dev(s, 2).GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }

	r, _ := reader(s, nil)
	gpus, _, _, err := r.Read()
	if err != nil || len(gpus) != 10 {
		t.Fatalf("%d devices, %v", len(gpus), err)
	}
	if g := gpus[1]; !g.MIG || g.Usable || !strings.Contains(g.Problem, "partitions") || g.Index != 1 {
		t.Errorf("parent: %+v", g)
	}
	want := []registry.GPU{
		{Index: 110, UUID: "MIG-a", Name: "NVIDIA H100 80GB HBM3 MIG 1c.2g.20gb", MemoryTotal: 20 * gib, MemoryUsed: 5 * gib / 2, MemoryFree: 35 * gib / 2,
			Utilization: -1, Temperature: 41, Power: -1, MIG: true, Usable: true, Processes: []registry.GPUProcess{{PID: 7, Bytes: gib}}},
		{Index: 113, UUID: "MIG-b", Name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb", MemoryTotal: 10 * gib, MemoryUsed: 5 * gib / 2, MemoryFree: 15 * gib / 2,
			Utilization: -1, Temperature: 41, Power: -1, MIG: true, Usable: true, Processes: []registry.GPUProcess{{PID: 7, Bytes: gib}}},
	}
	want[0].Name = gpus[1].Name + " MIG 1c.2g.20gb" // the parent's name as the mock has it
	if diff := cmp.Diff(want, gpus[2:4]); diff != "" {
		t.Error(diff)
	}
	if g := gpus[4]; g.Index != 2 || g.Usable || !strings.Contains(g.Problem, "no partitions") {
		t.Errorf("empty parent: %+v", g)
	}
	if gpus[5].Index != 3 || !gpus[5].Usable {
		t.Errorf("the GPU behind: %+v", gpus[5])
	}
}

func TestOneDeviceFails(t *testing.T) {
	for _, tc := range []struct {
		ret  nvml.Return
		says string
	}{
		{nvml.ERROR_GPU_IS_LOST, "Xid"}, {nvml.ERROR_RESET_REQUIRED, "--gpu-reset"}, {nvml.ERROR_NO_PERMISSION, "/dev/nvidia"},
		{nvml.ERROR_INSUFFICIENT_POWER, "cables"}, {nvml.ERROR_IRQ_ISSUE, "interrupt"}, {nvml.ERROR_UNKNOWN, `"unknown error" (999)`}, {nvml.Return(4711), "error 4711"},
	} {
		t.Run(tc.says, func(t *testing.T) {
			s := awake(dgxh100.New())
			r, _ := reader(s, nil)
			before, _, _, err := r.Read()
			if err != nil {
				t.Fatal(err)
			}
			handle := s.DeviceGetHandleByIndexFunc
			s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
				if i == 3 {
					return nil, tc.ret
				}
				return handle(i)
			}
			gpus, _, _, err := r.Read()
			if err != nil || len(gpus) != 8 {
				t.Fatalf("%d GPUs, %v", len(gpus), err)
			}
			g := gpus[3]
			if g.Usable || g.MemoryFree != 0 || g.UUID != before[3].UUID || g.Name != before[3].Name || g.MemoryTotal != before[3].MemoryTotal || !strings.Contains(g.Problem, tc.says) {
				t.Errorf("the lost one: %+v", g)
			}
			if len(Usable(registry.Sample{GPUs: gpus})) != 7 {
				t.Error("the others are not usable")
			}
			s.DeviceGetHandleByIndexFunc = handle
			if gpus, _, _, _ := r.Read(); !gpus[3].Usable {
				t.Errorf("it does not come back: %+v", gpus[3])
			}
		})
	}
	t.Run("the only one, from the start", func(t *testing.T) {
		s := awake(dgxh100.New())
		s.Devices = s.Devices[:1]
		s.DeviceGetHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_GPU_IS_LOST }
		r, _ := reader(s, nil)
		gpus, _, _, err := r.Read()
		if err != nil || len(gpus) != 1 || gpus[0].Name != "GPU 0" || gpus[0].Usable {
			t.Errorf("%+v, %v", gpus, err)
		}
	})
}

func TestNoDriver(t *testing.T) {
	inits := 0
	s := dgxh100.New()
	s.InitFunc = func() nvml.Return { inits++; return nvml.ERROR_LIBRARY_NOT_FOUND }
	r, c := reader(s, nil)
	for range 100 {
		gpus, driver, cuda, err := r.Read()
		if len(gpus) != 0 || driver != "" || cuda != "" || err != nil {
			t.Fatalf("%v %q %q %v", gpus, driver, cuda, err)
		}
		c.advance(time.Second)
	}
	if inits != 2 {
		t.Errorf("the library was looked for %d times in 100 s, want 2", inits)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	// The same with the kernel's part there: a container without the library.
	r, _ = reader(s, fstest.MapFS{"proc/driver/nvidia/version": {}})
	if _, _, _, err := r.Read(); err == nil || !strings.Contains(err.Error(), "libnvidia-ml.so.1") {
		t.Errorf("%v", err)
	}
}

func TestBrokenDriver(t *testing.T) {
	for _, tc := range []struct {
		ret  nvml.Return
		says string
	}{
		{nvml.ERROR_LIB_RM_VERSION_MISMATCH, "Restart the machine"}, {nvml.ERROR_DRIVER_NOT_LOADED, "not loaded"}, {nvml.ERROR_NO_PERMISSION, "group video"},
		{nvml.ERROR_GPU_IS_LOST, "Xid"}, {nvml.ERROR_UNINITIALIZED, "gone away"}, {nvml.ERROR_UNKNOWN, "unknown error"}, {nvml.ERROR_TIMEOUT, "timeout"},
	} {
		t.Run(tc.says, func(t *testing.T) {
			s := awake(dgxh100.New())
			inits := 0
			s.InitFunc = func() nvml.Return { inits++; return tc.ret }
			r, c := reader(s, nil)
			for range 300 { // five minutes
				gpus, _, _, err := r.Read()
				if len(gpus) != 0 || err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("%v, %v", gpus, err)
				}
				c.advance(time.Second)
			}
			if inits < 8 || inits > 12 { // after 0, 1, 3, 7, 15, 31, 63, 123, 183, 243 s
				t.Errorf("%d attempts in five minutes", inits)
			}
			s.InitFunc = func() nvml.Return { return nvml.SUCCESS }
			c.advance(time.Minute)
			if gpus, _, _, err := r.Read(); len(gpus) != 8 || err != nil {
				t.Errorf("repaired: %d GPUs, %v", len(gpus), err)
			}
		})
	}
}

func TestDriverVanishesAndComesBack(t *testing.T) {
	for _, where := range []string{"count", "handle", "memory"} {
		t.Run(where, func(t *testing.T) {
			s := awake(dgxh100.New())
			gone := nvml.SUCCESS
			count, handle := s.DeviceGetCountFunc, s.DeviceGetHandleByIndexFunc
			shutdowns := 0
			s.InitFunc = func() nvml.Return { return gone }
			s.ShutdownFunc = func() nvml.Return { shutdowns++; return gone }
			switch where {
			case "count":
				s.DeviceGetCountFunc = func() (int, nvml.Return) {
					if gone != nvml.SUCCESS {
						return 0, gone
					}
					return count()
				}
			case "handle":
				s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
					if gone != nvml.SUCCESS {
						return nil, gone
					}
					return handle(i)
				}
			case "memory":
				for i := range s.Devices {
					d := dev(s, i)
					v2 := d.GetMemoryInfo_v2Func
					d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
						if gone != nvml.SUCCESS {
							return nvml.Memory_v2{}, gone
						}
						return v2()
					}
					d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, gone }
				}
			}
			r, c := reader(s, nil)
			read := func(wantGPUs int, wantErr bool) {
				t.Helper()
				gpus, _, _, err := r.Read()
				if len(gpus) != wantGPUs || (err != nil) != wantErr {
					t.Fatalf("%d GPUs, %v", len(gpus), err)
				}
				c.advance(time.Second)
			}
			for range 3 { // three times over: the back-off begins anew after each recovery
				read(8, false)
				gone = nvml.ERROR_UNINITIALIZED
				read(0, true)
				read(0, true)
				gone = nvml.SUCCESS
				c.advance(2 * time.Second)
				read(8, false)
			}
			if shutdowns != 3 {
				t.Errorf("%d shutdowns", shutdowns)
			}
		})
	}
}

func TestCloseDoesNotWaitForAHungDriver(t *testing.T) {
	s := awake(dgxh100.New())
	hung, entered := make(chan struct{}), make(chan struct{})
	s.DeviceGetCountFunc = func() (int, nvml.Return) {
		close(entered)
		<-hung
		return 0, nvml.ERROR_TIMEOUT
	}
	r, _ := reader(s, nil)
	done := make(chan struct{})
	go func() { defer close(done); _, _, _, _ = r.Read() }()
	<-entered
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	close(hung)
	<-done
}
