// Package sources holds the contract between the manager and the places where weights come from. One package below
// this one reads one kind of source; internal/sources/sourcetest is the suite that each of them passes.
package sources

import (
	"context"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Ref names a model at a source.
type Ref struct {
	Path      string // source_path
	Revision  string // as the user gave it
	Format    registry.Format
	Tokenizer string         // tokenizer_path
	Params    map[string]any // custom_loader_params, for credentials and patterns
	// RemoteCode is trust_remote_code: without it, Python files that lie beside the weights are not fetched.
	RemoteCode bool
}

// RefOf returns the reference of a model.
func RefOf(m registry.Model) Ref {
	return Ref{
		Path: m.SourcePath, Revision: m.Revision, Format: m.ModelFormat, Tokenizer: m.TokenizerPath,
		Params: m.CustomLoaderParams, RemoteCode: m.TrustRemoteCode,
	}
}

// Snapshot is what a source has under a reference at one exact revision.
type Snapshot struct {
	Ref      Ref
	Revision string // the commit, or a fingerprint of names, sizes and times
	Root     string // where Files are relative to: a folder, an address
	Main     string // the file that an engine is to be given, relative to Root; "" means the folder
	Files    []registry.File
	Bytes    int64
	OnDisk   int64          // of Bytes, those that Fetch need not download any more
	Facts    registry.Facts // from the headers alone
	Cost     Cost           // what it took to find this out
	// Tokenizer is what Ref.Tokenizer names at another place of the same source, which Fetch brings along; nil for none. Its
	// bytes are not in Bytes.
	Tokenizer *registry.Companion
}

// Cost is what a look at a source took of the network. Zero for one that is not behind a network.
type Cost struct {
	Requests int
	Bytes    int64
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

// Offerer is a source where one path may hold several models: formats, quantisations.
type Offerer interface {
	// Offers returns what is there under ref.Path at ref.Revision, best first; ref.Format and the parameters that choose
	// one are ignored. It downloads no weights and reads no headers. Errors are those of Resolve.
	Offers(ctx context.Context, ref Ref) ([]registry.Offer, error)
}

// Checker is a source with rules of its own about a model's fields: a source_path that can be no name there, parameters
// it does not understand or that contradict each other. Check is pure and returns every fault.
type Checker interface {
	Check(ref Ref) []registry.FieldError
}

// Normalizer is a source where a model may be named by an address, too: the one that a browser shows.
type Normalizer interface {
	// Normalize returns ref as it is stored: the model's own name in Path, and what else the address names in the other
	// fields. It is pure. What it does not understand comes back as it is, and Check says what is wrong with it.
	Normalize(ref Ref) Ref
}

// Gatekeeper is a source where not everybody who may register models may name everything. AdminOnly is pure and returns
// what is wrong with ref unless an admin gives it.
type Gatekeeper interface {
	AdminOnly(ref Ref) []registry.FieldError
}

// Keeper is a source that keeps artifacts on disks of this machine, so that they can be shown and deleted.
type Keeper interface {
	// Stored returns everything that is kept, in the order of Path and Revision.
	Stored(ctx context.Context) ([]registry.StoredArtifact, error)

	// Delete removes one revision, and what only it uses. It returns the bytes that became free. CodeNotFound when there
	// is no such revision, CodeConflict when another process is writing it.
	Delete(ctx context.Context, path, revision string) (int64, error)

	// Clean removes unfinished downloads that nobody has written to since the given time. It returns the bytes that
	// became free.
	Clean(ctx context.Context, before time.Time) (int64, error)
}

// Watcher is a source whose models may change under it while they are registered.
type Watcher interface {
	// Changed tells in words in what the files of a differ from what is there now under ref, "" when in nothing. ref is
	// the one that a was resolved from. It looks at names, sizes, times and inodes only, so that it may be asked every few
	// seconds for hundreds of models. A model that is gone has changed; an error means that it could not be looked at.
	Changed(ctx context.Context, a registry.Artifact, ref Ref) (string, error)
}

// Namer is a source where one model has several names: with and without a scheme, a registry or a tag.
type Namer interface {
	// Canonical returns the one name that stands for all of them, the one that Stored uses. It is pure; a path that can
	// be no name comes back as it is.
	Canonical(path string) string
}
