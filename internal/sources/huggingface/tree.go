package huggingface

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// tree is all files of one commit, by their paths. It never changes, as a commit does not.
type tree map[string]treeFile

// treeFile is one file, as trees/<commit>.json has it; see _tree_cache.py of the Python client.
type treeFile struct {
	Size    int64  `json:"size"`    // bytes
	Blob    string `json:"blob_id"` // git's SHA-1 of the content, or of the pointer if the file is in LFS
	SHA256  string `json:"lfs_sha256,omitempty"`
	LFSSize *int64 `json:"lfs_size,omitempty"`
	XetHash string `json:"xet_hash,omitempty"`
}

// treeDocument is trees/<commit>.json.
type treeDocument struct {
	Version int  `json:"format_version"`
	Files   tree `json:"files"`
}

const treeVersion = 1

var (
	hash40 = regexp.MustCompile(`^[0-9a-f]{40}$`)
	hash64 = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// add takes in one page of a listing. CodeInvalid when a name leads out of the repository, which only a hostile one has.
func (t tree) add(id string, entries []entry) error {
	for _, e := range entries {
		if e.Type != "file" {
			continue
		}
		f := treeFile{Size: e.Size, Blob: e.OID, XetHash: e.XetHash}
		if e.LFS != nil {
			f.SHA256, f.LFSSize, f.Size = e.LFS.OID, &e.LFS.Size, e.LFS.Size
		}
		if !hash64.MatchString(f.XetHash) {
			f.XetHash = "" // the Python client throws away a whole listing with a wrong one
		}
		t[e.Path] = f
	}
	return t.check(id)
}

// check holds names, sizes and hashes against what they can be: they become names of files here.
func (t tree) check(id string) error {
	if len(t) > maxFiles {
		return registry.Errorf(registry.CodeInvalid, "%s has more than %d files; that is no model", id, maxFiles)
	}
	for name, f := range t {
		switch {
		case !safeName(name):
			return registry.Errorf(registry.CodeInvalid, "%s lists a file named %q, which leads out of the model's folder: nothing of it is fetched; do not trust this repository", id, clip(name))
		case f.Size < 0, f.LFSSize != nil && *f.LFSSize < 0:
			return registry.Errorf(registry.CodeInvalid, "%s lists %q with a size below zero", id, clip(name))
		case f.SHA256 != "" && !hash64.MatchString(f.SHA256), f.LFSSize != nil && f.SHA256 == "", f.SHA256 == "" && !hash40.MatchString(f.Blob):
			return registry.Errorf(registry.CodeUnavailable, "%s lists %q without a hash that it could be checked by; the Hub, or a mirror in between, does not speak the protocol", id, clip(name))
		}
	}
	return nil
}

// etag is the name of a file's content in the cache.
func (f treeFile) etag() string {
	if f.SHA256 != "" {
		return f.SHA256
	}
	return f.Blob
}

// files lists a tree in the order of the names.
func (t tree) files() []registry.File {
	out := make([]registry.File, 0, len(t))
	for name, f := range t {
		out = append(out, registry.File{Path: name, Size: f.Size, SHA256: f.SHA256, ETag: f.etag()})
	}
	slices.SortFunc(out, func(a, b registry.File) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// encodeTree writes trees/<commit>.json.
func encodeTree(t tree) ([]byte, error) {
	return json.MarshalIndent(treeDocument{Version: treeVersion, Files: t}, "", " ")
}

// decodeTree reads trees/<commit>.json, whoever wrote it. ok is false for another version and for what cannot be one; as
// the Python client does, it is then asked for again.
func decodeTree(raw []byte) (t tree, ok bool) {
	var d treeDocument
	if json.Unmarshal(raw, &d) != nil || d.Version != treeVersion || d.Files == nil || d.Files.check("the cache") != nil {
		return nil, false
	}
	for _, f := range d.Files {
		if f.XetHash != "" && !hash64.MatchString(f.XetHash) {
			return nil, false
		}
	}
	return d.Files, true
}

// treeMemory keeps the newest few listings between Resolve, which may write nothing, and Fetch, which puts them into
// the cache.
type treeMemory struct {
	mu     sync.Mutex
	byName map[string]tree
	order  []string
}

const treesKept = 16

func (m *treeMemory) put(id, commit string, t tree) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := id + "@" + commit
	if m.byName == nil {
		m.byName = map[string]tree{}
	}
	if _, had := m.byName[name]; !had {
		m.order = append(m.order, name)
	}
	m.byName[name] = t
	if len(m.order) > treesKept {
		delete(m.byName, m.order[0])
		m.order = slices.Delete(m.order, 0, 1)
	}
}

func (m *treeMemory) get(id, commit string) tree {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byName[id+"@"+commit]
}
