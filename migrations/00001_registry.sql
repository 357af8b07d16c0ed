-- Times are Unix nanoseconds in UTC; 0 means never. Lists and maps are JSON text; '' means none.
-- fold_id and fold_name are the id or name with every letter replaced by the one that stands for all its cases
-- (Unicode simple folding), so that two that differ only in case cannot both exist.

-- +goose Up
CREATE TABLE settings (
	key   TEXT PRIMARY KEY NOT NULL,
	value TEXT NOT NULL
) STRICT;

CREATE TABLE teams (
	name       TEXT PRIMARY KEY NOT NULL,
	created_at INTEGER NOT NULL
) STRICT;
INSERT INTO teams (name, created_at) VALUES ('default', CAST(strftime('%s', 'now') AS INTEGER) * 1000000000);

CREATE TABLE models (
	fold_id                TEXT PRIMARY KEY NOT NULL,
	model_id               TEXT NOT NULL,
	source_type            TEXT NOT NULL,
	source_path            TEXT NOT NULL,
	model_format           TEXT NOT NULL,
	revision               TEXT NOT NULL,
	quantization_bits      INTEGER NOT NULL,
	device_preference      TEXT NOT NULL,
	required_gpu_memory_mb INTEGER NOT NULL,
	required_ram_mb        INTEGER NOT NULL,
	custom_loader_params   TEXT NOT NULL, -- holds secrets: never log a row
	tokenizer_path         TEXT NOT NULL,
	trust_remote_code      INTEGER NOT NULL,
	engine                 TEXT NOT NULL,
	team                   TEXT NOT NULL REFERENCES teams (name),
	description            TEXT NOT NULL,
	tags                   TEXT NOT NULL,
	context_length         INTEGER NOT NULL,
	gpu_ids                TEXT NOT NULL,
	idle_timeout           INTEGER NOT NULL, -- nanoseconds
	pinned                 INTEGER NOT NULL,
	priority               INTEGER NOT NULL,
	registration           TEXT NOT NULL,
	persist                INTEGER NOT NULL,
	shadowed               TEXT NOT NULL, -- with persist = 0: the lasting record that comes back at the next start
	version                INTEGER NOT NULL,
	created_at             INTEGER NOT NULL,
	created_by             TEXT NOT NULL,
	updated_at             INTEGER NOT NULL,
	updated_by             TEXT NOT NULL,
	status                 TEXT NOT NULL -- registry.DeriveStatus, written whenever one of its three inputs is
) STRICT;
CREATE INDEX models_team ON models (team, fold_id);
CREATE INDEX models_status ON models (status, fold_id);
CREATE INDEX models_passing ON models (fold_id) WHERE persist = 0;

-- A runtime may outlive its model: one that was registered with persist = 0 is gone after a restart, while its engine
-- may still run and has to be found by the handle and ended. Hence no foreign key.
CREATE TABLE runtimes (
	fold_id        TEXT PRIMARY KEY NOT NULL,
	model_id       TEXT NOT NULL,
	desired        TEXT NOT NULL,
	state          TEXT NOT NULL,
	artifact       TEXT NOT NULL,
	generation     INTEGER NOT NULL,
	instance_id    TEXT NOT NULL,
	engine         TEXT NOT NULL,
	engine_version TEXT NOT NULL,
	device         TEXT NOT NULL,
	handle         TEXT NOT NULL,
	endpoint       TEXT NOT NULL,
	predicted_gpu  INTEGER NOT NULL, -- bytes, as the three below
	predicted_ram  INTEGER NOT NULL,
	measured_gpu   INTEGER NOT NULL,
	measured_ram   INTEGER NOT NULL,
	attempts       INTEGER NOT NULL,
	ready_at       INTEGER NOT NULL,
	last_used_at   INTEGER NOT NULL,
	changed_at     INTEGER NOT NULL,
	failure        TEXT NOT NULL,
	operation_id   TEXT NOT NULL
) STRICT;
CREATE INDEX runtimes_active ON runtimes (fold_id)
	WHERE state NOT IN ('stopped', 'failed', '') OR desired = 'ready';

CREATE TABLE manifest_outbox (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT,
	model_id TEXT NOT NULL,
	deleted  INTEGER NOT NULL
) STRICT;

CREATE TABLE operations (
	id         TEXT PRIMARY KEY NOT NULL,
	kind       TEXT NOT NULL,
	subject    TEXT NOT NULL,
	state      TEXT NOT NULL,
	actor      TEXT NOT NULL,
	cause      TEXT NOT NULL,
	created_at INTEGER NOT NULL,
	started_at INTEGER NOT NULL,
	ended_at   INTEGER NOT NULL,
	stages     TEXT NOT NULL,
	outcome    TEXT NOT NULL,
	error      TEXT NOT NULL,
	released   TEXT NOT NULL,
	unloaded   TEXT NOT NULL
) STRICT;
CREATE INDEX operations_subject ON operations (subject, id);
CREATE INDEX operations_unfinished ON operations (id) WHERE state IN ('queued', 'running');

CREATE TABLE audit (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	at      INTEGER NOT NULL,
	actor   TEXT NOT NULL,
	action  TEXT NOT NULL,
	subject TEXT NOT NULL,
	outcome TEXT NOT NULL,
	detail  TEXT NOT NULL,
	remote  TEXT NOT NULL
) STRICT;

CREATE TABLE users (
	id            TEXT PRIMARY KEY NOT NULL,
	fold_name     TEXT NOT NULL UNIQUE,
	name          TEXT NOT NULL,
	admin         INTEGER NOT NULL,
	disabled      INTEGER NOT NULL,
	password_hash TEXT NOT NULL,
	created_at    INTEGER NOT NULL,
	last_seen_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE members (
	team    TEXT NOT NULL REFERENCES teams (name) ON DELETE CASCADE,
	user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	role    TEXT NOT NULL,
	PRIMARY KEY (team, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_user ON members (user_id);

CREATE TABLE tokens (
	id           TEXT PRIMARY KEY NOT NULL,
	user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	name         TEXT NOT NULL,
	prefix       TEXT NOT NULL,
	hash         BLOB NOT NULL UNIQUE,
	created_at   INTEGER NOT NULL,
	last_used_at INTEGER NOT NULL,
	expires_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX tokens_user ON tokens (user_id);

CREATE TABLE sessions (
	token_hash BLOB PRIMARY KEY NOT NULL, -- SHA-256 of the cookie's value
	data       BLOB NOT NULL,
	expiry     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_expiry ON sessions (expiry);

-- +goose Down
DROP TABLE sessions;
DROP TABLE tokens;
DROP TABLE members;
DROP TABLE users;
DROP TABLE audit;
DROP TABLE operations;
DROP TABLE manifest_outbox;
DROP TABLE runtimes;
DROP TABLE models;
DROP TABLE teams;
DROP TABLE settings;
