package main

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// starts is how many times the start is measured.
const starts = 7

// ready measures the time to the first 200 of /readyz with all models registered, and the memory when idle after that.
func (b *bench) ready(ctx context.Context) error {
	dir, file, err := b.fullRegistry(ctx)
	if err != nil {
		return err
	}
	b.say("starting the server %d times", starts)
	var took []time.Duration
	for i := range starts {
		s, err := b.start(ctx, dir, file)
		if err != nil {
			return err
		}
		took = append(took, s.ready)
		if i == starts-1 {
			err = b.idle(ctx, s)
		}
		if stopErr := s.stop(); err == nil {
			err = stopErr
		}
		if err != nil {
			return err
		}
	}
	b.line("server ready, median of 7 starts", float64(median(took)), float64(150*time.Millisecond), millis, fmt.Sprintf("%s … %s; files in the page cache", ms(took[0]), ms(took[len(took)-1])))
	return nil
}

func (b *bench) idle(ctx context.Context, s *server) error {
	b.say("idling for 5 s")
	select {
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	all, err := s.memory("VmRSS")
	if err != nil {
		return err
	}
	own, err := s.memory("RssAnon")
	if err != nil {
		return err
	}
	b.line("resident memory after 5 s idle", all, 60e6, megabytes, fmt.Sprintf("of these %.1f MB its own, the rest pages of files", own/1e6))
	return nil
}

// list measures the list, search and filter over HTTP, each at a fixed rate, and the console's page.
func (b *bench) list(ctx context.Context) error {
	dir, file, err := b.fullRegistry(ctx)
	if err != nil {
		return err
	}
	s, err := b.start(ctx, dir, file)
	if err != nil {
		return err
	}
	err = b.listLines(ctx, s)
	if stopErr := s.stop(); err == nil {
		err = stopErr
	}
	return err
}

func (b *bench) listLines(ctx context.Context, s *server) (err error) {
	nothing, err := startPlain(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nothing.stop()) }()
	rnd := rand.New(rand.NewPCG(1, 2)) // the same requests in every run
	anyModel := func() int { return rnd.IntN(b.models) }
	const api = "/api/v1/models?limit=50"
	lines := []struct {
		name string
		path func() string
		hits func(total, n int) bool // whether the answer is what was asked for
	}{
		{"list, first page", func() string { return api }, func(total, n int) bool { return total >= b.models && n == 50 }},
		{"list, deep page", func() string { return api + "&after=" + url.QueryEscape(modelAt(anyModel()).ModelID) }, func(total, _ int) bool { return total >= b.models }},
		{"search, one hit", func() string { return fmt.Sprintf("%s&q=instruct-%06d", api, anyModel()) }, func(_, n int) bool { return n >= 1 }},
		{"search, many hits", func() string { return api + "&q=" + families[anyModel()%len(families)] + "+support+desk" }, func(total, n int) bool { return n == 50 && total > 50 }},
		{"search, hundreds of hits, new words", func() string { return fmt.Sprintf("%s&q=%03d", api, rnd.IntN(1000)) }, func(_, n int) bool { return n >= 1 }},
		{"search, no hit", func() string { return fmt.Sprintf("%s&q=nowhere-%06d", api, anyModel()) }, func(_, n int) bool { return n == 0 }},
		{"filter, team and source", func() string { return fmt.Sprintf("%s&team=team-%d&source_type=local", api, anyModel()%(teams/5)*5+1) }, func(_, n int) bool { return n > 0 }},
		{"filter, status ready (none)", func() string { return api + "&status=ready" }, func(_, n int) bool { return n == 0 }},
		{"console's models page", func() string { return "/models" }, nil},
		{"console's models page, search", func() string { return fmt.Sprintf("/models?q=instruct-%06d", anyModel()) }, nil},
		{plainLine, func() string { return "/" }, nil},
	}
	if err := warm(ctx, s); err != nil {
		return err
	}
	// The lines take turns, so that a moment in which the machine was busy falls on all of them and not on one.
	all, worst := make([]timings, len(lines)), make([][]time.Duration, len(lines))
	for turn := range turns * len(lines) {
		n := turn % len(lines)
		l := lines[n]
		b.say("turn %d of %d: %s, %d requests/s for %s", turn/len(lines)+1, turns, l.name, b.rate, b.span/turns)
		paths := make([]string, max(1, int(b.span.Seconds()*float64(b.rate)/turns)))
		for i := range paths {
			paths[i] = l.path()
		}
		whom := s
		if l.name == plainLine {
			whom = nothing.server
		}
		got, err := openLoop(ctx, b.rate, len(paths), func(ctx context.Context, i int) (func() error, error) {
			out, err := whom.do(ctx, "GET", paths[i], nil)
			if err != nil || l.hits == nil {
				return nil, err
			}
			return func() error {
				var page struct {
					Models []json.RawMessage `json:"models"`
					Total  int               `json:"total"`
				}
				if err := json.Unmarshal(out, &page); err != nil {
					return err
				}
				if !l.hits(page.Total, len(page.Models)) {
					return fmt.Errorf("%s: %d models of %d", paths[i], len(page.Models), page.Total)
				}
				return nil
			}, nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		worst[n] = append(worst[n], quantile(got.latency, .99))
		all[n] = timings{append(all[n].latency, got.latency...), append(all[n].late, got.late...)}
	}
	for n, l := range lines {
		slices.Sort(worst[n])
		p99 := float64(quantile(all[n].latency, .99))
		note := fmt.Sprintf("%s; the %d turns' own %s … %s", all[n].note(), turns, ms(worst[n][0]), ms(worst[n][turns-1]))
		if l.name == plainLine {
			b.fact(l.name+", p99", p99, millis, note)
			continue
		}
		b.line(l.name+", p99", p99, float64(10*time.Millisecond), millis, note)
	}
	return nil
}

// plainLine is asked of a server that does nothing, in turn with the others: the least that a request takes here.
const plainLine = "  the machine alone: a page from memory"

// turns is how many times the lines of lists take their turn.
const turns = 4

// warm waits for what is made once: the first search after a start waits for the index, and the first page for the
// engines to be looked at.
func warm(ctx context.Context, s *server) error {
	for _, path := range []string{"/api/v1/models?q=instruct&limit=1", "/models"} {
		if _, err := s.do(ctx, "GET", path, nil); err != nil {
			return err
		}
	}
	return nil
}

// timings are what an open loop of requests gave.
type timings struct {
	latency []time.Duration // from when the request was due to its whole answer
	late    []time.Duration // how late this program sent it
}

// note says the median and how far this program itself was behind: that is the machine's load and not the server, and is
// in the latencies.
func (t timings) note() string {
	return fmt.Sprintf("p50 %s; %d requests; sent late by p50 %s, p99 %s", ms(median(t.latency)), len(t.latency), ms(median(t.late)), ms(quantile(t.late, .99)))
}

// openLoop sends n requests at a fixed rate whether or not earlier ones were answered, and times each from the moment
// at which it was due: a server that stalls is charged for all that it keeps waiting. What a request returns checks its
// answer, when the time was taken. The first error ends it.
func openLoop(ctx context.Context, rate, n int, request func(ctx context.Context, i int) (check func() error, err error)) (timings, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := timings{latency: make([]time.Duration, n), late: make([]time.Duration, n)}
	var wg sync.WaitGroup
	begun := time.Now().Add(50 * time.Millisecond)
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for i := range n {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(rate))
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			t.late[i] = time.Since(due)
			check, err := request(ctx, i)
			t.latency[i] = time.Since(due)
			if err == nil && check != nil {
				err = check()
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return t, context.Cause(ctx)
}

// register measures the registration of one model beside all the others and a models file of moderate size, into which
// it is written back.
func (b *bench) register(ctx context.Context) error {
	dir, file, err := b.fullRegistry(ctx)
	if err != nil {
		return err
	}
	s, err := b.start(ctx, dir, file)
	if err != nil {
		return err
	}
	err = b.registerLine(ctx, s, file)
	if stopErr := s.stop(); err == nil {
		err = stopErr
	}
	return err
}

func (b *bench) registerLine(ctx context.Context, s *server, file string) error {
	const n, rate = 200, 20
	if err := warm(ctx, s); err != nil {
		return err
	}
	before, err := b.syncs(ctx, n/2, rate)
	if err != nil {
		return err
	}
	b.say("registering %d models, one at a time, %d/s", n, rate)
	run := fmt.Sprint(time.Now().UnixNano())
	var mu sync.Mutex // one at a time: this is a person or a script, not a stampede
	var took []time.Duration
	got, err := openLoop(ctx, rate, n, func(ctx context.Context, i int) (func() error, error) {
		mu.Lock()
		defer mu.Unlock()
		m := modelAt(i)
		m.ModelID = fmt.Sprintf("bench-%s/%s", run, m.ModelID)
		m.Team = "default"
		body, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		_, err = s.do(ctx, "POST", "/api/v1/models", body)
		took = append(took, time.Since(begun))
		return nil, err
	})
	if err != nil {
		return err
	}
	begun := time.Now()
	var status struct{ Pending int }
	if err := s.json(ctx, "GET", "/api/v1/manifest?wait=60s", nil, &status); err != nil {
		return err
	}
	caughtUp := time.Since(begun)
	written, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if have := bytes.Count(written, []byte("model_id: \"bench-"+run+"/")) + bytes.Count(written, []byte("model_id: bench-"+run+"/")); have != n || status.Pending != 0 {
		return fmt.Errorf("%d of the %d models are in the models file, %d wait", have, n, status.Pending)
	}
	after, err := b.syncs(ctx, n/2, rate)
	if err != nil {
		return err
	}
	disk := slices.Concat(before, after)
	p99 := quantile(got.latency, .99)
	b.line("register one model, p99", float64(p99), float64(10*time.Millisecond), millis,
		fmt.Sprintf("%s; the answer alone p99 %s", got.note(), ms(quantile(took, .99))))
	b.fact("  the disk alone: 4 KiB and fdatasync, p99", float64(quantile(disk, .99)), millis,
		fmt.Sprintf("p50 %s, last %s, half before and half after; no registration can be faster than its sync", ms(median(disk)), ms(disk[len(disk)-1])))
	b.fact("  until the models file has the last ones, too", float64(caughtUp), millis, fmt.Sprintf("of %d entries at first; in the background, about twice a second", moderate))
	return nil
}

// syncs writes 4 KiB in place and waits for the disk, n times at this rate: the least that anything durable takes here.
func (b *bench) syncs(ctx context.Context, n, rate int) (took []time.Duration, err error) {
	b.say("syncing %d times, %d/s", n, rate)
	f, err := os.OpenFile(filepath.Join(b.dir, "syncs"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := make([]byte, 4096)
	if _, err := f.Write(make([]byte, 256*len(block))); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil { // from here on the file's size does not change
		return nil, err
	}
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for i := range n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if _, err := cryptorand.Read(block); err != nil {
			return nil, err
		}
		begun := time.Now()
		if _, err := f.WriteAt(block, int64(i%256*len(block))); err != nil {
			return nil, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begun))
	}
	return took, nil
}
