package store

import (
	"strings"

	"gorm.io/gorm"
)

// Pages of models are read often and are wide. GORM's reflection is half of what such a read costs, so these two tables
// are scanned by hand. TestColumns holds the lists below to the row types.

var modelColumns = []string{
	"fold_id", "model_id", "source_type", "source_path", "model_format", "revision", "quantization_bits",
	"device_preference", "required_gpu_memory_mb", "required_ram_mb", "custom_loader_params", "tokenizer_path",
	"trust_remote_code", "engine", "team", "description", "tags", "context_length", "gpu_ids", "idle_timeout",
	"pinned", "priority", "registration", "persist", "shadowed", "version", "created_at", "created_by",
	"updated_at", "updated_by", "status",
}

// fields returns where each of modelColumns is read into.
func (r *modelRow) fields() []any {
	return []any{
		&r.FoldID, &r.Config.ModelID, &r.Config.SourceType, &r.Config.SourcePath, &r.Config.ModelFormat,
		&r.Config.Revision, &r.Config.QuantizationBits, &r.Config.DevicePreference, &r.Config.RequiredGPUMemoryMB,
		&r.Config.RequiredRAMMB, &r.Config.CustomLoaderParams, &r.Config.TokenizerPath, &r.Config.TrustRemoteCode,
		&r.Config.Engine, &r.Config.Team, &r.Config.Description, &r.Config.Tags, &r.Config.ContextLength,
		&r.Config.GPUIDs, &r.Config.IdleTimeout, &r.Config.Pinned, &r.Config.Priority, &r.Registration, &r.Persist,
		&r.Shadowed, &r.Version, &r.Created, &r.CreatedBy, &r.Updated, &r.UpdatedBy, &r.Status,
	}
}

var runtimeColumns = []string{
	"fold_id", "model_id", "desired", "state", "artifact", "generation", "instance_id", "engine",
	"engine_version", "device", "handle", "endpoint", "predicted_gpu", "predicted_ram", "measured_gpu",
	"measured_ram", "attempts", "ready_at", "last_used_at", "changed_at", "failure", "operation_id",
	"config_version",
}

// fields returns where each of runtimeColumns is read into.
func (r *runtimeRow) fields() []any {
	return []any{
		&r.FoldID, &r.ModelID, &r.Desired, &r.State, &r.Artifact, &r.Generation, &r.InstanceID, &r.Engine,
		&r.EngineVersion, &r.Device, &r.Handle, &r.Endpoint, &r.PredictedGPU, &r.PredictedRAM, &r.MeasuredGPU,
		&r.MeasuredRAM, &r.Attempts, &r.ReadyAt, &r.LastUsedAt, &r.ChangedAt, &r.Failure, &r.OperationID,
		&r.ConfigVersion,
	}
}

// listedRow is a model with its runtime, which is all zero where there is none.
type listedRow struct {
	model   modelRow
	runtime runtimeRow
}

func (r *listedRow) fields() []any { return append(r.model.fields(), r.runtime.fields()...) }

// selectListed reads the models of a JSON list of keys with their runtimes, in one statement.
var selectListed = func() string {
	var columns []string
	for _, c := range modelColumns {
		columns = append(columns, "m."+c)
	}
	for i, field := range new(runtimeRow).fields() {
		none := "0"
		if _, text := field.(*string); text {
			none = "''"
		}
		columns = append(columns, "coalesce(r."+runtimeColumns[i]+", "+none+")")
	}
	return "SELECT " + strings.Join(columns, ", ") +
		" FROM models m LEFT JOIN runtimes r ON r.fold_id = m.fold_id WHERE m.fold_id IN (SELECT value FROM json_each(?))"
}()

// scanRows reads every row of a query into R, column by column.
func scanRows[R any](query *gorm.DB, fields func(*R) []any) (out []R, err error) {
	err = eachRow(query, fields, func(r *R) error {
		out = append(out, *r)
		return nil
	})
	return out, err
}

// eachRow reads every row of a query into the same R, column by column, and calls fn with it.
func eachRow[R any](query *gorm.DB, fields func(*R) []any, fn func(*R) error) error {
	rows, err := query.Rows()
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err below says what went wrong, if anything did
	var r R
	into := fields(&r)
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		if err := fn(&r); err != nil {
			return err
		}
	}
	return rows.Err()
}
