package hubtest_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// request sends one request without following redirects.
func request(t *testing.T, method, address string, header map[string]string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	return (&http.Transport{DisableKeepAlives: true, DisableCompression: true}).RoundTrip(req)
}

// get follows relative redirects only and returns the answer.
func get(t *testing.T, address string, header map[string]string) (status int, head http.Header, body []byte) {
	t.Helper()
	for range 10 {
		resp, err := request(t, "GET", address, header)
		if err != nil {
			t.Fatal(err)
		}
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		to := resp.Header.Get("Location")
		if resp.StatusCode/100 != 3 || !strings.HasPrefix(to, "/") {
			return resp.StatusCode, resp.Header, body
		}
		base, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		address = base.Scheme + "://" + base.Host + to
	}
	t.Fatalf("%s redirects without end", address)
	return 0, nil, nil
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestLargeFile(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h := hubtest.New(t, hubtest.Options{Expiry: time.Minute, Now: func() time.Time { return now }})
	b := content(300_000)
	commit := h.Put(t, "org/m", map[string][]byte{"model.gguf": b})
	status, head, _ := get(t, h.URL+"/org/m/resolve/main/model.gguf", nil)
	to := head.Get("Location")
	if status != 302 || head.Get("X-Repo-Commit") != commit || head.Get("X-Linked-Size") != "300000" ||
		head.Get("X-Linked-Etag") != `"`+sum(b)+`"` || !strings.HasPrefix(to, h.CDN+"/") {
		t.Fatalf("%d %v", status, head)
	}
	if head.Get("X-Xet-Hash") != "" {
		t.Error("it offers Xet, which it does not speak")
	}
	status, head, got := get(t, to, nil)
	if status != 200 || !bytes.Equal(got, b) || strings.Contains(head.Get("ETag"), sum(b)) {
		t.Errorf("the second host answers with %d, %d bytes, %v", status, len(got), head)
	}
	status, head, got = get(t, to, map[string]string{"Range": "bytes=1000-1999"})
	if status != 206 || !bytes.Equal(got, b[1000:2000]) || head.Get("Content-Range") != "bytes 1000-1999/300000" {
		t.Errorf("a range is %d, %d bytes, %v", status, len(got), head)
	}
	if status, _, _ = get(t, strings.Replace(to, "Expires=1", "Expires=2", 1), nil); status != 403 {
		t.Errorf("an address with another expiry is taken: %d", status)
	}
	s := h.Served()
	if s.Bytes != 301_000 || s.FromCDN != s.Bytes || s.Files["org/m/model.gguf"] != s.Bytes || s.Ranges != 1 || s.Requests != 4 || s.Open != 0 {
		t.Errorf("it counts %+v", s)
	}
	now = now.Add(2 * time.Minute)
	if status, _, body := get(t, to, nil); status != 403 || !bytes.Contains(body, []byte("expired")) {
		t.Errorf("after its time the address gives %d %s", status, body)
	}
}

func TestSmallFile(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	b := []byte(`{"a": "` + strings.Repeat("b", 2000) + `"}`)
	h.Put(t, "org/m", map[string][]byte{"config.json": b})
	status, head, got := get(t, h.URL+"/org/m/resolve/main/config.json", nil)
	if status != 200 || !bytes.Equal(got, b) || head.Get("ETag") != `"`+gitBlob(b)+`"` || head.Get("X-Repo-Commit") == "" {
		t.Errorf("%d %v", status, head)
	}
	status, head, got = get(t, h.URL+"/org/m/resolve/main/config.json", map[string]string{"Accept-Encoding": "gzip"})
	if status != 200 || len(got) >= len(b) || head.Get("ETag") != `W/"`+gitBlob(b)+`"` || head.Get("Content-Encoding") != "gzip" {
		t.Errorf("compressed: %d, %d bytes, %v", status, len(got), head)
	}
	if n := h.Served().FromHub; n != int64(2*len(b)) {
		t.Errorf("it counts %d bytes", n)
	}
}

// TestFolder serves a folder as it is, sees what changes in it, and keeps to what git would say.
func TestFolder(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("org/m/config.json", "{}")
	write("org/m/sub/a.txt", "a")
	write("org/m/sub.txt", "b")
	write("org/m@v2%2Fnext/config.json", `{"v": 2}`)
	write("org/m.hub.json", `{"tags": {"v1": "main"}, "names": {"../x": "out"}}`)
	write("old.hub.json", `{"renamed_to": "org/m"}`)
	h := hubtest.New(t, hubtest.Options{Root: root})
	ask := func(address string) (int, string, string) {
		t.Helper()
		status, head, body := get(t, h.URL+address, nil)
		return status, head.Get("X-Repo-Commit"), string(body)
	}
	status, first, body := ask("/org/m/resolve/main/config.json")
	if status != 200 || body != "{}" {
		t.Fatalf("%d %s", status, body)
	}
	if _, _, body = ask("/org/m/resolve/v2%2Fnext/config.json"); body != `{"v": 2}` {
		t.Errorf("the branch has %q", body)
	}
	if _, _, body = ask("/old/resolve/v1/config.json"); body != "{}" {
		t.Errorf("the tag of the renamed repository has %q", body)
	}
	if _, _, body = ask("/org/m/resolve/main/../x"); body != "out" {
		t.Errorf("the name that no folder holds has %q", body)
	}
	if status, _, _ = ask("/org/m/resolve/main/../../m.hub.json"); status != 404 {
		t.Errorf("a file beside the repository is served: %d", status)
	}
	write("org/m/config.json", `{"new": 1}`)
	_, second, body := ask("/org/m/resolve/main/config.json")
	if body != `{"new": 1}` || second == first || len(second) != 40 {
		t.Errorf("after a change it serves %q at %s, before at %s", body, second, first)
	}
	if status, _, _ = ask("/org/m/resolve/" + first + "/config.json"); status != 404 {
		t.Errorf("what the first commit had is not there any more, but %d", status)
	}
	if _, sha, body := ask("/org/m/resolve/" + first + "/sub/a.txt"); body != "a" || sha != first {
		t.Errorf("the first commit's other files: %q at %s", body, sha)
	}
}

// TestGitAgrees compares the names of commits' trees with git's own.
func TestGitAgrees(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("git is missing; install it")
	}
	dir := t.TempDir()
	files := map[string]string{"a.txt": "a", "a/b.txt": "b", "a-b": "c", "z/y/x": "d", "a.b/c": "e"}
	puts := map[string][]byte{}
	for name, text := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		puts[name] = []byte(text)
	}
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "core.autocrlf=false"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", "-A")
	want := git("write-tree")
	h := hubtest.New(t, hubtest.Options{})
	commit := h.Put(t, "org/m", puts)
	who := "hubtest <hubtest@localhost> 0 +0000"
	object := fmt.Sprintf("tree %s\nauthor %s\ncommitter %s\n\nUpload to org/m\n", want, who, who)
	s := sha1.Sum(fmt.Appendf(nil, "commit %d\x00%s", len(object), object))
	if got := hex.EncodeToString(s[:]); got != commit {
		t.Errorf("the commit is %s; with git's name of the tree, %s, it would be %s", commit, want, got)
	}
}

func TestControl(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	h.Put(t, "org/m", map[string][]byte{"config.json": []byte("{}")})
	post := func(method, path, body string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, h.URL+"/-/hubtest/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if status := post("POST", "faults", `{"kind": "status", "status": 502}`); status != 204 {
		t.Fatal(status)
	}
	if status, _, _ := get(t, h.URL+"/api/models/org/m", nil); status != 502 {
		t.Errorf("the fault does nothing: %d", status)
	}
	if status := post("POST", "faults", `[{"kind": "nonsense"}]`); status != 422 {
		t.Errorf("a fault that there is not: %d", status)
	}
	if status := post("DELETE", "faults", ""); status != 204 {
		t.Fatal(status)
	}
	if status, _, _ := get(t, h.URL+"/api/models/org/m", nil); status != 200 {
		t.Errorf("the fault goes on: %d", status)
	}
	if _, _, body := get(t, h.URL+"/-/hubtest/served", nil); !bytes.Contains(body, []byte(`"requests":2`)) {
		t.Errorf("it counts %s", body)
	}
}

// gitBlob is how git names a file.
func gitBlob(b []byte) string {
	s := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(b)), b...))
	return hex.EncodeToString(s[:])
}
