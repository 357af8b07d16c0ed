-- What is known of each model's files, secrets that loader parameters refer to, and operations that rest.

-- +goose Up
CREATE TABLE artifacts (
	fold_id          TEXT PRIMARY KEY NOT NULL,
	model_id         TEXT NOT NULL,
	ref              TEXT NOT NULL,
	source_type      TEXT NOT NULL,
	source_path      TEXT NOT NULL,
	model_format     TEXT NOT NULL,
	requested        TEXT NOT NULL,
	revision         TEXT NOT NULL,
	root             TEXT NOT NULL,
	main             TEXT NOT NULL,
	bytes            INTEGER NOT NULL,
	files            TEXT NOT NULL,
	facts            TEXT NOT NULL,
	fetched_revision TEXT NOT NULL,
	loaded_revision  TEXT NOT NULL,
	changed          TEXT NOT NULL,
	problem          TEXT NOT NULL,
	resolved_at      INTEGER NOT NULL,
	fetched_at       INTEGER NOT NULL,
	used_at          INTEGER NOT NULL
) STRICT;
CREATE INDEX artifacts_source ON artifacts (source_type, source_path);
CREATE INDEX artifacts_changed ON artifacts (fold_id) WHERE changed <> '';

-- Whatever removes a model removes what is known of its files; the files themselves stay.
-- +goose StatementBegin
CREATE TRIGGER artifacts_of_model AFTER DELETE ON models BEGIN
	DELETE FROM artifacts WHERE fold_id = OLD.fold_id;
END;
-- +goose StatementEnd

CREATE TABLE secrets (
	team       TEXT NOT NULL, -- '': every team's models may use it
	name       TEXT NOT NULL,
	value      TEXT NOT NULL, -- never log a row
	updated_at INTEGER NOT NULL,
	updated_by TEXT NOT NULL,
	PRIMARY KEY (team, name)
) STRICT, WITHOUT ROWID;

-- +goose StatementBegin
CREATE TRIGGER secrets_of_team AFTER DELETE ON teams BEGIN
	DELETE FROM secrets WHERE team = OLD.name;
END;
-- +goose StatementEnd

-- A paused operation has not ended.
DROP INDEX operations_unfinished;
CREATE INDEX operations_unfinished ON operations (id) WHERE state IN ('queued', 'running', 'paused');

-- A fetch without a load leaves these behind when the server is killed.
CREATE INDEX runtimes_fetching ON runtimes (fold_id) WHERE artifact IN ('resolving', 'fetching', 'verifying');

-- +goose Down
DROP INDEX runtimes_fetching;
DROP INDEX operations_unfinished;
CREATE INDEX operations_unfinished ON operations (id) WHERE state IN ('queued', 'running');
DROP TRIGGER secrets_of_team;
DROP TABLE secrets;
DROP TRIGGER artifacts_of_model;
DROP TABLE artifacts;
