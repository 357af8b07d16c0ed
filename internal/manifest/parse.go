// Package manifest reads and writes YAML lists of models: the file that the server was started with, imports and
// exports. Parse and Diff look, Export writes a new document, and File edits an existing one without touching
// anything that was not meant.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Limits on a document. They leave room for 100,000 models and keep a hostile upload from eating the memory: a YAML
// node takes some 200 bytes however short its text is.
const (
	MaxBytes  = 32 << 20  // bytes of one document
	MaxValues = 3_000_000 // values (nodes) of one document, counted before parsing by what separates them
	MaxDepth  = 32        // nesting; a model needs 4, custom_loader_params may add 8
	MaxIssues = 1000      // issues listed; the rest are counted
)

// Entry is a good model of a document. Line and Column (from 1, in characters) are where it begins.
type Entry struct {
	Model  registry.Model `json:"model"`
	Line   int            `json:"line"`
	Column int            `json:"column"`
}

// Document is what a file says: the good entries in their order, and what is wrong with the others. The Field of an
// issue is a path such as models[3].model_format (counted from 0); Line and Column point at the value or the key.
type Document struct {
	Entries []Entry               `json:"entries"`
	Issues  []registry.FieldError `json:"issues"`
}

// Parse reads a document. Bad entries never keep good ones from being returned. The error, always CodeInvalid and
// Malformed with line and column where they are known, is for text in which no list of models can be found at all.
// An empty text, and one whose models list is empty, is an empty document.
func Parse(b []byte) (*Document, error) {
	t, err := parseTree(b)
	if err != nil {
		return nil, err
	}
	return t.document(), nil
}

// tree is a parsed document: every item of its models list, and the issues outside of it.
type tree struct {
	root   *yaml.Node // the mapping; nil when the document is empty
	list   *yaml.Node // the sequence under models; nil when it is null or the document is empty
	key    *yaml.Node // the key models
	value  *yaml.Node // what stands there, also when it is null
	items  []item
	issues []registry.FieldError
	linked bool // has anchors, aliases or merge keys
}

// item is one element of the models list.
type item struct {
	node   *yaml.Node
	id     string         // model_id if there is one, also of a bad entry
	model  registry.Model // as far as it could be read
	issues []registry.FieldError
	bad    map[string]bool // names of the fields at fault
}

func (t *tree) document() *Document {
	d := &Document{Issues: t.issues}
	seen := make(map[string]string, len(t.items))
	for i := range t.items {
		it := &t.items[i]
		if len(it.issues) == 0 {
			folded := strings.ToLower(it.id)
			if first, dup := seen[folded]; dup {
				it.issues = append(it.issues, duplicateIssue(i, it, first))
			} else {
				seen[folded] = it.id
				d.Entries = append(d.Entries, Entry{Model: it.model, Line: it.node.Line, Column: it.node.Column})
			}
		}
		d.Issues = append(d.Issues, it.issues...)
	}
	if n := len(d.Issues) - MaxIssues; n > 0 {
		d.Issues = append(d.Issues[:MaxIssues:MaxIssues], registry.FieldError{Field: "models",
			Msg: fmt.Sprintf("has %d more problems that are not listed; mend these first", n)})
	}
	return d
}

func duplicateIssue(i int, it *item, first string) registry.FieldError {
	fe := registry.FieldError{Field: fmt.Sprintf("models[%d].model_id", i), Line: it.node.Line, Column: it.node.Column}
	if _, v := lookup(it.node, "model_id"); v != nil {
		fe.Line, fe.Column = v.Line, v.Column
	}
	if first == it.id {
		fe.Msg = fmt.Sprintf("%q is already the id of an earlier entry; the earlier one is used", it.id)
	} else {
		fe.Msg = fmt.Sprintf("%q differs only in case from %q, an earlier entry; the earlier one is used", it.id, first)
	}
	return fe
}

func malformed(line, column int, format string, args ...any) *registry.Error {
	e := &registry.Error{Code: registry.CodeInvalid, Malformed: true, Op: "manifest.Parse", Msg: "The YAML cannot be read"}
	e.Fields = []registry.FieldError{{Field: "models", Msg: fmt.Sprintf(format, args...), Line: line, Column: column}}
	return e
}

// parseTree reads b strictly and decodes every item.
func parseTree(b []byte) (*tree, error) {
	t := &tree{}
	doc, err := load(b)
	if err != nil || doc == nil {
		return t, err
	}
	root := doc.Content[0]
	if isNull(root) {
		return t, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, malformed(root.Line, root.Column, "must stand as a key at the top of the file with a list under it; found %s", describe(root))
	}
	t.root = root
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		switch {
		case k.Kind == yaml.ScalarNode && k.Value == "models" && k.ShortTag() == "!!str":
			if t.key != nil {
				return nil, malformed(k.Line, k.Column, "is given twice, first on line %d; put all entries under one", t.key.Line)
			}
			t.key, t.value = k, v
		case k.Kind == yaml.ScalarNode && strings.HasPrefix(k.Value, "x-"):
			// Room for anchors and notes, as in compose files.
		default:
			name := "a key"
			if k.Kind == yaml.ScalarNode && k.Value != "" {
				name = clip(k.Value)
			}
			t.issues = append(t.issues, registry.FieldError{Field: name, Line: k.Line, Column: k.Column,
				Msg: "is not known at the top of this file and was left alone; only models is (names that start with x- are free)"})
		}
	}
	if t.key == nil {
		return nil, malformed(root.Line, root.Column, "is missing: the file needs the key models with a list of entries under it")
	}
	if err := t.decodeItems(b); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *tree) decodeItems(b []byte) error {
	t.linked = bytes.ContainsAny(b, "&*") && hasLinks(t.root)
	list := resolve(t.value)
	if isNull(list) {
		return nil
	}
	if list == nil || list.Kind != yaml.SequenceNode {
		return malformed(t.value.Line, t.value.Column, "must be a list of entries, each beginning with a dash, not %s", describe(t.value))
	}
	if t.value.Kind == yaml.SequenceNode {
		t.list = t.value
	}
	t.items = make([]item, len(list.Content))
	for i, n := range list.Content {
		t.items[i] = decodeItem(i, n)
	}
	return nil
}

// load parses exactly one YAML document; nil when there is none.
func load(b []byte) (*yaml.Node, error) {
	b, err := checkText(b)
	if err != nil {
		return nil, err
	}
	loader, err := yaml.NewLoader(bytes.NewReader(b),
		yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(MaxDepth))))
	if err != nil {
		return nil, registry.AsError(err)
	}
	var doc yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, yamlError(err)
	}
	var second yaml.Node
	switch err := loader.Load(&second); {
	case err == nil:
		return nil, malformed(second.Line, second.Column, "is followed by a second YAML document; keep one document in a file (remove the line ---)")
	case !errors.Is(err, io.EOF):
		return nil, yamlError(err)
	}
	if len(doc.Content) != 1 {
		return nil, nil
	}
	return &doc, nil
}

// yamlError says what the parser found and where, without its jargon and without quoting the text (it may hold a
// secret).
func yamlError(err error) error {
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		return malformed(0, 0, "could not be parsed: %v", err)
	}
	mark, msg := le.Mark, le.Message
	if strings.Contains(msg, "could not find expected ':'") && le.ContextMark.Line > 0 {
		mark = le.ContextMark // the line that lacks the colon, not the one after it
	}
	switch {
	case strings.Contains(msg, "cannot start any token"):
		msg += " (indent with spaces, not tabs, and quote text that begins with @ ` or %)"
	case strings.Contains(msg, "mapping values are not allowed"):
		msg += " (quote text that contains a colon and a space, and check the indentation)"
	}
	if le.ContextMsg != "" {
		msg = le.ContextMsg + ": " + msg
	}
	if strings.HasPrefix(msg, "unknown anchor") {
		msg = "an alias refers to an anchor that is not defined before it"
	}
	return malformed(mark.Line, mark.Column, "could not be parsed: %s", msg)
}

// checkText refuses what is not plain UTF-8 text of a bearable size, and takes a byte order mark off.
func checkText(b []byte) ([]byte, error) {
	if len(b) > MaxBytes {
		return nil, malformed(0, 0, "is %d bytes long; at most %d are allowed. Split the file", len(b), MaxBytes)
	}
	if bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return nil, malformed(1, 1, "is UTF-16; save the file as UTF-8")
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	if at := firstOddByte(b); at >= 0 {
		line, column := position(b, at)
		r, size := utf8.DecodeRune(b[at:])
		if r == utf8.RuneError && size <= 1 {
			return nil, malformed(line, column, "is not UTF-8 at this place; save the file as UTF-8")
		}
		return nil, malformed(line, column, "has the control character %U; remove it, or write it in double quotes as an escape", r)
	}
	if n := countSeparators(b); n > MaxValues/2 {
		return nil, malformed(0, 0, "has more than %d values; split the file", MaxValues)
	}
	return b, nil
}

// firstOddByte returns where b is not UTF-8 or has a character that YAML does not allow, or -1.
func firstOddByte(b []byte) int {
	for i := 0; i < len(b); {
		c := b[i]
		if c < utf8.RuneSelf {
			if (c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f {
				return i
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(b[i:])
		if (r == utf8.RuneError && size == 1) || (r >= 0x80 && r < 0xa0 && r != 0x85) || r == 0xfffe || r == 0xffff || r == 0xfeff {
			return i
		}
		i += size
	}
	return -1
}

// position returns the line and column (from 1, in characters) of an offset.
func position(b []byte, at int) (line, column int) {
	start := bytes.LastIndexByte(b[:at], '\n') + 1
	return bytes.Count(b[:start], []byte{'\n'}) + 1, utf8.RuneCount(b[start:at]) + 1
}

// countSeparators counts what can begin another value; there cannot be more than twice as many values.
func countSeparators(b []byte) int {
	n := 0
	for i, c := range b {
		switch c {
		case ',', '[', '{':
			n++
		case '-', '?', ':':
			if i+1 == len(b) || strings.IndexByte(" \t\r\n[]{},", b[i+1]) >= 0 || (c == ':' && i > 0 && (b[i-1] == '"' || b[i-1] == '\'')) {
				n++
			}
		}
	}
	return n
}

// clip shortens text of the file so that it can stand in a message.
func clip(s string) string {
	const limit = 60
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
