package fetch

import (
	"crypto/md5"  //nolint:gosec // S3 names objects by it; it finds accidents, and nobody relies on it against an attacker
	"crypto/sha1" //nolint:gosec // git names blobs by it
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// running is a digest of the first pos bytes of a file. Its state can be stored and taken up again, so that a resumed
// fetch reads nothing twice.
type running struct {
	kind DigestKind
	sum  hash.Hash // nil for the zero Digest
	pos  int64
}

// newRunning returns the digest of nothing yet. CodeInvalid for a kind that does not exist.
func newRunning(d Digest, size int64) (*running, error) {
	r := &running{kind: d.Kind}
	switch d.Kind {
	case SHA256:
		r.sum = sha256.New()
	case GitBlobSHA1:
		r.sum = sha1.New() //nolint:gosec // git names blobs by it
		r.sum.Write([]byte("blob " + strconv.FormatInt(size, 10) + "\x00"))
	case MD5:
		r.sum = md5.New() //nolint:gosec // S3 names objects by it
	case "":
		return r, nil
	default:
		return nil, registry.Errorf(registry.CodeInvalid, "there is no digest of the kind %q; use %s, %s or %s", d.Kind, SHA256, GitBlobSHA1, MD5)
	}
	if raw, err := hex.DecodeString(d.Sum); err != nil || len(raw) != r.sum.Size() {
		return nil, registry.Errorf(registry.CodeInvalid, "%q is no %s digest: it needs %d hexadecimal digits", d.Sum, d.Kind, 2*r.sum.Size())
	}
	return r, nil
}

func (r *running) write(b []byte) {
	r.sum.Write(b)
	r.pos += int64(len(b))
}

// state returns what resume needs.
func (r *running) state() ([]byte, error) {
	m, ok := r.sum.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("the state of a %s digest cannot be stored", r.kind)
	}
	return m.MarshalBinary()
}

// resume takes up a stored state, which covers the first pos bytes.
func (r *running) resume(state []byte, pos int64) error {
	u, ok := r.sum.(encoding.BinaryUnmarshaler)
	if !ok {
		return fmt.Errorf("the state of a %s digest cannot be taken up", r.kind)
	}
	if err := u.UnmarshalBinary(state); err != nil {
		return err
	}
	r.pos = pos
	return nil
}

func (r *running) hex() string { return hex.EncodeToString(r.sum.Sum(nil)) }
