package manifest

import (
	"bytes"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// listKind is how the list of models is written.
type listKind int

const (
	listBlock  listKind = iota // one entry after the other, each with a dash
	listFlow                   // in brackets, as in JSON
	listEmpty                  // nothing under models yet
	listAbsent                 // an empty file
)

// index knows where in a file each entry stands and in which style the file is written.
type index struct {
	b      []byte
	src    *source
	kind   listKind
	linked bool  // anchors and aliases: an entry cannot be understood alone
	tree   *tree // only when linked or in brackets
	spans  []span
	others int // issues outside of entries

	valueFrom, valueTo int // listEmpty: the ~ or [] after models; listFlow: the brackets
	dash, key          int // indentation of the dash and of the fields
	eol                string
	quote              quoting
	blank              bool // blank lines between entries
}

// span is one entry in the text. [from, to) are its lines from the dash to the last of its fields, or its text in
// brackets; own is after comments that stand directly below and are indented as its fields are.
type span struct {
	from, to, own int
	id            string
	model         registry.Model
	bad           bool
}

func unsupported(format string, args ...any) error {
	e := registry.Errorf(registry.CodeUnsupported, format, args...)
	e.Op = "manifest.Apply"
	return e
}

// newIndex reads a file. Its error is Parse's, or CodeUnsupported for what Parse reads and edits cannot be made in.
func newIndex(b []byte) (*index, error) {
	t, err := parseTree(b)
	if err != nil {
		return nil, err
	}
	if hasOddBreaks(b) {
		return nil, unsupported("has line ends other than LF and CRLF; convert it to one of the two")
	}
	x := &index{b: b, src: newSource(b), linked: t.linked, others: len(t.issues), dash: 2, key: 4, eol: "\n", blank: true}
	if nl := bytes.IndexByte(b, '\n'); nl > 0 && b[nl-1] == '\r' {
		x.eol = "\r\n"
	}
	if t.key == nil {
		x.kind = listAbsent
		return x, nil
	}
	switch {
	case t.value.Kind == yaml.AliasNode || t.value.Anchor != "" || t.value.Style&yaml.TaggedStyle != 0:
		return nil, unsupported("has an anchor, an alias or a tag on its list of models; write the list directly under models")
	case t.value.Style&yaml.FlowStyle != 0 && (len(t.items) > 0 || t.root.Style&yaml.FlowStyle != 0):
		x.kind, x.tree = listFlow, t
		x.indexFlow(t)
		return x, nil
	case t.root.Style&yaml.FlowStyle != 0:
		return nil, unsupported("has braces around everything and no list in them; write models: [] first")
	}
	x.dash = t.key.Column + 1
	x.key = x.dash + 2
	if len(t.items) == 0 {
		x.kind = listEmpty
		x.indexEmpty(t)
		return x, nil
	}
	if x.linked {
		x.tree = t
	}
	if err := x.indexBlock(t); err != nil {
		return nil, err
	}
	return x, nil
}

func (x *index) indexEmpty(t *tree) {
	x.valueFrom = x.src.of(t.value)
	switch {
	case t.value.Kind == yaml.SequenceNode:
		x.valueTo = flowEnd(x.b, x.valueFrom)
	case isEmpty(t.value):
		x.valueFrom = x.afterKey(t.key)
		x.valueTo = x.valueFrom
	default:
		x.valueTo = x.valueFrom + len(t.value.Value)
	}
}

// afterKey returns the offset after the colon of a key at the top.
func (x *index) afterKey(k *yaml.Node) int {
	i := x.src.of(k)
	if n := bytes.IndexByte(x.b[i:x.src.lineEnd(i)], ':'); n >= 0 {
		return i + n + 1
	}
	return len(x.b)
}

func (x *index) indexFlow(t *tree) {
	x.quote = quoteDouble
	x.valueFrom = x.src.of(t.value)
	x.valueTo = flowEnd(x.b, x.valueFrom)
	for i := range t.items {
		from := x.src.of(t.items[i].node)
		to := flowItemEnd(x.b, from)
		x.addSpan(&t.items[i], from, to, to)
	}
}

func (x *index) indexBlock(t *tree) error {
	x.dash = t.list.Column - 1
	froms := make([]int, len(t.items)+1)
	for i := range t.items {
		at, ok := x.dashLine(t.items[i].node.Line)
		if !ok || (i > 0 && at <= froms[i-1]) {
			return unsupported("has a list of models in which the dash of entry %d could not be found; write each entry as \"- model_id: …\" on lines of its own", i+1)
		}
		froms[i] = at
	}
	froms[len(t.items)] = x.listBound(t)
	for i := range t.items {
		it := &t.items[i]
		to := x.src.end(it.node, x.dash, froms[i+1])
		own := to
		for own < froms[i+1] && isComment(x.src.line(own)) && indentOf(x.src.line(own)) > x.dash {
			own = x.src.lineEnd(own)
		}
		x.addSpan(it, froms[i], to, own)
	}
	x.learnStyle(t)
	return nil
}

func (x *index) addSpan(it *item, from, to, own int) {
	x.spans = append(x.spans, span{from: from, to: to, own: own, id: it.id, model: it.model, bad: len(it.issues) > 0})
}

// dashLine goes up from a line to the one with the dash at the list's indentation, and returns where it begins.
func (x *index) dashLine(line int) (int, bool) {
	for ; line >= 1; line-- {
		start := x.src.at(line, 1)
		text := x.src.line(start)
		if indentOf(text) == x.dash && len(text) > x.dash && text[x.dash] == '-' &&
			(len(text) == x.dash+1 || text[x.dash+1] == ' ' || text[x.dash+1] == '\t') {
			return start, true
		}
	}
	return 0, false
}

// listBound returns the start of the first line after which nothing belongs to the list.
func (x *index) listBound(t *tree) int {
	bound := len(x.b)
	for i := 0; i+2 < len(t.root.Content); i += 2 {
		if t.root.Content[i] == t.key {
			bound = x.src.lineStart(x.src.of(t.root.Content[i+2]))
		}
	}
	// Text in quotes or blocks cannot have a line that begins with a document marker, so the first one is one.
	for _, marker := range []string{"\n...", "\n---"} {
		last := x.src.of(t.items[len(t.items)-1].node)
		for last < bound {
			n := bytes.Index(x.b[last:bound], []byte(marker))
			if n < 0 {
				break
			}
			after := last + n + len(marker)
			if after == len(x.b) || strings.IndexByte(" \t\r\n", x.b[after]) >= 0 {
				bound = last + n + 1
			}
			last = after
		}
	}
	return bound
}

// learnStyle finds how the file writes its entries, so that new ones look the same.
func (x *index) learnStyle(t *tree) {
	x.key = x.dash + 2
	count := map[quoting]int{}
	for i := len(t.items) - 1; i >= max(0, len(t.items)-10); i-- {
		n := t.items[i].node
		if n.Kind != yaml.MappingNode || n.Style&yaml.FlowStyle != 0 || len(n.Content) == 0 {
			continue
		}
		first := n.Content[0]
		if n.Anchor == "" && x.src.lineStart(x.src.of(first)) == x.spans[i].from && first.Column-1 > x.dash {
			x.key = first.Column - 1
		}
		for j := 1; j < len(n.Content); j += 2 {
			if v := n.Content[j]; v.Kind == yaml.ScalarNode && v.ShortTag() == "!!str" {
				count[quotingOf(v)]++
			}
		}
	}
	for _, q := range []quoting{quotePlain, quoteSingle} {
		if count[q] > count[x.quote] {
			x.quote = q
		}
	}
	if n := len(x.spans); n > 1 {
		x.blank = isBlank(x.src.line(x.spans[n-2].own))
	}
}

func quotingOf(v *yaml.Node) quoting {
	switch {
	case v.Style&yaml.SingleQuotedStyle != 0:
		return quoteSingle
	case v.Style&(yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return quoteDouble
	}
	return quotePlain
}

// target returns the entry that an edit of id is about: the good one, else the first bad one; -1 for none.
func (x *index) target(id string) int {
	found := -1
	for i := range x.spans {
		if x.spans[i].id == id {
			if !x.spans[i].bad {
				return i
			}
			if found < 0 {
				found = i
			}
		}
	}
	return found
}
