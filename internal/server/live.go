package server

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/a-h/templ"
	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// How a live stream keeps time.
const (
	liveEvery = 250 * time.Millisecond // at most this often something is sent
	liveTick  = 2 * time.Second        // and at least this often it is looked: times grow old without an event
	logTick   = time.Second            // with an engine's log
	// What is stored is found by walking through folders, so it is looked at less often.
	storageTick = 5 * time.Second
	recheck     = 5 * time.Second  // the caller's rights are looked up anew
	liveLength  = 10 * time.Minute // then the browser connects again and proves its session again
	maxRows     = 200              // rows sent at once
)

// part is one named event with its HTML.
type part struct {
	event string
	html  templ.Component
}

// livePage renders what is live on one page.
type livePage struct {
	kinds  []registry.EventKind
	models []string // events of these models only; nil for all
	tick   time.Duration
	// parts are rendered at every look and sent when they differ from what was sent last. touched has the subjects of
	// the events since the last look; nil at the first.
	parts func(c echo.Context, touched *touched) ([]part, error)
}

// touched is what events since the last look were about.
type touched struct {
	models  map[string]bool
	changed bool // models came or went
}

var modelKinds = []registry.EventKind{registry.EventModelRegistered, registry.EventModelUpdated, registry.EventModelDeleted, registry.EventModelStatus, registry.EventOperation, registry.EventReset}

// uiEvents is GET /ui/events?page=…: server-sent events whose data is HTML, see web/templates/README.md.
func (s *Server) uiEvents(c echo.Context) error {
	p, err := s.livePage(c)
	if err != nil {
		return err
	}
	sub := s.Bus.Subscribe(events.Filter{Models: p.models, Kinds: p.kinds, Visible: s.visibleEvents(c)})
	defer sub.Close()
	ctx, cancel := s.streamContext(c)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, liveLength)
	defer stop()
	c.SetRequest(c.Request().WithContext(ctx))

	// The first look is before the answer begins, so that what may not be seen is an error and not an empty stream.
	out := &liveWriter{sent: map[string]string{}}
	if err := out.render(c, p, nil); err != nil {
		return err
	}
	if out.st, err = openStream(c); err != nil {
		return nil // gone already; nobody is left to be told
	}
	checked := time.Now()
	for {
		if out.flush() != nil {
			return nil
		}
		shown := time.Now()
		t, err := next(ctx, sub, p.tick)
		if err != nil {
			return nil // the client or the server ends, or it is time to connect again
		}
		if wait := liveEvery - time.Since(shown); wait > 0 && t != nil {
			if !pause(ctx, wait) {
				return nil
			}
			if t, err = drain(sub, t); err != nil {
				return nil
			}
		}
		if time.Since(checked) > recheck {
			checked = time.Now()
			if !s.stillMay(c) {
				return nil
			}
		}
		if t == nil {
			t = &touched{}
		}
		if out.render(c, p, t) != nil {
			return nil // deleted, or no longer theirs: the page learns it when it connects again
		}
	}
}

// stillMay looks up once more who asks and whether they may follow events.
func (s *Server) stillMay(c echo.Context) bool {
	id, err := s.Auth.Authenticate(c.Request())
	if err != nil || auth.Allowed(id, auth.EventsRead, "") != nil {
		return false
	}
	c.SetRequest(c.Request().WithContext(auth.WithIdentity(c.Request().Context(), id)))
	return true
}

// next waits for events, at most for tick; nil without an error when there were none.
func next(ctx context.Context, sub *events.Subscription, tick time.Duration) (*touched, error) {
	wait, cancel := context.WithTimeout(ctx, tick)
	defer cancel()
	batch, err := sub.Next(wait)
	if err != nil {
		if ctx.Err() == nil && wait.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	t := &touched{models: map[string]bool{}}
	t.note(batch)
	return t, nil
}

// drain adds what has come since without waiting.
func drain(sub *events.Subscription, t *touched) (*touched, error) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		batch, err := sub.Next(over)
		if over.Err() != nil && err == over.Err() { //nolint:errorlint // Next returns the context's own error
			return t, nil
		}
		if err != nil {
			return t, err
		}
		t.note(batch)
	}
}

func (t *touched) note(batch []*events.Message) {
	for _, m := range batch {
		switch m.Kind {
		case registry.EventModelRegistered, registry.EventModelDeleted, registry.EventReset:
			t.changed = true
		case registry.EventModelUpdated, registry.EventModelStatus, registry.EventOperation, registry.EventResources, registry.EventEngine, registry.EventManifest,
			registry.EventArtifact, registry.EventStorage:
		}
		if m.Subject != "" && m.Kind != registry.EventEngine {
			t.models[m.Subject] = true
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// liveWriter sends what differs from what was sent last.
type liveWriter struct {
	st   *stream
	sent map[string]string
	next [][]byte
}

// added are events that add to what is shown or come once; they are sent each time.
var added = map[string]bool{"log": true, "list": true, "log-reset": true}

func (w *liveWriter) render(c echo.Context, p livePage, t *touched) error {
	parts, err := p.parts(c, t)
	if err != nil {
		return err
	}
	for _, f := range parts {
		var b bytes.Buffer
		if err := f.html.Render(c.Request().Context(), &b); err != nil {
			return err
		}
		text := b.String()
		if !added[f.event] {
			if old, was := w.sent[f.event]; was && old == text {
				continue
			}
			w.sent[f.event] = text
		}
		w.next = append(w.next, liveFrame(f.event, text))
	}
	return nil
}

func (w *liveWriter) flush() error {
	if len(w.next) == 0 {
		if time.Since(w.st.last) < heartbeat-liveTick {
			return nil
		}
		w.next = append(w.next, []byte(": still here\n\n"))
	}
	err := w.st.write(w.next...)
	w.next = nil
	return err
}

// liveFrame writes HTML as one server-sent event.
func liveFrame(event, html string) []byte {
	html = strings.ReplaceAll(html, "\r", "")
	return []byte("event: " + event + "\ndata: " + strings.ReplaceAll(html, "\n", "\ndata: ") + "\n\n")
}
