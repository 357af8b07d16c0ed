package registry

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Limits on what a field may hold. They are generous for people and small for a database.
const (
	MaxModelID     = 256        // bytes
	MaxPath        = 4096       // bytes
	MaxDescription = 4096       // bytes
	MaxTags        = 32         // tags of up to MaxTag bytes
	MaxTag         = 64         // bytes
	MaxParams      = 64 << 10   // bytes of custom_loader_params as JSON
	MaxContext     = 16_777_216 // tokens
	MaxMemoryMB    = 16_777_216 // MiB: 16 TiB
)

// FieldKind says what a field holds, for decoders and forms.
type FieldKind string

// The kinds of field.
const (
	KindString   FieldKind = "string"
	KindInt      FieldKind = "int"
	KindBool     FieldKind = "bool"
	KindEnum     FieldKind = "enum"
	KindMap      FieldKind = "map"
	KindStrings  FieldKind = "strings"
	KindInts     FieldKind = "ints"
	KindDuration FieldKind = "duration"
)

// Field describes one field of a model. JSON, YAML and the form are all read by this one table.
type Field struct {
	Name     string
	Kind     FieldKind
	Required bool
	Options  []string // with KindEnum
	Help     string   // one line for the form and the docs
	set      func(*Model, any) error
	get      func(*Model) any // nil when not given or at its default
}

// Fields is every field in the order of the guide, then ours.
var Fields = []Field{
	{Name: "model_id", Kind: KindString, Required: true, Help: "A unique name. It may contain slashes, as on the Hugging Face Hub.",
		set: str(func(m *Model) *string { return &m.ModelID }, MaxModelID), get: func(m *Model) any { return orNil(m.ModelID) }},
	{Name: "source_type", Kind: KindEnum, Required: true, Options: names(SourceTypes), Help: "Where the weights come from.",
		set: enum(func(m *Model, s string) { m.SourceType = SourceType(s) }, names(SourceTypes)), get: func(m *Model) any { return orNil(string(m.SourceType)) }},
	{Name: "source_path", Kind: KindString, Required: true, Help: "The Hub's model id, an absolute path on this machine, an s3:// address, an Ollama name or a base URL.",
		set: str(func(m *Model) *string { return &m.SourcePath }, MaxPath), get: func(m *Model) any { return orNil(m.SourcePath) }},
	{Name: "model_format", Kind: KindEnum, Required: true, Options: names(Formats), Help: "How the weights are stored.",
		set: enum(func(m *Model, s string) { m.ModelFormat = Format(s) }, names(Formats)), get: func(m *Model) any { return orNil(string(m.ModelFormat)) }},
	{Name: "revision", Kind: KindString, Help: "A branch, tag or commit. main if not given.",
		set: str(func(m *Model) *string { return &m.Revision }, 256), get: func(m *Model) any { return unless(m.Revision, DefaultRevision) }},
	{Name: "quantization_bits", Kind: KindInt, Help: "4 or 8 to load a quantised version; empty for full precision.",
		set: integer(func(m *Model, n int64) { m.QuantizationBits = int(n) }, 4, 8, func(n int64) bool { return n == 4 || n == 8 }, "must be 4 or 8"), get: func(m *Model) any { return orNil(m.QuantizationBits) }},
	{Name: "device_preference", Kind: KindEnum, Options: names(Devices), Help: "auto uses CUDA where there is a usable GPU, otherwise the CPU.",
		set: enum(func(m *Model, s string) { m.DevicePreference = Device(s) }, names(Devices)), get: func(m *Model) any { return unless(string(m.DevicePreference), string(DeviceAuto)) }},
	{Name: "required_gpu_memory_mb", Kind: KindInt, Help: "GPU memory in MiB that is needed. Used instead of our estimate.",
		set: integer(func(m *Model, n int64) { m.RequiredGPUMemoryMB = n }, 0, MaxMemoryMB, nil, ""), get: func(m *Model) any { return orNil(m.RequiredGPUMemoryMB) }},
	{Name: "required_ram_mb", Kind: KindInt, Help: "System memory in MiB that is needed on the CPU. Used instead of our estimate.",
		set: integer(func(m *Model, n int64) { m.RequiredRAMMB = n }, 0, MaxMemoryMB, nil, ""), get: func(m *Model) any { return orNil(m.RequiredRAMMB) }},
	{Name: "custom_loader_params", Kind: KindMap, Help: "More settings for the loader, for example auth_token for a gated repository.",
		set: params, get: func(m *Model) any {
			if len(m.CustomLoaderParams) == 0 {
				return nil
			}
			return m.CustomLoaderParams
		}},
	{Name: "tokenizer_path", Kind: KindString, Help: "Where the tokenizer is, if not beside the weights: a folder, or another repository of the Hub.",
		set: str(func(m *Model) *string { return &m.TokenizerPath }, MaxPath), get: func(m *Model) any { return orNil(m.TokenizerPath) }},
	{Name: "trust_remote_code", Kind: KindBool, Help: "Run Python that comes with the model. Off unless you trust its authors.",
		set: boolean(func(m *Model, b bool) { m.TrustRemoteCode = b }), get: func(m *Model) any { return orNil(m.TrustRemoteCode) }},

	{Name: "engine", Kind: KindEnum, Options: Engines, Help: "The program that runs the model. auto chooses by source, format, architecture and device.",
		set: enum(func(m *Model, s string) { m.Engine = s }, Engines), get: func(m *Model) any { return unless(m.Engine, EngineAuto) }},
	{Name: "team", Kind: KindString, Help: "The team that owns the model.",
		set: str(func(m *Model) *string { return &m.Team }, 64), get: func(m *Model) any { return unless(m.Team, DefaultTeam) }},
	{Name: "description", Kind: KindString, Help: "What it is for, in a line or two.",
		set: text(func(m *Model) *string { return &m.Description }, MaxDescription), get: func(m *Model) any { return orNil(m.Description) }},
	{Name: "tags", Kind: KindStrings, Help: "Words to find it by, separated by commas.",
		set: tags, get: func(m *Model) any {
			if len(m.Tags) == 0 {
				return nil
			}
			return m.Tags
		}},
	{Name: "context_length", Kind: KindInt, Help: "Tokens of context. Empty: what the model was trained for, at most 8,192.",
		set: integer(func(m *Model, n int64) { m.ContextLength = int(n) }, 0, MaxContext, nil, ""), get: func(m *Model) any { return orNil(m.ContextLength) }},
	{Name: "gpu_ids", Kind: KindInts, Help: "GPUs it may use, by number, separated by commas. Empty: the planner chooses.",
		set: gpuIDs, get: func(m *Model) any {
			if len(m.GPUIDs) == 0 {
				return nil
			}
			return m.GPUIDs
		}},
	{Name: "idle_timeout", Kind: KindDuration, Help: "Unload after this long without a request, for example 45m. Empty: never.",
		set: duration, get: func(m *Model) any {
			if m.IdleTimeout == 0 {
				return nil
			}
			return m.IdleTimeout.String()
		}},
	{Name: "pinned", Kind: KindBool, Help: "Never evicted, and loaded again when the server starts.",
		set: boolean(func(m *Model, b bool) { m.Pinned = b }), get: func(m *Model) any { return orNil(m.Pinned) }},
	{Name: "priority", Kind: KindInt, Help: "-100 to 100. Higher is evicted later.",
		set: integer(func(m *Model, n int64) { m.Priority = int(n) }, -100, 100, nil, ""), get: func(m *Model) any { return orNil(m.Priority) }},
}

var fieldByName = func() map[string]*Field {
	m := make(map[string]*Field, len(Fields))
	for i := range Fields {
		m[Fields[i].Name] = &Fields[i]
	}
	return m
}()

// FieldByName returns the field of that name.
func FieldByName(name string) (Field, bool) {
	f, ok := fieldByName[name]
	if !ok {
		return Field{}, false
	}
	return *f, true
}

// Value returns the field's value in m as it would be written to JSON or YAML, or nil when it is not given or at
// its default.
func (f Field) Value(m Model) any { return f.get(&m) }

// Decode makes a Model of a map as it comes out of JSON or YAML (strings, bools, nil, int64, float64, json.Number,
// []any, map[string]any), with defaults filled in. Every wrong field is reported, unknown ones too; the Model is
// usable only when there is no FieldError.
func Decode(in map[string]any) (Model, []FieldError) {
	var m Model
	var errs []FieldError
	bad := map[string]bool{}
	for name, v := range in {
		f, ok := fieldByName[name]
		if !ok {
			errs = append(errs, FieldError{Field: clip(name), Msg: "is not a field of a model" + suggest(name)})
			continue
		}
		if v == nil {
			continue // null means not given, as None in the guide
		}
		if err := f.set(&m, v); err != nil {
			errs = append(errs, FieldError{Field: name, Msg: err.Error()})
			bad[name] = true
		}
	}
	m = m.WithDefaults()
	for _, fe := range Validate(m) {
		if !bad[fe.Field] {
			errs = append(errs, fe)
		}
	}
	sortByField(errs)
	return m, errs
}

// DecodeGaps is Decode for a model that is to be looked up: model_id and model_format may be missing.
func DecodeGaps(in map[string]any) (Model, []FieldError) {
	m, errs := Decode(in)
	return m, slices.DeleteFunc(errs, func(f FieldError) bool {
		return (f.Field == "model_id" && m.ModelID == "" || f.Field == "model_format" && m.ModelFormat == "") && (in[f.Field] == nil || in[f.Field] == "")
	})
}

// DecodeJSON reads one model from JSON, strictly: unknown and repeated fields, wrong types and trailing data are
// errors that name the field.
func DecodeJSON(b []byte) (Model, error) {
	in, err := DecodeObject(b)
	if err != nil {
		return Model{}, err
	}
	m, errs := Decode(in)
	if len(errs) > 0 {
		return Model{}, &Error{Code: CodeInvalid, Op: "registry.DecodeJSON", Msg: "The model is not valid", Fields: errs}
	}
	return m, nil
}

// Encode is the inverse of Decode: the fields that are given, by name, without those at their default.
func Encode(m Model) map[string]any {
	out := map[string]any{}
	for _, f := range Fields {
		if v := f.get(&m); v != nil {
			out[f.Name] = v
		}
	}
	return out
}

func names[S ~string](in []S) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return out
}

func orNil[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

func unless(v, def string) any {
	if v == def {
		return nil
	}
	return orNil(v)
}

func sortByField(errs []FieldError) {
	order := func(name string) int {
		for i, f := range Fields {
			if f.Name == name {
				return i
			}
		}
		return len(Fields)
	}
	sort.SliceStable(errs, func(i, j int) bool {
		a, b := order(errs[i].Field), order(errs[j].Field)
		if a != b {
			return a < b
		}
		return errs[i].Field < errs[j].Field
	})
}

func suggest(name string) string {
	best, dist := "", 3
	for _, f := range Fields {
		if d := editDistance(strings.ToLower(clip(name)), f.Name, dist); d < dist {
			best, dist = f.Name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// editDistance is Levenshtein's, given up at limit.
func editDistance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
		}
		prev = cur
	}
	return prev[len(b)]
}
