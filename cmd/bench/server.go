package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is one run of the real server.
type server struct {
	cmd    *exec.Cmd
	base   string // http://127.0.0.1:PORT
	token  string
	log    string
	client *http.Client
	began  time.Time
	ready  time.Duration // from its start to the first 200 of /readyz
	ended  chan struct{} // closed when it has ended, with exit
	exit   error
}

// start starts the server on dir, with a models file if models is not "", and returns when it is ready. Stop it.
func (b *bench) start(ctx context.Context, dir, models string, flags ...string) (*server, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	addr := "127.0.0.1:" + strconv.Itoa(port)
	args := append([]string{"serve", "--listen", addr, "--data-dir", dir}, flags...)
	if models != "" {
		args = append(args, "--models", models)
	}
	s := &server{base: "http://" + addr, token: b.token, log: filepath.Join(b.dir, "server.log"), ended: make(chan struct{})}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.client = newClient()
	// Not ended with ctx: it is told to stop, so that it ends its engines.
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), b.binary, args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LLMM_") {
			s.cmd.Env = append(s.cmd.Env, kv)
		}
	}
	s.cmd.Env = append(s.cmd.Env, "LLMM_ADMIN_PASSWORD="+b.token, "LLMM_ADMIN_TOKEN="+b.token)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.began = time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.exit = s.cmd.Wait()
		close(s.ended)
	}()
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// newClient keeps its connections. It follows no redirects: a page that sends to the sign-in is not the page that is
// measured.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxIdleConns: 256},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// awaitReady asks every millisecond, on a connection of its own each time until one is accepted.
func (s *server) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := s.do(ctx, "GET", "/readyz", nil); err == nil {
			s.ready = time.Since(s.began)
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("the server ended before it was ready: %w\n%s", s.exit, tail(s.log))
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if time.Since(s.began) > 2*time.Minute {
				return fmt.Errorf("the server was not ready after two minutes\n%s", tail(s.log))
			}
		}
	}
}

// stop ends the server: gracefully, or after a minute by force.
func (s *server) stop() error {
	s.client.CloseIdleConnections()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(time.Minute):
	}
	err := s.cmd.Process.Kill()
	<-s.ended
	return errors.Join(fmt.Errorf("the server did not stop within a minute\n%s", tail(s.log)), err)
}

func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err = errors.Join(err, l.Close()); err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// tail is the end of a log, for a message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// memory reads a line of /proc/PID/status, in bytes.
func (s *server) memory(name string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kb * 1024, err
		}
	}
	return 0, fmt.Errorf("/proc has no %s", name)
}

// do sends one request and returns the whole answer. Any status but one of the 200s is an error.
func (s *server) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, out)
	}
	return out, nil
}

// json is do with the answer decoded into v.
func (s *server) json(ctx context.Context, method, path string, body []byte, v any) error {
	out, err := s.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, v)
}
