package server

import (
	"context"
	"net/http"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// hanging is an engine that does not say whether it is here before release is closed.
type hanging struct {
	loaders.Loader
	release chan struct{}
}

func (h hanging) Info() loaders.Info {
	i := h.Loader.Info()
	i.Name, i.Title = "ollama", "Ollama"
	return i
}

func (h hanging) Check(ctx context.Context) (loaders.Version, error) {
	select {
	case <-h.release:
	case <-ctx.Done():
	}
	return loaders.Version{}, registry.Errorf(registry.CodeUnavailable, "It was never here")
}

// TestPagesOfAnEngineThatHangs: a page comes although an engine does not answer, says so, and is filled in once it does.
func TestPagesOfAnEngineThatHangs(t *testing.T) {
	release := make(chan struct{})
	w := newWorldWith(t, worldOptions{loaders: []loaders.Loader{hanging{fake.New(fake.Options{Path: fakeEngine}), release}}})
	const asked = "has not answered yet"
	w.viewer.get("/engines").is(http.StatusOK).has(asked)
	w.viewer.get("/").is(http.StatusOK)
	w.viewer.get("/engines/ollama").is(http.StatusOK).has(asked).has("Still being asked")
	w.viewer.get("/engines/fake").is(http.StatusOK)
	list, one := w.viewer.live("/ui/events?page=engines"), w.viewer.live("/ui/events?page=engine&id=ollama")
	list.until("engines", asked)
	one.until("work", asked)
	close(release) // nothing above would have come before this if a page waited for it
	list.until("engines", "It was never here")
	one.until("work", "It was never here")
	w.viewer.get("/api/v1/engines/ollama").is(http.StatusOK).has("It was never here")
}
