package hubtest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// FaultKind is one way in which a Hub behaves badly.
type FaultKind string

// The kinds of fault. A kind says which of a Fault's fields it reads beside Match, Host, Share, Skip and Times.
const (
	FaultStatus      FaultKind = "status"       // an error of Status; a 429 has RateLimit with Wait, any other Retry-After if Wait is given
	FaultHTML        FaultKind = "html"         // 200 with a page of HTML, as a proxy's sign-in
	FaultLoop        FaultKind = "loop"         // a redirect to the same address
	FaultRedirect    FaultKind = "redirect"     // a redirect to Location; "%s" in it is the path that was asked for
	FaultExpired     FaultKind = "expired"      // the signed address is expired when it is handed out
	FaultLinkedSize  FaultKind = "linked_size"  // X-Linked-Size is off by Delta
	FaultLinkedETag  FaultKind = "linked_etag"  // X-Linked-Etag, and the tree, name another SHA-256
	FaultLength      FaultKind = "length"       // Content-Length is off by Delta; what is sent is cut to it, or ends too early
	FaultRange       FaultKind = "range"        // Content-Range is off by Delta; the bytes are those that were asked for
	FaultIgnoreRange FaultKind = "ignore_range" // 200 with the whole file to a Range
	FaultTruncate    FaultKind = "truncate"     // the connection is closed after After bytes of the body
	FaultReset       FaultKind = "reset"        // the connection is reset after After bytes of the body
	FaultStall       FaultKind = "stall"        // nothing comes any more after After bytes: for Wait, or for ever if it is 0
	FaultFlip        FaultKind = "flip"         // bit Bit of the file is the other one
	FaultSlow        FaultKind = "slow"         // the body comes at Rate bytes per second
)

// Anywhere as After or Bit is a random place within the bytes of each answer.
const Anywhere = -1

// Host is one of the two hosts.
type Host string

// The hosts.
const (
	OnHub Host = "hub"
	OnCDN Host = "cdn"
)

// Fault is something that goes wrong with requests. Faults are looked at in the order in which they were given; at most one
// is done to the beginning of an answer and one to its body.
type Fault struct {
	Kind  FaultKind `json:"kind"`
	Host  Host      `json:"host,omitempty"`  // only there; "" is both
	Match string    `json:"match,omitempty"` // only where the path, or ORG/NAME/PATH of the file, contains this
	Share float64   `json:"share,omitempty"` // of the matching requests, by chance; 0 is all
	Skip  int       `json:"skip,omitempty"`  // matching requests that it lets pass first
	Times int       `json:"times,omitempty"` // how often at most; 0 is without limit

	Status   int           `json:"status,omitempty"`
	Wait     time.Duration `json:"wait,omitempty"` // nanoseconds
	Location string        `json:"location,omitempty"`
	Delta    int64         `json:"delta,omitempty"`
	After    int64         `json:"after,omitempty"`
	Bit      int64         `json:"bit,omitempty"` // 0 is the lowest of the file's first byte
	Rate     int64         `json:"rate,omitempty"`
}

var (
	beginnings = []FaultKind{FaultStatus, FaultHTML, FaultLoop, FaultRedirect}
	signings   = []FaultKind{FaultExpired}
	sizes      = []FaultKind{FaultLinkedSize}
	etags      = []FaultKind{FaultLinkedETag}
	bodies     = []FaultKind{FaultLength, FaultRange, FaultIgnoreRange, FaultTruncate, FaultReset, FaultStall, FaultFlip, FaultSlow}
)

// FaultKinds are all kinds of fault.
func FaultKinds() []FaultKind { return slices.Concat(beginnings, signings, sizes, etags, bodies) }

// Fault makes requests from now on go wrong, in addition to the faults there are.
func (h *Hub) Fault(faults ...Fault) {
	h.faults.mu.Lock()
	defer h.faults.mu.Unlock()
	for _, f := range faults {
		h.faults.list = append(h.faults.list, &activeFault{Fault: f})
	}
}

// Heal ends all faults.
func (h *Hub) Heal() {
	h.faults.mu.Lock()
	defer h.faults.mu.Unlock()
	h.faults.list = nil
}

type activeFault struct {
	Fault
	seen, done int
}

type faults struct {
	mu   sync.Mutex
	list []*activeFault
	rng  *rand.Rand
}

func (f *faults) seed(seed uint64) {
	f.rng = rand.New(rand.NewPCG(seed, 0x6875627465737421))
}

// pick returns the fault of one of these kinds that is to be done to a request, nil for none.
func (f *faults) pick(kinds []FaultKind, host Host, names ...string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.list {
		if !slices.Contains(kinds, a.Kind) || a.Host != "" && a.Host != host || a.Times > 0 && a.done >= a.Times {
			continue
		}
		if a.Match != "" && !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, a.Match) }) {
			continue
		}
		if a.seen++; a.seen <= a.Skip {
			continue
		}
		if a.Share > 0 && f.rng.Float64() >= a.Share {
			continue
		}
		a.done++
		chosen := a.Fault
		return &chosen
	}
	return nil
}

func (f *faults) below(n int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.Int64N(max(1, n))
}

// fault looks for a fault of these kinds and writes down that it was done.
func (p *reply) find(kinds []FaultKind) *Fault {
	host := OnHub
	if p.q.CDN {
		host = OnCDN
	}
	f := p.hub.faults.pick(kinds, host, p.r.URL.Path, p.q.File)
	if f != nil {
		p.hub.served.note(func() {
			if p.q.Fault == "" {
				p.hub.served.sum.Faults++
			}
			p.q.Fault = f.Kind
		})
	}
	return f
}

// spoil answers in place of the handler if a fault says so.
func (p *reply) spoil() bool {
	f := p.find(beginnings)
	if f == nil {
		return false
	}
	switch f.Kind {
	case FaultStatus:
		p.status(f)
	case FaultHTML:
		say(p, http.StatusOK, "text/html; charset=utf-8", "<!DOCTYPE html><title>Sign in</title><h1>Sign in to the network</h1>")
	case FaultLoop:
		p.Header().Set("Location", p.r.URL.RequestURI())
		say(p, http.StatusFound, "text/plain", "Found. Redirecting to "+p.r.URL.RequestURI())
	case FaultRedirect:
		to := strings.ReplaceAll(f.Location, "%s", p.r.URL.EscapedPath())
		p.Header().Set("Location", to)
		say(p, http.StatusFound, "text/plain", "Found. Redirecting to "+to)
	default:
		panic("hubtest: no beginning: " + f.Kind)
	}
	return true
}

func (p *reply) status(f *Fault) {
	status := f.Status
	if status == 0 {
		status = http.StatusServiceUnavailable
	}
	seconds := int((f.Wait + time.Second - 1) / time.Second)
	switch {
	case status == http.StatusTooManyRequests:
		kind := "resolvers"
		if strings.HasPrefix(p.r.URL.Path, "/api/") {
			kind = "api"
		}
		rateHeaders(p.Header(), kind, 0, seconds, 500, int(p.hub.o.Window.Seconds()))
		tooMany.write(p, kind == "api")
	default:
		if f.Wait > 0 {
			p.Header().Set("Retry-After", strconv.Itoa(seconds))
		}
		say(p, status, "text/html; charset=utf-8", fmt.Sprintf("<html><body><h1>%d %s</h1></body></html>", status, http.StatusText(status)))
	}
}

// sendFile answers with a file's content, or a range of it, and with whatever goes wrong on the way.
func (p *reply) sendFile(f *file, contentType, etag string) {
	in, err := f.open()
	if err != nil {
		p.hub.log.Error("a file cannot be served", "file", p.q.File, "error", err)
		noEntry.write(p, false)
		return
	}
	defer in.Close()
	p.Header().Set("Content-Type", contentType)
	p.Header().Set("ETag", `"`+etag+`"`)
	p.Header().Set("Accept-Ranges", "bytes")
	p.edge = connectionOf(p.r).edge
	r := p.r
	var content io.ReadSeeker = in
	if p.r.Method == http.MethodGet {
		if p.fault = p.find(bodies); p.fault != nil {
			begin, length := span(p.r.Header.Get("Range"), f.size)
			switch p.fault.Kind {
			case FaultIgnoreRange:
				r = p.r.Clone(p.r.Context())
				r.Header.Del("Range")
			case FaultFlip:
				if p.fault.Bit < 0 {
					p.fault.Bit = begin*8 + p.hub.faults.below(length*8)
				}
				content = &flipped{ReadSeeker: in, bit: p.fault.Bit}
			case FaultSlow:
				p.edge = &edge{rate: max(1, p.fault.Rate)}
			default:
				if p.fault.After < 0 {
					p.fault.After = p.hub.faults.below(length)
				}
			}
		}
	}
	p.body = true
	http.ServeContent(p, r, "", f.mod, content)
}

// span returns the first byte and the length of a single range, the whole file for anything else.
func span(header string, size int64) (begin, length int64) {
	from, to, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	if !ok {
		return 0, size
	}
	begin, err := strconv.ParseInt(from, 10, 64)
	if err != nil || begin < 0 || begin >= size {
		return 0, size
	}
	last, err := strconv.ParseInt(to, 10, 64)
	if err != nil || last >= size {
		last = size - 1
	}
	return begin, max(0, last-begin+1)
}

// distort changes the headers of a file's answer where a fault says so.
func (p *reply) distort(status int) {
	if !p.body || p.fault == nil || status != http.StatusOK && status != http.StatusPartialContent {
		return
	}
	switch p.fault.Kind {
	case FaultLength:
		if n, err := strconv.ParseInt(p.Header().Get("Content-Length"), 10, 64); err == nil {
			p.declared = max(0, n+p.fault.Delta)
			p.Header().Set("Content-Length", strconv.FormatInt(p.declared, 10))
		}
	case FaultRange:
		if begin, end, size, ok := contentRange(p.Header().Get("Content-Range")); ok {
			p.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", begin+p.fault.Delta, end+p.fault.Delta, size))
		}
	default:
	}
}

func contentRange(header string) (begin, end, size int64, ok bool) {
	n, err := fmt.Sscanf(header, "bytes %d-%d/%d", &begin, &end, &size)
	return begin, end, size, err == nil && n == 3
}

// untilFault returns how many of n bytes may leave before something goes wrong; where it goes wrong now, it ends the answer.
func (p *reply) untilFault(n int64) int64 {
	if p.fault == nil {
		return n
	}
	switch p.fault.Kind {
	case FaultTruncate, FaultReset, FaultStall:
	case FaultLength:
		return min(n, p.declared-p.sentN) // what goes beyond would be taken for the next answer
	default:
		return n
	}
	if left := p.fault.After - p.sentN; left > 0 {
		return min(n, left)
	}
	if p.fault.Kind == FaultStall {
		p.stall(p.fault.Wait)
		p.fault = nil // it has passed
		return n
	}
	// What was written so far must be on its way before the connection ends.
	_ = http.NewResponseController(p.ResponseWriter).Flush()
	if p.fault.Kind == FaultReset {
		if tcp, ok := connectionOf(p.r).Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	panic(http.ErrAbortHandler)
}

// stall holds the answer back: for a time, or until the client or the Hub is gone.
func (p *reply) stall(d time.Duration) {
	_ = http.NewResponseController(p.ResponseWriter).Flush()
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-p.r.Context().Done():
		panic(http.ErrAbortHandler)
	case <-p.hub.done:
		panic(http.ErrAbortHandler)
	}
}

// flipped is a file with one bit changed.
type flipped struct {
	io.ReadSeeker
	bit int64
	at  int64
}

func (f *flipped) Read(b []byte) (int, error) {
	n, err := f.ReadSeeker.Read(b)
	if i := f.bit/8 - f.at; i >= 0 && i < int64(n) {
		b[i] ^= 1 << (f.bit % 8)
	}
	f.at += int64(n)
	return n, err
}

func (f *flipped) Seek(offset int64, whence int) (int64, error) {
	at, err := f.ReadSeeker.Seek(offset, whence)
	f.at = at
	return at, err
}

// lie returns another SHA-256 than the one given.
func lie(sha string) string {
	if sha[0] == '0' {
		return "1" + sha[1:]
	}
	return "0" + sha[1:]
}
