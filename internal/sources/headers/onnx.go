package headers

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// shortGraph is how large a graph may be, in bytes, that is read from a network too: one whose weights lie in other files.
const shortGraph = 2 << 20

// ReadONNX reads the facts of an ONNX model: main, and the files of external data beside it. It needs few and short reads, so
// that of a graph which holds its weights only the size is known, and what a config.json in the same folder says; CountONNX
// reads such a graph.
func ReadONNX(main registry.File, data []registry.File, beside []registry.File, open Opener) (registry.Facts, error) {
	f := registry.Facts{Format: registry.FormatONNX, WeightBytes: main.Size}
	for _, x := range data {
		f.WeightBytes += x.Size
	}
	d := &folder{size: map[string]int64{main.Path: main.Size}, open: open, sketch: true}
	for _, x := range beside {
		d.size[x.Path] = x.Size
	}
	start, err := d.start(main.Path)
	if err != nil {
		return f, err
	}
	if err := looksLikeONNX(start); err != nil {
		return f, InFile(err, main.Path)
	}
	if d.has("config.json") {
		cfg := config{}
		if err := d.json("config.json", maxConfig, &cfg); err != nil {
			return f, err
		}
		cfg.facts(&f)
	}
	if main.Size <= shortGraph {
		CountONNX(&f, main, open)
	}
	err = d.extras(&f)
	return f, err
}

// CountONNX fills in what the graph says of its weights: their number, type and bytes. A graph that cannot be read leaves f as
// it is: whoever loads it says why.
func CountONNX(f *registry.Facts, main registry.File, open Opener) {
	r, err := open(main.Path)
	if err != nil {
		return
	}
	graph, err := ScanONNX(r, main.Size)
	if r.Close() == nil && err == nil && graph.Parameters > 0 {
		f.Parameters, f.WeightBytes, f.DType = graph.Parameters, graph.Bytes, graph.DType
	}
}

func looksLikeONNX(start []byte) error {
	// A ModelProto begins with its field 1, ir_version, or, written by some exporters, with another small field.
	if len(start) == 0 || start[0] == 0 || bytes.HasPrefix(start, []byte("version ")) || bytes.HasPrefix(start, []byte("GGUF")) || start[0] == '<' {
		return notWeights(start, "ONNX")
	}
	return nil
}

// ONNX is what the graph of an ONNX model says of its weights.
type ONNX struct {
	// External are the files of external data, by their paths relative to the model's folder, in order. Size is what the
	// graph needs of them at least.
	External   []registry.File
	Parameters int64
	Bytes      int64  // of the weights, here and in the external files
	DType      string // the one that holds most bytes
}

// Limits on an ONNX graph. The largest, of models with thousands of layers' worth of nodes, have some 100,000 nodes and as
// many weights; the format itself ends at 2 GiB.
const (
	maxONNXFields = 1 << 22
	maxONNXDepth  = 16 // of graphs within the nodes of graphs
	maxONNXText   = 4096
	maxONNXDims   = 64
)

// onnxTypes are the bits and the name of each TensorProto.DataType; see onnx.proto of ONNX 1.19. A string has no fixed
// size.
var onnxTypes = map[uint64]struct {
	name string
	bits int64
}{
	1: {"f32", 32}, 2: {"u8", 8}, 3: {"i8", 8}, 4: {"u16", 16}, 5: {"i16", 16}, 6: {"i32", 32}, 7: {"i64", 64}, 9: {"bool", 8},
	10: {"f16", 16}, 11: {"f64", 64}, 12: {"u32", 32}, 13: {"u64", 64}, 14: {"c64", 64}, 15: {"c128", 128}, 16: {"bf16", 16},
	17: {"f8_e4m3", 8}, 18: {"f8_e4m3fnuz", 8}, 19: {"f8_e5m2", 8}, 20: {"f8_e5m2fnuz", 8}, 21: {"u4", 4}, 22: {"i4", 4},
	23: {"f4", 4}, 24: {"f8_e8m0", 8},
}

// ScanONNX walks the graph of an ONNX model of size bytes for its weights: which files of external data it names, how
// many parameters there are, of which type. The weights themselves are skipped. A location that leads out of the
// model's folder is refused: CodeInvalid.
func ScanONNX(r io.ReaderAt, size int64) (ONNX, error) {
	var out ONNX
	start, err := sniff(r, size)
	if err != nil {
		return out, err
	}
	if err := looksLikeONNX(start); err != nil {
		return out, err
	}
	s := onnxScan{c: &cursor{r: r, size: size, limit: math.MaxInt64}, external: map[string]int64{}, left: maxONNXFields}
	graphs := 0
	err = s.message(size, func(field uint64, end int64) error {
		if field != 7 { // ModelProto.graph
			return nil
		}
		graphs++
		return s.graph(end, 0)
	})
	if err != nil {
		return out, err
	}
	if graphs == 0 {
		return out, invalid("this is not an ONNX file: it holds no graph")
	}
	for _, name := range slices.Sorted(maps.Keys(s.external)) {
		out.External = append(out.External, registry.File{Path: name, Size: s.external[name]})
	}
	out.Parameters, out.Bytes, out.DType = s.sum.elements, s.sum.bytes, s.sum.dominant()
	return out, nil
}

// onnxScan reads protobuf messages front to back.
type onnxScan struct {
	c        *cursor
	external map[string]int64 // bytes that are needed of each
	sum      tally
	left     int // fields that may still be read
}

// varint reads a number of protobuf's base-128 kind.
func (s *onnxScan) varint() (uint64, error) {
	if b := s.c.ahead(); len(b) >= binary.MaxVarintLen64 {
		if v, n := binary.Uvarint(b); n > 0 {
			return v, s.c.skip(uint64(n), "a number")
		}
	}
	var v uint64
	for shift := uint(0); shift < 64; shift += 7 {
		b, err := s.c.take(1, "a number")
		if err != nil {
			return 0, err
		}
		v |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return v, nil
		}
	}
	return 0, corruptAt(s.c.pos, "a number is longer than 10 bytes: the file is damaged, or no ONNX file")
}

// message reads the fields up to end. fn is called for each that has a length, with where it ends; it may read from it,
// and what it leaves is skipped. Numbers are passed to it by numbers, if there is one.
func (s *onnxScan) message(end int64, fn func(field uint64, end int64) error, numbers ...func(field, v uint64)) error {
	for s.c.pos < end {
		if s.left--; s.left < 0 {
			return corruptAt(s.c.pos, "the graph has more than %d parts; no model has so many", maxONNXFields)
		}
		at := s.c.pos
		tag, err := s.varint()
		if err != nil {
			return err
		}
		field := tag >> 3
		if field == 0 {
			return corruptAt(at, "the file is damaged, or no ONNX file: it has a field without a number")
		}
		n := uint64(0)
		switch tag & 7 {
		case 0:
			v, err := s.varint()
			if err != nil {
				return err
			}
			for _, f := range numbers {
				f(field, v)
			}
		case 1:
			n = 8
		case 5:
			n = 4
		case 2:
			if n, err = s.varint(); err != nil {
				return err
			}
			if n > uint64(max(end-s.c.pos, 0)) {
				return Corrupt(copyAgain+", or wait until the copy has finished", "the file is damaged or half copied: a part of %d bytes at byte %d does not fit into it", n, s.c.pos)
			}
			inner := s.c.pos + int64(n)
			if err := fn(field, inner); err != nil {
				return err
			}
			if s.c.pos > inner {
				return corruptAt(at, "a part of the graph is longer than it says")
			}
			n = uint64(inner - s.c.pos)
		default:
			return corruptAt(at, "the file is damaged, or no ONNX file: it has a field of the unknown kind %d", tag&7)
		}
		if err := s.c.skip(n, "a part of the graph"); err != nil {
			return err
		}
	}
	if s.c.pos > end {
		return corruptAt(s.c.pos, "a part of the graph is longer than it says")
	}
	return nil
}

// graph reads a GraphProto: its nodes, whose attributes may hold tensors and graphs, and its initializers.
func (s *onnxScan) graph(end int64, depth int) error {
	if depth > maxONNXDepth {
		return corruptAt(s.c.pos, "graphs are nested more than %d deep", maxONNXDepth)
	}
	return s.message(end, func(field uint64, end int64) error {
		switch field {
		case 1: // node
			return s.message(end, func(field uint64, end int64) error {
				if field != 5 { // attribute
					return nil
				}
				return s.message(end, func(field uint64, end int64) error {
					switch field {
					case 5, 10: // t, tensors
						return s.tensor(end)
					case 6, 11: // g, graphs
						return s.graph(end, depth+1)
					}
					return nil
				})
			})
		case 5: // initializer
			return s.tensor(end)
		case 15: // sparse_initializer: its values and indices
			return s.message(end, func(field uint64, end int64) error {
				if field == 1 || field == 2 {
					return s.tensor(end)
				}
				return nil
			})
		}
		return nil
	})
}

// tensor reads a TensorProto. Its raw_data is skipped.
func (s *onnxScan) tensor(end int64) error {
	at := s.c.pos
	var dims []uint64
	var kind uint64
	var location string
	var offset, length int64
	external := false
	err := s.message(end, func(field uint64, end int64) error {
		switch field {
		case 1: // dims, packed
			for s.c.pos < end {
				v, err := s.varint()
				if err != nil {
					return err
				}
				if len(dims) <= maxONNXDims {
					dims = append(dims, v)
				}
			}
		case 13: // external_data: a key and a value
			key, value, err := s.entry(end)
			if err != nil {
				return err
			}
			switch key {
			case "location":
				location = value
			case "offset":
				offset, _ = strconv.ParseInt(value, 10, 64) // what is no number asks for nothing
			case "length":
				length, _ = strconv.ParseInt(value, 10, 64)
			}
		}
		return nil
	}, func(field, v uint64) {
		switch field {
		case 1:
			if len(dims) <= maxONNXDims {
				dims = append(dims, v)
			}
		case 2:
			kind = v
		case 14:
			external = v == 1
		}
	})
	if err != nil {
		return err
	}
	if external || location != "" {
		clean := path.Clean(location)
		if !plainPath(location) || clean == "." || clean != location && "./"+clean != location {
			return invalid("it names the file %s for its weights (at byte %d), which is not below the model's folder; do not use this file", quote(location), at)
		}
		if offset < 0 || length < 0 || offset > math.MaxInt64/2 || length > math.MaxInt64/2 {
			return corruptAt(at, "a tensor lies at offset %d with %d bytes of %s: no file is so large", offset, length, quote(clean))
		}
		s.external[clean] = max(s.external[clean], offset+length)
		if len(s.external) > maxONNXText {
			return corruptAt(at, "the graph names more than %d files", maxONNXText)
		}
	}
	return s.count(dims, kind, at)
}

// count adds a tensor to the sums.
func (s *onnxScan) count(dims []uint64, kind uint64, at int64) error {
	t := Tensor{Elements: 1, DType: onnxTypes[kind].name}
	if t.DType == "" {
		t.DType = fmt.Sprintf("type %d", kind)
	}
	if len(dims) > maxONNXDims {
		return corruptAt(at, "a tensor has more than %d dimensions", maxONNXDims)
	}
	for _, d := range dims {
		if d > math.MaxInt64/128 || d > 0 && t.Elements > math.MaxInt64/128/int64(d) {
			return corruptAt(at, "the shape of a tensor is larger than any file")
		}
		t.Elements *= int64(d)
	}
	t.Bytes = t.Elements * onnxTypes[kind].bits / 8
	if s.sum.bytes > math.MaxInt64/2-t.Bytes {
		return corruptAt(at, "the tensors together are larger than any disk")
	}
	s.sum.add(t)
	return nil
}

// entry reads a StringStringEntryProto.
func (s *onnxScan) entry(end int64) (key, value string, err error) {
	err = s.message(end, func(field uint64, end int64) error {
		n := end - s.c.pos
		if field != 1 && field != 2 {
			return nil
		}
		if n > maxONNXText {
			return corruptAt(s.c.pos, "a text of %d bytes says where weights are; no path is so long", n)
		}
		b, err := s.c.take(uint64(n), "a text")
		if err != nil {
			return err
		}
		if field == 1 {
			key = string(b)
		} else {
			value = string(b)
		}
		return nil
	})
	return key, value, err
}
