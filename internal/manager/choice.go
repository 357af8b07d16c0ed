package manager

import (
	"fmt"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// choiceInput is all that the choice of an engine looks at. It is a value, as the planner's is.
type choiceInput struct {
	model   registry.Model
	device  registry.Device // what is asked for now: the model's preference, or that of the load request
	facts   registry.Facts  // what is known of the files, often nothing
	gpu     bool            // there is a usable GPU that the model may use
	engines []engineOption  // in the order in which auto prefers them
}

// engineOption is one engine as the choice sees it.
type engineOption struct {
	info    loaders.Info
	version loaders.Version
	problem string // why it cannot be used on this host; "" when it can
	unseen  bool   // it has not said yet whether it can be used
	// judge says what speaks against the model on a kind of device; nil when the engine has nothing to say.
	judge func(registry.Device) loaders.Objection
}

// How much speaks against an engine. The least is chosen; among equals the first.
const (
	fine      = iota
	missesGPU // it would run on the CPU beside a GPU that is free to use
	doubtful  // it may refuse the model
	doubtfulAndMissesGPU
	unfit    // it will refuse the model; taken only when all will, so that it says why
	unusable // it does not load such models, or is not here
)

// chooseAmong says which engine loads a model, as its index, -1 when none can; and of each why it was chosen or not. A
// model that names an engine gets that one, with what speaks against it.
func chooseAmong(in choiceInput) (int, []registry.EngineVerdict) {
	verdicts := make([]registry.EngineVerdict, len(in.engines))
	ranks := make([]int, len(in.engines))
	for i, e := range in.engines {
		ranks[i], verdicts[i].Why = in.judge(e)
		verdicts[i].Engine, verdicts[i].Title = e.info.Name, e.info.Title
	}
	auto := in.model.Engine == "" || in.model.Engine == registry.EngineAuto
	chosen := -1
	for i, e := range in.engines {
		switch {
		case !auto && e.info.Name == in.model.Engine && chosen < 0:
			chosen = i
		case auto && !e.info.OnlyNamed && ranks[i] < unusable && (chosen < 0 || ranks[i] < ranks[chosen]):
			chosen = i
		}
	}
	if chosen >= 0 && !auto && ranks[chosen] == unusable {
		chosen = -1
	}
	for i, e := range in.engines {
		v := &verdicts[i]
		switch {
		case i == chosen && !auto:
			why := "the model asks for it"
			if v.Why != "" {
				why += "; it " + v.Why
			}
			v.Chosen, v.Why = true, why
		case i == chosen:
			v.Chosen, v.Why = true, in.whyChosen(chosen, ranks, v.Why)
		case e.info.OnlyNamed:
			v.Why = "runs only models that name it"
		case ranks[i] == unfit || ranks[i] == unusable:
		case chosen >= 0 && !auto:
			v.Would, v.Why = true, "could load it, too; the model asks for "+in.engines[chosen].info.Title
		case chosen >= 0:
			v.Would = true
			if v.Why == "" {
				v.Why = "could load it, too; " + in.engines[chosen].info.Title + " is preferred"
			}
		default: // the one that the model names cannot
			v.Would, v.Why = true, "could load it"
		}
	}
	return chosen, verdicts
}

// judge says how much speaks against an engine, and what; "" when nothing does.
func (in choiceInput) judge(e engineOption) (int, string) {
	m := in.model
	switch {
	case !slices.Contains(e.info.Sources, m.SourceType):
		return unusable, "does not load from " + string(m.SourceType)
	case !slices.Contains(e.info.Formats, m.ModelFormat):
		return unusable, fmt.Sprintf("does not load %s; it loads %s", m.ModelFormat, joinFormats(e.info.Formats))
	case e.unseen:
		return unusable, "has not answered yet whether it can be used here"
	case e.problem != "":
		return unusable, "would load " + string(m.ModelFormat) + " and cannot be used here: " + e.problem
	}
	if strange := unknownParams(m, e.info); strange != "" {
		return unfit, strange
	}
	device, problem := in.deviceOn(e)
	if problem != "" {
		return unfit, problem
	}
	rank, why := fine, ""
	if in.gpu && in.device == registry.DeviceAuto && device == registry.DeviceCPU {
		rank, why = missesGPU, "would run on the CPU: as it is installed here it cannot use the GPU"
	}
	if e.judge == nil {
		return rank, why
	}
	switch o := e.judge(device); {
	case o.Why == "":
		return rank, why
	case o.Sure:
		return unfit, o.Why
	default:
		return rank + doubtful, o.Why
	}
}

// refusal is why the engine that was chosen cannot run the model after all, and what would work: an objection that is sure
// and knows better. nil when it may try. CodeUnsupported.
func (in choiceInput) refusal(chosen int, verdicts []registry.EngineVerdict) error {
	e := in.engines[chosen]
	device, problem := in.deviceOn(e)
	if e.judge == nil || problem != "" || unknownParams(in.model, e.info) != "" {
		return nil
	}
	o := e.judge(device)
	if !o.Sure || o.Hint == "" {
		return nil
	}
	var others []string
	for _, v := range verdicts {
		if v.Would {
			others = append(others, v.Title)
		}
	}
	hint := o.Hint
	if len(others) > 0 {
		hint = joinAnd(others) + " could load it as it is: set engine to auto. " + hint
	}
	f := &registry.Failure{Kind: registry.FailureUnsupported, Msg: e.info.Title + " " + o.Why + ".", Hint: hint}
	return &registry.Error{Code: registry.CodeUnsupported, Op: "manager.chooseEngine", Msg: f.Msg + " " + f.Hint, Failure: f}
}

// deviceOn is the kind of device that a model would run on with an engine, by the planner's rule; or why there is none.
func (in choiceInput) deviceOn(e engineOption) (registry.Device, string) {
	cuda, cpu := slices.Contains(e.version.Devices, registry.DeviceCUDA), slices.Contains(e.version.Devices, registry.DeviceCPU)
	switch {
	case in.device == registry.DeviceCUDA && !cuda:
		return "", "cannot use CUDA as it is installed here"
	case in.device == registry.DeviceCUDA, in.device == registry.DeviceAuto && cuda && in.gpu:
		return registry.DeviceCUDA, ""
	case !cpu && in.device == registry.DeviceCPU:
		return "", "cannot run on the CPU as it is installed here"
	case !cpu:
		return "", "needs a GPU as it is installed here, and there is none to use"
	}
	return registry.DeviceCPU, ""
}

// unknownParams says which of the model's loader settings an engine does not understand.
func unknownParams(m registry.Model, info loaders.Info) string {
	var strange []string
	for name := range m.CustomLoaderParams {
		if !params.OfSource(name) && !slices.ContainsFunc(info.Params, func(p loaders.Param) bool { return p.Name == name }) {
			strange = append(strange, name)
		}
	}
	if len(strange) == 0 {
		return ""
	}
	slices.Sort(strange)
	return "does not understand the loader setting " + strings.Join(strange, ", ")
}

// whyChosen says why auto took an engine. against is what speaks against it all the same.
func (in choiceInput) whyChosen(chosen int, ranks []int, against string) string {
	var rivals, blind []string
	for i, e := range in.engines {
		switch {
		case i == chosen || e.info.OnlyNamed || ranks[i] >= unfit:
		case ranks[i] == missesGPU && ranks[chosen] == fine && i < chosen:
			blind = append(blind, e.info.Title)
		default:
			rivals = append(rivals, e.info.Title)
		}
	}
	format := string(in.model.ModelFormat)
	switch {
	case in.model.SourceType == registry.SourceExternal:
		return "runs elsewhere"
	case ranks[chosen] == unfit:
		return "nothing better is here, although it " + against
	case against != "" && ranks[chosen] >= doubtful:
		return "the best that is here for " + format + ", although it " + against
	case len(blind) > 0:
		return fmt.Sprintf("loads %s and can use the GPU, which %s cannot as installed here", format, joinAnd(blind))
	case len(rivals) == 0:
		why := "the only engine here that loads " + format
		if against != "" {
			why += "; it " + against
		}
		return why
	}
	for i := range chosen {
		if e := in.engines[i]; !e.info.OnlyNamed && (ranks[i] == unfit || ranks[i] == doubtful || ranks[i] == doubtfulAndMissesGPU) {
			return fmt.Sprintf("loads this model, which %s may not", e.info.Title)
		}
	}
	return fmt.Sprintf("loads %s, and is preferred to %s", format, joinAnd(rivals))
}
