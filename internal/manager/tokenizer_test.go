package manager

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// given is a loader that remembers what it was given.
type given struct {
	loaders.Loader
	tokenizer chan string
}

func (g given) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	g.tokenizer <- spec.Model.TokenizerPath
	return g.Loader.Load(ctx, spec, report)
}

// TestTokenizerOfAnotherPlace: it is shown before it is fetched, fetched with the model, given to the engine as a folder,
// kept while the model needs it, and verified with it.
func TestTokenizerOfAnotherPlace(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	depot := withDepot(&d)
	seen := make(chan string, 1)
	r := newRig(t, func(o *Options) {
		depot(o)
		o.Loaders = []loaders.Loader{given{o.Loaders[0], seen}}
	})
	named := func(m *registry.Model) { m.TokenizerPath = "org/words" }
	m := registry.Model{SourceType: registry.SourceHuggingFace, SourcePath: "org/m"}
	named(&m)
	l, err := r.LookUp(r.ctx(), m)
	if err != nil || l.Tokenizer == nil || l.Tokenizer.Path != "org/words" || l.Tokenizer.Bytes == 0 {
		t.Fatalf("%+v %v", l.Tokenizer, err)
	}
	r.fetchable("m", "org/m", named)
	r.ready("m")
	if got := <-seen; got != d.Folder("org/words", "t1") {
		t.Errorf("the engine was given the tokenizer %q", got)
	}
	a, err := r.Get(r.ctx(), "m")
	if err != nil || a.Artifact == nil || a.Artifact.Tokenizer == nil || a.Artifact.Tokenizer.Folder != d.Folder("org/words", "t1") || a.TokenizerPath != "org/words" {
		t.Errorf("known: %+v %v", a.Artifact, err)
	}
	if s, err := r.StoredArtifact(r.ctx(), registry.SourceHuggingFace, "org/words", "t1"); err != nil || len(s.Models) != 1 || !s.InUse {
		t.Errorf("stored: %+v %v", s, err)
	}
	if _, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/words", "t1", "ada", ""); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("it could be deleted while it is in use: %v", err)
	}
	r.end(r.unload("m"), registry.OperationSucceeded)
	verify := func(want registry.OperationState) registry.Operation {
		t.Helper()
		op, err := r.Fetch(r.ctx(), "m", FetchOptions{Actor: "ada", Verify: true})
		if err != nil {
			t.Fatal(err)
		}
		return r.end(op, want)
	}
	verify(registry.OperationSucceeded)
	if err := checkCompanion(r.ctx(), d, a.Artifact.Artifact(), func(registry.Progress) {}); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(a.Artifact.Tokenizer.Folder, "weights.gguf"), []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkCompanion(r.ctx(), d, a.Artifact.Artifact(), func(registry.Progress) {}); err == nil || !strings.Contains(err.Error(), "org/words") {
		t.Errorf("a damaged tokenizer: %v", err)
	}
}
