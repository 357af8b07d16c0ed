// Package params reads a model's custom_loader_params by a typed table, so that every loader refuses what it does not
// understand in the same words, before anything is started.
package params

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Spec is one parameter with its limits.
type Spec struct {
	loaders.Param
	Min, Max int64 // with KindInt; both 0 means no limits
	Number   bool  // with KindString: a decimal number, which may also be written without quotes
}

// ofSources are parameters that belong to where the weights come from. A loader passes over them: the guide puts
// auth_token beside the loader's own.
var ofSources = []string{
	"auth_token", "token", "endpoint", "endpoint_url", "region", "profile", "access_key_id", "secret_access_key",
	"session_token", "allow_patterns", "ignore_patterns", "filename", "quantization", "path_style",
	"requester_pays",
	"username", "password",
}

// OfSource reports whether a parameter belongs to where the weights come from, so that no loader has to know it.
func OfSource(name string) bool { return slices.Contains(ofSources, name) }

// Values are the parameters that were given, checked: string, int64, bool, float64, []string or map[string]any.
type Values map[string]any

// Infos returns the table as loaders.Info wants it.
func Infos(specs []Spec) []loaders.Param {
	out := make([]loaders.Param, len(specs))
	for i, s := range specs {
		out[i] = s.Param
	}
	return out
}

// Read checks in against the table. CodeInvalid names every parameter that is unknown or wrong.
func Read(loader string, in map[string]any, specs []Spec) (Values, error) {
	out := Values{}
	var errs []registry.FieldError
	for name, v := range in {
		field := "custom_loader_params." + name
		i := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == name })
		if i < 0 {
			if !OfSource(name) {
				errs = append(errs, registry.FieldError{Field: field, Msg: fmt.Sprintf("is not a parameter of %s; it understands %s", loader, strings.Join(namesOf(specs), ", "))})
			}
			continue
		}
		if v == nil {
			continue
		}
		got, err := specs[i].read(v)
		if err != nil {
			errs = append(errs, registry.FieldError{Field: field, Msg: err.Error()})
			continue
		}
		out[name] = got
	}
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b registry.FieldError) int { return strings.Compare(a.Field, b.Field) })
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "loaders.params", Msg: "The loader " + loader + " refuses the model's parameters", Fields: errs}
	}
	return out, nil
}

func namesOf(specs []Spec) []string {
	out := make([]string, len(specs))
	for i, s := range specs {
		out[i] = s.Name
	}
	slices.Sort(out)
	return out
}

func (s Spec) read(v any) (any, error) {
	switch s.Kind {
	case registry.KindInt:
		n, ok := toInt(v)
		if !ok {
			return nil, fmt.Errorf("must be a whole number, not %T", v)
		}
		if (s.Min != 0 || s.Max != 0) && (n < s.Min || n > s.Max) {
			return nil, fmt.Errorf("must be from %d to %d", s.Min, s.Max)
		}
		return n, nil
	case registry.KindBool:
		b, ok := v.(bool)
		if !ok {
			return nil, fmt.Errorf("must be true or false")
		}
		return b, nil
	case registry.KindEnum:
		str, ok := v.(string)
		if !ok || !slices.Contains(s.Opts, str) {
			return nil, fmt.Errorf("must be one of %s", strings.Join(s.Opts, ", "))
		}
		return str, nil
	case registry.KindString:
		if s.Number {
			f, ok := toFloat(v)
			if !ok {
				return nil, fmt.Errorf("must be a number")
			}
			return f, nil
		}
		str, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("must be a string")
		}
		return str, nil
	case registry.KindStrings:
		list, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("must be a list of strings")
		}
		out := make([]string, 0, len(list))
		for _, e := range list {
			str, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("must be a list of strings")
			}
			out = append(out, str)
		}
		return out, nil
	case registry.KindMap:
		m, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("must be a mapping")
		}
		return m, nil
	case registry.KindInts, registry.KindDuration:
	}
	return nil, fmt.Errorf("has a kind that no loader uses")
}

// toInt accepts what JSON, YAML and the store make of a whole number.
func toInt(v any) (int64, bool) {
	switch v := v.(type) {
	case int:
		return int64(v), true
	case int64:
		return v, true
	case float64:
		if v != math.Trunc(v) || math.Abs(v) > 1<<53 {
			return 0, false
		}
		return int64(v), true
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	}
	return 0, false
}

func toFloat(v any) (float64, bool) {
	var f float64
	var err error
	switch v := v.(type) {
	case string:
		f, err = strconv.ParseFloat(v, 64)
	case json.Number:
		f, err = v.Float64()
	case float64:
		f = v
	default:
		n, ok := toInt(v)
		return float64(n), ok
	}
	return f, err == nil && !math.IsNaN(f) && !math.IsInf(f, 0)
}

// Int returns a whole number and whether it was given; def otherwise.
func (v Values) Int(name string, def int64) (int64, bool) {
	n, ok := v[name].(int64)
	if !ok {
		return def, false
	}
	return n, true
}

// Bool returns a truth value; def when it was not given.
func (v Values) Bool(name string, def bool) bool {
	if b, ok := v[name].(bool); ok {
		return b
	}
	return def
}

// String returns a text; def when it was not given.
func (v Values) String(name, def string) string {
	if s, ok := v[name].(string); ok {
		return s
	}
	return def
}

// Float returns a number and whether it was given.
func (v Values) Float(name string) (float64, bool) {
	f, ok := v[name].(float64)
	return f, ok
}
