package command

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/loadertest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/openaitest"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const tag = "command-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve-model" {
		os.Exit(program(os.Args[2:]))
	}
	os.Exit(loadertest.Main(m, func() *loadertest.Harness {
		dir := os.Getenv("LOADERTEST_MANAGER_DIR")
		if dir == "" {
			return nil
		}
		h := harness(dir)
		return &h
	}))
}

// program is one that a template may start. mode says how it behaves.
func program(args []string) int {
	fl := flag.NewFlagSet("serve-model", flag.ContinueOnError)
	port, mode, name := fl.Int("port", 0, ""), fl.String("mode", "", ""), fl.String("name", "", "")
	fl.String("model", "", "")
	words := fl.String("tokenizer", "", "")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	if fi, err := os.Stat(*words); *words != "" && (err != nil || !fi.IsDir() || !filepath.IsAbs(*words)) {
		fmt.Println("no tokenizer", *words)
		return 1
	}
	switch *mode {
	case "exit":
		fmt.Println("configuration: nothing to do")
		return 7
	case "oom":
		fmt.Println("RuntimeError: tensor too large, GPU says no")
		return 1
	case "interrupt": // knows SIGINT only
		signal.Ignore(syscall.SIGTERM)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		if err := exec.Command("sleep", "600").Start(); err != nil {
			return 1
		}
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var loaded atomic.Bool
	s := &openaitest.Service{Key: os.Getenv("KEY"), Models: []string{*name}, Fault: func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case *mode == "mute" && r.URL.Path == "/health":
			<-r.Context().Done()
		case *mode == "no-health" && r.URL.Path == "/health":
			w.WriteHeader(http.StatusNotFound)
		case *mode == "no-chat" && strings.HasPrefix(r.URL.Path, "/v1/"):
			w.WriteHeader(http.StatusBadRequest)
		case !loaded.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			return false
		}
		return true
	}}
	go func() {
		for i := range 5 {
			fmt.Printf("loaded %d of 4\n", i)
			time.Sleep(10 * time.Millisecond) // loading takes time; a test kills within it
		}
		loaded.Store(true)
	}()
	stop := make(chan os.Signal, 1)
	switch *mode {
	case "stubborn":
	case "interrupt":
		signal.Notify(stop, syscall.SIGINT)
	default:
		signal.Notify(stop, syscall.SIGTERM)
	}
	go func() { fmt.Println(http.Serve(listener, s)) }() //nolint:gosec // a program for tests
	<-stop
	return 0
}

const file = `
commands:
  - name: test
    title: The test's program
    argv: [SELF, serve-model, --port, "${PORT}", --model, "${MODEL_PATH}", --name, "served/${MODEL_ID}", {if: param.mode, args: [--mode, "${param.mode}"]}]
    env: {KEY: "${API_KEY}"}
    model: served/${MODEL_ID}
    formats: [gguf]
    start_timeout: 60s
    params:
      - {name: mode, type: choice, choices: [exit, oom, mute, no-health, no-chat, stubborn], help: How it behaves.}
    progress: ['loaded (\d+) of (\d+)']
    failures:
      - {pattern: 'GPU says (\w+)', kind: out_of_memory, message: The GPU said $1, hint: Ask a larger one.}
  - name: interrupt
    argv: [SELF, serve-model, --port, "${PORT}", --name, "${MODEL_ID}", --mode, interrupt]
    formats: [gguf]
    stop_signal: SIGINT
  - name: impatient
    argv: [SELF, serve-model, --port, "${PORT}", --name, "${MODEL_ID}", --mode, mute]
    formats: [gguf]
    start_timeout: 1s
  - name: words
    argv: [SELF, serve-model, --port, "${PORT}", --name, "${MODEL_ID}", {if: TOKENIZER_PATH, args: [--tokenizer, "${TOKENIZER_PATH}"]}]
    formats: [gguf]
  - name: missing
    argv: [no-such-program-anywhere, "${PORT}"]
    formats: [gguf]
`

func newLoader(prefix string) loaders.Loader {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	ts, err := Parse([]byte(strings.ReplaceAll(file, "SELF", self)))
	if err != nil {
		panic(err)
	}
	return New(Options{Templates: ts, File: "commands.yaml", TagPrefix: prefix, WrongHealth: 200 * time.Millisecond})
}

func spec(dir string, p map[string]any) loaders.LoadSpec {
	weights := filepath.Join(dir, "model.gguf")
	if err := os.WriteFile(weights, []byte("GGUF"), 0o600); err != nil {
		panic(err)
	}
	return loaders.LoadSpec{Artifact: registry.Artifact{Path: weights}, Model: registry.Model{ModelID: "test/model", ModelFormat: registry.FormatGGUF, CustomLoaderParams: p}}
}

func harness(dir string) loadertest.Harness {
	weights := filepath.Join(dir, "weights")
	if err := os.MkdirAll(weights, 0o700); err != nil {
		panic(err)
	}
	return loadertest.Harness{New: newLoader, Kills: 12, Span: 100 * time.Millisecond, Needs: map[string]any{"template": "test"},
		Spec:     func() loaders.LoadSpec { return spec(weights, map[string]any{"template": "test"}) },
		Stubborn: func() loaders.LoadSpec { return spec(weights, map[string]any{"template": "test", "mode": "stubborn"}) }}
}

func TestConformance(t *testing.T) { loadertest.Run(t, harness(t.TempDir())) }

func load(t *testing.T, l loaders.Loader, s loaders.LoadSpec) (loaders.Instance, error) {
	t.Helper()
	s.InstanceID, s.Dir = "i-"+strings.ReplaceAll(t.Name(), "/", "-"), t.TempDir()
	s.LogPath, s.Device = filepath.Join(s.Dir, "engine.log"), registry.DeviceCPU
	s.Started = func(registry.Handle) {}
	s.Model = s.Model.WithDefaults()
	in, err := l.Load(t.Context(), s, func(registry.Progress) {})
	if err == nil {
		t.Cleanup(func() {
			if err := in.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	left, ferr := process.FindTagged(tag)
	if err != nil && (ferr != nil || len(left) > 0) {
		t.Errorf("left behind: %v, %v", left, ferr)
	}
	return in, err
}

// A program that takes a tokenizer is given one of this machine, whatever the model calls it. To others it does not matter.
func TestTokenizer(t *testing.T) {
	l, dir := newLoader(tag), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tokenizer"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		template, named string
		missing         bool
	}{{"words", "org/other", true}, {"words", "tokenizer", false}, {"words", "org/own", false}, {"interrupt", "org/other", false}} {
		s := spec(dir, map[string]any{"template": c.template})
		s.Model.SourcePath, s.Model.TokenizerPath = "org/own", c.named
		_, err := load(t, l, s)
		if e := registry.AsError(err); c.missing != (e != nil && e.Failure != nil && e.Failure.Kind == registry.FailureMissingFile && len(e.Failure.LogTail) == 0) || !c.missing && err != nil {
			t.Errorf("%s with %s: %v", c.template, c.named, err)
		}
	}
}

// Each way in which a command goes wrong: the right kind, the log's tail, what to do, nothing left.
func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		params map[string]any
		kind   registry.FailureKind
		words  string
		log    string
	}{
		"exits at once":   {map[string]any{"template": "test", "mode": "exit"}, registry.FailureCrash, "exit code 7", "nothing to do"},
		"own diagnosis":   {map[string]any{"template": "test", "mode": "oom"}, registry.FailureOutOfMemory, "The GPU said no", "GPU says no"},
		"wrong health":    {map[string]any{"template": "test", "mode": "no-health"}, registry.FailureCrash, "has no /health", "loaded 4 of 4"},
		"never answers":   {map[string]any{"template": "impatient"}, registry.FailureCrash, "within 1s", "loaded 4 of 4"},
		"no chat":         {map[string]any{"template": "test", "mode": "no-chat"}, registry.FailureCrash, "refused a first request", "loaded 4 of 4"},
		"missing program": {map[string]any{"template": "missing"}, registry.FailureEngineMissing, "no-such-program-anywhere", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, newLoader(tag), spec(t.TempDir(), c.params))
			f := registry.AsError(err).Failure
			if err == nil || f == nil || f.Kind != c.kind || !strings.Contains(f.Msg, c.words) || f.Hint == "" {
				t.Fatalf("got %v: %+v", err, f)
			}
			if strings.Contains(f.Hint, "custom_loader_params") {
				t.Errorf("it advises a parameter that this engine does not have: %s", f.Hint)
			}
			if !strings.Contains(strings.Join(f.LogTail, "\n"), c.log) {
				t.Errorf("the log's tail lacks %q: %q", c.log, f.LogTail)
			}
		})
	}
}

func TestStopSignal(t *testing.T) {
	in, err := load(t, newLoader(tag), spec(t.TempDir(), map[string]any{"template": "interrupt"}))
	if err != nil {
		t.Fatal(err)
	}
	back, err := New(Options{TagPrefix: tag}).Recover(t.Context(), in.Handle()) // the template is gone meanwhile
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := back.Stop(ctx); err != nil || ctx.Err() != nil {
		t.Errorf("a program that knows SIGINT only was not ended by it: %v, %v", err, ctx.Err())
	}
}

// Values of models never become flags, and there are no others than those that the admin declared.
func TestRefusesParameters(t *testing.T) {
	ts, err := Parse([]byte(`
commands:
  - name: p
    argv: [/bin/true, "--port=${PORT}", --alias, "${param.alias}", "${param.free}", --n, "${param.n}"]
    formats: [gguf]
    params:
      - {name: alias, type: text, pattern: '[a-z]+', help: A name.}
      - {name: free, type: text, help: Free.}
      - {name: n, type: int, min: 1, max: 4, help: A number.}
      - {name: x, type: number, help: A number.}
      - {name: on, type: bool, help: A switch.}
`))
	if err != nil {
		t.Fatal(err)
	}
	l := New(Options{Templates: ts, TagPrefix: tag})
	for field, p := range map[string]map[string]any{
		"custom_loader_params.alias":    {"template": "p", "alias": "a b"},
		"custom_loader_params.free":     {"template": "p", "free": "--config=/etc/passwd"},
		"custom_loader_params.n":        {"template": "p", "n": int64(5)},
		"custom_loader_params.x":        {"template": "p", "x": "1; rm"},
		"custom_loader_params.on":       {"template": "p", "on": "true"},
		"custom_loader_params.argv":     {"template": "p", "argv": []any{"--x"}},
		"custom_loader_params.env":      {"template": "p", "env": map[string]any{"LD_PRELOAD": "x"}},
		"custom_loader_params.template": {"template": "q"},
	} {
		_, err := load(t, l, spec(t.TempDir(), p))
		if e := registry.AsError(err); registry.CodeOf(err) != registry.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, v := range []string{"a\nb", "a\x00b", strings.Repeat("x", 5000)} {
		if _, err := load(t, l, spec(t.TempDir(), map[string]any{"template": "p", "free": v})); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%.20q: %v", v, err)
		}
	}
	s := spec(t.TempDir(), map[string]any{"template": "p"})
	s.Model.TokenizerPath = "--trust-remote-code"
	if _, err := load(t, l, s); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("a tokenizer's path that is a flag: %v", err)
	}
	v, err := ts[0].read(map[string]any{"free": `$(reboot) ; ${PORT} "quoted"`})
	if err != nil {
		t.Fatal(err)
	}
	v[phPort] = "80"
	if got := ts[0].argv(v); got[4] != `$(reboot) ; ${PORT} "quoted"` || got[1] != "--port=80" {
		t.Errorf("a value was read again: %q", got)
	}
}

func TestPlaceholders(t *testing.T) {
	ts, err := Parse([]byte(`
commands:
  - name: p
    argv: [x, "${PORT}", {if: GPU_IDS, args: [--gpus, "${GPU_IDS}", --n, "${GPU_COUNT}", --share, "${GPU_MEMORY_FRACTION}"]}, {if: CONTEXT_LENGTH, args: ["-c${CONTEXT_LENGTH}"]}, {if: param.on, args: [--on]}, {if: TRUST_REMOTE_CODE, args: [--trust]}]
    formats: [gguf]
    params: [{name: "on", type: bool, help: x}]
`))
	if err != nil {
		t.Fatal(err)
	}
	full := loaders.LoadSpec{Device: registry.DeviceCUDA, GPUs: []int{1, 3}, Reserved: 40 << 30, DeviceSize: 80 << 30, Context: 4096, Model: registry.Model{TrustRemoteCode: true}}
	for name, c := range map[string]struct {
		spec loaders.LoadSpec
		on   string
		want string
	}{
		"all":     {full, "true", "x 1 --gpus 1,3 --n 2 --share 0.2500 -c4096 --on --trust"},
		"nothing": {loaders.LoadSpec{Device: registry.DeviceCPU}, "false", "x 1"},
	} {
		v := ts[0].values(c.spec, values{"param.on": c.on})
		v[phPort] = "1"
		if got := strings.Join(ts[0].argv(v), " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// Every fault of a file has its place.
func TestFileFaults(t *testing.T) {
	const good = "commands:\n  - name: a\n    argv: [x, '${PORT}']\n    formats: [gguf]\n"
	for text, want := range map[string]string{
		"":                              "commands",
		"commands: 3":                   "line 1, column 11: commands must be a list",
		"other: 3":                      "line 1, column 1: other is not known here",
		"commands:\n  - name: a\n":      "argv is required",
		good + "    health: live\n":     "line 5, column 13: commands[0].health must be a path",
		good + "    stop_signal: 9\n":   "line 5, column 18: commands[0].stop_signal must be SIGTERM",
		good + "    apis: [images]\n":   `line 5, column 12: commands[0].apis[0] must be one of chat, completions, embeddings, not "images"`,
		good + "    formats: [gguf]\n":  "is given twice",
		good + "    shell: rm -rf /\n":  "line 5, column 5: commands[0].shell is not known here",
		good + "    start_timeout: 9\n": "must be a duration",
		good + "    env: {A-B: x}\n":    "line 5, column 11: commands[0].env.A-B is no name",
		good + "    env: {LLMM_X: x}\n": "is no name of a variable that a command may have",
		good + "    model: '${NOPE}'\n": `line 5, column 12: commands[0].model names the placeholder "NOPE"`,
		good + "    progress: ['(']\n":  "is not a regular expression",
		good + "    progress: ['x']\n":  "must have one group",
		good + "    params: [{name: n, type: choice, help: x}]\n":                    "choices is required",
		good + "    params: [{name: template, type: int, help: x}]\n":                "not template",
		good + good[len("commands:\n"):]:                                             "is the second command named a",
		"commands: [{name: A b, argv: [x, '${PORT}'], formats: [gguf]}]":             "must be lower-case",
		"commands: [{name: a, argv: [x], formats: [gguf]}]":                          "must tell the program ${PORT}",
		"commands: [{name: a, argv: [], formats: [gguf]}]":                           "must begin with a program",
		"commands: [{name: a, argv: [{if: PORT, args: []}], formats: [gguf]}]":       "must begin with a program",
		"commands: [{name: a, argv: ['${MODEL_ID}', '${PORT}'], formats: [gguf]}]":   "not one that a model could change",
		"commands: [{name: a, argv: [./x, '${PORT}'], formats: [gguf]}]":             "must be an absolute path",
		"commands: [{name: a, argv: [x, '${PORT}', '${API_KEY}'], formats: [gguf]}]": "would show the key",
		"commands: [{name: a, argv: [x, '${PORT}', '${param.q}'], formats: [gguf]}]": `names the placeholder "param.q"`,
		"commands: [{name: a, argv: [x, '${PORT}', '${PORT'], formats: [gguf]}]":     "without its end",
		"commands: [{name: a, argv: [x, '${PORT}'], formats: []}]":                   "formats must not be empty",
		"commands: [\n  {name": "line",
	} {
		_, err := Parse([]byte(text))
		if registry.CodeOf(err) != registry.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q\n got %v\nwant %s", text, err, want)
		}
	}
	if _, err := ReadFile("/nowhere.yaml"); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := New(Options{}).Check(t.Context()); registry.CodeOf(err) != registry.CodeUnavailable {
		t.Errorf("without commands: %v", err)
	}
}

func TestPresets(t *testing.T) {
	ts, err := Parse(Presets)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range ts {
		names = append(names, p.Name)
	}
	if want := []string{"llama-server", "vllm", "sglang", "tgi"}; !slices.Equal(names, want) {
		t.Errorf("the presets are %v, want %v", names, want)
	}
	i := New(Options{Templates: ts}).Info()
	if !i.OnlyNamed || len(i.Params) == 0 || i.Params[0].Name != "template" || !slices.Equal(i.Params[0].Opts, names) {
		t.Errorf("Info is %+v", i)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Presets)
	f.Add([]byte(file))
	for _, s := range []string{"commands: [{argv: [{args: []}]}]", "commands: [&a {name: *a}]", "commands:\n- {params: [{}]}", "commands: [{argv: [''], name: a, formats: [gguf]}]", "{}", "[]", "commands: [{failures: [{}], progress: [{}], env: []}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ts, err := Parse(b)
		if err != nil {
			return
		}
		for _, c := range ts {
			v, err := c.read(nil)
			if err != nil {
				t.Fatal(err)
			}
			if argv := c.argv(v); len(argv) == 0 || argv[0] == "" || strings.Contains(argv[0], "${") {
				t.Errorf("%q runs %q", b, argv)
			}
			c.parse("loaded 3 of 4 50% NaN")
		}
	})
}
