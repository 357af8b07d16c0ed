package ollama

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What Install builds.
const (
	module         = "github.com/ollama/ollama"
	installVersion = "0.33.0"
)

// Install builds Ollama with Go and puts it into dir/ollama/VERSION, laid out as its releases are: bin/ollama, and
// llama-server and llama-quantize in lib/ollama, which are links to those of the engine llamacpp in dir, or on the PATH.
// dir is one of the SearchDirs. It takes a few minutes; a build that was interrupted goes on from what Go has kept. The
// program appears whole or not at all. Progress is StageFetch, StageEngine and StageReady. What it prints is in
// dir/ollama/install.log. Errors are CodeUnavailable (no Go, no llama-server: says how to get them; or the modules could
// not be downloaded), CodeConflict (another install runs) or CodeInternal (the build failed).
func (l *Loader) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	root := filepath.Join(dir, Name)
	final := filepath.Join(root, installVersion)
	program := filepath.Join(final, "bin", "ollama")
	say := func(stage registry.StageName, msg string) {
		report(registry.Progress{Stage: stage, Msg: msg})
	}
	server, err := tool(dir, "llama-server")
	if err != nil {
		return err
	}
	for _, d := range []string{filepath.Join(final, "bin"), filepath.Join(final, "lib", "ollama")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return notInstalled(err, "Cannot make the folder %s: %v", d, err)
		}
	}
	unlock, err := lockInstall(filepath.Join(root, ".install-lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := inspect(ctx, program); err != nil {
		if err := l.build(ctx, root, program, say); err != nil {
			return err
		}
	}
	lib := filepath.Join(final, "lib", "ollama")
	if err := link(server, filepath.Join(lib, "llama-server")); err != nil {
		return notInstalled(err, "Cannot link %s: %v", server, err)
	}
	msg := "Ollama " + installVersion + " is installed"
	if quantize, err := tool(dir, "llama-quantize"); err == nil {
		if err := link(quantize, filepath.Join(lib, "llama-quantize")); err != nil {
			return notInstalled(err, "Cannot link %s: %v", quantize, err)
		}
	} else if !executable(filepath.Join(lib, "llama-quantize")) {
		msg += ". It loads GGUF; to convert safetensors, too, put llama.cpp's llama-quantize on the PATH and install it again"
	}
	say(registry.StageReady, msg)
	return nil
}

// tool finds a program of llama.cpp's: of the newest engine llamacpp in dir, else on the PATH.
func tool(dir, name string) (string, error) {
	found, err := filepath.Glob(filepath.Join(quoteGlob(dir), "llamacpp", "*", name))
	if err == nil {
		found = slices.DeleteFunc(found, func(p string) bool { return !executable(p) })
	}
	if len(found) > 0 {
		return slices.MaxFunc(found, func(a, b string) int {
			return compareVersions(filepath.Base(filepath.Dir(a)), filepath.Base(filepath.Dir(b)))
		}), nil
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	return "", &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Install", Msg: fmt.Sprintf(
		"Ollama needs llama.cpp's %s, which is not on this machine. Run `llmm engine install llamacpp` first, or install Ollama's own build as https://ollama.com/download says", name)}
}

// link makes path a link to target, whatever was there before.
func link(target, path string) error {
	if at, err := os.Readlink(path); err == nil && at == target {
		return nil
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() && executable(path) {
		return nil // a program that somebody put there
	}
	tmp := fmt.Sprintf("%s.new-%d", path, os.Getpid())
	_ = os.Remove(tmp) // of one that was interrupted
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// build runs go install and moves the program to its place.
func (l *Loader) build(ctx context.Context, root, program string, say func(registry.StageName, string)) error {
	gotool, err := exec.LookPath("go")
	if err != nil {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Install", Err: err, Msg: "Ollama is built with Go, which is not on the PATH. Install Go (https://go.dev/dl), or install Ollama's own build as https://ollama.com/download says: it is found on the PATH"}
	}
	work, err := os.MkdirTemp(root, ".build-")
	if err != nil {
		return notInstalled(err, "Cannot make a folder in %s: %v", root, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	say(registry.StageFetch, "Downloading the sources of Ollama "+installVersion)
	env := append(buildEnv(), "GOBIN="+work, "GOFLAGS=-mod=mod")
	// The checksum database vouches for what is downloaded.
	what := module + "@v" + installVersion
	if err := l.run(ctx, root, []string{gotool, "mod", "download", what}, append(slices.Clone(env), "GO111MODULE=on")); err != nil {
		var te *toolError
		if errors.As(err, &te) {
			return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Install", Err: err, Msg: "The sources of Ollama could not be downloaded: " + te.last + ". Check the network and GOPROXY, then try again"}
		}
		return err
	}
	say(registry.StageEngine, "Compiling Ollama "+installVersion+" (a few minutes)")
	args := []string{gotool, "install", "-trimpath", "-ldflags", "-s -w -X " + module + "/version.Version=" + installVersion, what}
	if err := l.run(ctx, root, args, env); err != nil {
		var te *toolError
		if errors.As(err, &te) {
			return notInstalled(err, "Ollama could not be built: %s. All that was printed is in %s", te.last, filepath.Join(root, "install.log"))
		}
		return err
	}
	built := filepath.Join(work, "ollama")
	if _, err := inspect(ctx, built); err != nil {
		if ctx.Err() != nil {
			return installStopped(ctx.Err())
		}
		return notInstalled(err, "The program that was built does not run: %v", err)
	}
	if err := os.Rename(built, program); err != nil {
		return notInstalled(err, "Cannot move the program to %s: %v", program, err)
	}
	return nil
}

// toolError is a tool that ended with an error.
type toolError struct{ last string }

func (e *toolError) Error() string { return e.last }

// run runs a program to its end. When ctx ends it is killed with all that it has started.
func (l *Loader) run(ctx context.Context, root string, argv, env []string) error {
	if err := ctx.Err(); err != nil {
		return installStopped(err)
	}
	prefix := l.o.TagPrefix
	if prefix == "" {
		prefix = "llmm-install"
	}
	// The tag is this install's alone: ending a tool ends all that carries its tag.
	tag := fmt.Sprintf("%s/install-%s-%d-%d", prefix, Name, os.Getpid(), time.Now().UnixNano())
	p, err := process.Start(process.Spec{Argv: argv, Env: env, Dir: root, LogPath: filepath.Join(root, "install.log"), Tag: tag, Logger: l.o.Logger})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		if err := p.Kill(); err != nil {
			return err
		}
		return installStopped(ctx.Err())
	case <-p.Done():
	}
	exit := p.Exit()
	if exit.Signal == 0 && exit.Code == 0 {
		return nil
	}
	last := "it printed nothing"
	if tail := p.Tail(20); len(tail) > 0 {
		last = tail[len(tail)-1]
	}
	if exit.Signal != 0 {
		last = fmt.Sprintf("go was ended by a signal (%v), perhaps because memory ran out; before that it said: %s", exit.Signal, last)
	}
	return &toolError{last}
}

// buildEnv is our environment, for a proxy of modules and what the user has set for Go, without what is ours or looks like
// a secret.
func buildEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "LLMM_") || name == "GOFLAGS" || name == "GOBIN" || registry.IsSecretName(name)
	})
}

func notInstalled(err error, format string, args ...any) error {
	return &registry.Error{Code: registry.CodeInternal, Op: "ollama.Install", Msg: fmt.Sprintf(format, args...), Err: err}
}

func installStopped(err error) error {
	f := &registry.Failure{Kind: registry.FailureCancelled, Msg: "The installation of Ollama was stopped; it goes on from there the next time"}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "ollama.Install", Msg: f.Msg, Failure: f, Err: err}
}

// lockInstall keeps two installs from writing to one folder.
func lockInstall(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, notInstalled(err, "Cannot lock %s: %v", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(&registry.Error{Code: registry.CodeConflict, Op: "ollama.Install", Err: err, Msg: "Ollama is being installed already; wait for that to end"}, f.Close())
	}
	return func() { _ = f.Close() }, nil
}
