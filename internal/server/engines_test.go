package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/command"
	externalloader "github.com/industriverse/llmmodelmanager/internal/loaders/external"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func TestEngineOverTheAPI(t *testing.T) {
	w := newWorld(t)
	w.model("ours", registry.DefaultTeam, nil)
	w.model("theirs", otherTeam, nil)
	const engine = "/api/v1/engines/fake"

	var got apiEngine
	must(t, json.Unmarshal([]byte(w.viewer.get(engine).is(http.StatusOK).Body), &got))
	if !got.Usable || len(got.Params) == 0 || len(got.UsedBy) != 1 || got.UsedBy[0].ModelID != "ours" || !got.UsedBy[0].Named {
		t.Errorf("the engine is told as %+v", got)
	}
	w.viewer.get("/api/v1/engines/none").is(http.StatusNotFound).has("There is no engine named")

	w.maintainer.json(http.MethodPost, engine+"/self-test", "").is(http.StatusForbidden)
	w.maintainer.json(http.MethodDelete, engine, "").is(http.StatusForbidden)
	w.admin.json(http.MethodPost, engine+"/self-test", `{"place": "moon"}`).is(http.StatusUnprocessableEntity).has("place")
	w.admin.json(http.MethodPost, engine+"/self-test", `{"device": "moon"}`).is(http.StatusUnprocessableEntity).has("device")
	w.admin.json(http.MethodDelete, engine, "").is(http.StatusConflict).has("Nothing was installed")
	w.admin.json(http.MethodPost, "/api/v1/engines/none/self-test", "").is(http.StatusNotFound)

	var op registry.Operation
	must(t, json.Unmarshal([]byte(w.admin.json(http.MethodPost, engine+"/self-test?wait=30s", `{"device": "cpu"}`).is(http.StatusOK).Body), &op))
	if op.Kind != registry.OperationSelfTest || op.State != registry.OperationSucceeded || op.Released == nil || !strings.Contains(op.Stages[3].Msg, "Answered") {
		t.Errorf("the self-test is %+v", op)
	}
	w.viewer.get("/api/v1/operations/" + op.ID).is(http.StatusOK).has("Answered")
	w.member.json(http.MethodDelete, "/api/v1/operations/"+op.ID, "").is(http.StatusForbidden)
}

// TestServicesAreNotNamed: what is said of the services of all teams' models is for admins.
func TestServicesAreNotNamed(t *testing.T) {
	w := newWorldWith(t, worldOptions{loaders: []loaders.Loader{externalloader.New(externalloader.Options{})}})
	a := w.admin.json(http.MethodPost, "/api/v1/engines/external/self-test", "").is(http.StatusAccepted)
	var op registry.Operation
	must(t, json.Unmarshal([]byte(a.Body), &op))
	op = w.await(op)
	if op.State != registry.OperationFailed || op.Error.Code != registry.CodeBadState {
		t.Errorf("without a service it is %+v", op)
	}
	for _, path := range []string{"/api/v1/operations/" + op.ID, view.OperationURL(op.ID)} {
		w.viewer.get(path).is(http.StatusForbidden)
		w.admin.get(path).is(http.StatusOK)
	}
	w.viewer.get("/api/v1/operations").is(http.StatusOK).lacks(op.ID)
	w.viewer.get("/engines/external").is(http.StatusOK).lacks("source_type external_service is registered")
}

func TestEnginePage(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	const page = "/engines/fake"
	if uses := w.viewer.get(page).is(http.StatusOK).has("Loader settings").lacks("act-test").text("#uses"); !strings.Contains(uses, llama) || !strings.Contains(uses, "asks for it") {
		t.Errorf("it is used by %q", uses)
	}
	if uses := w.outsider.get(page).is(http.StatusOK).text("#uses"); strings.Contains(uses, llama) {
		t.Errorf("a stranger sees %q", uses)
	}
	w.viewer.get("/engines/none").is(http.StatusNotFound)

	live := w.admin.live(view.LiveURL("engine", "id", "fake"))
	w.admin.get(page).is(http.StatusOK).has("act-test").has("Not tested yet")
	w.admin.postWith(page+"/test", htmx("work")).is(http.StatusOK).has(`id="work-title"`)
	live.until("work", "Fake engine works")
	live.until("history", "Test")
	if got := w.admin.get(page).is(http.StatusOK).text("#work"); !strings.Contains(got, "Tested") || !strings.Contains(got, "random weights as gguf") || !strings.Contains(got, "came back") {
		t.Errorf("after the test the page says %q", got)
	}
	w.viewer.post(page + "/test").is(http.StatusForbidden)
	w.admin.post(page + "/test").to(page)
	w.admin.postWith(page+"/remove", htmx("versions")).is(http.StatusConflict)
}

func TestCommandsOnTheirPage(t *testing.T) {
	templates, err := command.Parse([]byte(`commands:
  - {name: here, title: Here, argv: [sh, "${PORT}"], health: /, apis: [chat], formats: [gguf], devices: [cpu]}
  - {name: gone, title: Gone, argv: [no-such-program-at-all, "${PORT}"], health: /, apis: [chat], formats: [gguf], devices: [cpu]}
`))
	must(t, err)
	w := newWorldWith(t, worldOptions{loaders: []loaders.Loader{command.New(command.Options{Templates: templates, File: "/etc/commands.yaml"})}})
	page := w.viewer.get("/engines/command").is(http.StatusOK)
	if got := page.text("#parts"); !strings.Contains(got, "Here") || !strings.Contains(got, "no-such-program-at-all cannot be run") {
		t.Errorf("the commands are told as %q", got)
	}
	a := w.admin.json(http.MethodPost, "/api/v1/engines/command/self-test?wait=30s", "")
	a.is(http.StatusServiceUnavailable).has("1 of 2 commands cannot be run")
}

// TestWhyNotAsleep: a model that cannot sleep is offered no button, and told why.
func TestWhyNotAsleep(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	w.load(llama)
	w.member.get(view.ModelURL(llama)).is(http.StatusOK).has("Fake engine has no sleep mode").lacks("act-sleep")
	w.member.post(view.ModelAction(llama, "sleep")).is(http.StatusNotImplemented).has("no sleep mode")
	w.viewer.post(view.ModelAction(llama, "sleep")).is(http.StatusForbidden)
	var info map[string]any
	must(t, json.Unmarshal([]byte(w.member.json(http.MethodPost, "/api/v1/models/"+view.Segment(llama)+"/instance", "").is(http.StatusOK).Body), &info))
	if can, ok := info["can_sleep"].(bool); !ok || can || info["why_awake"] == nil {
		t.Errorf("the instance says %v", info)
	}
}

// drowsy is the fake engine with instances that can sleep.
type drowsy struct{ loaders.Loader }

func (d drowsy) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	in, err := d.Loader.Load(ctx, spec, report)
	if err != nil {
		return nil, err
	}
	return sleeper{in}, nil
}

type sleeper struct{ loaders.Instance }

func (sleeper) Sleep(context.Context) error { return nil }
func (sleeper) Wake(context.Context) error  { return nil }

func TestSleepAndWakeOnThePage(t *testing.T) {
	w := newWorldWith(t, worldOptions{loaders: []loaders.Loader{drowsy{fake.New(fake.Options{Path: fakeEngine, TagPrefix: "sleep-" + t.Name()})}}})
	w.model(llama, registry.DefaultTeam, nil)
	w.load(llama)
	w.member.get(view.ModelURL(llama)).is(http.StatusOK).has("act-sleep")
	w.member.postWith(view.ModelAction(llama, "sleep"), htmx("now")).is(http.StatusOK)
	w.status(llama, registry.StatusSleeping)
	w.member.get(view.ModelURL(llama)).is(http.StatusOK).has("Wake").lacks("act-sleep")
	w.member.postWith(view.ModelAction(llama, "load"), htmx("now")).is(http.StatusOK)
	w.status(llama, registry.StatusReady)
}
