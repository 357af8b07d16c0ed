package headers

import (
	"encoding/binary"
	"io"
	"math"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Limits on a GGUF header. The largest real ones (vocabularies of 260,000 tokens with merges) take about 15 MiB.
const (
	MaxGGUFHeader  = 256 << 20 // bytes before the weights
	maxGGUFKeys    = 1 << 14
	maxGGUFTensors = 1 << 17
	maxGGUFKey     = 65535 // bytes; the specification's own limit
	maxGGUFName    = 63    // bytes; GGML_MAX_NAME less its terminator
	maxGGUFDims    = 4     // GGML_MAX_DIMS
	maxKeptString  = 4096  // bytes of a value that are kept
	maxKeptArray   = 4096  // elements of an array of numbers that are kept
)

// GGUF is the header of one GGUF file.
type GGUF struct {
	Type       string // general.type: model, adapter, mmproj, imatrix; model when not given
	SplitNo    int    // from 0
	SplitCount int    // 0 or 1 when the model is one file
	Tensors    []Tensor
	DataOffset int64 // where the weights begin
	values     map[string]ggufValue
}

// ggufValue is one value of the header, as much of it as facts need.
type ggufValue struct {
	kind uint32
	num  int64   // of integers and bools
	text string  // of strings, clipped
	list []int64 // of short arrays of integers and bools
	size uint64  // bytes of a string, elements of an array
}

// The types of a value; see docs/gguf.md of ggml.
const (
	kindString = 8
	kindArray  = 9
)

// ggufSizes are the bytes of each type of value, 0 for those of no fixed size.
var ggufSizes = [...]uint64{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, kindString: 0, kindArray: 0, 10: 8, 11: 8, 12: 8}

// ReadGGUF reads the facts of a model that is one GGUF file of size bytes, and checks that the file is complete.
// A shard of a split model is refused: read each with ScanGGUF and join them with CombineGGUF.
func ReadGGUF(r io.ReaderAt, size int64) (registry.Facts, error) {
	g, err := ScanGGUF(r, size)
	if err != nil {
		return registry.Facts{}, err
	}
	return CombineGGUF([]GGUF{g})
}

// ScanGGUF reads the header of one GGUF file and checks, as the engine will, that its tensors lie one after the other
// and that the file reaches to the end of the last.
func ScanGGUF(r io.ReaderAt, size int64) (GGUF, error) {
	g := GGUF{Type: "model", values: map[string]ggufValue{}}
	start, err := sniff(r, size)
	if err != nil {
		return g, err
	}
	if len(start) < 4 || string(start[:4]) != "GGUF" {
		return g, notWeights(start, "GGUF")
	}
	c := &cursor{r: r, size: size, limit: MaxGGUFHeader, pos: 4}
	err = g.scan(c)
	return g, err
}

// scan reads the header behind its first four bytes.
func (g *GGUF) scan(c *cursor) error {
	version, err := c.u32("the version")
	if err != nil {
		return err
	}
	switch {
	case version&0xffff == 0:
		return invalid("this GGUF file is big-endian (version %#x at byte 4); convert it for this machine", version)
	case version < 2 || version > 3:
		return invalid("this GGUF file has version %d (at byte 4); versions 2 and 3 can be read", version)
	}
	tensors, err := c.u64("the number of tensors")
	if err != nil {
		return err
	}
	keys, err := c.u64("the number of keys")
	if err != nil {
		return err
	}
	if tensors > maxGGUFTensors {
		return corruptAt(8, "the header claims %d tensors; at most %d make sense", tensors, maxGGUFTensors)
	}
	if keys > maxGGUFKeys {
		return corruptAt(16, "the header claims %d keys; at most %d make sense", keys, maxGGUFKeys)
	}
	for range keys {
		if err := g.readKey(c); err != nil {
			return err
		}
	}
	if v, ok := g.values["general.type"]; ok && v.kind == kindString {
		g.Type = v.text
	}
	g.SplitNo, g.SplitCount = g.number("split.no"), g.number("split.count")
	return g.readTensors(c, int(tensors))
}

func (g *GGUF) readKey(c *cursor) error {
	at := c.pos
	n, err := c.u64("the length of a key")
	if err != nil {
		return err
	}
	if n == 0 || n > maxGGUFKey {
		return corruptAt(at, "a key is %d bytes long; 1 to %d are allowed", n, maxGGUFKey)
	}
	b, err := c.take(n, "a key")
	if err != nil {
		return err
	}
	key := string(b)
	if _, dup := g.values[key]; dup {
		return corruptAt(at, "the key %s is there twice", quote(key))
	}
	kind, err := c.u32("the type of " + quote(key))
	if err != nil {
		return err
	}
	v, err := readValue(c, kind, key)
	if err != nil {
		return err
	}
	g.values[key] = v
	return nil
}

func readValue(c *cursor, kind uint32, key string) (ggufValue, error) {
	v := ggufValue{kind: kind}
	switch {
	case int64(kind) >= int64(len(ggufSizes)):
		return v, corruptAt(c.pos-4, "the key %s has the unknown type %d", quote(key), kind)
	case kind == kindString:
		n, err := c.u64("the length of " + quote(key))
		if err != nil {
			return v, err
		}
		v.size = n
		if n > maxKeptString {
			return v, c.skip(n, "the text of "+quote(key))
		}
		b, err := c.take(n, "the text of "+quote(key))
		v.text = string(b)
		return v, err
	case kind == kindArray:
		err := readArray(c, &v, key)
		return v, err
	}
	b, err := c.take(ggufSizes[kind], "the value of "+quote(key))
	if err != nil {
		return v, err
	}
	v.num = integer(kind, b)
	return v, nil
}

// readArray walks an array and keeps it if it is short and of numbers: those are settings of each layer. The
// long ones are the vocabulary.
func readArray(c *cursor, v *ggufValue, key string) error {
	at := c.pos
	kind, err := c.u32("the type of " + quote(key))
	if err != nil {
		return err
	}
	if v.size, err = c.u64("the length of " + quote(key)); err != nil {
		return err
	}
	what := "the array " + quote(key)
	switch {
	case kind == kindArray:
		return corruptAt(at, "%s holds arrays, which no engine reads", what)
	case int64(kind) >= int64(len(ggufSizes)):
		return corruptAt(at, "%s has elements of the unknown type %d", what, kind)
	case kind == kindString:
		if v.size > math.MaxUint64/8 || v.size*8 > uint64(max(c.size-c.pos, 0)) {
			return corruptAt(at, "the file is damaged or half copied: %s claims %d strings, more than the file can hold", what, v.size)
		}
		for range v.size {
			n, err := c.u64(what)
			if err != nil {
				return err
			}
			if err := c.skip(n, "a string of "+what); err != nil {
				return err
			}
		}
		return nil
	}
	elem := ggufSizes[kind]
	if v.size > math.MaxUint64/elem {
		return corruptAt(at, "the file is damaged or half copied: %s claims %d elements, more than the file can hold", what, v.size)
	}
	if v.size > maxKeptArray {
		return c.skip(v.size*elem, what)
	}
	b, err := c.take(v.size*elem, what)
	if err != nil {
		return err
	}
	for i := range v.size {
		v.list = append(v.list, integer(kind, b[i*elem:(i+1)*elem]))
	}
	return nil
}

// integer decodes an integer or bool; floats count as 0, and what does not fit as the largest there is.
func integer(kind uint32, b []byte) int64 {
	switch kind {
	case 0, 7:
		return int64(b[0])
	case 1:
		return signed[int8](b)
	case 2:
		return int64(binary.LittleEndian.Uint16(b))
	case 3:
		return signed[int16](b)
	case 4:
		return int64(binary.LittleEndian.Uint32(b))
	case 5:
		return signed[int32](b)
	case 10:
		return int64(min(binary.LittleEndian.Uint64(b), math.MaxInt64))
	case 11:
		return signed[int64](b)
	}
	return 0
}

func signed[T int8 | int16 | int32 | int64](b []byte) int64 {
	var v T
	if _, err := binary.Decode(b, binary.LittleEndian, &v); err != nil {
		return 0 // too few bytes, which ggufSizes excludes
	}
	return int64(v)
}

func (g *GGUF) readTensors(c *cursor, count int) error {
	align := int64(32)
	if v, ok := g.values["general.alignment"]; ok {
		align = v.num
		if v.kind != 4 || align <= 0 || align&(align-1) != 0 {
			return corruptAt(c.pos, "general.alignment is %d, not a power of 2", align)
		}
	}
	seen := make(map[string]bool, min(count, 4096))
	var due int64 // where the next tensor must begin
	var end int64 // where the last one ends
	for range count {
		at := c.pos
		t, err := readTensor(c)
		if err != nil {
			return err
		}
		if seen[t.Name] {
			return corruptAt(at, "the tensor %s is there twice", quote(t.Name))
		}
		seen[t.Name] = true
		if t.Offset != due {
			how := "leaves a gap before it"
			if t.Offset < due {
				how = "overlaps the one before"
			}
			return corruptAt(at, "the tensor %s lies at offset %d where %d is due: it %s", quote(t.Name), t.Offset, due, how)
		}
		if t.Bytes > math.MaxInt64/2-due-align {
			return corruptAt(at, "the tensor %s claims %d bytes: the sum is larger than any file", quote(t.Name), t.Bytes)
		}
		end = due + t.Bytes
		due = roundUp(end, align)
		g.Tensors = append(g.Tensors, t)
	}
	g.DataOffset = c.pos
	if count > 0 {
		g.DataOffset = roundUp(c.pos, align)
	}
	if need := g.DataOffset + end; count > 0 && need > c.size {
		return truncated(need, c.size)
	}
	return nil
}

func roundUp(n, align int64) int64 { return (n + align - 1) &^ (align - 1) }

func readTensor(c *cursor) (Tensor, error) {
	var t Tensor
	at := c.pos
	n, err := c.u64("the length of a tensor's name")
	if err != nil {
		return t, err
	}
	if n > maxGGUFName {
		return t, corruptAt(at, "the name of a tensor is %d bytes long; at most %d are allowed", n, maxGGUFName)
	}
	b, err := c.take(n, "the name of a tensor")
	if err != nil {
		return t, err
	}
	t.Name = string(b)
	dims, err := c.u32("the dimensions of a tensor")
	if err != nil {
		return t, err
	}
	if dims > maxGGUFDims {
		return t, corruptAt(at, "the tensor %s has %d dimensions; at most %d are allowed", quote(t.Name), dims, maxGGUFDims)
	}
	row := int64(1)
	t.Elements = 1
	for i := range dims {
		d, err := c.u64("the shape of " + quote(t.Name))
		if err != nil {
			return t, err
		}
		if d > math.MaxInt64 || d > 0 && t.Elements > math.MaxInt64/int64(d) {
			return t, corruptAt(at, "the shape of the tensor %s is larger than any file", quote(t.Name))
		}
		if i == 0 {
			row = int64(d)
		}
		t.Elements *= int64(d)
	}
	number, err := c.u32("the type of " + quote(t.Name))
	if err != nil {
		return t, err
	}
	kind, known := ggmlTypes[number]
	if !known {
		return t, invalid("the tensor %s has the ggml type %d, which is unknown or withdrawn (at byte %d); a newer version may read it", quote(t.Name), number, at)
	}
	t.DType = kind.name
	if row%kind.block != 0 {
		return t, corruptAt(at, "the tensor %s has %d elements a row, not a multiple of %d as %s needs", quote(t.Name), row, kind.block, kind.name)
	}
	blocks := t.Elements / kind.block
	if blocks > math.MaxInt64/kind.bytes {
		return t, corruptAt(at, "the tensor %s is larger than any file", quote(t.Name))
	}
	t.Bytes = blocks * kind.bytes
	offset, err := c.u64("the offset of " + quote(t.Name))
	if err != nil {
		return t, err
	}
	if offset > math.MaxInt64 {
		return t, corruptAt(at, "the tensor %s lies at offset %d, outside of any file", quote(t.Name), offset)
	}
	t.Offset = int64(offset)
	return t, nil
}
