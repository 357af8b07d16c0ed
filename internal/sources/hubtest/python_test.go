package hubtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// model is a repository with everything that differs in how it is served: small and large files, folders, text that is
// compressed, an empty file, a name that must be encoded.
func model() map[string][]byte {
	files := sourcetest.SafetensorsFolder(1)
	files["README.md"] = []byte("---\nlicense: apache-2.0\npipeline_tag: text-generation\nlibrary_name: transformers\ntags: [tiny]\n---\n# Tiny\n" + strings.Repeat("It is small. ", 200))
	files["onnx/model.onnx"] = bytes.Repeat([]byte("onnx"), 50_000)
	files["onnx/deep/notes.txt"] = []byte("notes")
	files["empty.txt"] = nil
	files["a file, with é and 100%.txt"] = []byte("odd")
	return files
}

// whole checks that a folder holds exactly these files.
func whole(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	got := map[string]string{}
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, relErr := filepath.Rel(dir, p)
		if err != nil || relErr != nil {
			return fmt.Errorf("%w, %w", err, relErr)
		}
		got[rel] = string(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for name, b := range files {
		want[name] = string(b)
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); d != "" {
		t.Fatalf("other files:\n%s", d)
	}
	for name := range want {
		if want[name] != got[name] {
			t.Errorf("%s is not what was served", name)
		}
	}
}

// run runs a Python program that must succeed.
func run(t *testing.T, h *hubtest.Hub, home, program string, env ...string) string {
	t.Helper()
	out, err := h.Run(t, home, program, env...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPythonSnapshot(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	files := model()
	commit := h.Put(t, "org/tiny", files)
	home := t.TempDir()
	dir := run(t, h, home, `from huggingface_hub import snapshot_download; print(snapshot_download("org/tiny"))`)
	if !strings.HasSuffix(dir, "/models--org--tiny/snapshots/"+commit) {
		t.Errorf("the snapshot is at %s, not of the commit %s", dir, commit)
	}
	whole(t, dir, files)

	t.Run("again, without a byte", func(t *testing.T) {
		h.Forget()
		run(t, h, home, `from huggingface_hub import snapshot_download; snapshot_download("org/tiny")`)
		if s := h.Served(); s.Bytes != 0 {
			t.Errorf("%d bytes were served again: %v", s.Bytes, s.Files)
		}
	})
	t.Run("offline", func(t *testing.T) {
		got := run(t, h, home, `from huggingface_hub import snapshot_download; print(snapshot_download("org/tiny", local_files_only=True))`)
		if got != dir {
			t.Errorf("offline it is at %s, not at %s", got, dir)
		}
	})
	t.Run("its own check of the cache", func(t *testing.T) {
		out := run(t, h, home, `
from huggingface_hub import scan_cache_dir, HfApi
info = scan_cache_dir()
assert not info.warnings, info.warnings
(repo,) = info.repos
(revision,) = repo.revisions
print(repo.repo_id, revision.commit_hash, len(revision.files), repo.size_on_disk)
check = HfApi().verify_repo_checksums("org/tiny", revision=revision.commit_hash)
print(check.checked_count, check.mismatches, check.missing_paths, check.extra_paths)
`)
		var size int
		for _, b := range files {
			size += len(b)
		}
		want := fmt.Sprintf("org/tiny %s %d %d\n%d [] [] []", commit, len(files), size, len(files))
		if out != want {
			t.Errorf("Python finds\n%s\nin its cache, not\n%s", out, want)
		}
	})
}

// TestPythonAPI asks for what the Hub's API tells of a repository, in the client's own words.
func TestPythonAPI(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Tokens: map[string]string{"hf_alice": "alice"}})
	first := h.Put(t, "org/tiny", map[string][]byte{"config.json": []byte("{}")})
	commit := h.Put(t, "org/tiny", model())
	dev := h.PutAt(t, "org/tiny", "dev/next", map[string][]byte{"x.txt": []byte("x")})
	h.Tag(t, "org/tiny", "v1.0", first)
	out := run(t, h, t.TempDir(), `
import json
from huggingface_hub import HfApi
api = HfApi(token="hf_alice")
m = api.model_info("org/tiny", files_metadata=True, securityStatus=True)
files = {s.rfilename: s for s in m.siblings}
st = files["model-00001-of-00002.safetensors"]
refs = api.list_repo_refs("org/tiny")
tree = list(api.list_repo_tree("org/tiny", recursive=True, expand=True))
flat = list(api.list_repo_tree("org/tiny"))
below = list(api.list_repo_tree("org/tiny", "onnx"))
paths = api.get_paths_info("org/tiny", ["config.json", "onnx", "nothing"])
api.auth_check("org/tiny")
print(json.dumps({
  "sha": m.sha, "gated": m.gated, "private": m.private, "license": m.card_data.license, "tags": m.tags, "library": m.library_name,
  "pipeline": m.pipeline_tag, "safetensors": m.safetensors.parameters, "total": m.safetensors.total, "arch": m.config["architectures"],
  "lfs": [st.lfs.sha256, st.lfs.size, st.size, st.lfs.pointer_size], "small": [files["config.json"].lfs, files["config.json"].size],
  "branches": {b.name: b.target_commit for b in refs.branches}, "tags_": {b.name: b.target_commit for b in refs.tags},
  "tree": len(tree), "flat": sorted(e.path for e in flat), "below": sorted(e.path for e in below),
  "dates": all(e.last_commit.oid == m.sha for e in tree), "paths": [p.path for p in paths],
  "dev": api.model_info("org/tiny", revision="dev/next").sha, "tagged": api.model_info("org/tiny", revision="v1.0").sha,
  "short": api.model_info("org/tiny", revision=m.sha[:8]).sha, "who": api.whoami()["name"],
  "gated_only": api.model_info("org/tiny", expand=["gated"]).sha, "exists": api.file_exists("org/tiny", "config.json"),
  "parsed": api.get_safetensors_metadata("org/tiny").parameter_count,
}))`)
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err, out)
	}
	shard := model()["model-00001-of-00002.safetensors"]
	lfs, _ := got["lfs"].([]any)
	if len(lfs) != 4 || lfs[0] != sum(shard) || lfs[1] != float64(len(shard)) || lfs[2] != float64(len(shard)) || lfs[3].(float64) < 100 {
		t.Errorf("of a large file it tells %v", lfs)
	}
	delete(got, "lfs")
	want := map[string]any{
		"sha": commit, "gated": false, "private": false, "license": "apache-2.0", "library": "transformers", "pipeline": "text-generation",
		"tags":        []any{"transformers", "onnx", "safetensors", "llama", "text-generation", "tiny", "license:apache-2.0", "region:us"},
		"safetensors": map[string]any{"BF16": 4096.0, "F32": 64.0}, "total": 4160.0, "arch": []any{"LlamaForCausalLM"},
		"small":    []any{nil, float64(len(model()["config.json"]))},
		"branches": map[string]any{"main": commit, "dev/next": dev}, "tags_": map[string]any{"v1.0": first},
		"tree": float64(len(model()) + 2), "below": []any{"onnx/deep", "onnx/model.onnx"}, "dates": true, "paths": []any{"config.json", "onnx"},
		"flat": []any{"README.md", "a file, with é and 100%.txt", "config.json", "empty.txt", "model-00001-of-00002.safetensors",
			"model-00002-of-00002.safetensors", "model.safetensors.index.json", "onnx", "tokenizer.json", "tokenizer_config.json"},
		"dev": dev, "tagged": first, "short": commit, "who": "alice", "gated_only": nil, "exists": true,
		"parsed": map[string]any{"BF16": 4096.0, "F32": 64.0},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the client is told something else (-want +got):\n%s", d)
	}
}

// TestPythonPages has more files than one page of a tree.
func TestPythonPages(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	files := map[string][]byte{}
	for i := range 2300 {
		files[fmt.Sprintf("part-%d/%04d.txt", i%3, i)] = fmt.Append(nil, i)
	}
	h.Put(t, "org/many", files)
	out := run(t, h, t.TempDir(), `
from huggingface_hub import HfApi, snapshot_download
print(len(HfApi().list_repo_files("org/many")), len(list(HfApi().list_repo_tree("org/many", recursive=True))))
print(snapshot_download("org/many", allow_patterns=["part-1/*99*"]))`)
	count, dir, _ := strings.Cut(out, "\n")
	if count != "2300 2303" {
		t.Errorf("it lists %s files and entries", count)
	}
	wanted := map[string][]byte{}
	for name, b := range files {
		if strings.HasPrefix(name, "part-1/") && strings.Contains(name[7:], "99") {
			wanted[name] = b
		}
	}
	whole(t, dir, wanted)
	pages := 0
	for _, r := range h.Requests() {
		if strings.Contains(r.Path, "/tree/") {
			pages++
		}
	}
	if pages != 9 {
		t.Errorf("the files, the tree and the snapshot took %d pages, not 3 each", pages)
	}
}
