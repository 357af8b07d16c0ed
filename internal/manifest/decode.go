package manifest

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// maxEntryValues bounds what one entry may hold once its aliases are followed: a few lines of aliases of aliases can
// name billions of values.
const maxEntryValues = 10_000

// problem is something wrong with the value at a node.
type problem struct {
	node *yaml.Node
	msg  string
}

// converter turns nodes into what registry.Decode takes, counting what it visits.
type converter struct{ left int }

// decodeItem decodes the i-th element of the list. All rules about fields are registry.Decode's; here are only
// those about YAML.
func decodeItem(i int, n *yaml.Node) item {
	it := item{node: n, bad: map[string]bool{}}
	path := fmt.Sprintf("models[%d]", i)
	body := resolve(n)
	if body == nil || body.Kind != yaml.MappingNode {
		it.issues = []registry.FieldError{{Field: path, Msg: "must be a map of fields such as model_id: \"name\", not " + describe(n), Line: n.Line, Column: n.Column}}
		return it
	}
	add := func(name, msg string, at *yaml.Node) {
		field := path
		if name != "" {
			field += "." + clip(name)
			it.bad[name] = true
		}
		it.issues = append(it.issues, registry.FieldError{Field: field, Msg: msg, Line: at.Line, Column: at.Column})
	}

	c := converter{left: maxEntryValues}
	in := make(map[string]any, len(body.Content)/2)
	places := make(map[string][2]*yaml.Node, len(body.Content)/2)
	c.eachPair(body, 0, add, func(name string, k, v *yaml.Node) {
		f, known := registry.FieldByName(name)
		val, p := c.value(v, 1)
		if p != nil {
			add(name, p.msg, p.node)
			return
		}
		if known && f.Kind != registry.KindBool && f.Kind != registry.KindMap {
			val = asWritten(v, val)
		}
		in[name], places[name] = val, [2]*yaml.Node{k, v}
	})

	m, errs := registry.Decode(in)
	it.model, it.id = m, m.ModelID
	for _, fe := range errs {
		at, name := n, fe.Field
		if it.bad[name] {
			continue // its YAML is wrong already; what is said about it as missing would mislead
		}
		pair, ok := places[name]
		if !ok {
			name, pair, ok = unclip(name, places)
		}
		if ok {
			at = pair[1]
			if _, known := registry.FieldByName(name); !known || isEmpty(at) {
				at = pair[0]
			}
			fe.Msg += quoteHint(name, pair[1])
		}
		add(name, fe.Msg, at)
	}
	return it
}

// unclip finds the key of an unknown field whose name the registry shortened for its message.
func unclip(short string, places map[string][2]*yaml.Node) (string, [2]*yaml.Node, bool) {
	if prefix, cut := strings.CutSuffix(short, "…"); cut {
		for name, pair := range places {
			if strings.HasPrefix(name, prefix) {
				return name, pair, true
			}
		}
	}
	return short, [2]*yaml.Node{}, false
}

// quoteHint helps where text was read as a number or a truth value.
func quoteHint(name string, v *yaml.Node) string {
	f, ok := registry.FieldByName(name)
	if !ok || f.Kind != registry.KindString || v.Kind != yaml.ScalarNode || v.Style != 0 {
		return ""
	}
	switch v.ShortTag() {
	case "!!int", "!!float", "!!bool":
		return fmt.Sprintf("; put it in quotes: %q", clip(v.Value))
	}
	return ""
}

// eachPair walks the fields of a mapping, those merged in with << last and only where they are not given. add
// reports what is wrong; name is "" when the fault belongs to no field.
func (c *converter) eachPair(m *yaml.Node, depth int, add func(name, msg string, at *yaml.Node), each func(name string, k, v *yaml.Node)) {
	lines := make(map[string]int, len(m.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
			merges = append(merges, v)
			continue
		}
		name, msg := keyName(k)
		if msg != "" {
			add("", msg, k)
			continue
		}
		if first, dup := lines[name]; dup {
			add(name, fmt.Sprintf("is given twice, first on line %d", first), k)
			continue
		}
		lines[name] = k.Line
		each(name, k, v)
	}
	for _, v := range merges {
		c.merge(v, depth+1, lines, add, each)
	}
}

func (c *converter) merge(v *yaml.Node, depth int, lines map[string]int, add func(name, msg string, at *yaml.Node), each func(name string, k, v *yaml.Node)) {
	body := resolve(v)
	if c.left--; c.left < 0 || depth > MaxDepth {
		add("", "has too many values, or aliases that lead back to themselves", v)
		return
	}
	switch {
	case body != nil && body.Kind == yaml.MappingNode:
		c.eachPair(body, depth, add, func(name string, k, val *yaml.Node) {
			if _, given := lines[name]; !given {
				lines[name] = k.Line
				each(name, k, val)
			}
		})
	case body != nil && body.Kind == yaml.SequenceNode && depth < MaxDepth:
		for _, e := range body.Content {
			if r := resolve(e); r == nil || r.Kind != yaml.MappingNode {
				add("", "has << with something that is not a map", e)
				return
			}
			c.merge(e, depth+1, lines, add, each)
		}
	default:
		add("", "has << with something that is not a map", v)
	}
}

func keyName(k *yaml.Node) (name, msg string) {
	k = resolve(k)
	if k == nil || k.Kind != yaml.ScalarNode {
		return "", "has a key that is not text"
	}
	switch k.ShortTag() {
	case "!!str", "!!bool": // on, yes and the like are words as names
		return k.Value, ""
	case "!!merge":
		return "", "has << where a name belongs"
	}
	return "", fmt.Sprintf("has the key %s, which is not text; put it in quotes", clip(k.Value))
}

// value converts a node. Its caller has counted it.
func (c *converter) value(n *yaml.Node, depth int) (any, *problem) {
	at := n
	n = resolve(n)
	c.left--
	if n == nil || c.left < 0 || depth > MaxDepth {
		return nil, &problem{at, "has too many values, or aliases that lead back to themselves"}
	}
	switch n.Kind {
	case yaml.ScalarNode:
		return scalar(n)
	case yaml.SequenceNode:
		if p := tagProblem(n, "!!seq"); p != nil {
			return nil, p
		}
		out := make([]any, len(n.Content))
		for i, e := range n.Content {
			v, p := c.value(e, depth+1)
			if p != nil {
				return nil, p
			}
			out[i] = v
		}
		return out, nil
	case yaml.MappingNode:
		if p := tagProblem(n, "!!map"); p != nil {
			return nil, p
		}
		out := make(map[string]any, len(n.Content)/2)
		var bad *problem
		c.eachPair(n, depth, func(name, msg string, node *yaml.Node) {
			if bad == nil {
				if name != "" {
					msg = clip(name) + " " + msg
				}
				bad = &problem{node, "is wrong: " + msg}
			}
		}, func(name string, _, v *yaml.Node) {
			val, p := c.value(v, depth+1)
			if p != nil && bad == nil {
				bad = p
			}
			out[name] = val
		})
		return out, bad
	case yaml.AliasNode, yaml.DocumentNode, yaml.StreamNode:
	}
	return nil, &problem{at, "is not a value"}
}

func tagProblem(n *yaml.Node, want string) *problem {
	if tag := n.ShortTag(); tag != want {
		return &problem{n, fmt.Sprintf("has the tag %s, which has no meaning here; remove it", clip(tag))}
	}
	return nil
}

// scalar reads a scalar by YAML 1.2, with the yes/no/on/off of 1.1: files that PyYAML reads mean the same here.
func scalar(n *yaml.Node) (any, *problem) {
	switch tag := n.ShortTag(); tag {
	case "!!str":
		if n.Style == 0 {
			if b, ok := oldBool(n.Value); ok {
				return b, nil
			}
		}
		return n.Value, nil
	case "!!null":
		return nil, nil
	case "!!timestamp":
		return n.Value, nil // a revision may look like a date
	case "!!bool", "!!int", "!!float":
		if tag == "!!int" && n.Style == 0 && len(n.Value) < 18 && (n.Value[0] != '0' || len(n.Value) == 1) {
			if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
				return i, nil
			}
		}
		var v any
		if err := n.Load(&v); err != nil {
			return nil, &problem{n, fmt.Sprintf("is not the %s that it says it is", strings.TrimPrefix(tag, "!!"))}
		}
		switch v := v.(type) {
		case time.Time:
			return n.Value, nil
		case int:
			return int64(v), nil
		}
		return v, nil
	default:
		return nil, &problem{n, fmt.Sprintf("has the tag %s, which has no meaning here; remove it", clip(tag))}
	}
}

func oldBool(s string) (value, ok bool) {
	switch s {
	case "yes", "Yes", "YES", "on", "On", "ON":
		return true, true
	case "no", "No", "NO", "off", "Off", "OFF":
		return false, true
	}
	return false, false
}

// asWritten undoes the yes/no of YAML 1.1 for fields that hold text: model_id: no is a name.
func asWritten(n *yaml.Node, v any) any {
	if _, isBool := v.(bool); isBool {
		if n = resolve(n); n.ShortTag() == "!!str" {
			return n.Value
		}
	}
	list, isList := v.([]any)
	if n = resolve(n); !isList || len(n.Content) != len(list) {
		return v
	}
	for i := range list {
		list[i] = asWritten(n.Content[i], list[i])
	}
	return list
}

// resolve follows an alias; nil if it leads nowhere.
func resolve(n *yaml.Node) *yaml.Node {
	for range 4 {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// lookup finds a key that the mapping itself holds.
func lookup(m *yaml.Node, name string) (k, v *yaml.Node) {
	if m.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Kind == yaml.ScalarNode && m.Content[i].Value == name {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

func hasLinks(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return true
	}
	for _, c := range n.Content {
		if hasLinks(c) {
			return true
		}
	}
	return false
}

func isNull(n *yaml.Node) bool {
	return n != nil && n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// isEmpty reports a value of which there is no text: the node's place is then that of whatever follows.
func isEmpty(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Style == 0 && n.Value == ""
}

func describe(n *yaml.Node) string {
	n = resolve(n)
	switch {
	case n == nil:
		return "an alias"
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "a map"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	}
	return "text"
}
