package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary be the children that the program itself is when it measures.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asPlain {
		if err := servePlain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == asFetcher {
		if err := fetchAsChild(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// Every fetcher fetches everything, in the weather in which all of them are compared.
func TestFetchMeasuresEverybody(t *testing.T) {
	var out, progress bytes.Buffer
	b := &bench{out: &out, progress: &progress, dir: t.TempDir(), fetchMB: 16, fetchRounds: 1, fetchOnly: "as fast"}
	if err := b.fetch(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	for _, want := range []string{"1.5× Python ", "1.5× Python in its fast mode", "0.8× curl", "our peak memory"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line says %q:\n%s", want, out.String())
		}
	}
}
