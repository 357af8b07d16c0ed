package static

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, path string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func TestHashedFilesAreImmutable(t *testing.T) {
	for name := range byName {
		u := URL(name)
		if !regexp.MustCompile(`\.[0-9a-f]{12}\.(css|js|svg)$`).MatchString(u) {
			t.Errorf("URL(%q) = %q, want a hash in it", name, u)
		}
		res := get(t, u)
		if res.StatusCode != 200 || !strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: status %d, Cache-Control %q", u, res.StatusCode, res.Header.Get("Cache-Control"))
		}
		if res.Header.Get("Content-Type") == "" {
			t.Errorf("%s has no content type", u)
		}
	}
}

func TestPlainNamesAreRevalidated(t *testing.T) {
	res := get(t, "/static/icon.svg")
	if res.StatusCode != 200 || res.Header.Get("Cache-Control") != "no-cache" {
		t.Fatalf("status %d, Cache-Control %q", res.StatusCode, res.Header.Get("Cache-Control"))
	}
	again := get(t, "/static/icon.svg", "If-None-Match", res.Header.Get("ETag"))
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("with a matching ETag: status %d, want 304", again.StatusCode)
	}
}

func TestUnknownFilesAreNotFound(t *testing.T) {
	for _, p := range []string{"/static/nothing.css", "/static/", "/static/../static.go", "/static/console.000000000000.css"} {
		if res := get(t, p); res.StatusCode != 404 {
			t.Errorf("%s: status %d, want 404", p, res.StatusCode)
		}
	}
}

// The policy allows no inline script and no eval, so our own scripts must not need them.
func TestScriptsNeedNoEval(t *testing.T) {
	for _, name := range []string{"theme.js", "console.js", "chat.js", "try.js"} {
		body := string(byName[name].body)
		for _, bad := range []string{"eval(", "new Function", ".innerHTML", "document.write", ".style."} {
			if strings.Contains(body, bad) {
				t.Errorf("%s uses %s", name, bad)
			}
		}
	}
}
