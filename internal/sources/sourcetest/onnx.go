package sourcetest

import (
	"encoding/binary"
	"strconv"
)

// ONNXTensor is one initializer of an ONNX model that a test makes. DType is ONNX's number: 1 f32, 10 f16. With a
// Location it says that its data lie at the start of that file, else they are here.
type ONNXTensor struct {
	Name     string
	DType    uint64
	Dims     []uint64
	Location string
	Data     []byte
}

// ONNX writes a model whose graph has these initializers and one node for each; see onnx.proto.
func ONNX(tensors ...ONNXTensor) []byte {
	var graph []byte
	for _, t := range tensors {
		graph = ProtoBytes(graph, 1, ProtoBytes(ProtoBytes(nil, 1, []byte(t.Name)), 4, []byte("Identity")))
	}
	graph = ProtoBytes(graph, 2, []byte("main"))
	for _, t := range tensors {
		graph = ProtoBytes(graph, 5, t.encode())
	}
	return ProtoBytes(ProtoBytes(ProtoNumber(nil, 1, 8), 2, []byte("sourcetest")), 7, graph)
}

func (t ONNXTensor) encode() []byte {
	var dims, b []byte
	for _, d := range t.Dims {
		dims = binary.AppendUvarint(dims, d)
	}
	b = ProtoNumber(ProtoBytes(nil, 1, dims), 2, t.DType)
	b = ProtoBytes(b, 8, []byte(t.Name))
	if t.Location == "" {
		return ProtoBytes(b, 9, t.Data)
	}
	b = ProtoBytes(b, 13, ProtoBytes(ProtoBytes(nil, 1, []byte("location")), 2, []byte(t.Location)))
	b = ProtoBytes(b, 13, ProtoBytes(ProtoBytes(nil, 1, []byte("offset")), 2, []byte("0")))
	b = ProtoBytes(b, 13, ProtoBytes(ProtoBytes(nil, 1, []byte("length")), 2, []byte(strconv.Itoa(len(t.Data)))))
	return ProtoNumber(b, 14, 1)
}

// ProtoBytes appends a field of protobuf that has a length.
func ProtoBytes(b []byte, field uint64, content []byte) []byte {
	b = binary.AppendUvarint(b, field<<3|2)
	b = binary.AppendUvarint(b, uint64(len(content)))
	return append(b, content...)
}

// ProtoNumber appends a field of protobuf that is a number.
func ProtoNumber(b []byte, field, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, field<<3), v)
}
