package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
)

// connection is the way to one bucket for one look or one fetch.
type connection struct {
	settings
	at       *url.URL
	given    bool // the credentials are the model's own
	stranger bool // the endpoint is the model's own: none of the server's credentials, no private address
	creds    *credentials.Credentials
	patient  *minio.Client // repeats what may pass, for listings
	bulk     minio.Core    // repeats nothing: package fetch does
	count    *counter
	now      func() time.Time
}

// amazon is the endpoint when neither the model nor the environment names one.
var amazon = &url.URL{Scheme: "https", Host: "s3.amazonaws.com"}

// Tries of a listing, each after a short wait that grows.
const tries = 3

// connect makes the clients; nothing is sent yet.
func (s *Source) connect(set settings) (*connection, error) {
	c := &connection{settings: set, at: set.endpoint, given: set.accessKey != "", now: s.now, count: &counter{}}
	if c.at == nil {
		if s.env.problem != "" {
			return nil, c.fail(registry.CodeInvalid, "AWS_ENDPOINT_URL of the server's environment %s; correct it there, or give endpoint_url in custom_loader_params", s.env.problem)
		}
		if c.at = s.env.endpoint; c.at == nil {
			c.at = amazon
		}
	}
	c.stranger = !s.ours(c.at)
	if c.region == "" && !c.stranger {
		c.region = s.env.region
	}
	if c.stranger && set.profile != "" {
		return nil, &registry.Error{Code: registry.CodeInvalid, Op: "s3", Msg: "the object store cannot be asked", Fields: []registry.FieldError{{Field: "custom_loader_params." + paramProfile,
			Msg: fmt.Sprintf("names credentials of this server, which are not given to %s, an endpoint that the model names; give access_key_id and secret_access_key of that service", c.host())}}}
	}
	switch {
	case c.given:
		c.creds = credentials.NewStaticV4(set.accessKey, set.secretKey, set.sessionToken)
	case c.stranger:
		c.creds = credentials.NewStatic("", "", "", credentials.SignatureAnonymous)
	default:
		c.creds = s.env.credentials(set.profile, c.amazon())
		if set.profile != "" {
			if _, err := c.creds.GetWithContext(&credentials.CredContext{Client: http.DefaultClient}); err != nil {
				return nil, &registry.Error{Code: registry.CodeInvalid, Op: "s3", Msg: "the object store cannot be asked", Fields: []registry.FieldError{{Field: "custom_loader_params." + paramProfile,
					Msg: fmt.Sprintf("is %q, which gives no credentials on this server: %s. It is looked for in ~/.aws of the server's user", clip(set.profile), printable(clip(err.Error())))}}}
			}
		}
	}
	transport := s.trusted
	if c.stranger && !s.allowPrivate {
		transport = s.careful
	}
	options := &minio.Options{
		Creds: c.creds, Secure: c.at.Scheme == "https", Region: c.region, MaxRetries: tries,
		Transport: &counting{next: transport, count: c.count},
	}
	if set.pathStyle != nil {
		options.BucketLookup = minio.BucketLookupDNS
		if *set.pathStyle {
			options.BucketLookup = minio.BucketLookupPath
		}
	}
	var err error
	if c.patient, err = minio.New(c.at.Host, options); err == nil {
		once := *options
		once.MaxRetries = 1
		var core *minio.Core
		if core, err = minio.NewCore(c.at.Host, &once); err == nil {
			c.bulk = *core
		}
	}
	if err != nil {
		return nil, c.fail(registry.CodeInvalid, "%s cannot be the endpoint of an object store: %s; correct endpoint_url", c.host(), c.scrub(err.Error()))
	}
	return c, nil
}

// ours reports whether an endpoint is the environment's, so that its credentials may go there.
func (s *Source) ours(u *url.URL) bool {
	if s.env.endpoint != nil {
		return *u == *s.env.endpoint
	}
	return u.Scheme == "https" && s3utils.IsAmazonEndpoint(*u)
}

func (c *connection) amazon() bool { return s3utils.IsAmazonEndpoint(*c.at) }

// host is how the endpoint is called in messages.
func (c *connection) host() string { return c.at.Scheme + "://" + clip(c.at.Host) }

// root is the Root of a snapshot whose files are relative to prefix.
func (c *connection) root(prefix string) string {
	return strings.TrimSuffix(c.at.String()+"/"+c.bucket+"/"+prefix, "/")
}

// prefixOf reads a Root. ok is false when it is of another service or bucket.
func (c *connection) prefixOf(root string) (prefix string, ok bool) {
	if root == c.root("") {
		return "", true
	}
	prefix, ok = strings.CutPrefix(root, c.root("")+"/")
	return prefix + "/", ok && safe(prefix)
}

func (c *connection) anonymous() bool {
	v, err := c.creds.GetWithContext(&credentials.CredContext{Client: http.DefaultClient})
	return err != nil || v.AccessKeyID == ""
}

// secrets are what must not stand in any message. Credentials that were never used are not asked for.
func (c *connection) secrets() []string {
	out := []string{c.accessKey, c.secretKey, c.sessionToken}
	if c.creds == nil || c.given || c.stranger {
		return out
	}
	if v, err := c.creds.GetWithContext(&credentials.CredContext{Client: http.DefaultClient}); err == nil {
		out = append(out, v.AccessKeyID, v.SecretAccessKey, v.SessionToken)
	}
	return out
}

// object is one entry of a listing.
type object struct {
	key   string
	size  int64
	etag  string // without quotes
	class string // STANDARD, GLACIER …; "" for the usual one
}

// list returns the objects whose keys begin with prefix, in the order of their keys: up to limit, and whether there
// were more. deep looks below slashes; otherwise only the keys up to the next slash are listed, folders left out.
func (c *connection) list(ctx context.Context, prefix string, deep bool, limit int) (out []object, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := minio.ListObjectsOptions{Prefix: prefix, Recursive: deep, MaxKeys: min(limit+1, 1000)}
	if c.requesterPays {
		options.Set("x-amz-request-payer", "requester")
	}
	for o := range c.patient.ListObjectsIter(ctx, c.bucket, options) {
		if o.Err != nil {
			return nil, false, c.explain(ctx, o.Err, "", false)
		}
		if strings.HasSuffix(o.Key, "/") {
			continue // a folder, or the empty object that some tools put there to make one
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, object{key: o.Key, size: o.Size, etag: strings.Trim(o.ETag, `"`), class: o.StorageClass})
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	return out, false, nil
}

// neighbours names some of what lies beside a prefix that holds nothing, for a message. "" when nothing is known.
func (c *connection) neighbours(ctx context.Context, prefix string) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var names []string
	for o := range c.patient.ListObjectsIter(ctx, c.bucket, minio.ListObjectsOptions{Prefix: prefix, MaxKeys: 20}) {
		if o.Err != nil || len(names) == 5 {
			break
		}
		if o.Key != prefix {
			names = append(names, printable(clip(o.Key)))
		}
	}
	return strings.Join(names, ", ")
}

// details of an object that only a HEAD tells.
type details struct {
	size    int64
	etag    string
	version string       // "" in a bucket without versions
	sha256  string       // hex, of the whole content; "" when the service has none
	md5     string       // hex; "" when the ETag is none
	summed  fetch.Digest // the strongest sum of the whole content that the service keeps; zero when it has none
	ofParts fetch.Digest // of the sums of the parts; it can be used once Parts are known
}

// head asks for an object. CodeLoadingFailed with FailureMissingFile when it is gone.
func (c *connection) head(ctx context.Context, key string) (details, error) {
	options := minio.StatObjectOptions{Checksum: true}
	c.payer(&options)
	info, err := c.patient.StatObject(ctx, c.bucket, key, options)
	if err != nil {
		var answer minio.ErrorResponse
		if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
			return details{}, c.refusal(minio.ErrorResponse{Code: "NoSuchKey", StatusCode: http.StatusNotFound}, "s3://"+c.bucket+"/"+printable(key), key)
		}
		return details{}, c.explain(ctx, err, key, false)
	}
	d := detailsOf(info)
	if d.digest().Kind == "" && d.ofParts.Kind != "" {
		d.ofParts.Parts = c.parts(ctx, key, d)
	}
	return d, nil
}

// maxParts is how many parts an object can be uploaded in.
const maxParts = 10_000

// parts asks for the sizes of the parts that an object was uploaded in; nil when the service does not tell them. It is asked
// for what could be left out, so that no refusal is an error.
func (c *connection) parts(ctx context.Context, key string, d details) []int64 {
	var out []int64
	var sum int64
	for marker := 0; len(out) <= maxParts; {
		a, err := c.patient.GetObjectAttributes(ctx, c.bucket, key, minio.ObjectAttributesOptions{VersionID: d.version, PartNumberMarker: marker, MaxParts: 1000})
		if err != nil || strings.Trim(a.ETag, `"`) != d.etag {
			return nil
		}
		for _, p := range a.ObjectParts.Parts {
			out = append(out, int64(p.Size))
			sum += int64(p.Size)
		}
		if !a.ObjectParts.IsTruncated || a.ObjectParts.NextPartNumberMarker <= marker {
			break
		}
		marker = a.ObjectParts.NextPartNumberMarker
	}
	if sum != d.size || slices.ContainsFunc(out, func(n int64) bool { return n <= 0 }) {
		return nil
	}
	return out
}

func (c *connection) payer(o *minio.GetObjectOptions) {
	if c.requesterPays {
		o.Set("x-amz-request-payer", "requester")
	}
}

// counter counts what a connection took of the network, and remembers until when the service asked for patience: the
// client's errors do not carry the header that says it.
type counter struct {
	requests, bytes, until atomic.Int64
}

// hint returns how long the service asks to wait; 0 when it does not.
func (c *counter) hint(now time.Time) time.Duration {
	return max(time.UnixMilli(c.until.Load()).Sub(now), 0)
}

// counting is a RoundTripper that counts. Only bodies count as bytes: headers are a few hundred for each request.
type counting struct {
	next  http.RoundTripper
	count *counter
}

func (t *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	t.count.requests.Add(1)
	resp, err := t.next.RoundTrip(r)
	if err == nil && (resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests) {
		if wait := fetch.Hint(resp.Header, time.Now()); wait > 0 {
			t.count.until.Store(time.Now().Add(wait).UnixMilli())
		}
	}
	if err == nil && resp.StatusCode < 300 && r.URL.Query().Has("list-type") && strings.HasPrefix(strings.ToLower(resp.Header.Get("Content-Type")), "text/html") {
		// The client would read an empty listing out of it.
		resp.Body.Close()
		return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "s3", Msg: fmt.Sprintf("%s://%s answers with a web page and no listing; endpoint_url must be the address of the S3 service, not of its console or of a proxy that asks to sign in", r.URL.Scheme, r.URL.Host)}
	}
	if err == nil && resp.Body != nil {
		resp.Body = &countedBody{ReadCloser: resp.Body, count: t.count}
	}
	return resp, err
}

type countedBody struct {
	io.ReadCloser
	count *counter
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count.bytes.Add(int64(n))
	return n, err
}
