package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// loadLarge compares loads of a model of 1 GB over the API with the engines' own best way on the same files, each from the
// start of a process to a first answer.
func (b *bench) loadLarge(ctx context.Context) (err error) {
	python, err := pythonOf(ctx)
	if err != nil {
		b.notRun("load of 1 GB", err.Error())
		return nil
	}
	folder, err := b.weights(ctx, python, "large")
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "load-large")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	llama, _ := locate()
	ollama := locateOllama()
	flags := []string{"--transformers-python", python}
	if llama != "" {
		flags = append(flags, "--llama-server", llama)
	}
	if ollama != "" {
		flags = append(flags, "--ollama", ollama)
	}
	s, err := b.start(ctx, dir, "", flags...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	gguf := filepath.Join(folder, "model.gguf")
	for _, e := range []struct {
		name, engine, path, format, program, how string
		alone                                    func(ctx context.Context, like *command) (time.Duration, error)
	}{
		{"llama.cpp", "llamacpp", gguf, "gguf", llama, "llama-server by hand", func(ctx context.Context, like *command) (time.Duration, error) {
			_, answer, err := like.run(ctx)
			return answer, err
		}},
		{"transformers", "transformers", filepath.Join(folder, "safetensors"), "safetensors", python, "from_pretrained and a forward pass in Python",
			func(ctx context.Context, like *command) (time.Duration, error) {
				return plainPython(ctx, python, filepath.Join(folder, "safetensors"), like)
			}},
		{"Ollama", "ollama", gguf, "gguf", ollama, "ollama serve and its API, the model created before", func(ctx context.Context, like *command) (time.Duration, error) {
			return plainOllama(ctx, filepath.Join(b.dir, "ollama"), gguf, like)
		}},
	} {
		line := fmt.Sprintf("load of 1 GB, %s, median of %d", e.name, loadRounds)
		if e.program == "" {
			b.notRun(line, "the engine is not installed; make setup installs it")
			continue
		}
		if err := b.compareLoads(ctx, s, line, "bench/"+e.engine, e.engine, e.path, e.format, e.how, e.alone); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

func (b *bench) compareLoads(ctx context.Context, s *server, line, id, engine, path, format, how string, alone func(context.Context, *command) (time.Duration, error)) error {
	if err := register(ctx, s, id, engine, path, format, nil); err != nil {
		return err
	}
	_, like, err := loadOnce(ctx, s, id) // also brings the files into the page cache
	if err != nil {
		return err
	}
	if _, err := alone(ctx, like); err != nil {
		return err
	}
	var ours, theirs []time.Duration
	for round := range loadRounds {
		b.say("loading 1 GB with %s, round %d", engine, round+1)
		steps := []func() error{
			func() error {
				took, _, err := loadOnce(ctx, s, id)
				ours = append(ours, took)
				return err
			},
			func() error {
				took, err := alone(ctx, like)
				theirs = append(theirs, took)
				return err
			},
		}
		if round%2 == 1 {
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
	}
	beyond := differences(ours, theirs)
	b.line(line, float64(median(ours)), 1.05*float64(median(theirs)), millis, fmt.Sprintf("%s … %s; %s: %s (%s … %s); beyond it %s (%s … %s)", ms(ours[0]), ms(ours[len(ours)-1]), how,
		ms(median(theirs)), ms(theirs[0]), ms(theirs[len(theirs)-1]), ms(median(beyond)), ms(beyond[0]), ms(beyond[len(beyond)-1])))
	return nil
}

// plainPython is how long Python takes to a first answer of the model, with the worker's environment.
func plainPython(ctx context.Context, python, folder string, like *command) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, python, "-c", plainPy, folder)
	cmd.Env = like.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe() // it ends with it
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	answered := bufio.NewScanner(out).Scan()
	took := time.Since(began)
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil || !answered {
		return 0, fmt.Errorf("plain Python: %w\n%s", err, stderr.String())
	}
	return took, nil
}

func locateOllama() string {
	if p := os.Getenv("LLMM_TEST_OLLAMA"); p != "" {
		return p
	}
	if cache, err := os.UserCacheDir(); err == nil {
		if found, err := filepath.Glob(filepath.Join(cache, "llmm", "engines", "ollama", "*", "bin", "ollama")); err == nil && len(found) > 0 {
			return slices.Max(found)
		}
	}
	return ""
}

// plainOllama is how long an Ollama takes from its start to a first answer of a model that it has: created before, which
// does not count, with the parameters that ours has.
func plainOllama(ctx context.Context, home, gguf string, like *command) (took time.Duration, err error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return 0, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return 0, err
	}
	host := "127.0.0.1:" + strconv.Itoa(port)
	env := slices.DeleteFunc(slices.Clone(like.env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "HOME" || name == "OLLAMA_MODELS" || name == "OLLAMA_HOST"
	})
	env = append(env, "HOME="+home, "OLLAMA_MODELS="+filepath.Join(home, "models"), "OLLAMA_HOST="+host)
	cmd := exec.CommandContext(ctx, like.argv[0], "serve")
	cmd.Env, cmd.Dir = env, home
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		killErr := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // it was killed
		err = errors.Join(err, killErr)
	}()
	api := &ollamaAPI{base: "http://" + host, client: &http.Client{Transport: &http.Transport{}}}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for up := false; !up; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
			up = api.post(ctx, "GET", "/api/version", nil) == nil
			if time.Since(began) > time.Minute {
				return 0, errors.New("ollama serve does not answer within a minute")
			}
		}
	}
	const name = "bench"
	if _, err := os.Stat(filepath.Join(home, "created")); err != nil {
		recipe := filepath.Join(home, "Modelfile")
		if err := os.WriteFile(recipe, []byte("FROM "+gguf+"\nPARAMETER num_ctx 2048\nPARAMETER num_gpu 0\nPARAMETER num_batch 512\n"), 0o600); err != nil {
			return 0, err
		}
		create := exec.CommandContext(ctx, like.argv[0], "create", name, "-f", recipe)
		create.Env, create.Dir = env, home
		if out, err := create.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("ollama create: %w\n%s", err, out)
		}
		if err := os.WriteFile(filepath.Join(home, "created"), nil, 0o600); err != nil {
			return 0, err
		}
	}
	if err := api.post(ctx, "POST", "/api/generate", map[string]any{"model": name, "keep_alive": -1, "stream": false}); err != nil {
		return 0, err
	}
	err = api.post(ctx, "POST", "/v1/completions", map[string]any{"model": name, "prompt": "Hi", "max_tokens": 1})
	return time.Since(began), err
}

type ollamaAPI struct {
	base   string
	client *http.Client
}

func (o *ollamaAPI) post(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, o.base+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", path, resp.Status, text)
	}
	return err
}
