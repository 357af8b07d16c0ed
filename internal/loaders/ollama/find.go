package ollama

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// defaultPort is where an Ollama listens that was not told otherwise.
const defaultPort = "11434"

// program is an Ollama as it was found: a running server, or a program to run.
type program struct {
	host     *url.URL // of a running server; nil for a program
	away     bool     // it runs on another machine
	path     string
	version  string
	devices  []registry.Device
	quantize bool // it has a llama-quantize, without which it converts nothing
}

type programKey struct {
	path string
	mod  time.Time
	size int64
}

// programs remembers what a program answered, until it changes.
type programs struct {
	mu  sync.Mutex
	key programKey
	p   program
	ok  bool
}

// Check finds Ollama: the server that is named, else the program that is named, on the PATH or installed, else a server
// that runs at its usual address. What a program answered is kept until its file changes.
func (l *Loader) Check(ctx context.Context) (loaders.Version, error) {
	p, err := l.find(ctx)
	if err != nil {
		return loaders.Version{}, err
	}
	path := p.path
	if p.host != nil {
		path = p.host.Redacted()
	}
	return loaders.Version{Version: p.version, Path: path, Devices: slices.Clone(p.devices), Elsewhere: p.away}, nil
}

func (l *Loader) find(ctx context.Context) (program, error) {
	missing := func(format string, args ...any) error {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Check", Msg: fmt.Sprintf(format, args...) + ". " + l.Info().HowToGet}
	}
	if l.o.Host != "" {
		host, err := ParseHost(l.o.Host)
		if err != nil {
			return program{}, err
		}
		p, err := ask(ctx, host)
		p.away = err == nil && !l.here(ctx, host.Hostname())
		if err != nil {
			return program{}, &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Check", Err: err, Msg: fmt.Sprintf(
				"The Ollama at %s does not answer: %v. Start it, correct OLLAMA_HOST, or leave OLLAMA_HOST out to have one run for each model", host.Redacted(), cause(err))}
		}
		return p, nil
	}
	if l.o.Path != "" {
		if !executable(l.o.Path) {
			return program{}, missing("There is no program at %s, where ollama is said to be. Correct the flag, or leave it out to have it found", l.o.Path)
		}
		return l.inspect(ctx, l.o.Path)
	}
	if p, err := exec.LookPath("ollama"); err == nil {
		if abs, err := filepath.Abs(p); err == nil {
			return l.inspect(ctx, abs)
		}
	}
	if p := l.installed(); p != "" {
		return l.inspect(ctx, p)
	}
	quick, cancel := context.WithTimeout(ctx, time.Second) // a machine without one refuses at once
	defer cancel()
	if p, err := ask(quick, &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", defaultPort)}); err == nil {
		return p, nil
	}
	if ctx.Err() != nil {
		return program{}, ctx.Err()
	}
	return program{}, missing("Ollama is not on this machine")
}

// installed returns the newest program that Install made, "" if there is none that has its llama-server.
func (l *Loader) installed() string {
	var found []string
	for _, dir := range l.o.SearchDirs {
		list, err := filepath.Glob(filepath.Join(quoteGlob(dir), Name, "*", "bin", "ollama"))
		if err != nil {
			continue
		}
		for _, p := range list {
			if executable(p) && executable(beside(p, "llama-server")) {
				found = append(found, p)
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.MaxFunc(found, func(a, b string) int {
		return compareVersions(filepath.Base(filepath.Dir(filepath.Dir(a))), filepath.Base(filepath.Dir(filepath.Dir(b))))
	})
}

// beside returns where Ollama looks for a program of llama.cpp's.
func beside(path, tool string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return filepath.Join(filepath.Dir(path), "..", "lib", "ollama", tool)
}

// inspect asks a program what it is, once for each state of its file.
func (l *Loader) inspect(ctx context.Context, path string) (program, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return program{}, &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Check", Msg: fmt.Sprintf("Cannot look at %s: %v", path, err), Err: err}
	}
	key := programKey{path, fi.ModTime(), fi.Size()}
	l.known.mu.Lock()
	defer l.known.mu.Unlock()
	if !l.known.ok || l.known.key != key {
		p, err := inspect(ctx, path)
		if err != nil {
			return program{}, err
		}
		l.known.key, l.known.p, l.known.ok = key, p, true
	}
	p := l.known.p
	p.quantize = executable(beside(path, "llama-quantize")) // may be put there at any time
	return p, nil
}

var (
	versionLine = regexp.MustCompile(`version is v?([0-9][^\s]*)`)
	cudaDevice  = regexp.MustCompile(`(?m)^\s*CUDA\d+:`)
)

func inspect(ctx context.Context, path string) (program, error) {
	out, err := run(ctx, path, "--version")
	if ctx.Err() != nil {
		return program{}, ctx.Err()
	}
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		if err == nil {
			err = fmt.Errorf("its answer was %q", clip(strings.TrimSpace(out)))
		}
		return program{}, &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Check", Err: err, Msg: fmt.Sprintf(
			"%s does not tell its version, so it cannot be used: %v. Install it again: `llmm engine install ollama`", path, err)}
	}
	p := program{path: path, version: m[1], devices: []registry.Device{registry.DeviceCPU}}
	if cuda(ctx, path) {
		p.devices = append(p.devices, registry.DeviceCUDA)
	}
	return p, nil
}

// cuda reports whether this Ollama can use NVIDIA's devices: it carries the libraries, or its llama-server sees one.
func cuda(ctx context.Context, path string) bool {
	if found, err := filepath.Glob(filepath.Join(quoteGlob(beside(path, "")), "cuda_*")); err == nil && len(found) > 0 {
		return true
	}
	out, err := run(ctx, beside(path, "llama-server"), "--list-devices")
	return err == nil && cudaDevice.MatchString(out)
}

func run(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	// Nobody listens there: a program that is asked for its version asks a server for the server's.
	cmd.Env = append(process.BaseEnv(), "OLLAMA_HOST=127.0.0.1:1")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ask asks a running server for its version. Which devices it uses is its own affair; it is told not to use a GPU by
// num_gpu 0.
func ask(ctx context.Context, host *url.URL) (program, error) {
	v, err := clientOf(host.String()).Version(ctx)
	if err != nil {
		return program{}, err
	}
	return program{host: host, version: v, devices: []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}, quantize: true}, nil
}

// ParseHost reads the address of a server as Ollama reads OLLAMA_HOST: host, host:port, :port or a URL. An address that
// means every interface is asked on 127.0.0.1. CodeInvalid when it is none.
func ParseHost(s string) (*url.URL, error) {
	text := strings.Trim(strings.TrimSpace(s), `"'`)
	scheme, rest, ok := strings.Cut(text, "://")
	port := defaultPort
	switch {
	case !ok:
		scheme, rest = "http", text
	case scheme == "http":
		port = "80"
	case scheme == "https":
		port = "443"
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || scheme != "http" && scheme != "https" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.ContainsAny(rest, " \t") {
		return nil, registry.Errorf(registry.CodeInvalid, "OLLAMA_HOST is no address of an Ollama; give host:port, or a URL such as http://127.0.0.1:11434")
	}
	name := u.Hostname()
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, registry.Errorf(registry.CodeInvalid, "OLLAMA_HOST has %s as its port; give a number from 1 to 65535", clip(p))
		}
		port = p
	}
	if ip := net.ParseIP(name); name == "" || ip != nil && ip.IsUnspecified() {
		name = "127.0.0.1"
	}
	return &url.URL{Scheme: scheme, Host: net.JoinHostPort(name, port), Path: strings.TrimRight(u.Path, "/")}, nil
}

// cause is an error without the address that it was about.
func cause(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

func executable(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

func quoteGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}

// compareVersions orders 0.33.0 after 0.9.0 and numbers after words.
func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var x, y int64 = -1, -1
		if i < len(as) {
			if n, err := strconv.ParseInt(as[i], 10, 64); err == nil {
				x = n
			}
		}
		if i < len(bs) {
			if n, err := strconv.ParseInt(bs[i], 10, 64); err == nil {
				y = n
			}
		}
		if x != y {
			return int(max(-1, min(1, x-y)))
		}
	}
	return strings.Compare(a, b)
}

// clip keeps a text of others from flooding a message.
func clip(s string) string {
	const longest = 300
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}
