package manager

import (
	"context"
	"crypto/sha1" //nolint:gosec // git names blobs by it; it finds what a disk did to a file, and guards against nobody
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// fingerprinter is a source that reads the files of an artifact to their ends under rules of its own. It returns the
// artifact with the SHA256 of each.
type fingerprinter interface {
	Fingerprint(ctx context.Context, a registry.Artifact, ref sources.Ref, report func(registry.Progress)) (registry.Artifact, error)
}

// verifyContent reads every file of an artifact to its end and compares it with the hash that its source told, or with the
// one of the last time. It returns the artifact with the hashes that were not known before, so that they are from now
// on. CodeLoadingFailed with FailureCorruptFile or FailureMissingFile.
func (m *Manager) verifyContent(ctx context.Context, src sources.Source, model registry.Model, snap sources.Snapshot, art registry.Artifact, report func(registry.Progress)) (registry.Artifact, error) {
	known := map[string]string{}
	if before, ok, err := m.store.Artifact(ctx, model.ModelID); err == nil && ok && before.Ref == refKey(model) && before.Revision == art.Revision {
		known = sumsOf(before.Files)
	}
	root, _ := rootOf(snap, art)
	read := art
	if f, ok := src.(fingerprinter); ok {
		var err error
		if read, err = f.Fingerprint(ctx, art, sources.RefOf(model), report); err != nil {
			return art, err
		}
	} else {
		read.Files = slices.Clone(art.Files)
		p := registry.Progress{Stage: registry.StageVerify, Total: art.Bytes, Unit: registry.UnitBytes}
		for i := range read.Files {
			f := &read.Files[i]
			p.Msg = fmt.Sprintf("%d of %d files: %s", i, len(read.Files), f.Path)
			report(p)
			sums, err := hashFile(ctx, filepath.Join(root, filepath.FromSlash(f.Path)), f.Size, func(n int) {
				p.Done = min(p.Done+int64(n), p.Total)
				report(p)
			})
			if err != nil {
				return art, err
			}
			if gitName.MatchString(f.ETag) && f.SHA256 == "" && f.ETag != sums.git {
				return art, notTheSame(src, art, f.Path, "the git blob "+sums.git, f.ETag)
			}
			f.SHA256 = sums.sha256
		}
	}
	if err := checkCompanion(ctx, src, art, report); err != nil {
		return art, err
	}
	told := sumsOf(art.Files)
	for _, f := range read.Files {
		want := told[f.Path]
		if want == "" {
			want = known[f.Path]
		}
		if want != "" && want != f.SHA256 {
			return art, notTheSame(src, art, f.Path, "sha256 "+f.SHA256, want)
		}
	}
	return read, nil
}

// checkCompanion reads the files of the tokenizer that comes from another place: a few small ones, whose hashes their
// source tells.
func checkCompanion(ctx context.Context, src sources.Source, art registry.Artifact, report func(registry.Progress)) error {
	c := art.Tokenizer
	if c == nil {
		return nil
	}
	for _, f := range c.Files {
		report(registry.Progress{Stage: registry.StageVerify, Done: art.Bytes, Total: art.Bytes, Unit: registry.UnitBytes, Msg: "The tokenizer: " + f.Path})
		sums, err := hashFile(ctx, filepath.Join(c.Folder, filepath.FromSlash(f.Path)), f.Size, func(int) {})
		if err != nil {
			return err
		}
		of := registry.Artifact{Revision: c.Revision}
		switch {
		case f.SHA256 != "" && f.SHA256 != sums.sha256:
			return notTheSame(src, of, c.Path+"/"+f.Path, "sha256 "+sums.sha256, f.SHA256)
		case f.SHA256 == "" && gitName.MatchString(f.ETag) && f.ETag != sums.git:
			return notTheSame(src, of, c.Path+"/"+f.Path, "the git blob "+sums.git, f.ETag)
		}
	}
	return nil
}

// gitName is an ETag that is the SHA-1 of a git blob, as the Hub's small files have one.
var gitName = regexp.MustCompile(`^[0-9a-f]{40}$`)

func sumsOf(files []registry.File) map[string]string {
	sums := map[string]string{}
	for _, f := range files {
		if f.SHA256 != "" {
			sums[f.Path] = f.SHA256
		}
	}
	return sums
}

// keepSums keeps the hashes that were found out by reading files whose source tells none, and of which files a fetch found
// that it tells none.
func keepSums(files, before []registry.File) []registry.File {
	known, unsummed := sumsOf(before), map[string]bool{}
	for _, f := range before {
		if f.Unsummed {
			unsummed[f.Path] = true
		}
	}
	if len(known) == 0 && len(unsummed) == 0 {
		return files
	}
	out := slices.Clone(files)
	for i := range out {
		if out[i].SHA256 == "" {
			out[i].SHA256 = known[out[i].Path]
		}
		out[i].Unsummed = out[i].Unsummed || unsummed[out[i].Path]
	}
	return out
}

func notTheSame(src sources.Source, art registry.Artifact, path, got, want string) error {
	hint := fmt.Sprintf("Delete revision %s with llmm storage rm and fetch it again; if that comes back, test the disk and the memory of this machine", art.Revision)
	if _, keeps := src.(sources.Keeper); !keeps {
		hint = "Copy the file again from where it came; if that comes back, test the disk and the memory of this machine"
	}
	return damaged(registry.FailureCorruptFile, fmt.Sprintf("%s is not what it was: it is %s instead of %s", path, got, want), hint)
}

func damaged(kind registry.FailureKind, msg, hint string) error {
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "verify", Msg: msg + ". " + hint + ".", Failure: &registry.Failure{Kind: kind, Msg: msg, Hint: hint}}
}

// sums are the hashes of a file, in hex.
type sums struct{ sha256, git string }

// hashFile reads a file of so many bytes to its end.
func hashFile(ctx context.Context, path string, size int64, read func(n int)) (sums, error) {
	file, err := os.Open(path)
	if err != nil {
		return sums{}, damaged(registry.FailureMissingFile, fmt.Sprintf("%s cannot be read: %v", path, err), "Fetch the model again")
	}
	defer file.Close()                     // only read from
	whole, git := sha256.New(), sha1.New() //nolint:gosec // see above
	fmt.Fprintf(git, "blob %d\x00", size)
	buf, done := make([]byte, 1<<20), int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return sums{}, err
		}
		n, err := file.Read(buf)
		for _, h := range []hash.Hash{whole, git} {
			_, _ = h.Write(buf[:n]) // a hash never fails
		}
		done += int64(n)
		read(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return sums{}, damaged(registry.FailureCorruptFile, fmt.Sprintf("%s cannot be read at byte %d: %v", path, done, err), "Test the disk; fetch the model again to another one")
		}
	}
	if done != size {
		return sums{}, damaged(registry.FailureCorruptFile, fmt.Sprintf("%s has %d bytes instead of %d", path, done, size), "Delete it and fetch the model again")
	}
	return sums{hex.EncodeToString(whole.Sum(nil)), hex.EncodeToString(git.Sum(nil))}, nil
}
