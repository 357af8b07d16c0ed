package loadertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
)

// envGuard is set in the process that guards a test binary; its value is that one's number.
const envGuard = "LOADERTEST_GUARD_OF"

// guard starts a second process of this test binary, which waits for the end of this one and then ends the engines that it
// has left. Engines outlive whoever started them, for the sake of a manager that is started again; a test binary that
// panics, runs past its time or is killed never is. It knows them by their tag, which in tests is SOMETHINGtest-PID….
// The function that it returns lets the guard look and end.
func guard() (end func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	// Not our streams: go test waits for everybody who holds them. Not our group: Ctrl-C is for us.
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", envGuard, os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdin = stdin
	if err := errors.Join(cmd.Start(), stdin.Close()); err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	return func() error { return errors.Join(hold.Close(), cmd.Wait()) }, nil
}

// watch is what the guard does.
func watch(pid string) int {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // returns when the test binary is gone
		return 1
	}
	for _, prefix := range tagsOf(pid) {
		found, err := process.FindTagged(prefix)
		if err != nil {
			return 1
		}
		for _, p := range found {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			err := process.KillGroup(ctx, prefix, p)
			cancel()
			if err != nil {
				return 1
			}
		}
	}
	return 0
}

// tagsOf lists the installations among the running processes that are tests of the process with that number.
func tagsOf(pid string) []string {
	ours := regexp.MustCompile("^" + regexp.QuoteMeta(process.EnvTag) + "=([a-z]+test-" + regexp.QuoteMeta(pid) + "(?:-[^/]*)?)/")
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	var out []string
	for _, name := range environs {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended, or is not ours
		}
		for kv := range strings.SplitSeq(string(b), "\x00") {
			if m := ours.FindStringSubmatch(kv); m != nil {
				out = append(out, m[1])
			}
		}
	}
	return out
}
