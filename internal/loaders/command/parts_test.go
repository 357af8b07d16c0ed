package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParts(t *testing.T) {
	bin := t.TempDir()
	write := func(name, script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
	}
	write("server", `echo "version: 11434 (abc)"`)
	write("python3", `[ "$1 $2 $3" = "-m sglang.launch_server --version" ] && echo "sglang 0.5.2"`)
	write("mute", `exit 1`)
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	templates, err := Parse([]byte(`commands:
  - {name: one, title: One, argv: [server, --port, "${PORT}"], health: /h, apis: [chat], formats: [gguf], devices: [cpu]}
  - {name: two, title: Two, argv: [python3, -m, sglang.launch_server, --port, "${PORT}"], health: /h, apis: [chat], formats: [safetensors], devices: [cuda]}
  - {name: three, title: Three, argv: [mute, --port, "${PORT}"], health: /h, apis: [chat], formats: [gguf], devices: [cpu]}
  - {name: four, title: Four, argv: [no-such-program-at-all, --port, "${PORT}"], health: /h, apis: [chat], formats: [gguf], devices: [cpu]}
`))
	if err != nil {
		t.Fatal(err)
	}
	parts := New(Options{Templates: templates}).Parts(t.Context())
	for i, want := range []struct{ program, version, problem string }{
		{filepath.Join(bin, "server"), "11434", ""}, {filepath.Join(bin, "python3"), "0.5.2", ""}, {filepath.Join(bin, "mute"), "", ""}, {"no-such-program-at-all", "", "cannot be run"},
	} {
		if p := parts[i]; p.Program != want.program || p.Version != want.version || (want.problem == "") != (p.Problem == "") || !strings.Contains(p.Problem, want.problem) {
			t.Errorf("%s: %+v, want %+v", p.Name, p, want)
		}
	}
}
