package manager

import (
	"context"
	"os"
	"path/filepath"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// borrowers returns for each of list, by its index, the local models that use its files where they lie: a path into the
// Hub's cache, or a link to there. They use them as much as the models that they were fetched for.
func (m *Manager) borrowers(ctx context.Context, list []registry.StoredArtifact) (map[int][]user, error) {
	kept := map[string][]int{}
	for i, a := range list {
		if a.Revision == "" || a.Folder == "" {
			continue
		}
		for folder := range hops(a.Folder) {
			kept[folder] = append(kept[folder], i)
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	local, err := m.users(ctx, registry.SourceLocal)
	if err != nil {
		return nil, err
	}
	out := map[int][]user{}
	for at, users := range local {
		found := map[int]bool{}
		for dir := range hops(at.path) {
			for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
				for _, i := range kept[dir] {
					found[i] = true
				}
			}
		}
		for i := range found {
			out[i] = append(out[i], users...)
		}
	}
	return out, nil
}

// hops returns the names under which a path is passed when its links are followed one after the other, itself included.
// What cannot be followed ends there.
func hops(path string) map[string]bool {
	seen := map[string]bool{}
	for path = filepath.Clean(path); !seen[path] && len(seen) < 40; {
		seen[path] = true
		if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(dir, filepath.Base(path))
			seen[path] = true
		}
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = filepath.Clean(target)
	}
	return seen
}
