// Package fetch brings files from a network to a disk: in parallel ranges, as fast as the other side lets it, resumable
// after a kill at any moment, and verified while it is written. It knows no source: huggingface, s3 and ollama say where
// the bytes are by a Remote and where they belong by a File.
package fetch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Options configure a Fetcher. Zero values are the defaults.
type Options struct {
	Connections int          // at once, over all fetches together; 0 is 64
	Memory      int64        // bytes of buffers over all fetches together; 0 is 64 MiB
	Rate        int64        // bytes per second over all fetches together; 0 is unlimited
	MinFree     int64        // bytes of a disk that are left free; 0 is 1 GiB, below 0 is none
	Logger      *slog.Logger // nil discards
	Now         func() time.Time
}

// Digest is what a file's content must have. The zero Digest checks the size only.
type Digest struct {
	Kind DigestKind
	Sum  string // hex, lower case
	// Parts are the sizes, in bytes, of the parts that an object was uploaded in, when Sum is the digest of the digests of
	// these one after the other, as S3 calls composite. Nil: Sum is of the content.
	Parts []int64
}

// DigestKind names a way to make a Digest.
type DigestKind string

// The kinds of digest.
const (
	SHA256      DigestKind = "sha256"
	GitBlobSHA1 DigestKind = "git-sha1" // SHA-1 over "blob SIZE\x00" and the content, as git names its blobs
	MD5         DigestKind = "md5"      // an S3 ETag of an object that was uploaded in one part
	SHA1        DigestKind = "sha1"
	CRC32       DigestKind = "crc32"  // IEEE
	CRC32C      DigestKind = "crc32c" // Castagnoli
	CRC64NVME   DigestKind = "crc64nvme"
)

// File is one file to fetch.
type File struct {
	Name   string // for people: the path in its repository
	Size   int64  // bytes, exactly
	Digest Digest
	Tag    string // the ETag or digest that names this content; bytes of another tag are never mixed with it
	Remote Remote
	// Partial is where the file grows, with its journal beside it in Partial+".journal". Both outlive a kill and a
	// failure that can be resumed. One process at a time writes them; another waits.
	Partial string
	// Present reports that the file is in its place already, as another process has put it there while this one waited for
	// Partial: then nothing is fetched and Commit is not called. It may be nil.
	Present func() bool
	// Commit moves the whole, verified and synced file from Partial to its place. It is called once.
	Commit func(partial string) error
}

// Job is files that are fetched together.
type Job struct {
	Source registry.SourceType // whose bandwidth limit counts
	Files  []File
	// Here is how many files of the model are in their places already, and Of is how many it has with those of this job;
	// 0 is len(Files). Msg counts them.
	Here, Of int
	// Report is called from one goroutine at a time with StageFetch, UnitBytes and a Msg that tells how many files are
	// done. Done begins with what earlier fetches have left in the partial files, and never shrinks. It may be nil.
	Report func(registry.Progress)
}

// Remote serves the bytes of one file. It is safe for concurrent use.
type Remote interface {
	// Open asks for the bytes from off up to end, end not included; 0 ≤ off < end ≤ the file's size. An error that is a
	// *RetryError may pass; any other ends the fetch.
	Open(ctx context.Context, off, end int64) (*Answer, error)
}

// Answer is the beginning of an answer.
type Answer struct {
	Body   io.ReadCloser
	Offset int64  // of Body's first byte: the one asked for, or 0 from a server that ignored the range
	Size   int64  // of the whole file, as this answer tells it; -1 when it does not
	Tag    string // as File.Tag; "" when it does not say
	Whole  bool   // Body is the whole file, whatever was asked for: this server has no ranges
	Page   bool   // Body claims to be a web page
}

// RetryError is a failure that may pass.
type RetryError struct {
	Err    error
	After  time.Duration // how long the other side asks to wait; 0 when it does not say
	Slower bool          // the other side is overloaded: fewer connections from now on
}

func (e *RetryError) Error() string {
	if e.After > 0 {
		return fmt.Sprintf("%v (asks to wait %s)", e.Err, e.After)
	}
	return e.Err.Error()
}

func (e *RetryError) Unwrap() error { return e.Err }
