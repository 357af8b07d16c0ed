package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// The repository that is fetched: as many shards as the Hub's own client fetches at once, so that it is at its best.
const (
	fetchRepo   = "bench/shards"
	fetchShards = 8
	curls       = 8 // processes that fetch ranges, one connection each
)

// peakMemory is what our client may take, in bytes.
const peakMemory = 200e6

// fetcher is one program that fetches the whole repository into a folder.
type fetcher struct {
	name    string
	command func(ctx context.Context, home string) ([]*exec.Cmd, error)
	ranges  bool // its files are ranges of those that are served
	sync    bool // its files are synced afterwards, within the time: it leaves them in the page cache, and ours brings them to the disk
}

// fetched is what one fetch took.
type fetched struct {
	took  time.Duration // as the program says, without its start; from outside where it says nothing
	page  time.Duration // with sync, until all was in the page cache
	cpu   time.Duration // of all its processes, their start included
	peak  float64       // resident bytes, at most
	tries int           // until it had everything
}

// weather is how the Hub behaves. Python's fast mode (HF_XET_HIGH_PERFORMANCE, the only one that its newest client has)
// differs from its default only where the Hub offers Xet; elsewhere the two show how far two figures of the same thing
// are apart.
type weather struct {
	name  string
	flags []string
	than  float64 // how many times the throughput of the Hub's own client is asked for
	curl  bool    // compare with plain ranges, too
}

var weathers = []weather{
	{"the Hub as fast as it goes", nil, 1.5, true},
	{"the Hub offers Xet", []string{"--xet"}, 1.5, true},
	{"edges of 8.7 and 68 MB/s", []string{"--cap-edges", "8.7MB,68MB"}, 1, false},
	{"20% of the requests fail", []string{"--fail-rate", "0.2"}, 1, false},
}

// fetch measures fetching from the same local Hub: ours, the Hub's own client at its two settings, and curl. They take
// turns, each into an empty cache on the same disk.
func (b *bench) fetch(ctx context.Context) error {
	python, err := hubtest.FindPython()
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("curl"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	hub := filepath.Join(b.dir, "fakehub")
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", hub, "./cmd/fakehub")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("the local Hub does not build: %w\n%s", err, out)
	}
	served := filepath.Join(b.dir, "hub")
	b.say("writing %d MB of shards", b.fetchMB)
	if err := writeShards(filepath.Join(served, filepath.FromSlash(fetchRepo)), int64(b.fetchMB)*1e6); err != nil {
		return err
	}
	for _, w := range weathers {
		if b.fetchOnly != "" && !strings.Contains(w.name, b.fetchOnly) {
			continue
		}
		if err := b.fetchIn(ctx, w, hub, served, []fetcher{
			{name: "ours", command: ours(self)},
			{name: "Python", command: theirs(python)},
			{name: "Python in its fast mode", command: theirs(python, "HF_XET_HIGH_PERFORMANCE=1")},
		}); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return errors.Join(os.RemoveAll(served), os.RemoveAll(filepath.Join(b.dir, "fetched")))
}

// fetchIn measures all fetchers in one weather and prints its lines.
func (b *bench) fetchIn(ctx context.Context, w weather, hub, served string, fetchers []fetcher) (err error) {
	h, err := startHub(ctx, hub, served, w.flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	if w.curl {
		fetchers = append(fetchers, fetcher{name: "curl", command: plain(h.url, served), sync: true, ranges: true})
	}
	results := make([][]fetched, len(fetchers))
	// The first round warms what there is to warm, and does not count.
	for round := range b.fetchRounds + 1 {
		for i, f := range fetchers {
			b.say("%s: round %d, %s", w.name, round, f.name)
			r, err := b.fetchOnce(ctx, h, f, served)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			b.say("  %.0f MB/s, %.1f s of CPU, %.0f MB, %d attempts", float64(b.fetchMB)/r.took.Seconds(), r.cpu.Seconds(), r.peak/1e6, r.tries)
			if round > 0 {
				results[i] = append(results[i], r)
			}
		}
	}
	b.fetchLines(w, fetchers, results)
	return nil
}

// fetchLines prints what was measured: times, since the less of them the better.
func (b *bench) fetchLines(w weather, fetchers []fetcher, results [][]fetched) {
	took := func(i int) time.Duration { return middle(results[i], func(f fetched) time.Duration { return f.took }) }
	cpu := func(i int) time.Duration { return middle(results[i], func(f fetched) time.Duration { return f.cpu }) }
	peak := func(i int) float64 {
		return slices.MaxFunc(results[i], func(a, b fetched) int { return int(a.peak - b.peak) }).peak
	}
	speed := func(d time.Duration) float64 { return float64(b.fetchMB) / d.Seconds() }
	fmt.Fprintf(b.out, "fetch %d MB, %s, median of %d\n", b.fetchMB, w.name, len(results[0]))
	mine := took(0)
	for i, f := range fetchers {
		if i == 0 {
			continue
		}
		than := w.than
		if f.name == "curl" {
			than = 0.8 // it puts nothing together and verifies nothing
		}
		theirs := took(i)
		note := fmt.Sprintf("ours %.0f MB/s, %s %.0f MB/s: %.2f×; CPU %.1f s and %.1f s, memory %.0f and %.0f MB", speed(mine), f.name, speed(theirs),
			theirs.Seconds()/mine.Seconds(), cpu(0).Seconds(), cpu(i).Seconds(), peak(0)/1e6, peak(i)/1e6)
		if f.sync {
			note += fmt.Sprintf("; it synced its files at the end as ours does while it fetches, without that it had %.0f MB/s", speed(middle(results[i], func(f fetched) time.Duration { return f.page })))
		}
		note += "; ours " + restarts(results[0]) + ", " + f.name + " " + restarts(results[i])
		b.line(fmt.Sprintf("  at least %.1f× %s", than, f.name), float64(mine), float64(theirs)/than, millis, note)
	}
	b.line("  our peak memory", peak(0), peakMemory, megabytes, fmt.Sprintf("%.1f s of CPU", cpu(0).Seconds()))
}

// restarts says how often a program gave up and was started anew, in its measured rounds together.
func restarts(rs []fetched) string {
	n := -len(rs)
	for _, r := range rs {
		n += r.tries
	}
	if n == 0 {
		return "never gave up"
	}
	return fmt.Sprintf("gave up and was started anew %d times in %d rounds", n, len(rs))
}

func middle(rs []fetched, of func(fetched) time.Duration) time.Duration {
	ds := make([]time.Duration, len(rs))
	for i, r := range rs {
		ds[i] = of(r)
	}
	return median(ds)
}

// fetchOnce lets one fetcher fetch everything into an empty folder, and looks whether it did.
func (b *bench) fetchOnce(ctx context.Context, h *hubProcess, f fetcher, served string) (fetched, error) {
	home := filepath.Join(b.dir, "fetched")
	if err := os.RemoveAll(home); err != nil {
		return fetched{}, err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return fetched{}, err
	}
	// What those before wrote is not to be written while this one is measured.
	syscall.Sync()
	if err := h.reset(ctx); err != nil {
		return fetched{}, err
	}
	cmds, err := f.command(ctx, home)
	if err != nil {
		return fetched{}, err
	}
	var r fetched
	began := time.Now()
	outs := make([]bytes.Buffer, len(cmds))
	errs := make([]bytes.Buffer, len(cmds))
	failed := make([]error, len(cmds))
	var wg sync.WaitGroup
	for i, c := range cmds {
		c.Env = append(c.Env, "HF_ENDPOINT="+h.url, "HF_HOME="+home)
		c.Stdout, c.Stderr = &outs[i], &errs[i]
		if err := c.Start(); err != nil {
			return fetched{}, err
		}
		wg.Go(func() { failed[i] = c.Wait() })
	}
	wg.Wait()
	r.page = time.Since(began)
	if f.sync {
		if err := syncFiles(home); err != nil {
			return fetched{}, err
		}
	}
	r.took, r.tries = time.Since(began), 1
	for i, c := range cmds {
		if failed[i] != nil {
			text := errs[i].String()
			return fetched{}, fmt.Errorf("%w\n%s", failed[i], text[max(0, len(text)-2000):])
		}
		usage, ok := c.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			return fetched{}, errors.New("this system does not say what a process used")
		}
		r.cpu += c.ProcessState.UserTime() + c.ProcessState.SystemTime()
		r.peak += float64(usage.Maxrss) * 1024
	}
	var said struct {
		Seconds float64 `json:"seconds"`
		Tries   int     `json:"tries"`
	}
	if out := bytes.TrimSpace(outs[0].Bytes()); len(out) > 0 {
		if err := json.Unmarshal(out, &said); err != nil {
			return fetched{}, fmt.Errorf("it says %q: %w", out, err)
		}
		r.took, r.tries = time.Duration(said.Seconds*float64(time.Second)), said.Tries
	}
	return r, sameBytes(home, served, !f.ranges)
}

// syncFiles brings every file below a folder to the disk.
func syncFiles(dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// sameBytes tells whether the weights below a folder are those that are served: as many bytes, and with content each
// file by its SHA-256, whatever it is called there. Without it files may be ranges of those that are served.
func sameBytes(home, served string, content bool) error {
	want, err := weightsBelow(served, content)
	if err != nil {
		return err
	}
	got, err := weightsBelow(home, content)
	if err != nil {
		return err
	}
	if got.bytes != want.bytes {
		return fmt.Errorf("%d bytes were fetched, not %d", got.bytes, want.bytes)
	}
	if content && !slices.Equal(got.sums, want.sums) {
		return fmt.Errorf("the content of what was fetched is not what is served: %d files of %d", len(got.sums), len(want.sums))
	}
	return nil
}

// weights are files of weights: their bytes together and, sorted, the SHA-256 of each.
type weights struct {
	bytes int64
	sums  []string
}

func weightsBelow(dir string, content bool) (w weights, err error) {
	err = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "xet" {
			return filepath.SkipDir // Python's own notes
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err != nil || fi.Size() <= 100_000 { // settings, or notes of a cache
			return err
		}
		w.bytes += fi.Size()
		if !content {
			return nil
		}
		sum, err := sumOf(p)
		w.sums = append(w.sums, sum)
		return err
	})
	slices.Sort(w.sums)
	return w, err
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

// writeShards writes a model of random bytes: nothing on the way can make less of them.
func writeShards(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	index := map[string]string{}
	random := rand.NewChaCha8([32]byte{1})
	for i := range fetchShards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, fetchShards)
		n := size / fetchShards / 8 * 8
		tensor := fmt.Sprintf("w%d", i)
		index[tensor] = name
		header := fmt.Appendf(nil, `{%q:{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, tensor, n, n)
		if err := writeShard(filepath.Join(dir, name), header, random, n); err != nil {
			return err
		}
	}
	text, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": size}, "weight_map": index})
	if err != nil {
		return err
	}
	config := `{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}`
	return errors.Join(os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), text, 0o600),
		os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600))
}

func writeShard(path string, header []byte, random io.Reader, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	length := []byte{byte(len(header)), byte(len(header) >> 8), 0, 0, 0, 0, 0, 0}
	_, err = w.Write(append(length, header...))
	if err == nil {
		_, err = io.CopyN(w, random, n)
	}
	return errors.Join(err, w.Flush(), f.Close())
}

// hubProcess is a running cmd/fakehub.
type hubProcess struct {
	url string
	cmd *exec.Cmd
}

func startHub(ctx context.Context, binary, root string, flags []string) (*hubProcess, error) {
	cmd := exec.CommandContext(ctx, binary, append([]string{"--root", root, "--listen", "127.0.0.1:0", "--cdn", "127.0.0.1:0", "--expiry", "24h"}, flags...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	h := &hubProcess{cmd: cmd}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if url, ok := strings.CutPrefix(lines.Text(), "export HF_ENDPOINT="); ok {
			h.url = url
			return h, nil
		}
	}
	return nil, errors.Join(errors.New("the local Hub did not say where it is"), h.stop())
}

func (h *hubProcess) stop() error {
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return h.cmd.Wait()
}

// reset sets the counters to zero.
func (h *hubProcess) reset(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, h.url+"/-/hubtest/served", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
