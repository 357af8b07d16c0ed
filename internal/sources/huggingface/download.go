package huggingface

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// large is the size, in bytes, above which the Hub's file servers give a file by ranges only: to a request for the whole
// of it they answer 400 (xet-core#238 and #592, huggingface_hub#4330). The Python client refuses such files without Xet
// (its MAX_HTTP_DOWNLOAD_SIZE), since it asks for them whole. Here every request is for a range.
const large = 50_000_000_000

// partialSuffix is what an unfinished file of ours ends in. The Python client calls its own .incomplete, and its cleaning
// removes those.
const partialSuffix = ".llmm-partial"

// Fetch brings the files of the snapshot into the cache and returns the folder of its commit, or the main file in it.
// What is there already, whoever fetched it, is not fetched again. Other processes that fetch the same files, ours and
// the Python client's, are waited for, file by file. A cache where nothing is missing is not written to.
//
// Errors are those of Resolve; CodeInsufficientResources when the disk is full; CodeUnsupported for a file above 50 GB that
// the Hub does not give by ranges either.
func (s *Source) Fetch(ctx context.Context, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	here := int64(0) // of the tokenizer
	whole := func(p registry.Progress) {
		p.Done, p.Total = p.Done+here, snap.Bytes
		if snap.Tokenizer != nil {
			p.Total += snap.Tokenizer.Bytes
		}
		report(p)
	}
	tokenizer, err := s.bringTokenizer(ctx, snap, whole)
	if err != nil {
		return registry.Artifact{}, final(err)
	}
	if tokenizer != nil {
		here = tokenizer.Bytes
	}
	d := &download{source: s, snap: snap, report: whole}
	defer d.close()
	if err := d.run(ctx); err != nil {
		return registry.Artifact{}, final(err)
	}
	return registry.Artifact{
		Path: filepath.Join(d.repo.on("snapshots", snap.Revision), filepath.FromSlash(snap.Main)), Revision: snap.Revision,
		Files: snap.Files, Bytes: snap.Bytes, Facts: snap.Facts, At: s.now().UTC(), Tokenizer: tokenizer,
	}, nil
}

// download is one Fetch.
type download struct {
	source *Source
	snap   sources.Snapshot
	look   *look
	repo   repo
	mode   os.FileMode
	report func(registry.Progress)
	done   int64 // bytes that are in their place
	files  int   // and how many files
	kept   int64 // bytes that earlier fetches have left of the others
	told   int64 // bytes that were reported, which never shrinks
}

func (d *download) close() {
	if d.repo.store != nil {
		d.repo.Close()
	}
}

func (d *download) run(ctx context.Context) error {
	if err := d.obtain(ctx); err != nil {
		return err
	}
	return d.verify(ctx)
}

// obtain gets every file into its place.
func (d *download) obtain(ctx context.Context) error {
	a, errs := d.source.understand(d.snap.Ref)
	if len(errs) > 0 {
		return refused(errs)
	}
	d.look = &look{asked: a}
	if err := d.sane(); err != nil {
		return err
	}
	missing, err := d.open()
	if err != nil {
		return err
	}
	d.tell(d.kept, "")
	if len(missing) > 0 {
		if err := d.complete(ctx, missing); err != nil {
			return err
		}
	}
	d.remember()
	d.tell(0, "")
	return nil
}

// complete brings what is missing, with a note beside it for as long as that is not through.
func (d *download) complete(ctx context.Context, missing []registry.File) error {
	if err := d.possible(missing); err != nil {
		return err
	}
	note := d.repo.noteOf(d.snap.Revision, d.snap.Files)
	err := d.begin(ctx)
	if err == nil {
		err = d.repo.write(note)
	}
	if err == nil {
		err = d.bring(ctx, missing)
	}
	if settled := d.repo.settle(note, err == nil); settled != nil {
		d.source.log.Warn("what a fetch left behind was not tidied up", "repository", d.look.id, "error", settled)
	}
	return err
}

// sane checks what may have been stored and read back since Resolve made it.
func (d *download) sane() error {
	if !commitHash.MatchString(d.snap.Revision) {
		return registry.Errorf(registry.CodeInvalid, "%q is no commit; look %s up again", clip(d.snap.Revision), d.look.id)
	}
	for _, f := range d.snap.Files {
		if !safeName(f.Path) {
			return registry.Errorf(registry.CodeInvalid, "%q leads out of the model's folder; nothing of %s is fetched", clip(f.Path), d.look.id)
		}
	}
	if len(d.snap.Files) == 0 {
		return registry.Errorf(registry.CodeInvalid, "nothing was found of %s that could be fetched; look it up again", d.look.id)
	}
	return nil
}

// open opens the cache and returns what is not yet in its place in it.
func (d *download) open() ([]registry.File, error) {
	c, err := d.source.openCache(false)
	if absent(err) {
		c, err = d.source.openCache(true)
	}
	if err != nil {
		return nil, err
	}
	d.repo = c.repo(d.look.folder())
	var missing []registry.File
	for _, f := range d.snap.Files {
		if d.repo.where(d.snap.Revision, f) == linked {
			d.done += f.Size
			d.files++
			continue
		}
		missing = append(missing, f)
		if hash40.MatchString(f.ETag) || hash64.MatchString(f.ETag) { // without one begin refuses it
			d.kept += fetch.Kept(d.partial(f), f.Size, f.ETag)
		}
	}
	return missing, nil
}

// possible makes sure that what is missing can be fetched.
func (d *download) possible(missing []registry.File) error {
	for _, f := range missing {
		switch {
		case !hash40.MatchString(f.ETag) && !hash64.MatchString(f.ETag):
			return registry.Errorf(registry.CodeUnavailable, "%s is not in the cache any more, and without a hash it cannot be fetched again; look the model up while the Hub can be reached", f.Path)
		case d.repo.hasBlob(f):
		case d.source.offline:
			return problem(registry.CodeUnavailable, "%s of %s is not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch the file", f.Path, d.look.id)
		}
	}
	return nil
}

// begin lays out the folders and the listing, by which Python can tell later whether everything is there.
func (d *download) begin(ctx context.Context) error {
	if err := d.repo.prepare(); err != nil {
		return err
	}
	if err := d.repo.root.MkdirAll(d.repo.at("snapshots", d.snap.Revision), 0o755); err != nil {
		return d.repo.wrap(err, "snapshots", d.snap.Revision)
	}
	d.mode = d.repo.mode()
	if _, have := d.repo.tree(d.snap.Revision); have || d.source.offline {
		return nil
	}
	t := d.source.trees.get(d.look.id, d.snap.Revision)
	if t == nil {
		var err error
		if t, err = d.source.listing(ctx, d.look, d.snap.Revision); err != nil {
			if !isPassing(err) {
				return err
			}
			d.source.log.Warn("the listing of a repository was not kept", "repository", d.look.id, "error", err)
			return nil
		}
	}
	raw, err := encodeTree(t)
	if err != nil {
		return registry.Errorf(registry.CodeInternal, "the listing of %s cannot be written: %w", d.look.id, err)
	}
	return d.repo.writeAtomic(raw, "trees", d.snap.Revision+".json")
}

// held is a file whose lock this process holds.
type held struct {
	file registry.File
	lock *lock
}

// bring gets every missing file into its place. It takes the locks that are free, fetches those files together, and then
// waits for the others. It never waits for a lock while it holds one, so that no two processes can wait for each other.
func (d *download) bring(ctx context.Context, missing []registry.File) error {
	// Two names can have the same content; it is fetched once.
	slices.SortStableFunc(missing, func(a, b registry.File) int { return strings.Compare(a.ETag, b.ETag) })
	byContent := map[string][]registry.File{}
	var todo []registry.File
	for _, f := range missing {
		if len(byContent[f.ETag]) == 0 {
			todo = append(todo, f)
		}
		byContent[f.ETag] = append(byContent[f.ETag], f)
	}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, later, err := d.locks(ctx, todo)
		if err == nil {
			err = d.get(ctx, got, byContent)
		}
		for _, h := range got {
			h.lock.release()
		}
		if err != nil {
			return err
		}
		todo = later
	}
	return nil
}

// locks takes the locks of files, at least one: of those that are free, else of the first to become so.
func (d *download) locks(ctx context.Context, files []registry.File) (got []held, later []registry.File, err error) {
	for _, f := range files {
		l, err := d.repo.tryLock(f.ETag)
		if err != nil {
			return got, nil, err
		}
		if l == nil {
			later = append(later, f)
			continue
		}
		got = append(got, held{f, l})
	}
	if len(got) > 0 {
		return got, later, nil
	}
	d.tell(0, "Another process is fetching "+files[0].Path+"; waiting for it.")
	never := func() bool { return false }
	l, err := d.repo.waitLock(ctx, files[0].ETag, never)
	if err != nil {
		return nil, nil, err
	}
	return []held{{files[0], l}}, files[1:], nil
}

// get fetches the files whose locks are held, as far as nobody else has done so meanwhile.
func (d *download) get(ctx context.Context, got []held, byContent map[string][]registry.File) error {
	link := func(f registry.File) error {
		for _, same := range byContent[f.ETag] {
			if err := d.repo.link(d.snap.Revision, same); err != nil {
				return err
			}
		}
		return nil
	}
	job := fetch.Job{Source: registry.SourceHuggingFace, Of: len(d.snap.Files), Report: func(p registry.Progress) { d.tell(p.Done, p.Msg) }}
	var size int64 // of everything that is in its place afterwards, copies included
	count := d.files
	for _, h := range got {
		for _, same := range byContent[h.file.ETag] {
			size += same.Size
			count++
		}
		if d.repo.hasBlob(h.file) {
			if err := link(h.file); err != nil {
				return err
			}
			continue
		}
		f, err := d.file(h, link)
		if err != nil {
			return err
		}
		job.Files = append(job.Files, f)
	}
	job.Here = count - len(job.Files)
	if len(job.Files) > 0 {
		if err := d.source.fetcher.Run(ctx, job); err != nil {
			if failedAs(err, registry.FailureCorruptFile) {
				d.repo.forget(d.snap.Revision)
			}
			return headers.InFile(err, d.look.id)
		}
		// Where another process was faster, Commit was not called.
		for _, h := range got {
			if err := link(h.file); err != nil {
				return err
			}
		}
	}
	d.done += size
	d.files = count
	d.tell(0, "")
	return ctx.Err()
}

// partial is where a file grows.
func (d *download) partial(f registry.File) string { return d.repo.on("blobs", f.ETag+partialSuffix) }

// file says how one file is fetched and where it belongs.
func (d *download) file(h held, link func(registry.File) error) (fetch.File, error) {
	f := h.file
	partial := d.repo.at("blobs", f.ETag+partialSuffix)
	for _, name := range []string{partial, partial + ".journal"} {
		if info, err := d.repo.root.Lstat(name); err == nil && !info.Mode().IsRegular() {
			// A link that somebody put there would be written through.
			if err := d.repo.root.RemoveAll(name); err != nil {
				return fetch.File{}, d.repo.wrap(err, "blobs")
			}
		}
	}
	digest := fetch.Digest{Kind: fetch.GitBlobSHA1, Sum: f.ETag}
	if f.SHA256 != "" {
		digest = fetch.Digest{Kind: fetch.SHA256, Sum: f.SHA256}
	}
	return fetch.File{
		Name: f.Path, Size: f.Size, Digest: digest, Tag: f.ETag, Remote: d.source.remote(d.look, d.snap.Revision, f),
		Partial: d.partial(f),
		Present: func() bool { return d.repo.hasBlob(f) },
		Commit: func(path string) error {
			if err := os.Chmod(path, d.mode); err != nil {
				return d.repo.wrap(err, "blobs")
			}
			if err := d.repo.root.Rename(partial, d.repo.at("blobs", f.ETag)); err != nil {
				return d.repo.wrap(err, "blobs")
			}
			return link(f)
		},
	}, nil
}

// remember notes which commit the revision was, as the Python client does, so that it is found without the Hub. It comes
// last: a revision that was fetched before stays usable until the new one is whole.
func (d *download) remember() {
	if d.look.revision == d.snap.Revision || d.source.offline {
		return
	}
	if known, ok := d.repo.commit(d.look.revision); ok && known == d.snap.Revision {
		return
	}
	if err := d.repo.writeAtomic([]byte(d.snap.Revision), "refs", d.look.revision); err != nil {
		// The cache may be one that others may only read: the files are there nevertheless.
		d.source.log.Warn("the commit of a revision was not kept", "repository", d.look.id, "revision", d.look.revision, "error", err)
	}
}

// tell reports the bytes that are there, and those that are on their way.
func (d *download) tell(coming int64, msg string) {
	d.told = min(max(d.told, d.done+coming), d.snap.Bytes)
	d.report(registry.Progress{Stage: registry.StageFetch, Done: d.told, Total: d.snap.Bytes, Unit: registry.UnitBytes, Msg: msg})
}

// verify reads the headers of all files once more, now that they are here: whole, where Resolve may have seen a part.
// The hashes were held against the Hub's while the bytes came.
func (d *download) verify(ctx context.Context) error {
	p := registry.Progress{Stage: registry.StageVerify, Total: d.snap.Bytes, Unit: registry.UnitBytes, Msg: "Reading the headers."}
	d.report(p)
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, f := range d.snap.Files {
		if d.repo.where(d.snap.Revision, f) != linked {
			return headers.Missing("Fetch the model again", "%s was there and is gone from the cache at %s", f.Path, d.repo.on())
		}
	}
	if err := d.source.readable(ctx, d); err != nil {
		return err
	}
	p.Done, p.Msg = p.Total, fmt.Sprintf("%d files are whole.", len(d.snap.Files))
	d.report(p)
	return nil
}

// readable reads the headers from the cache.
func (s *Source) readable(ctx context.Context, d *download) error {
	l := &look{asked: d.look.asked, offline: true}
	f := &found{look: l, commit: d.snap.Revision, files: d.snap.Files, cache: d.repo.store, exact: true}
	open := s.opener(ctx, l, d.repo.store, d.snap.Revision, d.snap.Files)
	again := sources.Snapshot{}
	f.params.Filename, f.params.Quantization = d.snap.Main, ""
	return headers.InFile(s.chosen(&again, f, d.snap.Files, open), d.look.id)
}
