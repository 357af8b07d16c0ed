package ollama_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
)

// TestRunningServer: a model is loaded into a server that somebody else runs, answers there, is found again, and is gone
// from its memory and its list after Stop, while what the server had stays.
func TestRunningServer(t *testing.T) {
	_, gguf := engine(t)
	models := t.TempDir()
	o := ollamatest.StartOllama(t, models)
	l := ollama.New(ollama.Options{Host: o.URL, ModelsDir: models, TagPrefix: tag(t)})
	v, err := l.Check(t.Context())
	if err != nil || v.Version == "" || v.Path != o.URL {
		t.Fatalf("Check: %+v, %v", v, err)
	}
	was, err := os.Stat(gguf)
	if err != nil {
		t.Fatal(err)
	}
	sp := spec(gguf, map[string]any{"num_thread": int64(1), "system": "Answer in one word."})
	in, _ := loadIt(t, l, &sp)
	m := running(t, in)
	if m.ContextLength != 1024 || m.Size == 0 || time.Until(m.ExpiresAt) < 24*time.Hour {
		t.Errorf("ps shows %+v", m)
	}
	if text := chat(t, in, "What is the capital of France?"); !strings.Contains(text, "Paris") {
		t.Errorf("it answers %q", text)
	}
	if err := in.Health(t.Context()); err != nil {
		t.Error(err)
	}
	if h := in.Handle(); h.PID != 0 || h.InstanceID != sp.InstanceID {
		t.Errorf("handle %+v", h)
	}
	if after, err := os.Stat(gguf); err != nil || !after.ModTime().Equal(was.ModTime()) {
		t.Errorf("the user's file was touched: %v", err)
	}

	back, err := l.Recover(t.Context(), again(t, in.Handle()))
	if err != nil {
		t.Fatal(err)
	}
	stopIt(t, back)
	stopIt(t, back) // once more does no harm
	ps, err := client(t, o.URL).ListRunning(t.Context())
	if err != nil || len(ps.Models) != 0 {
		t.Errorf("still loaded: %+v, %v", ps, err)
	}
	list, err := client(t, o.URL).List(t.Context())
	if err != nil || len(list.Models) != 1 || strings.Contains(list.Models[0].Name, sp.InstanceID) {
		t.Errorf("the server lists %+v, %v; want the model alone", list, err)
	}
	if err := back.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if _, err := l.Recover(t.Context(), in.Handle()); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("Recover of an unloaded model: %v", err)
	}

	// The second time nothing is sent or made anew.
	before, err := os.ReadDir(filepath.Join(models, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	second := spec(gguf, nil)
	in, msgs := loadIt(t, l, &second)
	if strings.Contains(msgs, "Sending") || strings.Contains(msgs, "Checking") {
		t.Errorf("it was made again: %s", msgs)
	}
	stopIt(t, in)
	if after, err := os.ReadDir(filepath.Join(models, "blobs")); err != nil || len(after) > len(before)+2 {
		t.Errorf("%d blobs became %d, %v", len(before), len(after), err)
	}
}

// TestServerUnloads: who else uses the server unloads the model; the instance ends and says so.
func TestServerUnloads(t *testing.T) {
	_, gguf := engine(t)
	models := t.TempDir()
	o := ollamatest.StartOllama(t, models)
	l := ollama.New(ollama.Options{Host: o.URL, ModelsDir: models, TagPrefix: tag(t)})
	sp := spec(gguf, nil)
	in, _ := loadIt(t, l, &sp)
	c := client(t, o.URL)
	err := c.Generate(t.Context(), &api.GenerateRequest{Model: in.Endpoint().Model, KeepAlive: &api.Duration{}}, func(api.GenerateResponse) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-in.Done():
	case <-time.After(time.Minute):
		t.Fatal("nobody noticed")
	}
	if err := in.Err(); err == nil || !strings.Contains(err.Error(), "without being asked") {
		t.Errorf("Err: %v", err)
	}
	stopIt(t, in)
	if list, err := c.List(t.Context()); err != nil || len(list.Models) != 1 {
		t.Errorf("the server lists %+v, %v", list, err)
	}
}

// TestServerCancel: a load that is cancelled leaves nothing of it in the server.
func TestServerCancel(t *testing.T) {
	_, gguf := engine(t)
	models := t.TempDir()
	o := ollamatest.StartOllama(t, models)
	l := ollama.New(ollama.Options{Host: o.URL, ModelsDir: models, TagPrefix: tag(t)})
	for _, stage := range []registry.StageName{registry.StageEngine, registry.StageWeights, registry.StageWarmup} {
		t.Run(string(stage), func(t *testing.T) {
			sp := spec(gguf, nil)
			fill(t, &sp)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			in, err := l.Load(ctx, sp, func(p registry.Progress) {
				if p.Stage == stage {
					cancel()
				}
			})
			if err == nil {
				stopIt(t, in)
				t.Fatal("it was loaded although it was cancelled")
			}
			if f := registry.AsError(err).Failure; f == nil || f.Kind != registry.FailureCancelled {
				t.Errorf("got %v", err)
			}
			c := client(t, o.URL)
			if ps, err := c.ListRunning(t.Context()); err != nil || len(ps.Models) != 0 {
				t.Errorf("still loaded: %+v, %v", ps, err)
			}
			list, err := c.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list.Models {
				if strings.Contains(m.Name, sp.InstanceID) {
					t.Errorf("%s is left", m.Name)
				}
			}
		})
	}
}

// TestServerAway: a server that is named and does not answer is told, and nothing else is tried.
func TestServerAway(t *testing.T) {
	l := ollama.New(ollama.Options{Host: "127.0.0.1:1", TagPrefix: tag(t)})
	if _, err := l.Check(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "OLLAMA_HOST") {
		t.Errorf("got %v", err)
	}
}

// TestLibrary: a model of an Ollama library is loaded from the folder that the source keeps, at its exact revision, with
// what its maker set where the model's configuration does not say otherwise.
func TestLibrary(t *testing.T) {
	program, gguf := engine(t)
	models := t.TempDir()
	o := ollamatest.StartOllama(t, models)
	// A running server makes it, as a pull would.
	sp := spec(gguf, nil)
	in, _ := loadIt(t, ollama.New(ollama.Options{Host: o.URL, ModelsDir: models, TagPrefix: tag(t)}), &sp)
	c := client(t, o.URL)
	err := c.Create(t.Context(), &api.CreateRequest{Model: "team/smol:135m", From: in.Endpoint().Model, System: "You are brief.", Parameters: map[string]any{"temperature": 0.5, "num_ctx": 4096, "seed": 7}}, func(api.ProgressResponse) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	stopIt(t, in)
	list, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.Stop(t)
	revision := ""
	for _, m := range list.Models {
		if m.Name == "team/smol:135m" {
			revision = "sha256:" + m.Digest
		}
	}
	blobs, err := filepath.Glob(filepath.Join(models, "blobs", "sha256-*"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("%v %v", blobs, err)
	}
	l := ollama.New(ollama.Options{Path: program, ModelsDir: models, TagPrefix: tag(t)})
	lib := spec(gguf, nil)
	lib.Model.SourceType, lib.Model.SourcePath = registry.SourceOllama, "team/smol:135m"
	lib.Artifact.Path, lib.Artifact.Revision = blobs[0], revision
	before := tree(t, models)
	own, _ := loadIt(t, l, &lib)
	if m := running(t, own); m.ContextLength != 1024 {
		t.Errorf("context %d", m.ContextLength)
	}
	show, err := client(t, own.Endpoint().BaseURL).Show(t.Context(), &api.ShowRequest{Model: own.Endpoint().Model})
	if err != nil || show.System != "You are brief." || !strings.Contains(show.Parameters, "0.5") || strings.Contains(show.Parameters, "4096") {
		t.Errorf("Ollama shows %q, %q, %v", show.System, show.Parameters, err)
	}
	if text := chat(t, own, "What is the capital of France?"); text == "" {
		t.Error("it answers nothing")
	}
	stopIt(t, own)
	if tree(t, models) != before {
		t.Error("the folder of models has changed")
	}

	lib.Artifact.Revision = "sha256:" + strings.Repeat("0", 64)
	if f := loadFails(t, l, &lib); f.Kind != registry.FailureMissingFile {
		t.Errorf("a revision that is not there: %s: %s", f.Kind, f.Msg)
	}
	lib.Artifact.Revision = revision
	for _, b := range blobs {
		if fi, err := os.Stat(b); err == nil && fi.Size() > 50<<20 {
			if err := os.Remove(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	lib.Artifact.Path = filepath.Join(models, "blobs")
	if f := loadFails(t, l, &lib); f.Kind != registry.FailureMissingFile || !strings.Contains(f.Msg, "sha256-") {
		t.Errorf("a blob that is not there: %s: %s", f.Kind, f.Msg)
	}
}

func again(t *testing.T, h registry.Handle) registry.Handle {
	t.Helper()
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var out registry.Handle
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
