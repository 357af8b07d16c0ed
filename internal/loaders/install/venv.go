package install

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// uvRequirement is the installer that fetches packages many times quicker than pip does.
//
//go:embed uv.txt
var uvRequirement string

// PackagesFile is a file of an environment with the list that it was made by. It is written last.
const PackagesFile = "llmm-packages.txt"

// Venv is an environment of Python's that an engine runs in.
type Venv struct {
	Dir           string // of all engines; the environment is Dir/Name/Version
	Name, Version string
	Packages      string // what is in it: a list of exact versions with their hashes, nothing else; see Chosen
	Fetching      string // what is said while the packages are fetched where nothing is yet
	Otherwise     string // what a person without a Python could do instead, as the rest of a sentence after "or"
	Trial         string // Python that is run once at the end: what must be importable
	// Works looks at an interpreter and says why the engine could not run in it.
	Works func(ctx context.Context, python string) error
}

// Chosen is a list of packages without those that are named in without, and without comments: a list whose words alone
// have changed is the same list.
func Chosen(list string, without ...string) string {
	var out strings.Builder
	skip := false
	for line := range strings.Lines(list) {
		if text := strings.TrimSpace(line); text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if !strings.HasPrefix(line, " ") {
			name, _, _ := strings.Cut(line, "==")
			skip = slices.Contains(without, name)
		}
		if !skip {
			out.WriteString(line)
		}
	}
	return out.String()
}

// HasGPU reports whether this machine has an NVIDIA device.
func HasGPU() bool {
	_, err := os.Stat("/dev/nvidiactl")
	return err == nil
}

// Make makes the environment, or brings the one that is there up to date. It takes minutes and, while it runs, twice the
// gigabytes. Progress is StageFetch (bytes), StageVerify (a first import) and StageReady. What was downloaded is kept in
// Dir/build/Name until all is done, so that an interrupted one goes on; the environment appears whole or not at all, and
// the old one goes in the same step. What somebody has installed into it beside our packages stays. When ctx ends, nothing
// of it runs any more. Errors are CodeUnavailable (no Python that will do, or the download failed), CodeConflict (another
// install runs, or engines run from what is to be replaced) or CodeInternal.
func (j *Job) Make(ctx context.Context, v Venv, report func(registry.Progress)) error {
	in := &venvJob{Job: j, Venv: v, work: filepath.Join(v.Dir, "build", v.Name), final: filepath.Join(v.Dir, v.Name, v.Version), report: report}
	return in.run(ctx)
}

// venvJob is an environment that is being made.
type venvJob struct {
	*Job
	Venv
	work, final string
	report      func(registry.Progress)
	last        registry.Progress
	sizes       map[string]int64 // bytes of each package that uv has said it downloads
}

func pythonIn(env string) string { return filepath.Join(env, "bin", "python") }

func (in *venvJob) run(ctx context.Context) error {
	works := in.Works(ctx, pythonIn(in.final)) == nil
	if made, err := os.ReadFile(filepath.Join(in.final, PackagesFile)); works && err == nil && Chosen(string(made)) == in.Packages {
		in.say(registry.StageReady, 0, 0, in.title+" "+in.Version+" is installed")
		return nil
	}
	python, err := in.basePython(ctx)
	if err != nil {
		return err
	}
	for _, d := range []string{in.work, filepath.Dir(in.final)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return in.Failed(err, "Cannot make the folder %s: %v", d, err)
		}
	}
	unlock, err := in.Lock(filepath.Join(in.work, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := in.unused(); err != nil { // before gigabytes are fetched
		return err
	}
	in.say(registry.StageFetch, 0, 0, "Fetching the installer")
	uv, err := in.uv(ctx, python)
	if err != nil {
		return err
	}
	env := filepath.Join(in.work, "env")
	if err := os.RemoveAll(env); err != nil {
		return in.Failed(err, "Cannot clear %s: %v", env, err)
	}
	// The copy shares its files with the one that is there, and so takes neither time nor room.
	cloned := works && in.clone(ctx, path.Join(in.Name, in.Version), path.Join("build", in.Name, "env")) == nil
	if err := in.fill(ctx, uv, python, env, cloned); err != nil {
		return err
	}
	in.say(registry.StageVerify, 0, 0, "Importing "+in.title+" for the first time")
	if err := in.tool(ctx, []string{pythonIn(env), "-c", in.Trial}, nil); err != nil {
		return in.explained(err, "The environment was made, and "+in.title+" cannot be imported in it")
	}
	if err := in.Works(ctx, pythonIn(env)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(env, PackagesFile), []byte(in.Packages), 0o644); err != nil {
		return in.Failed(err, "Cannot write into %s: %v", env, err)
	}
	// Engines import as they go: one that began with the old packages would go on with the new ones.
	if err := in.unused(); err != nil {
		return err
	}
	if err := Exchange(env, in.final); err != nil {
		return in.Failed(err, "Cannot move the environment to %s: %v", in.final, err)
	}
	for _, name := range []string{"uv-cache", "boot", "env"} {
		_ = os.RemoveAll(filepath.Join(in.work, name)) // only takes space now
	}
	in.say(registry.StageReady, 0, 0, in.title+" "+in.Version+" is installed")
	return nil
}

// unused is CodeConflict while engines run from the environment that is to be replaced.
func (in *venvJob) unused() error {
	pids := process.EnginesFrom(in.final)
	if len(pids) == 0 {
		return nil
	}
	return in.error(registry.CodeConflict, nil,
		"The environment in %s cannot be replaced while engines run from it (processes %s). Unload the models that %s runs, then install it again; what was fetched is kept",
		in.final, strings.Trim(fmt.Sprint(pids), "[]"), in.title)
}

func (in *venvJob) say(stage registry.StageName, done, total int64, msg string) {
	p := registry.Progress{Stage: stage, Done: done, Total: total, Msg: msg}
	if total > 0 {
		p.Unit = registry.UnitBytes
	}
	if p == in.last || p.Stage == in.last.Stage && p.Done < in.last.Done {
		return
	}
	in.last = p
	if in.report != nil {
		in.report(p)
	}
}

// basePython returns an interpreter that the packages are made for and that can make environments.
func (in *venvJob) basePython(ctx context.Context) (string, error) {
	found := ""
	for _, name := range []string{"python3", "python3.14", "python3.13", "python3.12", "python3.11"} {
		p, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if exec.CommandContext(ctx, p, "-c", "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))").Run() != nil {
			continue
		}
		found = p
		if exec.CommandContext(ctx, p, "-c", "import venv, ensurepip").Run() == nil {
			return p, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return "", in.Stopped(err)
	}
	if found != "" {
		return "", in.Unavailable(nil, "%s cannot make virtual environments. On Debian: `apt-get install python3-venv`; then try again", found)
	}
	return "", in.Unavailable(nil, "%s needs Python 3.11 to 3.14, and there is none on the PATH. On Debian: `apt-get install python3-venv`; then try again, or %s", in.title, in.Otherwise)
}

// uv returns the installer: the one on the PATH, or one of our own.
func (in *venvJob) uv(ctx context.Context, python string) (string, error) {
	if p, err := exec.LookPath("uv"); err == nil && exec.CommandContext(ctx, p, "--version").Run() == nil {
		return p, nil
	}
	boot := filepath.Join(in.work, "boot")
	uv := filepath.Join(boot, "bin", "uv")
	if exec.CommandContext(ctx, uv, "--version").Run() == nil {
		return uv, nil
	}
	req := filepath.Join(in.work, "uv.txt")
	if err := os.WriteFile(req, []byte(uvRequirement), 0o600); err != nil {
		return "", in.Failed(err, "Cannot write %s: %v", req, err)
	}
	for _, argv := range [][]string{
		{python, "-m", "venv", "--clear", boot},
		{pythonIn(boot), "-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes", "-r", req},
	} {
		if err := in.tool(ctx, argv, nil); err != nil {
			return "", in.explained(err, "The installer (uv) could not be had")
		}
	}
	return uv, nil
}

// clone makes below the folder of engines a copy of the folder from, whose files are the same files under another name. On
// error nothing of it is left.
func (in *venvJob) clone(ctx context.Context, from, to string) (err error) {
	engines, err := os.OpenRoot(in.Dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = engines.RemoveAll(to)
		}
		_ = engines.Close()
	}()
	return fs.WalkDir(engines.FS(), from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		below := strings.TrimPrefix(name, from)
		switch {
		case d.IsDir():
			return engines.Mkdir(to+below, 0o755)
		case d.Type() == fs.ModeSymlink:
			link, err := engines.Readlink(name)
			if err != nil {
				return err
			}
			return engines.Symlink(link, to+below)
		case below == "/"+PackagesFile: // written anew, which must not change the old one
			return nil
		}
		return engines.Link(name, to+below)
	})
}

// fill makes the environment with all packages, or adds to one that is there what it lacks. Those that were fetched before
// are taken from uv's cache.
func (in *venvJob) fill(ctx context.Context, uv, python, env string, there bool) error {
	req := filepath.Join(in.work, "requirements.txt")
	if err := os.WriteFile(req, []byte(in.Packages), 0o600); err != nil {
		return in.Failed(err, "Cannot write %s: %v", req, err)
	}
	in.sizes = map[string]int64{}
	steps := [][]string{
		{uv, "venv", "--relocatable", "--python", python, env},
		{uv, "pip", "install", "--python", pythonIn(env), "--no-deps", "--only-binary", ":all:", "--require-hashes", "--compile-bytecode", "-r", req},
	}
	if there {
		steps = steps[1:]
		in.say(registry.StageFetch, 0, 0, "Fetching the packages that are new or have changed")
	} else {
		in.say(registry.StageFetch, 0, 0, in.Fetching)
	}
	for _, argv := range steps {
		if err := in.tool(ctx, argv, in.uvLine); err != nil {
			return in.explained(err, "The packages could not be installed")
		}
	}
	return nil
}

var (
	downloading = regexp.MustCompile(`^\s*Downloading (\S+) \(([\d.]+)([KMG])iB\)`)
	downloaded  = regexp.MustCompile(`^\s*Downloaded (\S+)`)
	unit        = map[string]float64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
)

// uvLine turns what uv prints about large packages into progress. It begins all of them within a second or two.
func (in *venvJob) uvLine(line string) {
	if m := downloading.FindStringSubmatch(line); m != nil {
		if n, err := strconv.ParseFloat(m[2], 64); err == nil {
			in.sizes[m[1]] = int64(n * unit[m[3]])
		}
	} else if m := downloaded.FindStringSubmatch(line); m != nil {
		in.sizes["done "+m[1]] = in.sizes[m[1]]
	} else {
		return
	}
	var done, total int64
	for name, n := range in.sizes {
		if strings.HasPrefix(name, "done ") {
			done += n
		} else {
			total += n
		}
	}
	in.say(registry.StageFetch, done, total, "Fetching packages")
}

func (in *venvJob) explained(err error, what string) error {
	var te *ToolError
	if errors.As(err, &te) {
		return in.Unavailable(err, "%s: %s. Check the network, the settings of pip or uv, and the room on the disk, then try again; all that was printed is in %s", what, firstError(te), te.Log)
	}
	return err
}

// firstError is the line that tells most of what uv and pip print: the first of the end that speaks of an error.
func firstError(te *ToolError) string {
	for _, l := range te.Tail {
		if low := strings.ToLower(l); strings.Contains(low, "error") || strings.Contains(l, "×") {
			return strings.TrimSpace(l)
		}
	}
	return te.Last
}

// tool runs a program and gives each line that it prints to line.
func (in *venvJob) tool(ctx context.Context, argv []string, line func(string)) error {
	return in.Run(ctx, Tool{Argv: argv, Env: PythonEnvironment(filepath.Join(in.work, "uv-cache")), Dir: in.work, Log: filepath.Join(in.work, "install.log"), Line: line})
}
