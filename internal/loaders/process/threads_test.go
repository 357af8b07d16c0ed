package process_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
)

// envHeadless makes this test binary a process whose first thread has ended.
const envHeadless = "PROCESSTEST_HEADLESS"

// goOnWithoutFirstThread ends the first thread of this process. The others go on for ever.
func goOnWithoutFirstThread() {
	for {
		go func() {
			runtime.LockOSThread()
			if syscall.Gettid() == os.Getpid() {
				_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
			}
			select {} // it keeps its thread, so that another one gets the first
		}()
		time.Sleep(time.Millisecond)
	}
}

// TestHeadless: a process whose first thread has ended looks like a zombie and holds all that it held. It runs, and is gone
// only when all of its threads are.
func TestHeadless(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(process.Spec{Argv: []string{self}, Env: append(process.BaseEnv(), envHeadless+"=1"), Tag: tag + "/headless", LogPath: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Identity().PID))
		if err == nil && strings.Contains(string(b), ") Z ") {
			break
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("its first thread does not end: %s, %v", b, err)
		}
	}
	if !p.Identity().Alive() {
		t.Error("it is taken for dead")
	}
	select {
	case <-p.Done():
		t.Error("it is said to have ended")
	default:
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.Identity().Alive() {
		t.Error("it lives on")
	}
}
