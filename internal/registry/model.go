package registry

import (
	"encoding/json"
	"fmt"
	"time"
)

// SourceType says where the weights come from.
type SourceType string

// The sources. The guide's are huggingface and local; it calls s3 and external_service future.
const (
	SourceHuggingFace SourceType = "huggingface"
	SourceLocal       SourceType = "local"
	SourceS3          SourceType = "s3"
	SourceOllama      SourceType = "ollama"
	SourceExternal    SourceType = "external_service"
)

// SourceTypes lists every source in the order in which the console offers them.
var SourceTypes = []SourceType{SourceHuggingFace, SourceLocal, SourceS3, SourceOllama, SourceExternal}

// Format is how the weights are stored.
type Format string

// The formats. The guide's are transformers_pt and safetensors; it calls gguf and onnx future.
const (
	FormatTransformersPT Format = "transformers_pt"
	FormatSafetensors    Format = "safetensors"
	FormatGGUF           Format = "gguf"
	FormatONNX           Format = "onnx"
)

// Formats lists every format in the order in which the console offers them.
var Formats = []Format{FormatSafetensors, FormatTransformersPT, FormatGGUF, FormatONNX}

// Device is a kind of device that a model may ask for.
type Device string

// The device preferences of the guide. Auto is CUDA where there is a usable one, else CPU.
const (
	DeviceAuto Device = "auto"
	DeviceCUDA Device = "cuda"
	DeviceCPU  Device = "cpu"
)

// Devices lists every device preference in the order in which the console offers them.
var Devices = []Device{DeviceAuto, DeviceCUDA, DeviceCPU}

// EngineAuto lets the manager choose the engine by source, format and device.
const EngineAuto = "auto"

// Engines lists the names that a model's engine field may have.
var Engines = []string{EngineAuto, "llamacpp", "ollama", "transformers", "vllm", "external", "command", "fake"}

// DefaultRevision is what revision means when nothing is given.
const DefaultRevision = "main"

// DefaultTeam owns a model for which no team is given.
const DefaultTeam = "default"

// Model is a registered configuration: what the guide calls ModelConfiguration. Field names in JSON and YAML are
// the guide's. The zero value of an optional field means "not given".
type Model struct {
	ModelID     string     `json:"model_id"`
	SourceType  SourceType `json:"source_type"`
	SourcePath  string     `json:"source_path"`
	ModelFormat Format     `json:"model_format"`

	Revision            string         `json:"revision"`
	QuantizationBits    int            `json:"quantization_bits,omitempty"` // 0 (none: full precision), 4 or 8
	DevicePreference    Device         `json:"device_preference"`
	RequiredGPUMemoryMB int64          `json:"required_gpu_memory_mb,omitempty"` // MiB; 0 when not given
	RequiredRAMMB       int64          `json:"required_ram_mb,omitempty"`        // MiB; 0 when not given
	CustomLoaderParams  map[string]any `json:"custom_loader_params,omitempty"`
	TokenizerPath       string         `json:"tokenizer_path,omitempty"`
	TrustRemoteCode     bool           `json:"trust_remote_code"`

	Engine        string   `json:"engine"`
	Team          string   `json:"team"`
	Description   string   `json:"description,omitempty"`
	Tags          []string `json:"tags,omitempty"`
	ContextLength int      `json:"context_length,omitempty"` // tokens; 0 leaves it to the engine's rule
	GPUIDs        []int    `json:"gpu_ids,omitempty"`        // NVML indices; empty lets the planner choose
	IdleTimeout   Duration `json:"idle_timeout,omitempty"`   // unload after this long without a request; 0 never
	Pinned        bool     `json:"pinned,omitempty"`         // never evicted; loaded again at start
	Priority      int      `json:"priority,omitempty"`       // -100 … 100; higher is evicted later
}

// WithDefaults returns m with the guide's defaults where nothing was given.
func (m Model) WithDefaults() Model {
	if m.Revision == "" {
		m.Revision = DefaultRevision
	}
	if m.DevicePreference == "" {
		m.DevicePreference = DeviceAuto
	}
	if m.Engine == "" {
		m.Engine = EngineAuto
	}
	if m.Team == "" {
		m.Team = DefaultTeam
	}
	return m
}

// Redacted returns m with every secret of custom_loader_params replaced, for showing and exporting.
func (m Model) Redacted() Model {
	m.CustomLoaderParams = redactMap(m.CustomLoaderParams)
	return m
}

// Record is a model as the registry keeps it.
type Record struct {
	Model
	Registration RegistrationState `json:"registration"`
	Persist      bool              `json:"persist"` // false: gone when the server stops
	Version      int64             `json:"version"` // grows by one at every change; the ETag
	CreatedAt    time.Time         `json:"created_at"`
	CreatedBy    string            `json:"created_by"`
	UpdatedAt    time.Time         `json:"updated_at"`
	UpdatedBy    string            `json:"updated_by"`
}

// Runtime is what is known about a model's instance, stored so that a restart can pick it up. A model that was
// never loaded has none; treat that as the zero value with State RuntimeStopped.
type Runtime struct {
	ModelID       string        `json:"model_id"`
	Desired       RuntimeState  `json:"desired"` // RuntimeReady or RuntimeStopped
	State         RuntimeState  `json:"state"`
	Artifact      ArtifactState `json:"artifact"`
	Generation    int64         `json:"generation"` // grows at every load; results of older ones are dropped
	InstanceID    string        `json:"instance_id,omitempty"`
	Engine        string        `json:"engine,omitempty"`
	EngineVersion string        `json:"engine_version,omitempty"`
	Device        string        `json:"device,omitempty"` // cpu, cuda:0, cuda:0,1, remote
	Handle        *Handle       `json:"-"`
	Endpoint      *Endpoint     `json:"endpoint,omitempty"`
	Memory        Memory        `json:"memory"`
	Attempts      int           `json:"attempts,omitempty"` // restarts after crashes since it was last ready for long
	Unwell        string        `json:"unwell,omitempty"`   // what is wrong with an instance that runs, in words; not stored
	Activity      *Activity     `json:"activity,omitempty"` // what its engine said last of its work; not stored
	ReadyAt       time.Time     `json:"ready_at,omitzero"`
	LastUsedAt    time.Time     `json:"last_used_at,omitzero"`
	ChangedAt     time.Time     `json:"changed_at,omitzero"`
	Failure       *Failure      `json:"failure,omitempty"`
	OperationID   string        `json:"operation_id,omitempty"` // the one that is under way, or the last
	ConfigVersion int64         `json:"-"`                      // Record.Version that the last load was begun with; 0 not known
}

// Memory is what an instance was predicted to take and what it was seen to take. All in bytes.
type Memory struct {
	PredictedGPU int64 `json:"predicted_gpu,omitempty"`
	PredictedRAM int64 `json:"predicted_ram,omitempty"`
	MeasuredGPU  int64 `json:"measured_gpu,omitempty"`
	MeasuredRAM  int64 `json:"measured_ram,omitempty"`
	// What the engine says itself, where it does: weights, cache and buffers, on GPUs and in main memory.
	ReportedGPU int64 `json:"reported_gpu,omitempty"`
	ReportedRAM int64 `json:"reported_ram,omitempty"`
}

// Handle is all that a loader needs to find its engine again after a restart of the manager. Data belongs to the
// loader; PID and StartTicks identify the process even if the number was reused (StartTicks is field 22 of
// /proc/PID/stat, in clock ticks since boot).
type Handle struct {
	Loader     string          `json:"loader"`
	Version    int             `json:"version"`
	InstanceID string          `json:"instance_id"`
	PID        int             `json:"pid,omitempty"`
	StartTicks uint64          `json:"start_ticks,omitempty"`
	BootID     string          `json:"boot_id,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
}

// API is a kind of request that an instance answers.
type API string

// The kinds of request the gateway passes on. The last two are not OpenAI's: they are named as the tasks of the Hub are.
const (
	APIChat        API = "chat"
	APICompletions API = "completions"
	APIEmbeddings  API = "embeddings"
	APIFillMask    API = "fill-mask" // the likeliest words for a gap in a text
	APIClassify    API = "classify"  // the label of a text
)

// Endpoint is where an instance answers, and what the engine says that it has loaded. BaseURL is OpenAI-compatible, without
// /v1. Model is the name by which the engine knows the model, if it differs from model_id. What an engine does not tell is
// empty: nothing here is computed from the files.
type Endpoint struct {
	BaseURL        string `json:"base_url"`
	Model          string `json:"model,omitempty"`
	APIs           []API  `json:"apis"`
	ContextLength  int    `json:"context_length,omitempty"`
	ModelClass     string `json:"model_class,omitempty"`     // the guide's type(model_object)
	TokenizerClass string `json:"tokenizer_class,omitempty"` // the guide's type(tokenizer_object)
	Device         string `json:"device,omitempty"`          // where the weights lie, in the engine's own count: cpu, cuda:0, cuda:0,cpu
	DType          string `json:"dtype,omitempty"`           // of the weights in memory, in the engine's word: bfloat16, Q4_1
	Parameters     int64  `json:"parameters,omitempty"`
	Bytes          int64  `json:"bytes,omitempty"` // of the weights in memory, without cache and program
}

// Duration is a time.Duration that reads and writes as "15m" in JSON and YAML. A bare number means seconds.
type Duration time.Duration

// String formats the duration as time.Duration does, without trailing zero units: 15m, 1h30m.
func (d Duration) String() string {
	s := time.Duration(d).String()
	for _, z := range []struct{ long, short string }{{"m0s", "m"}, {"h0m", "h"}} {
		if len(s) >= len(z.long) && s[len(s)-len(z.long):] == z.long {
			s = s[:len(s)-len(z.long)] + z.short
		}
	}
	return s
}

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads "15m" or a number of seconds.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	parsed, err := parseDuration(v)
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

func parseDuration(v any) (Duration, error) {
	switch v := v.(type) {
	case string:
		p, err := time.ParseDuration(v)
		if err != nil {
			return 0, fmt.Errorf("must be a duration such as 15m or 1h30m, not %q", clip(v))
		}
		return Duration(p), nil
	case float64:
		if v != v || v > 1e9 || v < -1e9 {
			return 0, fmt.Errorf("must be a duration such as 15m or a number of seconds below 1e9")
		}
		return Duration(v * float64(time.Second)), nil
	}
	return 0, fmt.Errorf("must be a duration such as 15m or a number of seconds")
}
