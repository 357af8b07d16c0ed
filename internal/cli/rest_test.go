package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestRestComes plays a start, rest, a burst of requests and rest again.
func TestRestComes(t *testing.T) {
	var r rest
	var allocated uint64
	looks := func(n int, each uint64) (came int) {
		for range n {
			allocated += each
			if r.comes(allocated) {
				came++
			}
		}
		return came
	}
	for _, step := range []struct {
		what string
		n    int
		each uint64
		want int
	}{
		{"the start", 4, 20 << 20, 0},
		{"not yet rest", restAfter - 1, 10 << 10, 0},
		{"rest", 1, 10 << 10, 1},
		{"more rest", 100, 10 << 10, 0},
		{"one request now and then", 20, restBelow + 1, 0},
		{"rest after that, too little for a collection", 3, 0, 0},
		{"a burst", 3, 5 << 20, 0},
		{"rest after the burst", 50, 10 << 10, 1},
		{"days of rest: what idling leaves is given back, too", 1000, 10 << 10, 2},
	} {
		if got := looks(step.n, step.each); got != step.want {
			t.Errorf("%s: came to rest %d times, want %d", step.what, got, step.want)
		}
	}
}

func TestFileMappings(t *testing.T) {
	const smaps = `00400000-00417000 r--p 00000000 fe:00 262434                             /tmp/a name with spaces
Size:                 92 kB
Rss:                  92 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
00417000-01391000 r-xp 00017000 fe:00 262434                             /usr/bin/llmm
Rss:               15848 kB
Anonymous:             0 kB
021d9000-021dc000 r--p 01dd9000 fe:00 262434                             /usr/bin/llmm
Rss:                  12 kB
Anonymous:             4 kB
021dc000-022a0000 rw-p 01ddc000 fe:00 262434                             /usr/bin/llmm
Anonymous:             0 kB
022a0000-042e9000 rw-p 00000000 00:00 0
Anonymous:             0 kB
119e4c400000-119e4f000000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f88ac000000-7f88ac100000 r--s 00000000 fe:00 99                         /tmp/registry.db-shm
Anonymous:             0 kB
7f88ac200000-7f88ac300000 ---p 00000000 fe:00 99                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f88f50ce000-7f88f5224000 r-xp 00028000 fe:00 99                         /usr/lib/libc.so.6
Rss:                1032 kB
Anonymous:             0 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`
	got := fileMappings(strings.NewReader(smaps))
	want := []mapping{{0x400000, 0x417000}, {0x417000, 0x1391000}, {0x7f88f50ce000, 0x7f88f5224000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); diff != "" {
		t.Error(diff)
	}
	if got := fileMappings(strings.NewReader("rubbish\n\nx: y\nAnonymous: 0 kB\n")); got != nil {
		t.Errorf("mappings in rubbish: %v", got)
	}
}

// TestUnmapUnused reads a file through memory, gives its pages back, and finds the file unchanged in the same place.
func TestUnmapUnused(t *testing.T) {
	want := []byte(strings.Repeat("llmm", 1<<18))
	path := filepath.Join(t.TempDir(), "read")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mapped); err != nil {
			t.Error(err)
		}
	}()
	if !slices.Equal(mapped, want) {
		t.Fatal("the file was not mapped")
	}
	if got := residentOf(t, path); got != "1024 kB" {
		t.Fatalf("%s of the file are mapped after it was read, want 1024 kB", got)
	}
	unmapUnused()
	if got := residentOf(t, path); got != "0 kB" {
		t.Errorf("%s of the file are still mapped", got)
	}
	if !slices.Equal(mapped, want) {
		t.Error("the file reads differently now")
	}
}

// residentOf is how much of a mapped file counts as this process's memory.
func residentOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), path)
	_, rest, _ = strings.Cut(rest, "\nRss:")
	size, _, _ := strings.Cut(rest, "\n")
	if !found {
		t.Fatalf("%s is not mapped", path)
	}
	return strings.TrimSpace(size)
}
