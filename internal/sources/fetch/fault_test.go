package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestFlippedBit flips one bit of one transfer at a random place, two hundred times: each time it is found, the file is
// fetched again and is right.
func TestFlippedBit(t *testing.T) {
	data := content(700_000, 1)
	h := newHub(t, map[string][]byte{"f": data})
	for round := range 200 {
		bit := rand.IntN(len(data) * 8)
		var once sync.Once
		h.set(nil, func(_ request, off int64, chunk []byte) ([]byte, error) {
			at := int64(bit / 8)
			if at < off || at >= off+int64(len(chunk)) {
				return chunk, nil
			}
			out := chunk
			once.Do(func() {
				out = append([]byte(nil), chunk...)
				out[at-off] ^= 1 << (bit % 8)
			})
			return out, nil
		})
		before := h.served.Load()
		dir := inMemory(t)
		f := hasty(Options{})
		f.tune.steal = patience // what a robbed connection throws away need not be found
		must(t, f.Run(within(t), h.job(dir)))
		h.sameFiles(t, dir)
		if n := h.served.Load() - before; n < 2*int64(len(data)) {
			t.Fatalf("round %d: bit %d was flipped and %d bytes were served: it was not noticed", round, bit, n)
		}
	}
}

// TestCorruptForGood ends with a corrupt file when the second copy is wrong, too, and keeps nothing of it.
func TestCorruptForGood(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(300_000, 1), "empty": {}})
	for _, name := range []string{"f", "empty"} {
		dir := t.TempDir()
		f := h.file(dir, name, SHA256)
		f.Digest = digest(SHA256, []byte("something else"))
		done := int64(0)
		err := hasty(Options{}).Run(within(t), Job{Files: []File{f}, Report: func(p registry.Progress) {
			if p.Done < done || p.Done > p.Total {
				t.Errorf("%d of %d bytes after %d", p.Done, p.Total, done)
			}
			done = p.Done
		}})
		e := registry.AsError(err)
		if e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != registry.FailureCorruptFile || !strings.Contains(e.Msg, name) {
			t.Errorf("%v", err)
		}
		for _, left := range []string{f.Partial, f.Partial + ".journal"} {
			if _, err := os.Stat(left); err == nil {
				t.Errorf("%s is left", left)
			}
		}
	}
}

// TestFaults lets a hub misbehave in one way or another, and gets the files all the same.
func TestFaults(t *testing.T) {
	status := func(share float64, code int, header ...string) func(http.ResponseWriter, *http.Request, request, []byte) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
			if rand.Float64() >= share {
				return false
			}
			for i := 0; i+1 < len(header); i += 2 {
				w.Header()[header[i]] = []string{header[i+1]}
			}
			w.WriteHeader(code)
			return true
		}
	}
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request, request, []byte) bool
		pipe  func(request, int64, []byte) ([]byte, error)
	}{
		"a fifth fails with 500":       {fault: status(0.2, 500)},
		"half fail with 503":           {fault: status(0.5, 503)},
		"a fifth is too slow with 408": {fault: status(0.2, 408)},
		"a third breaks in the middle": {pipe: func(_ request, _ int64, b []byte) ([]byte, error) {
			if rand.IntN(10) == 0 {
				return b[:rand.IntN(len(b))], broken
			}
			return b, nil
		}},
		"half of the bodies end early": {fault: func(w http.ResponseWriter, _ *http.Request, q request, data []byte) bool {
			if rand.IntN(2) > 0 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off, q.end-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[q.off : q.off+(q.end-q.off+1)/2]) // chunked: nothing else says how long it is
			return true
		}},
		"a third of the bodies are too long": {fault: func(w http.ResponseWriter, _ *http.Request, q request, data []byte) bool {
			if rand.IntN(3) > 0 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off, q.end-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(append(append([]byte(nil), data[q.off:q.end]...), "and more"...))
			return true
		}},
		"a third of the ranges are others": {fault: func(w http.ResponseWriter, _ *http.Request, q request, data []byte) bool {
			if q.off == 0 || rand.IntN(3) > 0 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off-1, q.end-2, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[q.off-1 : q.end-1])
			return true
		}},
		"a third are pages": {fault: func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
			if rand.IntN(3) > 0 {
				return false
			}
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>Please log in</html>")
			return true
		}},
		"a third have another total": {fault: func(w http.ResponseWriter, _ *http.Request, q request, data []byte) bool {
			if rand.IntN(3) > 0 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off, q.end-1, len(data)+5))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[q.off:q.end])
			return true
		}},
		"no ranges at all": {fault: func(w http.ResponseWriter, _ *http.Request, _ request, data []byte) bool {
			_, _ = w.Write(data)
			return true
		}},
		"a third ignore the range": {fault: func(w http.ResponseWriter, _ *http.Request, _ request, data []byte) bool {
			if rand.IntN(3) > 0 {
				return false
			}
			_, _ = w.Write(data)
			return true
		}},
		"no ranges, and it breaks": {
			fault: func(w http.ResponseWriter, _ *http.Request, _ request, data []byte) bool {
				n := len(data)
				if rand.IntN(2) == 0 {
					n = rand.IntN(n)
				}
				_, _ = w.Write(data[:n])
				if n < len(data) {
					panic(http.ErrAbortHandler)
				}
				return true
			}},
		"compressed": {fault: func(w http.ResponseWriter, _ *http.Request, q request, _ []byte) bool {
			if q.n%2 == 0 || q.header.Get("Accept-Encoding") != "identity" {
				return false
			}
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(200)
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t, map[string][]byte{"one": content(3<<20, 1), "two": content(1<<20+5, 2), "three": content(1000, 3)})
			h.set(c.fault, c.pipe)
			dir := inMemory(t)
			f := hasty(Options{})
			f.tune.wrong = 40 // bad luck is not what is tested
			must(t, f.Run(within(t), h.job(dir)))
			h.sameFiles(t, dir)
		})
	}
}

// TestWrongForGood ends, and says why, when what is wrong stays wrong.
func TestWrongForGood(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request, q request, data []byte) bool
		code  registry.Code
		says  string
	}{
		"a page": {func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, "<html>Please log in</html>")
			return true
		}, registry.CodeUnavailable, "web page"},
		"another size": {func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
			_, _ = w.Write(make([]byte, 123))
			return true
		}, registry.CodeUnavailable, "123 bytes"},
		"416": {func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
			w.Header().Set("Content-Range", "bytes */77")
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}, registry.CodeUnavailable, "77 bytes"},
		"another tag": {func(w http.ResponseWriter, _ *http.Request, q request, data []byte) bool {
			w.Header().Set("ETag", `"other"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", q.off, q.end-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[q.off:q.end])
			return true
		}, registry.CodeUnavailable, "another file"},
		"gone":      {answerWith(404), registry.CodeNotFound, "any more"},
		"forbidden": {answerWith(403), registry.CodeUnavailable, "token"},
		"teapot":    {answerWith(418), registry.CodeUnavailable, "418"},
		"fails":     {answerWith(500), registry.CodeUnavailable, "500"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t, map[string][]byte{"f": content(1<<20, 1)})
			h.set(c.fault, nil)
			f := hasty(Options{})
			f.tune.tries, f.tune.giveUp = 3, 0
			job := h.job(t.TempDir())
			err := f.Run(within(t), job)
			if registry.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "f: ") {
				t.Errorf("%s: %v", registry.CodeOf(err), err)
			}
			if strings.Contains(err.Error(), "/f") {
				t.Errorf("%v: tells the address", err)
			}
		})
	}
}

func answerWith(code int) func(http.ResponseWriter, *http.Request, request, []byte) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ request, _ []byte) bool {
		w.WriteHeader(code)
		return true
	}
}

// TestTooManyRequests waits as long as the other side asks before it asks for anything again, and says so.
func TestTooManyRequests(t *testing.T) {
	const window = 2 * time.Second
	for _, header := range [][2]string{{"Ratelimit", `"resolvers";r=0;t=1`}, {"Retry-After", "2"}} {
		t.Run(header[0], func(t *testing.T) {
			h := newHub(t, map[string][]byte{"a": content(1<<20, 1), "b": content(1<<20, 2), "c": content(1<<20, 3)})
			var mu sync.Mutex
			var spent time.Time
			early := 0
			h.set(func(w http.ResponseWriter, _ *http.Request, q request, _ []byte) bool {
				mu.Lock()
				defer mu.Unlock()
				if q.n == 2 {
					spent = time.Now()
				}
				if spent.IsZero() || time.Since(spent) >= window {
					return false
				}
				if time.Since(spent) > window/4 { // those that were under way already do not count
					early++
				}
				w.Header()[header[0]] = []string{header[1]}
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}, nil)
			var told atomic.Bool
			job := h.job(t.TempDir())
			job.Report = func(p registry.Progress) {
				if strings.Contains(p.Msg, "allows no more requests") {
					told.Store(true)
				}
			}
			began := time.Now()
			must(t, hasty(Options{}).Run(within(t), job))
			if d := time.Since(began); d < window || early > 0 {
				t.Errorf("done after %s; %d requests came too early", d, early)
			}
			if !told.Load() {
				t.Error("nobody was told what is waited for")
			}
		})
	}
}

// TestOneIsRefused refuses a single request for a minute: only its range waits, and whoever asks for the rest gets it.
func TestOneIsRefused(t *testing.T) {
	files := map[string][]byte{"a": content(4<<20, 1), "b": content(4<<20, 2), "c": content(4<<20, 3), "d": content(4<<20, 4)}
	h := newHub(t, files)
	var refused atomic.Value
	h.set(func(w http.ResponseWriter, _ *http.Request, q request, _ []byte) bool {
		if q.n == 2 {
			refused.Store(q.name)
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}, nil)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	job := h.job(t.TempDir())
	job.Report = func(p registry.Progress) {
		if strings.HasPrefix(p.Msg, "3 of 4 files") {
			cancel()
		}
	}
	if err := hasty(Options{}).Run(ctx, job); !errors.Is(err, context.Canceled) {
		t.Fatalf("the other files did not come: %v", err)
	}
	if refused.Load() == nil {
		t.Error("nothing was refused")
	}
}

// TestStall replaces a connection that stands still, whether others flow or not.
func TestStall(t *testing.T) {
	h := newHub(t, map[string][]byte{"one": content(4<<20, 1), "two": content(4<<20, 2)})
	end := make(chan struct{})
	defer close(end)
	h.set(func(_ http.ResponseWriter, r *http.Request, q request, _ []byte) bool {
		if q.n == 2 { // it does not even answer
			select {
			case <-r.Context().Done():
			case <-end:
			}
			panic(http.ErrAbortHandler)
		}
		return false
	}, func(q request, off int64, chunk []byte) ([]byte, error) {
		if q.n == 1 && off > q.off+100_000 {
			<-end
			return nil, io.ErrClosedPipe
		}
		return chunk, nil
	})
	dir := t.TempDir()
	must(t, hasty(Options{}).Run(within(t), h.job(dir)))
	h.sameFiles(t, dir)
}

// TestSlowEdge lets one connection have a fortieth of what the others have: it is replaced long before it would end.
func TestSlowEdge(t *testing.T) {
	h := newHub(t, map[string][]byte{"a": content(24<<20, 1)}, smallBuffers)
	var slow sync.Map // addresses
	var begun atomic.Int64
	h.set(func(_ http.ResponseWriter, r *http.Request, _ request, _ []byte) bool {
		if n := begun.Add(1); n == 2 {
			slow.Store(r.RemoteAddr, true)
		}
		_, is := slow.Load(r.RemoteAddr)
		r.Header.Set("Slow", fmt.Sprint(is))
		return false
	}, func(q request, _ int64, chunk []byte) ([]byte, error) {
		pause := 20 * time.Millisecond // 1.6 MB/s
		if q.header.Get("Slow") == "true" {
			pause *= 40
		}
		time.Sleep(pause) // the edge's own speed
		return chunk, nil
	})
	f := hasty(Options{Connections: 4, Memory: 4 * minBlock})
	f.tune.lease, f.tune.stall = 6<<20, 20*time.Second
	dir := t.TempDir()
	began := time.Now()
	must(t, f.Run(within(t), h.job(dir)))
	h.sameFiles(t, dir)
	// Alone, the slow connection would need more than two minutes for its range.
	if d := time.Since(began); d > 40*time.Second {
		t.Errorf("took %s", d)
	}
	if n := h.conns.Load(); n < 5 {
		t.Errorf("%d connections: none was replaced", n)
	}
}

// TestLostNetwork waits for a server that is away, says so, and goes on where it was.
func TestLostNetwork(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(2<<20, 1)})
	// The way to the server is a listener that can be closed.
	front, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := front.Addr().String()
	must(t, front.Close())
	dir := t.TempDir()
	file := h.file(dir, "f", SHA256)
	file.Remote = &HTTP{Client: h.client, Locate: func(context.Context, bool) (string, http.Header, error) {
		return "http://" + address + "/f?signature=geheim", nil, nil
	}}
	told := make(chan string, 1)
	ctx := within(t)
	result := make(chan error, 1)
	go func() {
		result <- hasty(Options{}).Run(ctx, Job{Files: []File{file}, Report: func(p registry.Progress) {
			if strings.Contains(p.Msg, "Waiting") {
				select {
				case told <- p.Msg:
				default:
				}
			}
		}})
	}()
	msg := <-told
	if !strings.Contains(msg, "connection refused") || !strings.Contains(msg, address) || strings.Contains(msg, "geheim") {
		t.Errorf("waiting is told as %q", msg)
	}
	front, err = net.Listen("tcp", address)
	must(t, err)
	back := &http.Server{Handler: h}
	go func() { _ = back.Serve(front) }()
	must(t, <-result)
	must(t, back.Close())
	h.sameFiles(t, dir)
}

// TestExpiredAddress renews a signed address that has expired, once for all connections together.
func TestExpiredAddress(t *testing.T) {
	h := newHub(t, map[string][]byte{"f": content(4<<20, 1)})
	var generation, located atomic.Int64
	h.set(func(w http.ResponseWriter, r *http.Request, q request, _ []byte) bool {
		if q.n == 5 {
			generation.Add(1)
		}
		if r.URL.Query().Get("g") == fmt.Sprint(generation.Load()) {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}, nil)
	dir := t.TempDir()
	f := h.file(dir, "f", SHA256)
	f.Remote = &HTTP{Client: h.client, Locate: func(_ context.Context, renew bool) (string, http.Header, error) {
		if n := located.Add(1); renew != (n > 1) {
			t.Errorf("located for the %d. time with renew %v", n, renew)
		}
		return fmt.Sprintf("%s/f?g=%d", h.URL, generation.Load()), nil, nil
	}}
	must(t, hasty(Options{}).Run(within(t), Job{Files: []File{f}}))
	h.sameFiles(t, dir)
	if n := located.Load(); n != 2 {
		t.Errorf("located %d times, want 2", n)
	}
}
