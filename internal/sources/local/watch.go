package local

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Changed tells in what the files of a differ from what lies under ref.Path now: "model.safetensors was replaced at
// 2026-11-23 14:02 UTC, 2 files were added (a.json, b.json)". It is "" when nothing did, and never opens a file. What is
// kept to tell it is the ETag of each file of a: size, time and inode. Errors are CodeInvalid when the path is outside of
// the roots or unreadable, CodeUnavailable when the disk fails, and those of ctx.
func (s *Source) Changed(ctx context.Context, a registry.Artifact, ref sources.Ref) (string, error) {
	in := s.look(ctx)
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path, info, err := in.locate("source_path", ref.Path)
	if isGone(err) {
		return filepath.Clean(ref.Path) + " is gone", nil
	}
	if err != nil {
		return "", err
	}
	var now []found
	if info.IsDir() {
		w, err := in.walk(path)
		if isGone(err) {
			return err.Error(), nil
		}
		if err != nil {
			return "", err
		}
		now = w.files
	} else {
		for _, f := range a.Files {
			there, err := in.beside(filepath.Dir(path), f.Path)
			if err != nil {
				return "", err
			}
			if there != nil {
				now = append(now, *there)
			}
		}
	}
	d := compare(a, now, ref, info.IsDir())
	if what := d.String(); what != "" {
		return what, nil
	}
	return in.changedElsewhere(a, d.same, ref)
}

// isGone reports whether an error says that something is not there any more.
func isGone(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && (e.Code == registry.CodeNotFound || e.Failure != nil && e.Failure.Kind == registry.FailureMissingFile)
}

// changedElsewhere holds the fingerprint of what is there against a's when every file looks the same: the tokenizer is
// not among the files, and an artifact of before files had ETags tells no more than that.
func (in *inspection) changedElsewhere(a registry.Artifact, same []found, ref sources.Ref) (string, error) {
	var tokenizer []found
	if ref.Tokenizer != "" {
		var err error
		tokenizer, err = in.tokenizerFiles(ref.Tokenizer)
		if isGone(err) {
			return "the tokenizer at " + ref.Tokenizer + " is gone", nil
		}
		if err != nil {
			return "", err
		}
	}
	switch {
	case revisionOf(same, tokenizer) == a.Revision:
		return "", nil
	case ref.Tokenizer != "":
		return "the tokenizer at " + ref.Tokenizer + " was changed", nil
	}
	return "files were replaced", nil
}

// differences are what became of the files of a model.
type differences struct {
	gone, added []string
	replaced    []found
	resized     []registry.File // as they were, of those replaced by one of another size
	same        []found         // in the order of the artifact
}

func compare(a registry.Artifact, now []found, ref sources.Ref, folder bool) differences {
	var d differences
	there := make(map[string]found, len(now))
	for _, f := range now {
		there[f.rel] = f
	}
	known := make(map[string]bool, len(a.Files))
	for _, f := range a.Files {
		known[f.Path] = true
		is, ok := there[f.Path]
		switch {
		case !ok:
			d.gone = append(d.gone, f.Path)
		case is.info.Size() != f.Size:
			d.resized = append(d.resized, f)
			d.replaced = append(d.replaced, is)
		case f.ETag != "" && f.ETag != identity(is):
			d.replaced = append(d.replaced, is)
		default:
			d.same = append(d.same, is)
		}
	}
	for _, f := range now {
		if folder && !known[f.rel] && belongs(f, ref, a.At.Add(-clockStep)) {
			d.added = append(d.added, f.rel)
		}
	}
	return d
}

// clockStep is how far the clock by which a disk dates its files may be behind the one that dates an artifact: the
// kernel's own is as coarse as its timer.
const clockStep = 10 * time.Millisecond

// belongs reports whether a file that is none of the model's would be, or would be taken for another model. Weights that
// were there at the time and were not chosen are none of its business; those that came later are.
func belongs(f found, ref sources.Ref, at time.Time) bool {
	kind := headers.FormatOf(f.rel)
	switch ref.Format {
	case registry.FormatGGUF:
		return kind == registry.FormatGGUF && !sideFiles.MatchString(f.rel) && wantOf(ref).matches(f.rel) && changedAt(f).After(at)
	case registry.FormatONNX:
		return kind == registry.FormatONNX && wantOf(ref).matches(f.rel) && changedAt(f).After(at)
	case registry.FormatSafetensors, registry.FormatTransformersPT:
		if !weightsLike(f.rel) {
			return true
		}
		chosen := kind == registry.FormatSafetensors || kind == ref.Format
		return chosen && !strings.Contains(f.rel, "/") && changedAt(f).After(at)
	}
	return false
}

// changedAt is when a file got the content or the name that it has.
func changedAt(f found) time.Time {
	at := f.info.ModTime()
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok {
		if inode := time.Unix(st.Ctim.Unix()); inode.After(at) {
			at = inode
		}
	}
	return at
}

// String tells the differences in words, "" when there are none.
func (d differences) String() string {
	var parts []string
	if n := len(d.replaced); n > 0 {
		last := slices.MaxFunc(d.replaced, func(a, b found) int { return changedAt(a).Compare(changedAt(b)) })
		when := changedAt(last).UTC().Format("2006-01-02 15:04 MST")
		switch {
		case n == 1 && len(d.resized) == 1:
			parts = append(parts, fmt.Sprintf("%s changed from %s to %s at %s", last.rel, registry.Bytes(d.resized[0].Size), registry.Bytes(last.info.Size()), when))
		case n == 1:
			parts = append(parts, fmt.Sprintf("%s was replaced at %s", last.rel, when))
		default:
			parts = append(parts, fmt.Sprintf("%d files were replaced (%s), the last at %s", n, some(d.replaced), when))
		}
	}
	for _, k := range []struct {
		names []string
		one   string
		many  string
	}{{d.gone, "%s is gone", "%d files are gone (%s)"}, {d.added, "%s was added", "%d files were added (%s)"}} {
		switch len(k.names) {
		case 0:
		case 1:
			parts = append(parts, fmt.Sprintf(k.one, k.names[0]))
		default:
			parts = append(parts, fmt.Sprintf(k.many, len(k.names), headers.Some(k.names)))
		}
	}
	return strings.Join(parts, ", ")
}

func some(files []found) string {
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.rel
	}
	return headers.Some(names)
}
