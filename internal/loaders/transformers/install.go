package transformers

import (
	"context"
	_ "embed"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// requirements are the packages of the environment.
//
//go:embed requirements.txt
var requirements string

// bundled is the version of transformers that requirements.txt names; the environment's folder is called by it.
const bundled = "5.23.0"

// needless are packages of requirements.txt that are for a GPU only: a machine without one is spared a gigabyte.
// The rest of CUDA is linked to torch, whose build for the CPU alone is not in the package index.
var needless = []string{"bitsandbytes", "triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "nvidia-cuda-cccl", "nvidia-nvtx"}

// packages are those that this machine needs.
func packages() string {
	if install.HasGPU() {
		return install.Chosen(requirements)
	}
	return install.Chosen(requirements, needless...)
}

// Install makes dir/transformers/VERSION, a Python environment, or brings the one that is there up to date; dir is one of
// the SearchDirs. See install.Job.Make for its progress and its errors.
func (l *Loader) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	return install.New(Name, "Transformers", l.o.TagPrefix).Make(ctx, install.Venv{
		Dir: dir, Name: Name, Version: bundled, Packages: packages(),
		Fetching:  "Fetching torch and transformers (several gigabytes)",
		Otherwise: "name an interpreter that has torch and transformers with --transformers-python",
		Trial:     "import torch, transformers, safetensors, accelerate, sentencepiece, onnxruntime; from transformers import AutoConfig; torch.ones(2).sum()",
		Works:     func(ctx context.Context, python string) error { _, err := inspect(ctx, python); return err },
	}, report)
}
