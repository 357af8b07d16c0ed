package huggingface_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

const (
	goodToken  = "hf_goodgoodgoodgood"
	otherToken = "hf_otherotherother"
	badToken   = "hf_badbadbadbadbad"
)

var users = map[string]string{goodToken: "alice", otherToken: "bob"}

func withParams(ref sources.Ref, pairs ...any) sources.Ref {
	ref.Params = map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		ref.Params[pairs[i].(string)] = pairs[i+1]
	}
	return ref
}

func TestGated(t *testing.T) {
	r := newRig(t, hubtest.Options{Tokens: users})
	files := sourcetest.SafetensorsFolder(1)
	r.hub.Put(t, "org/gated", files)
	r.hub.Set(t, "org/gated", hubtest.Settings{Gated: "manual", Authorized: []string{"alice"}, CardData: map[string]any{"license": "llama3.1"}})
	ref := safetensors("org/gated")

	snap, err := r.source.Resolve(within(t), ref)
	var e *registry.Error
	if !errors.As(err, &e) || e.Failure == nil || e.Failure.Kind != registry.FailureGated {
		t.Fatalf("got %v", err)
	}
	says(t, e, registry.CodeLoadingFailed, "org/gated is gated", r.hub.URL+"/org/gated", "custom_loader_params.auth_token", "HF_TOKEN")
	if !snap.Facts.Gated || snap.Facts.Licence != "llama3.1" || len(snap.Files) == 0 || snap.Bytes == 0 {
		t.Errorf("what the Hub shows to everybody is not told: %+v", snap)
	}

	e = r.wrong(r.open(token(otherToken)), ref)
	says(t, e, registry.CodeLoadingFailed, "org/gated is gated", "HF_TOKEN", r.hub.URL+"/org/gated")
	e = r.wrong(r.source, withParams(ref, "auth_token", otherToken))
	says(t, e, registry.CodeLoadingFailed, "the account of custom_loader_params.auth_token")
	e = r.wrong(r.source, withParams(ref, "auth_token", badToken))
	if len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params.auth_token" {
		t.Errorf("a bad token is not told at its field: %+v", e)
	}
	says(t, e, registry.CodeInvalid, "mistyped, expired or revoked")
	e = r.wrong(r.open(token(badToken)), ref)
	says(t, e, registry.CodeInvalid, "HF_TOKEN", "mistyped, expired or revoked")

	a := r.fetch(r.source, withParams(ref, "auth_token", goodToken))
	if !a.Facts.Gated || len(a.Files) != len(files) {
		t.Errorf("with the right token: %+v", a)
	}
	if got := r.hub.Served().CDNTokens; len(got) > 0 {
		t.Errorf("the second host saw %v", got)
	}
}

func TestNotThere(t *testing.T) {
	r := newRig(t, hubtest.Options{Tokens: users})
	r.hub.Put(t, "org/private", sourcetest.SafetensorsFolder(1))
	r.hub.Set(t, "org/private", hubtest.Settings{Private: true, Authorized: []string{"alice"}})
	r.hub.Put(t, "org/disabled", sourcetest.SafetensorsFolder(1))
	r.hub.Set(t, "org/disabled", hubtest.Settings{Disabled: true})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	r.hub.PutAt(t, "org/tiny", "experiment", sourcetest.SafetensorsFolder(2))

	says(t, r.wrong(r.source, safetensors("org/private")), registry.CodeNotFound, "org/private", "private", "auth_token")
	says(t, r.wrong(r.source, safetensors("org/missing")), registry.CodeNotFound, "org/missing", "auth_token")
	says(t, r.wrong(r.open(token(otherToken)), safetensors("org/private")), registry.CodeNotFound, "that the token of this machine (HF_TOKEN or its file) may see")
	says(t, r.wrong(r.source, safetensors("org/disabled")), registry.CodeNotFound, "disabled")
	if a := r.fetch(r.open(token(goodToken)), safetensors("org/private")); a.Path == "" {
		t.Error("with the right token the private repository is not there")
	}
	ref := safetensors("org/tiny")
	ref.Revision = "v9"
	says(t, r.wrong(r.source, ref), registry.CodeNotFound, `"v9"`, "it has", "main", "experiment")
	e := r.wrong(r.source, safetensors("org/onnxless"))
	says(t, e, registry.CodeNotFound)
}

func TestRenamed(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "new/name", sourcetest.SafetensorsFolder(1))
	r.hub.Put(t, "old/name", sourcetest.SafetensorsFolder(1))
	r.hub.Set(t, "old/name", hubtest.Settings{RenamedTo: "new/name"})
	a := r.fetch(r.source, safetensors("old/name"))
	if !slices.ContainsFunc(a.Facts.Notes, func(n string) bool { return strings.Contains(n, "renamed to new/name") }) {
		t.Errorf("it is not said that the model was renamed: %q", a.Facts.Notes)
	}
}

func TestBusyAndBroken(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	ref := safetensors("org/tiny")

	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 429, Wait: 55 * time.Second, Match: "/api/"})
	e := r.wrong(r.source, ref)
	says(t, e, registry.CodeBusy, "too many requests", "HF_TOKEN")
	if e.RetryAfter != 56*time.Second {
		t.Errorf("it asks for %s, want 56s", e.RetryAfter)
	}
	r.hub.Heal()

	// A short trouble is sat out.
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 502, Match: "/api/", Times: 2})
	r.resolve(r.source, ref)
	r.hub.Heal()

	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 500, Match: "/api/"})
	says(t, r.wrong(r.source, ref), registry.CodeUnavailable, "problem of its own", "500")
	r.hub.Heal()

	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultHTML, Match: "/api/"})
	says(t, r.wrong(r.source, ref), registry.CodeUnavailable, "not the Hub", "web page", "HF_ENDPOINT")
	r.hub.Heal()

	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultHTML, Match: "model-00001"})
	if e := r.wrong(r.source, ref); e.Code != registry.CodeUnavailable && e.Code != registry.CodeLoadingFailed {
		t.Errorf("a page instead of a file: %v", e)
	}
	r.hub.Heal()

	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultLoop, Match: "/api/"})
	says(t, r.wrong(r.source, ref), registry.CodeUnavailable, "circle")
	r.hub.Heal()
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultLoop, Match: "/resolve/"})
	says(t, r.wrong(r.source, ref), registry.CodeUnavailable, "circle")
	r.hub.Heal()

	for _, kind := range []hubtest.FaultKind{hubtest.FaultLinkedSize, hubtest.FaultLinkedETag} {
		r.hub.Fault(hubtest.Fault{Kind: kind, Match: "model-00001", Delta: 7})
		e := r.wrong(r.source, ref)
		if kind == hubtest.FaultLinkedSize {
			says(t, e, registry.CodeLoadingFailed, "contradicts itself", "model-00001-of-00002.safetensors")
		} else if e.Failure == nil || e.Failure.Kind != registry.FailureCorruptFile {
			t.Errorf("a hash that lies: %v", e)
		}
		r.hub.Heal()
	}
	r.fetch(r.source, ref)
}

func TestUnreachable(t *testing.T) {
	closed, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + closed.Addr().String()
	closed.Close()
	r := newRig(t, hubtest.Options{})
	says(t, r.wrong(r.open(func(o *huggingface.Options) { o.Endpoint = address }), safetensors("org/tiny")), registry.CodeUnavailable, "cannot be reached", "HF_HUB_OFFLINE")
	says(t, r.wrong(r.open(offline), safetensors("org/tiny")), registry.CodeUnavailable, "HF_HUB_OFFLINE is set", r.cache)
	says(t, r.wrong(r.open(func(o *huggingface.Options) { o.Endpoint = "http://no-such-host.invalid" }), safetensors("org/tiny")), registry.CodeUnavailable, "cannot be reached")
	proxy, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	behind := fetch.Transport(fetch.TransportOptions{Proxy: http.ProxyURL(proxy)})
	says(t, r.wrong(r.open(func(o *huggingface.Options) { o.Transport = behind }), safetensors("org/tiny")), registry.CodeUnavailable, "proxy")
}

// byRangesOnly answers 400 to requests for a whole file, as the Hub's second host does for a file above 50 GB.
type byRangesOnly struct {
	http.RoundTripper
	cdn   string
	whole atomic.Int64
}

func (t *byRangesOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == t.cdn && req.Header.Get("Range") == "" {
		t.whole.Add(1)
		return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{"Content-Type": {"text/html"}}, Body: http.NoBody, Request: req, ProtoMajor: 1, ProtoMinor: 1}, nil
	}
	return t.RoundTripper.RoundTrip(req)
}

// TestLargeFiles fetches a file that the Hub gives by ranges only, and says what to do about one that it does not give at
// all.
func TestLargeFiles(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	content := bigGGUF(3<<20, 1)
	r.hub.Put(t, "org/huge", map[string][]byte{"huge.gguf": content})
	ranges := &byRangesOnly{RoundTripper: http.DefaultTransport, cdn: strings.TrimPrefix(r.hub.CDN, "http://")}
	s := r.open(func(o *huggingface.Options) { ranges.RoundTripper = o.Transport; o.Transport = ranges })
	huggingface.SetLarge(s, 1<<20)
	snap := r.resolve(s, gguf("org/huge"))
	if notes := strings.Join(snap.Facts.Notes, " "); strings.Contains(notes, "Xet") {
		t.Errorf("it can be fetched, and it is said: %s", notes)
	}
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: http.StatusBadRequest, Host: hubtest.OnCDN})
	_, err := s.Fetch(within(t), snap, func(registry.Progress) {})
	says(t, registry.AsError(err), registry.CodeUnsupported, "huge.gguf", "hf_xet", "HF_HUB_CACHE="+r.cache, "hf download org/huge huge.gguf")
	r.hub.Heal()
	a, err := s.Fetch(within(t), snap, func(registry.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("it is not what was put: %v", err)
	}
	if n := ranges.whole.Load(); n != 0 {
		t.Errorf("%d requests were for the whole file", n)
	}
}

// TestPermission fetches as a user who may not write to the cache. The superuser may write everywhere, so that it starts
// this test binary again as another user.
func TestPermission(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	if err := os.MkdirAll(r.cache, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(r.cache, 0o555); err != nil {
			t.Fatal(err)
		}
		says(t, r.wrong(r.source, safetensors("org/tiny")), registry.CodeUnavailable, r.cache, "permission", "HF_HUB_CACHE")
		return
	}
	for _, dir := range []string{r.cache, filepath.Dir(r.cache), filepath.Dir(filepath.Dir(r.cache))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(r.cache, "..", "self")
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(within(t), binary)
	cmd.Dir = "/"
	cmd.Env = []string{"HF_TEST_ROLE=safetensors", "HF_TEST_ID=org/tiny", "HF_TEST_CACHE=" + r.cache, "HF_TEST_ENDPOINT=" + r.hub.URL, "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), r.cache) || !strings.Contains(string(out), "permission denied") || !strings.Contains(string(out), "HF_HUB_CACHE") {
		t.Errorf("it says %q: %v", out, err)
	}
}

// TestNoFolder has a file where the cache should be.
func TestNoFolder(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	if err := os.WriteFile(r.cache, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, r.wrong(r.source, safetensors("org/tiny")), registry.CodeInvalid, r.cache, "HF_HUB_CACHE")
}

func TestFields(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	for name, c := range map[string]struct {
		ref   sources.Ref
		field string // "" when there is no fault
	}{
		"id":               {gguf("org/name"), ""},
		"old id":           {gguf("gpt2"), ""},
		"uri":              {gguf("hf://org/name@v1"), ""},
		"page":             {gguf("https://huggingface.co/org/name/tree/main"), ""},
		"file page":        {gguf("https://huggingface.co/org/name/blob/main/a/b.gguf"), ""},
		"own hub":          {gguf(r.hub.URL + "/org/name"), ""},
		"empty":            {gguf(""), "source_path"},
		"three parts":      {gguf("a/b/c"), "source_path"},
		"dots":             {gguf("../etc"), "source_path"},
		"dots inside":      {gguf("a/b..c"), "source_path"},
		"double dash":      {gguf("a/b--c"), "source_path"},
		"git":              {gguf("a/b.git"), "source_path"},
		"absolute":         {gguf("/etc/passwd"), "source_path"},
		"letters":          {gguf("org/näme"), "source_path"},
		"dataset":          {gguf("hf://datasets/org/name"), "source_path"},
		"elsewhere":        {gguf("https://example.com/org/name"), "source_path"},
		"revision up":      {sources.Ref{Path: "a/b", Revision: "../x", Format: registry.FormatGGUF}, "revision"},
		"revision twice":   {sources.Ref{Path: "hf://a/b@v1", Revision: "v2", Format: registry.FormatGGUF}, "revision"},
		"revision nul":     {sources.Ref{Path: "a/b", Revision: "a\x00", Format: registry.FormatGGUF}, "revision"},
		"pull request":     {sources.Ref{Path: "a/b", Revision: "refs/pr/1", Format: registry.FormatGGUF}, ""},
		"token number":     {withParams(gguf("a/b"), "auth_token", 5), "custom_loader_params.auth_token"},
		"token letters":    {withParams(gguf("a/b"), "auth_token", "hf\u00e4"), "custom_loader_params.auth_token"},
		"quantization":     {withParams(gguf("a/b"), "quantization", 4), "custom_loader_params.quantization"},
		"both":             {withParams(gguf("a/b"), "quantization", "Q4_0", "filename", "x.gguf"), "custom_loader_params.filename"},
		"file up":          {withParams(gguf("a/b"), "filename", "../x.gguf"), "custom_loader_params.filename"},
		"file of a folder": {withParams(safetensors("a/b"), "filename", "model.safetensors"), "custom_loader_params.filename"},
		"patterns":         {withParams(gguf("a/b"), "allow_patterns", []any{1}), "custom_loader_params.allow_patterns"},
		"one pattern":      {withParams(gguf("a/b"), "allow_patterns", "*.gguf"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			errs := r.source.Check(c.ref)
			if c.field == "" && len(errs) > 0 || c.field != "" && (len(errs) != 1 || errs[0].Field != c.field) {
				t.Errorf("Check says %+v, want a fault of %q", errs, c.field)
			}
			if c.field == "" {
				return
			}
			if e := r.wrong(r.source, c.ref); e.Code != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != c.field {
				t.Errorf("Resolve says %+v", e)
			}
		})
	}
}

// TestSecretsStaySecret makes things fail in many ways and looks for the token and for signed addresses in what is said.
func TestSecretsStaySecret(t *testing.T) {
	for name, faults := range map[string][]hubtest.Fault{
		"status":    {{Kind: hubtest.FaultStatus, Status: 403, Host: hubtest.OnCDN}},
		"html":      {{Kind: hubtest.FaultHTML}},
		"loop":      {{Kind: hubtest.FaultLoop}},
		"cdn loop":  {{Kind: hubtest.FaultLoop, Host: hubtest.OnCDN}},
		"to file":   {{Kind: hubtest.FaultRedirect, Location: "ftp://example.com%s", Match: "/resolve/"}},
		"no length": {{Kind: hubtest.FaultLinkedSize, Delta: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hubtest.Options{Tokens: users})
			r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
			r.hub.Fault(faults...)
			e := r.wrong(r.open(token(goodToken)), safetensors("org/tiny"))
			for err := error(e); err != nil; err = errors.Unwrap(err) {
				if text := err.Error(); strings.Contains(text, goodToken) || strings.Contains(text, "Signature=") {
					t.Errorf("it says a secret: %s", text)
				}
			}
			if e.Failure != nil && (strings.Contains(e.Failure.Msg, goodToken) || strings.Contains(e.Failure.Hint, goodToken)) {
				t.Errorf("it says a secret: %+v", e.Failure)
			}
			if got := r.hub.Served().CDNTokens; len(got) > 0 {
				t.Errorf("the second host saw %v", got)
			}
		})
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/tiny", sourcetest.SafetensorsFolder(1))
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 503, Match: "/api/"})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := r.source.Resolve(ctx, safetensors("org/tiny")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(r.cache); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a look made the cache: %v", err)
	}
}
