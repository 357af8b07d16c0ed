package s3_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/s3"
	"github.com/industriverse/llmmodelmanager/internal/sources/s3/s3test"
)

// rig is a source with a server behind a proxy.
type rig struct {
	server *s3test.Server
	proxy  *s3test.Proxy
	source *s3.Source
	dir    string
	bucket string
}

// noEnvironment hides what this machine has of S3 settings.
func noEnvironment(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ACCESS_KEY_ID",
		"AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_CONFIG_FILE", "")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// newRig starts a server. Its cache folder was found before the home was hidden.
func newRig(t *testing.T) *rig {
	t.Helper()
	program := s3test.Find(t)
	noEnvironment(t)
	t.Setenv("LLMM_TEST_S3", program)
	r := &rig{server: s3test.Start(t), dir: t.TempDir()}
	r.proxy = r.server.Proxy(t)
	r.bucket = r.server.Bucket(t, false)
	r.source = newSource(t, r.dir, true)
	return r
}

func newSource(t *testing.T, dir string, allowPrivate bool) *s3.Source {
	t.Helper()
	s := s3.New(s3.Options{Dir: dir, Fetcher: fetch.New(fetch.Options{MinFree: -1}), AllowPrivate: allowPrivate})
	t.Cleanup(s.Close)
	return s
}

// params are the parameters of a model in the rig's server, with more of them or others.
func (r *rig) params(more ...map[string]any) map[string]any {
	p := map[string]any{
		"endpoint_url": r.proxy.URL, "region": s3test.Region, "access_key_id": s3test.AccessKey, "secret_access_key": s3test.SecretKey,
	}
	for _, m := range more {
		maps.Copy(p, m)
	}
	return p
}

func (r *rig) ref(path string, format registry.Format, more ...map[string]any) sources.Ref {
	return sources.Ref{Path: "s3://" + r.bucket + "/" + path, Revision: "main", Format: format, Params: r.params(more...)}
}

// put makes files the content of a prefix.
func (r *rig) put(t *testing.T, prefix string, files map[string][]byte) {
	t.Helper()
	r.server.Remove(t, r.bucket, prefix+"/")
	for name, content := range files {
		r.server.Put(t, r.bucket, prefix+"/"+name, content)
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (r *rig) resolve(t *testing.T, ref sources.Ref) sources.Snapshot {
	t.Helper()
	s, err := r.source.Resolve(within(t), ref)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	return s
}

func (r *rig) fetch(t *testing.T, snap sources.Snapshot) registry.Artifact {
	t.Helper()
	a, err := r.source.Fetch(within(t), snap, func(registry.Progress) {})
	if err != nil {
		t.Fatalf("Fetch: %v", err)
	}
	return a
}

// refused checks an error: its code, words in it, and that no secret is.
func refused(t *testing.T, err error, code registry.Code, kind registry.FailureKind, words ...string) {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T %v is no registry.Error", err, err)
	}
	got := registry.FailureKind("")
	if e.Failure != nil {
		got = e.Failure.Kind
	}
	if e.Code != code || got != kind {
		t.Errorf("got %s %s, want %s %s: %v", e.Code, got, code, kind, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	noSecret(t, err.Error())
}

func noSecret(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{s3test.SecretKey, s3test.AccessKey} {
		if strings.Contains(text, s) {
			t.Errorf("a secret is in %q", text)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	if child() {
		return
	}
	goleak.VerifyTestMain(m)
}
