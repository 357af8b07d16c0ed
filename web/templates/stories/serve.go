package stories

import (
	"fmt"
	"html"
	"net/http"
	"strings"
	"time"

	"github.com/a-h/templ"

	"github.com/industriverse/llmmodelmanager/web/static"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// Handler serves the stories at /s/NAME under the console's Content-Security-Policy, a list of them at /, and as much of
// the server as looking at them needs: the jump box, a chat that echoes, an event stream that says nothing.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(static.Prefix, static.Handler())
	all := All()
	for _, s := range all {
		mux.Handle("GET /s/"+s.Name, templ.Handler(s.Page))
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!doctype html><html lang="en"><title>Storybook</title><link rel="stylesheet" href="%s"><main class="page"><h1>Storybook</h1><ul>`, static.URL("console.css"))
		for _, s := range all {
			fmt.Fprintf(w, `<li><a class="link" href="/s/%[1]s">%[1]s</a></li>`, html.EscapeString(s.Name))
		}
		fmt.Fprint(w, "</ul></main></html>")
	})
	mux.HandleFunc("GET /ui/jump", func(w http.ResponseWriter, r *http.Request) {
		_ = partials.Hits(Jump(r.URL.Query().Get("q"))).Render(r.Context(), w)
	})
	mux.HandleFunc("GET /ui/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /ui/preview", func(w http.ResponseWriter, r *http.Request) {
		_ = partials.FormPreview(seen(view.NewForm(), fitPlan(), qwenFacts())).Render(r.Context(), w)
	})
	mux.HandleFunc("GET /ui/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }) // a hub that never answers
	mux.HandleFunc("POST /v1/chat/completions", echo)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", static.CSP)
		mux.ServeHTTP(w, r)
	})
}

// echo answers as a streaming model would, slowly enough to press Stop; the answer looks like markup, to see that it
// stays text.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, word := range strings.SplitAfter("I am <b>not</b> a model, and this is what one would look like.", " ") {
		fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":%q}}]}\n\n", word)
		http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(30 * time.Millisecond):
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// Jump answers the search-or-jump box from the stories' data.
func Jump(q string) view.Jump {
	j := view.Jump{Q: q}
	for _, r := range rows() {
		if strings.Contains(strings.ToLower(r.ID), strings.ToLower(q)) && len(j.Hits) < 6 {
			j.Hits = append(j.Hits, view.Hit{Kind: "model", Title: r.ID, Note: r.Word.Label, Dot: r.Word.Class, URL: view.ModelURL(r.ID)})
		}
	}
	for _, h := range []view.Hit{{Kind: "page", Title: "Models", Note: "page", URL: "/models"}, {Kind: "page", Title: "Engines", Note: "page", URL: "/engines"}, {Kind: "action", Title: "Register a model", Note: "action", URL: "/models/new"}} {
		if strings.Contains(strings.ToLower(h.Title), strings.ToLower(q)) {
			j.Hits = append(j.Hits, h)
		}
	}
	return j
}
