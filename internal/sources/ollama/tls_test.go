package ollama_test

import (
	"encoding/pem"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
)

// trusting makes the test binary fetch from a registry with TLS whose certificate it was told to trust: which authorities
// are trusted is read once in a process.
const trusting = "LLMM_TEST_OLLAMA_TRUSTING"

// TestTLS: a private registry with encryption is one as any other, once it is listed, and does not lead out of the
// encryption.
func TestTLS(t *testing.T) {
	if job := os.Getenv(trusting); job != "" {
		fetchByTLS(t, strings.Split(job, "|"))
		return
	}
	plain := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	plain.Push(t, "team/m", "1", []byte(config), tiny(1), license("x"))
	leaving := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{Storage: true})
	leaving.Push(t, "team/m", "1", []byte(config), tiny(2), license("x"))
	var hosts []string
	var trusted []byte
	for _, reg := range []*ollamatest.Registry{plain, leaving} {
		secure := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Host}))
		t.Cleanup(secure.Close)
		hosts = append(hosts, strings.TrimPrefix(secure.URL, "https://"))
		trusted = append(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})...)
	}
	file := filepath.Join(t.TempDir(), "trusted.pem")
	if err := os.WriteFile(file, trusted, 0o600); err != nil {
		t.Fatal(err)
	}
	storage := strings.Replace(strings.TrimPrefix(leaving.Storage.URL, "http://"), "127.0.0.1", "localhost", 1)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestTLS$", "-test.count=1")
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+file, trusting+"="+strings.Join(append(hosts, storage), "|"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func fetchByTLS(t *testing.T, hosts []string) {
	t.Helper()
	whole, leaving, storage := hosts[0], hosts[1], hosts[2]
	listed := func(o *ollama.Options) { o.Private = []string{whole, leaving} }
	for _, path := range []string{whole + "/team/m:1", "https://" + whole + "/team/m:1"} {
		if _, _, err := bring(t, newSource(t, t.TempDir(), listed), ref(path)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	_, _, err := bring(t, newSource(t, t.TempDir(), nil), ref(whole+"/team/m:1"))
	wantError(t, err, registry.CodeForbidden, "private network")
	_, _, err = bring(t, newSource(t, t.TempDir(), listed), ref(leaving+"/team/m:1"))
	wantError(t, err, registry.CodeForbidden, "without encryption", storage)
	// Unless an admin has said that the storage may.
	if _, _, err := bring(t, newSource(t, t.TempDir(), func(o *ollama.Options) { o.Private, o.Insecure = []string{leaving}, []string{storage} }), ref(leaving+"/team/m:1")); err != nil {
		t.Error(err)
	}
}
