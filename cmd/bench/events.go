package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	subscribers = 1000
	deaf        = 50 // of these, that never read
	changes     = 20
	pace        = 200 * time.Millisecond
)

// events measures how long an event takes to all subscribers: from the time in it, which is when it was published, to
// its receipt in each reader. Server and readers share a machine and so its clock.
func (b *bench) events(ctx context.Context) error {
	if err := raiseFiles(2*subscribers + 500); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "events")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	s, err := b.start(ctx, dir, "")
	if err != nil {
		return err
	}
	err = b.eventsLine(ctx, s)
	if stopErr := s.stop(); err == nil {
		err = stopErr
	}
	return err
}

func raiseFiles(need uint64) error {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	if lim.Max < need {
		return fmt.Errorf("%d subscribers need %d open files, and at most %d are allowed here (ulimit -Hn)", subscribers, need, lim.Max)
	}
	lim.Cur = lim.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
}

func (b *bench) eventsLine(ctx context.Context, s *server) error {
	const id = "bench/watched"
	m := modelAt(1)
	m.ModelID, m.Team = id, "default"
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := s.do(ctx, "POST", "/api/v1/models", body); err != nil {
		return err
	}
	b.say("subscribing %d readers, of which %d never read", subscribers, deaf)
	rest, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &watch{subject: id, delays: make([]time.Duration, 0, subscribers*changes)}
	for i := range subscribers {
		if err := w.subscribe(rest, s, i >= deaf); err != nil {
			return errors.Join(fmt.Errorf("subscriber %d: %w", i+1, err), w.close())
		}
	}
	before, err := s.memory("VmRSS")
	if err != nil {
		return errors.Join(err, w.close())
	}
	b.say("changing a model %d times, every %s", changes, pace)
	path := "/api/v1/models/" + strings.ReplaceAll(id, "/", "%2F")
	_, err = openLoop(ctx, int(time.Second/pace), changes, func(ctx context.Context, i int) (func() error, error) {
		_, err := s.do(ctx, "PATCH", path, fmt.Appendf(nil, `{"description": "change %d"}`, i))
		return nil, err
	})
	want := (subscribers - deaf) * changes
	for deadline := time.Now().Add(10 * time.Second); err == nil && int(w.received.Load()) < want && time.Now().Before(deadline); {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	after, memErr := s.memory("VmRSS")
	if err = errors.Join(err, memErr, w.close()); err != nil {
		return err
	}
	if got := len(w.delays); got != want {
		return fmt.Errorf("%d events were received of %d", got, want)
	}
	p50, p99 := median(w.delays), quantile(w.delays, .99)
	b.line("one event to 1,000 subscribers, p99", float64(p99), float64(50*time.Millisecond), millis,
		fmt.Sprintf("p50 %s, last %s; %d of them never read; the readers share these CPUs", ms(p50), ms(w.delays[len(w.delays)-1]), deaf))
	b.fact("  resident memory with 1,000 subscribers", after, megabytes, fmt.Sprintf("%.1f MB before the changes", before/1e6))
	return nil
}

// watch is all subscribers together.
type watch struct {
	subject string
	conns   []net.Conn
	readers sync.WaitGroup

	received atomic.Int64
	mu       sync.Mutex
	delays   []time.Duration // complete when the readers have ended
}

// subscribe opens one stream. It returns when the server has answered, so that no event is missed.
func (w *watch) subscribe(ctx context.Context, s *server, reads bool) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(s.base, "http://"))
	if err != nil {
		return err
	}
	w.conns = append(w.conns, conn)
	if !reads {
		if err := conn.(*net.TCPConn).SetReadBuffer(2048); err != nil { // full as soon as can be
			return err
		}
	}
	if _, err := fmt.Fprintf(conn, "GET /api/v1/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n\r\n", s.token); err != nil {
		return err
	}
	if !reads {
		return nil
	}
	// A plain connection: a thousand clients of net/http would cost the machine more than the server does.
	r := bufio.NewReader(conn)
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	for first := true; ; first = false {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if first && !strings.Contains(line, " 200 ") {
			return fmt.Errorf("the server answers %q", strings.TrimSpace(line))
		}
		if line == "\r\n" {
			break
		}
	}
	body := bufio.NewReader(httputil.NewChunkedReader(r))
	if _, err := body.ReadString('\n'); err != nil { // the position: from here on nothing is missed
		return err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	w.readers.Go(func() { w.read(body) })
	return nil
}

// read takes the time of each change until the connection ends. It does as little as can be between two of them: what
// it takes from the CPUs is missing to the readers after it.
func (w *watch) read(body *bufio.Reader) {
	mark, at := []byte(`"subject":"`+w.subject+`","at":"`), make([]time.Duration, 0, changes)
	defer func() {
		w.mu.Lock()
		w.delays = append(w.delays, at...)
		w.mu.Unlock()
	}()
	for {
		line, err := body.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue // a sample of a large machine; changes are short
		}
		if err != nil {
			return // closed by us; what is missing is counted
		}
		now := time.Now()
		if !bytes.Contains(line, []byte(`"kind":"model.updated"`)) {
			continue
		}
		_, rest, _ := bytes.Cut(line, mark)
		stamp, _, _ := bytes.Cut(rest, []byte(`"`))
		if sent, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil {
			at = append(at, now.Sub(sent))
			w.received.Add(1)
		}
	}
}

// close ends the streams and waits for the readers.
func (w *watch) close() error {
	var errs []error
	for _, c := range w.conns {
		errs = append(errs, c.Close())
	}
	w.readers.Wait()
	return errors.Join(errs...)
}
