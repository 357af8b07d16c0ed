// Package migrations holds the schema of the registry's database as goose SQL files, embedded in the binary.
package migrations

import "embed"

// FS holds every migration. A released file never changes; a new need is a new file.
//
//go:embed *.sql
var FS embed.FS
