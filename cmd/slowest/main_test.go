package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRun reads what go test printed for a package that passes, one that fails, one from the cache and one that does not
// compile, and a line that is no JSON.
func TestRun(t *testing.T) {
	in := strings.Join([]string{
		`{"Action":"start","Package":"m/a"}`,
		`{"Action":"run","Package":"m/a","Test":"TestQuick"}`,
		`{"Action":"output","Package":"m/a","Test":"TestQuick","Output":"    a_test.go:1: nobody needs this\n"}`,
		`{"Action":"pass","Package":"m/a","Test":"TestQuick","Elapsed":0.5}`,
		`{"Action":"pass","Package":"m/a","Test":"TestSlow/part","Elapsed":4}`,
		`{"Action":"pass","Package":"m/a","Test":"TestSlow","Elapsed":4}`,
		`{"Action":"output","Package":"m/a","Output":"PASS\n"}`,
		`{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t4.600s\n"}`,
		`{"Action":"pass","Package":"m/a","Elapsed":4.6}`,
		`go: downloading something`,
		`{"Action":"output","Package":"m/b","Test":"TestBad/part","Output":"    b_test.go:7: got 1, want 2\n"}`,
		`{"Action":"fail","Package":"m/b","Test":"TestBad/part","Elapsed":1}`,
		`{"Action":"output","Package":"m/b","Test":"TestBad","Output":"--- FAIL: TestBad (1.00s)\n"}`,
		`{"Action":"fail","Package":"m/b","Test":"TestBad","Elapsed":1}`,
		`{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\t1.100s\n"}`,
		`{"Action":"fail","Package":"m/b","Elapsed":1.1}`,
		`{"Action":"output","Package":"m/c","Output":"ok  \tm/c\t(cached)\n"}`,
		`{"Action":"pass","Package":"m/c","Elapsed":0}`,
		`{"Action":"build-output","ImportPath":"m/d","Output":"d.go:1:1: undefined: x\n"}`,
		`{"Action":"build-fail","ImportPath":"m/d"}`,
		`{"Action":"fail","Package":"m/d","Elapsed":0,"FailedBuild":"m/d"}`,
	}, "\n")
	list := filepath.Join(t.TempDir(), "list")
	var shown strings.Builder
	if err := run(strings.NewReader(in), &shown, 2, list); err != nil {
		t.Fatal(err)
	}
	want := "ok  \tm/a\t4.600s\ngo: downloading something\n    b_test.go:7: got 1, want 2\n--- FAIL: TestBad (1.00s)\n" +
		"FAIL\tm/b\t1.100s\nok  \tm/c\t(cached)\nd.go:1:1: undefined: x\n"
	if diff := cmp.Diff(want, shown.String()); diff != "" {
		t.Errorf("shown (-want +got):\n%s", diff)
	}
	written, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	want = "The slowest packages, in seconds:\n     4.6  m/a\n     1.1  m/b\nThe slowest tests, in seconds:\n     4.0  m/a.TestSlow\n     1.0  m/b.TestBad\n" +
		"What failed:\n  m/b.TestBad/part\n    b_test.go:7: got 1, want 2\n  m/d\nd.go:1:1: undefined: x\n"
	if diff := cmp.Diff(want, string(written)); diff != "" {
		t.Errorf("the list (-want +got):\n%s", diff)
	}
}

// TestFailuresComeLast looks for the seed of a property that failed after much else was said, and for a package that
// ended without any test's verdict.
func TestFailuresComeLast(t *testing.T) {
	var in strings.Builder
	say := func(pkg, test, line string) {
		if err := json.NewEncoder(&in).Encode(event{Action: "output", Package: pkg, Test: test, Output: line + "\n"}); err != nil {
			t.Fatal(err)
		}
	}
	say("m/a", "TestProperty", "=== RUN   TestProperty")
	for range 3 * mostLines {
		say("m/a", "TestProperty", "    draw")
	}
	say("m/a", "TestProperty", `        To reproduce, specify -run="TestProperty" -rapid.seed=17`)
	say("m/a", "TestProperty", "--- FAIL: TestProperty (0.10s)")
	in.WriteString(`{"Action":"fail","Package":"m/a","Test":"TestProperty","Elapsed":0.1}` + "\n" + `{"Action":"fail","Package":"m/a","Elapsed":0.2}` + "\n")
	say("m/b", "", "panic: test timed out after 20m0s")
	in.WriteString(`{"Action":"fail","Package":"m/b","Elapsed":0.1}` + "\n")
	var shown strings.Builder
	if err := run(strings.NewReader(in.String()), &shown, 1, ""); err != nil {
		t.Fatal(err)
	}
	_, last, _ := strings.Cut(shown.String(), "What failed:\n")
	want := "  m/a.TestProperty\n" + strings.Repeat("    draw\n", mostLines) + "        To reproduce, specify -run=\"TestProperty\" -rapid.seed=17\n" +
		"  m/b\npanic: test timed out after 20m0s\n"
	if diff := cmp.Diff(want, last); diff != "" {
		t.Errorf("the last lines (-want +got):\n%s", diff)
	}
}

// TestDeath reads what is printed when a test program dies: its last words count as a test's that never gets a verdict.
func TestDeath(t *testing.T) {
	in := strings.Join([]string{
		`{"Action":"output","Package":"m/a","Test":"TestWaits","Output":"=== PAUSE TestWaits\n"}`,
		`{"Action":"output","Package":"m/a","Test":"TestRuns","Output":"=== RUN   TestRuns\n"}`,
		`{"Action":"output","Package":"m/a","Test":"TestRuns","Output":"panic: of another goroutine\n"}`,
		`{"Action":"output","Package":"m/a","Output":"FAIL\tm/a\t2.900s\n"}`,
		`{"Action":"fail","Package":"m/a","Elapsed":2.9}`,
	}, "\n")
	var shown strings.Builder
	if err := run(strings.NewReader(in), &shown, 0, ""); err != nil {
		t.Fatal(err)
	}
	before, last, _ := strings.Cut(shown.String(), "What failed:\n")
	if !strings.Contains(before, "panic: of another goroutine\n") {
		t.Errorf("it is not shown where it happened:\n%s", before)
	}
	if want := "  m/a.TestRuns\npanic: of another goroutine\n"; last != want {
		t.Errorf("the last lines are\n%s, want\n%s", last, want)
	}
}
