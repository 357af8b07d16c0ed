package ollama_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// wantError checks an error's code and that it says certain things.
func wantError(t *testing.T, err error, code registry.Code, words ...string) {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("%v (%s); want %s", err, registry.CodeOf(err), code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v; want it to say %q", err, w)
		}
	}
}

// TestMissing: what is missing is said: the tag, the model, and where tags are listed.
func TestMissing(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	reg.Push(t, "team/m", "1b", []byte(config), tiny(1))
	reg.Push(t, "team/m", "3b", []byte(config), tiny(2))
	gone := reg.Push(t, "team/m", "old", []byte(config), tiny(3))
	reg.Push(t, "library/llama3.2", "3b", []byte(config), tiny(4))
	s := newSource(t, t.TempDir(), func(o *ollama.Options) { o.Insecure, o.Registry = []string{reg.Host}, "http://"+reg.Host })

	_, err := s.Resolve(t.Context(), ref(reg.Host+"/team/m:7b"))
	wantError(t, err, registry.CodeNotFound, "1b", "3b", "7b")
	_, err = s.Resolve(t.Context(), ref(reg.Host+"/team/other"))
	wantError(t, err, registry.CodeNotFound, "no model team/other", "ollama push")
	_, err = s.Resolve(t.Context(), ref("llama3.2:70b"))
	wantError(t, err, registry.CodeNotFound, "https://ollama.com/library/llama3.2/tags")
	_, err = s.Resolve(t.Context(), ref(reg.Host+"/team/m@sha256:"+strings.Repeat("0", 64)))
	wantError(t, err, registry.CodeNotFound, "any more")

	// The mirror stands for the library, and its models are kept under the library's name.
	if _, _, err := bring(t, s, ref("llama3.2:3b")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.Folder(), "manifests/registry.ollama.ai/library/llama3.2/3b")); err != nil {
		t.Error(err)
	}

	// A blob that is gone while its manifest is not.
	snap, err := s.Resolve(t.Context(), ref(reg.Host+"/team/m:old"))
	if err != nil {
		t.Fatal(err)
	}
	reg.Delete(t, "team/m", gone)
	_, err = s.Fetch(t.Context(), snap, func(registry.Progress) {})
	wantError(t, err, registry.CodeLoadingFailed, "blobs/sha256-")
}

// TestAnswers: what registries answer when something is wrong, each with what to do.
func TestAnswers(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	whole := reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	gate := newFront(t, reg.Host)
	say := func(status int, header, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			if k, v, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(k, v)
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
			return true
		}
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		code   registry.Code
		words  []string
	}{
		"a newer Ollama": {say(412, "", "\n\nThe model you are attempting to pull requires a newer version of Ollama.\n"), registry.CodeUnsupported, []string{"newer version of Ollama", "pull it with a current ollama"}},
		"too many":       {say(429, "Retry-After: 55", ""), registry.CodeBusy, []string{"too often"}},
		"broken":         {say(500, "Retry-After: 99", `{"errors":[{"code":"UNKNOWN","message":"disk on fire"}]}`), registry.CodeUnavailable, []string{"disk on fire", "500"}},
		"the Hub's":      {say(400, "", `{"error":"The specified tag is a sharded GGUF. Ollama does not support this yet."}`), registry.CodeInvalid, []string{"sharded GGUF", "huggingface"}},
		"denied":         {say(403, "", `{"errors":[{"code":"DENIED"}]}`), registry.CodeLoadingFailed, []string{"auth_token"}},
		"a page":         {say(200, "Content-Type: text/html", "<html>Log in to the guest network</html>"), registry.CodeLoadingFailed, []string{"web page"}},
		"nonsense":       {say(200, "", "{}"), registry.CodeLoadingFailed, []string{"names no blobs"}},
		"a teapot":       {say(418, "", "short and stout"), registry.CodeUnavailable, []string{"418", "short and stout"}},
		"endless":        {say(200, "", strings.Repeat(" ", 5<<20)), registry.CodeUnavailable, []string{"more than"}},
		"round and round": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, registry.CodeUnavailable, []string{"without end"}},
		"to a file": {say(307, "Location: file:///etc/passwd", ""), registry.CodeUnavailable, []string{"none of the web"}},
		"changed on the way": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", whole.Digest)
			_, _ = w.Write(append([]byte(" "), whole.Raw...))
			return true
		}, registry.CodeLoadingFailed, []string{"changed on the way"}},
		"a cloud model": {say(200, "", `{"config":{"digest":"`+ollamatest.Digest([]byte("c"))+`","size":1}}`), registry.CodeLoadingFailed, []string{"not its"}},
	} {
		t.Run(name, func(t *testing.T) {
			gate.answer(func(w http.ResponseWriter, r *http.Request) bool {
				return strings.Contains(r.URL.Path, "/manifests/") && c.answer(w, r)
			})
			_, err := newSource(t, t.TempDir(), insecure(gate.host)).Resolve(t.Context(), ref(gate.host+"/team/m:1"))
			wantError(t, err, c.code, c.words...)
		})
	}
}

// TestKinds: models that no engine here can run are told apart before anything is fetched.
func TestKinds(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	s := newSource(t, t.TempDir(), insecure(reg.Host))
	tensor := ollamatest.Layer{Type: ollamatest.Tensor, Content: []byte("tensor")}
	reg.Push(t, "kinds/cloud", "latest", []byte(`{"remote_host":"https://ollama.com:443","remote_model":"gpt-oss:120b"}`))
	reg.Push(t, "kinds/tensors", "latest", []byte(`{"model_format":"safetensors"}`), tensor)
	for name, words := range map[string][]string{"cloud": {"external_service"}, "tensors": {"safetensors", "huggingface"}} {
		_, err := s.Resolve(t.Context(), ref(reg.Host+"/kinds/"+name))
		wantError(t, err, registry.CodeUnsupported, words...)
		_, err = s.Offers(t.Context(), ref(reg.Host+"/kinds/"+name))
		wantError(t, err, registry.CodeUnsupported, words...)
	}
	_, err := s.Resolve(t.Context(), ref("gpt-oss:120b-cloud"))
	wantError(t, err, registry.CodeUnsupported, "external_service")

	reg.Push(t, "kinds/all", "latest", []byte(`{"model_format":"gguf","file_type":"Q4_1","requires":"0.6.0"}`), tiny(1),
		ollamatest.Layer{Type: ollamatest.Projector, Content: []byte("projector")}, ollamatest.Layer{Type: ollamatest.Adapter, Content: []byte("adapter")},
		ollamatest.Layer{Type: ollamatest.System, Content: []byte("You are a pirate.")}, ollamatest.Layer{Type: ollamatest.Params, Content: []byte(`{"num_ctx":512,"stop":["<end>"]}`)},
		ollamatest.Layer{Type: ollamatest.License, Content: []byte("MIT License\n")}, ollamatest.Layer{Type: ollamatest.Template, Content: []byte("{{ .Prompt }}")})
	snap, err := s.Resolve(t.Context(), ref(reg.Host+"/kinds/all"))
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(snap.Facts.Notes, "\n")
	for _, w := range []string{"vision part", "adapter", "system prompt", `num_ctx 512, stop ["<end>"]`, "0.6.0"} {
		if !strings.Contains(notes, w) {
			t.Errorf("no note about %s in:\n%s", w, notes)
		}
	}
	if snap.Facts.Licence != "apache-2.0" || !snap.Facts.Vision || len(snap.Files) != 8 || snap.Cost.Requests > 6 || snap.Cost.Bytes == 0 {
		t.Errorf("facts %+v, %d files, cost %+v", snap.Facts, len(snap.Files), snap.Cost)
	}
	offers, err := s.Offers(t.Context(), ref(reg.Host+"/kinds/all"))
	if err != nil || len(offers) != 1 || offers[0].Label != "Q4_1" || offers[0].Bytes != snap.Bytes || offers[0].Format != registry.FormatGGUF {
		t.Errorf("offers %+v, %v", offers, err)
	}
	// The licence of the library where the weights name none.
	keys := sourcetest.LlamaKeys()
	delete(keys, "general.license")
	reg.Push(t, "kinds/licensed", "latest", []byte(config), ollamatest.Layer{Type: ollamatest.Model, Content: sourcetest.GGUF(keys, sourcetest.LlamaTensors(1))},
		ollamatest.Layer{Type: ollamatest.License, Content: []byte("MIT License\n")})
	if snap, err := s.Resolve(t.Context(), ref(reg.Host+"/kinds/licensed")); err != nil || snap.Facts.Licence != "mit" {
		t.Errorf("the licence %q, %v", snap.Facts.Licence, err)
	}
}

// TestGuards: nobody gets the server to speak without encryption, or to addresses of its own network, by registering
// a model.
func TestGuards(t *testing.T) {
	asked := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer inside.Close()
	host := strings.TrimPrefix(inside.URL, "http://")
	s := newSource(t, t.TempDir(), nil)
	_, err := s.Resolve(t.Context(), ref("http://"+host+"/team/m"))
	wantError(t, err, registry.CodeForbidden, "insecure registries", host)
	_, err = s.Resolve(t.Context(), ref(host+"/team/m"))
	wantError(t, err, registry.CodeForbidden, "private network", "admin")
	_, err = s.Resolve(t.Context(), ref("169.254.169.254/latest/meta-data"))
	wantError(t, err, registry.CodeForbidden, "private network")
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Resolve(t.Context(), ref("localhost:"+port+"/team/m"))
	wantError(t, err, registry.CodeForbidden, "private network")
	if asked {
		t.Error("the server inside was asked")
	}
	// A listed one that speaks no TLS is told about, too.
	_, err = newSource(t, t.TempDir(), func(o *ollama.Options) { o.Private = []string{host} }).Resolve(t.Context(), ref(host+"/team/m"))
	wantError(t, err, registry.CodeUnavailable, "does not speak TLS")
	// One with TLS that points to a place without is not followed.
	secure := httptest.NewTLSServer(http.RedirectHandler(inside.URL+"/x", http.StatusTemporaryRedirect))
	defer secure.Close()
	host = strings.TrimPrefix(secure.URL, "https://")
	_, err = newSource(t, t.TempDir(), func(o *ollama.Options) { o.Private = []string{host} }).Resolve(t.Context(), ref(host+"/team/m"))
	wantError(t, err, registry.CodeUnavailable, "certificate")
}

// TestUnreachable: a network that is away is said as what it is.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	_, err = newSource(t, t.TempDir(), insecure(host)).Resolve(t.Context(), ref(host+"/team/m"))
	wantError(t, err, registry.CodeUnavailable, host, "refuses the connection")
	_, err = newSource(t, t.TempDir(), insecure("nowhere.invalid")).Resolve(t.Context(), ref("nowhere.invalid/team/m"))
	wantError(t, err, registry.CodeUnavailable, "nowhere.invalid")
}

// TestFlippedBits: a blob that is not what its digest says is no model, wherever the bit was flipped, and nothing of it
// is left in Ollama's folder.
func TestFlippedBits(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	content := sourcetest.TinyGGUF(1)
	reg.Push(t, "team/m", "1", []byte(config), ollamatest.Layer{Type: ollamatest.Model, Content: content})
	gate := newFront(t, reg.Host)
	for _, at := range []int{0, len(content) / 2, len(content) - 1} {
		s := newSource(t, t.TempDir(), insecure(gate.host))
		gate.answer(nil)
		snap, err := s.Resolve(t.Context(), ref(gate.host+"/team/m:1"))
		if err != nil {
			t.Fatal(err)
		}
		gate.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ollamatest.Digest(content)) {
				return false
			}
			bad := append([]byte(nil), content...)
			bad[at] ^= 4
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(bad)))
			return true
		})
		_, err = s.Fetch(t.Context(), snap, func(registry.Progress) {})
		wantError(t, err, registry.CodeLoadingFailed, "blobs/sha256-")
		if names, err := filepath.Glob(filepath.Join(s.Folder(), "blobs", "sha256-*")); err != nil || len(names) > 0 {
			t.Errorf("there are %v, %v", names, err)
		}
		if names, err := filepath.Glob(filepath.Join(s.Folder(), "manifests", "*")); err != nil || len(names) > 0 {
			t.Errorf("there are %v, %v", names, err)
		}
	}
}

// TestResume: a fetch that was cancelled half-way goes on where it was.
func TestResume(t *testing.T) {
	const size = 48 << 20
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{Storage: true})
	big := sourcetest.GGUF(sourcetest.LlamaKeys(), []sourcetest.GGUFTensor{{Name: "w", Type: 0, Shape: []uint64{size / 4}, Data: make([]byte, size)}})
	reg.Push(t, "team/big", "1", []byte(config), ollamatest.Layer{Type: ollamatest.Model, Content: big})
	gate := newFront(t, reg.Host)
	s := newSource(t, t.TempDir(), insecure(gate.host))
	snap, err := s.Resolve(t.Context(), ref(gate.host+"/team/big:1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reached := int64(0)
	_, err = s.Fetch(ctx, snap, func(p registry.Progress) {
		if reached = p.Done; p.Done > size/3 {
			cancel()
		}
	})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	stored, err := s.Stored(t.Context())
	if err != nil || len(stored) != 1 || stored[0].Path != gate.host+"/team/big:1" || stored[0].Revision != snap.Revision || stored[0].Partial < size/4 {
		t.Errorf("stored %+v, %v", stored, err)
	}
	// Another server on the same folder, one that never looked at the model, while the registry gives nothing: what it
	// counts was fetched before.
	gate.answer(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	again := newSource(t, s.Folder(), insecure(gate.host))
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	kept := int64(0)
	_, err = again.Fetch(ctx, snap, func(p registry.Progress) {
		if kept = p.Done; kept >= reached*3/4 {
			cancel()
		}
	})
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%d of %d bytes were kept; %v", kept, reached, err)
	}
	gate.answer(nil)
	a, err := again.Fetch(t.Context(), snap, func(registry.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(a.Path); err != nil || ollamatest.Digest(got) != ollamatest.Digest(big) {
		t.Errorf("the file is not what was pushed: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(s.Folder(), "blobs", ".llmm", "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "lock" {
		t.Errorf("there is left %v, %v", left, err)
	}
}
