package server

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const (
	heartbeat = 15 * time.Second
	// A client that takes nothing for this long is gone, whatever its connection says.
	deadReader = 20 * time.Second
)

// streamEvents is GET /api/v1/events?models=a,b&kinds=model.status,operation: server-sent events with the JSON of
// registry.Event. It honours Last-Event-ID; a client that was away too long gets a reset event and should take a
// fresh snapshot.
func (s *Server) streamEvents(c echo.Context) error {
	var f events.Filter
	for m := range strings.SplitSeq(c.QueryParam("models"), ",") {
		if m != "" {
			f.Models = append(f.Models, m)
		}
	}
	for k := range strings.SplitSeq(c.QueryParam("kinds"), ",") {
		if k == "" {
			continue
		}
		if err := oneOf("kinds", registry.EventKind(k), registry.EventKinds); err != nil {
			return err
		}
		f.Kinds = append(f.Kinds, registry.EventKind(k))
	}
	f.Visible = s.visibleEvents(c)
	last := c.Request().Header.Get("Last-Event-ID")
	if last == "" {
		last = c.QueryParam("last_event_id")
	}
	sub := s.Bus.SubscribeAfter(f, last)
	defer sub.Close()
	st, err := openStream(c)
	if err != nil {
		return err
	}
	if err := st.write(events.PositionFrame(sub.Start())); err != nil {
		return nil // gone already; nobody is left to be told
	}
	ctx, cancel := s.streamContext(c)
	var beating sync.WaitGroup
	beating.Go(func() { st.beat(ctx.Done()) })
	// The answer must not be written to after the handler has returned.
	defer func() { cancel(); beating.Wait() }()
	for {
		batch, err := sub.Next(ctx)
		if err != nil {
			return nil // the client or the server ends
		}
		frames := make([][]byte, len(batch))
		for i, m := range batch {
			frames[i] = s.visibleFrame(c, m)
		}
		if st.write(frames...) != nil {
			return nil
		}
	}
}

// visibleEvents lets through what concerns models of the caller's teams, and what concerns no model. The bodies of
// resource samples name models, so only those who see every team get them as they are; others read /resources.
func (s *Server) visibleEvents(c echo.Context) func(registry.Event) bool {
	id := auth.FromContext(c.Request().Context())
	if id.Admin {
		return nil
	}
	ctx := c.Request().Context()
	seen := map[string]bool{}
	return func(e registry.Event) bool {
		switch e.Kind {
		case registry.EventResources, registry.EventManifest:
			return false
		case registry.EventEngine, registry.EventReset:
			return true
		default:
		}
		if ok, known := seen[e.Subject]; known && e.Kind != registry.EventModelUpdated && e.Kind != registry.EventModelRegistered {
			return ok
		}
		rec, err := s.Store.Model(ctx, e.Subject)
		ok := err == nil && auth.Sees(id, rec.Team)
		if len(seen) > 10_000 {
			clear(seen)
		}
		seen[e.Subject] = ok
		return ok
	}
}

// visibleFrame is the frame of an event as the caller may see it. An operation may name models of other teams and
// quote the engine's log; admins share the frame that was rendered once, others get one of their own.
func (s *Server) visibleFrame(c echo.Context, m *events.Message) []byte {
	id := auth.FromContext(c.Request().Context())
	if id.Admin || (m.Kind != registry.EventOperation && m.Kind != registry.EventModelStatus) {
		return m.Frame()
	}
	e := m.Event
	var body any
	switch e.Kind {
	case registry.EventOperation:
		var op registry.Operation
		if json.Unmarshal(e.Body, &op) != nil {
			return nil
		}
		body = s.visibleOperation(c, op)
	default:
		var st registry.ModelStatus
		if json.Unmarshal(e.Body, &st) != nil {
			return nil
		}
		if rec, err := s.Store.Model(c.Request().Context(), st.ModelID); st.Failure != nil && (err != nil || !s.mayReadLog(c, rec.Team)) {
			f := *st.Failure
			f.LogTail, st.Failure = nil, &f
		}
		body = st
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil
	}
	e.Body = b
	return events.RenderFrame(m.ID(), e)
}

// stream is one answer of server-sent events. Writes are serialised: events and heartbeats come from two goroutines.
type stream struct {
	mu   sync.Mutex
	w    http.ResponseWriter
	rc   *http.ResponseController
	last time.Time
}

func openStream(c echo.Context) (*stream, error) {
	h := c.Response().Header()
	h.Set(echo.HeaderContentType, "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	c.Response().WriteHeader(http.StatusOK)
	st := &stream{w: c.Response(), rc: http.NewResponseController(c.Response()), last: time.Now()}
	return st, st.rc.Flush()
}

func (st *stream) write(frames ...[]byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.last = time.Now()
	if err := st.rc.SetWriteDeadline(st.last.Add(deadReader)); err != nil {
		return err
	}
	for _, f := range frames {
		if _, err := st.w.Write(f); err != nil {
			return err
		}
	}
	return st.rc.Flush()
}

// beat sends a comment when nothing else was sent for a while, so that proxies keep the connection and a dead client
// is noticed.
func (st *stream) beat(done <-chan struct{}) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-tick.C:
			st.mu.Lock()
			quiet := now.Sub(st.last) >= heartbeat-time.Second
			st.mu.Unlock()
			if quiet && st.write([]byte(": still here\n\n")) != nil {
				return
			}
		}
	}
}
