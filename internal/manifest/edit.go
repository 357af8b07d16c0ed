package manifest

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// errRewrite says that the fields of an entry cannot be edited one by one; the entry is written anew.
var errRewrite = errors.New("manifest: the entry must be written anew")

// splice replaces [from, to) of a text.
type splice struct {
	from, to int
	text     string
}

// splices applied to b[from:to]; offsets are b's.
func applySplices(b []byte, from, to int, edits []splice) (string, error) {
	slices.SortStableFunc(edits, func(a, b splice) int {
		if a.from != b.from {
			return a.from - b.from
		}
		return a.to - b.to
	})
	var out strings.Builder
	at := from
	for _, e := range edits {
		if e.from < at || e.to < e.from || e.to > to {
			return "", errRewrite
		}
		out.Write(b[at:e.from])
		out.WriteString(e.text)
		at = e.to
	}
	out.Write(b[at:to])
	return out.String(), nil
}

// editor collects the splices that turn one entry into another.
type editor struct {
	src   *source
	eol   string
	quote quoting
	edits []splice
}

// pair is a field of a block mapping in the text: its lines are [from, to), colon is after the colon.
type pair struct {
	name            string
	k, v            *yaml.Node
	from, colon, to int
	gone            bool
}

// defaults are what a field that is already in the text becomes when it is no longer given. Other fields are removed.
var defaults = map[string]any{
	"revision":          registry.DefaultRevision,
	"device_preference": string(registry.DeviceAuto),
	"trust_remote_code": false,
	"engine":            registry.EngineAuto,
	"team":              registry.DefaultTeam,
	"pinned":            false,
}

// entry edits the entry it, which ends before bound, to hold want.
func (e *editor) entry(it *item, bound int, want map[string]any) error {
	body := it.node
	if body.Kind != yaml.MappingNode {
		return errRewrite
	}
	if body.Style&yaml.FlowStyle != 0 {
		w := writer{eol: e.eol}
		w.braces(want, fieldNames(want))
		from := e.src.skipProperties(e.src.of(body))
		e.edits = append(e.edits, splice{from, flowEnd(e.src.b, from), w.String()})
		return nil
	}
	names := make([]string, len(registry.Fields))
	for i, f := range registry.Fields {
		names[i] = f.Name
	}
	return e.mapping(body, encode(it.model), want, names, it.bad, bound)
}

// fieldNames returns the names of the fields that are given, in the guide's order.
func fieldNames(in map[string]any) []string {
	out := make([]string, 0, len(in))
	for _, f := range registry.Fields {
		if _, given := in[f.Name]; given {
			out = append(out, f.Name)
		}
	}
	return out
}

// mapping edits the block mapping n, which holds old, to hold want. order has at least want's names. What is bad, or
// no field (bad is not nil for an entry), is replaced or removed whatever it holds.
func (e *editor) mapping(n *yaml.Node, old, want map[string]any, order []string, bad map[string]bool, bound int) error {
	pairs, err := e.pairs(n, bound)
	if err != nil {
		return err
	}
	own := make(map[string]*pair, len(pairs))
	for i := range pairs {
		p := &pairs[i]
		if own[p.name] != nil {
			return errRewrite
		}
		own[p.name] = p
		if p.k.ShortTag() == "!!merge" {
			continue
		}
		was, had := old[p.name]
		wanted, keep := want[p.name]
		if !keep && had && bad != nil {
			wanted, keep = defaults[p.name] // the line and its comment stay
		}
		_, known := registry.FieldByName(p.name)
		wrong := bad != nil && (bad[p.name] || !known)
		switch {
		case keep && had && !wrong && reflect.DeepEqual(was, wanted):
		case keep:
			if err := e.replace(p, was, wanted, n.Column-1); err != nil {
				return err
			}
		case had || wrong:
			p.gone = true
		}
	}
	if err := e.remove(pairs); err != nil {
		return err
	}
	return e.add(pairs, own, old, want, order, n.Column-1)
}

// pairs finds the fields of a block mapping in the text.
func (e *editor) pairs(n *yaml.Node, bound int) ([]pair, error) {
	out := make([]pair, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		from := e.src.of(k)
		start := e.src.lineStart(from)
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || k.Style&yaml.TaggedStyle != 0 || from >= bound ||
			k.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 || (i > 0 && !isBlank(string(e.src.b[start:from]))) {
			return nil, errRewrite
		}
		end := from + len(k.Value)
		if quotingOf(k) != quotePlain {
			end = quotedEnd(e.src.b, from)
		}
		for end < bound && (e.src.b[end] == ' ' || e.src.b[end] == '\t') {
			end++
		}
		if end >= bound || e.src.b[end] != ':' {
			return nil, errRewrite
		}
		next := bound
		if i+2 < len(n.Content) {
			next = e.src.lineStart(e.src.of(n.Content[i+2]))
		}
		to := e.src.contentEnd(from, next)
		if !isEmpty(v) {
			to = e.src.end(v, n.Column-1, next)
		}
		if i > 0 || isBlank(string(e.src.b[start:from])) {
			from = start
		}
		out = append(out, pair{name: k.Value, k: k, v: v, from: from, colon: end + 1, to: to})
	}
	return out, nil
}

// replace gives a field another value.
func (e *editor) replace(p *pair, was, want any, indent int) error {
	b, v := e.src.b, p.v
	sub, isMap := want.(map[string]any)
	isMap = isMap && len(sub) > 0
	block := (v.Kind == yaml.MappingNode || v.Kind == yaml.SequenceNode) && v.Style&yaml.FlowStyle == 0
	switch {
	case isEmpty(v) && v.Anchor == "" && v.Style == 0:
		if isMap {
			e.edits = append(e.edits, splice{p.to, p.to, e.lines(p.to, indent+2, sub)})
			return nil
		}
		e.edits = append(e.edits, splice{p.colon, p.colon, " " + e.inline(v, want)})
		return nil
	case block:
		return e.replaceBlock(p, was, want, indent)
	}

	start := e.src.of(v)
	end := e.valueEnd(v, start, p.to)
	if isMap && (v.Style&yaml.FlowStyle == 0 || v.Kind != yaml.MappingNode) {
		tail := ""
		if e.src.lineStart(end) == e.src.lineStart(p.colon) {
			tail = strings.TrimRight(string(b[end:p.to]), "\r\n")
		}
		e.edits = append(e.edits, splice{p.colon, p.to, tail + e.eol + e.lines(0, indent+2, sub)})
		return nil
	}
	text := e.inline(v, want)
	if v.Kind == yaml.ScalarNode && v.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		end = p.to
		if p.to > 0 && b[p.to-1] == '\n' {
			text += e.eol
		}
	}
	e.edits = append(e.edits, splice{start, end, text})
	return nil
}

// replaceBlock replaces a map or a list that stands on lines of its own below its key.
func (e *editor) replaceBlock(p *pair, was, want any, indent int) error {
	head := e.src.lineEnd(p.colon)
	if rest := strings.TrimRight(string(e.src.b[p.colon:head]), "\r\n"); (!isBlank(rest) && !isComment(rest)) || head >= p.to {
		return errRewrite
	}
	switch want := want.(type) {
	case map[string]any:
		if len(want) == 0 {
			break
		}
		before, isMap := was.(map[string]any)
		if p.v.Kind != yaml.MappingNode {
			e.edits = append(e.edits, splice{head, p.to, e.lines(0, indent+2, want)})
			return nil
		}
		mark := len(e.edits)
		if isMap && e.mapping(p.v, before, want, slices.Sorted(maps.Keys(want)), nil, p.to) == nil {
			return nil
		}
		e.edits = append(e.edits[:mark], splice{head, p.to, e.lines(0, p.v.Column-1, want)})
		return nil
	case []any:
		if len(want) == 0 || p.v.Kind != yaml.SequenceNode {
			break
		}
		w := writer{eol: e.eol, quote: e.quote}
		if first := p.v.Content; len(first) > 0 && first[0].Kind == yaml.ScalarNode && first[0].ShortTag() == "!!str" {
			w.quote = quotingOf(first[0])
		}
		for _, item := range want {
			w.pad(p.v.Column - 1)
			w.WriteString("- ")
			w.inline(item)
			w.WriteString(e.eol)
		}
		e.edits = append(e.edits, splice{head, p.to, w.String()})
		return nil
	}
	e.edits = append(e.edits, splice{p.colon, p.colon, " " + e.inline(p.v, want)}, splice{head, p.to, ""})
	return nil
}

// valueEnd returns the offset after a value that begins at start and is no block collection; a comment behind it is
// not part of it. Its lines end at bound.
func (e *editor) valueEnd(v *yaml.Node, start, bound int) int {
	b := e.src.b
	body := e.src.skipProperties(start)
	switch {
	case v.Style&yaml.FlowStyle != 0:
		return flowEnd(b, body)
	case v.Kind == yaml.ScalarNode && v.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		return quotedEnd(b, body)
	}
	from := start
	if bound > start {
		from = max(start, e.src.lineStart(bound-1))
	}
	end := bound
	for i := from + 1; i < bound; i++ {
		if b[i] == '#' && (b[i-1] == ' ' || b[i-1] == '\t') {
			end = i
			break
		}
	}
	for end > start && strings.IndexByte(" \t\r\n", b[end-1]) >= 0 {
		end--
	}
	return end
}

// inline writes a value in the manner of the one that it replaces.
func (e *editor) inline(old *yaml.Node, v any) string {
	w := writer{eol: e.eol, quote: e.quote}
	if old.Kind == yaml.ScalarNode && old.ShortTag() == "!!str" {
		w.quote = quotingOf(old)
	}
	if truth, ok := v.(bool); ok && (old.Value == "True" || old.Value == "False") {
		if truth {
			return "True"
		}
		return "False"
	}
	w.inline(v)
	return w.String()
}

// lines writes a map as lines. at is where they are inserted, to begin a line there.
func (e *editor) lines(at, indent int, m map[string]any) string {
	w := writer{eol: e.eol, quote: e.quote}
	w.block(m, indent)
	return e.fit(at, w.String())
}

// fit makes whole lines fit at an offset that may be the end of a text without a final line break.
func (e *editor) fit(at int, text string) string {
	if at > 0 && e.src.b[at-1] != '\n' {
		return e.eol + strings.TrimSuffix(text, e.eol)
	}
	return text
}

// remove takes the pairs away that are gone.
func (e *editor) remove(pairs []pair) error {
	kept := slices.IndexFunc(pairs, func(p pair) bool { return !p.gone })
	if kept < 0 {
		return errRewrite
	}
	if first := e.src.of(pairs[0].k); kept > 0 && pairs[0].from == first {
		// The dash stands on the first field's line: the first that stays moves up to it, unless a comment is between.
		next := e.src.of(pairs[kept].k)
		if !isBlank(strings.TrimSpace(string(e.src.b[pairs[kept-1].to:next]))) {
			return errRewrite
		}
		e.edits = append(e.edits, splice{first, next, ""})
		pairs = pairs[kept:]
	}
	end := len(pairs) // of those before the last ones that go; with these go the blank lines above them
	for end > 1 && pairs[end-1].gone {
		end--
	}
	if end < len(pairs) && isBlank(strings.NewReplacer("\n", "", "\r", "").Replace(string(e.src.b[pairs[end-1].to:pairs[end].from]))) {
		pairs[end].from = pairs[end-1].to
	}
	for _, p := range pairs {
		if p.gone {
			e.edits = append(e.edits, splice{p.from, p.to, ""})
		}
	}
	return nil
}

// add inserts the fields that the mapping does not hold itself, each after the one that comes before it in order.
// A field that an anchor brings in and that is not wanted is set to null.
func (e *editor) add(pairs []pair, own map[string]*pair, old, want map[string]any, order []string, indent int) error {
	rank := make(map[string]int, len(order))
	for i, name := range order {
		rank[name] = i
	}
	insert := func(name string, v any) error {
		at := -1
		for i := range pairs {
			if r, ranked := rank[pairs[i].name]; !pairs[i].gone && (at < 0 || (ranked && r < rank[name])) {
				at = max(at, pairs[i].to)
			}
		}
		if at < 0 {
			return errRewrite
		}
		w := writer{eol: e.eol, quote: e.quote}
		w.pad(indent)
		w.field(name, v, indent)
		e.edits = append(e.edits, splice{at, at, e.fit(at, w.String())})
		return nil
	}
	for _, name := range order {
		if v, given := want[name]; given && own[name] == nil && !(has(old, name) && reflect.DeepEqual(old[name], v)) {
			if err := insert(name, v); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if own[name] == nil && !has(want, name) {
			if err := insert(name, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func has(m map[string]any, name string) bool {
	_, ok := m[name]
	return ok
}
