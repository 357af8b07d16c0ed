package fetch

import (
	"crypto/md5"  //nolint:gosec // S3 names objects by it; it finds accidents, and nobody relies on it against an attacker
	"crypto/sha1" //nolint:gosec // git names blobs by it
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strconv"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// running is a digest of the first pos bytes of a file. Its state can be stored and taken up again, so that a resumed
// fetch reads nothing twice.
type running struct {
	kind  DigestKind
	sum   hash.Hash // nil for the zero Digest; with parts, of the part that pos lies in
	pos   int64
	parts []int64
	part  int       // that pos lies in
	left  int64     // bytes of it
	outer hash.Hash // of the sums of the parts before it; nil without parts
}

// newRunning returns the digest of nothing yet. CodeInvalid for a kind that does not exist, and for parts that are not those
// of a file of this size.
func newRunning(d Digest, size int64) (*running, error) {
	r := &running{kind: d.Kind, sum: newHash(d.Kind), parts: d.Parts}
	if r.sum == nil {
		if d.Kind == "" {
			return r, nil
		}
		return nil, registry.Errorf(registry.CodeInvalid, "there is no digest of the kind %q; use %s, %s or %s", d.Kind, SHA256, GitBlobSHA1, MD5)
	}
	if d.Kind == GitBlobSHA1 {
		r.sum.Write([]byte("blob " + strconv.FormatInt(size, 10) + "\x00"))
	}
	if raw, err := hex.DecodeString(d.Sum); err != nil || len(raw) != r.sum.Size() {
		return nil, registry.Errorf(registry.CodeInvalid, "%q is no %s digest: it needs %d hexadecimal digits", d.Sum, d.Kind, 2*r.sum.Size())
	}
	if r.parts == nil {
		return r, nil
	}
	var sum int64
	for _, n := range r.parts {
		if n <= 0 || n > size-sum {
			return nil, registry.Errorf(registry.CodeInvalid, "the parts of a %s digest are not those of a file of %d bytes", d.Kind, size)
		}
		sum += n
	}
	if sum != size || d.Kind == GitBlobSHA1 {
		return nil, registry.Errorf(registry.CodeInvalid, "the parts of a %s digest are not those of a file of %d bytes", d.Kind, size)
	}
	r.outer = newHash(d.Kind)
	r.enter(0)
	return r, nil
}

// nvme is the table of the CRC that S3 computes of whole objects; its polynomial is that of the NVM Express specification,
// reversed.
var nvme = sync.OnceValue(func() *crc64.Table { return crc64.MakeTable(0x9a6c9329ac4bc9b5) })

// newHash returns nil for a kind that does not exist.
func newHash(kind DigestKind) hash.Hash {
	switch kind {
	case SHA256:
		return sha256.New()
	case GitBlobSHA1, SHA1:
		return sha1.New() //nolint:gosec // git names blobs by it
	case MD5:
		return md5.New() //nolint:gosec // S3 names objects by it
	case CRC32:
		return crc32.NewIEEE()
	case CRC32C:
		return crc32.New(castagnoli)
	case CRC64NVME:
		return crc64.New(nvme())
	}
	return nil
}

// enter begins a part.
func (r *running) enter(part int) {
	if r.part, r.left = part, 0; part < len(r.parts) {
		r.left = r.parts[part]
	}
}

func (r *running) write(b []byte) {
	r.pos += int64(len(b))
	if r.outer == nil {
		r.sum.Write(b)
		return
	}
	for len(b) > 0 && r.left > 0 {
		n := min(int64(len(b)), r.left)
		r.sum.Write(b[:n])
		b, r.left = b[n:], r.left-n
		if r.left == 0 {
			r.outer.Write(r.sum.Sum(nil))
			r.sum.Reset()
			r.enter(r.part + 1)
		}
	}
}

// state returns what resume needs.
func (r *running) state() ([]byte, error) {
	inner, err := r.marshal(r.sum)
	if err != nil || r.outer == nil {
		return inner, err
	}
	outer, err := r.marshal(r.outer)
	if err != nil {
		return nil, err
	}
	return append(append([]byte{byte(len(outer))}, outer...), inner...), nil // a state has some 100 bytes
}

func (r *running) marshal(h hash.Hash) ([]byte, error) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("the state of a %s digest cannot be stored", r.kind)
	}
	return m.MarshalBinary()
}

// resume takes up a stored state, which covers the first pos bytes.
func (r *running) resume(state []byte, pos int64) error {
	if r.outer != nil {
		if len(state) == 0 || len(state) < 1+int(state[0]) {
			return fmt.Errorf("the state of a %s digest of parts is too short", r.kind)
		}
		n := 1 + int(state[0])
		if err := r.unmarshal(r.outer, state[1:n]); err != nil {
			return err
		}
		state = state[n:]
	}
	if err := r.unmarshal(r.sum, state); err != nil {
		return err
	}
	r.pos = pos
	if r.outer != nil {
		r.enter(0)
		for pos >= r.left && r.left > 0 {
			pos -= r.left
			r.enter(r.part + 1)
		}
		r.left -= pos
	}
	return nil
}

func (r *running) unmarshal(h hash.Hash, state []byte) error {
	u, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		return fmt.Errorf("the state of a %s digest cannot be taken up", r.kind)
	}
	return u.UnmarshalBinary(state)
}

func (r *running) hex() string {
	if r.outer != nil {
		return hex.EncodeToString(r.outer.Sum(nil))
	}
	return hex.EncodeToString(r.sum.Sum(nil))
}
