package pytorch

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/loaders/pytorch/pytorchtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// stored is a tensor as safetensors have it.
type stored struct {
	DType string
	Shape []int64
	Data  []byte
}

// parse reads safetensors, and holds them to the rules: aligned, without holes and without bytes that two tensors share.
func parse(t *testing.T, b []byte) map[string]stored {
	t.Helper()
	n := binary.LittleEndian.Uint64(b)
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &raw); err != nil {
		t.Fatal(err)
	}
	data := b[8+n:]
	out := map[string]stored{}
	var spans [][2]int64
	for name, text := range raw {
		if name == metadataKey {
			continue
		}
		var d described
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		out[name] = stored{d.DType, d.Shape, data[d.Offsets[0]:d.Offsets[1]]}
		spans = append(spans, d.Offsets)
	}
	slices.SortFunc(spans, func(a, b [2]int64) int { return slices.Compare(a[:], b[:]) })
	at := int64(0)
	for _, s := range spans {
		if s[0] != at {
			t.Errorf("a hole or an overlap at byte %d of %v", at, spans)
		}
		at = s[1]
	}
	if at != int64(len(data)) || (8+n)%8 != 0 {
		t.Errorf("tensors end at byte %d of %d, after a header of %d", at, len(data), n)
	}
	return out
}

func testdata(name string) string { return filepath.Join("testdata", name) }

func bytesOf(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read takes the bytes of a file for one that was opened.
func read(b []byte) (*file, error) {
	f := &file{ReaderAt: bytes.NewReader(b), Closer: io.NopCloser(nil), name: "pytorch_model.bin", size: int64(len(b))}
	err := f.read()
	return f, err
}

// convert turns the bytes of a file into safetensors and returns what they hold. Blocks are small, so that tensors are cut.
func convert(t *testing.T, b []byte) (map[string]stored, error) {
	t.Helper()
	f, err := read(b)
	if err != nil {
		return nil, err
	}
	var said []int64
	w := newWriter(t.Context(), func(n int64) { said = append(said, n) })
	w.piece, w.block = 16, 40
	var out bytes.Buffer
	if err := w.all(&out, f); err != nil {
		return nil, err
	}
	if !slices.IsSorted(said) || said[len(said)-1] != int64(out.Len()) {
		t.Errorf("progress %v of %d bytes", said, out.Len())
	}
	return parse(t, out.Bytes()), nil
}

// TestReal: what the real torch.save wrote, in each of its layouts, becomes what the real safetensors library wrote of it.
func TestReal(t *testing.T) {
	want := parse(t, bytesOf(t, testdata("want.safetensors")))
	if len(want) != 16 {
		t.Fatalf("%d tensors", len(want))
	}
	for _, name := range []string{"zip.bin", "protocol4.bin", "bare.bin", "dict.bin"} {
		got, err := convert(t, bytesOf(t, testdata(name)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestOddTensors: what the real torch.save wrote of tensors that share elements with themselves, or have none.
func TestOddTensors(t *testing.T) {
	want := parse(t, bytesOf(t, testdata("odd.safetensors")))
	if len(want) != 6 {
		t.Fatalf("%d tensors", len(want))
	}
	for _, name := range []string{"odd.bin", "odd-bare.bin"} {
		got, err := convert(t, bytesOf(t, testdata(name)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestTypes: tensors of types that Ollama does not take are neither damage nor code, and are not called either.
func TestTypes(t *testing.T) {
	for _, name := range []string{"float8.bin", "unsigned.bin", "complex.bin"} {
		_, err := Open([]string{testdata(name)})
		e := registry.AsError(err)
		if e == nil || e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != registry.FailureUnsupported || !strings.Contains(e.Failure.Hint, "transformers") ||
			!strings.Contains(e.Msg, "type") || strings.Contains(e.Msg, "not run") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRefuses: what the real torch.save wrote and is no model; nothing that it asks for is run.
func TestRefuses(t *testing.T) {
	for name, says := range map[string]string{
		"evil.bin": "posix.mkdir", "evil-bare.bin": "posix.mkdir", "module.bin": "torch.nn", "training.bin": "no tensor", "short.bin": "not whole",
		"want.safetensors": "torch.save",
	} {
		_, err := Open([]string{testdata(name)})
		refused(t, name, err, says)
	}
	if _, err := os.Stat("/tmp/the-pickle-was-run"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the code in the pickle was run: %v", err)
	}
	_, err := Open([]string{testdata("zip.bin"), "/nowhere/pytorch_model.bin"})
	if e := registry.AsError(err); e.Failure == nil || e.Failure.Kind != registry.FailureMissingFile {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := Open([]string{t.TempDir()}); registry.AsError(err).Failure == nil {
		t.Errorf("a folder: %v", err)
	}
	_, err = Open([]string{testdata("zip.bin"), testdata("dict.bin")})
	refused(t, "a tensor in two files", err, "zip.bin, too")
}

func refused(t *testing.T, name string, err error, says string) {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) || e.Code != registry.CodeLoadingFailed || e.Failure == nil || e.Failure.Kind != registry.FailureCorruptFile || e.Failure.Hint == "" {
		t.Errorf("%s: got %v", name, err)
	} else if !strings.Contains(e.Msg, says) {
		t.Errorf("%s: it says %q, without %q", name, e.Msg, says)
	}
}

// TestHostile: files that claim what they do not hold.
func TestHostile(t *testing.T) {
	good := pytorchtest.Tensor{Name: "w", Class: "FloatStorage", Shape: []int{2, 3}, Data: make([]byte, 24)}
	with := func(change func(*pytorchtest.Tensor)) []byte {
		x := good
		change(&x)
		return pytorchtest.Save(t, x)
	}
	pickled := func(p pytorchtest.Pickle) []byte {
		return pytorchtest.Archive(t, pytorchtest.Entry{Name: "archive/data.pkl", Data: []byte("\x80\x02" + p)}, pytorchtest.Entry{Name: "archive/data/0", Data: make([]byte, 24)})
	}
	loops := pytorchtest.Pickle("]q\x00h\x00a")
	laughs := pytorchtest.Pickle(")")
	for range 60 { // each holds the one before twice
		laughs += "q\x01h\x01\x86"
	}
	files := map[string]struct {
		file []byte
		says string
	}{
		"bytes that are not there":       {with(func(x *pytorchtest.Tensor) { x.Data = nil }), "not in its archive"},
		"a storage that is too short":    {with(func(x *pytorchtest.Tensor) { x.Data = make([]byte, 23) }), "do not hold"},
		"a storage of 2^60 elements":     {with(func(x *pytorchtest.Tensor) { x.Count = 1 << 60 }), "a storage that is none"},
		"a storage of 2^59 elements":     {with(func(x *pytorchtest.Tensor) { x.Count = 1 << 59 }), "do not hold"},
		"a storage below zero":           {with(func(x *pytorchtest.Tensor) { x.Count = -6 }), "a storage that is none"},
		"a shape beyond the storage":     {with(func(x *pytorchtest.Tensor) { x.Shape, x.Count = []int{2, 4}, 6 }), "beyond its storage"},
		"a shape that overflows":         {with(func(x *pytorchtest.Tensor) { x.Shape, x.Count, x.Strides = []int{1 << 40, 1 << 40}, 6, []int{0, 0} }), "more elements than"},
		"one element a million times":    {with(func(x *pytorchtest.Tensor) { x.Shape, x.Count, x.Strides = []int{1 << 20}, 6, []int{0} }), "more than 4 times"},
		"a shape below zero":             {with(func(x *pytorchtest.Tensor) { x.Shape, x.Count = []int{-2, 3}, 6 }), "below zero"},
		"an offset beyond the storage":   {with(func(x *pytorchtest.Tensor) { x.Offset = 1 }), "beyond its storage"},
		"an offset below zero":           {with(func(x *pytorchtest.Tensor) { x.Offset = -1 }), "outside of its storage"},
		"an offset of 2^62":              {with(func(x *pytorchtest.Tensor) { x.Offset = 1 << 62 }), "outside of its storage"},
		"strides beyond the storage":     {with(func(x *pytorchtest.Tensor) { x.Strides = []int{1 << 61, 1} }), "larger than its storage"},
		"strides below zero":             {with(func(x *pytorchtest.Tensor) { x.Strides = []int{-3, 1} }), "below zero"},
		"more strides than dimensions":   {with(func(x *pytorchtest.Tensor) { x.Strides = []int{3, 1, 1} }), "a shape and strides"},
		"a hundred dimensions":           {with(func(x *pytorchtest.Tensor) { x.Shape = slices.Repeat([]int{1}, 100) }), "a shape and strides"},
		"a class of another module":      {with(func(x *pytorchtest.Tensor) { x.Class = "hub.FloatStorage" }), "torch.hub.FloatStorage"},
		"no elements of too many":        {with(func(x *pytorchtest.Tensor) { x.Shape, x.Count = []int{0, -1}, 6 }), "below zero"},
		"no name":                        {with(func(x *pytorchtest.Tensor) { x.Name = "" }), "no name of a tensor"},
		"the name of the metadata":       {with(func(x *pytorchtest.Tensor) { x.Name = metadataKey }), "no name of a tensor"},
		"a name of 2 KB":                 {with(func(x *pytorchtest.Tensor) { x.Name = strings.Repeat("x", 2048) }), "no name of a tensor"},
		"a name that is not UTF-8":       {with(func(x *pytorchtest.Tensor) { x.Name = "\xff" }), "not UTF-8"},
		"a key that leads out":           {with(func(x *pytorchtest.Tensor) { x.Key = "../../../etc/passwd"; x.Data = nil }), "not in its archive"},
		"an entry that leads out":        {with(func(x *pytorchtest.Tensor) { x.Key = "../../x" }), "leads out of it"},
		"one storage as two":             {pytorchtest.Save(t, good, pytorchtest.Tensor{Name: "v", Class: "HalfStorage", Key: "0", Shape: []int{12}}), "two different ones"},
		"many names for one":             {manyNames(t), "more than 4 times"},
		"no tensors":                     {pickled("}."), "no tensors"},
		"a list":                         {pickled("]."), "a list"},
		"a list that holds itself":       {pickled(loops + "."), "a list"},
		"tuples of 2^60 values":          {pickled(laughs + "."), "a list"},
		"a value that was never kept":    {pickled("h\x05."), "never kept"},
		"nothing":                        {pickled("."), "a value is missing"},
		"a mark taken for a value":       {pickled("(."), "a value is missing"},
		"no mark":                        {pickled("t."), "a mark is missing"},
		"no end":                         {pickled("}"), "ends in the middle"},
		"a text of 4 GB":                 {pickled("X\xff\xff\xff\xff."), "longer than the file"},
		"a text of 1 MB in 10 bytes":     {pickled("X\x00\x00\x10\x00."), "ends in the middle"},
		"an instruction of text pickles": {pickled("I1\n."), "is none that builds a model"},
		"an object of a class":           {pickled("(ios\nsystem\n."), "an object"},
		"a registered extension":         {pickled("\x82\x01."), "an object"},
		"a module with its source":       {pickled(pytorchtest.Pickle("(").Text("module").Int(1) + "tQ."), "an object that belongs to"},
		"code, by two texts":             {pickled(pytorchtest.Pickle("").Text("os").Text("system") + "\x93."), "os.system"},
		"code that is only named":        {pickled("}" + pytorchtest.Pickle("").Global("builtins", "exec") + "0."), "builtins.exec"},
		"a name that looks allowed":      {pickled(pytorchtest.Pickle("").Global("torch.FloatStorage", "x") + "."), "torch.FloatStorage.x"},
		"a call of a storage":            {pickled(pytorchtest.Pickle("").Global("torch", "FloatStorage") + ")R."), "other values"},
		"a state of a number":            {pickled("K\x01}b."), "a state of something"},
		"compressed":                     {pytorchtest.Archive(t, pytorchtest.Entry{Name: "archive/data.pkl", Data: []byte("}."), Method: 8}), "compressed"},
		"no pickle":                      {pytorchtest.Archive(t, pytorchtest.Entry{Name: "archive/data/0"}), "no data.pkl"},
		"of a machine of the other kind": {pytorchtest.Archive(t, pytorchtest.Entry{Name: "a/data.pkl", Data: []byte("}.")}, pytorchtest.Entry{Name: "a/byteorder", Data: []byte("big")}), "order of bytes"},
		"an entry twice":                 {pytorchtest.Archive(t, pytorchtest.Entry{Name: "a/data.pkl", Data: []byte("}.")}, pytorchtest.Entry{Name: "a/data.pkl", Data: []byte("}.")}), "twice"},
		"another pickle":                 {[]byte("\x80\x02}."), "none that torch.save wrote"},
		"a page":                         {[]byte("<html>"), "torch.save"},
		"nothing at all":                 {nil, "torch.save"},
	}
	for name, c := range files {
		_, err := read(c.file)
		refused(t, name, err, c.says)
	}
}

func manyNames(t *testing.T) []byte {
	list := []pytorchtest.Tensor{{Name: "first", Class: "FloatStorage", Key: "0", Shape: []int{1 << 18}, Data: make([]byte, 1<<20)}}
	for i := range 8 {
		list = append(list, pytorchtest.Tensor{Name: fmt.Sprint("w", i), Class: "FloatStorage", Key: "0", Shape: []int{1 << 18}})
	}
	return pytorchtest.Save(t, list...)
}

// TestEveryCut: a file that was cut anywhere is not taken for the whole.
func TestEveryCut(t *testing.T) {
	for _, name := range []string{"zip.bin", "bare.bin"} {
		whole := bytesOf(t, testdata(name))
		for n := range len(whole) {
			if _, err := read(whole[:n]); err == nil {
				t.Fatalf("%s: %d of %d bytes were taken for the whole", name, n, len(whole))
			}
		}
	}
}

// TestLeavesNothing: an end in the middle, a cancellation and a name that is taken leave no file.
func TestLeavesNothing(t *testing.T) {
	var list []pytorchtest.Tensor
	for _, name := range []string{"a", "b"} {
		list = append(list, pytorchtest.Tensor{Name: name, Class: "FloatStorage", Shape: []int{1 << 19}, Data: make([]byte, 2<<20)})
	}
	folder := t.TempDir()
	first, second := filepath.Join(folder, "pytorch_model-00001-of-00002.bin"), filepath.Join(folder, "pytorch_model-00002-of-00002.bin")
	for path, part := range map[string][]pytorchtest.Tensor{first: list[:1], second: list[1:]} {
		if err := os.WriteFile(path, pytorchtest.Save(t, part...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	empty := func(name, dir string) {
		t.Helper()
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	open := func() *Checkpoint {
		c, err := Open([]string{first, second})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	c, dir := open(), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Write(ctx, dir, func(done int64) {
		if done > 3<<20 { // within the second file
			cancel()
		}
	})
	c.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	empty("cancelled", dir)

	c, dir = open(), t.TempDir()
	if err := os.Truncate(second, 1<<20); err != nil {
		t.Fatal(err)
	}
	_, err = c.Write(t.Context(), dir, func(int64) {})
	c.Close()
	refused(t, "cut while it is read", err, "ends before its tensor")
	empty("cut while it is read", dir)
}

// TestMemory: what is far larger than a block is converted in little memory, a transposed tensor, too.
func TestMemory(t *testing.T) {
	const rows, cols = 1 << 10, 2 << 10 // 8 MiB
	data := make([]byte, rows*cols*4)
	for i := range rows * cols {
		binary.LittleEndian.PutUint32(data[4*i:], uint32(i))
	}
	f, err := read(pytorchtest.Save(t,
		pytorchtest.Tensor{Name: "straight", Class: "FloatStorage", Key: "0", Shape: []int{rows, cols}, Data: data},
		pytorchtest.Tensor{Name: "transposed", Class: "FloatStorage", Key: "0", Count: rows * cols, Shape: []int{cols, rows}, Strides: []int{1, cols}}))
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t.Context(), func(int64) {})
	w.piece, w.block = 64<<10, 512<<10
	out := bytes.NewBuffer(make([]byte, 0, 2*len(data)+4096))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = w.all(out, f)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	// A run is allocated anew for each of the 16 blocks.
	if got := int64(after.TotalAlloc - before.TotalAlloc); got > w.block+16*w.piece+(256<<10) {
		t.Errorf("%d KiB were allocated to convert %d KiB", got>>10, 2*len(data)>>10)
	}
	got := parse(t, out.Bytes())
	if !bytes.Equal(got["straight"].Data, data) {
		t.Error("the straight tensor is another")
	}
	turned := got["transposed"].Data
	for i := range cols {
		for j := range rows {
			if n := binary.LittleEndian.Uint32(turned[4*(i*rows+j):]); n != uint32(j*cols+i) {
				t.Fatalf("transposed[%d, %d] is %d", i, j, n)
			}
		}
	}
}

// FuzzOpen: whatever the bytes, an error with its kind comes, or tensors that the file holds and that can be written.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"zip.bin", "protocol4.bin", "bare.bin", "evil.bin", "module.bin"} {
		f.Add(bytesOf(f, testdata(name)))
	}
	f.Fuzz(func(t *testing.T, b []byte) { fuzzed(t, b) })
}

// FuzzPickle is FuzzOpen without the archive around, which a changed byte nearly always breaks.
func FuzzPickle(f *testing.F) {
	for _, name := range []string{"zip.bin", "protocol4.bin", "evil.bin"} {
		f.Add(pickleOf(f, testdata(name)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries := []pytorchtest.Entry{{Name: "a/data.pkl", Data: b}}
		for _, key := range []string{"0", "1", "2", "3"} {
			entries = append(entries, pytorchtest.Entry{Name: "a/data/" + key, Data: make([]byte, 64)})
		}
		fuzzed(t, pytorchtest.Archive(t, entries...))
	})
}

func fuzzed(t *testing.T, b []byte) {
	got, err := convert(t, b)
	if err != nil {
		refused(t, "fuzzed", err, "")
		return
	}
	sum := 0
	for _, s := range got {
		sum += len(s.Data)
	}
	if sum > maxShared*len(b) {
		t.Errorf("%d bytes became %d", len(b), sum)
	}
}

// pickleOf returns the pickle of an archive.
func pickleOf(t testing.TB, file string) []byte {
	t.Helper()
	r, err := zip.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // only read from
	for _, e := range r.File {
		if filepath.Base(e.Name) != "data.pkl" {
			continue
		}
		in, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Fatalf("no pickle in %s", file)
	return nil
}
