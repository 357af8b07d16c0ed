package huggingface_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// stranger is a host that is not the Hub. It remembers what it was sent.
type stranger struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newStranger(t *testing.T) *stranger {
	s := &stranger{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, r.Header.Get("Authorization")+" "+r.Header.Get("Referer")+" "+r.Header.Get("Cookie"))
		_, _ = io.WriteString(w, `{"sha": "`+strings.Repeat("a", 40)+`"}`)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *stranger) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

// TestTokenStaysHome sends every kind of request to a stranger and looks what it gets.
func TestTokenStaysHome(t *testing.T) {
	for _, match := range []string{"/revision/", "/tree/", "/resolve/", "config.json", "model-00001"} {
		r := newRig(t, hubtest.Options{Tokens: users})
		other := newStranger(t)
		r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
		r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultRedirect, Location: other.URL + "%s", Match: match})
		s := r.open(token(goodToken))
		if snap, err := s.Resolve(within(t), safetensors("org/tiny")); err == nil {
			if _, err := s.Fetch(within(t), snap, func(registry.Progress) {}); err == nil {
				t.Errorf("%s: what a stranger sends is taken for the model", match)
			}
		}
		// A HEAD that is redirected without the Hub's own headers is not followed at all.
		if len(other.requests()) == 0 && match != "model-00001" {
			t.Errorf("%s: the redirect was not tried, so that nothing is known", match)
		}
		for _, seen := range other.requests() {
			if strings.TrimSpace(seen) != "" {
				t.Errorf("%s: the stranger was sent %q", match, seen)
			}
		}
	}
}

// TestPrivateAddress lets a Hub on the open internet redirect to this machine.
func TestPrivateAddress(t *testing.T) {
	r := newRig(t, hubtest.Options{Tokens: users})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	endpoint, err := url.Parse("http://93.184.216.34")
	if err != nil {
		t.Fatal(err)
	}
	real := strings.TrimPrefix(r.hub.URL, "http://")
	transport := huggingface.GuardedTransport(endpoint)
	t.Cleanup(transport.CloseIdleConnections)
	dial := transport.DialContext
	transport.Proxy = nil
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "93.184.216.34:80" {
			return (&net.Dialer{}).DialContext(ctx, network, real)
		}
		return dial(ctx, network, address)
	}
	s := r.open(token(goodToken), func(o *huggingface.Options) { o.Endpoint, o.Transport = endpoint.String(), transport })
	// The Hub of the test has its second host on this machine, too.
	says(t, r.wrong(s, safetensors("org/tiny")), registry.CodeUnavailable, "private network", "nothing was sent there")
	other := newStranger(t)
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultRedirect, Location: other.URL + "%s", Match: "/api/"})
	says(t, r.wrong(s, safetensors("org/tiny")), registry.CodeUnavailable, "private network")
	if got := other.requests(); len(got) > 0 {
		t.Errorf("it was asked: %q", got)
	}
	if got := r.hub.Served(); got.FromCDN != 0 {
		t.Errorf("%d bytes came from the second host", got.FromCDN)
	}
	// A Hub that is itself on this machine may have its second host there.
	own, err := url.Parse(r.hub.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport = huggingface.GuardedTransport(own)
	t.Cleanup(transport.CloseIdleConnections)
	r.hub.Heal()
	r.fetch(r.open(func(o *huggingface.Options) { o.Transport = transport }), safetensors("org/tiny"))
}

// TestEnvironment holds what is read from the environment against what the Python client reads from the same.
func TestEnvironment(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "mytoken"), []byte(" hf_fromfile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(home, "hfhome"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "hfhome", "token"), []byte("hf_fromhome"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]map[string]string{
		"nothing":      {},
		"hub cache":    {"HF_HUB_CACHE": "~/c", "HF_HOME": "/elsewhere"},
		"old name":     {"HUGGINGFACE_HUB_CACHE": "/old/hub"},
		"home":         {"HF_HOME": "$HOME/hfhome"},
		"xdg":          {"XDG_CACHE_HOME": "/xdg"},
		"token":        {"HF_TOKEN": " hf_direct\r\n", "HF_HOME": "~/hfhome"},
		"token file":   {"HF_TOKEN_PATH": "~/mytoken"},
		"variable":     {"HF_HOME": "${BASE}/x", "BASE": "/base"},
		"unknown":      {"HF_HOME": "/a/$NOTHERE/x"},
		"offline":      {"HF_HUB_OFFLINE": "yes"},
		"not offline":  {"HF_HUB_OFFLINE": "0"},
		"transformers": {"TRANSFORMERS_OFFLINE": "1"},
		"endpoint":     {"HF_ENDPOINT": "https://mirror.example/hf/"},
	}
	for _, env := range cases {
		env["HOME"] = home
	}
	raw, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	type settings struct {
		Cache, Endpoint, Token string
		Offline                bool
	}
	var want map[string]settings
	r := &rig{t: t, hub: hubtest.New(t, hubtest.Options{}), cache: "unused"}
	r.run(&want, `import importlib
from huggingface_hub import constants
from huggingface_hub.utils import get_token
out = {}
for name, env in json.loads(os.environ["CASES"]).items():
    os.environ.clear()
    os.environ.update(env)
    importlib.reload(constants)
    out[name] = {"Cache": constants.HF_HUB_CACHE, "Endpoint": constants.ENDPOINT, "Token": get_token() or "", "Offline": constants.HF_HUB_OFFLINE}
print(json.dumps(out))`, "CASES="+string(raw))
	for name, env := range cases {
		var got settings
		got.Cache, got.Endpoint, got.Token, got.Offline = huggingface.Environment(func(n string) string { return env[n] })
		if d := cmp.Diff(want[name], got); d != "" {
			t.Errorf("%s: what is read differs from the client's:\n%s", name, d)
		}
	}
	for _, bad := range []string{"ftp://x", "https://user:pass@host", "no address", "https://host?x=1"} {
		if _, err := huggingface.New(huggingface.Options{Endpoint: bad, Getenv: func(string) string { return "" }}); registry.CodeOf(err) != registry.CodeInvalid || strings.Contains(err.Error(), "pass") {
			t.Errorf("%s as an endpoint: %v", bad, err)
		}
	}
}
