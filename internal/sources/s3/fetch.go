package s3

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Fetch brings the snapshot to Options.Dir. What is there of it already, whole or in part, is used. Every object is
// asked for as it was when the snapshot was made; one that was replaced since ends the fetch, and nothing of two
// versions is mixed. A revision that is whole on disk needs no network.
//
// Content is verified by the SHA-256 sum that the service keeps, else by an ETag that is an MD5 sum, else by another sum that
// the service keeps, of the whole or of the parts that it was uploaded in, else by its size: such a file is Unsummed.
//
// Errors: those of Resolve; CodeLoadingFailed with FailureMissingFile when an object is gone and FailureCorruptFile when
// its content is not what the service says; CodeUnavailable when it was replaced, or the disk cannot be written;
// CodeInsufficientResources when the disk is too small.
func (s *Source) Fetch(ctx context.Context, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	set, err := settingsOf(snap.Ref)
	if err != nil {
		return registry.Artifact{}, err
	}
	if !fingerprint.MatchString(snap.Revision) || slices.ContainsFunc(snap.Files, func(f registry.File) bool { return !safe(f.Path) || f.Size < 0 }) {
		return registry.Artifact{}, registry.Errorf(registry.CodeInvalid, "this is no snapshot of an object store; resolve the model again")
	}
	c, err := s.connect(set)
	if err != nil {
		return registry.Artifact{}, err
	}
	prefix, ok := c.prefixOf(snap.Root)
	if !ok {
		return registry.Artifact{}, registry.Errorf(registry.CodeInvalid, "the model was looked at in another place (%s) than its settings name now; resolve it again", printable(clip(snap.Root)))
	}
	j := &job{source: s, conn: c, snap: snap, home: s.home(c), prefix: prefix, report: report}
	return j.run(ctx)
}

// job is one fetch.
type job struct {
	source *Source
	conn   *connection
	snap   sources.Snapshot
	home   home
	prefix string
	report func(registry.Progress)
	done   int64 // as it was reported; it never shrinks
}

// rounds is how often blobs are fetched that somebody deleted between being fetched and being linked.
const rounds = 3

func (j *job) run(ctx context.Context) (registry.Artifact, error) {
	if err := j.home.make(j.conn); err != nil {
		return registry.Artifact{}, j.source.disk(err)
	}
	j.fetched(0, "Waiting for the files.")
	unlock, err := j.home.lock(ctx, j.snap.Revision, true)
	if err != nil {
		return registry.Artifact{}, j.source.disk(err)
	}
	defer unlock()
	folder := j.home.revision(j.snap.Revision)
	r, err := readRecord(folder)
	for round := 0; err != nil; round++ {
		if err := j.download(ctx); err != nil {
			return registry.Artifact{}, j.source.disk(err)
		}
		err = j.assemble(folder)
		if err != nil && (round == rounds || !errors.Is(err, fs.ErrNotExist)) {
			return registry.Artifact{}, j.source.disk(err)
		}
		if err == nil {
			r, err = readRecord(folder)
		}
		if err != nil && round == rounds {
			return registry.Artifact{}, j.source.disk(err)
		}
	}
	return j.verify(ctx, folder, r)
}

// fetched reports progress in bytes of the whole snapshot.
func (j *job) fetched(done int64, msg string) {
	j.progress(registry.Progress{Stage: registry.StageFetch, Done: done, Unit: registry.UnitBytes, Msg: msg})
}

func (j *job) progress(p registry.Progress) {
	j.done = max(j.done, min(p.Done, j.snap.Bytes))
	p.Done, p.Total = j.done, j.snap.Bytes
	j.report(p)
}

// verify makes sure that everything is there. The content was verified while it was written.
func (j *job) verify(ctx context.Context, folder string, r record) (registry.Artifact, error) {
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	j.fetched(j.snap.Bytes, fmt.Sprintf("All %d files are on this machine.", len(r.Files)))
	p := registry.Progress{Stage: registry.StageVerify, Total: j.snap.Bytes, Unit: registry.UnitBytes, Msg: "Looking at the files."}
	j.report(p)
	for i, f := range r.Files {
		if err := ctx.Err(); err != nil {
			return registry.Artifact{}, err
		}
		if !isWhole(filepath.Join(folder, filesDir, filepath.FromSlash(f.Path)), f.Size) {
			return registry.Artifact{}, registry.Errorf(registry.CodeUnavailable, "%s was changed or removed in %s; fetch the model again", f.Path, folder)
		}
		p.Done += f.Size
		p.Msg = fmt.Sprintf("%d of %d files: %s", i+1, len(r.Files), f.Path)
		if i == len(r.Files)-1 {
			p.Done = p.Total
		}
		j.report(p)
	}
	return registry.Artifact{
		Path: filepath.Join(folder, filesDir, filepath.FromSlash(j.snap.Main)), Revision: r.Revision, Files: r.Files, Bytes: r.Bytes,
		Facts: j.snap.Facts, At: j.source.now().UTC(),
	}, nil
}

// download brings the blobs that are not there yet.
func (j *job) download(ctx context.Context) error {
	var missing []int
	var have, kept int64
	for i, f := range j.snap.Files {
		blob := j.home.blob(blobName(j.prefix+f.Path, f))
		if isWhole(blob, f.Size) {
			have += f.Size
		} else {
			missing = append(missing, i)
			kept += fetch.Kept(j.home.partial(filepath.Base(blob)), f.Size, f.ETag)
		}
	}
	j.fetched(have+kept, fmt.Sprintf("%d of %d files are to be fetched.", len(missing), len(j.snap.Files)))
	known, err := j.heads(ctx, missing)
	if err != nil {
		return err
	}
	files := make([]fetch.File, 0, len(missing))
	for n, i := range missing {
		f, d := j.snap.Files[i], known[n]
		j.snap.Files[i].SHA256, j.snap.Files[i].Unsummed = d.sha256, d.digest().Kind == ""
		blob := j.home.blob(blobName(j.prefix+f.Path, f))
		files = append(files, fetch.File{
			Name: f.Path, Size: f.Size, Digest: d.digest(), Tag: f.ETag,
			Remote:  &remote{conn: j.conn, key: j.prefix + f.Path, etag: f.ETag, version: d.version},
			Partial: j.home.partial(filepath.Base(blob)),
			Present: func() bool { return isWhole(blob, f.Size) },
			Commit:  func(partial string) error { return os.Rename(partial, blob) },
		})
	}
	return j.source.fetcher.Run(ctx, fetch.Job{Source: registry.SourceS3, Files: files, Here: len(j.snap.Files) - len(missing), Report: func(p registry.Progress) {
		p.Done += have
		j.progress(p)
	}})
}

// heads asks for the sums and versions of the files to be fetched, and whether they are still what they were.
func (j *job) heads(ctx context.Context, missing []int) ([]details, error) {
	// A slice of its own: two fetches may share the snapshot.
	j.snap.Files = slices.Clone(j.snap.Files)
	out := make([]details, len(missing))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for n, i := range missing {
		g.Go(func() error {
			f := j.snap.Files[i]
			d, err := j.conn.head(ctx, j.prefix+f.Path)
			if err != nil {
				return headers.InFile(err, f.Path)
			}
			if d.etag != f.ETag || d.size != f.Size {
				return registry.Errorf(registry.CodeUnavailable, "%s was replaced since the model was looked at; start again to use what is there now", "s3://"+j.conn.bucket+"/"+printable(j.prefix+f.Path))
			}
			out[n] = d
			return nil
		})
	}
	err := g.Wait()
	return out, err
}

// assemble makes the revision's folder out of blobs, beside its place, and moves it there whole.
func (j *job) assemble(folder string) error {
	staging := filepath.Join(j.home.models, stagingName+j.snap.Revision)
	for _, old := range []string{staging, folder} { // of a crash, or damaged
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	r := record{
		Version: recordVersion, Path: j.snap.Ref.Path, Endpoint: j.conn.at.String(), Bucket: j.conn.bucket, Prefix: strings.TrimSuffix(j.prefix, "/"),
		Revision: j.snap.Revision, Format: j.snap.Ref.Format, Choice: choiceOf(j.conn.settings), Main: j.snap.Main,
		Files: j.snap.Files, Bytes: j.snap.Bytes, Facts: j.snap.Facts, FetchedAt: j.source.now().UTC(),
	}
	r.Path = j.source.Canonical(r.Path)
	dirs := map[string]bool{staging: true, filepath.Join(staging, filesDir): true}
	if err := os.MkdirAll(filepath.Join(staging, filesDir), 0o700); err != nil {
		return err
	}
	for _, f := range r.Files {
		to := filepath.Join(staging, filesDir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		for dir := filepath.Dir(to); len(dir) > len(staging); dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
		if err := putIn(j.home.blob(blobName(j.prefix+f.Path, f)), to); err != nil {
			return err
		}
	}
	if err := j.inspect(staging); err != nil {
		return headers.InFile(err, j.snap.Root)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(staging, artifactFile), b); err != nil {
		return err
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	if err := os.Rename(staging, folder); err != nil {
		return err
	}
	return syncDir(j.home.models)
}

// putIn puts a blob into a revision. On a file system without hard links it is moved there, and shared with nobody.
func putIn(blob, to string) error {
	err := os.Link(blob, to)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EMLINK) || errors.Is(err, syscall.ENOSYS) {
		return os.Rename(blob, to)
	}
	return err
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return cmp.Or(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return cmp.Or(d.Sync(), d.Close())
}
