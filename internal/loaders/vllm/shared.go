package vllm

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
)

// vLLM's processes speak through shared memory, hundreds of megabytes in files of /dev/shm whose names say nothing. A
// vLLM that is killed leaves them, and then nobody can tell whose they were. So it is noted while it lives.
const (
	sharedDir  = "/dev/shm"
	sharedList = "shared-memory" // in the instance's folder
	lookEvery  = 100 * time.Millisecond
)

// sharedName is what Python's multiprocessing and torch call such files. Nothing else is ever removed.
var sharedName = regexp.MustCompile(`^(psm_|sem\.mp-|torch_|vllm)[A-Za-z0-9_.-]+$`)

// sharedBook notes the shared memory of one instance.
type sharedBook struct {
	prefix, instance, dir string

	mu    sync.Mutex
	last  time.Time
	known []string
}

// look notes what the instance's processes have mapped, not more often than every lookEvery unless now is set. What is made
// after the last look before vLLM is killed stays.
func (b *sharedBook) look(now bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now && time.Since(b.last) < lookEvery {
		return
	}
	pids, err := process.Members(b.prefix, b.instance)
	if err != nil {
		return // the next look may do
	}
	before := len(b.known)
	for _, pid := range pids {
		for _, name := range mapped(pid) {
			if !slices.Contains(b.known, name) {
				b.known = append(b.known, name)
			}
		}
	}
	b.last = time.Now()
	if len(b.known) > before {
		_ = os.WriteFile(filepath.Join(b.dir, sharedList), []byte(strings.Join(b.known, "\n")), 0o600) // what cannot be noted is not removed
	}
}

// mapped lists the files of shared memory that a process has mapped, by their inodes: a semaphore is made under another name
// than the one that stays, and reads as deleted in the process's maps.
func mapped(pid int) []string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	inodes := map[uint64]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address, permissions, offset, device, inode, path
		if fields := strings.Fields(lines.Text()); len(fields) > 5 && strings.HasPrefix(fields[5], sharedDir+"/") {
			if inode, err := strconv.ParseUint(fields[4], 10, 64); err == nil {
				inodes[inode] = true
			}
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	files, err := os.ReadDir(sharedDir)
	if err != nil {
		return nil
	}
	var out []string
	for _, file := range files {
		if !sharedName.MatchString(file.Name()) {
			continue
		}
		if info, err := file.Info(); err == nil {
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && inodes[stat.Ino] {
				out = append(out, file.Name())
			}
		}
	}
	return out
}

// sweep removes the shared memory that was noted in an instance's folder. Nothing of the instance runs any more.
func sweep(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, sharedList))
	if err != nil {
		return
	}
	for name := range strings.SplitSeq(string(b), "\n") {
		if sharedName.MatchString(name) {
			_ = os.Remove(filepath.Join(sharedDir, name)) // an orderly end has removed it
		}
	}
}
