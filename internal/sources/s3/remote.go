package s3

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
)

// remote serves the bytes of one object, of one version of it only.
type remote struct {
	conn    *connection
	key     string
	etag    string
	version string
}

var _ fetch.Remote = (*remote)(nil)

// Open asks for a range on the condition that the object still has the ETag which it was listed with.
func (r *remote) Open(ctx context.Context, off, end int64) (*fetch.Answer, error) {
	options := minio.GetObjectOptions{VersionID: r.version}
	r.conn.payer(&options)
	if err := options.SetRange(off, end-1); err != nil {
		return nil, err
	}
	if r.etag != "" {
		if err := options.SetMatchETag(r.etag); err != nil {
			return nil, err
		}
	}
	body, info, header, err := r.conn.bulk.GetObject(ctx, r.conn.bucket, r.key, options)
	if err != nil {
		return nil, r.conn.explain(ctx, err, r.key, true)
	}
	answer := &fetch.Answer{Body: body, Size: -1, Tag: info.ETag, Page: strings.HasPrefix(header.Get("Content-Type"), "text/html")}
	if first, total, ok := contentRange(header.Get("Content-Range")); ok {
		answer.Offset, answer.Size = first, total
	} else {
		answer.Size, answer.Whole = info.Size, true // a server that ignored the range sends everything
	}
	if r.etag != "" && info.ETag != "" && info.ETag != r.etag { // a service that does not know If-Match
		_ = body.Close() // nothing of it is used
		return nil, r.conn.changed("s3://" + r.conn.bucket + "/" + printable(r.key))
	}
	return answer, nil
}

// contentRange reads "bytes 0-99/1234". The total is -1 when the server does not know it.
func contentRange(s string) (first, total int64, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, whole, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, false
	}
	from, _, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	first, err := strconv.ParseInt(from, 10, 64)
	if err != nil || first < 0 {
		return 0, 0, false
	}
	if whole == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(whole, 10, 64)
	if err != nil || total < 0 {
		return 0, 0, false
	}
	return first, total, true
}

var md5Tag = regexp.MustCompile(`^[0-9a-f]{32}$`)

// detailsOf reads what an answer to HEAD says about the content.
//
// An ETag is the MD5 sum of the content only for an object that was uploaded in one part and is not encrypted with a
// key of KMS or of the customer: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html. The sums that a service
// keeps beside it are of the whole object, or of the sums of its parts; then they end in -N, and the parts have to be asked
// for.
func detailsOf(info minio.ObjectInfo) details {
	d := details{size: info.Size, etag: strings.Trim(info.ETag, `"`), version: info.VersionID}
	if d.version == "null" {
		d.version = "" // it was there before the bucket had versions, and can be overwritten
	}
	for _, c := range []struct {
		kind fetch.DigestKind
		sum  string
	}{
		{fetch.SHA256, info.ChecksumSHA256}, {fetch.SHA1, info.ChecksumSHA1}, {fetch.CRC64NVME, info.ChecksumCRC64NVME},
		{fetch.CRC32C, info.ChecksumCRC32C}, {fetch.CRC32, info.ChecksumCRC32},
	} {
		sum, _, ofParts := strings.Cut(c.sum, "-")
		raw, err := base64.StdEncoding.DecodeString(sum)
		if err != nil || len(raw) == 0 {
			continue
		}
		if ofParts || strings.EqualFold(info.ChecksumMode, "COMPOSITE") {
			if d.ofParts.Kind == "" {
				d.ofParts = fetch.Digest{Kind: c.kind, Sum: hex.EncodeToString(raw)}
			}
			continue
		}
		if d.summed.Kind == "" {
			d.summed = fetch.Digest{Kind: c.kind, Sum: hex.EncodeToString(raw)}
		}
		if c.kind == fetch.SHA256 {
			d.sha256 = d.summed.Sum
		}
	}
	sealed := info.Headers.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm") != "" || strings.HasPrefix(info.Headers.Get("X-Amz-Server-Side-Encryption"), "aws:kms")
	if tag := strings.ToLower(d.etag); !sealed && md5Tag.MatchString(tag) {
		d.md5 = tag
	}
	return d
}

// digest returns the strongest sum that the service knows.
func (d details) digest() fetch.Digest {
	switch {
	case d.sha256 != "":
		return fetch.Digest{Kind: fetch.SHA256, Sum: d.sha256}
	case d.md5 != "":
		return fetch.Digest{Kind: fetch.MD5, Sum: d.md5}
	case d.summed.Kind != "":
		return d.summed
	case d.ofParts.Parts != nil:
		return d.ofParts
	}
	return fetch.Digest{}
}
