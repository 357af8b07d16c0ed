package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

const token = "e2e-token-of-the-admin-0123456789"

// program is bin/llmm and fakeEngine bin/fakeengine, built once for all tests.
var program, fakeEngine string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "llmm-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program, fakeEngine = filepath.Join(dir, "llmm"), filepath.Join(dir, "fakeengine")
	for _, b := range [][2]string{{program, "../.."}, {fakeEngine, "../../cmd/fakeengine"}} {
		if out, err := exec.Command("go", "build", "-o", b[0], b[1]).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b[1], err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// weights is the sample model that scripts/setup fetched.
func weights(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("LLMM_TEST_GGUF"); p != "" {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(cache, "llmm", "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("the sample model is missing (%v); run scripts/setup", err)
	}
	return p
}

// server is a running llmm serve.
type server struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	data string
	yaml string
	env  []string // beside ours
	done chan struct{}
}

var listening = regexp.MustCompile(`msg="LLMModelManager is ready" address=(http://\S+)`)

// start starts the program on a data folder and waits until it says that it is ready. env is added to its environment.
func start(t *testing.T, data, yaml string, env ...string) *server {
	t.Helper()
	s := &server{t: t, data: data, yaml: yaml, env: env, done: make(chan struct{})}
	s.cmd = exec.Command(program, "serve", "--listen", "127.0.0.1:0", "--data-dir", data, "--models", yaml)
	s.cmd.Env = append(os.Environ(), "LLMM_ADMIN_PASSWORD=correct horse battery", "LLMM_ADMIN_TOKEN="+token)
	if p := os.Getenv("LLMM_TEST_LLAMA_SERVER"); p != "" {
		s.cmd.Env = append(s.cmd.Env, "LLMM_LLAMA_SERVER="+p)
	}
	s.cmd.Env = append(s.cmd.Env, env...)
	logs, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 1)
	go func() {
		defer close(s.done)
		sc := bufio.NewScanner(logs)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			t.Log(sc.Text())
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				found <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			s.stop(syscall.SIGTERM)
		}
	})
	select {
	case s.url = <-found:
	case <-s.done:
		t.Fatalf("the server ended before it was ready: %v", s.cmd.Wait())
	}
	return s
}

// stop sends a signal and waits for the end.
func (s *server) stop(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
	<-s.done
	err := s.cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		s.t.Errorf("the server did not end cleanly: %v", err)
	}
}

// again starts the program anew on the same files.
func (s *server) again() *server {
	s.t.Helper()
	return start(s.t, s.data, s.yaml, s.env...)
}

// call asks the API and decodes the answer; it fails on another status.
func (s *server) call(method, path string, body any, want int, out any) {
	s.t.Helper()
	if err := s.try(method, path, body, want, out); err != nil {
		s.t.Fatal(err)
	}
}

// try is call for goroutines that are not the test's own, and for servers that may be gone.
func (s *server) try(method, path string, body any, want int, out any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s: %s, want %d\n%s", method, path, resp.Status, want, raw)
	}
	switch out := out.(type) {
	case nil:
	case *string:
		*out = string(raw)
	default:
		if err := json.Unmarshal(raw, out); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", method, path, err, raw)
		}
	}
	return nil
}

// cli runs the program as a client.
func (s *server) cli(args ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "LLMM_SERVER="+s.url, "LLMM_TOKEN="+token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("llmm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	s.t.Logf("$ llmm %s\n%s", strings.Join(args, " "), out)
	return string(out)
}

type model struct {
	ModelID      string `json:"model_id"`
	SourceType   string `json:"source_type"`
	Status       string `json:"status"`
	Device       string `json:"device"`
	LoadedEngine string `json:"loaded_engine"`
}

// setUp is a models file as a newcomer has it after make run, and a server on it.
func setUp(t *testing.T, env ...string) *server {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile("../../models.yaml")
	if err != nil {
		t.Fatal(err)
	}
	yaml := filepath.Join(dir, "models.yaml")
	if err := os.WriteFile(yaml, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, filepath.Join(dir, "data"), yaml, env...)
}

func (s *server) registerSample(id string, more map[string]any) {
	s.t.Helper()
	m := map[string]any{"model_id": id, "source_type": "local", "source_path": weights(s.t), "model_format": "gguf", "device_preference": "cpu", "context_length": 2048}
	for k, v := range more {
		m[k] = v
	}
	s.call("POST", "/api/v1/models", m, http.StatusCreated, nil)
}

func path(id string) string { return "/api/v1/models/" + url.PathEscape(id) }

// watchStages follows the event stream; the returned func says which stages were told.
func (s *server) watchStages(id string) func() string {
	ctx, cancel := context.WithCancel(s.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/api/v1/events?kinds=operation&models="+url.QueryEscape(id), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan string, 1)
	go func() {
		defer resp.Body.Close()
		var names []string
		sc := bufio.NewScanner(resp.Body)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			data, ok := strings.CutPrefix(sc.Text(), "data: ")
			if !ok {
				continue
			}
			var e struct {
				Body struct {
					State  string
					Stages []struct{ Name, State string }
				}
			}
			if json.Unmarshal([]byte(data), &e) != nil {
				continue
			}
			for _, st := range e.Body.Stages {
				if st.State == "running" || st.State == "done" {
					names = append(names, st.Name)
				}
			}
			if e.Body.State == "succeeded" || e.Body.State == "failed" {
				break
			}
		}
		ended <- strings.Join(names, " ")
	}()
	return func() string { defer cancel(); return <-ended }
}

// noEngines fails if a process of this test's own servers is left: engines carry their installation in a tag.
func (s *server) noEngines() {
	s.t.Helper()
	if left := engines(s.t, s.data); len(left) > 0 {
		s.t.Errorf("engines left behind: %v", left)
	}
}

// engines lists the processes whose log lies in the data folder.
func engines(t *testing.T, data string) []string {
	t.Helper()
	var out []string
	links, err := filepath.Glob("/proc/[0-9]*/fd/1")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, filepath.Join(data, "logs")) {
			out = append(out, strings.Split(l, "/")[2])
		}
	}
	return out
}
