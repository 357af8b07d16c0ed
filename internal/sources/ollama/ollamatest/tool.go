// Package ollamatest runs the programs that the source ollama is held against: a real OCI registry, CNCF Distribution, and
// Ollama itself. Neither is a module that this one depends on; scripts build them into the user's cache.
package ollamatest

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The versions that the scripts build.
const (
	ollamaVersion   = "0.33.0"
	registryVersion = "3.1.2"
)

// patience bounds the start and the end of a program; nothing waits for it otherwise.
const patience = time.Minute

// find returns a program from the environment or the cache, and fails the test with the command that makes it.
func find(t *testing.T, env, script string, inCache ...string) string {
	t.Helper()
	if path := os.Getenv(env); path != "" {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(append([]string{cache, "llmm"}, inCache...)...)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run %s (or make test, which does), or set %s", path, script, env)
	}
	return path
}

// program is a process that ends with its test.
type program struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  lines
}

// lines are what a program has written so far.
type lines struct {
	mu   sync.Mutex
	all  []string
	more chan struct{} // closed and made anew with each line
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, line)
	close(l.more)
	l.more = make(chan struct{})
}

func (l *lines) from(i int) ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[i:], l.more
}

// start runs a program in a process group of its own and returns what the pattern captures in its output.
func start(t *testing.T, path string, args, env []string, listening *regexp.Regexp) (*program, string) {
	t.Helper()
	p := &program{cmd: exec.Command(path, args...), done: make(chan struct{}), log: lines{more: make(chan struct{})}}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s does not start: %v", path, err)
	}
	w.Close()
	go func() {
		defer close(p.done)
		b := bufio.NewReader(r)
		for {
			line, err := b.ReadString('\n')
			if line != "" {
				p.log.add(strings.TrimRight(line, "\n"))
			}
			if err != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, r)
		r.Close()
		_ = p.cmd.Wait() // however it ended
	}()
	t.Cleanup(func() { p.stop(t) })

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := 0; ; {
		got, more := p.log.from(i)
		for _, line := range got {
			if m := listening.FindStringSubmatch(line); m != nil {
				return p, m[1]
			}
		}
		i += len(got)
		select {
		case <-more:
		case <-p.done:
			t.Fatalf("%s ended at once:\n%s", path, p.output())
		case <-ctx.Done():
			t.Fatalf("%s does not say that it listens:\n%s", path, p.output())
		}
	}
}

func (p *program) output() string {
	all, _ := p.log.from(0)
	return strings.Join(all, "\n")
}

// stop ends the program and what it started.
func (p *program) stop(t *testing.T) {
	t.Helper()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = syscall.Kill(-p.cmd.Process.Pid, sig) // it may have ended
		select {
		case <-p.done:
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // whatever it left behind
			return
		case <-time.After(10 * time.Second):
		}
	}
	t.Errorf("%s does not end", p.cmd.Path)
}
