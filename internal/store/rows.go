package store

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The fields below are named Created and Updated because GORM would fill CreatedAt and UpdatedAt by itself.

type settingRow struct {
	Key   string `gorm:"column:key;primaryKey"`
	Value string `gorm:"column:value"`
}

func (settingRow) TableName() string { return "settings" }

// configRow is what a user sets of a model. It is comparable: two are equal when the configurations are.
type configRow struct {
	ModelID             string `gorm:"column:model_id"`
	SourceType          string `gorm:"column:source_type"`
	SourcePath          string `gorm:"column:source_path"`
	ModelFormat         string `gorm:"column:model_format"`
	Revision            string `gorm:"column:revision"`
	QuantizationBits    int    `gorm:"column:quantization_bits"`
	DevicePreference    string `gorm:"column:device_preference"`
	RequiredGPUMemoryMB int64  `gorm:"column:required_gpu_memory_mb"`
	RequiredRAMMB       int64  `gorm:"column:required_ram_mb"`
	CustomLoaderParams  string `gorm:"column:custom_loader_params"`
	TokenizerPath       string `gorm:"column:tokenizer_path"`
	TrustRemoteCode     bool   `gorm:"column:trust_remote_code"`
	Engine              string `gorm:"column:engine"`
	Team                string `gorm:"column:team"`
	Description         string `gorm:"column:description"`
	Tags                string `gorm:"column:tags"`
	ContextLength       int    `gorm:"column:context_length"`
	GPUIDs              string `gorm:"column:gpu_ids"`
	IdleTimeout         int64  `gorm:"column:idle_timeout"`
	Pinned              bool   `gorm:"column:pinned"`
	Priority            int    `gorm:"column:priority"`
}

type modelRow struct {
	FoldID       string    `gorm:"column:fold_id;primaryKey"`
	Config       configRow `gorm:"embedded"`
	Registration string    `gorm:"column:registration"`
	Persist      bool      `gorm:"column:persist"`
	Shadowed     string    `gorm:"column:shadowed"`
	Version      int64     `gorm:"column:version"`
	Created      int64     `gorm:"column:created_at"`
	CreatedBy    string    `gorm:"column:created_by"`
	Updated      int64     `gorm:"column:updated_at"`
	UpdatedBy    string    `gorm:"column:updated_by"`
	Status       string    `gorm:"column:status"`
}

func (modelRow) TableName() string { return "models" }

func configOf(m registry.Model) (configRow, error) {
	params, err := paramsToJSON(m.CustomLoaderParams)
	if err != nil {
		return configRow{}, &registry.Error{Code: registry.CodeInvalid, Msg: "The model " + m.ModelID + " is not valid", Err: err,
			Fields: []registry.FieldError{{Field: "custom_loader_params", Msg: "has a value that JSON cannot hold"}}}
	}
	tags, err := listToJSON(m.Tags)
	if err != nil {
		return configRow{}, err
	}
	gpus, err := listToJSON(m.GPUIDs)
	if err != nil {
		return configRow{}, err
	}
	return configRow{
		ModelID: m.ModelID, SourceType: string(m.SourceType), SourcePath: m.SourcePath, ModelFormat: string(m.ModelFormat),
		Revision: m.Revision, QuantizationBits: m.QuantizationBits, DevicePreference: string(m.DevicePreference),
		RequiredGPUMemoryMB: m.RequiredGPUMemoryMB, RequiredRAMMB: m.RequiredRAMMB, CustomLoaderParams: params,
		TokenizerPath: m.TokenizerPath, TrustRemoteCode: m.TrustRemoteCode,
		Engine: m.Engine, Team: m.Team, Description: m.Description, Tags: tags, ContextLength: m.ContextLength,
		GPUIDs: gpus, IdleTimeout: int64(m.IdleTimeout), Pinned: m.Pinned, Priority: m.Priority,
	}, nil
}

func (c configRow) model() (registry.Model, error) {
	m := registry.Model{
		ModelID: c.ModelID, SourceType: registry.SourceType(c.SourceType), SourcePath: c.SourcePath, ModelFormat: registry.Format(c.ModelFormat),
		Revision: c.Revision, QuantizationBits: c.QuantizationBits, DevicePreference: registry.Device(c.DevicePreference),
		RequiredGPUMemoryMB: c.RequiredGPUMemoryMB, RequiredRAMMB: c.RequiredRAMMB,
		TokenizerPath: c.TokenizerPath, TrustRemoteCode: c.TrustRemoteCode,
		Engine: c.Engine, Team: c.Team, Description: c.Description, ContextLength: c.ContextLength,
		IdleTimeout: registry.Duration(c.IdleTimeout), Pinned: c.Pinned, Priority: c.Priority,
	}
	var err error
	if m.CustomLoaderParams, err = paramsFromJSON(c.CustomLoaderParams); err != nil {
		return m, err
	}
	if err := fromJSON(c.Tags, &m.Tags); err != nil {
		return m, err
	}
	return m, fromJSON(c.GPUIDs, &m.GPUIDs)
}

func (r modelRow) record() (registry.Record, error) {
	m, err := r.Config.model()
	return registry.Record{
		Model: m, Registration: registry.RegistrationState(r.Registration), Persist: r.Persist, Version: r.Version,
		CreatedAt: fromNanos(r.Created), CreatedBy: r.CreatedBy, UpdatedAt: fromNanos(r.Updated), UpdatedBy: r.UpdatedBy,
	}, err
}

type runtimeRow struct {
	FoldID        string `gorm:"column:fold_id;primaryKey"`
	ModelID       string `gorm:"column:model_id"`
	Desired       string `gorm:"column:desired"`
	State         string `gorm:"column:state"`
	Artifact      string `gorm:"column:artifact"`
	Generation    int64  `gorm:"column:generation"`
	InstanceID    string `gorm:"column:instance_id"`
	Engine        string `gorm:"column:engine"`
	EngineVersion string `gorm:"column:engine_version"`
	Device        string `gorm:"column:device"`
	Handle        string `gorm:"column:handle"`
	Endpoint      string `gorm:"column:endpoint"`
	PredictedGPU  int64  `gorm:"column:predicted_gpu"`
	PredictedRAM  int64  `gorm:"column:predicted_ram"`
	MeasuredGPU   int64  `gorm:"column:measured_gpu"`
	MeasuredRAM   int64  `gorm:"column:measured_ram"`
	Attempts      int    `gorm:"column:attempts"`
	ReadyAt       int64  `gorm:"column:ready_at"`
	LastUsedAt    int64  `gorm:"column:last_used_at"`
	ChangedAt     int64  `gorm:"column:changed_at"`
	Failure       string `gorm:"column:failure"`
	OperationID   string `gorm:"column:operation_id"`
	ConfigVersion int64  `gorm:"column:config_version"`
}

func (runtimeRow) TableName() string { return "runtimes" }

func runtimeRowOf(rt registry.Runtime) (runtimeRow, error) {
	r := runtimeRow{
		FoldID: fold(rt.ModelID), ModelID: rt.ModelID, Desired: string(rt.Desired), State: string(rt.State), Artifact: string(rt.Artifact),
		Generation: rt.Generation, InstanceID: rt.InstanceID, Engine: rt.Engine, EngineVersion: rt.EngineVersion, Device: rt.Device,
		PredictedGPU: rt.Memory.PredictedGPU, PredictedRAM: rt.Memory.PredictedRAM,
		MeasuredGPU: rt.Memory.MeasuredGPU, MeasuredRAM: rt.Memory.MeasuredRAM, Attempts: rt.Attempts,
		ReadyAt: toNanos(rt.ReadyAt), LastUsedAt: toNanos(rt.LastUsedAt), ChangedAt: toNanos(rt.ChangedAt), OperationID: rt.OperationID, ConfigVersion: rt.ConfigVersion,
	}
	var err error
	if r.Handle, err = toJSON(rt.Handle); err != nil {
		return r, err
	}
	if r.Endpoint, err = toJSON(rt.Endpoint); err != nil {
		return r, err
	}
	r.Failure, err = toJSON(rt.Failure)
	return r, err
}

func (r runtimeRow) runtime() (registry.Runtime, error) {
	rt := registry.Runtime{
		ModelID: r.ModelID, Desired: registry.RuntimeState(r.Desired), State: registry.RuntimeState(r.State), Artifact: registry.ArtifactState(r.Artifact),
		Generation: r.Generation, InstanceID: r.InstanceID, Engine: r.Engine, EngineVersion: r.EngineVersion, Device: r.Device,
		Memory:   registry.Memory{PredictedGPU: r.PredictedGPU, PredictedRAM: r.PredictedRAM, MeasuredGPU: r.MeasuredGPU, MeasuredRAM: r.MeasuredRAM},
		Attempts: r.Attempts, ReadyAt: fromNanos(r.ReadyAt), LastUsedAt: fromNanos(r.LastUsedAt), ChangedAt: fromNanos(r.ChangedAt), OperationID: r.OperationID, ConfigVersion: r.ConfigVersion,
	}
	if err := fromJSON(r.Handle, &rt.Handle); err != nil {
		return rt, err
	}
	if err := fromJSON(r.Endpoint, &rt.Endpoint); err != nil {
		return rt, err
	}
	return rt, fromJSON(r.Failure, &rt.Failure)
}

// toNanos keeps a time as Unix nanoseconds; the zero time is 0.
func toNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// toJSON returns "" for nil.
func toJSON[T any](v *T) (string, error) {
	if v == nil {
		return "", nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// listToJSON returns "" for an empty list, so that nil and empty are the same.
func listToJSON[T any](v []T) (string, error) {
	if len(v) == 0 {
		return "", nil
	}
	return toJSON(&v)
}

// fromJSON leaves v alone when s is "".
func fromJSON(s string, v any) error {
	if s == "" {
		return nil
	}
	return json.Unmarshal([]byte(s), v)
}

// paramsToJSON keeps whole and decimal numbers apart: 1 comes back as int64 and 1.0 as float64, as they do from YAML
// and from registry.Decode.
func paramsToJSON(params map[string]any) (string, error) {
	if len(params) == 0 {
		return "", nil
	}
	b, err := json.Marshal(keepDecimals(params))
	return string(b), err
}

func keepDecimals(v any) any {
	switch v := v.(type) {
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1e21 {
			b, _ := json.Marshal(v) // cannot fail: it is finite
			return json.Number(string(b) + ".0")
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = keepDecimals(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = keepDecimals(e)
		}
		return out
	}
	return v
}

func paramsFromJSON(s string) (map[string]any, error) {
	if s == "" {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(s)))
	dec.UseNumber()
	var params map[string]any
	if err := dec.Decode(&params); err != nil {
		return nil, err
	}
	for k, v := range params {
		params[k] = plainNumbers(v)
	}
	return params, nil
}

func plainNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if !strings.ContainsAny(v.String(), ".eE") {
			if n, err := v.Int64(); err == nil {
				return n
			}
		}
		f, _ := v.Float64() // it was written from a float64
		return f
	case map[string]any:
		for k, e := range v {
			v[k] = plainNumbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = plainNumbers(e)
		}
	}
	return v
}
