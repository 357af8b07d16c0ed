// Package hubtest is a Hugging Face Hub on this machine, for tests, demonstrations and measurements. It serves a folder
// of real files, or files that a test puts, in the way the real one does: model information, paged trees, relative
// redirects on the Hub itself, and large files from a second host behind signed addresses that expire. It is faithful
// when the unmodified Python client downloads from it; the tests of this package run that client.
//
// On demand it behaves badly: see Fault. It remembers what it was asked for and by whom: see Served and Requests.
// cmd/fakehub is this package as a program.
package hubtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"
)

// Options configure a Hub. Zero values are the defaults.
type Options struct {
	// Root is the folder that is served. Root/ORG/NAME/ is the repository ORG/NAME at its branch main, and
	// Root/ORG/NAME@BRANCH/ the same at another branch (a slash in it written as %2F). Root/ORG/NAME.hub.json, if there
	// is one, is a Settings. The files are read when they are asked for: what changes in the folder is a new commit.
	Root string

	// Tokens are the access tokens and the names of the users they belong to. Without any, tokens are not looked at and
	// every visitor is anonymous. With some, an unknown token is refused everywhere, as the Hub does.
	Tokens map[string]string

	// Gated are repositories that are gated beside what their Settings say. Every user of a known token was granted
	// access to them.
	Gated []string

	Seed     uint64        // of everything that is random
	Expiry   time.Duration // of signed addresses; 0 is an hour
	LFSSize  int64         // bytes from which a file is large whatever its name; 0 is 10 MB
	PageSize int           // entries of one page of a tree; 0 is 1000, and 50 with expand

	// Quotas of one visitor for each Window. 0 is unlimited; the headers then say 500 and 3,000, as to an anonymous one.
	APIQuota     int
	ResolveQuota int
	Window       time.Duration // 0 is five minutes

	// Xet offers large files by Xet, too, as the Hub does, and the Python client then takes them that way. Without it
	// they come by plain HTTP only.
	Xet bool

	// Edges are the rates, in bytes per second, that the connections of the second host are capped to, in turn; 0 is
	// uncapped. None means that no connection is capped.
	Edges []int64

	Listen    string // of the Hub; "" is a free port of 127.0.0.1
	CDNListen string // of the second host; likewise
	Logger    *slog.Logger
	Now       func() time.Time
}

// Hub is a running Hub. It is safe for concurrent use.
type Hub struct {
	URL string // what HF_ENDPOINT is set to
	CDN string // the second host

	o       Options
	log     *slog.Logger
	key     []byte // signs addresses
	objects string // folder of the files that were put, by their SHA-256
	servers []*http.Server
	done    chan struct{} // closed by Close: ends stalls
	running sync.WaitGroup

	faults  faults
	served  record
	limits  limits
	edges   edges
	digests digests
	packing sync.Map // func() (*file, error) by the xorb's place on disk

	mu    sync.Mutex
	repos map[string]*repository // by id
}

// New starts a Hub that ends with the test.
func New(t testing.TB, o Options) *Hub {
	t.Helper()
	h, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Start starts a Hub. Close it.
func Start(o Options) (*Hub, error) {
	if o.Expiry == 0 {
		o.Expiry = time.Hour
	}
	if o.LFSSize == 0 {
		o.LFSSize = 10_000_000
	}
	if o.Window == 0 {
		o.Window = 5 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Root != "" {
		if fi, err := os.Stat(o.Root); err != nil {
			return nil, fmt.Errorf("the folder to serve: %w", err)
		} else if !fi.IsDir() {
			return nil, fmt.Errorf("the folder to serve: %s is a file; give the folder that holds ORG/NAME folders", o.Root)
		}
	}
	h := &Hub{o: o, log: o.Logger, done: make(chan struct{}), repos: map[string]*repository{}, key: signingKey(o.Seed)}
	h.faults.seed(o.Seed)
	h.edges.set(o.Edges)
	h.limits.now, h.limits.window = o.Now, o.Window
	objects, err := os.MkdirTemp("", "hubtest-")
	if err != nil {
		return nil, err
	}
	h.objects = objects
	if h.URL, err = h.serve(o.Listen, h.hubHandler(), false); err == nil {
		h.CDN, err = h.serve(o.CDNListen, h.cdnHandler(), true)
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// connection is what a handler knows of the connection that its request came on.
type connection struct {
	net.Conn
	edge *edge
}

type connectionKey struct{}

func connectionOf(r *http.Request) *connection {
	c, ok := r.Context().Value(connectionKey{}).(*connection)
	if !ok {
		return &connection{}
	}
	return c
}

// serve starts one host and returns its address.
func (h *Hub) serve(listen string, handler http.Handler, cdn bool) (string, error) {
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", listen)
	if err != nil {
		return "", err
	}
	s := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			conn := &connection{Conn: c}
			if cdn {
				conn.edge = h.edges.next(c)
			}
			return context.WithValue(ctx, connectionKey{}, conn)
		},
	}
	h.servers = append(h.servers, s)
	h.running.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.log.Error("a host of the fake Hub ended", "error", err)
		}
	})
	return "http://" + l.Addr().String(), nil
}

// Close ends both hosts and every answer that is under way.
func (h *Hub) Close() error {
	close(h.done)
	var err error
	for _, s := range h.servers {
		err = errors.Join(err, s.Close())
	}
	h.running.Wait()
	return errors.Join(err, os.RemoveAll(h.objects))
}

// Wait returns when the Hub was closed.
func (h *Hub) Wait() { <-h.done }

// say writes a short answer.
func say(w http.ResponseWriter, status int, contentType, text string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	w.WriteHeader(status)
	// A client that went away gets no answer; nothing is left to be done about it. For HEAD the server drops the text.
	_, _ = io.WriteString(w, text)
}
