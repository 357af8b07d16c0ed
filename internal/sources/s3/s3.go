// Package s3 is the source for weights in an object store: Amazon's S3 and every service that speaks its protocol. A
// prefix is a model, or a single object is.
//
// What is fetched lies under Options.Dir:
//
//	BUCKET-HASH/blobs/…                 files by key and ETag: what two revisions have in common is there once
//	BUCKET-HASH/partial/…               files that are being fetched
//	BUCKET-HASH/models/PREFIX-HASH/REV/ a revision: artifact.json, and files/ with hard links to blobs
//
// A revision appears under its name by one rename, when everything in it is whole. Nobody but this package writes there,
// and names of objects never lead out of it.
package s3

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// Options configure the source. The endpoint, region and credentials that a model does not give come from the
// environment, as for every S3 tool: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and its
// siblings, AWS_PROFILE with the files in ~/.aws, and the machine's role.
type Options struct {
	Dir     string         // where artifacts are kept; made when needed
	Fetcher *fetch.Fetcher // brings the bytes
	// AllowPrivate lets a model's own endpoint_url lead to this machine or to a private network. Without it only the
	// environment's endpoint may, because otherwise everybody who may register a model could make the server talk to
	// internal hosts.
	AllowPrivate bool
	Logger       *slog.Logger // nil discards
	Now          func() time.Time
}

// Source implements sources.Source, Offerer, Checker, Keeper and Namer.
type Source struct {
	dir          string
	fetcher      *fetch.Fetcher
	allowPrivate bool
	env          *environment
	trusted      *http.Transport // the environment's endpoint
	careful      *http.Transport // endpoints that models name: the open internet only
	log          *slog.Logger
	now          func() time.Time
}

var (
	_ sources.Source  = (*Source)(nil)
	_ sources.Offerer = (*Source)(nil)
	_ sources.Checker = (*Source)(nil)
	_ sources.Keeper  = (*Source)(nil)
	_ sources.Namer   = (*Source)(nil)
)

// New returns the source. The environment's variables are read now, the files with credentials when they are needed.
func New(o Options) *Source {
	s := &Source{
		dir: o.Dir, fetcher: o.Fetcher, allowPrivate: o.AllowPrivate, env: readEnvironment(), log: o.Logger, now: o.Now,
		trusted: fetch.Transport(fetch.TransportOptions{}),
		careful: fetch.Transport(fetch.TransportOptions{AllowPrivate: func(string) bool { return false }}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Close ends the idle connections. The source can still be used.
func (s *Source) Close() {
	s.trusted.CloseIdleConnections()
	s.careful.CloseIdleConnections()
}

// Type returns SourceS3.
func (s *Source) Type() registry.SourceType { return registry.SourceS3 }

// Canonical returns the address without the slash at its end: s3://bucket/folder.
func (s *Source) Canonical(p string) string {
	if rest, ok := strings.CutPrefix(p, "s3://"); ok {
		return "s3://" + strings.Trim(rest, "/")
	}
	return p
}

// maxObjects bounds a listing, so that a whole bucket of something else is refused and not paged through for an hour.
const maxObjects = 20_000

// place is what a listing found under a reference.
type place struct {
	prefix  string // what the names of files are relative to: "" or with a slash at its end
	files   []registry.File
	objects map[string]object // by name relative to prefix
	notes   []string
	single  string // the one object that source_path names, relative to prefix; "" for a folder
}

// Resolve lists the prefix, chooses the files of the format and reads their headers. The revision is a fingerprint of
// the service, the bucket, and the keys, sizes and ETags of the files; ref.Revision may be such a fingerprint and is
// otherwise ignored.
//
// Errors: CodeNotFound without such a bucket or prefix, or when the fingerprint that was asked for is neither there nor
// on disk; CodeInvalid for parameters that the service refuses, a wrong region, or files that cannot be told apart;
// CodeLoadingFailed with FailureGated when access is denied, FailureMissingFile or FailureCorruptFile when the model is
// incomplete, damaged or archived; CodeUnavailable when the service cannot be reached and nothing of it is on disk. A
// cancelled ctx is returned as it is.
func (s *Source) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return sources.Snapshot{Ref: ref}, err
	}
	set, err := settingsOf(ref)
	if err != nil {
		return sources.Snapshot{Ref: ref}, err
	}
	c, err := s.connect(set)
	if err != nil {
		return sources.Snapshot{Ref: ref}, err
	}
	if set.revision != "" {
		if snap, err := s.pinned(c, ref); err == nil {
			return snap, nil
		}
	}
	snap, err := s.look(ctx, c, ref)
	if registry.CodeOf(err) == registry.CodeUnavailable {
		if kept, ok := s.offline(c, ref, err); ok {
			return kept, nil
		}
	}
	if err == nil && set.revision != "" && snap.Revision != set.revision {
		err = registry.Errorf(registry.CodeNotFound, "%s has changed since %s: it is %s now, and the older content is not on this machine any more; set revision to %s to use what is there now", ref.Path, set.revision, snap.Revision, registry.DefaultRevision)
	}
	if err != nil {
		return sources.Snapshot{Ref: ref}, err
	}
	return snap, nil
}

// look asks the service.
func (s *Source) look(ctx context.Context, c *connection, ref sources.Ref) (sources.Snapshot, error) {
	snap := sources.Snapshot{Ref: ref}
	at, err := c.find(ctx)
	if err != nil {
		return snap, err
	}
	in := &inspection{ctx: ctx, conn: c, place: at}
	if err := in.choose(ref.Format); err != nil {
		return snap, headers.InFile(err, ref.Path)
	}
	mark := sha256.New()
	fmt.Fprintf(mark, "%q %q %q\n", c.at.String(), c.bucket, at.prefix)
	for _, f := range in.files {
		o := at.objects[f.Path]
		if archived(o.class) {
			return snap, c.archived(f.Path, "the storage class "+printable(clip(o.class)))
		}
		snap.Files = append(snap.Files, f)
		snap.Bytes += f.Size
		fmt.Fprintf(mark, "%q %d %q\n", f.Path, f.Size, o.etag)
	}
	snap.Root = c.root(at.prefix)
	snap.Main, snap.Facts = in.main, in.facts
	snap.Facts.Notes = append(snap.Facts.Notes, in.notes...)
	snap.Revision = "s3-" + hex.EncodeToString(mark.Sum(nil)[:12])
	snap.OnDisk = s.onDisk(c, at.prefix, snap)
	snap.Cost = sources.Cost{Requests: int(c.count.requests.Load()), Bytes: c.count.bytes.Load()}
	return snap, nil
}

// archived reports whether objects of a storage class must be restored before they can be read.
func archived(class string) bool {
	return class == "GLACIER" || class == "DEEP_ARCHIVE"
}

// Offers returns the models under the prefix: formats, and for GGUF the quantisations. Errors are those of Resolve.
func (s *Source) Offers(ctx context.Context, ref sources.Ref) ([]registry.Offer, error) {
	plain := sources.Ref{Path: ref.Path, Revision: registry.DefaultRevision, Params: map[string]any{}}
	for k, v := range ref.Params {
		if k != "quantization" && k != "filename" {
			plain.Params[k] = v
		}
	}
	set, err := settingsOf(plain)
	if err != nil {
		return nil, err
	}
	c, err := s.connect(set)
	if err != nil {
		return nil, err
	}
	at, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	files := pick.Filter(at.files, set.choice.Allow, set.choice.Ignore)
	offers := pick.Offers(files)
	if len(offers) == 0 {
		return nil, headers.InFile(headers.Mismatch(files, ""), ref.Path)
	}
	return offers, nil
}

// find lists what source_path names: the object when it is called like weights, else everything below the prefix.
func (c *connection) find(ctx context.Context) (*place, error) {
	if !c.folder && headers.FormatOf(c.key) != "" {
		at, err := c.findObject(ctx)
		if err != nil || at != nil {
			return at, err
		}
	}
	prefix := c.key
	if prefix != "" {
		prefix += "/"
	}
	objects, more, err := c.list(ctx, prefix, true, maxObjects)
	switch {
	case err != nil:
		return nil, err
	case more:
		return nil, c.fail(registry.CodeInvalid, "there are more than %d objects under s3://%s/%s; set source_path to the prefix of one model", maxObjects, c.bucket, printable(prefix))
	case len(objects) == 0:
		return nil, c.nothing(ctx)
	}
	return placed(prefix, objects), nil
}

// findObject lists one object with what belongs to it: the other shards, external data, small files beside an ONNX
// model. Nil when there is no such object.
func (c *connection) findObject(ctx context.Context) (*place, error) {
	dir, name := path.Split(c.key)
	from := dir // everything beside it
	if headers.FormatOf(name) == registry.FormatGGUF {
		from = c.key
		if i := strings.LastIndex(name, "-of-"); i > 6 { // NAME-00001-of-00003.gguf
			from = dir + name[:i-5]
		}
	}
	objects, more, err := c.list(ctx, from, false, maxObjects)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(objects, func(o object) bool { return o.key == c.key }) {
		if !more {
			return nil, nil //nolint:nilnil // no such object, and no error
		}
		return nil, c.fail(registry.CodeInvalid, "there are more than %d objects beside s3://%s/%s; put the model under a prefix of its own", maxObjects, c.bucket, printable(c.key))
	}
	at := placed(dir, objects)
	at.single = name
	return at, nil
}

// placed makes names of keys. Those that could not be files below a folder are left out, with a note.
func placed(prefix string, objects []object) *place {
	at := &place{prefix: prefix, objects: make(map[string]object, len(objects))}
	var odd []string
	for _, o := range objects {
		name := strings.TrimPrefix(o.key, prefix)
		if !safe(name) || o.size < 0 {
			odd = append(odd, fmt.Sprintf("%q", clip(name)))
			continue
		}
		at.objects[name] = o
		at.files = append(at.files, registry.File{Path: name, Size: o.size, ETag: o.etag})
	}
	// A key may be both an object and the beginning of others' names; on a disk it is a file or a folder.
	at.files = slices.DeleteFunc(at.files, func(f registry.File) bool {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if _, both := at.objects[dir]; both {
				odd = append(odd, fmt.Sprintf("%q", clip(f.Path)))
				return true
			}
		}
		return false
	})
	if len(odd) > 0 {
		slices.Sort(odd)
		at.notes = append(at.notes, fmt.Sprintf("%d objects have names that cannot be files below a folder and are not used: %s.", len(odd), headers.Some(odd)))
	}
	slices.SortFunc(at.files, func(a, b registry.File) int { return cmp.Compare(a.Path, b.Path) })
	return at
}

// nothing explains an empty prefix.
func (c *connection) nothing(ctx context.Context) error {
	address := "s3://" + c.bucket
	if c.key != "" {
		address += "/" + printable(c.key)
	}
	if c.key != "" && !c.folder {
		switch _, err := c.head(ctx, c.key); {
		case err == nil:
			return c.fail(registry.CodeInvalid, "%s is a single object whose name says no format that we know; set source_path to the folder that it is in, or to a .gguf or .onnx object", address)
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
			return err
		}
	}
	hint := "the bucket is empty"
	if beside := c.neighbours(ctx, ""); beside != "" {
		hint = "the bucket has " + beside
	}
	if dir, _ := path.Split(c.key); dir != "" {
		if beside := c.neighbours(ctx, dir); beside != "" {
			hint = "beside it there is " + beside
		}
	}
	return c.fail(registry.CodeNotFound, "there is nothing at %s on %s (%s); correct source_path, or upload the model there", address, c.host(), hint)
}
