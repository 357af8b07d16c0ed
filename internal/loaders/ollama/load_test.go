package ollama_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var instances atomic.Int64

// tag is an installation of the test's own; nothing of it runs once the test is over.
func tag(t *testing.T) string {
	t.Helper()
	prefix := fmt.Sprintf("ollamatest-%d-%d", os.Getpid(), instances.Add(1))
	t.Cleanup(func() { nothingLeft(t, prefix) })
	return prefix
}

func nothingLeft(t *testing.T, prefix string) {
	t.Helper()
	found, err := process.FindTagged(prefix)
	if err != nil {
		t.Error(err)
	}
	for _, p := range found {
		t.Errorf("process %d of instance %s is left", p.PID, p.InstanceID)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		_ = process.KillGroup(ctx, prefix, p)
		cancel()
	}
}

// fill sets what the manager would set.
func fill(t *testing.T, sp *loaders.LoadSpec) {
	t.Helper()
	dir := t.TempDir()
	sp.InstanceID = fmt.Sprintf("t%d", instances.Add(1))
	sp.Dir, sp.LogPath = dir, filepath.Join(dir, "engine.log")
	sp.Model = sp.Model.WithDefaults()
	sp.Started = func(registry.Handle) {}
}

func loadIt(t *testing.T, l loaders.Loader, sp *loaders.LoadSpec) (in loaders.Instance, msgs string) {
	t.Helper()
	fill(t, sp)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var said []string
	in, err := l.Load(ctx, *sp, func(p registry.Progress) { said = append(said, string(p.Stage)+" "+p.Msg) })
	if err != nil {
		f := registry.AsError(err).Failure
		if f == nil {
			f = &registry.Failure{}
		}
		t.Fatalf("Load: %v\n%s", err, strings.Join(f.LogTail, "\n"))
	}
	t.Cleanup(func() { stopIt(t, in) })
	return in, strings.Join(said, "\n")
}

func loadFails(t *testing.T, l loaders.Loader, sp *loaders.LoadSpec) *registry.Failure {
	t.Helper()
	fill(t, sp)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	in, err := l.Load(ctx, *sp, func(registry.Progress) {})
	if err == nil {
		stopIt(t, in)
		t.Fatal("it was loaded")
	}
	f := registry.AsError(err).Failure
	if f == nil {
		t.Fatalf("no failure: %v", err)
	}
	return f
}

func stopIt(t *testing.T, in loaders.Instance) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := in.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

func client(t *testing.T, base string) *api.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return api.NewClient(u, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}})
}

// running returns what ps says of an instance's model.
func running(t *testing.T, in loaders.Instance) api.ProcessModelResponse {
	t.Helper()
	ep := in.Endpoint()
	ps, err := client(t, ep.BaseURL).ListRunning(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ps.Models {
		if strings.TrimSuffix(m.Name, ":latest") == strings.TrimSuffix(ep.Model, ":latest") {
			return m
		}
	}
	t.Fatalf("ps does not list %s: %+v", ep.Model, ps.Models)
	return api.ProcessModelResponse{}
}

func details(t *testing.T, in loaders.Instance) api.ModelDetails {
	t.Helper()
	return running(t, in).Details
}

func ask(t *testing.T, in loaders.Instance, path string, body, into any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.Endpoint().BaseURL+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s %v", path, resp.StatusCode, text, err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func complete(t *testing.T, in loaders.Instance, prompt string) string {
	t.Helper()
	var got struct {
		Choices []struct {
			Text string `json:"text"`
		} `json:"choices"`
	}
	ask(t, in, "/v1/completions", map[string]any{"model": in.Endpoint().Model, "prompt": prompt, "max_tokens": 12, "temperature": 0}, &got)
	if len(got.Choices) == 0 {
		return ""
	}
	return got.Choices[0].Text
}

func chat(t *testing.T, in loaders.Instance, prompt string) string {
	t.Helper()
	var got struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	ask(t, in, "/v1/chat/completions", map[string]any{"model": in.Endpoint().Model, "max_tokens": 12, "temperature": 0, "messages": []any{map[string]any{"role": "user", "content": prompt}}}, &got)
	if len(got.Choices) == 0 {
		return ""
	}
	return got.Choices[0].Message.Content
}

// tree lists the files of a folder with their sizes.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if !d.IsDir() {
			fmt.Fprintf(&b, "%s %d %d\n", rel, fi.Size(), fi.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
