package s3_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/s3/s3test"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// TestRefusals are answers of the real server.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	ref := func(more map[string]any) sources.Ref { return r.ref("m", registry.FormatGGUF, more) }
	secret := r.server.Account(t, "nobody")
	for name, tt := range map[string]struct {
		ref   sources.Ref
		code  registry.Code
		kind  registry.FailureKind
		words []string
	}{
		"no bucket":    {sources.Ref{Path: "s3://no-such-bucket/m", Format: registry.FormatGGUF, Params: r.params()}, registry.CodeNotFound, none, []string{"no-such-bucket", r.proxy.URL, "source_path"}},
		"no prefix":    {r.ref("n", registry.FormatGGUF), registry.CodeNotFound, none, []string{"/n", "m/"}},
		"wrong secret": {ref(map[string]any{"secret_access_key": "wrong-secret-wrong"}), registry.CodeInvalid, none, []string{"custom_loader_params.secret_access_key", "signature"}},
		"unknown key":  {ref(map[string]any{"access_key_id": "AKIAUNKNOWN"}), registry.CodeInvalid, none, []string{"custom_loader_params.access_key_id", "not known"}},
		"wrong region": {ref(map[string]any{"region": "us-wrong-1"}), registry.CodeInvalid, none, []string{"custom_loader_params.region", "us-wrong-1", "set region to " + s3test.Region}},
		"denied":       {ref(map[string]any{"access_key_id": "nobody", "secret_access_key": secret}), registry.CodeLoadingFailed, registry.FailureGated, []string{"denies", "s3:GetObject"}},
		"anonymous":    {ref(map[string]any{"access_key_id": nil, "secret_access_key": nil}), registry.CodeLoadingFailed, registry.FailureGated, []string{"denies", "Set access_key_id"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.source.Resolve(within(t), tt.ref)
			refused(t, err, tt.code, tt.kind, tt.words...)
			if strings.Contains(err.Error(), "wrong-secret-wrong") || strings.Contains(err.Error(), secret) {
				t.Errorf("a secret is in %v", err)
			}
			_, err = r.source.Offers(within(t), tt.ref)
			refused(t, err, tt.code, tt.kind)
		})
	}
	// No region at all: it is found out by asking.
	r.resolve(t, ref(map[string]any{"region": nil}))
	// Without the right, what was looked at is not fetched either.
	s := r.resolve(t, ref(nil))
	s.Ref = ref(map[string]any{"access_key_id": "nobody", "secret_access_key": secret})
	_, err := r.source.Fetch(within(t), s, func(registry.Progress) {})
	refused(t, err, registry.CodeLoadingFailed, registry.FailureGated, "denies")
}

// TestAnswers are answers that the server of the tests does not give by itself.
func TestAnswers(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	s := r.resolve(t, r.ref("m", registry.FormatGGUF))
	for name, tt := range map[string]struct {
		fault s3test.Fault
		code  registry.Code
		kind  registry.FailureKind
		words []string
	}{
		"skew":      {s3test.Fault{Status: 403, Code: "RequestTimeTooSkewed", Msg: "The difference is too large"}, registry.CodeUnavailable, none, []string{"clock"}},
		"expired":   {s3test.Fault{Status: 400, Code: "ExpiredToken", Msg: "The provided token has expired"}, registry.CodeInvalid, none, []string{"session_token", "expired"}},
		"redirect":  {s3test.Fault{Status: 301, Code: "PermanentRedirect", Msg: "Use another", Header: map[string]string{"x-amz-bucket-region": "ap-south-2"}}, registry.CodeInvalid, none, []string{"region", "ap-south-2"}},
		"malformed": {s3test.Fault{Status: 400, Code: "AuthorizationHeaderMalformed", Msg: "The authorization header is malformed; the region 'a' is wrong; expecting 'eu-north-1'"}, registry.CodeInvalid, none, []string{"region", "eu-north-1"}},
		"echo":      {s3test.Fault{Status: 400, Code: "InvalidArgument", Msg: "you sent " + s3test.SecretKey + " and " + s3test.AccessKey + "\x1b[31m"}, registry.CodeUnavailable, none, []string{"[redacted]"}},
		"page":      {s3test.Fault{Status: 404, Code: "Page", Msg: "Not Found"}, registry.CodeUnavailable, none, []string{"is endpoint_url the address of an S3 service"}},
		"slow":      {s3test.Fault{Status: 503, Code: "SlowDown", Msg: "Reduce your request rate"}, registry.CodeUnavailable, none, []string{"overloaded", "SlowDown"}},
		"archived":  {s3test.Fault{Status: 403, Code: "InvalidObjectState", Msg: "The operation is not valid for the object's storage class"}, registry.CodeLoadingFailed, registry.FailureMissingFile, []string{"archive", "Restore"}},
	} {
		t.Run(name, func(t *testing.T) {
			r.proxy.Fault(func(*http.Request) s3test.Fault { return tt.fault })
			defer r.proxy.Fault(nil)
			_, err := r.source.Resolve(within(t), r.ref("m", registry.FormatGGUF))
			refused(t, err, tt.code, tt.kind, tt.words...)
			if strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("the service writes to the terminal: %q", err.Error())
			}
		})
	}
	t.Run("archived in the listing", func(t *testing.T) {
		r.proxy.Fault(func(req *http.Request) s3test.Fault {
			if req.URL.Query().Get("list-type") == "" {
				return s3test.Fault{}
			}
			return s3test.Fault{Body: func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("STANDARD"), []byte("DEEP_ARCHIVE")) }}
		})
		defer r.proxy.Fault(nil)
		_, err := r.source.Resolve(within(t), r.ref("m", registry.FormatGGUF))
		refused(t, err, registry.CodeLoadingFailed, registry.FailureMissingFile, "tiny.gguf", "DEEP_ARCHIVE", "Restore")
	})
	t.Run("a web page with status 200", func(t *testing.T) {
		r.proxy.Fault(func(*http.Request) s3test.Fault {
			return s3test.Fault{Type: "text/html; charset=utf-8", Body: func([]byte) []byte { return []byte("<!doctype html><title>Sign in</title>") }}
		})
		defer r.proxy.Fault(nil)
		_, err := r.source.Resolve(within(t), r.ref("m", registry.FormatGGUF))
		refused(t, err, registry.CodeUnavailable, none, r.proxy.URL, "web page")
	})
	t.Run("gone", func(t *testing.T) {
		r.proxy.Fault(func(req *http.Request) s3test.Fault {
			if !s3test.IsObject(req) {
				return s3test.Fault{}
			}
			return s3test.Fault{Status: 404, Code: "NoSuchKey", Msg: "The specified key does not exist."}
		})
		defer r.proxy.Fault(nil)
		_, err := r.source.Fetch(within(t), s, func(registry.Progress) {})
		refused(t, err, registry.CodeLoadingFailed, registry.FailureMissingFile, "tiny.gguf")
	})
}

// TestTroubleThatPasses: a fetch gets through services that are overloaded and connections that break.
func TestTroubleThatPasses(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SafetensorsFolder(1)
	r.put(t, "m", files)
	var n atomic.Int64
	r.proxy.Fault(func(*http.Request) s3test.Fault {
		switch i := n.Add(1); {
		case i%5 == 2:
			return s3test.Fault{Status: 503, Code: "SlowDown", Msg: "Reduce your request rate", Header: map[string]string{"Retry-After": "1"}}
		case i%5 == 4:
			return s3test.Fault{Cut: true}
		}
		return s3test.Fault{}
	})
	a := r.fetch(t, r.resolve(t, r.ref("m", registry.FormatSafetensors)))
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(a.Path, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n.Load() < 10 {
		t.Errorf("only %d requests", n.Load())
	}
}

// TestUnreachable has no service to talk to.
func TestUnreachable(t *testing.T) {
	noEnvironment(t)
	src := newSource(t, t.TempDir(), true)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	sealed := httptest.NewUnstartedServer(http.NotFoundHandler())
	sealed.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	sealed.StartTLS()
	defer sealed.Close()
	for name, tt := range map[string]struct {
		endpoint string
		code     registry.Code
		words    []string
	}{
		"nobody listens": {closed.URL, registry.CodeUnavailable, []string{"nothing listens"}},
		"no such host":   {"http://no-such-host.invalid", registry.CodeUnavailable, []string{"no-such-host.invalid"}},
		"no TLS":         {strings.Replace(plain.URL, "http:", "https:", 1), registry.CodeInvalid, []string{"does not speak TLS", "http://"}},
		"unknown issuer": {sealed.URL, registry.CodeUnavailable, []string{"certificate", "SSL_CERT_FILE"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := src.Resolve(within(t), sources.Ref{Path: "s3://bucket/m", Format: registry.FormatGGUF, Params: map[string]any{
				"endpoint_url": tt.endpoint, "region": "x", "access_key_id": s3test.AccessKey, "secret_access_key": s3test.SecretKey,
			}})
			refused(t, err, tt.code, none, tt.words...)
		})
	}
}

// TestPrivateEndpoint: a model may not send the server to internal hosts; the environment may.
func TestPrivateEndpoint(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	ref := r.ref("m", registry.FormatGGUF)
	before := len(r.proxy.Requests())
	confined := newSource(t, t.TempDir(), false)
	_, err := confined.Resolve(within(t), ref)
	refused(t, err, registry.CodeInvalid, none, "custom_loader_params.endpoint_url", "private network", "AWS_ENDPOINT_URL")
	named := ref
	named.Params = r.params(map[string]any{"endpoint_url": strings.Replace(r.proxy.URL, "127.0.0.1", "localhost", 1)})
	_, err = confined.Resolve(within(t), named)
	refused(t, err, registry.CodeInvalid, none, "custom_loader_params.endpoint_url")
	if n := len(r.proxy.Requests()) - before; n > 0 {
		t.Errorf("%d requests came through", n)
	}

	t.Setenv("AWS_ENDPOINT_URL_S3", r.proxy.URL)
	t.Setenv("AWS_REGION", s3test.Region)
	configured := newSource(t, t.TempDir(), false)
	for _, params := range []map[string]any{ref.Params, {"access_key_id": s3test.AccessKey, "secret_access_key": s3test.SecretKey}} {
		ref.Params = params
		s, err := configured.Resolve(within(t), ref)
		check(t, err)
		_, err = configured.Fetch(within(t), s, func(registry.Progress) {})
		check(t, err)
	}
}

// TestEnvironment takes everything from variables and files, and keeps it from endpoints that models name.
func TestEnvironment(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	plain := sources.Ref{Path: "s3://" + r.bucket + "/m", Format: registry.FormatGGUF}
	try := func(ref sources.Ref) error {
		src := newSource(t, t.TempDir(), true)
		s, err := src.Resolve(within(t), ref)
		if err == nil {
			_, err = src.Fetch(within(t), s, func(registry.Progress) {})
		}
		return err
	}
	t.Run("variables", func(t *testing.T) {
		t.Setenv("AWS_ENDPOINT_URL", r.proxy.URL)
		t.Setenv("AWS_DEFAULT_REGION", s3test.Region)
		t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
		t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
		check(t, try(plain))

		other := r.server.Proxy(t)
		stranger := plain
		stranger.Params = map[string]any{"endpoint_url": other.URL, "region": s3test.Region}
		refused(t, try(stranger), registry.CodeLoadingFailed, registry.FailureGated, "the server's own credentials are not given to")
		stranger.Params["profile"] = "team"
		refused(t, try(stranger), registry.CodeInvalid, none, "custom_loader_params.profile")
		for _, auth := range other.Authorizations() {
			if auth != "" {
				t.Errorf("the stranger was given %q", auth)
			}
		}
		t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
		refused(t, try(plain), registry.CodeInvalid, none, "secret_access_key", "environment")
		t.Setenv("AWS_ENDPOINT_URL", "ftp://user:password@host")
		err := try(plain)
		refused(t, err, registry.CodeInvalid, none, "AWS_ENDPOINT_URL")
		if strings.Contains(err.Error(), "password@") {
			t.Errorf("a password is in %v", err)
		}
	})
	t.Run("files", func(t *testing.T) {
		dir := t.TempDir()
		credentials, config := filepath.Join(dir, "credentials"), filepath.Join(dir, "config")
		check(t, os.WriteFile(credentials, []byte("[default]\naws_access_key_id = AKIANOT\naws_secret_access_key = not-this-one\n[team]\naws_access_key_id = "+s3test.AccessKey+"\naws_secret_access_key = "+s3test.SecretKey+"\n"), 0o600))
		check(t, os.WriteFile(config, []byte("[default]\nregion = nowhere-1\n[profile team]\nregion = "+s3test.Region+"\nendpoint_url = "+r.proxy.URL+"\n"), 0o600))
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", credentials)
		t.Setenv("AWS_CONFIG_FILE", config)
		t.Setenv("AWS_PROFILE", "team")
		check(t, try(plain))
		t.Setenv("AWS_PROFILE", "")
		t.Setenv("AWS_ENDPOINT_URL", r.proxy.URL)
		ref := plain
		ref.Params = map[string]any{"profile": "team", "region": s3test.Region}
		check(t, try(ref))
		ref.Params["profile"] = "nobody"
		err := try(ref)
		if err == nil {
			t.Error("a profile that is not there is as good as any")
		}
		refused(t, err, registry.CodeInvalid, none, "profile")
	})
}

// TestPublicBucket needs no credentials where the bucket's policy lets everybody read.
func TestPublicBucket(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	check(t, r.server.Client.SetBucketPolicy(t.Context(), r.bucket, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::`+r.bucket+`","arn:aws:s3:::`+r.bucket+`/*"]}]}`))
	r.fetch(t, r.resolve(t, r.ref("m", registry.FormatGGUF, map[string]any{"access_key_id": nil, "secret_access_key": nil})))
	// An account that the policy names only for reading objects.
	secret := r.server.Account(t, "reader")
	c := r.client(t, "reader", secret)
	if _, err := c.StatObject(t.Context(), r.bucket, "m/tiny.gguf", minio.StatObjectOptions{}); err != nil {
		t.Errorf("the policy does not let everybody read: %v", err)
	}
}

// TestFolderThatIsAFile cannot write what it fetches.
func TestFolderThatIsAFile(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	src := newSource(t, file, true)
	s, err := src.Resolve(within(t), r.ref("m", registry.FormatGGUF))
	check(t, err)
	_, err = src.Fetch(within(t), s, func(registry.Progress) {})
	refused(t, err, registry.CodeUnavailable, none, file, "check the disk")
}
