package manager

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// retainEvery is how often the retention policy is applied.
const retainEvery = time.Hour

// Retention returns the retention policy; the zero value, which deletes nothing, when none was set.
func (m *Manager) Retention(ctx context.Context) (registry.Retention, error) {
	var r registry.Retention
	_, err := m.readSetting(ctx, keyRetention, &r)
	return r, err
}

// SetRetention stores the retention policy. It is applied within the hour, or by Retain. CodeInvalid.
func (m *Manager) SetRetention(ctx context.Context, r registry.Retention) error {
	if fields := checkRetention(r); len(fields) > 0 {
		return &registry.Error{Code: registry.CodeInvalid, Op: "manager.SetRetention", Msg: "The retention policy is not valid", Fields: fields}
	}
	return m.writeSetting(ctx, keyRetention, r)
}

func checkRetention(r registry.Retention) []registry.FieldError {
	var fields []registry.FieldError
	for name, d := range map[string]registry.Duration{"unused_for": r.UnusedFor, "partial_for": r.PartialFor} {
		if d < 0 || (d > 0 && d < registry.Duration(time.Minute)) {
			fields = append(fields, registry.FieldError{Field: name, Msg: "must be a minute or more, such as 720h; 0 for never"})
		}
	}
	if r.MaxBytes < 0 {
		fields = append(fields, registry.FieldError{Field: "max_bytes", Msg: "must be a number of bytes, 0 for no limit"})
	}
	slices.SortFunc(fields, func(a, b registry.FieldError) int { return cmp.Compare(a.Field, b.Field) })
	return fields
}

// Retain applies a retention policy, or with dryRun says what it would delete. Every deletion is a line of the audit. The
// error is that the disks could not be looked at; what could not be deleted is told with its item.
func (m *Manager) Retain(ctx context.Context, r registry.Retention, dryRun bool, actor string) ([]registry.RetentionItem, error) {
	if fields := checkRetention(r); len(fields) > 0 {
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "manager.Retain", Msg: "The retention policy is not valid", Fields: fields}
	}
	st, err := m.Storage(ctx)
	if err != nil {
		return nil, err
	}
	items := retained(r, st, m.now())
	if dryRun {
		return append(items, retainedPartials(r, st, m.now())...), nil
	}
	for i := range items {
		it := &items[i]
		it.Freed, err = m.DeleteStored(ctx, it.Source, it.Path, it.Revision, actor, it.Why)
		it.Error = registry.ProblemOf(err)
		m.auditStorage(ctx, actor, it, err)
	}
	if r.PartialFor > 0 {
		why := "unfinished, and has not grown for " + r.PartialFor.String()
		freed, err := m.CleanStored(ctx, time.Duration(r.PartialFor), actor, why)
		if freed > 0 || err != nil {
			it := registry.RetentionItem{Freed: freed, Why: why, Error: registry.ProblemOf(err)}
			m.auditStorage(ctx, actor, &it, err)
			items = append(items, it)
		}
	}
	return items, nil
}

// retained decides what a policy deletes: a pure function of what there is.
func retained(r registry.Retention, st registry.Storage, now time.Time) []registry.RetentionItem {
	items := []registry.RetentionItem{}
	var may []registry.StoredArtifact // what may go, the longest unused first, without a model before with one
	for _, a := range st.Artifacts {
		if a.Revision != "" && !a.InUse && (len(a.Models) == 0 || r.IncludeUsed) {
			may = append(may, a)
		}
	}
	slices.SortStableFunc(may, func(a, b registry.StoredArtifact) int {
		return cmp.Or(cmp.Compare(min(1, len(a.Models)), min(1, len(b.Models))), lastUse(a).Compare(lastUse(b)))
	})
	left := st.Bytes
	for _, a := range may {
		idle := now.Sub(lastUse(a))
		why := ""
		switch {
		case r.UnusedFor > 0 && idle >= time.Duration(r.UnusedFor):
			why = "unused for " + days(idle)
		case r.MaxBytes > 0 && left > r.MaxBytes:
			why = fmt.Sprintf("%s are kept, more than %s; unused for %s", registry.Bytes(left), registry.Bytes(r.MaxBytes), days(idle))
		default:
			continue
		}
		left -= a.Own
		items = append(items, registry.RetentionItem{Source: a.Source, Path: a.Path, Revision: a.Revision, Freed: a.Own, Why: why, Models: a.Models})
	}
	return items
}

// retainedPartials is what of unfinished downloads a policy removes.
func retainedPartials(r registry.Retention, st registry.Storage, now time.Time) (items []registry.RetentionItem) {
	for _, a := range st.Artifacts {
		if idle := now.Sub(a.ModifiedAt); r.PartialFor > 0 && a.Partial > 0 && idle >= time.Duration(r.PartialFor) {
			items = append(items, registry.RetentionItem{Source: a.Source, Path: a.Path, Freed: a.Partial, Why: "unfinished, and has not grown for " + days(idle)})
		}
	}
	return items
}

func lastUse(a registry.StoredArtifact) time.Time {
	if a.UsedAt.After(a.ModifiedAt) {
		return a.UsedAt
	}
	return a.ModifiedAt
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func (m *Manager) auditStorage(ctx context.Context, actor string, it *registry.RetentionItem, err error) {
	e := registry.AuditEntry{Actor: actor, Action: "storage.delete", Subject: fmt.Sprintf("artifact:%s:%s@%s", it.Source, it.Path, it.Revision), Outcome: "ok",
		Detail: fmt.Sprintf("retention: %s; %s freed", it.Why, registry.Bytes(it.Freed))}
	if it.Path == "" {
		e.Subject = "artifact:unfinished"
	}
	if err != nil {
		e.Outcome = string(registry.CodeOf(err))
	}
	if err := m.store.Audit(context.WithoutCancel(ctx), e); err != nil {
		m.log.Error("A line of the audit could not be stored", "actor", e.Actor, "action", e.Action, "subject", e.Subject, "outcome", e.Outcome, "err", err)
	}
}

// retainHourly applies the retention policy once an hour.
func (m *Manager) retainHourly() {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		r, err := m.Retention(m.ctx)
		if err == nil && r != (registry.Retention{}) {
			_, err = m.Retain(m.ctx, r, false, "manager")
		}
		if err != nil && m.ctx.Err() == nil {
			m.log.Error("The retention policy could not be applied", "err", err)
		}
	}
}
