package hubtest

import (
	"bytes"
	"crypto/sha1" // git names its objects by it
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// file is one file of a commit.
type file struct {
	path string
	size int64
	oid  string // of git's blob: the content, or the pointer of a large file
	sha  string // SHA-256 of a large file's content; "" for a small file
	ptr  int    // bytes of the pointer
	disk string // where the content is
	mod  time.Time
}

func (f *file) lfs() bool { return f.sha != "" }

// etag is what names the content: the SHA-256 of a large file, git's name of a small one.
func (f *file) etag() string {
	if f.lfs() {
		return f.sha
	}
	return f.oid
}

// commit is the whole content of a repository at one time. It never changes.
type commit struct {
	sha   string
	at    time.Time
	title string
	files []*file // in the order of their paths
	named map[string]*file
	trees map[string]string // the oid of each folder, "" for the root

	described sync.Once
	about     description // once described
}

// newCommit names the files and folders as git does. Two commits of the same files in the same repository are one.
func newCommit(id string, files []*file) *commit {
	c := &commit{title: "Upload to " + id, files: files, named: map[string]*file{}, trees: map[string]string{}}
	slices.SortFunc(c.files, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	type entry struct{ mode, name, oid string }
	folders := map[string][]entry{"": nil}
	for _, f := range c.files {
		c.named[f.path] = f
		if f.mod.After(c.at) {
			c.at = f.mod
		}
		folders[folder(f.path)] = append(folders[folder(f.path)], entry{"100644", path.Base(f.path), f.oid})
		for dir := folder(f.path); dir != ""; dir = folder(dir) {
			if _, known := folders[folder(dir)]; !known {
				folders[folder(dir)] = nil
			}
		}
	}
	// The deepest folders first: a folder's name is needed by the one above it.
	names := make([]string, 0, len(folders))
	for name := range folders {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := depth(b) - depth(a); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		entries := folders[name]
		slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(sortName(a.mode, a.name), sortName(b.mode, b.name)) })
		var body bytes.Buffer
		for _, e := range entries {
			fmt.Fprintf(&body, "%s %s\x00", e.mode, e.name)
			raw, err := hex.DecodeString(e.oid)
			if err != nil {
				panic(err) // made by objectID
			}
			body.Write(raw)
		}
		c.trees[name] = objectID("tree", body.Bytes())
		if name != "" {
			folders[folder(name)] = append(folders[folder(name)], entry{"40000", path.Base(name), c.trees[name]})
		}
	}
	const who = "hubtest <hubtest@localhost> 0 +0000"
	c.sha = objectID("commit", fmt.Appendf(nil, "tree %s\nauthor %s\ncommitter %s\n\n%s\n", c.trees[""], who, who, c.title))
	return c
}

// sortName is by what git sorts the entries of a folder.
func sortName(mode, name string) string {
	if mode == "40000" {
		return name + "/"
	}
	return name
}

func folder(name string) string {
	dir, _ := path.Split(name)
	return strings.TrimSuffix(dir, "/")
}

func depth(name string) int {
	if name == "" {
		return 0
	}
	return strings.Count(name, "/") + 1
}

// objectID is the name that git gives an object.
func objectID(kind string, content []byte) string {
	sum := sha1.New()
	fmt.Fprintf(sum, "%s %d\x00", kind, len(content))
	sum.Write(content)
	return hex.EncodeToString(sum.Sum(nil))
}

// pointer is what git holds in place of a large file.
func pointer(sha256 string, size int64) []byte {
	return fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", sha256, size)
}

// large are the names that the Hub's own .gitattributes gives to LFS, and GGUF, which its uploader adds.
var large = []string{
	"*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gguf", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel",
	"*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt", "*.pth",
	"*.rar", "*.safetensors", "*.tar.*", "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst", "*tfevents*",
}

// isLarge tells whether a file is kept in LFS: by its name, or because git would not take it.
func isLarge(name string, size, limit int64, patterns []string) bool {
	if size >= limit {
		return true
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		// Patterns come from us or from a settings file that was checked when it was read.
		ok, err := path.Match(p, path.Base(name))
		return err == nil && ok
	})
}

// digests remembers what was computed of a file on disk, as long as it does not change.
type digests struct {
	mu    sync.Mutex
	known map[digestKey]string
}

type digestKey struct {
	disk  string
	size  int64
	mod   int64
	large bool
}

// of returns the SHA-256 of a large file, or git's name of a small one.
func (d *digests) of(disk string, size int64, mod time.Time, large bool) (string, error) {
	key := digestKey{disk, size, mod.UnixNano(), large}
	d.mu.Lock()
	sum, ok := d.known[key]
	d.mu.Unlock()
	if ok {
		return sum, nil
	}
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if !large {
		hash = sha1.New()
		fmt.Fprintf(hash, "blob %d\x00", size)
	}
	n, err := io.Copy(hash, f)
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fmt.Errorf("%s changed while it was read", disk)
	}
	sum = hex.EncodeToString(hash.Sum(nil))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = map[digestKey]string{}
	}
	d.known[key] = sum
	return sum, nil
}
