package manager

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func (r *rig) verifies(id string) registry.Operation {
	r.t.Helper()
	op, err := r.Fetch(r.ctx(), id, FetchOptions{Actor: "ada", Cause: "test", Verify: true})
	if err != nil {
		r.t.Fatal(err)
	}
	if op, err = r.Await(r.ctx(), op.ID); err != nil {
		r.t.Fatal(err)
	}
	return op
}

// flip changes one bit of a file and nothing else that one sees of it.
func flip(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // a file of this test
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// The content of local files has a fingerprint from the first reading on: a bit that changed by itself is found.
func TestVerifyLocalFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.Sources = append(o.Sources[:0:0], local.New(local.Options{})) })
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := os.WriteFile(path, sourcetest.TinyGGUF(1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Register(r.ctx(), registry.Model{ModelID: "m", SourceType: registry.SourceLocal, SourcePath: path, ModelFormat: registry.FormatGGUF}, PutOptions{Actor: "ada", Persist: true}); err != nil {
		t.Fatal(err)
	}
	if op := r.verifies("m"); op.State != registry.OperationSucceeded || !strings.Contains(op.Outcome, "every byte") {
		t.Fatalf("%+v", op)
	}
	a, _, err := r.store.Artifact(r.ctx(), "m")
	if err != nil || len(a.Files) != 1 || len(a.Files[0].SHA256) != 64 {
		t.Fatalf("there is no fingerprint: %+v %v", a, err)
	}
	r.end(r.mustFetch("m"), registry.OperationSucceeded) // a look in between keeps it
	flip(t, path)
	op := r.verifies("m")
	if op.State != registry.OperationFailed || op.Error == nil || op.Error.Failure == nil || op.Error.Failure.Kind != registry.FailureCorruptFile || !strings.Contains(op.Error.Msg, a.Files[0].SHA256) {
		t.Errorf("%+v %+v", op, op.Error)
	}
}

// What is kept is compared with what was read the last time when the source tells no hash.
func TestVerifyKeptFiles(t *testing.T) {
	t.Parallel()
	var d *sourcetest.Depot
	r := newRig(t, withDepot(&d))
	r.fetchable("m", "org/m")
	for range 2 {
		if op := r.verifies("m"); op.State != registry.OperationSucceeded {
			t.Fatalf("%+v", op)
		}
	}
	flip(t, filepath.Join(d.Folder("org/m", "r1"), "weights.gguf"))
	if op := r.verifies("m"); op.State != registry.OperationFailed || !strings.Contains(op.Error.Msg, "llmm storage rm") {
		t.Errorf("%+v", op)
	}
}

// Files of the Hub that are small are named by git's hash.
func TestHashFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := hashFile(t.Context(), path, 6, func(int) {})
	want := sums{"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", "ce013625030ba8dba906f756967f9e9ca394464a"}
	if err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := hashFile(t.Context(), path, 7, func(int) {}); registry.CodeOf(err) != registry.CodeLoadingFailed {
		t.Errorf("a file that is too short: %v", err)
	}
}

// TestKeepSums: what a fetch and a verification found out of files outlives the next look at their source.
func TestKeepSums(t *testing.T) {
	before := []registry.File{{Path: "a", SHA256: "x"}, {Path: "b", Unsummed: true}}
	seen := []registry.File{{Path: "a"}, {Path: "b"}, {Path: "c", SHA256: "z"}}
	got := keepSums(seen, before)
	if got[0].SHA256 != "x" || got[0].Unsummed || !got[1].Unsummed || got[2].SHA256 != "z" || seen[1].Unsummed {
		t.Errorf("%+v of %+v", got, seen)
	}
}
