package httpengine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// place is where one engine listens: a port of 127.0.0.1, or a socket in the instance's folder.
type place struct {
	base netaddr.Base
	port *process.Port // nil for a socket
}

// choosePlace finds a place that nobody has. A stranger can still take it before the engine does.
func choosePlace(cfg Config, dir string) (place, error) {
	if cfg.CommandOnSocket == nil {
		port, err := process.ReservePort()
		if err != nil {
			return place{}, err
		}
		return portPlace(port), nil
	}
	path, err := chooseSocket(dir)
	if err != nil {
		return place{}, &registry.Error{Code: registry.CodeInternal, Op: "loaders." + cfg.Loader, Err: err,
			Msg: fmt.Sprintf("There is no safe place for the socket of %s: %v. Look at the data folder and who may write to it, and load again", cfg.Title, err)}
	}
	return socketPlace(path)
}

func portPlace(port *process.Port) place { return place{netaddr.PortBase(port.Number), port} }

func socketPlace(path string) (place, error) {
	base, err := netaddr.SocketBase(path)
	return place{base: base}, err
}

// number is that of the port; 0 for a socket.
func (p place) number() int {
	if p.port == nil {
		return 0
	}
	return p.port.Number
}

// release gives the place back. Only when nothing of the engine runs any more: a socket that somebody still listens at is a
// stranger's, who took the path before the engine did.
func (p place) release(log *slog.Logger) {
	if p.port != nil {
		p.port.Release()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := netaddr.RemoveSocket(ctx, p.base.Socket()); err != nil && log != nil {
		log.Warn("The socket of an engine that has ended could not be removed", "path", p.base.Socket(), "err", err)
	}
}

// asking is the transport of what we ask ourselves: no proxy of the environment, and no idle connection that would keep a
// goroutine.
func (p place) asking() http.RoundTripper {
	return p.base.Transport(&http.Transport{DisableKeepAlives: true})
}

// carrying is the transport of users' requests to a socket, with a pool of connections that is this engine's alone; nil for
// a port, which the gateway's own reaches.
func (p place) carrying() http.RoundTripper {
	if p.port != nil {
		return nil
	}
	return p.base.Transport(&http.Transport{MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Minute, DisableCompression: true})
}

// chooseSocket returns a path in dir, the instance's folder, at which there is nothing, after it has made sure that nobody
// but this user can enter the folder.
func chooseSocket(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := makePrivate(dir); err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		path := filepath.Join(dir, fmt.Sprintf("engine-%d.sock", n))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", err
		}
	}
}

// makePrivate closes a folder of ours to all others. It refuses a link, and a folder of somebody else.
func makePrivate(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user", dir)
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return f.Chmod(0o700)
}
