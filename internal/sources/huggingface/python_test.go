package huggingface_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// python prepares a program for the Hub's own client, on the Hub and the cache of the rig. The program finds the client's
// names imported.
func (r *rig) python(program string, env ...string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.CommandContext(within(r.t), hubtest.Python(r.t), "-c", "from huggingface_hub import *\nfrom huggingface_hub.errors import *\nimport json, os, sys\n"+program)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.t.TempDir(), "HF_ENDPOINT=" + r.hub.URL, "HF_HUB_CACHE=" + r.cache,
		"HF_HUB_DISABLE_PROGRESS_BARS=1", "HF_HUB_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_XET=1",
	}, env...)
	return cmd
}

// run runs a program and decodes the JSON that it prints last.
func (r *rig) run(into any, program string, env ...string) {
	r.t.Helper()
	cmd := r.python(program, env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("the Python client: %v\n%s", err, stderr.Bytes())
	}
	if into == nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), into); err != nil {
		r.t.Fatalf("the Python client printed %q: %v", out, err)
	}
}

const noNetwork = "HF_HUB_OFFLINE=1"

// mixed is a repository with a model in two formats and files that no engine needs.
func mixed() map[string][]byte {
	files := sourcetest.SafetensorsFolder(3)
	files["pytorch_model.bin"] = append([]byte("PK\x03\x04"), bytes.Repeat([]byte{7}, 5000)...)
	files["original/consolidated.00.pth"] = bytes.Repeat([]byte{8}, 3000)
	files["onnx/model.onnx"] = append([]byte{8, 8}, bytes.Repeat([]byte{9}, 2000)...)
	files["modeling_tiny.py"] = []byte("raise SystemExit\n")
	files["tokenizer/readme/deep.txt"] = []byte("deep")
	return files
}

func TestPythonUsesWhatWeFetched(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := sourcetest.SafetensorsFolder(1)
	commit := r.hub.Put(t, "org/tiny", files)
	a := r.fetch(r.source, safetensors("org/tiny"))
	r.hub.Forget()

	var got struct {
		Path, File, Config string
		Warnings           []string
		Size               int64
		Repos, Tree        []string
		Revisions          map[string][]string
		Incomplete         int
	}
	r.run(&got, `c = scan_cache_dir()
print(json.dumps({
  "Path": snapshot_download("org/tiny", local_files_only=True),
  "File": hf_hub_download("org/tiny", "config.json", revision="main", local_files_only=True),
  "Config": try_to_load_from_cache("org/tiny", "config.json"),
  "Warnings": [str(w) for w in c.warnings], "Size": c.size_on_disk, "Repos": [x.repo_id for x in c.repos],
  "Revisions": {v.commit_hash: sorted(v.refs) for x in c.repos for v in x.revisions}, "Incomplete": len(c.incomplete_files),
  "Tree": sorted(f.path for f in get_cached_repo_tree("org/tiny"))}))`, noNetwork)
	if got.Path != a.Path || got.File != filepath.Join(a.Path, "config.json") || got.Config != got.File {
		t.Errorf("Python finds %s and %s, ours is %s", got.Path, got.File, a.Path)
	}
	for name, want := range files {
		if content, err := os.ReadFile(filepath.Join(got.Path, name)); err != nil || !bytes.Equal(content, want) {
			t.Errorf("%s is not what was put: %v", name, err)
		}
	}
	if len(got.Warnings) > 0 || got.Incomplete > 0 || got.Size != a.Bytes || !slices.Equal(got.Repos, []string{"org/tiny"}) ||
		!slices.Equal(got.Revisions[commit], []string{"main"}) || len(got.Tree) != len(files) {
		t.Errorf("Python sees %+v", got)
	}
	if n := r.hub.Served().Requests; n != 0 {
		t.Errorf("without a network there were %d requests", n)
	}
	// With a network: nothing is downloaded, and every hash is the Hub's.
	var online struct {
		Path           string
		Checked, Wrong int
	}
	r.run(&online, `v = HfApi().verify_repo_checksums("org/tiny")
print(json.dumps({"Path": snapshot_download("org/tiny"), "Checked": v.checked_count, "Wrong": len(v.mismatches) + len(v.missing_paths) + len(v.extra_paths)}))`)
	if s := r.hub.Served(); online.Path != a.Path || online.Checked != len(files) || online.Wrong != 0 || s.Bytes != 0 {
		t.Errorf("with a network Python sees %+v and downloads %d bytes: %v", online, s.Bytes, s.Files)
	}
}

// TestPythonKnowsWhatWeLeftOut checks that Python is not told that a repository is whole of which only a part was needed.
func TestPythonKnowsWhatWeLeftOut(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/mixed", mixed())
	a := r.fetch(r.source, safetensors("org/mixed"))
	if got, want := len(a.Files), len(sourcetest.SafetensorsFolder(3)); got != want {
		t.Errorf("%d files were fetched, want %d: %v", got, want, a.Files)
	}
	var got struct{ Said, Path string }
	r.run(&got, `said = "it is whole"
try:
    snapshot_download("org/mixed", local_files_only=True)
except IncompleteSnapshotError as e:
    said = str(e)
print(json.dumps({"Said": said, "Path": snapshot_download("org/mixed", local_files_only=True, allow_patterns=["*.safetensors", "*.json"])}))`, noNetwork)
	if !strings.Contains(got.Said, "is incomplete: 5 file(s) are missing") {
		t.Errorf("Python says: %s", got.Said)
	}
	if got.Path != a.Path {
		t.Errorf("Python finds %s, ours is %s", got.Path, a.Path)
	}
	r.hub.Forget()
	r.run(nil, `snapshot_download("org/mixed")`)
	for name, n := range r.hub.Served().Files {
		if strings.Contains(name, "safetensors") && n > 0 {
			t.Errorf("Python downloaded %s again", name)
		}
	}
}

func TestWeUseWhatPythonFetched(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	commit := r.hub.Put(t, "org/mixed", mixed())
	r.run(nil, `snapshot_download("org/mixed")`)
	r.hub.Forget()

	snap := r.resolve(r.source, safetensors("org/mixed"))
	if snap.OnDisk != snap.Bytes || snap.Revision != commit {
		t.Errorf("%d of %d bytes are known to be there, at %s", snap.OnDisk, snap.Bytes, snap.Revision)
	}
	a, err := r.source.Fetch(within(t), snap, func(registry.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	s := r.hub.Served()
	if s.Bytes != 0 || s.Requests != 1 {
		t.Errorf("it took %d requests and %d bytes of files, want the one that asks for the commit", s.Requests, s.Bytes)
	}
	if want := filepath.Join(r.cache, "models--org--mixed", "snapshots", commit); a.Path != want {
		t.Errorf("the artifact is at %s, want %s", a.Path, want)
	}
	// The same, with the Hub out of reach and by HF_HUB_OFFLINE.
	r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultStatus, Status: 503})
	for name, source := range map[string]*rig{"out of reach": r, "offline": {t: t, hub: r.hub, cache: r.cache, source: r.open(offline)}} {
		b := source.fetch(source.source, safetensors("org/mixed"))
		if b.Path != a.Path || len(b.Files) != len(a.Files) {
			t.Errorf("%s: %d files at %s, want %d at %s", name, len(b.Files), b.Path, len(a.Files), a.Path)
		}
		if len(b.Facts.Notes) == 0 || !strings.Contains(strings.Join(b.Facts.Notes, " "), "what the cache holds") {
			t.Errorf("%s: it is not said that this is the cache's: %q", name, b.Facts.Notes)
		}
		if d := cmp.Diff(a.Facts.Parameters, b.Facts.Parameters); d != "" || !b.Facts.Tokenizer {
			t.Errorf("%s: other facts: %+v", name, b.Facts)
		}
	}
}

// TestPythonAtTheSameTime lets the other begin while one is at work, and both begin at once. Every file is served to one
// of them only, and both end with the same files.
func TestPythonAtTheSameTime(t *testing.T) {
	const size = 4 << 20
	for name, first := range map[string]string{"ours first": "ours", "Python first": "python", "at once": ""} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, hubtest.Options{})
			files := sourcetest.SafetensorsFolder(5)
			files["model-00001-of-00002.safetensors"] = sourcetest.Safetensors(sourcetest.STTensor{
				Name: "model.embed_tokens.weight", DType: "BF16", Shape: []int64{size / 2}, Data: make([]byte, size)})
			delete(files, "model.safetensors.index.json")
			r.hub.Put(t, "org/both", files)
			snap := r.resolve(r.source, safetensors("org/both"))
			r.hub.Forget()
			r.hub.Fault(hubtest.Fault{Kind: hubtest.FaultSlow, Match: "model-00001", Host: hubtest.OnCDN, Rate: 4 << 20})
			busy := func() {
				deadline := time.Now().Add(time.Minute)
				for r.hub.Served().Files["org/both/model-00001-of-00002.safetensors"] == 0 {
					if time.Now().After(deadline) {
						t.Error("the first did not begin")
						return
					}
					time.Sleep(time.Millisecond) // polls another process
				}
			}
			var ours, theirs string
			var wg sync.WaitGroup
			fetch := func() {
				if first == "python" {
					busy()
				}
				a, err := r.source.Fetch(within(t), snap, func(registry.Progress) {})
				if err != nil {
					t.Error(err)
				}
				ours = a.Path
			}
			wg.Go(fetch)
			if first == "ours" {
				busy()
			}
			r.run(&theirs, `path = snapshot_download("org/both")
c = scan_cache_dir()
assert not c.warnings, c.warnings
print(json.dumps(path))`)
			wg.Wait()
			if ours != theirs {
				t.Errorf("ours is %s, theirs %s", ours, theirs)
			}
			s := r.hub.Served()
			for name, content := range files {
				// A range that was given up, because it was slow or reset, counts twice for what of it was under way.
				if n := s.Files["org/both/"+name]; n > int64(len(content))+size/4 {
					t.Errorf("%s was served %d bytes of, it has %d", name, n, len(content))
				}
				if got, err := os.ReadFile(filepath.Join(ours, name)); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s is not what was put: %v", name, err)
				}
			}
			left, err := filepath.Glob(filepath.Join(r.cache, "models--org--both", "blobs", "*.*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left over: %v %v", left, err)
			}
		})
	}
}

// TestPythonReadsOurPatterns holds the choice of files by patterns against the client's own.
func TestPythonReadsOurPatterns(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := mixed()
	r.hub.Put(t, "org/mixed", files)
	patterns := [][]any{{"*.safetensors", "config.json", "*index*"}, {"model-0000[12]*", "[!t]*.json"}, {"?odel*", "config.*", "tokenizer"}}
	raw, err := json.Marshal(patterns)
	if err != nil {
		t.Fatal(err)
	}
	var lists [][]string
	r.run(&lists, `from huggingface_hub.utils import filter_repo_objects
files = HfApi().list_repo_files("org/mixed")
print(json.dumps([sorted(filter_repo_objects(files, allow_patterns=allow, ignore_patterns=["original/", "*.bin"])) for allow in json.loads(os.environ["ARG"])]))`, "ARG="+string(raw))
	for i, allow := range patterns {
		ref := safetensors("org/mixed")
		ref.Params = map[string]any{"allow_patterns": allow, "ignore_patterns": []any{"original/", "*.bin"}}
		var got []string
		for _, f := range r.resolve(r.source, ref).Files {
			got = append(got, f.Path)
		}
		for _, name := range got {
			if !slices.Contains(lists[i], name) {
				t.Errorf("%v lets %s through, the client does not", allow, name)
			}
		}
		for _, name := range lists[i] {
			if strings.HasSuffix(name, ".safetensors") && !slices.Contains(got, name) {
				t.Errorf("%v keeps %s out, the client does not", allow, name)
			}
		}
	}
}
