package server

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/PuerkitoBio/goquery"

	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// hub registers a model of the depot, which stands for a Hub.
func (w *world) hub(id, path string) {
	w.t.Helper()
	_, _, err := w.manager.Register(context.Background(), registry.Model{ModelID: id, SourceType: registry.SourceHuggingFace, SourcePath: path,
		ModelFormat: registry.FormatGGUF, Engine: "fake", Team: registry.DefaultTeam}.WithDefaults(), manager.PutOptions{Actor: "test", Persist: true})
	must(w.t, err)
}

// fetched registers a model of the depot and brings its files here.
func (w *world) fetched(id, path string) {
	w.t.Helper()
	w.hub(id, path)
	op, err := w.manager.Fetch(context.Background(), id, manager.FetchOptions{Actor: "test"})
	must(w.t, err)
	if op = w.await(op); op.State != registry.OperationSucceeded {
		w.t.Fatalf("not fetched: %+v", op)
	}
}

func preview(fields ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(fields); i += 2 {
		q.Add(fields[i], fields[i+1])
	}
	return "/ui/preview?" + q.Encode()
}

// TestPreviewFillsIn: a path alone is enough, and what is suggested never stands in for what was typed.
func TestPreviewFillsIn(t *testing.T) {
	w := newWorld(t)
	filled := func(a answer, name string) string {
		return a.doc().Find("[name=filled_"+name+"]").AttrOr("value", "")
	}
	one := w.member.get(preview("source_type", "huggingface", "source_path", "team/tiny", "engine", "fake")).is(http.StatusOK).has("Fits").has("1 file").has("to be fetched").has("llama")
	if id, format := filled(one, "model_id"), filled(one, "model_format"); id != "team/tiny" || format != "gguf" {
		t.Errorf("suggests %q and %q", id, format)
	}
	typed := w.member.get(preview("source_type", "huggingface", "source_path", "team/tiny", "engine", "fake", "model_id", "mine")).is(http.StatusOK)
	if id := filled(typed, "model_id"); id != "" {
		t.Errorf("suggests %q over what was typed", id)
	}
	// What was filled in may be filled in anew, for another path.
	again := w.member.get(preview("source_type", "huggingface", "source_path", "team/other", "engine", "fake", "model_id", "team/tiny", "filled_model_id", "team/tiny", "model_format", "gguf",
		"filled_model_format", "gguf", "offered", "huggingface:team/tiny")).is(http.StatusOK)
	if id := filled(again, "model_id"); id != "team/other" {
		t.Errorf("the name stays that of the path before: %q", id)
	}

	many := w.member.get(preview("source_type", "huggingface", "source_path", "many/quants", "engine", "fake")).is(http.StatusOK)
	radios := many.doc().Find("input[type=radio][name=offer]")
	if radios.Length() != 2 || many.doc().Find("input[name=offer][checked]").Length() != 1 {
		t.Fatalf("%d choices: %s", radios.Length(), many.Body)
	}
	second := radios.Eq(1).AttrOr("value", "")
	chosen := w.member.get(preview("source_type", "huggingface", "source_path", "many/quants", "engine", "fake", "offer", second, "offered", "huggingface:many/quants")).is(http.StatusOK)
	if got := chosen.doc().Find("input[name=offer][checked]").AttrOr("value", ""); got != second {
		t.Errorf("%q is chosen instead of %q", got, second)
	}
	q, err := url.ParseQuery(second)
	must(t, err)
	if got := w.depot.Params("many/quants")["quantization"]; got != q.Get("quantization") {
		t.Errorf("the source was asked for %v", got)
	}
	// An address is taken apart, and the page says how.
	pasted := w.member.get(preview("source_type", "huggingface", "source_path", "https://depot.example/many/quants@v7", "engine", "fake", "offer", second, "offered", "huggingface:https://depot.example/many/quants@v7")).
		is(http.StatusOK).has("Read as many/quants at the revision v7")
	if got := pasted.doc().Find("[name=offered]").AttrOr("value", ""); got != "huggingface:https://depot.example/many/quants@v7" || filled(pasted, "model_id") != "many/quants" {
		t.Errorf("it is about %q", got)
	}
	if got := pasted.doc().Find("input[name=offer][checked]").AttrOr("value", ""); got != second {
		t.Errorf("%q is chosen instead of %q", got, second)
	}
	w.member.post("/models", "source_type", "huggingface", "source_path", "https://depot.example/team/pasted@v7", "engine", "fake").to(view.ModelURL("team/pasted"))
	if m, err := w.store.Model(t.Context(), "team/pasted"); err != nil || m.SourcePath != "team/pasted" || m.Revision != "v7" {
		t.Errorf("stored: %+v %v", m.Model, err)
	}
	// A choice at another path is none here.
	w.member.get(preview("source_type", "huggingface", "source_path", "team/third", "engine", "fake", "offer", second, "offered", "huggingface:many/quants")).is(http.StatusOK).has("Fits")
	if got := w.depot.Params("team/third")["quantization"]; got != nil {
		t.Errorf("the choice went along to another path: %v", got)
	}
}

// TestPreviewTellsWhatIsWrong: every error of a source is told in the panel with what to do, and costs no typing.
func TestPreviewTellsWhatIsWrong(t *testing.T) {
	w := newWorld(t)
	w.depot.Fail("team/gated", &registry.Error{Code: registry.CodeLoadingFailed, Msg: "The repository is gated", Failure: &registry.Failure{Kind: registry.FailureGated, Hint: "Accept the terms first"}})
	w.depot.Fail("team/busy", &registry.Error{Code: registry.CodeBusy, Msg: "The Hub limits requests", RetryAfter: time.Minute})
	w.member.get(preview("source_type", "huggingface", "source_path", "team/gated")).is(http.StatusOK).has("The repository is gated").has("Accept the terms first").has("llama3.1").has("1 file")
	// It can be registered by its path alone: the token may come later.
	w.member.post("/models", "source_type", "huggingface", "source_path", "team/gated", "engine", "fake").to(view.ModelURL("team/gated"))
	w.member.get(preview("source_type", "huggingface", "source_path", "team/busy")).is(http.StatusOK).has("The Hub limits requests")
	w.member.get(preview("source_type", "huggingface", "source_path", "bad/name")).is(http.StatusOK).has("source_path")
	w.member.get(preview("source_type", "huggingface", "source_path", "team/x", "context_length", "8k")).is(http.StatusOK).has("context_length")
	// An internal error is no answer to what was typed.
	w.depot.Fail("team/broken", errors.New("a bug"))
	w.member.get(preview("source_type", "huggingface", "source_path", "team/broken")).is(http.StatusInternalServerError)
}

// TestPreviewCredentials: credentials go along by name only, and only to those whose they are.
func TestPreviewCredentials(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.manager.PutSecret(ctx, registry.Secret{Name: "hub", Team: registry.DefaultTeam, UpdatedBy: "test"}, "hf_verysecretvalue")
	must(t, err)
	w.member.get(preview("source_type", "huggingface", "source_path", "team/private", "param.auth_token", "secret:hub")).is(http.StatusOK).lacks("hf_verysecret")
	if got := w.depot.Params("team/private")["auth_token"]; got != "hf_verysecretvalue" {
		t.Errorf("the source was given %v", got)
	}
	w.member.get(preview("source_type", "huggingface", "source_path", "team/raw", "param.auth_token", "hf_typed")).is(http.StatusOK).has("must name a stored secret")
	if got := w.depot.Params("team/raw"); got != nil {
		t.Errorf("a raw secret was sent: %v", got)
	}
	w.outsider.get(preview("source_type", "huggingface", "source_path", "team/theirs", "team", "default", "param.auth_token", "secret:hub")).is(http.StatusOK).has("does not have").lacks("hf_verysecret")

	form := w.member.get("/models/new").is(http.StatusOK).lacks("hf_verysecret")
	if form.doc().Find("#f-auth_token option[value='secret:hub']").Length() != 1 {
		t.Error("the form does not offer the secret")
	}
	w.outsider.get("/models/new").is(http.StatusOK).lacks("secret:hub")
}

// TestSlowSource: the form is told to ask again and gets the answer when it is there; the source is asked once.
func TestSlowSource(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	asked := make(chan struct{}, 8)
	found := registry.Lookup{Bytes: 42}
	slow := func(ctx context.Context, _ registry.Model) (registry.Lookup, error) {
		asked <- struct{}{}
		select {
		case <-release:
			return found, nil
		case <-ctx.Done():
			return registry.Lookup{}, ctx.Err()
		}
	}
	l := newLookups(w.server.closing, time.Now)
	m := registry.Model{SourcePath: "slow"}
	first, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.look(first, m, slow); !errors.Is(err, errStillLooking) {
		t.Fatalf("a look that has not ended: %v", err)
	}
	<-asked
	close(release)
	got, began, err := l.look(t.Context(), m, slow)
	if err != nil || got.Bytes != 42 || began.IsZero() || len(asked) > 0 {
		t.Errorf("%+v, %v, asked again %d times", got, err, len(asked))
	}
	// Another secret is another question.
	other := registry.Model{SourcePath: "slow", CustomLoaderParams: map[string]any{"auth_token": "x"}}
	if _, _, err := l.look(t.Context(), other, slow); err != nil || len(asked) != 1 {
		t.Errorf("another secret shared the answer: %v", err)
	}
}

// TestFormWithoutScripts: the button looks, the choice is a radio button, and what was not given is filled in.
func TestFormWithoutScripts(t *testing.T) {
	w := newWorld(t)
	fields := []string{"source_type", "huggingface", "source_path", "many/quants", "engine", "fake", "team", "default", "persist", "true"}
	looked := w.member.post("/models", append(fields, "then", "look")...).is(http.StatusOK)
	if id := looked.doc().Find("#f-model_id").AttrOr("value", ""); id == "" || looked.text("#f-model_id-filled") == "" {
		t.Errorf("the name is not filled in: %q", id)
	}
	second := looked.doc().Find("input[type=radio][name=offer]").Eq(1).AttrOr("value", "")
	q, err := url.ParseQuery(second)
	must(t, err)
	sent := append(slices.Clone(fields), "model_id", "mine", "offer", second, "offered", "huggingface:many/quants", "model_format", "gguf", "filled_model_format", "gguf")
	w.member.post("/models", sent...).to("/models/mine")
	rec, err := w.store.Model(t.Context(), "mine")
	must(t, err)
	if rec.CustomLoaderParams["quantization"] != q.Get("quantization") || rec.ModelFormat != registry.FormatGGUF {
		t.Errorf("registered as %v, %v", rec.ModelFormat, rec.CustomLoaderParams)
	}
	// The choice comes back to the form when it is edited, and stays when it is saved.
	edit := w.member.get(view.ModelAction("mine", "edit")).is(http.StatusOK)
	if edit.doc().Find("#preview [name=offer]").AttrOr("value", "") != second || strings.Contains(edit.text("#f-custom_loader_params"), "quantization") {
		t.Errorf("the choice is lost: %s", brief(edit.Body))
	}

	// Nothing but a path: the rest is looked up.
	w.member.post("/models", fields...).is(http.StatusSeeOther)
	l, err := w.manager.List(t.Context(), store.ListQuery{})
	must(t, err)
	if len(l.Items) != 2 {
		t.Errorf("%d models", len(l.Items))
	}
	w.depot.Fail("team/none", registry.Errorf(registry.CodeNotFound, "There is no such repository"))
	refused := w.member.post("/models", "source_type", "huggingface", "source_path", "team/none", "team", "default").is(http.StatusUnprocessableEntity).has("There is no such repository")
	if refused.text("#f-model_id-err") == "" || refused.doc().Find("#f-source_path").AttrOr("value", "") != "team/none" {
		t.Errorf("it is not told at its field: %s", brief(refused.Body))
	}
	both := w.member.post("/models", append(slices.Clone(sent), "custom_loader_params", "quantization: Q2_K")...).is(http.StatusUnprocessableEntity)
	if both.text("#f-custom_loader_params-err") == "" {
		t.Error("two choices are taken for one")
	}
}

// TestFetchPauseResumeCancel steers a download from the model's page.
func TestFetchPauseResumeCancel(t *testing.T) {
	w := newWorld(t)
	w.hub("held", "team/held")
	let := w.depot.Hold("team/held")
	page := view.ModelURL("held")
	if n := w.member.get(page).is(http.StatusOK).doc().Find("#fetch").Length(); n != 1 {
		t.Fatalf("%d buttons to fetch", n)
	}
	w.viewer.get(page).is(http.StatusOK).lacks(`id="fetch"`)
	s := w.member.live(view.LiveURL("model", "id", "held"))
	s.until("files", "Not")
	w.member.post(view.ModelAction("held", "fetch")).to(page)
	let <- struct{}{}
	s.until("files", "fetch-steer")
	s.until("head", "Fetching")
	op := w.fetchID("held")
	w.viewer.post(view.OperationURL(op) + "/pause").is(http.StatusForbidden)
	w.member.post(view.OperationURL(op)+"/pause", "to", "model").to(page)
	s.until("files", "Resume")
	w.member.get("/operations").is(http.StatusOK).has("Paused by max")
	a := w.member.postWith(view.OperationURL(op)+"/resume", htmx("files")).is(http.StatusOK).has(`id="head"`)
	if strings.Contains(a.Body, "Resume") {
		t.Errorf("it is not resumed: %s", brief(a.Body))
	}
	w.member.postWith(view.OperationURL(op)+"/pause", htmx("running")).is(http.StatusOK).has("Resume")
	w.member.postWith(view.OperationURL(op)+"/resume", htmx("operation")).is(http.StatusOK).has("Pause")
	w.member.post(view.OperationURL(op)+"/cancel", "to", "model").to(page)
	s.until("history", "Cancelled by max")

	// From the list, where the model's status is all there is to go by.
	w.member.post(view.ModelAction("held", "fetch")).to(page)
	w.until("held", func(l manager.Listed) bool { return l.Status == registry.StatusFetching })
	w.member.post(view.ModelAction("held", "cancel")).to(page)
	w.status("held", registry.StatusNotLoaded)

	close(let)
	w.member.post(view.ModelAction("held", "fetch")).to(page)
	s.until("files", "On this machine")
	w.member.get(page).is(http.StatusOK).lacks(`id="fetch"`).lacks(w.dir)
	w.admin.get(page).is(http.StatusOK).has(w.depot.Folder("team/held", "r1"))

	// What is here can be read again, and the page says how that went.
	w.viewer.get(page).is(http.StatusOK).lacks(`id="verify"`)
	w.member.get(page).is(http.StatusOK).has(`id="verify"`)
	w.viewer.post(view.ModelAction("held", "fetch"), "verify", "true").is(http.StatusForbidden)
	w.member.post(view.ModelAction("held", "fetch"), "verify", "true").to(page)
	s.until("files", "every byte of them was read")
	// From what is stored, too; and what is wrong is told.
	path := w.depot.Folder("team/held", "r1") + "/weights.gguf"
	raw, err := os.ReadFile(path)
	must(t, err)
	raw[len(raw)-1] ^= 1
	must(t, os.WriteFile(path, raw, 0o600))
	rows := w.member.get("/storage").is(http.StatusOK).doc()
	if got := rows.Find("#stored form").AttrOr("action", ""); got != view.ModelAction("held", "fetch") || rows.Find("#stored input[name=verify]").Length() != 1 {
		t.Errorf("a row of what is stored verifies by %q", got)
	}
	w.viewer.get("/storage").is(http.StatusOK).lacks(`name="verify"`)
	w.member.post(view.ModelAction("held", "fetch"), "verify", "true").to(page)
	s.until("files", "is not what it was")
	w.member.get(page).is(http.StatusOK).has("The last fetch failed").has("is not what it was")
}

func (w *world) fetchID(id string) string {
	w.t.Helper()
	ops, _, err := w.manager.Operations(context.Background(), store.OperationQuery{Subject: id, Kind: registry.OperationFetch, Limit: 1})
	must(w.t, err)
	if len(ops) == 0 {
		w.t.Fatal("no fetch")
	}
	return ops[0].ID
}

// TestStoragePage: what is kept, and its deletion with care.
func TestStoragePage(t *testing.T) {
	w := newWorld(t)
	w.fetched("kept", "team/kept")
	w.fetched("loaded", "team/loaded")
	if op := w.load("loaded"); op.State != registry.OperationSucceeded {
		t.Fatalf("not loaded: %+v", op)
	}
	row := func(a answer, path string) *goquery.Selection {
		return a.doc().Find("#stored tr[data-row]").FilterFunction(func(_ int, s *goquery.Selection) bool { return strings.Contains(s.Find(".name").Text(), path) })
	}
	a := w.maintainer.get("/storage").is(http.StatusOK)
	if row(a, "team/kept").Find("a[href='/models/kept']").Length() != 1 {
		t.Fatalf("not shown: %s", brief(a.Body))
	}
	ask := row(a, "team/kept").Find("td.act a").AttrOr("href", "")
	if ask == "" || a.doc().Find("#retention").Length() != 0 {
		t.Fatalf("a maintainer is offered %q", ask)
	}
	if row(w.member.get("/storage"), "team/kept").Find("td.act a").Length() != 0 {
		t.Error("a member is offered to delete")
	}
	w.outsider.get("/storage").is(http.StatusOK).lacks("team/kept").lacks("/models/kept").has("weights of another team")

	w.maintainer.get(ask).is(http.StatusOK).has("kept stays registered and fetches")
	w.maintainer.get(ask, htmx(row(a, "team/kept").AttrOr("id", ""))...).is(http.StatusOK).has("data-asking")
	busy := row(a, "team/loaded").Find("td.act a").AttrOr("href", "")
	w.maintainer.get(busy).is(http.StatusOK).has("is in use").lacks("Delete 0")
	fields := func(path string) []string {
		return []string{"source_type", "huggingface", "source_path", path, "revision", "r1"}
	}
	w.maintainer.post("/storage/delete", fields("team/loaded")...).is(http.StatusConflict).has("in use by loaded")
	w.member.post("/storage/delete", fields("team/kept")...).is(http.StatusForbidden)
	w.outsider.post("/storage/delete", fields("team/kept")...).is(http.StatusNotFound)
	live := w.maintainer.live(view.LiveURL("storage"))
	live.until("stored", "team/kept")
	w.maintainer.postWith("/storage/delete", htmx("stored"), fields("team/kept")...).is(http.StatusOK).lacks("team/kept").has("team/loaded")
	live.until("stored", "team/loaded")
	w.maintainer.post("/storage/delete", fields("team/kept")...).is(http.StatusNotFound)
	w.member.get("/models/kept").is(http.StatusOK).has("Not fetched")
}

// TestStorageSettings: an admin's forms keep what was typed, tell what is wrong, and take effect.
func TestStorageSettings(t *testing.T) {
	w := newWorld(t)
	w.fetched("kept", "team/kept")
	must(t, w.manager.Delete(t.Context(), "kept", 0, "test"))
	wrong := w.admin.post("/storage/retention", "unused_for", "soon", "max_bytes", "3").is(http.StatusUnprocessableEntity)
	if wrong.text("#retention-unused_for-err") == "" || wrong.doc().Find("#retention-max_bytes").AttrOr("value", "") != "3" {
		t.Errorf("not told at its field: %s", brief(wrong.Body))
	}
	dry := w.admin.post("/storage/retention", "max_bytes", "0.000000001", "action", "preview").is(http.StatusOK).has("Would delete 1 revision").has("team/kept")
	if dry.doc().Find("#retention-apply").Length() != 1 {
		t.Error("it cannot be applied")
	}
	if r, err := w.manager.Retention(t.Context()); err != nil || r != (registry.Retention{}) {
		t.Errorf("a dry run stored %+v, %v", r, err)
	}
	w.admin.post("/storage/retention", "unused_for", "30", "partial_for", "0.5", "include_used", "true", "action", "save").to("/storage")
	r, err := w.manager.Retention(t.Context())
	must(t, err)
	if want := (registry.Retention{UnusedFor: registry.Duration(720 * time.Hour), PartialFor: registry.Duration(12 * time.Hour), IncludeUsed: true}); r != want {
		t.Errorf("stored %+v", r)
	}
	if a := w.admin.get("/storage"); a.doc().Find("#retention-unused_for").AttrOr("value", "") != "30" || a.doc().Find("#retention-partial_for").AttrOr("value", "") != "0.5" {
		t.Errorf("the form does not show it: %s", brief(a.Body))
	}
	w.admin.post("/storage/retention", "max_bytes", "0.000000001", "action", "apply").to("/storage")
	w.admin.get("/storage").is(http.StatusOK).has("1 item was deleted").lacks("team/kept")

	if w.admin.post("/storage/limits", "total", "-1").is(http.StatusUnprocessableEntity).text("#limits-total-err") == "" {
		t.Error("a negative limit is not refused at its field")
	}
	w.admin.post("/storage/limits", "total", "200", "huggingface", "0.5").to("/storage")
	l, err := w.manager.BandwidthLimits(t.Context())
	if err != nil || l.Total != 200<<20 || l.Sources[registry.SourceHuggingFace] != 1<<19 {
		t.Errorf("limits %+v, %v", l, err)
	}

	if w.admin.post("/storage/roots", "folders", "models\r\n"+w.dir).is(http.StatusUnprocessableEntity).text("#roots-err") == "" {
		t.Error("a relative folder is not refused")
	}
	w.admin.post("/storage/roots", "folders", w.dir+"\r\n\r\n", "action", "save").to("/storage")
	if f, err := w.manager.RootFolders(t.Context()); err != nil || !slices.Equal(f.Folders, []string{w.dir}) {
		t.Errorf("folders %+v, %v", f, err)
	}
	w.admin.post("/storage/roots", "action", "reset").to("/storage")
	w.admin.post("/storage/clean", "older", "0s").to("/storage")
	w.admin.post("/storage/clean", "older", "soon").is(http.StatusBadRequest)
	for _, p := range []string{"retention", "limits", "roots", "clean"} {
		w.maintainer.post("/storage/" + p).is(http.StatusForbidden)
	}
}

func TestSecretsPage(t *testing.T) {
	w := newWorld(t)
	w.viewer.get("/secrets").is(http.StatusForbidden)
	w.viewer.get("/").is(http.StatusOK).lacks(`href="/secrets"`)
	w.member.get("/secrets").is(http.StatusOK).lacks(`id="new-secret"`)
	w.member.post("/secrets", "name", "hub", "value", "x", "team", "default").is(http.StatusForbidden)
	if w.maintainer.post("/secrets", "name", "my secret", "value", "hf_verysecret", "team", "default").is(http.StatusUnprocessableEntity).lacks("hf_verysecret").text("#secret-name-err") == "" {
		t.Error("a name that cannot be is not told at its field")
	}
	w.maintainer.post("/secrets", "name", "hub", "value", "hf_verysecret", "team", "*").is(http.StatusForbidden)
	w.maintainer.post("/secrets", "name", "hub", "value", "hf_verysecret", "team", "default").to("/secrets")
	w.maintainer.get("/secrets").is(http.StatusOK).has("secret:hub").lacks("hf_verysecret")
	w.maintainer.get("/secrets").is(http.StatusOK).has("mia")
	w.member.get("/secrets").is(http.StatusOK).has("secret:hub").lacks("/secrets/hub/delete")
	w.outsider.get("/secrets").is(http.StatusOK).lacks("secret:hub")
	w.outsider.get("/secrets/hub/delete?team=default").is(http.StatusNotFound)
	w.maintainer.get("/secrets/hub/delete?team=default").is(http.StatusOK).has("cannot be had back")
	w.member.post("/secrets/hub/delete?team=default").is(http.StatusForbidden)
	w.admin.json("POST", "/api/v1/models", `{"model_id":"reads-it","source_type":"huggingface","source_path":"org/reads","model_format":"gguf","custom_loader_params":{"auth_token":"secret:hub"}}`).is(http.StatusCreated)
	w.member.get("/secrets").is(http.StatusOK).has("reads-it")
	w.outsider.get("/secrets").is(http.StatusOK).lacks("reads-it")
	w.maintainer.post("/secrets/hub/delete?team=default").to("/secrets/hub/delete?team=default") // asked again: it is used
	w.maintainer.get("/secrets/hub/delete?team=default").is(http.StatusOK).has("reads-it uses it").has("Delete it anyway")
	w.maintainer.post("/secrets/hub/delete?team=default", "force", "true").to("/secrets")
	w.maintainer.get("/secrets").is(http.StatusOK).lacks("secret:hub")
	w.admin.post("/secrets", "name", "all", "value", "x", "team", "*").to("/secrets")
	w.outsider.get("/secrets").is(http.StatusOK).has("secret:all")
}

// TestFilesChangedOnDisk: what is different on disk is told on the model's page, with what to do.
func TestFilesChangedOnDisk(t *testing.T) {
	var p view.ModelPage
	p.Record.Model = registry.Model{ModelID: "m", SourceType: registry.SourceLocal}
	p.Files.Known = &registry.ModelArtifact{Source: registry.SourceLocal, Changed: "weights.gguf is gone"}
	if got := p.FilesStatus(); got.Label != "Changed on disk" || !strings.Contains(p.ChangedAdvice(), "next load") {
		t.Errorf("%+v, %s", got, p.ChangedAdvice())
	}
	p.Runtime.State = registry.RuntimeReady
	if !strings.Contains(p.ChangedAdvice(), "Reload") {
		t.Errorf("a loaded model: %s", p.ChangedAdvice())
	}
}
