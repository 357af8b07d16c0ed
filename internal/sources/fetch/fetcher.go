package fetch

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Fetcher fetches jobs within common limits. It is safe for concurrent use and holds nothing between runs.
type Fetcher struct {
	o       Options
	block   int64     // bytes that a connection reads before they are written and noted
	buffers sync.Pool // *[]byte of block bytes
	tune    tune
	limit   *rate.Limiter
	hashers chan struct{} // as many as may catch up at once

	mu      sync.Mutex
	sources map[registry.SourceType]*rate.Limiter
	runs    map[*run]struct{}
	used    int // connections
}

// tune is what tests make faster or break.
type tune struct {
	answer  time.Duration // until an answer begins
	idle    time.Duration // without a byte, when nothing else flows either
	stall   time.Duration // without a byte, while others flow
	giveUp  time.Duration // of errors of the other side about the same bytes
	tries   int           // at least, before giving up
	wrong   int           // answers about the same bytes that cannot be right
	sync    time.Duration // between marks of what is safe from a power loss
	flush   time.Duration // between hints to the kernel to begin writing
	steal   time.Duration // that a range will take at least, to be shared with another connection
	lease   int64         // bytes of the first requests
	longest int64         // bytes of a request
	write   func(f *os.File, p []byte, off int64) (int, error)
}

const (
	minBlock = 64 << 10
	maxBlock = 1 << 20
)

// New returns a fetcher.
func New(o Options) *Fetcher {
	if o.Connections <= 0 {
		o.Connections = 64
	}
	if o.Memory <= 0 {
		o.Memory = 64 << 20
	}
	if o.MinFree == 0 {
		o.MinFree = 1 << 30
	}
	o.MinFree = max(o.MinFree, 0)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	// Every connection has one block in memory, so the budget decides first how large a block is, then how many.
	o.Connections = int(max(1, min(int64(o.Connections), o.Memory/minBlock)))
	f := &Fetcher{
		o: o, block: min(max(o.Memory/int64(o.Connections)/minBlock*minBlock, minBlock), maxBlock),
		limit: newLimit(o.Rate), hashers: make(chan struct{}, 4),
		sources: map[registry.SourceType]*rate.Limiter{}, runs: map[*run]struct{}{},
		tune: tune{
			answer: time.Minute, idle: 30 * time.Second, stall: 8 * time.Second, giveUp: 10 * time.Minute, tries: 12, wrong: 4,
			sync: 3 * time.Second, flush: 250 * time.Millisecond, steal: 1500 * time.Millisecond, lease: 128 << 20, longest: 256 << 20, write: (*os.File).WriteAt,
		},
	}
	f.buffers.New = func() any {
		b := make([]byte, f.block)
		return &b
	}
	return f
}

// SetRate changes the limit over all fetches together, those that run included; 0 is unlimited.
func (f *Fetcher) SetRate(bytesPerSecond int64) { setLimit(f.limit, bytesPerSecond) }

// SetSourceRate changes the limit of all fetches from one source together; 0 is unlimited.
func (f *Fetcher) SetSourceRate(source registry.SourceType, bytesPerSecond int64) {
	setLimit(f.sourceLimit(source), bytesPerSecond)
}

func (f *Fetcher) sourceLimit(source registry.SourceType) *rate.Limiter {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.sources[source]
	if l == nil {
		l = newLimit(0)
		f.sources[source] = l
	}
	return l
}

// Run fetches all files of a job and returns when each is committed, or at the first that cannot be. What is there by
// then stays in the partial files and is not fetched again by the next run. A run is paused by ending ctx.
//
// Errors: ctx's own, as it is; those of Open and Commit; CodeLoadingFailed with FailureCorruptFile when the content is
// not what its digest says, twice; CodeInsufficientResources with a Shortage when the disk has no room or becomes full;
// CodeUnavailable when the other side sends something else than the file or fails for ten minutes, or a folder cannot
// be written to; CodeInvalid for a job that makes no sense. A network that is gone is waited for until ctx ends.
func (f *Fetcher) Run(ctx context.Context, job Job) error {
	r, err := f.newRun(ctx, job)
	if err != nil {
		return err
	}
	defer f.leave(r)
	return r.work()
}

func (f *Fetcher) join(r *run) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs[r] = struct{}{}
}

func (f *Fetcher) leave(r *run) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.runs, r)
	f.nudgeAll()
}

// share returns how many connections one run may have: none starves because another came first.
func (f *Fetcher) share() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(1, f.o.Connections/max(1, len(f.runs)))
}

func (f *Fetcher) acquire() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used >= f.o.Connections {
		return false
	}
	f.used++
	return true
}

func (f *Fetcher) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used--; f.used == f.o.Connections-1 {
		f.nudgeAll()
	}
}

func (f *Fetcher) nudgeAll() {
	for r := range f.runs {
		r.nudge()
	}
}
