package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// lease is a range of a file that one connection fetches. Fields without a word about it are under run.mu.
type lease struct {
	file   *file
	ctx    context.Context
	cancel context.CancelCauseFunc // with errSlow or a *RetryError
	piece
	began time.Time
	pos   int64 // where the next byte that is stored belongs
	fill  int64 // up to where bytes are being read; nobody may take what is before
	end   int64 // may be lowered by a thief
	whole bool  // the body is the whole file

	filled  atomic.Int64 // bytes that are in memory only
	got     atomic.Int64 // bytes altogether
	waiting atomic.Int64 // since when for the other side, in Unix nanoseconds; 0 when it is not

	rate    float64 // bytes per second lately
	rated   int64   // got, when that was measured
	slow    time.Time
	answers bool // an answer has begun
}

var (
	errSlow    = errors.New("the connection is much slower than the others")
	errIgnored = errors.New("the other side ignored the range")
)

// flows reports whether bytes came within the last second.
func (l *lease) flows(now time.Time) bool {
	since := l.waiting.Load()
	return l.got.Load() > 0 && (since == 0 || now.UnixNano()-since < int64(time.Second))
}

// start gives a piece to a new goroutine. r.mu is held.
func (r *run) start(f *file, p piece, now time.Time) {
	l := &lease{file: f, piece: p, began: now, pos: p.off, fill: p.off, end: p.end}
	l.ctx, l.cancel = context.WithCancelCause(r.ctx)
	l.waiting.Store(now.UnixNano())
	r.leases = append(r.leases, l)
	f.leases = append(f.leases, l)
	r.wg.Go(func() { r.serve(l) })
}

func (r *run) serve(l *lease) {
	err := r.transfer(l)
	if cause := context.Cause(l.ctx); err != nil && cause != nil && r.ctx.Err() == nil {
		err = cause // it was ended from here
	}
	l.cancel(nil)
	r.f.release()
	r.mu.Lock()
	r.leases = slices.DeleteFunc(r.leases, func(o *lease) bool { return o == l })
	l.file.leases = slices.DeleteFunc(l.file.leases, func(o *lease) bool { return o == l })
	if err != nil && r.ctx.Err() == nil {
		r.settle(l, err)
	}
	r.advance(l.file)
	r.mu.Unlock()
	r.nudge()
}

// transfer carries a lease out.
func (r *run) transfer(l *lease) error {
	a, err := l.file.Remote.Open(l.ctx, l.off, l.piece.end)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if err := fits(a, l.off, l.file.Size, l.file.Tag); err != nil {
		return err
	}
	if err := r.answered(l, a); err != nil {
		return err
	}
	buf, ok := r.f.buffers.Get().(*[]byte)
	if !ok {
		return fmt.Errorf("the pool of buffers holds something else")
	}
	defer r.f.buffers.Put(buf)
	for pos := a.Offset; ; {
		skip, n, more := r.ask(l, pos)
		if n == 0 {
			return nil
		}
		if skip > 0 {
			if err := r.skip(l, a.Body, *buf, skip); err != nil {
				return err
			}
			pos += skip
		}
		got, err := r.fill(l, a.Body, (*buf)[:n])
		if got == int(n) && err == nil && !a.Whole && !more {
			// The last bytes count only if the body ends with them, which also lets the connection be used again.
			if extra, _ := a.Body.Read(make([]byte, 1)); extra > 0 {
				return wrong("the other side sent more than was asked for")
			}
		}
		if got > 0 {
			if err := r.store(l, span{pos, pos + int64(got)}, (*buf)[:got]); err != nil {
				return err
			}
			pos += int64(got)
		}
		if err != nil && !(errors.Is(err, io.EOF) && got == int(n)) {
			return broken(l.ctx, err)
		}
	}
}

// answered notes that an answer has begun.
func (r *run) answered(l *lease, a *Answer) error {
	now := r.f.o.Now()
	r.requests.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = 0
	l.answers = true
	l.waiting.Store(now.UnixNano())
	latency := now.Sub(l.began)
	if r.latency == 0 {
		r.latency = latency
	}
	r.latency += (latency - r.latency) / 8
	f := l.file
	if !a.Whole && a.Offset == l.pos {
		if l.pos > 0 {
			f.ignored = 0
		}
		return nil
	}
	// The whole file. It may be one faulty server among many, so that it is asked for again before all is fetched in
	// one stream. From its first byte on there is no difference.
	if l.pos > 0 && !f.wholeOnly {
		f.ignored++
		f.wholeOnly = f.ignored >= 3
		return errIgnored
	}
	l.whole = true
	return nil
}

// ask returns how many bytes to read next, and how many to pass over before because they are there already, which
// happens only to a body that is the whole file. more is true when this body should hold bytes after them.
func (r *run) ask(l *lease, pos int64) (skip, n int64, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	block := r.f.block
	if l.whole {
		g, ok := l.file.taken(l).gap(pos, l.file.Size)
		if !ok {
			return 0, 0, false
		}
		l.pos, l.end = g.off, g.end
		skip = g.off - pos
	}
	n = max(0, min(l.pos/block*block+block, l.end)-l.pos)
	l.fill = l.pos + n
	return skip, n, l.fill < l.piece.end
}

// fill reads len(p) bytes, fewer with an error.
func (r *run) fill(l *lease, body io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		l.waiting.Store(r.f.o.Now().UnixNano())
		k, err := body.Read(p[n : n+r.gate.most(len(p)-n)])
		l.waiting.Store(0)
		if k > 0 {
			n += k
			l.filled.Add(int64(k))
			r.received.Add(int64(k))
			if l.got.Add(int64(k)) == int64(k) {
				r.flows()
			}
			if err := r.gate.wait(l.ctx, k); err != nil {
				return n, err
			}
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// flows notes that the other side sends bytes: nothing is waited for any more.
func (r *run) flows() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failures > 0 {
		r.failures = 0
		r.nudge()
	}
	if !r.f.o.Now().Before(r.paused) { // these were under way when it began
		r.why = ""
	}
}

func (r *run) skip(l *lease, body io.Reader, buf []byte, n int64) error {
	for n > 0 {
		k, err := r.fill(l, body, buf[:min(n, int64(len(buf)))])
		l.filled.Add(-int64(k))
		n -= int64(k)
		if err != nil && (n > 0 || !errors.Is(err, io.EOF)) {
			return broken(l.ctx, err)
		}
	}
	return nil
}

// store writes bytes to their place, notes that they are there, and hashes them if they are next.
func (r *run) store(l *lease, s span, p []byte) error {
	f := l.file
	if _, err := r.f.tune.write(f.data, p, s.off); err != nil {
		return r.diskError(f, err)
	}
	if err := f.journal.wrote(s); err != nil {
		return r.diskError(f, err)
	}
	r.mu.Lock()
	r.done += f.done.add(s)
	f.dirty += s.end - s.off
	l.pos = s.end
	l.filled.Store(0)
	mine := f.sum.sum != nil && !f.hashing && f.sum.pos == s.off
	if mine {
		f.hashing = true
	}
	r.mu.Unlock()
	if !mine {
		r.mu.Lock()
		r.catchUp(f)
		r.mu.Unlock()
		return nil
	}
	err := r.hash(f, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	f.hashing = false
	if err == nil {
		r.catchUp(f)
	}
	return err
}

// settle decides what becomes of a lease that ended with an error. r.mu is held.
func (r *run) settle(l *lease, err error) {
	now := r.f.o.Now()
	p := piece{span: span{l.pos, l.end}, tries: l.tries + 1, since: l.since, replaced: l.replaced}
	if l.got.Load() > 0 || p.since.IsZero() {
		p.tries, p.since = 1, now
	}
	var retry *RetryError
	switch {
	case errors.Is(err, errSlow):
		p.tries, p.replaced = 0, l.replaced+1
		l.file.postpone(p, now)
	case errors.Is(err, errIgnored):
		l.file.postpone(p, now.Add(backoff(1, 0)))
	case errors.As(err, &retry):
		r.retry(l, p, retry, now)
	default:
		r.fail(l.file, err)
	}
}

// lostAfter is how many failures of the network in a row, without a byte in between, mean that it is gone.
const lostAfter = 3

func (r *run) retry(l *lease, p piece, e *RetryError, now time.Time) {
	var gone *lost
	network := errors.As(e.Err, &gone)
	switch {
	case isWrong(e):
		if p.tries >= r.f.tune.wrong {
			r.fail(l.file, GiveUp(e))
			return
		}
	case !network && !e.Slower && p.tries >= r.f.tune.tries && now.Sub(p.since) > r.f.tune.giveUp:
		r.fail(l.file, GiveUp(e))
		return
	}
	if network || e.Slower {
		r.failures++
	}
	wait := backoff(p.tries, e.After)
	if e.After == 0 && !e.Slower && l.got.Load() >= minBlock {
		wait = 0 // it is not the other side that must recover
	}
	if r.failures >= lostAfter {
		wait = backoff(max(p.tries, r.failures-lostAfter+1), e.After)
	}
	switch {
	case e.Slower:
		r.pace.slower(now)
		// One refusal may be of one host, or of one edge that counts for itself. Another before any request was answered
		// means that the quota is spent, and asking on would only prove it again.
		if r.refused++; r.refused > 1 {
			r.pause(now.Add(wait))
		}
	case r.failures >= lostAfter:
		r.pause(now.Add(wait))
	}
	r.waitsFor(now, wait, e.Err)
	l.file.postpone(p, now.Add(wait))
}

func (r *run) pause(until time.Time) {
	if until.After(r.paused) {
		r.paused = until
	}
}

// watch looks after the connections: those that stand still or are much slower than the others are replaced, and their
// number follows what it brings.
func (r *run) watch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.f.o.Now()
	flowing := 0
	for _, l := range r.leases {
		if l.flows(now) {
			flowing++
		}
	}
	for _, l := range r.leases {
		since := l.waiting.Load()
		if since == 0 {
			continue
		}
		limit := r.f.tune.idle
		switch {
		case !l.answers:
			limit = r.f.tune.answer
		case flowing > 0:
			limit = r.f.tune.stall
		}
		if idle := time.Duration(now.UnixNano() - since); idle > limit {
			l.cancel(&RetryError{Err: &lost{registry.Errorf(registry.CodeUnavailable, "no byte came for %s", idle.Round(time.Second))}})
		}
	}
	if now.Sub(r.rated) >= rateEvery {
		r.compare(now)
	}
	if !now.Before(r.paused) && r.failures < lostAfter {
		r.pace.tick(now, r.received.Load()+r.requests.Load()*requestWork, len(r.leases), r.latency)
	}
}

// compare measures the rate of each connection and replaces those that are far behind the others. Some edges of a network
// give a connection an eighth of what others give; a new one may come out at another edge.
func (r *run) compare(now time.Time) {
	elapsed := now.Sub(r.rated).Seconds()
	var rates []float64
	for _, l := range r.leases {
		got := l.got.Load()
		rate := float64(got-l.rated) / elapsed
		if fresh := now.Sub(l.began) < rateEvery+tickEvery || l.rated == 0; fresh || !l.answers {
			l.rated = got
			continue
		}
		l.rated = got
		if l.rate == 0 {
			l.rate = rate
		}
		l.rate += (rate - l.rate) / 2
		rates = append(rates, l.rate)
	}
	r.rated = now
	middle := median(rates)
	switch {
	case r.usual == 0:
		r.usual = middle
	case len(rates) >= 3:
		r.usual += (middle - r.usual) / 2
	case len(rates) > 0:
		r.usual += (middle - r.usual) / 16 // too few to say what is usual
	}
	for _, l := range r.leases {
		left := float64(l.end - l.fill)
		if l.rate == 0 || l.whole || l.rate > slowShare*r.usual || l.replaced >= 3 || left < 2*l.rate {
			l.slow = time.Time{}
			continue
		}
		if l.slow.IsZero() {
			l.slow = now
		}
		// One at a time: when all become slow at once it is the path, and new connections do not help.
		if now.Sub(l.slow) >= slowAfter && now.Sub(r.replaced) >= rateEvery {
			r.replaced = now
			r.f.o.Logger.Debug("a slow connection is replaced", "source", r.job.Source, "rate", int64(l.rate), "usual", int64(r.usual))
			l.cancel(errSlow)
		}
	}
}
