package stories

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/PuerkitoBio/goquery"
	"golang.org/x/net/html"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
)

func render(t *testing.T, s Story) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Page.Render(context.Background(), &b); err != nil {
		t.Fatalf("%s: %v", s.Name, err)
	}
	return b.String()
}

// checkers hold on every page. Each returns what is wrong.
var checkers = map[string]func(*goquery.Document) []string{
	"labels":   labels,
	"ids":      ids,
	"images":   images,
	"names":    names,
	"handlers": handlers,
	"headings": headings,
	"marks":    landmarks,
	"targets":  targets,
}

func TestEveryStory(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range All() {
		if seen[s.Name] {
			t.Errorf("two stories are called %s", s.Name)
		}
		seen[s.Name] = true
		t.Run(s.Name, func(t *testing.T) {
			doc, err := goquery.NewDocumentFromReader(strings.NewReader(render(t, s)))
			if err != nil {
				t.Fatal(err)
			}
			for name, check := range checkers {
				for _, wrong := range check(doc) {
					t.Errorf("%s: %s", name, wrong)
				}
			}
		})
	}
}

// TestCheckers shows that each checker can fail.
func TestCheckers(t *testing.T) {
	bad := map[string]string{
		"labels":   `<input name="q">`,
		"ids":      `<p id="a"></p><p id="a"></p>`,
		"images":   `<svg></svg>`,
		"names":    `<button><svg aria-hidden="true"></svg></button>`,
		"handlers": `<p onclick="x()" style="color:red"></p><script>1</script>`,
		"headings": `<h1>a</h1><h3>b</h3>`,
		"marks":    `<p></p>`,
		"targets":  `<a hx-get="/x" hx-target="#nowhere">x</a>`,
	}
	for name, check := range checkers {
		doc, err := goquery.NewDocumentFromReader(strings.NewReader(bad[name]))
		if err != nil {
			t.Fatal(err)
		}
		if len(check(doc)) == 0 {
			t.Errorf("%s finds nothing wrong with %s", name, bad[name])
		}
	}
}

func tag(s *goquery.Selection) string {
	h, _ := goquery.OuterHtml(s)
	return h[:min(len(h), 120)]
}

func labels(doc *goquery.Document) (wrong []string) {
	doc.Find("input, select, textarea").Each(func(_ int, s *goquery.Selection) {
		if s.AttrOr("type", "") == "hidden" || s.AttrOr("aria-hidden", "") == "true" || s.AttrOr("aria-label", "") != "" || s.Closest("label").Length() > 0 {
			return
		}
		id := s.AttrOr("id", "")
		if id == "" || doc.Find(fmt.Sprintf("label[for=%q]", id)).Length() != 1 {
			wrong = append(wrong, "no label for "+tag(s))
		}
		for _, ref := range strings.Fields(s.AttrOr("aria-describedby", "")) {
			if doc.Find(fmt.Sprintf("[id=%q]", ref)).Length() != 1 {
				wrong = append(wrong, "described by "+ref+", which is not there: "+tag(s))
			}
		}
	})
	return wrong
}

func ids(doc *goquery.Document) (wrong []string) {
	seen := map[string]bool{}
	doc.Find("[id]").Each(func(_ int, s *goquery.Selection) {
		id := s.AttrOr("id", "")
		if seen[id] || id == "" {
			wrong = append(wrong, "id twice or empty: "+tag(s))
		}
		seen[id] = true
	})
	doc.Find("[aria-labelledby]").Each(func(_ int, s *goquery.Selection) {
		if !seen[s.AttrOr("aria-labelledby", "")] {
			wrong = append(wrong, "labelled by what is not there: "+tag(s))
		}
	})
	return wrong
}

func images(doc *goquery.Document) (wrong []string) {
	doc.Find("svg, img").Each(func(_ int, s *goquery.Selection) {
		if s.AttrOr("aria-hidden", "") != "true" && s.AttrOr("aria-label", "") == "" && s.AttrOr("alt", "") == "" {
			wrong = append(wrong, "neither hidden nor named: "+tag(s))
		}
	})
	return wrong
}

func names(doc *goquery.Document) (wrong []string) {
	doc.Find("a, button, summary").Each(func(_ int, s *goquery.Selection) {
		if strings.TrimSpace(s.Text()) == "" && s.AttrOr("aria-label", "") == "" {
			wrong = append(wrong, "says nothing: "+tag(s))
		}
		if goquery.NodeName(s) == "a" && s.AttrOr("href", "") == "" {
			wrong = append(wrong, "leads nowhere: "+tag(s))
		}
		if goquery.NodeName(s) == "button" && s.AttrOr("type", "") == "" {
			wrong = append(wrong, "a button without a type: "+tag(s))
		}
	})
	return wrong
}

func handlers(doc *goquery.Document) (wrong []string) {
	doc.Find("*").Each(func(_ int, s *goquery.Selection) {
		for _, a := range s.Get(0).Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || strings.HasPrefix(a.Key, "hx-on") || strings.HasPrefix(strings.ToLower(a.Val), "javascript:") {
				wrong = append(wrong, "the policy forbids "+a.Key+": "+tag(s))
			}
		}
	})
	doc.Find("script, style").Each(func(_ int, s *goquery.Selection) {
		if s.AttrOr("src", "") == "" || strings.TrimSpace(s.Text()) != "" {
			wrong = append(wrong, "the policy forbids inline "+tag(s))
		}
	})
	return wrong
}

func headings(doc *goquery.Document) (wrong []string) {
	last := 0
	main := doc.Find("main")
	if main.Length() == 0 {
		main = doc.Selection
	}
	main.Find("h1, h2, h3, h4").Each(func(_ int, s *goquery.Selection) {
		level := int(goquery.NodeName(s)[1] - '0')
		if level > last+1 {
			wrong = append(wrong, fmt.Sprintf("h%d after h%d: %s", level, last, tag(s)))
		}
		last = level
	})
	if n := main.Find("h1").Length(); n != 1 {
		wrong = append(wrong, fmt.Sprintf("%d h1 in main, want 1", n))
	}
	return wrong
}

func landmarks(doc *goquery.Document) (wrong []string) {
	if n := doc.Find("main").Length(); n != 1 {
		wrong = append(wrong, fmt.Sprintf("%d main, want 1", n))
	}
	if doc.Find("html[lang]").Length() != 1 || strings.TrimSpace(doc.Find("title").Text()) == "" {
		wrong = append(wrong, "no language or no title")
	}
	return wrong
}

// targets: what htmx is told to swap exists, and what is swapped can be found again.
func targets(doc *goquery.Document) (wrong []string) {
	doc.Find("[hx-target]").Each(func(_ int, s *goquery.Selection) {
		if id, ok := strings.CutPrefix(s.AttrOr("hx-target", ""), "#"); ok && doc.Find(fmt.Sprintf("[id=%q]", id)).Length() != 1 {
			wrong = append(wrong, "targets what is not there: "+tag(s))
		}
	})
	// A focused button without an id loses the focus when a live swap replaces it.
	doc.Find("[sse-swap] a, [sse-swap] button, [data-row] a, [data-row] button").Each(func(_ int, s *goquery.Selection) {
		if s.AttrOr("id", "") == "" && s.Closest(".legend, .plan").Length() == 0 {
			wrong = append(wrong, "is swapped live and has no id: "+tag(s))
		}
	})
	return wrong
}

func TestHostileTextStaysText(t *testing.T) {
	for _, s := range hostile() {
		page := render(t, s)
		doc, err := html.Parse(strings.NewReader(page))
		if err != nil {
			t.Fatal(err)
		}
		var walk func(*html.Node)
		walk = func(n *html.Node) {
			if n.Type == html.ElementNode {
				if n.Data == "img" {
					t.Errorf("%s: text became an image", s.Name)
				}
				if n.Data == "script" && n.FirstChild != nil {
					t.Errorf("%s: text became a script", s.Name)
				}
				for _, a := range n.Attr {
					if a.Key == "onerror" {
						t.Errorf("%s: text became a handler", s.Name)
					}
				}
			}
			for c := n.FirstChild; c != nil; c = c.NextSibling {
				walk(c)
			}
		}
		walk(doc)
		if s.Name != "hostile-long" && !strings.Contains(page, "&lt;script&gt;") {
			t.Errorf("%s does not show the hostile text at all", s.Name)
		}
	}
}

var secret = regexp.MustCompile(`hf_secret`)

func TestSecretsAreRedactedInTheForm(t *testing.T) {
	for _, s := range forms() {
		page := render(t, s)
		if secret.MatchString(page) {
			t.Errorf("%s shows a secret", s.Name)
		}
		if s.Name == "form-edit" && !strings.Contains(page, registry.Redaction) {
			t.Errorf("form-edit does not say that there is a secret")
		}
	}
}

func TestFormHasEveryField(t *testing.T) {
	doc, err := goquery.NewDocumentFromReader(strings.NewReader(render(t, forms()[0])))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range registry.Fields {
		if doc.Find(fmt.Sprintf("#model-form [name=%q]", f.Name)).Length() == 0 {
			t.Errorf("the form has no %s", f.Name)
		}
	}
}

func TestErrorsAreAtTheirFields(t *testing.T) {
	doc, err := goquery.NewDocumentFromReader(strings.NewReader(render(t, forms()[1])))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"model_id", "source_path", "required_ram_mb", "context_length", "custom_loader_params", "idle_timeout"} {
		field := doc.Find("#f-" + name)
		if field.AttrOr("aria-invalid", "") != "true" || !strings.Contains(field.AttrOr("aria-describedby", ""), "f-"+name+"-err") || doc.Find("#f-"+name+"-err").Text() == "" {
			t.Errorf("%s is not marked as wrong: %s", name, tag(field))
		}
	}
	if n := doc.Find("[aria-invalid]").Length(); n != 6 {
		t.Errorf("%d fields are marked as wrong, want 6", n)
	}
}

// A model's row must survive being parsed by itself: it is sent alone, as a live update.
func TestRowsCarryTheirSwap(t *testing.T) {
	var b bytes.Buffer
	r := rows()[0]
	if err := partials.ModelRow(r, true).Render(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(strings.TrimSpace(b.String()), "<tr") || !strings.Contains(b.String(), `hx-swap-oob="true"`) {
		t.Errorf("not a row that swaps itself: %s", b.String())
	}
	if !strings.Contains(b.String(), "/models/meta-llama%2FLlama-3.3-70B-Instruct/cancel") {
		t.Errorf("the id is not one path segment: %s", b.String())
	}
}

func TestHandlerServesEveryStory(t *testing.T) {
	h := Handler()
	for _, s := range All() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/s/"+s.Name, nil))
		if w.Code != 200 || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'self'") {
			t.Errorf("%s: status %d, policy %q", s.Name, w.Code, w.Header().Get("Content-Security-Policy"))
		}
	}
}
