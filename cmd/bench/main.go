// Command bench measures the product against its budgets, on the real server: it builds the server, starts it on the
// loopback with a registry of its own in a temporary folder, and prints a line for each budget: what was measured, the
// budget, their ratio, and whether it was kept.
//
//	go run ./cmd/bench                     everything; about six minutes, and half an hour more for fetching
//	go run ./cmd/bench -only list,events   these groups: ready, list, register, files, load, worker, events, fetch
//	go run ./cmd/bench -models 1000000     with more models than the budgets are for
//
// The exit status says whether it could be measured, never whether it was fast: a busy machine is not a bug.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	b := &bench{out: os.Stdout, progress: os.Stderr}
	flag.IntVar(&b.models, "models", 100_000, "how many models are registered")
	flag.DurationVar(&b.span, "for", 8*time.Second, "how long each line of requests takes")
	flag.IntVar(&b.rate, "rate", 50, "requests per second of the list, search and filter lines")
	flag.StringVar(&b.dir, "dir", "", "`folder` for registries and logs, kept at the end; a temporary one if not given")
	flag.IntVar(&b.fetchMB, "fetch-mb", 2000, "megabytes of shards that are fetched")
	flag.IntVar(&b.fetchRounds, "fetch-rounds", 5, "how often each client fetches them")
	flag.StringVar(&b.fetchOnly, "fetch-only", "", "`part` of a name: fetch only in the weathers that have it: as fast, Xet, edges, fail")
	only := flag.String("only", "", "comma-separated `groups` to measure: "+strings.Join(groupNames(), ", "))
	flag.Parse()
	if flag.Arg(0) == asPlain {
		if err := servePlain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if flag.Arg(0) == asFetcher {
		if err := fetchAsChild(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(800) // its own collections would take a CPU from the server that it measures
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := b.run(ctx, *only)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	out, progress io.Writer
	models, rate  int
	span          time.Duration
	dir           string // everything that is written is below it
	binary        string // the server
	token         string // the API token of its account admin
	failed        []string
	full          string // the data folder with all models, once it is prepared

	fetchMB, fetchRounds int
	fetchOnly            string
}

// groups are what can be asked for with -only, in the order in which they run.
var groups = []struct {
	name    string
	measure func(*bench, context.Context) error
}{
	{"ready", (*bench).ready},
	{"list", (*bench).list},
	{"register", (*bench).register},
	{"files", (*bench).files},
	{"load", (*bench).load},
	{"worker", (*bench).worker},
	{"events", (*bench).events},
	{"fetch", (*bench).fetch},
}

func groupNames() []string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = g.name
	}
	return names
}

func (b *bench) run(ctx context.Context, only string) error {
	var wanted []string
	for name := range strings.SplitSeq(only, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !slices.Contains(groupNames(), name) {
			return fmt.Errorf("there is no group %q; there are %s", name, strings.Join(groupNames(), ", "))
		}
		wanted = append(wanted, name)
	}
	if b.models < 1000 || b.span < time.Second || b.rate < 1 {
		return fmt.Errorf("-models must be at least 1000, -for at least 1s, -rate at least 1")
	}
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "llmm-bench-")
		if err != nil {
			return err
		}
		defer func() {
			if err := os.RemoveAll(dir); err != nil {
				b.say("%s could not be removed: %v", dir, err)
			}
		}()
		b.dir = dir
	} else if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	b.token = "llmm_bench_" + rand.Text()
	b.binary = filepath.Join(b.dir, "llmm")
	b.say("building the server")
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, ".")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("the server does not build: %w\n%s", err, out)
	}
	b.header()
	begun, stolen := time.Now(), stolenTime()
	for _, g := range groups {
		if len(wanted) > 0 && !slices.Contains(wanted, g.name) {
			continue
		}
		if err := g.measure(b, ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			// One group that cannot be measured keeps none of the others from it.
			b.failed = append(b.failed, g.name)
			fmt.Fprintf(b.out, "%-46s COULD NOT RUN: %v\n", g.name, err)
		}
	}
	fmt.Fprintf(b.out, "\nload average at the end %s; of %.0f s on %d CPUs the hypervisor gave %.1f s to others\n",
		loadAverage(), time.Since(begun).Seconds(), runtime.NumCPU(), (stolenTime() - stolen).Seconds())
	if len(b.failed) > 0 {
		return fmt.Errorf("could not measure: %s", strings.Join(b.failed, ", "))
	}
	return nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", fmt.Errorf("run this inside of the repository")
	}
	return filepath.Dir(mod), nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "… "+format+"\n", args...)
}

// header says where and when: a figure means nothing without its machine and what else it was doing.
func (b *bench) header() {
	fmt.Fprintf(b.out, "%s, %s/%s, %d CPUs, load average %s, %s, %d models\n\n", time.Now().UTC().Format("2006-01-02 15:04 MST"),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), loadAverage(), runtime.Version(), b.models)
	fmt.Fprintf(b.out, "%-46s %12s %12s %7s\n", "", "measured", "budget", "ratio")
}

// loadAverage is how many processes wanted a CPU in the last minute, ours included.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// stolenTime is how long this machine wanted to run and another one on the same hardware did, since it was started. Whoever
// waits for that waits for tens of milliseconds at a time.
func stolenTime() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal …, in hundredths of a second
	if len(fields) < 9 {
		return 0
	}
	ticks, err := strconv.ParseInt(fields[8], 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// unit is what a line counts.
type unit struct {
	name string
	per  float64 // of the base unit
}

var (
	micros    = unit{"µs", float64(time.Microsecond)}
	millis    = unit{"ms", float64(time.Millisecond)}
	seconds   = unit{"s", float64(time.Second)}
	megabytes = unit{"MB", 1e6}
)

// line prints one result. Note is what has to be known to judge it.
func (b *bench) line(name string, measured, budget float64, u unit, note string) {
	verdict := "ok"
	if measured > budget {
		verdict = "OVER"
	}
	fmt.Fprintf(b.out, "%-46s %9.1f %-2s %9.0f %-2s %7.2f  %-4s %s\n", name, measured/u.per, u.name, budget/u.per, u.name, measured/budget, verdict, note)
}

// fact prints a figure that has no budget.
func (b *bench) fact(name string, measured float64, u unit, note string) {
	fmt.Fprintf(b.out, "%-46s %9.1f %-2s %12s %7s  %-4s %s\n", name, measured/u.per, u.name, "", "", "", note)
}

// notRun says loudly that a line is missing.
func (b *bench) notRun(name, why string) {
	fmt.Fprintf(b.out, "%-46s NOT RUN: %s\n", name, why)
}

// quantile returns the q-th quantile of durations, by the nearest rank. It sorts them.
func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	return ds[min(len(ds)-1, max(0, int(float64(len(ds))*q+0.999999)-1))]
}

func median(ds []time.Duration) time.Duration { return quantile(ds, 0.5) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
