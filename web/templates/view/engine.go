package view

import (
	"fmt"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Engines is what runs models here.
type Engines struct {
	Page
	Can     Can
	Engines []Engine
}

// Engine is one engine and what is under way with it.
type Engine struct {
	registry.EngineStatus
	Job *Operation // under way, or the last installation if that failed and the engine still cannot be used
}

// Busy reports whether something is under way with the engine.
func (e Engine) Busy() bool { return e.Job != nil && !e.Job.State.Final() }

// Status is whether the engine can be used, as a dot and a word.
func (e Engine) Status() Status {
	switch {
	case e.Busy():
		s := e.Job.Status()
		s.Label = map[registry.OperationKind]string{registry.OperationInstall: "Installing", registry.OperationRemove: "Removing", registry.OperationSelfTest: "Testing"}[e.Job.Kind]
		return s
	case e.Usable && !e.Here():
		return Status{"ready", "Built in"}
	case e.Usable:
		return Status{"ready", "Usable"}
	case e.Pending:
		return Status{"busy", "Being asked"}
	}
	return Status{Label: "Not here"}
}

// Loads says in one line what it loads and where that runs: "GGUF on the CPU and on GPUs".
func (e Engine) Loads() string {
	if !e.Here() {
		return "Models that run at services with the OpenAI API"
	}
	if len(e.Formats) == 0 {
		return "What its commands are defined for"
	}
	return FormatNames(e.Formats) + " " + runsOn(e.RunsOn)
}

func runsOn(ds []registry.Device) string {
	cpu, gpu := false, false
	for _, d := range ds {
		cpu, gpu = cpu || d == registry.DeviceCPU, gpu || d == registry.DeviceCUDA
	}
	switch {
	case cpu && gpu:
		return "on the CPU and on GPUs"
	case gpu:
		return "on GPUs"
	}
	return "on the CPU"
}

// Line says where it is, or why it is not here.
func (e Engine) Line() string {
	switch {
	case e.Busy():
		return ""
	case e.Problem != "":
		return e.Problem
	case !e.Here():
		return "Nothing runs on this machine."
	}
	return e.Path
}

// BuildRunsOn says what the build that is here can use.
func (e Engine) BuildRunsOn() string {
	s := strings.TrimPrefix(runsOn(e.Devices), "on ")
	switch gpu := slices.Contains(e.Devices, registry.DeviceCUDA); {
	case len(e.Devices) == 0 || len(e.Devices) >= len(e.RunsOn):
	case gpu:
		s += "; a build for the CPU could run there, too"
	default:
		s += "; a build with CUDA could use GPUs, too"
	}
	return s
}

// FormatNames writes formats for people.
func FormatNames(fs []registry.Format) string { return joined(fs, FormatName) }

// SourceNames writes sources for people.
func SourceNames(ss []registry.SourceType) string { return joined(ss, SourceName) }

// APINames writes kinds of requests for people.
func APINames(as []registry.API) string {
	return joined(as, func(a registry.API) string { return string(a) })
}

func joined[T any](list []T, name func(T) string) string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = name(x)
	}
	return strings.Join(out, ", ")
}

// EnginePage is the page of one engine.
type EnginePage struct {
	Page
	Engine
	Can     Can
	Test    *Operation // the last self-test that has ended
	Uses    []registry.EngineUse
	History []Operation
	Asking  bool   // the question before a removal is shown
	Which   string // the version that it is about; "" all
}

// usesShown is how many models are named on an engine's page.
const usesShown = 12

// UsesShown are the models that are named.
func (p EnginePage) UsesShown() []registry.EngineUse { return p.Uses[:min(len(p.Uses), usesShown)] }

// UsesMore is how many more there are, in words; "" none.
func (p EnginePage) UsesMore() string {
	if n := len(p.Uses) - usesShown; n > 0 {
		return fmt.Sprintf("and %d more", n)
	}
	return ""
}

// UseStatus is the state of a model that uses an engine.
func UseStatus(u registry.EngineUse) Status {
	return StatusOf(registry.DeriveStatus(registry.RegistrationActive, "", u.State), 0, 0)
}

// UseWhy says why a model uses the engine.
func UseWhy(u registry.EngineUse) string {
	if u.Named {
		return "asks for it"
	}
	return "chosen by auto"
}

// CanTest reports whether a self-test may be asked for.
func (p EnginePage) CanTest() bool {
	return p.Can.Test && !p.Busy() && p.Usable && (p.Here() || len(p.Uses) > 0)
}

// TestSays says what a self-test of the engine does.
func (p EnginePage) TestSays() string {
	switch {
	case !p.Here() && len(p.Uses) == 0:
		return "A test asks the services of registered models. None is registered yet."
	case !p.Here():
		return "A test asks the service of each registered model whether it answers and has the model."
	case p.OnlyNamed:
		return "A test looks whether each command’s program can be run, and asks it for its version."
	case p.Usable:
		return "A test makes a tiny model with random weights, loads it as any other, asks it once and unloads it. It needs no network and leaves nothing behind."
	}
	return "Once it is here, a test can load a tiny model with it."
}

// Bytes is what its installed versions take on the disk; 0 when that is not known.
func (p EnginePage) Bytes() int64 {
	var n int64
	for _, v := range p.Installed {
		n += v.Bytes
	}
	return n
}

// InstalledNote says what an installed version takes on the disk, and whether it is the one that is used.
func InstalledNote(v registry.InstalledEngine) string {
	var parts []string
	if v.Bytes > 0 {
		parts = append(parts, Bytes(v.Bytes))
	}
	if v.InUse {
		parts = append(parts, "in use")
	}
	return strings.Join(parts, ", ")
}

// RemoveSays says what a removal takes away.
func (p EnginePage) RemoveSays() string {
	freed, name := p.Bytes(), p.Title
	for _, v := range p.Installed {
		if v.Version == p.Which {
			freed, name = v.Bytes, p.Title+" "+v.Version
		}
	}
	s := "What was installed from here is deleted"
	if freed > 0 {
		s += ", which frees up to " + Bytes(freed)
	}
	s += ". Models stay registered. " + name + " can be installed again at any time."
	return s
}

// Verdict is one engine as a candidate for a model.
type Verdict struct {
	registry.EngineVerdict
	Status Status
}

// Verdicts are the engines as candidates for a model, the chosen one first.
func Verdicts(list []registry.EngineVerdict) []Verdict {
	var chosen, rest []Verdict
	for _, v := range list {
		switch {
		case v.Chosen:
			chosen = append(chosen, Verdict{v, Status{"ready", v.Title}})
		case v.Would:
			rest = append(rest, Verdict{v, Status{"sleeping", v.Title}})
		default:
			rest = append(rest, Verdict{v, Status{"", v.Title}})
		}
	}
	return append(chosen, rest...)
}

// ChosenEngine is the engine that was chosen, "" none.
func ChosenEngine(list []registry.EngineVerdict) string {
	for _, v := range list {
		if v.Chosen {
			return v.Title
		}
	}
	return ""
}

// ParamKind says what a setting takes: a whole number, one of a, b, c.
func ParamKind(p registry.EngineParam) string {
	switch p.Kind {
	case registry.KindInt:
		return "whole number"
	case registry.KindBool:
		return "true or false"
	case registry.KindEnum:
		return strings.Join(p.Opts, ", ")
	case registry.KindStrings:
		return "list of texts"
	case registry.KindMap:
		return "mapping"
	case registry.KindString, registry.KindInts, registry.KindDuration:
	}
	return "text"
}
