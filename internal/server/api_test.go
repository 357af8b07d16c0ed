package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Every route is a row with an action of the policy table.
func TestEveryRouteHasARule(t *testing.T) {
	w := newWorld(t)
	seen := map[string]bool{}
	for _, r := range w.server.routes() {
		if _, ok := auth.RuleFor(r.action); !ok {
			t.Errorf("%s %s has the action %q, which has no rule", r.method, r.path, r.action)
		}
		if key := r.method + " " + r.path; seen[key] {
			t.Errorf("%s stands twice", key)
		} else {
			seen[key] = true
		}
	}
	for _, r := range w.server.echo.Routes() {
		if !seen[r.Method+" "+r.Path] {
			t.Errorf("%s %s is served and is no row of the table", r.Method, r.Path)
		}
	}
}

// Whoever is not signed in gets nothing but what is public.
func TestNobodyGetsNothing(t *testing.T) {
	w := newWorld(t)
	for _, r := range w.server.routes() {
		if r.action == auth.Public || !strings.HasPrefix(r.path, "/api/") {
			continue
		}
		path := strings.NewReplacer(":id", "m", ":op", "x", ":name", "llamacpp", ":user", "u", ":team", "default", ":token", "t").Replace(r.path)
		w.nobody.json(r.method, path, "{}").is(http.StatusUnauthorized)
	}
	w.nobody.json("POST", "/v1/chat/completions", `{"model":"m"}`).is(http.StatusUnauthorized)
}

func (w *world) body(id string, more string) string {
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"model_id":%q,"source_type":"local","source_path":%q,"model_format":"gguf","engine":"fake"%s}`, id, w.weights, more)
}

func (a answer) field(name string) any {
	a.t.Helper()
	var all map[string]any
	if err := json.Unmarshal([]byte(a.Body), &all); err != nil {
		a.t.Fatalf("%v: %s", err, brief(a.Body))
	}
	return all[name]
}

// The guide's operations over the API, with its semantics.
func TestGuide(t *testing.T) {
	w := newWorld(t)
	const id = "meta-llama/Llama-2-7b-chat-hf"
	path := "/api/v1/models/" + url.PathEscape(id)

	w.member.json("POST", "/api/v1/models", w.body(id, "")).is(http.StatusCreated)
	w.member.json("POST", "/api/v1/models", w.body(id, `"description":"changed"`)).is(http.StatusOK)

	got := w.member.get(path).is(http.StatusOK)
	for name, want := range map[string]any{"model_id": id, "revision": "main", "device_preference": "auto", "quantization_bits": nil, "trust_remote_code": false, "status": "not_loaded", "device": ""} {
		if have := got.field(name); have != want {
			t.Errorf("%s is %v, want %v", name, have, want)
		}
	}
	w.member.get("/api/v1/models?q=llama-2").is(http.StatusOK).has(id)
	w.member.get("/api/v1/models/nothing").is(http.StatusNotFound)

	w.member.json("POST", path+"/load?wait=60s", "").is(http.StatusOK)
	w.member.json("POST", path+"/load", `{"force_reload":true}`).is(http.StatusAccepted)
	inst := w.member.json("POST", path+"/instance?wait=60s", "").is(http.StatusOK)
	for name, want := range map[string]any{"engine": "fake", "model_class": "FakeModel", "tokenizer_class": "FakeTokenizer", "device": "cpu", "dtype": "float32", "parameters": 1048576.0, "bytes": 4194304.0} {
		if have := inst.field(name); have != want {
			t.Errorf("the instance's %s is %v, want %v", name, have, want)
		}
	}
	told := map[string]any{"model_class": "FakeModel", "tokenizer_class": "FakeTokenizer", "device": "cpu", "dtype": "float32", "parameters": 1048576.0, "bytes": 4194304.0}
	if have := w.viewer.get(path).is(http.StatusOK).field("loaded"); !reflect.DeepEqual(have, any(told)) {
		t.Errorf("the model says that %v is loaded, want %v", have, told)
	}
	w.member.get("/api/v1/models?q=llama-2").is(http.StatusOK).lacks(`"loaded":`)
	w.viewer.get("/models/" + url.PathEscape(id)).is(http.StatusOK).has("1 M parameters, float32, 4 MiB, on cpu")
	w.member.json("DELETE", path, "").is(http.StatusForbidden) // members may not
	w.admin.json("DELETE", path, "").is(http.StatusConflict)   // it is loaded
	if w.member.json("POST", path+"/unload", "").is(http.StatusOK).field("unloaded") != any(true) {
		t.Error("unload of a loaded model should be true")
	}
	if have := w.member.get(path).is(http.StatusOK).field("loaded"); have != nil {
		t.Errorf("nothing is loaded any more, and the model says %v", have)
	}
	if w.member.json("POST", path+"/unload", "").is(http.StatusOK).field("unloaded") != any(false) {
		t.Error("unload of a model that is not loaded should be false")
	}
	w.admin.json("DELETE", path, "").is(http.StatusNoContent)
	w.admin.get(path).is(http.StatusNotFound)
}

func TestEdits(t *testing.T) {
	w := newWorld(t)
	w.member.json("POST", "/api/v1/models", w.body("m", `"custom_loader_params":{"auth_token":"hf_verysecret"},"priority":5`)).is(http.StatusCreated).lacks("verysecret")
	tag := w.member.get("/api/v1/models/m").is(http.StatusOK).lacks("verysecret").Header.Get("ETag")

	w.member.json("PATCH", "/api/v1/models/m", `{"description":"one"}`, "If-Match", tag).is(http.StatusOK)
	w.member.json("PATCH", "/api/v1/models/m", `{"description":"two"}`, "If-Match", tag).is(http.StatusConflict).has("changed by max")
	w.member.json("PATCH", "/api/v1/models/m", `{"priority":null,"custom_loader_params":{"auth_token":"[redacted]"}}`).is(http.StatusOK)
	rec, err := w.store.Model(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if rec.Description != "one" || rec.Priority != 0 || rec.CustomLoaderParams["auth_token"] != "hf_verysecret" {
		t.Errorf("after the edits: %+v", rec.Model)
	}
	w.member.json("PUT", "/api/v1/models/m", `{"model_id":"other"}`).is(http.StatusUnprocessableEntity).has("model_id")
	w.member.json("POST", "/api/v1/models", w.body("M", "")).is(http.StatusConflict) // differs only in case
	w.member.json("PATCH", "/api/v1/models/m", `{"team":"other"}`).is(http.StatusForbidden)
	w.admin.json("PATCH", "/api/v1/models/m", `{"team":"nobody"}`).is(http.StatusUnprocessableEntity).has("team")
}

// Bad input is a clear error that names the field; nothing is stored and nothing is started.
func TestBadInput(t *testing.T) {
	w := newWorld(t)
	count := func() int {
		n, err := w.store.CountModels(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	bad := map[string][]string{ // by field: values as JSON
		"model_id":               {`null`, `""`, `7`, `"a b"`, `"../x"`, `"/abs"`, `"a//b"`, `"a/"`, `"a?b"`, `"a%2Fb"`, `"a\u0000b"`, `"a\nb"`, `"\u202eb"`, `"` + strings.Repeat("x", 300) + `"`},
		"source_type":            {`null`, `"ftp"`, `1`, `""`},
		"source_path":            {`null`, `""`, `"relative"`, `"/a/../b"`, `[]`, `"/a\u0000"`},
		"model_format":           {`null`, `"pt"`, `{}`},
		"revision":               {`1`, `"../x"`, `"a\u0007"`},
		"quantization_bits":      {`3`, `"4"`, `4.5`, `-4`, `1e99`},
		"device_preference":      {`"gpu"`, `true`},
		"required_gpu_memory_mb": {`-1`, `1e18`, `"much"`, `1.5`},
		"required_ram_mb":        {`-1`, `"200"`},
		"custom_loader_params":   {`[]`, `"x"`, `{"":1}`},
		"tokenizer_path":         {`5`, `"../x"`, `"/a/../b"`},
		"trust_remote_code":      {`"false"`, `1`},
		"engine":                 {`"warp"`},
		"team":                   {`"Not A Team"`, `"nowhere"`, `1`},
		"description":            {`1`, `"\u0001"`},
		"tags":                   {`"a"`, `[1]`, `[""]`},
		"context_length":         {`-1`, `"8k"`, `99999999999`},
		"gpu_ids":                {`0`, `[-1]`, `[0,0]`, `["0"]`},
		"idle_timeout":           {`"soon"`, `-5`, `"9999999h"`},
		"pinned":                 {`"yes"`},
		"priority":               {`101`, `"high"`},
		"no_such_field":          {`1`},
	}
	for _, f := range registry.Fields {
		if _, ok := bad[f.Name]; !ok {
			t.Errorf("there is no bad value for %s", f.Name)
		}
	}
	good := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(w.body("good", "")), &good); err != nil {
		t.Fatal(err)
	}
	for field, values := range bad {
		for _, v := range values {
			in := map[string]json.RawMessage{}
			for k, g := range good {
				in[k] = g
			}
			in[field] = json.RawMessage(v)
			b, err := json.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			a := w.admin.json("POST", "/api/v1/models", string(b)).is(http.StatusUnprocessableEntity)
			var p problemBody
			if err := json.Unmarshal([]byte(a.Body), &p); err != nil {
				t.Fatal(err)
			}
			if p.Code != registry.CodeInvalid || !slices.ContainsFunc(p.Fields, func(fe registry.FieldError) bool { return fe.Field == field }) {
				t.Errorf("%s = %s should be named: %s", field, brief(v), brief(a.Body))
			}
		}
	}
	for _, body := range []string{``, `[]`, `{`, `{"model_id":"a","model_id":"b"}`, `{} {}`, "\xff", `nul`, w.body("x", `"description":"`+strings.Repeat("x", 10<<20)+`"`)} {
		w.admin.json("POST", "/api/v1/models", body).is(http.StatusBadRequest)
	}
	for _, q := range []string{"?limit=0", "?limit=x", "?status=odd", "?source_type=odd"} {
		w.admin.get("/api/v1/models" + q).is(http.StatusBadRequest)
	}
	if after := count(); after != before {
		t.Errorf("bad input stored %d models", after-before)
	}

	w.model("m", "default", nil)
	for _, b := range []string{`{"force_reload":1}`, `{"device":"tpu"}`, `{"odd":true}`} {
		w.admin.json("POST", "/api/v1/models/m/load", b).is(http.StatusUnprocessableEntity)
	}
	w.admin.json("POST", "/api/v1/models/m/load?wait=never", "").is(http.StatusBadRequest)
	w.admin.json("POST", "/api/v1/import", "models: 7").is(http.StatusBadRequest)
	for _, id := range []string{"%2e%2e", "a%00b", "%ff", strings.Repeat("x", 5000)} {
		a := w.admin.get("/api/v1/models/" + id)
		if a.Status != http.StatusNotFound && a.Status != http.StatusBadRequest {
			t.Errorf("the id %s: %d", brief(id), a.Status)
		}
	}
	if res := w.manager.Resources(); len(res.Reservations) != 0 {
		t.Errorf("bad input started something: %+v", res.Reservations)
	}
}

// What belongs to another team is neither shown nor named by the API.
func TestForeignTeamOverTheAPI(t *testing.T) {
	w := newWorld(t)
	w.model("hushhush", "default", nil)
	op := w.load("hushhush")
	for _, p := range []string{"/api/v1/models/hushhush", "/api/v1/models/hushhush/plan", "/api/v1/models/hushhush/logs", "/api/v1/operations/" + op.ID} {
		w.outsider.get(p).is(http.StatusNotFound)
	}
	w.outsider.json("POST", "/api/v1/models/hushhush/load", "").is(http.StatusNotFound)
	w.outsider.json("POST", "/v1/chat/completions", `{"model":"hushhush","messages":[]}`).is(http.StatusNotFound)
	for _, p := range []string{"/api/v1/models", "/api/v1/operations", "/api/v1/resources", "/api/v1/export", "/v1/models"} {
		w.outsider.get(p).is(http.StatusOK).lacks("hushhush")
	}
	w.model("mine", "other", map[string]any{})
	if _, _, err := w.manager.Register(t.Context(), registry.Model{ModelID: "mine", SourceType: "local", SourcePath: w.weights, ModelFormat: "gguf", Engine: "fake", Team: "other", RequiredRAMMB: 15_000_000}.WithDefaults(), manager.PutOptions{Actor: "test", Persist: true}); err != nil {
		t.Fatal(err)
	}
	w.outsider.json("POST", "/api/v1/models/mine/load?wait=60s", "").is(http.StatusConflict).lacks("hushhush").has("needed")
}

// The event stream: resumable, narrowed, and without what the reader may not see.
func TestEvents(t *testing.T) {
	w := newWorld(t)
	next := func(c *client, headers ...string) (func() (id, data string), func()) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", w.url+"/api/v1/events?kinds=model.registered,model.status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(resp.Body)
		return func() (id, data string) {
			for sc.Scan() {
				line := sc.Text()
				if v, ok := strings.CutPrefix(line, "id: "); ok {
					id = v
				}
				if v, ok := strings.CutPrefix(line, "data: "); ok {
					return id, v
				}
			}
			t.Fatalf("the stream ended: %v", sc.Err())
			return "", ""
		}, func() { _ = resp.Body.Close() }
	}
	read, end := next(w.member)
	outside, endOutside := next(w.outsider)
	w.member.json("POST", "/api/v1/models", w.body("first", "")).is(http.StatusCreated)
	id, data := read()
	if !strings.Contains(data, `"first"`) {
		t.Errorf("the registration should have been told: %s", data)
	}
	end()
	w.member.json("POST", "/api/v1/models", w.body("second", "")).is(http.StatusCreated)
	again, endAgain := next(w.member, "Last-Event-ID", id)
	if _, data := again(); !strings.Contains(data, `"second"`) {
		t.Errorf("what was missed should be told: %s", data)
	}
	endAgain()
	old, endOld := next(w.member, "Last-Event-ID", "another-1")
	if _, data := old(); !strings.Contains(data, `"reset"`) {
		t.Errorf("who was away too long should be told to take a snapshot: %s", data)
	}
	endOld()
	w.model("theirs", "other", nil)
	w.outsider.json("PATCH", "/api/v1/models/theirs", `{"description":"x"}`).is(http.StatusOK)
	w.outsider.json("POST", "/api/v1/models/theirs/load?wait=60s", "").is(http.StatusOK)
	if _, data := outside(); strings.Contains(data, "first") || strings.Contains(data, "second") || !strings.Contains(data, "theirs") {
		t.Errorf("a stranger should see only their own: %s", data)
	}
	endOutside()
	w.member.get("/api/v1/events?kinds=odd").is(http.StatusBadRequest)
}

// A registration and the line of the audit that says whose it is are one write.
func TestRegistrationIsAudited(t *testing.T) {
	w := newWorld(t)
	w.member.json("POST", "/api/v1/models", w.body("seen", "")).is(http.StatusCreated)
	w.member.json("PATCH", "/api/v1/models/seen", `{"description":"x"}`).is(http.StatusOK)
	w.viewer.json("POST", "/api/v1/models", w.body("refused", "")).is(http.StatusForbidden)
	list, err := w.store.ListAudit(t.Context(), 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Action+" "+e.Subject+" "+e.Outcome)
	}
	if want := []string{"model.register model:refused forbidden", "model.edit model:seen ok", "model.register model:seen ok"}; !slices.Equal(got, want) {
		t.Errorf("the audit says %q, want %q", got, want)
	}
}
