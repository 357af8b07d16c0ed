package manifest

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// fullCheckFrom is how many touched entries make it cheaper to read the whole result again than to look around each.
const fullCheckFrom = 32

// op is what an edit comes down to: the model that an id shall have, or that it shall be gone.
type op struct {
	id     string
	model  registry.Model
	fields map[string]any // nil: remove
}

// result is a new text, and what each of its entries must read as.
type result struct {
	b       []byte
	spans   []span
	touched []int // indexes into spans around which something changed
}

// maxRefusals is how many operations are refused one by one. Finding each takes some attempts, and a file in which so
// many fail wants a person's hand.
const maxRefusals = 100

// applyEach makes the operations that can be made, and returns the others with the reason. A nil result means that
// nothing had to change.
func (x *index) applyEach(ops []op) (r *result, refused []Refusal) {
	var made []op
	var add func(more []op)
	add = func(more []op) {
		all := slices.Concat(made, more)
		with, err := x.apply(all)
		switch {
		case err == nil:
			made, r = all, with
		case len(more) == 1 || len(refused) >= maxRefusals:
			for _, o := range more {
				refused = append(refused, Refusal{ID: o.id, Err: err})
			}
		default: // which one it is shows in halves
			add(more[:len(more)/2])
			add(more[len(more)/2:])
		}
	}
	add(ops)
	return r, refused
}

// apply makes the operations, one for an id at most, on the text. A nil result means that nothing had to change.
func (x *index) apply(ops []op) (*result, error) {
	var adds []op
	at := map[int]op{}
	for _, o := range ops {
		if o.fields == nil {
			for i := range x.spans {
				if x.spans[i].id == o.id {
					at[i] = o
				}
			}
			continue
		}
		if i := x.target(o.id); i >= 0 {
			at[i] = o
			continue
		}
		adds = append(adds, o)
	}
	if err := x.checkNewIDs(at, adds); err != nil {
		return nil, err
	}
	for _, rewrite := range []bool{false, true} {
		var r *result
		var err error
		if x.kind == listFlow {
			r = x.composeFlow(at, adds)
		} else {
			r, err = x.composeBlock(at, adds, rewrite)
		}
		if err == nil && bytes.Equal(r.b, x.b) {
			return nil, nil
		}
		if err == nil {
			err = x.check(r)
		}
		if err == nil {
			return r, nil
		}
		if rewrite {
			return nil, err
		}
	}
	return nil, nil
}

// checkNewIDs refuses a new entry that another one would hide at the next start.
func (x *index) checkNewIDs(at map[int]op, adds []op) error {
	if len(adds) == 0 {
		return nil
	}
	folded := make(map[string]string, len(x.spans)+len(adds))
	for i := range x.spans {
		if o, touched := at[i]; x.spans[i].id != "" && !x.spans[i].bad && (!touched || o.fields != nil) {
			folded[strings.ToLower(x.spans[i].id)] = x.spans[i].id
		}
	}
	for _, o := range adds {
		key := strings.ToLower(o.id)
		if other, taken := folded[key]; taken {
			return &registry.Error{Code: registry.CodeConflict, Op: "manifest.Apply",
				Msg: fmt.Sprintf("already has the model %q, whose id differs from %q only in case; choose another id or rename that one", other, o.id)}
		}
		folded[key] = o.id
	}
	return nil
}

// composeBlock makes the new text of a file whose entries stand on lines of their own. With rewrite, changed
// entries are written anew instead of field by field.
func (x *index) composeBlock(at map[int]op, adds []op, rewrite bool) (*result, error) {
	r := &result{spans: make([]span, 0, len(x.spans)+len(adds))}
	var out bytes.Buffer
	out.Grow(len(x.b) + 512*len(adds))
	cursor := x.composeHead(&out, len(adds) > 0)
	for i, s := range x.spans {
		o, touched := at[i]
		if !touched {
			r.spans = append(r.spans, s.moved(out.Len()-cursor))
			// The text itself follows with the next piece that is copied.
			if i+1 < len(x.spans) && !hasKey(at, i+1) {
				continue
			}
			out.Write(x.b[cursor:s.own])
			cursor = s.own
			continue
		}
		r.touched = append(r.touched, len(r.spans))
		out.Write(x.b[cursor:s.from])
		if o.fields == nil {
			cursor = x.dropEntry(&out, i, r)
			continue
		}
		text, err := x.entryText(i, o, rewrite)
		if err != nil {
			return nil, err
		}
		from := out.Len()
		out.WriteString(text)
		to := out.Len()
		out.Write(x.b[s.to:s.own])
		cursor = s.own
		r.spans = append(r.spans, span{from: from, to: to, own: out.Len(), id: o.id, model: o.model})
	}
	for _, o := range adds {
		r.touched = append(r.touched, len(r.spans))
		x.appendEntry(&out, r, o)
	}
	out.Write(x.b[cursor:])
	r.b = out.Bytes()
	return r, nil
}

func hasKey(at map[int]op, i int) bool {
	_, ok := at[i]
	return ok
}

func (s span) moved(by int) span {
	s.from, s.to, s.own = s.from+by, s.to+by, s.own+by
	return s
}

// composeHead writes what comes before the first entry and returns how far the old text is used up. Where there is
// no list yet, it makes room for one.
func (x *index) composeHead(out *bytes.Buffer, adding bool) int {
	if !adding {
		return 0
	}
	switch x.kind {
	case listAbsent:
		out.Write(x.b)
		x.breakLine(out)
		out.WriteString("models:" + x.eol)
		return len(x.b)
	case listEmpty:
		out.WriteString(strings.TrimRight(string(x.b[:x.valueFrom]), " \t"))
		end := x.src.lineEnd(x.valueTo)
		out.WriteString(strings.TrimRight(string(x.b[x.valueTo:end]), " \t\r\n") + x.eol)
		return end
	case listBlock, listFlow:
	}
	return 0
}

// breakLine ends the last line if it has no end.
func (x *index) breakLine(out *bytes.Buffer) {
	if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' && !bytes.Equal(b, []byte("\ufeff")) {
		out.WriteString(x.eol)
	}
}

// dropEntry leaves entry i out, with the blank lines that would be doubled by it. It returns how far the old text is
// used up.
func (x *index) dropEntry(out *bytes.Buffer, i int, r *result) int {
	end := x.spans[i].own
	kept := out.Bytes()
	lastLine := kept[bytes.LastIndexByte(kept[:max(0, len(kept)-1)], '\n')+1:]
	if i > 0 && !isBlank(strings.TrimRight(string(lastLine), "\r\n")) {
		return end
	}
	for end < len(x.b) && isBlank(x.src.line(end)) {
		end = x.src.lineEnd(end)
	}
	if n := len(r.spans); end == len(x.b) && n > 0 && isBlank(strings.Trim(string(kept[r.spans[n-1].own:]), "\r\n")) {
		out.Truncate(r.spans[n-1].own) // no blank lines at the end of the file
	}
	return end
}

// appendEntry writes a new entry after the last one.
func (x *index) appendEntry(out *bytes.Buffer, r *result, o op) {
	open := len(x.b) > 0 && x.b[len(x.b)-1] != '\n' && x.kind == listBlock
	x.closeEntry(out, r)
	if b := out.Bytes(); x.blank && len(r.spans) > 0 && !bytes.HasSuffix(b, []byte("\n\n")) && !bytes.HasSuffix(b, []byte("\n\r\n")) &&
		!keepsBreaks.Match(b[r.spans[len(r.spans)-1].from:]) {
		out.WriteString(x.eol)
	}
	text := x.entryLines(o)
	if open && len(x.spans) > 0 && x.spans[len(x.spans)-1].own == len(x.b) {
		text = strings.TrimSuffix(text, x.eol) // the file had no final line end, and keeps none
	}
	from := out.Len()
	out.WriteString(text)
	r.spans = append(r.spans, span{from: from, to: out.Len(), own: out.Len(), id: o.id, model: o.model})
}

// keepsBreaks finds the head of a text in a block to which the blank lines after it belong (|+).
var keepsBreaks = regexp.MustCompile(`[|>][0-9]?\+[0-9]?[ \t]*(#.*)?\r?\n`)

// closeEntry ends the last line if it has no end. Where that line is of a text in a block (description: |), its end
// would become part of the text; the block's head then says that it is not.
func (x *index) closeEntry(out *bytes.Buffer, r *result) {
	end, n := out.Len(), len(r.spans)
	x.breakLine(out)
	if n == 0 || r.spans[n-1].to != end || out.Len() == end {
		return
	}
	last := &r.spans[n-1]
	last.to, last.own = out.Len(), out.Len()
	base := aloneText(string(out.Bytes()[last.from:]))
	if x.linked {
		base = out.Bytes()
	}
	if kept := keepBlock(base, *last); !bytes.Equal(kept, base) {
		by := len(kept) - len(base)
		entry := kept[len(kept)-(last.to-last.from)-by:]
		out.Truncate(last.from)
		out.Write(entry)
		last.to, last.own = out.Len(), out.Len()
	}
}

// keepBlock returns text, whose last entry ends with a line break since now, with that entry still reading as s says.
func keepBlock(text []byte, s span) []byte {
	reads := func(text []byte) *item {
		t, err := parseTree(text)
		if err != nil || len(t.items) == 0 || !t.items[len(t.items)-1].is(s) {
			return nil
		}
		return &t.items[len(t.items)-1]
	}
	t, err := parseTree(text)
	if err != nil || len(t.items) == 0 || reads(text) != nil {
		return text
	}
	leaf := t.items[len(t.items)-1].node
	for len(leaf.Content) > 0 {
		leaf = leaf.Content[len(leaf.Content)-1]
	}
	if leaf.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
		return text
	}
	src := newSource(text)
	head := src.skipProperties(src.of(leaf)) + 1 // after the | or >
	rest := head
	for rest < len(text) && strings.IndexByte("+-0123456789", text[rest]) >= 0 {
		rest++
	}
	indent := strings.Trim(string(text[head:rest]), "+-")
	for _, chomp := range []string{"-", ""} {
		if as := slices.Concat(text[:head], []byte(indent+chomp), text[rest:]); reads(as) != nil {
			return as
		}
	}
	return text
}

// entryLines writes an entry in the file's style.
func (x *index) entryLines(o op) string {
	w := writer{eol: x.eol, quote: x.quote}
	w.pad(x.dash)
	w.WriteByte('-')
	w.pad(x.key - x.dash - 1)
	w.fields(o.fields, x.key)
	return w.String()
}

// entryText returns the text for the lines of entry i as o wants it.
func (x *index) entryText(i int, o op, rewrite bool) (string, error) {
	s := x.spans[i]
	if !s.bad && sameValues(encode(s.model), o.fields) {
		return string(x.b[s.from:s.to]), nil
	}
	if !rewrite {
		text, err := x.editedEntry(i, o)
		if err == nil && (x.linked || readsAs(text, o)) {
			return text, nil
		}
	}
	text := x.entryLines(o)
	if s.to > s.from && x.b[s.to-1] != '\n' {
		text = strings.TrimSuffix(text, x.eol)
	}
	if !x.linked && !readsAs(text, o) {
		return "", selfCheckError(o.id)
	}
	return text, nil
}

// editedEntry changes the fields of entry i that differ and leaves every other byte. An entry without anchors is
// read alone, in time that does not depend on the size of the file.
func (x *index) editedEntry(i int, o op) (string, error) {
	s := x.spans[i]
	if x.linked {
		e := editor{src: x.src, eol: x.eol, quote: x.quote}
		if err := e.entry(&x.tree.items[i], s.to, o.fields); err != nil {
			return "", err
		}
		return applySplices(x.b, s.from, s.to, e.edits)
	}
	alone := aloneText(string(x.b[s.from:s.to]))
	t, err := parseTree(alone)
	if err != nil || len(t.items) != 1 {
		return "", errRewrite
	}
	e := editor{src: newSource(alone), eol: x.eol, quote: x.quote}
	if err := e.entry(&t.items[0], len(alone), o.fields); err != nil {
		return "", err
	}
	return applySplices(alone, len(alonePrefix), len(alone), e.edits)
}

const alonePrefix = "models:\n"

// aloneText makes a document of some entries' lines.
func aloneText(lines string) []byte { return []byte(alonePrefix + lines) }

// readsAs reports whether an entry's lines, read alone, are o's model.
func readsAs(text string, o op) bool {
	t, err := parseTree(aloneText(text))
	return err == nil && len(t.items) == 1 && len(t.issues) == 0 && t.items[0].is(span{id: o.id, model: o.model})
}

// is reports whether an item reads as a span says.
func (it *item) is(s span) bool {
	return it.id == s.id && (len(it.issues) > 0) == s.bad && sameValues(encode(it.model), encode(s.model))
}

// check reads the result back and compares it with what was meant, before it replaces anybody's file. With few
// changes in a file without anchors it reads the changed entries and their neighbours; nothing else can have changed.
func (x *index) check(r *result) error {
	if len(r.b) > MaxBytes {
		return &registry.Error{Code: registry.CodeInvalid, Op: "manifest.Apply", Msg: fmt.Sprintf("would be larger than %d bytes; split it", MaxBytes)}
	}
	if x.kind != listBlock || x.linked || len(r.touched) >= fullCheckFrom || len(r.spans) == 0 {
		t, err := parseTree(r.b)
		if err != nil || len(t.items) != len(r.spans) || len(t.issues) != x.others {
			return selfCheckError("")
		}
		for i := range r.spans {
			if !t.items[i].is(r.spans[i]) {
				return selfCheckError(r.spans[i].id)
			}
		}
		return nil
	}
	for _, i := range r.touched {
		lo, hi := max(0, i-1), min(len(r.spans)-1, i+1)
		t, err := parseTree(aloneText(string(r.b[r.spans[lo].from:r.spans[hi].own])))
		if err != nil || len(t.items) != hi-lo+1 {
			return selfCheckError(r.spans[lo].id)
		}
		for j := range t.items {
			if !t.items[j].is(r.spans[lo+j]) {
				return selfCheckError(r.spans[lo+j].id)
			}
		}
	}
	return nil
}

func selfCheckError(id string) error {
	what := "this change"
	if id != "" {
		what = fmt.Sprintf("the entry %q", id)
	}
	return unsupported("is written in a way in which %s cannot be changed without harm to others (anchors that other entries use, perhaps); change it by hand", what)
}

// composeFlow makes the new text of a list in brackets.
func (x *index) composeFlow(at map[int]op, adds []op) *result {
	r := &result{spans: make([]span, 0, len(x.spans)+len(adds))}
	var out bytes.Buffer
	open := x.valueFrom + 1
	if len(x.spans) > 0 {
		open = x.spans[0].from
	}
	out.Write(x.b[:open])
	sep, written := ", ", 0
	put := func(before, text string, s span) {
		if written > 0 {
			out.WriteString(before)
		}
		written++
		s.from = out.Len()
		out.WriteString(text)
		s.to, s.own = out.Len(), out.Len()
		r.spans = append(r.spans, s)
	}
	end := open
	for i, s := range x.spans {
		before := sep
		if i > 0 {
			before = string(x.b[end:s.from])
			if isBlank(strings.NewReplacer(",", "", "\n", "", "\r", "").Replace(before)) {
				sep = before
			}
		}
		end = s.to
		o, touched := at[i]
		switch {
		case !touched || (o.fields != nil && !s.bad && sameValues(encode(s.model), o.fields)):
			put(before, string(x.b[s.from:s.to]), s)
		case o.fields != nil:
			put(before, braces(o), span{id: o.id, model: o.model})
		}
	}
	for _, o := range adds {
		put(sep, braces(o), span{id: o.id, model: o.model})
	}
	rest := string(x.b[end:])
	if written == 0 {
		rest = string(x.b[x.valueTo-1:])
	}
	out.WriteString(rest)
	r.b = out.Bytes()
	return r
}

func braces(o op) string {
	var w writer
	w.braces(o.fields, fieldNames(o.fields))
	return w.String()
}
