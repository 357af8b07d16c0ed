//go:build e2e

package stories

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/industriverse/llmmodelmanager/web/templates/partials"
)

// browser opens a Chromium tab. go test -tags e2e ./web/templates/stories
func browser(t *testing.T) context.Context {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:len(chromedp.DefaultExecAllocatorOptions):len(chromedp.DefaultExecAllocatorOptions)], chromedp.NoSandbox, chromedp.DisableGPU)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatal(err)
	}
}

// until waits for a JavaScript expression to become true.
func until(t *testing.T, ctx context.Context, expr string) {
	t.Helper()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expr, chromedp.WithPollingTimeout(8*time.Second))); err != nil {
		state, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("document.activeElement.outerHTML.slice(0, 300) + document.activeElement.value + document.querySelector(\"#hits\")?.outerHTML.slice(0,600)"))
		t.Fatalf("never true: %s (%v); focus is on %s", expr, err, state)
	}
}

func keys(t *testing.T, ctx context.Context, k string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.KeyEvent(k)); err != nil {
		t.Fatal(err)
	}
}

func TestKeysAndJump(t *testing.T) {
	s := httptest.NewServer(Handler())
	defer s.Close()
	defer s.CloseClientConnections()
	ctx := browser(t)
	open(t, ctx, s.URL+"/s/models")
	until(t, ctx, `typeof htmx === "object" && document.querySelector("[data-theme-toggle]").title !== ""`)

	keys(t, ctx, "j")
	until(t, ctx, `document.activeElement.textContent === "meta-llama/Llama-3.3-70B-Instruct"`)
	keys(t, ctx, "j")
	until(t, ctx, `document.activeElement.textContent === "qwen3-8b"`)
	keys(t, ctx, "k")
	until(t, ctx, `document.activeElement.textContent.startsWith("meta-llama")`)

	keys(t, ctx, "?")
	until(t, ctx, `document.getElementById("keys").open`)
	keys(t, ctx, "\x1b")
	until(t, ctx, `!document.getElementById("keys").open`)

	keys(t, ctx, "/")
	until(t, ctx, `document.getElementById("jump").open && document.activeElement.id === "jump-q"`)
	// The protocol sends the character of a key apart from the key, so that the slash lands in the box, which it does
	// not under a hand. What is typed begins in an empty box, opened by a click.
	keys(t, ctx, "\x1b")
	until(t, ctx, `!document.getElementById("jump").open`)
	if err := chromedp.Do(ctx, chromedp.Click(".side [data-jump]")); err != nil {
		t.Fatal(err)
	}
	until(t, ctx, `document.getElementById("jump").open && document.activeElement.value === ""`)
	keys(t, ctx, "bge")
	until(t, ctx, `document.querySelectorAll("#hits a").length === 1 && document.querySelector("#hits a").textContent.includes("bge-m3")`)
	keys(t, ctx, "\x1b")
	until(t, ctx, `!document.getElementById("jump").open`)
}

func TestThemeIsRemembered(t *testing.T) {
	s := httptest.NewServer(Handler())
	defer s.Close()
	defer s.CloseClientConnections()
	ctx := browser(t)
	open(t, ctx, s.URL+"/s/account")
	until(t, ctx, `document.querySelector("[data-theme-toggle]").title === "Theme: automatic"`)
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`document.querySelector("[data-theme-toggle]").click(), true`)); err != nil {
		t.Fatal(err)
	}
	open(t, ctx, s.URL+"/s/engines")
	until(t, ctx, `document.documentElement.dataset.theme === "light"`)
}

func TestChatStreamsAsText(t *testing.T) {
	s := httptest.NewServer(Handler())
	defer s.Close()
	defer s.CloseClientConnections()
	ctx := browser(t)
	open(t, ctx, s.URL+"/s/model-ready")
	if err := chromedp.Do(ctx, chromedp.SendKeys("#chat-text", "Who are you?\r")); err != nil {
		t.Fatal(err)
	}
	until(t, ctx, `document.querySelector(".msg.assistant")?.textContent === "I am <b>not</b> a model, and this is what one would look like."`)
	until(t, ctx, `document.querySelector(".msgs b") === null && document.querySelector("[data-note]").textContent.includes("tokens/s")`)
	until(t, ctx, `document.querySelector("[data-stop]").hidden && document.activeElement.id === "chat-text"`)
}

// A live update of a row keeps the focus that is on it, and changes what it says.
func TestLiveRowsKeepFocus(t *testing.T) {
	r := rows()[1]
	r.Word.Label = "Asleep for the test"
	var row bytes.Buffer
	if err := partials.ModelRow(r, true).Render(context.Background(), &row); err != nil {
		t.Fatal(err)
	}
	send := make(chan struct{})
	stories := Handler()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path != "/ui/events" {
			stories.ServeHTTP(w, q)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(w).Flush()
		select {
		case <-send:
			fmt.Fprintf(w, "event: rows\ndata: %s\n\n", strings.ReplaceAll(row.String(), "\n", "\ndata: "))
			http.NewResponseController(w).Flush()
		case <-q.Context().Done():
			return
		}
		<-q.Context().Done()
	}))
	defer s.Close()
	defer s.CloseClientConnections()
	ctx := browser(t)
	open(t, ctx, s.URL+"/s/models")
	until(t, ctx, `document.querySelector("[data-theme-toggle]").title !== ""`)
	keys(t, ctx, "j")
	keys(t, ctx, "j")
	until(t, ctx, `document.activeElement.textContent === "qwen3-8b"`)
	close(send)
	until(t, ctx, `document.activeElement.textContent === "qwen3-8b" && document.activeElement.closest("tr").textContent.includes("Asleep for the test")`)
}
