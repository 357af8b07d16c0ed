package main

import (
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

// loadRounds is how often each way of loading is timed, after one of each that does not count.
const loadRounds = 5

// load measures what a load takes beyond what the engine alone needs for the same file: the same command is started by
// hand, in turn with loads over the API.
func (b *bench) load(ctx context.Context) error {
	const name = "load, beyond the engine alone, median of 5"
	engine, weights := locate()
	if engine == "" || weights == "" {
		b.notRun(name, fmt.Sprintf("no llama-server (%q) or weights (%q); make setup gets both, LLMM_TEST_LLAMA_SERVER and LLMM_TEST_GGUF name others", engine, weights))
		return nil
	}
	dir := filepath.Join(b.dir, "load")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	s, err := b.start(ctx, dir, "", "--llama-server", engine)
	if err != nil {
		return err
	}
	err = b.loadLine(ctx, s, name, weights)
	if stopErr := s.stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		return err
	}
	return b.loadLarge(ctx)
}

// locate finds the engine and the weights as the tests of the loader do; either may be "".
func locate() (engine, weights string) {
	engine, weights = os.Getenv("LLMM_TEST_LLAMA_SERVER"), os.Getenv("LLMM_TEST_GGUF")
	cache, err := os.UserCacheDir()
	if err != nil {
		return engine, weights
	}
	for _, f := range []struct {
		to      *string
		pattern string
	}{{&engine, "engines/llamacpp/*/llama-server"}, {&weights, "models/SmolLM2*.gguf"}, {&weights, "models/*.gguf"}} {
		found, err := filepath.Glob(filepath.Join(cache, "llmm", f.pattern))
		if *f.to == "" && err == nil && len(found) > 0 {
			*f.to = slices.Max(found)
		}
	}
	return engine, weights
}

func (b *bench) loadLine(ctx context.Context, s *server, name, weights string) error {
	const id = "bench/model"
	model, err := json.Marshal(map[string]any{"model_id": id, "source_type": "local", "source_path": weights, "model_format": "gguf", "device_preference": "cpu", "context_length": 2048})
	if err != nil {
		return err
	}
	if _, err := s.do(ctx, "POST", "/api/v1/models", model); err != nil {
		return err
	}
	var ours, alone, beyond, beyondAnswer, answered []time.Duration
	var byHand *command
	for round := range loadRounds + 1 {
		b.say("loading %s, round %d", filepath.Base(weights), round)
		var took, health, answer time.Duration
		steps := []func() (err error){
			func() (err error) {
				var cmd *command
				if took, cmd, err = loadOnce(ctx, s, id); byHand == nil {
					byHand = cmd
				}
				return err
			},
			func() (err error) {
				health, answer, err = byHand.run(ctx)
				return err
			},
		}
		if round%2 == 1 { // who comes second finds the machine as the first has left it
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		if round == 0 { // it read the file and its header for the first time
			b.fact("  the first load of a model", float64(took), millis, "not counted: the file is read and its header parsed")
			continue
		}
		ours, alone, answered = append(ours, took), append(alone, health), append(answered, answer)
		beyond, beyondAnswer = append(beyond, took-health), append(beyondAnswer, took-answer)
	}
	b.line(name, float64(median(beyond)), float64(100*time.Millisecond), millis,
		fmt.Sprintf("%s … %s; load %s (%s … %s), engine alone %s (%s … %s) to /health", ms(beyond[0]), ms(beyond[len(beyond)-1]), ms(median(ours)), ms(ours[0]), ms(ours[len(ours)-1]), ms(median(alone)), ms(alone[0]), ms(alone[len(alone)-1])))
	b.fact("  beyond the engine's first answer", float64(median(beyondAnswer)), millis, fmt.Sprintf("ready means that it has answered; the engine alone has after %s", ms(median(answered))))
	return nil
}

// loadOnce loads and unloads the model over the API and returns how long the load took, and its engine's command.
func loadOnce(ctx context.Context, s *server, id string) (time.Duration, *command, error) {
	path := "/api/v1/models/" + strings.ReplaceAll(id, "/", "%2F")
	var op struct {
		State string `json:"state"`
	}
	begun := time.Now()
	if err := s.json(ctx, "POST", path+"/load?wait=5m", nil, &op); err != nil {
		return 0, nil, err
	}
	took := time.Since(begun)
	if op.State != "succeeded" {
		return 0, nil, fmt.Errorf("the load ended as %s", op.State)
	}
	cmd, err := engineOf(ctx, s, id)
	if err != nil {
		return 0, nil, err
	}
	_, err = s.do(ctx, "POST", path+"/unload?wait=1m", nil)
	return took, cmd, err
}

// engineOf returns the command of the engine of a loaded model.
func engineOf(ctx context.Context, s *server, id string) (*command, error) {
	var res struct {
		Reservations []struct {
			ModelID string `json:"model_id"`
			PID     int    `json:"pid"`
		} `json:"reservations"`
	}
	if err := s.json(ctx, "GET", "/api/v1/resources", nil, &res); err != nil {
		return nil, err
	}
	for _, r := range res.Reservations {
		if r.ModelID == id && r.PID > 0 {
			return commandOf(r.PID)
		}
	}
	return nil, fmt.Errorf("the engine of %s is not among the reservations: %+v", id, res.Reservations)
}

// command is how the server started an engine, so that the same can be started by hand.
type command struct {
	argv, env []string
	dir, key  string
	client    *http.Client
}

func commandOf(pid int) (*command, error) {
	read := func(name string) ([]string, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), err
	}
	argv, err := read("cmdline")
	if err != nil {
		return nil, err
	}
	env, err := read("environ")
	if err != nil {
		return nil, err
	}
	// A connection for each question: the engine closes one after a hundred, which would be an error in the middle.
	c := &command{argv: argv, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	if c.dir, err = os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil {
		return nil, err
	}
	// Without the tag by which the server knows its own.
	c.env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "LLMM_INSTANCE=") })
	c.key = c.value("LLAMA_API_KEY")
	return c, nil
}

// value is a variable of the engine's environment; "" if it has none.
func (c *command) value(name string) string {
	for _, kv := range c.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// run starts the command on a port of its own and returns the time until /health is 200, and until a first answer.
func (c *command) run(ctx context.Context) (health, answer time.Duration, err error) {
	port, err := freePort(ctx)
	if err != nil {
		return 0, 0, err
	}
	argv := slices.Clone(c.argv)
	at := slices.Index(argv, "--port")
	if at < 0 || at+1 == len(argv) {
		return 0, 0, fmt.Errorf("%s was not started as llama.cpp is", argv[0])
	}
	argv[at+1] = strconv.Itoa(port)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = c.env, c.dir
	if _, err := os.Stat(c.dir); err != nil {
		cmd.Dir = "" // the instance's folder went with it
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// As we start it, the engine ends when its stdin does.
	stdin, hold, err := os.Pipe()
	if err != nil {
		return 0, 0, err
	}
	defer stdin.Close()
	defer hold.Close()
	cmd.Stdin = stdin
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		killErr := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if endErr := <-ended; endErr == nil {
			err = errors.Join(err, errors.New("the engine ended by itself while it was measured"))
		}
		if err == nil && !errors.Is(killErr, syscall.ESRCH) {
			err = killErr
		}
	}()
	base := "http://127.0.0.1:" + strconv.Itoa(port)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for health == 0 {
		select {
		case err := <-ended:
			ended <- err
			return 0, 0, fmt.Errorf("the engine ended when it was started by hand: %w", err)
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-tick.C:
		}
		if code, err := c.ask(ctx, "GET", base+"/health", nil); err == nil && code == http.StatusOK {
			health = time.Since(begun)
		}
		if time.Since(begun) > 5*time.Minute {
			return 0, 0, fmt.Errorf("the engine did not answer within five minutes when it was started by hand")
		}
	}
	code, err := c.ask(ctx, "POST", base+"/v1/completions", []byte(`{"prompt": "Hi", "max_tokens": 1}`))
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("the engine started by hand answers with %d", code)
	}
	return health, time.Since(begun), err
}

func (c *command) ask(ctx context.Context, method, url string, body []byte) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
