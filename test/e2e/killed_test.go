package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// The server is killed with kill -9 while a model is loaded; the next one finds the engine running and goes on with it.
func TestServerKilled(t *testing.T) {
	s := setUp(t)
	s.registerSample("survivor", nil)
	s.call("POST", path("survivor")+"/load?wait=60s", nil, 200, nil)
	before := engines(t, s.data)
	if len(before) != 1 {
		t.Fatalf("one engine should run, there are %v", before)
	}
	s.stop(syscall.SIGKILL)
	s = s.again()
	if after := engines(t, s.data); len(after) != 1 || after[0] != before[0] {
		t.Fatalf("engine %v should have lived on, there are %v", before, after)
	}
	var m model
	s.call("GET", path("survivor"), nil, 200, &m)
	if m.Status != "ready" {
		t.Errorf("the model should be ready again, it is %s", m.Status)
	}
	s.chat("survivor")
	s.stop(syscall.SIGTERM)
	s.noEngines()
}

// acked is what the server has answered about the models of a test: by id the description that it must have, or nil once
// it is deleted. A change that was asked for and not answered may have happened or not.
type acked struct {
	mu     sync.Mutex
	is     map[string]*string
	unsure map[string]bool
	n      atomic.Int64
}

// change notes what is asked for, asks, and notes that it was answered.
func (a *acked) change(id string, to *string, ask func() error) error {
	a.mu.Lock()
	a.unsure[id] = true
	a.mu.Unlock()
	if err := ask(); err != nil {
		return err
	}
	a.mu.Lock()
	a.is[id] = to
	delete(a.unsure, id)
	a.mu.Unlock()
	a.n.Add(1)
	return nil
}

// The server is killed with kill -9 while it registers, changes and deletes models over HTTP. Every change that it has
// answered is there afterwards, and the models file is a whole one, at once and when the next server has caught up.
func TestServerKilledWhileItWrites(t *testing.T) {
	s := setUp(t)
	file := tinyModel(t)
	a := &acked{is: map[string]*string{}, unsure: map[string]bool{}}
	for round := range 6 {
		until := a.n.Load() + int64(rand.IntN(120))
		var writers sync.WaitGroup
		dead := make(chan struct{})
		for w := range 4 {
			writers.Go(func() {
				for n := 0; s.writeOne(a, fmt.Sprintf("r%d-w%d-n%d", round, w, n), file, n) == nil; n++ {
					if a.n.Load() >= until {
						select {
						case dead <- struct{}{}: // one of them says so, and all go on writing
						default:
						}
					}
				}
			})
		}
		<-dead
		s.stop(syscall.SIGKILL)
		writers.Wait()
		wholeFile(t, s.yaml)
		s = s.again()
		s.hasAll(a)
	}
	t.Logf("%d changes were answered over 6 kills", a.n.Load())
}

// writeOne registers a model, changes it, and deletes every third again.
func (s *server) writeOne(a *acked, id, file string, n int) error {
	first, second := "first "+id, "second "+id
	m := map[string]any{"model_id": id, "source_type": "local", "source_path": file, "model_format": "gguf", "description": first}
	if err := a.change(id, &first, func() error { return s.try("POST", "/api/v1/models?persist=true", m, http.StatusCreated, nil) }); err != nil {
		return err
	}
	patch := map[string]any{"description": second}
	if err := a.change(id, &second, func() error { return s.try("PATCH", path(id), patch, http.StatusOK, nil) }); err != nil || n%3 != 2 {
		return err
	}
	return a.change(id, nil, func() error { return s.try("DELETE", path(id), nil, http.StatusNoContent, nil) })
}

// wholeFile reads the models file: it is one, with the entries and the comments that it began with.
func wholeFile(t *testing.T, yaml string) map[string]registry.Model {
	t.Helper()
	b, err := os.ReadFile(yaml)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := manifest.Parse(b)
	if err != nil || len(doc.Issues) > 0 {
		t.Fatalf("the models file is damaged: %v, %v\n%s", err, doc, b)
	}
	models := map[string]registry.Model{}
	for _, e := range doc.Entries {
		models[e.Model.ModelID] = e.Model
	}
	if _, ok := models["tiny-bert"]; !ok || !bytes.Contains(b, []byte("# If your local model has custom code")) {
		t.Fatalf("the models file has lost what was in it:\n%s", b)
	}
	return models
}

// hasAll looks for everything that was answered, in the registry and, once all of it is written, in the models file.
func (s *server) hasAll(a *acked) {
	s.t.Helper()
	for pending := 1; pending > 0; {
		var written struct {
			Pending int
			Error   string
		}
		s.call("GET", "/api/v1/manifest?wait=30s", nil, http.StatusOK, &written)
		if pending = written.Pending; written.Error != "" {
			s.t.Fatalf("the models file is not written: %s", written.Error)
		}
	}
	var list struct {
		Models []registry.Model
		Next   string
	}
	there := map[string]registry.Model{}
	for after := "?limit=500"; ; after = "?limit=500&after=" + list.Next {
		list.Models, list.Next = nil, ""
		s.call("GET", "/api/v1/models"+after, nil, http.StatusOK, &list)
		for _, m := range list.Models {
			there[m.ModelID] = m
		}
		if list.Next == "" {
			break
		}
	}
	inFile := wholeFile(s.t, s.yaml)
	for id, want := range a.is {
		for where, m := range map[string]map[string]registry.Model{"registry": there, "models file": inFile} {
			got, is := m[id]
			switch {
			case a.unsure[id] && (!is || got.Description == "first "+id || got.Description == "second "+id):
			case is != (want != nil):
				s.t.Fatalf("%s in the %s: %v, want %v", id, where, is, want != nil)
			case is && got.Description != *want:
				s.t.Fatalf("%s in the %s is %q, want %q", id, where, got.Description, *want)
			}
		}
	}
	if len(there) != len(inFile) {
		s.t.Fatalf("%d models are registered and %d in the file", len(there), len(inFile))
	}
}

// The server is killed with kill -9 while it fetches a model from a Hub. The next one goes on by itself where it was: what
// is served again is at most what the connections held.
func TestServerKilledWhileItFetches(t *testing.T) {
	const connections, block = 4, 1 << 20 // of fetch, with these many connections
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "org", "sample"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := weights(t)
	if err := os.Symlink(file, filepath.Join(root, "org", "sample", "sample.gguf")); err != nil {
		t.Fatal(err)
	}
	hub := hubtest.New(t, hubtest.Options{Root: root})
	home := t.TempDir()
	s := setUp(t, "HF_ENDPOINT="+hub.URL, "HF_HOME="+home, "HF_HUB_CACHE="+filepath.Join(home, "hub"), "HF_HUB_OFFLINE=", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1",
		fmt.Sprintf("LLMM_FETCH_CONNECTIONS=%d", connections))
	s.call("POST", "/api/v1/models", map[string]any{"model_id": "sample", "source_type": "huggingface", "source_path": "org/sample", "model_format": "gguf"}, http.StatusCreated, nil)
	// So slow that it would go on for half a minute.
	hub.Fault(hubtest.Fault{Kind: hubtest.FaultSlow, Host: hubtest.OnCDN, Rate: 1 << 20})
	var op struct {
		ID, State string
		Stages    []struct {
			Name string
			Done int64
		}
	}
	s.call("POST", path("sample")+"/fetch", nil, http.StatusAccepted, &op)
	kills := 0
	for _, at := range []int64{3 << 20, 7 << 20} {
		for done := int64(0); done < at; {
			s.call("GET", "/api/v1/operations/"+op.ID, nil, http.StatusOK, &op)
			for _, st := range op.Stages {
				if st.Name == "fetch" {
					done = st.Done
				}
			}
			if op.State != "running" && op.State != "queued" {
				t.Fatalf("the fetch is %s after %d bytes", op.State, done)
			}
		}
		s.stop(syscall.SIGKILL)
		kills++
		if got := fetched(t, home); len(got) != 0 {
			t.Fatalf("half a model is in its place: %v", got)
		}
		if kills == 2 {
			hub.Heal()
		}
		s = s.again()
	}
	for op.State != "succeeded" {
		s.call("GET", "/api/v1/operations/"+op.ID+"?wait=30s", nil, http.StatusOK, &op)
		if op.State == "failed" || op.State == "cancelled" {
			t.Fatalf("the fetch is %s", op.State)
		}
	}
	got := fetched(t, home)
	if len(got) != 1 || sum(t, got[0]) != sum(t, file) {
		t.Fatalf("what was fetched is not what the Hub has: %v", got)
	}
	size, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	again := hub.Served().Files["org/sample/sample.gguf"] - size.Size()
	// A connection loses the block that it has not noted yet and what is on its way to it; and the file's header was read
	// before the fetch.
	if most := int64(kills*connections*(block+block/2)) + 1<<20; again > most {
		t.Errorf("after %d kills %d bytes were served again, want at most %d", kills, again, most)
	}
	t.Logf("%d kills; of %d bytes %d were served again", kills, size.Size(), again)
}

// fetched lists the weights that are in their place in the Hub's cache.
func fetched(t *testing.T, home string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(home, "hub", "models--*", "snapshots", "*", "*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
