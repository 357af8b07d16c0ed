package hw

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const (
	mountV1 = "35 31 0:32 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n36 31 0:33 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	mountV2 = "24 18 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
)

func tree(files map[string]string) fstest.MapFS {
	t := fstest.MapFS{}
	for name, data := range files {
		t[name] = &fstest.MapFile{Data: []byte(data)}
	}
	return t
}

func with(a map[string]string, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func TestCgroup(t *testing.T) {
	v2 := map[string]string{"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mountV2,
		"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "max\n"}
	v1 := map[string]string{"proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n", "proc/self/mountinfo": mountV1,
		"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
	for _, tc := range []struct {
		name             string
		files            map[string]string
		limit, available int64
	}{
		{"nothing at all", nil, 0, 0},
		{"v2 without limits", v2, 0, 0},
		{"v2 own limit", with(v2, map[string]string{
			"sys/fs/cgroup/a/b/memory.max": "1000\n", "sys/fs/cgroup/a/b/memory.current": "700\n", "sys/fs/cgroup/a/b/memory.stat": "anon 5\ninactive_file 200\ntotal_inactive_file 1\n",
		}), 1000, 500},
		{"v2 limits above: the lowest limit and the least left are of different ones", with(v2, map[string]string{
			"sys/fs/cgroup/a/b/memory.max": "1000\n", "sys/fs/cgroup/a/b/memory.current": "100\n",
			"sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.current": "4900\n",
		}), 1000, 100},
		{"v2 memory.high", with(v2, map[string]string{"sys/fs/cgroup/a/memory.high": "600\n", "sys/fs/cgroup/a/memory.current": "100\n"}), 600, 500},
		{"v2 over the limit", with(v2, map[string]string{"sys/fs/cgroup/a/memory.max": "600\n", "sys/fs/cgroup/a/memory.current": "900\n"}), 600, 0},
		{"v2 more reclaimable than used", with(v2, map[string]string{"sys/fs/cgroup/a/memory.max": "600\n", "sys/fs/cgroup/a/memory.current": "100\n", "sys/fs/cgroup/a/memory.stat": "inactive_file 900\n"}), 600, 600},
		{"v2 a limit of zero", with(v2, map[string]string{"sys/fs/cgroup/a/memory.max": "0\n"}), 0, 0},
		{"v2 in a container with a namespace", map[string]string{"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/memory.max": "800\n", "sys/fs/cgroup/memory.current": "300\n"}, 800, 500},
		{"v2 a path above the namespace", map[string]string{"proc/self/cgroup": "0::/../../x\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/memory.max": "800\n", "sys/fs/cgroup/memory.current": "300\n"}, 800, 500},
		{"v2 garbage", with(v2, map[string]string{"sys/fs/cgroup/a/b/memory.max": "lots\n", "sys/fs/cgroup/a/memory.max": "-5\n"}), 0, 0},
		{"v2 garbage beside a limit", with(v2, map[string]string{"sys/fs/cgroup/a/b/memory.max": "400\n", "sys/fs/cgroup/a/b/memory.current": "??", "sys/fs/cgroup/a/b/memory.stat": "inactive_file\n\x00"}), 400, 400},
		{"v2 the mount point has a space", map[string]string{"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "24 18 0:22 / /mnt/c\\040g rw - cgroup2 x rw\n", "mnt/c g/memory.max": "7\n"}, 7, 7},
		{"v1 without limits", v1, 0, 0},
		{"v1 own limit", with(v1, map[string]string{
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "1000\n", "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": "800\n", "sys/fs/cgroup/memory/a/b/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
		}), 1000, 500},
		{"v1 limit above", with(v1, map[string]string{"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "900\n", "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "800\n"}), 900, 100},
		{"v1 in a container: the mount shows a part", map[string]string{"proc/self/cgroup": "4:memory:/docker/123/sub\n",
			"proc/self/mountinfo":                              "36 31 0:33 /docker/123 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/sub/memory.limit_in_bytes":   "900\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":       "500\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes":       "100\n",
			"sys/fs/cgroup/memory/sub/memory.usage_in_bytes":   "50\n",
			"sys/fs/cgroup/memory/other/memory.limit_in_bytes": "1\n"}, 500, 400},
		{"v1 in a container: the path is the host's", map[string]string{"proc/self/cgroup": "4:memory:/host/only\n",
			"proc/self/mountinfo":                        "36 31 0:33 /docker/123 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "500\n"}, 500, 500},
		{"hybrid: the unified hierarchy does not control memory", with(v1, map[string]string{"sys/fs/cgroup/unified/memory.max": "1\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "900\n"}), 900, 900},
		{"not mounted", map[string]string{"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "1 2 0:3 / / rw - ext4 /dev/x rw\nrubbish\n - \n"}, 0, 0},
		{"no mountinfo", map[string]string{"proc/self/cgroup": "rubbish\n0::/\n"}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := tree(tc.files)
			got := readCgroup(root, findCgroup(root))
			if got.limit != tc.limit || got.available != tc.available {
				t.Errorf("limit %d, available %d; want %d, %d", got.limit, got.available, tc.limit, tc.available)
			}
		})
	}
}

func TestLimited(t *testing.T) {
	host := registry.Host{RAMTotal: 1000, RAMAvailable: 600}
	for _, tc := range []struct {
		name string
		c    cgroupMemory
		want registry.Host
	}{
		{"none", cgroupMemory{}, host},
		{"lower", cgroupMemory{limit: 500, available: 400}, registry.Host{RAMTotal: 500, RAMAvailable: 400, CgroupLimit: 500}},
		{"the host has less left", cgroupMemory{limit: 900, available: 700}, registry.Host{RAMTotal: 900, RAMAvailable: 600, CgroupLimit: 900}},
		{"above what the machine has", cgroupMemory{limit: 5000, available: 4000}, host},
		{"above what the machine has, and full", cgroupMemory{limit: 5000, available: 10}, registry.Host{RAMTotal: 1000, RAMAvailable: 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _ := json.Marshal(limited(host, tc.c))
			want, _ := json.Marshal(tc.want)
			if !bytes.Equal(got, want) {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestThisHost(t *testing.T) {
	dir := t.TempDir()
	h := NewHost([]string{dir, filepath.Join(dir, "not", "yet")})
	got, err := h.Read()
	if err != nil {
		t.Fatal(err)
	}
	if got.RAMTotal < 128<<20 || got.RAMTotal > 1<<50 || got.RAMAvailable <= 0 || got.RAMAvailable > got.RAMTotal {
		t.Errorf("RAM %d of %d", got.RAMAvailable, got.RAMTotal)
	}
	if got.CPUs != runtime.GOMAXPROCS(0) || got.CPUPercent < 0 || got.CPUPercent > 100 {
		t.Errorf("%d CPUs at %v %%", got.CPUs, got.CPUPercent)
	}
	if len(got.Disks) != 2 || got.Disks[0].Path != dir || got.Disks[0].Total <= 0 || got.Disks[0].Free > got.Disks[0].Total || got.Disks[1].Total != got.Disks[0].Total {
		t.Errorf("disks %+v", got.Disks)
	}
	var sys syscall.Statfs_t
	if err := syscall.Statfs(dir, &sys); err != nil {
		t.Fatal(err)
	}
	if want := int64(sys.Blocks) * sys.Bsize; got.Disks[0].Total != want {
		t.Errorf("the disk has %d bytes, statfs says %d", got.Disks[0].Total, want)
	}
}

// A process of ours, its child, and a child that outlived its parent but stayed in the group.
func TestProcessTreeOfThisMachine(t *testing.T) {
	cmd := exec.Command("sh", "-c", `sh -c 'sleep 600 & echo $!' ; sleep 600 & echo $!; wait`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	buf := make([]byte, 64)
	var printed string
	for strings.Count(printed, "\n") < 2 {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		printed += string(buf[:n])
	}
	pids, err := ProcessTree(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if len(pids) != 3 || pids[0] != cmd.Process.Pid {
		t.Errorf("the tree of %d is %v; the children are %s", cmd.Process.Pid, pids, strings.Fields(printed))
	}
	held, err := ProcessRSS(cmd.Process.Pid)
	if err != nil || held < 50<<10 || held > 100<<20 {
		t.Errorf("three small processes hold %d bytes (%v)", held, err)
	}
}

// Memory that this process takes shows in ProcessRSS.
func TestProcessRSSGrowsWithUse(t *testing.T) {
	before, err := ProcessRSS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	block, err := syscall.Mmap(-1, 0, 64<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Munmap(block) }()
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	after, err := ProcessRSS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if grown := after - before; grown < 60<<20 || grown > 80<<20 {
		t.Errorf("64 MiB were taken, %d bytes are counted", grown)
	}
}

func TestProcessFixtures(t *testing.T) {
	page := int64(os.Getpagesize())
	proc := tree(map[string]string{
		"10/stat": "10 (llama (x) server) S 1 10 10 0", "10/smaps_rollup": "55-66 ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nPss:             100 kB\nPss_Anon: 7 kB\n",
		"11/stat": "11 (child) S 10 10 10", "11/statm": "500 3 1 0 0 0 0\n", // smaps_rollup may not be read
		"12/stat": "12 (own group) S 11 12 12", "12/smaps_rollup": "", "12/statm": "9 2 1",
		"13/stat": "13 (orphan) S 1 10 10", "13/smaps_rollup": "Pss: 1 kB\n",
		"14/stat": "14 (stranger) S 1 14 14", "14/smaps_rollup": "Pss: 5000 kB\n",
		"15/stat": "rubbish", "self/stat": "10 (x) S 1 10", "uptime": "1",
	})
	pids, err := processTree(proc, 10)
	slices.Sort(pids)
	if err != nil || !slices.Equal(pids, []int{10, 11, 12, 13}) {
		t.Fatalf("%v, %v", pids, err)
	}
	got, err := processRSS(proc, 10)
	if want := 101<<10 + 5*page; err != nil || got != want {
		t.Errorf("%d bytes, want %d (%v)", got, want, err)
	}
	if _, err := processRSS(proc, 99); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("of a process that is not there: %v", err)
	}
	if _, err := processRSS(errFS{}, 1); registry.CodeOf(err) != registry.CodeInternal {
		t.Errorf("without /proc: %v", err)
	}
}

type errFS struct{}

func (errFS) Open(string) (fs.File, error) { return nil, fs.ErrPermission }

// BenchmarkSample is what a second of idling costs on this machine.
func BenchmarkSample(b *testing.B) {
	gpu, host := NewNVML(), NewHost([]string{b.TempDir()})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := gpu.Read(); err != nil {
			b.Fatal(err)
		}
		if _, err := host.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
