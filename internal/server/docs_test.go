package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/PuerkitoBio/goquery"
	"github.com/google/go-cmp/cmp"
	"github.com/labstack/echo/v4"
	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/gateway"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func testDocument(t *testing.T) document {
	t.Helper()
	var top yaml.Node
	if err := yaml.Unmarshal(openAPIDocument, &top); err != nil {
		t.Fatal(err)
	}
	return document{plain(&top)}
}

// described is every "METHOD path" of the document.
func (d document) described() []string {
	var out []string
	for path, item := range pairs(d.at(d.root, "paths")) {
		for method := range pairs(item) {
			if method != "parameters" {
				out = append(out, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestEveryRouteIsDescribed(t *testing.T) {
	t.Parallel()
	param := regexp.MustCompile(`:([a-z]+)`)
	var routes []string
	for _, r := range (&Server{}).routes() {
		if strings.HasPrefix(r.path, "/api/v1/") {
			routes = append(routes, r.method+" "+param.ReplaceAllString(r.path, "{$1}"))
		}
	}
	slices.Sort(routes)
	described := slices.DeleteFunc(testDocument(t).described(), func(s string) bool { return !strings.Contains(s, " /api/v1/") })
	if diff := cmp.Diff(routes, described); diff != "" {
		t.Errorf("routes (-) and openapi.yaml (+) differ:\n%s", diff)
	}
}

// The gateway is one route with a mux of its own, so it is asked: what it answers about an address that it does not
// know names all that it does know, and each of those and of the document's is tried.
func TestEveryGatewayRouteIsDescribed(t *testing.T) {
	t.Parallel()
	g := gateway.New(gateway.Options{Authorize: func(ctx context.Context, a auth.Action, team string) error {
		return auth.Allowed(auth.FromContext(ctx), a, team)
	}})
	t.Cleanup(g.Close)
	ask := func(method, path string) (int, string) {
		rec := httptest.NewRecorder()
		g.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
		return rec.Code, rec.Body.String()
	}
	_, all := ask("GET", "/v1/nothing")
	_, rest, _ := strings.Cut(all, ";")
	known := regexp.MustCompile(`/v1/[a-z/-]+`).FindAllString(rest, -1)
	if len(known) < 4 {
		t.Fatalf("the gateway names no addresses: %s", all)
	}
	d := testDocument(t)
	var described []string
	for _, op := range d.described() {
		method, path, _ := strings.Cut(op, " ")
		if !strings.HasPrefix(path, "/v1/") {
			continue
		}
		described = append(described, path)
		// Nobody asks, so what exists wants to know who it is.
		if code, body := ask(method, strings.ReplaceAll(path, "{id}", "a%2Fb")); code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", op, code, body)
		}
	}
	for _, path := range known {
		if !slices.Contains(described, path) {
			t.Errorf("%s is not in openapi.yaml", path)
		}
	}
}

func TestReferencesResolve(t *testing.T) {
	t.Parallel()
	d := testDocument(t)
	used := map[string]bool{}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		n = plain(n)
		if n == nil {
			return
		}
		if n.Kind == yaml.MappingNode {
			seen := map[string]bool{}
			for k := range pairs(n) {
				if seen[k] {
					t.Errorf("line %d: %s is there twice", n.Line, k)
				}
				seen[k] = true
			}
		}
		if ref := d.text(n, "$ref"); ref != "" {
			used[ref] = true
			if d.resolve(n) == nil {
				t.Errorf("line %d: %s leads nowhere", n.Line, ref)
			}
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(d.root)
	for kind, list := range pairs(d.at(d.root, "components")) {
		if kind == "securitySchemes" {
			continue
		}
		for name := range pairs(list) {
			if !used["#/components/"+kind+"/"+name] {
				t.Errorf("nothing uses components/%s/%s", kind, name)
			}
		}
	}
}

// Every variable of a path has a parameter, each operation has an id of its own, and each says what may go wrong.
func TestOperationsAreWhole(t *testing.T) {
	t.Parallel()
	page, err := readDocument(openAPIDocument)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, tag := range page.Tags {
		if len(tag.Operations) == 0 {
			t.Errorf("the tag %s has no operation", tag.Name)
		}
		for _, o := range tag.Operations {
			if o.ID == "" || seen[o.ID] || o.Summary == "" {
				t.Errorf("%s %s: operationId %q, summary %q", o.Method, o.Path, o.ID, o.Summary)
			}
			seen[o.ID] = true
			var in, want []string
			for _, p := range o.Parameters {
				if p.In == "path" {
					in = append(in, p.Name)
				}
				if p.Type.Words == "" || (p.In == "path" && !p.Required) {
					t.Errorf("%s %s: the parameter %s: %+v", o.Method, o.Path, p.Name, p)
				}
			}
			for _, m := range regexp.MustCompile(`\{([a-z]+)\}`).FindAllStringSubmatch(o.Path, -1) {
				want = append(want, m[1])
			}
			if !slices.Equal(in, want) {
				t.Errorf("%s %s describes the path's parameters %v", o.Method, o.Path, in)
			}
			var statuses []string
			for _, r := range o.Responses {
				statuses = append(statuses, r.Status)
				if r.Description == "" {
					t.Errorf("%s %s: %s says nothing", o.Method, o.Path, r.Status)
				}
			}
			if !o.Public && !slices.Contains(statuses, "default") {
				t.Errorf("%s %s does not say what a refusal looks like", o.Method, o.Path)
			}
		}
	}
}

func TestModelSchemaIsTheFieldTable(t *testing.T) {
	t.Parallel()
	d := testDocument(t)
	schema := d.at(d.at(d.at(d.root, "components"), "schemas"), "ModelProperties")
	props := d.at(schema, "properties")
	var names, want, required, wantRequired []string
	for name := range pairs(props) {
		names = append(names, name)
	}
	for _, r := range items(d.at(d.at(d.at(d.at(d.root, "components"), "schemas"), "Model"), "required")) {
		required = append(required, r.Value)
	}
	kinds := map[registry.FieldKind]string{registry.KindString: "string", registry.KindEnum: "string", registry.KindInt: "integer", registry.KindBool: "boolean",
		registry.KindMap: "object", registry.KindStrings: "array", registry.KindInts: "array", registry.KindDuration: "string"}
	for _, f := range registry.Fields {
		want = append(want, f.Name)
		if f.Required {
			wantRequired = append(wantRequired, f.Name)
		}
		prop := d.resolve(d.at(props, f.Name))
		if diff := cmp.Diff(f.Options, values(d.at(prop, "enum"))); f.Kind == registry.KindEnum && diff != "" {
			t.Errorf("the options of %s (-) and openapi.yaml (+) differ:\n%s", f.Name, diff)
		}
		kind := d.at(prop, "type")
		if got := append(values(kind), d.text(prop, "type")); !slices.Contains(got, kinds[f.Kind]) {
			t.Errorf("%s is %s in the table and %v in openapi.yaml", f.Name, f.Kind, got)
		}
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("the fields (-) and openapi.yaml (+) differ:\n%s", diff)
	}
	if diff := cmp.Diff(wantRequired, required); diff != "" {
		t.Errorf("the required fields (-) and openapi.yaml (+) differ:\n%s", diff)
	}
}

func values(n *yaml.Node) []string {
	var out []string
	for _, v := range items(n) {
		out = append(out, v.Value)
	}
	return out
}

// What is sent as JSON and what the document says of it are the same fields.
func TestSchemasAreTheTypes(t *testing.T) {
	t.Parallel()
	d := testDocument(t)
	schemas := d.at(d.at(d.root, "components"), "schemas")
	for name, v := range map[string]any{
		"ModelInfo": apiModel{}, "LoadRequest": loadBody{}, "Instance": manager.InstanceInfo{}, "LoadedModel": loadedModel{}, "Endpoint": registry.Endpoint{}, "Memory": registry.Memory{},
		"Plan": registry.Plan{}, "Footprint": registry.Footprint{}, "Facts": registry.Facts{}, "Operation": registry.Operation{}, "Stage": registry.Stage{},
		"Released": registry.Released{}, "Event": registry.Event{}, "Resources": registry.Resources{}, "GPU": registry.GPU{}, "Host": registry.Host{},
		"Reservation": registry.Reservation{}, "EngineStatus": registry.EngineStatus{}, "EngineVerdict": registry.EngineVerdict{}, "EngineDetail": apiEngine{}, "ImportResult": manager.ImportResult{}, "ManifestStatus": registry.ManifestStatus{},
		"User": registry.User{}, "Token": registry.Token{}, "Team": registry.Team{}, "Member": auth.TeamMember{}, "AuditEntry": registry.AuditEntry{}, "Rule": auth.Rule{},
		"Problem": problemBody{}, "StoredProblem": registry.Problem{}, "FieldError": registry.FieldError{}, "Failure": registry.Failure{},
		"Shortage": registry.Shortage{}, "Holder": registry.Holder{},
		"ModelArtifact": registry.ModelArtifact{}, "File": registry.File{}, "Offer": registry.Offer{}, "Lookup": registry.Lookup{}, "StoredArtifact": registry.StoredArtifact{},
		"Storage": registry.Storage{}, "Retention": registry.Retention{}, "RetentionItem": registry.RetentionItem{}, "BandwidthLimits": registry.BandwidthLimits{},
		"RootFolders": registry.RootFolders{}, "Secret": registry.Secret{},
	} {
		got := map[string]bool{}
		for _, f := range d.fields(d.at(schemas, name)) {
			got[f.Name] = true
		}
		want := map[string]bool{}
		jsonFields(reflect.TypeOf(v), want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%T (-) and the schema %s (+) differ:\n%s", v, name, diff)
		}
	}
	for name, want := range map[string][]string{
		"Status": stringsOf(registry.Statuses), "SourceType": stringsOf(registry.SourceTypes), "Format": stringsOf(registry.Formats), "Device": stringsOf(registry.Devices),
		"Engine": registry.Engines, "Role": stringsOf(registry.Roles), "Code": stringsOf(registry.Codes),
	} {
		if diff := cmp.Diff(want, values(d.at(d.at(schemas, name), "enum"))); diff != "" {
			t.Errorf("the values of %s (-) and openapi.yaml (+) differ:\n%s", name, diff)
		}
	}
	kinds := values(d.at(d.at(d.at(d.at(schemas, "Event"), "properties"), "kind"), "enum"))
	if diff := cmp.Diff(stringsOf(registry.EventKinds), kinds); diff != "" {
		t.Errorf("the kinds of event (-) and openapi.yaml (+) differ:\n%s", diff)
	}
}

func stringsOf[S ~string](in []S) []string {
	out := make([]string, len(in))
	for i := range in {
		out[i] = string(in[i])
	}
	return out
}

func jsonFields(t reflect.Type, into map[string]bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			jsonFields(f.Type, into)
		case name != "" && name != "-":
			into[name] = true
		}
	}
}

// The page shows every operation and schema, every link on it leads somewhere, and it needs nothing that its
// Content-Security-Policy forbids.
func TestDocsPage(t *testing.T) {
	t.Parallel()
	rec := httptest.NewRecorder()
	if err := (&Server{}).docs(echo.New().NewContext(httptest.NewRequest("GET", "/docs", nil), rec)); err != nil {
		t.Fatal(err)
	}
	if got := rec.Header().Get("Content-Type"); rec.Code != http.StatusOK || !strings.HasPrefix(got, "text/html") {
		t.Fatalf("%d %s", rec.Code, got)
	}
	doc, err := goquery.NewDocumentFromReader(rec.Body)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	doc.Find("[id]").Each(func(_ int, s *goquery.Selection) {
		if id := s.AttrOr("id", ""); ids[id] {
			t.Errorf("the id %s is there twice", id)
		} else {
			ids[id] = true
		}
	})
	doc.Find("a[href]").Each(func(_ int, s *goquery.Selection) {
		to := s.AttrOr("href", "")
		if id, ok := strings.CutPrefix(to, "#"); ok && !ids[id] {
			t.Errorf("%s leads nowhere", to)
		}
	})
	doc.Find("*").Each(func(_ int, s *goquery.Selection) {
		for _, a := range s.Get(0).Attr {
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") || ((a.Key == "src" || (a.Key == "href" && s.Is("link"))) && !strings.HasPrefix(a.Val, "/static/")) {
				t.Errorf("<%s %s=%q>", goquery.NodeName(s), a.Key, a.Val)
			}
		}
		if (s.Is("script") && s.Text() != "") || s.Is("style") {
			t.Errorf("an inline %s", goquery.NodeName(s))
		}
	})
	text := doc.Find("main").Text()
	d := testDocument(t)
	for _, op := range d.described() {
		if !strings.Contains(text, op) {
			t.Errorf("%s is not on the page", op)
		}
	}
	for name := range pairs(d.at(d.at(d.root, "components"), "schemas")) {
		if !ids["schema-"+name] {
			t.Errorf("%s is not on the page", name)
		}
	}
}

func TestOpenAPIIsServedAsItIs(t *testing.T) {
	t.Parallel()
	rec := httptest.NewRecorder()
	if err := (&Server{}).openapi(echo.New().NewContext(httptest.NewRequest("GET", "/openapi.yaml", nil), rec)); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := yaml.Unmarshal(rec.Body.Bytes(), &got); err != nil || got["openapi"] != "3.1.0" {
		t.Fatalf("%v %v", got["openapi"], err)
	}
	if _, err := json.Marshal(got); err != nil {
		t.Errorf("it cannot be written as JSON: %v", err)
	}
}
