package ollama

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Fetch brings the blobs of a snapshot that are not here yet into Ollama's folder, their digests checked while they are
// written, and then the manifest, so that an Ollama on this folder sees the model only once it is whole. What is here is
// used as it is: its name is its digest, and who wrote it, Ollama or this, had checked it. Ollama's own unfinished
// downloads are left alone.
//
// When a tag moves, the manifest that it had before stays under the tag sha256-<hex>, so that a model that is loaded keeps
// its blobs; Stored shows it and Delete removes it.
//
// Errors are those of Resolve and of fetch.Fetcher. What was fetched is kept for the next time.
func (s *Source) Fetch(ctx context.Context, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	name, creds, faults := read(snap.Ref)
	if len(faults) > 0 {
		return registry.Artifact{}, &registry.Error{Code: registry.CodeInvalid, Op: "ollama", Msg: "the model cannot be fetched from an Ollama library", Fields: faults}
	}
	m, err := s.manifestOf(ctx, snap, name, creds)
	if err != nil {
		return registry.Artifact{}, err
	}
	done, err := s.begin(ctx, name, m)
	if err != nil {
		return registry.Artifact{}, err
	}
	defer done()

	p := &progress{ctx: ctx, report: report, total: snap.Bytes}
	// Ollama deletes blobs that no manifest names when it starts, and somebody may delete a model that shares some with this
	// one: what vanished in the last moment is fetched once more.
	for try := 0; ; try++ {
		if err := s.bring(ctx, name, creds, m, p); err != nil {
			return registry.Artifact{}, err
		}
		if err := p.fetched(); err != nil {
			return registry.Artifact{}, err
		}
		gone, err := s.finish(ctx, name, m)
		if err != nil {
			return registry.Artifact{}, err
		}
		if gone == "" {
			break
		}
		if try == 2 {
			return registry.Artifact{}, registry.Errorf(registry.CodeUnavailable, "%s was deleted by another program while %s was fetched; see what empties %s, and load again", gone, name, s.blobs())
		}
		s.log.Warn("A blob vanished while its model was fetched; it is fetched again", "model", name.String(), "blob", gone)
	}
	done() // before the note can be removed; once more does no harm
	if err := s.forget(ctx, m.digest); err != nil {
		return registry.Artifact{}, err
	}
	facts, err := s.exact(ctx, name, m, snap.Main)
	if err != nil {
		return registry.Artifact{}, err
	}
	_ = p.verify(p.total) // there is nothing left to be cancelled
	return registry.Artifact{
		Path: filepath.Join(s.dir, snap.Main), Revision: snap.Revision, Files: snap.Files, Bytes: snap.Bytes,
		Facts: facts, At: s.now().UTC(),
	}, nil
}

// manifestOf returns the manifest of a snapshot: from the look that made it, from this disk, or from the registry.
func (s *Source) manifestOf(ctx context.Context, snap sources.Snapshot, name Name, creds credentials) (*manifest, error) {
	if !isDigest(snap.Revision) {
		return nil, registry.Errorf(registry.CodeInvalid, "the revision %s is not the digest of a manifest; look the model up again", quote(snap.Revision))
	}
	if m := s.remembered(snap.Revision); m != nil {
		return m, nil
	}
	exact := name
	exact.Digest = snap.Revision
	if m := s.pinned(exact); m != nil {
		return m, nil
	}
	if notes, err := s.pendings(); err == nil {
		if m, err := readManifest(notes[s.pendingFile(snap.Revision)].Manifest); err == nil && m.digest == snap.Revision {
			return m, nil
		}
	}
	se, err := s.open(name, creds)
	if err != nil {
		return nil, err
	}
	m, err := se.manifest(ctx, snap.Revision)
	if err == nil {
		return m, nil
	}
	// Not every registry answers to digests.
	if m, tagErr := se.manifest(ctx, name.reference()); tagErr == nil && m.digest == snap.Revision {
		return m, nil
	}
	return nil, err
}

// bring fetches the blobs that are missing.
func (s *Source) bring(ctx context.Context, name Name, creds credentials, m *manifest, p *progress) error {
	var missing []layer
	var kept int64
	p.here = 0
	for _, f := range m.files() {
		l := layer{Digest: "sha256:" + f.SHA256, Size: f.Size}
		if s.has(l.file(), l.Size) {
			p.here += l.Size
		} else {
			missing = append(missing, l)
			kept += fetch.Kept(s.partial(l.file()), l.Size, l.Digest)
		}
	}
	if len(missing) == 0 {
		return p.say(p.total, "All files are on this machine already: nothing is downloaded.")
	}
	se, err := s.open(name, creds)
	if err != nil {
		return err
	}
	if err := p.say(p.here+kept, fmt.Sprintf("Fetching %d of %d files from %s.", len(missing), len(m.files()), se.base.Host)); err != nil {
		return err
	}
	job := fetch.Job{Source: registry.SourceOllama, Here: len(m.files()) - len(missing), Report: func(r registry.Progress) { _ = p.say(p.here+r.Done, r.Msg) }} // a cancelled ctx ends Run as well
	for _, l := range missing {
		job.Files = append(job.Files, fetch.File{
			Name: l.path(), Size: l.Size, Digest: fetch.Digest{Kind: fetch.SHA256, Sum: l.sum()}, Tag: l.Digest,
			Remote: se.remote(l), Partial: s.partial(l.file()),
			Present: func() bool { return s.has(l.file(), l.Size) },
			Commit:  func(partial string) error { return s.keep(partial, l) },
		})
	}
	if err := s.fetcher.Run(ctx, job); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// keep puts a verified blob where it waits for the others of its model.
func (s *Source) keep(partial string, l layer) error {
	err := os.Chmod(partial, 0o644)
	if err == nil {
		err = os.Rename(partial, s.whole(l.file()))
	}
	if err == nil {
		err = syncFolder(s.own())
	}
	if err != nil {
		return explainDisk(s.whole(l.file()), err)
	}
	return nil
}

// finish puts the blobs in their places, and then the manifest. gone is a blob that is neither here nor there.
func (s *Source) finish(ctx context.Context, name Name, m *manifest) (gone string, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	for _, l := range m.blobs() {
		if isFile(s.blob(l.file()), l.Size) {
			continue
		}
		if !isFile(s.whole(l.file()), l.Size) {
			return l.path(), nil
		}
		// Ollama spares what is younger than an hour even when no manifest names it.
		now := s.now()
		err := os.Chtimes(s.whole(l.file()), now, now)
		if err == nil {
			err = os.Rename(s.whole(l.file()), s.blob(l.file()))
		}
		if err != nil {
			return "", explainDisk(s.blob(l.file()), err)
		}
	}
	if err := syncFolder(s.blobs()); err != nil {
		return "", explainDisk(s.blobs(), err)
	}
	return "", s.publish(name, m)
}

// exact returns the facts of a model whose blobs are in their places: from afar only the beginning of the header was seen.
func (s *Source) exact(ctx context.Context, name Name, m *manifest, main string) (registry.Facts, error) {
	l := &look{name: name, manifest: m}
	conf, err := s.config(ctx, l)
	if err != nil {
		return registry.Facts{}, err
	}
	weights, err := m.weights(name, conf)
	if err != nil {
		return registry.Facts{}, err
	}
	if weights.path() != main {
		return registry.Facts{}, registry.Errorf(registry.CodeInvalid, "the weights of %s are in %s, not in %s; look the model up again", name, weights.path(), quote(main))
	}
	facts, _, err := s.facts(ctx, l, conf, weights)
	if err == nil {
		err = s.describe(ctx, l, conf, weights, &facts)
	}
	return facts, headers.InFile(err, name.String())
}

// publish writes the manifest under its name, the one that was there before under its digest.
func (s *Source) publish(name Name, m *manifest) error {
	path := s.place(name)
	old, err := readManifestFile(path)
	switch {
	case err == nil && old != nil && old.digest == m.digest:
		return nil
	case err == nil && old != nil && s.complete(old):
		was := name
		was.Digest = old.digest
		if err := s.writeManifest(s.place(was), old.raw); err != nil {
			return err
		}
		s.log.Info("The tag stands for another model now; the one before is kept under its digest", "model", name.String(), "before", old.digest, "now", m.digest)
	}
	return s.writeManifest(path, m.raw)
}

func (f folder) writeManifest(path string, raw []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return explainDisk(filepath.Dir(path), err)
	}
	return f.replace(path, raw)
}

// forget removes the note about a fetch that is done, unless somebody else is still at it.
func (s *Source) forget(ctx context.Context, digest string) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	path := s.pendingFile(digest)
	if !alone(path) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return explainDisk(path, err)
	}
	return nil
}

// progress counts the bytes of the whole model, those that were here before included. Its methods return the context's
// error, so that a fetch that was cancelled by who looks at its progress ends there.
type progress struct {
	ctx    context.Context //nolint:containedctx // lives as long as one call of Fetch
	report func(registry.Progress)
	total  int64
	here   int64 // bytes of the blobs that need not be fetched
	done   int64
}

func (p *progress) say(done int64, msg string) error {
	p.done = max(p.done, min(done, p.total))
	p.report(registry.Progress{Stage: registry.StageFetch, Done: p.done, Total: p.total, Unit: registry.UnitBytes, Msg: strings.TrimSpace(msg)})
	return p.ctx.Err()
}

// fetched ends the stage in which bytes arrive and begins the next.
func (p *progress) fetched() error {
	if p.done < p.total {
		if err := p.say(p.total, "All files are here."); err != nil {
			return err
		}
	}
	return p.verify(0)
}

func (p *progress) verify(done int64) error {
	p.report(registry.Progress{Stage: registry.StageVerify, Done: done, Total: p.total, Unit: registry.UnitBytes, Msg: "The digests were checked while the files were written."})
	return p.ctx.Err()
}
