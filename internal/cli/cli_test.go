package cli

import (
	stdbytes "bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// api is a server that answers what it is told to, and remembers what it was asked.
type api struct {
	t       *testing.T
	url     string
	answers map[string]any // by "METHOD /path?query"; a *registry.Error is a problem
	mu      sync.Mutex
	asked   []string
	bodies  []string
}

func newAPI(t *testing.T, answers map[string]any) *api {
	t.Helper()
	a := &api{t: t, answers: answers}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Error(err)
	}
	what := r.Method + " " + r.URL.RequestURI()
	a.mu.Lock()
	a.asked, a.bodies = append(a.asked, what), append(a.bodies, string(b))
	a.mu.Unlock()
	answer, ok := a.answers[what]
	if !ok {
		a.t.Errorf("asked %s, which the test did not expect", what)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	status := http.StatusOK
	if e, is := answer.(*registry.Error); is {
		status = http.StatusUnprocessableEntity
		answer = map[string]any{"code": e.Code, "detail": e.Msg, "fields": e.Fields, "shortage": e.Shortage}
	}
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		a.t.Error(err)
	}
}

// run runs one command line against the server. both is what it wrote, output and errors.
func (a *api) run(stdin string, args ...string) (code int, both string) {
	a.t.Helper()
	a.t.Setenv("LLMM_SERVER", a.url)
	a.t.Setenv("LLMM_TOKEN", "llmm_test")
	var out stdbytes.Buffer
	code = Run(args, strings.NewReader(stdin), &out, &out)
	return code, out.String()
}

// What pause, resume and cancel take is what ops shows.
func TestOperationsAreShownWithTheirIDs(t *testing.T) {
	op := registry.Operation{ID: "01a2071346aca605", Kind: registry.OperationFetch, Subject: "mini", State: registry.OperationRunning, Actor: "asha"}
	cancelled := op
	cancelled.State, cancelled.Outcome = registry.OperationCancelled, "Cancelled: asha asked for it."
	a := newAPI(t, map[string]any{
		"GET /api/v1/operations?limit=20&model=":     map[string]any{"operations": []registry.Operation{op}},
		"DELETE /api/v1/operations/01a2071346aca605": cancelled,
	})
	if code, out := a.run("", "ops"); code != 0 || !strings.Contains(out, op.ID) {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := a.run("", "cancel", op.ID); code != 0 || !strings.Contains(out, cancelled.Outcome) {
		t.Errorf("%d\n%s", code, out)
	}
}

// The variables of serve are those of serve: LLMM_MODELS is a file there, and --models of events are models.
func TestVariablesAndConfigurationAreThoseOfServe(t *testing.T) {
	t.Setenv("LLMM_MODELS", "/etc/llmm/models.yaml")
	t.Setenv("LLMM_LIMIT", "7")
	config := filepath.Join(t.TempDir(), "llmm.yaml")
	if err := os.WriteFile(config, []byte("models: /etc/llmm/models.yaml\nmax_fetches: 8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LLMM_CONFIG", config)
	a := newAPI(t, map[string]any{
		"GET /api/v1/events?kinds=&models=":      map[string]any{},
		"GET /api/v1/operations?limit=20&model=": map[string]any{"operations": []registry.Operation{}},
	})
	for _, args := range [][]string{{"events"}, {"ops"}} {
		if code, out := a.run("", args...); code != 0 {
			t.Errorf("%v: %d\n%s", args, code, out)
		}
	}
	var out stdbytes.Buffer
	if code := Run([]string{"serve", "--help"}, nil, &out, &out); code != 0 || !strings.Contains(out.String(), "LLMM_S3_ALLOW_PRIVATE") || !strings.Contains(out.String(), "LLMM_MODELS") {
		t.Errorf("the help of serve should name its variables:\n%s", out.String())
	}
	out.Reset()
	if code := Run([]string{"ops", "--help"}, nil, &out, &out); code != 0 || strings.Contains(out.String(), "LLMM_LIMIT") || !strings.Contains(out.String(), "LLMM_SERVER") {
		t.Errorf("the help of a client command should name those of the server's address only:\n%s", out.String())
	}
}

func TestConfigurationRefusesWhatIsNoFlag(t *testing.T) {
	config := filepath.Join(t.TempDir(), "llmm.yaml")
	if err := os.WriteFile(config, []byte("listen: 127.0.0.1:8080\nlissten: 127.0.0.1:8081\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newAPI(t, nil)
	for _, args := range [][]string{{"--config", config, "ops"}, {"serve", "--config", config}} {
		if code, out := a.run("", args...); code == 0 || !strings.Contains(out, `"lissten"`) || strings.Contains(out, `"listen"`) {
			t.Errorf("%v: %d\n%s", args, code, out)
		}
	}
}

// A wrong value goes to the server, whose answer names the field.
func TestRegisterTellsFieldsOneALine(t *testing.T) {
	a := newAPI(t, map[string]any{
		"POST /api/v1/models?persist=true": &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: []registry.FieldError{
			{Field: "context_length", Msg: "must be a number"}, {Field: "source_type", Msg: "is required; one of huggingface, local"}}},
	})
	code, out := a.run("", "register", "model_id=a", "context_length=many", "gpu_ids=0,x")
	if code != 1 || !strings.Contains(out, "llmm: The model is not valid\n  context_length must be a number\n  source_type is required") {
		t.Errorf("%d\n%s", code, out)
	}
	if len(a.bodies) != 1 || !strings.Contains(a.bodies[0], `"context_length":"many"`) || !strings.Contains(a.bodies[0], `"gpu_ids":[0,"x"]`) {
		t.Errorf("sent %q", a.bodies)
	}
}

// A plan says each thing once, and offers to evict only where that could help.
func TestPlanAndShortageSayThingsOnce(t *testing.T) {
	const sentence = "This machine has no GPU, and the model asks for cuda."
	plan := registry.Plan{Sentence: sentence, Engine: "llamacpp", EngineWhy: "auto: loads gguf", Device: "cuda", DeviceWhy: sentence, Needs: registry.Footprint{Weights: 1 << 20, Estimated: 1 << 20}}
	failed := registry.Plan{Sentence: "there is nothing at /x", Problem: registry.ProblemOf(registry.Errorf(registry.CodeLoadingFailed, "there is nothing at /x"))}
	holders := []registry.Holder{{ModelID: "b", Bytes: 1 << 20, Evictable: true}}
	a := newAPI(t, map[string]any{
		"GET /api/v1/models/a/plan":  plan,
		"GET /api/v1/models/x/plan":  failed,
		"POST /api/v1/models/a/load": &registry.Error{Code: registry.CodeInsufficientResources, Msg: "Does not fit now", Shortage: &registry.Shortage{Needed: 2 << 20, Total: 4 << 20, Holders: holders}},
		"POST /api/v1/models/x/load": &registry.Error{Code: registry.CodeInsufficientResources, Msg: "Can never fit", Shortage: &registry.Shortage{Needed: 9 << 20, Total: 4 << 20, Holders: holders}},
	})
	if _, out := a.run("", "plan", "a"); strings.Count(out, "no GPU") != 1 {
		t.Errorf("%s", out)
	}
	if code, out := a.run("", "plan", "x"); code != 1 || strings.Count(out, "nothing at /x") != 1 {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := a.run("", "load", "a"); code != 1 || !strings.Contains(out, "--evict") {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := a.run("", "load", "x"); code != 1 || strings.Contains(out, "--evict") {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestNothingFoundIsNotNothingRegistered(t *testing.T) {
	a := newAPI(t, map[string]any{
		"GET /api/v1/models?limit=100":         map[string]any{"models": []any{}},
		"GET /api/v1/models?limit=100&q=qwen3": map[string]any{"models": []any{}},
	})
	if _, out := a.run("", "ls"); !strings.Contains(out, "llmm register") {
		t.Errorf("%s", out)
	}
	if _, out := a.run("", "ls", "qwen3"); strings.Contains(out, "llmm register") {
		t.Errorf("%s", out)
	}
}

// An entry with three faults is one entry that was left out.
func TestImportCountsEntries(t *testing.T) {
	var issues []registry.FieldError
	for i, f := range []string{"models[1].source_path", "models[1].model_format", "models[12].model_id"} {
		issues = append(issues, registry.FieldError{Field: f, Msg: "is wrong", Line: 8 + i, Column: 3})
	}
	a := newAPI(t, map[string]any{"POST /api/v1/import?dry_run=false&persist=true": map[string]any{"added": []string{"good"}, "issues": issues}})
	code, out := a.run("models: []", "import", "-")
	if code != 1 || !strings.Contains(out, "2 entries were left out") || !strings.Contains(out, "-:9:3: models[1].model_format is wrong") {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestAccess(t *testing.T) {
	users := map[string]any{"users": []registry.User{{ID: "u1", Name: "asha", Admin: true}, {ID: "u2", Name: "ben", Disabled: true}}}
	a := newAPI(t, map[string]any{
		"GET /api/v1/users":                           users,
		"POST /api/v1/users":                          registry.User{ID: "u3", Name: "chiara"},
		"PATCH /api/v1/users/u2":                      registry.User{ID: "u2", Name: "ben"},
		"DELETE /api/v1/users/u2":                     nil,
		"GET /api/v1/teams":                           map[string]any{"teams": []registry.Team{{Name: "vision"}}},
		"POST /api/v1/teams":                          registry.Team{Name: "speech"},
		"DELETE /api/v1/teams/speech":                 nil,
		"GET /api/v1/teams/vision/members":            map[string]any{"members": []map[string]any{{"user_id": "u2", "name": "ben", "role": "viewer"}}},
		"PUT /api/v1/teams/vision/members/ben":        map[string]any{"team": "vision", "user": "ben", "role": "member"},
		"DELETE /api/v1/teams/vision/members/ben":     nil,
		"GET /api/v1/audit?limit=50":                  map[string]any{"audit": []registry.AuditEntry{{Actor: "ben", Action: "model.load", Subject: "model:a", Outcome: "forbidden"}}},
		"POST /api/v1/models/team%2Fa/registration":   map[string]any{"model_id": "team/a", "registration": "archived"},
		"POST /api/v1/models/team%2Fb/registration":   map[string]any{"model_id": "team/b", "registration": "active"},
		"POST /api/v1/models/team%2Fb/registration?x": nil,
	})
	for _, c := range []struct {
		args        []string
		stdin, want string
		body        string
	}{
		{args: []string{"user", "ls"}, want: "disabled"},
		{args: []string{"user", "create", "chiara"}, stdin: "correct horse\n", want: "chiara", body: `{"admin":false,"name":"chiara","password":"correct horse"}`},
		{args: []string{"user", "set", "ben", "--enable", "--admin"}, want: "ben", body: `{"admin":true,"disabled":false}`},
		{args: []string{"user", "set", "ben", "--password"}, stdin: "battery staple\n", want: "ben", body: `{"password":"battery staple"}`},
		{args: []string{"user", "rm", "ben"}, want: "ben"},
		{args: []string{"team", "ls"}, want: "vision"},
		{args: []string{"team", "create", "speech"}, want: "speech", body: `{"name":"speech"}`},
		{args: []string{"team", "rm", "speech"}, want: "speech"},
		{args: []string{"team", "members", "vision"}, want: "ben   viewer"},
		{args: []string{"team", "add", "vision", "ben", "member"}, want: "ben is a member of vision", body: `{"role":"member"}`},
		{args: []string{"team", "drop", "vision", "ben"}, want: "ben"},
		{args: []string{"audit"}, want: "model.load"},
		{args: []string{"registration", "team/a", "archive"}, want: "team/a is archived", body: `{"action":"archive"}`},
	} {
		code, out := a.run(c.stdin, c.args...)
		if code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("llmm %s: %d, without %q\n%s", strings.Join(c.args, " "), code, c.want, out)
		}
		if last := a.bodies[len(a.bodies)-1]; c.body != "" && last != c.body {
			t.Errorf("llmm %s sent %s", strings.Join(c.args, " "), last)
		}
	}
	if code, out := a.run("", "user", "set", "nobody", "--admin"); code != 1 || !strings.Contains(out, "nobody") {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := a.run("", "user", "create", "dora"); code != 1 || !strings.Contains(out, "standard input") {
		t.Errorf("%d\n%s", code, out)
	}
	if code, out := a.run("", "user", "set", "ben"); code != 1 || !strings.Contains(out, "--admin") {
		t.Errorf("%d\n%s", code, out)
	}
}

// The README's table has every flag of serve and no other.
func TestReadmeHasEveryFlag(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z0-9-]+)` \\| `(LLMM_[A-Z0-9_]+)` ").FindAllStringSubmatch(string(readme), -1) {
		told[m[1]] = true
		if want := "LLMM_" + strings.ToUpper(strings.ReplaceAll(m[1], "-", "_")); m[2] != want {
			t.Errorf("the README says %s of --%s, which is %s", m[2], m[1], want)
		}
	}
	var out stdbytes.Buffer
	if code := Run([]string{"serve", "--help"}, nil, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-., )?--([a-z0-9-]+)`).FindAllStringSubmatch(out.String(), -1) {
		switch name := m[1]; {
		case name == "help" || name == "version" || name == "config":
		case !told[name]:
			t.Errorf("the README lacks --%s", name)
		default:
			delete(told, name)
		}
	}
	for name := range told {
		t.Errorf("the README has --%s, which is no flag of serve", name)
	}
}

// Every command has a line of help, and says what its arguments are.
func TestHelpOfEveryCommand(t *testing.T) {
	var out stdbytes.Buffer
	if code := Run([]string{"--help"}, nil, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	n := 0
	for line := range strings.Lines(out.String()) {
		name, help, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "   ") || strings.HasPrefix(name, "-") {
			continue
		}
		n++
		var sub stdbytes.Buffer
		if code := Run(append(strings.Fields(name), "--help"), nil, &sub, &sub); code != 0 || !ok || help == "" {
			t.Errorf("llmm %s --help: %d\n%s", name, code, sub.String())
		}
	}
	if n < 30 {
		t.Error(fmt.Sprint("only ", n, " commands are listed"))
	}
}
