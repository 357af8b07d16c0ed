package pick_test

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

func TestMatch(t *testing.T) {
	// The answers are those of Python 3.11's fnmatch.fnmatchcase.
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.json", "config.json", true}, {"*.json", "a/b/config.json", true}, {"*.json", "config.jsonl", false},
		{"config.json", "Config.json", false}, {"?.bin", "a.bin", true}, {"?.bin", "/.bin", true}, {"?.bin", ".bin", false},
		{"[ab].bin", "a.bin", true}, {"[ab].bin", "c.bin", false}, {"[!ab].bin", "c.bin", true}, {"[!ab].bin", "a.bin", false},
		{"[a-c]x", "bx", true}, {"[a-c]x", "dx", false}, {"[c-a]x", "bx", false}, {"[a-c-e]x", "-x", true}, {"[a-c-e]x", "dx", false},
		{"[]]x", "]x", true}, {"[]x", "[]x", true}, {"[!]]x", "ax", true}, {"[!]]x", "]x", false}, {"[", "[", true}, {"[a", "[a", true},
		{"[-a]", "-", true}, {"[a-]", "-", true}, {"[!a-]", "-", false}, {"**", "", true}, {"a*b*c", "aXbYc", true}, {"a*b*c", "aXcYb", false},
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"ü?", "üß", true}, {"[ü-ý]", "ü", true}, {"a.c", "abc", false},
		{"[[]x", "[x", true}, {"[^a]", "^", true}, {"[^a]", "b", false}, {`\*`, `\a`, true},
	} {
		if got := pick.Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
	if name := strings.Repeat("a", 2000); pick.Match(strings.Repeat("*a", 500)+"b", name) {
		t.Error("a pattern that ends in b matches a name without one")
	}
}

func TestFilter(t *testing.T) {
	files := []registry.File{{Path: "a.json"}, {Path: "original/b.json"}, {Path: "original/deep/c.bin"}, {Path: "d.bin"}}
	for _, c := range []struct {
		allow, ignore []string
		want          string
	}{
		{nil, nil, "a.json original/b.json original/deep/c.bin d.bin"},
		{[]string{"original/"}, nil, "original/b.json original/deep/c.bin"},
		{[]string{`original\*.bin`}, nil, "original/deep/c.bin"},
		{nil, []string{"original/*"}, "a.json d.bin"},
		{[]string{"*.json", "*.bin"}, []string{"*/b.json", "d*"}, "a.json original/deep/c.bin"},
		{[]string{"none"}, nil, ""},
	} {
		var got []string
		for _, f := range pick.Filter(files, c.allow, c.ignore) {
			got = append(got, f.Path)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("allow %q, ignore %q: %s, want %s", c.allow, c.ignore, s, c.want)
		}
	}
}

// FuzzMatch holds patterns without sets against a regular expression.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "aXXbYc")
	f.Add("*.json", "x.json")
	f.Add("[a-z]*", "hello")
	f.Add("[!", "[!")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 200 || len(name) > 200 {
			return
		}
		got := pick.Match(pattern, name)
		if strings.Contains(pattern, "[") || strings.HasSuffix(pattern, "/") || !utf8.ValidString(pattern) || !utf8.ValidString(name) {
			return
		}
		text := regexp.QuoteMeta(pattern)
		text = strings.ReplaceAll(strings.ReplaceAll(text, `\*`, `.*`), `\?`, `.`)
		if want := regexp.MustCompile(`(?s)^(?:` + text + `)$`).MatchString(name); got != want {
			t.Errorf("Match(%q, %q) = %v", pattern, name, got)
		}
	})
}
