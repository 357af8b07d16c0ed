// Package headers reads what weights say about themselves: GGUF, safetensors, and a Hugging Face style folder with
// its config.json. It needs an io.ReaderAt and a size, so that a file on disk and one behind HTTP Range look alike, and
// it never reads the weights themselves. ReadFolder, ReadGGUF and CombineGGUF read every header and check that every file
// is whole; Sketch and SketchGGUF find out nearly as much from a handful of reads, for files behind a network.
//
// Files come from strangers: every length and count is checked against the size of the file before anything is
// allocated, memory is bounded by the limits below, and nothing panics. Errors are *registry.Error: CodeLoadingFailed
// with FailureCorruptFile or FailureMissingFile where a copy is incomplete or damaged, CodeInvalid where it is something
// else than it should be, CodeUnavailable where it could not be read. Those about a place in a file name the byte.
package headers

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Tensor is one entry of a header. Offset is relative to the first byte of the file's data section.
type Tensor struct {
	Name     string
	DType    string // lower case: bf16, q4_1
	Elements int64
	Offset   int64
	Bytes    int64
}

// maxQuote keeps a name out of a file from flooding a message, in bytes.
const maxQuote = 80

// InFile returns err with the file's name put in front of its message. Errors of other kinds are only wrapped.
func InFile(err error, name string) error {
	var e *registry.Error
	if !errors.As(err, &e) {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	named := *e
	named.Msg = name + ": " + e.Msg
	if e.Failure != nil {
		f := *e.Failure
		f.Msg = name + ": " + f.Msg
		named.Failure = &f
	}
	return &named
}

// Corrupt returns a CodeLoadingFailed error with FailureCorruptFile. hint says what to do next.
func Corrupt(hint, format string, args ...any) *registry.Error {
	return failed(registry.FailureCorruptFile, hint, format, args...)
}

// Missing returns a CodeLoadingFailed error with FailureMissingFile. hint says what to do next.
func Missing(hint, format string, args ...any) *registry.Error {
	return failed(registry.FailureMissingFile, hint, format, args...)
}

func failed(kind registry.FailureKind, hint, format string, args ...any) *registry.Error {
	msg := fmt.Sprintf(format, args...)
	return &registry.Error{
		Code: registry.CodeLoadingFailed, Op: "read headers", Msg: msg + ". " + hint + ".",
		Failure: &registry.Failure{Kind: kind, Msg: msg, Hint: hint},
	}
}

const copyAgain = "Copy or download the file again"

func corruptAt(offset int64, format string, args ...any) *registry.Error {
	return Corrupt(copyAgain, "%s (at byte %d)", fmt.Sprintf(format, args...), offset)
}

// truncated reports a file that ends before its own header says it should.
func truncated(need, have int64) *registry.Error {
	return Corrupt(copyAgain+", or wait until the copy has finished",
		"the file is truncated or half copied: %d bytes are missing (its header describes %d bytes, the file has %d)", need-have, need, have)
}

func invalid(format string, args ...any) *registry.Error {
	return registry.Errorf(registry.CodeInvalid, format, args...)
}

// quote shows a name out of a file safely and shortly.
func quote(s string) string {
	if len(s) > maxQuote {
		s = s[:maxQuote] + "…"
	}
	return fmt.Sprintf("%q", strings.ToValidUTF8(s, "?"))
}

// notWeights says what a file really is when its first bytes are not those of the format it should have.
func notWeights(start []byte, want string) error {
	switch {
	case len(start) == 0:
		return Corrupt(copyAgain, "the file is empty")
	case bytes.HasPrefix(start, []byte("version https://git-lfs")):
		return Corrupt("Run git lfs pull where it was cloned", "the file is a Git LFS pointer, not the %s weights themselves", want)
	case len(bytes.Trim(start, "\x00")) == 0:
		return Corrupt(copyAgain+", or wait until the copy has finished", "the file starts with zeros: its %s header was never written", want)
	case bytes.HasPrefix(start, []byte("GGUF")):
		return invalid("this is a GGUF file, not %s; set model_format to gguf", want)
	case bytes.HasPrefix(start, []byte("PK\x03\x04")):
		return invalid("this is a zip archive (PyTorch saves its weights so), not %s", want)
	case bytes.HasPrefix(bytes.ToLower(start), []byte("<!doctype")), bytes.HasPrefix(bytes.ToLower(start), []byte("<html")):
		return Corrupt("Download the file itself", "the file is a web page, not %s weights: the download was answered with a page", want)
	case looksLikeSafetensors(start):
		return invalid("this looks like a safetensors file, not %s", want)
	}
	return invalid("this is not a %s file: it starts with %s (at byte 0)", want, quote(string(start[:min(len(start), 8)])))
}

func looksLikeSafetensors(start []byte) bool {
	return len(start) >= 9 && start[8] == '{' && binary.LittleEndian.Uint64(start) <= MaxSafetensorsHeader
}

// sniff reads the first bytes of a file.
func sniff(r io.ReaderAt, size int64) ([]byte, error) {
	buf := make([]byte, min(max(size, 0), 32))
	if err := readFull(r, buf, 0); err != nil {
		return nil, err
	}
	return buf, nil
}

// readFull fills p from offset off and turns what goes wrong into a registry.Error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return readError(err, off+int64(n))
}

// readError turns an error of the reader into a registry.Error. A cancelled context stays recognisable.
func readError(err error, off int64) error {
	var e *registry.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return corruptAt(off, "the file ends early: it became shorter while it was read")
	}
	return registry.Errorf(registry.CodeUnavailable, "cannot read at byte %d: %w", off, err)
}

// cursor reads a header front to back through a small window, however the reader works. No position goes beyond
// the file or beyond limit.
type cursor struct {
	r           io.ReaderAt
	size, limit int64
	pos         int64
	buf         []byte
	at          int64 // offset of buf[0]
	cut         bool  // the limit was reached
}

const window = 128 << 10

// check reports whether n more bytes are there.
func (c *cursor) check(n uint64, what string) error {
	if n > uint64(max(c.size-c.pos, 0)) {
		return Corrupt(copyAgain+", or wait until the copy has finished",
			"the file is damaged or half copied: %s takes %d bytes at byte %d, but the file has %d bytes", what, n, c.pos, c.size)
	}
	if n > uint64(max(c.limit-c.pos, 0)) {
		c.cut = true
		return corruptAt(c.pos, "the header is larger than %d MiB", c.limit>>20)
	}
	return nil
}

// take returns the next n bytes; n is at most the window. They are valid until the next call.
func (c *cursor) take(n uint64, what string) ([]byte, error) {
	if err := c.check(n, what); err != nil {
		return nil, err
	}
	size := int64(min(n, window))
	if c.pos < c.at || c.pos+size > c.at+int64(len(c.buf)) {
		if c.buf == nil {
			c.buf = make([]byte, min(window, c.size))
		}
		c.buf = c.buf[:min(int64(cap(c.buf)), c.size-c.pos, c.limit-c.pos)]
		if err := readFull(c.r, c.buf, c.pos); err != nil {
			return nil, err
		}
		c.at = c.pos
	}
	from := c.pos - c.at
	c.pos += size
	return c.buf[from : from+size], nil
}

// ahead returns the bytes from the position on that were read already, at most to the end of the file.
func (c *cursor) ahead() []byte {
	if c.pos < c.at || c.pos >= c.at+int64(len(c.buf)) {
		return nil
	}
	return c.buf[c.pos-c.at:]
}

func (c *cursor) skip(n uint64, what string) error {
	if err := c.check(n, what); err != nil {
		return err
	}
	c.pos += int64(min(n, math.MaxInt64)) // no more than the file has, by the check
	return nil
}

func (c *cursor) u32(what string) (uint32, error) {
	b, err := c.take(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (c *cursor) u64(what string) (uint64, error) {
	b, err := c.take(8, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// tally sums tensors by type.
type tally struct {
	elements, bytes int64
	experts         int64 // of elements, those of experts of which a token passes through some only
	byType          map[string]int64
}

func (t *tally) add(x Tensor) { t.addPacked(x, quantized{}) }

// addPacked counts the parameters that a tensor stands for, which are more than its elements when they are packed.
func (t *tally) addPacked(x Tensor, q quantized) {
	if t.byType == nil {
		t.byType = map[string]int64{}
	}
	parameters, dtype := q.parameters(x.Name, x.DType, x.Elements)
	if parameters > math.MaxInt64-t.elements {
		parameters = 0 // a shape that no file holds
	}
	t.elements += parameters
	t.bytes += x.Bytes
	t.byType[dtype] += x.Bytes
	if strings.Contains(x.Name, ".experts.") || strings.Contains(x.Name, "_exps.") {
		t.experts += parameters
	}
}

// dominant returns the type that holds most bytes; of two with as many, the first by name, so that it is always
// the same one.
func (t *tally) dominant() string {
	best, most := "", int64(-1)
	for name, n := range t.byType {
		if n > most || n == most && name < best {
			best, most = name, n
		}
	}
	return best
}
