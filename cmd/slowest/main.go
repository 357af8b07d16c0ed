// Command slowest reads what `go test -json` prints, shows what `go test` would have shown, and writes at the end which
// packages and which tests took the longest, and then the beginning of what each test said that failed, with the seed if
// it draws at random: the last lines of a log are those that are seen.
//
//	go test -json ./... | go run ./cmd/slowest -n 10 -o slowest.txt
//
// A package whose result came from the cache took no time and is not in the list.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// module is what the names of our packages begin with; it says nothing.
const module = "github.com/industriverse/llmmodelmanager/"

func main() {
	n := flag.Int("n", 10, "how many packages and tests are listed")
	out := flag.String("o", "", "`file` for the list; standard output if not given")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *n, *out); err != nil {
		fmt.Fprintln(os.Stderr, "slowest:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, show io.Writer, n int, file string) error {
	var s summary
	if err := s.read(in, show); err != nil {
		return err
	}
	if file == "" {
		return s.write(show, n)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.write(f, n); err != nil {
		return err
	}
	return f.Close()
}

// event is one line of go test -json: go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a package that is built
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// took is how long one package or test took.
type took struct {
	name    string
	seconds float64
}

type summary struct {
	packages, tests []took
	failures        []failure
	whole           map[string][]string // what a package said that no test of it did: a panic, a time-out
}

// failure is a test that failed, or a package of which none did.
type failure struct {
	name  string
	lines []string
}

// Of what failed the list has the first of it and of its lines; the whole is shown where it happened.
const (
	mostFailures = 10
	mostLines    = 12
)

// read shows what go test would show without -v: what packages say, and what tests that fail say.
func (s *summary) read(in io.Reader, show io.Writer) error {
	said := map[string][]string{} // by a test that has not ended
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if jsonErr := json.Unmarshal([]byte(line), &e); jsonErr != nil || e.Action == "" {
				e = event{Action: "output", Output: line} // go itself says something
			}
			if err := s.take(e, said, show); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

func (s *summary) take(e event, said map[string][]string, show io.Writer) (err error) {
	id := e.Package + "." + e.Test
	switch {
	case e.Action == "output" || e.Action == "build-output":
		switch {
		case e.Test != "":
			said[id] = append(said[id], e.Output)
		case e.Output != "PASS\n" && !strings.HasPrefix(e.Output, "coverage:"):
			s.note(e)
			_, err = io.WriteString(show, e.Output)
		}
		return err
	case e.Action != "pass" && e.Action != "fail" && e.Action != "skip":
		return nil
	case e.Test == "":
		if e.Elapsed > 0 {
			s.packages = append(s.packages, took{e.Package, e.Elapsed})
		}
		err = s.ended(e, said, show)
	default:
		if e.Action == "fail" {
			_, err = io.WriteString(show, strings.Join(said[id], ""))
			s.failed(id, said[id])
		}
		delete(said, id)
		if !strings.Contains(e.Test, "/") { // its parts are in it
			s.tests = append(s.tests, took{e.Package + "." + e.Test, e.Elapsed})
		}
	}
	return err
}

// ended takes the verdict about a package. A test program that dies (a panic in another goroutine, a signal, os.Exit) leaves
// tests without a verdict, and go test counts what it said last as theirs.
func (s *summary) ended(e event, said map[string][]string, show io.Writer) error {
	defer delete(s.whole, e.Package)
	var cut []string
	for id := range said {
		if strings.HasPrefix(id, e.Package+".") {
			cut = append(cut, id)
		}
	}
	slices.Sort(cut)
	for _, id := range cut {
		if e.Action == "fail" {
			if _, err := io.WriteString(show, strings.Join(said[id], "")); err != nil {
				return err
			}
			if lines := own(said[id]); len(lines) > 0 {
				s.failures = append(s.failures, failure{id, lines})
			}
		}
		delete(said, id)
	}
	if e.Action == "fail" && !slices.ContainsFunc(s.failures, func(f failure) bool { return strings.HasPrefix(f.name, e.Package+".") }) {
		s.failures = append(s.failures, failure{e.Package, s.whole[e.Package]})
	}
	return nil
}

// note keeps what a package says itself, for the case that it fails and none of its tests does.
func (s *summary) note(e event) {
	name := cmp.Or(e.Package, e.ImportPath)
	if s.whole == nil {
		s.whole = map[string][]string{}
	}
	s.whole[name] = append(s.whole[name], e.Output)
}

// failed keeps what a test said that failed; a test that only failed in its parts says nothing of its own.
func (s *summary) failed(id string, said []string) {
	lines := own(said)
	inParts := slices.ContainsFunc(s.failures, func(f failure) bool { return strings.HasPrefix(f.name, id+"/") })
	if len(lines) > 0 || !inParts {
		s.failures = append(s.failures, failure{id, lines})
	}
}

// own is what a test said without what go test says of it.
func own(said []string) []string {
	return slices.DeleteFunc(slices.Clone(said), func(line string) bool {
		line = strings.TrimLeft(line, " ")
		return strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- FAIL")
	})
}

// short is the beginning of what was said, and the line with the seed wherever it stands.
func (f failure) short() []string {
	var out []string
	for i, line := range f.lines {
		line = strings.TrimRight(line, "\n")
		if i < mostLines || strings.Contains(line, "rapid.seed") {
			out = append(out, line[:min(len(line), 300)])
		}
	}
	return out
}

func (s *summary) writeFailures(w io.Writer) error {
	if len(s.failures) == 0 {
		return nil
	}
	lines := []string{"What failed:"}
	for _, f := range s.failures[:min(mostFailures, len(s.failures))] {
		lines = append(append(lines, "  "+strings.TrimPrefix(f.name, module)), f.short()...)
	}
	if more := len(s.failures) - mostFailures; more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return err
}

func (s *summary) write(w io.Writer, n int) error {
	for _, list := range []struct {
		what string
		all  []took
	}{{"packages", s.packages}, {"tests", s.tests}} {
		slices.SortStableFunc(list.all, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
		if _, err := fmt.Fprintf(w, "The slowest %s, in seconds:\n", list.what); err != nil {
			return err
		}
		for _, t := range list.all[:min(n, len(list.all))] {
			if _, err := fmt.Fprintf(w, "%8.1f  %s\n", t.seconds, strings.TrimPrefix(t.name, module)); err != nil {
				return err
			}
		}
	}
	return s.writeFailures(w)
}
