package manager

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Installer is a loader whose engine this program can install by itself.
type Installer = loaders.Installer

// chosenEngine is the answer to "which engine runs this model, and why".
type chosenEngine struct {
	loader   loaders.Loader
	info     loaders.Info
	version  loaders.Version
	why      string
	verdicts []registry.EngineVerdict // of all engines, also when none was chosen
}

// chooseEngine applies a model's engine field: the one named, or with auto the best that is usable on this host for its
// source, format, architecture and device. See chooseAmong.
func (m *Manager) chooseEngine(ctx context.Context, model registry.Model, device registry.Device, facts registry.Facts, sample registry.Sample) (chosenEngine, error) {
	in := choiceInput{model: model, device: cmp.Or(device, model.DevicePreference, registry.DeviceAuto), facts: facts, gpu: len(usableGPUs(PlanInput{Model: model, Sample: sample})) > 0}
	var set []loaders.Loader
	for _, l := range m.Loaders {
		// A test double is used only by models that name it.
		if info := l.Info(); info.Name == model.Engine || info.Name != "fake" {
			set = append(set, l)
			in.engines = append(in.engines, engineOption{info: info})
		}
	}
	if err := m.checkEngines(ctx, in, set); err != nil {
		return chosenEngine{}, err
	}
	i, verdicts := chooseAmong(in)
	if i >= 0 {
		if err := in.refusal(i, verdicts); err != nil {
			return chosenEngine{verdicts: verdicts}, err
		}
		return chosenEngine{set[i], in.engines[i].info, in.engines[i].version, verdicts[i].Why, verdicts}, nil
	}
	if slow := in.unseen(); slow != "" {
		f := &registry.Failure{Kind: registry.FailureHang, Msg: fmt.Sprintf("%s did not say within %s whether it can be used on this machine.", slow, checkedWait),
			Hint: "Try again in a minute. If it stays so, ask the engine's program for its version by hand: it may hang in a driver or on a disk."}
		return chosenEngine{verdicts: verdicts}, &registry.Error{Code: registry.CodeLoadingFailed, Op: "manager.chooseEngine", Msg: f.Msg + " " + f.Hint, Failure: f}
	}
	what, hint := in.noEngine()
	return chosenEngine{verdicts: verdicts}, &registry.Error{Code: registry.CodeLoadingFailed, Op: "manager.chooseEngine", Msg: what + " " + hint,
		Failure: &registry.Failure{Kind: registry.FailureEngineMissing, Msg: what, Hint: hint}}
}

// unseen names the engines that have not answered and might run the model.
func (in choiceInput) unseen() string {
	var slow []string
	for _, e := range in.engines {
		auto := in.model.Engine == "" || in.model.Engine == registry.EngineAuto
		if e.unseen && (auto && !e.info.OnlyNamed || in.model.Engine == e.info.Name) {
			slow = append(slow, e.info.Title)
		}
	}
	return joinAnd(slow)
}

// noEngine says why no engine runs a model, and what to do.
func (in choiceInput) noEngine() (what, hint string) {
	m := in.model
	if m.Engine != "" && m.Engine != registry.EngineAuto {
		for _, e := range in.engines {
			switch info := e.info; {
			case info.Name != m.Engine:
			case !slices.Contains(info.Sources, m.SourceType):
				return fmt.Sprintf("%s does not run models from %s.", info.Title, m.SourceType), "Set engine to auto."
			case !slices.Contains(info.Formats, m.ModelFormat):
				return fmt.Sprintf("%s cannot load %s.", info.Title, m.ModelFormat), "Set engine to auto, or register a version in a format that it loads: " + joinFormats(info.Formats) + "."
			default:
				return info.Title + " is not usable on this machine: " + e.problem, info.HowToGet
			}
		}
		return fmt.Sprintf("The engine %s is not part of this version.", m.Engine), "Set engine to auto."
	}
	var missing []string
	for _, e := range in.engines {
		if e.problem != "" && !e.info.OnlyNamed {
			missing, hint = append(missing, e.info.Title), cmp.Or(hint, e.info.HowToGet) // of the one that auto prefers
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("No engine for %s is installed here; %s could load it.", m.ModelFormat, strings.Join(missing, " or ")), hint
	}
	var formats []string
	for _, f := range registry.Formats {
		if slices.ContainsFunc(in.engines, func(e engineOption) bool {
			return !e.info.OnlyNamed && slices.Contains(e.info.Sources, m.SourceType) && slices.Contains(e.info.Formats, f)
		}) {
			formats = append(formats, string(f))
		}
	}
	what = fmt.Sprintf("No engine of this version loads %s from %s.", m.ModelFormat, m.SourceType)
	if len(formats) == 0 {
		return what, "Put the files in a folder of this machine and set source_type to local."
	}
	return what, fmt.Sprintf("From there %s can be loaded.", joinAnd(formats))
}

func joinFormats(fs []registry.Format) string {
	out := make([]string, len(fs))
	for i, f := range fs {
		out[i] = string(f)
	}
	return strings.Join(out, ", ")
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
