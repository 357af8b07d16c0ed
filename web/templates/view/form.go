package view

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Form is the page that registers or edits a model. Values hold what was typed, by field name, so that a refused
// form comes back as it was sent.
type Form struct {
	Page
	New     bool
	ModelID string // of the model that is edited; its name cannot be changed
	Version int64  // that the edit started from: the server refuses it when somebody changed the model since
	Values  map[string]string
	Errors  map[string]string
	Error   string // what is wrong with the whole
	Persist bool
	Teams   []string
	Params  []Param           // what the loaders understand in custom_loader_params
	Secrets []registry.Secret // that credentials may be taken from
	Filled  map[string]string // of Values, what was filled in from the source
	Offered string            // the source and path that Values["offer"] was chosen at
	Preview *Preview
	Can     Can
}

// Param is a loader's setting, for the help below custom_loader_params.
type Param struct {
	Name, Engine, Help string
}

// NewForm is an empty form with the defaults.
func NewForm() Form {
	return Form{New: true, Persist: true, Errors: map[string]string{}, Values: map[string]string{
		"source_type":       string(registry.SourceHuggingFace),
		"device_preference": string(registry.DeviceAuto), "engine": registry.EngineAuto, "team": registry.DefaultTeam,
	}}
}

// FormOf fills the form with a model. Secrets are redacted; registry.KeepSecrets puts them back on the way in.
func FormOf(r registry.Record) Form {
	f := NewForm()
	f.New, f.ModelID, f.Version, f.Persist = false, r.ModelID, r.Version, r.Persist
	m := r.Redacted()
	m.CustomLoaderParams = f.lift(m)
	for _, field := range registry.Fields {
		switch v := field.Value(m).(type) {
		case nil:
			if field.Kind != registry.KindEnum {
				delete(f.Values, field.Name)
			}
		case map[string]any:
			b, err := yaml.Marshal(v)
			if err != nil { // cannot happen with what Decode let in; show JSON rather than nothing
				b, _ = json.MarshalIndent(v, "", "  ")
			}
			f.Values[field.Name] = strings.TrimSuffix(string(b), "\n")
		case []string:
			f.Values[field.Name] = strings.Join(v, ", ")
		case []int:
			f.Values[field.Name] = strings.Trim(strings.Join(strings.Fields(fmt.Sprint(v)), ", "), "[]")
		default:
			f.Values[field.Name] = fmt.Sprint(v)
		}
	}
	f.Values["model_format"] = string(m.ModelFormat)
	f.Values["team"] = m.Team
	return f
}

// WithErrors returns the form with the errors of e at their fields.
func (f Form) WithErrors(e *registry.Error) Form {
	f.Errors = map[string]string{}
	f.Error = e.Msg
	for _, fe := range e.Fields {
		if param, ok := strings.CutPrefix(fe.Field, "custom_loader_params."); ok {
			f.paramError(param, fe.Msg)
			continue
		}
		if _, known := registry.FieldByName(fe.Field); !known {
			f.Error += ": " + fe.Field + " " + fe.Msg
			continue
		}
		label, _, _ := strings.Cut(FieldLabel(fe.Field), ",") // without the unit
		f.Errors[fe.Field] = label + " " + fe.Msg + "."
	}
	return f
}

var wholeNumber = regexp.MustCompile(`^[+-]?[0-9]{1,18}$`)

// DecodeForm turns what a browser sent into the map that registry.Decode reads, and into the form to show again if
// that refuses it. Empty fields are left out: they mean "not given". Text that should be a number stays text, so
// that registry.Decode names the field and quotes what was typed. Unknown names of ours (persist, version) are left
// to the caller; errs holds what is wrong with custom_loader_params as YAML.
func DecodeForm(in url.Values) (model map[string]any, form Form, errs []registry.FieldError) {
	model, form = map[string]any{}, NewForm()
	form.Values = map[string]string{}
	form.Persist = in.Get("persist") != ""
	for _, field := range registry.Fields {
		// Browsers send line ends as CR LF.
		s := strings.ReplaceAll(in.Get(field.Name), "\r\n", "\n")
		if field.Name != "description" && field.Name != "custom_loader_params" {
			s = strings.TrimSpace(s)
		}
		if s == "" {
			continue
		}
		form.Values[field.Name] = s
		switch field.Kind {
		case registry.KindInt:
			model[field.Name] = number(s)
		case registry.KindBool:
			model[field.Name] = s == "true" || s == "on" || s == "1"
		case registry.KindStrings:
			list := []any{}
			for _, p := range strings.Split(s, ",") {
				if p = strings.TrimSpace(p); p != "" {
					list = append(list, p)
				}
			}
			model[field.Name] = list
		case registry.KindInts:
			list := []any{}
			for _, p := range strings.Split(s, ",") {
				if p = strings.TrimSpace(p); p != "" {
					list = append(list, number(p))
				}
			}
			model[field.Name] = list
		case registry.KindMap:
			if strings.TrimSpace(s) == "" {
				continue
			}
			params, err := decodeParams(s)
			if err != nil {
				errs = append(errs, registry.FieldError{Field: field.Name, Msg: err.Error()})
				continue
			}
			if len(params) > 0 {
				model[field.Name] = params
			}
		case registry.KindString, registry.KindEnum, registry.KindDuration:
			model[field.Name] = s
		}
	}
	if wholeNumber.MatchString(form.Values["idle_timeout"]) {
		model["idle_timeout"] = number(form.Values["idle_timeout"]) // seconds, as in JSON
	}
	errs = append(errs, form.lower(in, model)...)
	return model, form, errs
}

func number(s string) any {
	s = strings.NewReplacer(" ", "", "\u00a0", "").Replace(s)
	if thousands.MatchString(s) {
		s = strings.ReplaceAll(s, ",", "")
	}
	if wholeNumber.MatchString(s) {
		return json.Number(strings.TrimPrefix(s, "+"))
	}
	return s
}

// thousands is a number as this console writes it: 8,192.
var thousands = regexp.MustCompile(`^[0-9]{1,3}(,[0-9]{3})+$`)

// decodeParams reads custom_loader_params: one "name: value" a line, that is YAML, or JSON.
func decodeParams(s string) (map[string]any, error) {
	if len(s) > registry.MaxParams {
		return nil, fmt.Errorf("is %d bytes long; at most %d are allowed", len(s), registry.MaxParams)
	}
	var v any
	if err := yaml.Unmarshal([]byte(s), &v); err != nil {
		return nil, fmt.Errorf("cannot be read: write one setting a line as name: value (%s)", firstLine(err.Error()))
	}
	switch m := v.(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return m, nil
	}
	return nil, fmt.Errorf("must be settings, one a line, as name: value")
}

func firstLine(s string) string {
	s = strings.TrimPrefix(s, "yaml: ")
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		s = s[:i]
	}
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return s
}

// PathHint says what source_path is for a source.
func PathHint(source string) (placeholder, hint string) {
	switch registry.SourceType(source) {
	case registry.SourceLocal:
		return "/srv/models/SmolLM2-135M-Instruct.Q4_1.gguf", "The absolute path of a file or a folder on the machine where llmm runs."
	case registry.SourceS3:
		return "s3://bucket/models/bge-m3", "The address of a folder in a bucket."
	case registry.SourceOllama:
		return "llama3.2:3b", "The name and tag as Ollama knows the model."
	case registry.SourceExternal:
		return "https://llm.example.com", "The base URL of an OpenAI-compatible service, without /v1."
	case registry.SourceHuggingFace:
	}
	return "Qwen/Qwen3-8B", "The model's id on the Hugging Face Hub, or the address of its page there."
}

// Checked reports whether a yes-or-no field is on.
func (f Form) Checked(name string) bool { return f.Values[name] == "true" || f.Values[name] == "on" }

func quoteJSON(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return `""`
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// quoteShell writes s as one word of a POSIX shell.
func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
