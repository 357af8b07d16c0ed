package huggingface

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// Resolve finds the commit that ref.Revision is now, the files of it that a model of the format needs, and what their
// headers say. It takes a handful of requests, none of them for weights. Files that the cache holds are not asked for.
//
// Without the Hub (HF_HUB_OFFLINE, or it cannot be reached) it answers from the cache, and says so in a note.
//
// Errors: CodeInvalid with the fields at fault, or when what is there cannot be a model of the format; CodeNotFound for
// the repository or the revision; CodeLoadingFailed with FailureGated, FailureMissingFile or FailureCorruptFile; CodeBusy
// with RetryAfter; CodeUnavailable. With FailureGated the snapshot still tells what the Hub shows to everybody:
// files, sizes, parameters, licence.
func (s *Source) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	found, err := s.find(ctx, ref)
	defer found.close()
	if err != nil {
		return sources.Snapshot{Ref: ref}, final(err)
	}
	snap, err := s.compose(ctx, found)
	if found.kept && failedAs(err, registry.FailureCorruptFile) {
		// The listing in the cache may be to blame, whoever wrote it.
		found.cache.repo(found.folder()).forget(found.commit)
		if err := s.fromHub(ctx, found); err != nil {
			return sources.Snapshot{Ref: ref}, final(err)
		}
		snap, err = s.compose(ctx, found)
	}
	return snap, final(err)
}

// Offers implements sources.Offerer.
func (s *Source) Offers(ctx context.Context, ref sources.Ref) ([]registry.Offer, error) {
	ref.Format = ""
	ref.Params = withoutChoice(ref.Params)
	found, err := s.find(ctx, ref)
	defer found.close()
	if err != nil {
		return nil, final(err)
	}
	return pick.Offers(found.files), nil
}

// withoutChoice leaves of the parameters what says who asks.
func withoutChoice(params map[string]any) map[string]any {
	out := map[string]any{}
	for _, name := range []string{"auth_token", "token"} {
		if v, ok := params[name]; ok {
			out[name] = v
		}
	}
	return out
}

// Canonical implements sources.Namer: the id, whatever form the path has.
func (s *Source) Canonical(p string) string {
	if id, _, _, err := s.address(p); err == nil {
		return id
	}
	return p
}

// found is a repository at one commit.
type found struct {
	*look
	commit string
	files  []registry.File
	hints  headers.Hints
	tags   []string
	cache  *store // nil when there is none yet
	kept   bool   // the listing came from the cache
	exact  bool   // the files are here, so that all of their headers are read
}

func (f *found) close() {
	if f != nil && f.cache != nil {
		f.cache.Close()
	}
}

// find finds out the commit and its files: from the Hub, else from the cache.
func (s *Source) find(ctx context.Context, ref sources.Ref) (*found, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a, errs := s.understand(ref)
	if len(errs) > 0 {
		return nil, refused(errs)
	}
	f := &found{look: &look{asked: a}}
	var err error
	if f.cache, err = s.openCache(false); err != nil && !absent(err) {
		return f, err
	}
	if s.offline {
		f.offline = true
		return f, s.fromCache(f, nil)
	}
	err = s.fromHub(ctx, f)
	if !isPassing(err) {
		return f, err
	}
	// The cache says nothing about who may have the files, but whoever could read it could read it without us, too.
	f.offline = true
	if s.fromCache(f, err) == nil {
		return f, nil
	}
	return f, err
}

func (s *Source) fromHub(ctx context.Context, f *found) error {
	ctx = f.counted(ctx)
	in, err := s.info(ctx, f.look)
	if err != nil {
		return err
	}
	f.commit, f.tags = in.SHA, in.Tags
	f.hints = headers.Hints{Parameters: in.Safetensors.Parameters, Total: in.GGUF.Total, Licence: in.licence(), Gated: in.gated(), ChatTemplate: in.GGUF.ChatTemplate != ""}
	var t tree
	f.kept = false
	if f.cache != nil {
		t, f.kept = f.cache.repo(f.folder()).tree(f.commit)
	}
	if !f.kept {
		if t, err = s.listing(ctx, f.look, f.commit); err != nil {
			return err
		}
	}
	s.trees.put(f.id, f.commit, t)
	f.files = t.files()
	return nil
}

// fromCache answers without the Hub. cause is why it could not be asked; nil when it was not to be.
func (s *Source) fromCache(f *found, cause error) error {
	why := "HF_HUB_OFFLINE is set, so the Hub was not asked"
	if cause != nil {
		why = "The Hub was not reached (" + strings.TrimSuffix(cause.Error(), ".") + ")"
	}
	missing := problem(registry.CodeUnavailable, "%s, and the cache at %s does not hold %s at %s; fetch it while the Hub can be reached", why, s.cache, f.id, clip(f.revision))
	if f.cache == nil {
		return missing
	}
	r := f.cache.repo(f.folder())
	commit, ok := r.commit(f.revision)
	if !ok {
		return missing
	}
	here, err := r.snapshot(commit)
	if err != nil {
		return err
	}
	if len(here) == 0 {
		return missing
	}
	// The listing knows the hashes of files that lie there without a link.
	if t, ok := r.tree(commit); ok {
		here = slices.DeleteFunc(t.files(), func(file registry.File) bool { return r.where(commit, file) != linked })
	}
	f.commit, f.files, f.exact = commit, here, true
	f.notes = append(f.notes, why+". This is what the cache holds.")
	return nil
}

// compose chooses the files and reads their headers.
func (s *Source) compose(ctx context.Context, f *found) (sources.Snapshot, error) {
	snap := sources.Snapshot{Ref: f.ref, Revision: f.commit, Root: s.endpoint.JoinPath(f.id, "resolve", f.commit).String()}
	files := pick.Filter(f.files, f.params.Allow, f.params.Ignore)
	if len(files) == 0 && len(f.files) > 0 {
		return snap, registry.Errorf(registry.CodeInvalid, "allow_patterns and ignore_patterns leave none of the %d files of %s (%s); correct the patterns", len(f.files), f.id, headers.Some(names(f.files)))
	}
	open := s.opener(ctx, f.look, f.cache, f.commit, files)
	err := s.chosen(&snap, f, files, open)
	chosen := len(snap.Facts.Notes)
	if err != nil && !isGated(err) {
		return sources.Snapshot{Ref: f.ref}, headers.InFile(err, f.id)
	}
	if err == nil {
		err = s.tokenizer(ctx, &snap, f, files)
		if err != nil && !isGated(err) {
			return sources.Snapshot{Ref: f.ref}, err
		}
	}
	s.measure(&snap, f)
	if err == nil && !f.exact && snap.OnDisk == snap.Bytes {
		// Everything is here: all headers are read instead of a few, which tells the memory more exactly.
		f.exact = true
		again := snap
		if s.chosen(&again, f, files, open) == nil {
			again.Facts.Tokenizer = again.Facts.Tokenizer || snap.Facts.Tokenizer
			again.Facts.Notes = append(again.Facts.Notes, snap.Facts.Notes[chosen:]...) // of the tokenizer
			snap.Facts = again.Facts
		}
	}
	facts := &snap.Facts
	facts.Format = cmp.Or(facts.Format, f.ref.Format)
	facts.Name = cmp.Or(facts.Name, path.Base(f.id))
	facts.Gated = facts.Gated || f.hints.Gated
	facts.Licence = cmp.Or(facts.Licence, f.hints.Licence)
	facts.Code = facts.Code || slices.Contains(f.tags, "custom_code")
	if !facts.Tokenizer && err == nil {
		facts.Notes = append(facts.Notes, "No tokenizer was found; set tokenizer_path if it is somewhere else.")
	}
	facts.Notes = append(facts.Notes, f.notes...)
	snap.Cost = f.cost()
	return snap, err
}

// measure sums the sizes of the files, and of those that need not be fetched any more.
func (s *Source) measure(snap *sources.Snapshot, f *found) {
	for _, file := range snap.Files {
		snap.Bytes += file.Size
		if f.cache != nil && f.cache.repo(f.folder()).where(f.commit, file) != nowhere {
			snap.OnDisk += file.Size
		}
	}
}

func isGated(err error) bool { return failedAs(err, registry.FailureGated) }

func failedAs(err error, kind registry.FailureKind) bool {
	var e *registry.Error
	return errors.As(err, &e) && e.Failure != nil && e.Failure.Kind == kind
}

func names(files []registry.File) []string {
	out := make([]string, len(files))
	for i, f := range files {
		out[i] = f.Path
	}
	return out
}

// chosen fills in the files, the main one and the facts. When the headers may not be read because the repository is
// gated, the files and what the Hub counted are still filled in.
func (s *Source) chosen(snap *sources.Snapshot, f *found, files []registry.File, open headers.Opener) error {
	switch f.ref.Format {
	case registry.FormatGGUF:
		set, notes, err := pick.GGUF(files, f.params.Choice)
		if err != nil {
			return err
		}
		snap.Main, snap.Files = set.Main, set.Files
		if f.exact || len(set.Files) > 1 && set.Bytes <= smallModel {
			snap.Facts, err = ggufFacts(set.Files, open)
		} else {
			snap.Facts, err = headers.SketchGGUF(set.Files, open, f.hints)
		}
		snap.Facts.Notes = append(snap.Facts.Notes, notes...)
		if isGated(err) {
			snap.Facts.Parameters, snap.Facts.Quantization = f.hints.Total, set.Label
		}
		return err
	case registry.FormatONNX:
		set, err := pick.ONNX(files, f.params.Filename)
		if err != nil {
			return err
		}
		beside := pick.BesideONNX(files, set.Main, f.ref.RemoteCode)
		snap.Main, snap.Files = set.Main, sorted(set.Files, beside)
		snap.Facts, err = headers.ReadONNX(set.Files[0], set.Files[1:], withoutCard(beside, f.offline), open)
		if err == nil && f.exact {
			headers.CountONNX(&snap.Facts, set.Files[0], open)
		}
		return err
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		list := pick.Folder(files, f.ref.RemoteCode)
		w, err := s.folder(withoutCard(files, f.offline), f, open)
		snap.Facts, snap.Files = w.Facts, list
		if err == nil || len(w.Files) > 0 {
			snap.Files = withoutOtherIndex(pick.Keep(list, w.Files), w.Files)
		}
		if isGated(err) {
			for dtype, n := range f.hints.Parameters {
				snap.Facts.Parameters += n
				snap.Facts.DType = strings.ToLower(dtype)
			}
		}
		return err
	}
	return registry.Errorf(registry.CodeInvalid, "model_format %q is none that the Hub has; set it to one of %s", f.ref.Format, formats())
}

// smallModel is how large a split model may be, in bytes, for the headers of all its shards to be read: they are short.
const smallModel = 8 << 20

func formats() string {
	words := make([]string, len(registry.Formats))
	for i, f := range registry.Formats {
		words[i] = string(f)
	}
	return strings.Join(words, ", ")
}

// folder reads the facts: a sketch from the Hub, and everything where the cache has all the files.
func (s *Source) folder(files []registry.File, f *found, open headers.Opener) (headers.Weights, error) {
	if f.exact {
		return headers.ReadFolder(files, f.ref.Format, open)
	}
	return headers.Sketch(files, f.ref.Format, open, f.hints)
}

// withoutCard leaves the model card out when the Hub has told what is in it.
func withoutCard(files []registry.File, keep bool) []registry.File {
	if keep {
		return files
	}
	return slices.DeleteFunc(slices.Clone(files), func(f registry.File) bool { return f.Path == "README.md" })
}

// withoutOtherIndex drops the index of shards that are not among the weights.
func withoutOtherIndex(files []registry.File, weights []string) []registry.File {
	return slices.DeleteFunc(files, func(f registry.File) bool {
		kind, isIndex := strings.CutSuffix(f.Path, ".index.json")
		return isIndex && !slices.ContainsFunc(weights, func(w string) bool { return path.Ext(w) == path.Ext(kind) })
	})
}

func sorted(lists ...[]registry.File) []registry.File {
	out := slices.Concat(lists...)
	slices.SortFunc(out, func(a, b registry.File) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(out, func(a, b registry.File) bool { return a.Path == b.Path })
}

// ggufFacts reads the headers of all shards of one model.
func ggufFacts(files []registry.File, open headers.Opener) (registry.Facts, error) {
	shards := make([]headers.GGUF, 0, len(files))
	for _, f := range files {
		file, err := open(f.Path)
		if err != nil {
			return registry.Facts{}, headers.InFile(err, f.Path)
		}
		g, err := headers.ScanGGUF(file, f.Size)
		err = errors.Join(headers.InFile(err, f.Path), file.Close())
		if err != nil {
			return registry.Facts{}, err
		}
		shards = append(shards, g)
	}
	facts, err := headers.CombineGGUF(shards)
	return facts, headers.InFile(err, files[0].Path)
}
