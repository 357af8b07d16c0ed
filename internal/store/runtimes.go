package store

import (
	"context"
	"errors"

	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Runtime returns what is known of a model's instance; for a model that was never loaded, or that does not exist,
// the zero value with State stopped.
func (s *Store) Runtime(ctx context.Context, id string) (registry.Runtime, error) {
	const op = "store.Runtime"
	var row runtimeRow
	if _, err := take(s.read(ctx).Where("fold_id = ? AND model_id = ?", fold(id), id), &row); err != nil {
		return registry.Runtime{}, s.fail(ctx, op, err)
	}
	rt, err := row.runtime()
	return orStopped(rt, id), s.fail(ctx, op, err)
}

// orStopped makes a stopped runtime of one that is not stored.
func orStopped(rt registry.Runtime, id string) registry.Runtime {
	rt.ModelID = id
	if rt.State == "" {
		rt.State = registry.RuntimeStopped
	}
	return rt
}

// PutRuntime stores what is known of a model's instance, handle and all, and with it the model's status. CodeNotFound
// when the model is not registered.
func (s *Store) PutRuntime(ctx context.Context, rt registry.Runtime) error {
	const op = "store.PutRuntime"
	row, err := runtimeRowOf(rt)
	if err != nil {
		return s.fail(ctx, op, err)
	}
	return s.write(ctx, op, func(tx *txn) error {
		model, err := findModel(tx.DB, rt.ModelID)
		if err != nil {
			return err
		}
		if err := tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error; err != nil {
			return err
		}
		status := statusOf(model, row)
		if status == model.Status {
			return nil
		}
		tx.changes = append(tx.changes, statusChange(row.FoldID, status))
		return tx.Model(&modelRow{}).Where("fold_id = ?", row.FoldID).Update("status", status).Error
	})
}

// DeleteRuntime forgets a model's instance, whether the model is still registered or not. It is no error if there is
// none.
func (s *Store) DeleteRuntime(ctx context.Context, id string) error {
	return s.write(ctx, "store.DeleteRuntime", func(tx *txn) error {
		key := fold(id)
		if err := tx.Delete(&runtimeRow{}, "fold_id = ?", key).Error; err != nil {
			return err
		}
		var model modelRow
		found, err := take(tx.Where("fold_id = ?", key), &model)
		if err != nil || !found {
			return err
		}
		status := statusOf(model, runtimeRow{})
		tx.changes = append(tx.changes, statusChange(key, status))
		return tx.Model(&modelRow{}).Where("fold_id = ?", key).Update("status", status).Error
	})
}

// ActiveRuntimes returns the runtimes of registered models that are doing something or should be: those that the
// reconciler looks at when the server starts.
func (s *Store) ActiveRuntimes(ctx context.Context) ([]registry.Runtime, error) {
	// The condition is that of the index runtimes_active, word for word.
	return s.runtimes(ctx, "store.ActiveRuntimes", `(state NOT IN ('stopped', 'failed', '') OR desired = 'ready')
		AND EXISTS (SELECT 1 FROM models WHERE models.fold_id = runtimes.fold_id)`)
}

// OrphanedRuntimes returns the runtimes with a handle whose model is gone, because it was registered with persist=false
// by an earlier run. Their engines may still be running: the reconciler ends them and calls DeleteRuntime.
func (s *Store) OrphanedRuntimes(ctx context.Context) ([]registry.Runtime, error) {
	return s.runtimes(ctx, "store.OrphanedRuntimes", `NOT EXISTS (SELECT 1 FROM models WHERE models.fold_id = runtimes.fold_id)`)
}

func (s *Store) runtimes(ctx context.Context, op, where string) ([]registry.Runtime, error) {
	var rows []runtimeRow
	if err := s.read(ctx).Where(where).Order("fold_id").Find(&rows).Error; err != nil {
		return nil, s.fail(ctx, op, err)
	}
	out := make([]registry.Runtime, len(rows))
	var errs []error
	for i, row := range rows {
		rt, err := row.runtime()
		out[i] = rt
		errs = append(errs, err)
	}
	return out, s.fail(ctx, op, errors.Join(errs...))
}
