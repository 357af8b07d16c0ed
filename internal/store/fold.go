package store

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// fold replaces every letter by the one that stands for all its cases, so that fold(a) == fold(b) exactly when
// strings.EqualFold(a, b). Plain ASCII comes out in lower case.
func fold(s string) string {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return strings.Map(foldRune, s)
		}
	}
	return strings.ToLower(s)
}

// foldRune returns the lower case of the smallest rune among r's cases, if that is itself one of them.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		return unicode.ToLower(r)
	}
	smallest := r
	for c := unicode.SimpleFold(r); c != r; c = unicode.SimpleFold(c) {
		smallest = min(smallest, c)
	}
	lower := unicode.ToLower(smallest)
	if lower == smallest {
		return smallest
	}
	for c := unicode.SimpleFold(smallest); c != smallest; c = unicode.SimpleFold(c) {
		if c == lower {
			return lower
		}
	}
	return smallest // İ: its lower case is a plain i, which is another letter
}
