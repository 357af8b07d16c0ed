package headers_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func readGGUF(b []byte) (registry.Facts, error) {
	return headers.ReadGGUF(bytes.NewReader(b), int64(len(b)))
}

// wantError checks the code, the kind of failure ("" for none) and that the message holds the words.
func wantError(t *testing.T, err error, code registry.Code, kind registry.FailureKind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
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
}

func corrupt(t *testing.T, err error, words ...string) {
	t.Helper()
	wantError(t, err, registry.CodeLoadingFailed, registry.FailureCorruptFile, words...)
}

func TestGGUFFacts(t *testing.T) {
	got, err := readGGUF(sourcetest.TinyGGUF(1))
	if err != nil {
		t.Fatal(err)
	}
	want := registry.Facts{
		Format: registry.FormatGGUF, Architecture: "llama", Name: "Tiny", Licence: "apache-2.0",
		Parameters: 4160, WeightBytes: 2560 + 256, DType: "q4_1", Quantization: "Q4_1",
		ContextLength: 2048, Layers: 2, KVHeads: 2, KeyLength: 16, ValueLength: 16, ChatTemplate: true, Tokenizer: true,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// 2 layers × 100 tokens × 2 heads × 32 elements × 2 bytes.
	if kv := got.KVBytes(100, 2); kv != 25600 {
		t.Errorf("KVBytes = %d", kv)
	}
}

func TestGGUFArchitectures(t *testing.T) {
	base := func(arch string, more map[string]any) []byte {
		keys := map[string]any{
			"general.architecture": arch, arch + ".block_count": uint32(14), arch + ".embedding_length": uint32(640),
			arch + ".attention.head_count": uint32(4), arch + ".context_length": uint32(32768),
		}
		maps.Copy(keys, more)
		return sourcetest.GGUF(keys, sourcetest.LlamaTensors(0))
	}
	tests := map[string]struct {
		file []byte
		want func(*registry.Facts)
	}{
		"gemma3: five windowed, one full": {base("gemma3", map[string]any{
			"gemma3.attention.sliding_window": uint32(512), "gemma3.attention.head_count_kv": uint32(1),
			"gemma3.attention.key_length": uint32(256), "gemma3.attention.value_length": uint32(256)}),
			func(f *registry.Facts) {
				f.KVHeads, f.KeyLength, f.ValueLength, f.Window, f.WindowLayers = 1, 256, 256, 512, 12
			}},
		"gemma2: every second, window by default": {base("gemma2", nil),
			func(f *registry.Facts) { f.KVHeads, f.Window, f.WindowLayers = 4, 4096, 7 }},
		"smallthinker: the first of each four is full": {base("smallthinker", map[string]any{
			"smallthinker.attention.sliding_window": uint32(4096)}),
			func(f *registry.Facts) { f.KVHeads, f.Window, f.WindowLayers = 4, 4096, 10 }},
		"a pattern written layer by layer": {base("gemma3n", map[string]any{
			"gemma3n.attention.sliding_window":         uint32(512),
			"gemma3n.attention.sliding_window_pattern": []bool{true, false, true, true}}),
			func(f *registry.Facts) { f.KVHeads, f.Window, f.WindowLayers = 4, 512, 3 }},
		"llama ignores its window": {base("llama", map[string]any{"llama.attention.sliding_window": uint32(4096)}),
			func(f *registry.Facts) { f.KVHeads, f.Window = 4, 4096 }},
		"KV heads of each layer": {base("lfm2", map[string]any{
			"lfm2.attention.head_count_kv": []int32{0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0}}),
			func(f *registry.Facts) {
				f.KVLayers, f.KVHeads = 5, 8
				f.Notes = []string{"9 of 14 layers keep no keys and values of their own."}
			}},
		"an encoder": {base("nomic-bert", map[string]any{"nomic-bert.pooling_type": uint32(1)}),
			func(f *registry.Facts) { f.KVHeads, f.Embedding = 4, true }},
		"an embedding model that is a decoder": {base("qwen3", map[string]any{"qwen3.pooling_type": uint32(3)}),
			func(f *registry.Facts) { f.KVHeads, f.Embedding = 4, true }},
		"numbers that overflow together": {base("llama", map[string]any{
			"llama.block_count": uint32(math.MaxInt32), "llama.attention.head_count_kv": uint32(math.MaxInt32)}),
			func(f *registry.Facts) {
				f.Layers, f.KeyLength, f.ValueLength = 0, 0, 0
				f.Notes = []string{"The header's numbers of layers, heads and lengths make no sense together and are not used."}
			}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readGGUF(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			want := registry.Facts{Format: registry.FormatGGUF, Parameters: 4160, WeightBytes: 2816, DType: "q4_1", Quantization: "Q4_1",
				Architecture: got.Architecture, ContextLength: 32768, Layers: 14, KeyLength: 160, ValueLength: 160}
			tt.want(&want)
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestGGUFSplit(t *testing.T) {
	files := sourcetest.SplitGGUF("m", 1)
	var shards []headers.GGUF
	for _, name := range slices.Sorted(maps.Keys(files)) {
		g, err := headers.ScanGGUF(bytes.NewReader(files[name]), int64(len(files[name])))
		if err != nil {
			t.Fatal(err)
		}
		shards = append(shards, g)
	}
	f, err := headers.CombineGGUF(shards)
	if err != nil || f.Parameters != 4160 || f.WeightBytes != 2816 {
		t.Errorf("got %+v, %v", f, err)
	}
	_, err = headers.CombineGGUF(shards[:1])
	wantError(t, err, registry.CodeInvalid, "", "shard 1 of 2")
	_, err = headers.CombineGGUF([]headers.GGUF{shards[0], shards[0]})
	wantError(t, err, registry.CodeInvalid, "", "mixed up")
	whole, err := headers.ScanGGUF(bytes.NewReader(sourcetest.TinyGGUF(1)), int64(len(sourcetest.TinyGGUF(1))))
	if err != nil {
		t.Fatal(err)
	}
	_, err = headers.CombineGGUF([]headers.GGUF{whole, shards[1]})
	wantError(t, err, registry.CodeInvalid, "", "1 shards, but 2")
}

// TestGGUFTruncatedAnywhere cuts a good file at every length: each is refused, most say how much is missing.
func TestGGUFTruncatedAnywhere(t *testing.T) {
	whole := sourcetest.TinyGGUF(1)
	for n := range len(whole) {
		_, err := readGGUF(whole[:n])
		if err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(whole))
		}
		if n >= 4 {
			corrupt(t, err, "half copied")
		}
	}
	_, err := readGGUF(whole[:len(whole)-100])
	corrupt(t, err, "100 bytes are missing")
}

// header starts a GGUF file with counts that may lie.
func header(tensors, keys uint64, rest ...any) []byte {
	var b bytes.Buffer
	b.WriteString("GGUF")
	for _, v := range append([]any{uint32(3), tensors, keys}, rest...) {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	b.Write(make([]byte, 4096))
	return b.Bytes()
}

func TestGGUFHostile(t *testing.T) {
	tensor := func(name string, dims uint32, shape []uint64, kind uint32, offset uint64) []any {
		return []any{uint64(len(name)), name, dims, shape, kind, offset}
	}
	tests := map[string]struct {
		file  []byte
		words string
	}{
		"2^40 keys":                     {header(0, 1<<40), "at byte 16"},
		"2^63 tensors":                  {header(1<<63, 0), "at byte 8"},
		"a key of 2^63 bytes":           {header(0, 1, uint64(1<<63)), "at byte 24"},
		"a key of no bytes":             {header(0, 1, uint64(0)), "at byte 24"},
		"a text of 2^63 bytes":          {header(0, 1, uint64(1), "a", uint32(8), uint64(1<<63)), "byte 45"},
		"a text a little too long":      {header(0, 1, uint64(1), "a", uint32(8), uint64(5000)), "5000 bytes"},
		"an array of 2^62 u64":          {header(0, 1, uint64(1), "a", uint32(9), uint32(10), uint64(1<<62)), "can hold"},
		"an array of 2^63 texts":        {header(0, 1, uint64(1), "a", uint32(9), uint32(8), uint64(1<<63)), "can hold"},
		"an array of 2^40 bytes":        {header(0, 1, uint64(1), "a", uint32(9), uint32(0), uint64(1<<40)), "takes"},
		"an array in an array":          {header(0, 1, uint64(1), "a", uint32(9), uint32(9), uint64(1)), "holds arrays"},
		"a type that does not exist":    {header(0, 1, uint64(1), "a", uint32(99)), "unknown type 99"},
		"a key twice":                   {header(0, 2, uint64(1), "a", uint32(7), uint8(1), uint64(1), "a", uint32(7), uint8(1)), "twice"},
		"an alignment of 3":             {header(0, 1, uint64(17), "general.alignment", uint32(4), uint32(3)), "power of 2"},
		"an alignment of 0":             {header(0, 1, uint64(17), "general.alignment", uint32(4), uint32(0)), "power of 2"},
		"a tensor of 5 dimensions":      {header(1, 0, tensor("t", 5, make([]uint64, 5), 0, 0)...), "dimensions"},
		"a shape that overflows":        {header(1, 0, tensor("t", 2, []uint64{1 << 62, 1 << 62}, 0, 0)...), "larger than any file"},
		"a negative dimension":          {header(1, 0, tensor("t", 1, []uint64{1 << 63}, 0, 0)...), "larger than any file"},
		"bytes that overflow":           {header(1, 0, tensor("t", 1, []uint64{1 << 61}, 0, 0)...), "larger than any file"},
		"a row of half a block":         {header(1, 0, tensor("t", 1, []uint64{33}, 3, 0)...), "multiple of 32"},
		"a tensor outside":              {header(1, 0, tensor("t", 1, []uint64{4}, 0, 1<<20)...), "where 0 is due"},
		"an offset beyond everything":   {header(1, 0, tensor("t", 1, []uint64{4}, 0, 1<<63)...), "outside"},
		"two tensors in one place":      {header(2, 0, append(tensor("t", 1, []uint64{4}, 0, 0), tensor("u", 1, []uint64{4}, 0, 0)...)...), "overlaps"},
		"a gap between tensors":         {header(2, 0, append(tensor("t", 1, []uint64{4}, 0, 0), tensor("u", 1, []uint64{4}, 0, 64)...)...), "gap"},
		"a tensor twice":                {header(2, 0, append(tensor("t", 1, []uint64{4}, 0, 0), tensor("t", 1, []uint64{4}, 0, 32)...)...), "twice"},
		"a tensor's name of 2^60":       {header(1, 0, uint64(1<<60)), "at byte 24"},
		"a tensor larger than the file": {header(1, 0, tensor("t", 1, []uint64{1 << 40}, 0, 0)...), "are missing"},
		"nothing but zeros":             {make([]byte, 4096), "zeros"},
		"empty":                         {nil, "empty"},
		"a Git LFS pointer":             {[]byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "git lfs pull"},
		"a web page":                    {[]byte("<!DOCTYPE html><title>404</title>"), "web page"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			allocated := testing.AllocsPerRun(1, func() {
				_, err := readGGUF(tt.file)
				corrupt(t, err, tt.words)
				n := serve(map[string][]byte{"m.gguf": tt.file})
				_, err = headers.SketchGGUF(n.list(), n.open, headers.Hints{})
				corrupt(t, err, tt.words)
			})
			if allocated > 1000 {
				t.Errorf("%v allocations for a file of %d bytes", allocated, len(tt.file))
			}
		})
	}
}

func TestGGUFIsSomethingElse(t *testing.T) {
	keys := sourcetest.LlamaKeys()
	keys["general.type"] = "adapter"
	big := sourcetest.TinyGGUF(0)
	binary.BigEndian.PutUint32(big[4:], 3)
	old := sourcetest.TinyGGUF(0)
	binary.LittleEndian.PutUint32(old[4:], 1)
	newer := header(1, 0, uint64(1), "t", uint32(1), uint64(4), uint32(999), uint64(0))
	nameless := sourcetest.LlamaKeys()
	delete(nameless, "general.architecture")
	for word, file := range map[string][]byte{
		"adapter":              sourcetest.GGUF(keys, sourcetest.LlamaTensors(0)),
		"big-endian":           big,
		"version 1":            old,
		"type 999":             newer,
		"general.architecture": sourcetest.GGUF(nameless, sourcetest.LlamaTensors(0)),
		"no tensors":           sourcetest.GGUF(sourcetest.LlamaKeys(), nil),
		"safetensors":          sourcetest.Safetensors(sourcetest.STTensor{Name: "a", DType: "U8", Shape: []int64{1}, Data: []byte{1}}),
		"zip archive":          []byte("PK\x03\x04aaaaaaaaaaaa"),
		`"hello wo"`:           []byte("hello world"),
	} {
		_, err := readGGUF(file)
		wantError(t, err, registry.CodeInvalid, "", word)
	}
}

type brokenReader struct{ err error }

func (b brokenReader) ReadAt([]byte, int64) (int, error) { return 0, b.err }

func TestReadErrors(t *testing.T) {
	for _, read := range []func(io.ReaderAt) error{
		func(r io.ReaderAt) error { _, err := headers.ReadGGUF(r, 1000); return err },
		func(r io.ReaderAt) error { _, err := headers.ReadSafetensors(r, 1000); return err },
	} {
		wantError(t, read(brokenReader{errors.New("input/output error")}), registry.CodeUnavailable, "", "input/output error", "byte 0")
		corrupt(t, read(brokenReader{io.EOF}), "became shorter")
		if err := read(brokenReader{context.Canceled}); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled read became %v", err)
		}
		mine := registry.Errorf(registry.CodeNotFound, "mine")
		if err := read(brokenReader{mine}); !errors.Is(err, mine) {
			t.Errorf("an error of the reader became %v", err)
		}
	}
}

// realGGUF names a file with real weights: the one that the environment names, or the one that scripts/setup has fetched. A
// machine without fails, so that nobody believes that this has passed; -short and LLMM_TEST_NO_ENGINE=1 say that it is meant.
func realGGUF(t *testing.T) string {
	t.Helper()
	if name := os.Getenv("LLMM_TEST_GGUF"); name != "" {
		return name
	}
	if cache, err := os.UserCacheDir(); err == nil {
		if found, err := filepath.Glob(filepath.Join(cache, "llmm", "models", "*.gguf")); err == nil && len(found) > 0 {
			return slices.Max(found)
		}
	}
	const msg = "no GGUF with real weights: run scripts/setup (make test does), or set LLMM_TEST_GGUF"
	if testing.Short() || os.Getenv("LLMM_TEST_NO_ENGINE") == "1" {
		t.Skip(msg)
	}
	t.Fatal(msg + "; -short or LLMM_TEST_NO_ENGINE=1 skips this")
	return ""
}

// TestRealGGUF reads a real file.
func TestRealGGUF(t *testing.T) {
	name := realGGUF(t)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	got, err := headers.ReadGGUF(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", got)
	if got.Parameters < 1e6 || got.WeightBytes > info.Size() || got.WeightBytes < info.Size()*9/10 || got.Architecture == "" ||
		got.ContextLength == 0 || got.KVBytes(1, 2) == 0 || !got.Tokenizer {
		t.Errorf("the facts of a real file make no sense: %+v", got)
	}
	_, err = headers.ReadGGUF(f, info.Size()-1)
	corrupt(t, err, "1 bytes are missing")

	// From the first read alone: the same, but for what stands behind the vocabulary.
	sketched, err := headers.SketchGGUF([]registry.File{{Path: name, Size: info.Size()}}, func(name string) (headers.File, error) { return os.Open(name) }, headers.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", sketched)
	off := float64(sketched.Parameters)/float64(got.Parameters) - 1
	bytesOff := float64(sketched.WeightBytes)/float64(got.WeightBytes) - 1
	if off < -0.15 || off > 0.15 || bytesOff < 0 || bytesOff > 0.05 {
		t.Errorf("%d parameters in %d bytes, want %d in %d", sketched.Parameters, sketched.WeightBytes, got.Parameters, got.WeightBytes)
	}
	sketched.Parameters, sketched.WeightBytes, sketched.ChatTemplate, sketched.Notes = got.Parameters, got.WeightBytes, got.ChatTemplate, got.Notes
	if d := cmp.Diff(got, sketched); d != "" {
		t.Error(d)
	}
}

func readST(b []byte) (headers.Safetensors, error) {
	return headers.ReadSafetensors(bytes.NewReader(b), int64(len(b)))
}

func TestSafetensors(t *testing.T) {
	got, err := readST(sourcetest.Safetensors(
		sourcetest.STTensor{Name: "b", DType: "F32", Shape: []int64{2, 3}, Data: make([]byte, 24)},
		sourcetest.STTensor{Name: "a", DType: "BF16", Shape: []int64{5}, Data: make([]byte, 10)},
		sourcetest.STTensor{Name: "scalar", DType: "I64", Shape: []int64{}, Data: make([]byte, 8)},
	))
	want := []headers.Tensor{
		{Name: "b", DType: "f32", Elements: 6, Offset: 0, Bytes: 24},
		{Name: "a", DType: "bf16", Elements: 5, Offset: 24, Bytes: 10},
		{Name: "scalar", DType: "i64", Elements: 1, Offset: 34, Bytes: 8},
	}
	if d := cmp.Diff(want, got.Tensors); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestSafetensorsHostile(t *testing.T) {
	const ok = `{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`
	raw := sourcetest.RawSafetensors
	huge := binary.LittleEndian.AppendUint64(nil, 1<<63)
	tests := map[string]struct {
		file  []byte
		words string
	}{
		"a header of 2^63 bytes":     {append(huge, "{}  "...), "at byte 0"},
		"a header beyond the file":   {append(binary.LittleEndian.AppendUint64(nil, 1000), "{}"...), "998 bytes are missing"},
		"half copied":                {raw(ok, make([]byte, 3)), "1 bytes are missing"},
		"too long":                   {raw(ok, make([]byte, 5)), "1 bytes follow"},
		"no JSON":                    {raw(`{"a":{`, nil), "not the JSON"},
		"a list":                     {raw(`{"a":[]}`, nil), "not the JSON"},
		"a negative dimension":       {raw(`{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}`, make([]byte, 4)), "not the JSON"},
		"a shape that overflows":     {raw(`{"a":{"dtype":"U8","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]}}`, make([]byte, 4)), "larger than any file"},
		"a shape that is too large":  {raw(`{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,4]}}`, make([]byte, 4)), "need 5"},
		"offsets the wrong way":      {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}`, make([]byte, 4)), "data_offsets"},
		"one offset":                 {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[4]}}`, make([]byte, 4)), "data_offsets"},
		"an offset of 2^64-1":        {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551611,18446744073709551615]}}`, make([]byte, 4)), "data_offsets"},
		"a tensor twice":             {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}`, make([]byte, 8)), "twice"},
		"tensors that overlap":       {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, make([]byte, 6)), "overlap"},
		"a hole":                     {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}`, make([]byte, 10)), "nothing fills"},
		"something after the header": {raw(ok+"x", make([]byte, 4)), "follows"},
		"metadata that is no text":   {raw(`{"__metadata__":{"a":1}}`, nil), "not the JSON"},
		"nested without end":         {raw(`{"a":`+strings.Repeat("[", 100_000), nil), "not the JSON"},
		"40 dimensions":              {raw(`{"a":{"dtype":"U8","shape":[`+strings.Repeat("1,", 40)+`1],"data_offsets":[0,1]}}`, make([]byte, 1)), "41 dimensions"},
		"zeros":                      {make([]byte, 100), "zeros"},
		"a Git LFS pointer":          {[]byte("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := readST(tt.file)
			corrupt(t, err, tt.words)
		})
	}
	_, err := readST(raw(`{"a":{"dtype":"Q1","shape":[4],"data_offsets":[0,4]}}`, make([]byte, 4)))
	wantError(t, err, registry.CodeInvalid, "", `"Q1"`)
	_, err = readST(sourcetest.TinyGGUF(0))
	wantError(t, err, registry.CodeInvalid, "", "set model_format to gguf")
}

func TestSafetensorsTruncatedAnywhere(t *testing.T) {
	whole := sourcetest.SafetensorsFolder(1)["model-00001-of-00002.safetensors"]
	for n := range len(whole) {
		if _, err := readST(whole[:n]); err == nil {
			t.Fatalf("%d of %d bytes were taken for the whole", n, len(whole))
		}
	}
}

// sane says what makes no sense in facts that were believed, "" when nothing.
func sane(f registry.Facts) string {
	switch kv := f.KVBytes(registry.MaxContext, 4); {
	case kv < 0 || kv > 1<<56:
		return fmt.Sprintf("a cache of %d bytes", kv)
	case f.StateBytes < 0 || f.StateBytes > 1<<56:
		return "the state"
	case f.Layers < 0 || f.KVLayers < 0 || f.KVLayers > f.Layers || f.WindowLayers < 0 || f.WindowLayers > f.Layers:
		return "the layers"
	case f.Parameters < 0 || f.ActiveParameters < 0 || f.ActiveParameters > f.Parameters || f.WeightBytes < 0:
		return "the parameters"
	}
	return ""
}

// FuzzGGUF: whatever the bytes, no panic, and what is accepted is consistent with the size of the file.
func FuzzGGUF(f *testing.F) {
	// Little data: the fuzzer would spend its time on shortening weights, which nobody reads.
	f.Add(sourcetest.GGUF(sourcetest.LlamaKeys(), sourcetest.LlamaTensors(1)[1:]))
	f.Add(sourcetest.SplitGGUF("m", 1)["m-00002-of-00002.gguf"])
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := headers.ScanGGUF(bytes.NewReader(b), int64(len(b)))
		facts, err2 := readGGUF(b)
		for _, err := range []error{err, err2} {
			if err != nil && registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
		}
		if err != nil && err2 == nil {
			t.Fatalf("read what cannot be scanned: %v", err)
		}
		n := serve(map[string][]byte{"m.gguf": b})
		sketched, err3 := headers.SketchGGUF(n.list(), n.open, headers.Hints{})
		if err3 != nil && registry.CodeOf(err3) == registry.CodeInternal {
			t.Fatalf("an error without a code: %v", err3)
		}
		if err3 == nil && sane(sketched) != "" {
			t.Fatalf("%s: %+v", sane(sketched), sketched)
		}
		if err2 != nil {
			return
		}
		if facts.WeightBytes < 0 || facts.WeightBytes > int64(len(b)) || facts.Parameters < 0 || len(g.Tensors) == 0 {
			t.Fatalf("%d bytes hold weights of %d", len(b), facts.WeightBytes)
		}
		if why := sane(facts); why != "" {
			t.Fatalf("%s: %+v", why, facts)
		}
	})
}

// FuzzSafetensors: the same.
func FuzzSafetensors(f *testing.F) {
	f.Add(sourcetest.SafetensorsFolder(1)["model-00002-of-00002.safetensors"])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readST(b)
		if err != nil {
			if registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		sum := s.DataOffset
		for _, x := range s.Tensors {
			sum += x.Bytes
		}
		if sum != int64(len(b)) {
			t.Fatalf("%d bytes are described, %d are there", sum, len(b))
		}
	})
}

// FuzzConfig: whatever a config.json says, the facts are no nonsense.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(sourcetest.LlamaConfig))
	f.Add([]byte(`{"model_type":"jamba","num_hidden_layers":8,"hidden_size":64,"num_attention_heads":4,"attn_layer_period":4,"mamba_d_state":16,"mamba_d_conv":4,"num_experts":4,"num_experts_per_tok":2}`))
	f.Add([]byte(`{"num_hidden_layers":4,"num_attention_heads":4,"kv_lora_rank":512,"qk_rope_head_dim":64,"hybrid_override_pattern":"M*-M","ssm_state_size":8,"quantization_config":{"quant_method":"awq","bits":4}}`))
	f.Add([]byte(`{"num_hidden_layers":4,"num_attention_heads":4,"head_dim":8,"sliding_window":9,"hybrid_layer_pattern":[0,1],"swa_head_dim":16,"block_configs":[{"attention":{"n_heads_in_group":2}}],"num_kv_shared_layers":1}`))
	f.Add([]byte(`{"text_config": {"num_hidden_layers": 6, "sliding_window": 4, "layer_types": ["sliding_attention", "linear_attention"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		files := sourcetest.SafetensorsFolder(1)
		files["config.json"] = b
		w, err := readFolder(files, registry.FormatSafetensors)
		if err != nil {
			if registry.CodeOf(err) == registry.CodeInternal {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		if why := sane(w.Facts); why != "" {
			t.Fatalf("%s: %+v", why, w.Facts)
		}
	})
}

type closer struct{ *bytes.Reader }

func (closer) Close() error { return nil }

func readFolder(files map[string][]byte, format registry.Format) (headers.Weights, error) {
	var list []registry.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, registry.File{Path: name, Size: int64(len(files[name]))})
	}
	return headers.ReadFolder(list, format, func(name string) (headers.File, error) {
		b, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("%s was opened and is not there", name)
		}
		return closer{bytes.NewReader(b)}, nil
	})
}
