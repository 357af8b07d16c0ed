// Package pytorchtest writes files as torch.save does, good ones and bad ones, for tests without a Python.
package pytorchtest

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// Tensor is one to write. Count and Strides follow from Shape where they are not given.
type Tensor struct {
	Name    string
	Class   string // of its storage: FloatStorage, BFloat16Storage
	Key     string // of its storage; that of its place in the list if empty
	Count   int    // elements that the storage is said to have
	Offset  int
	Shape   []int
	Strides []int
	Data    []byte // of the storage; nil writes none
}

// Save writes tensors as torch.save writes a model's dictionary since PyTorch 1.6.
func Save(t testing.TB, tensors ...Tensor) []byte {
	t.Helper()
	p := Pickle("}(")
	entries := []Entry{{Name: "archive/data.pkl"}, {Name: "archive/version", Data: []byte("3\n")}, {Name: "archive/byteorder", Data: []byte("little")}}
	for i, x := range tensors {
		if x.Key == "" {
			x.Key = fmt.Sprint(i)
		}
		p = p.Text(x.Name).Tensor(x)
		if x.Data != nil {
			entries = append(entries, Entry{Name: "archive/data/" + x.Key, Data: x.Data})
		}
	}
	entries[0].Data = []byte("\x80\x02" + p + "u.")
	return Archive(t, entries...)
}

// Entry is one of an archive.
type Entry struct {
	Name   string
	Data   []byte
	Method uint16 // zip.Store if it is not given
}

// Archive writes a zip archive.
func Archive(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		out, err := w.CreateHeader(&zip.FileHeader{Name: e.Name, Method: e.Method})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(e.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Pickle is instructions of protocol 2, to be added to.
type Pickle string

// Text pushes a text.
func (p Pickle) Text(s string) Pickle {
	return p + "X" + Pickle(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + Pickle(s)
}

// Int pushes a number: one that does not fit into 32 bits as the longer kind.
func (p Pickle) Int(n int) Pickle {
	if int(int32(n)) == n {
		return p + "J" + Pickle(binary.LittleEndian.AppendUint32(nil, uint32(n)))
	}
	return p + "\x8a\x08" + Pickle(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

// Global pushes a class or a function by name.
func (p Pickle) Global(module, name string) Pickle {
	return p + "c" + Pickle(module) + "\n" + Pickle(name) + "\n"
}

func (p Pickle) ints(list []int) Pickle {
	p += "("
	for _, n := range list {
		p = p.Int(n)
	}
	return p + "t"
}

// Tensor pushes a tensor: the call that torch.save writes for it.
func (p Pickle) Tensor(x Tensor) Pickle {
	count := 1
	strides := make([]int, len(x.Shape))
	for i := len(x.Shape) - 1; i >= 0; i-- {
		strides[i] = count
		count *= x.Shape[i]
	}
	if x.Count != 0 {
		count = x.Count
	}
	if x.Strides != nil {
		strides = x.Strides
	}
	p = (p.Global("torch._utils", "_rebuild_tensor_v2")+"((").Text("storage").Global("torch", x.Class).Text(x.Key).Text("cpu").Int(count) + "tQ"
	p = p.Int(x.Offset).ints(x.Shape).ints(strides) + "\x89"
	return p.Global("collections", "OrderedDict") + ")RtR"
}
