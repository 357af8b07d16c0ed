package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// run is one Run. A single goroutine, the one that called Run, decides what is opened and which ranges are asked for;
// every connection has a goroutine that carries one lease out. All they share is under mu, which is held for moments:
// reading, writing and hashing happen outside of it.
type run struct {
	f      *Fetcher
	ctx    context.Context // ends with the caller's, and with the first error
	cancel context.CancelFunc
	caller context.Context
	job    Job
	total  int64
	gate   gate
	wake   chan struct{}
	wg     sync.WaitGroup

	received atomic.Int64 // bytes of bodies
	requests atomic.Int64 // that were answered

	mu        sync.Mutex
	err       error
	files     []*file // in the order of the job
	next      int     // the first that nobody has begun to open
	opening   int     // that are being opened, without those that wait for another process
	active    []*file // that are open and not whole yet
	finishing int
	finished  int
	leases    []*lease
	pace      *pace
	latency   time.Duration // until an answer begins, usually
	usual     float64       // rate of one connection, bytes per second
	done      int64         // bytes that are in the partial files or committed
	kept      int64         // bytes of files that are not open yet, as their journals tell
	paused    time.Time     // nothing new is asked for until then
	why       string        // what was waited for last
	whyAt     time.Time
	failures  int // of the network or for overload, in a row without a byte in between
	refused   int // requests for overload, in a row without one that was answered in between
	rated     time.Time
	replaced  time.Time

	highest  int64 // that was reported
	reported registry.Progress
}

const (
	tickEvery = 100 * time.Millisecond
	rateEvery = 500 * time.Millisecond
)

func (f *Fetcher) newRun(ctx context.Context, job Job) (*run, error) {
	r := &run{f: f, caller: ctx, job: job, wake: make(chan struct{}, 1), gate: gate{f.limit, f.sourceLimit(job.Source)}}
	seen := map[string]bool{}
	for _, one := range job.Files {
		if one.Size < 0 || one.Partial == "" || one.Commit == nil || one.Remote == nil || seen[one.Partial] {
			return nil, registry.Errorf(registry.CodeInvalid, "%s cannot be fetched: it needs a size, a remote, a place of its own to grow at and a commit", one.Name)
		}
		seen[one.Partial] = true
		sum, err := newRunning(one.Digest, one.Size)
		if err != nil {
			return nil, err
		}
		r.files = append(r.files, &file{File: one, sum: sum})
		r.total += one.Size
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkSpace(r.files, f.o.MinFree); err != nil {
		return nil, err
	}
	if job.Report != nil {
		for _, f := range r.files {
			f.kept = f.peek()
			r.kept += f.kept
		}
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.pace = newPace(f.o.Connections, f.o.Now())
	f.join(r)
	return r, nil
}

// work decides until everything is committed or something failed, then waits for every goroutine of the run.
func (r *run) work() error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	r.wg.Go(r.keepSynced)
	r.report(false)
	for r.dispatch() {
		select {
		case <-r.ctx.Done():
		case <-r.wake:
		case <-tick.C:
			r.watch()
			r.report(false)
		}
	}
	r.cancel()
	r.wg.Wait()
	for _, f := range r.active {
		if len(f.done) == 0 { // there is nothing to go on with
			if err := removeAll(f.Partial, f.journalPath()); err != nil {
				r.f.o.Logger.Warn("an empty partial file cannot be removed", "path", f.Partial, "err", err)
			}
		}
		f.close()
	}
	err := r.err
	if r.caller.Err() != nil && r.finished < len(r.files) {
		err = r.caller.Err()
	}
	if err == nil {
		r.report(true)
	}
	return err
}

// nudge lets the run decide again.
func (r *run) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// fail ends the run. r.mu is held.
func (r *run) fail(f *file, err error) {
	if r.err != nil || r.ctx.Err() != nil {
		return
	}
	r.err = named(f, err)
	r.cancel()
}

// named puts the file's name in front of a message that does not say which file it is about.
func named(f *file, err error) error {
	var e *registry.Error
	if f == nil || f.Name == "" || !errors.As(err, &e) || e.Code == registry.CodeInsufficientResources || e.Op == opNamed {
		return err
	}
	n := *e
	if n.Msg == "" {
		n.Msg = e.Error()
	}
	n.Msg, n.Op = f.Name+": "+n.Msg, opNamed
	return &n
}

const opNamed = "fetch file"

// dispatch starts what may be started, and reports whether the run goes on.
func (r *run) dispatch() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || r.ctx.Err() != nil || r.finished == len(r.files) {
		return false
	}
	now, allowed := r.f.o.Now(), r.allowed()
	r.openMore(allowed)
	if now.Before(r.paused) {
		return true
	}
	for len(r.leases) < allowed {
		f, piece := r.pick(now)
		if f == nil || !r.f.acquire() {
			break
		}
		r.start(f, piece, now)
	}
	return true
}

// allowed returns how many connections there may be now.
func (r *run) allowed() int {
	if r.failures >= lostAfter {
		return 1 // one asks whether the network is back
	}
	return min(r.pace.target, r.f.share())
}

// openMore opens the next files, so that there is work for all connections. Files that have all their bytes but are still
// hashed and synced count, too: otherwise a slow disk would let them pile up.
func (r *run) openMore(allowed int) {
	for r.next < len(r.files) && r.opening < allowed && len(r.active)+r.finishing+r.opening < 2*allowed && r.idle() < allowed {
		f := r.files[r.next]
		r.next++
		r.opening++
		r.wg.Go(func() { r.open(f) })
	}
}

// idle counts the files that no connection works on yet, those that are being opened included.
func (r *run) idle() int {
	n := r.opening
	for _, f := range r.active {
		if len(f.leases) == 0 {
			n++
		}
	}
	return n
}

// piece is a range to ask for, with what is known of earlier tries.
type piece struct {
	span
	tries    int       // that failed, in a row
	since    time.Time // the first of them
	replaced int       // how often its connection was too slow
}

// pick returns what to ask for next: files that no connection works on come first, as one that is written from its
// beginning to its end is hashed while its bytes are in the processor's cache. Then files are shared, and in the end
// the ranges under way.
func (r *run) pick(now time.Time) (*file, piece) {
	var best *file
	var found piece
	for _, f := range r.active {
		if best != nil && len(f.leases) >= len(best.leases) {
			continue
		}
		if p, ok := r.free(f, now); ok {
			best, found = f, p
			if len(f.leases) == 0 {
				break
			}
		}
	}
	if best != nil && len(best.leases) > 0 && r.opening > 0 {
		return nil, piece{} // a fresh one is here in a moment
	}
	if best != nil {
		return best, found
	}
	if r.next < len(r.files) || r.opening > 0 {
		return nil, piece{}
	}
	return r.steal(now)
}

// free returns a range of f that nobody has asked for.
func (r *run) free(f *file, now time.Time) (piece, bool) {
	if f.wholeOnly && len(f.leases) > 0 {
		return piece{}, false
	}
	for i, l := range f.later {
		if !now.Before(l.at) {
			f.later = slices.Delete(f.later, i, i+1)
			return l.piece, true
		}
		if f.wholeOnly {
			return piece{}, false
		}
	}
	g, ok := f.taken(nil).gap(0, f.Size)
	if !ok {
		return piece{}, false
	}
	if f.wholeOnly {
		return piece{span: g}, true
	}
	end := (g.off + r.leaseBytes() + r.f.block - 1) / r.f.block * r.f.block
	g.end = min(g.end, end)
	return piece{span: g}, true
}

// leaseBytes returns how long a request should be: many seconds of a connection's time, as every request can fail and
// counts against the other side's limits; and shorter towards the end, so that all connections end at about the same time.
func (r *run) leaseBytes() int64 {
	left := r.total - r.done
	for _, l := range r.leases {
		left -= l.end - l.pos
	}
	long := min(max(int64(r.usual*8), r.f.tune.lease), r.f.tune.longest)
	return max(min(long, left/int64(max(1, r.pace.target))), min(4*r.f.block, r.f.tune.lease))
}

// steal halves the range that will take longest, for a connection that has nothing else to do. What the other side has
// sent beyond the middle by the time it notices is lost, so it must be worth it.
func (r *run) steal(now time.Time) (*file, piece) {
	var victim *lease
	var most time.Duration
	for _, l := range r.leases {
		left := l.end - max(l.fill, l.pos)
		if l.whole || left < 4*r.f.block {
			continue
		}
		rate := l.rate
		if rate == 0 {
			rate = r.usual
		}
		if rate == 0 {
			rate = float64(l.got.Load()) / max(now.Sub(l.began).Seconds(), 1e-3)
		}
		eta := time.Duration(float64(left) / max(rate, 1) * float64(time.Second))
		if eta > most && now.Sub(l.began) > max(rateEvery, 4*r.latency) {
			victim, most = l, eta
		}
	}
	if victim == nil || most < max(r.f.tune.steal, 4*r.latency) {
		return nil, piece{}
	}
	from := max(victim.fill, victim.pos)
	mid := (from + (victim.end-from)/2 + r.f.block - 1) / r.f.block * r.f.block
	if mid <= from || mid >= victim.end {
		return nil, piece{}
	}
	p := piece{span: span{mid, victim.end}}
	victim.end = mid
	return victim.file, p
}

// waitsFor notes what the run waits for, for people. r.mu is held.
func (r *run) waitsFor(now time.Time, wait time.Duration, err error) {
	var e *registry.Error
	why := err.Error()
	if errors.As(err, &e) {
		why = e.Msg
	}
	r.why = fmt.Sprintf("Waiting: %s; next try in %s", why, wait.Round(100*time.Millisecond))
	r.whyAt = now
	r.f.o.Logger.Info("a fetch waits", "source", r.job.Source, "why", why, "wait", wait)
}

// report tells how far the run is, when that changed.
func (r *run) report(last bool) {
	r.mu.Lock()
	now := r.f.o.Now()
	done := r.done + r.kept
	flowing := false
	for _, l := range r.leases {
		done += l.filled.Load()
		flowing = flowing || l.flows(now)
	}
	// A file that starts again loses bytes; what was told is not taken back.
	r.highest = min(max(r.highest, done), r.total)
	p := registry.Progress{Stage: registry.StageFetch, Done: r.highest, Total: r.total, Unit: registry.UnitBytes,
		Msg: fmt.Sprintf("%d of %d files", r.job.Here+r.finished, max(r.job.Of, r.job.Here+len(r.files)))}
	if r.why != "" && !flowing && !last {
		p.Msg += ". " + r.why
	}
	for _, f := range r.files[:r.next] {
		if f.waiting && !flowing && !last {
			p.Msg += ". Waiting for another process that fetches " + f.Name
			break
		}
	}
	r.mu.Unlock()
	if r.job.Report != nil && (p != r.reported || last) {
		r.reported = p
		r.job.Report(p)
	}
}
