package hubtest

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzAddresses asks for anything: the Hub answers, and nothing that is not below a repository comes out.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{
		"/api/models/org/m", "/api/models/org/m/tree/main?recursive=true&cursor=1&limit=1", "/api/models/org/m/refs", "/org/m/resolve/main/a.txt",
		"/org/m/resolve/refs%2Fheads%2Fmain/a.txt", "/org/m/resolve/main/../../secret.txt", "/org/m/resolve/main/..%2f..%2fsecret.txt",
		"/org/m@x/resolve/main/a.txt", "/../secret.txt", "/api/resolve-cache/models/org/m/main/../../secret.txt", "/org/../org/m/resolve/main/a.txt",
		"/org/secret.txt/resolve/main/", "/api/models/org/m.hub.json", "/api/whoami-v2", "/-/hubtest/served", "//", "/org//resolve/main/secret.txt",
	} {
		f.Add("GET", s, "bytes=0-1")
	}
	f.Add("POST", "/api/models/org/m/paths-info/main", "")
	root := f.TempDir()
	for name, text := range map[string]string{"org/m/a.txt": "a", "secret.txt": "SECRET", "org/secret.txt": "SECRET", "org/m.hub.json": `{"tags": {"SECRET": "main"}}`} {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	h := New(f, Options{Root: root, Tokens: map[string]string{"t": "u"}})
	f.Fuzz(func(t *testing.T, method, address, span string) {
		u, err := url.ParseRequestURI(address)
		if err != nil || !strings.HasPrefix(address, "/") {
			return
		}
		r := &http.Request{Method: method, URL: u, Header: http.Header{"Range": {span}}, Body: http.NoBody, RemoteAddr: "127.0.0.1:1"}
		for _, handler := range []http.Handler{h.hubHandler(), h.cdnHandler()} {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r.WithContext(t.Context()))
			body := w.Body.String()
			if w.Code == http.StatusOK && strings.Contains(body, "SECRET") && !strings.Contains(address, "refs") && !strings.HasPrefix(address, controlPath) && !strings.Contains(address, "SECRET") {
				t.Errorf("%s %s gives %s", method, address, body)
			}
		}
	})
}
