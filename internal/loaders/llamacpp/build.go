package llamacpp

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// build is one llama-server as it was found.
type build struct {
	path    string
	version string
	devices []registry.Device
	flags   map[string]bool // what --help lists; older builds know fewer
}

// has reports whether the build knows a flag.
func (b build) has(flag string) bool { return b.flags[flag] }

type buildKey struct {
	path string
	mod  time.Time
	size int64
}

// builds remembers what each file answered, until it changes.
type builds struct {
	mu  sync.Mutex
	key buildKey
	b   build
	ok  bool
}

// find returns the program: the one named, else the one on the PATH, else the newest that was installed.
func (l *Loader) find() (string, error) {
	if l.o.Path != "" {
		if !executable(l.o.Path) {
			return "", &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Check", Msg: fmt.Sprintf(
				"There is no program at %s, where llama-server is said to be. Correct the flag, or leave it out to have it found. %s", l.o.Path, l.Info().HowToGet)}
		}
		return l.o.Path, nil
	}
	if p, err := exec.LookPath("llama-server"); err == nil {
		if abs, err := filepath.Abs(p); err == nil {
			return abs, nil
		}
	}
	var found []string
	for _, dir := range l.o.SearchDirs {
		ps, err := filepath.Glob(filepath.Join(escapeGlob(dir), Name, "*", "llama-server"))
		if err == nil {
			found = append(found, slices.DeleteFunc(ps, func(p string) bool { return !executable(p) })...)
		}
	}
	if len(found) == 0 {
		return "", &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Check", Msg: "llama.cpp's server is not on this machine. " + l.Info().HowToGet}
	}
	return slices.MaxFunc(found, func(a, b string) int {
		return compareVersions(filepath.Base(filepath.Dir(a)), filepath.Base(filepath.Dir(b)))
	}), nil
}

func executable(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// compareVersions orders 9.10 after 9.9 and numbers after words.
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

// build finds the engine and asks it what it is, once for each state of the file.
func (l *Loader) build(ctx context.Context) (build, error) {
	path, err := l.find()
	if err != nil {
		return build{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return build{}, &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Check", Msg: fmt.Sprintf("Cannot look at %s: %v", path, err), Err: err}
	}
	key := buildKey{path, fi.ModTime(), fi.Size()}
	l.known.mu.Lock()
	defer l.known.mu.Unlock()
	if l.known.ok && l.known.key == key {
		return l.known.b, nil
	}
	b, err := inspect(ctx, path)
	if err != nil {
		return build{}, err
	}
	l.known.key, l.known.b, l.known.ok = key, b, true
	return b, nil
}

var (
	versionLine = regexp.MustCompile(`(?m)^version:\s*(.+)$`)
	helpFlag    = regexp.MustCompile(`(?:^|[\s,])(--?[a-z][a-z0-9-]*)`)
	cudaDevice  = regexp.MustCompile(`(?m)^\s*CUDA\d+:`)
)

// inspect runs --version, --list-devices and --help.
func inspect(ctx context.Context, path string) (build, error) {
	out, err := ask(ctx, path, "--version")
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		if err == nil {
			err = fmt.Errorf("its answer was %q", firstLine(out))
		}
		return build{}, &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Check", Err: err, Msg: fmt.Sprintf(
			"%s does not tell its version, so it cannot be used: %v. Install it again: `llmm engine install llamacpp`", path, err)}
	}
	b := build{path: path, version: strings.TrimSpace(m[1]), devices: []registry.Device{registry.DeviceCPU}, flags: map[string]bool{}}
	help, err := ask(ctx, path, "--help")
	if err != nil {
		return build{}, &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Check", Err: err, Msg: fmt.Sprintf("%s does not list its options: %v", path, err)}
	}
	for line := range strings.Lines(help) {
		if !strings.HasPrefix(line, "-") {
			continue // a description, not an option
		}
		for _, f := range helpFlag.FindAllStringSubmatch(line, -1) {
			b.flags[f[1]] = true
		}
	}
	// Builds that do not know --list-devices are too old to be told about CUDA; they count as CPU builds.
	if devices, err := ask(ctx, path, "--list-devices"); err == nil && cudaDevice.MatchString(devices) {
		b.devices = append(b.devices, registry.DeviceCUDA)
	}
	return b, nil
}

func ask(ctx context.Context, path, flag string) (string, error) {
	cmd := exec.CommandContext(ctx, path, flag)
	cmd.Env = process.BaseEnv()
	cmd.WaitDelay = time.Second // a wrapper script's children may hold the pipe
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return string(out), err
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s[:min(len(s), 120)]
}
