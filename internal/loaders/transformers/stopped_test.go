package transformers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestInstallIsStoppedAndGoesOn stops an installation while it downloads: nothing of it runs any more, there is no half of an
// environment that could be taken for a whole one, and the next one goes on with what was downloaded. The programs uv and
// python3 are stand-ins.
func TestInstallIsStoppedAndGoesOn(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	hang := filepath.Join(bin, "hang")
	python := fmt.Sprintf(`case "$*" in *importlib.metadata*) echo '{"python": "3.11.7", "torch": "2.15.0", "transformers": %q, "safetensors": "0.8.0", "site": "/"}';; esac`, bundled)
	for name, text := range map[string]string{
		"python3": "exit 0",
		"uv": `case "$1" in
venv) mkdir -p "$5/bin"; printf '#!/bin/sh\n%s\n' '` + strings.ReplaceAll(python, "'", `'\''`) + `' > "$5/bin/python"; chmod +x "$5/bin/python";;
pip) if [ -e ` + hang + ` ]; then
  echo kept > "$UV_CACHE_DIR.part"; sleep 600 &
  echo 'Downloading torch (500.0MiB)'; wait
fi; cat "$UV_CACHE_DIR.part";;
esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil { //nolint:gosec // it is to be run
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	tag := fmt.Sprintf("transformersinstalltest-%d", os.Getpid())
	l := New(Options{TagPrefix: tag, SearchDirs: []string{dir}})

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	second := errors.New("it was not tried")
	err := l.Install(ctx, dir, func(p registry.Progress) {
		if p.Total > 0 {
			second = l.Install(t.Context(), dir, nil)
			cancel()
		}
	})
	if registry.CodeOf(second) != registry.CodeConflict {
		t.Errorf("a second installation beside the first: %v", second)
	}
	f := registry.AsError(err).Failure
	if !errors.Is(err, context.Canceled) || f == nil || f.Kind != registry.FailureCancelled {
		t.Errorf("got %v", err)
	}
	if left, err := process.FindTagged(tag); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, Name, bundled)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an environment is there: %v", err)
	}
	if v, err := l.Check(t.Context()); err == nil {
		t.Errorf("half an environment is found: %+v", v)
	}

	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	if err := l.Install(t.Context(), dir, nil); err != nil { // it reads what the first has left
		t.Fatal(err)
	}
	if v, err := l.Check(t.Context()); err != nil || !strings.HasPrefix(v.Version, bundled) {
		t.Errorf("%+v, %v", v, err)
	}
}
