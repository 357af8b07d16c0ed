package server

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// statuses maps each code to its one status.
var statuses = map[registry.Code]int{
	registry.CodeInvalid:               http.StatusUnprocessableEntity,
	registry.CodeNotFound:              http.StatusNotFound,
	registry.CodeLoadingFailed:         http.StatusBadGateway,
	registry.CodeInsufficientResources: http.StatusConflict,
	registry.CodeConflict:              http.StatusConflict,
	registry.CodeBadState:              http.StatusConflict,
	registry.CodeUnauthenticated:       http.StatusUnauthorized,
	registry.CodeForbidden:             http.StatusForbidden,
	registry.CodeBusy:                  http.StatusTooManyRequests,
	registry.CodeUnavailable:           http.StatusServiceUnavailable,
	registry.CodeTimeout:               http.StatusGatewayTimeout,
	registry.CodeUnsupported:           http.StatusNotImplemented,
	registry.CodeInternal:              http.StatusInternalServerError,
}

func statusOf(e *registry.Error) int {
	if e.Code == registry.CodeInvalid && e.Malformed {
		return http.StatusBadRequest
	}
	if st, ok := statuses[e.Code]; ok {
		return st
	}
	return http.StatusInternalServerError
}

// problemBody is application/problem+json (RFC 9457) with our own members beside the standard ones.
type problemBody struct {
	Type     string                `json:"type"`
	Title    string                `json:"title"`
	Status   int                   `json:"status"`
	Detail   string                `json:"detail"`
	Code     registry.Code         `json:"code"`
	Fields   []registry.FieldError `json:"fields,omitempty"`
	Failure  *registry.Failure     `json:"failure,omitempty"`
	Shortage *registry.Shortage    `json:"shortage,omitempty"`
	// Those of the shortage once more at the top, as scripts ask for them.
	Needed    *int64            `json:"needed,omitempty"`
	Free      *int64            `json:"free,omitempty"`
	Device    string            `json:"device,omitempty"`
	Holders   []registry.Holder `json:"holders,omitempty"`
	Operation string            `json:"operation_id,omitempty"`
}

// asError makes a registry.Error of whatever a handler or Echo itself returned.
func asError(err error) *registry.Error {
	var he *echo.HTTPError
	if errors.As(err, &he) {
		code := registry.CodeInternal
		switch he.Code {
		case http.StatusNotFound:
			return registry.Errorf(registry.CodeNotFound, "There is nothing at this address")
		case http.StatusMethodNotAllowed:
			return registry.Errorf(registry.CodeUnsupported, "This address does not take this method")
		case http.StatusRequestEntityTooLarge:
			return &registry.Error{Code: registry.CodeInvalid, Malformed: true, Msg: "The body is too large"}
		case http.StatusBadRequest:
			code = registry.CodeInvalid
		}
		return &registry.Error{Code: code, Malformed: true, Msg: http.StatusText(he.Code), Err: err}
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &registry.Error{Code: registry.CodeInvalid, Malformed: true, Msg: "The body is larger than " + strconv.FormatInt(tooLarge.Limit, 10) + " bytes, which is the most that is taken here"}
	}
	return registry.AsError(err)
}

// handleError is the only place that turns an error into an answer: problem+json for the API, OpenAI's shape under /v1,
// a partial for htmx, a page for a browser.
func (s *Server) handleError(err error, c echo.Context) {
	e := asError(err)
	status := statusOf(e)
	r := c.Request()
	if r.Context().Err() != nil && e.Code == registry.CodeInternal {
		return // the client is gone
	}
	if status >= 500 {
		s.Logger.Error("A request failed", "method", r.Method, "route", c.Path(), "op", e.Op, "code", e.Code, "err", err)
	}
	if c.Response().Committed {
		return
	}
	if e.RetryAfter > 0 {
		c.Response().Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	} else if e.Code == registry.CodeBusy {
		c.Response().Header().Set("Retry-After", "1")
	}
	msg := e.Msg
	if msg == "" {
		msg = e.Error()
	}
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/v1/"):
		body := map[string]any{"error": map[string]any{"message": msg, "type": openAIType(status), "code": e.Code, "param": nil}}
		err = c.JSON(status, body)
	case strings.HasPrefix(path, "/api/") || path == "/metrics" || path == "/readyz" || wantsJSON(r):
		err = s.problem(c, e, status, msg)
	default:
		err = s.errorPage(c, e, status, msg)
	}
	if err != nil {
		s.Logger.Debug("An error could not be told", "err", err)
	}
}

func openAIType(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status < 500:
		return "invalid_request_error"
	}
	return "server_error"
}

func wantsJSON(r *http.Request) bool {
	a := r.Header.Get("Accept")
	return strings.Contains(a, "json") && !strings.Contains(a, "text/html")
}

func (s *Server) problem(c echo.Context, e *registry.Error, status int, msg string) error {
	if shown := s.visibleProblem(c, registry.Problem{Code: e.Code, Msg: msg, Shortage: e.Shortage}); shown.Shortage != nil {
		only := *e
		only.Shortage = shown.Shortage
		e, msg = &only, shown.Msg
	}
	p := problemBody{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: msg, Code: e.Code, Fields: e.Fields, Failure: e.Failure, Shortage: e.Shortage}
	if sh := e.Shortage; sh != nil {
		p.Needed, p.Free, p.Device, p.Holders = &sh.Needed, &sh.Free, sh.Device, sh.Holders
	}
	if op, ok := c.Get("operation").(string); ok {
		p.Operation = op
	}
	if status == http.StatusUnauthorized {
		c.Response().Header().Set("WWW-Authenticate", `Bearer realm="llmm"`)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return c.Blob(status, "application/problem+json", b)
}

// visibleHolders hides the names of models that the caller may not see; the bytes stay.
func (s *Server) visibleHolders(c echo.Context, in []registry.Holder) []registry.Holder {
	out := make([]registry.Holder, len(in))
	for i, h := range in {
		if h.ModelID != "" {
			if _, err := s.seen(c.Request().Context(), h.ModelID); err != nil {
				h.ModelID = "a model of another team"
			}
		}
		out[i] = h
	}
	return out
}

func stack() string { return string(debug.Stack()) }

// teamsOf is what the caller may see: nil for all teams.
func teamsOf(c echo.Context) []string {
	return auth.VisibleTeams(auth.FromContext(c.Request().Context()))
}
