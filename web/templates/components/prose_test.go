package components

import (
	"strings"
	"testing"
)

func TestProse(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		"plain & <b>":                     "plain &amp; &lt;b&gt;",
		"Run `llmm engine ls`.":           "Run <code>llmm engine ls</code>.",
		"`a` and `<i>`":                   "<code>a</code> and <code>&lt;i&gt;</code>",
		"one ` alone <":                   "one ` alone &lt;",
		"`a` then ` alone":                "<code>a</code> then ` alone",
		"empty `` stays, `x` is code too": "empty `` stays, <code>x</code> is code too",
	} {
		var b strings.Builder
		if err := Prose(text).Render(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%q is %q, want %q", text, b.String(), want)
		}
	}
}
