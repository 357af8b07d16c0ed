package headers_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func scanONNX(b []byte) (headers.ONNX, error) {
	return headers.ScanONNX(bytes.NewReader(b), int64(len(b)))
}

func TestONNX(t *testing.T) {
	weights := []sourcetest.ONNXTensor{
		{Name: "a", DType: 10, Dims: []uint64{64, 64}, Location: "model.onnx_data", Data: make([]byte, 8192)},
		{Name: "b", DType: 10, Dims: []uint64{64, 64}, Location: "./weights/b.bin", Data: make([]byte, 8192)},
		{Name: "c", DType: 1, Dims: []uint64{300, 1000}, Data: make([]byte, 1_200_000)}, // longer than what is read at once
		{Name: "d", DType: 22, Dims: []uint64{64, 64}, Location: "model.onnx_data"},
		{Name: "scalar", DType: 7, Data: make([]byte, 8)},
	}
	whole := sourcetest.ONNX(weights...)
	got, err := scanONNX(whole)
	want := headers.ONNX{External: []registry.File{{Path: "model.onnx_data", Size: 8192}, {Path: "weights/b.bin", Size: 8192}}, Parameters: 3*4096 + 300_000 + 1, Bytes: 2*8192 + 2048 + 1_200_000 + 8, DType: "f32"}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	// In the attribute of a node, in a graph within a node, and in a sparse tensor.
	tensor := func(location string) []byte {
		entry := sourcetest.ProtoBytes(sourcetest.ProtoBytes(nil, 1, []byte("location")), 2, []byte(location))
		return sourcetest.ProtoNumber(sourcetest.ProtoBytes(sourcetest.ProtoNumber(nil, 2, 1), 13, entry), 14, 1)
	}
	node := func(attribute []byte) []byte {
		return sourcetest.ProtoBytes(nil, 1, sourcetest.ProtoBytes(nil, 5, attribute))
	}
	inner := sourcetest.ProtoBytes(nil, 5, tensor("of a graph within"))
	graph := node(sourcetest.ProtoBytes(nil, 5, tensor("of a node")))
	graph = append(graph, node(sourcetest.ProtoBytes(nil, 6, inner))...)
	graph = sourcetest.ProtoBytes(graph, 15, sourcetest.ProtoBytes(nil, 1, tensor("of a sparse tensor")))
	got, err = scanONNX(sourcetest.ProtoBytes(sourcetest.ProtoNumber(nil, 1, 8), 7, graph))
	if d := cmp.Diff([]registry.File{{Path: "of a graph within"}, {Path: "of a node"}, {Path: "of a sparse tensor"}}, got.External); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	small := sourcetest.ONNX(weights[0], weights[4])
	for n := range len(small) {
		if _, err := scanONNX(small[:n]); err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(small))
		}
	}
}

func TestONNXHostile(t *testing.T) {
	at := func(location string) []byte {
		return sourcetest.ONNX(sourcetest.ONNXTensor{Name: "a", DType: 1, Dims: []uint64{1}, Location: location})
	}
	deep := sourcetest.ProtoBytes(nil, 2, []byte("x"))
	for range 40 {
		deep = sourcetest.ProtoBytes(nil, 1, sourcetest.ProtoBytes(nil, 5, sourcetest.ProtoBytes(nil, 6, deep)))
	}
	model := func(graph []byte) []byte { return sourcetest.ProtoBytes(sourcetest.ProtoNumber(nil, 1, 8), 7, graph) }
	lies := append([]byte{8, 8, 7<<3 | 2}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)
	for name, tt := range map[string]struct {
		file  []byte
		words string
	}{
		"a location that leads out":   {at("../../etc/passwd"), "not below the model's folder"},
		"an absolute location":        {at("/etc/passwd"), "not below"},
		"a location with backslashes": {at(`..\secret`), "not below"},
		"a location of dots":          {at("."), "not below"},
		"no location":                 {at(""), ""},
		"a location that is long":     {at(string(bytes.Repeat([]byte("x"), 5000))), "no path is so long"},
		"a length of 2^64 - 1":        {lies, "half copied"},
		"graphs within graphs":        {model(deep), "nested more than"},
		"a shape that overflows":      {sourcetest.ONNX(sourcetest.ONNXTensor{DType: 1, Dims: []uint64{1 << 40, 1 << 40}}), "larger than any file"},
		"10,000 dimensions":           {sourcetest.ONNX(sourcetest.ONNXTensor{DType: 1, Dims: make([]uint64, 10_000)}), "dimensions"},
		"a number that never ends":    {append([]byte{8, 8}, bytes.Repeat([]byte{0xff}, 100)...), "10 bytes"},
		"a group":                     {[]byte{8, 8, 3<<3 | 3}, "unknown kind"},
		"a field without a number":    {[]byte{8, 8, 2, 0}, "without a number"},
		"no graph":                    {[]byte{8, 8}, "no graph"},
		"a part longer than its own":  {model([]byte{5<<3 | 2, 2, 2 << 3, 0xff, 1}), "longer than it says"},
		"an offset of 2^63 - 1": {sourcetest.ProtoBytes(nil, 7, sourcetest.ProtoBytes(nil, 5, sourcetest.ProtoBytes(sourcetest.ProtoBytes(nil, 13, []byte("\x0a\x08location\x12\x01x")), 13,
			[]byte("\x0a\x06offset\x12\x139223372036854775807")))), "no file is so large"},
		"a Git LFS pointer": {[]byte("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"},
		"empty":             {nil, "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scanONNX(tt.file)
			if tt.words == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if code := registry.CodeOf(err); code != registry.CodeInvalid && code != registry.CodeLoadingFailed {
				t.Fatalf("got %v", err)
			}
			words(t, err, tt.words)
		})
	}
	// A graph of millions of empty parts is left.
	if _, err := scanONNX(model(bytes.Repeat([]byte{1<<3 | 2, 0}, (1<<22)+1))); registry.CodeOf(err) != registry.CodeLoadingFailed {
		t.Errorf("got %v", err)
	}
}

// FuzzONNX: whatever the bytes, no panic, no name that leads out, and sums that make sense.
func FuzzONNX(f *testing.F) {
	f.Add(sourcetest.ONNX(sourcetest.ONNXTensor{Name: "a", DType: 10, Dims: []uint64{4, 4}, Location: "x.onnx_data"}, sourcetest.ONNXTensor{Name: "b", DType: 1, Dims: []uint64{2}, Data: make([]byte, 8)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := scanONNX(b)
		if err != nil {
			if registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		for _, f := range got.External {
			if name := f.Path; f.Size < 0 || name == "" || name[0] == '/' || name == ".." || len(name) > 2 && name[:3] == "../" {
				t.Fatalf("the location %q leads out", name)
			}
		}
		if got.Parameters < 0 || got.Bytes < 0 {
			t.Fatalf("senseless: %+v", got)
		}
	})
}

// TestReadONNX: a short graph is read, one that cannot be read keeps what its size says, and a long one is counted only when
// that is asked for.
func TestReadONNX(t *testing.T) {
	outside := sourcetest.ONNX(sourcetest.ONNXTensor{Name: "a", DType: 3, Dims: []uint64{64, 64}, Location: "model.onnx_data"})
	inside := sourcetest.ONNX(sourcetest.ONNXTensor{Name: "a", DType: 10, Dims: []uint64{1 << 10, 1 << 11}, Data: make([]byte, 4<<20)})
	files := map[string][]byte{"outside.onnx": outside, "inside.onnx": inside, "broken.onnx": append([]byte{8, 8}, bytes.Repeat([]byte{9}, 90)...),
		"config.json": []byte(`{"architectures": ["BertModel"], "model_type": "bert", "torch_dtype": "float32", "max_position_embeddings": 512}`)}
	open := func(name string) (headers.File, error) { return memory{bytes.NewReader(files[name])}, nil }
	read := func(name string, data ...registry.File) registry.Facts {
		t.Helper()
		f, err := headers.ReadONNX(registry.File{Path: name, Size: int64(len(files[name]))}, data, []registry.File{{Path: "config.json", Size: int64(len(files["config.json"]))}}, open)
		if err != nil || f.Architecture != "BertModel" || !f.Embedding {
			t.Fatalf("%+v, %v", f, err)
		}
		return f
	}
	if f := read("outside.onnx", registry.File{Path: "model.onnx_data", Size: 5000}); f.Parameters != 4096 || f.WeightBytes != 4096 || f.DType != "i8" {
		t.Errorf("a short graph: %+v", f)
	}
	if f := read("broken.onnx"); f.Parameters != 0 || f.WeightBytes != 92 {
		t.Errorf("a graph that cannot be read: %+v", f)
	}
	f := read("inside.onnx")
	if f.Parameters != 0 || f.WeightBytes != int64(len(inside)) {
		t.Errorf("a long graph: %+v", f)
	}
	headers.CountONNX(&f, registry.File{Path: "inside.onnx", Size: int64(len(inside))}, open)
	if f.Parameters != 2<<20 || f.WeightBytes != 4<<20 || f.DType != "f16" {
		t.Errorf("a long graph, counted: %+v", f)
	}
}

// memory is a file in memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }
