package manager

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
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

// TestTokenizerWithinRoots: the tokenizer of a model of any source lies within the folders, or the model is neither
// registered nor planned nor loaded.
func TestTokenizerWithinRoots(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	inside, outside, empty := t.TempDir(), t.TempDir(), t.TempDir()
	for _, dir := range []string{inside, outside} {
		if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link, holds := filepath.Join(empty, "link"), filepath.Join(empty, "folder")
	for _, err := range []error{os.Symlink(outside, link), os.Mkdir(holds, 0o700), os.Symlink(filepath.Join(outside, "tokenizer.json"), filepath.Join(holds, "tokenizer.json"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(path string) func(*registry.Model) { return func(m *registry.Model) { m.TokenizerPath = path } }
	r.fetchable("anywhere", "org/a", at(outside)) // there are no folders yet
	if _, err := r.SetRootFolders(r.ctx(), []string{inside, empty, r.dir}); err != nil {
		t.Fatal(err)
	}
	r.fetchable("hub", "org/m", at(inside))
	r.fetchable("later", "org/l", at(filepath.Join(inside, "later"))) // it is not there yet
	model := registry.Model{ModelID: "bad", SourceType: registry.SourceHuggingFace, SourcePath: "org/m", ModelFormat: registry.FormatGGUF, Engine: fake.Name}
	for kind, source := range map[registry.SourceType]string{registry.SourceHuggingFace: "org/m", registry.SourceLocal: r.weights(), registry.SourceS3: "s3://bucket/m"} {
		for _, path := range []string{outside, link, holds, filepath.Join(outside, "tokenizer.json"), filepath.Join(link, "tokenizer.json"), outside + "/nothing", inside + "/../" + filepath.Base(outside)} {
			model.SourceType, model.SourcePath, model.TokenizerPath = kind, source, path
			_, _, err := r.Register(r.ctx(), model, PutOptions{Actor: "ada", Admin: true})
			if e := registry.AsError(err); e == nil || e.Code != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != "tokenizer_path" {
				t.Errorf("%s with %s: %v", kind, path, err)
			}
		}
	}
	res, err := r.Import(r.ctx(), &manifest.Document{Entries: []manifest.Entry{{Model: model}}}, PutOptions{Actor: "ada"}, true, nil)
	if err != nil || len(res.Issues) != 1 || res.Issues[0].Field != "tokenizer_path" {
		t.Errorf("imported: %+v %v", res, err)
	}
	refused := func(id string) {
		t.Helper()
		if p, err := r.Plan(r.ctx(), id, ""); err != nil || p.Problem == nil || p.Problem.Code != registry.CodeInvalid || len(p.Problem.Fields) != 1 || p.Problem.Fields[0].Field != "tokenizer_path" {
			t.Errorf("%s is planned: %+v %v", id, p.Problem, err)
		}
		op := r.end(r.mustLoad(id, LoadOptions{Actor: "ada"}), registry.OperationFailed)
		if op.Error == nil || op.Error.Code != registry.CodeInvalid {
			t.Errorf("the load of %s: %+v", id, op.Error)
		}
	}
	refused("anywhere")
	if p, err := r.Plan(r.ctx(), "hub", ""); err != nil || p.Problem != nil {
		t.Errorf("%+v %v", p.Problem, err)
	}
	if p, err := r.Plan(r.ctx(), "later", ""); err != nil || p.Problem == nil || p.Problem.Code != registry.CodeNotFound {
		t.Errorf("what is not there: %+v %v", p.Problem, err)
	}
	r.ready("hub")
	r.end(r.unload("hub"), registry.OperationSucceeded)
	// The folders change, while the files of a model are on their way.
	gate := d.Hold("org/slow")
	r.fetchable("slow", "org/slow", at(inside))
	op := r.mustLoad("slow", LoadOptions{Actor: "ada"})
	r.until("slow", "fetching", func(rt registry.Runtime) bool { return rt.Artifact == registry.ArtifactFetching })
	if _, err := r.SetRootFolders(r.ctx(), []string{r.dir}); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if op := r.end(op, registry.OperationFailed); op.Error == nil || op.Error.Code != registry.CodeInvalid {
		t.Errorf("the load during which the folders changed: %+v", op.Error)
	}
	refused("hub")
}

// TestTokenizerOfALoadedModelIsKept: while it is loaded, also when tokenizer_path names another by now.
func TestTokenizerOfALoadedModelIsKept(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	named := func(path string) func(*registry.Model) { return func(m *registry.Model) { m.TokenizerPath = path } }
	r.fetchable("m", "org/m", named("org/words"))
	r.ready("m")
	r.fetchable("m", "org/m", named("org/other"))
	r.known("m", "looked at again", func(a registry.ModelArtifact) bool { return a.Tokenizer != nil && a.Tokenizer.Path == "org/other" })
	if _, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/words", "t1", "ada", ""); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("it could be deleted while it is in use: %v", err)
	}
	r.end(r.unload("m"), registry.OperationSucceeded)
	if _, err := r.DeleteStored(r.ctx(), registry.SourceHuggingFace, "org/words", "t1", "ada", ""); err != nil {
		t.Errorf("nobody uses it any more: %v", err)
	}
}
