package ollama

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
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
	job := install.New(Name, "Ollama", l.o.TagPrefix)
	server, err := tool(dir, "llama-server")
	if err != nil {
		return err
	}
	for _, d := range []string{filepath.Join(final, "bin"), filepath.Join(final, "lib", "ollama")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return job.Failed(err, "Cannot make the folder %s: %v", d, err)
		}
	}
	unlock, err := job.Lock(filepath.Join(root, ".install-lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := inspect(ctx, program); err != nil {
		if err := l.build(ctx, job, root, program, say); err != nil {
			return err
		}
	}
	lib := filepath.Join(final, "lib", "ollama")
	if err := link(server, filepath.Join(lib, "llama-server")); err != nil {
		return job.Failed(err, "Cannot link %s: %v", server, err)
	}
	msg := "Ollama " + installVersion + " is installed"
	if quantize, err := tool(dir, "llama-quantize"); err == nil {
		if err := link(quantize, filepath.Join(lib, "llama-quantize")); err != nil {
			return job.Failed(err, "Cannot link %s: %v", quantize, err)
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
func (l *Loader) build(ctx context.Context, job *install.Job, root, program string, say func(registry.StageName, string)) error {
	gotool, err := exec.LookPath("go")
	if err != nil {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Install", Err: err, Msg: "Ollama is built with Go, which is not on the PATH. Install Go (https://go.dev/dl), or install Ollama's own build as https://ollama.com/download says: it is found on the PATH"}
	}
	work, err := os.MkdirTemp(root, ".build-")
	if err != nil {
		return job.Failed(err, "Cannot make a folder in %s: %v", root, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	say(registry.StageFetch, "Downloading the sources of Ollama "+installVersion)
	env := install.Environment([]string{"GOFLAGS", "GOBIN"}, "GOBIN="+work, "GOFLAGS=-mod=mod")
	run := func(argv, env []string) error {
		return job.Run(ctx, install.Tool{Argv: argv, Env: env, Dir: root, Log: filepath.Join(root, "install.log"), Logger: l.o.Logger})
	}
	// The checksum database vouches for what is downloaded.
	what := module + "@v" + installVersion
	if err := run([]string{gotool, "mod", "download", what}, append(slices.Clone(env), "GO111MODULE=on")); err != nil {
		var te *install.ToolError
		if errors.As(err, &te) {
			return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Install", Err: err, Msg: "The sources of Ollama could not be downloaded: " + te.Last + ". Check the network and GOPROXY, then try again"}
		}
		return err
	}
	say(registry.StageEngine, "Compiling Ollama "+installVersion+" (a few minutes)")
	args := []string{gotool, "install", "-trimpath", "-ldflags", "-s -w -X " + module + "/version.Version=" + installVersion, what}
	if err := run(args, env); err != nil {
		var te *install.ToolError
		if errors.As(err, &te) {
			return job.Failed(err, "Ollama could not be built: %s. All that was printed is in %s", te.Last, filepath.Join(root, "install.log"))
		}
		return err
	}
	built := filepath.Join(work, "ollama")
	if _, err := inspect(ctx, built); err != nil {
		if ctx.Err() != nil {
			return job.Stopped(ctx.Err())
		}
		return job.Failed(err, "The program that was built does not run: %v", err)
	}
	if err := os.Rename(built, program); err != nil {
		return job.Failed(err, "Cannot move the program to %s: %v", program, err)
	}
	return nil
}
