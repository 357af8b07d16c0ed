package store_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
	"github.com/industriverse/llmmodelmanager/internal/store/storetest"
)

// open opens a store that is closed when the test ends.
func open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{Open: func(dir string, now func() time.Time) (storetest.Store, error) {
		return store.Open(context.Background(), store.Options{Path: filepath.Join(dir, "registry.db"), Now: now})
	}})
}

func inspect(t testing.TB, path, query string) (out string) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), query).Scan(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOpenMakesAPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "a b?c#d%20", "registry.db")
	s := open(t, store.Options{Path: path})
	if _, _, err := s.PutModel(t.Context(), registry.Model{ModelID: "m"}, store.PutOptions{Persist: true}); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{filepath.Dir(path): 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has the mode %o, want %o", filepath.Base(p), info.Mode().Perm(), want)
		}
	}
}

func TestOpenTakesRightsFromOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, store.Options{Path: path}) // an empty file is migrated, too
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the mode is %o, %v", info.Mode().Perm(), err)
	}
}

func TestConnectionsAreDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s := open(t, store.Options{Path: path})
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		got, err := store.WriterPragma(s, pragma)
		if err != nil || got != want {
			t.Errorf("the writer's %s is %q, %v, want %q", pragma, got, err, want)
		}
	}
	if err := store.WriteWithReader(s); err == nil {
		t.Error("a reader could write")
	}
}

// TestOpenSaysWhy opens files that cannot be a registry. Each error names the file and says what to do.
func TestOpenSaysWhy(t *testing.T) {
	made := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "registry.db")
		s, err := store.Open(t.Context(), store.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name string
		file func(t *testing.T) string
		want []string
	}{
		{"not a database", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "registry.db")
			must(t, os.WriteFile(path, []byte(strings.Repeat("models: []\n", 1000)), 0o600))
			return path
		}, []string{"not an SQLite database", "Move the file away"}},
		{"damaged", func(t *testing.T) string {
			path := made(t)
			b, err := os.ReadFile(path)
			must(t, err)
			for i := 100; i < len(b); i++ {
				b[i] = 0xa5
			}
			must(t, os.WriteFile(path, b, 0o600))
			return path
		}, []string{"damaged", "backup"}},
		{"cut off", func(t *testing.T) string {
			path := made(t)
			must(t, os.Truncate(path, 4096))
			return path
		}, []string{"damaged", "backup"}},
		{"read-only", func(t *testing.T) string {
			path := made(t)
			must(t, os.Chmod(path, 0o400))
			return path
		}, []string{"read-only", "chmod"}},
		{"a folder", func(t *testing.T) string { return t.TempDir() }, []string{"is not a file"}},
		{"a folder that is a file", func(t *testing.T) string { return filepath.Join(made(t), "registry.db") }, []string{"cannot be opened"}},
		{"from the future", func(t *testing.T) string {
			path := made(t)
			db, err := sql.Open("sqlite3", path)
			must(t, err)
			_, err = db.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)")
			must(t, errors.Join(err, db.Close()))
			return path
		}, []string{"newer version", "9999"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.file(t)
			s, err := store.Open(t.Context(), store.Options{Path: path})
			if err == nil {
				must(t, s.Close())
				t.Fatal("it was opened")
			}
			if code := registry.CodeOf(err); code != registry.CodeUnavailable {
				t.Errorf("the code is %q", code)
			}
			for _, want := range append(c.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
	if _, err := store.Open(t.Context(), store.Options{}); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("without a path: %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk limits the file to a few pages: a write that does not fit is refused whole, and the store goes on.
func TestFullDisk(t *testing.T) {
	s := open(t, store.Options{Path: filepath.Join(t.TempDir(), "registry.db")})
	must(t, store.LimitPages(s))
	m := registry.Model{ModelID: "large", Description: strings.Repeat("x", 1<<20)}
	_, _, err := s.PutModel(t.Context(), m, store.PutOptions{Persist: true})
	if registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("a write that does not fit: %v", err)
	}
	if _, err := s.Model(t.Context(), "large"); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("after the refused write: %v", err)
	}
	page, err := s.ListModels(t.Context(), store.ListQuery{Q: "large"})
	if err != nil || page.Total != 0 {
		t.Errorf("the index shows %d models, %v", page.Total, err)
	}
}

func TestSecretsStayInTheFile(t *testing.T) {
	const secret = "hf_do_not_tell"
	var log strings.Builder
	s := open(t, store.Options{Path: filepath.Join(t.TempDir(), "registry.db"), Logger: logTo(&log)})
	m := registry.Model{ModelID: "m", CustomLoaderParams: map[string]any{"auth_token": secret}}
	_, _, err := s.PutModel(t.Context(), m, store.PutOptions{Persist: true})
	must(t, err)
	must(t, store.LimitPages(s))
	m.Description = strings.Repeat("x", 1<<20)
	_, _, err = s.PutModel(t.Context(), m, store.PutOptions{Persist: true})
	if err == nil {
		t.Fatal("the write that had to fail did not")
	}
	m.ModelID = "M"
	_, _, conflict := s.PutModel(t.Context(), m, store.PutOptions{Persist: true})
	for _, told := range []string{log.String(), err.Error(), conflict.Error(), registry.AsError(err).Err.Error()} {
		if strings.Contains(told, secret) {
			t.Errorf("a secret was told: %s", told)
		}
	}
}

func TestFold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.String().Draw(t, "a")
		// Every other one is a with some letters in another case, so that both outcomes are met.
		b := rapid.OneOf(rapid.String(), rapid.Just(strings.ToUpper(a)), rapid.Just(strings.ToLower(a)), rapid.Just(strings.ToTitle(a))).Draw(t, "b")
		if got, want := store.Fold(a) == store.Fold(b), strings.EqualFold(a, b); got != want {
			t.Fatalf("%q and %q: folded alike %v, want %v", a, b, got, want)
		}
	})
}

// TestMigrations goes down to nothing and up again, and holds the indexes to their use: each query that has to be quick
// is answered from one.
func TestMigrations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s := open(t, store.Options{Path: path})
	for query, index := range map[string]string{
		"SELECT * FROM models WHERE fold_id = 'x'":                                                                    "sqlite_autoindex_models_1",
		"SELECT * FROM models WHERE persist = 0":                                                                      "models_passing",
		"SELECT fold_id FROM models WHERE status = 'ready' AND fold_id > 'a' ORDER BY fold_id LIMIT 51":               "models_status",
		"SELECT count(*) FROM models WHERE team = 'x'":                                                                "models_team",
		"SELECT * FROM runtimes WHERE (state NOT IN ('stopped', 'failed', '') OR desired = 'ready') ORDER BY fold_id": "runtimes_active",
		"SELECT * FROM operations WHERE state IN ('queued', 'running', 'paused') ORDER BY id":                         "operations_unfinished",
		"SELECT * FROM operations WHERE subject = 'm' AND id < 'x' ORDER BY id DESC LIMIT 51":                         "operations_subject",
		"DELETE FROM sessions WHERE expiry <= 5":                                                                      "sessions_expiry",
		"SELECT * FROM tokens WHERE hash = x'00'":                                                                     "sqlite_autoindex_tokens_2",
	} {
		plan, err := store.QueryPlan(s, query)
		if err != nil || !strings.Contains(plan, index) || strings.Contains(plan, "USE TEMP B-TREE") {
			t.Errorf("%s\nis planned as %q, %v; want the index %s", query, plan, err, index)
		}
	}
	must(t, store.MigrateDown(s))
	if got := inspect(t, path, "SELECT group_concat(name) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"); got != "goose_db_version" {
		t.Errorf("going down left %s", got)
	}
	must(t, s.Close())
	again := open(t, store.Options{Path: path})
	if teams, err := again.ListTeams(t.Context()); err != nil || len(teams) != 1 {
		t.Errorf("after going up again: %v, %v", teams, err)
	}
}

func logTo(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
