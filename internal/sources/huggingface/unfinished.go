package huggingface

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// unfinished is a note about a fetch that has not ended well yet: which files of a commit it wants. Without it nobody could
// tell a revision of which some files are here from one that is whole, since a fetch takes only the files that a format
// needs. Notes lie beside the locks, where neither the Python client's scan nor its deletions look.
type unfinished struct {
	Commit string          `json:"commit"`
	Files  []registry.File `json:"files"`

	name    string // relative to the cache
	written time.Time
}

const noteSuffix = ".unfinished.json"

// noteOf is the note about a fetch. Two fetches of one commit that want the same files have the same note.
func (r repo) noteOf(commit string, files []registry.File) unfinished {
	sum := sha256.New()
	for _, f := range files {
		sum.Write([]byte(f.Path + "\x00" + f.ETag + "\n"))
	}
	return unfinished{Commit: commit, Files: files, name: path.Join(".locks", r.folder, commit+"-"+hex.EncodeToString(sum.Sum(nil)[:6])+noteSuffix)}
}

// write keeps a note; prepare has made its folder.
func (r repo) write(n unfinished) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return registry.Errorf(registry.CodeInternal, "what is fetched of %s cannot be noted: %w", r.id(), err)
	}
	temporary := n.name + "." + random() + ".tmp"
	if err = r.root.WriteFile(temporary, raw, 0o644); err == nil {
		err = r.root.Rename(temporary, n.name)
	}
	if err != nil {
		_ = r.root.Remove(temporary) // the first error is the one that matters
	}
	return diskError(r.dir, err)
}

// notes returns the notes about a repository. What is no note is passed over.
func (r repo) notes() []unfinished {
	dir := path.Join(".locks", r.folder)
	entries, err := fs.ReadDir(r.root.FS(), dir)
	if err != nil {
		return nil
	}
	var out []unfinished
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), noteSuffix) || !e.Type().IsRegular() {
			continue
		}
		raw, err := r.root.ReadFile(path.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		n, ok := decodeNote(raw)
		if info, err := e.Info(); ok && err == nil {
			n.name, n.written = path.Join(dir, e.Name()), info.ModTime()
			out = append(out, n)
		}
	}
	return out
}

// decodeNote reads a note, whoever wrote it.
func decodeNote(raw []byte) (unfinished, bool) {
	var n unfinished
	if json.Unmarshal(raw, &n) != nil || !commitHash.MatchString(n.Commit) {
		return n, false
	}
	for _, f := range n.Files {
		if !safeName(f.Path) || f.Size < 0 || !hash40.MatchString(f.ETag) && !hash64.MatchString(f.ETag) {
			return n, false
		}
	}
	return n, true
}

// partialOf reports whether a content that no revision leads to is what has arrived of one with this ETag: the part itself
// or the journal beside it.
func partialOf(st fileStat, etag string) bool {
	return strings.HasPrefix(path.Base(st.name), etag+partialSuffix)
}

// lack is what a commit's unfinished fetches still want.
type lack struct {
	files   map[string]bool // by path
	partial []fileStat      // of loose, what has arrived of them
	missing int64           // bytes that have not
}

// lacks returns what each commit lacks. Commits whose fetches have left nothing to want are not in it.
func (k *inventory) lacks() map[string]*lack {
	out := map[string]*lack{}
	taken := map[string]bool{} // a part counts for one commit
	for _, n := range k.notes {
		for _, f := range n.Files {
			if k.where(n.Commit, f) == linked {
				continue
			}
			l := out[n.Commit]
			if l == nil {
				l = &lack{files: map[string]bool{}}
				out[n.Commit] = l
			}
			if l.files[f.Path] {
				continue
			}
			l.files[f.Path] = true
			if k.hasBlob(f) {
				continue // it lacks its name only
			}
			l.missing += f.Size
			for _, st := range k.loose {
				if !partialOf(st, f.ETag) || taken[st.name] {
					continue
				}
				taken[st.name] = true
				l.partial = append(l.partial, st)
				if strings.HasSuffix(st.name, partialSuffix) {
					l.missing -= min(st.disk, f.Size)
				}
			}
		}
	}
	return out
}

// settle ends a fetch's note: when the fetch ended well, or when it left nothing that could be resumed. Then its revision
// goes, too, if no file of it is here.
func (r repo) settle(n unfinished, whole bool) error {
	if whole {
		return r.dropNote(n)
	}
	k, err := r.inventory()
	if err != nil {
		return err
	}
	if l := k.lacks()[n.Commit]; l == nil {
		return r.dropNote(n)
	} else if len(l.partial) > 0 || slices.ContainsFunc(n.Files, func(f registry.File) bool { return r.where(n.Commit, f) != nowhere }) {
		return nil // shown as incomplete, and taken up by the next fetch
	}
	locks, err := k.lockAll(n.Commit)
	defer func() {
		for _, l := range locks {
			l.release()
		}
	}()
	if err != nil {
		return nil // another process is at it
	}
	if there, ok := k.revisions[n.Commit]; !ok || len(there) > 0 {
		return r.dropNote(n) // only the files of another fetch are here
	}
	_, err = k.remove(n.Commit)
	return err
}

func (r repo) dropNote(n unfinished) error {
	if err := r.root.Remove(n.name); err != nil && !absent(err) {
		return diskError(r.dir, err)
	}
	return nil
}
