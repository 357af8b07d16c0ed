package loadertest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Environment of a test binary that plays the manager, see Main.
const (
	envManager = "LOADERTEST_MANAGER_TAG"
	envDir     = "LOADERTEST_MANAGER_DIR"
	ready      = "loadertest ready: "
)

// Main runs the tests of a package under a guard, which ends their engines should they be ended themselves. In the process
// that survivesTheManager starts it plays a manager: it loads the harness's model, prints the handle and waits to be
// killed. Call it in TestMain. harness returns nil when there is no engine.
func Main(m *testing.M, harness func() *Harness) int {
	if pid := os.Getenv(envGuard); pid != "" {
		return watch(pid)
	}
	tag := os.Getenv(envManager)
	if tag == "" {
		end, err := guard()
		if err != nil {
			fmt.Println("the tests' guard cannot be started:", err)
			return 1
		}
		code := m.Run()
		if err := end(); err != nil {
			fmt.Println("the tests' guard failed:", err)
			return 1
		}
		return code
	}
	h := harness()
	if h == nil {
		fmt.Println("no engine")
		return 1
	}
	s := &suite{Harness: *h, tag: tag}
	spec := h.Spec()
	s.fill(&spec, os.Getenv(envDir))
	spec.InstanceID = "survivor"
	spec.Started = func(registry.Handle) {}
	in, err := h.New(tag).Load(context.Background(), spec, func(registry.Progress) {})
	if err != nil {
		fmt.Println(err, logOf(err))
		return 1
	}
	b, err := json.Marshal(in.Handle())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(ready + string(b))
	<-in.Done()
	return 1
}

// survivesTheManager kills a manager with SIGKILL and checks that its engine goes on, can be picked up, answers, and ends
// when asked.
func survivesTheManager(t *testing.T, s *suite) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), envManager+"="+s.tag, envDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var h registry.Handle
	lines := bufio.NewScanner(out)
	for h.PID == 0 && lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), ready); ok {
			if err := json.Unmarshal([]byte(text), &h); err != nil {
				t.Fatal(err)
			}
		} else {
			t.Log(lines.Text())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it says that it was killed
	if h.PID == 0 {
		t.Fatal("the manager loaded nothing")
	}

	found, err := process.FindTagged(s.tag)
	if err != nil || len(found) == 0 || found[0].InstanceID != "survivor" {
		t.Fatalf("the orphan is not found by its tag: %v, %v", found, err)
	}
	in, err := s.recoverer(t).Recover(ctx, h)
	if err != nil {
		t.Fatalf("Recover: %v", err)
	}
	// What would end an engine whose manager died ends it on reading its stdin, at once. Give it that chance.
	select {
	case <-in.Done():
		t.Fatalf("the engine did not survive: %v", in.Err())
	case <-time.After(200 * time.Millisecond):
	}
	checkAnswers(t, in, "test/model")
	graceful, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := in.Stop(graceful); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if graceful.Err() != nil {
		t.Error("the engine did not end when asked and had to be killed")
	}
	if in.Err() != nil {
		t.Errorf("Err after Stop: %v", in.Err())
	}
}
