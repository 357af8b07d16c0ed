package store

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// startIndex begins to build the index in the background, from one read of the models as they are now. Nobody writes
// yet; what is written until it is built is made up for at the end.
func (s *Store) startIndex(ctx context.Context) error {
	s.index.done = make(chan struct{})
	rows, err := s.r.WithContext(ctx).Model(&modelRow{}).
		Select("fold_id", "description", "tags", "source_path", "team", "source_type", "status").Order("fold_id").Rows() //nolint:rowserrcheck // buildIndex checks it when it has read the last row
	if err != nil {
		return err
	}
	more := rows.Next() // the read begins here: SQLite shows it the file as it is at this moment
	go func() {
		defer close(s.index.done)
		if err := s.buildIndex(rows, more); err != nil && ctx.Err() == nil {
			s.index.err = err
			s.log.Error("the index of the models could not be built; searches fail until the next start", "error", err)
		}
	}()
	return nil
}

func (s *Store) buildIndex(rows *sql.Rows, more bool) (err error) {
	defer func() {
		if closeErr := rows.Close(); err == nil {
			err = closeErr
		}
	}()
	begun := time.Now()
	v := &version{}
	var out block
	var m slabs
	for ; more; more = rows.Next() {
		var key, description, tagsJSON, path, team, source, status string
		if err := rows.Scan(&key, &description, &tagsJSON, &path, &team, &source, &status); err != nil {
			return err
		}
		var tags []string
		if err := fromJSON(tagsJSON, &tags); err != nil {
			return err
		}
		of, from, is := v.teamNumber(team), sourceNumber(registry.SourceType(source)), statusNumber(registry.Status(status))
		out.add(searchText(key, description, tags, path), of, from, is)
		v.tallies.add(of, from, is, 1)
		v.count++
		if out.len() == blockSize {
			v.blocks = out.appendSplit(v.blocks, &m)
			out.reset()
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	v.blocks = out.appendSplit(v.blocks, &m)
	select {
	case s.turn <- struct{}{}:
	case <-s.closing:
		return nil
	}
	defer func() { <-s.turn }()
	if len(s.index.pending) > 0 {
		v = v.with(s.index.pending)
		s.index.pending = nil
	}
	s.index.version.Store(v)
	s.log.Debug("the index of the models is built", "models", v.count, "took", time.Since(begun))
	return nil
}

// reset empties the block and keeps its memory for the next models.
func (b *block) reset() {
	*b = block{text: b.text[:0], start: slices.Delete(b.start, 0, len(b.start)), team: b.team[:0], source: b.source[:0], status: b.status[:0]}
}

// awaitIndex returns the index as soon as it is built.
func (s *Store) awaitIndex(ctx context.Context) (*version, error) {
	select {
	case <-s.index.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if v := s.index.current(); v != nil {
		return v, nil
	}
	if s.index.err != nil {
		return nil, s.index.err
	}
	return nil, errClosed
}
