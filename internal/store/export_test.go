package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/pressly/goose/v3"

	"github.com/industriverse/llmmodelmanager/migrations"
)

// What the tests in package store_test need to see of the inside.

var Fold = fold

// WriterPragma returns a setting of the writer connection.
func WriterPragma(s *Store, name string) (value string, err error) {
	err = s.w.Raw("PRAGMA " + name).Scan(&value).Error
	return value, err
}

// WriteWithReader tries to write on a reader connection.
func WriteWithReader(s *Store) error {
	return s.r.Create(&settingRow{Key: "k"}).Error
}

// LimitPages lets the file grow by no more than a few pages.
func LimitPages(s *Store) error {
	var pages int
	if err := s.w.Raw("PRAGMA page_count").Scan(&pages).Error; err != nil {
		return err
	}
	return s.w.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", pages+4)).Error
}

// QueryPlan returns how SQLite would answer the query.
func QueryPlan(s *Store, query string) (string, error) {
	var steps []struct{ Detail string }
	err := s.w.Raw("EXPLAIN QUERY PLAN " + query).Scan(&steps).Error
	var out []string
	for _, step := range steps {
		out = append(out, step.Detail)
	}
	return strings.Join(out, "; "), err
}

// MigrateDown takes every migration back.
func MigrateDown(s *Store) error {
	pool, err := s.w.DB()
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, pool, migrations.FS, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = p.DownTo(context.Background(), 0)
	return err
}

// IntegrityCheck returns SQLite's own verdict on the file: "ok".
func IntegrityCheck(s *Store) (verdict string, err error) {
	err = s.r.Raw("PRAGMA integrity_check").Scan(&verdict).Error
	return verdict, err
}
