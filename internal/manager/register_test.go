package manager

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

const yamlFile = `# Our models. Ask ada before you change one.
models:
  - model_id: first   # the oldest
    source_type: local
    source_path: /srv/models/first.gguf
    model_format: gguf
  - model_id: bad
    source_type: nowhere
    source_path: /srv/models/bad.gguf
    model_format: gguf

  # kept for the demo
  - model_id: second
    source_type: huggingface
    source_path: org/second
    model_format: safetensors
    custom_loader_params:
      auth_token: s3cret
`

// withFile starts a manager on a models file, in dir, which a second one may use after it.
func withFile(t *testing.T, dir, text string) *rig {
	t.Helper()
	if text != "" {
		if err := os.WriteFile(filepath.Join(dir, "models.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := rigIn(t, dir, nil)
	r.start()
	return r
}

func (r *rig) file() string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "models.yaml"))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// written waits until nothing waits to be written to the file.
func (r *rig) written() {
	r.t.Helper()
	for r.ManifestStatus(r.ctx()).Pending > 0 && r.ctx().Err() == nil {
		r.AwaitManifest(r.ctx())
	}
}

func names(items []Listed) []string {
	out := []string{}
	for _, it := range items {
		out = append(out, it.ModelID)
	}
	return out
}

func (r *rig) listed() []string {
	r.t.Helper()
	page, err := r.List(r.ctx(), store.ListQuery{})
	if err != nil {
		r.t.Fatal(err)
	}
	return names(page.Items)
}

func TestFirstImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := withFile(t, dir, yamlFile)
	if diff := cmp.Diff([]string{"first", "second"}, r.listed()); diff != "" {
		t.Error(diff)
	}
	st := r.ManifestStatus(r.ctx())
	if len(st.Issues) != 1 || st.Issues[0].Line != 8 || st.Issues[0].Column == 0 || !strings.Contains(st.Issues[0].Field, "source_type") || st.Err != "" {
		t.Errorf("%+v", st)
	}
	if got := r.file(); got != yamlFile {
		t.Errorf("an import changed the file:\n%s", got)
	}
	if err := r.Delete(r.ctx(), "first", 0, "ada"); err != nil {
		t.Fatal(err)
	}
	r.written()
	r.close(false)

	// The next start takes nothing from the file by itself, and still tells what is wrong with it.
	r = withFile(t, dir, strings.Replace(r.file(), "models:\n", "models:\n  - {model_id: new, source_type: local, source_path: /srv/n.gguf, model_format: gguf}\n", 1))
	defer r.close(false)
	if diff := cmp.Diff([]string{"second"}, r.listed()); diff != "" {
		t.Error(diff)
	}
	if st := r.ManifestStatus(r.ctx()); len(st.Issues) != 1 {
		t.Errorf("%+v", st)
	}
}

func TestAFileThatCannotBeReadBlocksNothing(t *testing.T) {
	t.Parallel()
	r := withFile(t, t.TempDir(), "models: [\n")
	defer r.close(false)
	if st := r.ManifestStatus(r.ctx()); st.Err == "" {
		t.Errorf("%+v", st)
	}
	r.model("m", nil, func(m *registry.Model) { m.CustomLoaderParams = nil })
	if st := r.ManifestStatus(r.ctx()); st.Pending != 1 || st.Err == "" {
		t.Errorf("the change does not wait: %+v", st)
	}
	if r.file() != "models: [\n" {
		t.Error("the file was changed")
	}
	if err := os.WriteFile(filepath.Join(r.dir, "models.yaml"), []byte("models: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.written()
	if got := r.file(); !strings.Contains(got, `model_id: "m"`) {
		t.Errorf("not written once the file was mended:\n%s", got)
	}
	if st := r.ManifestStatus(r.ctx()); st.Err != "" {
		t.Errorf("the problem stays: %+v", st)
	}
}

// What the file does not take is told, waits in the registry, and keeps nothing else from the file.
func TestARefusedChangeIsSetAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const text = yamlFile + "  - {model_id: Third, source_type: local, source_path: /srv/3.gguf, model_format: gguf}\n" // by hand, and not imported
	r := withFile(t, dir, yamlFile)
	if err := os.WriteFile(filepath.Join(dir, "models.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	register := func(id string) {
		t.Helper()
		m := registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: "/srv/models/x.gguf", ModelFormat: registry.FormatGGUF}
		if _, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "ada", Persist: true}); err != nil {
			t.Fatal(err)
		}
	}
	aside := func() string {
		t.Helper()
		var out []string
		for _, f := range r.ManifestStatus(r.ctx()).Refused {
			if !strings.Contains(f.Msg, "only in case") {
				t.Errorf("the reason of %s: %s", f.Field, f.Msg)
			}
			out = append(out, f.Field)
		}
		return strings.Join(out, " ")
	}
	register("third")
	register("fourth")
	r.written()
	if st := r.ManifestStatus(r.ctx()); aside() != "third" || st.Err != "" || st.Pending != 0 {
		t.Errorf("%+v", st)
	}
	if got := r.file(); !strings.Contains(got, "model_id: fourth\n") || strings.Contains(got, "third") {
		t.Errorf("the file:\n%s", got)
	}
	register("fifth")
	r.written()
	if got := r.file(); aside() != "third" || !strings.Contains(got, "model_id: fifth\n") {
		t.Errorf("refused %q, the file:\n%s", aside(), got)
	}
	r.close(false)

	r = withFile(t, dir, "") // it is not forgotten by a restart
	r.written()
	if aside() != "third" {
		t.Errorf("after a restart: %q", aside())
	}
	if err := os.WriteFile(filepath.Join(dir, "models.yaml"), []byte(strings.Replace(r.file(), "model_id: Third", "model_id: another", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	r.AwaitManifest(r.ctx()) // sees that somebody has mended the file
	if got := r.file(); aside() != "" || !strings.Contains(got, "model_id: third\n") {
		t.Errorf("refused %q, the file:\n%s", aside(), got)
	}
	if err := os.WriteFile(filepath.Join(dir, "models.yaml"), []byte(strings.Replace(r.file(), "model_id: another", "model_id: first-2", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	register("FIRST-2")
	r.written()
	if aside() != "FIRST-2" {
		t.Errorf("refused %q", aside())
	}
	if err := r.Delete(r.ctx(), "FIRST-2", 0, "ada"); err != nil {
		t.Fatal(err)
	}
	r.written()
	if st := r.ManifestStatus(r.ctx()); len(st.Refused) != 0 || st.Pending != 0 {
		t.Errorf("a model that is gone is still refused: %+v", st)
	}
	r.close(false)
}

func TestRegisterWritesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := withFile(t, dir, yamlFile)
	sub := r.Bus.Subscribe(events.Filter{})
	m := registry.Model{ModelID: "third", SourceType: registry.SourceLocal, SourcePath: "/srv/models/third.gguf", ModelFormat: registry.FormatGGUF}
	rec, created, err := r.Register(r.ctx(), m, PutOptions{Actor: "ada", Persist: true})
	if err != nil || !created || !rec.Persist || rec.Version != 1 || rec.CreatedBy != "ada" {
		t.Fatalf("%+v %v %v", rec, created, err)
	}
	r.written()
	// The redacted secret of a form stands for the one that is stored.
	second, err := r.Get(r.ctx(), "second")
	if err != nil {
		t.Fatal(err)
	}
	edited := second.Redacted()
	if edited.CustomLoaderParams["auth_token"] != registry.Redaction {
		t.Fatalf("%+v", edited)
	}
	edited.Description = "now with a description"
	rec, created, err = r.Register(r.ctx(), edited, PutOptions{Actor: "bob", Persist: true, IfVersion: second.Version})
	if err != nil || created || rec.CustomLoaderParams["auth_token"] != "s3cret" || rec.UpdatedBy != "bob" {
		t.Fatalf("%+v %v %v", rec, created, err)
	}
	if _, _, err = r.Register(r.ctx(), edited, PutOptions{Actor: "eve", Persist: true, IfVersion: second.Version}); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("an edit of an old version: %v", err)
	}
	if _, _, err = r.Register(r.ctx(), edited, PutOptions{Actor: "eve", IfAbsent: true}); registry.CodeOf(err) != registry.CodeConflict {
		t.Errorf("a new one that is there: %v", err)
	}
	if _, _, err = r.Register(r.ctx(), registry.Model{ModelID: "../x"}, PutOptions{}); registry.CodeOf(err) != registry.CodeInvalid || len(registry.AsError(err).Fields) < 3 {
		t.Errorf("an invalid one: %v", err)
	}
	m.ModelID = "passing"
	if _, _, err = r.Register(r.ctx(), m, PutOptions{Actor: "ada"}); err != nil {
		t.Fatal(err)
	}
	r.written()
	got := r.file()
	for _, want := range []string{"# Our models. Ask ada before you change one.\n", "model_id: first   # the oldest\n", "# kept for the demo\n", "source_type: nowhere\n", "auth_token: s3cret\n",
		"model_id: third\n", "now with a description"} {
		if !strings.Contains(got, want) {
			t.Errorf("the file lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "passing") || strings.Contains(got, "redacted") || strings.Index(got, "second") > strings.Index(got, "third") {
		t.Errorf("the file:\n%s", got)
	}
	// Nobody is told the secret.
	kinds := map[registry.EventKind]int{}
	for ended, cancel := context.WithCancel(r.ctx()); ; {
		cancel()
		batch, err := sub.Next(ended)
		if err != nil {
			break
		}
		for _, e := range batch {
			kinds[e.Kind]++
			if strings.Contains(string(e.Body), "s3cret") {
				t.Errorf("an event tells a secret: %s", e.Body)
			}
		}
	}
	sub.Close()
	if kinds[registry.EventModelRegistered] != 2 || kinds[registry.EventModelUpdated] != 1 {
		t.Errorf("events: %v", kinds)
	}
	var out strings.Builder
	if err := r.Export(r.ctx(), &out, nil); err != nil || strings.Contains(out.String(), "s3cret") || !strings.Contains(out.String(), "third") {
		t.Errorf("export: %v\n%s", err, out.String())
	}
	r.close(false)

	r = withFile(t, dir, "")
	defer r.close(false)
	if diff := cmp.Diff([]string{"first", "second", "third"}, r.listed()); diff != "" {
		t.Errorf("after a restart: %s", diff)
	}
}

// A change that was acknowledged and not yet written reaches the file at the next start.
func TestPendingWriteSurvivesARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := withFile(t, dir, yamlFile)
	r.AwaitManifest(r.ctx()) // the writer has seen what there was at the start
	model := registry.Model{ModelID: "late", SourceType: registry.SourceLocal, SourcePath: "/srv/late.gguf", ModelFormat: registry.FormatGGUF}
	if _, _, err := r.store.PutModel(r.ctx(), model, store.PutOptions{Actor: "ada", Persist: true, ToManifest: true}); err != nil { // as Register does before it is killed
		t.Fatal(err)
	}
	if r.ManifestStatus(r.ctx()).Pending != 1 || strings.Contains(r.file(), "late") {
		t.Fatal("it is written already")
	}
	r.closeAtOnce()
	r = withFile(t, dir, "")
	defer r.close(false)
	r.written()
	if got := r.file(); !strings.Contains(got, "model_id: late\n") || !strings.Contains(got, "# kept for the demo") {
		t.Errorf("the file:\n%s", got)
	}
}

// closeAtOnce ends a manager that is given no time: nothing more is written.
func (r *rig) closeAtOnce() {
	r.t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.Close(ended, true) // it says that the time was over, or not
	r.work.Wait()
	r.Bus.Close()
	if err := r.store.Close(); err != nil {
		r.t.Error(err)
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	r := withFile(t, t.TempDir(), yamlFile)
	defer r.close(false)
	doc, err := manifest.Parse([]byte(`models:
  - {model_id: first, source_type: local, source_path: /srv/models/first.gguf, model_format: gguf}
  - {model_id: second, source_type: huggingface, source_path: org/second, model_format: safetensors, tags: [new], custom_loader_params: {auth_token: "[redacted]"}}
  - {model_id: third, source_type: local, source_path: /srv/models/third.gguf, model_format: gguf}
  - {model_id: FIRST, source_type: local, source_path: /srv/models/first.gguf, model_format: gguf, team: a}
  - {model_id: theirs, source_type: local, source_path: /srv/models/x.gguf, model_format: gguf, team: others}
  - {model_id: wrong}
`))
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(team string) error {
		if team == "others" {
			return registry.Errorf(registry.CodeForbidden, "you may not register for the team %s", team)
		}
		return nil
	}
	before := r.file()
	dry, err := r.Import(r.ctx(), doc, PutOptions{Actor: "ada", Persist: true}, true, allowed)
	if err != nil {
		t.Fatal(err)
	}
	if r.file() != before || len(r.listed()) != 2 {
		t.Error("a dry run changed something")
	}
	real, err := r.Import(r.ctx(), doc, PutOptions{Actor: "ada", Persist: true}, false, allowed)
	if err != nil {
		t.Fatal(err)
	}
	for name, res := range map[string]ImportResult{"dry run": dry, "import": real} {
		if diff := cmp.Diff([][]string{{"third"}, {"second"}, {"first"}}, [][]string{res.Added, res.Changed, res.Unchanged}); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if len(res.Issues) < 3 {
			t.Errorf("%s: %+v", name, res.Issues)
		}
	}
	if rec, err := r.store.Model(r.ctx(), "second"); err != nil || rec.CustomLoaderParams["auth_token"] != "s3cret" || len(rec.Tags) != 1 {
		t.Errorf("%+v %v", rec, err)
	}
	r.written()
	if got := r.file(); !strings.Contains(got, "model_id: third\n") || strings.Contains(got, "theirs") {
		t.Errorf("the file:\n%s", got)
	}
}

// An id that differs only in case from one that is registered is that entry's problem and nobody else's.
func TestImportOfAnIDThatDiffersInCase(t *testing.T) {
	t.Parallel()
	r := withFile(t, t.TempDir(), yamlFile)
	defer r.close(false)
	doc, err := manifest.Parse([]byte(`models:
  - {model_id: First, source_type: local, source_path: /srv/models/first.gguf, model_format: gguf}
  - {model_id: good, source_type: local, source_path: /srv/models/good.gguf, model_format: gguf}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		res, err := r.Import(r.ctx(), doc, PutOptions{Actor: "ada", Persist: true}, dry, nil)
		if err != nil {
			t.Fatalf("dry %v: %v", dry, err)
		}
		if diff := cmp.Diff([]string{"good"}, res.Added); diff != "" || len(res.Issues) != 1 || res.Issues[0].Line != 2 || !strings.Contains(res.Issues[0].Msg, `"first"`) {
			t.Errorf("dry %v: %+v", dry, res)
		}
	}
}

func TestRegistrationAxis(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.model("m", nil)
	r.ready("m")
	if _, err := r.SetRegistration(r.ctx(), "m", registry.TriggerArchive, "ada"); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("a loaded model was archived: %v", err)
	}
	if rec, err := r.SetRegistration(r.ctx(), "m", registry.TriggerDeprecate, "ada"); err != nil || rec.Registration != registry.RegistrationDeprecated {
		t.Errorf("%+v %v", rec, err)
	}
	r.end(r.unload("m"), registry.OperationSucceeded)
	if _, err := r.SetRegistration(r.ctx(), "m", registry.TriggerArchive, "ada"); err != nil {
		t.Error(err)
	}
	if _, err := r.Load(r.ctx(), "m", LoadOptions{}); registry.CodeOf(err) != registry.CodeBadState {
		t.Errorf("an archived model was loaded: %v", err)
	}
	if _, err := r.SetRegistration(r.ctx(), "m", registry.TriggerRestore, "ada"); err != nil {
		t.Error(err)
	}
	r.ready("m")
}
