package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestArchitectureIsInStep fails when the table of transitions was changed and the document was not.
func TestArchitectureIsInStep(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := replaceSection(doc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(doc)); diff != "" {
		t.Errorf("docs/architecture.md is out of step with registry.Transitions; run make generate:\n%s", diff)
	}
}

func TestDiagramsShowEveryTransition(t *testing.T) {
	got := string(diagrams())
	for _, tr := range registry.Transitions {
		row := "| " + tr.From + " | " + string(tr.On) + " | " + tr.To + " | " + tr.Who + " |\n"
		if strings.Count(got, row) != 1 {
			t.Errorf("the row %q is there %d times", row, strings.Count(got, row))
		}
		arrow := "    " + tr.From + " --> " + tr.To + ": "
		if strings.Count(got, arrow) < 1 {
			t.Errorf("the arrow %q is missing", arrow)
		}
	}
	if n := strings.Count(got, "```mermaid\nstateDiagram-v2\n"); n != 3 {
		t.Errorf("there are %d diagrams, want 3", n)
	}
}

func TestRewriteTouchesOnlyItsSection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+beginMark+"old\n"+endMark+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(nil, path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + beginMark + string(diagrams()) + endMark + "after\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestMissingMarkersAreTold(t *testing.T) {
	for doc, says := range map[string]string{"": "generated: states", beginMark: "end of generated"} {
		if _, err := replaceSection([]byte(doc)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", doc, err)
		}
	}
	var out bytes.Buffer
	if err := run(&out, filepath.Join(t.TempDir(), "none.md")); err == nil {
		t.Error("a missing file is no error")
	}
	if err := run(&out, ""); err != nil || !bytes.Equal(out.Bytes(), diagrams()) {
		t.Errorf("printing: %v", err)
	}
}
