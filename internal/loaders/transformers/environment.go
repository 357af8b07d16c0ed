package transformers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// environment is a Python interpreter as it was found.
type environment struct {
	path         string
	Python       string `json:"python"`
	Torch        string `json:"torch"`
	Cuda         string `json:"cuda"` // the CUDA that torch was built with; "" none
	Transformers string `json:"transformers"`
	TorchNeeded  string `json:"torch_needed"` // the oldest torch that transformers says it runs with; "" it does not say
	Safetensors  string `json:"safetensors"`
	ONNXRuntime  string `json:"onnxruntime"`      // "" none
	ONNXOnCUDA   bool   `json:"onnxruntime_cuda"` // it is the build with CUDA
	Site         string `json:"site"`             // where packages are installed
}

func (e environment) devices() []registry.Device {
	if e.Cuda != "" {
		return []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}
	}
	return []registry.Device{registry.DeviceCPU}
}

// asked is what the interpreter is asked. It reads what packages say of themselves: importing torch takes seconds.
const asked = `
import importlib.metadata as m, importlib.util as u, json, os, re, sys, sysconfig
def version(name):
    try: return m.version(name)
    except Exception: return ""
cuda, torch = "", version("torch")
try:
    ns = {}
    with open(os.path.join(os.path.dirname(u.find_spec("torch").origin), "version.py")) as f: exec(f.read(), ns)
    cuda, torch = ns.get("cuda") or "", str(ns.get("__version__") or torch)
except Exception: pass
def torch_needed():
    try: return next((v.group(1) for v in (re.match(r"torch(?![\w.-])[^;]*>=\s*([0-9.]+)", r) for r in m.requires("transformers") or []) if v), "")
    except Exception: return ""
def onnx_on_cuda():
    try: return os.path.exists(os.path.join(os.path.dirname(u.find_spec("onnxruntime").origin), "capi", "libonnxruntime_providers_cuda.so"))
    except Exception: return False
print(json.dumps({"python": sys.version.split()[0], "torch": torch, "cuda": cuda, "transformers": version("transformers"), "torch_needed": torch_needed(),
                  "safetensors": version("safetensors"), "onnxruntime": version("onnxruntime-gpu") or version("onnxruntime"), "onnxruntime_cuda": onnx_on_cuda(), "site": sysconfig.get_paths()["purelib"]}))
`

// stamp changes when the interpreter or its packages do.
type stamp struct {
	path, site string
	mod        [2]time.Time
}

func stampOf(path, site string) (stamp, error) {
	s := stamp{path: path, site: site}
	for i, p := range []string{path, site} {
		fi, err := os.Stat(p)
		if err != nil {
			return s, err
		}
		s.mod[i] = fi.ModTime()
	}
	return s, nil
}

// environments remembers what an interpreter answered, until it changes.
type environments struct {
	mu sync.Mutex
	at stamp
	e  environment
}

func unusable(err error, format string, args ...any) error {
	return &registry.Error{Code: registry.CodeUnavailable, Op: "transformers.Check", Msg: fmt.Sprintf(format, args...), Err: err}
}

// environment finds the interpreter and asks what it has, once for each state of it.
func (l *Loader) environment(ctx context.Context) (environment, error) {
	candidates, err := l.find()
	if err != nil {
		return environment{}, err
	}
	l.known.mu.Lock()
	defer l.known.mu.Unlock()
	var first error
	for _, path := range candidates {
		if l.known.e.path == path {
			if at, err := stampOf(path, l.known.e.Site); err == nil && at == l.known.at {
				return l.known.e, nil
			}
		}
		e, err := inspect(ctx, path)
		if err == nil {
			l.known.e = e
			l.known.at, _ = stampOf(path, e.Site) // without one it is asked again
			return e, nil
		}
		if ctx.Err() != nil {
			return environment{}, err
		}
		if first == nil {
			first = err
		}
	}
	if l.o.Python != "" {
		return environment{}, first
	}
	return environment{}, unusable(first, "There is no Python with torch and transformers on this machine. %s", l.Info().HowToGet)
}

// find returns the interpreters to try: the one named, else the newest that was installed and then those on the PATH.
func (l *Loader) find() ([]string, error) {
	if l.o.Python != "" {
		p, err := exec.LookPath(l.o.Python)
		if err != nil {
			return nil, unusable(err, "There is no program at %s, where Python is said to be. Correct --transformers-python, or leave it out to have one found", l.o.Python)
		}
		return []string{p}, nil
	}
	var out []string
	for _, dir := range l.o.SearchDirs {
		entries, err := os.ReadDir(filepath.Join(dir, Name))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if p := filepath.Join(dir, Name, e.Name(), "bin", "python"); !strings.HasPrefix(e.Name(), ".") {
				if _, err := os.Stat(p); err == nil {
					out = append(out, p)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		return install.CompareVersions(filepath.Base(filepath.Dir(filepath.Dir(b))), filepath.Base(filepath.Dir(filepath.Dir(a))))
	})
	for _, name := range []string{"python3", "python"} {
		if p, err := exec.LookPath(name); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// oldest are the versions below which the worker does not run.
var oldest = []struct {
	name, version string
	of            func(environment) string
}{
	{"Python", "3.9", func(e environment) string { return e.Python }},
	{"torch", "2.2", func(e environment) string { return e.Torch }},
	{"transformers", "4.57", func(e environment) string { return e.Transformers }},
	{"safetensors", "0.4", func(e environment) string { return e.Safetensors }},
}

// isolated has Python import nothing from the folder it runs in, from the account's own packages, or from where PYTHON…
// variables say: before 3.11 it would read json.py of the current folder before its own. Output is not held back.
var isolated = []string{"-I", "-u"}

// inspect asks an interpreter what it has and refuses one that the worker cannot run in.
func inspect(ctx context.Context, path string) (environment, error) {
	cmd := exec.CommandContext(ctx, path, append(slices.Clone(isolated), "-c", asked)...)
	cmd.Env = process.BaseEnv()
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return environment{}, ctx.Err()
	}
	e := environment{path: path}
	if err != nil || json.Unmarshal(out, &e) != nil {
		return environment{}, unusable(err, "%s does not answer as a Python interpreter does: %v. Name another with --transformers-python", path, err)
	}
	for _, o := range oldest {
		got := o.of(e)
		if got == "" {
			return environment{}, unusable(nil, "The Python at %s has no %s. Install torch, transformers and safetensors into it, or run `llmm engine install transformers`", path, o.name)
		}
		number, _, _ := strings.Cut(got, "+")
		if install.CompareVersions(number, o.version) < 0 {
			return environment{}, unusable(nil, "The Python at %s has %s %s, and %s or later is needed. Upgrade it, or run `llmm engine install transformers`", path, o.name, got, o.version)
		}
	}
	// transformers does without a torch that it finds too old, and then has no models.
	if number, _, _ := strings.Cut(e.Torch, "+"); install.CompareVersions(number, e.TorchNeeded) < 0 {
		return environment{}, unusable(nil, "The Python at %s has torch %s, and %s or later is needed by its transformers %s. Upgrade torch, or run `llmm engine install transformers`", path, e.Torch, e.TorchNeeded, e.Transformers)
	}
	return e, nil
}
