package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Installer is a loader whose engine this program can install by itself.
type Installer interface {
	// Install makes the engine usable, below dir. It is resumable and leaves either a working engine or none.
	Install(ctx context.Context, dir string, report func(registry.Progress)) error
}

// chosenEngine is the answer to "which engine runs this model, and why".
type chosenEngine struct {
	loader  loaders.Loader
	info    loaders.Info
	version loaders.Version
	why     string
}

// chooseEngine applies a model's engine field: the one named, or with auto the first that can load the format from the
// source and is usable on this host.
func (m *Manager) chooseEngine(ctx context.Context, model registry.Model) (chosenEngine, error) {
	missing := func(what, hint string) error {
		return &registry.Error{Code: registry.CodeLoadingFailed, Op: "manager.chooseEngine", Msg: what + " " + hint,
			Failure: &registry.Failure{Kind: registry.FailureEngineMissing, Msg: what, Hint: hint}}
	}
	if model.Engine != "" && model.Engine != registry.EngineAuto {
		for _, l := range m.Loaders {
			info := l.Info()
			if info.Name != model.Engine {
				continue
			}
			if !slices.Contains(info.Sources, model.SourceType) {
				return chosenEngine{}, missing(fmt.Sprintf("%s does not run models from %s.", info.Title, model.SourceType), "Set engine to auto.")
			}
			if !slices.Contains(info.Formats, model.ModelFormat) {
				return chosenEngine{}, missing(fmt.Sprintf("%s cannot load %s.", info.Title, model.ModelFormat), "Set engine to auto, or register a version in a format that it loads: "+joinFormats(info.Formats)+".")
			}
			v, err := l.Check(ctx)
			if err != nil {
				return chosenEngine{}, missing(info.Title+" is not usable on this machine: "+registry.AsError(err).Error(), info.HowToGet)
			}
			return chosenEngine{l, info, v, "asked for"}, nil
		}
		return chosenEngine{}, missing(fmt.Sprintf("The engine %s is not part of this version.", model.Engine), "Set engine to auto.")
	}
	var unusable []string
	hint := ""
	for _, l := range m.Loaders {
		info := l.Info()
		if info.Name == "fake" || info.OnlyNamed || !slices.Contains(info.Formats, model.ModelFormat) || !slices.Contains(info.Sources, model.SourceType) {
			continue
		}
		v, err := l.Check(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return chosenEngine{}, ctx.Err()
			}
			unusable = append(unusable, info.Title)
			hint = info.HowToGet
			continue
		}
		return chosenEngine{l, info, v, fmt.Sprintf("auto: loads %s", model.ModelFormat)}, nil
	}
	if len(unusable) > 0 {
		return chosenEngine{}, missing(fmt.Sprintf("No engine for %s is installed here; %s could load it.", model.ModelFormat, strings.Join(unusable, " or ")), hint)
	}
	return chosenEngine{}, missing(fmt.Sprintf("No engine of this version loads %s from %s.", model.ModelFormat, model.SourceType), "The gguf format works with llama.cpp.")
}

func joinFormats(fs []registry.Format) string {
	out := make([]string, len(fs))
	for i, f := range fs {
		out[i] = string(f)
	}
	return strings.Join(out, ", ")
}

// Engines says which engines there are and whether they can be used on this host.
func (m *Manager) Engines(ctx context.Context) []registry.EngineStatus {
	out := make([]registry.EngineStatus, 0, len(m.Loaders))
	for _, l := range m.Loaders {
		info := l.Info()
		if info.Name == "fake" {
			continue // a test double; it works when a model names it
		}
		st := registry.EngineStatus{Name: info.Name, Title: info.Title, HowToGet: info.HowToGet, Formats: info.Formats, Experimental: info.Experimental}
		_, st.Installable = l.(Installer)
		v, err := l.Check(ctx)
		if err != nil {
			st.Problem = registry.AsError(err).Error()
		} else {
			st.Usable, st.Version, st.Path, st.Devices = true, v.Version, v.Path, v.Devices
		}
		out = append(out, st)
	}
	return out
}

// ForPeople leaves out the lines of an engine's log that it writes for its loader.
func (m *Manager) ForPeople(lines []string) []string {
	var noise []string
	for _, l := range m.Loaders {
		noise = append(noise, l.Info().LogNoise...)
	}
	out := lines[:0:0]
	for _, line := range lines {
		if !slices.ContainsFunc(noise, func(p string) bool { return strings.HasPrefix(line, p) }) {
			out = append(out, line)
		}
	}
	return out
}

// install is an installation under way.
type install struct {
	track  *tracker
	cancel context.CancelFunc
}

// InstallEngine installs an engine in the background. A second call while it runs gives the same operation.
// CodeNotFound for a name that there is none of, CodeUnsupported when it cannot be installed from here.
func (m *Manager) InstallEngine(ctx context.Context, name, actor string) (registry.Operation, error) {
	for _, l := range m.Loaders {
		info := l.Info()
		if info.Name != name || name == "fake" {
			continue
		}
		ins, ok := l.(Installer)
		if !ok {
			return registry.Operation{}, registry.Errorf(registry.CodeUnsupported, "%s cannot be installed from here. %s", info.Title, info.HowToGet)
		}
		t := m.newOperation(registry.OperationInstall, name, actor, "asked for", []registry.StageName{registry.StageFetch, registry.StageVerify, registry.StageEngine, registry.StageReady})
		run, cancel := context.WithCancel(m.ctx)
		got, loaded := m.installs.LoadOrStore(name, &install{t, cancel})
		if loaded {
			cancel()
			m.live.Delete(t.op.ID)
			return got.(*install).track.snapshot(), nil
		}
		if err := t.save(); err != nil {
			cancel()
			m.installs.Delete(name)
			m.live.Delete(t.op.ID)
			return registry.Operation{}, err
		}
		m.goWork(func() {
			defer cancel()
			err := ins.Install(run, m.EngineDir, t.report)
			m.installs.Delete(name)
			if run.Err() != nil {
				err = context.Canceled
			}
			outcome := ""
			if err == nil {
				outcome = info.Title + " is installed."
			}
			t.finish(err, outcome)
			for _, st := range m.Engines(m.ctx) {
				if st.Name == name {
					m.bus.Publish(registry.EventEngine, name, st)
				}
			}
		})
		return t.snapshot(), nil
	}
	return registry.Operation{}, registry.Errorf(registry.CodeNotFound, "There is no engine named %q", name)
}
