package hubtest

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Request is one request that the Hub or its second host was asked.
type Request struct {
	At            time.Time `json:"at"`
	CDN           bool      `json:"cdn"` // asked of the second host
	Method        string    `json:"method"`
	Path          string    `json:"path"` // as it was sent, with its query
	File          string    `json:"file"` // ORG/NAME/PATH, once it is known which
	Range         string    `json:"range,omitempty"`
	Authorization string    `json:"authorization,omitempty"`
	UserAgent     string    `json:"user_agent,omitempty"`
	Status        int       `json:"status"`
	Bytes         int64     `json:"bytes"`           // of a file's content; while it is under way: so far
	Fault         FaultKind `json:"fault,omitempty"` // that was done to it
}

// Served is what went out so far.
type Served struct {
	Requests  int              `json:"requests"`
	Ranges    int              `json:"ranges"`    // requests with a Range
	Bytes     int64            `json:"bytes"`     // of files' contents
	FromHub   int64            `json:"from_hub"`  // of Bytes
	FromCDN   int64            `json:"from_cdn"`  // of Bytes
	Files     map[string]int64 `json:"files"`     // of Bytes, by ORG/NAME/PATH
	HubTokens []string         `json:"-"`         // every Authorization that the Hub saw
	CDNTokens []string         `json:"-"`         // likewise the second host: none, if no client leaks
	Faults    int              `json:"faults"`    // requests that something was done to
	Open      int              `json:"open"`      // answers under way
	MostOpen  int              `json:"most_open"` // answers of the second host that were under way at once
}

// record is what was asked. Only the newest requests are kept; the sums are of all.
type record struct {
	mu       sync.Mutex
	requests []*Request
	sum      Served
	cdnOpen  int
	tokens   [2]map[string]bool
}

const kept = 50_000

// Served returns what went out so far, answers under way included. A client that has an answer finds its bytes counted;
// Open may still count it for a moment.
func (h *Hub) Served() Served {
	h.served.mu.Lock()
	defer h.served.mu.Unlock()
	s := h.served.sum
	s.Files = maps.Clone(s.Files)
	s.HubTokens = slices.Sorted(maps.Keys(h.served.tokens[0]))
	s.CDNTokens = slices.Sorted(maps.Keys(h.served.tokens[1]))
	return s
}

// Requests returns the newest requests, the oldest first. Forget begins anew.
func (h *Hub) Requests() []Request {
	h.served.mu.Lock()
	defer h.served.mu.Unlock()
	out := make([]Request, len(h.served.requests))
	for i, r := range h.served.requests {
		out[i] = *r
	}
	return out
}

// Forget sets all counters to zero.
func (h *Hub) Forget() {
	h.served.mu.Lock()
	defer h.served.mu.Unlock()
	open := h.served.sum.Open
	h.served.requests, h.served.sum, h.served.tokens = nil, Served{Open: open}, [2]map[string]bool{}
}

// begin writes down a request. end must be called.
func (s *record) begin(r *http.Request, cdn bool, now time.Time) *Request {
	q := &Request{
		At: now, CDN: cdn, Method: r.Method, Path: r.URL.RequestURI(), Range: r.Header.Get("Range"),
		Authorization: r.Header.Get("Authorization"), UserAgent: r.UserAgent(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) >= kept {
		s.requests = slices.Delete(s.requests, 0, kept/10)
	}
	s.requests = append(s.requests, q)
	s.sum.Requests++
	s.sum.Open++
	if q.Range != "" {
		s.sum.Ranges++
	}
	host := 0
	if cdn {
		host = 1
		s.cdnOpen++
		s.sum.MostOpen = max(s.sum.MostOpen, s.cdnOpen)
	}
	if q.Authorization != "" {
		if s.tokens[host] == nil {
			s.tokens[host] = map[string]bool{}
		}
		s.tokens[host][q.Authorization] = true
	}
	return q
}

func (s *record) end(q *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Open--
	if q.CDN {
		s.cdnOpen--
	}
}

func (s *record) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *record) sent(q *Request, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q.Bytes += n
	s.sum.Bytes += n
	if q.CDN {
		s.sum.FromCDN += n
	} else {
		s.sum.FromHub += n
	}
	if s.sum.Files == nil {
		s.sum.Files = map[string]int64{}
	}
	s.sum.Files[q.File] += n
}

// reply is the writer of one answer. It counts a file's bytes as they leave, paces them, and does to them what a fault
// says. It hands files on to the connection in slices, so that the kernel still sends them without copying.
type reply struct {
	http.ResponseWriter
	hub   *Hub
	r     *http.Request
	q     *Request
	body  bool   // what is written now is a file's content
	edge  *edge  // nil: as fast as it goes
	fault *Fault // of the body; nil: none
	sentN int64  // bytes of the body so far

	declared int64 // the Content-Length, where it is a lie
}

// slice is how many bytes leave between two looks at the counters.
const slice = 4 << 20

func (p *reply) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *reply) WriteHeader(status int) {
	p.hub.served.note(func() {
		if p.q.Status == 0 {
			p.q.Status = status
		}
	})
	p.distort(status)
	p.ResponseWriter.WriteHeader(status)
}

// next says how many of n bytes may leave now. It waits for the edge, and ends the answer where a fault says so.
func (p *reply) next(n int64) (int64, error) {
	n = min(n, slice)
	if p.edge != nil {
		n = min(n, p.edge.slice())
	}
	if n = p.untilFault(n); n <= 0 {
		return 0, io.ErrShortWrite
	}
	if p.edge != nil {
		if err := p.edge.pass(p.r.Context(), n); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// count is called before bytes leave, so that a client which has them all finds them counted, and corrected after.
func (p *reply) count(n int64) {
	p.sentN += n
	p.hub.served.sent(p.q, n)
}

func (p *reply) Write(b []byte) (int, error) {
	if !p.body {
		return p.ResponseWriter.Write(b)
	}
	done := 0
	for done < len(b) {
		n, err := p.next(int64(len(b) - done))
		if err != nil {
			return done, err
		}
		p.count(n)
		m, err := p.ResponseWriter.Write(b[done : done+int(n)])
		done += m
		p.count(int64(m) - n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// ReadFrom is what io.Copy calls. Each slice of a file goes to the connection as a file.
func (p *reply) ReadFrom(src io.Reader) (int64, error) {
	to, ok := p.ResponseWriter.(io.ReaderFrom)
	if !p.body || !ok {
		return io.Copy(struct{ io.Writer }{p}, src)
	}
	left := int64(1) << 62
	if lr, ok := src.(*io.LimitedReader); ok {
		src, left = lr.R, lr.N
	}
	var done int64
	for left > 0 {
		n, err := p.next(left)
		if err != nil {
			return done, err
		}
		p.count(n)
		m, err := to.ReadFrom(io.LimitReader(src, n))
		done += m
		left -= m
		p.count(m - n)
		if err != nil {
			return done, err
		}
		if m < n {
			break // the end of what was to be sent
		}
	}
	return done, nil
}
