package loadertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// place is where an engine listens, as its handle says it: by convention in the fields "port" and "socket" of the data.
// Both are empty for a service elsewhere.
type place struct {
	Port   int    `json:"port"`
	Socket string `json:"socket"`
}

func placeOf(t *testing.T, h registry.Handle) place {
	t.Helper()
	var p place
	if len(h.Data) > 0 {
		if err := json.Unmarshal(h.Data, &p); err != nil {
			t.Errorf("the handle's data is not JSON: %v", err)
		}
	}
	return p
}

// take makes a stranger listen at a place; nil if it is taken. The func ends that.
func (p place) take(t *testing.T) (end func()) {
	t.Helper()
	if p.Socket == "" {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", p.Port))
		if err != nil {
			return nil
		}
		return func() { _ = l.Close() }
	}
	// By its folder: the whole path may be too long for the kernel.
	dir, err := os.Open(filepath.Dir(p.Socket))
	if err != nil {
		t.Errorf("the folder of the socket: %v", err)
		return nil
	}
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(p.Socket)))
	if err != nil {
		_ = dir.Close()
		return nil
	}
	return func() { _, _ = l.Close(), dir.Close() }
}

// free fails if somebody has the place.
func (p place) free(t *testing.T) {
	t.Helper()
	if p.Socket != "" {
		if _, err := os.Lstat(p.Socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket %s is left (%v)", p.Socket, err)
		}
	}
	if p.Port == 0 {
		return
	}
	if end := p.take(t); end != nil {
		end()
	} else {
		t.Errorf("port %d is not free", p.Port)
	}
}

// checkPrivate holds an engine at a socket to that: nobody but this user reaches it, and none of its processes listens at any
// port.
func checkPrivate(t *testing.T, s *suite, a *attempt, in loaders.Instance) {
	t.Helper()
	path := placeOf(t, in.Handle()).Socket
	if path == "" {
		return
	}
	if got := baseOf(t, in).Socket(); got != path || filepath.Dir(path) != a.spec.Dir {
		t.Errorf("the socket is %s, the endpoint says %s and the instance's folder is %s", path, got, a.spec.Dir)
	}
	for name, want := range map[string]fs.FileMode{path: fs.ModeSocket | 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		fi, err := os.Lstat(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || fi.Mode() != want || int(st.Uid) != os.Geteuid() {
			t.Errorf("%s is %s of user %d, want %s of ours", name, fi.Mode(), st.Uid, want)
		}
	}
	pids, err := process.Members(s.tag, a.spec.InstanceID)
	if err != nil || len(pids) == 0 {
		t.Fatalf("the engine's processes are %v, %v", pids, err)
	}
	at := listening(t)
	for _, pid := range pids {
		open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range open {
			if name, err := os.Readlink(fd); err == nil && at[name] != "" {
				t.Errorf("process %d listens at the port %s", pid, at[name])
			}
		}
	}
}

// listening are the sockets of this machine that listen at a TCP port, as a link in /proc/PID/fd names them, with the port.
func listening(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode; 0A is LISTEN
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" {
				out["socket:["+f[9]+"]"] = f[1]
			}
		}
	}
	return out
}

// deadSocket leaves a socket behind that nobody listens at, as a kill does.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: name}), syscall.Close(fd), dir.Close()); err != nil {
		t.Fatal(err)
	}
}
