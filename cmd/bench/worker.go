package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
)

// Python that is run beside the worker.
var (
	//go:embed python/weights.py
	weightsPy string
	//go:embed python/plain.py
	plainPy string
	//go:embed python/inprocess.py
	inProcessPy string
)

// Rounds of the worker's lines, and how many tokens a stream has. A round is one of each way, in turns: many short ones, so
// that what else happens on the machine meets all ways alike.
const (
	requestRounds = 400
	streamRounds  = 200
	streamTokens  = 32
)

// worker measures what the transformers worker's HTTP costs beyond the model: the same prompt is answered by a loaded
// worker, over one connection, and by a process that has the worker's own engine and no HTTP. Both have the same settings,
// environment and CPUs, and take turns.
func (b *bench) worker(ctx context.Context) (err error) {
	python, err := pythonOf(ctx)
	if err != nil {
		b.notRun("worker", err.Error())
		return nil
	}
	folder, err := b.weights(ctx, python, "tiny")
	if err != nil {
		return err
	}
	const id = "bench/tiny"
	dir := filepath.Join(b.dir, "worker")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	s, err := b.start(ctx, dir, "", "--transformers-python", python)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := register(ctx, s, id, "transformers", filepath.Join(folder, "safetensors"), "safetensors", map[string]any{"threads": 1}); err != nil {
		return err
	}
	if _, err := s.do(ctx, "POST", "/api/v1/models/bench%2Ftiny/load?wait=5m", nil); err != nil {
		return err
	}
	cmd, err := engineOf(ctx, s, id)
	if err != nil {
		return err
	}
	over, err := newWorkerClient(ctx, cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, over.conn.Close()) }()
	in, err := startInProcess(ctx, python, cmd)
	if err != nil {
		return err
	}
	defer in.stop()
	request, err := b.workerRequests(ctx, over, in)
	if err != nil {
		return err
	}
	err = b.workerStreams(ctx, over, in, request)
	return err
}

const workerPrompt = "Once upon a time"

// workerRequests answers with one token each, which is the least that a model does for a request, and returns what a
// request costs beyond the engine.
func (b *bench) workerRequests(ctx context.Context, over *workerClient, in *inProcess) (time.Duration, error) {
	b.say("asking the worker %d times", requestRounds)
	got, err := inTurn(requestRounds, 20, []way{
		func() (time.Duration, string, error) { return over.complete(ctx, 1) },
		func() (time.Duration, string, error) { return in.ask("engine", 1) },
		func() (time.Duration, string, error) { return in.ask("plain", 1) },
	})
	if err != nil {
		return 0, err
	}
	beyond := differences(got[0], got[1])
	b.line(fmt.Sprintf("worker, a request beyond its engine, of %d", requestRounds), float64(median(beyond)), float64(time.Millisecond), micros,
		fmt.Sprintf("median of the rounds' differences, %s; half of them %s; one token: HTTP %s, in-process %s", sure(beyond, 1), half(beyond, 1), ms(median(got[0])), ms(median(got[1]))))
	b.fact("  beyond transformers' generate()", float64(median(differences(got[0], got[2]))), micros, "which alone takes "+ms(median(got[2])))
	return median(beyond), nil
}

// half is the middle half of durations, each divided by n, in microseconds.
func half(ds []time.Duration, n float64) string {
	return fmt.Sprintf("%.0f … %.0f µs", float64(quantile(ds, .25))/n/1e3, float64(quantile(ds, .75))/n/1e3)
}

// sure is where the median of what the durations are samples of lies, each divided by n, with a probability of 95%, whatever
// their distribution: between two of them in their order, of which as many lie below the one as above the other.
func sure(ds []time.Duration, n float64) string {
	low, high := medianBounds(len(ds))
	slices.Sort(ds)
	return fmt.Sprintf("95%% sure: %.0f … %.0f µs", float64(ds[low])/n/1e3, float64(ds[high])/n/1e3)
}

// medianBounds are the indices, in order, of the samples between which the median lies with 95%: of n fair coins, fewer than
// n/2 − 0.98√n show heads in one case of forty.
func medianBounds(n int) (low, high int) {
	low = max(0, int(float64(n)/2-0.98*math.Sqrt(float64(n))))
	return low, n - 1 - low
}

// workerStreams answers with many tokens, each in an event of its own. What a request costs anyway is taken off, so that the
// rest is the tokens'.
func (b *bench) workerStreams(ctx context.Context, over *workerClient, in *inProcess, request time.Duration) error {
	b.say("streaming %d times %d tokens", streamRounds, streamTokens)
	got, err := inTurn(streamRounds, 2, []way{
		func() (time.Duration, string, error) { return over.stream(ctx, streamTokens) },
		func() (time.Duration, string, error) { return in.ask("engine", streamTokens) },
		func() (time.Duration, string, error) { return in.ask("plain", streamTokens) },
	})
	if err != nil {
		return err
	}
	const n = streamTokens - 1
	beyond, plain := differences(got[0], got[1]), differences(got[0], got[2])
	for i := range beyond {
		beyond[i], plain[i] = beyond[i]-request, plain[i]-request
	}
	b.line(fmt.Sprintf("worker, a streamed token beyond its engine, of %d", streamTokens), float64(median(beyond))/n, float64(50*time.Microsecond), micros,
		fmt.Sprintf("median of the differences of %d rounds, %s; half of them %s; a token takes %s over HTTP, %s in-process", streamRounds, sure(beyond, n), half(beyond, n), ms(median(got[0])/streamTokens), ms(median(got[1])/streamTokens)))
	b.fact("  beyond transformers' generate()", float64(median(plain))/n, micros, "which streams nothing, and takes "+ms(median(got[2])/streamTokens)+" a token")
	return nil
}

// way answers the prompt once and returns how long that took.
type way func() (took time.Duration, text string, err error)

// inTurn lets each way answer twice a round, beginning with another one each time, and returns what each took the second
// time, round by round: the first finds the CPU's caches as the other process has left them, which is no cost of either. The
// first rounds do not count. All must give the same text: else they did not do the same.
func inTurn(rounds, first int, ways []way) ([][]time.Duration, error) {
	got := make([][]time.Duration, len(ways))
	for round := range rounds + first {
		texts := make([]string, len(ways))
		for i := range ways {
			i = (i + round) % len(ways)
			if _, _, err := ways[i](); err != nil {
				return nil, err
			}
			took, text, err := ways[i]()
			if err != nil {
				return nil, err
			}
			texts[i] = text
			if round >= first {
				got[i] = append(got[i], took)
			}
		}
		for _, text := range texts {
			if text != texts[0] || text == "" {
				return nil, fmt.Errorf("the answers differ: %q", texts)
			}
		}
	}
	return got, nil
}

// differences are a − c, round by round.
func differences(a, c []time.Duration) []time.Duration {
	out := make([]time.Duration, len(a))
	for i := range a {
		out[i] = a[i] - c[i]
	}
	return out
}

// pythonOf finds the interpreter as the tests do.
func pythonOf(ctx context.Context) (string, error) {
	o := transformers.Options{Python: os.Getenv("LLMM_TEST_TRANSFORMERS_PYTHON")}
	if cache, err := os.UserCacheDir(); err == nil {
		o.SearchDirs = []string{filepath.Join(cache, "llmm", "engines")}
	}
	v, err := transformers.New(o).Check(ctx)
	return v.Path, err
}

// weights makes the random model of a size, once for a folder of benchmarks, and returns where it is.
func (b *bench) weights(ctx context.Context, python, size string) (string, error) {
	folder := filepath.Join(b.dir, "weights-"+size)
	if _, err := os.Stat(filepath.Join(folder, "complete")); err == nil {
		return folder, nil
	}
	b.say("making the %s model", size)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, python, "-c", weightsPy, size, folder).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("the %s model cannot be made: %w\n%s", size, err, out)
	}
	return folder, nil
}

func register(ctx context.Context, s *server, id, engine, path, format string, params map[string]any) error {
	model := map[string]any{"model_id": id, "engine": engine, "source_type": "local", "source_path": path, "model_format": format, "device_preference": "cpu",
		"context_length": 2048, "custom_loader_params": params}
	body, err := json.Marshal(model)
	if err != nil {
		return err
	}
	_, err = s.do(ctx, "POST", "/api/v1/models", body)
	return err
}

// workerClient asks a worker directly, on one connection to its socket, from one goroutine: what is timed is the worker's
// HTTP, not the handing over between the goroutines of a pool of connections.
type workerClient struct {
	conn net.Conn
	in   *bufio.Reader
	key  string
}

func newWorkerClient(ctx context.Context, cmd *command) (*workerClient, error) {
	var settings struct {
		Socket string `json:"socket"`
	}
	if err := json.Unmarshal([]byte(cmd.value("LLMM_WORKER")), &settings); err != nil || settings.Socket == "" {
		return nil, fmt.Errorf("%s was not started as our worker is: %w", cmd.argv[0], err)
	}
	base, err := netaddr.SocketBase(settings.Socket)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{}
	base.Transport(t)
	conn, err := t.DialContext(ctx, "", "")
	if err != nil {
		return nil, err
	}
	return &workerClient{conn: conn, in: bufio.NewReader(conn), key: cmd.value("LLMM_WORKER_KEY")}, nil
}

func (w *workerClient) post(ctx context.Context, tokens int, stream bool) (*http.Response, error) {
	body, err := json.Marshal(map[string]any{"prompt": workerPrompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": stream})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker/v1/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	var sent bytes.Buffer
	if err := req.Write(&sent); err != nil {
		return nil, err
	}
	if err := w.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := w.conn.Write(sent.Bytes()); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(w.in, req)
	if err == nil && resp.StatusCode != http.StatusOK {
		text, readErr := io.ReadAll(resp.Body)
		return nil, errors.Join(fmt.Errorf("the worker answers with %s: %.300s", resp.Status, text), readErr, resp.Body.Close())
	}
	return resp, err
}

type completionChunk struct {
	Choices []struct {
		Text string `json:"text"`
	} `json:"choices"`
}

func (c completionChunk) text() string {
	if len(c.Choices) == 0 {
		return ""
	}
	return c.Choices[0].Text
}

func (w *workerClient) complete(ctx context.Context, tokens int) (time.Duration, string, error) {
	began := time.Now()
	resp, err := w.post(ctx, tokens, false)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	took := time.Since(began)
	var got completionChunk
	return took, got.textOf(b), err
}

// textOf decodes one answer or event; what is none has no text.
func (c completionChunk) textOf(b []byte) string {
	if json.Unmarshal(b, &c) != nil {
		return ""
	}
	return c.text()
}

// stream times the whole stream. What the events say is read afterwards.
func (w *workerClient) stream(ctx context.Context, tokens int) (time.Duration, string, error) {
	began := time.Now()
	resp, err := w.post(ctx, tokens, true)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var events []string
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			events = append(events, data)
		}
	}
	took := time.Since(began)
	if err := lines.Err(); err != nil {
		return 0, "", err
	}
	if len(events) < tokens {
		return 0, "", fmt.Errorf("a stream of %d tokens had only %d events", tokens, len(events))
	}
	var text strings.Builder
	for _, e := range events {
		text.WriteString(completionChunk{}.textOf([]byte(e)))
	}
	return took, text.String(), nil
}

// inProcess is a process with the same model and no HTTP.
type inProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err *bytes.Buffer
}

// startInProcess starts it with the environment of a worker, and returns when it has loaded.
func startInProcess(ctx context.Context, python string, like *command) (*inProcess, error) {
	p := &inProcess{cmd: exec.CommandContext(ctx, python, "-c", inProcessPy), err: &bytes.Buffer{}}
	p.cmd.Env, p.cmd.Stderr = append(slices.Clone(like.env), "PYTHONPATH="+like.argv[len(like.argv)-1]), p.err // its last argument is its folder
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if _, _, err := p.answer(); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func (p *inProcess) stop() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
}

// ask is timed by the process itself: what crosses the pipe does not count.
func (p *inProcess) ask(how string, tokens int) (time.Duration, string, error) {
	if err := json.NewEncoder(p.in).Encode(map[string]any{"how": how, "prompt": workerPrompt, "tokens": tokens}); err != nil {
		return 0, "", err
	}
	return p.answer()
}

func (p *inProcess) answer() (time.Duration, string, error) {
	if !p.out.Scan() {
		return 0, "", errors.Join(fmt.Errorf("the process without HTTP ended: %s", p.err), p.out.Err())
	}
	var a struct {
		NS   int64  `json:"ns"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(slices.Clone(p.out.Bytes()), &a); err != nil {
		return 0, "", fmt.Errorf("%w in %.200s", err, p.out.Bytes())
	}
	return time.Duration(a.NS), a.Text, nil
}
