package store

import (
	"context"

	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type artifactRow struct {
	FoldID    string `gorm:"column:fold_id;primaryKey"`
	ModelID   string `gorm:"column:model_id"`
	Ref       string `gorm:"column:ref"`
	Source    string `gorm:"column:source_type"`
	Path      string `gorm:"column:source_path"`
	Format    string `gorm:"column:model_format"`
	Requested string `gorm:"column:requested"`
	Revision  string `gorm:"column:revision"`
	Root      string `gorm:"column:root"`
	Main      string `gorm:"column:main"`
	Bytes     int64  `gorm:"column:bytes"`
	Files     string `gorm:"column:files"`
	Facts     string `gorm:"column:facts"`
	Fetched   string `gorm:"column:fetched_revision"`
	Loaded    string `gorm:"column:loaded_revision"`
	Changed   string `gorm:"column:changed"`
	Problem   string `gorm:"column:problem"`
	Tokenizer string `gorm:"column:tokenizer"`
	LoadedTok string `gorm:"column:loaded_tokenizer"`
	Resolved  int64  `gorm:"column:resolved_at"`
	FetchedAt int64  `gorm:"column:fetched_at"`
	UsedAt    int64  `gorm:"column:used_at"`
}

func (artifactRow) TableName() string { return "artifacts" }

func artifactRowOf(a registry.ModelArtifact) (r artifactRow, err error) {
	r = artifactRow{
		FoldID: fold(a.ModelID), ModelID: a.ModelID, Ref: a.Ref, Source: string(a.Source), Path: a.Path, Format: string(a.Format),
		Requested: a.Requested, Revision: a.Revision, Root: a.Root, Main: a.Main, Bytes: a.Bytes, Fetched: a.Fetched, Loaded: a.Loaded,
		Changed: a.Changed, Resolved: toNanos(a.ResolvedAt), FetchedAt: toNanos(a.FetchedAt), UsedAt: toNanos(a.UsedAt),
	}
	if r.Files, err = listToJSON(a.Files); err != nil {
		return r, err
	}
	if r.Facts, err = toJSON(&a.Facts); err != nil {
		return r, err
	}
	if r.Tokenizer, err = toJSON(a.Tokenizer); err != nil {
		return r, err
	}
	if r.LoadedTok, err = toJSON(a.LoadedTokenizer); err != nil {
		return r, err
	}
	r.Problem, err = toJSON(a.Problem)
	return r, err
}

func (r artifactRow) artifact() (registry.ModelArtifact, error) {
	a := registry.ModelArtifact{
		ModelID: r.ModelID, Ref: r.Ref, Source: registry.SourceType(r.Source), Path: r.Path, Format: registry.Format(r.Format),
		Requested: r.Requested, Revision: r.Revision, Root: r.Root, Main: r.Main, Bytes: r.Bytes, Fetched: r.Fetched, Loaded: r.Loaded,
		Changed: r.Changed, ResolvedAt: fromNanos(r.Resolved), FetchedAt: fromNanos(r.FetchedAt), UsedAt: fromNanos(r.UsedAt),
	}
	if err := fromJSON(r.Files, &a.Files); err != nil {
		return a, err
	}
	if err := fromJSON(r.Facts, &a.Facts); err != nil {
		return a, err
	}
	if err := fromJSON(r.Tokenizer, &a.Tokenizer); err != nil {
		return a, err
	}
	if err := fromJSON(r.LoadedTok, &a.LoadedTokenizer); err != nil {
		return a, err
	}
	return a, fromJSON(r.Problem, &a.Problem)
}

// Artifact returns what is known of a model's files, and whether anything is.
func (s *Store) Artifact(ctx context.Context, id string) (a registry.ModelArtifact, ok bool, err error) {
	const op = "store.Artifact"
	var row artifactRow
	if ok, err = take(s.read(ctx).Where("fold_id = ? AND model_id = ?", fold(id), id), &row); err != nil || !ok {
		return a, false, s.fail(ctx, op, err)
	}
	a, err = row.artifact()
	return a, err == nil, s.fail(ctx, op, err)
}

// UpdateArtifacts calls change with what is known of each of these models' files (the zero value with the model's id when
// nothing is) and stores what it returns, all in one write. A model that is not registered is passed over, and so is
// one for which change returns false.
func (s *Store) UpdateArtifacts(ctx context.Context, ids []string, change func(registry.Record, registry.ModelArtifact) (registry.ModelArtifact, bool)) error {
	// Lazily: what is lost with the power is learned again from the source and from the disk.
	return s.writeLazily(ctx, "store.UpdateArtifacts", func(tx *txn) error {
		for _, id := range ids {
			model, err := findModel(tx.DB, id)
			if registry.CodeOf(err) == registry.CodeNotFound {
				continue
			}
			if err != nil {
				return err
			}
			rec, err := model.record()
			if err != nil {
				return err
			}
			var row artifactRow
			if _, err := take(tx.Where("fold_id = ?", model.FoldID), &row); err != nil {
				return err
			}
			before, err := row.artifact()
			if err != nil {
				return err
			}
			before.ModelID = id
			after, ok := change(rec, before)
			if !ok {
				continue
			}
			after.ModelID = id
			if row, err = artifactRowOf(after); err != nil {
				return err
			}
			if err := tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error; err != nil {
				return err
			}
		}
		return nil
	})
}

// ArtifactQuery narrows a list of artifacts. Its zero value is all of them.
type ArtifactQuery struct {
	Source  registry.SourceType
	Path    string // with Source
	Changed bool   // only those that changed on disk
	Lean    bool   // without files and facts, which are most of it
	After   string // only those whose model_id comes after this one, without regard to case
	Limit   int    // 0: no limit
}

// ListArtifacts returns what is known of models' files, in the order of their ids.
func (s *Store) ListArtifacts(ctx context.Context, q ArtifactQuery) ([]registry.ModelArtifact, error) {
	const op = "store.ListArtifacts"
	query := s.read(ctx).Order("fold_id")
	query = whereSet(query, "source_type = ?", string(q.Source))
	query = whereSet(query, "source_path = ?", q.Path)
	if q.Lean {
		query = query.Omit("files", "facts")
	}
	if q.Changed {
		query = query.Where("changed <> ''")
	}
	if q.After != "" {
		query = query.Where("fold_id > ?", fold(q.After))
	}
	if q.Limit > 0 {
		query = query.Limit(q.Limit)
	}
	var rows []artifactRow
	if err := query.Find(&rows).Error; err != nil {
		return nil, s.fail(ctx, op, err)
	}
	out := make([]registry.ModelArtifact, len(rows))
	for i, row := range rows {
		a, err := row.artifact()
		if err != nil {
			return nil, s.fail(ctx, op, err)
		}
		out[i] = a
	}
	return out, nil
}

// FetchingRuntimes returns the runtimes of registered models whose files are being had, as their artifact state says.
func (s *Store) FetchingRuntimes(ctx context.Context) ([]registry.Runtime, error) {
	// The condition is that of the index runtimes_fetching, word for word.
	return s.runtimes(ctx, "store.FetchingRuntimes", `artifact IN ('resolving', 'fetching', 'verifying')
		AND EXISTS (SELECT 1 FROM models WHERE models.fold_id = runtimes.fold_id)`)
}

// ModelsAt returns the source_path of every model of a source, by model_id.
func (s *Store) ModelsAt(ctx context.Context, source registry.SourceType) (map[string]string, error) {
	var rows []struct {
		ModelID    string
		SourcePath string
	}
	err := s.read(ctx).Model(&modelRow{}).Select("model_id", "source_path").Where("source_type = ?", string(source)).Find(&rows).Error
	out := make(map[string]string, len(rows))
	for _, r := range rows {
		out[r.ModelID] = r.SourcePath
	}
	return out, s.fail(ctx, "store.ModelsAt", err)
}

// DeleteSetting removes what was stored under key. It is no error if nothing was.
func (s *Store) DeleteSetting(ctx context.Context, key string) error {
	return s.write(ctx, "store.DeleteSetting", func(tx *txn) error {
		return tx.Delete(&settingRow{}, "key = ?", key).Error
	})
}
