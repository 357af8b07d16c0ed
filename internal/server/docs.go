package server

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/labstack/echo/v4"
	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/web/static"
)

//go:embed openapi.yaml
var openAPIDocument []byte

//go:embed docs.html
var docsTemplate string

// openapi is GET /openapi.yaml: the description of the API, an OpenAPI 3.1 document.
func (s *Server) openapi(c echo.Context) error {
	return c.Blob(http.StatusOK, "application/yaml; charset=utf-8", openAPIDocument)
}

// docs is GET /docs: the same description as a page, for people.
func (s *Server) docs(c echo.Context) error {
	page, err := docsPage()
	if err != nil {
		return err
	}
	return c.HTMLBlob(http.StatusOK, page)
}

// docsPage is rendered when it is first asked for: the document is compiled in, so the page never changes.
var docsPage = sync.OnceValues(func() ([]byte, error) {
	page, err := readDocument(openAPIDocument)
	if err != nil {
		return nil, err
	}
	t, err := template.New("docs").Funcs(template.FuncMap{"static": static.URL}).Parse(docsTemplate)
	if err != nil {
		return nil, fmt.Errorf("the template of /docs: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, page); err != nil {
		return nil, fmt.Errorf("the page /docs: %w", err)
	}
	return out.Bytes(), nil
})

// docPage is the document as the page shows it.
type docPage struct {
	Title, Summary string
	Paragraphs     []string
	Tags           []docTag
	Schemas        []docSchema
}

type docTag struct {
	Name, ID, Description string
	Operations            []docOperation
}

type docOperation struct {
	ID, Method, Path, Summary string
	Paragraphs                []string
	Public                    bool
	Parameters                []docField
	Body                      *docBody
	Responses                 []docResponse
}

type docField struct {
	Name, In, Description string
	Required              bool
	Type                  docType
}

// docType is a type in words, with a link where it is a schema of its own.
type docType struct{ Words, Link string }

type docBody struct {
	Description, Media, Example string
	Type                        docType
	Fields                      []docField
}

type docResponse struct {
	Status, Description, Media string
	Type                       docType
	Fields                     []docField
}

type docSchema struct {
	Name, Description string
	Type              docType
	Fields            []docField
}

// document reads an OpenAPI document as a tree of nodes, so that the order of what is written is kept.
type document struct{ root *yaml.Node }

func readDocument(b []byte) (docPage, error) {
	var top yaml.Node
	if err := yaml.Unmarshal(b, &top); err != nil {
		return docPage{}, fmt.Errorf("openapi.yaml: %w", err)
	}
	if len(top.Content) == 0 {
		return docPage{}, fmt.Errorf("openapi.yaml is empty")
	}
	d := document{plain(&top)}
	info := d.at(d.root, "info")
	page := docPage{Title: d.text(info, "title"), Summary: d.text(info, "summary"), Paragraphs: paragraphs(d.text(info, "description"))}
	for _, t := range items(d.at(d.root, "tags")) {
		name := d.text(t, "name")
		page.Tags = append(page.Tags, docTag{Name: name, ID: strings.ToLower(strings.ReplaceAll(name, " ", "-")), Description: d.text(t, "description")})
	}
	for path, item := range pairs(d.at(d.root, "paths")) {
		for method, op := range pairs(item) {
			if method == "parameters" {
				continue
			}
			tag := ""
			if tags := items(d.at(op, "tags")); len(tags) > 0 {
				tag = tags[0].Value
			}
			i := slices.IndexFunc(page.Tags, func(t docTag) bool { return t.Name == tag })
			if i < 0 {
				return docPage{}, fmt.Errorf("openapi.yaml: %s %s has the tag %q, which is not among the tags", method, path, tag)
			}
			page.Tags[i].Operations = append(page.Tags[i].Operations, d.operation(path, method, item, op))
		}
	}
	for name, sc := range pairs(d.at(d.at(d.root, "components"), "schemas")) {
		page.Schemas = append(page.Schemas, docSchema{Name: name, Description: d.text(sc, "description"), Type: d.schemaType(sc), Fields: d.fields(sc)})
	}
	return page, nil
}

func (d document) operation(path, method string, item, op *yaml.Node) docOperation {
	o := docOperation{ID: d.text(op, "operationId"), Method: strings.ToUpper(method), Path: path, Summary: d.text(op, "summary"), Paragraphs: paragraphs(d.text(op, "description"))}
	security := d.at(op, "security")
	o.Public = security != nil && len(security.Content) == 0
	for _, list := range []*yaml.Node{d.at(item, "parameters"), d.at(op, "parameters")} {
		for _, p := range items(list) {
			p = d.resolve(p)
			sc := d.at(p, "schema")
			o.Parameters = append(o.Parameters, docField{Name: d.text(p, "name"), In: d.text(p, "in"), Required: d.text(p, "required") == "true",
				Description: first(d.text(p, "description"), d.text(d.resolve(sc), "description")), Type: d.schemaType(sc)})
		}
	}
	if body := d.resolve(d.at(op, "requestBody")); body != nil {
		for media, content := range pairs(d.at(body, "content")) {
			b := docBody{Description: d.text(body, "description"), Media: media}
			b.Type, b.Fields = d.shape(d.at(content, "schema"))
			if ex := d.at(content, "example"); ex != nil {
				b.Example = example(ex)
			}
			o.Body = &b
		}
	}
	for status, r := range pairs(d.at(op, "responses")) {
		r = d.resolve(r)
		out := docResponse{Status: status, Description: d.text(r, "description")}
		for media, content := range pairs(d.at(r, "content")) {
			out.Media = first(out.Media, media)
			if out.Type == (docType{}) {
				out.Type, out.Fields = d.shape(d.at(content, "schema"))
			}
		}
		o.Responses = append(o.Responses, out)
	}
	return o
}

// shape is a schema as a link to its name, or else its fields.
func (d document) shape(sc *yaml.Node) (docType, []docField) {
	t := d.schemaType(sc)
	if t.Link != "" {
		return t, nil
	}
	return t, d.fields(sc)
}

func (d document) fields(sc *yaml.Node) []docField {
	var out []docField
	for _, part := range items(d.at(sc, "allOf")) {
		out = append(out, d.fields(d.resolve(part))...)
	}
	for name, f := range pairs(d.at(sc, "properties")) {
		out = append(out, docField{Name: name, Type: d.schemaType(f), Description: first(d.text(f, "description"), d.text(d.resolve(f), "description"))})
	}
	for _, r := range items(d.at(sc, "required")) {
		for i := range out {
			out[i].Required = out[i].Required || out[i].Name == r.Value
		}
	}
	return out
}

// schemaType says what a schema takes: "integer or null, 0 … 500, default 50".
func (d document) schemaType(sc *yaml.Node) docType {
	if sc == nil {
		return docType{}
	}
	if ref := d.text(sc, "$ref"); ref != "" {
		name := ref[strings.LastIndexByte(ref, '/')+1:]
		return docType{Words: name, Link: "#schema-" + name}
	}
	var kinds, limits []string
	switch t := d.at(sc, "type"); {
	case t == nil:
	case t.Kind == yaml.ScalarNode:
		kinds = append(kinds, t.Value)
	default:
		for _, k := range items(t) {
			kinds = append(kinds, k.Value)
		}
	}
	out := docType{Words: strings.Join(kinds, " or ")}
	if inner := d.at(sc, "items"); inner != nil {
		it := d.schemaType(inner)
		out.Words, out.Link = out.Words+" of "+first(it.Words, "anything"), it.Link
	}
	if e := d.at(sc, "enum"); e != nil {
		words := []string{}
		for _, v := range items(e) {
			words = append(words, v.Value)
		}
		limits = append(limits, "one of "+strings.Join(words, ", "))
	}
	for _, l := range [][2]string{{"const", "always "}, {"minimum", "at least "}, {"maximum", "at most "}, {"maxLength", "length at most "}, {"maxItems", "entries at most "}, {"pattern", "matches "}, {"default", "default "}} {
		if v := d.at(sc, l[0]); v != nil {
			limits = append(limits, l[1]+v.Value)
		}
	}
	out.Words = strings.Join(append(nonEmpty(out.Words), limits...), ", ")
	return out
}

// at returns the value of a name in a mapping, nil if there is none.
func (d document) at(n *yaml.Node, name string) *yaml.Node {
	for k, v := range pairs(n) {
		if k == name {
			return v
		}
	}
	return nil
}

func (d document) text(n *yaml.Node, name string) string {
	if v := d.at(n, name); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

// resolve follows a $ref within the document; nil if it leads nowhere.
func (d document) resolve(n *yaml.Node) *yaml.Node {
	ref := d.text(n, "$ref")
	if ref == "" {
		return n
	}
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		return nil
	}
	to := d.root
	for part := range strings.SplitSeq(path, "/") {
		to = d.at(to, part)
	}
	return to
}

// plain returns the node that a document or an alias stands for.
func plain(n *yaml.Node) *yaml.Node {
	for n != nil {
		switch {
		case n.Kind == yaml.DocumentNode && len(n.Content) > 0:
			n = n.Content[0]
		case n.Kind == yaml.AliasNode:
			n = n.Alias
		default:
			return n
		}
	}
	return nil
}

// pairs goes through a mapping in the order in which it is written.
func pairs(n *yaml.Node) func(func(string, *yaml.Node) bool) {
	return func(yield func(string, *yaml.Node) bool) {
		n := plain(n)
		if n == nil || n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i].Value, plain(n.Content[i+1])) {
				return
			}
		}
	}
}

func items(n *yaml.Node) []*yaml.Node {
	n = plain(n)
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	out := make([]*yaml.Node, len(n.Content))
	for i := range n.Content {
		out[i] = plain(n.Content[i])
	}
	return out
}

// example writes an example as it would be sent: text as it is, everything else as JSON.
func example(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

func paragraphs(s string) []string {
	var out []string
	for p := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		out = append(out, nonEmpty(strings.Join(strings.Fields(p), " "))...)
	}
	return out
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
