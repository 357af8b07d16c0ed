package fetch

import (
	"context"
	"encoding/hex"
	"errors"
	"hash/crc64"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// composite is the digest of the digests of parts.
func composite(kind DigestKind, data []byte, parts ...int64) Digest {
	outer := newHash(kind)
	for _, n := range parts {
		inner := newHash(kind)
		inner.Write(data[:n])
		data = data[n:]
		outer.Write(inner.Sum(nil))
	}
	return Digest{Kind: kind, Sum: hex.EncodeToString(outer.Sum(nil)), Parts: parts}
}

// TestDigestStates stores and takes up the state of every kind of digest after every so many bytes.
func TestDigestStates(t *testing.T) {
	data := content(10_000, 3)
	whole := func(kind DigestKind) Digest {
		h := newHash(kind)
		h.Write(data)
		return Digest{Kind: kind, Sum: hex.EncodeToString(h.Sum(nil))}
	}
	for _, d := range []Digest{
		whole(SHA256), whole(SHA1), whole(MD5), whole(CRC32), whole(CRC32C), whole(CRC64NVME),
		composite(SHA256, data, 4000, 4000, 2000), composite(CRC32C, data, 10_000), composite(CRC64NVME, data, 1, 9998, 1), composite(SHA1, data, 5000, 5000), composite(CRC32, data, 3000, 7000),
	} {
		for _, step := range []int{1, 999, 1000, 4000, 10_000} {
			r, err := newRunning(d, int64(len(data)))
			must(t, err)
			for pos := 0; pos < len(data); pos += step {
				r.write(data[pos:min(pos+step, len(data))])
				if step == 1 && pos%777 != 0 {
					continue
				}
				state, err := r.state()
				must(t, err)
				at := r.pos
				r, err = newRunning(d, int64(len(data)))
				must(t, err)
				must(t, r.resume(state, at))
			}
			if r.hex() != d.Sum {
				t.Errorf("%s of %d parts in steps of %d: %s, want %s", d.Kind, len(d.Parts), step, r.hex(), d.Sum)
			}
		}
	}
	// The check value of the CRC: https://reveng.sourceforge.io/crc-catalogue/all.htm#crc.cat.crc-64-nvme
	if got := crc64.Checksum([]byte("123456789"), nvme()); got != 0xae8b14860a799888 {
		t.Errorf("the CRC-64/NVME of the check string is %x", got)
	}
	for name, d := range map[string]Digest{
		"too many": composite(SHA256, data, 4000, 4000, 2000), "none": {Kind: SHA256, Sum: whole(SHA256).Sum, Parts: []int64{}}, "empty": {Kind: SHA256, Sum: whole(SHA256).Sum, Parts: []int64{0, 9000}},
		"negative": {Kind: SHA256, Sum: whole(SHA256).Sum, Parts: []int64{-1, 9001}}, "git": {Kind: GitBlobSHA1, Sum: whole(SHA1).Sum, Parts: []int64{9000}},
	} {
		if _, err := newRunning(d, 9000); registry.CodeOf(err) != registry.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDigestOfParts fetches a file whose digest is of its parts, is interrupted, goes on, and notices a flipped bit.
func TestDigestOfParts(t *testing.T) {
	data := content(6<<20, 5)
	h := newHub(t, map[string][]byte{"f": data})
	dir := t.TempDir()
	one := h.file(dir, "f", "")
	one.Digest = composite(CRC64NVME, data, 5<<20, 1<<20)
	ctx, cancel := context.WithCancel(within(t))
	var seen atomic.Int64
	h.set(nil, func(_ request, _ int64, chunk []byte) ([]byte, error) {
		if seen.Add(int64(len(chunk))) > 3<<20 {
			cancel()
		}
		return chunk, nil
	})
	if err := hasty(Options{}).Run(ctx, Job{Files: []File{one}}); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	h.set(nil, nil)
	must(t, hasty(Options{}).Run(within(t), Job{Files: []File{one}}))
	h.sameFiles(t, dir)
	must(t, os.Remove(filepath.Join(dir, "f")))
	h.set(nil, func(_ request, off int64, chunk []byte) ([]byte, error) {
		if at := int64(5<<20 + 77); off <= at && at < off+int64(len(chunk)) {
			chunk = append([]byte(nil), chunk...)
			chunk[at-off] ^= 4
		}
		return chunk, nil
	})
	err := hasty(Options{}).Run(within(t), Job{Files: []File{one}})
	var e *registry.Error
	if !errors.As(err, &e) || e.Failure == nil || e.Failure.Kind != registry.FailureCorruptFile {
		t.Errorf("a flipped bit: %v", err)
	}
}
