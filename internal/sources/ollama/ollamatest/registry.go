package ollamatest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// The media types that models are made of.
const (
	Model     = "application/vnd.ollama.image.model"
	Projector = "application/vnd.ollama.image.projector"
	Adapter   = "application/vnd.ollama.image.adapter"
	Template  = "application/vnd.ollama.image.template"
	System    = "application/vnd.ollama.image.system"
	Params    = "application/vnd.ollama.image.params"
	License   = "application/vnd.ollama.image.license"
	Tensor    = "application/vnd.ollama.image.tensor"

	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// RegistryOptions configure a registry. The zero value asks nobody who they are and serves blobs itself.
type RegistryOptions struct {
	// Storage makes the registry point to a second server for the bytes of blobs, as those with a storage in a cloud
	// do; Ollama's own client pulls from no other kind.
	Storage bool
	// Auth is what is put below auth: in the registry's configuration.
	Auth string
	// Authorization is the header to push with.
	Authorization string
}

// Registry is a running registry.
type Registry struct {
	Host    string           // host:port
	Storage *httptest.Server // with Storage; Served counts its bytes
	auth    string
	served  atomic.Int64
	mu      sync.Mutex
	logins  []string
}

// Served returns how many bytes the storage has sent.
func (r *Registry) Served() int64 { return r.served.Load() }

// StorageLogins returns the Authorization headers that the storage was asked with.
func (r *Registry) StorageLogins() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.logins)
}

// counting counts the bytes of bodies.
type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// StartRegistry runs a registry with an empty storage until the test ends.
func StartRegistry(t *testing.T, o RegistryOptions) *Registry {
	t.Helper()
	path := find(t, "LLMM_TEST_REGISTRY", "scripts/registry-tool", "tools", "registry", registryVersion, "registry")
	dir := t.TempDir()
	r := &Registry{auth: o.Authorization}
	root := filepath.Join(dir, "storage")
	config := fmt.Sprintf(`version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: false}}
http: {addr: "127.0.0.1:0", secret: "of no importance"}
`, root)
	if o.Auth != "" {
		config += "auth:\n" + o.Auth + "\n"
	}
	if o.Storage {
		files := http.FileServer(http.Dir(root))
		r.Storage = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.mu.Lock()
			r.logins = append(r.logins, req.Header.Get("Authorization"))
			r.mu.Unlock()
			files.ServeHTTP(counting{w, &r.served}, req)
		}))
		t.Cleanup(r.Storage.Close)
		// Another name than the registry's, so that it is another host.
		config += fmt.Sprintf("middleware:\n  storage:\n  - name: redirect\n    options: {baseurl: %q}\n", strings.Replace(r.Storage.URL, "127.0.0.1", "localhost", 1))
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	_, r.Host = start(t, path, []string{"serve", file}, []string{"OTEL_TRACES_EXPORTER=none"}, regexp.MustCompile(`listening on ([0-9.]+:\d+)`))
	return r
}

// Layer is a blob of a model.
type Layer struct {
	Type    string
	Content []byte
}

// Manifest is what was pushed.
type Manifest struct {
	Raw    []byte
	Digest string   // sha256:<hex>
	Blobs  []string // digests, the configuration last
}

// Digest returns the digest of a content.
func Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Push puts a model into the registry, as namespace/model and a tag.
func (r *Registry) Push(t *testing.T, repository, tag string, config []byte, layers ...Layer) Manifest {
	t.Helper()
	type blob struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	var out Manifest
	describe := func(mediaType string, content []byte) blob {
		r.pushBlob(t, repository, content)
		out.Blobs = append(out.Blobs, Digest(content))
		return blob{mediaType, Digest(content), len(content)}
	}
	list := []blob{}
	for _, l := range layers {
		list = append(list, describe(l.Type, l.Content))
	}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": dockerManifest, "config": describe(dockerConfig, config), "layers": list,
	})
	if err != nil {
		t.Fatal(err)
	}
	out.Raw, out.Digest = raw, Digest(raw)
	r.do(t, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, dockerManifest, raw, http.StatusCreated)
	return out
}

func (r *Registry) pushBlob(t *testing.T, repository string, content []byte) {
	t.Helper()
	began := r.do(t, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", "", nil, http.StatusAccepted)
	at, err := began.Location()
	if err != nil {
		t.Fatal(err)
	}
	q := at.Query()
	q.Set("digest", Digest(content))
	at.RawQuery = q.Encode()
	r.do(t, http.MethodPut, at.RequestURI(), "application/octet-stream", content, http.StatusCreated)
}

// Delete removes a tag's manifest and its blobs.
func (r *Registry) Delete(t *testing.T, repository string, m Manifest) {
	t.Helper()
	r.do(t, http.MethodDelete, "/v2/"+repository+"/manifests/"+m.Digest, "", nil, http.StatusAccepted)
	seen := map[string]bool{}
	for _, b := range m.Blobs {
		if !seen[b] {
			seen[b] = true
			r.do(t, http.MethodDelete, "/v2/"+repository+"/blobs/"+b, "", nil, http.StatusAccepted)
		}
	}
}

func (r *Registry) do(t *testing.T, method, path, contentType string, body []byte, want int) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.Host+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.auth != "" {
		req.Header.Set("Authorization", r.auth)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s, want %d\n%s", method, path, resp.Status, want, answer)
	}
	return resp
}
