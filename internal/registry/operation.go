package registry

import "time"

// OperationKind says what an operation does.
type OperationKind string

// The kinds of operation.
const (
	OperationLoad    OperationKind = "load"
	OperationUnload  OperationKind = "unload"
	OperationFetch   OperationKind = "fetch"
	OperationImport  OperationKind = "import"
	OperationInstall OperationKind = "install" // of an engine; Subject is the engine's name

	OperationRemove   OperationKind = "remove"    // of an engine that was installed from here
	OperationSelfTest OperationKind = "self_test" // of an engine: a tiny model is loaded, asked and unloaded
)

// OfEngine reports whether the operation's subject is an engine and not a model.
func (k OperationKind) OfEngine() bool {
	return k == OperationInstall || k == OperationRemove || k == OperationSelfTest
}

// OperationState says how far an operation is.
type OperationState string

// The states of an operation. Succeeded, failed and cancelled are final. A restart of the manager turns queued and
// running ones into failed, unless the instance they were loading could be re-attached; a fetch goes on where it was. A
// paused one rests until somebody resumes it, across restarts; only a fetch can be paused.
const (
	OperationQueued    OperationState = "queued"
	OperationRunning   OperationState = "running"
	OperationPaused    OperationState = "paused"
	OperationSucceeded OperationState = "succeeded"
	OperationFailed    OperationState = "failed"
	OperationCancelled OperationState = "cancelled"
)

// Final reports whether the operation has ended.
func (s OperationState) Final() bool {
	return s == OperationSucceeded || s == OperationFailed || s == OperationCancelled
}

// Resting reports whether nothing works on the operation: it has ended, or it is paused.
func (s OperationState) Resting() bool { return s.Final() || s == OperationPaused }

// Operation is one piece of work that takes time, kept as history.
type Operation struct {
	ID        string         `json:"id"` // sorts by creation time
	Kind      OperationKind  `json:"kind"`
	Subject   string         `json:"subject"` // the model_id, or the engine's name
	State     OperationState `json:"state"`
	Actor     string         `json:"actor"` // who asked: a user's name, "gateway:NAME", "manager"
	Cause     string         `json:"cause"` // why, in words: "asked for in the console", "idle for 15m"
	CreatedAt time.Time      `json:"created_at"`
	StartedAt time.Time      `json:"started_at,omitzero"`
	EndedAt   time.Time      `json:"ended_at,omitzero"`
	Stages    []Stage        `json:"stages"`
	Outcome   string         `json:"outcome,omitempty"` // one sentence
	Error     *Problem       `json:"error,omitempty"`
	Released  *Released      `json:"released,omitempty"` // with OperationUnload
	Unloaded  *bool          `json:"unloaded,omitempty"` // with OperationUnload: the guide's return value
}

// Problem is an Error as it is stored with an operation and sent by the API.
type Problem struct {
	Code     Code         `json:"code"`
	Msg      string       `json:"message"`
	Fields   []FieldError `json:"fields,omitempty"`
	Failure  *Failure     `json:"failure,omitempty"`
	Shortage *Shortage    `json:"shortage,omitempty"`
}

// ProblemOf turns an error into what may be shown. Messages of internal errors are kept: they carry no secret by rule.
func ProblemOf(err error) *Problem {
	if err == nil {
		return nil
	}
	e := AsError(err)
	msg := e.Msg
	if msg == "" {
		msg = e.Error()
	}
	return &Problem{Code: e.Code, Msg: msg, Fields: e.Fields, Failure: e.Failure, Shortage: e.Shortage}
}

// AsError turns a stored problem back into an error.
func (p *Problem) AsError() error {
	if p == nil {
		return nil
	}
	return &Error{Code: p.Code, Msg: p.Msg, Fields: p.Fields, Failure: p.Failure, Shortage: p.Shortage}
}

// Released says what an unload gave back. All in bytes.
type Released struct {
	Device   string `json:"device"`
	Expected int64  `json:"expected"`
	Measured int64  `json:"measured"`
	Verified bool   `json:"verified"` // the process is gone and the device shows the memory as free
	Note     string `json:"note,omitempty"`
}

// StageName names a step of an operation.
type StageName string

// The stages of a load, in order, then those of an unload. A loader reports those from StageEngine on. In StageQueue an
// operation waits for one of the places in which files are fetched; what is on disk already does not wait.
const (
	StageResolve StageName = "resolve"
	StageQueue   StageName = "queue"
	StageFetch   StageName = "fetch"
	StageVerify  StageName = "verify"
	StageReserve StageName = "reserve"
	StageEngine  StageName = "engine"
	StageWeights StageName = "weights"
	StageWarmup  StageName = "warmup"
	StageReady   StageName = "ready"

	StageDrain   StageName = "drain"
	StageStop    StageName = "stop"
	StageRelease StageName = "release"

	StageCheck  StageName = "check"  // of a self-test: the engine is found
	StageMake   StageName = "make"   // a tiny model is made
	StageLoad   StageName = "load"   // the model is loaded
	StageAsk    StageName = "ask"    // it is asked once
	StageUnload StageName = "unload" // the model is unloaded
	StageRemove StageName = "remove" // files are removed
)

// LoadStages and its siblings are the stages of each kind of operation, in the order in which they are passed.
var (
	FetchStages  = []StageName{StageResolve, StageQueue, StageFetch, StageVerify}
	LoadStages   = []StageName{StageResolve, StageQueue, StageFetch, StageVerify, StageReserve, StageEngine, StageWeights, StageWarmup, StageReady}
	UnloadStages = []StageName{StageDrain, StageStop, StageRelease}

	SelfTestStages = []StageName{StageCheck, StageMake, StageLoad, StageAsk, StageUnload}
	RemoveStages   = []StageName{StageCheck, StageRemove}
)

// Unit says what Done and Total of a progress count.
type Unit string

// The units of progress.
const (
	UnitBytes   Unit = "bytes"
	UnitFiles   Unit = "files"
	UnitTensors Unit = "tensors"
	UnitPercent Unit = "percent" // Total is 100
)

// Progress is what a source or a loader reports. Stages come in order and Done never shrinks within a stage.
// Total 0 means unknown.
type Progress struct {
	Stage StageName
	Done  int64
	Total int64
	Unit  Unit
	Msg   string // one line, for people; no secret
}

// StageState says how far a stage is.
type StageState string

// The states of a stage.
const (
	StageWaiting StageState = "waiting"
	StageRunning StageState = "running"
	StageDone    StageState = "done"
	StageSkipped StageState = "skipped"
	StageFailed  StageState = "failed"
)

// Stage is one step of an operation with its progress. Rate is in units per second; ETA is what is left of this
// stage. Stalled is true when nothing has moved for the operation's stall time: it is told, and nothing is ended
// because of it.
type Stage struct {
	Name      StageName  `json:"name"`
	State     StageState `json:"state"`
	Done      int64      `json:"done,omitempty"`
	Total     int64      `json:"total,omitempty"`
	Unit      Unit       `json:"unit,omitempty"`
	Rate      float64    `json:"rate,omitempty"`
	ETA       Duration   `json:"eta,omitempty"`
	Msg       string     `json:"message,omitempty"`
	Stalled   bool       `json:"stalled,omitempty"`
	StartedAt time.Time  `json:"started_at,omitzero"`
	EndedAt   time.Time  `json:"ended_at,omitzero"`
}
