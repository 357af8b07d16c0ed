package pytorch

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const (
	metadataKey = "__metadata__"
	headerAlign = 8
	// defaultPiece is how many bytes are copied at once where elements lie in order, defaultBlock how many are put in order
	// at once where they do not. Together they are the memory that writing takes.
	defaultPiece = 1 << 20
	defaultBlock = 32 << 20
)

// SafetensorsName is what the file of a name becomes: model.safetensors of pytorch_model.bin, and so with shards.
func SafetensorsName(name string) string {
	base := strings.TrimSuffix(filepath.Base(name), filepath.Ext(name))
	if rest, ok := strings.CutPrefix(base, "pytorch_model"); ok {
		base = "model" + rest
	}
	return base + ".safetensors"
}

// described is what the header of safetensors says of a tensor.
type described struct {
	DType   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// header is the beginning of a file of safetensors, and the tensors in the order in which their bytes follow: the larger
// elements first, so that all are aligned, then as they lie in the file, so that it is read from front to back.
func (f *file) header() ([]byte, []Tensor, error) {
	order := slices.SortedStableFunc(slices.Values(f.tensors), func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(b.in.dtype.size, a.in.dtype.size), cmp.Compare(a.in.at, b.in.at), cmp.Compare(a.offset, b.offset), cmp.Compare(a.Name, b.Name))
	})
	all := map[string]any{metadataKey: map[string]string{"format": "pt"}}
	var at int64
	for _, t := range order {
		end := at + t.Bytes()
		all[t.Name] = described{t.DType, append([]int64{}, t.Shape...), [2]int64{at, end}}
		at = end
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, nil, err
	}
	for len(text)%headerAlign != 0 {
		text = append(text, ' ')
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), order, nil
}

// Bytes is what Write writes.
func (c *Checkpoint) Bytes() (int64, error) {
	var sum int64
	for _, f := range c.files {
		head, order, err := f.header()
		if err != nil {
			return 0, err
		}
		sum += int64(len(head))
		for _, t := range order {
			sum += t.Bytes()
		}
	}
	return sum, nil
}

// Write makes a file of safetensors in dir of each file, named by SafetensorsName, and returns their paths in order. said
// is told how many bytes are written so far. On error, or when ctx ends, what it made is removed.
// CodeLoadingFailed with FailureDiskFull when the disk is full, with FailureCorruptFile when a file ends before its tensors do.
func (c *Checkpoint) Write(ctx context.Context, dir string, said func(done int64)) (made []string, err error) {
	defer func() {
		if err != nil {
			for _, path := range made {
				if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
					err = errors.Join(err, rerr)
				}
			}
			made = nil
		}
	}()
	w := newWriter(ctx, said)
	for _, f := range c.files {
		path := filepath.Join(dir, SafetensorsName(f.name))
		if err := w.file(path, f); err != nil {
			return made, err
		}
		made = append(made, path)
	}
	return made, nil
}

// writer counts what was written.
type writer struct {
	ctx  context.Context //nolint:containedctx // it is the writer's life
	said func(int64)
	done int64
	buf  []byte

	piece, block int64
}

func newWriter(ctx context.Context, said func(int64)) *writer {
	return &writer{ctx: ctx, said: said, piece: defaultPiece, block: defaultBlock}
}

// file makes one file, or none.
func (w *writer) file(path string, f *file) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(w.all(out, f), out.Close()); err != nil {
		return diskFull(errors.Join(err, os.Remove(path)), path)
	}
	return nil
}

// all writes what a file becomes.
func (w *writer) all(out io.Writer, f *file) error {
	head, order, err := f.header()
	if err != nil {
		return err
	}
	if err := w.put(out, head); err != nil {
		return err
	}
	for _, t := range order {
		if err := w.tensor(out, f, t); err != nil {
			return err
		}
	}
	return nil
}

// put writes bytes and tells how far it is.
func (w *writer) put(out io.Writer, b []byte) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if _, err := out.Write(b); err != nil {
		return err
	}
	w.done += int64(len(b))
	w.said(w.done)
	return nil
}

// room returns n bytes to read into.
func (w *writer) room(n int64) []byte {
	if int64(len(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	return w.buf[:n]
}

func (w *writer) tensor(out io.Writer, f *file, t Tensor) error {
	size := t.in.dtype.size
	if !t.rowMajor() {
		return w.ordered(out, f, newLayout(t), t.offset)
	}
	at, left := t.in.at+t.offset*size, t.Bytes()
	for left > 0 {
		b := w.room(min(left, w.piece))
		if _, err := f.ReadAt(b, at); err != nil {
			return damaged(f.name, "it ends before its tensor %s does", quote(t.Name))
		}
		if err := w.put(out, b); err != nil {
			return err
		}
		at, left = at+int64(len(b)), left-int64(len(b))
	}
	return nil
}

// layout is how the elements of a tensor lie that are not in the order of its shape: a transposed one, for example.
type layout struct {
	t              Tensor
	shape, strides []int64 // without the dimensions of size 1
}

func newLayout(t Tensor) layout {
	l := layout{t: t}
	for i, n := range t.Shape {
		if n != 1 {
			l.shape, l.strides = append(l.shape, n), append(l.strides, t.strides[i])
		}
	}
	return l
}

// elements is the number of all elements.
func (l layout) elements() int64 {
	n := int64(1)
	for _, s := range l.shape {
		n *= s
	}
	return n
}

// ordered writes the elements from offset on in the order of the shape, in as large parts as fit into a block.
func (w *writer) ordered(out io.Writer, f *file, l layout, offset int64) error {
	size := l.t.in.dtype.size
	all := l.elements()
	if all == 0 {
		return nil
	}
	if all*size <= w.block {
		b := w.room(all * size)
		if err := w.gather(f, l, offset, b); err != nil {
			return err
		}
		return w.put(out, b)
	}
	// The first dimension is cut: into rows where one is too large, else into as many together as fit.
	row := all / l.shape[0] * size
	rest, together := l, max(1, w.block/row)
	for i := int64(0); i < l.shape[0]; i += together {
		if row > w.block {
			rest.shape, rest.strides = l.shape[1:], l.strides[1:]
		} else {
			rest.shape = slices.Clone(l.shape)
			rest.shape[0] = min(together, l.shape[0]-i)
		}
		if err := w.ordered(out, f, rest, offset+i*l.strides[0]); err != nil {
			return err
		}
	}
	return nil
}

// gather reads the elements into b in the order of the shape. It reads along the dimension whose elements lie closest to
// each other, run by run.
func (w *writer) gather(f *file, l layout, offset int64, b []byte) error {
	size := l.t.in.dtype.size
	along := 0
	for i, s := range l.strides {
		if s > 0 && (l.strides[along] == 0 || s < l.strides[along]) {
			along = i
		}
	}
	count, stride := l.shape[along], l.strides[along]
	steps := make([]int64, len(l.shape)) // in b, in elements
	step := int64(1)
	for i := len(l.shape) - 1; i >= 0; i-- {
		steps[i] = step
		step *= l.shape[i]
	}
	perRead := count
	if stride > 0 {
		perRead = max(1, min(count, w.piece/size/stride))
	}
	run := make([]byte, ((perRead-1)*stride+1)*size)
	at := make([]int64, len(l.shape)) // where in the other dimensions
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		from, to := offset, int64(0)
		for i, n := range at {
			from, to = from+n*l.strides[i], to+n*steps[i]
		}
		for first := int64(0); first < count; first += perRead {
			n := min(perRead, count-first)
			part := run[:((n-1)*stride+1)*size]
			if _, err := f.ReadAt(part, l.t.in.at+(from+first*stride)*size); err != nil {
				return damaged(f.name, "it ends before its tensor %s does", quote(l.t.Name))
			}
			for i := range n {
				copy(b[(to+(first+i)*steps[along])*size:][:size], part[i*stride*size:])
			}
		}
		i := len(at) - 1
		for ; i >= 0; i-- {
			if i == along {
				continue
			}
			if at[i]++; at[i] < l.shape[i] {
				break
			}
			at[i] = 0
		}
		if i < 0 {
			return nil
		}
	}
}

// diskFull words the error of a disk that has no room.
func diskFull(err error, path string) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return failure(registry.FailureDiskFull, "The disk of "+filepath.Dir(path)+" filled up while the model was converted", "Delete files of models that nobody uses (`llmm storage`), then load the model again.", err)
}
