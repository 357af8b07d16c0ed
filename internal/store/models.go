package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// chunk is how many rows one statement reads or writes: large enough to be quick, and its variables stay far below
// SQLite's limit of 32,766.
const chunk = 250

// CountModels returns how many models there are.
func (s *Store) CountModels(ctx context.Context) (int, error) {
	if x := s.index.current(); x != nil {
		return x.count, nil
	}
	var n int64
	err := s.read(ctx).Model(&modelRow{}).Count(&n).Error
	return int(n), s.fail(ctx, "store.CountModels", err)
}

// Model returns the model of that id. CodeNotFound, with the right spelling when the id differs from one only in case.
func (s *Store) Model(ctx context.Context, id string) (registry.Record, error) {
	row, err := findModel(s.read(ctx), id)
	if err != nil {
		return registry.Record{}, s.fail(ctx, "store.Model", err)
	}
	rec, err := row.record()
	return rec, s.fail(ctx, "store.Model", err)
}

// findModel reads the model of that id, or returns CodeNotFound.
func findModel(db *gorm.DB, id string) (modelRow, error) {
	var row modelRow
	_, err := take(db.Where("fold_id = ?", fold(id)), &row)
	if err == nil {
		err = notFound(id, row.Config.ModelID)
	}
	return row, err
}

// notFound returns CodeNotFound unless what was found under an id's key, "" for nothing, is that id.
func notFound(id, found string) error {
	switch found {
	case id:
		return nil
	case "":
		return registry.Errorf(registry.CodeNotFound, "There is no model %q. Look at the list of models for its id, or register it", id)
	}
	return registry.Errorf(registry.CodeNotFound, "There is no model %q. Did you mean %q?", id, found)
}

// PutModel registers a model or changes it and returns it as it is now stored, and whether it is new. The version
// grows by one when anything is different from before and stays when nothing is. Fields that were not given get their
// defaults; the store does not validate the rest. The model's team is made if there is none. CodeConflict when an id differs from another only in case, when o.IfAbsent and it exists, and when
// o.IfVersion is not its version.
func (s *Store) PutModel(ctx context.Context, m registry.Model, o PutOptions) (rec registry.Record, created bool, err error) {
	const op = "store.PutModel"
	var row modelRow
	err = s.write(ctx, op, func(tx *txn) error {
		written, err := s.put(ctx, tx, []registry.Model{m}, o)
		if err != nil {
			return err
		}
		if o.Audit != nil {
			entry := s.auditRow(*o.Audit)
			if err := tx.Create(&entry).Error; err != nil {
				return err
			}
		}
		row, created = written[0].row, written[0].created
		return nil
	})
	if err != nil {
		return registry.Record{}, false, err
	}
	rec, err = row.record()
	return rec, created, s.fail(ctx, op, err)
}

// PutModels is PutModel for many at once: all are written in one transaction, or none. It returns the ids that are
// new, that changed and that stayed as they were, in the order given. CodeConflict also when two of ms have the same
// id, or ids that differ only in case.
func (s *Store) PutModels(ctx context.Context, ms []registry.Model, o PutOptions) (created, changed, unchanged []string, err error) {
	var all []putResult
	err = s.write(ctx, "store.PutModels", func(tx *txn) error {
		all, err = s.put(ctx, tx, ms, o)
		return err
	})
	if err != nil {
		return nil, nil, nil, err
	}
	for _, w := range all {
		switch id := w.row.Config.ModelID; {
		case w.created:
			created = append(created, id)
		case w.changed:
			changed = append(changed, id)
		default:
			unchanged = append(unchanged, id)
		}
	}
	return created, changed, unchanged, nil
}

// putResult is a model as it is after a put.
type putResult struct {
	row              modelRow
	created, changed bool
}

func (s *Store) put(ctx context.Context, tx *txn, ms []registry.Model, o PutOptions) ([]putResult, error) {
	now := s.now()
	withDefaults := make([]registry.Model, len(ms))
	for i, m := range ms {
		withDefaults[i] = m.WithDefaults()
	}
	ms = withDefaults
	given := make(map[string]string, len(ms))
	teams := map[string]bool{}
	for _, m := range ms {
		k := fold(m.ModelID)
		if other, twice := given[k]; twice {
			if other == m.ModelID {
				return nil, registry.Errorf(registry.CodeConflict, "The model %q is given twice. Leave one of them out", m.ModelID)
			}
			return nil, registry.Errorf(registry.CodeConflict, "The ids %q and %q differ only in case. Rename one of them", other, m.ModelID)
		}
		given[k] = m.ModelID
		if !teams[m.Team] {
			teams[m.Team] = true
			if err := ensureTeam(tx.DB, m.Team, now); err != nil {
				return nil, err
			}
		}
	}
	all := make([]putResult, 0, len(ms))
	for start := 0; start < len(ms); start += chunk {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		done, err := putChunk(tx, ms[start:min(start+chunk, len(ms))], o, now)
		if err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	return all, nil
}

func putChunk(tx *txn, ms []registry.Model, o PutOptions, now time.Time) ([]putResult, error) {
	keys := make([]string, len(ms))
	for i, m := range ms {
		keys[i] = fold(m.ModelID)
	}
	stored, runtimes, err := rowsOf(tx.DB, keys)
	if err != nil {
		return nil, err
	}
	all := make([]putResult, len(ms))
	var rows []modelRow
	var outbox []outboxRow
	for i, m := range ms {
		old, exists := stored[keys[i]]
		all[i], err = merge(m, old, exists, o, now)
		if err != nil {
			return nil, err
		}
		rt := runtimes[keys[i]]
		all[i].row.Status = statusOf(all[i].row, rt)
		if all[i].created || all[i].changed {
			rows = append(rows, all[i].row)
			tx.changes = append(tx.changes, putChange(all[i].row, m.Tags))
		}
		if o.ToManifest {
			outbox = append(outbox, outboxRow{ModelID: m.ModelID})
		}
	}
	if len(rows) > 0 {
		if err := tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&rows).Error; err != nil {
			return nil, err
		}
	}
	if len(outbox) > 0 {
		return all, tx.Create(&outbox).Error
	}
	return all, nil
}

// rowsOf reads the models of these keys, and their runtimes, by key.
func rowsOf(db *gorm.DB, keys []string) (map[string]modelRow, map[string]runtimeRow, error) {
	in, err := toJSON(&keys)
	if err != nil {
		return nil, nil, err
	}
	models, err := scanRows(db.Model(&modelRow{}).Select(modelColumns).Where(amongKeys, in), (*modelRow).fields)
	if err != nil {
		return nil, nil, err
	}
	runtimes, err := scanRows(db.Model(&runtimeRow{}).Select(runtimeColumns).Where(amongKeys, in), (*runtimeRow).fields)
	if err != nil {
		return nil, nil, err
	}
	byKey := make(map[string]modelRow, len(models))
	for _, r := range models {
		byKey[r.FoldID] = r
	}
	runtimeByKey := make(map[string]runtimeRow, len(runtimes))
	for _, r := range runtimes {
		runtimeByKey[r.FoldID] = r
	}
	return byKey, runtimeByKey, nil
}

// amongKeys takes the keys as one JSON list, so that the statement is the same however many there are.
const amongKeys = "fold_id IN (SELECT value FROM json_each(?))"

// merge decides what becomes of the stored model old when m is put over it.
func merge(m registry.Model, old modelRow, exists bool, o PutOptions, now time.Time) (putResult, error) {
	config, err := configOf(m)
	if err != nil {
		return putResult{}, err
	}
	if err := mayPut(m.ModelID, old, exists, o); err != nil {
		return putResult{}, err
	}
	row := modelRow{
		FoldID: fold(m.ModelID), Config: config, Registration: string(registry.RegistrationActive), Persist: o.Persist,
		Version: 1, Created: toNanos(now), CreatedBy: o.Actor, Updated: toNanos(now), UpdatedBy: o.Actor,
	}
	if exists {
		row.Registration = old.Registration
		row.Version, row.Created, row.CreatedBy = old.Version+1, old.Created, old.CreatedBy
	}
	if o.Registration != "" {
		row.Registration = string(o.Registration)
	}
	switch {
	case !exists:
		return putResult{row: row, created: true}, nil
	case row.Config == old.Config && row.Registration == old.Registration && row.Persist == old.Persist:
		return putResult{row: old}, nil
	}
	row.Shadowed, err = shadow(old, o.Persist)
	return putResult{row: row, changed: true}, err
}

// mayPut checks o's conditions against what is stored.
func mayPut(id string, old modelRow, exists bool, o PutOptions) error {
	switch {
	case exists && old.Config.ModelID != id:
		return registry.Errorf(registry.CodeConflict,
			"The id %q differs from the registered %q only in case. Use that id, or choose another", id, old.Config.ModelID)
	case exists && o.IfAbsent:
		return registry.Errorf(registry.CodeConflict, "The model %q is registered already. Change it instead, or choose another id", id)
	case !exists && o.IfVersion > 0:
		return registry.Errorf(registry.CodeConflict, "The model %q was deleted since you read it. Register it anew if it is still wanted", id)
	case exists:
		return sameVersion(old, o.IfVersion)
	}
	return nil
}

// sameVersion returns CodeConflict when want is given and row has another version.
func sameVersion(row modelRow, want int64) error {
	if want <= 0 || row.Version == want {
		return nil
	}
	return registry.Errorf(registry.CodeConflict,
		"The model %q was changed by %s on %s (it is at version %d, you had %d). Read it again and repeat your change",
		row.Config.ModelID, whose(row.UpdatedBy), fromNanos(row.Updated).Format("2 January 2006 at 15:04:05 MST"), row.Version, want)
}

func whose(actor string) string {
	if actor == "" {
		return "somebody"
	}
	return actor
}

// shadow returns what a model goes back to when this run ends: a change with persist=false must not cost the lasting
// configuration that it hides.
func shadow(old modelRow, persist bool) (string, error) {
	switch {
	case persist:
		return "", nil
	case old.Persist:
		return toJSON(&old)
	}
	return old.Shadowed, nil
}

// endEarlierRun removes what an earlier run registered with persist=false and brings back what that had hidden. The
// runtime of a removed model stays if it has a handle, so that its engine can be found and ended.
func (s *Store) endEarlierRun(ctx context.Context) error {
	return s.write(ctx, "store.Open", func(tx *txn) error {
		var passing []modelRow
		if err := tx.Where("persist = 0").Find(&passing).Error; err != nil {
			return err
		}
		for _, row := range passing {
			if err := endPassing(tx.DB, row); err != nil {
				return err
			}
		}
		return nil
	})
}

func endPassing(db *gorm.DB, row modelRow) error {
	if row.Shadowed == "" {
		return errors.Join(
			db.Delete(&modelRow{}, "fold_id = ?", row.FoldID).Error,
			db.Delete(&runtimeRow{}, "fold_id = ? AND handle = ''", row.FoldID).Error)
	}
	var back modelRow
	if err := json.Unmarshal([]byte(row.Shadowed), &back); err != nil {
		return err
	}
	var rt runtimeRow
	if _, err := take(db.Where("fold_id = ?", row.FoldID), &rt); err != nil {
		return err
	}
	back.Version = row.Version + 1 // a version never names two configurations
	back.Status = statusOf(back, rt)
	return db.Save(&back).Error
}

// statusOf derives the status that is stored with a model; rt is the zero value when it has no runtime.
func statusOf(row modelRow, rt runtimeRow) string {
	return string(registry.DeriveStatus(registry.RegistrationState(row.Registration), registry.ArtifactState(rt.Artifact), registry.RuntimeState(rt.State)))
}

// DeleteModel removes a model and what is known of its instance. CodeNotFound; CodeConflict when ifVersion is given (>0) and
// is not its version.
func (s *Store) DeleteModel(ctx context.Context, id string, ifVersion int64, toManifest bool) error {
	return s.write(ctx, "store.DeleteModel", func(tx *txn) error {
		row, err := findModel(tx.DB, id)
		if err != nil {
			return err
		}
		if err := sameVersion(row, ifVersion); err != nil {
			return err
		}
		if err := errors.Join(
			tx.Delete(&modelRow{}, "fold_id = ?", row.FoldID).Error,
			tx.Delete(&runtimeRow{}, "fold_id = ?", row.FoldID).Error,
		); err != nil {
			return err
		}
		tx.changes = append(tx.changes, change{key: row.FoldID, kind: changeDelete})
		if toManifest {
			return tx.Create(&outboxRow{ModelID: id, Deleted: true}).Error
		}
		return nil
	})
}

// SetRegistration moves a model on the registration axis and returns it. CodeNotFound. Whether the step is allowed is for the
// caller to know: the transition table is in internal/registry.
func (s *Store) SetRegistration(ctx context.Context, id string, st registry.RegistrationState, actor string) (registry.Record, error) {
	const op = "store.SetRegistration"
	var row modelRow
	err := s.write(ctx, op, func(tx *txn) error {
		var err error
		if row, err = findModel(tx.DB, id); err != nil {
			return err
		}
		if row.Registration == string(st) {
			return nil
		}
		var rt runtimeRow
		if _, err := take(tx.Where("fold_id = ?", row.FoldID), &rt); err != nil {
			return err
		}
		row.Registration, row.Version = string(st), row.Version+1
		row.Updated, row.UpdatedBy = toNanos(s.now()), actor
		row.Status = statusOf(row, rt)
		tx.changes = append(tx.changes, statusChange(row.FoldID, row.Status))
		return tx.Save(&row).Error
	})
	if err != nil {
		return registry.Record{}, err
	}
	rec, err := row.record()
	return rec, s.fail(ctx, op, err)
}

// EachModel calls fn with every model of these teams (nil: all) in the order of their ids. It reads some hundred at a time and
// holds no connection while fn runs, so fn may be slow; each model is whole, but one that is written meanwhile may be
// seen before or after. An error of fn ends it and is returned as it is.
func (s *Store) EachModel(ctx context.Context, teams []string, fn func(registry.Record) error) error {
	const op = "store.EachModel"
	for after, more := "", true; more; {
		query := s.read(ctx).Where("fold_id > ?", after).Order("fold_id").Limit(2 * chunk)
		if teams != nil {
			query = query.Where("team IN ?", teams)
		}
		var rows []modelRow
		if err := query.Find(&rows).Error; err != nil {
			return s.fail(ctx, op, err)
		}
		for _, row := range rows {
			rec, err := row.record()
			if err != nil {
				return s.fail(ctx, op, err)
			}
			if err := fn(rec); err != nil {
				return err
			}
			after = row.FoldID
		}
		more = len(rows) == 2*chunk
	}
	return nil
}

type outboxRow struct {
	Seq     int64  `gorm:"column:seq;primaryKey;autoIncrement"`
	ModelID string `gorm:"column:model_id"`
	Deleted bool   `gorm:"column:deleted"`
}

func (outboxRow) TableName() string { return "manifest_outbox" }

// ManifestPending returns what has to be written to the manifest file, oldest first, one change for each model: the
// latest.
func (s *Store) ManifestPending(ctx context.Context) ([]ManifestChange, error) {
	var rows []outboxRow
	// SQLite takes the other columns from the row that has the maximum.
	err := s.read(ctx).Select("max(seq) AS seq, model_id, deleted").Group("model_id").Order("seq").Find(&rows).Error
	changes := make([]ManifestChange, len(rows))
	for i, r := range rows {
		changes[i] = ManifestChange(r)
	}
	return changes, s.fail(ctx, "store.ManifestPending", err)
}

// ManifestDone forgets the changes up to and including upToSeq, but for those of the models except: the file has them. A
// crash of the machine may bring them back; to write them once more does no harm.
func (s *Store) ManifestDone(ctx context.Context, upToSeq int64, except ...string) error {
	const op = "store.ManifestDone"
	except = append([]string{}, except...) // null instead of [] would keep everything
	keep, err := toJSON(&except)
	if err != nil {
		return s.fail(ctx, op, err)
	}
	return s.writeLazily(ctx, op, func(tx *txn) error {
		return tx.Delete(&outboxRow{}, "seq <= ? AND model_id NOT IN (SELECT value FROM json_each(?))", upToSeq, keep).Error
	})
}
