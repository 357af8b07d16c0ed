package headers

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"strings"
)

// Limits on the directory of a PyTorch file. A tensor takes some 70 bytes of it.
const (
	maxDirectory = 64 << 20
	maxEntries   = 1 << 18
)

// zipEnd is where the directory of a zip archive is; see sections 4.3.14 to 4.3.16 of its specification, APPNOTE.TXT
// 6.3.10.
type zipEnd struct {
	entries, size, offset uint64
}

const (
	zipEndSize     = 22
	zipEndSize64   = 56
	zipLocatorSize = 20
	zipEntrySize   = 46
	maxZipComment  = 65535
)

// checkPickle checks what can be checked of PyTorch's own format without running it: that it is a zip archive whose
// entries are stored as they are, lie within the file, and have names that lead nowhere else. It returns the bytes of the
// tensors: the entries below data/. Of a file of before PyTorch 1.6, which is a bare pickle, that is the whole file.
func checkPickle(r io.ReaderAt, size int64) (int64, error) {
	start, err := sniff(r, size)
	if err != nil {
		return 0, err
	}
	// Protocol 2 pickles, as torch.save wrote them before 1.6, begin with 0x80.
	if len(start) > 0 && start[0] == 0x80 {
		return size, nil
	}
	if !bytes.HasPrefix(start, []byte("PK\x03\x04")) {
		return 0, notWeights(start, "PyTorch")
	}
	end, err := findZipEnd(r, size)
	if err != nil {
		return 0, err
	}
	if end.offset > uint64(size) || end.size > uint64(size)-end.offset {
		return 0, Corrupt(copyAgain, "the file is damaged: its directory is said to lie at byte %d, outside of its %d bytes", end.offset, size)
	}
	if end.size > maxDirectory || end.entries > maxEntries {
		return 0, Corrupt(copyAgain, "the file claims %d entries in a directory of %d bytes; no model has so many", end.entries, end.size)
	}
	list := make([]byte, end.size)
	if err := readFull(r, list, int64(end.offset)); err != nil {
		return 0, err
	}
	return checkEntries(list, end)
}

// findZipEnd reads the end of the archive, which says where its directory is.
func findZipEnd(r io.ReaderAt, size int64) (zipEnd, error) {
	var end zipEnd
	tail := make([]byte, min(size, 1024))
	if err := readFull(r, tail, size-int64(len(tail))); err != nil {
		return end, err
	}
	at := bytes.LastIndex(tail, []byte("PK\x05\x06"))
	if at < 0 && size > int64(len(tail)) { // a long comment, which PyTorch does not write
		tail = make([]byte, min(size, zipEndSize+maxZipComment))
		if err := readFull(r, tail, size-int64(len(tail))); err != nil {
			return end, err
		}
		at = bytes.LastIndex(tail, []byte("PK\x05\x06"))
	}
	if at < 0 || len(tail)-at < zipEndSize {
		return end, Corrupt(copyAgain+", or wait until the copy has finished", "the file is truncated or half copied: it is a zip archive without its end (byte %d)", size)
	}
	b := tail[at:]
	end = zipEnd{
		entries: uint64(binary.LittleEndian.Uint16(b[10:])),
		size:    uint64(binary.LittleEndian.Uint32(b[12:])),
		offset:  uint64(binary.LittleEndian.Uint32(b[16:])),
	}
	if end.entries != math.MaxUint16 && end.size != math.MaxUint32 && end.offset != math.MaxUint32 {
		return end, nil
	}
	return findZipEnd64(r, size, size-int64(len(tail)-at), end)
}

// findZipEnd64 follows the locator before the end to the numbers that did not fit into it.
func findZipEnd64(r io.ReaderAt, size, at int64, end zipEnd) (zipEnd, error) {
	if at < zipLocatorSize {
		return end, nil
	}
	locator := make([]byte, zipLocatorSize)
	if err := readFull(r, locator, at-zipLocatorSize); err != nil {
		return end, err
	}
	if !bytes.HasPrefix(locator, []byte("PK\x06\x07")) {
		return end, nil // the numbers are just so large
	}
	where := binary.LittleEndian.Uint64(locator[8:])
	if size < zipEndSize64 || where > uint64(size-zipEndSize64) {
		return end, corruptAt(at-zipLocatorSize, "the end of the archive is said to lie at byte %d, outside of its %d bytes", where, size)
	}
	b := make([]byte, zipEndSize64)
	if err := readFull(r, b, int64(where)); err != nil {
		return end, err
	}
	if !bytes.HasPrefix(b, []byte("PK\x06\x06")) {
		return end, corruptAt(int64(where), "the end of the archive is not where it should be")
	}
	return zipEnd{entries: binary.LittleEndian.Uint64(b[32:]), size: binary.LittleEndian.Uint64(b[40:]), offset: binary.LittleEndian.Uint64(b[48:])}, nil
}

// checkEntries walks the directory.
func checkEntries(list []byte, end zipEnd) (int64, error) {
	var tensors, sum uint64
	pickle := false
	at := func() int64 { return int64(end.offset+end.size) - int64(len(list)) }
	for range end.entries {
		if len(list) < zipEntrySize || !bytes.HasPrefix(list, []byte("PK\x01\x02")) {
			return 0, corruptAt(at(), "the directory of the archive is damaged")
		}
		method := binary.LittleEndian.Uint16(list[10:])
		packed, unpacked := uint64(binary.LittleEndian.Uint32(list[20:])), uint64(binary.LittleEndian.Uint32(list[24:]))
		n, extra, comment := int(binary.LittleEndian.Uint16(list[28:])), int(binary.LittleEndian.Uint16(list[30:])), int(binary.LittleEndian.Uint16(list[32:]))
		offset := uint64(binary.LittleEndian.Uint32(list[42:]))
		if len(list) < zipEntrySize+n+extra+comment {
			return 0, corruptAt(at(), "the directory of the archive is damaged")
		}
		name := string(list[zipEntrySize : zipEntrySize+n])
		unpacked, packed, offset = zip64(list[zipEntrySize+n:zipEntrySize+n+extra], unpacked, packed, offset)
		switch {
		case !plainPath(name):
			return 0, invalid("the archive holds %s, a name that leads out of it; do not use this file", quote(name))
		case method != 0 || packed != unpacked:
			return 0, invalid("%s in the archive is compressed, which PyTorch does not do; do not use this file", quote(name))
		case offset > end.offset || unpacked > end.offset-offset || sum > end.offset:
			return 0, corruptAt(at(), "%s in the archive reaches beyond the file", quote(name))
		}
		sum += unpacked
		_, inner, _ := strings.Cut(name, "/")
		pickle = pickle || inner == "data.pkl"
		if strings.HasPrefix(inner, "data/") {
			tensors += unpacked
		}
		list = list[zipEntrySize+n+extra+comment:]
	}
	if !pickle {
		return 0, invalid("this is a zip archive, but none that PyTorch wrote: it holds no data.pkl")
	}
	if sum > end.offset {
		return 0, Corrupt(copyAgain, "the entries of the archive are larger than the file: some lie in the same place")
	}
	return int64(tensors), nil
}

// zip64 takes from an entry's extra fields the numbers that did not fit, in the order in which they are there.
func zip64(extra []byte, numbers ...uint64) (uint64, uint64, uint64) {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		extra = extra[4:]
		if n > len(extra) {
			break
		}
		if field := extra[:n]; id == 1 {
			for i, v := range numbers {
				if v == math.MaxUint32 && len(field) >= 8 {
					numbers[i] = binary.LittleEndian.Uint64(field)
					field = field[8:]
				}
			}
		}
		extra = extra[n:]
	}
	return numbers[0], numbers[1], numbers[2]
}

// plainPath reports whether a path with slashes stays below the folder that it is relative to.
func plainPath(name string) bool {
	if name == "" || len(name) > 4096 || strings.ContainsAny(name, "\\\x00") || strings.HasPrefix(name, "/") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return false
		}
	}
	return true
}
