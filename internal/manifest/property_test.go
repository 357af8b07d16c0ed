package manifest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// written is an entry of a random document: its model and its lines.
type written struct {
	model registry.Model
	lines string
}

// drawEntry writes a model in a random hand: order, quotes, comments, blank lines, braces.
func drawEntry(t *rapid.T, m registry.Model, dash, key int) written {
	w := writer{eol: "\n", quote: rapid.SampledFrom([]quoting{quoteDouble, quotePlain, quoteSingle}).Draw(t, "quote")}
	in := encode(m)
	comment := func() string {
		return rapid.SampledFrom([]string{"", "", "", " # why: [it's", "   # \"x\" - {"}).Draw(t, "comment")
	}
	w.pad(dash)
	w.WriteByte('-')
	w.pad(key - dash - 1)
	if rapid.IntRange(0, 5).Draw(t, "form") == 0 {
		w.braces(in, rapid.Permutation(fieldNames(in)).Draw(t, "order"))
		w.WriteString(comment() + "\n")
		return written{m, w.String()}
	}
	for i, name := range rapid.Permutation(fieldNames(in)).Draw(t, "order") {
		if i > 0 {
			w.WriteString(rapid.SampledFrom([]string{"", "", "", "\n", "# - at the edge\n", strings.Repeat(" ", key) + "# - inside: x\n"}).Draw(t, "between"))
			w.pad(key)
		}
		switch v := in[name].(type) {
		case map[string]any:
			w.field(name, v, key)
			continue
		case []any:
			if rapid.Bool().Draw(t, "list") {
				w.WriteString(name + ":" + comment() + "\n")
				for _, e := range v {
					w.pad(key + rapid.SampledFrom([]int{0, 0}).Draw(t, "shift"))
					w.WriteString("- ")
					w.inline(e)
					w.WriteString(comment() + "\n")
				}
				continue
			}
		case string:
			if name == "description" && blockable(v) && rapid.Bool().Draw(t, "block") {
				w.WriteString(name + ": |" + map[bool]string{true: "", false: "-"}[strings.HasSuffix(v, "\n")] + "\n")
				for line := range strings.SplitSeq(strings.TrimSuffix(v, "\n"), "\n") {
					w.pad(key + 3)
					w.WriteString(line + "\n")
				}
				continue
			}
		case bool:
			if rapid.Bool().Draw(t, "capital") {
				w.WriteString(name + ": " + map[bool]string{true: "True", false: "False"}[v] + comment() + "\n")
				continue
			}
		}
		line := writer{eol: "\n", quote: w.quote}
		line.field(name, in[name], key)
		w.WriteString(strings.TrimSuffix(line.String(), "\n") + comment() + "\n")
	}
	return written{m, w.String()}
}

func blockable(s string) bool {
	s = strings.TrimSuffix(s, "\n")
	if s == "" || strings.HasSuffix(s, "\n") || strings.ContainsAny(s[:1], " \t\n") {
		return false
	}
	for _, r := range s {
		if r != '\n' && (r == '\r' || r == '\t' || !isVisible(r)) {
			return false
		}
	}
	return true
}

// Whatever a file looks like and whatever is edited, it reads afterwards as what was meant, and every entry that was
// not meant, every comment around the list and the rest of the file are there byte for byte.
func TestApplyProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dash := rapid.SampledFrom([]int{0, 2, 4}).Draw(t, "dash")
		key := dash + rapid.SampledFrom([]int{2, 4}).Draw(t, "gap")
		var entries []written
		head := rapid.SampledFrom([]string{"", "# head\n\n", "---\n", "x-a: &a [1]\n", "\ufeff# mark\n"}).Draw(t, "head")
		text := head + "models:" + rapid.SampledFrom([]string{"", " # list"}).Draw(t, "list comment") + "\n"
		var between []string
		for i := range rapid.IntRange(1, 5).Draw(t, "entries") {
			e := drawEntry(t, drawModel(t, fmt.Sprintf("m%d", i)), dash, key)
			sep := rapid.SampledFrom([]string{"", "\n", "\n\n", "# above\n", "\n" + strings.Repeat(" ", dash) + "# above\n"}).Draw(t, "sep")
			if strings.Contains(sep, "#") {
				sep = strings.Replace(sep, "above", fmt.Sprintf("above %d", i), 1)
				between = append(between, strings.TrimSpace(sep))
			}
			text += sep + e.lines
			entries = append(entries, e)
		}
		tail := rapid.SampledFrom([]string{"", "# tail\n", "\n# tail\nx-z: 1\n", "...\n"}).Draw(t, "tail")
		text += tail
		crlf := rapid.IntRange(0, 3).Draw(t, "crlf") == 0
		if crlf {
			text = strings.ReplaceAll(text, "\n", "\r\n")
		} else if tail == "" && rapid.Bool().Draw(t, "open end") {
			text = strings.TrimSuffix(text, "\n")
			entries[len(entries)-1].lines = strings.TrimSuffix(entries[len(entries)-1].lines, "\n")
		}

		var before []registry.Model
		x, err := newIndex([]byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for _, s := range x.spans {
			before = append(before, s.model)
		}
		var edits []Edit
		touched := map[string]bool{}
		for range rapid.IntRange(1, 4).Draw(t, "edits") {
			id := fmt.Sprintf("m%d", rapid.IntRange(0, 6).Draw(t, "id"))
			touched[id] = true
			at := slices.IndexFunc(before, func(m registry.Model) bool { return m.ModelID == id })
			switch kind := rapid.IntRange(0, 3).Draw(t, "edit"); {
			case kind == 0:
				edits = append(edits, del(id))
			case kind == 1 && at >= 0: // one field
				edits = append(edits, put(with(before[at], func(m *registry.Model) { m.RequiredRAMMB = 777 })))
			default:
				edits = append(edits, put(drawModel(t, id)))
			}
		}
		ops, invalid := operations(edits)
		if len(invalid) > 0 {
			t.Fatal(invalid)
		}
		r, err := x.apply(ops)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		got := text
		if r != nil {
			got = string(r.b)
		}
		after, err := parseTree([]byte(got))
		if err != nil {
			t.Fatalf("%v\nbefore:\n%s\nafter:\n%s", err, text, got)
		}
		want := expected(before, ops)
		if len(after.items) != len(want) {
			t.Fatalf("%d entries, want %d\nbefore:\n%s\nafter:\n%s", len(after.items), len(want), text, got)
		}
		for i := range want {
			if it := &after.items[i]; len(it.issues) > 0 || !sameValues(encode(it.model), encode(want[i])) {
				t.Fatalf("entry %d is %v %v, want %v\nbefore:\n%s\nafter:\n%s", i, encode(it.model), it.issues, encode(want[i]), text, got)
			}
		}
		keep := slices.Concat(between, []string{strings.TrimSpace(strings.TrimPrefix(head, "\ufeff")), strings.TrimSpace(tail)})
		for _, e := range entries {
			if !touched[e.model.ModelID] {
				keep = append(keep, e.lines)
			}
		}
		for _, k := range keep {
			if crlf {
				k = strings.ReplaceAll(k, "\n", "\r\n")
			}
			// A text in a block that the file ends with has no line break at its end, and still none when one follows.
			chomped := strings.ReplaceAll(strings.ReplaceAll(k, "|\n", "|-\n"), "|\r\n", "|-\r\n")
			if !strings.Contains(got, k) && (!strings.HasSuffix(text, k) || !strings.Contains(got, chomped)) {
				t.Fatalf("lost:\n%s\nbefore:\n%s\nafter:\n%s", k, text, got)
			}
		}
		if crlf && strings.Count(got, "\n") != strings.Count(got, "\r\n") {
			t.Fatalf("mixed line ends:\n%q", got)
		}
		if r != nil {
			remembered(t, x, r)
		}
	})
}

// expected is what a list of good models is after the operations.
func expected(before []registry.Model, ops []op) []registry.Model {
	var out []registry.Model
	done := map[string]bool{}
	for _, m := range before {
		i := slices.IndexFunc(ops, func(o op) bool { return o.id == m.ModelID })
		switch {
		case i < 0 || (done[m.ModelID] && ops[i].fields != nil):
			out = append(out, m)
		case ops[i].fields != nil:
			out = append(out, ops[i].model)
		}
		done[m.ModelID] = true
	}
	for _, o := range ops {
		if o.fields != nil && !done[o.id] {
			out = append(out, o.model)
		}
	}
	return out
}

// remembered checks that what is remembered of a written text is what reading it again gives.
func remembered(t interface {
	Fatalf(format string, args ...any)
}, x *index, r *result) {
	kept := x.after(r)
	if kept == nil {
		return
	}
	fresh, err := newIndex(r.b)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.b)
	}
	for i := range fresh.spans {
		a, b := fresh.spans[i], kept.spans[i]
		// A comment that stood inside of an entry may have come to stand behind its last field.
		apart := string(r.b[min(a.to, b.to):max(a.own, b.own)])
		for line := range strings.SplitSeq(apart, "\n") {
			if !isBlank(strings.TrimSuffix(line, "\r")) && !isComment(line) {
				apart = "no"
			}
		}
		if a.from != b.from || apart == "no" || a.id != b.id || a.bad != b.bad {
			t.Fatalf("entry %d is at %d-%d-%d, remembered %d-%d-%d\n%s", i, a.from, a.to, a.own, b.from, b.to, b.own, r.b)
		}
	}
}
