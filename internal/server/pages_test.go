package server

import (
	"bytes"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/PuerkitoBio/goquery"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

const llama = "meta-llama/Llama-2-7b-chat-hf"

// TestEveryPageAnswers asks for every GET route of the console as an admin.
func TestEveryPageAnswers(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	op := w.load(llama)
	w.fetched("hub-model", "team/hub-model")
	_, err := w.manager.PutSecret(t.Context(), registry.Secret{Name: "hub", Team: registry.DefaultTeam, UpdatedBy: "test"}, "hf_verysecretvalue")
	must(t, err)
	fill := strings.NewReplacer(":id", url.PathEscape(llama), ":op", op.ID, ":team", "default",
		"/storage/delete", "/storage/delete?source_type=huggingface&source_path=team/hub-model&revision=r1", ":name/delete", "hub/delete?team=default", "/engines/:name", "/engines/fake")
	for _, r := range w.server.pageRoutes() {
		if r.method != http.MethodGet || r.path == "/ui/events" {
			continue
		}
		a := w.admin.get(fill.Replace(r.path))
		switch {
		case a.Status == http.StatusSeeOther && (r.action == auth.Public || r.action == auth.AccountOwn):
		case a.Status != http.StatusOK:
			t.Errorf("GET %s: %d: %s", r.path, a.Status, brief(a.Body))
		case strings.HasPrefix(r.path, "/ui/") || r.path == "/yaml/export":
		case a.doc().Find("main h1").Length() != 1 || a.doc().Find("nav[aria-label=Console]").Length() != 1 || a.Header.Get("Vary") != "HX-Request":
			t.Errorf("GET %s is no page: %s", r.path, brief(a.Body))
		}
	}
}

func pagesOf(id, op string) []string {
	return []string{"/", "/models", view.ModelURL(id), "/operations", view.OperationURL(op), "/storage", "/engines", "/engines/fake", "/account", "/teams", "/yaml"}
}

// TestNothingIsOfferedThatIsRefused presses every button and follows every link that a page has, with the rights of
// whoever looks at it.
func TestNothingIsOfferedThatIsRefused(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	w.model("idle", registry.DefaultTeam, nil)
	op := w.load(llama)
	for _, c := range []*client{w.viewer, w.member, w.maintainer, w.outsider} {
		for _, p := range pagesOf(llama, op.ID) {
			a := c.get(p)
			if a.Status == http.StatusNotFound && c == w.outsider {
				continue
			}
			a.is(http.StatusOK)
			a.doc().Find("main a[href^='/']").Each(func(_ int, s *goquery.Selection) {
				href := s.AttrOr("href", "")
				if got := c.get(href); got.Status != http.StatusOK {
					t.Errorf("%s: the link %s on %s answers %d", c.name, href, p, got.Status)
				}
			})
			a.doc().Find("main form[method=post]").Each(func(_ int, s *goquery.Selection) {
				action := s.AttrOr("action", "")
				if strings.HasSuffix(action, "/unload") || strings.HasSuffix(action, "/load") || strings.HasPrefix(action, "/account/") {
					return // they would change what the next one finds; see TestViewerIsRefused and TestTokensTeamsAndUsers
				}
				if got := c.post(action); got.Status == http.StatusForbidden || got.Status == http.StatusNotFound {
					t.Errorf("%s: the form %s on %s answers %d: %s", c.name, action, p, got.Status, brief(got.Body))
				}
			})
		}
	}
}

// TestViewerIsRefused: a viewer sees no button and posting anyway is refused, while a member sees them.
func TestViewerIsRefused(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	buttons := func(c *client, path string) (out []string) {
		c.get(path).is(http.StatusOK).doc().Find("main form[method=post]").Each(func(_ int, s *goquery.Selection) {
			out = append(out, s.AttrOr("action", ""))
		})
		return out
	}
	load := view.ModelAction(llama, "load")
	for _, path := range []string{"/models", view.ModelURL(llama)} {
		if got := buttons(w.viewer, path); len(got) > 0 {
			t.Errorf("a viewer is offered %v on %s", got, path)
		}
		if !slices.Contains(buttons(w.member, path), load) {
			t.Errorf("a member is not offered to load on %s", path)
		}
	}
	w.viewer.get("/models").lacks("/models/new")
	w.viewer.get("/models/new").is(http.StatusForbidden)
	w.viewer.get("/ui/preview?source_type=local&model_format=gguf&source_path=" + url.QueryEscape(w.weights)).is(http.StatusForbidden)
	own := []string{"/signin", "/welcome", "/signout", "/engines/check", "/account/password", "/account/tokens", "/account/tokens/:token/revoke"}
	fill := strings.NewReplacer(":id", url.PathEscape(llama), ":name", "llamacpp", ":team", "default", ":user", "someone")
	for _, r := range w.server.pageRoutes() {
		if r.method != http.MethodPost || slices.Contains(own, r.path) || strings.Contains(r.path, ":op") {
			continue
		}
		if a := w.viewer.post(fill.Replace(r.path), "role", "member", "text", "models: []"); a.Status != http.StatusForbidden {
			t.Errorf("POST %s as a viewer: %d: %s", r.path, a.Status, brief(a.Body))
		}
	}
	w.member.post(view.ModelAction(llama, "delete")).is(http.StatusForbidden)
	w.member.post(load, "override_resources", "true").is(http.StatusForbidden)
	if l, err := w.manager.Get(t.Context(), llama); err != nil || l.Status != registry.StatusNotLoaded {
		t.Errorf("the model was touched: %v, %v", l.Status, err)
	}
}

// TestForeignTeamIsInvisible: whoever is not in a model's team finds no trace of it.
func TestForeignTeamIsInvisible(t *testing.T) {
	w := newWorld(t)
	const secret = "hush/quiet-model"
	w.model(secret, registry.DefaultTeam, nil)
	w.model("loud", otherTeam, map[string]any{"memory_mb": int64(70_000)})
	op := w.load(secret)
	if op.State != registry.OperationSucceeded {
		t.Fatalf("not loaded: %+v", op)
	}
	for _, p := range []string{view.ModelURL(secret), view.ModelAction(secret, "edit"), view.ModelAction(secret, "delete"), view.OperationURL(op.ID)} {
		w.outsider.get(p).is(http.StatusNotFound).lacks("ready")
	}
	for _, a := range []string{"load", "unload", "cancel", "approve", "delete"} {
		w.outsider.post(view.ModelAction(secret, a)).is(http.StatusNotFound)
	}
	w.outsider.post(view.OperationURL(op.ID) + "/cancel").is(http.StatusNotFound)
	w.outsider.get("/ui/events?page=model&id=" + url.QueryEscape(secret)).is(http.StatusNotFound)
	w.outsider.get("/ui/events?page=operation&id=" + op.ID).is(http.StatusNotFound)

	// What does not fit names who holds the memory; not to those who may not know.
	w.hw.SetHost(registry.Host{RAMTotal: 64 << 30, RAMAvailable: 1 << 30, CPUs: 2})
	refused := w.outsider.postWith(view.ModelAction("loud", "load"), htmx("now")).is(http.StatusConflict)
	refused.lacks(secret).has("needs")
	for _, p := range []string{"/", "/models", "/models?q=quiet", "/models?team=default", "/operations", view.ModelURL("loud"), "/ui/jump?q=quiet", "/teams", "/yaml", "/yaml/export", "/engines", "/account"} {
		a := w.outsider.get(p).is(http.StatusOK).lacks(secret)
		if !strings.Contains(p, "quiet") { // what was asked for is repeated
			a.lacks("quiet-model")
		}
		if p == "/" || p == "/models" || p == "/operations" || p == "/ui/jump?q=quiet" {
			w.viewer.get(p).has(secret) // or this test would see nothing at all
		}
	}
	w.outsider.post("/yaml", "text", "models:\n- {model_id: "+secret+", source_type: local, source_path: /x, model_format: gguf, team: other}\n", "action", "apply").is(http.StatusOK).has("left out")

	stream := map[string]*liveStream{}
	for _, p := range []string{"overview", "models", "activity", "yaml", "engines"} {
		stream[p] = w.outsider.live(view.LiveURL(p))
	}
	first := map[string]string{"overview": "activity", "models": "rows", "activity": "past", "yaml": "manifest", "engines": "engines"}
	for p, s := range stream {
		s.until(first[p], "")
	}
	w.member.post(view.ModelAction(secret, "unload")).is(http.StatusSeeOther)
	w.status(secret, registry.StatusNotLoaded)
	w.model("hush/quiet-model-2", registry.DefaultTeam, nil)
	w.model("louder", otherTeam, nil)
	// What is theirs comes after what is not, so the stream has passed it.
	stream["models"].until("rows", "louder")
	for p, s := range stream {
		if strings.Contains(s.all.String(), "quiet") {
			t.Errorf("the stream of %s tells of a foreign model: %s", p, s.all.String())
		}
	}
}

func TestSignInAndOut(t *testing.T) {
	w := newWorld(t)
	sys := auth.WithIdentity(t.Context(), auth.System("test"))
	u, err := w.auth.CreateUser(sys, "asha", "a long enough password", true)
	must(t, err)
	b := w.client("asha", "")
	b.get("/models?q=x").to("/signin?next=" + url.QueryEscape("/models?q=x"))
	b.get("/no/such/page").to("/signin?next=" + url.QueryEscape("/no/such/page"))
	a := b.get("/models", append(htmx("results"), "HX-Current-URL", w.url+"/models?q=y")...).is(http.StatusUnauthorized)
	if got := a.Header.Get("HX-Redirect"); got != "/signin?next="+url.QueryEscape("/models?q=y") {
		t.Errorf("htmx is sent to %q", got)
	}
	b.get("/ui/events?page=models").is(http.StatusUnauthorized)
	wrong := b.post("/signin", "name", "asha", "password", "not this one", "next", "/yaml").is(http.StatusUnprocessableEntity)
	if wrong.text("[role=alert]") == "" || wrong.doc().Find("input[name=name]").AttrOr("value", "") != "asha" || wrong.doc().Find("input[name=next]").AttrOr("value", "") != "/yaml" {
		t.Errorf("a refused sign-in does not come back as it was: %s", brief(wrong.Body))
	}
	for _, next := range []string{"//evil.example", "https://evil.example/", `/\evil.example`, "javascript:alert(1)", "models"} {
		b.post("/signin", "name", "asha", "password", "a long enough password", "next", next).to("/")
	}
	b.post("/signin", "name", "asha", "password", "a long enough password", "next", "/models?q=x").to("/models?q=x")
	b.get("/models?q=x").is(http.StatusOK).has("asha")
	b.get("/signin").to("/")
	b.post("/account/password", "old", "wrong", "new", "another long password").is(http.StatusUnprocessableEntity).has("The present password is wrong.")
	b.post("/account/password", "old", "a long enough password", "new", "short").is(http.StatusUnprocessableEntity).has("The new password")
	b.post("/account/password", "old", "a long enough password", "new", "another long password").to("/account")
	if told := b.get("/account").text("#flash"); !strings.Contains(told, "changed") {
		t.Errorf("the change is not told: %q", told)
	}
	if told := b.get("/account").text("#flash"); told != "" {
		t.Errorf("it is told twice: %q", told)
	}
	must(t, w.auth.SetDisabled(sys, u.ID, true))
	b.get("/models").to("/signin?next=%2Fmodels")
	must(t, w.auth.SetDisabled(sys, u.ID, false))
	b.post("/signin", "name", "asha", "password", "another long password").to("/")
	b.post("/signout").to("/signin")
	b.get("/").to("/signin")
}

func TestFirstVisit(t *testing.T) {
	w := newWorldWith(t, worldOptions{empty: true})
	b := w.nobody
	b.get("/").to("/welcome")
	b.get("/signin").to("/welcome")
	b.get("/welcome", "X-Forwarded-For", "203.0.113.9").is(http.StatusForbidden).has("LLMM_ADMIN_PASSWORD")
	b.post("/welcome", "name", "asha", "password", "a long enough password", "again", "another").is(http.StatusUnprocessableEntity).has("It is not the same as above.")
	short := b.post("/welcome", "name", "as ha", "password", "a long enough password", "again", "a long enough password").is(http.StatusUnprocessableEntity)
	if short.text("#name-err") == "" {
		t.Errorf("the error is not at the name: %s", brief(short.Body))
	}
	if b.post("/welcome", "name", "asha", "password", "short", "again", "short").is(http.StatusUnprocessableEntity).text("#password-err") == "" {
		t.Error("the error is not at the password")
	}
	b.postWith("/welcome", []string{"X-Forwarded-For", "203.0.113.9"}, "name", "eve", "password", "a long enough password", "again", "a long enough password").is(http.StatusForbidden)
	b.post("/welcome", "name", "asha", "password", "a long enough password", "again", "a long enough password").to("/")
	b.get("/").is(http.StatusOK).has("asha").has("No model is registered yet")
	b.get("/welcome").to("/")
	w.client("", "").post("/welcome", "name", "eve", "password", "a long enough password", "again", "a long enough password").to("/signin")
}

// TestAnotherSiteIsRefused: a form on another web site cannot do anything with the session of whoever visits it.
func TestAnotherSiteIsRefused(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	_, err := w.auth.CreateUser(auth.WithIdentity(t.Context(), auth.System("test")), "asha", "a long enough password", true)
	must(t, err)
	b := w.client("asha", "")
	b.post("/signin", "name", "asha", "password", "a long enough password").to("/")
	for _, h := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "same-site"}} {
		for _, r := range w.server.pageRoutes() {
			if r.method == http.MethodPost {
				b.postWith(strings.ReplaceAll(r.path, ":id", url.PathEscape(llama)), h).is(http.StatusForbidden).has("another web site")
			}
		}
	}
	b.postWith(view.ModelAction(llama, "load"), []string{"Sec-Fetch-Site", "same-origin"}).to(view.ModelURL(llama))
}

func TestFormErrorsStandAtTheirFields(t *testing.T) {
	w := newWorld(t)
	a := w.member.post("/models", "model_id", "meta-llama/../x", "source_type", "local", "source_path", "models/x.gguf", "model_format", "gguf",
		"context_length", "8k", "custom_loader_params", "threads 8", "idle_timeout", "tomorrow", "team", "default", "description", "kept as typed").is(http.StatusUnprocessableEntity)
	for _, f := range []string{"model_id", "source_path", "context_length", "custom_loader_params", "idle_timeout"} {
		if a.text("#f-"+f+"-err") == "" || a.doc().Find("#f-"+f).AttrOr("aria-invalid", "") != "true" {
			t.Errorf("no error stands at %s", f)
		}
	}
	if a.text("#f-description-err") != "" || a.text("#f-description") != "kept as typed" || a.doc().Find("#f-source_path").AttrOr("value", "") != "models/x.gguf" {
		t.Error("what was typed is lost")
	}
	if n, err := w.store.CountModels(t.Context()); err != nil || n != 0 {
		t.Errorf("%d models are stored, %v", n, err)
	}
	// A team that is not theirs, or is none, is an error at the team or a refusal, and never stored.
	w.member.post("/models", "model_id", "a", "source_type", "local", "source_path", w.weights, "model_format", "gguf", "team", otherTeam).is(http.StatusForbidden)
	if w.admin.post("/models", "model_id", "a", "source_type", "local", "source_path", w.weights, "model_format", "gguf", "team", "nowhere").is(http.StatusUnprocessableEntity).text("#f-team-err") == "" {
		t.Error("no error stands at team")
	}
	w.member.post("/models", "description", strings.Repeat("x", maxForm)).is(http.StatusBadRequest).has("larger than")
}

func TestRegisterEditAndDelete(t *testing.T) {
	w := newWorld(t)
	fields := []string{"model_id", llama, "source_type", "local", "source_path", w.weights, "model_format", "gguf", "engine", "fake", "team", "default", "persist", "true",
		"custom_loader_params", "steps: 2\nauth_token: hf_verysecretvalue"}
	w.member.post("/models", fields...).to(view.ModelURL(llama))
	w.member.get(view.ModelURL(llama)).is(http.StatusOK).lacks("hf_verysecret").has("is registered")
	taken := w.member.post("/models", fields...).is(http.StatusUnprocessableEntity)
	if taken.text("#f-model_id-err") == "" {
		t.Errorf("nothing says that the id is taken: %s", brief(taken.Body))
	}

	edit := w.member.get(view.ModelAction(llama, "edit")).is(http.StatusOK).lacks("hf_verysecret").has(registry.Redaction)
	version := edit.doc().Find("input[name=version]").AttrOr("value", "")
	change := func(c *client, version, description string) answer {
		return c.post(view.ModelURL(llama), "version", version, "model_id", "something/else", "source_type", "local", "source_path", w.weights, "model_format", "gguf", "engine", "fake",
			"team", "default", "persist", "true", "description", description, "custom_loader_params", "steps: 2\nauth_token: '"+registry.Redaction+"'")
	}
	change(w.maintainer, version, "mia's words").to(view.ModelURL(llama))
	stale := change(w.member, version, "max's words").is(http.StatusConflict)
	if msg := stale.text("#model-form [role=alert]"); !strings.Contains(msg, "mia changed") || stale.text("#f-description") != "max's words" {
		t.Errorf("the conflict is not told, or what was typed is lost: %s", brief(stale.Body))
	}
	if rec, err := w.store.Model(t.Context(), llama); err != nil || rec.Description != "mia's words" || rec.CustomLoaderParams["auth_token"] != "hf_verysecretvalue" {
		t.Errorf("stored: %+v, %v", rec, err)
	}
	change(w.member, stale.doc().Find("input[name=version]").AttrOr("value", ""), "max's words").to(view.ModelURL(llama))

	w.load(llama)
	ask := w.maintainer.get(view.ModelAction(llama, "delete"), htmx("delete")...).is(http.StatusOK).has("will be unloaded first").lacks("<html")
	w.maintainer.get(view.ModelAction(llama, "delete")+"?keep=1", htmx("delete")...).is(http.StatusOK).lacks("Keep it")
	w.maintainer.post(view.ModelAction(llama, "delete"), "version", version).is(http.StatusConflict)
	w.maintainer.post(view.ModelAction(llama, "delete"), "version", ask.doc().Find("input[name=version]").AttrOr("value", "")).to("/models")
	w.maintainer.get(view.ModelURL(llama)).is(http.StatusNotFound)
}

func TestLoadAndUnloadWithAndWithoutScripts(t *testing.T) {
	w := newWorld(t)
	w.model(llama, registry.DefaultTeam, nil)
	load, unload := view.ModelAction(llama, "load"), view.ModelAction(llama, "unload")
	w.member.post(load).to(view.ModelURL(llama))
	w.status(llama, registry.StatusReady)
	w.member.get(view.ModelURL(llama)).is(http.StatusOK).has("Ready on CPU").has("chat-text")
	now := w.member.postWith(unload, htmx("now")).is(http.StatusOK)
	if now.doc().Find("#head[hx-swap-oob]").Length() != 1 || strings.Contains(now.Body, "<html") {
		t.Errorf("no fragment: %s", now.Body)
	}
	w.status(llama, registry.StatusNotLoaded)
	row := w.member.postWith(load, htmx(view.RowID(llama))).is(http.StatusOK)
	if !strings.Contains(row.Body, `<tr id="`+view.RowID(llama)+`"`) {
		t.Errorf("no row: %s", row.Body)
	}
	w.status(llama, registry.StatusReady)
	w.member.postWith(unload, append(htmx("main"), "HX-Boosted", "true")).to(view.ModelURL(llama))
	w.member.postWith(load, htmx("now"), "device", "tpu").is(http.StatusBadRequest)

	w.model("slow", registry.DefaultTeam, map[string]any{"manual": true})
	w.member.post(view.ModelAction("slow", "load")).to(view.ModelURL("slow"))
	w.member.get("/operations").is(http.StatusOK).has("Load slow").has("/cancel")
	w.member.postWith(view.ModelAction("slow", "cancel"), htmx("now")).is(http.StatusOK)
	w.status("slow", registry.StatusNotLoaded)
	w.member.get("/operations").is(http.StatusOK).has("Cancelled")

	w.model("broken", registry.DefaultTeam, map[string]any{"fault": "oom_loading"})
	w.load("broken")
	w.member.get(view.ModelURL("broken")).is(http.StatusOK).has("Could not be loaded").has("Try again").has("last lines")
	w.viewer.get(view.ModelURL("broken")).is(http.StatusOK).has("Could not be loaded").lacks("last lines")
	w.member.get("/").is(http.StatusOK).has("failed to load")
	if n := w.viewer.get("/").text("#needs"); strings.Contains(n, "broken") {
		t.Errorf("a viewer is asked to do what they may not: %s", n)
	}
}

// TestTooLittleMemory: the refusal is told at the button, the page offers what would help, and a maintainer may override.
func TestTooLittleMemory(t *testing.T) {
	w := newWorld(t)
	w.hw.SetHost(registry.Host{RAMTotal: 4 << 30, RAMAvailable: 3 << 30, CPUs: 2})
	w.model("first", registry.DefaultTeam, map[string]any{"memory_mb": int64(1)})
	rec := w.model("big", registry.DefaultTeam, nil)
	w.load("first")
	rec.RequiredRAMMB = 8192
	_, _, err := w.manager.Register(t.Context(), rec.Model, manager.PutOptions{Actor: "test", Persist: true})
	must(t, err)
	a := w.member.postWith(view.ModelAction("big", "load"), htmx("now")).is(http.StatusConflict).has("8 GiB")
	if a.Header.Get("HX-Retarget") != "#flash" {
		t.Error("the page would lose what it shows")
	}
	w.member.post(view.ModelAction("big", "load")).is(http.StatusConflict).has("<html").has("8 GiB")
	w.member.get(view.ModelURL("big")).is(http.StatusOK).has("Needs 8 GiB as given").lacks("override_resources")
	w.maintainer.get(view.ModelURL("big")).is(http.StatusOK).has("override_resources")
	w.maintainer.post(view.ModelAction("big", "load"), "override_resources", "true").to(view.ModelURL("big"))
	w.status("big", registry.StatusReady)
}

func TestListSearchesAndPages(t *testing.T) {
	w := newWorld(t)
	for i := range 60 {
		w.model("model-"+string(rune('a'+i/26))+string(rune('a'+i%26)), registry.DefaultTeam, nil)
	}
	w.load("model-aa")
	first := w.viewer.get("/models").is(http.StatusOK)
	if n := first.doc().Find("tr[data-row]").Length(); n != 50 {
		t.Fatalf("%d rows on the first page", n)
	}
	more, _ := first.doc().Find("#more-link").Attr("hx-get")
	rest := w.viewer.get(more, htmx("more")...).is(http.StatusOK).lacks("<html")
	if got := strings.Count(rest.Body, "<tr id=\"m-"); got != 10 || strings.Contains(rest.Body, "more-link") {
		t.Errorf("%d rows on the second page", got)
	}
	found := w.viewer.get("/models?q=MODEL-BB", htmx("results")...).is(http.StatusOK).lacks("<html")
	if n := found.doc().Find("tr[data-row]").Length(); n != 1 {
		t.Errorf("%d rows found", n)
	}
	ready := w.viewer.get("/models?status=ready").is(http.StatusOK)
	if ready.doc().Find("tr[data-row]").Length() != 1 || ready.doc().Find("#f-status option[selected]").AttrOr("value", "") != "ready" || !strings.Contains(ready.Body, "Search 60 models") {
		t.Errorf("filtered: %s", brief(ready.Body))
	}
	w.viewer.get("/models?status=nonsense").is(http.StatusBadRequest)
	if hits := w.viewer.get("/ui/jump?q=model-b").is(http.StatusOK).doc().Find("a"); hits.Length() != maxHits {
		t.Errorf("%d hits", hits.Length())
	}
	w.viewer.get("/ui/jump?q=yam").is(http.StatusOK).has(`href="/yaml"`)
	w.viewer.get("/ui/jump").is(http.StatusOK).has("Overview").lacks("Register")
}

func TestPreview(t *testing.T) {
	w := newWorld(t)
	base := "/ui/preview?source_type=local&model_format=gguf&engine=fake&source_path="
	w.member.get("/ui/preview?source_type=local").is(http.StatusOK).has("Once there is a path")
	w.member.get(base + url.QueryEscape(w.weights)).is(http.StatusOK).has("1 file").has("Fits")
	w.member.get(base + url.QueryEscape(w.dir+"/nothing.gguf")).is(http.StatusOK).has("nothing.gguf").lacks("1 file")
	w.member.get(base + "relative.gguf").is(http.StatusOK).has("must be an absolute path")
	w.member.get(base + url.QueryEscape(w.weights) + "&custom_loader_params=" + url.QueryEscape("nonsense: [")).is(http.StatusOK).has("Fits")
}

func TestYAML(t *testing.T) {
	w := newWorld(t)
	w.model("old", registry.DefaultTeam, nil)
	text := "models:\n- {model_id: new/one, source_type: local, source_path: " + w.weights + ", model_format: gguf}\n" +
		"- {model_id: old, source_type: local, source_path: " + w.weights + ", model_format: gguf, engine: fake, context_length: 64}\n- {model_id: bad, source_type: local}\n"
	w.viewer.post("/yaml", "text", text, "action", "apply").is(http.StatusForbidden)
	dry := w.member.post("/yaml", "text", text, "action", "preview").is(http.StatusOK).has("1 model would be added").has("context_length").has("line 4")
	if dry.doc().Find("#apply").Length() != 1 || !strings.Contains(dry.doc().Find("#yaml-text").Text(), "new/one") {
		t.Error("it cannot be applied as it is shown")
	}
	if n, _ := w.store.CountModels(t.Context()); n != 1 {
		t.Fatalf("a preview stored something: %d models", n)
	}
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	must(t, m.WriteField("action", "apply"))
	must(t, m.WriteField("text", "the file wins"))
	f, err := m.CreateFormFile("file", "models.yaml")
	must(t, err)
	_, err = f.Write([]byte(text))
	must(t, err)
	must(t, m.Close())
	w.member.send(http.MethodPost, "/yaml", m.FormDataContentType(), &b).is(http.StatusOK).has("1 model were added, 1 model were changed")
	if n, _ := w.store.CountModels(t.Context()); n != 2 {
		t.Errorf("%d models", n)
	}
	broken := w.member.post("/yaml", "text", "models: [", "action", "preview").is(http.StatusUnprocessableEntity)
	if broken.text("main form [role=alert]") == "" {
		t.Errorf("nothing says what is wrong: %s", brief(broken.Body))
	}
	w.member.post("/yaml", "action", "preview").is(http.StatusUnprocessableEntity)
	out := w.member.get("/yaml/export").is(http.StatusOK).has("new/one")
	if !strings.HasPrefix(out.Header.Get("Content-Disposition"), "attachment") {
		t.Error("the export is not a download")
	}
}

func TestTokensTeamsAndUsers(t *testing.T) {
	w := newWorld(t)
	made := w.viewer.post("/account/tokens", "name", "ci", "days", "90").is(http.StatusOK)
	secret := made.text("#secret")
	if !strings.HasPrefix(secret, "llmm_") {
		t.Fatalf("no secret: %s", brief(made.Body))
	}
	w.client("vera", secret).get("/models").is(http.StatusOK)
	w.viewer.get("/account").is(http.StatusOK).lacks(secret).has("ci")
	w.viewer.post("/account/tokens", "name", "", "days", "90").is(http.StatusUnprocessableEntity).has("The name must be")
	w.viewer.post("/account/tokens", "name", "x", "days", "-1").is(http.StatusUnprocessableEntity)
	w.viewer.get("/teams").is(http.StatusOK).has("default").lacks("other").lacks("New user")

	w.admin.post("/teams", "name", "Not A Team!").is(http.StatusUnprocessableEntity).has("The name must be")
	w.admin.post("/teams", "name", "research").to("/teams")
	w.admin.post("/users", "name", "vera", "password", "a long enough password").is(http.StatusUnprocessableEntity).has("already")
	if w.admin.post("/users", "name", "nils", "password", "short").is(http.StatusUnprocessableEntity).text("#user-password-err") == "" {
		t.Error("the error is not at the password")
	}
	w.admin.post("/users", "name", "nils", "password", "").is(http.StatusUnprocessableEntity)
	w.admin.post("/users", "name", "nils", "password", "a long enough password").to("/teams")
	nils, err := w.store.UserByName(t.Context(), "nils")
	must(t, err)
	w.admin.post("/teams/research/members", "user_id", nils.ID, "role", "").is(http.StatusBadRequest)
	w.admin.post("/teams/research/members", "user_id", nils.ID, "role", "member").to("/teams")
	w.admin.get("/teams").is(http.StatusOK).has("nils is now member of research")
	w.admin.post("/teams/research/members", "user_id", "nobody", "role", "member").is(http.StatusUnprocessableEntity)
	w.admin.post("/teams/research/members/" + nils.ID + "/remove").to("/teams")
	w.admin.post("/users/" + nils.ID + "/disable").to("/teams")
	w.client("nils", "").post("/signin", "name", "nils", "password", "a long enough password").is(http.StatusUnprocessableEntity)
	w.admin.post("/users/" + nils.ID + "/enable").to("/teams")
}
