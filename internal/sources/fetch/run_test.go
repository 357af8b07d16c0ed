package fetch

import (
	"fmt"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestFetch brings large and small files, an empty one among them, with every kind of digest.
func TestFetch(t *testing.T) {
	files := map[string][]byte{"empty": {}, "one": {1}, "large": content(9<<20+17, 1), "larger": content(20<<20, 2)}
	for n := range 28 {
		files[fmt.Sprintf("small-%d", n)] = content(100*n+1, uint64(n)+10)
	}
	h := newHub(t, files)
	for _, kind := range []DigestKind{SHA256, GitBlobSHA1, MD5, ""} {
		t.Run("digest "+string(kind), func(t *testing.T) {
			dir := t.TempDir()
			var job Job
			var total int64
			for name, data := range files {
				job.Files = append(job.Files, h.file(dir, name, kind))
				total += int64(len(data))
			}
			var last registry.Progress
			job.Report = func(p registry.Progress) {
				if p.Done < last.Done || p.Stage != registry.StageFetch || p.Unit != registry.UnitBytes || p.Total != total {
					t.Errorf("progress %+v after %+v", p, last)
				}
				last = p
			}
			before := h.served.Load()
			must(t, hasty(Options{}).Run(within(t), job))
			h.sameFiles(t, dir)
			if last.Done != total || last.Msg != "32 of 32 files" {
				t.Errorf("the last report is %+v, want %d bytes", last, total)
			}
			if n := h.served.Load() - before; n != total {
				t.Errorf("%d bytes were served for %d", n, total)
			}
		})
	}
}
