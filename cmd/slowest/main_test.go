package main

import (
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
	want = "The slowest packages, in seconds:\n     4.6  m/a\n     1.1  m/b\nThe slowest tests, in seconds:\n     4.0  m/a.TestSlow\n     1.0  m/b.TestBad\n"
	if diff := cmp.Diff(want, string(written)); diff != "" {
		t.Errorf("the list (-want +got):\n%s", diff)
	}
}
