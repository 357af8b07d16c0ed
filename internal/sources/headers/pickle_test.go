package headers_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

// archive writes a zip as torch.save does: entries that are stored, the pickle first, then the tensors' bytes. The names
// of the entries come in pairs with their sizes.
func archive(t testing.TB, method uint16, entries ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(entries); i += 2 {
		e, err := w.CreateRaw(&zip.FileHeader{Name: entries[i].(string), Method: method,
			CompressedSize64: uint64(entries[i+1].(int)), UncompressedSize64: uint64(entries[i+1].(int))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(make([]byte, entries[i+1].(int))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pickled(b []byte, config string) map[string][]byte {
	return map[string][]byte{"config.json": []byte(config), "pytorch_model.bin": b, "vocab.txt": []byte("a")}
}

func TestPickles(t *testing.T) {
	whole := archive(t, zip.Store, "archive/data.pkl", 100, "archive/byteorder", 6, "archive/data/0", 8192, "archive/data/1", 128, "archive/version", 2)
	w, err := readFolder(pickled(whole, sourcetest.LlamaConfig), registry.FormatTransformersPT)
	if f := w.Facts; err != nil || !f.Pickles || f.WeightBytes != 8320 || f.DType != "bf16" || f.Parameters != 4160 || !f.Tokenizer || len(f.Notes) != 2 {
		t.Errorf("got %+v, %v", f, err)
	}
	for n := range len(whole) {
		if n > 300 && n < len(whole)-600 && n%53 != 0 {
			continue // tensors
		}
		if _, err := readFolder(pickled(whole[:n], sourcetest.LlamaConfig), registry.FormatTransformersPT); err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(whole))
		}
	}
	// Before PyTorch 1.6 it was a bare pickle.
	w, err = readFolder(pickled(append([]byte{0x80, 2}, make([]byte, 998)...), `{"torch_dtype":"float32"}`), registry.FormatTransformersPT)
	if f := w.Facts; err != nil || f.WeightBytes != 1000 || f.Parameters != 250 {
		t.Errorf("got %+v, %v", f, err)
	}
	// Another name than transformers looks for.
	files := pickled(whole, sourcetest.LlamaConfig)
	delete(files, "pytorch_model.bin")
	files["weights.pt"] = whole
	w, err = readFolder(files, registry.FormatTransformersPT)
	if err != nil || len(w.Files) != 1 || w.Files[0] != "weights.pt" {
		t.Errorf("got %+v, %v", w, err)
	}
}

func TestPicklesHostile(t *testing.T) {
	end := func(entries uint16, size, offset uint32) []byte {
		b := append([]byte("PK\x03\x04"), make([]byte, 100)...)
		b = append(b, "PK\x05\x06\x00\x00\x00\x00\x00\x00"...)
		b = binary.LittleEndian.AppendUint16(b, entries)
		b = binary.LittleEndian.AppendUint32(b, size)
		return append(binary.LittleEndian.AppendUint32(b, offset), 0, 0)
	}
	end64 := func(entries, size, offset, where uint64) []byte {
		b := append([]byte("PK\x03\x04"), make([]byte, 100)...)
		at := uint64(len(b))
		b = append(append(b, "PK\x06\x06"...), make([]byte, 28)...)
		for _, v := range []uint64{entries, size, offset} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		b = append(append(b, "PK\x06\x07"...), make([]byte, 4)...)
		b = binary.LittleEndian.AppendUint64(b, at+where)
		return append(append(b, 1, 0, 0, 0), end(0xffff, 0xffffffff, 0xffffffff)[104:]...)
	}
	for name, tt := range map[string]struct {
		file  []byte
		words string
	}{
		"a name that leads out":       {archive(t, zip.Store, "archive/data.pkl", 1, "archive/../../x", 1), "leads out"},
		"an absolute name":            {archive(t, zip.Store, "archive/data.pkl", 1, "/etc/passwd", 1), "leads out"},
		"compressed":                  {archive(t, zip.Deflate, "archive/data.pkl", 1), "is compressed"},
		"no pickle":                   {archive(t, zip.Store, "archive/data/0", 1), "no data.pkl"},
		"a directory outside":         {end(1, 46, 1<<31), "outside"},
		"a directory of 4 GB":         {end(65534, 1<<32-2, 0), "outside"},
		"entries that are not there":  {end(9, 0, 104), "damaged"},
		"2^63 entries":                {end64(1<<63, 0, 0, 0), "no model has so many"},
		"an offset of 2^64 - 1":       {end64(1, 46, 1<<64-1, 0), "outside"},
		"an end that lies elsewhere":  {end64(1, 46, 0, 1<<40), "outside"},
		"an end that is something":    {end64(1, 46, 0, 1), "not where it should be"},
		"something else than PyTorch": {[]byte("hello world, this is no pickle"), "not a PyTorch file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readFolder(pickled(tt.file, "{}"), registry.FormatTransformersPT)
			if code := registry.CodeOf(err); code != registry.CodeInvalid && code != registry.CodeLoadingFailed {
				t.Fatalf("got %v", err)
			}
			words(t, err, tt.words)
		})
	}
}

// FuzzPickle: whatever the bytes, no panic, no unbounded memory, and no more tensors than the file holds.
func FuzzPickle(f *testing.F) {
	f.Add(archive(f, zip.Store, "archive/data.pkl", 10, "archive/data/0", 64))
	f.Add(archive(f, zip.Deflate, "archive/data.pkl", 10))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, read := range []func(map[string][]byte, registry.Format) (headers.Weights, error){readFolder, sketchFolder} {
			w, err := read(pickled(b, sourcetest.LlamaConfig), registry.FormatTransformersPT)
			if err != nil && registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
			if err == nil && (w.Facts.WeightBytes < 0 || w.Facts.WeightBytes > int64(len(b))) {
				t.Fatalf("%d bytes hold tensors of %d", len(b), w.Facts.WeightBytes)
			}
		}
	})
}
