package cli

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

var writeTable = flag.Bool("write-matrix", false, "write the table of what loads what into docs/engines.md")

// present is an engine of serve that is said to be on this machine, built for both kinds of device, or absent. It loads and
// judges what the real one does.
type present struct {
	loaders.Loader
	absent bool
}

func (p present) Check(context.Context) (loaders.Version, error) {
	if p.absent {
		return loaders.Version{}, registry.Errorf(registry.CodeUnavailable, "It is not here")
	}
	return loaders.Version{Version: "1", Path: "/engine", Devices: []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}}, nil
}

func (p present) Judge(m registry.Model, f registry.Facts, d registry.Device, v loaders.Version) loaders.Objection {
	if j, ok := p.Loader.(loaders.Judge); ok {
		return j.Judge(m, f, d, v)
	}
	return loaders.Objection{}
}

func (p present) Narrow(m registry.Model, v loaders.Version) loaders.Version {
	if n, ok := p.Loader.(loaders.Narrower); ok {
		return n.Narrow(m, v)
	}
	return v
}

// found is a source that has every model. What it says of the files is what any reader of headers would.
type found struct{ kind registry.SourceType }

func (s found) Type() registry.SourceType { return s.kind }

func (s found) Resolve(_ context.Context, ref sources.Ref) (sources.Snapshot, error) {
	snap := sources.Snapshot{Ref: ref, Revision: "1", Root: "/model", Bytes: 1 << 20, Facts: registry.Facts{Format: ref.Format, WeightBytes: 1 << 20}}
	if s.kind == registry.SourceExternal {
		snap.Bytes, snap.Facts = 0, registry.Facts{}
	}
	return snap, nil
}

func (s found) Fetch(context.Context, sources.Snapshot, func(registry.Progress)) (registry.Artifact, error) {
	return registry.Artifact{}, registry.Errorf(registry.CodeUnsupported, "nothing is fetched here")
}

// planner is a manager with the engines of serve on a machine with these GPUs. Nothing of it runs. With bare, no engine is
// installed there.
func planner(t *testing.T, bare bool, gpus ...registry.GPU) *manager.Manager {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	set, err := (&engineFlags{}).loaders("matrix", filepath.Join(dir, "engines"), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	for i := range set {
		set[i] = present{set[i], bare && set[i].Info().Name != "external"}
	}
	var all []sources.Source
	for _, kind := range registry.SourceTypes {
		all = append(all, found{kind})
	}
	st, err := store.Open(t.Context(), store.Options{Path: filepath.Join(dir, "registry.db")})
	if err != nil {
		t.Fatal(err)
	}
	machine := hwtest.New(gpus...)
	bus := events.New(events.Options{})
	m := manager.New(manager.Options{Store: st, Bus: bus, Hardware: hw.New(hw.Options{GPU: machine.GPUs(), Host: machine.Host()}), Loaders: set, Sources: all, DataDir: dir, Logger: log})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background(), false); err != nil {
			t.Error(err)
		}
		bus.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// matrixPaths are paths that the sources accept.
var matrixPaths = map[registry.SourceType]string{registry.SourceHuggingFace: "org/model", registry.SourceLocal: "/model", registry.SourceS3: "s3://bucket/model/",
	registry.SourceOllama: "model:tag", registry.SourceExternal: "https://llm.example.com"}

// genuineSources are the sources of serve, for what they refuse before they look.
func genuineSources(t *testing.T) []sources.Source {
	t.Helper()
	t.Setenv("HF_HOME", t.TempDir())
	set, _, err := (&sourceFlags{}).open(t.TempDir(), nil, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestMatrix plans every source_type × model_format × device_preference with the engines of serve, on a machine with a GPU
// and on one without. Each is chosen an engine and a device, or refused with the right code and what to do. docs/engines.md
// has the table of it.
func TestMatrix(t *testing.T) {
	t.Setenv("OLLAMA_HOST", "")
	machines := map[string]*manager.Manager{"with a GPU": planner(t, false, hwtest.GPU(0, 80<<30)), "without a GPU": planner(t, false)}
	bare := planner(t, true)
	checkers := map[registry.SourceType]sources.Checker{}
	for _, s := range genuineSources(t) {
		if c, ok := s.(sources.Checker); ok {
			checkers[s.Type()] = c
		}
	}
	cells := map[registry.SourceType]map[registry.Format]string{}
	for _, source := range registry.SourceTypes {
		cells[source] = map[registry.Format]string{}
		for _, format := range registry.Formats {
			if c := checkers[source]; c != nil {
				faults := c.Check(sources.Ref{Path: matrixPaths[source], Format: format, Revision: registry.DefaultRevision})
				if len(faults) > 0 { // such a model cannot even be registered
					if f := faults[0]; len(faults) != 1 || f.Field != "model_format" || !strings.Contains(f.Msg, "must be") {
						t.Errorf("%s from %s is refused with %+v", format, source, faults)
					}
					continue
				}
			}
			for _, device := range registry.Devices {
				for machine, m := range machines {
					what := fmt.Sprintf("%s from %s for %s on a machine %s", format, source, device, machine)
					model := registry.Model{ModelID: "m", SourceType: source, SourcePath: "/model", ModelFormat: format, DevicePreference: device}.WithDefaults()
					plan, _, err := m.PlanModel(t.Context(), model)
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					cell := checkPlan(t, what, plan, source, device, machine == "with a GPU")
					if was, ok := cells[source][format]; ok && was != cell {
						t.Errorf("%s: %q, and otherwise %q", what, cell, was)
					}
					cells[source][format] = cell
				}
				model := registry.Model{ModelID: "m", SourceType: source, SourcePath: "/model", ModelFormat: format, DevicePreference: device}.WithDefaults()
				plan, _, err := bare.PlanModel(t.Context(), model)
				if err != nil {
					t.Fatal(err)
				}
				checkRefused(t, plan, cells[source][format])
			}
		}
	}
	checkTable(t, matrixTable(cells))
}

// checkPlan holds a plan to what must hold of any, and returns the engines that load such a model, the one that auto chooses
// first; "" where there is none.
func checkPlan(t *testing.T, what string, plan registry.Plan, source registry.SourceType, device registry.Device, gpu bool) string {
	t.Helper()
	var chosen, others []string
	for _, v := range plan.Engines {
		switch {
		case v.Why == "":
			t.Errorf("%s: nothing is said of %s", what, v.Engine)
		case v.Chosen:
			chosen = append(chosen, "`"+v.Engine+"`")
		case v.Would:
			others = append(others, "`"+v.Engine+"`")
		}
	}
	if plan.Problem != nil {
		t.Errorf("%s is refused: %s", what, plan.Sentence)
		return ""
	}
	want, verdict := "cpu", registry.VerdictFits
	switch {
	case source == registry.SourceExternal:
		want = "remote"
	case device == registry.DeviceCUDA && !gpu:
		want, verdict = "cuda", registry.VerdictNever
	case device != registry.DeviceCPU && gpu:
		want = "cuda:0"
	}
	if len(chosen) != 1 || plan.Verdict != verdict || plan.Device != want || plan.Sentence == "" {
		t.Errorf("%s: %v %s on %q (%s), want %s on %q", what, chosen, plan.Verdict, plan.Device, plan.Sentence, verdict, want)
	}
	return strings.Join(append(chosen, others...), ", ")
}

// checkRefused holds the plan for a machine without engines to what would load the model, by the same plan for a machine that
// has them.
func checkRefused(t *testing.T, plan registry.Plan, cell string) {
	t.Helper()
	if cell == "`external`" {
		return
	}
	p := plan.Problem
	if p == nil || p.Code != registry.CodeLoadingFailed || p.Failure == nil || p.Failure.Kind != registry.FailureEngineMissing || !strings.Contains(plan.Sentence, p.Failure.Hint) ||
		!strings.Contains(p.Failure.Hint, "llmm engine install") {
		t.Errorf("nothing is installed, and the plan says %+v: %s", p, plan.Sentence)
	}
	for _, v := range plan.Engines {
		if loads := strings.Contains(cell, "`"+v.Engine+"`"); loads != strings.Contains(plan.Sentence, v.Title) && v.Engine != "command" {
			t.Errorf("%s loads it: %v; it is said: %s", v.Engine, loads, plan.Sentence)
		}
	}
}

// matrixTable is the table of docs/engines.md.
func matrixTable(cells map[registry.SourceType]map[registry.Format]string) string {
	var b strings.Builder
	b.WriteString("| `source_type` |")
	for _, f := range registry.Formats {
		fmt.Fprintf(&b, " `%s` |", f)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(registry.Formats)) + "\n")
	for _, s := range registry.SourceTypes {
		fmt.Fprintf(&b, "| `%s` |", s)
		for _, f := range registry.Formats {
			cell := cells[s][f]
			if cell == "" {
				cell = "none"
			}
			b.WriteString(" " + cell + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func checkTable(t *testing.T, want string) {
	t.Helper()
	const file, from, to = "../../docs/engines.md", "<!-- generated: matrix; by go test ./internal/cli -run TestMatrix -write-matrix -->\n\n", "\n<!-- end of generated: matrix -->"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), from)
	got, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table, between %q and %q", file, from, to)
	}
	if got == want {
		return
	}
	if !*writeTable {
		t.Fatalf("the table of %s is not what the engines load; write it anew with -write-matrix:\n%s", file, want)
	}
	if err := os.WriteFile(file, []byte(before+from+want+to+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
