package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestChosen(t *testing.T) {
	t.Parallel()
	const list = "# words\n\na==1 \\\n    --hash=sha256:aa\n    # via b\nb==2 ; sys_platform == 'linux' \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\nc==3 \\\n    --hash=sha256:dd\n"
	const bare = "a==1 \\\n    --hash=sha256:aa\nb==2 ; sys_platform == 'linux' \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\nc==3 \\\n    --hash=sha256:dd\n"
	if got := Chosen(list); got != bare {
		t.Errorf("all of it: %q", got)
	}
	if got := Chosen(strings.Replace(list, "# words", "# other words\n  # and more", 1)); got != bare {
		t.Errorf("with other comments it is another list: %q", got)
	}
	if got := Chosen(list, "b", "none"); got != "a==1 \\\n    --hash=sha256:aa\nc==3 \\\n    --hash=sha256:dd\n" {
		t.Errorf("without b: %q", got)
	}
}

func TestCompareVersions(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]string{{"0.9.1", "0.32.0"}, {"4.57.6", "5.0"}, {"1.2", "1.2.1"}, {"dev", "1"}} {
		if CompareVersions(pair[0], pair[1]) >= 0 || CompareVersions(pair[1], pair[0]) <= 0 {
			t.Errorf("%s is not before %s", pair[0], pair[1])
		}
	}
	if CompareVersions("1.2", "1.2") != 0 {
		t.Error("1.2 is not as new as itself")
	}
}

// venvs are installations with programs in the place of Python and of uv. What uv is asked is written down; broken is a file
// with which uv fails to install packages.
type venvs struct {
	*testing.T
	dir, asked, broken string
}

func newVenvs(t *testing.T) *venvs {
	t.Helper()
	v := &venvs{T: t, dir: t.TempDir(), asked: filepath.Join(t.TempDir(), "asked"), broken: filepath.Join(t.TempDir(), "broken")}
	bin := t.TempDir()
	v.script(filepath.Join(bin, "python3"), "exit 0")
	v.script(filepath.Join(bin, "uv"), `[ "$1" = --version ] || echo "$1" >> `+v.asked+`
[ "$1" = venv ] && { mkdir -p "$5/bin"; printf '#!/bin/sh\nexit 0\n' > "$5/bin/python"; chmod +x "$5/bin/python"; }
[ "$1" = pip ] && [ -e `+v.broken+` ] && { echo "error: no route to the index"; exit 2; }
exit 0`)
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	return v
}

func (v *venvs) script(path, text string) {
	v.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700)); err != nil { //nolint:gosec // it is to be run
		v.Fatal(err)
	}
}

// make makes the environment with the packages and returns what uv was asked.
func (v *venvs) make(packages string) ([]string, error) {
	v.Helper()
	_ = os.Remove(v.asked)
	err := New("engine", "The Engine", "venvtest").Make(v.Context(), Venv{Dir: v.dir, Name: "engine", Version: "1.0", Packages: packages, Trial: "import engine",
		Works: func(_ context.Context, python string) error { _, err := os.Stat(python); return err }}, nil)
	b, rerr := os.ReadFile(v.asked)
	if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		v.Fatal(rerr)
	}
	return strings.Fields(string(b)), err
}

func TestMake(t *testing.T) {
	v := newVenvs(t)
	env := filepath.Join(v.dir, "engine", "1.0")
	steps := func(packages string, want ...string) {
		t.Helper()
		if got, err := v.make(packages); err != nil || !slices.Equal(got, want) {
			t.Errorf("for %q uv was asked for %q, %v; want %q", packages, got, err, want)
		}
	}
	steps("a==1\n", "venv", "pip")
	steps("a==1\n")
	// It was made by a list with comments, as older versions kept it.
	if err := os.WriteFile(filepath.Join(env, PackagesFile), []byte("# made with uv\na==1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	steps("a==1\n")

	// An update that fails leaves the old one as it was, and the next one succeeds.
	own := filepath.Join(env, "own")
	if err := errors.Join(os.WriteFile(own, []byte("somebody's"), 0o600), os.WriteFile(v.broken, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.make("a==2\n"); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "no route to the index") || !strings.Contains(err.Error(), "install.log") {
		t.Errorf("it says %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(env, PackagesFile)); err != nil || string(b) != "# made with uv\na==1\n" {
		t.Errorf("the old one's list is %q, %v", b, err)
	}
	if err := os.Remove(v.broken); err != nil {
		t.Fatal(err)
	}
	steps("a==2\n", "pip")
	if b, err := os.ReadFile(filepath.Join(env, PackagesFile)); err != nil || string(b) != "a==2\n" {
		t.Errorf("the new one's list is %q, %v", b, err)
	}
	if _, err := os.Stat(own); err != nil {
		t.Errorf("what somebody had installed is gone: %v", err)
	}

	// What is fetched is not kept beside it.
	left, err := os.ReadDir(filepath.Join(v.dir, "build", "engine"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.IsDir() {
			t.Errorf("the folder %s is left", e.Name())
		}
	}
}

// TestMakeUnderARunningEngine: nothing is fetched and nothing replaced while an engine runs from the environment.
func TestMakeUnderARunningEngine(t *testing.T) {
	v := newVenvs(t)
	if _, err := v.make("a==1\n"); err != nil {
		t.Fatal(err)
	}
	engine := filepath.Join(v.dir, "engine", "1.0", "bin", "engine")
	v.script(engine, "sleep 600")
	p, err := process.Start(process.Spec{Argv: []string{engine}, Env: process.BaseEnv(), Dir: v.dir, Tag: "venvtest/one", LogPath: filepath.Join(v.dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	asked, err := v.make("a==2\n")
	if registry.CodeOf(err) != registry.CodeConflict || !strings.Contains(err.Error(), "Unload the models that The Engine runs") || len(asked) > 0 {
		t.Errorf("it says %v, and uv was asked for %q", err, asked)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if asked, err := v.make("a==2\n"); err != nil || len(asked) == 0 {
		t.Errorf("once it had ended: %q, %v", asked, err)
	}
}

func TestMakeTwiceAtOnce(t *testing.T) {
	v := newVenvs(t)
	work := filepath.Join(v.dir, "build", "engine")
	if err := os.MkdirAll(work, 0o750); err != nil {
		t.Fatal(err)
	}
	unlock, err := New("engine", "The Engine", "").Lock(filepath.Join(work, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if asked, err := v.make("a==1\n"); registry.CodeOf(err) != registry.CodeConflict || len(asked) > 0 {
		t.Errorf("it says %v, and uv was asked for %q", err, asked)
	}
}

func TestMakeWithoutPython(t *testing.T) {
	v := newVenvs(t)
	t.Setenv("PATH", t.TempDir())
	if _, err := v.make("a==1\n"); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "The Engine needs Python 3.11") {
		t.Errorf("it says %v", err)
	}
}
