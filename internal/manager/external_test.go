package manager

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/external"
	"github.com/industriverse/llmmodelmanager/internal/loaders/openaitest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	externalsource "github.com/industriverse/llmmodelmanager/internal/sources/external"
)

const serviceKey = "sk-of-the-service"

// service is a manager with one service elsewhere and its key among the stored secrets.
func service(t *testing.T, away time.Duration) (r *rig, m registry.Model, down *atomic.Bool) {
	t.Helper()
	down = &atomic.Bool{}
	srv := httptest.NewServer(&openaitest.Service{Key: serviceKey, Models: []string{"gpt"}, Fault: func(w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
		return down.Load()
	}})
	t.Cleanup(srv.Close)
	r = rigIn(t, t.TempDir(), func(o *Options) {
		o.Loaders = append(o.Loaders, external.New(external.Options{AllowPrivate: true, Every: 10 * time.Millisecond, Away: away}))
		o.Sources = append([]sources.Source{externalsource.New(externalsource.Options{AllowPrivate: true})}, o.Sources...)
	})
	r.start()
	t.Cleanup(func() { r.close(false) })
	if _, err := r.PutSecret(r.ctx(), registry.Secret{Name: "llm", Team: registry.DefaultTeam}, serviceKey); err != nil {
		t.Fatal(err)
	}
	return r, registry.Model{ModelID: "gpt-eu", SourceType: registry.SourceExternal, SourcePath: srv.URL + "/v1", ModelFormat: registry.FormatSafetensors,
		CustomLoaderParams: map[string]any{"api_key": "secret:llm", "model": "gpt"}}, down
}

func TestServiceElsewhere(t *testing.T) {
	r, m, _ := service(t, time.Hour)
	_, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "member", Persist: true})
	if e := registry.AsError(err); registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) != 1 || !strings.Contains(e.Fields[0].Msg, "only an admin") {
		t.Errorf("a member named a service that is not on the list: %v", err)
	}
	if _, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "root", Persist: true, Admin: true}); err != nil {
		t.Fatal(err)
	}
	m.Description = "ours"
	if _, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "member", Persist: true}); err != nil {
		t.Errorf("a member may not edit what an admin let in: %v", err)
	}
	moved := m
	moved.SourcePath = "https://elsewhere.example"
	if _, _, err := r.Register(r.ctx(), moved, PutOptions{Actor: "member", Persist: true}); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("a member moved the model, and its team's key, to another service: %v", err)
	}

	p, err := r.Plan(r.ctx(), m.ModelID, "")
	if err != nil || p.Verdict != registry.VerdictFits || p.Device != "remote" || p.Engine != external.Name || !strings.Contains(p.Sentence, "no memory of this machine") {
		t.Errorf("the plan is %+v, %v", p, err)
	}
	rt := r.ready(m.ModelID)
	if rt.Device != "remote" || rt.Handle.PID != 0 || strings.Contains(string(rt.Handle.Data), serviceKey) || len(r.ledger.all()) != 0 {
		t.Errorf("%+v, handle %s, promised %+v", rt, rt.Handle.Data, r.ledger.all())
	}
	ask := func() {
		t.Helper()
		l, err := r.Acquire(r.ctx(), m.ModelID, "ada")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		if l.Transport == nil || l.Authorization != "Bearer "+serviceKey || l.Endpoint.Model != "gpt" {
			t.Fatalf("the lease is of %+v, transport %v", l.Endpoint, l.Transport)
		}
		req, err := http.NewRequestWithContext(r.ctx(), http.MethodGet, l.Endpoint.BaseURL+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", l.Authorization)
		resp, err := l.Transport.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", resp, err)
		}
		_ = resp.Body.Close()
	}
	ask()
	info, err := r.Instance(r.ctx(), m.ModelID)
	if err != nil || info.Service == nil || info.Service.Requests != 1 || info.Service.Errors != 0 {
		t.Errorf("the instance says %+v, %v", info.Service, err)
	}

	// The session survives a restart, with the key from the registry.
	r.close(true)
	r.start()
	r.state(m.ModelID, registry.RuntimeReady)
	ask()
	r.end(r.unload(m.ModelID), registry.OperationSucceeded)

	local := registry.Model{ModelID: "wrong", SourceType: registry.SourceLocal, SourcePath: r.weights(), ModelFormat: registry.FormatGGUF, Engine: external.Name}
	if _, _, err := r.Register(r.ctx(), local, PutOptions{Actor: "ada", Persist: true}); err != nil {
		t.Fatal(err)
	}
	if op := r.end(r.mustLoad("wrong", LoadOptions{Actor: "ada"}), registry.OperationFailed); !strings.Contains(op.Error.Msg, "does not run models from local") {
		t.Errorf("an engine that is not for the source: %+v", op.Error)
	}
}

// A service that is away for long ends as what it is, once, and a request for it looks again.
func TestServiceAway(t *testing.T) {
	r, m, down := service(t, 30*time.Millisecond)
	if _, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "root", Persist: true, Admin: true}); err != nil {
		t.Fatal(err)
	}
	r.ready(m.ModelID)
	down.Store(true)
	rt := r.state(m.ModelID, registry.RuntimeFailed)
	if rt.Failure == nil || rt.Failure.Kind != registry.FailureUnreachable {
		t.Errorf("it failed with %+v", rt.Failure)
	}
	crashes := 0
	for _, move := range r.seen.all() {
		if move.on == registry.TriggerCrash {
			crashes++
		}
	}
	if crashes != 1 {
		t.Errorf("an outage looked like %d crashes", crashes)
	}
	down.Store(false)
	l, err := r.Acquire(r.ctx(), m.ModelID, "ada")
	if err != nil {
		t.Fatalf("when it is back: %v", err)
	}
	l.Release()
	r.end(r.unload(m.ModelID), registry.OperationSucceeded)
}

var _ loaders.Transporter = (*external.Instance)(nil)
