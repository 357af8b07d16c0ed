package view

import (
	"fmt"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Operation is an operation as the console shows it.
type Operation struct {
	registry.Operation
	Now time.Time
}

// OperationOf makes the view of op as of now.
func OperationOf(op registry.Operation, now time.Time) Operation { return Operation{op, now} }

// OperationsOf makes the views of many.
func OperationsOf(ops []registry.Operation, now time.Time) []Operation {
	out := make([]Operation, len(ops))
	for i, op := range ops {
		out[i] = Operation{op, now}
	}
	return out
}

// Verb is what the operation does, in one word.
func (o Operation) Verb() string {
	switch o.Kind {
	case registry.OperationLoad:
		return "Load"
	case registry.OperationUnload:
		return "Unload"
	case registry.OperationFetch:
		return "Fetch"
	case registry.OperationImport:
		return "Import"
	case registry.OperationInstall:
		return "Install"
	case registry.OperationRemove:
		return "Remove"
	case registry.OperationSelfTest:
		return "Test"
	}
	return string(o.Kind)
}

// Status is the operation's state as a dot and a word.
func (o Operation) Status() Status {
	switch o.State {
	case registry.OperationQueued:
		return Status{"wait", "Queued"}
	case registry.OperationRunning:
		if p := o.Percent(); p > 0 {
			return Status{"busy", fmt.Sprintf("Running %d%%", p)}
		}
		return Status{"busy", "Running"}
	case registry.OperationPaused:
		return Status{"wait", "Paused"}
	case registry.OperationSucceeded:
		return Status{"ready", "Done"}
	case registry.OperationFailed:
		return Status{"failed", "Failed"}
	case registry.OperationCancelled:
		return Status{"", "Cancelled"}
	}
	return Status{"", string(o.State)}
}

// URL is the page of what the operation is about, or the operation's own.
func (o Operation) URL() string { return OperationURL(o.ID) }

// SubjectURL is the page of what it is about: a model, or an engine; "" for neither.
func (o Operation) SubjectURL() string {
	switch o.Kind {
	case registry.OperationInstall, registry.OperationRemove, registry.OperationSelfTest:
		return EngineURL(o.Subject)
	case registry.OperationImport:
		return "/yaml"
	case registry.OperationLoad, registry.OperationUnload, registry.OperationFetch:
		if o.Subject != "" {
			return ModelURL(o.Subject)
		}
	}
	return ""
}

// Sentence is the outcome, or what it is doing.
func (o Operation) Sentence() string {
	if o.State.Resting() {
		switch {
		case o.Outcome != "":
			return Sentence(o.Outcome)
		case o.Error != nil:
			return o.Error.Msg
		}
		return o.Status().Label
	}
	if s := o.Running(); s != nil {
		line := StageWord(s.Name)
		if t := StageDetail(*s); t != "" && o.Kind == registry.OperationFetch && s.Name == registry.StageFetch {
			return t // the verb says the rest
		}
		if t := StageDetail(*s); t != "" {
			line += ", " + t
		}
		return line
	}
	return o.Status().Label
}

// Running is the stage that is under way, nil when none is.
func (o Operation) Running() *registry.Stage {
	for i := range o.Stages {
		if o.Stages[i].State == registry.StageRunning {
			return &o.Stages[i]
		}
	}
	return nil
}

// Percent is how far the running stage is; 0 when that is not known.
func (o Operation) Percent() int {
	if s := o.Running(); s != nil {
		return Percent(s.Done, s.Total)
	}
	return 0
}

// Stalled reports whether the running stage has stopped moving.
func (o Operation) Stalled() bool {
	s := o.Running()
	return s != nil && s.Stalled
}

// Took is how long it ran, or has been running.
func (o Operation) Took() string {
	from := o.StartedAt
	if from.IsZero() {
		from = o.CreatedAt
	}
	to := o.EndedAt
	if to.IsZero() {
		to = o.Now
	}
	if from.IsZero() || to.Before(from) {
		return None
	}
	return Duration(to.Sub(from))
}

// Meta is who asked for it, for how long it runs, and what is left.
func (o Operation) Meta() string {
	line := o.Who()
	if s := o.Running(); s != nil && s.ETA > 0 && !s.Stalled {
		left := "about " + Duration(time.Duration(s.ETA)) + " left"
		if line == "" {
			return left
		}
		return line + " · " + left
	}
	return line
}

// Who is who asked for it and for how long it runs.
func (o Operation) Who() string {
	var parts []string
	if o.Cause != "" {
		parts = append(parts, o.Cause)
	}
	if o.Actor != "" && !strings.Contains(o.Cause, o.Actor) {
		parts = append(parts, "by "+ActorName(o.Actor))
	}
	if o.State == registry.OperationQueued {
		parts = append(parts, "waiting for "+o.Took())
	} else if t := o.Took(); t != None {
		parts = append(parts, t)
	}
	return strings.Join(parts, " · ")
}

// ActorName writes who did something: gateway:ci is "ci, by a request".
func ActorName(actor string) string {
	if name, ok := strings.CutPrefix(actor, "gateway:"); ok {
		return name + ", through the API"
	}
	if actor == "manager" {
		return "the manager"
	}
	return actor
}

// Steps is the stages as the row shows them: those that were skipped are left out.
func (o Operation) Steps() []Step {
	var out []Step
	for _, s := range o.Stages {
		if s.State == registry.StageSkipped {
			continue
		}
		st := Step{Word: StageWord(s.Name), Detail: StageDetail(s)}
		switch s.State {
		case registry.StageDone:
			st.Class, st.Percent = "done", 100
			st.Detail = doneDetail(s)
		case registry.StageRunning:
			st.Class, st.Percent, st.Current = "now", Percent(s.Done, s.Total), true
			st.Unknown = s.Total == 0
			if s.Stalled {
				st.Class = "now stalled"
			}
		case registry.StageFailed:
			st.Class, st.Percent = "failed", 100
			st.Detail = "failed"
		case registry.StageWaiting, registry.StageSkipped:
		}
		out = append(out, st)
	}
	return out
}

// Step is one stage of the row.
type Step struct {
	Word    string
	Detail  string
	Class   string // done, now, "now stalled", failed or ""
	Percent int
	Unknown bool // running, and nobody knows how far
	Current bool
}

// StageDetail writes how far a stage is: 1.4 of 2.3 GiB, 241 of 389 tensors, 62%.
func StageDetail(s registry.Stage) string {
	if s.Stalled {
		return "not moving"
	}
	if s.Total <= 0 && s.Done <= 0 {
		return ""
	}
	switch s.Unit {
	case registry.UnitBytes:
		if s.Total > 0 {
			return Bytes(s.Done) + " of " + Bytes(s.Total)
		}
		return Bytes(s.Done)
	case registry.UnitPercent:
		return fmt.Sprintf("%d%%", Percent(s.Done, s.Total))
	case registry.UnitFiles, registry.UnitTensors:
	}
	if s.Total > 0 {
		return Count(s.Done) + " of " + Count(s.Total)
	}
	return Count(s.Done)
}

func doneDetail(s registry.Stage) string {
	switch {
	case s.Unit == registry.UnitBytes && s.Done > 0:
		return Bytes(s.Done)
	case s.Unit == registry.UnitFiles && s.Done > 0:
		return Plural(int(s.Done), "file", "files")
	case !s.StartedAt.IsZero() && s.EndedAt.After(s.StartedAt):
		return Duration(s.EndedAt.Sub(s.StartedAt))
	}
	return ""
}

// StageLine is the running stage in one sentence: "Weights: 241 of 389, 6.1 GiB/s, about 3 s left".
func (o Operation) StageLine() string {
	s := o.Running()
	if s == nil {
		if o.State == registry.OperationQueued {
			return "Waiting for its turn."
		}
		return ""
	}
	parts := []string{}
	if d := StageDetail(*s); d != "" && !s.Stalled {
		if s.Unit == registry.UnitTensors || s.Unit == registry.UnitFiles {
			d += " " + string(s.Unit)
		}
		parts = append(parts, d)
	}
	if r := Rate(s.Rate, s.Unit == registry.UnitBytes); r != "" && !s.Stalled {
		parts = append(parts, r)
	}
	if s.Stalled {
		parts = append(parts, "nothing has moved for a while; it is not ended because of that")
	} else if s.ETA > 0 {
		parts = append(parts, "about "+Duration(time.Duration(s.ETA))+" left")
	}
	if s.Msg != "" {
		parts = append(parts, s.Msg)
	}
	if len(parts) == 0 {
		return StageWord(s.Name) + "…"
	}
	return StageWord(s.Name) + ": " + strings.Join(parts, ", ")
}

// ReleasedLine says what an unload gave back.
func (o Operation) ReleasedLine() string {
	r := o.Released
	if r == nil {
		return ""
	}
	line := fmt.Sprintf("%s came back on %s", Bytes(r.Measured), DeviceName(r.Device))
	if r.Expected > 0 {
		line += fmt.Sprintf(", %s expected", Bytes(r.Expected))
	}
	if r.Verified {
		line += "; the process is gone and the memory is free"
	} else {
		line += "; not verified"
		if r.Note != "" {
			line += ": " + r.Note
		}
	}
	return line + "."
}
