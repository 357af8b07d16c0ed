package transformers_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// copied returns a copy of a tiny model that a test may spoil.
func copied(t *testing.T, name string) string {
	t.Helper()
	return copiedFrom(t, filepath.Join(models(t), name))
}

func copiedFrom(t *testing.T, path string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(dir, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func edit(t *testing.T, path string, change func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// evil writes a pickle that, when it is run, makes a folder. It is laid out as torch.save does it (torch.load with
// weights_only=False runs it), without the seconds that an import of torch takes.
const evil = `
import os, pickle, sys, zipfile
class Evil:
    def __reduce__(self): return (os.mkdir, (sys.argv[1],))
with zipfile.ZipFile(sys.argv[2], "w") as z:
    z.writestr("archive/data.pkl", pickle.dumps({"bert.embeddings.word_embeddings.weight": Evil()}, protocol=2))
    z.writestr("archive/byteorder", "little")
    z.writestr("archive/version", "3\n")
`

// ownCode returns a copy of the Llama at path that brings code of its own, and the folder that this code makes when it is
// run, wherever and for whatever: for the config, the model, or only to look at it.
func ownCode(t *testing.T, path string) (dir, ran string) {
	t.Helper()
	dir, ran = copiedFrom(t, path), filepath.Join(t.TempDir(), "ran")
	edit(t, filepath.Join(dir, "config.json"), func(m map[string]any) {
		m["model_type"], m["architectures"] = "own", []string{"OwnForCausalLM"}
		m["auto_map"] = map[string]string{"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
	})
	write(t, filepath.Join(dir, "own.py"), fmt.Sprintf(`
import os
os.makedirs(%q, exist_ok=True)
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., 3] = 1e4  # the exclamation mark of the tests' tokenizer
        return out
`, ran))
	return dir, ran
}

func notRun(t *testing.T, ran string) {
	t.Helper()
	if _, err := os.Stat(ran); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("code of the model was run (%v)", err)
	}
}

// answersByOwnCode fails unless the model of ownCode answers as only its own code does.
func answersByOwnCode(t *testing.T, in loaders.Instance, ran string) {
	t.Helper()
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("the model's code was not run: %v", err)
	}
	if got := in.Endpoint().ModelClass; got != "OwnForCausalLM" {
		t.Errorf("the class is %s", got)
	}
	code, got := ask(t, in, "/v1/completions", map[string]any{"prompt": "x", "max_tokens": 4, "temperature": 0})
	if code != http.StatusOK || got["choices"].([]any)[0].(map[string]any)["text"] != "!!!!" {
		t.Errorf("status %d: %v", code, got)
	}
}

// TestTrustedCode loads a model with code of its own and trust_remote_code, and the copy of the code goes with the worker.
func TestTrustedCode(t *testing.T) {
	t.Parallel()
	dir, ran := ownCode(t, filepath.Join(models(t), "llama-half"))
	s := spec(dir, nil)
	s.Model.TrustRemoteCode = true
	answersByOwnCode(t, mustLoad(t, s), ran)
}

func TestBadModels(t *testing.T) {
	python := func() string {
		v, err := transformers.New(options("")).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v.Path
	}
	ran := filepath.Join(t.TempDir(), "ran")
	for name, c := range map[string]struct {
		model string
		spoil func(t *testing.T, dir string, s *loaders.LoadSpec)
		want  registry.FailureKind
		says  string
	}{
		"no config": {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) { remove(t, dir, "config.json") }, registry.FailureMissingFile, "config.json"},
		"an unknown architecture": {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			edit(t, filepath.Join(dir, "config.json"), func(m map[string]any) { m["model_type"], m["architectures"] = "zebra", []string{"ZebraForCausalLM"} })
		}, registry.FailureUnsupportedArch, "zebra"},
		"a config that is no JSON": {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			write(t, filepath.Join(dir, "config.json"), "<html>")
		}, registry.FailureCorruptFile, "config.json"},
		"a shard cut short": {"llama-sharded", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			if err := os.Truncate(filepath.Join(dir, "model-00003-of-00005.safetensors"), 50000); err != nil {
				t.Fatal(err)
			}
		}, registry.FailureCorruptFile, "safetensors"},
		"an index that names absent files": {"llama-sharded", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			remove(t, dir, "model-00002-of-00005.safetensors")
		}, registry.FailureMissingFile, "model-00002-of-00005.safetensors"},
		"no tokenizer": {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			remove(t, dir, "tokenizer.json")
			remove(t, dir, "tokenizer_config.json")
		}, registry.FailureMissingFile, "tokenizer"},
		"a tokenizer that is none": {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			write(t, filepath.Join(dir, "tokenizer.json"), "{}")
		}, registry.FailureCorruptFile, "tokenizer.json"},
		"a tokenizer_path to nowhere": {"llama", func(_ *testing.T, _ string, s *loaders.LoadSpec) { s.Model.TokenizerPath = "/nowhere/tokenizer" }, registry.FailureMissingFile, "/nowhere/tokenizer"},
		"a pickle with code in it": {"bert", func(t *testing.T, dir string, s *loaders.LoadSpec) {
			s.Model.ModelFormat = registry.FormatTransformersPT
			if out, err := exec.CommandContext(t.Context(), python(), "-c", evil, ran, filepath.Join(dir, "pytorch_model.bin")).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}, registry.FailureCorruptFile, "more than tensors"},
		"code of the model's own": {"llama", func(t *testing.T, dir string, s *loaders.LoadSpec) {
			edit(t, filepath.Join(dir, "config.json"), func(m map[string]any) {
				m["model_type"], m["auto_map"] = "own", map[string]string{"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
			})
			write(t, filepath.Join(dir, "own.py"), fmt.Sprintf("import os; os.mkdir(%q)", ran))
		}, registry.FailureUnsupportedArch, "trust_remote_code"},
		"code of the tokenizer's own": {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) {
			edit(t, filepath.Join(dir, "tokenizer_config.json"), func(m map[string]any) {
				m["tokenizer_class"], m["auto_map"] = "OwnTokenizer", map[string]any{"AutoTokenizer": []any{nil, "own.OwnTokenizer"}}
			})
			write(t, filepath.Join(dir, "own.py"), fmt.Sprintf("import os; os.mkdir(%q)", ran))
		}, registry.FailureUnsupportedArch, "trust_remote_code"},
		"no weights":        {"llama", func(t *testing.T, dir string, _ *loaders.LoadSpec) { remove(t, dir, "model.safetensors") }, registry.FailureMissingFile, "safetensors"},
		"8 bits on the CPU": {"llama", func(_ *testing.T, _ string, s *loaders.LoadSpec) { s.Model.QuantizationBits = 8 }, registry.FailureUnsupported, "CUDA"},
		"cuda without a GPU": {"llama", func(_ *testing.T, _ string, s *loaders.LoadSpec) {
			s.Device, s.GPUUUIDs = registry.DeviceCUDA, []string{"GPU-none"}
		}, registry.FailureEngineMissing, "cuda"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := copied(t, c.model)
			s := spec(dir, nil)
			c.spoil(t, dir, &s)
			_, err := load(t, s)
			e := registry.AsError(err)
			if e == nil || e.Failure == nil || e.Failure.Kind != c.want {
				t.Fatalf("got %v, want %s\n%s", err, c.want, strings.Join(tail(err), "\n"))
			}
			if !strings.Contains(e.Failure.Msg, c.says) || e.Failure.Hint == "" {
				t.Errorf("it says %q, hint %q", e.Failure.Msg, e.Failure.Hint)
			}
			// What is seen before a worker starts has no log.
			if started := s.Model.TokenizerPath == "" && s.Model.QuantizationBits == 0; started != (len(e.Failure.LogTail) > 0) {
				t.Errorf("the log's tail has %d lines", len(e.Failure.LogTail))
			}
			if _, err := os.Stat(ran); !errors.Is(err, fs.ErrNotExist) {
				t.Fatal("code of the model was run")
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestBadInterpreters names programs that are no Python, or one that lacks what is needed.
func TestBadInterpreters(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil { //nolint:gosec // it is to be run
			t.Fatal(err)
		}
		return p
	}
	versions := func(torch, transformers string) string {
		return fmt.Sprintf(`echo '{"python": "3.11.7", "torch": %q, "cuda": "", "transformers": %q, "safetensors": "0.8.0", "site": "/"}'`, torch, transformers)
	}
	for name, c := range map[string]struct{ path, says string }{
		"not there":        {filepath.Join(dir, "nothing"), "--transformers-python"},
		"ends at once":     {script("ends", "exit 3"), "does not answer"},
		"no torch":         {script("bare", versions("", "5.0.0")), "has no torch"},
		"old transformers": {script("old", versions("2.9.0", "4.40.1")), "4.57 or later"},
		"old torch":        {script("oldest", versions("2.1.2", "4.57.6")), "torch 2.1.2, and 2.2 or later"},
		"a torch too old for its transformers": {script("between", `echo '{"python": "3.11.7", "torch": "2.4.1+cu124", "transformers": "5.23.0", "torch_needed": "2.6", "safetensors": "0.8.0", "site": "/"}'`),
			"torch 2.4.1+cu124, and 2.6 or later is needed by its transformers 5.23.0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := transformers.New(transformers.Options{Python: c.path})
			_, err := l.Check(t.Context())
			if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want CodeUnavailable that says %q", err, c.says)
			}
		})
	}
	t.Run("a Python without torch", func(t *testing.T) {
		models(t) // fails where there is no engine
		v, err := transformers.New(options("")).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bare := filepath.Join(t.TempDir(), "bare")
		if out, err := exec.CommandContext(t.Context(), v.Path, "-m", "venv", "--without-pip", bare).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		l := transformers.New(transformers.Options{Python: filepath.Join(bare, "bin", "python"), TagPrefix: tagOf(t)})
		_, _, err = loadWith(t, l, spec(dir, nil))
		if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "has no torch") || !strings.Contains(err.Error(), "llmm engine install") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an old torch beside the engine's transformers", func(t *testing.T) {
		models(t) // fails where there is no engine
		v, err := transformers.New(options("")).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		old := filepath.Join(t.TempDir(), "old")
		if out, err := exec.CommandContext(t.Context(), v.Path, "-m", "venv", "--without-pip", old).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		python := filepath.Join(old, "bin", "python")
		const site = "import sysconfig; print(sysconfig.get_paths()['purelib'], end='')"
		to, err := exec.CommandContext(t.Context(), python, "-c", site).Output()
		if err != nil {
			t.Fatal(err)
		}
		from, err := exec.CommandContext(t.Context(), v.Path, "-c", site).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"transformers", "safetensors"} {
			found, err := filepath.Glob(filepath.Join(string(from), name+"-*.dist-info"))
			if err != nil || len(found) != 1 {
				t.Fatalf("%v, %v", found, err)
			}
			if err := os.Symlink(found[0], filepath.Join(string(to), filepath.Base(found[0]))); err != nil {
				t.Fatal(err)
			}
		}
		// What transformers 5 has always switched off.
		if err := os.Mkdir(filepath.Join(string(to), "torch-2.3.1.dist-info"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(string(to), "torch-2.3.1.dist-info", "METADATA"), "Metadata-Version: 2.1\nName: torch\nVersion: 2.3.1\n")
		_, err = transformers.New(transformers.Options{Python: python}).Check(t.Context())
		if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "has torch 2.3.1, and ") || !strings.Contains(err.Error(), " is needed by its transformers 5.") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a torch without CUDA", func(t *testing.T) {
		l := transformers.New(transformers.Options{Python: script("cpu", versions("2.9.0+cpu", "5.0.0")), TagPrefix: tagOf(t)})
		s := spec(dir, nil)
		s.Device, s.GPUUUIDs = registry.DeviceCUDA, []string{"GPU-0"}
		_, _, err := loadWith(t, l, s)
		if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureEngineMissing || !strings.Contains(f.Msg, "2.9.0+cpu") || f.Hint == "" {
			t.Errorf("got %v, %+v", err, f)
		}
	})
	t.Run("dies as a worker", func(t *testing.T) {
		p := script("dies", `[ $# = 4 ] && { `+versions("2.9.0+cpu", "5.0.0")+`; exit; }; echo "Traceback: it went wrong" >&2; exit 7`)
		l := transformers.New(transformers.Options{Python: p, TagPrefix: tagOf(t), WorkerDir: t.TempDir()})
		v, err := l.Check(t.Context())
		if err != nil || len(v.Devices) != 1 {
			t.Fatalf("%+v, %v", v, err)
		}
		_, _, err = loadWith(t, l, spec(dir, nil))
		f := registry.AsError(err).Failure
		if f == nil || f.Kind != registry.FailureCrash || f.ExitCode != 7 || !strings.Contains(strings.Join(f.LogTail, "\n"), "it went wrong") {
			t.Errorf("got %v, %+v", err, f)
		}
	})
}
