package fetch

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ReaderOptions configure a RangeReader. Zero values are the defaults.
type ReaderOptions struct {
	First    int64         // bytes of the first request, a guess at how long a header is; 0 is 32 KiB
	Most     int64         // bytes of one request, unless more are read at once; 0 is 1 MiB
	Limit    int64         // bytes altogether; 0 is 256 MiB
	Tries    int           // of one request; 0 is 5
	Patience time.Duration // for the waits between them; 0 is 90 s
}

// RangeReader reads a remote file by ranges and keeps what it has read: for headers, which are at the beginning and small.
// Reads that go on where the one before ended ask for more each time. It is safe for concurrent use; reads wait
// for each other.
type RangeReader struct {
	ctx    context.Context // io.ReaderAt has none of its own
	remote Remote
	size   int64
	o      ReaderOptions

	mu       sync.Mutex
	blocks   []block // sorted, disjoint
	next     int64   // what is asked for ahead of a read
	end      int64   // of the last request
	requests int
	bytes    int64
}

type block struct {
	off  int64
	data []byte
}

// ReaderAt returns a reader of a remote file of size bytes. ctx ends its requests.
//
// ReadAt's errors are io.EOF; those of the remote; CodeUnavailable when it does not answer, or with another file; CodeBusy
// when it asks for more patience than there is; CodeInvalid beyond Limit.
func ReaderAt(ctx context.Context, remote Remote, size int64, o ReaderOptions) *RangeReader {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.First, 32<<10)
	def(&o.Most, 1<<20)
	def(&o.Limit, 256<<20)
	if o.Tries <= 0 {
		o.Tries = 5
	}
	if o.Patience <= 0 {
		o.Patience = 90 * time.Second
	}
	return &RangeReader{ctx: ctx, remote: remote, size: size, o: o, next: o.First, end: -1}
}

// Requests returns how many requests were sent.
func (r *RangeReader) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// Bytes returns how many bytes of the file were received.
func (r *RangeReader) Bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// ReadAt implements io.ReaderAt.
func (r *RangeReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("a read before the beginning of the file")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(p) {
		if off >= r.size {
			return n, io.EOF
		}
		if c := r.cached(p[n:], off); c > 0 {
			n, off = n+c, off+int64(c)
			continue
		}
		if err := r.fetch(off, int64(len(p)-n)); err != nil {
			return n, err
		}
	}
	return n, nil
}

// cached copies what is there from off on.
func (r *RangeReader) cached(p []byte, off int64) int {
	for _, b := range r.blocks {
		if off >= b.off && off < b.off+int64(len(b.data)) {
			return copy(p, b.data[off-b.off:])
		}
	}
	return 0
}

// fetch gets the bytes from off on: those that are wanted, and some ahead.
func (r *RangeReader) fetch(off, wanted int64) error {
	if off == r.end {
		r.next = min(2*r.next, r.o.Most)
	}
	end := min(off+max(wanted, r.next), r.size)
	at := len(r.blocks)
	for i, b := range r.blocks {
		if b.off > off {
			end, at = min(end, b.off), i
			break
		}
	}
	if r.bytes+end-off > r.o.Limit {
		return registry.Errorf(registry.CodeInvalid, "the header needs more than %s, which no header of a model does", registry.Bytes(r.o.Limit))
	}
	var data []byte
	err := Retry(r.ctx, r.o.Tries, r.o.Patience, func(ctx context.Context) error {
		var err error
		data, err = r.ask(ctx, off, end)
		return err
	})
	if err != nil {
		return err
	}
	r.end = end
	r.blocks = append(r.blocks[:at], append([]block{{off, data}}, r.blocks[at:]...)...)
	return nil
}

func (r *RangeReader) ask(ctx context.Context, off, end int64) ([]byte, error) {
	// Closing the body before its end must not leave the server sending the rest of a whole file.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.requests++
	a, err := r.remote.Open(ctx, off, end)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	if err := fits(a, off, r.size, ""); err != nil {
		return nil, err
	}
	if skip := off - a.Offset; skip > 0 {
		// A server without ranges: what is before must be read, too.
		if skip > r.o.Limit-r.bytes {
			return nil, registry.Errorf(registry.CodeUnavailable, "the other side cannot send a part of a file (it ignores Range), so the header at byte %d is out of reach; fetch the model to see it", off)
		}
		n, err := io.CopyN(io.Discard, a.Body, skip)
		r.bytes += n
		if err != nil {
			return nil, broken(ctx, err)
		}
	}
	data := make([]byte, end-off)
	n, err := io.ReadFull(a.Body, data)
	r.bytes += int64(n)
	if err != nil {
		return nil, broken(ctx, err)
	}
	// To the end of the body, so that its connection can be used again.
	_, _ = io.CopyN(io.Discard, a.Body, 1) // there should be nothing
	return data, nil
}

// fits checks that an answer is to the question and about the file.
func fits(a *Answer, off, size int64, tag string) error {
	page := ""
	if a.Page {
		page = "; it is a web page, as a login or a proxy sends it"
	}
	switch {
	case a.Size >= 0 && a.Size != size:
		return wrong("the other side sent a file of %d bytes where one of %d was looked up%s", a.Size, size, page)
	case tag != "" && a.Tag != "" && a.Tag != tag:
		return wrong("the other side has another file now than was looked up: %q instead of %q%s", short(a.Tag), short(tag), page)
	case a.Page && a.Size < 0:
		return wrong("the other side sent a web page instead of the file, as a login or a proxy does")
	case a.Offset != off && a.Offset != 0:
		return wrong("the other side sent byte %d on where byte %d was asked for", a.Offset, off)
	}
	return nil
}

// broken makes a *RetryError of an error while a body was read.
func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// Unlike a broken network it may be the server's habit, which is not waited for without end.
		return &RetryError{Err: registry.Errorf(registry.CodeUnavailable, "the answer ended before all its bytes had come; try again later")}
	}
	what := networkWords(err)
	return &RetryError{Err: &lost{registry.Errorf(registry.CodeUnavailable, "the connection broke: %s", what)}}
}
