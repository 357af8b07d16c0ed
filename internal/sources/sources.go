// Package sources holds the contract between the manager and the places where weights come from. One package below
// this one reads one kind of source; internal/sources/sourcetest is the suite that each of them passes.
package sources

import (
	"context"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Ref names a model at a source.
type Ref struct {
	Path      string // source_path
	Revision  string // as the user gave it
	Format    registry.Format
	Tokenizer string         // tokenizer_path
	Params    map[string]any // custom_loader_params, for credentials and patterns
}

// RefOf returns the reference of a model.
func RefOf(m registry.Model) Ref {
	return Ref{Path: m.SourcePath, Revision: m.Revision, Format: m.ModelFormat, Tokenizer: m.TokenizerPath, Params: m.CustomLoaderParams}
}

// Snapshot is what a source has under a reference at one exact revision.
type Snapshot struct {
	Ref      Ref
	Revision string // the commit, or a fingerprint of names, sizes and times
	Root     string // where Files are relative to: a folder, an address
	Main     string // the file that an engine is to be given, relative to Root; "" means the folder
	Files    []registry.File
	Bytes    int64
	Facts    registry.Facts // from the headers alone
}

// Source reads one kind of source. Implementations are safe for concurrent use. Both methods return errors with
// CodeNotFound (nothing there), CodeInvalid (something is there that cannot be a model of this format),
// CodeLoadingFailed with a Failure (missing_file, corrupt_file, gated_repository) or CodeUnavailable.
type Source interface {
	Type() registry.SourceType

	// Resolve finds the exact revision, files, sizes and hashes, and reads the headers. It downloads no weights.
	Resolve(ctx context.Context, ref Ref) (Snapshot, error)

	// Fetch brings the snapshot to local disk and verifies it. It is resumable and atomic: an artifact is returned
	// whole or not at all. report is called from one goroutine at a time with StageFetch then StageVerify.
	Fetch(ctx context.Context, s Snapshot, report func(registry.Progress)) (registry.Artifact, error)
}
