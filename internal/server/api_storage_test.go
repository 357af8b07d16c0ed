package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// remoteModel registers a model of the depot.
func (w *world) remoteModel(id, team, path string) {
	w.t.Helper()
	_, _, err := w.manager.Register(context.Background(), registry.Model{ModelID: id, SourceType: registry.SourceHuggingFace, SourcePath: path,
		ModelFormat: registry.FormatGGUF, Engine: fake.Name, Team: team}.WithDefaults(), manager.PutOptions{Actor: "test", Persist: true})
	must(w.t, err)
}

// artifactState waits until a model's files are as they should be.
func (w *world) artifactState(id string, want registry.ArtifactState) {
	w.t.Helper()
	w.until(id, func(l manager.Listed) bool { return l.Runtime.Artifact == want })
}

func stored(path, revision string) string {
	return "/api/v1/storage?" + url.Values{"source_type": {"huggingface"}, "source_path": {path}, "revision": {revision}}.Encode()
}

func TestFetchOverTheAPI(t *testing.T) {
	w := newWorld(t)
	gate := w.depot.Hold("org/m")
	w.remoteModel("m", registry.DefaultTeam, "org/m")
	w.viewer.json("POST", "/api/v1/models/m/fetch", "").is(http.StatusForbidden)
	w.outsider.json("POST", "/api/v1/models/m/fetch", "").is(http.StatusNotFound)
	a := w.member.json("POST", "/api/v1/models/m/fetch", "").is(http.StatusAccepted)
	op, _ := a.field("id").(string)
	if a.field("kind") != "fetch" || a.Header.Get("Location") != "/api/v1/operations/"+op {
		t.Errorf("%s", a.Body)
	}
	gate <- struct{}{}
	path := "/api/v1/operations/" + op
	for _, verb := range []string{"/pause", "/resume"} {
		w.viewer.json("POST", path+verb, "").is(http.StatusForbidden)
		w.outsider.json("POST", path+verb, "").is(http.StatusNotFound)
		w.member.json("POST", "/api/v1/operations/none"+verb, "").is(http.StatusNotFound)
	}
	if got := w.member.json("POST", path+"/pause", "").is(http.StatusOK).field("state"); got != "paused" {
		t.Errorf("it is %v", got)
	}
	w.member.get("/api/v1/operations?state=paused").is(http.StatusOK).has(op)
	w.member.get(path + "?wait=30s").is(http.StatusOK).has(`"paused"`) // does not wait for what rests
	w.member.json("POST", path+"/resume", "").is(http.StatusOK)
	close(gate)
	if got := w.member.get(path + "?wait=30s").is(http.StatusOK).field("state"); got != "succeeded" {
		t.Errorf("it is %v", got)
	}
	w.member.json("POST", path+"/pause", "").is(http.StatusConflict)
	w.artifactState("m", registry.ArtifactPresent)
	got := w.viewer.get("/api/v1/models/m").is(http.StatusOK)
	art, _ := got.field("artifact").(map[string]any)
	if got.field("artifact_state") != "present" || art["revision"] != "r1" || art["fetched_revision"] != "r1" || art["facts"].(map[string]any)["parameters"] != 42.0 {
		t.Errorf("%s", got.Body)
	}
	w.viewer.get("/api/v1/models").is(http.StatusOK).has(`"artifact_state":"present"`).lacks(`"files"`)
	if got := w.member.json("POST", "/api/v1/models/m/fetch?wait=30s", "").is(http.StatusOK).field("state"); got != "succeeded" {
		t.Errorf("fetched again: %v", got)
	}
	w.member.json("DELETE", path, "").is(http.StatusConflict)
	w.depot.Fail("org/m", &registry.Error{Code: registry.CodeLoadingFailed, Msg: "org/m is gated", Failure: &registry.Failure{Kind: registry.FailureGated, Msg: "org/m is gated"}})
	w.member.json("POST", "/api/v1/models/m/fetch?wait=30s", "").is(http.StatusBadGateway).has("gated_repository")
	if n := w.audits(auth.ModelFetch); n < 5 {
		t.Errorf("%d lines in the audit", n)
	}
}

// audits counts the lines of the audit with this action.
func (w *world) audits(a auth.Action) int {
	w.t.Helper()
	list, err := w.store.ListAudit(context.Background(), 500, 0)
	must(w.t, err)
	n := 0
	for _, e := range list {
		if e.Action == string(a) {
			n++
		}
	}
	return n
}

func TestLookUpOverTheAPI(t *testing.T) {
	w := newWorld(t)
	a := w.member.json("POST", "/api/v1/lookup", `{"source_type":"huggingface","source_path":"many/quants","engine":"fake","custom_loader_params":{"auth_token":"hf_verysecret"}}`).is(http.StatusOK).lacks("verysecret")
	m, _ := a.field("model").(map[string]any)
	if m["model_id"] != "many/quants" || m["model_format"] != "gguf" || a.field("revision") != "r1" {
		t.Errorf("%s", a.Body)
	}
	for body, field := range map[string]string{
		`{"source_type":"huggingface"}`: "source_path", `{"source_path":"a/b"}`: "source_type", `{"source_type":"huggingface","source_path":"bad/name"}`: "source_path",
		`{"source_type":"huggingface","source_path":"a/b","model_format":"pt"}`: "model_format", `{"source_type":"huggingface","source_path":"a/b","x":1}`: `"x"`,
	} {
		w.member.json("POST", "/api/v1/lookup", body).is(http.StatusUnprocessableEntity).has(field)
	}
	w.member.json("POST", "/api/v1/lookup", `{"source_type":"huggingface","source_path":"team/bare","engine":"fake","tokenizer_path":"org/words"}`).is(http.StatusOK).has(`"source_path":"org/words"`)
	w.depot.Fail("team/gated", &registry.Error{Code: registry.CodeLoadingFailed, Msg: "The repository is gated", Failure: &registry.Failure{Kind: registry.FailureGated, Hint: "Accept the terms first"}})
	gated := w.member.json("POST", "/api/v1/lookup", `{"source_type":"huggingface","source_path":"team/gated","engine":"fake"}`).is(http.StatusOK).has("Accept the terms first").has("llama3.1").has("weights.gguf")
	if p, _ := gated.field("problem").(map[string]any); p["code"] != "loading_failed" {
		t.Errorf("%s", gated.Body)
	}
	w.member.json("POST", "/api/v1/lookup", `{`).is(http.StatusBadRequest)
	w.viewer.json("POST", "/api/v1/lookup", `{"source_type":"huggingface","source_path":"a/b"}`).is(http.StatusForbidden)
	w.outsider.json("POST", "/api/v1/lookup", `{"source_type":"huggingface","source_path":"a/b"}`).is(http.StatusForbidden)

	// A form shows secrets redacted and sends them back so: they are used for who may edit that model, and nobody else.
	must(t, w.auth.CreateTeam(auth.WithIdentity(context.Background(), auth.System("test")), "third"))
	w.member.json("POST", "/api/v1/models", `{"model_id":"kept","source_type":"huggingface","source_path":"org/kept","model_format":"gguf","custom_loader_params":{"auth_token":"hf_verysecret"}}`).is(http.StatusCreated)
	again := `{"model_id":"kept","source_type":"huggingface","source_path":"org/again","team":%q,"custom_loader_params":{"auth_token":"[redacted]"}}`
	w.member.json("POST", "/api/v1/lookup", fmt.Sprintf(again, "default")).is(http.StatusOK)
	if got := w.depot.Params("org/again")["auth_token"]; got != "hf_verysecret" {
		t.Errorf("the token is %v", got)
	}
	w.outsider.json("POST", "/api/v1/lookup", fmt.Sprintf(again, otherTeam)).is(http.StatusOK)
	if got := w.depot.Params("org/again")["auth_token"]; got != "[redacted]" {
		t.Errorf("another team's token was used: %v", got)
	}
}

func TestStorageOverTheAPI(t *testing.T) {
	w := newWorld(t)
	w.remoteModel("mine", registry.DefaultTeam, "org/mine")
	w.remoteModel("theirs", otherTeam, "org/theirs")
	w.remoteModel("both-a", registry.DefaultTeam, "org/both")
	w.remoteModel("both-b", otherTeam, "org/both")
	for _, id := range []string{"mine", "theirs", "both-a", "both-b"} {
		w.admin.json("POST", "/api/v1/models/"+id+"/fetch?wait=30s", "").is(http.StatusOK)
	}
	w.admin.get("/api/v1/storage").is(http.StatusOK).has("org/mine").has("org/theirs").has(w.dir)
	// Bytes of other teams count; their names, and where things lie, do not show.
	w.member.get("/api/v1/storage").is(http.StatusOK).has("org/mine").has("org/both").lacks("both-b").lacks("org/theirs").lacks("theirs").lacks(w.dir).has("weights of another team")
	w.nobody.get("/api/v1/storage").is(http.StatusUnauthorized)

	w.load("mine")
	w.maintainer.json("DELETE", stored("org/mine", "r1"), "").is(http.StatusConflict).has("mine").has("Unload it")
	w.maintainer.json("POST", "/api/v1/models/mine/unload", "").is(http.StatusOK)
	w.member.json("DELETE", stored("org/mine", "r1"), "").is(http.StatusForbidden)
	w.maintainer.json("DELETE", stored("org/theirs", "r1"), "").is(http.StatusNotFound)
	w.maintainer.json("DELETE", stored("org/both", "r1"), "").is(http.StatusForbidden).has("admin")
	w.maintainer.json("DELETE", stored("org/mine", "r9"), "").is(http.StatusNotFound)
	w.maintainer.json("DELETE", "/api/v1/storage?source_type=huggingface&source_path=org/mine", "").is(http.StatusBadRequest).has("revision")
	w.maintainer.json("DELETE", "/api/v1/storage?source_type=ftp&source_path=a&revision=b", "").is(http.StatusBadRequest)
	if freed, _ := w.maintainer.json("DELETE", stored("org/mine", "r1"), "").is(http.StatusOK).field("freed").(float64); freed <= 0 {
		t.Errorf("%v bytes", freed)
	}
	w.artifactState("mine", registry.ArtifactAbsent)
	w.admin.json("DELETE", stored("org/both", "r1"), "").is(http.StatusOK)
	if n := w.audits(auth.StorageDelete); n < 4 {
		t.Errorf("%d lines in the audit", n)
	}
	for _, r := range w.server.storageRoutes() {
		if r.action == auth.StorageManage {
			w.maintainer.json(r.method, r.path, "{}").is(http.StatusForbidden)
		}
	}
	w.admin.json("POST", "/api/v1/storage/clean?older_than=soon", "").is(http.StatusBadRequest)
	w.admin.json("POST", "/api/v1/storage/clean?older_than=0s", "").is(http.StatusOK).has("freed")
}

func TestStorageSettingsOverTheAPI(t *testing.T) {
	w := newWorld(t)
	w.admin.get("/api/v1/storage/retention").is(http.StatusOK)
	w.admin.json("PUT", "/api/v1/storage/retention", `{"unused_for":"720h","max_bytes":1}`).is(http.StatusOK)
	w.admin.get("/api/v1/storage/retention").is(http.StatusOK).has(`"720h"`)
	for _, bad := range []string{`{"unused_for":"soon"}`, `{"unused_for":"1s"}`, `{"max_bytes":-1}`, `{"max":1}`, `{"max_bytes":"1"}`} {
		w.admin.json("PUT", "/api/v1/storage/retention", bad).is(http.StatusUnprocessableEntity)
	}
	w.admin.json("PUT", "/api/v1/storage/retention", `{"max_bytes":1,"max_bytes":2}`).is(http.StatusBadRequest)
	w.remoteModel("gone", registry.DefaultTeam, "org/gone")
	w.admin.json("POST", "/api/v1/models/gone/fetch?wait=30s", "").is(http.StatusOK)
	w.admin.json("DELETE", "/api/v1/models/gone", "").is(http.StatusNoContent)
	w.admin.json("POST", "/api/v1/storage/retention?dry_run=true", "").is(http.StatusOK).has("org/gone")
	w.admin.json("POST", "/api/v1/storage/retention?dry_run=true", `{"max_bytes":100000000}`).is(http.StatusOK).lacks("org/gone")
	w.admin.json("POST", "/api/v1/storage/retention", "").is(http.StatusOK).has("org/gone")
	w.admin.get("/api/v1/storage").is(http.StatusOK).lacks("org/gone")

	w.admin.json("PUT", "/api/v1/storage/limits", `{"total":1000000,"sources":{"s3":5}}`).is(http.StatusOK)
	w.admin.get("/api/v1/storage/limits").is(http.StatusOK).has("1000000")
	w.admin.json("PUT", "/api/v1/storage/limits", `{"total":-1}`).is(http.StatusUnprocessableEntity).has("total")
	w.admin.json("PUT", "/api/v1/storage/limits", `{"sources":{"ftp":1}}`).is(http.StatusUnprocessableEntity).has("sources.ftp")

	w.admin.json("PUT", "/api/v1/storage/roots", `{"folders":["/srv/models"]}`).is(http.StatusOK).has("settings")
	w.member.json("POST", "/api/v1/lookup", fmt.Sprintf(`{"source_type":"local","source_path":%q}`, w.weights)).is(http.StatusUnprocessableEntity)
	w.admin.json("PUT", "/api/v1/storage/roots", `{"folders":["relative"]}`).is(http.StatusUnprocessableEntity)
	w.admin.json("PUT", "/api/v1/storage/roots", `{"folders":null}`).is(http.StatusOK).has("command line")
	w.member.json("POST", "/api/v1/lookup", fmt.Sprintf(`{"source_type":"local","source_path":%q}`, w.weights)).is(http.StatusOK)
	if n := w.audits(auth.StorageManage); n < 6 {
		t.Errorf("%d lines in the audit", n)
	}
}

func TestSecretsOverTheAPI(t *testing.T) {
	w := newWorld(t)
	w.maintainer.json("PUT", "/api/v1/secrets/hub", `{"value":"very-secret-value"}`).is(http.StatusCreated)
	w.maintainer.json("PUT", "/api/v1/secrets/hub", `{"value":"very-secret-value-2"}`).is(http.StatusOK)
	w.admin.json("PUT", "/api/v1/secrets/all?all=true", `{"value":"very-secret-value"}`).is(http.StatusCreated)
	w.admin.json("PUT", "/api/v1/secrets/theirs?team=other", `{"value":"very-secret-value"}`).is(http.StatusCreated)
	for _, c := range []*client{w.member, w.viewer, w.outsider} {
		c.json("PUT", "/api/v1/secrets/hub", `{"value":"x"}`).is(http.StatusForbidden)
		c.json("DELETE", "/api/v1/secrets/hub", "").is(http.StatusForbidden)
	}
	w.maintainer.json("PUT", "/api/v1/secrets/x?all=true", `{"value":"x"}`).is(http.StatusForbidden)
	w.maintainer.json("PUT", "/api/v1/secrets/x?team=other", `{"value":"x"}`).is(http.StatusForbidden)
	w.maintainer.json("PUT", "/api/v1/secrets/a%2Fb", `{"value":"x"}`).is(http.StatusUnprocessableEntity).has("name")
	w.maintainer.json("PUT", "/api/v1/secrets/x", `{"value":""}`).is(http.StatusUnprocessableEntity).has("value")
	w.maintainer.json("PUT", "/api/v1/secrets/x", `{"value":1}`).is(http.StatusUnprocessableEntity).has("value")
	w.admin.json("PUT", "/api/v1/secrets/x?team=nobody", `{"value":"x"}`).is(http.StatusNotFound)

	w.member.get("/api/v1/secrets").is(http.StatusOK).has(`"hub"`).has(`"all"`).lacks("theirs").lacks("very-secret")
	w.viewer.get("/api/v1/secrets").is(http.StatusForbidden)

	// A team's secret is of no use to another team's models; the value shows nowhere.
	for id, team := range map[string]string{"mine": registry.DefaultTeam, "foreign": otherTeam} {
		w.admin.json("POST", "/api/v1/models", fmt.Sprintf(`{"model_id":%q,"team":%q,"source_type":"huggingface","source_path":"org/%s","model_format":"gguf","engine":"fake","custom_loader_params":{"auth_token":"secret:hub"}}`, id, team, id)).is(http.StatusCreated)
	}
	w.admin.json("POST", "/api/v1/models/mine/fetch?wait=30s", "").is(http.StatusOK)
	if got := w.depot.Params("org/mine")["auth_token"]; got != "very-secret-value-2" {
		t.Errorf("the source was given %v", got)
	}
	w.admin.json("POST", "/api/v1/models/foreign/fetch?wait=30s", "").is(http.StatusUnprocessableEntity).has("custom_loader_params.auth_token")
	w.admin.get("/api/v1/models/mine").is(http.StatusOK).has("secret:hub").lacks("very-secret")
	w.admin.get("/api/v1/export").is(http.StatusOK).has("secret:hub").lacks("very-secret")
	w.admin.get("/api/v1/audit").is(http.StatusOK).has("secret.manage").lacks("very-secret")
	w.maintainer.get("/api/v1/secrets").is(http.StatusOK).has(`"used_by":["mine"]`)
	w.maintainer.json("DELETE", "/api/v1/secrets/hub", "").is(http.StatusConflict).has("mine").has("force")
	w.maintainer.json("DELETE", "/api/v1/secrets/hub?force=true", "").is(http.StatusNoContent)
	w.maintainer.json("DELETE", "/api/v1/secrets/hub", "").is(http.StatusNotFound)
	// A team's secrets go with it.
	w.admin.json("DELETE", "/api/v1/models/foreign", "").is(http.StatusNoContent)
	w.admin.json("DELETE", "/api/v1/teams/other", "").is(http.StatusNoContent)
	if list, err := w.store.ListSecrets(t.Context(), nil); err != nil || len(list) != 1 || !slices.ContainsFunc(list, func(s registry.Secret) bool { return s.Name == "all" }) {
		t.Errorf("%+v %v", list, err)
	}
}
