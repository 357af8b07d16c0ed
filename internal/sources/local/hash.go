package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// Fingerprint reads every file of a, which was resolved from ref, to its end and returns a with the SHA256 of each. It is
// for those who want to know the content itself: Resolve never reads weights. report may be nil; it is called with
// StageVerify in bytes. Errors are CodeUnavailable when a file was changed since a was resolved or while it was read, else
// those of Resolve.
func (s *Source) Fingerprint(ctx context.Context, a registry.Artifact, ref sources.Ref, report func(registry.Progress)) (registry.Artifact, error) {
	in := s.look(ctx)
	if report == nil {
		report = func(registry.Progress) {}
	}
	root, info, err := in.locate("source_path", ref.Path)
	if err != nil {
		return a, err
	}
	if !info.IsDir() {
		root = filepath.Dir(root)
	}
	p := registry.Progress{Stage: registry.StageVerify, Total: a.Bytes, Unit: registry.UnitBytes}
	report(p)
	out := a
	out.Files = slices.Clone(a.Files)
	buf := make([]byte, 1<<20)
	for i, f := range out.Files {
		p.Msg = fmt.Sprintf("%d of %d files: %s", i, len(out.Files), f.Path)
		sum, err := in.hash(root, f, buf, func(n int) {
			p.Done = min(p.Done+int64(n), p.Total)
			report(p)
		})
		if err != nil {
			return a, err
		}
		out.Files[i].SHA256 = sum
	}
	p.Done, p.Msg = p.Total, fmt.Sprintf("%d of %d files", len(out.Files), len(out.Files))
	report(p)
	return out, nil
}

// hash reads one file, which must be the one that was resolved, before and after.
func (in *inspection) hash(root string, want registry.File, buf []byte, read func(int)) (string, error) {
	path := filepath.Join(root, filepath.FromSlash(want.Path))
	changed := func() error {
		return registry.Errorf(registry.CodeUnavailable, "%s was changed since the model was looked at; look again", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", explain(path, path, err)
	}
	f := found{want.Path, path, info}
	if info.Size() != want.Size || want.ETag != "" && want.ETag != identity(f) {
		return "", changed()
	}
	file, err := in.open(f)
	if err != nil {
		return "", err
	}
	defer file.Close() // only read from
	sum := sha256.New()
	for at := int64(0); at < want.Size; {
		n, err := file.ReadAt(buf[:min(int64(len(buf)), want.Size-at)], at)
		_, _ = sum.Write(buf[:n]) // a hash never fails
		at += int64(n)
		read(n)
		if at < want.Size && err != nil {
			if ctxErr := in.ctx.Err(); ctxErr != nil {
				return "", ctxErr
			}
			return "", explain(path, path, err)
		}
	}
	after, err := os.Stat(path)
	if err != nil {
		return "", explain(path, path, err)
	}
	if identity(found{want.Path, path, after}) != identity(f) {
		return "", changed()
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
