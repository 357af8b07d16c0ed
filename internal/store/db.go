package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/migrations"
)

// Every connection waits this long for a lock that another process holds (a backup, the sqlite3 shell).
const busyTimeoutMS = "5000"

// connector opens connections with our settings without registering a driver under a global name.
type connector struct {
	driver sqlite3.SQLiteDriver
	dsn    string
}

func (c *connector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c *connector) Driver() driver.Driver                        { return &c.driver }

// openWriter opens the one connection that writes. Transactions take the write lock when they begin, so that none
// fails half-way because another was faster, and a commit returns after fsync (synchronous=FULL). It leaves moving the
// log into the file to the checkpointer.
func openWriter(path string) (*gorm.DB, error) {
	settings := fmt.Sprintf("PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = %d", walLimit)
	return openPool(path, 1, settings, url.Values{
		"mode":          {"rw"},
		"_txlock":       {"immediate"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_foreign_keys": {"1"},
		"_cache_size":   {"-2048"},
	})
}

// openReaders opens a pool of n connections that cannot write. Their page caches are small: the operating system
// caches the file anyway, and idle memory is budgeted.
func openReaders(path string, n int) (*gorm.DB, error) {
	return openPool(path, n, "", url.Values{"mode": {"ro"}, "_query_only": {"1"}, "_cache_size": {"-512"}})
}

// openCheckpointer opens the connection that moves the log into the file. It reads and writes nothing else.
func openCheckpointer(path string) (*gorm.DB, error) {
	return openPool(path, 1, "", url.Values{"mode": {"rw"}, "_cache_size": {"-64"}})
}

// openPool opens up to n connections with these parameters, each of which begins with the statements of settings.
func openPool(path string, n int, settings string, params url.Values) (*gorm.DB, error) {
	params.Set("_busy_timeout", busyTimeoutMS)
	params.Set("_stmt_cache_size", "32")
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: params.Encode()}
	c := &connector{dsn: dsn.String()}
	if settings != "" {
		c.driver.ConnectHook = func(conn *sqlite3.SQLiteConn) error {
			_, err := conn.Exec(settings, nil)
			return err
		}
	}
	pool := sql.OpenDB(c)
	pool.SetMaxOpenConns(n)
	pool.SetMaxIdleConns(n)
	db, err := gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), &gorm.Config{
		Logger:                 logger.Discard, // it would print rows, and rows hold secrets
		SkipDefaultTransaction: true,
		DisableAutomaticPing:   true,
	})
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return db, nil
}

// prepareFile makes the folder and the file if they are missing, and keeps others from reading the file.
func prepareFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return openError(path, err)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createFile(path)
	case err != nil:
		return openError(path, err)
	case !info.Mode().IsRegular():
		return registry.Errorf(registry.CodeUnavailable,
			"The registry cannot be opened: %s is not a file. Move it away or choose another data folder", path)
	case info.Mode().Perm()&0o200 == 0:
		// Root may write to it regardless, but whoever cleared the bit meant something by it.
		return registry.Errorf(registry.CodeUnavailable,
			"The registry cannot be opened: %s is read-only. Make it writable (chmod u+w) or choose another data folder", path)
	case info.Mode().Perm()&0o077 != 0:
		if err := os.Chmod(path, 0o600); err != nil {
			return openError(path, err)
		}
	}
	return nil
}

// createFile makes an empty file that others cannot read; SQLite gives its companions the same mode. The folder is
// synced because a committed change is worth nothing in a file whose name is lost with the power.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return openError(path, err)
	}
	if err := f.Close(); err != nil {
		return openError(path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return openError(path, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return openError(path, err)
	}
	return nil
}

// migrate brings the schema up to this program's version. It refuses a file that a newer program has written.
func migrate(ctx context.Context, db *gorm.DB, path string) error {
	pool, err := db.DB()
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, pool, migrations.FS,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	switch {
	case current > target:
		return registry.Errorf(registry.CodeUnavailable,
			"The registry %s was written by a newer version of this program (schema %d; this one knows %d). Use that version", path, current, target)
	case current == target:
		return nil
	}
	_, err = p.Up(ctx)
	return err
}

// openError says why the file could not be opened.
func openError(path string, err error) error {
	var known *registry.Error
	if errors.As(err, &known) {
		return err
	}
	var why string
	next := "Choose another data folder or mend this one"
	var se sqlite3.Error
	switch {
	case errors.Is(err, fs.ErrPermission):
		why, next = "permission denied", "Give this account the right to write there or choose another data folder"
	case errors.As(err, &se):
		why, next = explain(se)
	default:
		why = err.Error()
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "store.Open", Err: err,
		Msg: fmt.Sprintf("The registry %s cannot be opened: %s. %s", path, why, next)}
}

// explain turns SQLite's error into what happened and what to do. SQLite's own messages name tables and columns but
// never values.
func explain(err sqlite3.Error) (why, next string) {
	switch err.Code {
	case sqlite3.ErrNotADB:
		return "it is not an SQLite database", "Move the file away or choose another data folder"
	case sqlite3.ErrCorrupt:
		return "the file is damaged", "Stop the server and bring back a backup, or save what is left with sqlite3's .recover"
	case sqlite3.ErrFull:
		return "the disk is full", "Free some space and try again"
	case sqlite3.ErrReadonly, sqlite3.ErrPerm:
		return "the file is read-only", "Give this account the right to write to it"
	case sqlite3.ErrCantOpen:
		return "the file cannot be opened", "Give this account the right to write to the file and its folder"
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return "another program holds the database", "Close the other program or try again"
	case sqlite3.ErrIoErr:
		return "the disk reported an error", "Look at the machine's system log"
	}
	return err.Error(), "Look at the server's log"
}
