package server

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/a-h/templ"
	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/components"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

const (
	sparkEvery  = 3 * time.Second
	sparkPoints = 120 // six minutes

	enginesFor = time.Minute      // how long what was found of the engines is believed
	pendingFor = time.Second      // and when one of them has not answered yet
	usesFor    = 3 * time.Second  // and which models use one
	planFor    = 5 * time.Second  // how long a plan is shown before it is made again
	silentFor  = 30 * time.Second // how long a source that did not answer in time is left alone
	maxLooks   = 256              // models whose facts are remembered
)

// liveBook is what live pages share: the devices' last minutes, the engines, and what the sources said about models,
// so that a hundred open pages ask once.
type liveBook struct {
	s *Server

	mu     sync.Mutex
	points map[string][]float64 // used share of each device by view.Device.ID, oldest first
	looks  map[string]*look

	engineMu sync.Mutex // held while the engines are looked at
	foundMu  sync.Mutex // guards what follows
	found    []registry.EngineStatus
	foundAt  time.Time
	foundOf  int64 // Manager.EngineChanges when they were looked at
	looking  bool  // somebody looks again, and nobody waits for it

	oneMu sync.Mutex             // held while one engine is looked at
	one   map[string]foundEngine // by name, in full
	used  map[string]usedEngine  // by name and teams
}

// usedEngine is who used an engine.
type usedEngine struct {
	uses []registry.EngineUse
	at   time.Time
}

// foundEngine is an engine as it was found.
type foundEngine struct {
	st registry.EngineStatus
	at time.Time
	of int64 // Manager.EngineChanges
}

// look is what is known about a registered model that is not in the registry.
type look struct {
	mu      sync.Mutex // held while the source is asked
	version int64
	known   bool      // the facts could be read
	again   time.Time // not asked before
	facts   registry.Facts
	onDisk  int64 // of the model's files, in bytes
	plan    *registry.Plan
}

// seen is a copy of a look.
type seen struct {
	facts  registry.Facts
	onDisk int64
	plan   *registry.Plan
}

// newLiveBook begins to record the devices; the recording ends when s.closing is closed.
func newLiveBook(s *Server) *liveBook {
	b := &liveBook{s: s, points: map[string][]float64{}, looks: map[string]*look{}}
	if s.Manager != nil && s.Manager.Hardware != nil {
		go b.record(s.closing)
	}
	return b
}

func (b *liveBook) record(done <-chan struct{}) {
	tick := time.NewTicker(sparkEvery)
	defer tick.Stop()
	for {
		b.add(b.s.Manager.Hardware.Latest())
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// add appends one point for each device of the sample.
func (b *liveBook) add(sample registry.Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range view.DevicesOf(registry.Resources{Sample: sample}, nil) {
		if d.Total <= 0 {
			continue
		}
		p := b.points[d.ID]
		p = append(p, float64(d.Used)/float64(d.Total))
		if len(p) > sparkPoints {
			p = append([]float64(nil), p[len(p)-sparkPoints:]...)
		}
		b.points[d.ID] = p
	}
}

// sparks returns the last minutes of every device.
func (b *liveBook) sparks() map[string][]float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[string][]float64, len(b.points))
	for id, p := range b.points {
		out[id] = append([]float64(nil), p...)
	}
	return out
}

// engines returns the engines as they were found at most a minute ago. Looking starts their programs, so it is not
// done for every page.
func (b *liveBook) engines(ctx context.Context) []registry.EngineStatus {
	b.engineMu.Lock()
	defer b.engineMu.Unlock()
	if known, fresh := b.recall(); fresh {
		return known
	}
	of := b.s.Manager.EngineChanges()
	found := b.s.Manager.EnginesSoon(ctx)
	if ctx.Err() != nil {
		return found // cut short: not to be believed by others
	}
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	b.found, b.foundAt, b.foundOf = found, b.believedFrom(slices.ContainsFunc(found, func(e registry.EngineStatus) bool { return e.Pending })), of
	return slices.Clone(found)
}

// believedFrom is from when what was found is believed for enginesFor: what is pending, only for a moment longer.
func (b *liveBook) believedFrom(pending bool) time.Time {
	if pending {
		return b.s.Now().Add(pendingFor - enginesFor)
	}
	return b.s.Now()
}

// recall returns the engines as they were last found, nil if they never were, and whether that may still be believed.
func (b *liveBook) recall() (known []registry.EngineStatus, fresh bool) {
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	return slices.Clone(b.found), b.found != nil && b.s.Now().Sub(b.foundAt) <= enginesFor && b.foundOf == b.s.Manager.EngineChanges()
}

// knownEngines is engines for who would rather have an old answer than wait: once the engines were found that is told,
// and when it is old they are looked at again behind the caller's back.
func (b *liveBook) knownEngines(ctx context.Context) []registry.EngineStatus {
	known, fresh := b.recall()
	if known == nil {
		return b.engines(ctx)
	}
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	if !fresh && !b.looking {
		b.looking = true
		go b.lookAgain(context.WithoutCancel(ctx))
	}
	return known
}

func (b *liveBook) lookAgain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, enginesFor)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-b.s.closing:
			cancel()
		case <-done:
		}
	}()
	b.engines(ctx)
	b.foundMu.Lock()
	defer b.foundMu.Unlock()
	b.looking = false
}

// look returns the facts of a model and, with plan, what a load would do now. Those who ask at the same time share one
// answer. What cannot be learned before ctx ends is left out; with a ctx that has ended already, only what is known is told.
func (b *liveBook) look(ctx context.Context, rec registry.Record, plan bool) seen {
	b.mu.Lock()
	l := b.looks[rec.ModelID]
	if l == nil {
		if len(b.looks) >= maxLooks {
			clear(b.looks)
		}
		l = &look{}
		b.looks[rec.ModelID] = l
	}
	b.mu.Unlock()
	if !lockWithin(ctx, &l.mu) { // somebody else asks the source
		return seen{}
	}
	defer l.mu.Unlock()
	if l.version != rec.Version {
		l.version, l.known, l.facts, l.onDisk, l.plan, l.again = rec.Version, false, registry.Facts{}, 0, nil, time.Time{}
	}
	if (plan || !l.known) && ctx.Err() == nil && b.s.Now().After(l.again) {
		p, snap, err := b.s.Manager.PlanModel(ctx, rec.Model)
		l.again = b.s.Now().Add(silentFor)
		if err == nil && ctx.Err() == nil {
			l.plan, l.again = &p, b.s.Now().Add(planFor)
			if p.Problem == nil || snap.Facts.Format != "" {
				l.facts, l.known, l.onDisk = snap.Facts, true, snap.OnDisk
			}
		}
	}
	out := seen{facts: l.facts, onDisk: l.onDisk}
	if l.plan != nil && plan {
		p := *l.plan
		out.plan = &p
	}
	return out
}

// lockWithin locks mu unless ctx ends before.
func lockWithin(ctx context.Context, mu *sync.Mutex) bool {
	wait := time.NewTicker(10 * time.Millisecond)
	defer wait.Stop()
	for !mu.TryLock() {
		select {
		case <-ctx.Done():
			return false
		case <-wait.C:
		}
	}
	return true
}

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

// livePage says what is live on the page that asks.
func (s *Server) livePage(c echo.Context) (livePage, error) {
	id := c.QueryParam("id")
	all := append(append([]registry.EventKind{}, modelKinds...), registry.EventEngine, registry.EventManifest)
	switch c.QueryParam("page") {
	case "overview":
		return livePage{kinds: all, tick: liveTick, parts: s.liveOverview}, nil
	case "models":
		return livePage{kinds: modelKinds, tick: liveTick, parts: s.liveModels}, nil
	case "model":
		rec, err := s.seen(c.Request().Context(), id)
		if err != nil {
			return livePage{}, err
		}
		m := &liveModel{s: s, id: rec.ModelID}
		return livePage{kinds: append([]registry.EventKind{registry.EventArtifact}, modelKinds...), models: []string{rec.ModelID}, tick: logTick, parts: m.parts}, nil
	case "activity":
		return livePage{kinds: modelKinds, tick: liveTick, parts: s.liveActivity}, nil
	case "operation":
		return livePage{kinds: modelKinds, tick: liveTick, parts: s.liveOperation}, nil
	case "engines":
		return livePage{kinds: all, tick: liveTick, parts: s.liveEngines}, nil
	case "engine":
		if _, err := s.Manager.EngineName(id); err != nil {
			return livePage{}, err
		}
		return livePage{kinds: all, tick: liveTick, parts: s.liveEngine}, nil
	case "yaml":
		return livePage{kinds: all, tick: liveTick, parts: s.liveYAML}, nil
	case "storage":
		if err := auth.Allowed(auth.FromContext(c.Request().Context()), auth.StorageRead, ""); err != nil {
			return livePage{}, err
		}
		return livePage{kinds: []registry.EventKind{registry.EventStorage, registry.EventArtifact, registry.EventModelStatus, registry.EventReset}, tick: storageTick, parts: s.liveStorage}, nil
	}
	return livePage{}, badParam("page", "must be overview, models, model, activity, operation, engines, engine, yaml or storage")
}

func (s *Server) badge(c echo.Context) (part, error) {
	_, n, err := s.needs(c)
	return part{"badge", partials.NavBadge(n)}, err
}

func (s *Server) liveOverview(c echo.Context, _ *touched) ([]part, error) {
	v, err := s.overview(c)
	if err != nil {
		return nil, err
	}
	return []part{
		{"badge", partials.NavBadge(v.Page.Needs)}, {"devices", partials.Devices(v)}, {"loaded", partials.Loaded(v)},
		{"needs", partials.Needs(v.Needs)}, {"activity", partials.Feed(v)},
	}, nil
}

// liveModels sends the rows of the models that something happened to, at first those of the list's first page.
func (s *Server) liveModels(c echo.Context, t *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	out := []part{badge}
	var rows []templ.Component
	if t == nil {
		v, err := s.models(c)
		if err != nil {
			return nil, err
		}
		for _, r := range v.Rows {
			rows = append(rows, partials.ModelRow(r, true))
		}
	} else {
		res := s.Manager.Resources()
		for id := range t.models {
			if !s.sees(c, id) || len(rows) == maxRows {
				continue
			}
			l, err := s.Manager.Get(c.Request().Context(), id)
			if err != nil {
				continue // deleted in this moment
			}
			rows = append(rows, partials.ModelRow(s.row(&l, canIn(c.Request().Context(), l.Team), res), true))
		}
		if t.changed {
			f := view.Filter{Q: c.QueryParam("q"), Status: c.QueryParam("status"), Team: c.QueryParam("team"), Source: c.QueryParam("source_type")}
			out = append(out, part{"list", partials.ListNote(f)})
		}
	}
	if len(rows) > 0 {
		out = append(out, part{"rows", templ.Join(rows...)})
	}
	return out, nil
}

func (s *Server) liveActivity(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.activity(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"running", partials.RunningNow(v.Running, v.Can)}, {"past", partials.Past(v)}}, nil
}

func (s *Server) liveOperation(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.operationPage(c, c.QueryParam("id"))
	if err != nil {
		return nil, err
	}
	return []part{badge, {"operation", partials.OperationNow(v)}}, nil
}

func (s *Server) liveEngines(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.enginesPage(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"engines", partials.EngineList(v)}}, nil
}

func (s *Server) liveEngine(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.enginePage(c, c.QueryParam("id"))
	if err != nil {
		return nil, err
	}
	return []part{badge, {"head", partials.EngineHead(v)}, {"work", partials.EngineWork(v)}, {"about", partials.EngineAbout(v)}, {"uses", partials.EngineUses(v)}, {"versions", partials.EngineVersions(v)}, {"history", partials.EngineHistory(v)}}, nil
}

func (s *Server) liveYAML(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"manifest", partials.ManifestStatus(s.visibleManifest(c))}}, nil
}

func (s *Server) liveStorage(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.storage(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"disks", partials.Disks(v)}, {"stored", partials.Stored(v)}}, nil
}

// liveModel is the stream of one model's page. It follows the engine's log for who may read it.
type liveModel struct {
	s    *Server
	id   string
	path string // of the log that is followed
	log  *process.Follower
}

func (m *liveModel) parts(c echo.Context, _ *touched) ([]part, error) {
	rec, err := m.s.seen(c.Request().Context(), m.id)
	if err != nil {
		return nil, err
	}
	v, err := m.s.modelPage(c, m.id, lookForLive)
	if err != nil {
		return nil, err
	}
	badge, err := m.s.badge(c)
	if err != nil {
		return nil, err
	}
	if v.History, err = m.s.history(c, m.id); err != nil {
		return nil, err
	}
	out := []part{badge, {"head", partials.ModelHead(v)}, {"now", partials.ModelNow(v)}, {"files", partials.Files(v)}, {"facts", partials.Facts(v)}, {"history", partials.History(v.History)}}
	if m.s.mayReadLog(c, rec.Team) {
		out = append(out, m.logParts(c.Request().Context())...)
	}
	return out, nil
}

// logParts is what the engine wrote since: all of a new log, the new lines of the one that is followed.
func (m *liveModel) logParts(ctx context.Context) []part {
	path, err := m.s.Manager.LogPath(ctx, m.id)
	if err != nil {
		return nil
	}
	fresh := m.log == nil || path != m.path
	if fresh {
		from := int64(0)
		if fi, err := os.Stat(path); err == nil {
			from = max(0, fi.Size()-logLines*512)
		}
		m.path, m.log = path, process.Follow(path, from)
		lines := m.s.Manager.ForPeople(m.log.Lines())
		if from > 0 && len(lines) > 0 {
			lines = lines[1:] // half a line
		}
		return []part{{"log-reset", partials.LogBox(showLines(lines))}}
	}
	if lines := m.s.Manager.ForPeople(m.log.Lines()); len(lines) > 0 {
		return []part{{"log", components.LogLines(showLines(lines))}} //nolint:contextcheck // it is drawn later, with the context of who draws it
	}
	return nil
}

var colours = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

// showLines makes lines of a log fit to be shown: the last of them, without secrets and without what a terminal needs.
func showLines(lines []string) []string {
	if len(lines) > logLines {
		lines = lines[len(lines)-logLines:]
	}
	out := make([]string, len(lines))
	for i, l := range lines {
		if len(l) > 4096 {
			l = l[:4096] + " …"
		}
		l = colours.ReplaceAllString(strings.ToValidUTF8(l, "\uFFFD"), "")
		out[i] = process.Scrub(strings.Map(func(r rune) rune {
			if r == '\t' || r >= ' ' && r != 0x7f {
				return r
			}
			return -1
		}, l))
	}
	return out
}
