package fake_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// envLeave makes TestGuard leave an engine behind and die.
const envLeave = "LOADERTEST_LEAVE"

// TestGuard kills a test binary that has loaded a model: its engine, which would serve another manager, ends all the same.
func TestGuard(t *testing.T) {
	if os.Getenv(envLeave) != "" {
		r := newRun(t, map[string]any{"ignore_sigterm": true, "grandchild": true})
		in, err := r.load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(in.Handle())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stdout.Write(append(b, '\n')); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestGuard$", "-test.v=false")
	cmd.Env = append(os.Environ(), envLeave+"=1")
	out, err := cmd.Output()
	if err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the test binary was not killed: %v\n%s", err, out)
	}
	var h registry.Handle
	line, _, _ := bytes.Cut(out, []byte("\n"))
	if err := json.Unmarshal(line, &h); err != nil || h.PID == 0 {
		t.Fatalf("no handle in %q: %v", out, err)
	}
	id := process.Identity{PID: h.PID, StartTicks: h.StartTicks, BootID: h.BootID}
	tick, late := time.NewTicker(10*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for id.Alive() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("process %d outlives its tests", h.PID)
		}
	}
}
