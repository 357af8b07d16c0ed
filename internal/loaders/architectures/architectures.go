// Package architectures finds out which models an engine knows, by looking for their names in the engine's own files: a
// list of ours would be wrong with the next version.
package architectures

import (
	"bytes"
	"os"
	"sync"
	"time"
)

// maxFile bounds what is read of one file, in bytes: programs that carry CUDA code are larger than any that is searched.
const maxFile = 1 << 30

// Book remembers what was found in a file until the file changes. The zero value is ready; it is safe for concurrent use.
type Book struct {
	mu    sync.Mutex
	files map[string]*entry
}

type entry struct {
	mod   time.Time
	size  int64
	known map[string]bool
}

// Holds reports whether the file at path contains text. sure is false when that says nothing: the file cannot be read, or
// it lacks one of canaries, texts that it holds if it holds such texts at all.
func (b *Book) Holds(path, text string, canaries ...string) (holds, sure bool) {
	fi, err := os.Stat(path)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return false, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.files[path]
	if e == nil || !e.mod.Equal(fi.ModTime()) || e.size != fi.Size() {
		e = &entry{mod: fi.ModTime(), size: fi.Size(), known: map[string]bool{}}
		if b.files == nil {
			b.files = map[string]*entry{}
		}
		b.files[path] = e
	}
	asked := append([]string{text}, canaries...)
	if !e.learn(path, asked) {
		return false, false
	}
	for _, c := range canaries {
		if !e.known[c] {
			return false, false
		}
	}
	return e.known[text], true
}

// learn looks for the texts that were not asked for before.
func (e *entry) learn(path string, texts []string) bool {
	var content []byte
	for _, t := range texts {
		if _, ok := e.known[t]; ok {
			continue
		}
		if content == nil {
			var err error
			if content, err = os.ReadFile(path); err != nil {
				return false
			}
		}
		e.known[t] = bytes.Contains(content, []byte(t))
	}
	return true
}
