package ollama

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestParseName holds names to what Ollama makes of them: types/model/name.go of ollama 0.33.
func TestParseName(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0af", 21) + "0"
	for in, want := range map[string]struct {
		shortest string
		file     string
	}{
		"llama3.2":                                   {"llama3.2:latest", "registry.ollama.ai/library/llama3.2/latest"},
		"ollama://llama3.2:3b":                       {"llama3.2:3b", "registry.ollama.ai/library/llama3.2/3b"},
		"llama3.2:3b":                                {"llama3.2:3b", "registry.ollama.ai/library/llama3.2/3b"},
		"library/llama3.2":                           {"llama3.2:latest", "registry.ollama.ai/library/llama3.2/latest"},
		"registry.ollama.ai/library/llama3.2":        {"llama3.2:latest", "registry.ollama.ai/library/llama3.2/latest"},
		"someone/model:7b-q4_K_M":                    {"someone/model:7b-q4_K_M", "registry.ollama.ai/someone/model/7b-q4_K_M"},
		"hf.co/org/repo-GGUF:Q4_K_M":                 {"hf.co/org/repo-GGUF:Q4_K_M", "hf.co/org/repo-GGUF/Q4_K_M"},
		"hf.co/org/repo-1.5-GGUF":                    {"hf.co/org/repo-1.5-GGUF:latest", "hf.co/org/repo-1.5-GGUF/latest"},
		"127.0.0.1:5000/team/m":                      {"127.0.0.1:5000/team/m:latest", "127.0.0.1:5000/team/m/latest"},
		"http://127.0.0.1:5000/team/m:1":             {"127.0.0.1:5000/team/m:1", "127.0.0.1:5000/team/m/1"},
		"https://registry.example.com/team/m":        {"registry.example.com/team/m:latest", "registry.example.com/team/m/latest"},
		"llama3.2:local":                             {"llama3.2:latest", "registry.ollama.ai/library/llama3.2/latest"},
		"llama3.2@" + digest:                         {"llama3.2@" + digest, "registry.ollama.ai/library/llama3.2/" + strings.Replace(digest, ":", "-", 1)},
		"llama3.2:3b@" + digest:                      {"llama3.2@" + digest, "registry.ollama.ai/library/llama3.2/" + strings.Replace(digest, ":", "-", 1)},
		"r.example:1/a/b@" + strings.ToUpper(digest): {"r.example:1/a/b@" + digest, "r.example:1/a/b/" + strings.Replace(digest, ":", "-", 1)},
		"_x/__y:_z":                                  {"_x/__y:_z", "registry.ollama.ai/_x/__y/_z"},
	} {
		n, err := ParseName(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if n.String() != want.shortest || n.file() != want.file {
			t.Errorf("%s: %s in %s, want %s in %s", in, n, n.file(), want.shortest, want.file)
		}
		if again, err := ParseName(n.String()); err != nil || again.String() != n.String() {
			t.Errorf("%s: the shortest name %s is not itself: %v, %v", in, n, again, err)
		}
		if back, ok := fromFile(n.file()); !ok || back.String() != n.String() {
			t.Errorf("%s: the file %s is of %v", in, n.file(), back)
		}
	}
}

func TestParseNameRefuses(t *testing.T) {
	for in, word := range map[string]string{
		"":                                 "empty",
		"llama3.2:":                        "tag",
		"a/b/c/d":                          "4 parts",
		"../x/y":                           "must begin",
		"x/../y":                           "must begin",
		"x/y/..":                           "must begin",
		"x/.y":                             "must begin",
		"-x":                               "must begin",
		"a//b":                             "empty",
		"/a/b":                             "empty",
		"a/b/":                             "empty",
		"a b":                              "must be letters",
		"ns.dot/model":                     "namespace",
		"model:tag:x":                      "must be letters",
		"ftp://h/a/b":                      "https://",
		"https://model":                    "must name registry",
		"m@sha256:12":                      "sha256",
		"m@md5:" + strings.Repeat("a", 64): "sha256",
		strings.Repeat("m", 81):            "81 bytes",
		"m:" + strings.Repeat("t", 81):     "81 bytes",
		"m\x00x":                           "must be letters",
		"mödel":                            "must be letters",
	} {
		n, err := ParseName(in)
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %+v, %v; want an error with %q", in, n, err, word)
		}
	}
}

func TestCloudNames(t *testing.T) {
	for in, want := range map[string]bool{"gpt-oss:cloud": true, "gpt-oss:120b-cloud": true, "gpt-oss:120B-CLOUD": true, "cloud": false, "cloud/cloud:7b": false, "m:cloudy": false} {
		if n, err := ParseName(in); err != nil || n.Cloud != want {
			t.Errorf("%s: cloud %v, %v", in, n.Cloud, err)
		}
	}
}

// FuzzParseName: whatever is typed, a name that is taken means the same when its shortest form is read again, and its file
// lies four folders below and nowhere else.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"llama3.2", "a/b:c", "http://h:1/a/b:c", "h/a/b@sha256:" + strings.Repeat("0", 64), "..", "x:local", "x:y-cloud", "a/b/c:d@e", "://", "h:/a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		file := n.file()
		if !filepath.IsLocal(file) || filepath.Clean(file) != file || strings.Count(file, "/") != 3 || strings.HasPrefix(filepath.Base(file), ".") {
			t.Fatalf("%q is kept in %q", s, file)
		}
		again, err := ParseName(n.String())
		if err != nil || again.String() != n.String() || again.file() != file {
			t.Fatalf("%q is %q, which is %+v, %v", s, n, again, err)
		}
		if back, ok := fromFile(file); !ok || back.file() != file {
			t.Fatalf("%q in %q is %+v", s, file, back)
		}
	})
}
