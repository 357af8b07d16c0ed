package architectures

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine")
	write := func(content string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	write("\x00llama\x00gptneox\x00", began)
	var b Book
	check := func(what, text, canary string, holds, sure bool) {
		t.Helper()
		if h, s := b.Holds(path, text, canary); h != holds || s != sure {
			t.Errorf("%s: holds %v, sure %v; want %v, %v", what, h, s, holds, sure)
		}
	}
	check("a name that is there", "llama\x00", "gptneox\x00", true, true)
	check("a name that is not", "mamba\x00", "gptneox\x00", false, true)
	check("a file without the canary", "llama\x00", "canary", false, false)
	write("\x00llama\x00gptneox\x00mamba\x00", began.Add(time.Second))
	check("after the file was replaced", "mamba\x00", "gptneox\x00", true, true)
	if _, sure := b.Holds(filepath.Join(t.TempDir(), "none"), "llama"); sure {
		t.Error("a file that is not there says something")
	}
}
