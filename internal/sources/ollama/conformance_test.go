package ollama_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Idle connections of clients that live as long as the process.
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// config is the configuration that ollama push makes, as far as it matters.
const config = `{"model_format":"gguf","model_family":"llama","model_type":"4.16K","file_type":"Q4_1","architecture":"amd64","os":"linux"}`

// newSource returns a source on a folder.
func newSource(t *testing.T, dir string, change func(*ollama.Options)) *ollama.Source {
	t.Helper()
	o := ollama.Options{Dir: dir, Fetcher: fetch.New(fetch.Options{MinFree: -1})}
	if change != nil {
		change(&o)
	}
	s, err := ollama.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// insecure lets a source speak to hosts without encryption.
func insecure(hosts ...string) func(*ollama.Options) {
	return func(o *ollama.Options) { o.Insecure = hosts }
}

func ref(path string) sources.Ref {
	return sources.Ref{Path: path, Revision: registry.DefaultRevision, Format: registry.FormatGGUF}
}

// front stands before a registry: it counts what passes, and may answer itself.
type front struct {
	*httptest.Server
	host string

	served  atomic.Int64 // bytes of bodies
	mu      sync.Mutex
	replace func(w http.ResponseWriter, r *http.Request) bool
}

func newFront(t *testing.T, host string) *front {
	t.Helper()
	f := &front{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		replace := f.replace
		f.mu.Unlock()
		c := &counting{w, &f.served}
		if replace == nil || !replace(c, r) {
			proxy.ServeHTTP(c, r)
		}
	}))
	t.Cleanup(f.Close)
	f.host = strings.TrimPrefix(f.URL, "http://")
	return f
}

// answer makes the front answer itself from now on; it returns false to let a request through.
func (f *front) answer(how func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replace = how
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// TestConformance runs the suite that every source passes against a real registry: one that serves blobs itself, and one
// that points to a storage at another host.
func TestConformance(t *testing.T) {
	for name, o := range map[string]ollamatest.RegistryOptions{"serves": {}, "points": {Storage: true}} {
		t.Run(name, func(t *testing.T) {
			reg := ollamatest.StartRegistry(t, o)
			gate := newFront(t, reg.Host)
			dir := filepath.Join(t.TempDir(), "models")
			pushed := map[string]ollamatest.Manifest{}
			sourcetest.Run(t, sourcetest.Harness{
				Source: newSource(t, dir, insecure(gate.host)),
				Kinds:  []string{"gguf"},
				Path: func(_ string, content []byte) string {
					return "blobs/" + strings.Replace(ollamatest.Digest(content), ":", "-", 1)
				},
				Added: 1,
				Put: func(t *testing.T, name string, format registry.Format, files map[string][]byte) sources.Ref {
					repository := "suite/" + strings.ToLower(name)
					if m, ok := pushed[repository]; ok {
						reg.Delete(t, repository, m)
						delete(pushed, repository)
					}
					// The models of the cases have the same content: none may find what another fetched.
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
					for _, content := range files {
						pushed[repository] = reg.Push(t, repository, "latest", []byte(config), ollamatest.Layer{Type: ollamatest.Model, Content: content})
					}
					r := ref(gate.host + "/" + repository)
					r.Format = format
					return r
				},
				Nowhere: func(*testing.T) sources.Ref { return ref(gate.host + "/suite/nothing") },
				Served: func() int64 {
					n := gate.served.Load()
					if reg.Storage != nil {
						n += reg.Served()
					}
					return n
				},
			})
		})
	}
}
