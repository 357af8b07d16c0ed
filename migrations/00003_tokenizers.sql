-- The tokenizer of another place that a model needs, as JSON; '' for none.

-- +goose Up
ALTER TABLE artifacts ADD COLUMN tokenizer TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE artifacts DROP COLUMN tokenizer;
