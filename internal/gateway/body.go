package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"golang.org/x/sync/semaphore"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// body is a request as it came, and where in it the model is named.
type body struct {
	raw        []byte
	model      string
	start, end int // raw[start:end] is the value, quotes included
}

// parts returns the bytes to send, with the model's value replaced by name unless that is what it says already. Nothing
// else is touched: a prompt of 10 MB is neither decoded nor copied.
func (b body) parts(name string) [][]byte {
	if name == "" || name == b.model {
		return [][]byte{b.raw}
	}
	quoted, err := json.Marshal(name)
	if err != nil { // a string always marshals
		quoted = []byte(`""`)
	}
	return [][]byte{b.raw[:b.start], quoted, b.raw[b.end:]}
}

// readBody reads a request of at most limit bytes and finds its model. The returned func gives the memory back to the
// budget and must be called when the body is no longer used. Errors: CodeInvalid, CodeBusy when the budget is spent.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, budget *semaphore.Weighted) (body, func(), error) {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return body{}, func() {}, badRequest("Content-Encoding %q is not understood; send the JSON as it is", clip(enc))
	}
	m := &metered{r: http.MaxBytesReader(w, r.Body, limit), budget: budget}
	var buf bytes.Buffer
	// Not all that Content-Length promises: it is only a promise.
	buf.Grow(int(min(max(r.ContentLength, 0)+bytes.MinRead, 1<<20)))
	_, err := buf.ReadFrom(m)
	if err == nil {
		var b body
		if b, err = findModel(buf.Bytes()); err == nil {
			return b, m.release, nil
		}
	}
	m.release()
	var tooLarge *http.MaxBytesError
	var known *registry.Error
	switch {
	case errors.As(err, &known):
		return body{}, func() {}, err
	case errors.As(err, &tooLarge):
		return body{}, func() {}, badRequest("the request is larger than %d MiB, which is the most that is taken", limit>>20)
	}
	return body{}, func() {}, badRequest("the request could not be read to its end: %v", err)
}

// metered counts what is read against the budget of all requests.
type metered struct {
	r      io.Reader
	budget *semaphore.Weighted
	held   int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if n > 0 {
		if !m.budget.TryAcquire(int64(n)) {
			return 0, registry.Errorf(registry.CodeBusy, "the gateway is holding as many bytes of requests as it may; try again in a moment")
		}
		m.held += int64(n)
	}
	return n, err
}

func (m *metered) release() {
	if m.held > 0 {
		m.budget.Release(m.held)
		m.held = 0
	}
}

func badRequest(format string, args ...any) error {
	e := registry.Errorf(registry.CodeInvalid, format, args...)
	e.Malformed = true
	return e
}

func badModel(msg string) error {
	return &registry.Error{Code: registry.CodeInvalid, Msg: "the request does not say which model is meant", Fields: []registry.FieldError{{Field: "model", Msg: msg}}}
}

// findModel finds the model's name at the top level of a JSON object. It is checked that the whole is JSON and that
// "model" is there exactly once: engines differ in which of two they take (and some do not mind the case), and what was
// authorised must be what is run. CodeInvalid otherwise.
func findModel(raw []byte) (body, error) {
	if !json.Valid(raw) {
		var syntax *json.SyntaxError
		var v json.RawMessage
		if err := json.Unmarshal(raw, &v); errors.As(err, &syntax) {
			return body{}, badRequest("the request is not JSON: %v at byte %d", syntax, syntax.Offset)
		}
		return body{}, badRequest("the request is not JSON")
	}
	// From here on the bytes are known to be well formed, so that scanning needs no error handling.
	i := skipSpace(raw, 0)
	if raw[i] != '{' {
		return body{}, badRequest("the request must be a JSON object")
	}
	b := body{raw: raw, start: -1}
	for i = skipSpace(raw, i+1); raw[i] != '}'; {
		keyStart := i
		i = skipString(raw, i)
		key := raw[keyStart:i]
		i = skipSpace(raw, i) // at the colon
		valueStart := skipSpace(raw, i+1)
		i = skipValue(raw, valueStart)
		if exact, similar := isModelKey(key); similar {
			switch {
			case !exact:
				return body{}, badModel("is spelled " + clip(string(key)) + "; write it in small letters")
			case b.start >= 0:
				return body{}, badModel("is there more than once")
			}
			b.start, b.end = valueStart, i
		}
		if i = skipSpace(raw, i); raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	if b.start < 0 {
		return body{}, badModel("is required; GET /v1/models lists the models that you may use")
	}
	if raw[b.start] != '"' {
		return body{}, badModel("must be a string")
	}
	// Longer than any model_id can be, each of its bytes written as an escape.
	if b.end-b.start > 6*registry.MaxModelID+2 {
		return body{}, badModel("is too long")
	}
	if err := json.Unmarshal(raw[b.start:b.end], &b.model); err != nil || b.model == "" {
		return body{}, badModel("must be a string that is not empty")
	}
	return b, nil
}

// isModelKey reports whether a quoted key is "model" (however it is escaped), and whether it is but for the case.
func isModelKey(quoted []byte) (exact, similar bool) {
	if len(quoted) > 2+5*6 { // five characters, each at most \uXXXX
		return false, false
	}
	var key string
	if err := json.Unmarshal(quoted, &key); err != nil {
		return false, false
	}
	return key == "model", strings.EqualFold(key, "model")
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the index after the string that begins at i.
func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// skipValue returns the index after the value that begins at i.
func skipValue(b []byte, i int) int {
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		depth := 0
		for {
			switch b[i] {
			case '"':
				i = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			i++
			if depth == 0 {
				return i
			}
		}
	}
	for b[i] != ',' && b[i] != '}' && b[i] != ']' && b[i] != ' ' && b[i] != '\t' && b[i] != '\n' && b[i] != '\r' {
		i++
	}
	return i
}
