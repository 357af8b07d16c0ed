package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
	for _, want := range []string{"1.5× Python ", "1.5× Python in its fast mode", "0.8× curl", "our peak memory", "ours never gave up, Python never gave up"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line says %q:\n%s", want, out.String())
		}
	}
}

// TestSameBytes: files may be called otherwise, but hold what is served; ranges are as many bytes at least.
func TestSameBytes(t *testing.T) {
	served, home := t.TempDir(), t.TempDir()
	write := func(dir, name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one, two := bytes.Repeat([]byte("1"), 200_000), bytes.Repeat([]byte("2"), 200_000)
	write(served, "a.safetensors", one)
	write(served, "b.safetensors", two)
	write(home, "blob2", two)
	write(home, "blob1", one)
	write(home, "notes", []byte("small"))
	if err := sameBytes(home, served, true); err != nil {
		t.Error(err)
	}
	damaged := bytes.Clone(one)
	damaged[100_000]++
	write(home, "blob1", damaged)
	if err := sameBytes(home, served, true); err == nil {
		t.Error("a damaged file passes")
	}
	if err := sameBytes(home, served, false); err != nil {
		t.Error(err)
	}
	write(home, "blob1", one[1:])
	if err := sameBytes(home, served, false); err == nil {
		t.Error("a short file passes")
	}
}
