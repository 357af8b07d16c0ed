// Package process starts, watches and ends the engines that loaders drive. An engine is a child process in its own
// process group whose output goes to a file, so that it outlives this program, and which can be found and ended again
// by a later run of it. Linux only: it reads /proc and uses pidfds.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Identity tells one process from every other that ever had or will have its number.
type Identity struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // field 22 of /proc/PID/stat: clock ticks since boot
	BootID     string `json:"boot_id"`
}

// ErrGone is returned for an identity whose process has ended, or whose number belongs to another process now.
var ErrGone = errors.New("the process has ended")

// BootID returns the kernel's id of this boot; start ticks mean nothing without it.
var BootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// IdentityOf returns the identity of the running process with that number; ErrGone if there is none.
func IdentityOf(pid int) (Identity, error) {
	st, err := readStat(pid)
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTicks: st.start, BootID: BootID()}, nil
}

// Alive reports whether this very process runs. A zombie does not.
func (id Identity) Alive() bool {
	if id.PID <= 0 || id.BootID != BootID() {
		return false
	}
	st, err := readStat(id.PID)
	return err == nil && st.start == id.StartTicks && !st.dead()
}

// stat is what we use of /proc/PID/stat.
type stat struct {
	pid   int
	state byte
	group int
	start uint64
	// threads counts those that have not ended. A process whose first thread has ended is shown as a zombie while others still
	// run, or are being killed; so long it keeps its memory, its files and its sockets.
	threads int
}

func (s stat) dead() bool { return (s.state == 'Z' || s.state == 'X') && s.threads <= 1 }

func readStat(pid int) (stat, error) {
	if pid <= 0 {
		return stat{}, ErrGone
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, ErrGone // ENOENT or ESRCH: both mean that it is not there
	}
	return parseStat(pid, b)
}

// parseStat reads a line of /proc/PID/stat. The command's name may hold spaces and parentheses, so fields are
// counted from the last one.
func parseStat(pid int, b []byte) (stat, error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return stat{}, ErrGone
	}
	f := strings.Fields(string(b[end+1:])) // f[0] is field 3, the state
	if len(f) < 20 || f[0] == "" {
		return stat{}, ErrGone
	}
	group, err := strconv.Atoi(f[2])
	if err != nil {
		return stat{}, ErrGone
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, ErrGone
	}
	threads, err := strconv.Atoi(f[17])
	if err != nil {
		return stat{}, ErrGone
	}
	return stat{pid: pid, state: f[0][0], group: group, start: start, threads: threads}, nil
}

// allStats reads the stat of every process.
func allStats() []stat {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var out []stat
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err == nil {
			out = append(out, st)
		}
	}
	return out
}
