package pytorch

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits on one pickle. A tensor takes some 300 bytes and 30 steps of it.
const (
	maxPickle = 64 << 20 // bytes
	maxSteps  = 4 << 20
	maxStack  = 1 << 20 // values that wait
)

// The instructions that are followed; https://github.com/python/cpython/blob/3.14/Lib/pickletools.py says what each does. Those
// that torch.save writes are of protocol 2; the newer ones do the same in fewer bytes.
const (
	opMark, opStop, opPop, opNone                                = '(', '.', '0', 'N'
	opInt4, opInt1, opInt2, opFloat                              = 'J', 'K', 'M', 'G'
	opString4, opString1, opString8                              = 'X', 0x8c, 0x8d
	opGlobal, opStackGlobal, opReduce, opBuild, opNewObject      = 'c', 0x93, 'R', 'b', 0x81
	opEmptyDict, opSetItem, opSetItems                           = '}', 's', 'u'
	opEmptyList, opAppend, opAppends                             = ']', 'a', 'e'
	opEmptyTuple, opTuple, opTuple1, opTuple2, opTuple3          = ')', 't', 0x85, 0x86, 0x87
	opGet1, opGet4, opPut1, opPut4, opMemoize                    = 'h', 'j', 'q', 'r', 0x94
	opProto, opFrame, opTrue, opFalse, opLong1, opPersistentLoad = 0x80, 0x95, 0x88, 0x89, 0x8a, 'Q'
)

// Values that a pickle builds, beside nil, bool, int64, float64, string, *Tensor and *storage.
type (
	tuple  []any
	list   struct{ items []any }
	entry  struct{ key, value any }
	dict   struct{ items []entry }
	long   string // a number of more than 64 bits, as its bytes
	global string // a class or a function by its name, module and all; never called
	mark   struct{}
)

func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case *Tensor:
		return "a tensor"
	case *dict:
		return "a dictionary"
	case *list, tuple:
		return "a list"
	case string:
		return "a text"
	case global:
		return string(v)
	}
	return "a number"
}

// unpickler follows one pickle.
type unpickler struct {
	name  string // of the file
	in    *bufio.Reader
	left  int64 // bytes that may still be read
	read  int64 // bytes that were
	steps int
	stack []any
	memo  map[uint32]any
	count int // of tensors
	// load returns the storage that a persistent id names.
	load func(id tuple) (*storage, error)
}

func newUnpickler(name string, in io.Reader, size int64) *unpickler {
	return &unpickler{name: name, in: bufio.NewReaderSize(in, int(min(64<<10, max(16, size)))), left: size}
}

// next reads n bytes. It asks for memory only when as many can be there.
func (u *unpickler) next(n int64) ([]byte, error) {
	if n < 0 || n > u.left {
		return nil, damaged(u.name, "its pickle ends in the middle, at byte %d", u.read)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(u.in, b); err != nil {
		return nil, damaged(u.name, "its pickle ends in the middle, at byte %d", u.read)
	}
	u.left, u.read = u.left-n, u.read+n
	return b, nil
}

// one reads a byte.
func (u *unpickler) one() (byte, error) {
	if u.left > 0 {
		if b, err := u.in.ReadByte(); err == nil {
			u.left, u.read = u.left-1, u.read+1
			return b, nil
		}
	}
	_, err := u.next(1)
	return 0, err
}

func (u *unpickler) number(n int64) (uint64, error) {
	b, err := u.next(n)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(append(b, make([]byte, 8-n)...)), nil
}

// line reads to the end of a line, which is left out.
func (u *unpickler) line() (string, error) {
	var b []byte
	for {
		c, err := u.one()
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return string(b), nil
		}
		if b = append(b, c); len(b) > maxName {
			return "", u.nonsense("a name that does not end")
		}
	}
}

func (u *unpickler) nonsense(what string) error {
	return damaged(u.name, "its pickle makes no sense at byte %d: %s", u.read, what)
}

func (u *unpickler) push(v any) error {
	if len(u.stack) >= maxStack {
		return u.nonsense("too many values")
	}
	u.stack = append(u.stack, v)
	return nil
}

// pop takes the last value that no mark hides.
func (u *unpickler) pop() (any, error) {
	v, err := u.last()
	if err == nil {
		u.stack = u.stack[:len(u.stack)-1]
	}
	return v, err
}

func (u *unpickler) last() (any, error) {
	if len(u.stack) == 0 {
		return nil, u.nonsense("a value is missing")
	}
	v := u.stack[len(u.stack)-1]
	if _, hidden := v.(mark); hidden {
		return nil, u.nonsense("a value is missing")
	}
	return v, nil
}

// sinceMark takes all values since the last mark, and the mark.
func (u *unpickler) sinceMark() ([]any, error) {
	for i := len(u.stack) - 1; i >= 0; i-- {
		if _, ok := u.stack[i].(mark); ok {
			out := slices.Clone(u.stack[i+1:])
			u.stack = u.stack[:i]
			return out, nil
		}
	}
	return nil, u.nonsense("a mark is missing")
}

// run follows the pickle to its end and returns what it built.
func (u *unpickler) run() (any, error) {
	// What came before in the same file has its own.
	u.stack, u.memo, u.steps = nil, map[uint32]any{}, 0
	u.left = min(u.left, maxPickle)
	for {
		op, err := u.one()
		if err != nil {
			return nil, err
		}
		if op == opStop {
			return u.pop()
		}
		if u.steps++; u.steps > maxSteps {
			return nil, u.nonsense("it is longer than any model's")
		}
		if err := u.step(op); err != nil {
			return nil, err
		}
	}
}

// step follows one instruction.
func (u *unpickler) step(op byte) error {
	switch op {
	case opProto:
		_, err := u.one()
		return err
	case opFrame:
		_, err := u.next(8)
		return err
	case opMark:
		return u.push(mark{})
	case opPop:
		if n := len(u.stack); n > 0 {
			u.stack = u.stack[:n-1]
			return nil
		}
		return u.nonsense("a value is missing")
	case opGet1, opGet4, opPut1, opPut4, opMemoize:
		return u.remember(op)
	case opEmptyDict, opSetItem, opSetItems, opEmptyList, opAppend, opAppends:
		return u.collect(op)
	case opEmptyTuple, opTuple, opTuple1, opTuple2, opTuple3:
		return u.tuple(op)
	case opGlobal, opStackGlobal:
		return u.global(op)
	case opReduce, opNewObject:
		return u.reduce()
	case opBuild:
		return u.build()
	case opPersistentLoad:
		return u.persistent()
	}
	return u.literal(op)
}

// literal follows the instructions that push a value that stands in the pickle.
func (u *unpickler) literal(op byte) error {
	size := map[byte]int64{opInt1: 1, opInt2: 2, opInt4: 4, opFloat: 8, opString1: 1, opString4: 4, opString8: 8, opLong1: 1}[op]
	switch op {
	case opNone:
		return u.push(nil)
	case opTrue, opFalse:
		return u.push(op == opTrue)
	}
	if size == 0 {
		if slices.Contains([]byte{'i', 'o', 0x82, 0x83, 0x84, 0x92}, op) { // they make objects of classes by name
			return dangerous(u.name, fmt.Sprintf("an object (instruction %q)", op))
		}
		return u.nonsense(fmt.Sprintf("the instruction %#02x is none that builds a model", op))
	}
	n, err := u.number(size)
	if err != nil {
		return err
	}
	switch op {
	case opInt1, opInt2:
		return u.push(int64(n))
	case opInt4:
		return u.push(int64(int32(uint32(n))))
	case opFloat:
		return u.push(math.Float64frombits(n)) // the order of its bytes does not matter: no number with a point is used
	}
	if n > maxPickle {
		return u.nonsense("a text that is longer than the file")
	}
	b, err := u.next(int64(n))
	if err != nil {
		return err
	}
	if op == opLong1 {
		return u.push(wide(b))
	}
	if !utf8.Valid(b) {
		return u.nonsense("a text that is not UTF-8")
	}
	return u.push(string(b))
}

// wide reads a number of any length: little-endian, in two's complement.
func wide(b []byte) any {
	if len(b) > 8 {
		return long(b)
	}
	fill := byte(0)
	if len(b) > 0 && b[len(b)-1]&0x80 != 0 {
		fill = 0xff
	}
	full := slices.Repeat([]byte{fill}, 8)
	copy(full, b)
	return int64(binary.LittleEndian.Uint64(full))
}

// remember follows the instructions of the memo, which lets a value be used again.
func (u *unpickler) remember(op byte) error {
	key := uint32(len(u.memo))
	if op != opMemoize {
		n, err := u.number(map[byte]int64{opGet1: 1, opPut1: 1, opGet4: 4, opPut4: 4}[op])
		if err != nil {
			return err
		}
		key = uint32(n)
	}
	if op == opGet1 || op == opGet4 {
		v, ok := u.memo[key]
		if !ok {
			return u.nonsense("a value that was never kept")
		}
		return u.push(v)
	}
	v, err := u.last()
	if err == nil {
		u.memo[key] = v
	}
	return err
}

// collect follows the instructions of lists and dictionaries.
func (u *unpickler) collect(op byte) error {
	var items []any
	var err error
	switch op {
	case opEmptyDict:
		return u.push(&dict{})
	case opEmptyList:
		return u.push(&list{})
	case opSetItems, opAppends:
		items, err = u.sinceMark()
	default:
		wanted := 1
		if op == opSetItem {
			wanted = 2
		}
		for range wanted {
			var v any
			if v, err = u.pop(); err != nil {
				return err
			}
			items = append([]any{v}, items...)
		}
	}
	if err != nil {
		return err
	}
	into, err := u.last()
	if err != nil {
		return err
	}
	switch c := into.(type) {
	case *list:
		if op == opAppend || op == opAppends {
			c.items = append(c.items, items...)
			return nil
		}
	case *dict:
		if (op == opSetItem || op == opSetItems) && len(items)%2 == 0 {
			for i := 0; i < len(items); i += 2 {
				c.items = append(c.items, entry{items[i], items[i+1]})
			}
			return nil
		}
	}
	return u.nonsense("values that belong nowhere")
}

func (u *unpickler) tuple(op byte) error {
	if op == opTuple {
		items, err := u.sinceMark()
		if err != nil {
			return err
		}
		return u.push(tuple(items))
	}
	out := make(tuple, map[byte]int{opEmptyTuple: 0, opTuple1: 1, opTuple2: 2, opTuple3: 3}[op])
	for i := len(out) - 1; i >= 0; i-- {
		v, err := u.pop()
		if err != nil {
			return err
		}
		out[i] = v
	}
	return u.push(out)
}

// What a model's pickle may name. None of it is called: what it would build is built here.
const (
	classDict      = "collections.OrderedDict"
	classTensor    = "torch._utils._rebuild_tensor_v2"
	classOldTensor = "torch._utils._rebuild_tensor"
	classParameter = "torch._utils._rebuild_parameter"
	classSize      = "torch.Size"
)

// otherTypes is what torch.save names where tensors are of a type that is not in dtypes: how it writes float8 and the
// unsigned ones of 16 bits and more, and the storages of complex and of quantised numbers.
var otherTypes = regexp.MustCompile(`^torch\._utils\._rebuild_(tensor_v3|qtensor)$|^torch\.(Complex(Float|Double)|QU?Int(8|32|4x2|2x4))Storage$`)

// global takes the name of a class or a function. Nearly all are refused at once, used or not.
func (u *unpickler) global(op byte) error {
	var parts [2]string
	if op == opGlobal {
		for i := range parts {
			line, err := u.line()
			if err != nil {
				return err
			}
			parts[i] = line
		}
	} else {
		for i := 1; i >= 0; i-- {
			v, err := u.pop()
			if err != nil {
				return err
			}
			text, ok := v.(string)
			if !ok {
				return u.nonsense("a name that is no text")
			}
			parts[i] = text
		}
	}
	full := parts[0] + "." + parts[1]
	_, isStorage := dtypes[strings.TrimPrefix(full, "torch.")]
	if isStorage = isStorage && strings.HasPrefix(full, "torch."); isStorage || slices.Contains([]string{classDict, classTensor, classOldTensor, classParameter, classSize}, full) {
		return u.push(global(full))
	}
	if otherTypes.MatchString(full) {
		return otherType(u.name, full)
	}
	return dangerous(u.name, full)
}

// reduce builds what a function of those that are known would return.
func (u *unpickler) reduce() error {
	rawArgs, err := u.pop()
	if err != nil {
		return err
	}
	what, err := u.pop()
	if err != nil {
		return err
	}
	args, ok := rawArgs.(tuple)
	class, named := what.(global)
	if !ok || !named {
		return u.nonsense("a call of something that is no function")
	}
	switch {
	case class == classDict && len(args) == 0:
		return u.push(&dict{})
	case class == classSize && len(args) == 1:
		return u.push(args[0])
	case class == classParameter && len(args) >= 1: // tensor, requires_grad, hooks
		if _, ok := args[0].(*Tensor); ok {
			return u.push(args[0])
		}
	case (class == classTensor || class == classOldTensor) && len(args) >= 4: // storage, offset, size, strides, and what training needs
		t, err := u.rebuild(args)
		if err != nil {
			return err
		}
		return u.push(t)
	}
	return u.nonsense("a call of " + string(class) + " with other values than torch.save gives it")
}

// build takes what Python would keep beside an object: of a dictionary of tensors, the versions of its modules.
func (u *unpickler) build() error {
	if _, err := u.pop(); err != nil {
		return err
	}
	v, err := u.last()
	if err != nil {
		return err
	}
	if _, ok := v.(*dict); !ok {
		return u.nonsense("a state of something that has none")
	}
	return nil
}

func (u *unpickler) persistent() error {
	v, err := u.pop()
	if err != nil {
		return err
	}
	id, ok := v.(tuple)
	if !ok || len(id) == 0 || u.load == nil {
		return u.nonsense("a reference to something outside")
	}
	if kind, ok := id[0].(string); !ok || kind != "storage" {
		return dangerous(u.name, "an object that belongs to "+kindOf(id[0])) // a whole module, with its source
	}
	s, err := u.load(id)
	if err != nil {
		return err
	}
	return u.push(s)
}

// rebuild makes a tensor of the arguments of _rebuild_tensor_v2, and holds them against the storage.
func (u *unpickler) rebuild(args tuple) (*Tensor, error) {
	if u.count++; u.count > maxTensors {
		return nil, u.nonsense("more tensors than any model has")
	}
	in, ok := args[0].(*storage)
	offset, isNumber := args[1].(int64)
	shape, shaped := numbers(args[2])
	strides, strode := numbers(args[3])
	if !ok || !isNumber || !shaped || !strode || len(shape) != len(strides) || len(shape) > maxDims {
		return nil, u.nonsense("a tensor without a storage, an offset, a shape and strides")
	}
	t := &Tensor{DType: in.dtype.name, Shape: shape, strides: strides, offset: offset, in: in}
	if offset < 0 || offset > in.count {
		return nil, u.nonsense("a tensor that begins outside of its storage")
	}
	if slices.ContainsFunc(shape, negative) || slices.ContainsFunc(strides, negative) {
		return nil, u.nonsense("a tensor with a shape below zero")
	}
	if slices.Contains(shape, 0) {
		return t, nil // it has no elements, and so none outside
	}
	// Where the last element is says whether all are inside. An expanded tensor has more elements than its storage: those along
	// a stride of 0 are one; what all take together is held against the size of the file, see checkSizes.
	count, last := int64(1), offset
	for i, n := range shape {
		if n > maxElements/count {
			return nil, u.nonsense("a tensor of more elements than any model has")
		}
		if strides[i] > 0 && n-1 > in.count/strides[i] {
			return nil, u.nonsense("a tensor that is larger than its storage")
		}
		count *= n
		last += (n - 1) * strides[i]
	}
	if last >= in.count {
		return nil, u.nonsense("a tensor that reaches beyond its storage")
	}
	return t, nil
}

func negative(n int64) bool { return n < 0 }

// numbers reads a tuple of numbers, as a shape is.
func numbers(v any) ([]int64, bool) {
	t, ok := v.(tuple)
	if !ok {
		return nil, false
	}
	out := make([]int64, 0, len(t))
	for _, e := range t {
		n, ok := e.(int64)
		if !ok {
			return nil, false
		}
		out = append(out, n)
	}
	return out, true
}
