// Package browser uses the console as a person does: the real program, a real engine, real weights and a real browser.
package browser

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

const (
	id       = "team-a/smollm2-135m" // with a slash: one path segment
	page     = "/models/team-a%2Fsmollm2-135m"
	name     = "ada"
	password = "correct horse battery staple"
)

// watch marks the window, which a reload would lose, and keeps what live events brought into #now, how the answer of the
// chat grew, and how often htmx asked the server.
const watch = `(() => {
	window.mark = "the same window";
	window.stages = new Set();
	window.growth = [];
	window.requests = 0;
	document.addEventListener("htmx:beforeRequest", () => { requests++; });
	document.addEventListener("htmx:sseMessage", (e) => {
		if (e.target.id === "now") for (const s of document.querySelectorAll("#now .stage b")) if (s.closest(".stage").className !== "stage ") stages.add(s.textContent);
	});
	new MutationObserver(() => {
		const answer = document.querySelector(".msg.assistant"), busy = document.querySelector("[data-chat]")?.getAttribute("aria-busy");
		if (answer && answer.textContent.length !== growth.at(-1)?.length) growth.push({ length: answer.textContent.length, busy });
	}).observe(document.documentElement, { childList: true, subtree: true, characterData: true });
})()`

const sameWindow = `window.mark === "the same window"`

func says(sel, text string) string {
	return fmt.Sprintf(`document.querySelector(%q)?.textContent.includes(%q)`, sel, text)
}

// firstAccount makes the first account of a new installation.
func firstAccount(b *tab, url string) {
	b.t.Helper()
	b.open(url)
	b.until(`location.pathname === "/welcome" && ` + says("h1", "Make the first account"))
	b.look("welcome")
	b.write("#name", name)
	b.write("#password", password)
	b.write("#again", password)
	b.click("button[type=submit]")
	b.until(`location.pathname === "/" && ` + says("h1", "Overview"))
}

func TestConsole(t *testing.T) {
	file := weights(t)
	url := serve(t)
	b := open(t)
	b.resize(shapes[0], shapes[0].height)

	// The first visit makes the first account.
	firstAccount(b, url)

	// The overview has the machine in it, and the models of the file.
	b.until(`location.pathname === "/" && ` + says("h1", "Overview"))
	b.until(`document.querySelector("#devices .device") && ` + says("#loaded", "Nothing is loaded"))
	b.look("overview-empty")

	// Register: a path that cannot be is told at its field, and what was typed stays.
	js[any](b, watch)
	b.click(`.head a[href="/models/new"]`)
	b.until(says("h1", "Register a model"))
	b.write("#f-model_id", id)
	b.click(`.choices label:has(input[value=local])`)
	b.until(`document.querySelector("input[value=local]").checked`)
	b.write("#f-source_path", "models/smollm2.gguf")
	b.do("choose the format", chromedp.SendKeys(chromedp.CSS("#f-model_format"), "GGUF"))
	b.until(`document.querySelector("#f-model_format").value === "gguf"`)
	b.write("#f-context_length", "2048")
	b.click("#save")
	b.until(says("#f-source_path-err", "absolute"))
	b.expect("status of 422") // the browser tells every answer with an error status,
	b.expect("Code 422")      // and htmx once more
	b.until(`document.activeElement.id === "f-source_path" && document.activeElement.getAttribute("aria-invalid") === "true"`)
	b.until(fmt.Sprintf(`document.querySelector("#f-model_id").value === %q && document.querySelector("#f-model_format").value === "gguf" && document.querySelectorAll(".err").length === 1`, id))
	b.look("form-error")

	// The right path: the form says what is there before anything is registered.
	b.rewrite("#f-source_path", file+"\t")
	b.until(says("#preview", "Fits"))
	b.look("form")
	b.click("#save")

	// The model's page says what a load would do.
	b.until(fmt.Sprintf(`location.pathname === %q && %s`, page, says("h1", id)))
	b.until(says("#now .plan strong", "Fits in main memory") + ` && ` + says("#head .status", "Not loaded"))
	b.look("model-not-loaded")

	// Load: the stages come by themselves.
	b.click("#act-load")
	b.until(says("#head .status", "Ready") + ` && ` + says("#now", "Ready on CPU"))
	if got := js[[]string](b, `[...stages]`); len(got) == 0 {
		t.Error("no stage was told live")
	} else {
		t.Logf("stages told live: %s", strings.Join(got, ", "))
	}
	b.until(says("#history", "Load") + ` && document.querySelectorAll("#log span").length > 5`)

	// Ask: words arrive while the answer is being written.
	b.write("#chat-text", "Write three sentences about the sea.")
	b.click("[data-send]")
	b.until(`growth.filter((g) => g.busy === "true" && g.length > 0).length >= 8`)
	b.until(`!document.querySelector("[data-chat] [data-stop]:not([hidden])") || document.querySelector(".msg.assistant").textContent.length > 600`)
	js[any](b, `document.querySelector("[data-stop]:not([hidden])")?.click()`)
	b.until(`document.querySelector("[data-chat]").getAttribute("aria-busy") === "false" && document.querySelector("[data-note]").textContent !== ""`)
	b.until(`document.querySelector(".msg.error") === null && document.querySelector(".msg.assistant").textContent.length > 20`)
	b.until(`!document.querySelector("#now").textContent.includes("being answered")`)
	t.Logf("the answer came in %d pieces", js[int](b, `growth.length`))
	b.look("model-ready")

	// The overview has it in the bar of the device that holds it, and in the list of what is loaded.
	b.click(`.side a[href="/"]`)
	b.until(says("h1", "Overview") + ` && ` + says("#loaded", id) + ` && ` + says("#loaded .status", "Ready"))
	b.until(says("#devices .legend", id) + ` && document.querySelector("#devices .bar").getAttribute("aria-label").includes("` + id + `")`)
	b.look("overview")

	// Search: the list follows what is typed.
	b.click(`.side a[href="/models"]`)
	b.until(says("h1", "Models") + ` && document.querySelectorAll("#results [data-row]").length === 3`)
	b.look("models")
	b.write("#q", "smol")
	b.until(`document.querySelectorAll("#results [data-row]").length === 1 && ` + says("#results", id) + ` && location.search === "?q=smol"`)
	b.write("#q", " no such model")
	b.until(says("#results", "No model matches"))
	b.look("models-none")
	b.rewrite("#q", "smol")
	b.until(`document.querySelectorAll("#results [data-row]").length === 1`)

	// Unload, and its status follows live.
	js[any](b, `requests = 0`)
	b.press("#results a.name", func() {
		// Leaving the search box must not ask again: the answer would take the link away from under the finger.
		if n := js[int](b, `requests`); n != 0 {
			t.Errorf("pressing a link in the list set off %d requests", n)
		}
	})
	b.until(fmt.Sprintf(`location.pathname === %q && %s`, page, says("h1", id)))
	b.click("#act-unload")
	b.until(says("#head .status", "Not loaded") + ` && ` + says("#now", "Fits in main memory") + ` && ` + says("#history", "came back"))
	if !js[bool](b, sameWindow) {
		t.Error("the page was loaded anew somewhere between the form and the unload")
	}

	// The other rooms.
	for _, p := range []struct{ path, title string }{{"/operations", "Activity"}, {"/engines", "Engines"}, {"/teams", "Teams"}, {"/yaml", "YAML"}, {"/account", "Account"}, {page + "/edit", "Edit"}} {
		b.open(url + p.path)
		b.until(fmt.Sprintf(`document.title.includes(%q) || %s`, p.title, says("h1", p.title)))
		b.look(strings.ToLower(p.title))
	}
	b.open(url + "/operations")
	b.click("#past a.name")
	b.until(`location.pathname.startsWith("/operations/") && document.querySelector("#operation .stages")`)
	b.look("operation")
	b.open(url + "/models/nobody")
	b.until(says("main", "no model"))
	b.expect("status of 404")
	b.look("error")

	// Out.
	b.open(url)
	b.click(`.side form[action="/signout"] button`)
	b.until(`location.pathname === "/signin" && ` + says("h1", "Sign in"))
	b.look("signin")
	b.open(url + "/models")
	b.until(`location.pathname === "/signin"`)
	b.quiet()

	// Were the policy broken, this test would know: here it is.
	js[any](b, `document.body.setAttribute("style", "color: red")`)
	b.expect("Content Security Policy")
}
