package manifest

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// source finds its way in the text that nodes were parsed from: they know where they begin, not where they end.
type source struct {
	b      []byte
	starts []int // offset of each line
}

func newSource(b []byte) *source {
	s := &source{b: b, starts: make([]int, 1, 16+bytes.Count(b, []byte{'\n'}))}
	if bytes.HasPrefix(b, []byte("\ufeff")) {
		s.starts[0] = 3 // the parser does not count a byte order mark as a column
	}
	for i, c := range b {
		if c == '\n' {
			s.starts = append(s.starts, i+1)
		}
	}
	return s
}

// hasOddBreaks reports line ends other than LF and CRLF, after which the parser's lines are not ours.
func hasOddBreaks(b []byte) bool {
	for i := bytes.IndexByte(b, '\r'); i >= 0; {
		if i+1 == len(b) || b[i+1] != '\n' {
			return true
		}
		next := bytes.IndexByte(b[i+1:], '\r')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	for _, odd := range []string{"\u0085", "\u2028", "\u2029"} {
		if bytes.Contains(b, []byte(odd)) {
			return true
		}
	}
	return false
}

// at returns the offset of a line and column, both from 1, the column in characters.
func (s *source) at(line, column int) int {
	if line < 1 || line > len(s.starts) {
		return len(s.b)
	}
	i := s.starts[line-1]
	for range column - 1 {
		if i >= len(s.b) || s.b[i] == '\n' {
			break
		}
		_, size := utf8.DecodeRune(s.b[i:])
		i += size
	}
	return i
}

func (s *source) of(n *yaml.Node) int { return s.at(n.Line, n.Column) }

// lineStart and lineEnd return the border of the line that an offset is on; the end is after the line break.
func (s *source) lineStart(i int) int { return bytes.LastIndexByte(s.b[:i], '\n') + 1 }

func (s *source) lineEnd(i int) int {
	if n := bytes.IndexByte(s.b[i:], '\n'); n >= 0 {
		return i + n + 1
	}
	return len(s.b)
}

// line returns the text of the line that begins at i, without its break.
func (s *source) line(i int) string { return strings.TrimRight(string(s.b[i:s.lineEnd(i)]), "\r\n") }

func isBlank(line string) bool { return strings.TrimLeft(line, " \t") == "" }

func isComment(line string) bool { return strings.HasPrefix(strings.TrimLeft(line, " \t"), "#") }

func indentOf(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// contentEnd goes back from bound, the start of a line or the end of the text, over blank lines and comments, but not
// over the line that from is on. It returns the end of the last line that remains.
func (s *source) contentEnd(from, bound int) int {
	first := s.lineStart(from)
	for bound > first {
		start := s.lineStart(bound - 1)
		if line := s.line(start); start <= first || (!isBlank(line) && !isComment(line)) {
			break
		}
		bound = start
	}
	return bound
}

// end returns the end of the last line that belongs to a value. indent is that of its key or dash; nothing of the
// value can be at or after bound.
func (s *source) end(n *yaml.Node, indent, bound int) int {
	for len(n.Content) > 0 && n.Style&yaml.FlowStyle == 0 && (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) {
		last := len(n.Content) - 1
		if n.Kind == yaml.MappingNode {
			indent = n.Content[last-1].Column - 1
		} else {
			indent = n.Column - 1
		}
		n = n.Content[last]
	}
	start := s.skipProperties(s.of(n))
	if start >= bound {
		return bound
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return s.blockScalarEnd(start, indent, bound)
	case n.Kind == yaml.ScalarNode && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		return s.lineEnd(quotedEnd(s.b, start))
	case n.Style&yaml.FlowStyle != 0:
		return s.lineEnd(flowEnd(s.b, start))
	}
	return s.contentEnd(start, bound)
}

// skipProperties goes over the anchor and the tag before a value.
func (s *source) skipProperties(i int) int {
	for i < len(s.b) && (s.b[i] == '&' || s.b[i] == '!') {
		for i < len(s.b) && strings.IndexByte(" \t\r\n", s.b[i]) < 0 {
			i++
		}
		for i < len(s.b) && strings.IndexByte(" \t\r\n", s.b[i]) >= 0 {
			i++
		}
	}
	return i
}

// blockScalarEnd returns the end of the text after a | or > at start.
func (s *source) blockScalarEnd(start, indent, bound int) int {
	end := s.lineEnd(start)
	header, _, _ := strings.Cut(s.line(start), " ")
	content := -1 // the text's indentation; found at its first line unless the header gives it
	if at := strings.IndexAny(header, "123456789"); at >= 0 {
		content = indent + int(header[at]-'0')
	}
	for i := end; i < bound; i = s.lineEnd(i) {
		line := s.line(i)
		if isBlank(line) && (content < 0 || len(line) <= content) {
			continue
		}
		depth := indentOf(line)
		if content < 0 {
			if depth <= indent {
				break
			}
			content = depth
		}
		if depth < content {
			break
		}
		end = s.lineEnd(i)
	}
	if strings.Contains(header, "+") {
		for end < bound && isBlank(s.line(end)) {
			end = s.lineEnd(end)
		}
	}
	return end
}

// quotedEnd returns the offset after the quoted scalar that begins at i.
func quotedEnd(b []byte, i int) int {
	quote := b[i]
	for i++; i < len(b); i++ {
		switch {
		case b[i] == '\\' && quote == '"':
			i++
		case b[i] == quote && quote == '\'' && i+1 < len(b) && b[i+1] == quote:
			i++
		case b[i] == quote:
			return i + 1
		}
	}
	return len(b)
}

// flowEnd returns the offset after the list or map in brackets or braces that begins at i.
func flowEnd(b []byte, i int) int {
	end, depth := flowScan(b, i, func(depth int, c byte) bool { return depth == 0 && (c == ']' || c == '}') })
	if depth == 0 && end < len(b) {
		return end + 1
	}
	return len(b)
}

// flowItemEnd returns the offset after the last character of the item of a list in brackets that begins at i.
func flowItemEnd(b []byte, i int) int {
	stop, _ := flowScan(b, i, func(depth int, c byte) bool { return depth == 0 && c == ',' || depth < 0 })
	last := i
	flowScan(b[:stop], i, func(int, byte) bool { return false }, func(at int) { last = at })
	return last
}

// flowScan walks over flow text from i, through nested collections, quoted text and comments, until stop says so of
// an indicator and the depth after it. It returns where that is, and the depth. seen is told the offset after every
// character that is no blank and no comment.
func flowScan(b []byte, i int, stop func(depth int, c byte) bool, seen ...func(end int)) (at, depth int) {
	mark := func(end int) {
		for _, f := range seen {
			f(end)
		}
	}
	plain := false
	for i < len(b) {
		c := b[i]
		switch {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			i++
			continue
		case c == '#' && i > 0 && strings.IndexByte(" \t\r\n", b[i-1]) >= 0:
			for i < len(b) && b[i] != '\n' {
				i++
			}
			continue
		case (c == '"' || c == '\'') && !plain:
			i = quotedEnd(b, i)
			mark(i)
			continue
		case c == '[' || c == '{' || c == ']' || c == '}' || c == ',':
			plain = false
			if c == '[' || c == '{' {
				depth++
			} else if c != ',' {
				depth--
			}
			if stop(depth, c) {
				return i, depth
			}
		case c == ':' && (!plain || i+1 == len(b) || strings.IndexByte(" \t\r\n,[]{}", b[i+1]) >= 0):
			plain = false
		case (c == '&' || c == '!') && !plain:
			for i+1 < len(b) && strings.IndexByte(" \t\r\n,[]{}", b[i+1]) < 0 {
				i++
			}
		default:
			plain = true
		}
		i++
		mark(i)
	}
	return i, depth
}
