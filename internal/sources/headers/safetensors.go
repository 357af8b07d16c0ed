package headers

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Limits on a safetensors header. The first is the reference implementation's own.
const (
	MaxSafetensorsHeader  = 100_000_000 // bytes of JSON
	maxSafetensorsTensors = 1 << 18     // in one file; the largest models have some 100,000 in all their shards
	maxSafetensorsDims    = 32
)

// Safetensors is the header of one safetensors file. Tensors are in the order in which they lie in the file.
type Safetensors struct {
	Tensors    []Tensor
	DataOffset int64
}

// safetensorsBits are the bits of one element of each type; see Dtype in safetensors/src/tensor.rs, 0.6.
var safetensorsBits = map[string]int64{
	"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
	"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
	"C64": 64, "F64": 64, "I64": 64, "U64": 64,
}

// ReadSafetensors reads the header of one safetensors file of size bytes and checks that its tensors fill the file
// exactly, without holes and overlaps, as the format demands.
func ReadSafetensors(r io.ReaderAt, size int64) (Safetensors, error) {
	var s Safetensors
	start, err := sniff(r, size)
	if err != nil {
		return s, err
	}
	n, err := headerLength(start, size)
	if err != nil {
		return s, err
	}
	s.DataOffset = 8 + n
	if s.Tensors, err = readTensorList(r, n); err != nil {
		return s, err
	}
	return s, s.fills(size)
}

// headerLength returns the length of the JSON at the start of a safetensors file of size bytes.
func headerLength(start []byte, size int64) (int64, error) {
	if !looksLikeSafetensors(start) {
		if len(start) >= 9 && start[8] == '{' {
			return 0, corruptAt(0, "the header claims to be %d bytes long; at most %d are allowed", binary.LittleEndian.Uint64(start), MaxSafetensorsHeader)
		}
		return 0, notWeights(start, "safetensors")
	}
	n := int64(min(binary.LittleEndian.Uint64(start), MaxSafetensorsHeader))
	if 8+n > size {
		return 0, truncated(8+n, size)
	}
	return n, nil
}

// fills checks that the tensors fill a file of size bytes exactly.
func (s Safetensors) fills(size int64) error {
	end, err := checkLayout(s.Tensors)
	if err != nil {
		return err
	}
	switch need := s.DataOffset + end; {
	case need > size:
		return truncated(need, size)
	case need < size:
		return corruptAt(need, "%d bytes follow the last tensor, which the format does not allow", size-need)
	}
	return nil
}

// heldReader remembers why reading stopped, because the JSON decoder may wrap it.
type heldReader struct {
	r   io.Reader
	err error
}

func (h *heldReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		h.err = err
	}
	return n, err
}

// readTensorList reads the n bytes of JSON from byte 8 on. When they end before the JSON does, the error is an
// unexpected end, and the tensors before it are returned.
func readTensorList(r io.ReaderAt, n int64) ([]Tensor, error) {
	held := &heldReader{r: io.NewSectionReader(r, 8, n)}
	dec := json.NewDecoder(held)
	fail := func(err error) error {
		if held.err != nil {
			return readError(held.err, 8+dec.InputOffset())
		}
		e := corruptAt(8+dec.InputOffset(), "the header is not the JSON it should be: %s", clean(err.Error()))
		e.Err = err
		return e
	}
	var list []Tensor
	if _, err := dec.Token(); err != nil { // the opening brace, which was seen already
		return list, fail(err)
	}
	seen := map[string]bool{}
	for dec.More() {
		at := 8 + dec.InputOffset()
		tok, err := dec.Token()
		if err != nil {
			return list, fail(err)
		}
		name, _ := tok.(string)
		if seen[name] {
			return nil, corruptAt(at, "the tensor %s is there twice", quote(name))
		}
		seen[name] = true
		if name == "__metadata__" {
			var metadata map[string]string
			if err := dec.Decode(&metadata); err != nil {
				return list, fail(err)
			}
			continue
		}
		if len(list) == maxSafetensorsTensors {
			return nil, corruptAt(at, "the header has more than %d tensors", maxSafetensorsTensors)
		}
		var info tensorInfo
		if err := dec.Decode(&info); err != nil {
			return list, fail(err)
		}
		t, err := info.tensor(name, at)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	if _, err := dec.Token(); err != nil {
		return list, fail(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, corruptAt(8+dec.InputOffset(), "something follows the header's JSON")
	}
	return list, nil
}

type tensorInfo struct {
	DType       string   `json:"dtype"`
	Shape       []uint64 `json:"shape"`
	DataOffsets []uint64 `json:"data_offsets"`
}

func (i tensorInfo) tensor(name string, at int64) (Tensor, error) {
	t := Tensor{Name: name, DType: strings.ToLower(i.DType), Elements: 1}
	bits, known := safetensorsBits[i.DType]
	if !known {
		return t, invalid("the tensor %s has the unknown dtype %s (at byte %d); a newer version may read it", quote(name), quote(i.DType), at)
	}
	if len(i.Shape) > maxSafetensorsDims {
		return t, corruptAt(at, "the tensor %s has %d dimensions; at most %d make sense", quote(name), len(i.Shape), maxSafetensorsDims)
	}
	for _, d := range i.Shape {
		if d > math.MaxInt64/64 || d > 0 && t.Elements > math.MaxInt64/64/int64(d) {
			return t, corruptAt(at, "the shape of the tensor %s is larger than any file", quote(name))
		}
		t.Elements *= int64(d)
	}
	t.Bytes = t.Elements * bits / 8
	if len(i.DataOffsets) != 2 || i.DataOffsets[1] < i.DataOffsets[0] || i.DataOffsets[1] > math.MaxInt64/2 {
		return t, corruptAt(at, "the tensor %s has no sensible data_offsets", quote(name))
	}
	t.Offset = int64(min(i.DataOffsets[0], math.MaxInt64))
	if got := int64(min(i.DataOffsets[1], math.MaxInt64)) - t.Offset; got != t.Bytes || t.Elements*bits%8 != 0 {
		return t, corruptAt(at, "the tensor %s takes %d bytes, but its shape and dtype need %d", quote(name), got, t.Bytes)
	}
	return t, nil
}

// checkLayout sorts the tensors by place and returns where the last one ends.
func checkLayout(list []Tensor) (int64, error) {
	slices.SortFunc(list, func(a, b Tensor) int {
		if a.Offset != b.Offset {
			return cmp.Compare(a.Offset, b.Offset)
		}
		if a.Bytes != b.Bytes {
			return cmp.Compare(a.Bytes, b.Bytes)
		}
		return strings.Compare(a.Name, b.Name)
	})
	var end int64
	for i, t := range list {
		switch {
		case t.Offset < end:
			return 0, Corrupt(copyAgain, "the tensors %s and %s overlap at offset %d of the data", quote(list[i-1].Name), quote(t.Name), t.Offset)
		case t.Offset > end:
			return 0, Corrupt(copyAgain, "nothing fills the data between offset %d and %d, before the tensor %s", end, t.Offset, quote(t.Name))
		}
		end += t.Bytes
	}
	return end, nil
}

// index is a safetensors or PyTorch index file: which tensor is in which shard.
type index struct {
	Metadata  any               `json:"metadata"`
	WeightMap map[string]string `json:"weight_map"`
}

// total returns a number of the metadata, 0 when it is not there or makes no sense: total_size, the bytes of all tensors,
// or total_parameters, which newer versions of transformers write.
func (i index) total(name string) int64 {
	m, _ := i.Metadata.(map[string]any)
	n, ok := m[name].(float64)
	if !ok || !(n >= 0 && n < 1<<60) {
		return 0
	}
	return int64(n)
}

// shards returns the files that the index names, sorted, and refuses names that lead out of the folder.
func (i index) shards() ([]string, error) {
	files := map[string]bool{}
	for _, file := range i.WeightMap {
		if file == "" || strings.ContainsAny(file, "/\\\x00") || file == "." || file == ".." {
			return nil, invalid("it names the file %s, which is not a plain name in this folder", quote(file))
		}
		files[file] = true
	}
	if len(files) == 0 {
		return nil, Corrupt(copyAgain, "its weight_map names no file")
	}
	names := make([]string, 0, len(files))
	for f := range files {
		names = append(names, f)
	}
	slices.Sort(names)
	return names, nil
}

// readJSON reads a small JSON file whole into v.
func readJSON(r io.ReaderAt, size, limit int64, v any) error {
	if size > limit {
		return registry.Errorf(registry.CodeInvalid, "the file has %d bytes; more than %d make no sense for it", size, limit)
	}
	buf := make([]byte, size)
	if err := readFull(r, buf, 0); err != nil {
		return err
	}
	if err := json.Unmarshal(buf, v); err != nil {
		var at *json.SyntaxError
		offset := int64(0)
		if errors.As(err, &at) {
			offset = at.Offset
		}
		return corruptAt(offset, "the file is not valid JSON: %s", clean(err.Error()))
	}
	return nil
}
