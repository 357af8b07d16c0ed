package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func exported(tb testing.TB, list ...registry.Model) string {
	tb.Helper()
	var b bytes.Buffer
	err := Export(&b, func(yield func(registry.Record) error) error {
		for _, m := range list {
			if err := yield(registry.Record{Model: m}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

func TestExport(t *testing.T) {
	if got := exported(t); got != exportHeader+"models: []\n" {
		t.Errorf("none: %q", got)
	}
	m := with(small("org/x"), func(m *registry.Model) {
		m.Tags, m.GPUIDs, m.IdleTimeout, m.Priority, m.TrustRemoteCode = []string{"a", "on"}, []int{0, 2}, 45*60e9, -3, true
		m.Description = "two\nlines: # \"x\""
		m.CustomLoaderParams = map[string]any{
			"auth_token": "hf_SECRET", "api_key": "${KEY}", "threads": 4.0, "rate": 1e30, "half": 0.5, "no": true, "empty": map[string]any{},
			"deep": map[string]any{"password": "SECRET", "user": "me"}, "list": []any{map[string]any{"secret": "SECRET", "a": nil}, json.Number("7")},
		}
	})
	want := exportHeader + `models:
  - model_id: "org/x"
    source_type: "local"
    source_path: "/m/org/x"
    model_format: "gguf"
    # custom_loader_params.auth_token was left out because it is a secret.
    # custom_loader_params.deep.password was left out because it is a secret.
    # custom_loader_params.list[0].secret was left out because it is a secret.
    custom_loader_params:
      api_key: "${KEY}"
      deep:
        user: "me"
      empty: {}
      half: 0.5
      list: [{"a": null}, 7]
      "no": true
      rate: 1.0e+30
      threads: 4
    trust_remote_code: true
    description: "two\nlines: # \"x\""
    tags: ["a", "on"]
    gpu_ids: [0, 2]
    idle_timeout: "45m"
    priority: -3

  - model_id: "s"
    source_type: "local"
    source_path: "/m/s"
    model_format: "gguf"
    # custom_loader_params.token was left out because it is a secret.
`
	got := exported(t, m, with(small("s"), func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"token": "SECRET"} }))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

type failing struct{ after int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if f.after -= len(b); f.after < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestExportErrors(t *testing.T) {
	errStop := errors.New("stop")
	if err := Export(&bytes.Buffer{}, func(func(registry.Record) error) error { return errStop }); !errors.Is(err, errStop) {
		t.Errorf("got %v", err)
	}
	for _, after := range []int{0, 100_000} {
		err := Export(&failing{after}, func(yield func(registry.Record) error) error {
			for i := range 5000 {
				if err := yield(registry.Record{Model: small(fmt.Sprint("m", i))}); err != nil {
					return err
				}
			}
			return nil
		})
		if !errors.Is(err, errFull) {
			t.Errorf("after %d: %v", after, err)
		}
	}
}

// traps are texts that some YAML parser reads as something else when they stand without quotes.
var traps = []string{
	"no", "No", "NO", "yes", "on", "Off", "y", "N", "true", "FALSE", "null", "Null", "~", "1", "-1", "+1", "0x1", "0o7", "010", "1_000", "1e3", "1.0", "1.",
	".5", ".inf", "-.INF", ".nan", "1:30", "190:20:30.15", "0b11", "2024-01-01", "2024-01-01T00:00:00Z", "2001-12-14 21:59:43.10 -5", "<<", "=", "-", "- a",
	"?", "? a", ":", "a:", "a: b", "a #b", "#a", "&a", "*a", "!a", "|", ">", "@a", "`a", "%a", "{a}", "[a]", ",a", "'a'", "\"a\"", " a", "a ", "a\\nb", "...", "---",
	"é", "模型", "a\u00a0b", "😀", "a'b", "''", `\`, `"`, `\"`, "/", "//", "http://a:80/b?c=d#e", "C:\\x", "NaN", "Infinity", "inf", "nan", "0.1e-5", "1e+20", "e3",
}

// implicit11 is PyYAML's list of what a plain scalar may be instead of text (lib/yaml/resolver.py).
var implicit11 = regexp.MustCompile(`^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$` +
	`|^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$` +
	`|^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$` +
	`|^(?:<<|~|null|Null|NULL||=)$` +
	`|^(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+).*)$`)

func TestPlainIsSafe(t *testing.T) {
	for _, s := range append(traps, "a", "org/name-7b.Q4_1", "/opt/models/x", "http://a:80/b", "llama3.2:3b", "a@b", "x+y") {
		if !isPlain(s) {
			continue
		}
		if implicit11.MatchString(s) || strings.ContainsAny(s, " \t\n#'\"{}[],&*!|>%`\\") {
			t.Errorf("%q would stand without quotes", s)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.StringMatching(`[-+.0-9a-zA-Z/:_@ #]{1,12}`), rapid.String()).Draw(t, "s")
		if isPlain(s) && implicit11.MatchString(s) {
			t.Fatalf("%q would stand without quotes", s)
		}
	})
}

// Every trap survives as a value and as a name, in each of the three styles.
func TestTraps(t *testing.T) {
	for _, q := range []quoting{quoteDouble, quotePlain, quoteSingle} {
		p := map[string]any{}
		for _, s := range traps {
			p[s] = s
			p["v-"+s] = []any{s, map[string]any{s: s}}
		}
		w := writer{eol: "\n", quote: q}
		m := with(small("x"), func(m *registry.Model) { m.CustomLoaderParams, m.Description = p, "2024-01-01" })
		w.WriteString("models:\n- ")
		w.fields(encode(m), 2)
		d := mustParse(t, w.String())
		if diff := cmp.Diff([]registry.Model{m}, models(d)); diff != "" || len(d.Issues) > 0 {
			t.Errorf("style %d: %s %v", q, diff, short(d))
		}
		pythonReadsSame(t, w.String(), encode(m))
	}
	pythonReadsSame(t, guide, encode(tinyBert()), encode(localCustom()))
}

// pythonReadsSame asks PyYAML itself where this machine has it; where not, TestPlainIsSafe holds its rules.
func pythonReadsSame(t *testing.T, text string, want ...map[string]any) {
	t.Helper()
	if exec.Command("python3", "-c", "import yaml").Run() != nil {
		t.Log("no PyYAML here: its rules are checked by the table only")
		return
	}
	cmd := exec.Command("python3", "-c", "import sys,json,yaml; json.dump(yaml.safe_load(sys.stdin.buffer.read().decode())['models'], sys.stdout, default=str)")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("PyYAML: %v", err)
	}
	var list []map[string]any
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	for i := range list {
		list[i], _ = normal(list[i]).(map[string]any)
		if given, ok := list[i]["trust_remote_code"].(bool); ok && !given {
			delete(list[i], "trust_remote_code")
		}
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("PyYAML reads something else: %s", diff)
	}
}

func drawText(t *rapid.T, label string) string {
	return rapid.OneOf(rapid.SampledFrom(traps), rapid.StringMatching(`[ -~]{1,20}`), rapid.StringN(1, 20, 60)).Filter(cleanText).Draw(t, label)
}

func cleanText(s string) bool {
	_, errs := registry.Decode(map[string]any{"model_id": "x", "source_type": "local", "source_path": "/x", "model_format": "gguf", "custom_loader_params": map[string]any{"a": s, s: "a"}, "revision": "a" + s})
	return len(errs) == 0
}

func drawValue(t *rapid.T, depth int) any {
	n := rapid.IntRange(0, 8).Draw(t, "kind")
	if depth == 0 {
		n %= 6
	}
	switch n {
	case 0:
		return rapid.Bool().Draw(t, "bool")
	case 1:
		return rapid.Int64().Draw(t, "int")
	case 2:
		return normal(rapid.Float64Range(-1e15, 1e15).Draw(t, "float"))
	case 3:
		return nil
	case 4, 5:
		return drawText(t, "text")
	case 6:
		list := make([]any, rapid.IntRange(0, 3).Draw(t, "len"))
		for i := range list {
			list[i] = drawValue(t, depth-1)
		}
		return list
	}
	return drawParams(t, depth-1)
}

func drawParams(t *rapid.T, depth int) map[string]any {
	out := map[string]any{}
	for range rapid.IntRange(0, 3).Draw(t, "params") {
		name := rapid.SampledFrom([]string{"threads", "auth_token", "flag", "opts", ""}).Draw(t, "key")
		if name == "" {
			name = drawText(t, "name")
		}
		out[name] = drawValue(t, depth)
	}
	return out
}

// drawModel makes a valid model with the given id.
func drawModel(t *rapid.T, id string) registry.Model {
	m := small(id)
	maybe := func(name string, set func()) {
		if rapid.Bool().Draw(t, name) {
			set()
		}
	}
	maybe("path", func() { m.SourcePath = "/" + rapid.StringMatching(`[a-zA-Z0-9 #:'"é]{1,10}`).Draw(t, "p") })
	maybe("revision", func() {
		m.Revision = rapid.SampledFrom([]string{"dev", "2024-01-01", "1e3", "no", "007", "x: y", "a #b"}).Draw(t, "r")
	})
	maybe("bits", func() { m.QuantizationBits = rapid.SampledFrom([]int{4, 8}).Draw(t, "b") })
	maybe("device", func() { m.DevicePreference = rapid.SampledFrom(registry.Devices).Draw(t, "d") })
	maybe("ram", func() { m.RequiredRAMMB = rapid.Int64Range(1, 1000).Draw(t, "r") })
	maybe("trust", func() { m.TrustRemoteCode = true })
	maybe("description", func() {
		m.Description = drawText(t, "text") + rapid.SampledFrom([]string{"", "\n", "\nb\n\n", "\t# x"}).Draw(t, "more")
	})
	maybe("tags", func() {
		m.Tags = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "no", "1", "x y", "#"}), 1, 3, rapid.ID).Draw(t, "tags")
	})
	maybe("gpus", func() { m.GPUIDs = rapid.SliceOfNDistinct(rapid.IntRange(0, 8), 1, 3, rapid.ID).Draw(t, "gpus") })
	maybe("idle", func() { m.IdleTimeout = registry.Duration(rapid.Int64Range(1, 90000).Draw(t, "idle")) * 1e9 })
	maybe("priority", func() { m.Priority = rapid.IntRange(-100, 100).Draw(t, "prio") })
	maybe("params", func() {
		if p := drawParams(t, 3); len(p) > 0 {
			m.CustomLoaderParams = p
		}
	})
	m, errs := registry.Decode(encode(m))
	if len(errs) > 0 {
		t.Fatalf("drew an invalid model: %v", errs)
	}
	return m
}

func TestExportThenParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []registry.Model
		for i := range rapid.IntRange(0, 5).Draw(t, "n") {
			list = append(list, drawModel(t, fmt.Sprintf("m%d", i)))
		}
		var b bytes.Buffer
		if err := Export(&b, func(yield func(registry.Record) error) error {
			for _, m := range list {
				if err := yield(registry.Record{Model: m}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		d, err := Parse(b.Bytes())
		if err != nil || len(d.Issues) > 0 || len(d.Entries) != len(list) {
			t.Fatalf("%v %+v\n%s", err, d, b.String())
		}
		for i, m := range list {
			if m.CustomLoaderParams != nil {
				clean, _ := withoutSecrets(m.CustomLoaderParams, "")
				if m.CustomLoaderParams, _ = clean.(map[string]any); len(m.CustomLoaderParams) == 0 {
					m.CustomLoaderParams = nil
				}
			}
			if diff := cmp.Diff(encode(m), encode(d.Entries[i].Model)); diff != "" {
				t.Fatalf("%s\n%s", diff, b.String())
			}
		}
	})
}
