// Package pytorch turns the weights that torch.save wrote into safetensors, without running what is in them.
//
// Such a file is a pickle, a program that builds objects, and the bytes of the tensors beside it. Of that program only what
// builds a dictionary of tensors is followed; anything else that it asks for is an error that names it. Nothing is ever
// called by a name that stands in a file. The bytes of the tensors are copied from where the pickle says that they lie,
// piece by piece, so that memory does not grow with the model.
//
// Both layouts of torch.save are read: a zip archive, and, of before PyTorch 1.6, pickles with the bytes after them.
package pytorch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Tensor is one of a file: its name, what it is, and where its elements lie.
type Tensor struct {
	Name  string
	DType string  // as safetensors writes it: F32, BF16
	Shape []int64 // nil for a single number

	strides []int64 // in elements, one for each of Shape
	offset  int64   // of the first element, in elements from the start of the storage
	in      *storage
}

// storage is a run of elements of one type, which several tensors may share.
type storage struct {
	dtype dtype
	count int64 // elements
	at    int64 // byte of the file where it begins
	known bool  // at is known
}

// dtype is a type of elements.
type dtype struct {
	name string // as safetensors writes it
	size int64  // bytes
}

// dtypes are the types of storages by the class that stands for them.
var dtypes = map[string]dtype{
	"FloatStorage": {"F32", 4}, "HalfStorage": {"F16", 2}, "BFloat16Storage": {"BF16", 2}, "DoubleStorage": {"F64", 8},
	"LongStorage": {"I64", 8}, "IntStorage": {"I32", 4}, "ShortStorage": {"I16", 2}, "CharStorage": {"I8", 1},
	"ByteStorage": {"U8", 1}, "BoolStorage": {"BOOL", 1},
}

// Limits on what a file may claim.
const (
	maxDims     = 8
	maxName     = 1 << 10 // bytes
	maxElements = 1 << 48 // of one tensor
	maxTensors  = 1 << 17 // of one file; each takes some 30 steps of the pickle
	// How many times the size of its file tensors may take that share their bytes.
	maxShared = 4
)

// elements is the number of a tensor's elements. It was checked to fit when the tensor was read.
func (t Tensor) elements() int64 {
	n := int64(1)
	for _, s := range t.Shape {
		n *= s
	}
	return n
}

// Bytes is what the tensor takes in safetensors.
func (t Tensor) Bytes() int64 { return t.elements() * t.in.dtype.size }

// rowMajor reports whether the elements lie in the order in which safetensors wants them.
func (t Tensor) rowMajor() bool {
	want := int64(1)
	for i := len(t.Shape) - 1; i >= 0; i-- {
		if t.Shape[i] > 1 && t.strides[i] != want {
			return false
		}
		want *= t.Shape[i]
	}
	return true
}

// same reports whether two tensors are one: the same elements in the same shape.
func (t Tensor) same(o Tensor) bool {
	return t.in == o.in && t.offset == o.offset && slices.Equal(t.Shape, o.Shape) && slices.Equal(t.strides, o.strides)
}

// file is one open file of weights.
type file struct {
	io.ReaderAt
	io.Closer
	name    string // without the folder
	size    int64
	tensors []Tensor
}

// Checkpoint is the files of one model, open, with the places of all tensors known.
type Checkpoint struct {
	files []*file
}

// Open reads what the files hold, without their tensors' bytes. CodeLoadingFailed with FailureCorruptFile when one is
// damaged, is not what torch.save writes of a model, or holds more than tensors; with FailureMissingFile when one is not
// there. Close must be called.
func Open(paths []string) (*Checkpoint, error) {
	c := &Checkpoint{}
	where := map[string]string{}
	for _, path := range paths {
		f, err := open(path)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.files = append(c.files, f)
		for _, t := range f.tensors {
			if other, twice := where[t.Name]; twice {
				c.Close()
				return nil, damaged(f.name, "the tensor %s is in %s, too", quote(t.Name), other)
			}
			where[t.Name] = f.name
		}
	}
	return c, nil
}

// open opens one file and reads which tensors it holds.
func open(path string) (*file, error) {
	name := filepath.Base(path)
	in, err := os.Open(path)
	if err != nil {
		return nil, missing(name, err)
	}
	f := &file{ReaderAt: in, Closer: in, name: name}
	fi, err := in.Stat()
	switch {
	case err != nil:
		err = missing(name, err)
	case !fi.Mode().IsRegular():
		err = missing(name, fmt.Errorf("%s is no file", path))
	default:
		f.size = fi.Size()
		err = f.read()
	}
	if err != nil {
		_ = in.Close() // it was only read from
		return nil, err
	}
	return f, nil
}

// read finds the tensors of a file, and leaves out what safetensors of the same model would not have.
func (f *file) read() error {
	start := make([]byte, min(4, f.size))
	if _, err := f.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return damaged(f.name, "it cannot be read: %v", err)
	}
	var top any
	var err error
	switch {
	case strings.HasPrefix(string(start), "PK\x03\x04"):
		top, err = f.readZip()
	case len(start) > 0 && start[0] == opProto:
		top, err = f.readBare()
	default:
		return damaged(f.name, "it is not what torch.save writes: it begins with %q", start)
	}
	if err != nil {
		return err
	}
	d, ok := top.(*dict)
	if !ok {
		return damaged(f.name, "it holds %s and no dictionary of tensors", kindOf(top))
	}
	if f.tensors, err = f.tensorsOf(d); err != nil {
		return err
	}
	f.tensors = untie(f.tensors)
	return f.checkSizes()
}

// tensorsOf takes the tensors out of a model's dictionary. As in Python, a key that comes again replaces the first.
func (f *file) tensorsOf(d *dict) ([]Tensor, error) {
	at := map[string]int{}
	var out []Tensor
	for _, e := range d.items {
		name, ok := e.key.(string)
		t, isTensor := e.value.(*Tensor)
		switch {
		case !ok:
			return nil, damaged(f.name, "its dictionary has %s as a key, where the name of a tensor should be", kindOf(e.key))
		case !isTensor:
			return nil, damaged(f.name, "%s is %s and no tensor; a checkpoint of a training run has the model somewhere inside, and must be saved as Transformers saves models", quote(name), kindOf(e.value))
		case name == "" || len(name) > maxName || name == metadataKey:
			return nil, damaged(f.name, "%s is no name of a tensor", quote(name))
		}
		named := *t
		named.Name = name
		if i, again := at[name]; again {
			out[i] = named
			continue
		}
		at[name] = len(out)
		out = append(out, named)
	}
	if len(out) == 0 {
		return nil, damaged(f.name, "it holds no tensors")
	}
	return out, nil
}

// heads are the names of what turns a state into the likelihood of tokens. Where it is the table of tokens itself,
// safetensors have that table alone, and whoever reads them knows; a copy would take its memory a second time.
var heads = []string{"lm_head.weight"}

func untie(list []Tensor) []Tensor {
	return slices.DeleteFunc(slices.Clone(list), func(t Tensor) bool {
		return slices.Contains(heads, t.Name) && slices.ContainsFunc(list, func(o Tensor) bool { return o.Name != t.Name && o.same(t) })
	})
}

// checkSizes bounds what tensors take together: they may share bytes, and each becomes a copy of its own.
func (f *file) checkSizes() error {
	var sum int64
	for _, t := range f.tensors {
		if sum += t.Bytes(); sum > maxShared*f.size {
			return damaged(f.name, "its tensors claim more than %d times the %s of the file", maxShared, registry.Bytes(f.size))
		}
	}
	return nil
}

// Close closes the files.
func (c *Checkpoint) Close() {
	for _, f := range c.files {
		_ = f.Close() // only read from
	}
}

// Tensors returns all tensors, by name.
func (c *Checkpoint) Tensors() []Tensor {
	var out []Tensor
	for _, f := range c.files {
		out = append(out, f.tensors...)
	}
	slices.SortFunc(out, func(a, b Tensor) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// quote shows a name out of a file: at most 100 bytes of it, and nothing that a terminal or a page would take for more.
func quote(s string) string {
	const longest = 100
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

const again = "Fetch or copy the file again from where it came. If that does not help, load the model with the engine transformers, or save it as safetensors."

// damaged is the error of a file that is not whole, or not what it should be.
func damaged(name, format string, args ...any) error {
	return failure(registry.FailureCorruptFile, fmt.Sprintf("%s cannot be read: %s", name, fmt.Sprintf(format, args...)), again, nil)
}

// dangerous is the error of a file that would run code.
func dangerous(name, asks string) error {
	return failure(registry.FailureCorruptFile, fmt.Sprintf("%s is a pickle that holds more than tensors, and it was not run: it asks for %s", name, quote(asks)),
		"Do not use this file with programs that run pickles. Take the model as safetensors, from somebody you trust.", nil)
}

// otherType is the error of a file whose tensors are of a type that no safetensors are made of here.
func otherType(name, asks string) error {
	return failure(registry.FailureUnsupported, fmt.Sprintf("%s has tensors of a type that Ollama does not take: torch.save wrote them by %s", name, quote(asks)),
		"Load the model with the engine transformers, or save it in bfloat16, float16 or float32.", nil)
}

func missing(name string, err error) error {
	return failure(registry.FailureMissingFile, fmt.Sprintf("%s cannot be opened: %v", name, err), "Fetch the model again, and see that the user that runs llmm may read it.", err)
}

func failure(kind registry.FailureKind, msg, hint string, err error) error {
	f := &registry.Failure{Kind: kind, Msg: msg, Hint: hint}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "pytorch.Open", Msg: msg, Failure: f, Err: err}
}
