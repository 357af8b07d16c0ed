// Command slowest reads what `go test -json` prints, shows what `go test` would have shown, and writes at the end which
// packages and which tests took the longest:
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
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64 // seconds
}

// took is how long one package or test took.
type took struct {
	name    string
	seconds float64
}

type summary struct {
	packages, tests []took
}

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
			_, err = io.WriteString(show, e.Output)
		}
		return err
	case e.Action != "pass" && e.Action != "fail" && e.Action != "skip":
		return nil
	case e.Test == "":
		if e.Elapsed > 0 {
			s.packages = append(s.packages, took{e.Package, e.Elapsed})
		}
	default:
		if e.Action == "fail" {
			_, err = io.WriteString(show, strings.Join(said[id], ""))
		}
		delete(said, id)
		if !strings.Contains(e.Test, "/") { // its parts are in it
			s.tests = append(s.tests, took{e.Package + "." + e.Test, e.Elapsed})
		}
	}
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
			// The module's own path says nothing.
			if _, err := fmt.Fprintf(w, "%8.1f  %s\n", t.seconds, strings.TrimPrefix(t.name, "github.com/industriverse/llmmodelmanager/")); err != nil {
				return err
			}
		}
	}
	return nil
}
