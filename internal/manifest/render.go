package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// quoting is how a text value is written.
type quoting int

const (
	quoteDouble quoting = iota // the guide's way, and always safe
	quotePlain                 // where that reads back as the same text, else double
	quoteSingle                // where that is possible, else double
)

// writer renders values as YAML that PyYAML (1.1) and YAML 1.2 parsers read the same.
type writer struct {
	strings.Builder
	eol       string
	quote     quoting
	noSecrets bool // leave secrets out, with a comment where they were
}

// fields writes the fields of m, each on a line that begins with indent spaces, beginning with the one on whose
// line the dash stands: that one gets no indent.
func (w *writer) fields(in map[string]any, indent int) {
	first := true
	for _, f := range registry.Fields {
		v, given := in[f.Name]
		if !given {
			continue
		}
		if f.Kind == registry.KindMap && w.noSecrets {
			var left []string
			v, left = withoutSecrets(v, "")
			for _, name := range left {
				w.pad(indent)
				w.WriteString("# " + f.Name + name + " was left out because it is a secret." + w.eol)
			}
			if m, ok := v.(map[string]any); ok && len(m) == 0 {
				continue
			}
		}
		if !first {
			w.pad(indent)
		}
		first = false
		w.field(f.Name, v, indent)
	}
}

// field writes "name: value" and what belongs to it on further lines, and ends the last line.
func (w *writer) field(name string, v any, indent int) {
	w.key(name)
	w.WriteByte(':')
	if m, ok := v.(map[string]any); ok && len(m) > 0 {
		w.WriteString(w.eol)
		w.block(m, indent+2)
		return
	}
	w.WriteByte(' ')
	w.inline(v)
	w.WriteString(w.eol)
}

// block writes a map, one name a line in the order of the alphabet.
func (w *writer) block(m map[string]any, indent int) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		w.pad(indent)
		w.field(name, m[name], indent)
	}
}

func (w *writer) pad(n int) {
	for range n {
		w.WriteByte(' ')
	}
}

func (w *writer) key(name string) {
	if isPlain(name) {
		w.WriteString(name)
		return
	}
	w.WriteString(doubleQuoted(name))
}

// inline writes a value on the present line; maps and lists in braces and brackets, and text inside of them always
// quoted.
func (w *writer) inline(v any) {
	switch v := v.(type) {
	case nil:
		w.WriteString("null")
	case bool:
		w.WriteString(strconv.FormatBool(v))
	case int64:
		w.WriteString(strconv.FormatInt(v, 10))
	case float64:
		w.WriteString(formatFloat(v))
	case string:
		w.text(v)
	case []any:
		w.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				w.WriteString(", ")
			}
			w.nested(e)
		}
		w.WriteByte(']')
	case map[string]any:
		w.braces(v, slices.Sorted(maps.Keys(v)))
	default:
		panic(fmt.Sprintf("manifest: a value of type %T cannot be written", v)) // normal() lets no other type through
	}
}

func (w *writer) braces(m map[string]any, names []string) {
	w.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			w.WriteString(", ")
		}
		w.WriteString(doubleQuoted(name) + ": ")
		w.nested(m[name])
	}
	w.WriteByte('}')
}

func (w *writer) nested(v any) {
	quote := w.quote
	w.quote = quoteDouble
	w.inline(v)
	w.quote = quote
}

func (w *writer) text(s string) {
	switch {
	case w.quote == quotePlain && isPlain(s):
		w.WriteString(s)
	case w.quote == quoteSingle && isOneLine(s):
		w.WriteString("'" + strings.ReplaceAll(s, "'", "''") + "'")
	default:
		w.WriteString(doubleQuoted(s))
	}
}

// words that mean something else than themselves to a YAML 1.1 or 1.2 parser, in lower case.
var words = map[string]bool{
	"y": true, "n": true, "yes": true, "no": true, "on": true, "off": true, "true": true, "false": true, "null": true,
	"nan": true, "inf": true, "infinity": true,
}

// isPlain reports whether s without quotes is that text to every parser. It is narrower than YAML: s begins with a
// letter or a slash, which excludes numbers, dates and signs, and has none of the characters that end or change a
// plain scalar.
func isPlain(s string) bool {
	if s == "" || len(s) > 200 || words[strings.ToLower(s)] {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		switch {
		case letter, c == '/':
		case i > 0 && (c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_' || c == '@' || c == '+'):
		case i > 0 && c == ':' && i+1 < len(s) && s[i+1] != ':': // not at the end; what follows is no space
		default:
			return false
		}
	}
	return true
}

func isOneLine(s string) bool {
	for _, r := range s {
		if r != ' ' && !isVisible(r) {
			return false
		}
	}
	return true
}

// isVisible reports characters that may stand unescaped in double quotes, for every parser and for the eye.
func isVisible(r rune) bool {
	return r == ' ' || (unicode.IsPrint(r) && r <= 0xffff && r != 0xfeff) || (r > 0xffff && unicode.IsPrint(r))
}

// doubleQuoted writes s in double quotes with the escapes that YAML 1.1, YAML 1.2 and JSON share. Characters above
// U+FFFF that cannot be seen get YAML's \U escape, the only one that JSON lacks.
func doubleQuoted(s string) string {
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case isVisible(r):
			b.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// formatFloat writes a number that YAML 1.1 reads as one too: it wants a point and a signed exponent.
func formatFloat(f float64) string {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return "null" // JSON has none, so a model has none
	}
	s := strconv.FormatFloat(f, 'g', -1, 64)
	mantissa, exponent, has := strings.Cut(s, "e")
	if !strings.Contains(mantissa, ".") {
		mantissa += ".0"
	}
	if !has {
		return mantissa
	}
	return mantissa + "e" + exponent
}

// normal makes a value of a model one of nil, bool, int64, float64, string, []any and map[string]any. A whole number
// is an int64 wherever it came from: JSON, in which the registry keeps it, does not tell 2 from 2.0.
func normal(v any) any {
	switch v := v.(type) {
	case int:
		return int64(v)
	case uint64:
		return normal(float64(v))
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // out of range is an infinity, which is written as null
		return normal(f)
	case []string:
		out := make([]any, len(v))
		for i := range v {
			out[i] = v[i]
		}
		return out
	case []int:
		out := make([]any, len(v))
		for i := range v {
			out[i] = int64(v[i])
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = normal(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = normal(e)
		}
		return out
	}
	return v
}

// encode is registry.Encode with normal values.
func encode(m registry.Model) map[string]any {
	out := registry.Encode(m)
	for k, v := range out {
		out[k] = normal(v)
	}
	return out
}

// withoutSecrets returns v without its secrets and where they were, each as .name or [2].name. A reference such as
// ${HF_TOKEN} stays: it names a secret and is none.
func withoutSecrets(v any, path string) (any, []string) {
	var left []string
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for _, name := range slices.Sorted(maps.Keys(v)) {
			sub := path + "." + keyText(name)
			if s, text := v[name].(string); registry.IsSecretName(name) && (!text || !registry.IsReference(s)) {
				left = append(left, sub)
				continue
			}
			clean, more := withoutSecrets(v[name], sub)
			out[name], left = clean, append(left, more...)
		}
		return out, left
	case []any:
		out := make([]any, len(v))
		for i := range v {
			clean, more := withoutSecrets(v[i], fmt.Sprintf("%s[%d]", path, i))
			out[i], left = clean, append(left, more...)
		}
		return out, left
	}
	return v, nil
}

func keyText(name string) string {
	if isPlain(name) {
		return name
	}
	return doubleQuoted(name)
}
