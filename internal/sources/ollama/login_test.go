package ollama_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/ssh"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

const password = "correct-horse-battery"

func tiny(fill byte) ollamatest.Layer {
	return ollamatest.Layer{Type: ollamatest.Model, Content: sourcetest.TinyGGUF(fill)}
}

// bring resolves and fetches.
func bring(t *testing.T, s *ollama.Source, r sources.Ref) (sources.Snapshot, registry.Artifact, error) {
	t.Helper()
	snap, err := s.Resolve(t.Context(), r)
	if err != nil {
		return snap, registry.Artifact{}, err
	}
	a, err := s.Fetch(t.Context(), snap, func(registry.Progress) {})
	return snap, a, err
}

func with(r sources.Ref, params map[string]any) sources.Ref {
	r.Params = params
	return r
}

// wantGated checks that an error is about a login, says what to do, and gives no secret away.
func wantGated(t *testing.T, err error, word string) {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) || e.Failure == nil || e.Failure.Kind != registry.FailureGated || e.Failure.Hint == "" || !strings.Contains(e.Error(), word) {
		t.Fatalf("%v; want one of a gated model with %q", err, word)
	}
	noSecret(t, fmt.Sprintf("%v %+v %v", err, e.Failure, e.Unwrap()))
}

func noSecret(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{password, "wrong-horse", base64.StdEncoding.EncodeToString([]byte("alice:" + password))} {
		if strings.Contains(text, secret) {
			t.Errorf("a secret was given away: %s", text)
		}
	}
}

// logged collects what a source logs.
func logged(o *ollama.Options) *bytes.Buffer {
	var b bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return &b
}

// TestBasicLogin: a real registry with a list of users, whose blobs lie at a storage that must not see the password.
func TestBasicLogin(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(users, []byte("alice:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{
		Storage: true, Auth: fmt.Sprintf("  htpasswd: {realm: models, path: %q}", users),
		Authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:"+password)),
	})
	reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	var log *bytes.Buffer
	s := newSource(t, t.TempDir(), func(o *ollama.Options) { o.Insecure = []string{reg.Host}; log = logged(o) })
	m := ref(reg.Host + "/team/m:1")

	_, _, err = bring(t, s, m)
	wantGated(t, err, "username")
	_, _, err = bring(t, s, with(m, map[string]any{"username": "alice", "password": "wrong-horse"}))
	wantGated(t, err, "refuses the credentials")
	_, _, err = bring(t, s, with(m, map[string]any{"auth_token": "wrong-horse"}))
	wantGated(t, err, "refuses the credentials")
	for name, params := range map[string]map[string]any{
		"a password":           {"username": "alice", "password": password},
		"a token and its user": {"username": "alice", "auth_token": password},
	} {
		if err := os.RemoveAll(s.Folder()); err != nil {
			t.Fatal(err)
		}
		snap, a, err := bring(t, s, with(m, params))
		if err != nil || a.Revision != snap.Revision {
			t.Errorf("%s: %v", name, err)
		}
	}
	// It is on this disk now, and still not for who has no password.
	_, _, err = bring(t, s, m)
	wantGated(t, err, "username")
	logins := reg.StorageLogins()
	if len(logins) == 0 || strings.Join(logins, "") != "" {
		t.Errorf("the storage was asked with the logins %q", logins)
	}
	noSecret(t, log.String())
}

// tokens is the place where a registry of the token kind sends for tokens: it signs them for who knows the password.
type tokens struct {
	*httptest.Server
	key  *ecdsa.PrivateKey
	cert []byte
	mu   sync.Mutex
	seen []string // account of each request, "" for none
}

func newTokens(t *testing.T) *tokens {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokens"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	k := &tokens{key: key}
	if k.cert, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	k.Server = httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(k.Close)
	return k
}

func (k *tokens) serve(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	k.mu.Lock()
	k.seen = append(k.seen, user)
	k.mu.Unlock()
	if pass != password {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no such user or password: `+pass+`"}]}`)
		return
	}
	if err := json.NewEncoder(w).Encode(map[string]any{"token": k.token(r.URL.Query()["scope"], r.URL.Query().Get("service"))}); err != nil {
		panic(err)
	}
}

// token signs what the registry's token authentication wants to see.
func (k *tokens) token(scopes []string, service string) string {
	access := []map[string]any{}
	for _, s := range scopes {
		p := strings.SplitN(s, ":", 3)
		access = append(access, map[string]any{"type": p[0], "name": p[1], "actions": strings.Split(p[2], ",")})
	}
	now := time.Now()
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	text := part(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(k.cert)}}) + "." + part(map[string]any{
		"iss": "tokens", "sub": "alice", "aud": service, "exp": now.Add(time.Hour).Unix(), "nbf": now.Add(-time.Minute).Unix(),
		"iat": now.Unix(), "jti": rand.Text(), "access": access,
	})
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, k.key, sum[:])
	if err != nil {
		panic(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TestBearerLogin: a real registry that sends for a token elsewhere.
func TestBearerLogin(t *testing.T) {
	k := newTokens(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.cert}), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{
		Auth:          fmt.Sprintf("  token: {realm: %q, service: models, issuer: tokens, rootcertbundle: %q}", k.URL+"/token?from=registry", roots),
		Authorization: "Bearer " + k.token([]string{"repository:team/m:pull,push"}, "models"),
	})
	reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	var log *bytes.Buffer
	s := newSource(t, t.TempDir(), func(o *ollama.Options) { o.Insecure = []string{reg.Host}; log = logged(o) })
	m := ref(reg.Host + "/team/m:1")

	_, _, err := bring(t, s, m)
	wantGated(t, err, "username")
	_, _, err = bring(t, s, with(m, map[string]any{"username": "alice", "password": "wrong-horse"}))
	wantGated(t, err, "refuses the credentials")
	k.mu.Lock()
	k.seen = nil
	k.mu.Unlock()
	if _, _, err := bring(t, s, with(m, map[string]any{"username": "alice", "password": password})); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	if !slices.Equal(k.seen, []string{"alice", "alice"}) { // one for the look, one for the fetch
		t.Errorf("tokens were asked for by %q", k.seen)
	}
	k.mu.Unlock()
	if err := os.RemoveAll(s.Folder()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := bring(t, s, with(m, map[string]any{"auth_token": password})); err != nil {
		t.Fatal(err)
	}
	noSecret(t, log.String())
}

// TestKey: a library that wants to know which Ollama asks is answered with a signature, which Ollama's own server checks
// like this; the registry is a stand-in, as Ollama's is not to be had.
func TestKey(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	reg.Push(t, "team/m", "1", []byte(config), tiny(1))
	gate := newFront(t, reg.Host)
	gate.answer(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			empty := sha256.Sum256(nil)
			text := "GET," + gate.URL + r.URL.String() + "," + base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(empty[:])))
			key, signature, _ := strings.Cut(r.Header.Get("Authorization"), ":")
			wire, _ := base64.StdEncoding.DecodeString(key)
			sig, _ := base64.StdEncoding.DecodeString(signature)
			got, err := ssh.ParsePublicKey(wire)
			if err != nil || !bytes.Contains(got.Marshal(), public) || !ed25519.Verify(public, []byte(text), sig) || r.URL.Query().Get("nonce") == "" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"granted"}`)
			return true
		case r.Header.Get("Authorization") != "Bearer granted":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+gate.URL+`/token",service="library",scope="repository:team/m:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	m := ref(gate.host + "/team/m:1")
	_, _, err = bring(t, newSource(t, t.TempDir(), insecure(gate.host)), m)
	wantGated(t, err, "username")
	if _, _, err := bring(t, newSource(t, t.TempDir(), func(o *ollama.Options) { o.Insecure, o.Key = []string{gate.host}, file }), m); err != nil {
		t.Fatal(err)
	}
}

// TestTokenExpires: a token that is good for a while is asked for again in the middle of a fetch.
func TestTokenExpires(t *testing.T) {
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{})
	reg.Push(t, "team/m", "1", []byte(config), tiny(1), license("x"))
	gate := newFront(t, reg.Host)
	var mu sync.Mutex
	given, left := 0, 0 // tokens, and how many requests the last is good for
	gate.answer(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			given++
			left = 2
			fmt.Fprintf(w, `{"access_token":"granted %d"}`, given)
			return true
		}
		if left == 0 || r.Header.Get("Authorization") != fmt.Sprintf("Bearer granted %d", given) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		left--
		return false
	})
	// One request after the other: of several at once, each may find that the others have used the new token up.
	_, a, err := bring(t, newSource(t, t.TempDir(), func(o *ollama.Options) {
		o.Insecure, o.Fetcher = []string{gate.host}, fetch.New(fetch.Options{MinFree: -1, Connections: 1})
	}), ref(gate.host+"/team/m:1"))
	if err != nil || !exists(t, a.Path) {
		t.Fatal(err)
	}
	if given < 3 {
		t.Errorf("%d tokens were given", given)
	}
}
