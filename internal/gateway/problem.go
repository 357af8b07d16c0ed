package gateway

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The types of error that OpenAI's clients know.
const (
	typeInvalid    = "invalid_request_error"
	typeAuth       = "authentication_error"
	typePermission = "permission_error"
	typeRate       = "rate_limit_error"
	typeServer     = "server_error"
)

// problem is an error in OpenAI's shape.
type problem struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
}

// statusOf maps a code as internal/server does, except that what is invalid is always 400: OpenAI's clients expect it.
func statusOf(c registry.Code) int {
	switch c {
	case registry.CodeInvalid:
		return http.StatusBadRequest
	case registry.CodeNotFound:
		return http.StatusNotFound
	case registry.CodeLoadingFailed:
		return http.StatusBadGateway
	case registry.CodeInsufficientResources, registry.CodeConflict, registry.CodeBadState:
		return http.StatusConflict
	case registry.CodeUnauthenticated:
		return http.StatusUnauthorized
	case registry.CodeForbidden:
		return http.StatusForbidden
	case registry.CodeBusy:
		return http.StatusTooManyRequests
	case registry.CodeUnavailable:
		return http.StatusServiceUnavailable
	case registry.CodeTimeout:
		return http.StatusGatewayTimeout
	case registry.CodeUnsupported:
		return http.StatusNotImplemented
	case registry.CodeInternal:
	}
	return http.StatusInternalServerError
}

func typeOf(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return typeAuth
	case status == http.StatusForbidden:
		return typePermission
	case status == http.StatusTooManyRequests:
		return typeRate
	case status >= 500:
		return typeServer
	}
	return typeInvalid
}

// problemOf returns an error in OpenAI's shape, with its status.
func problemOf(err error) (int, problem) {
	e := registry.AsError(err)
	status := statusOf(e.Code)
	p := problem{Message: e.Error(), Type: typeOf(status), Code: string(e.Code)}
	if e.Code == registry.CodeNotFound {
		p.Code = "model_not_found"
		p.Param = param("model")
	}
	if e.Code == registry.CodeInvalid && len(e.Fields) > 0 {
		p.Param = param(e.Fields[0].Field)
	}
	if f := e.Failure; f != nil && f.Hint != "" {
		p.Message += ". " + f.Hint
	}
	return status, p
}

func param(name string) *string { return &name }

// fail answers with err, unless the client has gone away.
func (g *Gateway) fail(w http.ResponseWriter, r *http.Request, err error) {
	if aborted(r) {
		return
	}
	status, p := problemOf(err)
	if status == http.StatusInternalServerError {
		g.o.Logger.Error("a request to the gateway failed", "path", r.URL.Path, "error", err)
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="llmm"`)
	}
	retry := time.Duration(0)
	var e *registry.Error
	if errors.As(err, &e) {
		retry = e.RetryAfter
	}
	if retry == 0 && status == http.StatusTooManyRequests {
		retry = 5 * time.Second
	}
	if retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(retry.Seconds()))))
	}
	writeProblem(w, status, p)
}

func writeProblem(w http.ResponseWriter, status int, p problem) {
	writeJSON(w, status, map[string]problem{"error": p})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client went away: there is nobody to tell
}
