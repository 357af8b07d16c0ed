// Command statediagram writes the state diagrams of docs/architecture.md from registry.Transitions, the table that
// the product itself goes by.
//
//	go run ./cmd/statediagram                        prints them
//	go run ./cmd/statediagram -w docs/architecture.md  puts them between the file's markers
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The markers between which the diagrams stand in a document.
const (
	beginMark = "<!-- generated: states; by make generate -->\n"
	endMark   = "<!-- end of generated: states -->\n"
)

func main() {
	path := flag.String("w", "", "rewrite the diagrams in this `file` instead of printing them")
	flag.Parse()
	if err := run(os.Stdout, *path); err != nil {
		fmt.Fprintln(os.Stderr, "statediagram:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, path string) error {
	if path == "" {
		_, err := out.Write(diagrams())
		return err
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	updated, err := replaceSection(doc)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if bytes.Equal(doc, updated) {
		return nil
	}
	return os.WriteFile(path, updated, 0o644)
}

// replaceSection returns doc with the diagrams of the present table between its markers.
func replaceSection(doc []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(doc, []byte(beginMark))
	if !ok {
		return nil, errors.New("the line " + beginMark[:len(beginMark)-1] + " is missing")
	}
	_, after, ok := bytes.Cut(rest, []byte(endMark))
	if !ok {
		return nil, errors.New("the line " + endMark[:len(endMark)-1] + " is missing")
	}
	return bytes.Join([][]byte{before, []byte(beginMark), diagrams(), []byte(endMark), after}, nil), nil
}

type axis struct {
	name  registry.Axis
	title string
	about string
	first []string // where a model begins on this axis
}

var axes = []axis{
	{registry.AxisArtifact, "Artifact", "How much of the model's files is on local disk.", []string{string(registry.ArtifactAbsent)}},
	{registry.AxisRuntime, "Runtime", "What the model's instance is doing.", []string{string(registry.RuntimeStopped)}},
	{registry.AxisRegistration, "Registration", "Whether the model may be used at all.", []string{string(registry.RegistrationPending), string(registry.RegistrationActive)}},
}

// diagrams renders every axis as a Mermaid diagram, one arrow for each pair of states, and the same rows as a table
// for readers without pictures.
func diagrams() []byte {
	var b bytes.Buffer
	for _, a := range axes {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n```mermaid\nstateDiagram-v2\n", a.title, a.about)
		for _, s := range a.first {
			fmt.Fprintf(&b, "    [*] --> %s\n", s)
		}
		for _, e := range edges(a.name) {
			fmt.Fprintf(&b, "    %s --> %s: %s\n", e.from, e.to, e.triggers)
		}
		b.WriteString("```\n\n| from | on | to | who may cause it |\n|---|---|---|---|\n")
		for _, tr := range registry.Transitions {
			if tr.Axis == a.name {
				fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", tr.From, tr.On, tr.To, tr.Who)
			}
		}
	}
	b.WriteString("\n")
	return b.Bytes()
}

type edge struct{ from, to, triggers string }

// edges returns the transitions of an axis, those between the same two states joined, in the order of the table.
func edges(name registry.Axis) []edge {
	var out []edge
	index := map[[2]string]int{}
	for _, tr := range registry.Transitions {
		if tr.Axis != name {
			continue
		}
		k := [2]string{tr.From, tr.To}
		if i, ok := index[k]; ok {
			out[i].triggers += ", " + string(tr.On)
			continue
		}
		index[k] = len(out)
		out = append(out, edge{tr.From, tr.To, string(tr.On)})
	}
	return out
}
