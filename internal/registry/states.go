package registry

// ArtifactState says how much of a model's files is on local disk.
type ArtifactState string

// The artifact axis. Each constant says who moves it and what a crash of the manager leaves.
const (
	ArtifactAbsent    ArtifactState = "absent"    // nothing known or kept; a load or a fetch moves it
	ArtifactResolving ArtifactState = "resolving" // the source looks up revision and files; after a crash: absent
	ArtifactFetching  ArtifactState = "fetching"  // bytes arrive; after a crash the partial files are resumed
	ArtifactVerifying ArtifactState = "verifying" // files are checked; after a crash they are checked again
	ArtifactPresent   ArtifactState = "present"   // verified on disk
	ArtifactFailed    ArtifactState = "failed"    // could not be had; the failure says why
)

// RuntimeState says what a model's instance is doing.
type RuntimeState string

// The runtime axis.
const (
	RuntimeStopped  RuntimeState = "stopped"  // no process, no memory, no reservation
	RuntimeQueued   RuntimeState = "queued"   // asked for; waits for its turn, its files or for room
	RuntimeStarting RuntimeState = "starting" // memory reserved, engine coming up; after a crash the engine is found by its tag and ended
	RuntimeReady    RuntimeState = "ready"    // answers; after a crash of the manager it is re-attached
	RuntimeSleeping RuntimeState = "sleeping" // weights in host memory, no GPU; wakes on use
	RuntimeDraining RuntimeState = "draining" // takes no new request, finishes those it has
	RuntimeStopping RuntimeState = "stopping" // engine told to end; reservation held until the memory is back
	RuntimeBackoff  RuntimeState = "backoff"  // crashed; is started again after a pause
	RuntimeFailed   RuntimeState = "failed"   // could not be loaded, or crashed too often; stays until asked again
)

// RegistrationState says whether a model may be used at all.
type RegistrationState string

// The registration axis.
const (
	RegistrationPending    RegistrationState = "pending_approval" // waits for a maintainer
	RegistrationActive     RegistrationState = "active"
	RegistrationDeprecated RegistrationState = "deprecated" // works, and says that it will go
	RegistrationArchived   RegistrationState = "archived"   // kept for its history; cannot be loaded
)

// Axis names one of the three state machines.
type Axis string

// The axes.
const (
	AxisArtifact     Axis = "artifact"
	AxisRuntime      Axis = "runtime"
	AxisRegistration Axis = "registration"
)

// Trigger is what makes a state change.
type Trigger string

// The triggers.
const (
	TriggerResolve  Trigger = "resolve"
	TriggerFetch    Trigger = "fetch"
	TriggerVerify   Trigger = "verify"
	TriggerVerified Trigger = "verified"
	TriggerDelete   Trigger = "delete"
	TriggerFail     Trigger = "fail"
	TriggerAbandon  Trigger = "abandon"

	TriggerLoad     Trigger = "load"
	TriggerAdmit    Trigger = "admit"
	TriggerRefuse   Trigger = "refuse"
	TriggerAnswer   Trigger = "answer"
	TriggerCancel   Trigger = "cancel"
	TriggerUnload   Trigger = "unload"
	TriggerDrained  Trigger = "drained"
	TriggerGone     Trigger = "gone"
	TriggerCrash    Trigger = "crash"
	TriggerRetry    Trigger = "retry"
	TriggerGiveUp   Trigger = "give_up"
	TriggerSleep    Trigger = "sleep"
	TriggerWake     Trigger = "wake"
	TriggerReattach Trigger = "reattach"
	TriggerLost     Trigger = "lost"

	TriggerApprove   Trigger = "approve"
	TriggerDeprecate Trigger = "deprecate"
	TriggerArchive   Trigger = "archive"
	TriggerRestore   Trigger = "restore"
)

// Transition is one row of the table. Who is the part of the product that may cause it.
type Transition struct {
	Axis     Axis
	From, To string
	On       Trigger
	Who      string
}

func t(axis Axis, on Trigger, who, to string, from ...string) []Transition {
	rows := make([]Transition, 0, len(from))
	for _, f := range from {
		rows = append(rows, Transition{Axis: axis, From: f, To: to, On: on, Who: who})
	}
	return rows
}

// Transitions is the only authority on what may follow what. docs/architecture.md's diagrams are generated from it.
var Transitions = func() []Transition {
	var all []Transition
	add := func(rows []Transition) { all = append(all, rows...) }

	a := AxisArtifact
	add(t(a, TriggerResolve, "manager", "resolving", "absent", "present", "failed"))
	add(t(a, TriggerFetch, "source", "fetching", "resolving"))
	add(t(a, TriggerVerify, "source", "verifying", "resolving", "fetching"))
	add(t(a, TriggerVerified, "source", "present", "verifying"))
	add(t(a, TriggerFail, "source", "failed", "resolving", "fetching", "verifying"))
	add(t(a, TriggerAbandon, "manager", "absent", "resolving", "fetching", "verifying"))
	add(t(a, TriggerDelete, "user", "absent", "present", "failed"))

	r := AxisRuntime
	add(t(r, TriggerLoad, "user, gateway", "queued", "stopped", "failed"))
	add(t(r, TriggerAdmit, "planner", "starting", "queued"))
	add(t(r, TriggerRefuse, "planner", "stopped", "queued"))
	add(t(r, TriggerAnswer, "loader", "ready", "starting"))
	add(t(r, TriggerFail, "source, loader", "failed", "queued", "starting"))
	add(t(r, TriggerCancel, "user", "stopped", "queued", "backoff"))
	add(t(r, TriggerCancel, "user", "stopping", "starting"))
	add(t(r, TriggerUnload, "user, idle, eviction", "draining", "ready"))
	add(t(r, TriggerUnload, "user, idle, eviction", "stopping", "sleeping"))
	add(t(r, TriggerUnload, "user", "stopped", "failed"))
	add(t(r, TriggerDrained, "manager", "stopping", "draining"))
	add(t(r, TriggerGone, "loader", "stopped", "stopping"))
	add(t(r, TriggerCrash, "loader", "backoff", "ready", "sleeping"))
	add(t(r, TriggerCrash, "loader", "stopping", "draining"))
	add(t(r, TriggerRetry, "manager", "queued", "backoff"))
	add(t(r, TriggerGiveUp, "manager", "failed", "backoff"))
	add(t(r, TriggerSleep, "idle, user", "sleeping", "ready"))
	add(t(r, TriggerWake, "user, gateway", "ready", "sleeping"))
	add(t(r, TriggerReattach, "reconciler", "ready", "starting", "ready", "draining", "stopping"))
	add(t(r, TriggerReattach, "reconciler", "sleeping", "sleeping"))
	add(t(r, TriggerLost, "reconciler", "stopped", "queued", "starting", "ready", "sleeping", "draining", "stopping", "backoff"))

	g := AxisRegistration
	add(t(g, TriggerApprove, "maintainer", "active", "pending_approval"))
	add(t(g, TriggerDeprecate, "maintainer", "deprecated", "active"))
	add(t(g, TriggerArchive, "maintainer", "archived", "pending_approval", "active", "deprecated"))
	add(t(g, TriggerRestore, "maintainer", "active", "deprecated", "archived"))
	return all
}()

type transitionKey struct {
	axis Axis
	from string
	on   Trigger
}

var transitionIndex = func() map[transitionKey]string {
	m := make(map[transitionKey]string, len(Transitions))
	for _, tr := range Transitions {
		k := transitionKey{tr.Axis, tr.From, tr.On}
		if _, dup := m[k]; dup {
			panic("registry: two transitions from " + tr.From + " on " + string(tr.On))
		}
		m[k] = tr.To
	}
	return m
}()

// Next returns the state that follows from on trigger, or an Error with CodeBadState if the table has no such row.
// S is one of the three state types; an empty state is the axis's first (absent, stopped, active).
func Next[S ~string](from S, on Trigger) (S, error) {
	axis := AxisRuntime
	switch any(from).(type) {
	case ArtifactState:
		axis = AxisArtifact
		if from == "" {
			from = S(ArtifactAbsent)
		}
	case RegistrationState:
		axis = AxisRegistration
		if from == "" {
			from = S(RegistrationActive)
		}
	default:
		if from == "" {
			from = S(RuntimeStopped)
		}
	}
	to, ok := transitionIndex[transitionKey{axis, string(from), on}]
	if !ok {
		return from, Errorf(CodeBadState, "cannot %s while %s", on, from)
	}
	return S(to), nil
}

// HoldsMemory reports whether an instance in this state has bytes reserved.
func (s RuntimeState) HoldsMemory() bool {
	switch s {
	case RuntimeStarting, RuntimeReady, RuntimeSleeping, RuntimeDraining, RuntimeStopping:
		return true
	case RuntimeStopped, RuntimeQueued, RuntimeBackoff, RuntimeFailed, "":
	}
	return false
}

// Status is the one state that a user sees, derived from the three axes.
type Status string

// The statuses.
const (
	StatusNotLoaded Status = "not_loaded"
	StatusQueued    Status = "queued"
	StatusFetching  Status = "fetching"
	StatusLoading   Status = "loading"
	StatusReady     Status = "ready"
	StatusSleeping  Status = "sleeping"
	StatusUnloading Status = "unloading"
	StatusRetrying  Status = "retrying"
	StatusFailed    Status = "failed"
	StatusPending   Status = "pending_approval"
	StatusArchived  Status = "archived"
)

// Statuses lists every status in the order in which the console offers them as a filter.
var Statuses = []Status{
	StatusReady, StatusLoading, StatusFetching, StatusQueued, StatusSleeping, StatusUnloading, StatusRetrying,
	StatusFailed, StatusNotLoaded, StatusPending, StatusArchived,
}

// DeriveStatus computes the status from the three axes.
func DeriveStatus(reg RegistrationState, art ArtifactState, run RuntimeState) Status {
	switch run {
	case RuntimeReady:
		return StatusReady
	case RuntimeSleeping:
		return StatusSleeping
	case RuntimeStarting:
		return StatusLoading
	case RuntimeDraining, RuntimeStopping:
		return StatusUnloading
	case RuntimeBackoff:
		return StatusRetrying
	case RuntimeQueued:
		if art == ArtifactFetching || art == ArtifactVerifying || art == ArtifactResolving {
			return StatusFetching
		}
		return StatusQueued
	case RuntimeFailed:
		return StatusFailed
	case RuntimeStopped, "":
	}
	switch reg {
	case RegistrationPending:
		return StatusPending
	case RegistrationArchived:
		return StatusArchived
	case RegistrationActive, RegistrationDeprecated, "":
	}
	if art == ArtifactFetching || art == ArtifactVerifying { // a fetch without a load
		return StatusFetching
	}
	return StatusNotLoaded
}
