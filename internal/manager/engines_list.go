package manager

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// Engines says which engines there are and whether they can be used on this host, in the order in which auto prefers
// them. A test double is left out; Engine tells it.
func (m *Manager) Engines(ctx context.Context) []registry.EngineStatus { return m.engines(ctx, ctx) }

// EnginesSoon is Engines for who would rather not wait: engines that have not answered within pageWait are Pending, and asked
// on. Ask again.
func (m *Manager) EnginesSoon(ctx context.Context) []registry.EngineStatus {
	soon, cancel := context.WithTimeout(ctx, pageWait)
	defer cancel()
	return m.engines(ctx, soon)
}

func (m *Manager) engines(ctx, soon context.Context) []registry.EngineStatus {
	var set []loaders.Loader
	for _, l := range m.Loaders {
		if l.Info().Name != "fake" {
			m.check(l) // all of them at once
			set = append(set, l)
		}
	}
	out := make([]registry.EngineStatus, len(set))
	for i, l := range set {
		out[i] = m.engineStatus(ctx, soon, l)
	}
	return out
}

// Engine is Engines for one, with the programs that it stands for and what its installation takes on the disk. CodeNotFound.
func (m *Manager) Engine(ctx context.Context, name string) (registry.EngineStatus, error) {
	return m.engineInFull(ctx, ctx, name)
}

// EngineSoon is Engine for who would rather not wait; see EnginesSoon. The programs of one that is Pending, or that do not
// answer in time, have no version.
func (m *Manager) EngineSoon(ctx context.Context, name string) (registry.EngineStatus, error) {
	soon, cancel := context.WithTimeout(ctx, pageWait)
	defer cancel()
	return m.engineInFull(ctx, soon, name)
}

func (m *Manager) engineInFull(ctx, soon context.Context, name string) (registry.EngineStatus, error) {
	l, err := m.engine(name)
	if err != nil {
		return registry.EngineStatus{}, err
	}
	st := m.engineStatus(ctx, soon, l)
	if p, ok := l.(loaders.Parts); ok {
		st.Parts = p.Parts(soon)
		st.Pending = st.Pending || soon.Err() != nil && ctx.Err() == nil
	}
	for i := range st.Installed {
		st.Installed[i].Bytes = m.sizes.of(st.Installed[i].Path)
	}
	return st, ctx.Err()
}

// EngineName returns how an engine is called by people. CodeNotFound.
func (m *Manager) EngineName(name string) (string, error) {
	l, err := m.engine(name)
	if err != nil {
		return "", err
	}
	return l.Info().Title, nil
}

// engine returns the loader of that name. CodeNotFound.
func (m *Manager) engine(name string) (loaders.Loader, error) {
	var names []string
	for _, l := range m.Loaders {
		info := l.Info()
		if info.Name == name {
			return l, nil
		}
		if info.Name != "fake" {
			names = append(names, info.Name)
		}
	}
	return nil, registry.Errorf(registry.CodeNotFound, "There is no engine named %q. There are %s", name, joinAnd(names))
}

// engineStatus waits for the engine until soon ends, which ends with ctx.
func (m *Manager) engineStatus(ctx, soon context.Context, l loaders.Loader) registry.EngineStatus {
	info := l.Info()
	st := registry.EngineStatus{
		Name: info.Name, Title: info.Title, HowToGet: info.HowToGet, Sources: info.Sources, Formats: info.Formats, RunsOn: info.Devices, APIs: info.APIs,
		CanSleep: info.CanSleep, Experimental: info.Experimental, OnlyNamed: info.OnlyNamed,
	}
	for _, p := range info.Params {
		st.Params = append(st.Params, registry.EngineParam{Name: p.Name, Kind: p.Kind, Opts: p.Opts, Help: p.Help})
	}
	v, err := m.check(l).wait(soon)
	if errors.Is(err, errNotYet) && ctx.Err() == nil {
		st.Pending, st.Problem = true, "It was asked for its version and has not answered yet."
	} else if err != nil {
		st.Problem = registry.AsError(err).Error()
	} else {
		st.Usable, st.Version, st.Path, st.Devices = true, v.Version, v.Path, v.Devices
	}
	if ins, ok := l.(Installer); ok && m.EngineDir != "" {
		st.Installable, st.Offered = true, ins.Offered()
		st.Installed = m.installed(info.Name, v.Path)
		if len(st.Installed) > 0 && st.Usable && slices.ContainsFunc(st.Installed, func(e registry.InstalledEngine) bool { return e.InUse && olderVersion(e.Version, st.Offered) }) {
			st.Upgrade = st.Offered
		}
	}
	return st
}

// installed lists the versions of an engine that were installed from here, newest first. used is the program that is used.
func (m *Manager) installed(name, used string) []registry.InstalledEngine {
	entries, err := os.ReadDir(filepath.Join(m.EngineDir, name))
	if err != nil {
		return nil
	}
	var out []registry.InstalledEngine
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		dir := filepath.Join(m.EngineDir, name, e.Name())
		out = append(out, registry.InstalledEngine{Version: e.Name(), Path: dir, InUse: strings.HasPrefix(used, dir+string(filepath.Separator))})
	}
	slices.SortFunc(out, func(a, b registry.InstalledEngine) int {
		switch {
		case olderVersion(a.Version, b.Version):
			return 1
		case olderVersion(b.Version, a.Version):
			return -1
		}
		return cmp.Compare(a.Version, b.Version)
	})
	return out
}

// olderVersion orders versions by their numbers: 9.9 before 9.10. What is no number orders as text.
func olderVersion(a, b string) bool {
	as, bs := strings.FieldsFunc(a, notPart), strings.FieldsFunc(b, notPart)
	for i := range min(len(as), len(bs)) {
		x, errX := strconv.ParseUint(as[i], 10, 64)
		y, errY := strconv.ParseUint(bs[i], 10, 64)
		switch {
		case errX == nil && errY == nil && x != y:
			return x < y
		case (errX != nil || errY != nil) && as[i] != bs[i]:
			return as[i] < bs[i]
		}
	}
	return len(as) < len(bs)
}

func notPart(r rune) bool { return r == '.' || r == '-' || r == '+' || r == '_' }

// maxUses bounds how many models are looked at for who uses an engine.
const maxUses = 1000

// EngineUses lists the models that use an engine: those that are loaded with it, that name it, and that auto would load
// with it as far as is known without looking at their files. It looks at the first thousand models of teams; nil is all.
func (m *Manager) EngineUses(ctx context.Context, name string, teams []string) ([]registry.EngineUse, error) {
	if _, err := m.engine(name); err != nil {
		return nil, err
	}
	var out []registry.EngineUse
	q := store.ListQuery{Teams: teams, NoTotal: true, Limit: store.MaxLimit}
	for seen := 0; seen < maxUses; {
		page, err := m.List(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, l := range page.Items {
			u := registry.EngineUse{ModelID: l.ModelID, Team: l.Team, State: cmp.Or(l.Runtime.State, registry.RuntimeStopped), Named: l.Record.Engine == name}
			engine := l.Record.Engine
			switch {
			case l.Runtime.State.HoldsMemory() && l.Runtime.Engine != "":
				engine = l.Runtime.Engine
			case engine == "" || engine == registry.EngineAuto:
				if engine, err = m.wouldUse(ctx, l.Record); err != nil {
					return nil, err
				}
			}
			if engine == name {
				out = append(out, u)
			}
		}
		seen += len(page.Items)
		if q.After = page.Next; q.After == "" {
			break
		}
	}
	slices.SortStableFunc(out, func(a, b registry.EngineUse) int {
		return cmp.Compare(rankUse(a), rankUse(b)) // those that run first; each kind stays in the order of names
	})
	return out, nil
}

func rankUse(u registry.EngineUse) int {
	if u.State.HoldsMemory() {
		return 0
	}
	return 1
}

// wouldUse is the engine that auto would choose for a model, "" for none.
func (m *Manager) wouldUse(ctx context.Context, rec registry.Record) (string, error) {
	art, _, err := m.store.Artifact(ctx, rec.ModelID)
	if err != nil {
		return "", err
	}
	eng, err := m.chooseEngine(ctx, rec.Model, "", art.Facts, m.Hardware.Latest())
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", nil //nolint:nilerr // no engine is an answer, too
	}
	return eng.info.Name, nil
}

// WhyEngine says of each engine why it is, or would be, the one that a registered model is loaded with, or not; from what
// is known of its files without looking at them again. The error is the context's or the registry's.
func (m *Manager) WhyEngine(ctx context.Context, model registry.Model) ([]registry.EngineVerdict, error) {
	art, _, err := m.store.Artifact(ctx, model.ModelID)
	if err != nil {
		return nil, err
	}
	eng, err := m.chooseEngine(ctx, model, "", art.Facts, m.Hardware.Latest())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	v := m.peek(model.ModelID)
	if err != nil || v == nil || v.inst == nil || v.rt.Engine == "" || v.rt.Engine == eng.info.Name {
		return eng.verdicts, nil //nolint:nilerr // the verdicts say why there is none
	}
	// Since it was loaded another engine came, or the model was changed.
	for i := range eng.verdicts {
		switch e := &eng.verdicts[i]; {
		case e.Engine == v.rt.Engine:
			e.Chosen, e.Would, e.Why = true, false, "it was loaded with it; "+eng.info.Title+" would be chosen now"
		case e.Chosen:
			e.Chosen, e.Would, e.Why = false, true, "would be chosen now: "+e.Why
		}
	}
	return eng.verdicts, nil
}

func whyOf(verdicts []registry.EngineVerdict) string {
	for _, v := range verdicts {
		if v.Chosen {
			return v.Why
		}
	}
	return ""
}

// sizeBook remembers what folders take on the disk: an environment of Python's has tens of thousands of files. Installed
// versions do not change; one that is removed is never asked for again.
type sizeBook struct {
	mu    sync.Mutex
	known map[string]int64
}

func (b *sizeBook) of(dir string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.known[dir]; ok {
		return n
	}
	n := diskUsage(dir)
	if b.known == nil {
		b.known = map[string]int64{}
	}
	b.known[dir] = n
	return n
}

func (b *sizeBook) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known = nil
}

// diskUsage adds up the files of a folder, in bytes. What cannot be read counts nothing.
func diskUsage(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what can be counted is counted
		}
		if d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				sum += fi.Size()
			}
		}
		return nil
	})
	return sum
}
