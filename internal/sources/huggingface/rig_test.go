package huggingface_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("HF_TEST_ROLE"); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(m)
}

// rig is a source with a Hub and a cache of its own.
type rig struct {
	t      *testing.T
	hub    *hubtest.Hub
	cache  string
	source *huggingface.Source
}

func newRig(t *testing.T, o hubtest.Options, with ...func(*huggingface.Options)) *rig {
	t.Helper()
	r := &rig{t: t, hub: hubtest.New(t, o), cache: filepath.Join(t.TempDir(), "hub")}
	r.source = r.open(with...)
	return r
}

// open makes another source on the same Hub and cache.
func (r *rig) open(with ...func(*huggingface.Options)) *huggingface.Source {
	r.t.Helper()
	transport := fetch.Transport(fetch.TransportOptions{})
	transport.Proxy = nil
	r.t.Cleanup(transport.CloseIdleConnections)
	o := huggingface.Options{
		Cache: r.cache, Endpoint: r.hub.URL, Transport: transport, Getenv: func(string) string { return "" },
		Token: func() string { return "" }, Fetcher: fetch.New(fetch.Options{MinFree: -1}),
	}
	for _, w := range with {
		w(&o)
	}
	s, err := huggingface.New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func offline(o *huggingface.Options) { o.Offline = true }

func token(value string) func(*huggingface.Options) {
	return func(o *huggingface.Options) { o.Token = func() string { return value } }
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func gguf(id string) sources.Ref { return sources.Ref{Path: id, Format: registry.FormatGGUF} }

func safetensors(id string) sources.Ref {
	return sources.Ref{Path: id, Format: registry.FormatSafetensors}
}

func (r *rig) resolve(s *huggingface.Source, ref sources.Ref) sources.Snapshot {
	r.t.Helper()
	snap, err := s.Resolve(within(r.t), ref)
	if err != nil {
		r.t.Fatalf("Resolve %s: %v", ref.Path, err)
	}
	return snap
}

func (r *rig) fetch(s *huggingface.Source, ref sources.Ref) registry.Artifact {
	r.t.Helper()
	snap := r.resolve(s, ref)
	a, err := s.Fetch(within(r.t), snap, func(registry.Progress) {})
	if err != nil {
		r.t.Fatalf("Fetch %s: %v", ref.Path, err)
	}
	return a
}

// wrong returns the error of whichever of Resolve and Fetch fails first.
func (r *rig) wrong(s *huggingface.Source, ref sources.Ref) *registry.Error {
	r.t.Helper()
	snap, err := s.Resolve(within(r.t), ref)
	if err == nil {
		var a registry.Artifact
		if a, err = s.Fetch(within(r.t), snap, func(registry.Progress) {}); a.Path != "" {
			r.t.Errorf("there is an artifact: %+v", a)
		}
	}
	var e *registry.Error
	if !errors.As(err, &e) {
		r.t.Fatalf("%T %v is no registry.Error", err, err)
	}
	return e
}

// says fails the test unless the error has the code and each of the words.
func says(t *testing.T, e *registry.Error, code registry.Code, words ...string) {
	t.Helper()
	if e.Code != code {
		t.Errorf("the code is %s, want %s: %v", e.Code, code, e)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, e)
		}
	}
}

// content is what sourcetest's tiny model needs to be one of another size.
func bigGGUF(size int, fill byte) []byte {
	data := make([]byte, size)
	x := uint32(fill) + 1
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	return sourcetest.GGUF(sourcetest.LlamaKeys(), []sourcetest.GGUFTensor{{Name: "w", Type: 0, Shape: []uint64{uint64(size / 4)}, Data: data}})
}

func TestConformance(t *testing.T) {
	r := newRig(t, hubtest.Options{Seed: 1})
	puts := 0
	sourcetest.Run(t, sourcetest.Harness{
		Source: r.source,
		Put: func(t *testing.T, name string, format registry.Format, files map[string][]byte) sources.Ref {
			id := "org/" + name
			r.hub.Put(t, id, files)
			if name == "gone" {
				// Earlier commits stay, unless the history was squashed: then their files are not found.
				if puts++; puts == 2 {
					r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 404, Match: id + "/tiny-00002"})
				}
			}
			return sources.Ref{Path: id, Revision: "main", Format: format}
		},
		Nowhere: func(*testing.T) sources.Ref { return safetensors("org/nothing") },
		Served:  func() int64 { return r.hub.Served().Bytes },
	})
}

// The connections of a child, and what each may lose when it is killed: half of it is the most that is in memory, the
// other half is for what was under way.
const (
	childConnections = 4
	childChunk       = 256 << 10
)

// child is what this test binary does when it is started by a test as another process.
func child(role string) int {
	env := os.Getenv
	fetcher := fetch.New(fetch.Options{MinFree: -1, Connections: childConnections, Memory: childConnections * childChunk / 2})
	s, err := huggingface.New(huggingface.Options{Cache: env("HF_TEST_CACHE"), Endpoint: env("HF_TEST_ENDPOINT"), Fetcher: fetcher})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	snap, err := s.Resolve(ctx, sources.Ref{Path: env("HF_TEST_ID"), Format: registry.Format(role)})
	if err == nil {
		var a registry.Artifact
		if a, err = s.Fetch(ctx, snap, func(p registry.Progress) { fmt.Println(p.Stage, p.Done) }); err == nil {
			fmt.Println("path", a.Path)
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
