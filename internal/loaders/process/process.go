package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Spec says what to start.
type Spec struct {
	Argv    []string // Argv[0] is the program's path; no shell is involved
	Env     []string // all of the environment; BaseEnv is a good start
	Dir     string   // working folder
	LogPath string   // stdout and stderr, appended; made with 0600
	Tag     string   // INSTALLATION/INSTANCE
	// Goodbye, when not empty, is a line that the engine wants on its stdin to end. The engine then gets a stdin
	// that never reaches its end, also when this program dies.
	Goodbye string
	// StopSignal asks the engine to end; SIGTERM when 0.
	StopSignal syscall.Signal
	MaxLog     int64 // bytes; DefaultMaxLog when 0
	Logger     *slog.Logger
}

// Exit says how a process ended. Known is false for one that was re-attached: only its parent is told.
type Exit struct {
	Known  bool
	Code   int
	Signal syscall.Signal // 0 when it was not a signal
}

// Process is a supervised engine.
type Process struct {
	id      Identity
	logPath string
	logFrom int64
	goodbye string
	signal  syscall.Signal
	log     *slog.Logger
	group   group
	fd      *pidfd
	cmd     *exec.Cmd // nil when re-attached
	done    chan struct{}
	ask     sync.Once // engines take a second SIGTERM for impatience

	// Written before done is closed, read after.
	exit Exit
	left []stat
}

// BaseEnv returns what an engine needs of our own environment and nothing else: tokens, passwords and settings of ours
// or of another engine stay here.
func BaseEnv() []string {
	names := map[string]bool{"PATH": true, "HOME": true, "USER": true, "LOGNAME": true, "LANG": true, "TZ": true, "TMPDIR": true,
		"LD_LIBRARY_PATH": true, "CUDA_HOME": true, "CUDA_PATH": true, "CUDA_CACHE_PATH": true, "CUDA_DEVICE_ORDER": true}
	var out []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if names[name] || strings.HasPrefix(name, "LC_") || strings.HasPrefix(name, "NVIDIA_") {
			out = append(out, kv)
		}
	}
	return out
}

// Start starts the engine and supervises it until it ends. Errors are CodeUnavailable (the program cannot be run) or
// CodeInternal (the log cannot be written).
func Start(s Spec) (*Process, error) {
	logf, err := os.OpenFile(s.LogPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, &registry.Error{Code: registry.CodeInternal, Op: "process.Start", Msg: fmt.Sprintf("Cannot open the engine's log: %v", err), Err: err}
	}
	defer func() { _ = logf.Close() }()
	var from int64
	if fi, err := logf.Stat(); err == nil {
		from = fi.Size()
	}
	cmd := exec.Command(s.Argv[0], s.Argv[1:]...) //nolint:noctx // the engine outlives every context; Stop ends it
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, logf, logf
	cmd.Env = append(append([]string{}, s.Env...), EnvTag+"="+s.Tag)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.Goodbye != "" {
		in, err := endlessStdin()
		if err != nil {
			return nil, &registry.Error{Code: registry.CodeInternal, Op: "process.Start", Msg: fmt.Sprintf("Cannot make the engine's stdin: %v", err), Err: err}
		}
		defer func() { _ = in.Close() }()
		cmd.Stdin = in
	}
	if err := cmd.Start(); err != nil {
		return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "process.Start", Msg: fmt.Sprintf("Cannot start %s: %v. Check that it is there and may be executed", s.Argv[0], err), Err: err}
	}
	// Our own child cannot vanish before it is waited for, so its identity can always be read.
	id, err := IdentityOf(cmd.Process.Pid)
	if err == nil {
		var fd *pidfd
		if fd, err = openPidfd(id); err == nil {
			p := &Process{id: id, logPath: s.LogPath, logFrom: from, goodbye: s.Goodbye, signal: cmp.Or(s.StopSignal, syscall.SIGTERM), log: logger(s.Logger), fd: fd, cmd: cmd, done: make(chan struct{}),
				group: group{leader: id, tag: s.Tag, pinned: true}}
			p.supervise(s.MaxLog)
			return p, nil
		}
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	_ = cmd.Wait()
	return nil, &registry.Error{Code: registry.CodeInternal, Op: "process.Start", Msg: fmt.Sprintf("Cannot watch the process of %s: %v", s.Argv[0], err), Err: err}
}

// Attach supervises an engine that an earlier run of this program started. s gives LogPath, Tag, Goodbye, MaxLog and
// Logger as they were then; logFrom is that process's LogOffset. ErrGone if it has ended or is another process now.
func Attach(id Identity, s Spec, logFrom int64) (*Process, error) {
	if !id.Alive() {
		return nil, ErrGone
	}
	fd, err := openPidfd(id)
	if err != nil {
		return nil, err
	}
	p := &Process{id: id, logPath: s.LogPath, logFrom: logFrom, goodbye: s.Goodbye, signal: cmp.Or(s.StopSignal, syscall.SIGTERM), log: logger(s.Logger), fd: fd, done: make(chan struct{}),
		group: group{leader: id, tag: s.Tag}}
	p.supervise(s.MaxLog)
	return p, nil
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// endlessStdin returns a pipe that is open for reading and writing at once: whoever holds it as stdin keeps the
// writing end open itself and so never reads an end of file.
func endlessStdin() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close(); _ = w.Close() }()
	// Not os.OpenFile: it would make the pipe non-blocking, which the engine would take for an end of file.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "stdin"), nil
}

// supervise notices the end of the engine, ends what it left behind, and keeps its log from filling the disk.
func (p *Process) supervise(maxLog int64) {
	stopGuard := make(chan struct{})
	guardDone := make(chan struct{})
	go func() {
		defer close(guardDone)
		guardLog(p.logPath, maxLog, stopGuard, p.log)
	}()
	go func() {
		p.fd.wait()
		// The engine is dead; what it started cannot serve anybody and must not keep memory.
		ctx, cancel := context.WithTimeout(context.Background(), killPatience)
		p.left = p.group.kill(ctx)
		cancel()
		if p.cmd != nil {
			p.exit = exitOf(p.cmd.Wait())
		}
		p.fd.close()
		close(stopGuard)
		<-guardDone
		p.log.Debug("engine process ended", "pid", p.id.PID, "code", p.exit.Code, "signal", int(p.exit.Signal), "left", len(p.left))
		close(p.done)
	}()
}

func exitOf(err error) Exit {
	var ee *exec.ExitError
	if !errors.As(err, &ee) {
		return Exit{Known: err == nil}
	}
	if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return Exit{Known: true, Code: -1, Signal: ws.Signal()}
	}
	return Exit{Known: true, Code: ee.ExitCode()}
}

// Identity returns who the process is, to store and to attach to later.
func (p *Process) Identity() Identity { return p.id }

// LogPath returns the file with the engine's output, and LogOffset where this process's part of it begins, in bytes.
func (p *Process) LogPath() string { return p.logPath }

// LogOffset is where this process's output begins in the log.
func (p *Process) LogOffset() int64 { return p.logFrom }

// Done is closed when the engine has ended and nothing of its group is left.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how it ended. Only meaningful after Done.
func (p *Process) Exit() Exit { return p.exit }

// Tail returns the last n lines of this process's output.
func (p *Process) Tail(n int) []string { return Tail(p.logPath, p.logFrom, n) }

// Stop asks the engine and all of its group to end (SIGTERM, or the spec's StopSignal), kills them when ctx ends, and returns when none is
// left. It may be called at any time and by several at once. The error, CodeInternal, names what could not be killed.
func (p *Process) Stop(ctx context.Context) error {
	select {
	case <-p.done:
		return p.leftErr()
	default:
	}
	if ctx.Err() == nil {
		p.ask.Do(func() {
			p.group.signal(p.signal, false)
			p.sayGoodbye()
		})
		select {
		case <-p.done:
			return p.leftErr()
		case <-ctx.Done():
		}
	}
	return p.Kill()
}

// Kill ends the whole group at once and returns when it is gone.
func (p *Process) Kill() error {
	_ = p.fd.signal(syscall.SIGKILL)
	t := time.NewTimer(killPatience + time.Second)
	defer t.Stop()
	select {
	case <-p.done:
		return p.leftErr()
	case <-t.C:
		return leftError("process.Kill", p.group.tag, p.group.members(true))
	}
}

func (p *Process) leftErr() error {
	if len(p.left) == 0 {
		return nil
	}
	return leftError("process.Stop", p.group.tag, p.left)
}

// sayGoodbye writes the line for which the engine waits on its stdin. The stdin is reached through /proc so that it
// works for a re-attached engine too; an open folder of /proc never shows another process that got the number.
func (p *Process) sayGoodbye() {
	if p.goodbye == "" {
		return
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d", p.id.PID))
	if err != nil {
		return
	}
	defer func() { _ = root.Close() }()
	b, err := root.ReadFile("stat")
	if err != nil {
		return
	}
	if st, err := parseStat(p.id.PID, b); err != nil || st.start != p.id.StartTicks {
		return
	}
	dir, err := root.Open(".")
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	// os.Root refuses the magic link fd/0; openat through the verified folder does not.
	fd, err := unix.Openat(int(dir.Fd()), "fd/0", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = unix.Write(fd, []byte(p.goodbye+"\n"))
	_ = unix.Close(fd)
}
