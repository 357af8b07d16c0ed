package vllm

import (
	"context"
	_ "embed"
	"errors"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What Install installs. scripts/vllm-lists makes the lists from these versions. The wheels for the CPU name a build of torch
// that only torch's own site has; the one of PyPI does the same and brings CUDA's libraries with it.
const (
	pinned      = "0.32.0"
	pinnedTorch = "2.13.0"
)

var (
	//go:embed packages-cuda.txt
	packagesCUDA string
	//go:embed packages-cpu.txt
	packagesCPU string
)

// needless are packages of the list for the CPU that torch needs on a GPU only. Without triton vLLM takes its older runner
// of models, which is what it has for CPUs.
var needless = []string{"triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "nvidia-nvtx"}

// packages are those that this machine needs.
func packages() string {
	if install.HasGPU() {
		return install.Chosen(packagesCUDA)
	}
	return install.Chosen(packagesCPU, needless...)
}

// Install makes dir/vllm/VERSION, a Python environment with vLLM for CUDA where this machine has an NVIDIA device and for
// the CPU elsewhere, or brings the one that is there up to date; dir is one of the SearchDirs. See install.Job.Make for its
// progress and its errors.
func (l *Loader) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	return install.New(Name, title, l.o.TagPrefix).Make(ctx, install.Venv{
		Dir: dir, Name: Name, Version: pinned, Packages: packages(),
		Fetching:  "Fetching torch and vLLM (several gigabytes)",
		Otherwise: "put a vllm on the PATH",
		Trial:     "import vllm, torch; torch.ones(2).sum()",
		Works:     works,
	}, report)
}

// works says why the Python of an environment cannot be one of Install's that vLLM runs in.
func works(_ context.Context, python string) error {
	p, found := installedBy(python)
	if !found || p.version == "" {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Install", Msg: "There is no vLLM in the environment of " + python, Err: errors.ErrUnsupported}
	}
	return nil
}
