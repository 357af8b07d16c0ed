package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

func str(field func(*Model) *string, limit int) func(*Model, any) error {
	return stringSetter(field, limit, false)
}

// text is str for a field of several lines.
func text(field func(*Model) *string, limit int) func(*Model, any) error {
	return stringSetter(field, limit, true)
}

func stringSetter(field func(*Model) *string, limit int, lines bool) func(*Model, any) error {
	return func(m *Model, v any) error {
		s, ok := v.(string)
		if !ok {
			return wrongType("text", v)
		}
		if err := checkText(s, limit, lines); err != nil {
			return err
		}
		*field(m) = s
		return nil
	}
}

func checkText(s string, limit int, lines bool) error {
	if len(s) > limit {
		return fmt.Errorf("is %d bytes long; at most %d are allowed", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return errors.New("is not UTF-8")
	}
	for _, r := range s {
		if (unicode.IsControl(r) && (!lines || (r != '\n' && r != '\t' && r != '\r'))) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return fmt.Errorf("must not contain the control character %U", r)
		}
	}
	return nil
}

func enum(set func(*Model, string), options []string) func(*Model, any) error {
	return func(m *Model, v any) error {
		s, ok := v.(string)
		if !ok {
			return wrongType("one of "+strings.Join(options, ", "), v)
		}
		if !slices.Contains(options, s) {
			return fmt.Errorf("must be one of %s, not %q", strings.Join(options, ", "), clip(s))
		}
		set(m, s)
		return nil
	}
}

func integer(set func(*Model, int64), lo, hi int64, accept func(int64) bool, msg string) func(*Model, any) error {
	if msg == "" {
		msg = fmt.Sprintf("must be between %d and %d", lo, hi)
	}
	return func(m *Model, v any) error {
		n, err := toInt(v)
		if err != nil {
			return err
		}
		if n < lo || n > hi || (accept != nil && !accept(n)) {
			return fmt.Errorf("%s, not %d", msg, n)
		}
		set(m, n)
		return nil
	}
}

func boolean(set func(*Model, bool)) func(*Model, any) error {
	return func(m *Model, v any) error {
		b, ok := v.(bool)
		if !ok {
			return wrongType("true or false", v)
		}
		set(m, b)
		return nil
	}
}

func duration(m *Model, v any) error {
	switch n := v.(type) {
	case json.Number:
		f, err := n.Float64()
		if err != nil {
			return errors.New("must be a duration such as 15m or a number of seconds")
		}
		v = f
	case int64:
		v = float64(n)
	case int:
		v = float64(n)
	}
	d, err := parseDuration(v)
	if err != nil {
		return err
	}
	if d < 0 || d > Duration(365*24*3600*1e9) {
		return errors.New("must be between 0 and 8760h")
	}
	m.IdleTimeout = d
	return nil
}

func tags(m *Model, v any) error {
	list, ok := asList(v)
	if !ok {
		return wrongType("a list of words", v)
	}
	if len(list) > MaxTags {
		return fmt.Errorf("has %d entries; at most %d are allowed", len(list), MaxTags)
	}
	out := make([]string, 0, len(list))
	for i, e := range list {
		s, ok := e.(string)
		if !ok {
			return fmt.Errorf("entry %d %w", i+1, wrongType("text", e))
		}
		s = strings.TrimSpace(s)
		if s == "" {
			return fmt.Errorf("entry %d is empty", i+1)
		}
		if err := checkText(s, MaxTag, false); err != nil {
			return fmt.Errorf("entry %d %w", i+1, err)
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	m.Tags = out
	return nil
}

// asList takes the lists that Encode makes, too, so that the two are inverse.
func asList(v any) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case []string:
		return anys(v), true
	case []int:
		return anys(v), true
	}
	return nil, false
}

func anys[T any](in []T) []any {
	out := make([]any, len(in))
	for i := range in {
		out[i] = in[i]
	}
	return out
}

func gpuIDs(m *Model, v any) error {
	list, ok := asList(v)
	if !ok {
		return wrongType("a list of GPU numbers", v)
	}
	if len(list) > 64 {
		return fmt.Errorf("has %d entries; at most 64 are allowed", len(list))
	}
	out := make([]int, 0, len(list))
	for i, e := range list {
		n, err := toInt(e)
		if err != nil {
			return fmt.Errorf("entry %d %w", i+1, err)
		}
		if n < 0 || n > 1023 {
			return fmt.Errorf("entry %d must be between 0 and 1023, not %d", i+1, n)
		}
		if slices.Contains(out, int(n)) {
			return fmt.Errorf("names GPU %d twice", n)
		}
		out = append(out, int(n))
	}
	m.GPUIDs = out
	return nil
}

func params(m *Model, v any) error {
	p, ok := v.(map[string]any)
	if _, isText := v.(string); isText {
		return errors.New("must be a map of names to values, not text") // not quoted: it may hold a secret
	}
	if !ok {
		return wrongType("a map of names to values", v)
	}
	clean, err := cleanValue(p, 0)
	if err != nil {
		return err
	}
	b, err := json.Marshal(clean)
	if err != nil {
		return errors.New("has a value that JSON cannot hold")
	}
	if len(b) > MaxParams {
		return fmt.Errorf("is %d bytes long as JSON; at most %d are allowed", len(b), MaxParams)
	}
	m.CustomLoaderParams, _ = clean.(map[string]any)
	return nil
}

// cleanValue checks a free-form value and makes its whole numbers int64 and the others float64, whatever it was read
// from: what YAML, the form and the database give for one value compares equal.
func cleanValue(v any, depth int) (any, error) {
	if depth > 8 {
		return nil, errors.New("is nested more than 8 deep")
	}
	switch v := v.(type) {
	case nil, bool, int64:
		return v, nil
	case float64:
		return cleanFloat(v)
	case int:
		return int64(v), nil
	case uint64:
		if v > math.MaxInt64 {
			return nil, errors.New("has a number that is too large")
		}
		return int64(v), nil
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		f, err := v.Float64()
		if err != nil {
			return nil, errors.New("has a number that is too large")
		}
		return cleanFloat(f)
	case string:
		if err := checkText(v, MaxParams, true); err != nil {
			return nil, fmt.Errorf("has a value that %w", err)
		}
		return v, nil
	case []any:
		out := make([]any, len(v))
		for i := range v {
			c, err := cleanValue(v[i], depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = c
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			if k == "" {
				return nil, errors.New("has an entry without a name")
			}
			if err := checkText(k, 256, false); err != nil {
				return nil, fmt.Errorf("has a name that %w", err)
			}
			c, err := cleanValue(e, depth+1)
			if err != nil {
				return nil, err
			}
			out[k] = c
		}
		return out, nil
	}
	return nil, fmt.Errorf("has a value of type %T, which is not possible here", v)
}

// cleanFloat makes a whole number an int64. Those beyond it are refused: they would not come back from JSON as they
// went in.
func cleanFloat(f float64) (any, error) {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return nil, errors.New("has a value that is not a number")
	case f != math.Trunc(f):
		return f, nil
	case f >= math.MaxInt64 || f < math.MinInt64:
		return nil, errors.New("has a number that is too large")
	}
	return int64(f), nil
}

func toInt(v any) (int64, error) {
	switch v := v.(type) {
	case int:
		return int64(v), nil
	case int64:
		return v, nil
	case uint64:
		if v <= math.MaxInt64 {
			return int64(v), nil
		}
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), nil
		}
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return n, nil
		}
		if f, err := v.Float64(); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return int64(f), nil
		}
	}
	return 0, wrongType("a whole number", v)
}

func wrongType(want string, v any) error {
	got := "something else"
	switch v := v.(type) {
	case string:
		got = fmt.Sprintf("the text %q", clip(v))
	case bool:
		got = strconv.FormatBool(v)
	case float64, int64, int, uint64, json.Number:
		got = fmt.Sprintf("the number %s", clip(fmt.Sprint(v)))
	case []any:
		got = "a list"
	case map[string]any:
		got = "a map"
	}
	return fmt.Errorf("must be %s, not %s", want, got)
}
