package external

import (
	"context"
	"net/http"
	"regexp"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// questions are the smallest requests of each kind that a service can be asked. A few tokens are the price of knowing.
var questions = []struct {
	api  registry.API
	path string
	body func(model string) any
}{
	{registry.APIChat, "/v1/chat/completions", func(m string) any {
		return map[string]any{"model": m, "messages": []any{map[string]any{"role": "user", "content": "Hi"}}, "max_tokens": 1}
	}},
	{registry.APICompletions, "/v1/completions", func(m string) any { return map[string]any{"model": m, "prompt": "Hi", "max_tokens": 1} }},
	{registry.APIEmbeddings, "/v1/embeddings", func(m string) any { return map[string]any{"model": m, "input": "Hi"} }},
}

// apis asks the model for an answer of each kind and returns those that it gives.
func (c *client) apis(ctx context.Context, model string) ([]registry.API, error) {
	yes := make([]bool, len(questions))
	errs := make([]error, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() {
			r, err := c.ask(ctx, http.MethodPost, q.path, q.body(model))
			switch {
			case err != nil:
				errs[i] = err
			case answersKind(r):
				yes[i] = true
			default:
				errs[i] = c.refused(r, q.path)
			}
		})
	}
	wg.Wait()
	var out []registry.API
	for i, q := range questions {
		if yes[i] {
			out = append(out, q.api)
		}
	}
	if len(out) == 0 {
		return nil, errs[0] // why it does not chat says most about what is wrong
	}
	return out, nil
}

// The words of services that know a route and do not serve this model on it: vLLM, llama.cpp, Ollama, OpenAI. And those of
// a model that would have answered, had we not given max_tokens.
var (
	notThisKind = regexp.MustCompile(`(?i)not support|not a chat model|not supported|unsupported|only support|is disabled|not an embedding|no such|not exist|not found`)
	limitIsOld  = regexp.MustCompile(`(?i)max_completion_tokens|max_tokens`)
)

// answersKind tells from the answer to a question whether the model answers such questions.
func answersKind(r reply) bool {
	switch {
	case r.status == http.StatusOK, r.status == http.StatusTooManyRequests: // the latter knows what was asked, and would answer later
		return true
	case r.status == http.StatusBadRequest || r.status == http.StatusUnprocessableEntity:
		m := message(r.body)
		return limitIsOld.MatchString(m) || m != "" && !notThisKind.MatchString(m)
	}
	return false
}
