package vllm

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSharedMemoryOfPython: what Python's multiprocessing shares is noted, and removed after a kill. A semaphore is the hard one.
func TestSharedMemoryOfPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", `
import multiprocessing, os, sys
from multiprocessing import shared_memory
lock = multiprocessing.get_context("spawn").Lock()
memory = shared_memory.SharedMemory(create=True, size=4096)
os.kill(multiprocessing.resource_tracker._resource_tracker._pid, 9)  # as with a kill of the whole group: it would tidy up
print(lock._semlock.name.strip("/"), memory.name, flush=True)
sys.stdin.read()
`)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(said)
	for i, name := range want { // the semaphore's file has the prefix of all semaphores
		if !regexp.MustCompile("^psm_").MatchString(name) {
			want[i] = "sem." + name
		}
		t.Cleanup(func() { _ = os.Remove(filepath.Join(sharedDir, want[i])) })
	}
	slices.Sort(want)
	got := mapped(cmd.Process.Pid)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("mapped %v, want %v", got, want)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // killed
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, sharedList), []byte(strings.Join(got, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	sweep(dir)
	for _, name := range want {
		if _, err := os.Stat(filepath.Join(sharedDir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}
