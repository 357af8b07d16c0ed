package manager

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/external"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/loaders/vllm"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// park is a machine's engines, in the order in which auto prefers them. TestParkIsReal holds it to what they say themselves.
func park(change func(name string, e *engineOption)) []engineOption {
	files := []registry.SourceType{registry.SourceLocal, registry.SourceHuggingFace, registry.SourceS3}
	both := []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}
	param := func(names ...string) (out []loaders.Param) {
		for _, n := range names {
			out = append(out, loaders.Param{Name: n})
		}
		return out
	}
	out := []engineOption{
		{info: loaders.Info{Name: "llamacpp", Title: "llama.cpp", Sources: append(files, registry.SourceOllama), Formats: []registry.Format{registry.FormatGGUF}, Params: param("threads")}},
		{info: loaders.Info{Name: "transformers", Title: "Transformers", Sources: files, Formats: []registry.Format{registry.FormatTransformersPT, registry.FormatSafetensors, registry.FormatONNX}, Params: param("dtype", "max_memory")}},
		{info: loaders.Info{Name: "ollama", Title: "Ollama", Sources: append(files, registry.SourceOllama), Formats: []registry.Format{registry.FormatGGUF, registry.FormatSafetensors, registry.FormatTransformersPT}}},
		{info: loaders.Info{Name: "vllm", Title: "vLLM", Sources: files, Formats: []registry.Format{registry.FormatSafetensors, registry.FormatTransformersPT}, Params: param("dtype", "max_num_seqs")}},
		{info: loaders.Info{Name: "external", Title: "External service", Sources: []registry.SourceType{registry.SourceExternal}, Formats: registry.Formats}},
		{info: loaders.Info{Name: "command", Title: "Command", OnlyNamed: true, Sources: files, Formats: registry.Formats}},
	}
	for i := range out {
		out[i].version.Devices, out[i].info.HowToGet = both, "Install it."
		if change != nil {
			change(out[i].info.Name, &out[i])
		}
	}
	return out
}

func without(names ...string) func(string, *engineOption) {
	return func(name string, e *engineOption) {
		if slices.Contains(names, name) {
			e.problem = e.info.Title + " is not installed."
		}
	}
}

func TestAutoChoosesTheEngine(t *testing.T) {
	onlyCPU := func(names ...string) func(string, *engineOption) {
		return func(name string, e *engineOption) {
			if slices.Contains(names, name) {
				e.version.Devices = []registry.Device{registry.DeviceCPU}
			}
		}
	}
	objects := func(who, why string, sure bool) func(string, *engineOption) {
		return func(name string, e *engineOption) {
			if name == who {
				e.judge = func(registry.Device) loaders.Objection { return loaders.Objection{Why: why, Sure: sure} }
			}
		}
	}
	on := func(d registry.Device, why string) func(string, *engineOption) {
		return func(name string, e *engineOption) {
			if name == "transformers" {
				e.judge = func(got registry.Device) loaders.Objection {
					if got == d {
						return loaders.Objection{Why: why, Sure: true}
					}
					return loaders.Objection{}
				}
			}
		}
	}
	all := func(list ...func(string, *engineOption)) func(string, *engineOption) {
		return func(name string, e *engineOption) {
			for _, f := range list {
				f(name, e)
			}
		}
	}
	gguf := registry.Model{SourceType: registry.SourceLocal, ModelFormat: registry.FormatGGUF}
	st := registry.Model{SourceType: registry.SourceHuggingFace, ModelFormat: registry.FormatSafetensors}
	with := func(m registry.Model, change func(*registry.Model)) registry.Model { change(&m); return m }
	for name, c := range map[string]struct {
		model  registry.Model
		device registry.Device
		gpu    bool
		change func(string, *engineOption)
		want   string            // "" none
		why    string            // part of why it was chosen
		others map[string]string // part of what is said of others
	}{
		"gguf": {model: gguf, want: "llamacpp", why: "loads gguf, and is preferred to Ollama",
			others: map[string]string{"ollama": "could load it, too; llama.cpp is preferred", "transformers": "does not load gguf; it loads transformers_pt, safetensors, onnx", "external": "does not load from local", "command": "runs only models that name it"}},
		"gguf without llama.cpp":       {model: gguf, change: without("llamacpp"), want: "ollama", why: "the only engine here that loads gguf", others: map[string]string{"llamacpp": "cannot be used here: llama.cpp is not installed"}},
		"gguf with nothing":            {model: gguf, change: without("llamacpp", "ollama")},
		"safetensors":                  {model: st, want: "transformers", why: "loads safetensors, and is preferred to Ollama and vLLM"},
		"pytorch":                      {model: with(st, func(m *registry.Model) { m.ModelFormat = registry.FormatTransformersPT }), want: "transformers", others: map[string]string{"ollama": "could load it, too; Transformers is preferred"}},
		"pytorch without Transformers": {model: with(st, func(m *registry.Model) { m.ModelFormat = registry.FormatTransformersPT }), change: without("transformers"), want: "ollama", others: map[string]string{"llamacpp": "does not load transformers_pt"}},
		"onnx": {model: with(st, func(m *registry.Model) { m.ModelFormat = registry.FormatONNX }), want: "transformers", why: "the only engine here that loads onnx",
			others: map[string]string{"vllm": "does not load onnx", "command": "runs only models that name it"}},
		"onnx without Transformers": {model: with(st, func(m *registry.Model) { m.ModelFormat = registry.FormatONNX }), change: without("transformers"), others: map[string]string{"command": "runs only models that name it"}},
		"an ollama library":         {model: with(gguf, func(m *registry.Model) { m.SourceType = registry.SourceOllama }), want: "llamacpp"},
		"a service":                 {model: registry.Model{SourceType: registry.SourceExternal, ModelFormat: registry.FormatGGUF}, want: "external", why: "runs elsewhere"},

		"a GPU that llama.cpp cannot use": {model: gguf, gpu: true, change: onlyCPU("llamacpp"), want: "ollama", why: "can use the GPU, which llama.cpp cannot",
			others: map[string]string{"llamacpp": "would run on the CPU"}},
		"a GPU that neither can use":       {model: gguf, gpu: true, change: onlyCPU("llamacpp", "ollama"), want: "llamacpp"},
		"a GPU, and the CPU is asked for":  {model: gguf, device: registry.DeviceCPU, gpu: true, change: onlyCPU("llamacpp"), want: "llamacpp"},
		"cuda asked for":                   {model: gguf, device: registry.DeviceCUDA, gpu: true, change: onlyCPU("llamacpp"), want: "ollama", others: map[string]string{"llamacpp": "cannot use CUDA"}},
		"cuda asked for, and nothing can":  {model: gguf, device: registry.DeviceCUDA, change: onlyCPU("llamacpp", "ollama"), want: "llamacpp", why: "nothing better is here"},
		"a vLLM for CUDA without a GPU":    {model: st, change: all(without("transformers", "ollama"), func(n string, e *engineOption) { e.version.Devices = []registry.Device{registry.DeviceCUDA} }), want: "vllm", why: "needs a GPU as it is installed here"},
		"an architecture not known":        {model: gguf, change: objects("llamacpp", "1 does not know the architecture x", false), want: "ollama", why: "which llama.cpp may not", others: map[string]string{"llamacpp": "does not know the architecture x"}},
		"one that nobody knows":            {model: gguf, change: all(objects("llamacpp", "does not know x", false), objects("ollama", "does not know x", false)), want: "llamacpp", why: "the best that is here"},
		"bits on the CPU":                  {model: with(st, func(m *registry.Model) { m.QuantizationBits = 4 }), change: on(registry.DeviceCPU, "quantises on a GPU only"), want: "ollama", why: "which Transformers may not"},
		"bits on a GPU":                    {model: with(st, func(m *registry.Model) { m.QuantizationBits = 4 }), gpu: true, change: on(registry.DeviceCPU, "quantises on a GPU only"), want: "transformers"},
		"a setting of vLLM's":              {model: with(st, func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"max_num_seqs": 4} }), want: "vllm", others: map[string]string{"transformers": "does not understand the loader setting max_num_seqs"}},
		"a setting of the source's":        {model: with(st, func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"auth_token": "x"} }), want: "transformers"},
		"a setting that nobody knows":      {model: with(st, func(m *registry.Model) { m.CustomLoaderParams = map[string]any{"typo": 1} }), want: "transformers", why: "does not understand the loader setting typo"},
		"one that has not answered yet":    {model: gguf, change: func(n string, e *engineOption) { e.unseen = n == "ollama" }, want: "llamacpp", others: map[string]string{"ollama": "has not answered yet"}},
		"named":                            {model: with(gguf, func(m *registry.Model) { m.Engine = "ollama" }), want: "ollama", why: "the model asks for it", others: map[string]string{"llamacpp": "could load it, too; the model asks for Ollama"}},
		"named, and doubted":               {model: with(gguf, func(m *registry.Model) { m.Engine = "ollama" }), change: objects("ollama", "does not know x", false), want: "ollama", why: "the model asks for it; it does not know x"},
		"named, of another format":         {model: with(gguf, func(m *registry.Model) { m.Engine = "vllm" })},
		"named, and not here":              {model: with(gguf, func(m *registry.Model) { m.Engine = "ollama" }), change: without("ollama")},
		"named, one that auto passes over": {model: with(gguf, func(m *registry.Model) { m.Engine = "command" }), want: "command"},
		"named, one that there is not":     {model: with(gguf, func(m *registry.Model) { m.Engine = "other" })},
	} {
		t.Run(name, func(t *testing.T) {
			device := c.device
			if device == "" {
				device = registry.DeviceAuto
			}
			in := choiceInput{model: c.model, device: device, gpu: c.gpu, engines: park(c.change)}
			i, verdicts := chooseAmong(in)
			got := ""
			if i >= 0 {
				got = in.engines[i].info.Name
			}
			if got != c.want {
				t.Fatalf("chose %q, want %q: %+v", got, c.want, verdicts)
			}
			for _, v := range verdicts {
				if v.Chosen != (v.Engine == got) || v.Would && v.Chosen {
					t.Errorf("the verdict of %s does not fit the choice: %+v", v.Engine, v)
				}
				if v.Why == "" {
					t.Errorf("nothing is said of %s", v.Engine)
				}
				if v.Chosen && !strings.Contains(v.Why, c.why) {
					t.Errorf("it was chosen because %q, want %q", v.Why, c.why)
				}
				if want, ok := c.others[v.Engine]; ok && !strings.Contains(v.Why, want) {
					t.Errorf("of %s it says %q, want %q", v.Engine, v.Why, want)
				}
			}
			if i < 0 {
				if what, hint := in.noEngine(); what == "" || hint == "" {
					t.Errorf("no engine, and neither why nor what to do: %q, %q", what, hint)
				}
			}
		})
	}
}

func TestOlderVersion(t *testing.T) {
	for _, c := range [][2]string{{"9.9", "9.10"}, {"0.32.0", "0.33.0"}, {"5.9.0", "5.23.0"}, {"11434.0.0", "11435.0.0"}, {"1.0", "1.0.1"}, {"1.0rc1", "1.0rc2"}} {
		if !olderVersion(c[0], c[1]) || olderVersion(c[1], c[0]) {
			t.Errorf("%s is not older than %s", c[0], c[1])
		}
	}
	if olderVersion("1.2.3", "1.2.3") {
		t.Error("a version is older than itself")
	}
}

// TestParkIsReal: the choice is tried with engines that load what the real ones load.
func TestParkIsReal(t *testing.T) {
	genuine := []loaders.Loader{llamacpp.New(llamacpp.Options{}), transformers.New(transformers.Options{}), ollama.New(ollama.Options{}), vllm.New(vllm.Options{}), external.New(external.Options{})}
	made := park(nil)
	for i, l := range genuine {
		info, got := l.Info(), made[i].info
		if got.Name != info.Name || got.Title != info.Title || !same(got.Sources, info.Sources) || !same(got.Formats, info.Formats) {
			t.Errorf("%s loads %v from %v; here it is %s, which loads %v from %v", info.Name, info.Formats, info.Sources, got.Name, got.Formats, got.Sources)
		}
		for _, p := range got.Params {
			if !slices.ContainsFunc(info.Params, func(q loaders.Param) bool { return q.Name == p.Name }) {
				t.Errorf("%s has no setting %s", info.Name, p.Name)
			}
		}
	}
}

func same[T cmp.Ordered](a, b []T) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// slow is an engine that does not say for long whether it is here.
type slow struct {
	loaders.Loader
	name string
	hold chan struct{}
}

func (s slow) Info() loaders.Info {
	i := s.Loader.Info()
	i.Name, i.Title = s.name, s.name
	return i
}

func (s slow) Check(ctx context.Context) (loaders.Version, error) {
	select {
	case <-s.hold:
	case <-ctx.Done():
	}
	return loaders.Version{}, registry.Errorf(registry.CodeUnavailable, "it never was here")
}

// TestASlowEngineHoldsNobodyUp: once there is one that would do, the rest is waited for a moment only.
func TestASlowEngineHoldsNobodyUp(t *testing.T) {
	hold := make(chan struct{})
	r := newRig(t, func(o *Options) {
		quick := slow{o.Loaders[0], "llamacpp", nil}
		o.Loaders = []loaders.Loader{ready{quick}, slow{o.Loaders[0], "ollama", hold}}
	})
	model := registry.Model{ModelID: "m", SourceType: registry.SourceLocal, SourcePath: r.weights(), ModelFormat: registry.FormatGGUF}.WithDefaults()
	verdict := func() (string, string) {
		t.Helper()
		eng, err := r.chooseEngine(r.ctx(), model, "", registry.Facts{}, registry.Sample{})
		if err != nil {
			t.Fatal(err)
		}
		return eng.info.Name, eng.verdicts[1].Why
	}
	if name, other := verdict(); name != "llamacpp" || !strings.Contains(other, "has not answered yet") {
		t.Errorf("chose %s; of the slow one it says %q", name, other)
	}
	model.Engine = "ollama" // asked for by name: it is waited for
	done := make(chan error)
	go func() {
		_, err := r.chooseEngine(r.ctx(), model, "", registry.Facts{}, registry.Sample{})
		done <- err
	}()
	close(hold)
	if err := <-done; registry.CodeOf(err) != registry.CodeLoadingFailed || !strings.Contains(err.Error(), "it never was here") {
		t.Errorf("the slow one by name: %v", err)
	}
}

// TestForgottenTwice: two who ask to look again, while the look of before is still under way, get a fresh one.
func TestForgottenTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m := &Manager{ctx: ctx}
		defer m.work.Wait()
		defer cancel()
		hangs := slow{fake.New(fake.Options{}), "llamacpp", nil}
		first := m.check(hangs)
		if m.check(hangs) != first {
			t.Error("two look at once")
		}
		m.ForgetEngines()
		m.ForgetEngines()
		if m.check(hangs) == first || m.EngineChanges() != 2 {
			t.Errorf("the look is the one of before; %d changes", m.EngineChanges())
		}
	})
}

// TestAnEngineThatHangs: whichever hangs, the first too, a choice waits for it a moment once there is one that would do, and
// not long if there is none. Time is that of a bubble, so that nobody waits for real.
func TestAnEngineThatHangs(t *testing.T) {
	t.Parallel()
	double := fake.New(fake.Options{})
	gguf := registry.Model{ModelID: "m", SourceType: registry.SourceLocal, ModelFormat: registry.FormatGGUF}.WithDefaults()
	named := gguf
	named.Engine = "llamacpp"
	for name, c := range map[string]struct {
		model   registry.Model
		second  bool // answers at once
		after   time.Duration
		chosen  int
		waiting string
	}{
		"the first":                 {gguf, true, checkedElse, 1, ""},
		"all":                       {gguf, false, checkedWait, -1, "llamacpp and ollama"},
		"the one that is asked for": {named, true, checkedWait, -1, "llamacpp"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				m := &Manager{ctx: ctx}
				defer m.work.Wait()
				defer cancel()
				set := []loaders.Loader{slow{double, "llamacpp", nil}, slow{double, "ollama", nil}}
				if c.second {
					set[1] = ready{slow{double, "ollama", nil}}
				}
				in := choiceInput{model: c.model, device: registry.DeviceAuto}
				for _, l := range set {
					in.engines = append(in.engines, engineOption{info: l.Info()})
				}
				began := time.Now()
				if err := m.checkEngines(ctx, in, set); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != c.after {
					t.Errorf("waited for %s, want %s", took, c.after)
				}
				i, verdicts := chooseAmong(in)
				if i != c.chosen || !strings.Contains(verdicts[0].Why, "has not answered yet") {
					t.Errorf("chose %d, and of the first it says %q", i, verdicts[0].Why)
				}
				if i < 0 && in.unseen() != c.waiting {
					t.Errorf("waits for %q, want %q", in.unseen(), c.waiting)
				}
			})
		})
	}
}

// ready is slow without being it.
type ready struct{ slow }

func (ready) Check(context.Context) (loaders.Version, error) {
	return loaders.Version{Version: "1", Devices: []registry.Device{registry.DeviceCPU}}, nil
}
