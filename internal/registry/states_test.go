package registry_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// constants returns the values of every constant of a named string type that the package declares, so that a test
// notices a constant that was added and is not in a list or a table.
func constants(t *testing.T, typeName string) []string {
	t.Helper()
	all, err := declared()
	if err != nil {
		t.Fatal(err)
	}
	if len(all[typeName]) == 0 {
		t.Fatalf("found no constant of type %s", typeName)
	}
	return slices.Clone(all[typeName])
}

// declared reads the package's files once: the values of all constants of a named type, sorted, by the type's name.
var declared = sync.OnceValues(func() (map[string][]string, error) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		return nil, err
	}
	out, others := map[string][]string{}, map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				vs := s.(*ast.ValueSpec)
				id, ok := vs.Type.(*ast.Ident)
				if !ok {
					continue
				}
				lit, ok := vs.Values[0].(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					others[id.Name] = true
					continue
				}
				v, err := strconv.Unquote(lit.Value)
				if err != nil {
					return nil, err
				}
				out[id.Name] = append(out[id.Name], v)
			}
		}
	}
	for name, values := range out {
		if others[name] {
			return nil, fmt.Errorf("a constant of type %s is not written as one string", name)
		}
		slices.Sort(values)
	}
	return out, nil
})

func sorted[S ~string](in []S) []string {
	out := make([]string, len(in))
	for i := range in {
		out[i] = string(in[i])
	}
	slices.Sort(out)
	return out
}

func TestListsAreComplete(t *testing.T) {
	for typeName, list := range map[string][]string{
		"Code": sorted(registry.Codes), "EventKind": sorted(registry.EventKinds), "Status": sorted(registry.Statuses),
		"SourceType": sorted(registry.SourceTypes), "Format": sorted(registry.Formats), "Device": sorted(registry.Devices),
		"Role":      sorted(registry.Roles),
		"StageName": slices.Compact(sorted(slices.Concat(registry.LoadStages, registry.UnloadStages, registry.SelfTestStages, registry.RemoveStages))),
	} {
		if want := constants(t, typeName); !slices.Equal(want, list) {
			t.Errorf("the list of %s is %v, the constants are %v", typeName, list, want)
		}
	}
}

var axes = map[registry.Axis]struct{ typeName, first string }{
	registry.AxisArtifact:     {"ArtifactState", string(registry.ArtifactAbsent)},
	registry.AxisRuntime:      {"RuntimeState", string(registry.RuntimeStopped)},
	registry.AxisRegistration: {"RegistrationState", string(registry.RegistrationActive)},
}

// reach returns the states that can be reached from one, itself included.
func reach(axis registry.Axis, from string, step func(registry.Transition) (string, string)) map[string]bool {
	seen := map[string]bool{from: true}
	for todo := []string{from}; len(todo) > 0; {
		s := todo[0]
		todo = todo[1:]
		for _, tr := range registry.Transitions {
			a, b := step(tr)
			if tr.Axis == axis && a == s && !seen[b] {
				seen[b] = true
				todo = append(todo, b)
			}
		}
	}
	return seen
}

func forwards(tr registry.Transition) (string, string)  { return tr.From, tr.To }
func backwards(tr registry.Transition) (string, string) { return tr.To, tr.From }

// TestEveryStateIsReachedAndLeft: there is a way from the first state to each, and from each back to the first.
// pending_approval is where a registration that needs approval begins, so nothing leads to it.
func TestEveryStateIsReachedAndLeft(t *testing.T) {
	if got := len(constants(t, "Axis")); got != len(axes) {
		t.Fatalf("there are %d axes, this test knows %d", got, len(axes))
	}
	for axis, a := range axes {
		to, back := reach(axis, a.first, forwards), reach(axis, a.first, backwards)
		states := constants(t, a.typeName)
		for _, s := range states {
			if !to[s] && s != string(registry.RegistrationPending) {
				t.Errorf("%s: nothing leads from %s to %s", axis, a.first, s)
			}
			if !back[s] {
				t.Errorf("%s: there is no way back from %s to %s", axis, s, a.first)
			}
		}
		for _, tr := range registry.Transitions {
			if tr.Axis == axis && (!slices.Contains(states, tr.From) || !slices.Contains(states, tr.To)) {
				t.Errorf("%s: the row %s → %s names a state that is none", axis, tr.From, tr.To)
			}
			if tr.Who == "" {
				t.Errorf("%s: the row %s → %s does not say who", axis, tr.From, tr.To)
			}
		}
	}
}

func TestEveryTriggerIsUsed(t *testing.T) {
	used := map[string]bool{}
	for _, tr := range registry.Transitions {
		used[string(tr.On)] = true
	}
	for _, on := range constants(t, "Trigger") {
		if !used[on] {
			t.Errorf("no transition is caused by %s", on)
		}
	}
	for on := range used {
		if !slices.Contains(constants(t, "Trigger"), on) {
			t.Errorf("a transition is caused by %s, which is no trigger", on)
		}
	}
}

// next calls Next with the type that belongs to the axis.
func next(axis registry.Axis, from string, on registry.Trigger) (string, error) {
	switch axis {
	case registry.AxisArtifact:
		to, err := registry.Next(registry.ArtifactState(from), on)
		return string(to), err
	case registry.AxisRegistration:
		to, err := registry.Next(registry.RegistrationState(from), on)
		return string(to), err
	case registry.AxisRuntime:
	}
	to, err := registry.Next(registry.RuntimeState(from), on)
	return string(to), err
}

// TestNextIsTheTable: for every axis, state and trigger, Next says what the table says and refuses the rest.
func TestNextIsTheTable(t *testing.T) {
	for axis, a := range axes {
		for _, from := range constants(t, a.typeName) {
			for _, on := range constants(t, "Trigger") {
				want := ""
				for _, tr := range registry.Transitions {
					if tr.Axis == axis && tr.From == from && string(tr.On) == on {
						want = tr.To
					}
				}
				got, err := next(axis, from, registry.Trigger(on))
				switch {
				case want == "" && (registry.CodeOf(err) != registry.CodeBadState || got != from):
					t.Errorf("%s: %s in %s gave %s, %v; want %s and bad_state", axis, on, from, got, err, from)
				case want != "" && (err != nil || got != want):
					t.Errorf("%s: %s in %s gave %s, %v; want %s", axis, on, from, got, err, want)
				}
			}
		}
		for _, tr := range registry.Transitions {
			if tr.Axis == axis && tr.From == a.first {
				if got, err := next(axis, "", tr.On); err != nil || got != tr.To {
					t.Errorf("%s: %s in the zero state gave %s, %v; want %s", axis, tr.On, got, err, tr.To)
				}
			}
		}
	}
}

// TestRandomWalks: whatever happens in whatever order, the design's promises about the runtime axis hold.
func TestRandomWalks(t *testing.T) {
	triggers := constants(t, "Trigger")
	rapid.Check(t, func(t *rapid.T) {
		state := registry.RuntimeStopped
		reserved := false
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			on := registry.Trigger(rapid.SampledFrom(triggers).Draw(t, "trigger"))
			to, err := registry.Next(state, on)
			if err != nil {
				if to != state {
					t.Fatalf("a refused %s moved %s to %s", on, state, to)
				}
				continue
			}
			// Memory is reserved by the planner alone, and given up only when the process is known to be gone.
			if !reserved && to.HoldsMemory() && on != registry.TriggerAdmit {
				t.Fatalf("%s took %s to %s, which holds memory that nobody reserved", on, state, to)
			}
			if reserved && !to.HoldsMemory() && !slices.Contains([]registry.Trigger{registry.TriggerGone, registry.TriggerFail, registry.TriggerCrash, registry.TriggerLost}, on) {
				t.Fatalf("%s took %s to %s, and the process may still hold its memory", on, state, to)
			}
			// A model answers only after a loader said so, or was found answering.
			if to == registry.RuntimeReady && !slices.Contains([]registry.Trigger{registry.TriggerAnswer, registry.TriggerWake, registry.TriggerReattach}, on) {
				t.Fatalf("%s took %s to ready", on, state)
			}
			state, reserved = to, to.HoldsMemory()
		}
	})
}

// TestEveryRuntimeStateSurvivesARestart: the reconciler can do something with whatever it finds in the database.
func TestEveryRuntimeStateSurvivesARestart(t *testing.T) {
	resting := []string{string(registry.RuntimeStopped), string(registry.RuntimeFailed)}
	for _, s := range constants(t, "RuntimeState") {
		to, err := registry.Next(registry.RuntimeState(s), registry.TriggerLost)
		if slices.Contains(resting, s) {
			continue
		}
		if err != nil || to != registry.RuntimeStopped {
			t.Errorf("%s lost is %s, %v; want stopped", s, to, err)
		}
	}
}

func TestHoldsMemory(t *testing.T) {
	want := []string{"draining", "ready", "sleeping", "starting", "stopping"}
	var got []string
	for _, s := range constants(t, "RuntimeState") {
		if registry.RuntimeState(s).HoldsMemory() {
			got = append(got, s)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("these hold memory: %v, want %v", got, want)
	}
}

// TestDeriveStatus: every combination has a status, every status comes up, and what runs is never hidden by what
// was decided about the registration since.
func TestDeriveStatus(t *testing.T) {
	seen := map[registry.Status]bool{}
	for _, reg := range append(constants(t, "RegistrationState"), "") {
		for _, art := range append(constants(t, "ArtifactState"), "") {
			for _, run := range append(constants(t, "RuntimeState"), "") {
				s := registry.DeriveStatus(registry.RegistrationState(reg), registry.ArtifactState(art), registry.RuntimeState(run))
				if !slices.Contains(registry.Statuses, s) {
					t.Errorf("%s, %s, %s: %q is no status", reg, art, run, s)
				}
				if registry.RuntimeState(run).HoldsMemory() && slices.Contains([]registry.Status{registry.StatusArchived, registry.StatusPending, registry.StatusNotLoaded}, s) {
					t.Errorf("%s, %s, %s: %q hides that it holds memory", reg, art, run, s)
				}
				seen[s] = true
			}
		}
	}
	for _, s := range registry.Statuses {
		if !seen[s] {
			t.Errorf("nothing has the status %s", s)
		}
	}
	for _, c := range []struct {
		reg  registry.RegistrationState
		art  registry.ArtifactState
		run  registry.RuntimeState
		want registry.Status
	}{
		{"", "", "", registry.StatusNotLoaded},
		{registry.RegistrationDeprecated, registry.ArtifactPresent, registry.RuntimeStopped, registry.StatusNotLoaded},
		{registry.RegistrationPending, "", registry.RuntimeStopped, registry.StatusPending},
		{registry.RegistrationArchived, "", "", registry.StatusArchived},
		{registry.RegistrationActive, registry.ArtifactFetching, registry.RuntimeQueued, registry.StatusFetching},
		{registry.RegistrationActive, registry.ArtifactPresent, registry.RuntimeQueued, registry.StatusQueued},
		{registry.RegistrationArchived, registry.ArtifactPresent, registry.RuntimeReady, registry.StatusReady},
		{registry.RegistrationActive, registry.ArtifactPresent, registry.RuntimeStarting, registry.StatusLoading},
		{registry.RegistrationActive, registry.ArtifactPresent, registry.RuntimeDraining, registry.StatusUnloading},
		{registry.RegistrationActive, registry.ArtifactPresent, registry.RuntimeStopping, registry.StatusUnloading},
		{registry.RegistrationActive, registry.ArtifactPresent, registry.RuntimeSleeping, registry.StatusSleeping},
		{registry.RegistrationActive, registry.ArtifactPresent, registry.RuntimeBackoff, registry.StatusRetrying},
		{registry.RegistrationActive, registry.ArtifactFailed, registry.RuntimeFailed, registry.StatusFailed},
	} {
		if got := registry.DeriveStatus(c.reg, c.art, c.run); got != c.want {
			t.Errorf("%s, %s, %s is %s, want %s", c.reg, c.art, c.run, got, c.want)
		}
	}
}
