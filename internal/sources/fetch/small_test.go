package fetch

import (
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestSpans compares the set with one that has a field for each byte.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 60
		var s spans
		var model [size]bool
		for range rapid.IntRange(0, 20).Draw(t, "n") {
			off := rapid.IntRange(0, size).Draw(t, "off")
			end := rapid.IntRange(0, size).Draw(t, "end")
			want := int64(0)
			for i := off; i < end; i++ {
				if !model[i] {
					want++
				}
				model[i] = true
			}
			if got := s.add(span{int64(off), int64(end)}); got != want {
				t.Fatalf("add returned %d, want %d", got, want)
			}
		}
		count, prefix := int64(0), int64(0)
		for i, in := range model {
			if in {
				count++
			}
			if in && int64(i) == prefix {
				prefix++
			}
		}
		if s.bytes() != count || s.prefix() != prefix {
			t.Fatalf("%v has %d bytes and prefix %d, want %d and %d", s, s.bytes(), s.prefix(), count, prefix)
		}
		for i := 1; i < len(s); i++ {
			if s[i-1].end >= s[i].off {
				t.Fatalf("%v overlaps or touches", s)
			}
		}
		from := rapid.IntRange(0, size).Draw(t, "from")
		limit := rapid.IntRange(from, size).Draw(t, "limit")
		want := span{-1, -1}
		for i := from; i < limit; i++ {
			if !model[i] {
				want = span{int64(i), int64(i)}
				for ; i < limit && !model[i]; i++ {
					want.end++
				}
				break
			}
		}
		got, ok := s.gap(int64(from), int64(limit))
		if ok != (want.off >= 0) || ok && got != want {
			t.Fatalf("gap(%d, %d) of %v is %v, %v; want %v", from, limit, s, got, ok, want)
		}
	})
}

// TestDigestResumes stores the state of every kind at random places.
func TestDigestResumes(t *testing.T) {
	data := content(10_000, 3)
	for _, kind := range []DigestKind{SHA256, GitBlobSHA1, MD5} {
		d := digest(kind, data)
		r, err := newRunning(d, int64(len(data)))
		must(t, err)
		for r.pos < int64(len(data)) {
			r.write(data[r.pos:min(r.pos+1+rand.Int64N(2000), int64(len(data)))])
			state, err := r.state()
			must(t, err)
			next, err := newRunning(d, int64(len(data)))
			must(t, err)
			must(t, next.resume(state, r.pos))
			r = next
		}
		if r.hex() != d.Sum {
			t.Errorf("%s is %s, want %s", kind, r.hex(), d.Sum)
		}
	}
	for _, d := range []Digest{{Kind: "sha9", Sum: "00"}, {Kind: SHA256, Sum: "00"}, {Kind: MD5, Sum: hex.EncodeToString(make([]byte, 15)) + "zz"}} {
		if _, err := newRunning(d, 1); err == nil {
			t.Errorf("%v is taken for a digest", d)
		}
	}
}

func TestHint(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, value string
		want        time.Duration
	}{
		{"RateLimit", `"api";r=0;t=55`, 56 * time.Second},
		{"RateLimit", `"api";r=12;t=55`, 0},
		{"RateLimit", `"api";r=10;t=20, "resolvers";r=0;t=7`, 8 * time.Second},
		{"RateLimit", `"api"; r=0; t=0`, time.Second},
		{"RateLimit", `nonsense`, 0},
		{"Retry-After", "17", 17 * time.Second},
		{"Retry-After", "-3", 0},
		{"Retry-After", "Mon, 23 Nov 2026 12:00:30 GMT", 30 * time.Second},
		{"Retry-After", "Mon, 23 Nov 2026 11:00:30 GMT", 0},
		{"Retry-After", "soon", 0},
		{"Retry-After", "99999999999999999999", 0},
	} {
		if got := Hint(http.Header{http.CanonicalHeaderKey(c.name): {c.value}}, now); got != c.want {
			t.Errorf("%s: %s is %s, want %s", c.name, c.value, got, c.want)
		}
	}
}

func FuzzHint(f *testing.F) {
	for _, s := range []string{`"api";r=0;t=55`, "17", "Mon, 23 Nov 2026 12:00:30 GMT", `a;t=999999999,b;r=0`, ";;;=,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, name := range []string{"Ratelimit", "Retry-After"} {
			if d := Hint(http.Header{name: {s}}, time.Unix(0, 0)); d < 0 {
				t.Errorf("%q asks to wait %s", s, d)
			}
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1234", "bytes 5-7/*", "bytes */1234", "bytes 9-3/4", "bytes 0-999999999999999999/999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, size, ok := contentRange(s)
		if ok && size >= 0 && last >= size || first < -1 || last < -1 || size < -1 {
			t.Errorf("%q is %d to %d of %d", s, first, last, size)
		}
	})
}

func TestBackoff(t *testing.T) {
	for n := 1; n < 70; n++ {
		want := min(firstWait<<min(n-1, 20), longestWait)
		if d := backoff(n, 0); d < want*3/4 || d > want*5/4 {
			t.Errorf("after %d failures %s, want about %s", n, d, want)
		}
	}
	for _, hint := range []time.Duration{time.Nanosecond, time.Second, 55 * time.Second} {
		if d := backoff(1, hint); d < hint || d > hint*11/10 {
			t.Errorf("asked for %s, waits %s", hint, d)
		}
	}
	if d := backoff(1, 1000*time.Hour); d > 2*longestHint {
		t.Errorf("waits %s", d)
	}
}

func TestRetry(t *testing.T) {
	calls := 0
	failing := func(after time.Duration) func(context.Context) error {
		calls = 0
		return func(context.Context) error {
			calls++
			return &RetryError{Err: errors.New("no"), After: after, Slower: true}
		}
	}
	err := Retry(t.Context(), 3, time.Minute, failing(time.Millisecond))
	if calls != 3 || err == nil {
		t.Errorf("%d calls, %v", calls, err)
	}
	err = Retry(t.Context(), 3, time.Second, failing(time.Hour))
	if e := codeAndAfter(err); calls != 1 || e != "busy 1h0m0s" {
		t.Errorf("%d calls, %v: %s", calls, err, e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = Retry(ctx, 3, time.Hour, func(context.Context) error { cancel(); return &RetryError{Err: errors.New("no")} })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// path is a network whose throughput depends on the number of connections.
func climb(t *testing.T, limit int, throughput func(n int) float64, d time.Duration) (used []int, work float64) {
	t.Helper()
	now := time.Unix(0, 0)
	p := newPace(limit, now)
	for end := now.Add(d); now.Before(end); now = now.Add(tickEvery) {
		work += throughput(p.target) * tickEvery.Seconds()
		p.tick(now, int64(work), p.target, 50*time.Millisecond)
		used = append(used, p.target)
	}
	return used, work
}

// TestPace finds the right number of connections on paths of three kinds.
func TestPace(t *testing.T) {
	const mb = 1e6
	for _, c := range []struct {
		name       string
		throughput func(n int) float64
		least      float64 // of what is possible, over half a minute
		from, to   int     // connections in the end
	}{
		{"each connection is capped", func(n int) float64 { return float64(n) * 8.7 * mb }, 0.7, 48, 64},
		{"a full path", func(n int) float64 { return min(float64(n)*30*mb, 125*mb) }, 0.9, 3, 12},
		{"more get in each other's way", func(n int) float64 { return 500 * mb / (1 + 0.2*float64(n-1)) }, 0.6, 1, 3},
	} {
		best := 0.0
		for n := 1; n <= 64; n++ {
			best = max(best, c.throughput(n))
		}
		used, work := climb(t, 64, c.throughput, 30*time.Second)
		last := used[len(used)-40:]
		if share := work / best / 30; share < c.least {
			t.Errorf("%s: %.0f%% of what is possible, want %.0f%%", c.name, share*100, c.least*100)
		}
		if m := slices.Sorted(slices.Values(last))[20]; m < c.from || m > c.to {
			t.Errorf("%s: %d connections in the end, want %d to %d (%v)", c.name, m, c.from, c.to, used)
		}
	}
}

func TestPaceSlower(t *testing.T) {
	now := time.Unix(0, 0)
	p := newPace(64, now)
	p.target = 32
	for range 10 {
		p.slower(now) // answers to requests that were all sent before the first of them came
	}
	if p.target != 16 {
		t.Errorf("%d connections after one refusal, want 16", p.target)
	}
	work := 0.0
	for range 200 {
		now = now.Add(tickEvery)
		work += float64(p.target) * 1e6
		p.tick(now, int64(work), p.target, 0)
		if now.Before(time.Unix(30, 0)) && p.target > 16 {
			t.Fatalf("%d connections %s after it was asked for fewer", p.target, now)
		}
	}
	p.slower(now.Add(time.Minute))
	p.slower(now.Add(2 * time.Minute))
	if p.target > 8 {
		t.Errorf("%d connections after three refusals", p.target)
	}
}

func codeAndAfter(err error) string {
	e := registry.AsError(err)
	return string(e.Code) + " " + e.RetryAfter.String()
}
