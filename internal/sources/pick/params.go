package pick

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Params are the custom_loader_params that choose files.
type Params struct {
	Choice
	Allow, Ignore []string // patterns, as Filter takes them
}

// Limits on the parameters, so that a pattern cannot keep the server busy.
const (
	maxPatterns = 100
	maxPattern  = 512 // bytes
)

// Read reads quantization, filename, allow_patterns and ignore_patterns; a pattern alone may stand for a list of one.
// It returns every fault, with Field set to custom_loader_params.NAME.
func Read(format registry.Format, params map[string]any) (Params, []registry.FieldError) {
	var p Params
	var errs []registry.FieldError
	bad := func(name, format string, args ...any) {
		errs = append(errs, registry.FieldError{Field: "custom_loader_params." + name, Msg: fmt.Sprintf(format, args...)})
	}
	text := func(name string) string {
		v, given := params[name]
		if !given || v == nil {
			return ""
		}
		s, ok := v.(string)
		switch {
		case !ok:
			bad(name, "must be a string, not %T", v)
			return ""
		case len(s) > maxPattern:
			bad(name, "is %d bytes long; at most %d are allowed", len(s), maxPattern)
			return ""
		}
		return strings.TrimSpace(s)
	}
	list := func(name string) []string {
		var out []string
		switch v := params[name].(type) {
		case nil:
		case string:
			out = []string{v}
		case []string:
			out = v
		case []any:
			for _, e := range v {
				s, ok := e.(string)
				if !ok {
					bad(name, "must be a list of strings such as \"*.safetensors\", but one of them is a %T", e)
					return nil
				}
				out = append(out, s)
			}
		default:
			bad(name, "must be a list of strings such as \"*.safetensors\", not %T", v)
		}
		if len(out) > maxPatterns || slices.ContainsFunc(out, func(s string) bool { return len(s) > maxPattern }) {
			bad(name, "may have at most %d patterns of %d bytes", maxPatterns, maxPattern)
			return nil
		}
		return out
	}
	p.Filename = text("filename")
	if format == registry.FormatGGUF || format == "" { // elsewhere it is an engine's own parameter
		p.Quantization = text("quantization")
	}
	p.Allow, p.Ignore = list("allow_patterns"), list("ignore_patterns")
	switch {
	case p.Filename == "":
	case path.IsAbs(p.Filename), strings.ContainsAny(p.Filename, "\\\x00"), slices.Contains(strings.Split(p.Filename, "/"), ".."):
		bad("filename", "is %q, which leads out of the model; give the path of a file in it", p.Filename)
	case p.Quantization != "":
		bad("filename", "says the same as quantization; give one of the two")
	case format != "" && format != registry.FormatGGUF && format != registry.FormatONNX:
		bad("filename", "chooses one file, but a model of format %s is several; use allow_patterns", format)
	}
	return p, errs
}
