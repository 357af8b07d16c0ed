package pytorch

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"path"
	"strings"
)

// maxDirectory is how much of a zip archive its directory may be, in bytes: a tensor takes some 70 of it.
const maxDirectory = 32 << 20

// errDirectory is what a directory ends with that is longer than any model's.
var errDirectory = errors.New("its directory is longer than any model's")

// frugal reads a limited number of bytes: the zip package makes as many entries as a directory claims to have.
type frugal struct {
	io.ReaderAt
	left int64
}

func (f *frugal) ReadAt(b []byte, at int64) (int, error) {
	if f.left -= int64(len(b)); f.left < 0 {
		return 0, errDirectory
	}
	return f.ReaderAt.ReadAt(b, at)
}

// readZip reads the layout since PyTorch 1.6: a zip archive of entries that are stored as they are, FOLDER/data.pkl and
// FOLDER/data/KEY for each storage.
func (f *file) readZip() (any, error) {
	archive, err := zip.NewReader(&frugal{f, maxDirectory}, f.size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) { // such names are looked at below
		return nil, damaged(f.name, "it is a zip archive that is not whole: %v", err)
	}
	entries := map[string]*zip.File{}
	var pickle *zip.File
	var sum uint64
	for _, e := range archive.File {
		switch {
		case !plain(e.Name):
			return nil, damaged(f.name, "its archive holds %s, a name that leads out of it", quote(e.Name))
		case e.Method != zip.Store || e.CompressedSize64 != e.UncompressedSize64 || e.Flags&1 != 0:
			return nil, damaged(f.name, "%s in its archive is compressed or encrypted, which PyTorch does not do", quote(e.Name))
		case e.UncompressedSize64 > uint64(f.size) || sum > uint64(f.size):
			return nil, damaged(f.name, "%s in its archive reaches beyond the file", quote(e.Name))
		}
		sum += e.UncompressedSize64
		if _, twice := entries[e.Name]; twice {
			return nil, damaged(f.name, "its archive holds %s twice", quote(e.Name))
		}
		entries[e.Name] = e
		if _, inner, _ := strings.Cut(e.Name, "/"); inner == "data.pkl" {
			pickle = e
		}
	}
	if sum > uint64(f.size) {
		return nil, damaged(f.name, "the entries of its archive are larger than the file: some lie in the same place")
	}
	if pickle == nil {
		return nil, damaged(f.name, "it is a zip archive, but none that torch.save wrote: it holds no data.pkl")
	}
	folder := path.Dir(pickle.Name)
	if order := entries[folder+"/byteorder"]; order != nil {
		if err := f.littleEndian(order); err != nil {
			return nil, err
		}
	}
	at, err := f.place(pickle)
	if err != nil {
		return nil, err
	}
	size := int64(pickle.UncompressedSize64)
	if size > maxPickle {
		return nil, damaged(f.name, "its pickle is longer than any model's")
	}
	u := newUnpickler(f.name, io.NewSectionReader(f, at, size), size)
	known := map[string]*storage{}
	u.load = func(id tuple) (*storage, error) {
		return f.inArchive(u, id, known, func(key string) *zip.File { return entries[folder+"/data/"+key] })
	}
	return u.run()
}

// plain reports whether the name of an entry leads nowhere else. No file is ever made of it; it is a sign of a bad file.
func plain(name string) bool {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, "\\\x00") || strings.HasPrefix(name, "/") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return false
		}
	}
	return true
}

// place returns the byte of the file at which the content of an entry begins, all of which is in the file.
func (f *file) place(e *zip.File) (int64, error) {
	at, err := e.DataOffset()
	if err != nil || at < 0 || at > f.size || int64(e.UncompressedSize64) > f.size-at {
		return 0, damaged(f.name, "%s in its archive is not where it should be", quote(e.Name))
	}
	return at, nil
}

// littleEndian refuses what a machine of the other kind has written. Nearly nobody has one.
func (f *file) littleEndian(e *zip.File) error {
	at, err := f.place(e)
	if err != nil {
		return err
	}
	b := make([]byte, min(e.UncompressedSize64, 16))
	if _, err := f.ReadAt(b, at); err != nil {
		return damaged(f.name, "%v", err)
	}
	if !bytes.Equal(b, []byte("little")) {
		return damaged(f.name, "its numbers are in the order of bytes %s, and only little is read", quote(string(b)))
	}
	return nil
}

// inArchive returns the storage that an id names: ('storage', class, key, device, count).
func (f *file) inArchive(u *unpickler, id tuple, known map[string]*storage, find func(string) *zip.File) (*storage, error) {
	key, s, err := u.storage(id)
	if err != nil {
		return nil, err
	}
	if old := known[key]; old != nil {
		if old.dtype != s.dtype || old.count != s.count {
			return nil, u.nonsense("a storage that is said to be two different ones")
		}
		return old, nil
	}
	e := find(key)
	if e == nil {
		return nil, damaged(f.name, "the bytes of its storage %s are not in its archive", quote(key))
	}
	if s.count > int64(e.UncompressedSize64)/s.dtype.size {
		return nil, damaged(f.name, "its storage %s claims %d elements of %s, which its %d bytes do not hold", quote(key), s.count, s.dtype.name, e.UncompressedSize64)
	}
	if s.at, err = f.place(e); err != nil {
		return nil, err
	}
	s.known = true
	known[key] = s
	return s, nil
}

// storage reads an id: what it is of, and under which key its bytes lie.
func (u *unpickler) storage(id tuple) (key string, s *storage, err error) {
	if len(id) < 5 {
		return "", nil, u.nonsense("a reference to a storage that says too little")
	}
	class, ok1 := id[1].(global)
	key, ok2 := id[2].(string)
	count, ok3 := id[4].(int64)
	kind, ok4 := dtypes[strings.TrimPrefix(string(class), "torch.")]
	if !ok1 || !ok2 || !ok3 || !ok4 || count < 0 || count > math.MaxInt64/8 {
		return "", nil, u.nonsense("a reference to a storage that is none")
	}
	return key, &storage{dtype: kind, count: count}, nil
}

// What a file of before PyTorch 1.6 begins with: a number of 80 bits, and the version of the layout.
const (
	bareMagic   = long("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
	bareVersion = int64(1001)
)

// readBare reads the layout before PyTorch 1.6: pickles of a magic number, a version, what machine wrote it, the model and
// the keys of its storages; then the storages, each as its number of elements in eight bytes and the elements.
func (f *file) readBare() (any, error) {
	u := newUnpickler(f.name, io.NewSectionReader(f, 0, f.size), f.size)
	var parts [5]any
	known := map[string]*storage{}
	for i := range parts {
		u.load = nil
		if i == 3 {
			u.load = func(id tuple) (*storage, error) {
				key, s, err := u.storage(id)
				if err != nil {
					return nil, err
				}
				if len(id) > 5 && id[5] != nil {
					return nil, u.nonsense("a view of a storage, as PyTorch of before 0.4 wrote them; load the file with PyTorch and save it again")
				}
				if old := known[key]; old != nil {
					if old.dtype != s.dtype || old.count != s.count {
						return nil, u.nonsense("a storage that is said to be two different ones")
					}
					return old, nil
				}
				if s.count > f.size/s.dtype.size {
					return nil, u.nonsense("a storage that is larger than the file")
				}
				known[key] = s
				return s, nil
			}
		}
		v, err := u.run()
		if err != nil {
			return nil, err
		}
		if i == 0 && v != any(bareMagic) {
			return nil, damaged(f.name, "it is a pickle, but none that torch.save wrote")
		}
		if i == 1 && v != any(bareVersion) {
			return nil, damaged(f.name, "torch.save wrote it in a layout that is not known")
		}
		parts[i] = v
		u.left = f.size - u.read
	}
	if machine, ok := parts[2].(*dict); ok {
		for _, e := range machine.items {
			if e.key == "little_endian" && e.value == any(false) {
				return nil, damaged(f.name, "its numbers are in the order of bytes big, and only little is read")
			}
		}
	}
	keys, ok := parts[4].(*list)
	if !ok {
		return nil, damaged(f.name, "it does not say which storages follow")
	}
	return parts[3], f.placeBare(u.read, keys.items, known)
}

// placeBare finds where the storages lie, which follow each other from at on.
func (f *file) placeBare(at int64, keys []any, known map[string]*storage) error {
	for _, k := range keys {
		key, ok := k.(string)
		s := known[key]
		if !ok || s == nil || s.known {
			return damaged(f.name, "a storage follows that no tensor uses, or twice")
		}
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, at); err != nil {
			return damaged(f.name, "it ends before its storage %s", quote(key))
		}
		if n := binary.LittleEndian.Uint64(b); n != uint64(s.count) {
			return damaged(f.name, "its storage %s has %d elements in one place and %d in another", quote(key), s.count, n)
		}
		s.at, s.known = at+8, true
		if at = s.at + s.count*s.dtype.size; at > f.size {
			return damaged(f.name, "it ends in the middle of its storage %s", quote(key))
		}
	}
	for key, s := range known {
		if !s.known {
			return damaged(f.name, "the bytes of its storage %s are not in it", quote(key))
		}
	}
	return nil
}
