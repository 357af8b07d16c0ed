package pick

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// MatchAny reports whether one of the patterns matches. Backslashes count as slashes, as huggingface_hub takes them.
func MatchAny(patterns []string, name string) bool {
	name = strings.ReplaceAll(name, `\`, "/")
	return slices.ContainsFunc(patterns, func(p string) bool { return Match(strings.ReplaceAll(p, `\`, "/"), name) })
}

// Match reports whether a pattern matches a whole path, as Python's fnmatch does and with it huggingface_hub's
// allow_patterns: * is any text, slashes included; ? one character; [abc], [a-z] and [!a-z] one of a set; a pattern that
// ends with a slash means everything below. Letters count as they are written.
func Match(pattern, name string) bool {
	if strings.HasSuffix(pattern, "/") {
		pattern += "*"
	}
	// The usual walk with one place to return to: at a mismatch the last star takes one character more. It needs no
	// memory and at most len(pattern)·len(name) steps, whatever the pattern.
	star, mark := -1, 0
	p, n := 0, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, n
			p++
			continue
		}
		if used, took := matchOne(pattern[p:], name[n:]); used > 0 {
			p += used
			n += took
			continue
		}
		if star < 0 {
			return false
		}
		_, size := utf8.DecodeRuneInString(name[mark:])
		mark += size
		p, n = star+1, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne matches one character of name with the beginning of a pattern. It returns how many bytes of both it took;
// 0, 0 when they do not match.
func matchOne(pattern, name string) (used, took int) {
	if pattern == "" {
		return 0, 0
	}
	r, took := utf8.DecodeRuneInString(name)
	switch c, size := utf8.DecodeRuneInString(pattern); c {
	case '?':
		return 1, took
	case '[':
		end := setEnd(pattern)
		if end < 0 { // not closed: a bracket like any other character
			if r == '[' {
				return 1, took
			}
			return 0, 0
		}
		if inSet(pattern[1:end], r) {
			return end + 1, took
		}
		return 0, 0
	default:
		if c == r && pattern[:size] == name[:took] {
			return size, took
		}
		return 0, 0
	}
}

// setEnd returns where the bracket that closes a set is; -1 when there is none. One that stands first belongs to the set.
func setEnd(pattern string) int {
	i := 1
	if i < len(pattern) && pattern[i] == '!' {
		i++
	}
	if i < len(pattern) && pattern[i] == ']' {
		i++
	}
	end := strings.IndexByte(pattern[min(i, len(pattern)):], ']')
	if end < 0 {
		return -1
	}
	return i + end
}

func inSet(set string, r rune) bool {
	rest, not := strings.CutPrefix(set, "!")
	runes := []rune(rest)
	in := false
	for i := 0; i < len(runes); i++ {
		if i+2 < len(runes) && runes[i+1] == '-' {
			in = in || runes[i] <= r && r <= runes[i+2]
			i += 2
			continue
		}
		in = in || runes[i] == r
	}
	return in != not
}
