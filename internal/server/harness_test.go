package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/PuerkitoBio/goquery"
	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// fakeEngine is the engine's program, built once.
var fakeEngine string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fakeengine")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fakeEngine = filepath.Join(dir, "fakeengine")
	if out, err := exec.Command("go", "build", "-o", fakeEngine, "github.com/industriverse/llmmodelmanager/cmd/fakeengine").CombinedOutput(); err != nil {
		fmt.Printf("go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

const (
	adminToken = "an-admin-token-for-tests-0123456789"
	otherTeam  = "other"
)

// world is a whole server: real store, manager, sessions and events, the fake engine, made-up hardware without a GPU.
// The team default has a maintainer, a member and a viewer; the team other has a member, the outsider.
type world struct {
	t       *testing.T
	url     string
	dir     string
	weights string // a small GGUF file
	server  *Server
	manager *manager.Manager
	store   *store.Store
	auth    *auth.Service
	bus     *events.Bus
	hw      *hwtest.Fake
	depot   *sourcetest.Depot // where models of the source huggingface come from

	admin, maintainer, member, viewer, outsider, nobody *client
}

// worldOptions change a world before it starts.
type worldOptions struct {
	empty   bool // no account at all: the first visit
	loaders []loaders.Loader
}

// newWorld starts a server that ends with the test; everything it started must have ended then.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, worldOptions{})
}

func newWorldWith(t *testing.T, o worldOptions) *world {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		// scs.New begins to clean a store in memory that nobody uses, and offers no way to end that.
		goleak.VerifyNone(t, leaks, goleak.IgnoreTopFunction("github.com/alexedwards/scs/v2/memstore.(*MemStore).startCleanup"))
	})
	ctx := context.Background()
	w := &world{t: t, dir: t.TempDir(), hw: hwtest.New()}
	w.weights = filepath.Join(w.dir, "tiny.gguf")
	must(t, os.WriteFile(w.weights, sourcetest.TinyGGUF(1), 0o600))

	var err error
	w.store, err = store.Open(ctx, store.Options{Path: filepath.Join(w.dir, "llmm.db")})
	must(t, err)
	t.Cleanup(func() { _ = w.store.Close() })
	token := adminToken
	if o.empty {
		token = ""
	}
	w.auth = auth.New(auth.Options{Store: w.store, AdminToken: token})
	must(t, w.auth.Bootstrap(ctx))
	w.bus = events.New(events.Options{})
	t.Cleanup(w.bus.Close)
	sampler := hw.New(hw.Options{GPU: w.hw.GPUs(), Host: w.hw.Host(), Interval: time.Hour})
	_, err = sampler.Refresh(ctx)
	must(t, err)
	w.depot = sourcetest.NewDepot(filepath.Join(w.dir, "depot"))
	w.manager = manager.New(manager.Options{
		Store: w.store, Bus: w.bus, Hardware: sampler, DataDir: w.dir,
		Loaders: append(o.loaders, fake.New(fake.Options{Path: fakeEngine, TagPrefix: w.store.InstallationID()})),
		Sources: []sources.Source{local.New(local.Options{}), w.depot},
	})
	must(t, w.manager.Start(ctx))
	t.Cleanup(func() {
		end, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if err := w.manager.Close(end, false); err != nil {
			t.Errorf("the manager did not close: %v", err)
		}
	})
	w.server = New(Options{Manager: w.manager, Store: w.store, Auth: w.auth, Bus: w.bus, Version: "test"})
	web := httptest.NewServer(w.server)
	w.url = web.URL
	t.Cleanup(func() {
		w.server.CloseStreams()
		web.Close()
		w.server.Close()
	})
	w.nobody = w.client("", "")
	if o.empty {
		return w
	}
	w.admin = w.client(auth.AdminName, adminToken)
	sys := auth.WithIdentity(ctx, auth.System("test"))
	must(t, w.auth.CreateTeam(sys, otherTeam))
	for _, p := range []struct {
		to         **client
		name, team string
		role       registry.Role
	}{
		{&w.maintainer, "mia", registry.DefaultTeam, registry.RoleMaintainer}, {&w.member, "max", registry.DefaultTeam, registry.RoleMember},
		{&w.viewer, "vera", registry.DefaultTeam, registry.RoleViewer}, {&w.outsider, "otto", otherTeam, registry.RoleMember},
	} {
		u, err := w.auth.CreateUser(sys, p.name, "", false)
		must(t, err)
		must(t, w.auth.SetMember(sys, p.team, p.name, p.role))
		// The secret is only given to its owner.
		secret, _, err := w.auth.CreateToken(auth.WithIdentity(ctx, auth.Identity{UserID: u.ID, Name: u.Name, Via: auth.ViaToken}), "test", 0)
		must(t, err)
		*p.to = w.client(p.name, secret)
	}
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// model registers a model of the fake engine.
func (w *world) model(id, team string, params map[string]any) registry.Record {
	w.t.Helper()
	rec, _, err := w.manager.Register(context.Background(), registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: w.weights,
		ModelFormat: registry.FormatGGUF, Engine: fake.Name, Team: team, CustomLoaderParams: params}.WithDefaults(), manager.PutOptions{Actor: "test", Persist: true})
	must(w.t, err)
	return rec
}

// load loads a model and waits until it is ready, or has failed.
func (w *world) load(id string) registry.Operation {
	w.t.Helper()
	op, err := w.manager.Load(context.Background(), id, manager.LoadOptions{Actor: "test", Cause: "a test"})
	must(w.t, err)
	return w.await(op)
}

func (w *world) await(op registry.Operation) registry.Operation {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	op, err := w.manager.Await(ctx, op.ID)
	must(w.t, err)
	if !op.State.Final() {
		w.t.Fatalf("%s of %s has not ended: %+v", op.Kind, op.Subject, op)
	}
	return op
}

// status waits until a model has the status.
func (w *world) status(id string, want registry.Status) {
	w.t.Helper()
	w.until(id, func(l manager.Listed) bool { return l.Status == want })
}

// until waits until a model is as it should be, looking again at each of its events.
func (w *world) until(id string, ok func(manager.Listed) bool) {
	w.t.Helper()
	sub := w.bus.Subscribe(events.Filter{Models: []string{id}})
	defer sub.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		l, err := w.manager.Get(ctx, id)
		must(w.t, err)
		if ok(l) {
			return
		}
		if _, err := sub.Next(ctx); err != nil {
			w.t.Fatalf("%s is %s with its files %s, and never became what it should be", id, l.Status, l.Runtime.Artifact)
		}
	}
}

// client is a browser, or a program with a token. It does not follow redirects.
type client struct {
	t     *testing.T
	base  string
	name  string
	token string
	http  *http.Client
}

// client makes one that sends a token; with an empty one it is a browser that keeps cookies.
func (w *world) client(name, token string) *client {
	jar, err := cookiejar.New(nil)
	must(w.t, err)
	c := &client{t: w.t, base: w.url, name: name, token: token, http: &http.Client{Jar: jar, Transport: &http.Transport{}, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	w.t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// answer is what came back.
type answer struct {
	t      *testing.T
	Status int
	Header http.Header
	Body   string
}

// send sends a request; headers come in pairs.
func (c *client) send(method, path, contentType string, body io.Reader, headers ...string) answer {
	c.t.Helper()
	req, err := http.NewRequest(method, c.base+path, body)
	must(c.t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	must(c.t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must(c.t, err)
	return answer{c.t, resp.StatusCode, resp.Header, string(b)}
}

func (c *client) get(path string, headers ...string) answer {
	c.t.Helper()
	return c.send(http.MethodGet, path, "", nil, headers...)
}

// post sends a form; fields come in pairs.
func (c *client) post(path string, fields ...string) answer {
	c.t.Helper()
	return c.postWith(path, nil, fields...)
}

func (c *client) postWith(path string, headers []string, fields ...string) answer {
	c.t.Helper()
	v := url.Values{}
	for i := 0; i+1 < len(fields); i += 2 {
		v.Add(fields[i], fields[i+1])
	}
	return c.send(http.MethodPost, path, "application/x-www-form-urlencoded", strings.NewReader(v.Encode()), headers...)
}

// json sends a JSON body over the API.
func (c *client) json(method, path, body string, headers ...string) answer {
	c.t.Helper()
	return c.send(method, path, "application/json", strings.NewReader(body), headers...)
}

// htmx are the headers of a request that replaces the element target.
func htmx(target string) []string { return []string{"HX-Request", "true", "HX-Target", target} }

// is fails the test when the status is another one.
func (a answer) is(status int) answer {
	a.t.Helper()
	if a.Status != status {
		a.t.Fatalf("status %d, want %d: %s", a.Status, status, brief(a.Body))
	}
	return a
}

// to fails the test when the answer is not a redirect to there.
func (a answer) to(location string) answer {
	a.t.Helper()
	if got := a.is(http.StatusSeeOther).Header.Get("Location"); got != location {
		a.t.Fatalf("redirected to %q, want %q", got, location)
	}
	return a
}

func (a answer) doc() *goquery.Document {
	a.t.Helper()
	d, err := goquery.NewDocumentFromReader(strings.NewReader(a.Body))
	must(a.t, err)
	return d
}

// text is the text of what the selector finds, spaces made single.
func (a answer) text(selector string) string {
	a.t.Helper()
	return strings.Join(strings.Fields(a.doc().Find(selector).Text()), " ")
}

func (a answer) has(what string) answer {
	a.t.Helper()
	if !strings.Contains(a.Body, what) {
		a.t.Fatalf("%q is not in the answer: %s", what, brief(a.Body))
	}
	return a
}

func (a answer) lacks(what string) answer {
	a.t.Helper()
	if i := strings.Index(a.Body, what); i >= 0 {
		a.t.Fatalf("%q is in the answer: …%s…", what, a.Body[max(0, i-200):min(len(a.Body), i+200)])
	}
	return a
}

func brief(s string) string {
	if d, err := goquery.NewDocumentFromReader(strings.NewReader(s)); err == nil && strings.Contains(s, "<main") {
		s = strings.Join(strings.Fields(d.Find("#flash, main").Text()), " ")
	}
	return s[:min(len(s), 1500)]
}

// liveStream is an open live page.
type liveStream struct {
	t     *testing.T
	resp  *http.Response
	lines *bufio.Scanner
	all   bytes.Buffer      // everything that came
	shown map[string]string // the newest HTML of each event
}

// live opens a stream of server-sent events; it ends with the test.
func (c *client) live(path string) *liveStream {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	c.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	must(c.t, err)
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := (&http.Client{Transport: c.http.Transport}).Do(req)
	must(c.t, err)
	c.t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		b, _ := io.ReadAll(resp.Body)
		c.t.Fatalf("%s: status %d, %s: %s", path, resp.StatusCode, resp.Header.Get("Content-Type"), b)
	}
	s := &liveStream{t: c.t, resp: resp, lines: bufio.NewScanner(resp.Body), shown: map[string]string{}}
	s.lines.Buffer(nil, 1<<20)
	return s
}

// until reads events until the newest of that name holds want, and returns its HTML.
func (s *liveStream) until(event, want string) string {
	s.t.Helper()
	if html, was := s.shown[event]; was && strings.Contains(html, want) {
		return html
	}
	name, data := "", []string{}
	for s.lines.Scan() {
		line := s.lines.Text()
		s.all.WriteString(line + "\n")
		switch {
		case strings.HasPrefix(line, "event: "):
			name = strings.TrimPrefix(line, "event: ")
		case strings.HasPrefix(line, "data: "):
			data = append(data, strings.TrimPrefix(line, "data: "))
		case line == "":
			html := strings.Join(data, "\n")
			s.shown[name] = html
			if name == event && strings.Contains(html, want) {
				return html
			}
			name, data = "", nil
		}
	}
	s.t.Fatalf("no event %s with %q came: %v; last: %s", event, want, s.lines.Err(), s.all.String()[max(0, s.all.Len()-2000):])
	return ""
}
