package view

import (
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestTries(t *testing.T) {
	of := func(apis ...registry.API) registry.Runtime {
		return registry.Runtime{Endpoint: &registry.Endpoint{APIs: apis}}
	}
	for name, c := range map[string]struct {
		runtime registry.Runtime
		facts   registry.Facts
		want    string // the tabs
		path    string // of the requests to copy
	}{
		"nothing is known":                {want: "Chat", path: "/v1/chat/completions"},
		"a GGUF of an encoder":            {facts: registry.Facts{Format: registry.FormatGGUF, Architecture: "bert", Embedding: true}, want: "Embed", path: "/v1/embeddings"},
		"a masked model, not loaded":      {facts: registry.Facts{Architecture: "BertForMaskedLM", Embedding: true}, want: "Fill the gap, Embed", path: "/v1/fill-mask"},
		"a classifier, not loaded":        {facts: registry.Facts{Architecture: "DebertaV2ForSequenceClassification"}, want: "Classify, Embed", path: "/v1/classify"},
		"a classifier in ONNX":            {facts: registry.Facts{Architecture: "BertForSequenceClassification", Format: registry.FormatONNX, Embedding: true}, want: "Classify", path: "/v1/classify"},
		"an encoder in ONNX":              {facts: registry.Facts{Architecture: "BertModel", Format: registry.FormatONNX, Embedding: true}, want: "Embed", path: "/v1/embeddings"},
		"what the instance says counts":   {runtime: of(registry.APIEmbeddings), facts: registry.Facts{Architecture: "BertForMaskedLM"}, want: "Embed", path: "/v1/embeddings"},
		"a chat covers continuing a text": {runtime: of(registry.APIChat, registry.APICompletions), want: "Chat", path: "/v1/chat/completions"},
		"no chat":                         {runtime: of(registry.APICompletions), want: "Continue", path: "/v1/completions"},
		"everything":                      {runtime: of(registry.APIEmbeddings, registry.APIClassify, registry.APIFillMask, registry.APICompletions, registry.APIChat), want: "Chat, Fill the gap, Classify, Embed", path: "/v1/chat/completions"},
	} {
		p := ModelPage{Runtime: c.runtime, Facts: c.facts, BaseURL: "http://here/"}
		p.Record.ModelID = `team/it's "one"`
		var titles []string
		for _, try := range p.Tries() {
			titles = append(titles, try.Title)
		}
		if got := strings.Join(titles, ", "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		for _, s := range p.Snippets() {
			if s.ID == "curl" && !strings.Contains(s.Code, "http://here"+c.path+" ") || !strings.Contains(s.Code, `s \"one\"`) {
				t.Errorf("%s: %s\n%s", name, s.ID, s.Code)
			}
		}
	}
}
