package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
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
	{Name: "tokenizer_path", Kind: KindString, Help: "Where the tokenizer is, if not beside the weights.",
		set: str(func(m *Model) *string { return &m.TokenizerPath }, MaxPath), get: func(m *Model) any { return orNil(m.TokenizerPath) }},
	{Name: "trust_remote_code", Kind: KindBool, Help: "Run Python that comes with the model. Off unless you trust its authors.",
		set: boolean(func(m *Model, b bool) { m.TrustRemoteCode = b }), get: func(m *Model) any { return orNil(m.TrustRemoteCode) }},

	{Name: "engine", Kind: KindEnum, Options: Engines, Help: "The program that runs the model. auto chooses by format and device.",
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

// DecodeObject reads one JSON object into a map, refusing repeated names and trailing data. Numbers stay
// json.Number.
func DecodeObject(b []byte) (map[string]any, error) {
	malformed := func(format string, args ...any) error {
		return &Error{Code: CodeInvalid, Malformed: true, Op: "registry.DecodeObject", Msg: fmt.Sprintf(format, args...)}
	}
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
	out := map[string]any{}
	for dec.More() {
		k, err := dec.Token()
		if err != nil {
			return nil, malformed("The body is not JSON: %v", err)
		}
		name, ok := k.(string)
		if !ok {
			return nil, malformed("The body is not JSON: a field without a name")
		}
		if _, dup := out[name]; dup {
			return nil, malformed("The field %q is given twice", clip(name))
		}
		var v any
		if err := dec.Decode(&v); err != nil {
			return nil, malformed("The body is not JSON: %v (in %q)", err, clip(name))
		}
		out[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed("The body is not JSON: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("There is more after the JSON object")
	}
	return out, nil
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

// Validate checks what can be checked of a model without looking at the machine.
func Validate(m Model) []FieldError {
	var errs []FieldError
	add := func(field, format string, args ...any) {
		errs = append(errs, FieldError{Field: field, Msg: fmt.Sprintf(format, args...)})
	}
	if err := ValidateModelID(m.ModelID); err != nil {
		add("model_id", "%s", err.Error())
	}
	if m.SourceType == "" {
		add("source_type", "is required; one of %s", strings.Join(names(SourceTypes), ", "))
	}
	if m.ModelFormat == "" {
		add("model_format", "is required; one of %s", strings.Join(names(Formats), ", "))
	}
	switch {
	case m.SourcePath == "":
		add("source_path", "is required")
	case m.SourceType == SourceLocal:
		if msg := checkLocalPath(m.SourcePath); msg != "" {
			add("source_path", "%s", msg)
		}
	case m.SourceType == SourceHuggingFace:
		if msg := checkRepoID(m.SourcePath); msg != "" {
			add("source_path", "%s", msg)
		}
	case m.SourceType == SourceExternal:
		if !strings.HasPrefix(m.SourcePath, "http://") && !strings.HasPrefix(m.SourcePath, "https://") {
			add("source_path", "must be a base URL that starts with http:// or https://")
		}
	}
	if m.TokenizerPath != "" {
		if strings.HasPrefix(m.TokenizerPath, "/") {
			if msg := checkLocalPath(m.TokenizerPath); msg != "" {
				add("tokenizer_path", "%s", msg)
			}
		} else if hasDotDot(m.TokenizerPath) {
			add("tokenizer_path", "must not contain ..")
		}
	}
	if hasDotDot(m.Revision) || strings.HasPrefix(m.Revision, "-") {
		add("revision", "must be a branch, tag or commit")
	}
	if err := ValidateTeam(m.Team); err != nil {
		add("team", "%s", err.Error())
	}
	return errs
}

// ValidateModelID checks an id: 1 to 256 bytes of letters, digits and . _ - : @ + in segments separated by single
// slashes; no segment is . or .., and none starts with a dash. Letters are those of any script, so that a team can
// use its own; ids that differ only in case are told apart by the store, which refuses the second.
func ValidateModelID(id string) error {
	switch {
	case id == "":
		return errors.New("is required")
	case len(id) > MaxModelID:
		return fmt.Errorf("is %d bytes long; at most %d are allowed", len(id), MaxModelID)
	case !utf8.ValidString(id):
		return errors.New("is not UTF-8")
	}
	for _, r := range id {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.Is(unicode.Mn, r) && !strings.ContainsRune("._-:@+/", r) {
			return fmt.Errorf("must not contain %s; use letters, digits and . _ - : @ + /", describeRune(r))
		}
	}
	for seg := range strings.SplitSeq(id, "/") {
		switch {
		case seg == "":
			return errors.New("must not start or end with a slash, nor contain two in a row")
		case seg == "." || seg == "..":
			return fmt.Errorf("must not contain %q as a part", seg)
		case seg[0] == '-':
			return errors.New("must not have a part that starts with a dash")
		}
	}
	return nil
}

// ValidateTeam checks a team's name: 1 to 64 bytes of lower-case ASCII letters, digits, dashes and underscores.
func ValidateTeam(name string) error {
	if name == "" || len(name) > 64 {
		return errors.New("must be 1 to 64 bytes long")
	}
	for i, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && (i == 0 || (r != '-' && r != '_')) {
			return errors.New("must be lower-case letters, digits, dashes and underscores, and start with a letter or digit")
		}
	}
	return nil
}

func checkLocalPath(p string) string {
	switch {
	case !filepath.IsAbs(p):
		return "must be an absolute path, such as /opt/models/my-model"
	case hasDotDot(p):
		return "must not contain .."
	}
	return ""
}

func checkRepoID(id string) string {
	parts := strings.Split(id, "/")
	if len(parts) > 2 {
		return "must be a Hub model id such as org/name"
	}
	for _, p := range parts {
		if p == "" || strings.HasPrefix(p, "-") || strings.HasPrefix(p, ".") || strings.Contains(p, "..") || strings.HasSuffix(p, ".git") || len(p) > 96 {
			return "must be a Hub model id such as org/name"
		}
		for _, r := range p {
			if r > unicode.MaxASCII || (!unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r)) {
				return "must be a Hub model id such as org/name: letters, digits and . _ -"
			}
		}
	}
	return ""
}

func hasDotDot(p string) bool { return slices.Contains(strings.Split(filepath.ToSlash(p), "/"), "..") }

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
	return func(m *Model, v any) error {
		n, err := toInt(v)
		if err != nil {
			return err
		}
		if n < lo || n > hi || (accept != nil && !accept(n)) {
			if msg == "" {
				msg = fmt.Sprintf("must be between %d and %d", lo, hi)
			}
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
	list, ok := v.([]any)
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

func gpuIDs(m *Model, v any) error {
	list, ok := v.([]any)
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

// cleanValue checks a free-form value and makes its numbers int64 or float64, whatever it was read from.
func cleanValue(v any, depth int) (any, error) {
	if depth > 8 {
		return nil, errors.New("is nested more than 8 deep")
	}
	switch v := v.(type) {
	case nil, bool, int64, float64:
		return v, nil
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
		return f, nil
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

// clip shortens what a person typed so that it can be quoted in a message.
func clip(s string) string {
	const limit = 60
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) && len(s) > 0 {
		s = s[:len(s)-1]
	}
	return s + "…"
}

func describeRune(r rune) string {
	switch {
	case r == ' ':
		return "spaces"
	case unicode.IsControl(r) || !unicode.IsPrint(r):
		return fmt.Sprintf("the character %U", r)
	}
	return strconv.Quote(string(r))
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
