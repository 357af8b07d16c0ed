package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// TestLiveModelPage follows a load on the model's page: stages, readiness, the log, and the end.
func TestLiveModelPage(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, map[string]any{"manual": true, "steps": int64(4)})
	s := w.member.live(view.LiveURL("model", "id", llama))
	for _, e := range []string{"badge", "head", "now", "facts", "history"} {
		s.until(e, "")
	}
	w.member.post(view.ModelAction(llama, "load")).to(view.ModelURL(llama))
	s.until("head", "Cancel")
	s.until("log-reset", `id="log"`)
	rt, err := w.store.Runtime(t.Context(), llama)
	must(t, err)
	if rt.Handle == nil {
		t.Fatal("the engine has no handle although it writes a log")
	}
	control, err := fake.NewControl(*rt.Handle)
	must(t, err)
	advance := func(n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; {
			err := control.Advance(t.Context(), n)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
			<-time.After(10 * time.Millisecond) // it does not listen yet
		}
	}
	advance(2)
	s.until("now", "2 of 4")
	advance(2)
	s.until("now", "Ready on CPU")
	w.member.post(view.ModelAction(llama, "unload")).to(view.ModelURL(llama))
	s.until("history", "came back")
	s.until("now", "If you load it now")
}

// TestLiveLog: who may not read the engine's log gets none of it; who may gets its lines without secrets.
func TestLiveLog(t *testing.T) {
	w := newWorld(t)
	w.model("m", registry.DefaultTeam, nil)
	w.load("m")
	w.member.live(view.LiveURL("model", "id", "m")).until("log-reset", "fakeengine")
	s := w.viewer.live(view.LiveURL("model", "id", "m"))
	s.until("history", "<b>Load</b>")
	w.member.post(view.ModelAction("m", "unload")).to(view.ModelURL("m"))
	s.until("now", "If you load it now")
	if strings.Contains(s.all.String(), "event: log") {
		t.Errorf("a viewer gets the log: %s", s.all.String())
	}
}

// TestLiveListsAndOverview: rows, the note that the list has changed, what is loaded, what needs somebody.
func TestLiveListsAndOverview(t *testing.T) {
	w := newWorld(t)
	w.model("one", registry.DefaultTeam, nil)
	list, over := w.viewer.live(view.LiveURL("models")), w.member.live(view.LiveURL("overview"))
	list.until("rows", "one")
	over.until("loaded", "Nothing is loaded")
	over.until("needs", "Nothing waits for you")
	w.model("two", registry.DefaultTeam, map[string]any{"fault": "corrupt"})
	list.until("list", "Models were added or removed")
	w.load("one")
	if row := list.until("rows", "Ready"); !strings.Contains(row, `hx-swap-oob="true"`) || strings.Contains(row, "/unload") {
		t.Errorf("a viewer's row: %s", row)
	}
	over.until("loaded", "one")
	w.load("two")
	over.until("needs", "failed to load")
	w.hw.SetHost(registry.Host{RAMTotal: 64 << 30, RAMAvailable: 32 << 30, CPUs: 3})
	if _, err := w.manager.Hardware.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	over.until("devices", "3 cores")
	activity := w.viewer.live(view.LiveURL("activity"))
	activity.until("past", "Load one")
}

// TestLiveEndsWithTheRight: a stream does not go on when its reader may no longer see what it shows.
func TestLiveEndsWithTheRight(t *testing.T) {
	w := newWorld(t)
	w.model("m", registry.DefaultTeam, nil)
	s := w.viewer.live(view.LiveURL("model", "id", "m"))
	s.until("history", "")
	sys := auth.WithIdentity(t.Context(), auth.System("test"))
	must(t, w.auth.SetMember(sys, registry.DefaultTeam, "vera", ""))
	for s.lines.Scan() { // ends within recheck, or the test's time does
	}
	if err := s.lines.Err(); err != nil {
		t.Fatalf("the stream did not end: %v", err)
	}
	w.viewer.get("/ui/events?page=model&id=m").is(http.StatusForbidden)
}

func TestLiveIsRefusedForNonsense(t *testing.T) {
	w := newWorld(t)
	w.admin.get("/ui/events?page=nonsense").is(http.StatusBadRequest)
	w.admin.get("/ui/events?page=model&id=" + url.QueryEscape("no/such")).is(http.StatusNotFound)
	w.admin.get("/ui/events?page=operation&id=none").is(http.StatusNotFound)
}

func TestLiveFrame(t *testing.T) {
	if got, want := string(liveFrame("log", "a\r\nb\n")), "event: log\ndata: a\ndata: b\ndata: \n\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSparks: every device has its last minutes, and no more than those.
func TestSparks(t *testing.T) {
	b := &liveBook{points: map[string][]float64{}}
	for i := range 2 * sparkPoints {
		b.add(registry.Sample{Host: registry.Host{RAMTotal: 1000, RAMAvailable: int64(1000 - i), CPUs: 1},
			GPUs: []registry.GPU{{Index: 1, MemoryTotal: 1000, MemoryUsed: int64(i)}}})
	}
	got := b.sparks()
	for _, id := range []string{"ram", "gpu-1"} {
		if p := got[id]; len(p) != sparkPoints || fmt.Sprint(p[len(p)-1]) != "0.239" || fmt.Sprint(p[0]) != "0.12" {
			t.Errorf("%s: %d points from %v", id, len(got[id]), got[id][:1])
		}
	}
}
