package s3_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestCheck(t *testing.T) {
	noEnvironment(t)
	src := newSource(t, t.TempDir(), false)
	good := func() map[string]any {
		return map[string]any{"endpoint_url": "https://s3.example.com:9000", "region": "eu-central-1", "path_style": true, "access_key_id": "secret:key",
			"secret_access_key": "secret:key-2", "session_token": "t", "allow_patterns": []any{"*.json"}, "ignore_patterns": "*.bin", "requester_pays": false}
	}
	for name, tt := range map[string]struct {
		path, revision string
		format         registry.Format
		params         map[string]any
		fields         []string
	}{
		"good":              {params: good()},
		"nothing":           {},
		"a whole bucket":    {path: "s3://bucket"},
		"a fingerprint":     {revision: "s3-0123456789abcdef01234567"},
		"a quantisation":    {params: map[string]any{"quantization": "Q4_K_M"}},
		"a filename":        {params: map[string]any{"filename": "sub/m.gguf"}},
		"a profile":         {params: map[string]any{"profile": "team"}},
		"another scheme":    {path: "https://bucket/m", fields: []string{"source_path"}},
		"a short bucket":    {path: "s3://ab/m", fields: []string{"source_path"}},
		"dots in a bucket":  {path: "s3://a..b/m", fields: []string{"source_path"}},
		"a way out":         {path: "s3://bucket/a/../../b", fields: []string{"source_path"}},
		"two slashes":       {path: "s3://bucket/a//b", fields: []string{"source_path"}},
		"a control":         {path: "s3://bucket/a\nb", fields: []string{"source_path"}},
		"a branch":          {revision: "v2", fields: []string{"revision"}},
		"endpoint: a path":  {params: map[string]any{"endpoint_url": "https://host/bucket"}, fields: []string{"endpoint_url"}},
		"endpoint: a user":  {params: map[string]any{"endpoint_url": "https://user:pass@host"}, fields: []string{"endpoint_url"}},
		"endpoint: no host": {params: map[string]any{"endpoint_url": "https://:9000"}, fields: []string{"endpoint_url"}},
		"endpoint: a file":  {params: map[string]any{"endpoint_url": "file:///etc"}, fields: []string{"endpoint_url"}},
		"region":            {params: map[string]any{"region": "eu central"}, fields: []string{"region"}},
		"kinds":             {params: map[string]any{"region": 1, "path_style": "yes", "allow_patterns": []any{1}, "requester_pays": 1}, fields: []string{"allow_patterns", "path_style", "region", "requester_pays"}},
		"half a key":        {params: map[string]any{"access_key_id": "a"}, fields: []string{"secret_access_key"}},
		"the other half":    {params: map[string]any{"secret_access_key": "a"}, fields: []string{"access_key_id"}},
		"a token alone":     {params: map[string]any{"session_token": "a"}, fields: []string{"session_token"}},
		"key and profile":   {params: map[string]any{"profile": "team", "access_key_id": "a", "secret_access_key": "b"}, fields: []string{"profile"}},
		"two choices":       {params: map[string]any{"quantization": "Q4_0", "filename": "m.gguf"}, fields: []string{"filename"}},
		"a filename out":    {params: map[string]any{"filename": "../m.gguf"}, fields: []string{"filename"}},
	} {
		t.Run(name, func(t *testing.T) {
			ref := sources.Ref{Path: "s3://bucket/m", Revision: "main", Format: registry.FormatGGUF, Params: tt.params}
			if tt.path != "" {
				ref.Path = tt.path
			}
			if tt.revision != "" {
				ref.Revision = tt.revision
			}
			var got []string
			for _, e := range src.Check(ref) {
				got = append(got, strings.TrimPrefix(e.Field, "custom_loader_params."))
				if e.Msg == "" || strings.Contains(e.Msg, "pass@") {
					t.Errorf("%s %q", e.Field, e.Msg)
				}
			}
			if !slices.Equal(got, tt.fields) {
				t.Errorf("faults in %v, want %v", got, tt.fields)
			}
			if len(tt.fields) > 0 {
				_, err := src.Resolve(t.Context(), ref)
				refused(t, err, registry.CodeInvalid, none, tt.fields...)
			}
		})
	}
}

func TestCanonical(t *testing.T) {
	src := newSource(t, t.TempDir(), false)
	for in, want := range map[string]string{"s3://b/m/": "s3://b/m", "s3://b/m": "s3://b/m", "s3://b/": "s3://b", "s3://b": "s3://b", "x/": "x/"} {
		if got := src.Canonical(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

// TestCostOfALook looks at a model of 30 shards with long headers.
func TestCostOfALook(t *testing.T) {
	r := newRig(t)
	files := map[string][]byte{"config.json": []byte(sourcetest.LlamaConfig), "tokenizer.json": bytes.Repeat([]byte(" "), 9<<20), "tokenizer_config.json": []byte("{}")}
	index := map[string]string{}
	const shards, tensors = 30, 400
	for i := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)
		var list []sourcetest.STTensor
		for j := range tensors {
			tensor := fmt.Sprintf("model.layers.%d.block_sparse_moe.experts.%d.w1.weight", i, j)
			index[tensor] = name
			list = append(list, sourcetest.STTensor{Name: tensor, DType: "BF16", Shape: []int64{8, 8}, Data: make([]byte, 128)})
		}
		files[name] = sourcetest.Safetensors(list...)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `{"metadata": {"total_size": %d}, "weight_map": {`, shards*tensors*128)
	for i, name := range slices.Sorted(maps.Keys(index)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q: %q", name, index[name])
	}
	b.WriteString("}}")
	files["model.safetensors.index.json"] = []byte(b.String())
	r.put(t, "big", files)
	before, sent := r.proxy.Served(), len(r.proxy.Requests())
	s := r.resolve(t, r.ref("big", registry.FormatSafetensors))
	read, requests := r.proxy.Served()-before, len(r.proxy.Requests())-sent
	t.Logf("a model of %d shards, %d bytes: %d requests, %d bytes of files", shards, s.Bytes, requests, read)
	if read >= 1_000_000 || requests > 15 {
		t.Errorf("%d requests and %d bytes", requests, read)
	}
	if s.Cost.Requests != requests || s.Cost.Bytes < read {
		t.Errorf("the cost says %+v", s.Cost)
	}
	if s.Facts.Parameters != shards*tensors*64 || len(s.Files) != shards+4 {
		t.Errorf("%d parameters in %d files: %+v", s.Facts.Parameters, len(s.Files), s.Facts)
	}
	r.fetch(t, s)
}

// TestDamagedOnDisk: what somebody changed in the folder is noticed and fetched again.
func TestDamagedOnDisk(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SafetensorsFolder(1)
	r.put(t, "m", files)
	s := r.resolve(t, r.ref("m", registry.FormatSafetensors))
	a := r.fetch(t, s)
	for name, damage := range map[string]func(string) error{
		"shorter":   func(p string) error { return os.Truncate(p, 10) },
		"gone":      os.Remove,
		"a link":    func(p string) error { return cmp.Or(os.Remove(p), os.Symlink("/etc/passwd", p)) },
		"no record": func(string) error { return os.Remove(filepath.Join(a.Path, "..", "artifact.json")) },
		"odd": func(string) error {
			return os.WriteFile(filepath.Join(a.Path, "..", "artifact.json"), []byte(`{"version":1,"revision":"`+s.Revision+`","files":[{"path":"../../../x","size":1}]}`), 0o600)
		},
	} {
		check(t, damage(filepath.Join(a.Path, "model-00001-of-00002.safetensors")))
		if name == "gone" || name == "a link" || name == "shorter" {
			// A blob that is shortened through one name is shortened under the other.
			if again := r.resolve(t, s.Ref); name == "shorter" && again.OnDisk >= again.Bytes {
				t.Errorf("%s: %d of %d bytes are said to be on disk", name, again.OnDisk, again.Bytes)
			}
		}
		a = r.fetch(t, s)
		for file, want := range files {
			if got, err := os.ReadFile(filepath.Join(a.Path, file)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s: %v", name, file, err)
			}
		}
	}
}

// TestUploadedDamaged: an object that was damaged before it was uploaded is found, however well it is transferred.
func TestUploadedDamaged(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SplitGGUF("tiny", 1)
	second := "tiny-00002-of-00002.gguf"
	files[second] = files[second][:len(files[second])-10]
	r.put(t, "m", files)
	s, err := r.source.Resolve(within(t), r.ref("m", registry.FormatGGUF))
	if err == nil {
		_, err = r.source.Fetch(within(t), s, func(registry.Progress) {})
	}
	refused(t, err, registry.CodeLoadingFailed, registry.FailureCorruptFile, second)
	if stored, err := r.source.Stored(t.Context()); err != nil || slices.ContainsFunc(stored, func(a registry.StoredArtifact) bool { return a.Revision != "" }) {
		t.Errorf("it is kept as if it were whole: %+v, %v", stored, err)
	}
}
