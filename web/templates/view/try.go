package view

import (
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Try is one thing that can be asked of a model on its page.
type Try struct {
	API                  registry.API
	Title, Label, Holder string // the tab's, the box's for those who do not see it, and what stands in the box until somebody types
	Button, Hint         string
	Lines                int
}

// Tab is the name of the tab's pane in the style sheet.
func (t Try) Tab() string { return "t-" + string(t.API) }

// tries are all that can be asked, in the order of the tabs. Completing a text is offered where there is no chat.
var tries = []Try{
	{API: registry.APIChat, Title: "Chat"},
	{API: registry.APICompletions, Title: "Continue", Label: "Text to continue", Holder: "Once upon a time", Button: "Continue", Lines: 3},
	{API: registry.APIFillMask, Title: "Fill the gap", Label: "Text with a gap", Holder: "The capital of France is [MASK].", Button: "Fill", Lines: 2,
		Hint: "The gap is [MASK]; some models write it <mask>."},
	{API: registry.APIClassify, Title: "Classify", Label: "Text to classify", Holder: "I like it.", Button: "Classify", Lines: 2},
	{API: registry.APIEmbeddings, Title: "Embed", Label: "Texts to embed, one on each line", Holder: "A cat sleeps on the sofa\nA kitten naps on the couch\nThe market fell today", Button: "Embed", Lines: 3,
		Hint: "Several lines are compared with the first."},
}

// APIs are the kinds of request that the model answers: as its instance says, else as its files let one expect.
func (p ModelPage) APIs() []registry.API {
	if e := p.Runtime.Endpoint; e != nil && len(e.APIs) > 0 {
		return e.APIs
	}
	// An ONNX model has the outputs that it was exported with, and no others.
	embeds := []registry.API{registry.APIEmbeddings}
	if p.Facts.Format == registry.FormatONNX {
		embeds = nil
	}
	switch {
	case p.Facts.Format != registry.FormatGGUF && strings.HasSuffix(p.Facts.Architecture, "ForMaskedLM"):
		return append([]registry.API{registry.APIFillMask}, embeds...)
	case p.Facts.Format != registry.FormatGGUF && strings.HasSuffix(p.Facts.Architecture, "ForSequenceClassification"):
		return append([]registry.API{registry.APIClassify}, embeds...)
	case p.Facts.Embedding:
		return []registry.API{registry.APIEmbeddings}
	}
	return []registry.API{registry.APIChat}
}

// Tries are what can be asked of the model on its page.
func (p ModelPage) Tries() []Try {
	apis := p.APIs()
	chats := slices.Contains(apis, registry.APIChat)
	var out []Try
	for _, t := range tries {
		if slices.Contains(apis, t.API) && (t.API != registry.APICompletions || !chats) {
			out = append(out, t)
		}
	}
	return out
}

// Snippet is a piece of code to copy.
type Snippet struct {
	ID, Title, Code string
}

// Snippets are the ways to send the model a request of the first kind that can be tried.
func (p ModelPage) Snippets() []Snippet {
	base := strings.TrimSuffix(p.BaseURL, "/") + "/v1/"
	model := quoteJSON(p.ID())
	curl := func(path, more string) Snippet {
		return Snippet{"curl", "curl", "curl " + base + path + " \\\n  -H \"Authorization: Bearer $LLMM_TOKEN\" \\\n  -H \"Content-Type: application/json\" \\\n  -d " + quoteShell(`{"model": `+model+`, `+more+`}`)}
	}
	openai := func(call, more, show string) Snippet {
		return Snippet{"python", "Python", "import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=\"" + strings.TrimSuffix(base, "/") + "\",\n                api_key=os.environ[\"LLMM_TOKEN\"])\n" +
			"r = client." + call + "(\n    model=" + model + ",\n    " + more + ")\nprint(" + show + ")"}
	}
	// What OpenAI has no request for its client cannot send.
	requests := func(path, more, show string) Snippet {
		return Snippet{"python", "Python", "import os\nimport requests\n\nr = requests.post(\"" + base + path + "\",\n    headers={\"Authorization\": \"Bearer \" + os.environ[\"LLMM_TOKEN\"]},\n    json={\"model\": " +
			model + ",\n          " + more + "})\nprint(" + show + ")"}
	}
	first := registry.APIChat
	if t := p.Tries(); len(t) > 0 {
		first = t[0].API
	}
	switch first {
	case registry.APICompletions:
		return []Snippet{curl("completions", `"prompt": "Once upon a time", "max_tokens": 50`), openai("completions.create", `prompt="Once upon a time", max_tokens=50`, "r.choices[0].text")}
	case registry.APIFillMask:
		return []Snippet{curl("fill-mask", `"input": "The capital of France is [MASK]."`), requests("fill-mask", `"input": "The capital of France is [MASK]."`, `r.json()["data"][0]["masks"]`)}
	case registry.APIClassify:
		return []Snippet{curl("classify", `"input": "I like it."`), requests("classify", `"input": "I like it."`, `r.json()["data"][0]["label"]`)}
	case registry.APIEmbeddings:
		return []Snippet{curl("embeddings", `"input": "hello"`), openai("embeddings.create", `input="hello"`, "r.data[0].embedding[:5]")}
	case registry.APIChat:
	}
	return []Snippet{curl("chat/completions", "\n       "+`"messages": [{"role": "user", "content": "Hello"}]`),
		openai("chat.completions.create", `messages=[{"role": "user", "content": "Hello"}]`, "r.choices[0].message.content")}
}
