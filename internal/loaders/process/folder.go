package process

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// StartedFrom reports whether a process was started from a program below folder. One that has ended was not.
func StartedFrom(pid int, folder string) bool {
	within := func(p string) bool { return strings.HasPrefix(p, filepath.Clean(folder)+string(filepath.Separator)) }
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && within(exe) {
		return true
	}
	// The program of a Python environment is a link to the machine's: what it was called by tells.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false // it has ended
	}
	for word := range bytes.SplitSeq(line, []byte{0}) {
		if within(string(word)) {
			return true
		}
	}
	return false
}

// EnginesFrom lists the engines of this user, of whatever installation, that were started from a program below folder, by the
// numbers of their processes. Whoever only asks a program for its version is not among them: that carries no tag.
func EnginesFrom(folder string) []int {
	var out []int
	for _, st := range allStats() {
		if !st.dead() && tagOf(st) != "" && StartedFrom(st.pid, folder) {
			out = append(out, st.pid)
		}
	}
	return out
}
