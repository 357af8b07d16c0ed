package registry

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code classifies an Error. The set is closed; internal/server maps each to one HTTP status.
type Code string

// The codes, with the guide's exception where it has one.
const (
	CodeInvalid               Code = "invalid"                // 422, or 400 if it does not parse; ConfigurationError
	CodeNotFound              Code = "not_found"              // 404; ModelNotFoundError
	CodeLoadingFailed         Code = "loading_failed"         // 502; ModelLoadingError
	CodeInsufficientResources Code = "insufficient_resources" // 409; ResourceNotAvailableError
	CodeConflict              Code = "conflict"               // 409: somebody else changed it
	CodeBadState              Code = "bad_state"              // 409: not possible in the present state
	CodeUnauthenticated       Code = "unauthenticated"        // 401
	CodeForbidden             Code = "forbidden"              // 403
	CodeBusy                  Code = "busy"                   // 429 with Retry-After
	CodeUnavailable           Code = "unavailable"            // 503
	CodeTimeout               Code = "timeout"                // 504
	CodeUnsupported           Code = "unsupported"            // 501
	CodeInternal              Code = "internal"               // 500
)

// Codes lists every code.
var Codes = []Code{
	CodeInvalid, CodeNotFound, CodeLoadingFailed, CodeInsufficientResources, CodeConflict, CodeBadState,
	CodeUnauthenticated, CodeForbidden, CodeBusy, CodeUnavailable, CodeTimeout, CodeUnsupported, CodeInternal,
}

// FieldError says what is wrong with one field of a model. Line and Column are set when it came from YAML.
type FieldError struct {
	Field  string `json:"field"`
	Msg    string `json:"message"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// Error is the one error type that crosses a package border. Msg is for people: what happened, to what, what to do
// next. Op is the operation that failed, for the log. It never carries a secret.
type Error struct {
	Code      Code
	Op        string
	Msg       string
	Fields    []FieldError
	Failure   *Failure  // with CodeLoadingFailed
	Shortage  *Shortage // with CodeInsufficientResources
	Malformed bool      // with CodeInvalid: the input did not even parse (400 instead of 422)
	// RetryAfter says, with CodeBusy and CodeUnavailable, how long to wait before asking again; 0 when not known.
	RetryAfter time.Duration
	Err        error
}

// Error returns the message followed by the fields at fault.
func (e *Error) Error() string {
	var b strings.Builder
	msg := e.Msg
	if msg == "" && e.Err != nil {
		msg = e.Err.Error()
	}
	if msg == "" {
		msg = string(e.Code)
	}
	b.WriteString(msg)
	for i, f := range e.Fields {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		if f.Line > 0 {
			fmt.Fprintf(&b, "line %d, column %d: ", f.Line, f.Column)
		}
		b.WriteString(f.Field + " " + f.Msg)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error. A %w in the format becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// CodeOf returns the code of the first Error in err's chain, CodeInternal for any other error, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// AsError returns err as an *Error, wrapping it as internal if it is none.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeInternal, Msg: err.Error(), Err: err}
}

// FailureKind is the diagnosis of a failed load.
type FailureKind string

// The kinds of failure.
const (
	FailureOutOfMemory     FailureKind = "out_of_memory"
	FailureGated           FailureKind = "gated_repository"
	FailureMissingFile     FailureKind = "missing_file"
	FailureUnsupportedArch FailureKind = "unsupported_architecture"
	FailureEngineMissing   FailureKind = "engine_missing"
	FailurePort            FailureKind = "port"
	FailureCrash           FailureKind = "crash"
	FailureCorruptFile     FailureKind = "corrupt_file"
	FailureCancelled       FailureKind = "cancelled"
	FailureParameter       FailureKind = "bad_parameter" // the engine refused a custom_loader_params entry
	FailureHang            FailureKind = "hang"          // it ran and did not answer for minutes
	FailureUnreachable     FailureKind = "unreachable"   // a service elsewhere does not answer, or not as it should
	FailureUnsupported     FailureKind = "unsupported"   // the engine can do it, but not on this device or with such weights
	FailureDiskFull        FailureKind = "disk_full"     // files that a fetch or a load makes do not fit
)

// Failure says why a load failed or an instance ended.
type Failure struct {
	Kind     FailureKind `json:"kind"`
	Msg      string      `json:"message"`            // what happened and to what
	Hint     string      `json:"hint,omitempty"`     // what to do next
	LogTail  []string    `json:"log_tail,omitempty"` // the engine's last lines, secrets removed
	ExitCode int         `json:"exit_code,omitempty"`
	Signal   string      `json:"signal,omitempty"`
}

// Error makes the failure usable as the cause of an Error.
func (f *Failure) Error() string { return f.Msg }

// Shortage says what is missing on which device, who holds the rest and what could be evicted. All in bytes.
type Shortage struct {
	Device  string   `json:"device"` // cpu, cuda:0
	Needed  int64    `json:"needed"`
	Free    int64    `json:"free"`
	Short   int64    `json:"short"`
	Total   int64    `json:"total"`
	Holders []Holder `json:"holders"`
}

// Holder is one who holds memory on a device. ModelID is empty for processes that are not ours.
type Holder struct {
	ModelID   string   `json:"model_id,omitempty"`
	PID       int      `json:"pid,omitempty"`
	Bytes     int64    `json:"bytes"`
	Promised  bool     `json:"promised,omitempty"`  // reserved, not yet taken
	Evictable bool     `json:"evictable,omitempty"` // idle, not pinned
	IdleFor   Duration `json:"idle_for,omitempty"`
}
