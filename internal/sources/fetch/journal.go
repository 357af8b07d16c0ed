package fetch

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"sync"
)

// The journal of a partial file says which of its bytes are there. It is a log that is only appended to:
//
//	8 bytes     "LLMMJRN1"
//	records     length u16 | kind u8 | payload | CRC-32C u32, little endian
//
// The CRC is over length, kind and payload and goes on from the CRC of the record before, so that a record is believed
// only when everything before it is. Reading stops at the first that is not; what follows was never promised.
//
// What is promised. A record is written after the bytes it speaks of were written. After a kill both are in the page
// cache, so every record counts. After a power loss or a crash of the kernel the journal may have reached the disk and
// the bytes not: the identity holds the boot's id, and when that is another, only records count that a synced record
// covers, which is written when fdatasync has returned. A journal of another content, size or digest counts for nothing.
const (
	journalMagic = "LLMMJRN1"
	journalMax   = 64 << 20 // bytes; a file of a terabyte in blocks of a MiB needs less than that after a rewrite

	recordIdentity = 1 // JSON, the first record
	recordRange    = 2 // off u64, end u64: these bytes are in the file
	recordDigest   = 3 // pos u64, state: the digest of the first pos bytes
	recordSynced   = 4 // length u64: the bytes that the first so many bytes of this journal speak of are on the disk
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// identity is whose bytes a journal speaks of.
type identity struct {
	Size   int64      `json:"size"`
	Tag    string     `json:"tag"`
	Kind   DigestKind `json:"kind"`
	Sum    string     `json:"sum"`
	BootID string     `json:"boot_id"`
}

// content is the identity without the boot.
func (i identity) content() identity {
	i.BootID = ""
	return i
}

// history is what a journal says.
type history struct {
	identity identity
	done     spans
	pos      int64  // of state
	state    []byte // of the digest, nil when it was never written
}

var errJournal = errors.New("this is no journal of a partial file")

// decodeJournal reads a journal as far as it can be believed on a machine that was booted as bootID.
func decodeJournal(b []byte, bootID string) (history, error) {
	var h history
	if !strings.HasPrefix(string(b), journalMagic) {
		return h, errJournal
	}
	type record struct {
		kind    byte
		payload []byte
		end     int64 // in the journal
	}
	var records []record
	crc, pos, synced := uint32(0), len(journalMagic), int64(0)
	for pos+7 <= len(b) {
		n := int(binary.LittleEndian.Uint16(b[pos:]))
		if pos+3+n+4 > len(b) {
			break
		}
		crc = crc32.Update(crc, castagnoli, b[pos:pos+3+n])
		if binary.LittleEndian.Uint32(b[pos+3+n:]) != crc {
			break
		}
		r := record{kind: b[pos+2], payload: b[pos+3 : pos+3+n], end: int64(pos + 7 + n)}
		pos += 7 + n
		if r.kind == recordSynced && n == 8 {
			synced = max(synced, int64(min(binary.LittleEndian.Uint64(r.payload), uint64(pos))))
			continue
		}
		records = append(records, r)
	}
	if len(records) == 0 || records[0].kind != recordIdentity {
		return h, errJournal
	}
	if err := json.Unmarshal(records[0].payload, &h.identity); err != nil || h.identity.Size < 0 {
		return history{}, errJournal
	}
	sameBoot := h.identity.BootID != "" && h.identity.BootID == bootID
	for _, r := range records[1:] {
		if !sameBoot && r.end > synced {
			break
		}
		if err := h.apply(r.kind, r.payload); err != nil {
			return history{}, err
		}
	}
	if h.pos > h.done.prefix() {
		return history{}, errJournal
	}
	return h, nil
}

// apply takes one record of the journal. Those of kinds that a later version may add are passed over.
func (h *history) apply(kind byte, payload []byte) error {
	switch kind {
	case recordRange:
		if len(payload) != 16 {
			return errJournal
		}
		off, end := binary.LittleEndian.Uint64(payload), binary.LittleEndian.Uint64(payload[8:])
		if off >= end || end > uint64(h.identity.Size) {
			return errJournal
		}
		h.done.add(span{int64(off), int64(end)})
	case recordDigest:
		if len(payload) < 8 || binary.LittleEndian.Uint64(payload) > uint64(h.identity.Size) {
			return errJournal
		}
		h.pos, h.state = int64(binary.LittleEndian.Uint64(payload)), payload[8:]
	case recordIdentity:
		return errJournal
	}
	return nil
}

// journal appends to the journal of one partial file. It is safe for concurrent use.
type journal struct {
	mu   sync.Mutex
	file *os.File
	crc  uint32
	len  int64
	buf  []byte
}

// writeJournal begins a journal at path with what h says, in place of what was there. The partial file's bytes that it
// speaks of must be on the disk already when synced is true.
func writeJournal(path string, h history, synced bool) (*journal, error) {
	// The new one is made whole beside the old one: a kill in between loses nothing.
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: f}
	if err := j.begin(h, synced); err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(next))
	}
	if err := os.Rename(next, path); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) begin(h history, synced bool) error {
	id, err := json.Marshal(h.identity)
	if err != nil {
		return err
	}
	j.buf = append(j.buf[:0], journalMagic...)
	if err := j.record(recordIdentity, id); err != nil {
		return err
	}
	for _, s := range h.done {
		if err := j.record(recordRange, rangePayload(s)); err != nil {
			return err
		}
	}
	if h.state != nil {
		if err := j.record(recordDigest, digestPayload(h.pos, h.state)); err != nil {
			return err
		}
	}
	if synced {
		if err := j.record(recordSynced, binary.LittleEndian.AppendUint64(nil, uint64(len(j.buf)))); err != nil {
			return err
		}
	}
	return j.flush()
}

// record puts a record behind what is to be written.
func (j *journal) record(kind byte, payload []byte) error {
	if len(payload) > 0xffff {
		return fmt.Errorf("a record of %d bytes is too long for a journal", len(payload))
	}
	start := len(j.buf)
	j.buf = binary.LittleEndian.AppendUint16(j.buf, uint16(len(payload)))
	j.buf = append(j.buf, kind)
	j.buf = append(j.buf, payload...)
	j.crc = crc32.Update(j.crc, castagnoli, j.buf[start:])
	j.buf = binary.LittleEndian.AppendUint32(j.buf, j.crc)
	return nil
}

func (j *journal) flush() error {
	n, err := j.file.WriteAt(j.buf, j.len)
	if err == nil {
		j.len += int64(n)
	}
	j.buf = j.buf[:0]
	return err
}

func (j *journal) append(kind byte, payload []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	crc := j.crc
	if err := j.record(kind, payload); err != nil {
		return err
	}
	if err := j.flush(); err != nil {
		// What was written of it, if anything, is overwritten by the next record.
		j.crc = crc
		return err
	}
	return nil
}

// wrote notes that these bytes are in the file.
func (j *journal) wrote(s span) error { return j.append(recordRange, rangePayload(s)) }

// hashed notes the digest of the first pos bytes, all of which were noted as written before.
func (j *journal) hashed(pos int64, state []byte) error {
	return j.append(recordDigest, digestPayload(pos, state))
}

// length returns how long the journal is now: after a sync of the file that was begun now, synced takes it.
func (j *journal) length() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.len
}

// synced notes that what the first length bytes of the journal speak of is on the disk.
func (j *journal) synced(length int64) error {
	if err := j.append(recordSynced, binary.LittleEndian.AppendUint64(nil, uint64(length))); err != nil {
		return err
	}
	return j.file.Sync()
}

func (j *journal) close() { j.file.Close() }

func rangePayload(s span) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 16), uint64(s.off))
	return binary.LittleEndian.AppendUint64(b, uint64(s.end))
}

func digestPayload(pos int64, state []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(state)), uint64(pos)), state...)
}
