package store

import (
	"context"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type operationRow struct {
	ID       string `gorm:"column:id;primaryKey"`
	Kind     string `gorm:"column:kind"`
	Subject  string `gorm:"column:subject"`
	State    string `gorm:"column:state"`
	Actor    string `gorm:"column:actor"`
	Cause    string `gorm:"column:cause"`
	Created  int64  `gorm:"column:created_at"`
	Started  int64  `gorm:"column:started_at"`
	Ended    int64  `gorm:"column:ended_at"`
	Stages   string `gorm:"column:stages"`
	Outcome  string `gorm:"column:outcome"`
	Error    string `gorm:"column:error"`
	Released string `gorm:"column:released"`
	Unloaded string `gorm:"column:unloaded"`
}

func (operationRow) TableName() string { return "operations" }

func operationRowOf(op registry.Operation) (r operationRow, err error) {
	r = operationRow{ID: op.ID, Kind: string(op.Kind), Subject: op.Subject, State: string(op.State), Actor: op.Actor, Cause: op.Cause,
		Created: toNanos(op.CreatedAt), Started: toNanos(op.StartedAt), Ended: toNanos(op.EndedAt), Outcome: op.Outcome}
	if r.Stages, err = listToJSON(op.Stages); err != nil {
		return r, err
	}
	if r.Error, err = toJSON(op.Error); err != nil {
		return r, err
	}
	if r.Released, err = toJSON(op.Released); err != nil {
		return r, err
	}
	r.Unloaded, err = toJSON(op.Unloaded)
	return r, err
}

func (r operationRow) operation() (registry.Operation, error) {
	op := registry.Operation{ID: r.ID, Kind: registry.OperationKind(r.Kind), Subject: r.Subject, State: registry.OperationState(r.State),
		Actor: r.Actor, Cause: r.Cause, CreatedAt: fromNanos(r.Created), StartedAt: fromNanos(r.Started), EndedAt: fromNanos(r.Ended), Outcome: r.Outcome}
	if err := fromJSON(r.Stages, &op.Stages); err != nil {
		return op, err
	}
	if err := fromJSON(r.Error, &op.Error); err != nil {
		return op, err
	}
	if err := fromJSON(r.Released, &op.Released); err != nil {
		return op, err
	}
	return op, fromJSON(r.Unloaded, &op.Unloaded)
}

func operationsOf(rows []operationRow) ([]registry.Operation, error) {
	ops := make([]registry.Operation, len(rows))
	for i, r := range rows {
		op, err := r.operation()
		if err != nil {
			return nil, err
		}
		ops[i] = op
	}
	return ops, nil
}

// PutOperation stores an operation as it is now, new or not.
func (s *Store) PutOperation(ctx context.Context, op registry.Operation) error {
	const name = "store.PutOperation"
	row, err := operationRowOf(op)
	if err != nil {
		return s.fail(ctx, name, err)
	}
	return s.write(ctx, name, func(tx *txn) error {
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error
	})
}

// Operation returns the operation of that id, or CodeNotFound.
func (s *Store) Operation(ctx context.Context, id string) (registry.Operation, error) {
	const name = "store.Operation"
	var row operationRow
	found, err := take(s.read(ctx).Where("id = ?", id), &row)
	if err == nil && !found {
		err = registry.Errorf(registry.CodeNotFound, "There is no operation %q. It may be so old that it was removed from the history", id)
	}
	if err != nil {
		return registry.Operation{}, s.fail(ctx, name, err)
	}
	op, err := row.operation()
	return op, s.fail(ctx, name, err)
}

// The condition of the index operations_unfinished, word for word.
const unfinished = "state IN ('queued', 'running', 'paused')"

// UnfinishedOperations returns the operations that have not ended, oldest first.
func (s *Store) UnfinishedOperations(ctx context.Context) ([]registry.Operation, error) {
	const name = "store.UnfinishedOperations"
	var rows []operationRow
	if err := s.read(ctx).Where(unfinished).Order("id").Find(&rows).Error; err != nil {
		return nil, s.fail(ctx, name, err)
	}
	ops, err := operationsOf(rows)
	return ops, s.fail(ctx, name, err)
}

// PruneOperations removes all ended operations but the newest keep. Those that have not ended stay and do not count.
func (s *Store) PruneOperations(ctx context.Context, keep int) error {
	return s.write(ctx, "store.PruneOperations", func(tx *txn) error {
		var newestToGo operationRow
		found, err := take(tx.Select("id").Where("NOT "+unfinished).Order("id DESC").Offset(max(keep, 0)), &newestToGo)
		if err != nil || !found {
			return err
		}
		return tx.Delete(&operationRow{}, "id <= ? AND NOT "+unfinished, newestToGo.ID).Error
	})
}

// ListOperations returns a page of operations, newest first, and what to pass as After for the next, "" at the end.
func (s *Store) ListOperations(ctx context.Context, q OperationQuery) (ops []registry.Operation, next string, err error) {
	const name = "store.ListOperations"
	limit := pageLimit(q.Limit)
	query := s.read(ctx).Order("id DESC").Limit(limit + 1)
	query = whereSet(query, "subject = ?", q.Subject)
	query = whereSet(query, "kind = ?", string(q.Kind))
	query = whereSet(query, "state = ?", string(q.State))
	query = whereSet(query, "id < ?", q.After)
	var rows []operationRow
	if err := query.Find(&rows).Error; err != nil {
		return nil, "", s.fail(ctx, name, err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = rows[limit-1].ID
	}
	ops, err = operationsOf(rows)
	return ops, next, s.fail(ctx, name, err)
}

// whereSet adds the condition when there is a value for it.
func whereSet(query *gorm.DB, condition, value string) *gorm.DB {
	if value == "" {
		return query
	}
	return query.Where(condition, value)
}

// pageLimit returns how many entries a page has when limit were asked for.
func pageLimit(limit int) int {
	if limit <= 0 {
		return DefaultLimit
	}
	return min(limit, MaxLimit)
}

type auditRow struct {
	ID      int64  `gorm:"column:id;primaryKey;autoIncrement"`
	At      int64  `gorm:"column:at"`
	Actor   string `gorm:"column:actor"`
	Action  string `gorm:"column:action"`
	Subject string `gorm:"column:subject"`
	Outcome string `gorm:"column:outcome"`
	Detail  string `gorm:"column:detail"`
	Remote  string `gorm:"column:remote"`
}

func (auditRow) TableName() string { return "audit" }

// Audit appends an entry. Its ID is given here; At is now when it is not set.
func (s *Store) Audit(ctx context.Context, e registry.AuditEntry) error {
	entry := s.auditRow(e)
	return s.write(ctx, "store.Audit", func(tx *txn) error {
		row := entry // it gets its number here, each time anew
		return tx.Create(&row).Error
	})
}

func (s *Store) auditRow(e registry.AuditEntry) auditRow {
	if e.At.IsZero() {
		e.At = s.now()
	}
	return auditRow{At: toNanos(e.At), Actor: e.Actor, Action: e.Action, Subject: e.Subject, Outcome: e.Outcome, Detail: e.Detail, Remote: e.Remote}
}

// ListAudit returns the newest entries first, those with an ID below before (0: all), DefaultLimit of them when limit is 0 and
// at most MaxLimit.
func (s *Store) ListAudit(ctx context.Context, limit int, before int64) ([]registry.AuditEntry, error) {
	query := s.read(ctx).Order("id DESC").Limit(pageLimit(limit))
	if before > 0 {
		query = query.Where("id < ?", before)
	}
	var rows []auditRow
	if err := query.Find(&rows).Error; err != nil {
		return nil, s.fail(ctx, "store.ListAudit", err)
	}
	out := make([]registry.AuditEntry, len(rows))
	for i, r := range rows {
		out[i] = registry.AuditEntry{ID: r.ID, At: fromNanos(r.At), Actor: r.Actor, Action: r.Action, Subject: r.Subject,
			Outcome: r.Outcome, Detail: r.Detail, Remote: r.Remote}
	}
	return out, nil
}
