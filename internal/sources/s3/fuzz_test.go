package s3

import (
	"cmp"
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/minio/minio-go/v7"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// FuzzKeys makes names of keys: none leads out of the folder, and none is another's folder.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"m/a.gguf", "m/../../x", "m//x", "m/a\\b", "m/a\x00b", "m/" + strings.Repeat("x/", 600), "m/é\u2028", "m/..", "m/a/../b", "m/.hidden"} {
		f.Add("m/", s, "m/a.gguf/b")
	}
	f.Fuzz(func(t *testing.T, prefix, one, two string) {
		dir := filepath.Join(string(filepath.Separator), "srv", "files")
		at := placed(prefix, []object{{key: one, size: 1}, {key: two, size: 1}})
		seen := map[string]bool{}
		for _, file := range at.files {
			full := filepath.Join(dir, filepath.FromSlash(file.Path))
			if !strings.HasPrefix(full, dir+"/") || filepath.ToSlash(full) != dir+"/"+file.Path {
				t.Errorf("%q becomes %q", file.Path, full)
			}
			for d := filepath.Dir(file.Path); d != "."; d = filepath.Dir(d) {
				if seen[d] {
					t.Errorf("%q is a file and a folder", d)
				}
			}
			seen[file.Path] = true
		}
		for _, n := range at.notes {
			if strings.ContainsFunc(n, unicode.IsControl) {
				t.Errorf("the note %q", n)
			}
		}
		name := slug(prefix, one)
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") || len(name) > 100 {
			t.Errorf("the folder %q", name)
		}
	})
}

// FuzzSettings reads references: no panic, and no secret in a fault.
func FuzzSettings(f *testing.F) {
	f.Add("s3://bucket/m", "main", `{"endpoint_url": "https://h", "region": "r", "secret_access_key": "SECRET-SECRET"}`)
	f.Add("s3://b/../m", "s3-0123456789abcdef01234567", `{"endpoint_url": "https://u:SECRET-SECRET@h/x", "allow_patterns": ["*", 1], "filename": "../x"}`)
	f.Add("s3:///", "", `{"path_style": 1, "profile": "]\n"}`)
	f.Fuzz(func(t *testing.T, path, revision, params string) {
		var p map[string]any
		if json.Unmarshal([]byte(params), &p) != nil {
			return
		}
		set, errs := readSettings(sources.Ref{Path: path, Revision: revision, Format: registry.FormatGGUF, Params: p})
		for _, e := range errs {
			if e.Field == "" || e.Msg == "" {
				t.Errorf("an empty fault: %+v", e)
			}
			if strings.HasPrefix(e.Field, "custom_loader_params.") && strings.Contains(e.Msg, "SECRET-SECRET") && !strings.Contains(path+revision, "SECRET") && e.Field != "custom_loader_params."+paramRegion && e.Field != "custom_loader_params.filename" {
				t.Errorf("a secret is in %+v", e)
			}
		}
		if len(errs) == 0 {
			if set.key != "" && !safe(set.key) {
				t.Errorf("the key %q", set.key)
			}
			if set.endpoint != nil && (set.endpoint.User != nil || set.endpoint.Host == "") {
				t.Errorf("the endpoint %v", set.endpoint)
			}
		}
	})
}

// FuzzAnswers reads what services answer: a range, an error's text. Whatever they say, no secret comes out.
func FuzzAnswers(f *testing.F) {
	f.Add("bytes 0-9/10", "expecting 'eu-west-1'", "AuthorizationHeaderMalformed", 400)
	f.Add("bytes */10", "you sent SECRET-SECRET", "SlowDown", 503)
	f.Add("bytes 5-4/-1", "\x1b[31m\xff", "", 0)
	f.Fuzz(func(t *testing.T, header, message, code string, status int) {
		if first, total, ok := contentRange(header); ok && (first < 0 || total < -1) {
			t.Errorf("%q is from %d of %d", header, first, total)
		}
		c := &connection{settings: settings{bucket: "bucket", secretKey: "SECRET-SECRET"}, at: &url.URL{Scheme: "http", Host: "h"}, given: true, stranger: true, count: &counter{}, now: fixedNow}
		c.accessKey = "ACCESS-KEY"
		err := c.explain(t.Context(), minio.ErrorResponse{Code: code, Message: message, StatusCode: status}, "key", status%2 == 0)
		if err == nil {
			t.Fatal("an error became none")
		}
		if text := err.Error(); strings.Contains(text, "SECRET-SECRET") || strings.ContainsRune(text, '\x1b') {
			t.Errorf("it says %q", text)
		}
		if r := expectedRegion(minio.ErrorResponse{Message: message}); r != "" && !regionName.MatchString(r) {
			t.Errorf("the region %q", r)
		}
	})
}

// FuzzRecord reads a damaged artifact.json: what it names stays within the folder.
func FuzzRecord(f *testing.F) {
	const rev = "s3-0123456789abcdef01234567"
	f.Add(`{"version":1,"revision":"` + rev + `","bytes":3,"main":"a","files":[{"path":"a","size":3}]}`)
	f.Add(`{"version":1,"revision":"` + rev + `","files":[{"path":"../artifact.json","size":0}]}`)
	f.Add(`{"version":1,"revision":"` + rev + `","main":"/etc/passwd","bytes":-2,"files":[{"path":"a","size":9223372036854775807},{"path":"b","size":9223372036854775807}]}`)
	f.Add(`{"version":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := decodeRecord([]byte(text), rev)
		if err != nil {
			return
		}
		for _, file := range append(r.Files, registry.File{Path: cmp.Or(r.Main, "main")}) {
			if !filepath.IsLocal(filepath.FromSlash(file.Path)) || file.Size < 0 {
				t.Errorf("it names %+v", file)
			}
		}
		if r.Bytes < 0 {
			t.Errorf("%d bytes", r.Bytes)
		}
	})
}

func fixedNow() time.Time { return time.Unix(1_800_000_000, 0) }
