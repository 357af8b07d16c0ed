package s3_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/s3/s3test"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

const none = registry.FailureKind("")

func TestConformance(t *testing.T) {
	r := newRig(t)
	sourcetest.Run(t, sourcetest.Harness{
		Source: r.source,
		Put: func(t *testing.T, name string, format registry.Format, files map[string][]byte) sources.Ref {
			r.put(t, "models/"+name, files)
			return r.ref("models/"+name, format)
		},
		Nowhere: func(*testing.T) sources.Ref { return r.ref("nowhere", registry.FormatGGUF) },
		Served:  r.proxy.Served,
	})
}

func TestSingleObject(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SplitGGUF("split", 1)
	files["one.gguf"] = sourcetest.TinyGGUF(2)
	files["one.gguf.sha256"] = []byte("x")
	r.put(t, "m", files)
	one := r.resolve(t, r.ref("m/one.gguf", registry.FormatGGUF))
	if one.Main != "one.gguf" || len(one.Files) != 1 || !strings.HasSuffix(one.Root, r.bucket+"/m") {
		t.Errorf("got %+v", one)
	}
	a := r.fetch(t, one)
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, files["one.gguf"]) {
		t.Errorf("%s is not the object: %v", a.Path, err)
	}
	for name := range sourcetest.SplitGGUF("split", 1) {
		both := r.resolve(t, r.ref("m/"+name, registry.FormatGGUF))
		if both.Main != "split-00001-of-00002.gguf" || len(both.Files) != 2 {
			t.Errorf("got %+v", both)
		}
	}
	// At the root of a bucket.
	r.server.Put(t, r.bucket, "top.gguf", files["one.gguf"])
	top := r.resolve(t, r.ref("top.gguf", registry.FormatGGUF))
	r.fetch(t, top)
	_, err := r.source.Resolve(t.Context(), r.ref("m/none.gguf", registry.FormatGGUF))
	refused(t, err, registry.CodeNotFound, none, "m/none.gguf", "m/one.gguf")
	_, err = r.source.Resolve(t.Context(), r.ref("m/one.gguf.sha256", registry.FormatGGUF))
	refused(t, err, registry.CodeInvalid, none, "single object")
	_, err = r.source.Resolve(t.Context(), r.ref("m/one.gguf", registry.FormatSafetensors))
	refused(t, err, registry.CodeInvalid, none, "gguf", "safetensors")
}

func TestQuantizations(t *testing.T) {
	r := newRig(t)
	r.put(t, "q", map[string][]byte{"m-Q4_K_M.gguf": sourcetest.TinyGGUF(1), "m-Q8_0.gguf": sourcetest.TinyGGUF(2), "mmproj.gguf": {1}, "README.md": []byte("hi")})
	_, err := r.source.Resolve(t.Context(), r.ref("q", registry.FormatGGUF))
	refused(t, err, registry.CodeInvalid, none, "custom_loader_params.quantization", "Q4_K_M", "Q8_0")
	s := r.resolve(t, r.ref("q", registry.FormatGGUF, map[string]any{"quantization": "q8_0"}))
	if s.Main != "m-Q8_0.gguf" || len(s.Files) != 1 {
		t.Errorf("got %+v", s)
	}
	other := r.resolve(t, r.ref("q", registry.FormatGGUF, map[string]any{"filename": "m-Q4_K_M.gguf"}))
	if other.Main != "m-Q4_K_M.gguf" || other.Revision == s.Revision {
		t.Errorf("got %+v", other)
	}
	offers, err := r.source.Offers(t.Context(), r.ref("q", "", map[string]any{"quantization": "none of them"}))
	check(t, err)
	var labels []string
	for _, o := range offers {
		labels = append(labels, o.Label)
		chosen := r.ref("q", o.Format, o.Params)
		if got := r.resolve(t, chosen); got.Bytes != o.Bytes || len(got.Files) != o.Files {
			t.Errorf("the offer %+v gives %+v", o, got)
		}
	}
	if d := cmp.Diff([]string{"Q4_K_M", "Q8_0"}, labels); d != "" {
		t.Error(d)
	}
}

// TestManyKeys pages through thousands of keys.
func TestManyKeys(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SafetensorsFolder(1)
	r.put(t, "many", files)
	const n = 3500
	// As files below the server's folder: that is what its buckets are, and it is fast.
	for i := range n {
		check(t, os.WriteFile(filepath.Join(r.server.Folder, r.bucket, "many", fmt.Sprintf("log-%05d.bin.txt", i)), nil, 0o600))
	}
	before := len(r.proxy.Requests())
	s := r.resolve(t, r.ref("many", registry.FormatSafetensors, map[string]any{"ignore_patterns": []any{"log-*"}}))
	if len(s.Files) != len(files) {
		t.Errorf("%d files, want %d", len(s.Files), len(files))
	}
	pages := 0
	for _, req := range r.proxy.Requests()[before:] {
		if strings.Contains(req, "list-type=2") {
			pages++
		}
	}
	if pages != 4 {
		t.Errorf("%d pages of %d keys", pages, n+len(files))
	}
	if s.Cost.Requests != len(r.proxy.Requests())-before {
		t.Errorf("the cost says %d requests, there were %d", s.Cost.Requests, len(r.proxy.Requests())-before)
	}
}

// TestOddKeys has keys in the listing that must not become names of files.
func TestOddKeys(t *testing.T) {
	r := newRig(t)
	r.put(t, "odd", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1), "café ü 模型.txt": {1}, "a b+c%2F&=.txt": {2}, "folder/": nil, ".hidden/x": {3}})
	// No server that keeps objects as files can hold these; others can.
	odd := []string{"odd/../../../../escape.gguf", "odd//absolute.gguf", "odd/./dot.gguf", "odd/back\\slash.gguf", "odd/new\nline.gguf", "odd/" + strings.Repeat("x", 300) + ".gguf", "odd/tiny.gguf/below.gguf", "odd/"}
	r.proxy.Fault(func(req *http.Request) s3test.Fault {
		if req.URL.Query().Get("list-type") == "" {
			return s3test.Fault{}
		}
		return s3test.Fault{Body: func(b []byte) []byte {
			var more strings.Builder
			for _, key := range odd {
				more.WriteString("<Contents><Key>")
				check(t, xml.EscapeText(&more, []byte(key)))
				more.WriteString(`</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"0"</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>`)
			}
			return bytes.Replace(b, []byte("<Contents>"), []byte(more.String()+"<Contents>"), 1)
		}}
	})
	s := r.resolve(t, r.ref("odd", registry.FormatGGUF))
	if s.Main != "tiny.gguf" || len(s.Files) != 1 {
		t.Errorf("got %+v", s.Files)
	}
	if notes := strings.Join(s.Facts.Notes, " "); !strings.Contains(notes, "7 objects have names that cannot be files") || strings.ContainsRune(notes, '\n') {
		t.Errorf("notes: %q", notes)
	}
	a := r.fetch(t, s)
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, sourcetest.TinyGGUF(1)) {
		t.Errorf("not what was put: %v", err)
	}
	// Nothing but the source's own folder was touched.
	for dir := filepath.Dir(r.dir); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, "escape.gguf")); err == nil || dir == "/" {
			if err == nil {
				t.Errorf("escape.gguf is in %s", dir)
			}
			break
		}
	}
	// A snapshot that somebody made up.
	for _, name := range []string{"../escape", "/etc/passwd", "a/../../b", ""} {
		s.Files[0].Path = name
		_, err := r.source.Fetch(t.Context(), s, func(registry.Progress) {})
		refused(t, err, registry.CodeInvalid, none)
	}
}

// TestNamesOnDisk fetches names that are allowed and unusual.
func TestNamesOnDisk(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SafetensorsFolder(1)
	extra := map[string][]byte{"vocab ü+%41.txt": []byte("v"), "empty.txt": {}, "1_Pooling/config.json": []byte("{}")}
	maps.Copy(files, extra)
	r.put(t, "names here/with+plus", files)
	a := r.fetch(t, r.resolve(t, r.ref("names here/with+plus", registry.FormatSafetensors)))
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(a.Path, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOnlyChangedBytes fetches a second revision that shares most files with the first.
func TestOnlyChangedBytes(t *testing.T) {
	r := newRig(t)
	files := sourcetest.SafetensorsFolder(1)
	r.put(t, "m", files)
	ref := r.ref("m", registry.FormatSafetensors)
	first := r.resolve(t, ref)
	if first.OnDisk != 0 {
		t.Errorf("%d bytes are on disk already", first.OnDisk)
	}
	a := r.fetch(t, first)
	files["tokenizer_config.json"] = []byte(`{"chat_template": "{{ other }}"}`)
	r.server.Put(t, r.bucket, "m/tokenizer_config.json", files["tokenizer_config.json"])
	second := r.resolve(t, ref)
	if want := second.Bytes - int64(len(files["tokenizer_config.json"])); second.OnDisk != want || second.Revision == first.Revision {
		t.Errorf("%d bytes are on disk, want %d", second.OnDisk, want)
	}
	before := r.proxy.Served()
	b := r.fetch(t, second)
	if n := r.proxy.Served() - before; n != int64(len(files["tokenizer_config.json"])) {
		t.Errorf("%d bytes were fetched for a change of %d", n, len(files["tokenizer_config.json"]))
	}
	if again := r.resolve(t, ref); again.OnDisk != again.Bytes {
		t.Errorf("of %d bytes %d are on disk", again.Bytes, again.OnDisk)
	}
	// Both are whole, and share what they have in common.
	for _, name := range []string{"config.json", "model-00001-of-00002.safetensors"} {
		x, errX := os.Stat(filepath.Join(a.Path, name))
		y, errY := os.Stat(filepath.Join(b.Path, name))
		if errX != nil || errY != nil || !os.SameFile(x, y) {
			t.Errorf("%s is there twice: %v, %v", name, errX, errY)
		}
	}

	stored, err := r.source.Stored(t.Context())
	check(t, err)
	if len(stored) != 2 {
		t.Fatalf("stored: %+v", stored)
	}
	for _, st := range stored {
		if st.Path != ref.Path || st.Source != registry.SourceS3 || st.Files != len(files) || st.Partial != 0 || st.Bytes == 0 || st.Own >= 100 || st.Own == 0 {
			t.Errorf("stored: %+v", st)
		}
	}
	// Deleting one leaves the other; deleting both leaves nothing.
	_, err = r.source.Delete(t.Context(), "s3://"+r.bucket+"/elsewhere", first.Revision)
	refused(t, err, registry.CodeNotFound, none)
	_, err = r.source.Delete(t.Context(), ref.Path, "../..")
	refused(t, err, registry.CodeNotFound, none)
	_, err = r.source.Delete(t.Context(), ref.Path+"/", first.Revision)
	check(t, err)
	if got, err := os.ReadFile(filepath.Join(b.Path, "config.json")); err != nil || !bytes.Equal(got, files["config.json"]) {
		t.Errorf("the other revision lost its files: %v", err)
	}
	if _, err := os.Stat(a.Path); err == nil {
		t.Error("the revision is still there")
	}
	_, err = r.source.Delete(t.Context(), ref.Path, second.Revision)
	check(t, err)
	check(t, filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "bucket.json" {
			t.Errorf("%s is left", path)
		}
		return err
	}))
	_, err = r.source.Delete(t.Context(), ref.Path, second.Revision)
	refused(t, err, registry.CodeNotFound, none)
}

// TestOffline takes the server away: what was fetched is used, and asked for by its fingerprint at any time.
func TestOffline(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", sourcetest.SplitGGUF("tiny", 1))
	ref := r.ref("m", registry.FormatGGUF)
	first := r.resolve(t, ref)
	r.fetch(t, first)
	r.put(t, "m", sourcetest.SplitGGUF("tiny", 2))
	pinned := ref
	pinned.Revision = first.Revision
	if s := r.resolve(t, pinned); s.Revision != first.Revision || s.OnDisk != s.Bytes {
		t.Errorf("got %+v", s)
	}
	gone := ref
	gone.Revision = "s3-0123456789abcdef01234567"
	_, err := r.source.Resolve(t.Context(), gone)
	refused(t, err, registry.CodeNotFound, none, "has changed", "main")

	r.server.Stop(t)
	before := r.proxy.Served()
	s := r.resolve(t, ref)
	if s.Revision != first.Revision || !strings.Contains(strings.Join(s.Facts.Notes, " "), "could not be asked") {
		t.Errorf("got %+v", s)
	}
	a := r.fetch(t, s)
	if _, err := os.Stat(a.Path); err != nil || r.proxy.Served() != before {
		t.Errorf("%d bytes were asked for; %v", r.proxy.Served()-before, err)
	}
	other := r.ref("elsewhere", registry.FormatGGUF)
	_, err = r.source.Resolve(t.Context(), other)
	refused(t, err, registry.CodeUnavailable, none)
}

// TestChangedMeanwhile replaces an object between looking and fetching, and while it is fetched.
func TestChangedMeanwhile(t *testing.T) {
	r := newRig(t)
	big := func(fill byte) []byte { return bigGGUF(16<<20, fill) }
	r.put(t, "m", map[string][]byte{"big.gguf": big(1)})
	ref := r.ref("m", registry.FormatGGUF)
	s := r.resolve(t, ref)
	r.server.Put(t, r.bucket, "m/big.gguf", big(2))
	_, err := r.source.Fetch(t.Context(), s, func(registry.Progress) {})
	refused(t, err, registry.CodeUnavailable, none, "m/big.gguf", "replaced")

	s = r.resolve(t, ref)
	var swapped atomic.Bool
	r.proxy.Fault(func(req *http.Request) s3test.Fault {
		if s3test.IsObject(req) && !strings.HasPrefix(req.Header.Get("Range"), "bytes=0-") && swapped.CompareAndSwap(false, true) {
			return s3test.Fault{Before: func() { r.server.Put(t, r.bucket, "m/big.gguf", big(3)) }}
		}
		return s3test.Fault{}
	})
	a, err := r.source.Fetch(t.Context(), s, func(registry.Progress) {})
	refused(t, err, registry.CodeUnavailable, none, "m/big.gguf", "replaced")
	if a.Path != "" || !swapped.Load() {
		t.Errorf("got %+v, swapped %v", a, swapped.Load())
	}
	r.proxy.Fault(nil)
	a = r.fetch(t, r.resolve(t, ref))
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, big(3)) {
		t.Errorf("two versions are mixed: %v", err)
	}
}

// TestVersions replaces an object of a bucket that keeps versions while it is fetched: the one that was begun is
// fetched to its end.
func TestVersions(t *testing.T) {
	r := newRig(t)
	r.bucket = r.server.Bucket(t, true)
	r.put(t, "m", map[string][]byte{"big.gguf": bigGGUF(16<<20, 1)})
	s := r.resolve(t, r.ref("m", registry.FormatGGUF))
	var swapped atomic.Bool
	r.proxy.Fault(func(req *http.Request) s3test.Fault {
		if s3test.IsObject(req) && swapped.CompareAndSwap(false, true) {
			return s3test.Fault{Before: func() { r.server.Put(t, r.bucket, "m/big.gguf", bigGGUF(16<<20, 2)) }}
		}
		return s3test.Fault{}
	})
	a := r.fetch(t, s)
	if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, bigGGUF(16<<20, 1)) || !swapped.Load() {
		t.Errorf("not the version that was looked at: %v", err)
	}
	if !slices.ContainsFunc(r.proxy.Requests(), func(req string) bool { return strings.Contains(req, "versionId=") }) {
		t.Error("no version was asked for")
	}
}

// TestSums uploads in parts and with a SHA-256, and flips a bit on the way.
func TestSums(t *testing.T) {
	r := newRig(t)
	big := bigGGUF(12<<20, 1)
	for name, o := range map[string]minio.PutObjectOptions{
		"parts":  {PartSize: 5 << 20},
		"md5":    {DisableMultipart: true},
		"sha256": {},
	} {
		t.Run(name, func(t *testing.T) {
			key := name + "/big.gguf"
			if name == "sha256" {
				r.server.PutSummed(t, r.bucket, key, big)
			} else {
				r.server.PutWith(t, r.bucket, key, big, o)
			}
			info, err := r.server.Client.StatObject(t.Context(), r.bucket, key, minio.StatObjectOptions{Checksum: true})
			check(t, err)
			if parts := strings.Contains(info.ETag, "-"); parts != (name == "parts") {
				t.Fatalf("the ETag is %s", info.ETag)
			}
			if sum := info.ChecksumSHA256 != ""; sum != (name == "sha256") {
				t.Fatalf("the SHA-256 is %q", info.ChecksumSHA256)
			}
			s := r.resolve(t, r.ref(name, registry.FormatGGUF))
			r.proxy.Fault(func(req *http.Request) s3test.Fault {
				if !s3test.IsObject(req) {
					return s3test.Fault{}
				}
				return s3test.Fault{Body: func(b []byte) []byte {
					b[len(b)/2] ^= 1
					return b
				}}
			})
			defer r.proxy.Fault(nil)
			_, err = r.source.Fetch(within(t), s, func(registry.Progress) {})
			refused(t, err, registry.CodeLoadingFailed, registry.FailureCorruptFile, "big.gguf")
			r.proxy.Fault(nil)
			a := r.fetch(t, s)
			if got, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(got, big) {
				t.Errorf("not what was put: %v", err)
			}
			if sum := a.Files[0].SHA256 != ""; sum != (name == "sha256") {
				t.Errorf("the file's SHA-256 is %q", a.Files[0].SHA256)
			}
		})
	}
}

// TestSumsOfParts uploads objects whose sums are of their parts, and one without any.
func TestSumsOfParts(t *testing.T) {
	r := newRig(t)
	big := bigGGUF(12<<20, 1)
	// The server does not tell the parts; Amazon's does, in this form:
	// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAttributes.html
	told := func(req *http.Request, damaged bool) s3test.Fault {
		switch {
		case req.URL.Query().Has("attributes"):
			return s3test.Fault{Body: func(b []byte) []byte {
				parts := fmt.Sprintf("<ObjectParts><PartsCount>3</PartsCount><IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber><Size>%d</Size></Part><Part><PartNumber>2</PartNumber><Size>%d</Size></Part><Part><PartNumber>3</PartNumber><Size>%d</Size></Part></ObjectParts>", 5<<20, 5<<20, len(big)-10<<20)
				return []byte(strings.Replace(string(b), "</Checksum>", "</Checksum>"+parts, 1))
			}}
		case s3test.IsObject(req) && damaged:
			return s3test.Fault{Body: func(b []byte) []byte {
				b[len(b)-1] ^= 1
				return b
			}}
		}
		return s3test.Fault{}
	}
	for name, kind := range map[string]minio.ChecksumType{"sha256": minio.ChecksumSHA256, "crc32c": minio.ChecksumCRC32C} {
		t.Run(name, func(t *testing.T) {
			r.server.PutParts(t, r.bucket, name+"/big.gguf", big, 5<<20, kind)
			s := r.resolve(t, r.ref(name, registry.FormatGGUF))
			r.proxy.Fault(func(req *http.Request) s3test.Fault { return told(req, true) })
			defer r.proxy.Fault(nil)
			_, err := r.source.Fetch(within(t), s, func(registry.Progress) {})
			refused(t, err, registry.CodeLoadingFailed, registry.FailureCorruptFile, "big.gguf", name)
			r.proxy.Fault(func(req *http.Request) s3test.Fault { return told(req, false) })
			if a := r.fetch(t, s); a.Files[0].Unsummed || a.Files[0].SHA256 != "" {
				t.Errorf("%+v", a.Files[0])
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		// A service that keeps no sums: what is uploaded in parts has an ETag that is no sum of the content.
		r.server.PutParts(t, r.bucket, "none/big.gguf", big, 5<<20, minio.ChecksumSHA256)
		r.proxy.Fault(func(req *http.Request) s3test.Fault {
			if req.URL.Query().Has("attributes") {
				return s3test.Fault{Status: http.StatusNotImplemented, Code: "NotImplemented", Msg: "not here"}
			}
			return s3test.Fault{}
		})
		defer r.proxy.Fault(nil)
		if a := r.fetch(t, r.resolve(t, r.ref("none", registry.FormatGGUF))); !a.Files[0].Unsummed {
			t.Errorf("it passes for verified: %+v", a.Files[0])
		}
	})
}

// TestClean leaves unfinished downloads behind and removes them.
func TestClean(t *testing.T) {
	r := newRig(t)
	r.put(t, "m", map[string][]byte{"big.gguf": bigGGUF(16<<20, 1)})
	s := r.resolve(t, r.ref("m", registry.FormatGGUF))
	r.interrupt(t, s)
	stored, err := r.source.Stored(t.Context())
	check(t, err)
	if len(stored) != 1 || stored[0].Revision != "" || stored[0].Partial == 0 || stored[0].Path != "s3://"+r.bucket {
		t.Errorf("stored: %+v", stored)
	}
	freed, err := r.source.Clean(t.Context(), time.Now().Add(-time.Hour))
	if err != nil || freed != 0 {
		t.Errorf("%d bytes were freed of what is new, %v", freed, err)
	}
	freed, err = r.source.Clean(t.Context(), time.Now().Add(time.Hour))
	if err != nil || freed < stored[0].Partial {
		t.Errorf("%d bytes were freed, want %d, %v", freed, stored[0].Partial, err)
	}
	stored, err = r.source.Stored(t.Context())
	if err != nil || len(stored) != 0 {
		t.Errorf("stored: %+v, %v", stored, err)
	}
	r.fetch(t, s)
}

// client is a client of another account.
func (r *rig) client(t *testing.T, access, secret string) *minio.Client {
	t.Helper()
	c, err := minio.New(strings.TrimPrefix(r.server.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4(access, secret, ""), Region: s3test.Region})
	check(t, err)
	return c
}
