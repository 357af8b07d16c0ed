-- What a loaded instance was loaded with: the version of the configuration, 0 for not known, and the tokenizer of another
-- place, as JSON, '' for none. Both may be others by now.

-- +goose Up
ALTER TABLE runtimes ADD COLUMN config_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE artifacts ADD COLUMN loaded_tokenizer TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE artifacts DROP COLUMN loaded_tokenizer;
ALTER TABLE runtimes DROP COLUMN config_version;
