package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxJSONDepth is how deep an object may be nested. No field needs more than custom_loader_params, which is
// limited to 8 by itself.
const maxJSONDepth = 32

// DecodeObject reads one JSON object into a map, refusing repeated names at any depth and trailing data. Numbers
// stay json.Number. Errors are CodeInvalid with Malformed set.
func DecodeObject(b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, malformed("The body is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	tok, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return nil, malformed("The body is empty; send a JSON object")
	}
	if err != nil {
		return nil, malformed("The body is not JSON: %v", err)
	}
	if tok != json.Delim('{') {
		return nil, malformed("The body must be a JSON object")
	}
	out, err := readObject(dec, 1)
	if err != nil {
		if e := (*Error)(nil); errors.As(err, &e) {
			return nil, e
		}
		return nil, malformed("The body is not JSON: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("There is more after the JSON object")
	}
	return out, nil
}

// readObject reads the rest of an object whose opening brace was read. encoding/json itself would keep the last of
// two fields of one name and say nothing.
func readObject(dec *json.Decoder, depth int) (map[string]any, error) {
	out := map[string]any{}
	for dec.More() {
		k, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := k.(string)
		if !ok {
			return nil, malformed("The body is not JSON: a field without a name")
		}
		if _, dup := out[name]; dup {
			return nil, malformed("The field %q is given twice", clip(name))
		}
		if out[name], err = readValue(dec, depth); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token() // the closing brace
	return out, err
}

func readValue(dec *json.Decoder, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth >= maxJSONDepth {
		return nil, malformed("The body is nested more than %d deep", maxJSONDepth)
	}
	if delim == '{' {
		return readObject(dec, depth+1)
	}
	list := []any{}
	for dec.More() {
		v, err := readValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err = dec.Token() // the closing bracket
	return list, err
}

func malformed(format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Malformed: true, Op: "registry.DecodeObject", Msg: fmt.Sprintf(format, args...)}
}
