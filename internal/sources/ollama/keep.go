package ollama

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// entry is a manifest in the folder.
type entry struct {
	path     string
	name     Name
	manifest *manifest
	written  time.Time
}

// entries returns every manifest that can be read, and the files that look like one and cannot.
func (f folder) entries(ctx context.Context) (out []entry, broken []string, err error) {
	paths, err := filepath.Glob(filepath.Join(quoteGlob(f.manifests()), "*", "*", "*", "*"))
	if err != nil {
		return nil, nil, err
	}
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		info, err := os.Stat(path)
		if err != nil || info.IsDir() {
			continue // gone meanwhile
		}
		rel, err := filepath.Rel(f.manifests(), path)
		if err != nil {
			return nil, nil, err
		}
		name, ok := fromFile(rel)
		if !ok {
			broken = append(broken, path)
			continue
		}
		m, err := readManifestFile(path)
		if err != nil {
			broken = append(broken, path)
			continue
		}
		if m != nil {
			out = append(out, entry{path, name, m, info.ModTime()})
		}
	}
	return out, broken, nil
}

// quoteGlob keeps the characters of a pattern in a folder's own name from being one.
func quoteGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// Stored returns the models in the folder, whoever put them there, and what is left of unfinished downloads: those of ours
// with the model they belong to, and those of Ollama and blobs that no model names together, without a path. Errors are
// CodeUnavailable when the folder cannot be read.
func (s *Source) Stored(ctx context.Context) ([]registry.StoredArtifact, error) {
	entries, broken, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	for _, path := range broken {
		s.log.Warn("A manifest in the folder of Ollama's models cannot be read; it is not shown", "path", path)
	}
	notes, err := s.pendings()
	if err != nil {
		return nil, err
	}
	users := map[string]map[string]bool{} // by blob, who needs it
	use := func(who string, m *manifest) {
		for _, f := range m.files() {
			if users[f.Path] == nil {
				users[f.Path] = map[string]bool{}
			}
			users[f.Path][who] = true
		}
	}
	for _, e := range entries {
		use(e.path, e.manifest)
	}
	waiting := map[string]*manifest{}
	for path, p := range notes {
		if m, err := readManifest(p.Manifest); err == nil {
			waiting[path] = m
			use(path, m)
		}
	}
	var out []registry.StoredArtifact
	counted := map[string]bool{} // of our own files, those that a model was charged with
	for _, e := range entries {
		a := registry.StoredArtifact{
			Source: registry.SourceOllama, Path: e.name.String(), Revision: e.manifest.digest, Folder: s.dir, ModifiedAt: e.written.UTC(),
		}
		if e.name.Digest == "" {
			a.Names = []string{e.name.Tag}
		}
		for _, f := range e.manifest.files() {
			info, err := os.Stat(filepath.Join(s.dir, f.Path))
			if err != nil {
				continue // Ollama shows such a model, too; loading it says what is missing
			}
			a.Files++
			a.Bytes += info.Size()
			if len(users[f.Path]) == 1 {
				a.Own += info.Size()
			}
			if at := readAt(info); at.After(a.UsedAt) {
				a.UsedAt = at
			}
		}
		out = append(out, a)
	}
	for path, m := range waiting {
		n, newest := s.unfinished(m, counted)
		if n == 0 {
			continue
		}
		name := notes[path].Name
		i := slices.IndexFunc(out, func(a registry.StoredArtifact) bool { return a.Path == name && a.Revision == m.digest })
		if i < 0 {
			out = append(out, registry.StoredArtifact{Source: registry.SourceOllama, Path: name, Revision: m.digest, Folder: s.own(), ModifiedAt: newest.UTC()})
			i = len(out) - 1
		}
		out[i].Partial += n
	}
	if rest, newest, err := s.leftovers(users, counted); err != nil {
		return nil, err
	} else if rest > 0 {
		out = append(out, registry.StoredArtifact{Source: registry.SourceOllama, Folder: s.blobs(), Partial: rest, ModifiedAt: newest.UTC()})
	}
	slices.SortFunc(out, func(a, b registry.StoredArtifact) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Revision, b.Revision))
	})
	return out, nil
}

// unfinished returns what is on disk of a model that is being fetched, and when it last grew. What is counted is noted.
func (f folder) unfinished(m *manifest, counted map[string]bool) (bytes int64, newest time.Time) {
	for _, b := range m.files() {
		file := strings.TrimPrefix(b.Path, "blobs/")
		list, err := filepath.Glob(quoteGlob(f.whole(file)) + "*")
		if err != nil {
			continue
		}
		for _, path := range list {
			if info, err := os.Stat(path); err == nil && !counted[path] {
				counted[path] = true
				bytes += onDisk(info)
				if info.ModTime().After(newest) {
					newest = info.ModTime()
				}
			}
		}
	}
	return bytes, newest
}

// leftovers returns the bytes of what no model and no fetch of ours names: downloads that Ollama did not finish, blobs without a
// manifest, and files of ours that a crash left.
func (f folder) leftovers(users map[string]map[string]bool, counted map[string]bool) (bytes int64, newest time.Time, err error) {
	for _, dir := range []string{f.dir, f.blobs(), f.own()} {
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, newest, explainDisk(dir, err)
		}
		for _, e := range list {
			path := filepath.Join(dir, e.Name())
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() || counted[path] || e.Name() == "lock" || strings.HasSuffix(e.Name(), pendingSuffix) {
				continue
			}
			if dir == f.blobs() && users["blobs/"+e.Name()] != nil || dir == f.dir && !strings.HasPrefix(e.Name(), newPrefix) {
				continue
			}
			bytes += onDisk(info)
			if info.ModTime().After(newest) {
				newest = info.ModTime()
			}
		}
	}
	return bytes, newest, nil
}

// onDisk returns the bytes that a file takes, which for one that is being filled is less than its size.
func onDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return min(st.Blocks*512, info.Size())
	}
	return info.Size()
}

// readAt returns when a file was last read, as far as the file system keeps that.
func readAt(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atim.Unix()).UTC()
	}
	return time.Time{}
}

// Delete removes the manifest of a model and the blobs that no other model and no fetch needs, or what is left of its
// unfinished download. It returns the bytes that became free. Errors: CodeNotFound when the folder has no such revision;
// CodeConflict while it is being fetched, by this server or another; CodeUnavailable when the disk fails, or when
// manifests cannot be read and so nobody can tell which blobs they need.
func (s *Source) Delete(ctx context.Context, path, revision string) (int64, error) {
	name, err := ParseName(path)
	if err != nil {
		return 0, registry.Errorf(registry.CodeNotFound, "%s is no name of a model in Ollama's folder: it %v", quote(path), err)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	entries, broken, err := s.entries(ctx)
	if err != nil {
		return 0, err
	}
	if len(broken) > 0 {
		return 0, registry.Errorf(registry.CodeUnavailable, "nothing can be deleted from %s, as a manifest cannot be read and its blobs are not known: %s; remove that file, or pull its model again", s.dir, broken[0])
	}
	var victim *manifest
	var files []string
	for _, e := range entries {
		if e.manifest.digest == revision && strings.EqualFold(e.name.String(), name.String()) {
			victim, files = e.manifest, append(files, e.path)
		}
	}
	note := s.pendingFile(revision)
	notes, err := s.pendings()
	if err != nil {
		return 0, err
	}
	if p, waits := notes[note]; waits && strings.EqualFold(p.Name, name.String()) {
		if !alone(note) {
			return 0, registry.Errorf(registry.CodeConflict, "%s is being fetched; cancel that, or wait until it is done", name)
		}
		if m, err := readManifest(p.Manifest); err == nil {
			victim = m
		}
		files = append(files, note)
	}
	if victim == nil {
		return 0, registry.Errorf(registry.CodeNotFound, "there is no %s of revision %s in %s; it may have been deleted already", name, revision, s.dir)
	}
	needed := map[string]bool{}
	for _, e := range entries {
		if !slices.Contains(files, e.path) {
			need(needed, e.manifest)
		}
	}
	for path, p := range notes {
		if m, err := readManifest(p.Manifest); err == nil && path != note {
			need(needed, m)
		}
	}
	// The manifest first: a model without a blob would be shown, one without a manifest only leaves bytes behind.
	for _, path := range files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, explainDisk(path, err)
		}
		s.removeEmpty(filepath.Dir(path))
	}
	var freed int64
	for _, b := range victim.files() {
		if needed[b.Path] {
			continue
		}
		file := strings.TrimPrefix(b.Path, "blobs/")
		own, err := filepath.Glob(quoteGlob(s.whole(file)) + "*")
		if err != nil {
			return freed, err
		}
		for _, path := range append(own, s.blob(file)) {
			n, err := remove(path)
			freed += n
			if err != nil {
				return freed, err
			}
		}
	}
	s.log.Info("Deleted a model from Ollama's folder", "model", name.String(), "revision", revision, "bytes", freed)
	return freed, nil
}

func need(into map[string]bool, m *manifest) {
	for _, f := range m.files() {
		into[f.Path] = true
	}
}

// remove deletes a file and returns the bytes that it took; 0 when it is gone already.
func remove(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, explainDisk(path, err)
	}
	return onDisk(info), nil
}

// removeEmpty removes a folder of manifests that is empty now, and those above it.
func (f folder) removeEmpty(dir string) {
	for ; strings.HasPrefix(dir, f.manifests()+string(filepath.Separator)); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			return // something is in it
		}
	}
}

// Clean removes unfinished downloads that nobody has written to since the given time, ours and Ollama's, and blobs of that
// age that no model names. What is being fetched stays, whatever its age, and so do all nameless blobs while Ollama
// downloads something or a manifest cannot be read. It returns the bytes that became free.
func (s *Source) Clean(ctx context.Context, before time.Time) (int64, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	entries, broken, err := s.entries(ctx)
	if err != nil {
		return 0, err
	}
	notes, err := s.pendings()
	if err != nil {
		return 0, err
	}
	needed := map[string]bool{}
	for _, e := range entries {
		need(needed, e.manifest)
	}
	stays := map[string]bool{} // blobs that a fetch is at, or was not long ago
	var stale []string
	for path, p := range notes {
		m, err := readManifest(p.Manifest)
		_, newest := s.unfinished(m.orNone(), map[string]bool{})
		if info, statErr := os.Stat(path); statErr == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		if err == nil && (!alone(path) || !newest.Before(before)) {
			need(stays, m)
			need(needed, m)
			continue
		}
		stale = append(stale, path)
	}
	var freed int64
	for _, path := range stale {
		n, err := remove(path)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	victims, err := s.old(before, needed, stays, len(broken) == 0)
	if err != nil {
		return freed, err
	}
	for _, path := range victims {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		n, err := remove(path)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// orNone makes a manifest without blobs of none.
func (m *manifest) orNone() *manifest {
	if m == nil {
		return &manifest{}
	}
	return m
}

// old returns the files that Clean removes. Files that belong together, as Ollama's parts of one blob do, are as young as
// the youngest of them.
func (f folder) old(before time.Time, needed, stays map[string]bool, all bool) ([]string, error) {
	groups := map[string][]string{}
	newest := map[string]time.Time{}
	ollamaLoads := false
	for _, dir := range []string{f.own(), f.blobs(), f.dir} {
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, explainDisk(dir, err)
		}
		for _, e := range list {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() || e.Name() == "lock" || strings.HasSuffix(e.Name(), pendingSuffix) {
				continue
			}
			if dir == f.dir && !strings.HasPrefix(e.Name(), newPrefix) {
				continue // none of ours
			}
			blob, part := blobOf(e.Name())
			if dir == f.own() && stays["blobs/"+blob] || dir == f.blobs() && !part && (needed["blobs/"+blob] || !all) {
				continue
			}
			key := filepath.Join(dir, blob)
			groups[key] = append(groups[key], filepath.Join(dir, e.Name()))
			if info.ModTime().After(newest[key]) {
				newest[key] = info.ModTime()
			}
			ollamaLoads = ollamaLoads || dir == f.blobs() && part && !info.ModTime().Before(before)
		}
	}
	var out []string
	for key, paths := range groups {
		_, part := blobOf(filepath.Base(paths[0]))
		nameless := filepath.Dir(key) == f.blobs() && !part && len(paths) == 1 // a whole blob that no model names
		if newest[key].Before(before) && (!nameless || !ollamaLoads) {
			out = append(out, paths...)
		}
	}
	slices.Sort(out)
	return out, nil
}

// blobOf returns the blob that a file is of, and whether it is a part of it or a companion.
func blobOf(file string) (blob string, part bool) {
	const length = len("sha256-") + 64
	if strings.HasPrefix(file, "sha256-") && len(file) > length {
		return file[:length], true
	}
	return file, !strings.HasPrefix(file, "sha256-") || len(file) != length
}
