package manager

import (
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// A model that was unloaded because the server stopped has not lost its engine, and the log does not say so at the next
// start. One whose engine was killed meanwhile has.
func TestWhatTheNextStartSaysOfAStop(t *testing.T) {
	t.Parallel()
	const lost, stopped = "no longer runs", "was unloaded when the server stopped"
	r := rigIn(t, t.TempDir(), nil)
	r.start()
	r.model("m", nil)
	r.ready("m")
	r.close(false)

	r.start()
	if got := r.seen.messages(lost); len(got) > 0 {
		t.Errorf("after a clean stop: %q", got)
	}
	if got := r.seen.messages(stopped); len(got) != 1 {
		t.Errorf("after a clean stop nothing is said of it: %q", got)
	}
	r.ready("m")
	r.unload("m")
	r.state("m", registry.RuntimeStopped)
	r.close(false)

	r.start()
	if got := append(r.seen.messages(lost), r.seen.messages(stopped)...); len(got) > 0 {
		t.Errorf("of a model that was not loaded: %q", got)
	}
	r.ready("m")
	r.close(true)
	prefix := r.store.InstallationID()
	tagged, err := process.FindTagged(prefix)
	if err != nil || len(tagged) == 0 {
		t.Fatalf("the engine was not left running: %v", err)
	}
	for _, p := range tagged {
		if err := process.KillGroup(r.ctx(), prefix, p); err != nil {
			t.Fatal(err)
		}
	}

	r.start()
	defer r.close(false)
	if got := r.seen.messages(lost); len(got) != 1 {
		t.Errorf("the engine was killed, and the log says nothing: %q", got)
	}
}
