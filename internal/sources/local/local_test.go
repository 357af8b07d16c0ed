package local_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// write puts files below dir, each as a new inode, so that a change is seen however coarse the clock of the disk is.
func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, b := range files {
		path := filepath.Join(dir, name)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path+".new", b, 0o644))
		check(t, os.Rename(path+".new", path))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	root := t.TempDir()
	for name, roots := range map[string][]string{"anywhere": nil, "with roots": {root}} {
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, sourcetest.Harness{
				Source: local.New(local.Options{Roots: roots}),
				Put: func(t *testing.T, name string, format registry.Format, files map[string][]byte) sources.Ref {
					dir := filepath.Join(root, name)
					check(t, os.MkdirAll(dir, 0o755))
					old, err := os.ReadDir(dir)
					check(t, err)
					write(t, dir, files)
					for _, e := range old {
						if _, keep := files[e.Name()]; !keep {
							check(t, os.RemoveAll(filepath.Join(dir, e.Name())))
						}
					}
					return sources.Ref{Path: dir, Revision: "main", Format: format}
				},
				Nowhere: func(*testing.T) sources.Ref {
					return sources.Ref{Path: filepath.Join(root, "nowhere", "at", "all"), Format: registry.FormatGGUF}
				},
			})
		})
	}
}

func resolve(t *testing.T, path string, format registry.Format, roots ...string) (sources.Snapshot, error) {
	t.Helper()
	return local.New(local.Options{Roots: roots}).Resolve(t.Context(), sources.Ref{Path: path, Format: format})
}

// refused checks the code, the kind of failure ("" for none), and that the message holds the words.
func refused(t *testing.T, err error, code registry.Code, kind registry.FailureKind, words ...string) {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T %v is no registry.Error", err, err)
	}
	got := registry.FailureKind("")
	if e.Failure != nil {
		got = e.Failure.Kind
	}
	if e.Code != code || got != kind {
		t.Errorf("got %s/%s, want %s/%s: %v", e.Code, got, code, kind, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the message %q does not say %q", err, w)
		}
	}
	t.Log(err)
}

const (
	gguf        = registry.FormatGGUF
	safetensors = registry.FormatSafetensors
	none        = registry.FailureKind("")
	missing     = registry.FailureMissingFile
	damaged     = registry.FailureCorruptFile
)

// graph is an ONNX model whose four parameters lie in another file.
func graph(location string) []byte {
	return sourcetest.ONNX(sourcetest.ONNXTensor{Name: "a", DType: 10, Dims: []uint64{4}, Location: location, Data: make([]byte, 8)})
}

func TestAFileItself(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(1), "b.gguf": sourcetest.TinyGGUF(2), "blob": sourcetest.TinyGGUF(3)})
	write(t, dir, sourcetest.SplitGGUF("split", 1))
	write(t, dir, map[string][]byte{"st/config.json": []byte("{}"), "m.safetensors": {1}, "m.onnx": graph("m.onnx_data"), "m.onnx_data": make([]byte, 10)})

	s, err := resolve(t, filepath.Join(dir, "a.gguf"), gguf)
	check(t, err)
	if s.Main != "a.gguf" || s.Root != dir || len(s.Files) != 1 {
		t.Errorf("got %+v", s)
	}
	// Ollama's blobs have no extension: the first bytes decide.
	s, err = resolve(t, filepath.Join(dir, "blob"), gguf)
	check(t, err)
	if s.Main != "blob" {
		t.Errorf("got %+v", s)
	}
	// Whichever shard is named, the first is the main file and all belong to the model.
	s, err = resolve(t, filepath.Join(dir, "split-00002-of-00002.gguf"), gguf)
	check(t, err)
	if s.Main != "split-00001-of-00002.gguf" || len(s.Files) != 2 || s.Facts.Parameters != 4160 {
		t.Errorf("got %+v", s)
	}
	s, err = resolve(t, filepath.Join(dir, "m.onnx"), registry.FormatONNX)
	check(t, err)
	if s.Main != "m.onnx" || len(s.Files) != 2 || s.Facts.WeightBytes != 8 || s.Facts.Parameters != 4 || s.Facts.DType != "f16" {
		t.Errorf("got %+v", s)
	}
	_, err = resolve(t, filepath.Join(dir, "m.safetensors"), safetensors)
	refused(t, err, registry.CodeInvalid, none, "is a file", "folder with config.json")
	_, err = resolve(t, filepath.Join(dir, "a.gguf"), safetensors)
	refused(t, err, registry.CodeInvalid, none, "set model_format to gguf")
	_, err = resolve(t, filepath.Join(dir, "st", "config.json"), gguf)
	refused(t, err, registry.CodeInvalid, none, "config.json", "not a GGUF")
	check(t, os.Remove(filepath.Join(dir, "split-00001-of-00002.gguf")))
	_, err = resolve(t, filepath.Join(dir, "split-00002-of-00002.gguf"), gguf)
	refused(t, err, registry.CodeLoadingFailed, missing, "split-00001-of-00002.gguf", "1 are not here")
}

func TestChoosingAmongGGUF(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"a.gguf": sourcetest.TinyGGUF(1), "mmproj-a.gguf": {1}, ".cache/b.gguf": {1}})
	s, err := resolve(t, dir, gguf)
	check(t, err)
	if s.Main != "a.gguf" || len(s.Files) != 1 || !strings.Contains(strings.Join(s.Facts.Notes, " "), "mmproj-a.gguf") {
		t.Errorf("got %+v", s)
	}
	write(t, dir, map[string][]byte{"sub/c.gguf": sourcetest.TinyGGUF(2)})
	_, err = resolve(t, dir, gguf)
	refused(t, err, registry.CodeInvalid, none, "2 GGUF models (a.gguf, sub/c.gguf)", "source_path")

	only := t.TempDir()
	write(t, only, map[string][]byte{"Q4/m.gguf": sourcetest.TinyGGUF(1)})
	s, err = resolve(t, only, gguf)
	check(t, err)
	if s.Main != "Q4/m.gguf" {
		t.Errorf("got %+v", s)
	}
	renamed := t.TempDir()
	write(t, renamed, map[string][]byte{"m.gguf": sourcetest.SplitGGUF("x", 1)["x-00002-of-00002.gguf"]})
	_, err = resolve(t, renamed, gguf)
	refused(t, err, registry.CodeInvalid, none, "m.gguf", "shard 2 of 2")
	silly := t.TempDir()
	write(t, silly, map[string][]byte{"m-00003-of-00002.gguf": sourcetest.TinyGGUF(1)})
	_, err = resolve(t, silly, gguf)
	refused(t, err, registry.CodeInvalid, none, "shard 3 of 2")
	huge := t.TempDir()
	write(t, huge, map[string][]byte{"m-00001-of-00012.gguf": sourcetest.TinyGGUF(1)})
	_, err = resolve(t, huge, gguf)
	refused(t, err, registry.CodeLoadingFailed, missing, "11 are not here", "m-00006-of-00012.gguf and 6 more")
}

func TestONNXFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"onnx/model.onnx": graph("data/weights"), "onnx/data/weights": make([]byte, 8), "config.json": []byte(sourcetest.LlamaConfig), "vocab.txt": []byte("a")})
	s, err := resolve(t, dir, registry.FormatONNX)
	check(t, err)
	if s.Main != "onnx/model.onnx" || s.Facts.WeightBytes != 8 || s.Facts.Layers != 2 || !s.Facts.Tokenizer || len(s.Files) != 4 {
		t.Errorf("got %+v", s)
	}
	write(t, dir, map[string][]byte{"onnx/data/weights": make([]byte, 7)})
	_, err = resolve(t, dir, registry.FormatONNX)
	refused(t, err, registry.CodeLoadingFailed, damaged, "onnx/data/weights", "needs 8 bytes", "has 7")
	check(t, os.Remove(filepath.Join(dir, "onnx", "data", "weights")))
	_, err = resolve(t, dir, registry.FormatONNX)
	refused(t, err, registry.CodeLoadingFailed, missing, "onnx/data/weights", "1 are not here")
	write(t, dir, map[string][]byte{"onnx/model.onnx": graph("../data/weights"), "data/weights": make([]byte, 8)})
	_, err = resolve(t, dir, registry.FormatONNX)
	refused(t, err, registry.CodeInvalid, none, "../data/weights", "not below")
	write(t, dir, map[string][]byte{"onnx/model_q4.onnx": graph("model_q4.onnx_data"), "onnx/model_q4.onnx_data": make([]byte, 8), "onnx/model.onnx": graph("weights"), "onnx/weights": make([]byte, 8),
		"1_Pooling/config.json": []byte("{}"), "2_Dense/model.safetensors": {1}, "notes/plan.txt": {1}})
	s, err = resolve(t, dir, registry.FormatONNX)
	check(t, err)
	var got []string
	for _, f := range s.Files {
		got = append(got, f.Path)
	}
	if s.Main != "onnx/model.onnx" || !slices.Equal(got, []string{"1_Pooling/config.json", "config.json", "onnx/model.onnx", "onnx/weights", "vocab.txt"}) {
		t.Errorf("of several the usual one is taken; got %s with %v", s.Main, got)
	}
	write(t, dir, map[string][]byte{"onnx/model_int8.onnx": graph("weights")})
	check(t, os.Remove(filepath.Join(dir, "onnx", "model.onnx")))
	_, err = resolve(t, dir, registry.FormatONNX)
	refused(t, err, registry.CodeInvalid, none, "2 ONNX models", "model_q4.onnx")
	check(t, os.Remove(filepath.Join(dir, "onnx", "model_q4.onnx")))
	check(t, os.Remove(filepath.Join(dir, "onnx", "model_int8.onnx")))
	write(t, dir, map[string][]byte{"onnx/model.onnx": []byte("version https://git-lfs.github.com/spec/v1\n")})
	_, err = resolve(t, dir, registry.FormatONNX)
	refused(t, err, registry.CodeLoadingFailed, damaged, "git lfs pull")
}

func TestPaths(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"file": []byte("x"), "empty/.keep": {}, "text/README.md": []byte("hello")})
	for name, tt := range map[string]struct {
		path  string
		code  registry.Code
		kind  registry.FailureKind
		words []string
	}{
		"empty":            {"", registry.CodeInvalid, none, []string{"source_path", "is empty"}},
		"relative":         {"models/x", registry.CodeInvalid, none, []string{"source_path", "not absolute"}},
		"home":             {"~/models", registry.CodeInvalid, none, []string{"not absolute"}},
		"a zero byte":      {"/a\x00b", registry.CodeInvalid, none, []string{"zero byte"}},
		"too long":         {"/" + strings.Repeat("x", 5000), registry.CodeInvalid, none, []string{"too long"}},
		"nothing":          {filepath.Join(dir, "a", "b", "c"), registry.CodeNotFound, none, []string{"a/b/c", "exists is " + dir}},
		"through a file":   {filepath.Join(dir, "file", "c"), registry.CodeNotFound, none, []string{"file is a file"}},
		"an empty folder":  {filepath.Join(dir, "empty"), registry.CodeLoadingFailed, missing, []string{"empty"}},
		"no model":         {filepath.Join(dir, "text"), registry.CodeLoadingFailed, missing, []string{"README.md"}},
		"no such format":   {dir, registry.CodeInvalid, none, []string{`"zip"`}},
		"a device":         {"/dev/null", registry.CodeInvalid, none, []string{"a device"}},
		"dots in the path": {filepath.Join(dir, "empty") + "/../file", registry.CodeInvalid, none, []string{"not a GGUF"}},
	} {
		t.Run(name, func(t *testing.T) {
			format := gguf
			if name == "no such format" {
				format = "zip"
			}
			_, err := resolve(t, tt.path, format)
			refused(t, err, tt.code, tt.kind, tt.words...)
		})
	}
}

func TestLinks(t *testing.T) {
	store, dir := t.TempDir(), t.TempDir()
	link := func(target, name string) {
		t.Helper()
		check(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	// The Hub's cache: names that are links to blobs.
	write(t, store, map[string][]byte{"blob": sourcetest.TinyGGUF(1)})
	link(filepath.Join(store, "blob"), "m.gguf")
	s, err := resolve(t, dir, gguf)
	check(t, err)
	if s.Main != "m.gguf" || s.Bytes != int64(len(sourcetest.TinyGGUF(1))) {
		t.Errorf("got %+v", s)
	}
	// A link that leads out of the roots, and one that stays within.
	_, err = resolve(t, dir, gguf, dir)
	refused(t, err, registry.CodeInvalid, none, "m.gguf", store, "outside")
	_, err = resolve(t, filepath.Join(dir, "m.gguf"), gguf, dir)
	refused(t, err, registry.CodeInvalid, none, "m.gguf", "outside")
	_, err = resolve(t, dir, gguf, dir, store)
	check(t, err)
	_, err = resolve(t, dir, gguf, store)
	refused(t, err, registry.CodeInvalid, none, "source_path", "outside")
	_, err = resolve(t, store+"/../../etc/passwd", gguf, store)
	refused(t, err, registry.CodeInvalid, none, "outside")
	_, err = resolve(t, store+"-other", gguf, store) // begins with the same letters, and is not in it
	refused(t, err, registry.CodeInvalid, none, "outside")

	link(filepath.Join(store, "gone"), "notes")
	s, err = resolve(t, dir, gguf)
	check(t, err)
	if !strings.Contains(strings.Join(s.Facts.Notes, " "), "dangling") {
		t.Errorf("notes: %q", s.Facts.Notes)
	}
	link(filepath.Join(store, "gone"), "n.gguf")
	_, err = resolve(t, dir, gguf)
	refused(t, err, registry.CodeLoadingFailed, missing, "n.gguf", "gone", "does not exist")
	_, err = resolve(t, filepath.Join(dir, "n.gguf"), gguf)
	refused(t, err, registry.CodeLoadingFailed, missing, "n.gguf", "does not exist")
	check(t, os.Remove(filepath.Join(dir, "n.gguf")))

	check(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	link(dir, "sub/up")
	_, err = resolve(t, dir, gguf)
	refused(t, err, registry.CodeInvalid, none, "sub/up", "leads back to "+dir)
	check(t, os.Remove(filepath.Join(dir, "sub", "up")))
	link("self", "self")
	_, err = resolve(t, dir, gguf)
	refused(t, err, registry.CodeInvalid, none, "self", "loop")
	_, err = resolve(t, filepath.Join(dir, "self"), gguf)
	refused(t, err, registry.CodeInvalid, none, "self", "loop")
}

// TestPipesAreNotOpened would hang if one were: opening a pipe waits for a writer.
func TestPipesAreNotOpened(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"m.gguf": sourcetest.TinyGGUF(1)})
	check(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	check(t, err)
	defer l.Close()
	s, err := resolve(t, dir, gguf)
	check(t, err)
	if notes := strings.Join(s.Facts.Notes, " "); !strings.Contains(notes, "a named pipe") || !strings.Contains(notes, "a socket") {
		t.Errorf("notes: %q", notes)
	}
	check(t, syscall.Mkfifo(filepath.Join(dir, "x-00001-of-00001.gguf"), 0o644))
	for _, path := range []string{dir, filepath.Join(dir, "x-00001-of-00001.gguf"), filepath.Join(dir, "sock")} {
		_, err = resolve(t, path, gguf)
		refused(t, err, registry.CodeInvalid, none)
	}
	folder := t.TempDir()
	write(t, folder, sourcetest.SafetensorsFolder(1))
	check(t, os.Remove(filepath.Join(folder, "config.json")))
	check(t, syscall.Mkfifo(filepath.Join(folder, "config.json"), 0o644))
	_, err = resolve(t, folder, safetensors)
	refused(t, err, registry.CodeInvalid, none, "config.json is a named pipe")
}

func TestTooMuch(t *testing.T) {
	deep := t.TempDir()
	write(t, deep, map[string][]byte{strings.Repeat("d/", 12) + "m.gguf": sourcetest.TinyGGUF(1)})
	_, err := resolve(t, deep, gguf)
	refused(t, err, registry.CodeInvalid, none, "nested more than 8 deep")
	wide := t.TempDir()
	// A hundred links to a folder of a hundred files look like 10,100 of them.
	for i := range 100 {
		write(t, wide, map[string][]byte{fmt.Sprintf("files/%d", i): nil})
		check(t, os.Symlink("files", filepath.Join(wide, fmt.Sprint(i))))
	}
	_, err = resolve(t, wide, gguf)
	refused(t, err, registry.CodeInvalid, none, "more than 10000 files")
}

// asNobody runs fn without the right to read everything, which root has. The file system's user belongs to the
// thread, so fn must not leave it.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		fn()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	check(t, unix.Setfsuid(65534))
	defer func() { check(t, unix.Setfsuid(0)) }()
	fn()
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Chmod(filepath.Dir(dir), 0o755)) // so that nobody gets as far as the files
	write(t, dir, sourcetest.SafetensorsFolder(1))
	for _, name := range []string{"model-00002-of-00002.safetensors", "tokenizer.json", "config.json"} {
		path := filepath.Join(dir, name)
		check(t, os.Chmod(path, 0))
		asNobody(t, func() {
			_, err := resolve(t, dir, safetensors)
			refused(t, err, registry.CodeInvalid, none, name, "permission denied", "----------", "chmod")
		})
		check(t, os.Chmod(path, 0o644))
	}
	check(t, os.Chmod(dir, 0))
	asNobody(t, func() {
		_, err := resolve(t, dir, safetensors)
		refused(t, err, registry.CodeInvalid, none, dir, "permission denied")
		_, err = resolve(t, filepath.Join(dir, "m.gguf"), gguf)
		refused(t, err, registry.CodeInvalid, none, "m.gguf", "permission denied", dir+" is d---------")
	})
	check(t, os.Chmod(dir, 0o755))
}

func TestTokenizerPath(t *testing.T) {
	dir, tok := t.TempDir(), t.TempDir()
	files := sourcetest.SafetensorsFolder(1)
	delete(files, "tokenizer.json")
	write(t, dir, files)
	write(t, tok, map[string][]byte{"tokenizer.json": []byte("{}"), "empty/x": nil})
	src := local.New(local.Options{Roots: []string{dir, tok}})
	ask := func(path string) (sources.Snapshot, error) {
		return src.Resolve(t.Context(), sources.Ref{Path: dir, Format: safetensors, Tokenizer: path})
	}
	without, err := ask("")
	check(t, err)
	if without.Facts.Tokenizer || !strings.Contains(strings.Join(without.Facts.Notes, " "), "tokenizer_path") {
		t.Errorf("got %+v", without.Facts)
	}
	for _, path := range []string{tok, filepath.Join(tok, "tokenizer.json")} {
		with, err := ask(path)
		check(t, err)
		if !with.Facts.Tokenizer || with.Revision == without.Revision || len(with.Files) != len(without.Files) {
			t.Errorf("got %+v", with)
		}
		write(t, tok, map[string][]byte{"tokenizer.json": []byte("[]")})
		again, err := ask(path)
		check(t, err)
		if again.Revision == with.Revision {
			t.Error("another tokenizer is the same revision")
		}
	}
	_, err = ask(filepath.Join(tok, "nowhere"))
	refused(t, err, registry.CodeNotFound, none, "tokenizer_path", "nowhere")
	_, err = ask("tokenizer")
	refused(t, err, registry.CodeInvalid, none, "tokenizer_path", "not absolute")
	_, err = ask(filepath.Join(tok, "empty"))
	refused(t, err, registry.CodeLoadingFailed, missing, "holds no tokenizer")
	_, err = ask("/etc")
	refused(t, err, registry.CodeInvalid, none, "tokenizer_path", "outside")
}

// TestOnlyItsOwnFiles: weights that the engine will not read are no part of the model.
func TestOnlyItsOwnFiles(t *testing.T) {
	dir := t.TempDir()
	files := sourcetest.SafetensorsFolder(1)
	write(t, dir, files)
	before, err := resolve(t, dir, safetensors)
	check(t, err)
	write(t, dir, map[string][]byte{"pytorch_model.bin": make([]byte, 1000), "onnx/model.onnx": {1}, "optimizer.pt": {1}, ".git/config": {1}})
	after, err := resolve(t, dir, safetensors)
	check(t, err)
	if after.Revision != before.Revision || after.Bytes != before.Bytes || after.Main != "" {
		t.Errorf("got %+v, want %+v", after, before)
	}
}

// TestChangedUnderFetch changes the model after it was resolved.
func TestChangedUnderFetch(t *testing.T) {
	dir := t.TempDir()
	src := local.New(local.Options{})
	write(t, dir, map[string][]byte{"m.gguf": sourcetest.TinyGGUF(1)})
	s, err := src.Resolve(t.Context(), sources.Ref{Path: dir, Format: gguf})
	check(t, err)
	fetch := func() error {
		a, err := src.Fetch(t.Context(), s, func(registry.Progress) {})
		if err != nil && a.Path != "" {
			t.Errorf("an artifact and an error: %+v", a)
		}
		return err
	}
	check(t, fetch())
	path := filepath.Join(dir, "m.gguf")
	check(t, os.Chtimes(path, time.Time{}, time.Unix(1_000_000_000, 0)))
	refused(t, fetch(), registry.CodeUnavailable, none, dir, "load again")
	write(t, dir, map[string][]byte{"m.gguf": append(sourcetest.TinyGGUF(1), 0)})
	refused(t, fetch(), registry.CodeUnavailable, none, path, "bytes")
	check(t, os.Truncate(path, 100))
	refused(t, fetch(), registry.CodeLoadingFailed, damaged, dir+": m.gguf", "half copied")
	check(t, os.Remove(path))
	refused(t, fetch(), registry.CodeLoadingFailed, missing, dir)
	check(t, os.Remove(dir))
	refused(t, fetch(), registry.CodeNotFound, none, dir)
}

// TestFolderThatChangesWhileWalked removes and puts back files as fast as it can while the folder is read: every answer
// is a snapshot or a registry.Error that says that something vanished or changed.
func TestFolderThatChangesWhileWalked(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, sourcetest.SafetensorsFolder(1))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		path := filepath.Join(dir, "model-00002-of-00002.safetensors")
		b := sourcetest.SafetensorsFolder(1)["model-00002-of-00002.safetensors"]
		for ctx.Err() == nil {
			if err := errors.Join(os.Remove(path), os.WriteFile(path, b[:100], 0o644), os.WriteFile(path, b, 0o644)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 300 {
		_, err := resolve(t, dir, safetensors)
		switch registry.CodeOf(err) {
		case "", registry.CodeUnavailable, registry.CodeLoadingFailed:
		default:
			t.Errorf("got %s: %v", registry.CodeOf(err), err)
		}
	}
	stop()
	<-done
}
