package process_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestMain(m *testing.M) {
	if os.Getenv(envHeadless) != "" {
		goOnWithoutFirstThread()
	}
	goleak.VerifyTestMain(m)
}

// tag is this run's alone: a run beside it would end its processes otherwise.
var tag = fmt.Sprintf("processtest-%d", os.Getpid())

// patience is how long a check waits for something that happens in milliseconds.
const patience = 30 * time.Second

// start runs a shell script as an engine. The shell is the engine here: Start itself involves none.
func start(t *testing.T, script string, change ...func(*process.Spec)) *process.Process {
	t.Helper()
	s := process.Spec{Argv: []string{"/bin/sh", "-c", script}, Env: process.BaseEnv(), Dir: t.TempDir(), Tag: tag + "/" + strings.ReplaceAll(t.Name(), "/", "-")}
	s.LogPath = filepath.Join(s.Dir, "log")
	for _, c := range change {
		c(&s)
	}
	p, err := process.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		if left := tagged(t); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	return p
}

func tagged(t *testing.T) []process.Tagged {
	t.Helper()
	all, err := process.FindTagged(tag)
	if err != nil {
		t.Fatal(err)
	}
	var own []process.Tagged
	for _, p := range all {
		if p.InstanceID == strings.ReplaceAll(t.Name(), "/", "-") {
			own = append(own, p)
		}
	}
	return own
}

// line waits for a line of the log that begins with prefix and returns the rest of it.
func line(t *testing.T, p *process.Process, prefix string) string {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); ; {
		for _, l := range process.Tail(p.LogPath(), p.LogOffset(), 100) {
			if rest, ok := strings.CutPrefix(l, prefix); ok {
				return rest
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no line %q in %q", prefix, process.Tail(p.LogPath(), p.LogOffset(), 100))
		}
	}
}

func ended(t *testing.T, p *process.Process) process.Exit {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatal("the end was not noticed")
	}
	return p.Exit()
}

func TestExit(t *testing.T) {
	if e := ended(t, start(t, "exit 7")); !e.Known || e.Code != 7 || e.Signal != 0 {
		t.Errorf("got %+v", e)
	}
	if e := ended(t, start(t, "kill -SEGV $$")); !e.Known || e.Signal != syscall.SIGSEGV {
		t.Errorf("got %+v", e)
	}
}

func TestProgramThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	_, err := process.Start(process.Spec{Argv: []string{filepath.Join(dir, "none")}, Dir: dir, LogPath: filepath.Join(dir, "log")})
	if registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	_, err = process.Start(process.Spec{Argv: []string{"/bin/true"}, Dir: dir, LogPath: filepath.Join(dir, "none", "log")})
	if registry.CodeOf(err) != registry.CodeInternal {
		t.Errorf("got %v", err)
	}
}

// TestNothingOfAGroupIsLeft has an engine whose children ignore SIGTERM, one of them in a session of its own.
func TestNothingOfAGroupIsLeft(t *testing.T) {
	const script = `trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & setsid sh -c "trap '' TERM; while :; do sleep 1; done" & echo up; %s`
	t.Run("after Stop", func(t *testing.T) {
		p := start(t, fmt.Sprintf(script, "while :; do sleep 1; done"))
		line(t, p, "up")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
		if left := tagged(t); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if e := p.Exit(); e.Signal != syscall.SIGKILL {
			t.Errorf("it ended with %+v", e)
		}
	})
	t.Run("after it ended by itself", func(t *testing.T) {
		p := start(t, fmt.Sprintf(script, "exit 3"))
		if e := ended(t, p); e.Code != 3 {
			t.Errorf("got %+v", e)
		}
		if left := tagged(t); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestStopAsksOnceAndFirst(t *testing.T) {
	p := start(t, `n=0; trap 'n=$((n+1)); echo "asked $n"; if [ $n = 1 ]; then exit 5; fi' TERM; echo up; while :; do sleep 0.01; done`)
	line(t, p, "up")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := p.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if e := p.Exit(); e.Code != 5 {
		t.Errorf("got %+v", e)
	}
	if n := strings.Count(strings.Join(p.Tail(10), "\n"), "asked"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestGoodbye has an engine that ignores SIGTERM and ends when it reads a line, first as a child and then re-attached. It
// would end at once if its stdin had an end.
func TestGoodbye(t *testing.T) {
	const script = `trap '' TERM; echo up; read l; echo "read $l"`
	bye := func(s *process.Spec) { s.Goodbye = "please go" }
	t.Run("child", func(t *testing.T) {
		p := start(t, script, bye)
		line(t, p, "up")
		if err := p.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		line(t, p, "read please go")
	})
	t.Run("re-attached", func(t *testing.T) {
		p := start(t, script, bye)
		line(t, p, "up")
		again, err := process.Attach(p.Identity(), process.Spec{LogPath: p.LogPath(), Tag: tag + "/" + strings.ReplaceAll(t.Name(), "/", "-"), Goodbye: "please go"}, p.LogOffset())
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		line(t, p, "read please go")
		if e := again.Exit(); e.Known {
			t.Errorf("only the parent knows the exit; got %+v", e)
		}
		ended(t, p)
	})
}

func TestAttachRefusesOthers(t *testing.T) {
	p := start(t, "echo up; exec sleep 1000")
	line(t, p, "up")
	for name, change := range map[string]func(*process.Identity){
		"a reused number": func(id *process.Identity) { id.StartTicks-- },
		"another boot":    func(id *process.Identity) { id.BootID = "x" },
		"no number":       func(id *process.Identity) { id.PID = 0 },
	} {
		id := p.Identity()
		change(&id)
		if _, err := process.Attach(id, process.Spec{}, 0); err == nil || id.Alive() {
			t.Errorf("%s: attached", name)
		}
	}
	if !p.Identity().Alive() {
		t.Error("the process itself does not count as alive")
	}
}

func TestFindAndKillTagged(t *testing.T) {
	p := start(t, "sleep 1000 & setsid sleep 1000 & echo up; exec sleep 1000")
	line(t, p, "up")
	var found []process.Tagged
	for deadline := time.Now().Add(patience); len(found) < 3 && time.Now().Before(deadline); {
		found = tagged(t) // setsid takes a moment to become sleep; its tag is there from the start
	}
	if len(found) != 3 {
		t.Fatalf("found %d processes, want 3: %v", len(found), found)
	}
	if others, err := process.FindTagged(tag[:len(tag)-1]); err != nil || len(others) > 0 {
		t.Errorf("another installation's prefix finds %v, %v", others, err)
	}
	if _, err := process.FindTagged(""); err == nil {
		t.Error("an empty prefix finds everybody's")
	}
	if err := process.KillGroup(t.Context(), tag, found[len(found)-1]); err != nil {
		t.Error(err)
	}
	ended(t, p)
	if left := tagged(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestKillGroupSparesStrangers gives KillGroup a tagged process in the group of one without a tag.
func TestKillGroupSparesStrangers(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", tagEnv(t)+" sleep 1000 & echo up; exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	var found []process.Tagged
	for deadline := time.Now().Add(patience); len(found) == 0 && time.Now().Before(deadline); {
		found = tagged(t)
	}
	if len(found) != 1 {
		t.Fatalf("found %v", found)
	}
	if err := process.KillGroup(t.Context(), tag, found[0]); err != nil {
		t.Error(err)
	}
	id, err := process.IdentityOf(cmd.Process.Pid)
	if err != nil || !id.Alive() {
		t.Error("the stranger was killed")
	}
}

func tagEnv(t *testing.T) string { return process.EnvTag + "=" + tag + "/" + t.Name() }

func TestEnvironmentIsOnlyWhatIsNeeded(t *testing.T) {
	t.Setenv("LLMM_ADMIN_PASSWORD", "secret1")
	t.Setenv("HF_TOKEN", "secret2")
	t.Setenv("LLAMA_ARG_THREADS", "99")
	p := start(t, "env")
	ended(t, p)
	got := strings.Join(p.Tail(200), "\n")
	if strings.Contains(got, "secret") || strings.Contains(got, "LLAMA_ARG") || !strings.Contains(got, "PATH=") || !strings.Contains(got, tagEnv(t)) {
		t.Errorf("the engine sees:\n%s", got)
	}
}

func TestLogIsCutAndFollowed(t *testing.T) {
	const limit = 64 << 10
	p := start(t, `i=0; while :; do i=$((i+1)); echo "line $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; done`, func(s *process.Spec) { s.MaxLog = limit })
	f := process.Follow(p.LogPath(), p.LogOffset())
	last, cuts := 0, 0
	for deadline := time.Now().Add(patience); cuts < 2 && time.Now().Before(deadline); {
		for _, l := range f.Lines() {
			n := 0
			if _, err := fmt.Sscanf(l, "line %d ", &n); err != nil {
				continue // the first after a cut may be half a line
			}
			if n <= last {
				t.Fatalf("line %d came after %d", n, last)
			}
			if n > last+1 && last > 0 {
				cuts++
			}
			last = n
		}
	}
	if cuts < 2 {
		t.Fatalf("the log was not cut; line %d", last)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{p.LogPath(), p.LogPath() + ".1"} {
		fi, err := os.Stat(name)
		if err != nil || fi.Size() > limit || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}

func TestTailIsCleanAndShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	text := "old line\n\x1b[31mred\x1b[0m\x00 text\nAuthorization: Bearer abcdefghijkl\napi_key=verysecret123\nloading from https://me:hunter22@host/x with hf_abcdefghijklmnop\nkey " +
		process.KeyPrefix + "0123456789abcdef0123\n" + strings.Repeat("y", 40<<10) + "\nmax_tokens: 12 tokens: 7\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := process.Tail(path, int64(len("old line\n")), 100)
	all := strings.Join(got, "\n")
	for _, secret := range []string{"abcdefghijkl", "verysecret123", "hunter22", "0123456789abcdef", "old line", "\x1b", "\x00"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is in the tail", secret)
		}
	}
	if len(got) != 7 || got[0] != "red text" || len(got[5]) > 20<<10 || got[6] != "max_tokens: 12 tokens: 7" {
		t.Errorf("got %d lines: %.300q", len(got), got)
	}
	if two := process.Tail(path, 0, 1); len(two) != 1 || two[0] != got[6] {
		t.Errorf("the last line is %.100q", two)
	}
	if process.Tail(path+"none", 0, 5) != nil {
		t.Error("a tail of nothing")
	}
}

func TestFollowerWaitsForWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	f := process.Follow(path, 0)
	for _, step := range []struct{ write, want string }{{"one\ntw", "one"}, {"", ""}, {"o\r\nthree\nfo", "two three"}, {"ur\n", "four"}} {
		if _, err := out.WriteString(step.write); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(f.Lines(), " "); got != step.want {
			t.Errorf("after %q: got %q, want %q", step.write, got, step.want)
		}
	}
}

func TestPortsAreNeverShared(t *testing.T) {
	const n = 200
	ports := make([]*process.Port, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			p, err := process.ReservePort()
			if err != nil {
				t.Error(err)
				return
			}
			ports[i] = p
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, p := range ports {
		if p == nil || seen[p.Number] {
			t.Fatalf("port given twice or not at all: %v", p)
		}
		seen[p.Number] = true
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", ports[0].Number))
	if err != nil {
		t.Errorf("a reserved port is not free: %v", err)
	} else {
		_ = l.Close()
	}
	for _, p := range ports {
		p.Release()
		p.Release()
	}
}
